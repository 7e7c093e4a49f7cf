// SPDX-License-Identifier: GPL-2.0-only
/*
 * The physical address metadata table: type, owner and lock of each 4 KiB page
 * of a TDMR, in the memory that the host donates at SYS.CONFIG.
 */
#include <linux/atomic.h>
#include <linux/minmax.h>
#include <linux/spinlock.h>
#include <asm/page.h>
#include <asm/processor.h>

#include "abi.h"
#include "lock.h"
#include "pamt.h"

struct seam_tdmr seam_tdmrs[SEAM_MAX_TDMRS];
u32 seam_nr_tdmrs;

static atomic_long_t pages_of_type[NR_PAGE_TYPES];

/*
 * Pages change hands under it, so that a reader of debugfs finds in a page what
 * the module keeps there.  That reader takes no lock of the module: the leaf
 * that the host calls meanwhile would return OPERAND_BUSY.
 */
static DEFINE_RAW_SPINLOCK(handover_lock);

static const char * const type_names[NR_PAGE_TYPES] = {
	[PT_NDA] = "nda", [PT_RSVD] = "rsvd", [PT_REG] = "reg", [PT_TDR] = "tdr",
	[PT_TDCX] = "tdcx", [PT_TDVPR] = "tdvpr", [PT_EPT] = "ept",
};

const char *pamt_type_name(enum seam_page_type type)
{
	return type < NR_PAGE_TYPES && type_names[type] ? type_names[type] : "?";
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

/* Check the address of an operand page, lock it and check that it is of @type. */
u64 pamt_lock_page(u64 pa, u32 opnd, enum seam_page_type type,
		   enum seam_lock_kind kind, struct seam_pamt **pamt)
{
	u64 err = pamt_get(pa, opnd, pamt);

	if (err)
		return err;
	if (!seam_trylock(&(*pamt)->lock, kind))
		return OPND(SEAM_OPERAND_BUSY, opnd);
	if ((*pamt)->type != type) {
		seam_unlock(&(*pamt)->lock, kind);
		return OPND(SEAM_PAGE_METADATA_INCORRECT, opnd);
	}
	return SEAM_SUCCESS;
}

void pamt_take(struct seam_pamt *pamt, enum seam_page_type type, u64 owner)
{
	unsigned long flags;

	raw_spin_lock_irqsave(&handover_lock, flags);
	pamt->type = type;
	pamt->owner = owner;
	pamt->bepoch = 0;
	raw_spin_unlock_irqrestore(&handover_lock, flags);
	atomic_long_inc(&pages_of_type[type]);
}

void pamt_release(struct seam_pamt *pamt)
{
	unsigned long flags;

	atomic_long_dec(&pages_of_type[pamt->type]);
	raw_spin_lock_irqsave(&handover_lock, flags);
	pamt->type = PT_NDA;
	pamt->owner = 0;
	raw_spin_unlock_irqrestore(&handover_lock, flags);
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

/*
 * For reports: pages may come and go meanwhile, but not the page that @fn is
 * called for.  @fn must not sleep.
 */
void pamt_for_each(enum seam_page_type type, pamt_report_fn fn, void *arg)
{
	long left = atomic_long_read(&pages_of_type[type]);
	struct seam_tdmr *tdmr;
	unsigned long flags;
	u64 i;

	for (tdmr = seam_tdmrs; tdmr < seam_tdmrs + seam_nr_tdmrs && left > 0; tdmr++) {
		for (i = 0; i < tdmr->initialised >> PAGE_SHIFT && left > 0; i++) {
			if (READ_ONCE(tdmr->pamt[i].type) != type)
				continue;
			raw_spin_lock_irqsave(&handover_lock, flags);
			if (tdmr->pamt[i].type == type) {
				fn(tdmr->base + (i << PAGE_SHIFT), &tdmr->pamt[i], arg);
				left--;
			}
			raw_spin_unlock_irqrestore(&handover_lock, flags);
		}
	}
}

/* For a pamt_report_fn: a further page, or NULL unless it is of @type and belongs to @owner. */
const void *pamt_peek(u64 pa, enum seam_page_type type, u64 owner)
{
	struct seam_pamt *pamt = pamt_find(pa);

	lockdep_assert_held(&handover_lock);
	return pamt && pamt->type == type && pamt->owner == owner ? __va(pa) : NULL;
}
