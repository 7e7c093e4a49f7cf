/* SPDX-License-Identifier: GPL-2.0-or-later */
/* payload: base=0xffff4000 */
/* Accepts the page at 1 MiB again and again, without reading it, and tells the status (>> 32). */
#include "tdx.h"

void payload_main(u64 index, u64 rcx)
{
	(void)index;
	(void)rcx;
	for (;;)
		tell(tdcall_accept(0x100000UL) >> 32);
}
