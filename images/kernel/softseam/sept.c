// SPDX-License-Identifier: GPL-2.0-only
/*
 * The secure EPT.  Its pages are the nested page tables that the CPU walks, so
 * that a TD reaches what is mapped here and nothing else; the remaining state of
 * an entry lies in bits that the CPU ignores.
 */
#include <linux/atomic.h>
#include <linux/string.h>
#include <asm/page.h>

#include "abi.h"
#include "lock.h"
#include "pamt.h"
#include "sept.h"
#include "td.h"

/* Present, writable, user */
#define NPT_RWU		GENMASK_ULL(2, 0)
/* Bits that the CPU ignores */
#define SEPT_LOCKED	BIT_ULL(11)
#define SEPT_NONLEAF	BIT_ULL(52)
#define SEPT_LEAF	BIT_ULL(53)
#define SEPT_IS_PENDING	BIT_ULL(54)
#define SEPT_IS_BLOCKED	BIT_ULL(55)

#define LEVEL_4K	0
#define LEVEL_ROOT	3
#define PAGE_INFO_LEVEL	GENMASK_ULL(2, 0)
#define PAGE_INFO_RSVD	(GENMASK_ULL(11, 3) | GENMASK_ULL(63, 52))
#define ARCH_FREE	BIT_ULL(63)
#define ARCH_LEAF_KEEP	0x800FFFFFFFFFF0FFULL
#define SEPT_FLAG_ALLOW_EXISTING	BIT_ULL(0)
#define SEPT_FLAG_RSVD	(GENMASK_ULL(11, 1) | GENMASK_ULL(63, 52))

enum seam_sept_state sept_state(u64 entry)
{
	if (!(entry & (SEPT_NONLEAF | SEPT_LEAF)))
		return SEPT_FREE;
	if (entry & SEPT_IS_PENDING)
		return entry & SEPT_IS_BLOCKED ? SEPT_PENDING_BLOCKED : SEPT_PENDING;
	return entry & SEPT_IS_BLOCKED ? SEPT_BLOCKED : SEPT_PRESENT;
}

bool sept_is_leaf(u64 entry)
{
	return entry & SEPT_LEAF;
}

u64 sept_entry_pa(u64 entry)
{
	return entry & PT_PA;
}

bool sept_gpa_is_private(const struct seam_tdcs *tdcs, u64 gpa)
{
	return !(gpa >> (tdcs->gpaw - 1));
}

static int level_shift(int level)
{
	return PAGE_SHIFT + 9 * level;
}

/* Walk down to @level, or to the last entry above it. */
void sept_walk_to(const struct seam_tdcs *tdcs, u64 gpa, int level, struct sept_walk *walk)
{
	u64 *table = __va(tdcs->sept_root);
	int l = LEVEL_ROOT;

	for (;;) {
		u64 *entry = &table[gpa >> level_shift(l) & 511];
		u64 val = READ_ONCE(*entry);

		walk->entry = entry;
		walk->level = l;
		if (l == level || !(val & SEPT_NONLEAF) || val & SEPT_IS_BLOCKED)
			return;
		table = __va(sept_entry_pa(val));
		l--;
	}
}

/* The memory at @gpa, NULL unless it is mapped and accepted */
void *sept_gpa_to_va(const struct seam_tdcs *tdcs, u64 gpa)
{
	struct sept_walk walk;
	u64 entry;

	if (!sept_gpa_is_private(tdcs, gpa))
		return NULL;
	sept_walk_to(tdcs, gpa, LEVEL_4K, &walk);
	entry = READ_ONCE(*walk.entry);
	if (walk.level != LEVEL_4K || !sept_is_leaf(entry) || sept_state(entry) != SEPT_PRESENT)
		return NULL;
	return __va(sept_entry_pa(entry)) + (gpa & (PAGE_SIZE - 1));
}

/* The CPU may set accessed and dirty bits of a locked entry. */
static bool entry_trylock(u64 *entry)
{
	u64 old = READ_ONCE(*entry);

	do {
		if (old & SEPT_LOCKED)
			return false;
	} while (!try_cmpxchg(entry, &old, old | SEPT_LOCKED));
	return true;
}

static void entry_unlock(u64 *entry)
{
	u64 old = READ_ONCE(*entry);

	while (!try_cmpxchg(entry, &old, old & ~SEPT_LOCKED))
		;
}

/* Accessed and dirty bits that the CPU sets meanwhile may get lost: nothing reads them. */
static void entry_set_locked(u64 *entry, u64 val)
{
	WRITE_ONCE(*entry, val | SEPT_LOCKED);
}

/* An entry as a leaf returns it: rcx its architectural form, rdx level and state */
static void report_entry(struct pt_regs *regs, const struct sept_walk *walk)
{
	u64 entry = READ_ONCE(*walk->entry);
	enum seam_sept_state state = sept_state(entry);

	if (state == SEPT_FREE)
		regs->cx = ARCH_FREE;
	else if (sept_is_leaf(entry))
		regs->cx = (entry & ARCH_LEAF_KEEP & ~SEPT_LOCKED) | ARCH_FREE;
	else
		regs->cx = entry & NPT_RWU;
	regs->dx = walk->level | state << 8;
	if (!sept_is_leaf(entry) && state != SEPT_FREE)
		regs->dx |= 0x80 << 8;
}

/* A memory leaf's operands, checked and locked */
struct mem_op {
	struct pt_regs *regs;
	struct seam_td td;
	u64 gpa;
	int level;
	enum seam_lock_kind tree;
	struct sept_walk walk;
};

static void mem_end(struct mem_op *op)
{
	entry_unlock(op->walk.entry);
	seam_unlock(&op->td.tdcs->sept_lock, op->tree);
	td_unlock(&op->td);
}

/*
 * Common to all memory leaves: rcx level and GPA, rdx TDR.  Returns with the
 * TDR, the tree and the entry locked.
 */
static u64 mem_begin(struct mem_op *op, struct pt_regs *regs, enum seam_lock_kind tdr_kind,
		     enum seam_lock_kind tree, u32 op_mask, int min_level, int max_level)
{
	u64 info = regs->cx, tdr_pa = regs->dx, err;

	op->regs = regs;
	op->tree = tree;
	op->level = info & PAGE_INFO_LEVEL;
	op->gpa = info & ~PAGE_INFO_LEVEL;
	regs->cx = 0;
	regs->dx = 0;

	err = td_lock(tdr_pa & ~SEPT_FLAG_ALLOW_EXISTING, OPND_RDX, tdr_kind, &op->td);
	if (err)
		return err;
	err = td_check_state(&op->td, op_mask);
	if (err)
		goto unlock_td;

	err = OPND(SEAM_OPERAND_INVALID, OPND_RCX);
	if (info & PAGE_INFO_RSVD || op->level < min_level || op->level > max_level ||
	    op->gpa & (BIT_ULL(level_shift(op->level)) - 1) ||
	    !sept_gpa_is_private(op->td.tdcs, op->gpa))
		goto unlock_td;

	err = OPND(SEAM_OPERAND_BUSY, OPND_SEPT_TREE);
	if (!seam_trylock(&op->td.tdcs->sept_lock, tree))
		goto unlock_td;

	sept_walk_to(op->td.tdcs, op->gpa, op->level, &op->walk);
	if (op->walk.level != op->level) {
		report_entry(regs, &op->walk);
		err = OPND(SEAM_EPT_WALK_FAILED, OPND_RCX);
		goto unlock_tree;
	}
	if (!entry_trylock(op->walk.entry)) {
		report_entry(regs, &op->walk);
		err = OPND(SEAM_OPERAND_BUSY, OPND_RCX);
		goto unlock_tree;
	}
	return SEAM_SUCCESS;

unlock_tree:
	seam_unlock(&op->td.tdcs->sept_lock, op->tree);
unlock_td:
	td_unlock(&op->td);
	return err;
}

static u64 wrong_state(struct mem_op *op, u64 code)
{
	report_entry(op->regs, &op->walk);
	return OPND(code, OPND_RCX);
}

/* TDH.MEM.SEPT.ADD: rcx level 1..3 and GPA, rdx TDR and flags, r8 page */
u64 leaf_mem_sept_add(struct pt_regs *regs)
{
	bool allow_existing = regs->dx & SEPT_FLAG_ALLOW_EXISTING;
	u64 entry, err, pa = regs->r8;
	struct mem_op op;

	if (regs->dx & SEPT_FLAG_RSVD) {
		regs->cx = 0;
		regs->dx = 0;
		return OPND(SEAM_OPERAND_INVALID, OPND_RDX);
	}
	err = mem_begin(&op, regs, SHARED, SHARED, OP_MASK(INITIALIZED) | OP_MASK(RUNNABLE),
			1, LEVEL_ROOT);
	if (err)
		return err;
	entry = *op.walk.entry;
	if (sept_state(entry) == SEPT_FREE) {
		err = seam_take_page(&op.td, pa, OPND_R8, PT_EPT);
		if (!err)
			entry_set_locked(op.walk.entry, pa | NPT_RWU | SEPT_NONLEAF);
	} else if (sept_is_leaf(entry) || sept_state(entry) != SEPT_PRESENT || !allow_existing) {
		err = wrong_state(&op, SEAM_EPT_ENTRY_STATE_INCORRECT);
	}
	mem_end(&op);
	return err;
}

/* TDH.MEM.PAGE.ADD: rcx GPA, rdx TDR, r8 page, r9 page with its contents */
u64 leaf_mem_page_add(struct pt_regs *regs)
{
	u64 gpa = regs->cx & ~PAGE_INFO_LEVEL, pa = regs->r8, source = regs->r9, err;
	u8 header[128] = "MEM.PAGE.ADD";
	struct mem_op op;

	err = mem_begin(&op, regs, EXCLUSIVE, SHARED, OP_MASK(INITIALIZED), LEVEL_4K, LEVEL_4K);
	if (err)
		return err;
	if (sept_state(*op.walk.entry) != SEPT_FREE) {
		err = wrong_state(&op, SEAM_EPT_ENTRY_STATE_INCORRECT);
		goto out;
	}
	err = seam_check_pa(source, PAGE_SIZE, OPND_R9);
	if (!err)
		err = seam_take_page(&op.td, pa, OPND_R8, PT_REG);
	if (err)
		goto out;
	memcpy(__va(pa), __va(source), PAGE_SIZE);
	memcpy(header + 16, &gpa, sizeof(gpa));
	sha384_update(&op.td.tdcs->measuring, header, sizeof(header));
	entry_set_locked(op.walk.entry, pa | NPT_RWU | SEPT_LEAF);
out:
	mem_end(&op);
	return err;
}

/* TDH.MEM.PAGE.AUG: rcx GPA, rdx TDR, r8 page; the TD has to accept it */
u64 leaf_mem_page_aug(struct pt_regs *regs)
{
	u64 pa = regs->r8, err;
	struct mem_op op;

	/* 4 KiB pages only: Linux maps no others. */
	err = mem_begin(&op, regs, SHARED, SHARED, OP_MASK(INITIALIZED) | OP_MASK(RUNNABLE),
			LEVEL_4K, LEVEL_4K);
	if (err)
		return err;
	if (sept_state(*op.walk.entry) != SEPT_FREE)
		err = wrong_state(&op, SEAM_EPT_ENTRY_STATE_INCORRECT);
	else
		err = seam_take_page(&op.td, pa, OPND_R8, PT_REG);
	if (!err)
		entry_set_locked(op.walk.entry, pa | SEPT_LEAF | SEPT_IS_PENDING);
	mem_end(&op);
	return err;
}

/* TDH.MEM.RANGE.BLOCK: rcx level and GPA, rdx TDR */
u64 leaf_mem_range_block(struct pt_regs *regs)
{
	struct seam_pamt *pamt;
	struct mem_op op;
	u64 entry, err;

	err = mem_begin(&op, regs, SHARED, EXCLUSIVE, OP_MASK(INITIALIZED) | OP_MASK(RUNNABLE),
			LEVEL_4K, LEVEL_ROOT);
	if (err)
		return err;
	entry = *op.walk.entry & ~SEPT_LOCKED;
	if (entry & SEPT_IS_BLOCKED) {
		err = wrong_state(&op, SEAM_GPA_RANGE_ALREADY_BLOCKED);
	} else if (sept_state(entry) == SEPT_FREE) {
		err = wrong_state(&op, SEAM_EPT_ENTRY_STATE_INCORRECT);
	} else {
		entry_set_locked(op.walk.entry, (entry & ~NPT_RWU) | SEPT_IS_BLOCKED);
		if (!pamt_get(sept_entry_pa(entry), 0, &pamt))
			WRITE_ONCE(pamt->bepoch, (u32)READ_ONCE(op.td.tdcs->epoch));
	}
	mem_end(&op);
	return err;
}

/* TDH.MEM.TRACK: rcx TDR; fails while a vCPU runs that entered before the last one */
u64 leaf_mem_track(struct pt_regs *regs)
{
	struct seam_tdcs *tdcs;
	struct seam_td td;
	u64 err;

	err = td_lock(regs->cx, OPND_RCX, SHARED, &td);
	if (err)
		return err;
	tdcs = td.tdcs;
	err = td_check_state(&td, OP_MASK(INITIALIZED) | OP_MASK(RUNNABLE));
	if (err)
		goto out;
	if (!seam_trylock_excl(&tdcs->epoch_lock)) {
		err = OPND(SEAM_OPERAND_BUSY, OPND_TD_EPOCH);
		goto out;
	}
	if (atomic_read(&tdcs->in_epoch[(tdcs->epoch - 1) & 1]))
		err = SEAM_PREVIOUS_TLB_EPOCH_BUSY;
	else
		tdcs->epoch++;
	seam_unlock_excl(&tdcs->epoch_lock);
out:
	td_unlock(&td);
	return err;
}

static bool is_tracked(struct seam_tdcs *tdcs, u32 bepoch)
{
	u32 passed = (u32)READ_ONCE(tdcs->epoch) - bepoch;

	return passed > 1 || (passed == 1 && !atomic_read(&tdcs->in_epoch[bepoch & 1]));
}

/* TDH.MEM.PAGE.REMOVE: rcx GPA, rdx TDR; out rcx the page */
u64 leaf_mem_page_remove(struct pt_regs *regs)
{
	struct seam_pamt *pamt;
	struct mem_op op;
	u64 entry, err, pa;

	err = mem_begin(&op, regs, SHARED, SHARED, OP_MASK(INITIALIZED) | OP_MASK(RUNNABLE),
			LEVEL_4K, 2);
	if (err)
		return err;
	entry = *op.walk.entry;
	pa = sept_entry_pa(entry);
	if (!sept_is_leaf(entry)) {
		err = wrong_state(&op, SEAM_EPT_ENTRY_STATE_INCORRECT);
		goto out;
	}
	err = pamt_lock_page(pa, OPND_RCX, PT_REG, EXCLUSIVE, &pamt);
	if (err)
		goto out;
	if (op.td.tdcs->op_state == OP_RUNNABLE && !(entry & SEPT_IS_BLOCKED)) {
		err = wrong_state(&op, SEAM_GPA_RANGE_NOT_BLOCKED);
	} else if (op.td.tdcs->op_state == OP_RUNNABLE && !is_tracked(op.td.tdcs, pamt->bepoch)) {
		err = OPND(SEAM_TLB_TRACKING_NOT_DONE, OPND_RCX);
	} else {
		entry_set_locked(op.walk.entry, 0);
		pamt_release(pamt);
		atomic64_dec(&op.td.tdr->children);
		regs->cx = pa;
	}
	seam_unlock_excl(&pamt->lock);
out:
	mem_end(&op);
	return err;
}

/*
 * For TDG.MEM.PAGE.ACCEPT: a pending page becomes present, filled with zeroes.
 * EPT_WALK_FAILED means that there is no page to accept: the caller exits to the
 * host.
 */
u64 sept_accept(struct seam_tdcs *tdcs, u64 gpa, int level)
{
	struct sept_walk walk;
	u64 entry, err;

	if (!seam_trylock_shared(&tdcs->sept_lock))
		return OPND(SEAM_OPERAND_BUSY, OPND_SEPT_TREE);
	sept_walk_to(tdcs, gpa, level, &walk);
	err = SEAM_EPT_WALK_FAILED;
	if (walk.level != level)
		goto unlock_tree;
	if (level != LEVEL_4K) {
		/* There are no large pages: this is a table of smaller ones, or free. */
		if (READ_ONCE(*walk.entry) & SEPT_NONLEAF)
			err = SEAM_PAGE_SIZE_MISMATCH | level;
		goto unlock_tree;
	}
	err = OPND(SEAM_OPERAND_BUSY, OPND_RCX);
	if (!entry_trylock(walk.entry))
		goto unlock_tree;
	entry = *walk.entry & ~SEPT_LOCKED;
	switch (sept_state(entry)) {
	case SEPT_PRESENT:
		err = SEAM_PAGE_ALREADY_ACCEPTED | LEVEL_4K;
		break;
	case SEPT_PENDING:
		memset(__va(sept_entry_pa(entry)), 0, PAGE_SIZE);
		entry_set_locked(walk.entry, (entry & ~SEPT_IS_PENDING) | NPT_RWU);
		err = SEAM_SUCCESS;
		break;
	default:
		err = SEAM_EPT_WALK_FAILED;
	}
	entry_unlock(walk.entry);
unlock_tree:
	seam_unlock_shared(&tdcs->sept_lock);
	return err;
}
