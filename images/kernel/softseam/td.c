// SPDX-License-Identifier: GPL-2.0-only
/* The TD that a leaf works on: finding and locking it, its state, a page for it. */
#include <linux/atomic.h>
#include <linux/string.h>
#include <asm/page.h>

#include "abi.h"
#include "lock.h"
#include "pamt.h"
#include "td.h"

static struct seam_tdcs *td_tdcs(struct seam_tdr *tdr)
{
	return tdr->nr_tdcx > TDCS_STATE ? __va(tdr->tdcx[TDCS_STATE]) : NULL;
}

static void td_from_pamt(struct seam_td *td, u64 pa, struct seam_pamt *pamt,
			 enum seam_lock_kind kind)
{
	td->pa = pa;
	td->pamt = pamt;
	td->kind = kind;
	td->tdr = __va(pa);
	td->tdcs = td_tdcs(td->tdr);
}

/* Lock the TDR that is operand @opnd. */
u64 td_lock(u64 tdr_pa, u32 opnd, enum seam_lock_kind kind, struct seam_td *td)
{
	struct seam_pamt *pamt;
	u64 err;

	err = pamt_lock_page(tdr_pa, opnd, PT_TDR, kind, &pamt);
	if (!err)
		td_from_pamt(td, tdr_pa, pamt, kind);
	return err;
}

/* Lock the TDR that owns @page, which is locked already. */
u64 td_lock_owner(struct seam_pamt *page, enum seam_lock_kind kind, struct seam_td *td)
{
	struct seam_pamt *pamt;
	u64 err;

	err = pamt_lock_page(page->owner, OPND_TDR, PT_TDR, kind, &pamt);
	if (!err)
		td_from_pamt(td, page->owner, pamt, kind);
	return err;
}

/* Check that the TD's keys are configured, its TDCS pages added and its op_state in @op_mask. */
u64 td_check_state(struct seam_td *td, u32 op_mask)
{
	if (td->tdr->fatal)
		return SEAM_TD_FATAL;
	if (td->tdr->lifecycle != TD_KEYS_CONFIGURED)
		return SEAM_TD_KEYS_NOT_CONFIGURED;
	if (td->tdr->nr_tdcx < SEAM_NR_TDCS_PAGES)
		return SEAM_TDCS_NOT_ALLOCATED;
	if (!(BIT(td->tdcs->op_state) & op_mask))
		return SEAM_OP_STATE_INCORRECT;
	return SEAM_SUCCESS;
}

void td_unlock(struct seam_td *td)
{
	seam_unlock(&td->pamt->lock, td->kind);
}

/* Take a free page for @td, filled with zeroes. */
u64 seam_take_page(struct seam_td *td, u64 pa, u32 opnd, enum seam_page_type type)
{
	struct seam_pamt *pamt;
	u64 err;

	err = pamt_lock_page(pa, opnd, PT_NDA, EXCLUSIVE, &pamt);
	if (err)
		return err;
	memset(__va(pa), 0, PAGE_SIZE);
	pamt_take(pamt, type, td->pa);
	atomic64_inc(&td->tdr->children);
	seam_unlock_excl(&pamt->lock);
	return SEAM_SUCCESS;
}
