/* SPDX-License-Identifier: GPL-2.0-or-later */
/* payload: base=0xffff4000 */
/*
 * Converts memory to shared and back, as often as RCX says.  Each vCPU has four pages, from 1 GiB on: it converts the
 * second, keeps data in the first and the third, and never touches the fourth.  Tells index << 24 | round after each
 * round in which all was as it should be; else 1 << 31 | index << 24 | step, and stops.  Steps: 1, 2 MapGPA to shared
 * and to private; 3 accept; 4 the page is not zero; 5 what it wrote to the shared page is not there; 6, 7 the first or
 * third page has changed.
 */
#include "tdx.h"

#define BASE		0x40000000UL
#define PAGE		4096UL
#define WORDS		(PAGE / 8)
#define BUSY		0x80000200	/* the upper half of the TDX module's code */

static u64 accept(u64 gpa)
{
	u64 status;

	do {
		status = tdcall_accept(gpa) >> 32;
	} while (status == BUSY);
	return status;
}

static void fill(volatile u64 *page, u64 seed)
{
	u64 i;

	for (i = 0; i < WORDS; i++)
		page[i] = seed ? seed + i : 0;
}

static bool holds(volatile u64 *page, u64 seed)
{
	u64 i;

	for (i = 0; i < WORDS; i++)
		if (page[i] != (seed ? seed + i : 0))
			return 0;
	return 1;
}

static u32 convert(u64 first, u64 seed)
{
	u64 gpa = first + PAGE;
	volatile u64 *shared = (u64 *)(SHARED_VA + gpa), *private = (u64 *)gpa;

	if (map_gpa(SHARED_GPA | gpa, PAGE))
		return 1;
	fill(shared, seed);
	if (!holds(shared, seed))
		return 5;
	if (map_gpa(gpa, PAGE))
		return 2;
	if (accept(gpa))
		return 3;
	if (!holds(private, 0))
		return 4;
	fill(private, ~seed);
	if (!holds((u64 *)first, first))
		return 6;
	if (!holds((u64 *)(first + 2 * PAGE), ~first))
		return 7;
	return 0;
}

void payload_main(u64 index, u64 rounds)
{
	u64 first = BASE + 4 * PAGE * index, round;
	u32 wrong;

	if (accept(first) || accept(first + PAGE) || accept(first + 2 * PAGE)) {
		tell(1U << 31 | index << 24 | 3);
		stop();
	}
	fill((u64 *)first, first);
	fill((u64 *)(first + 2 * PAGE), ~first);
	for (round = 1; round <= rounds; round++) {
		wrong = convert(first, first | round << 48);
		if (wrong) {
			tell(1U << 31 | index << 24 | wrong);
			stop();
		}
		tell(index << 24 | round);
	}
	stop();
}
