/* SPDX-License-Identifier: GPL-2.0-or-later */
/* payload: base=0xffff4000 */
/*
 * Accepts private pages, converts one to shared and writes there, and converts it back.  Needs memory at
 * 1 MiB, 16 pages.  Tells the result of each step: status of accepting 16 pages (sum); sum of what they hold
 * (0); status of accepting one again (>> 32); status of MapGPA to shared; the word found in the shared page;
 * status of MapGPA to private; status of accepting it again; the word found there (0).
 */
#include "tdx.h"

#define BASE	0x100000UL
#define PAGES	16
#define PAGE	4096UL

static volatile u32 *at(u64 gpa)
{
	return (u32 *)gpa;
}

void payload_main(u64 index, u64 rcx)
{
	volatile u32 *shared = (u32 *)(SHARED_VA + BASE);
	u64 status = 0;
	u32 sum = 0;
	int i;

	(void)index;
	(void)rcx;
	for (i = 0; i < PAGES; i++)
		status |= tdcall_accept(BASE + i * PAGE);
	tell(status >> 32);
	for (i = 0; i < PAGES; i++) {
		sum += *at(BASE + i * PAGE);
		*at(BASE + i * PAGE) = i + 1;
	}
	tell(sum);
	tell(tdcall_accept(BASE) >> 32);

	tell(map_gpa(SHARED_GPA | BASE, PAGE));
	tell(*shared);
	*shared = 0x600df00d;
	tell(map_gpa(BASE, PAGE));
	tell(tdcall_accept(BASE) >> 32);
	tell(*at(BASE));
	stop();
}
