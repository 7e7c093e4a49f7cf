// SPDX-License-Identifier: GPL-2.0-only
/* Leaves for the host's management of pages: type and owner, reclaim, write-back. */
#include <linux/atomic.h>
#include <asm/page.h>
#include <asm/processor.h>

#include "abi.h"
#include "lock.h"
#include "pamt.h"
#include "phymem.h"
#include "td.h"

static void clear_outputs(struct pt_regs *regs)
{
	regs->cx = 0;
	regs->dx = 0;
	regs->r8 = 0;
	regs->r9 = 0;
	regs->r10 = 0;
	regs->r11 = 0;
}

/* TDH.PHYMEM.PAGE.RDMD: rcx page; out rcx type, rdx owner, r8 size, r9 block epoch */
u64 leaf_phymem_page_rdmd(struct pt_regs *regs)
{
	u64 pa = regs->cx, err;
	struct seam_pamt *pamt;

	clear_outputs(regs);
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

	clear_outputs(regs);
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

/* TDH.PHYMEM.PAGE.WBINVD: rcx page and KeyID, which is ignored; the page must be free */
u64 leaf_phymem_page_wbinvd(struct pt_regs *regs)
{
	u64 pa = regs->cx & GENMASK_ULL(boot_cpu_data.x86_phys_bits - 1, 0);
	struct seam_pamt *pamt;
	u64 err;

	err = pamt_lock_page(pa, OPND_RCX, PT_NDA, SHARED, &pamt);
	if (err)
		return err;
	seam_unlock_shared(&pamt->lock);
	return SEAM_SUCCESS;
}
