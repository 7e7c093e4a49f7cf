// SPDX-License-Identifier: GPL-2.0-only
/* TDCALL: the leaves for the guest. */
#include <linux/string.h>
#include <asm/msr-index.h>
#include <asm/trapnr.h>

#include "abi.h"
#include "event.h"
#include "exit.h"
#include "sept.h"
#include "tdcall.h"
#include "td.h"
#include "tdg.h"
#include "vmcb.h"
#include "vp.h"

#define TDCALL_LEN	4

/* A TDVMCALL does not pass RAX, RCX, RSP nor, since all TDs have NO_RBP_MOD, RBP. */
#define VMCALL_MASK_NEVER	(BIT(0) | BIT(1) | BIT(4) | BIT(5))
#define VMCALL_MASK_RSVD	GENMASK_ULL(63, 32)

/* Extended exit qualification of an EPT violation by TDG.MEM.PAGE.ACCEPT */
#define EPTV_EXT_ACCEPT		1
#define EPTV_EXT_REQ_LEVEL(l)	((u64)(l) << 32)

static enum guest_next vp_vmcall(struct seam_vp *vp, struct seam_exit *exit)
{
	struct seam_vmcb *vmcb = vp_vmcb(vp->tdvps);
	u64 mask = vp->tdvps->gprs.rcx;

	vmcb->rip += TDCALL_LEN;
	if (mask & (VMCALL_MASK_NEVER | VMCALL_MASK_RSVD)) {
		vmcb->rax = OPND(SEAM_OPERAND_INVALID, OPND_RCX);
		return GUEST_RESUME;
	}
	vp->tdvps->vmcall_mask = mask;
	exit->tdvmcall = true;
	exit->rax = EXIT_TDCALL;
	return GUEST_EXIT;
}

static u64 vp_info(struct seam_vp *vp)
{
	struct seam_gprs *gprs = &vp->tdvps->gprs;
	struct seam_tdcs *tdcs = vp->td.tdcs;

	gprs->rcx = tdcs->gpaw;
	gprs->rdx = tdcs->attributes;
	gprs->r8 = tdcs->nr_vcpus | (u64)tdcs->max_vcpus << 32;
	gprs->r9 = vp->tdvps->index;
	gprs->r10 = 0;
	gprs->r11 = 0;
	return SEAM_SUCCESS;
}

static u64 vp_veinfo_get(struct seam_vp *vp)
{
	struct seam_gprs *gprs = &vp->tdvps->gprs;
	struct seam_ve_info *ve = &vp->tdvps->ve;
	bool valid = ve->valid;

	if (!valid)
		memset(ve, 0, sizeof(*ve));
	gprs->rcx = ve->exit_reason;
	gprs->rdx = ve->qualification;
	gprs->r8 = ve->gla;
	gprs->r9 = ve->gpa;
	gprs->r10 = ve->insn_len | (u64)ve->insn_info << 32;
	ve->valid = false;
	return valid ? SEAM_SUCCESS : SEAM_NO_VALID_VE_INFO;
}

static u64 vp_cpuidve_set(struct seam_vp *vp)
{
	if (vp->tdvps->gprs.rcx & ~3ULL)
		return OPND(SEAM_OPERAND_INVALID, OPND_RCX);
	vp->tdvps->cpuidve = vp->tdvps->gprs.rcx;
	return SEAM_SUCCESS;
}

/* Where no page is mapped, exits to the host without advancing RIP: the guest repeats it. */
static enum guest_next mem_page_accept(struct seam_vp *vp, struct seam_exit *exit)
{
	struct seam_vmcb *vmcb = vp_vmcb(vp->tdvps);
	u64 rcx = vp->tdvps->gprs.rcx;
	u64 level = rcx & 7, gpa = rcx & ~0xfffULL;
	u64 err;

	if (rcx & 0xff8 || level > 1 || gpa & (BIT_ULL(12 + 9 * level) - 1) ||
	    !sept_gpa_is_private(vp->td.tdcs, gpa)) {
		err = OPND(SEAM_OPERAND_INVALID, OPND_RCX);
	} else {
		err = sept_accept(vp->td.tdcs, gpa, level);
		if (err == SEAM_EPT_WALK_FAILED) {
			exit->rax = EXIT_EPT_VIOLATION;
			exit->rcx = EPTV_WRITE;
			exit->rdx = EPTV_EXT_ACCEPT | EPTV_EXT_REQ_LEVEL(level);
			exit->r8 = gpa;
			return GUEST_EXIT;
		}
	}
	vmcb->rax = err;
	vmcb->rip += TDCALL_LEN;
	return GUEST_RESUME;
}

enum guest_next tdcall_handle(struct seam_vp *vp, struct seam_exit *exit)
{
	struct seam_vmcb *vmcb = vp_vmcb(vp->tdvps);
	u64 err;

	if (!(vmcb->efer & EFER_LMA) || !(vmcb->cs.attrib & SEG_LONG) || vmcb->cpl) {
		event_exception(vp, X86_TRAP_GP, true, 0);
		return GUEST_RESUME;
	}
	switch (vmcb->rax) {
	case TDG_VP_VMCALL:
		return vp_vmcall(vp, exit);
	case TDG_MEM_PAGE_ACCEPT:
		return mem_page_accept(vp, exit);
	case TDG_VP_INFO:
		err = vp_info(vp);
		break;
	case TDG_VP_VEINFO_GET:
		err = vp_veinfo_get(vp);
		break;
	case TDG_MR_RTMR_EXTEND:
		err = tdg_rtmr_extend(vp);
		break;
	case TDG_VM_RD:
		err = tdg_vm_rd(vp);
		break;
	case TDG_VM_WR:
		err = tdg_vm_wr(vp);
		break;
	case TDG_VP_CPUIDVE_SET:
		err = vp_cpuidve_set(vp);
		break;
	default:
		err = OPND(SEAM_OPERAND_INVALID, OPND_RAX);
	}
	vmcb->rax = err;
	vmcb->rip += TDCALL_LEN;
	return GUEST_RESUME;
}
