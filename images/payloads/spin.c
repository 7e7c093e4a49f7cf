/* SPDX-License-Identifier: GPL-2.0-or-later */
/* payload: base=0xffff4000 */
/* Tells 1, then runs for ever and asks nothing of anybody. */
#include "tdx.h"

void payload_main(u64 index, u64 rcx)
{
	volatile u64 n = 0;

	(void)rcx;
	tell(index + 1);
	for (;;)
		n++;
}
