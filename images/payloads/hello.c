/* SPDX-License-Identifier: GPL-2.0-or-later */
/* payload: base=0xffff4000 */
/* Prints "hello from vCPU N\n" and halts; then tells 1, 2, 3… each time that it is run again. */
#include "tdx.h"

void payload_main(u64 index, u64 rcx)
{
	u32 runs = 0;

	(void)rcx;
	print("hello from vCPU ");
	put('0' + index);
	put('\n');
	for (;;)
		tell(++runs);
}
