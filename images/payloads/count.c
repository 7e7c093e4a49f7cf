/* SPDX-License-Identifier: GPL-2.0-or-later */
/* payload: base=0xffff4000 */
/*
 * Counts in private memory for ever.  Tells index << 24 | count; all vCPUs also count in one place,
 * and a value with bit 31 set is that common count.
 */
#include "tdx.h"

static volatile u32 own[8];
static u32 common;

void payload_main(u64 index, u64 rcx)
{
	(void)rcx;
	for (;;) {
		own[index]++;
		tell(index << 24 | own[index]);
		tell(1U << 31 | __atomic_add_fetch(&common, 1, __ATOMIC_SEQ_CST));
	}
}
