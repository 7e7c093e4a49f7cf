// SPDX-License-Identifier: GPL-2.0-only
/* TDH.VP.ENTER: runs the guest until an exit is for the host. */
#include <linux/atomic.h>
#include <linux/stddef.h>
#include <asm/fpu/xcr.h>
#include <asm/msr.h>
#include <asm/page.h>
#include <asm/softseam.h>

#include "abi.h"
#include "cpu.h"
#include "enter.h"
#include "exit.h"
#include "guest.h"
#include "lock.h"
#include "msr.h"
#include "td.h"
#include "vapic.h"
#include "vmrun.h"
#include "vp.h"

#define HANDLE_RSVD	(GENMASK_ULL(63, 54) | GENMASK_ULL(11, 0))
#define HANDLE_PA	GENMASK_ULL(51, 12)
#define VMCB_FLUSH_ALL	1
#define LOST_SYSCALL_MASK	0x20200
#define NR_GPRS		16

/* Offsets of a register in the host's and in the guest's set, by its bit in a TDVMCALL mask */
static const struct {
	u16 host, guest;
} gpr[NR_GPRS] = {
#define GPR(n, host_reg, guest_reg) \
	[n] = { offsetof(struct pt_regs, host_reg), offsetof(struct seam_gprs, guest_reg) }
	GPR(2, dx, rdx), GPR(3, bx, rbx), GPR(5, bp, rbp), GPR(6, si, rsi), GPR(7, di, rdi),
	GPR(8, r8, r8), GPR(9, r9, r9), GPR(10, r10, r10), GPR(11, r11, r11),
	GPR(12, r12, r12), GPR(13, r13, r13), GPR(14, r14, r14), GPR(15, r15, r15),
};

static bool gpr_passes(const struct seam_vp *vp, int n)
{
	if (n == 5)
		return !(vp->td.tdcs->config_flags & TD_CONFIG_NO_RBP_MOD);
	return n >= 2 && n != 4;
}

static u64 *host_gpr(struct pt_regs *regs, int n)
{
	return (void *)regs + gpr[n].host;
}

static u64 *guest_gpr(struct seam_gprs *gprs, int n)
{
	return (void *)gprs + gpr[n].guest;
}

/* Copy the host's answer to a TDVMCALL into the registers that its mask names. */
static void take_vmcall_answer(struct seam_vp *vp, struct pt_regs *regs)
{
	int n;

	for (n = 0; n < NR_GPRS; n++)
		if (gpr_passes(vp, n) && vp->tdvps->vmcall_mask & BIT(n))
			*guest_gpr(&vp->tdvps->gprs, n) = *host_gpr(regs, n);
	vp_vmcb(vp->tdvps)->rax = SEAM_SUCCESS;
}

/* The host's registers after an exit; RBP is one of them only in a TD without NO_RBP_MOD. */
static void give_exit(struct seam_vp *vp, struct pt_regs *regs, const struct seam_exit *exit)
{
	int n;

	for (n = 0; n < NR_GPRS; n++)
		if (gpr_passes(vp, n))
			*host_gpr(regs, n) = 0;
	if (exit->tdvmcall) {
		for (n = 0; n < NR_GPRS; n++)
			if (gpr_passes(vp, n) && vp->tdvps->vmcall_mask & BIT(n))
				*host_gpr(regs, n) = *guest_gpr(&vp->tdvps->gprs, n);
		regs->cx = vp->tdvps->vmcall_mask;
	} else {
		regs->cx = exit->rcx;
		regs->dx = exit->rdx;
		regs->r8 = exit->r8;
		regs->r9 = exit->r9;
	}
}

static void guest_fpu_load(const struct seam_vp *vp)
{
	u8 (*area)[PAGE_SIZE] = vp_xsave_area(vp->tdvps);
	u64 mask = vp->td.tdcs->xfam;

	softseam_before_xrstor((struct xregs_state *)area);
	asm volatile("xrstor64 %0" : : "m" (*area),
		     "a" ((u32)mask), "d" ((u32)(mask >> 32)) : "memory");
}

static void guest_fpu_save(const struct seam_vp *vp)
{
	u8 (*area)[PAGE_SIZE] = vp_xsave_area(vp->tdvps);
	u64 mask = vp->td.tdcs->xfam;

	asm volatile("xsave64 %0" : "+m" (*area) :
		     "a" ((u32)mask), "d" ((u32)(mask >> 32)) : "memory");
}

/*
 * The guest's vector registers, XCR0 and TSC_AUX are in the CPU while it runs and
 * no longer: what handles its exits may use them.
 */
static void run_until_exit(struct seam_vp *vp)
{
	u64 host_xcr0 = xgetbv(XCR_XFEATURE_ENABLED_MASK), host_tsc_aux;
	struct seam_vmcb *vmcb = vp_vmcb(vp->tdvps);

	guest_fpu_load(vp);
	host_tsc_aux = msr_load(vp);
	xsetbv(XCR_XFEATURE_ENABLED_MASK, vp->tdvps->xcr0);
	seam_vmrun(__pa(vmcb), seam_host_vmcb_pa(), &vp->tdvps->gprs);
	/* QEMU 7.2 does not intercept XSETBV: what is outside XFAM lasts until the exit. */
	vp->tdvps->xcr0 = xgetbv(XCR_XFEATURE_ENABLED_MASK) & vp->td.tdcs->xfam;
	xsetbv(XCR_XFEATURE_ENABLED_MASK, host_xcr0);
	msr_put_back(host_tsc_aux);
	guest_fpu_save(vp);
}

/*
 * A TDG.MEM.PAGE.ACCEPT that found no page is what the guest executes next, unless
 * an event comes first.  It is repeated here: an entry costs as much as the accept.
 */
static void run(struct seam_vp *vp, struct seam_exit *exit)
{
	struct seam_vmcb *vmcb = vp_vmcb(vp->tdvps);
	bool repeat = vp->tdvps->repeat_accept;

	vp->tdvps->repeat_accept = false;
	/* A change by the host meanwhile ends the run: it has to flush the TLB. */
	guest_sync_shared_root(vp);
	do {
		vapic_deliver(vp);
		if (repeat && !(vmcb->event_inject & EVENT_VALID)) {
			repeat = false;
			continue;
		}
		repeat = false;
		vmcb->tlb_control = VMCB_FLUSH_ALL;
		run_until_exit(vp);
		vp->tdvps->nr_exits++;
		vp->tdvps->exit_code = vmcb->exit_code;
		vp->tdvps->exit_rip = vmcb->rip;
		/* An event whose delivery the exit interrupted is injected again. */
		vmcb->event_inject = vmcb->exit_int_info & EVENT_VALID ? vmcb->exit_int_info : 0;
	} while (guest_handle_exit(vp, exit) == GUEST_RESUME);
}

/* What a CPU no longer has of its host's state when it comes back from a guest. */
static void lose_host_state(const struct seam_vp *vp)
{
	native_wrmsrq(MSR_STAR, 0);
	native_wrmsrq(MSR_LSTAR, 0);
	native_wrmsrq(MSR_SYSCALL_MASK, LOST_SYSCALL_MASK);
	native_wrmsrq(MSR_TSC_AUX, 0);
	xsetbv(XCR_XFEATURE_ENABLED_MASK, vp->td.tdcs->xfam & XFAM_XCR0);
}

static u64 enter_epoch(struct seam_vp *vp)
{
	struct seam_tdcs *tdcs = vp->td.tdcs;

	if (!seam_trylock_shared(&tdcs->epoch_lock))
		return OPND(SEAM_OPERAND_BUSY, OPND_TD_EPOCH);
	vp->tdvps->epoch = tdcs->epoch;
	atomic_inc(&tdcs->in_epoch[tdcs->epoch & 1]);
	seam_unlock_shared(&tdcs->epoch_lock);
	return SEAM_SUCCESS;
}

static void leave_epoch(struct seam_vp *vp)
{
	atomic_dec(&vp->td.tdcs->in_epoch[vp->tdvps->epoch & 1]);
}

/* TDH.VP.ENTER: rcx TDVPR; TDR and TDVPR are locked, shared, while the guest runs */
u64 leaf_vp_enter(struct pt_regs *regs)
{
	struct seam_exit exit = {};
	struct seam_vp vp;
	u64 err;

	if (regs->cx & HANDLE_RSVD)
		return OPND(SEAM_OPERAND_INVALID, OPND_RCX);
	err = vp_lock(regs->cx & HANDLE_PA, OPND_RCX, SHARED, SHARED, &vp);
	if (err)
		return err;
	err = td_check_state(&vp.td, OP_MASK(RUNNABLE));
	if (!err && vp.tdvps->nr_pages < SEAM_NR_TDVPS_PAGES)
		err = SEAM_TDCX_NUM_INCORRECT;
	if (!err)
		err = vp_associate(&vp, false);
	if (!err)
		err = enter_epoch(&vp);
	if (err)
		goto out;

	seam_enable_svm();
	vp.tdvps->state = VCPU_ACTIVE;
	vp.tdvps->nr_entries++;
	if (vp.tdvps->last_exit == LAST_TDVMCALL)
		take_vmcall_answer(&vp, regs);
	run(&vp, &exit);
	vp.tdvps->last_exit = exit.tdvmcall ? LAST_TDVMCALL : LAST_ASYNC;
	if (vp.tdvps->state == VCPU_ACTIVE)
		vp.tdvps->state = VCPU_READY;
	leave_epoch(&vp);
	lose_host_state(&vp);
	give_exit(&vp, regs, &exit);
	err = exit.rax;
out:
	vp_unlock(&vp);
	return err;
}
