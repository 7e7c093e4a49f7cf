/* SPDX-License-Identifier: GPL-2.0-or-later */
/* payload: base=0xffff4000 */
/*
 * Accepts the page at 1 MiB again and again, and leaves the round's number there, beginning with 1.  Then tells
 * the status of accepting it (>> 32: 0, or 0xb0a when it was accepted already), and the word that was there.
 */
#include "tdx.h"

void payload_main(u64 index, u64 rcx)
{
	volatile u32 *page = (u32 *)0x100000UL;
	u32 round, status, found;

	(void)index;
	(void)rcx;
	for (round = 1; ; round++) {
		status = tdcall_accept((u64)page) >> 32;
		found = *page;
		*page = round;
		tell(status);
		tell(found);
	}
}
