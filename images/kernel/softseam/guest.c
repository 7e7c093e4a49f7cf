// SPDX-License-Identifier: GPL-2.0-only
/* The guest's state at reset, and the handling of its exits. */
#define pr_fmt(fmt) "softseam: " fmt

#include <linux/array_size.h>
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
#include "event.h"
#include "exit.h"
#include "guest.h"
#include "sept.h"
#include "td.h"
#include "tdcall.h"
#include "vapic.h"
#include "vmcb.h"
#include "vp.h"

#define SHARED_ROOT_FIRST	256
#define EPT_PRESENT		(BIT_ULL(0) | BIT_ULL(1) | BIT_ULL(2))
#define EPT_LARGE		BIT_ULL(7)
#define EPT_SUPPRESS_VE		BIT_ULL(63)
#define NPT_NX			BIT_ULL(63)
#define PT_PRESENT		BIT_ULL(0)
#define PT_LARGE		BIT_ULL(7)

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

/* All ports and MSRs are intercepted but the MSRs that a TD accesses directly. */
static u8 iopm[3 * PAGE_SIZE] __aligned(PAGE_SIZE);
static u8 msrpm[2 * PAGE_SIZE] __aligned(PAGE_SIZE);

static const u32 own_msrs[] __initconst = {
	MSR_FS_BASE, MSR_GS_BASE, MSR_KERNEL_GS_BASE, MSR_STAR, MSR_LSTAR, MSR_CSTAR,
	MSR_SYSCALL_MASK, MSR_IA32_SYSENTER_CS, MSR_IA32_SYSENTER_ESP, MSR_IA32_SYSENTER_EIP,
	MSR_IA32_TSC, MSR_IA32_CR_PAT,
};

/* The MSR permission map has two bits an MSR: from 0, from 0xc0000000 and from 0xc0010000. */
static void __init msrpm_allow(u32 msr)
{
	u32 bit = msr >= 0xc0000000 ? 0x2000 * 2 + (msr - 0xc0000000) * 2 : msr * 2;

	msrpm[bit / 8] &= ~(3 << bit % 8);
}

static int __init guest_init(void)
{
	int i;

	memset(iopm, 0xff, sizeof(iopm));
	memset(msrpm, 0xff, sizeof(msrpm));
	for (i = 0; i < ARRAY_SIZE(own_msrs); i++)
		msrpm_allow(own_msrs[i]);
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
	vmcb->intercept_misc1 = ICPT_INTR | ICPT_NMI | ICPT_CPUID | ICPT_HLT | ICPT_IOIO |
				ICPT_MSR | ICPT_SHUTDOWN;
	vmcb->intercept_misc2 = ICPT2_SVM;
	vmcb->iopm_pa = __pa_symbol(iopm);
	vmcb->msrpm_pa = __pa_symbol(msrpm);
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

/* True unless the host's EPT suppresses #VE for @gpa. */
static bool shared_fault_is_ve(const struct seam_vp *vp, u64 gpa)
{
	u64 *table, entry;
	int shift;

	if (!vp->tdvps->shared_eptp)
		return false;
	table = __va(vp->tdvps->shared_eptp);
	for (shift = 39; ; shift -= 9) {
		entry = READ_ONCE(table[gpa >> shift & 511]);
		if (!(entry & EPT_PRESENT))
			return !(entry & EPT_SUPPRESS_VE);
		if (shift == 12 || entry & EPT_LARGE)
			return false;
		table = __va(entry & PT_PA);
	}
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
		if (!shared_fault_is_ve(vp, gpa))
			return GUEST_EXIT;
		event_ve(vp, EXIT_EPT_VIOLATION, qualification, 0, gpa, 0, 0);
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
	if (vp->td.tdcs->attributes & TD_ATTR_SEPT_VE_DISABLE) {
		exit->rdx = EPTV_EXT_PENDING;
		return GUEST_EXIT;
	}
	event_ve(vp, EXIT_EPT_VIOLATION, qualification, 0, gpa, 0, 0);
	return GUEST_RESUME;
}

static bool guest_gva_to_gpa(struct seam_vp *vp, u64 gva, u64 *gpa)
{
	struct seam_vmcb *vmcb = vp_vmcb(vp->tdvps);
	u64 table = vmcb->cr3 & PT_PA, *entry;
	int shift;

	if (!(vmcb->cr0 & X86_CR0_PG)) {
		*gpa = gva;
		return true;
	}
	if (!(vmcb->efer & EFER_LMA) || vmcb->cr4 & X86_CR4_LA57)
		return false;
	for (shift = 39; ; shift -= 9) {
		entry = sept_gpa_to_va(vp->td.tdcs, table + (gva >> shift & 511) * sizeof(*entry));
		if (!entry || !(*entry & PT_PRESENT))
			return false;
		table = *entry & PT_PA;
		if (shift == 12 || (shift < 39 && *entry & PT_LARGE)) {
			u64 offset = BIT_ULL(shift) - 1;

			*gpa = (table & ~offset) | (gva & offset);
			return true;
		}
	}
}

/* Copy the bytes at the guest's RIP, which may cross a page. */
static bool guest_read_insn(struct seam_vp *vp, u8 *buf, unsigned int len)
{
	struct seam_vmcb *vmcb = vp_vmcb(vp->tdvps);
	unsigned int i;
	u64 gpa;
	u8 *byte;

	for (i = 0; i < len; i++) {
		if (!guest_gva_to_gpa(vp, vmcb->cs.base + vmcb->rip + i, &gpa))
			return false;
		byte = sept_gpa_to_va(vp->td.tdcs, gpa);
		if (!byte)
			return false;
		buf[i] = *byte;
	}
	return true;
}

static enum guest_next handle_ud(struct seam_vp *vp, struct seam_exit *exit)
{
	static const u8 tdcall[] = { 0x66, 0x0f, 0x01, 0xcc };
	u8 insn[sizeof(tdcall)];

	if (guest_read_insn(vp, insn, sizeof(insn)) && !memcmp(insn, tdcall, sizeof(insn)))
		return tdcall_handle(vp, exit);
	event_exception(vp, X86_TRAP_UD, false, 0);
	return GUEST_RESUME;
}

static enum guest_next handle_cpuid(struct seam_vp *vp)
{
	struct seam_vmcb *vmcb = vp_vmcb(vp->tdvps);
	struct seam_gprs *gprs = &vp->tdvps->gprs;
	const struct seam_cpuid *cpuid;

	cpuid = cpuid_find(vp->td.tdcs, vmcb->rax, gprs->rcx);
	if (!cpuid || vp->tdvps->cpuidve & (vmcb->cpl ? BIT(1) : BIT(0))) {
		event_ve(vp, EXIT_CPUID, 0, 0, 0, 2, 0);
		return GUEST_RESUME;
	}
	vmcb->rax = cpuid->val[0];
	gprs->rbx = cpuid->val[1];
	gprs->rcx = cpuid->val[2];
	gprs->rdx = cpuid->val[3];
	vmcb->rip += 2;
	return GUEST_RESUME;
}

static enum guest_next handle_msr(struct seam_vp *vp)
{
	struct seam_vmcb *vmcb = vp_vmcb(vp->tdvps);
	struct seam_gprs *gprs = &vp->tdvps->gprs;
	bool write = vmcb->exit_info1 & 1;
	u64 val = (u32)vmcb->rax | gprs->rdx << 32;
	u32 msr = gprs->rcx;

	if (msr == MSR_EFER && !write) {
		val = vmcb->efer & ~EFER_SVME;
	} else if (!vapic_msr(vp, msr, write, &val)) {
		event_ve(vp, write ? EXIT_WRMSR : EXIT_RDMSR, 0, 0, 0, 2, 0);
		return GUEST_RESUME;
	}
	if (!write) {
		vmcb->rax = (u32)val;
		gprs->rdx = val >> 32;
	}
	vmcb->rip += 2;
	return GUEST_RESUME;
}

enum guest_next guest_handle_exit(struct seam_vp *vp, struct seam_exit *exit)
{
	struct seam_vmcb *vmcb = vp_vmcb(vp->tdvps);

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
	case SVM_EXIT_VIRT_INTR:
		return GUEST_RESUME;
	case SVM_EXIT_NESTED_PF:
		return handle_npf(vp, exit);
	case SVM_EXIT_EXC(X86_TRAP_UD):
		return handle_ud(vp, exit);
	case SVM_EXIT_CPUID_INSN:
		return handle_cpuid(vp);
	case SVM_EXIT_MSR_INSN:
		return handle_msr(vp);
	case SVM_EXIT_HLT_INSN:
		event_ve(vp, EXIT_HLT, 0, 0, 0, 1, 0);
		return GUEST_RESUME;
	case SVM_EXIT_IO_INSN:
		event_ve(vp, EXIT_IO, vmcb->exit_info1, 0, 0,
			 vmcb->exit_info2 - vmcb->rip, 0);
		return GUEST_RESUME;
	case SVM_EXIT_VMRUN_INSN ... SVM_EXIT_CLGI_INSN:
		event_exception(vp, X86_TRAP_UD, false, 0);
		return GUEST_RESUME;
	case SVM_EXIT_SHUTDOWN_EVT:
		vp->tdvps->state = VCPU_DISABLED;
		exit->rax = SEAM_NON_RECOVERABLE_VCPU | EXIT_TRIPLE_FAULT;
		return GUEST_EXIT;
	default:
		pr_warn_ratelimited("unexpected exit 0x%llx, info 0x%llx 0x%llx, rip 0x%llx\n",
				    vmcb->exit_code, vmcb->exit_info1, vmcb->exit_info2,
				    vmcb->rip);
		vp->td.tdr->fatal = 1;
		exit->rax = SEAM_NON_RECOVERABLE_TD | EXIT_TRIPLE_FAULT;
		return GUEST_EXIT;
	}
}
