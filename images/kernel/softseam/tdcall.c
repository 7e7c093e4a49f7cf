// SPDX-License-Identifier: GPL-2.0-only
/* TDCALL: the leaves for the guest. */
#include <linux/string.h>
#include <asm/msr-index.h>
#include <asm/trapnr.h>

#include "abi.h"
#include "event.h"
#include "exit.h"
#include "gpa.h"
#include "measure.h"
#include "sept.h"
#include "tdcall.h"
#include "td.h"
#include "tdg.h"
#include "vmcb.h"
#include "vp.h"

#define TDCALL_LEN	4

/* RAX[15:0] leaf, [23:16] version */
#define LEAF_MASK	GENMASK_ULL(15, 0)
#define VERSION_SHIFT	16
#define VERSION_MASK	GENMASK_ULL(23, 16)

#define INFO_HAS_SYS_RD	BIT_ULL(0)

/* A TDVMCALL does not pass RAX, RCX and RSP, nor RBP in a TD with NO_RBP_MOD. */
#define VMCALL_MASK_NEVER	(BIT(0) | BIT(1) | BIT(4))
#define VMCALL_MASK_RBP		BIT(5)
#define VMCALL_MASK_RSVD	GENMASK_ULL(63, 32)

/* Extended exit qualification of an EPT violation by TDG.MEM.PAGE.ACCEPT */
#define EPTV_EXT_ACCEPT		1
#define EPTV_EXT_REQ_LEVEL(l)	((u64)(l) << 32)

static enum guest_next vp_vmcall(struct seam_vp *vp, struct seam_exit *exit)
{
	struct seam_vmcb *vmcb = vp_vmcb(vp->tdvps);
	u64 mask = vp->tdvps->gprs.rcx, never = VMCALL_MASK_NEVER | VMCALL_MASK_RSVD;

	if (vp->td.tdcs->config_flags & TD_CONFIG_NO_RBP_MOD)
		never |= VMCALL_MASK_RBP;
	vmcb->rip += TDCALL_LEN;
	if (mask & never) {
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
	gprs->r10 = INFO_HAS_SYS_RD;
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
	vp->tdvps->cpuid_ve[0] = vp->tdvps->gprs.rcx & 1;
	vp->tdvps->cpuid_ve[1] = vp->tdvps->gprs.rcx >> 1;
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
			vp->tdvps->repeat_accept = true;
			return GUEST_EXIT;
		}
	}
	vmcb->rax = err;
	vmcb->rip += TDCALL_LEN;
	return GUEST_RESUME;
}

/* A leaf that does not exit to the host */
static u64 metadata_or_state(struct seam_vp *vp, unsigned int leaf, unsigned int version)
{
	switch (leaf) {
	case TDG_VP_INFO:
		return vp_info(vp);
	case TDG_VP_VEINFO_GET:
		return vp_veinfo_get(vp);
	case TDG_VP_CPUIDVE_SET:
		return vp_cpuidve_set(vp);
	case TDG_VM_RD:
		return tdg_vm_rd(vp, version);
	case TDG_VM_WR:
		return tdg_vm_wr(vp);
	case TDG_VP_RD:
		return tdg_vp_rd(vp);
	case TDG_VP_WR:
		return tdg_vp_wr(vp);
	case TDG_SYS_RD:
		return tdg_sys_rd(vp);
	default:
		return OPND(SEAM_OPERAND_INVALID, OPND_RAX);
	}
}

enum guest_next tdcall_handle(struct seam_vp *vp, struct seam_exit *exit)
{
	struct seam_vmcb *vmcb = vp_vmcb(vp->tdvps);
	unsigned int leaf = vmcb->rax & LEAF_MASK;
	unsigned int version = (vmcb->rax & VERSION_MASK) >> VERSION_SHIFT;
	enum gpa_end end = GPA_MAPPED;
	u64 err;

	if (!(vmcb->efer & EFER_LMA) || !(vmcb->cs.attrib & SEG_LONG) || vmcb->cpl) {
		event_exception(vp, X86_TRAP_GP, true, 0);
		return GUEST_RESUME;
	}
	if (vmcb->rax & ~(LEAF_MASK | VERSION_MASK) || (version && leaf != TDG_VM_RD)) {
		err = OPND(SEAM_OPERAND_INVALID, OPND_RAX);
	} else {
		switch (leaf) {
		case TDG_VP_VMCALL:
			return vp_vmcall(vp, exit);
		case TDG_MEM_PAGE_ACCEPT:
			return mem_page_accept(vp, exit);
		case TDG_MR_RTMR_EXTEND:
			end = measure_extend(vp, exit, &err);
			break;
		case TDG_MR_REPORT:
			end = measure_report(vp, exit, &err);
			break;
		case TDG_SYS_RDALL:
			end = tdg_sys_rdall(vp, exit, &err);
			break;
		default:
			err = metadata_or_state(vp, leaf, version);
		}
	}
	if (end == GPA_EXIT)
		return GUEST_EXIT;
	if (end == GPA_REPEAT)
		return GUEST_RESUME;
	vmcb->rax = err;
	vmcb->rip += TDCALL_LEN;
	return GUEST_RESUME;
}
