/* SPDX-License-Identifier: GPL-2.0-or-later */
/* payload: base=0xffff4000 */
/* Tells 1, 2, 3… and works a few milliseconds between them: it is in the guest most of the time, and comes out. */
#include "tdx.h"

#define WORK	200000

void payload_main(u64 index, u64 rcx)
{
	volatile u32 i;
	u32 n;

	(void)index;
	(void)rcx;
	for (n = 1;; n++) {
		for (i = 0; i < WORK; i++)
			;
		tell(n);
	}
}
