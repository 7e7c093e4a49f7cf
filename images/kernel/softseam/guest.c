// SPDX-License-Identifier: GPL-2.0-only
/* The guest's state at reset, and the handling of its exits. */
#define pr_fmt(fmt) "softseam: " fmt

#include <linux/bits.h>
#include <linux/init.h>
#include <linux/printk.h>
#include <linux/string.h>
#include <asm/irq_vectors.h>
#include <asm/msr-index.h>
#include <asm/page.h>
#include <asm/processor-flags.h>
#include <asm/trapnr.h>

#include "abi.h"
#include "cpuid.h"
#include "cr.h"
#include "event.h"
#include "exit.h"
#include "gla.h"
#include "gpa.h"
#include "guest.h"
#include "gva.h"
#include "insn.h"
#include "msr.h"
#include "sept.h"
#include "td.h"
#include "tdcall.h"
#include "tsc.h"
#include "vapic.h"
#include "vmcb.h"
#include "vp.h"

#define SHARED_ROOT_FIRST	256
#define EPT_PRESENT		(BIT_ULL(0) | BIT_ULL(1) | BIT_ULL(2))
#define NPT_NX			BIT_ULL(63)

#define CR0_RESET	(X86_CR0_PE | X86_CR0_NE)
/*
 * A real one has CR4.PAE clear.  QEMU restores the host's CR0 before its CR4 on
 * #VMEXIT, and drops CR0.PG if EFER.LME is set without PAE at that moment, so a
 * guest that an interrupt stops before it has set PAE would take the host's
 * paging away (target/i386, do_vmexit() and cpu_x86_update_cr0()).
 */
#define CR4_RESET	(X86_CR4_MCE | X86_CR4_PAE)
#define EFER_RESET	(EFER_SCE | EFER_LME | EFER_NX)
#define PAT_RESET	0x0007040600070406ULL
#define MXCSR_OFFSET	24
#define MXCSR_RESET	0x1f80

/* All ports are intercepted. */
static u8 iopm[3 * PAGE_SIZE] __aligned(PAGE_SIZE);

static int __init guest_init(void)
{
	memset(iopm, 0xff, sizeof(iopm));
	return 0;
}
early_initcall(guest_init);

static void reset_segment(struct vmcb_segment *seg, u16 attrib, u32 limit)
{
	*seg = (struct vmcb_segment) { .attrib = attrib, .limit = limit };
}

/* 32-bit protected mode without paging, at the reset vector (module: td_vmcs_init) */
void guest_reset(struct seam_vp *vp, u64 rcx)
{
	struct seam_tdvps *tdvps = vp->tdvps;
	struct seam_vmcb *vmcb = vp_vmcb(tdvps);

	memset(vmcb, 0, sizeof(*vmcb));
	vmcb->intercept_exceptions = BIT(X86_TRAP_UD);
	vmcb->intercept_cr = ICPT_CR_WRITE(0) | ICPT_CR_WRITE(4) | ICPT_CR_READ(8) |
			     ICPT_CR_WRITE(8);
	vmcb->intercept_misc1 = ICPT_INTR | ICPT_NMI | ICPT_RDPMC | ICPT_CPUID | ICPT_INVD |
				ICPT_HLT | ICPT_INVLPGA | ICPT_IOIO | ICPT_MSR | ICPT_SHUTDOWN;
	vmcb->intercept_misc2 = ICPT2_SVM | ICPT2_WBINVD | ICPT2_MONITOR | ICPT2_MWAIT |
				ICPT2_XSETBV;
	if (tsc_is_scaled(vp->td.tdcs)) {
		vmcb->intercept_misc1 |= ICPT_RDTSC;
		vmcb->intercept_misc2 |= ICPT2_RDTSCP;
	}
	vmcb->iopm_pa = __pa_symbol(iopm);
	vmcb->msrpm_pa = msr_permissions_pa();
	vmcb->tsc_offset = vp->td.tdcs->tsc_offset;
	vmcb->asid = 1;
	vmcb->int_control = INT_CTL_V_INTR_MASKING;
	vmcb->nested_control = 1;
	vmcb->nested_cr3 = vp->td.tdcs->sept_root;

	reset_segment(&vmcb->cs, 0xc9b, 0xffffffff);
	reset_segment(&vmcb->ds, 0xc93, 0xffffffff);
	vmcb->es = vmcb->ds;
	vmcb->ss = vmcb->ds;
	vmcb->fs = vmcb->ds;
	vmcb->gs = vmcb->ds;
	reset_segment(&vmcb->gdtr, 0, 0xffff);
	reset_segment(&vmcb->idtr, 0, 0);
	reset_segment(&vmcb->ldtr, 0, 0xffff);
	reset_segment(&vmcb->tr, 0x8b, 0xffff);
	vmcb->efer = EFER_RESET | EFER_SVME;
	vmcb->cr0 = CR0_RESET;
	vmcb->cr4 = CR4_RESET;
	vmcb->rip = 0xfffffff0;
	vmcb->rflags = X86_EFLAGS_FIXED;
	vmcb->dr6 = 0xffff0ff0;
	vmcb->dr7 = 0x400;
	vmcb->pat = PAT_RESET;
	vmcb->sfmask = 0x20200;

	memset(&tdvps->gprs, 0, sizeof(tdvps->gprs));
	tdvps->gprs.rcx = rcx;
	tdvps->gprs.r8 = rcx;
	tdvps->gprs.rbx = vp->td.tdcs->gpaw;
	tdvps->gprs.rdx = cpuid_platform_fms();
	tdvps->gprs.rsi = tdvps->index;
	*(u32 *)(vp_xsave_area(tdvps) + MXCSR_OFFSET) = MXCSR_RESET;
	tdvps->xcr0 = XFAM_X87;
}

/*
 * Shared memory is mapped by the host's EPT, whose entries below the root the
 * CPU can walk as they are.  The half of its root that covers shared addresses
 * is copied into the guest's at each entry, not executable.
 */
void guest_sync_shared_root(struct seam_vp *vp)
{
	u64 *root = __va(vp->td.tdcs->sept_root);
	u64 *shared = vp->tdvps->shared_eptp ? __va(vp->tdvps->shared_eptp) : NULL;
	int i;

	for (i = SHARED_ROOT_FIRST; i < 512; i++) {
		u64 val = shared ? READ_ONCE(shared[i]) : 0;

		val = val & EPT_PRESENT ? val | NPT_NX : 0;
		if (READ_ONCE(root[i]) != val)
			WRITE_ONCE(root[i], val);
	}
}

static void npf_ve(struct seam_vp *vp, u64 gpa, u64 info, u64 qualification)
{
	u64 gla = 0;

	if (!(info & NPF_TABLE_WALK) && gla_find(vp, gpa, info & NPF_FETCH, &gla))
		qualification |= EPTV_GLA_VALID | EPTV_TRANSLATED;
	event_ve(vp, EXIT_EPT_VIOLATION, qualification, gla, gpa, 0, 0);
}

static enum guest_next handle_npf(struct seam_vp *vp, struct seam_exit *exit)
{
	struct seam_vmcb *vmcb = vp_vmcb(vp->tdvps);
	u64 gpa = vmcb->exit_info2, info = vmcb->exit_info1, qualification;
	struct sept_walk walk;
	u64 entry;

	qualification = info & NPF_FETCH ? EPTV_FETCH : info & NPF_WRITE ? EPTV_WRITE : EPTV_READ;
	exit->rax = EXIT_EPT_VIOLATION;
	exit->rcx = qualification;
	exit->r8 = gpa & PAGE_MASK;

	if (!sept_gpa_is_private(vp->td.tdcs, gpa)) {
		if (!gpa_shared_fault_is_ve(vp, gpa))
			return GUEST_EXIT;
		npf_ve(vp, gpa, info, qualification);
		return GUEST_RESUME;
	}

	sept_walk_to(vp->td.tdcs, gpa, 0, &walk);
	entry = READ_ONCE(*walk.entry);
	if (!sept_is_leaf(entry) || sept_state(entry) != SEPT_PENDING) {
		/* Another CPU has mapped it since. */
		if (sept_is_leaf(entry) && sept_state(entry) == SEPT_PRESENT)
			return GUEST_RESUME;
		return GUEST_EXIT;
	}
	if (vp->td.tdcs->td_ctls & TD_CTLS_PENDING_VE_DISABLE) {
		exit->rdx = EPTV_EXT_PENDING;
		return GUEST_EXIT;
	}
	npf_ve(vp, gpa, info, qualification);
	return GUEST_RESUME;
}

/* TDCALL and VMCALL, which the CPU does not have */
static enum guest_next handle_ud(struct seam_vp *vp, struct seam_exit *exit)
{
	static const u8 tdcall[] = { 0x66, 0x0f, 0x01, 0xcc }, vmcall[] = { 0x0f, 0x01, 0xc1 };
	struct seam_insn insn;

	insn_fetch(vp, &insn);
	if (insn_is(&insn, tdcall, sizeof(tdcall)))
		return tdcall_handle(vp, exit);
	if (insn_is(&insn, vmcall, sizeof(vmcall)))
		event_ve(vp, EXIT_VMCALL, 0, 0, 0, sizeof(vmcall), 0);
	else
		event_exception(vp, X86_TRAP_UD, false, 0);
	return GUEST_RESUME;
}

/* QEMU 7.2 exits with the code of WBINVD for INVD too. */
static void handle_wbinvd(struct seam_vp *vp)
{
	struct seam_insn insn;
	bool is_invd;

	insn_fetch(vp, &insn);
	is_invd = insn.bytes[insn.opcode + 1] == 0x08;
	event_ve(vp, is_invd ? EXIT_INVD : EXIT_WBINVD, 0, 0, 0, insn.opcode + 2, 0);
}

static void handle_cpuid(struct seam_vp *vp)
{
	struct seam_vmcb *vmcb = vp_vmcb(vp->tdvps);
	struct seam_gprs *gprs = &vp->tdvps->gprs;
	struct seam_cpuid cpuid;

	if (!cpuid_guest(vp, vmcb->rax, gprs->rcx, &cpuid) ||
	    vp->tdvps->cpuid_ve[!!vmcb->cpl]) {
		event_ve(vp, EXIT_CPUID, 0, 0, 0, 2, 0);
		return;
	}
	vmcb->rax = cpuid.val[0];
	gprs->rbx = cpuid.val[1];
	gprs->rcx = cpuid.val[2];
	gprs->rdx = cpuid.val[3];
	vmcb->rip += 2;
}

static enum guest_next disable_vcpu(struct seam_vp *vp, struct seam_exit *exit)
{
	vp->tdvps->state = VCPU_DISABLED;
	exit->rax = SEAM_NON_RECOVERABLE_VCPU | EXIT_TRIPLE_FAULT;
	return GUEST_EXIT;
}

enum guest_next guest_handle_exit(struct seam_vp *vp, struct seam_exit *exit)
{
	struct seam_vmcb *vmcb = vp_vmcb(vp->tdvps);

	/* The entry before this exit has executed the IRET. */
	if (vp->tdvps->nmi_state == NMI_IN_IRET)
		vp->tdvps->nmi_state = NMI_OPEN;

	switch (vmcb->exit_code) {
	case SVM_EXIT_PHYS_INTR:
		/*
		 * The VMCB does not contain the vector, which stays pending
		 * until the host enables interrupts.  Report one whose handler
		 * does nothing.
		 */
		exit->rax = EXIT_EXTERNAL_INTERRUPT;
		exit->r9 = INTR_INFO_VALID | POSTED_INTR_VECTOR;
		return GUEST_EXIT;
	case SVM_EXIT_PHYS_NMI:
		exit->rax = EXIT_EXCEPTION_NMI;
		exit->r9 = INTR_INFO_NMI;
		return GUEST_EXIT;
	case SVM_EXIT_NESTED_PF:
		return handle_npf(vp, exit);
	case SVM_EXIT_EXC(X86_TRAP_UD):
		return handle_ud(vp, exit);
	case SVM_EXIT_SHUTDOWN_EVT:
		/* Its host learns no more than that, and nothing is left of the guest to look at. */
		pr_info_ratelimited("triple fault at rip 0x%llx, rsp 0x%llx, cr2 0x%llx, cr3 0x%llx, of event 0x%llx\n",
				    vmcb->rip, vmcb->rsp, vmcb->cr2, vmcb->cr3,
				    vmcb->exit_int_info);
		gva_print(vp, "rip", vmcb->cs.base + vmcb->rip);
		gva_print(vp, "cr2", vmcb->cr2);
		return disable_vcpu(vp, exit);
	case SVM_EXIT_VIRT_INTR:
		break;
	case SVM_EXIT_IRET_INSN:
		vp->tdvps->nmi_state = NMI_IN_IRET;
		vmcb->intercept_misc1 &= ~ICPT_IRET;
		break;
	case SVM_EXIT_CPUID_INSN:
		handle_cpuid(vp);
		break;
	case SVM_EXIT_MSR_INSN:
		msr_access(vp);
		break;
	case SVM_EXIT_CR_WRITE(0):
		cr_write(vp, 0);
		break;
	case SVM_EXIT_CR_WRITE(4):
		cr_write(vp, 4);
		break;
	case SVM_EXIT_CR_READ(8):
	case SVM_EXIT_CR_WRITE(8):
		cr8_access(vp, vmcb->exit_code == SVM_EXIT_CR_WRITE(8));
		break;
	case SVM_EXIT_XSETBV_INSN:
		cr_xsetbv(vp);
		break;
	case SVM_EXIT_HLT_INSN:
		event_ve(vp, EXIT_HLT, 0, 0, 0, 1, 0);
		break;
	case SVM_EXIT_INVD_INSN:
	case SVM_EXIT_WBINVD_INSN:
		handle_wbinvd(vp);
		break;
	case SVM_EXIT_IO_INSN:
		event_ve(vp, EXIT_IO, insn_io_qualification(vp), 0, 0,
			 vmcb->exit_info2 - vmcb->rip, 0);
		break;
	case SVM_EXIT_RDTSC_INSN:
	case SVM_EXIT_RDTSCP_INSN:
		msr_rdtsc(vp, vmcb->exit_code == SVM_EXIT_RDTSCP_INSN);
		break;
	case SVM_EXIT_RDPMC_INSN:
		event_exception(vp, X86_TRAP_GP, true, 0);
		break;
	case SVM_EXIT_INVLPGA_INSN:
	case SVM_EXIT_MONITOR_INSN:
	case SVM_EXIT_MWAIT_INSN:
	case SVM_EXIT_VMRUN_INSN ... SVM_EXIT_SKINIT_INSN:
		event_exception(vp, X86_TRAP_UD, false, 0);
		break;
	default:
		/* At the guest's own cost only: a fatal TD would keep pages of the host. */
		pr_warn_ratelimited("unexpected exit 0x%llx, info 0x%llx 0x%llx, rip 0x%llx\n",
				    vmcb->exit_code, vmcb->exit_info1, vmcb->exit_info2,
				    vmcb->rip);
		return disable_vcpu(vp, exit);
	}
	return GUEST_RESUME;
}
