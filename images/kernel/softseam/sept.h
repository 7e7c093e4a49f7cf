/* SPDX-License-Identifier: GPL-2.0-only */
/* The secure EPT: its entries are nested page table entries that the CPU walks. */
#ifndef SOFTSEAM_SEPT_H
#define SOFTSEAM_SEPT_H

#include <linux/bits.h>
#include <linux/ptrace.h>
#include <linux/types.h>

#include "abi.h"
#include "td.h"

/* The address in an entry of any table that a CPU walks: the guest's, EPT, nested */
#define PT_PA		GENMASK_ULL(51, 12)

struct sept_walk {
	u64 *entry;
	int level;			/* where the walk ended */
};

enum seam_sept_state sept_state(u64 entry);
bool sept_is_leaf(u64 entry);
u64 sept_entry_pa(u64 entry);
void sept_walk_to(const struct seam_tdcs *tdcs, u64 gpa, int level, struct sept_walk *walk);
void *sept_gpa_to_va(const struct seam_tdcs *tdcs, u64 gpa);
u64 sept_accept(struct seam_tdcs *tdcs, u64 gpa, int level);
bool sept_gpa_is_private(const struct seam_tdcs *tdcs, u64 gpa);
u64 leaf_mem_sept_add(struct pt_regs *regs);
u64 leaf_mem_page_add(struct pt_regs *regs);
u64 leaf_mem_page_aug(struct pt_regs *regs);
u64 leaf_mem_range_block(struct pt_regs *regs);
u64 leaf_mem_track(struct pt_regs *regs);
u64 leaf_mem_page_remove(struct pt_regs *regs);

#endif
