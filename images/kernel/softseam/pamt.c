// SPDX-License-Identifier: GPL-2.0-only
/*
 * The physical address metadata table: type, owner and lock of each 4 KiB page
 * of a TDMR, in the memory that the host gave for it at SYS.CONFIG.
 */
#include <linux/sizes.h>

#include "softseam.h"

struct seam_tdmr seam_tdmrs[SEAM_MAX_TDMRS];
u32 seam_nr_tdmrs;

static atomic_long_t pages_of_type[NR_PAGE_TYPES];

static const char * const type_names[NR_PAGE_TYPES] = {
	[PT_NDA] = "nda", [PT_RSVD] = "rsvd", [PT_REG] = "reg", [PT_TDR] = "tdr",
	[PT_TDCX] = "tdcx", [PT_TDVPR] = "tdvpr", [PT_EPT] = "ept",
};

const char *pamt_type_name(enum seam_page_type type)
{
	return type < NR_PAGE_TYPES && type_names[type] ? type_names[type] : "?";
}

long pamt_count(enum seam_page_type type)
{
	return atomic_long_read(&pages_of_type[type]);
}

/* A host physical address must be aligned, with no KeyID in its upper bits. */
u64 seam_check_pa(u64 pa, u64 align, u32 opnd)
{
	if (pa & (align - 1) || pa >> boot_cpu_data.x86_phys_bits)
		return OPND(SEAM_OPERAND_INVALID, opnd);
	return SEAM_SUCCESS;
}

static struct seam_pamt *pamt_find(u64 pa)
{
	struct seam_tdmr *tdmr;

	for (tdmr = seam_tdmrs; tdmr < seam_tdmrs + seam_nr_tdmrs; tdmr++)
		if (pa >= tdmr->base && pa - tdmr->base < tdmr->initialised)
			return tdmr->pamt + ((pa - tdmr->base) >> PAGE_SHIFT);
	return NULL;
}

u64 pamt_get(u64 pa, u32 opnd, struct seam_pamt **pamt)
{
	u64 err = seam_check_pa(pa, PAGE_SIZE, opnd);

	if (err)
		return err;
	*pamt = pamt_find(pa);
	return *pamt ? SEAM_SUCCESS : OPND(SEAM_OPERAND_ADDR_RANGE_ERROR, opnd);
}

static bool pamt_trylock(struct seam_pamt *pamt, enum seam_lock_kind kind)
{
	return kind == EXCLUSIVE ? seam_trylock_excl(&pamt->lock) :
				   seam_trylock_shared(&pamt->lock);
}

void pamt_unlock(struct seam_pamt *pamt, enum seam_lock_kind kind)
{
	if (kind == EXCLUSIVE)
		seam_unlock_excl(&pamt->lock);
	else
		seam_unlock_shared(&pamt->lock);
}

/* An operand page: its address is checked, it is locked, and it must be of @type. */
u64 pamt_lock_page(u64 pa, u32 opnd, enum seam_page_type type,
		   enum seam_lock_kind kind, struct seam_pamt **pamt)
{
	u64 err = pamt_get(pa, opnd, pamt);

	if (err)
		return err;
	if (!pamt_trylock(*pamt, kind))
		return OPND(SEAM_OPERAND_BUSY, opnd);
	if ((*pamt)->type != type) {
		pamt_unlock(*pamt, kind);
		return OPND(SEAM_PAGE_METADATA_INCORRECT, opnd);
	}
	return SEAM_SUCCESS;
}

void pamt_take(struct seam_pamt *pamt, enum seam_page_type type, u64 owner)
{
	pamt->type = type;
	pamt->owner = owner;
	pamt->bepoch = 0;
	atomic_long_inc(&pages_of_type[type]);
}

void pamt_release(struct seam_pamt *pamt)
{
	atomic_long_dec(&pages_of_type[pamt->type]);
	pamt->type = PT_NDA;
	pamt->owner = 0;
}

static bool is_reserved(const struct seam_tdmr *tdmr, u64 offset)
{
	u32 i;

	for (i = 0; i < tdmr->nr_reserved; i++)
		if (offset >= tdmr->reserved[i].offset &&
		    offset - tdmr->reserved[i].offset < tdmr->reserved[i].size)
			return true;
	return false;
}

/* Set up the entries of the next @bytes of the TDMR. */
void pamt_init_range(struct seam_tdmr *tdmr, u64 bytes)
{
	u64 end = min(tdmr->initialised + bytes, tdmr->size);
	u64 offset;

	for (offset = tdmr->initialised; offset < end; offset += PAGE_SIZE) {
		struct seam_pamt *pamt = tdmr->pamt + (offset >> PAGE_SHIFT);

		*pamt = (struct seam_pamt) {
			.type = is_reserved(tdmr, offset) ? PT_RSVD : PT_NDA,
		};
	}
	tdmr->initialised = end;
}

/* For reports: pages may come and go meanwhile. */
void pamt_for_each(enum seam_page_type type,
		   void (*fn)(u64 pa, struct seam_pamt *pamt, void *arg), void *arg)
{
	struct seam_tdmr *tdmr;
	long left = pamt_count(type);
	u64 i;

	for (tdmr = seam_tdmrs; tdmr < seam_tdmrs + seam_nr_tdmrs && left > 0; tdmr++) {
		for (i = 0; i < tdmr->initialised >> PAGE_SHIFT && left > 0; i++) {
			if (tdmr->pamt[i].type != type)
				continue;
			fn(tdmr->base + (i << PAGE_SHIFT), &tdmr->pamt[i], arg);
			left--;
		}
	}
}

/* TDH.PHYMEM.PAGE.RDMD: rcx page; out rcx type, rdx owner, r8 size, r9 block epoch */
u64 leaf_phymem_page_rdmd(struct pt_regs *regs)
{
	u64 pa = regs->cx, err;
	struct seam_pamt *pamt;

	regs->cx = regs->dx = regs->r8 = regs->r9 = regs->r10 = regs->r11 = 0;
	err = pamt_get(pa, OPND_RCX, &pamt);
	if (err)
		return err;
	if (!seam_trylock_shared(&pamt->lock))
		return OPND(SEAM_OPERAND_BUSY, OPND_RCX);
	regs->cx = pamt->type;
	regs->dx = pamt->owner;
	if (pamt->type == PT_REG || pamt->type == PT_EPT)
		regs->r9 = pamt->bepoch;
	seam_unlock_shared(&pamt->lock);
	return SEAM_SUCCESS;
}

static u64 reclaim_tdr(u64 pa, struct seam_pamt *pamt)
{
	struct seam_tdr *tdr = __va(pa);

	if (tdr->lifecycle != TD_TEARDOWN)
		return SEAM_LIFECYCLE_STATE_INCORRECT;
	if (atomic64_read(&tdr->children))
		return SEAM_TD_ASSOCIATED_PAGES_EXIST;
	pamt_release(pamt);
	return SEAM_SUCCESS;
}

static u64 reclaim_child(struct seam_pamt *pamt)
{
	struct seam_td td;
	u64 err;

	err = td_lock_owner(pamt, SHARED, &td);
	if (err)
		return err;
	if (td.tdr->lifecycle != TD_TEARDOWN) {
		err = SEAM_LIFECYCLE_STATE_INCORRECT;
	} else {
		atomic64_dec(&td.tdr->children);
		pamt_release(pamt);
	}
	td_unlock(&td);
	return err;
}

/* TDH.PHYMEM.PAGE.RECLAIM: rcx page; out rcx type, rdx owner, r8 size, also in errors */
u64 leaf_phymem_page_reclaim(struct pt_regs *regs)
{
	u64 pa = regs->cx, err;
	struct seam_pamt *pamt;

	regs->cx = regs->dx = regs->r8 = regs->r9 = regs->r10 = regs->r11 = 0;
	err = pamt_get(pa, OPND_RCX, &pamt);
	if (err)
		return err;
	if (!seam_trylock_excl(&pamt->lock))
		return OPND(SEAM_OPERAND_BUSY, OPND_RCX);
	if (pamt->type == PT_NDA || pamt->type == PT_RSVD) {
		err = OPND(SEAM_PAGE_METADATA_INCORRECT, OPND_RCX);
	} else {
		regs->cx = pamt->type;
		regs->dx = pamt->owner;
		err = pamt->type == PT_TDR ? reclaim_tdr(pa, pamt) : reclaim_child(pamt);
	}
	seam_unlock_excl(&pamt->lock);
	return err;
}

/* TDH.PHYMEM.PAGE.WBINVD: rcx page with a KeyID, which is not looked at; the page must be free */
u64 leaf_phymem_page_wbinvd(struct pt_regs *regs)
{
	u64 pa = regs->cx & GENMASK_ULL(boot_cpu_data.x86_phys_bits - 1, 0);
	struct seam_pamt *pamt;
	u64 err;

	err = pamt_lock_page(pa, OPND_RCX, PT_NDA, SHARED, &pamt);
	if (err)
		return err;
	pamt_unlock(pamt, SHARED);
	return SEAM_SUCCESS;
}
