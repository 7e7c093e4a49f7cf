/* SPDX-License-Identifier: GPL-2.0-or-later */
/* payload: base=0xffff4000 */
/*
 * Accepts the page at 1 MiB again and again.  Tells in each round: the status of accepting it (>> 32: 0, or
 * 0xb0a when it is accepted already); the word found there.  Then it leaves the round's number in that word,
 * beginning with 1.
 */
#include "tdx.h"

void payload_main(u64 index, u64 rcx)
{
	volatile u32 *page = (u32 *)0x100000UL;
	u32 round;

	(void)index;
	(void)rcx;
	for (round = 1; ; round++) {
		tell(tdcall_accept((u64)page) >> 32);
		tell(*page);
		*page = round;
	}
}
