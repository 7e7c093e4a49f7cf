// SPDX-License-Identifier: GPL-2.0-only
/* A TD's life: its key, its parameters, its measurement, its end. */
#include <linux/atomic.h>
#include <linux/bits.h>
#include <linux/string.h>
#include <asm/page.h>

#include "abi.h"
#include "cpuid.h"
#include "kot.h"
#include "lock.h"
#include "mng.h"
#include "package.h"
#include "pamt.h"
#include "params.h"
#include "sept.h"
#include "td.h"

#define TDX_KEYID_MASK	GENMASK_ULL(15, 0)
#define MR_CHUNK	256

/* TDH.MNG.CREATE: rcx TDR page, rdx KeyID */
u64 leaf_mng_create(struct pt_regs *regs)
{
	struct seam_pamt *pamt;
	u64 err;

	if (regs->dx & ~TDX_KEYID_MASK || !kot_is_tdx_keyid(regs->dx))
		return OPND(SEAM_OPERAND_INVALID, OPND_RDX);
	err = pamt_lock_page(regs->cx, OPND_RCX, PT_NDA, EXCLUSIVE, &pamt);
	if (err)
		return err;
	if (!seam_trylock_excl(&kot_lock)) {
		err = OPND(SEAM_OPERAND_BUSY, OPND_KOT);
	} else {
		if (kot_state(regs->dx) != KOT_FREE) {
			err = SEAM_HKID_NOT_FREE;
		} else {
			struct seam_tdr *tdr = __va(regs->cx);

			memset(tdr, 0, PAGE_SIZE);
			tdr->lifecycle = TD_HKID_ASSIGNED;
			tdr->hkid = regs->dx;
			kot_assign(regs->dx, regs->cx);
			pamt_take(pamt, PT_TDR, 0);
		}
		seam_unlock_excl(&kot_lock);
	}
	seam_unlock_excl(&pamt->lock);
	return err;
}

/* TDH.MNG.KEY.CONFIG: rcx TDR; once per package, by one of its CPUs */
u64 leaf_mng_key_config(struct pt_regs *regs)
{
	unsigned long package = BIT(seam_this_package());
	struct seam_td td;
	u64 err;

	err = td_lock(regs->cx, OPND_RCX, EXCLUSIVE, &td);
	if (err)
		return err;
	if (td.tdr->fatal) {
		err = SEAM_TD_FATAL;
	} else if (td.tdr->lifecycle != TD_HKID_ASSIGNED) {
		err = SEAM_LIFECYCLE_STATE_INCORRECT;
	} else if (td.tdr->configured & package) {
		err = SEAM_KEY_CONFIGURED;
	} else {
		td.tdr->configured |= package;
		kot_configured(td.tdr->hkid, td.tdr->configured);
		if (td.tdr->configured == seam_packages)
			td.tdr->lifecycle = TD_KEYS_CONFIGURED;
	}
	td_unlock(&td);
	return err;
}

/* TDH.MNG.ADDCX: rcx page, rdx TDR */
u64 leaf_mng_addcx(struct pt_regs *regs)
{
	struct seam_td td;
	u64 err;

	err = td_lock(regs->dx, OPND_RDX, EXCLUSIVE, &td);
	if (err)
		return err;
	if (td.tdr->fatal)
		err = SEAM_TD_FATAL;
	else if (td.tdr->lifecycle != TD_KEYS_CONFIGURED)
		err = SEAM_TD_KEYS_NOT_CONFIGURED;
	else if (td.tdr->nr_tdcx >= SEAM_NR_TDCS_PAGES)
		err = SEAM_TDCX_NUM_INCORRECT;
	else
		err = seam_take_page(&td, regs->cx, OPND_RCX, PT_TDCX);
	if (!err)
		td.tdr->tdcx[td.tdr->nr_tdcx++] = regs->cx;
	td_unlock(&td);
	return err;
}

/* TDH.MNG.INIT: rcx TDR, rdx TD_PARAMS (1024 bytes, aligned); out rcx the bad CPUID leaf */
u64 leaf_mng_init(struct pt_regs *regs)
{
	const struct seam_td_params *params;
	struct seam_tdcs *tdcs;
	u64 info = 0, err;
	struct seam_td td;

	err = td_lock(regs->cx, OPND_RCX, EXCLUSIVE, &td);
	if (err)
		goto out;
	err = td_check_state(&td, OP_MASK(UNINITIALIZED));
	if (!err)
		err = seam_check_pa(regs->dx, TD_PARAMS_SIZE, OPND_RDX);
	if (err)
		goto unlock;

	tdcs = td.tdcs;
	params = __va(regs->dx);
	tdcs->cpuid = __va(td.tdr->tdcx[TDCS_CPUID]);
	tdcs->sept_root = td.tdr->tdcx[TDCS_SEPT_ROOT];
	err = params_apply(tdcs, params, &info);
	if (err)
		goto unlock;
	tdcs->epoch = 1;
	sha384_init(&tdcs->measuring);
	tdcs->op_state = OP_INITIALIZED;
unlock:
	td_unlock(&td);
out:
	regs->cx = info;
	return err;
}

/* TDH.MNG.RD: rcx TDR, rdx field; out r8 value */
u64 leaf_mng_rd(struct pt_regs *regs)
{
	const struct seam_cpuid *cpuid;
	u64 field = regs->dx, err;
	struct seam_td td;

	regs->r8 = 0;
	err = td_lock(regs->cx, OPND_RCX, SHARED, &td);
	if (err)
		return err;
	err = td_check_state(&td, OP_MASK(INITIALIZED) | OP_MASK(RUNNABLE));
	if (err)
		goto out;

	if ((field & FIELD_TDCS_CPUID_MASK) == FIELD_TDCS_CPUID_VALUES) {
		cpuid = cpuid_find_field(td.tdcs, field);
		if (!cpuid)
			err = SEAM_METADATA_FIELD_ID_INCORRECT;
		else
			regs->r8 = cpuid->val[(field & 1) * 2] |
				   (u64)cpuid->val[(field & 1) * 2 + 1] << 32;
	} else if (field == FIELD_TDCS_TSC_OFFSET) {
		regs->r8 = td.tdcs->tsc_offset;
	} else if (field == FIELD_TDCS_TSC_MULTIPLIER) {
		regs->r8 = td.tdcs->tsc_multiplier;
	} else {
		err = SEAM_METADATA_FIELD_ID_INCORRECT;
	}
out:
	td_unlock(&td);
	return err;
}

/* TDH.MR.EXTEND: rcx GPA of 256 bytes, rdx TDR; out rcx, rdx S-EPT information */
u64 leaf_mr_extend(struct pt_regs *regs)
{
	u64 gpa = regs->cx, tdr_pa = regs->dx, err;
	u8 header[128] = "MR.EXTEND";
	struct seam_td td;
	u8 *page;

	regs->cx = 0;
	regs->dx = 0;
	err = td_lock(tdr_pa, OPND_RDX, EXCLUSIVE, &td);
	if (err)
		return err;
	err = td_check_state(&td, OP_MASK(INITIALIZED));
	if (err)
		goto out;
	if (gpa & (MR_CHUNK - 1) || !sept_gpa_is_private(td.tdcs, gpa)) {
		err = OPND(SEAM_OPERAND_INVALID, OPND_RCX);
		goto out;
	}
	page = sept_gpa_to_va(td.tdcs, gpa);
	if (!page) {
		err = OPND(SEAM_EPT_ENTRY_NOT_PRESENT, OPND_RCX);
		goto out;
	}
	memcpy(header + 16, &gpa, sizeof(gpa));
	sha384_update(&td.tdcs->measuring, header, sizeof(header));
	sha384_update(&td.tdcs->measuring, page, MR_CHUNK);
out:
	td_unlock(&td);
	return err;
}

/* TDH.MR.FINALIZE: rcx TDR */
u64 leaf_mr_finalize(struct pt_regs *regs)
{
	struct seam_td td;
	u64 err;

	err = td_lock(regs->cx, OPND_RCX, EXCLUSIVE, &td);
	if (err)
		return err;
	err = td_check_state(&td, OP_MASK(INITIALIZED));
	if (!err && !td.tdcs->nr_vcpus)
		err = SEAM_NO_VCPUS;
	if (!err) {
		sha384_final(&td.tdcs->measuring, td.tdcs->mrtd);
		td.tdcs->op_state = OP_RUNNABLE;
	}
	td_unlock(&td);
	return err;
}

/* TDH.MNG.VPFLUSHDONE: rcx TDR, even if no package or only some have its key */
u64 leaf_mng_vpflushdone(struct pt_regs *regs)
{
	struct seam_td td;
	u64 err;

	err = td_lock(regs->cx, OPND_RCX, EXCLUSIVE, &td);
	if (err)
		return err;
	if (!seam_trylock_excl(&kot_lock)) {
		td_unlock(&td);
		return OPND(SEAM_OPERAND_BUSY, OPND_KOT);
	}
	if (td.tdr->lifecycle != TD_KEYS_CONFIGURED &&
	    td.tdr->lifecycle != TD_HKID_ASSIGNED) {
		err = SEAM_LIFECYCLE_STATE_INCORRECT;
	} else if (td.tdcs && atomic_read(&td.tdcs->nr_assoc)) {
		err = SEAM_FLUSHVP_NOT_DONE;
	} else {
		td.tdr->lifecycle = TD_BLOCKED;
		kot_flush(td.tdr->hkid);
	}
	seam_unlock_excl(&kot_lock);
	td_unlock(&td);
	return err;
}

/* TDH.MNG.KEY.FREEID: rcx TDR */
u64 leaf_mng_key_freeid(struct pt_regs *regs)
{
	struct seam_td td;
	u64 err;

	err = td_lock(regs->cx, OPND_RCX, EXCLUSIVE, &td);
	if (err)
		return err;
	if (td.tdr->lifecycle != TD_BLOCKED) {
		err = SEAM_LIFECYCLE_STATE_INCORRECT;
	} else if (!seam_trylock_excl(&kot_lock)) {
		err = OPND(SEAM_OPERAND_BUSY, OPND_KOT);
	} else {
		if (!kot_written_back(td.tdr->hkid)) {
			err = SEAM_WBCACHE_NOT_COMPLETE;
		} else {
			td.tdr->lifecycle = TD_TEARDOWN;
			kot_free(td.tdr->hkid);
		}
		seam_unlock_excl(&kot_lock);
	}
	td_unlock(&td);
	return err;
}
