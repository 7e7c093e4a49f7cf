/* SPDX-License-Identifier: GPL-2.0-or-later */
/* payload: base=0xffff4000 */
/* Reads private memory at 1 MiB that it has not accepted. */
#include "tdx.h"

void payload_main(u64 index, u64 rcx)
{
	(void)index;
	(void)rcx;
	tell(1);
	tell(*(volatile u32 *)0x100000UL);
	stop();
}
