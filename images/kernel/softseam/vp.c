// SPDX-License-Identifier: GPL-2.0-only
/* A vCPU's life: TDVPS, association with a logical processor, the host's fields. */
#include <linux/atomic.h>
#include <linux/bitops.h>
#include <linux/smp.h>
#include <asm/page.h>
#include <asm/processor.h>

#include "abi.h"
#include "guest.h"
#include "lock.h"
#include "pamt.h"
#include "td.h"
#include "vapic.h"
#include "vp.h"

#define NO_LP	(-1)
#define PROC2_HOST_MAY		(BIT(30) | BIT(31))
#define POSTED_DESC_RSVD	GENMASK_ULL(5, 0)

/* Lock the TDVPR that is operand @opnd, and the TD that owns it. */
u64 vp_lock(u64 pa, u32 opnd, enum seam_lock_kind kind, enum seam_lock_kind td_kind,
	    struct seam_vp *vp)
{
	u64 err;

	err = pamt_lock_page(pa, opnd, PT_TDVPR, kind, &vp->pamt);
	if (err)
		return err;
	err = td_lock_owner(vp->pamt, td_kind, &vp->td);
	if (err) {
		seam_unlock(&vp->pamt->lock, kind);
		return err;
	}
	vp->pa = pa;
	vp->kind = kind;
	vp->tdvps = __va(pa);
	return SEAM_SUCCESS;
}

void vp_unlock(struct seam_vp *vp)
{
	td_unlock(&vp->td);
	seam_unlock(&vp->pamt->lock, vp->kind);
}

static u64 vp_check_pages(const struct seam_vp *vp)
{
	return vp->tdvps->nr_pages < SEAM_NR_TDVPS_PAGES ? SEAM_TDCX_NUM_INCORRECT : SEAM_SUCCESS;
}

/* From its first use on a logical processor until VP.FLUSH there, a vCPU belongs to it. */
u64 vp_associate(struct seam_vp *vp, bool allow_disabled)
{
	u32 state = READ_ONCE(vp->tdvps->state);
	int lp = raw_smp_processor_id(), old;

	if (state != VCPU_READY && !(state == VCPU_DISABLED && allow_disabled))
		return SEAM_VCPU_STATE_INCORRECT;
	old = atomic_cmpxchg(&vp->tdvps->lp, NO_LP, lp);
	if (old != NO_LP && old != lp)
		return SEAM_VCPU_ASSOCIATED;
	if (old == NO_LP)
		atomic_inc(&vp->td.tdcs->nr_assoc);
	return SEAM_SUCCESS;
}

/* TDH.VP.CREATE: rcx page, rdx TDR */
u64 leaf_vp_create(struct pt_regs *regs)
{
	struct seam_tdvps *tdvps;
	struct seam_td td;
	u64 err;

	err = td_lock(regs->dx, OPND_RDX, SHARED, &td);
	if (err)
		return err;
	err = td_check_state(&td, OP_MASK(INITIALIZED));
	if (!err)
		err = seam_take_page(&td, regs->cx, OPND_RCX, PT_TDVPR);
	if (!err) {
		tdvps = __va(regs->cx);
		tdvps->nr_pages = 1;
		atomic_set(&tdvps->lp, NO_LP);
	}
	td_unlock(&td);
	return err;
}

/* TDH.VP.ADDCX: rcx page, rdx TDVPR */
u64 leaf_vp_addcx(struct pt_regs *regs)
{
	struct seam_vp vp;
	u64 err;

	err = vp_lock(regs->dx, OPND_RDX, EXCLUSIVE, SHARED, &vp);
	if (err)
		return err;
	err = td_check_state(&vp.td, OP_MASK(INITIALIZED));
	if (!err && vp.tdvps->state != VCPU_UNINITIALIZED)
		err = SEAM_VCPU_STATE_INCORRECT;
	if (!err && vp.tdvps->nr_pages >= SEAM_NR_TDVPS_PAGES)
		err = SEAM_TDCX_NUM_INCORRECT;
	if (!err)
		err = seam_take_page(&vp.td, regs->cx, OPND_RCX, PT_TDCX);
	if (!err)
		vp.tdvps->tdcx[vp.tdvps->nr_pages++ - 1] = regs->cx;
	vp_unlock(&vp);
	return err;
}

static u64 vp_init_checked(struct seam_vp *vp, u64 rcx, u64 x2apic_id)
{
	struct seam_tdcs *tdcs = vp->td.tdcs;

	if (vp->tdvps->state != VCPU_UNINITIALIZED)
		return SEAM_VCPU_STATE_INCORRECT;
	if (tdcs->nr_vcpus >= tdcs->max_vcpus)
		return SEAM_MAX_VCPUS_EXCEEDED;
	if (x2apic_id >> 32)
		return OPND(SEAM_OPERAND_INVALID, OPND_R8);
	/* The real module checks all ids, this one those below 1024. */
	if (x2apic_id < 1024 && test_and_set_bit(x2apic_id, tdcs->x2apic_ids))
		return SEAM_X2APIC_ID_NOT_UNIQUE | x2apic_id;

	vp->tdvps->index = tdcs->nr_vcpus++;
	vp->tdvps->x2apic_id = x2apic_id;
	guest_reset(vp, rcx);
	vp->tdvps->state = VCPU_READY;
	return vp_associate(vp, false);
}

/* TDH.VP.INIT version 1: rcx TDVPR, rdx the guest's first RCX, r8 x2APIC id */
u64 leaf_vp_init(struct pt_regs *regs)
{
	bool has_id = regs->ax & SEAM_VERSION_MASK;
	struct seam_vp vp;
	u64 err;

	err = vp_lock(regs->cx, OPND_RCX, EXCLUSIVE, has_id ? EXCLUSIVE : SHARED, &vp);
	if (err)
		return err;
	err = td_check_state(&vp.td, OP_MASK(INITIALIZED));
	if (!err)
		err = vp_check_pages(&vp);
	if (!err)
		err = vp_init_checked(&vp, regs->dx, has_id ? regs->r8 : vp.td.tdcs->nr_vcpus);
	if (!err && !has_id)
		vp.td.tdcs->topology_configured = false;
	vp_unlock(&vp);
	return err;
}

/* TDH.VP.FLUSH: rcx TDVPR; on the logical processor that it is associated with */
u64 leaf_vp_flush(struct pt_regs *regs)
{
	struct seam_vp vp;
	u64 err;

	err = vp_lock(regs->cx, OPND_RCX, EXCLUSIVE, SHARED, &vp);
	if (err)
		return err;
	if (vp.td.tdr->lifecycle != TD_KEYS_CONFIGURED)
		err = SEAM_TD_KEYS_NOT_CONFIGURED;
	else
		err = vp_check_pages(&vp);
	if (!err && atomic_read(&vp.tdvps->lp) != raw_smp_processor_id())
		err = SEAM_VCPU_NOT_ASSOCIATED;
	if (!err) {
		atomic_set(&vp.tdvps->lp, NO_LP);
		atomic_dec(&vp.td.tdcs->nr_assoc);
	}
	vp_unlock(&vp);
	return err;
}

static u64 vp_begin_field(struct pt_regs *regs, bool write, struct seam_vp *vp)
{
	u64 err;

	err = vp_lock(regs->cx, OPND_RCX, SHARED, SHARED, vp);
	if (err)
		return err;
	err = td_check_state(&vp->td, OP_MASK(INITIALIZED) | OP_MASK(RUNNABLE));
	if (!err)
		err = vp_check_pages(vp);
	if (!err)
		err = vp_associate(vp, !write);
	if (err)
		vp_unlock(vp);
	return err;
}

/* TDH.VP.RD: rcx TDVPR, rdx field; out r8 value */
u64 leaf_vp_rd(struct pt_regs *regs)
{
	struct seam_vp vp;
	u64 err;

	regs->r8 = 0;
	err = vp_begin_field(regs, false, &vp);
	if (err)
		return err;
	switch (FIELD_CLASS(regs->dx)) {
	case CLASS_OTHER_GUEST:
		if (FIELD_CODE(regs->dx) != VCPU_STATE_DETAILS)
			err = SEAM_METADATA_FIELD_ID_INCORRECT;
		else
			regs->r8 = vapic_pending(vp.tdvps);
		break;
	case CLASS_MANAGEMENT:
		if (FIELD_CODE(regs->dx) != VCPU_PEND_NMI)
			err = SEAM_METADATA_FIELD_ID_INCORRECT;
		else
			regs->r8 = vp.tdvps->pend_nmi;
		break;
	case CLASS_VMCS:
		/* The host cannot read the VMCS of a production TD. */
		err = SEAM_METADATA_FIELD_NOT_READABLE;
		break;
	default:
		err = SEAM_METADATA_FIELD_ID_INCORRECT;
	}
	vp_unlock(&vp);
	return err;
}

/* Replace the bits of @mask in *@to, all of which must be among @writable. */
static u64 write_bits(u32 *to, u64 val, u64 mask, u64 writable)
{
	if (!(mask & writable))
		return SEAM_METADATA_FIELD_NOT_WRITABLE;
	if ((*to ^ val) & mask & ~writable)
		return SEAM_METADATA_FIELD_VALUE_NOT_VALID;
	*to = (*to & ~mask) | (val & mask);
	return SEAM_SUCCESS;
}

static u64 write_vmcs(struct seam_tdvps *tdvps, u32 field, u64 val, u64 mask)
{
	switch (field) {
	case VMCS_POSTED_INTR_NV:
		if (val > 255)
			return SEAM_METADATA_FIELD_VALUE_NOT_VALID;
		tdvps->posted_vector = val;
		tdvps->posted_vector_set = true;
		return SEAM_SUCCESS;
	case VMCS_POSTED_INTR_DESC:
		if (val & POSTED_DESC_RSVD || val >> boot_cpu_data.x86_phys_bits)
			return SEAM_METADATA_FIELD_VALUE_NOT_VALID;
		tdvps->posted_desc = val;
		tdvps->posted_desc_set = true;
		return SEAM_SUCCESS;
	case VMCS_SHARED_EPTP:
		if (val & (PAGE_SIZE - 1) || val >> boot_cpu_data.x86_phys_bits)
			return SEAM_METADATA_FIELD_VALUE_NOT_VALID;
		tdvps->shared_eptp = val;
		return SEAM_SUCCESS;
	case VMCS_PIN_CONTROLS:
		if (val & PIN_POSTED_INTR && !tdvps->posted_vector_set)
			return SEAM_TD_VMCS_FIELD_NOT_INITIALIZED | VMCS_POSTED_INTR_NV;
		if (val & PIN_POSTED_INTR && !tdvps->posted_desc_set)
			return SEAM_TD_VMCS_FIELD_NOT_INITIALIZED | VMCS_POSTED_INTR_DESC;
		return write_bits(&tdvps->pin_controls, val, mask, PIN_POSTED_INTR);
	case VMCS_PROC2_CONTROLS:
		return write_bits(&tdvps->proc2_controls, val, mask, PROC2_HOST_MAY);
	case VMCS_NOTIFY_WINDOW:
		tdvps->notify_window = val;
		return SEAM_SUCCESS;
	default:
		return SEAM_METADATA_FIELD_ID_INCORRECT;
	}
}

/* TDH.VP.WR: rcx TDVPR, rdx field, r8 value, r9 mask */
u64 leaf_vp_wr(struct pt_regs *regs)
{
	u64 field = regs->dx, val = regs->r8, mask = regs->r9, err;
	struct seam_vp vp;

	regs->r8 = 0;
	err = vp_begin_field(regs, true, &vp);
	if (err)
		return err;
	if (FIELD_CLASS(field) == CLASS_VMCS) {
		err = write_vmcs(vp.tdvps, FIELD_CODE(field), val, mask);
	} else if (FIELD_CLASS(field) == CLASS_MANAGEMENT &&
		   FIELD_CODE(field) == VCPU_PEND_NMI) {
		vp.tdvps->pend_nmi = val & mask;
	} else {
		err = SEAM_METADATA_FIELD_ID_INCORRECT;
	}
	vp_unlock(&vp);
	return err;
}
