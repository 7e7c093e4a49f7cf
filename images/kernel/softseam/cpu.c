// SPDX-License-Identifier: GPL-2.0-only
/*
 * The CPU under softseam: whether it is an emulated one, the MSRs that hardware
 * would have, and enabling SVM.
 */
#define pr_fmt(fmt) "softseam: " fmt

#include <linux/bits.h>
#include <linux/export.h>
#include <linux/init.h>
#include <linux/jump_label.h>
#include <linux/kernel.h>
#include <linux/percpu.h>
#include <asm/cpufeature.h>
#include <asm/cpuid/api.h>
#include <asm/fpu/types.h>
#include <asm/msr.h>
#include <asm/processor-flags.h>
#include <asm/softseam.h>

/* Declares init_fpstate. */
#include "../../kernel/fpu/internal.h"

#include "abi.h"
#include "cpu.h"

#define X87_CWD_INIT	0x37f

u32 seam_nr_keyids = 16;
u32 seam_max_vcpus = 576;

/* True before softseam_cpu_init(): MSRs are read before jump labels can be patched. */
DEFINE_STATIC_KEY_TRUE(softseam_has_msrs);
EXPORT_SYMBOL_GPL(softseam_has_msrs);

static DEFINE_PER_CPU_PAGE_ALIGNED(u8 [PAGE_SIZE], hsave);
static DEFINE_PER_CPU_PAGE_ALIGNED(u8 [PAGE_SIZE], host_vmcb);

static int __init parse_limited(char *arg, u32 max, u32 *to)
{
	u32 val;

	if (!arg || kstrtou32(arg, 0, &val) || val > max) {
		pr_err("bad number '%s', at most %u\n", arg ?: "", max);
		return -EINVAL;
	}
	*to = val;
	return 0;
}

static int __init parse_keyids(char *arg)
{
	return parse_limited(arg, SEAM_MAX_KEYIDS - SEAM_FIRST_KEYID, &seam_nr_keyids);
}
early_param("softseam.keyids", parse_keyids);

static int __init parse_max_vcpus(char *arg)
{
	return parse_limited(arg, U16_MAX, &seam_max_vcpus);
}
early_param("softseam.max_vcpus", parse_max_vcpus);

/*
 * No real CPU is from Intel and has SVM.  An emulated one can be configured so,
 * which is how a tester turns softseam on.
 */
bool seam_active(void)
{
	static int active = -1;

	if (active < 0) {
		char vendor[13] = {};
		u32 eax, ebx, ecx, edx;
		bool is;

		cpuid(0, &eax, &ebx, &ecx, &edx);
		memcpy(vendor, &ebx, 4);
		memcpy(vendor + 4, &edx, 4);
		memcpy(vendor + 8, &ecx, 4);
		is = !strcmp(vendor, "GenuineIntel") &&
		     (cpuid_ecx(1) & BIT(31)) && (cpuid_ecx(0x80000001) & BIT(2));
		active = is;
	}
	return active;
}

/*
 * VMX capability MSRs: bits [31:0] of a control MSR must be 1, bits [63:32]
 * may be 1.  Offered is what KVM requires, plus EPT and APICv, which TDX
 * requires.  *_DEFAULT1 are the reserved bits that are always 1 (SDM volume 3,
 * appendix A).
 */
#define MAY(bits)	((u64)(bits) << 32)

#define PIN_DEFAULT1		(BIT(1) | BIT(2) | BIT(4))
#define PIN_EXTERNAL_INTR	BIT(0)
#define PIN_NMI			BIT(3)
#define PIN_VIRTUAL_NMI		BIT(5)
#define PIN_PREEMPTION_TIMER	BIT(6)
#define PIN_MAY		(PIN_DEFAULT1 | PIN_EXTERNAL_INTR | PIN_NMI | PIN_VIRTUAL_NMI | \
			 PIN_PREEMPTION_TIMER | PIN_POSTED_INTR)
#define PROC_DEFAULT1		(BIT(1) | GENMASK(6, 4) | BIT(8) | GENMASK(16, 13) | BIT(26))
/* All but bits 0 and 18, which are reserved, and 17, tertiary controls */
#define PROC_MAY		0xfff9fffeULL
#define PROC2_APIC_ACCESS	BIT(0)
#define PROC2_EPT		BIT(1)
#define PROC2_DESC_TABLE	BIT(2)
#define PROC2_RDTSCP		BIT(3)
#define PROC2_X2APIC		BIT(4)
#define PROC2_VPID		BIT(5)
#define PROC2_WBINVD		BIT(6)
#define PROC2_UNRESTRICTED	BIT(7)
#define PROC2_APIC_REGS		BIT(8)
#define PROC2_VINTR_DELIVERY	BIT(9)
#define PROC2_INVPCID		BIT(12)
#define PROC2_XSAVES		BIT(20)
#define PROC2_MAY	(PROC2_APIC_ACCESS | PROC2_EPT | PROC2_DESC_TABLE | PROC2_RDTSCP | \
			 PROC2_X2APIC | PROC2_VPID | PROC2_WBINVD | PROC2_UNRESTRICTED | \
			 PROC2_APIC_REGS | PROC2_VINTR_DELIVERY | PROC2_INVPCID | PROC2_XSAVES)
#define VMEXIT_DEFAULT1		0x36dffULL
#define VMEXIT_MAY		0x7fffffULL
#define VMENTRY_DEFAULT1	0x11ffULL
#define VMENTRY_MAY		0xf3ffULL

/* Activity states HLT, shutdown, wait-for-SIPI */
#define MISC		GENMASK_ULL(8, 6)

#define EPT_EXEC_ONLY		BIT_ULL(0)
#define EPT_4_LEVEL		BIT_ULL(6)
#define EPT_WRITE_BACK		BIT_ULL(14)
#define EPT_2M_PAGE		BIT_ULL(16)
#define EPT_1G_PAGE		BIT_ULL(17)
#define EPT_INVEPT		BIT_ULL(20)
#define EPT_ACCESSED_DIRTY	BIT_ULL(21)
#define EPT_INVEPT_TYPES	GENMASK_ULL(26, 25)
#define VPID_INVVPID		BIT_ULL(32)
#define VPID_INVVPID_TYPES	GENMASK_ULL(43, 40)
#define EPT_VPID_CAP	(EPT_EXEC_ONLY | EPT_4_LEVEL | EPT_WRITE_BACK | EPT_2M_PAGE | \
			 EPT_1G_PAGE | EPT_INVEPT | EPT_ACCESSED_DIRTY | EPT_INVEPT_TYPES | \
			 VPID_INVVPID | VPID_INVVPID_TYPES)

#define BASIC_REVISION		1ULL
#define BASIC_SIZE		(0x1000ULL << 32)
#define BASIC_WRITE_BACK	(6ULL << 50)
#define BASIC_INS_OUTS		BIT_ULL(54)
#define BASIC_NO_SEAMRET_INVD	BIT_ULL(60)
/* Bit 55, which announces the TRUE control MSRs, is clear. */
#define BASIC		(BASIC_REVISION | BASIC_SIZE | BASIC_WRITE_BACK | BASIC_INS_OUTS | \
			 BASIC_NO_SEAMRET_INVD)
#define LAST_VMX_MSR	0x493

bool softseam_rdmsr(u32 msr, u64 *val)
{
	if (!seam_active())
		return false;

	switch (msr) {
	case MSR_IA32_FEAT_CTL:
		*val = FEAT_CTL_LOCKED | FEAT_CTL_VMX_ENABLED_OUTSIDE_SMX;
		return true;
	case MSR_IA32_ARCH_CAPABILITIES:
		/* As all CPUs with TDX have; with L1TF KVM would reserve physical address bits. */
		*val = ARCH_CAP_RDCL_NO | ARCH_CAP_SKIP_VMENTRY_L1DFLUSH |
		       ARCH_CAP_MDS_NO | ARCH_CAP_PSCHANGE_MC_NO | ARCH_CAP_TAA_NO;
		return true;
	case MSR_IA32_MKTME_KEYID_PARTITIONING:
		*val = (u64)seam_nr_keyids << 32 | SEAM_NR_MKTME_KEYIDS;
		return true;
	case MSR_IA32_VMX_BASIC:
		*val = BASIC;
		return true;
	case MSR_IA32_VMX_PINBASED_CTLS:
		*val = PIN_DEFAULT1 | MAY(PIN_MAY);
		return true;
	case MSR_IA32_VMX_PROCBASED_CTLS:
		*val = PROC_DEFAULT1 | MAY(PROC_MAY);
		return true;
	case MSR_IA32_VMX_PROCBASED_CTLS2:
		*val = MAY(PROC2_MAY);
		return true;
	case MSR_IA32_VMX_EXIT_CTLS:
		*val = VMEXIT_DEFAULT1 | MAY(VMEXIT_MAY);
		return true;
	case MSR_IA32_VMX_ENTRY_CTLS:
		*val = VMENTRY_DEFAULT1 | MAY(VMENTRY_MAY);
		return true;
	case MSR_IA32_VMX_MISC:
		*val = MISC;
		return true;
	case MSR_IA32_VMX_CR0_FIXED0:
		*val = X86_CR0_PE | X86_CR0_NE | X86_CR0_PG;
		return true;
	case MSR_IA32_VMX_CR0_FIXED1:
		*val = 0xffffffff;
		return true;
	case MSR_IA32_VMX_CR4_FIXED0:
		*val = X86_CR4_VMXE;
		return true;
	case MSR_IA32_VMX_CR4_FIXED1:
		*val = 0xffffff;
		return true;
	case MSR_IA32_VMX_EPT_VPID_CAP:
		*val = EPT_VPID_CAP;
		return true;
	default:
		*val = 0;
		return msr >= MSR_IA32_VMX_BASIC && msr <= LAST_VMX_MSR;
	}
}
EXPORT_SYMBOL_GPL(softseam_rdmsr);

/*
 * CR4.VMXE stays in the kernel's shadow and never reaches the CPU: setting a bit
 * that the emulated CPU lacks makes it hang.
 */
unsigned long softseam_hw_cr4(unsigned long val)
{
	return val & X86_CR4_VMXE && seam_active() ? val & ~X86_CR4_VMXE : val;
}

/*
 * XSAVE reports all state as in use, and for x87 state in use XRSTOR clears a
 * flag of the first CPU without a lock (cpu_clear_ignne() in QEMU's
 * target/i386/tcg).  If that CPU is exiting from a guest, it continues in the
 * host with the guest's nested paging.
 */
void softseam_before_xrstor(struct xregs_state *state)
{
	const struct fxregs_state *x87 = &state->i387;

	/* softseam_cpu_init() did it for the initial state, which is read-only now. */
	if (state == &init_fpstate.regs.xsave)
		return;
	if (x87->cwd == X87_CWD_INIT && !x87->swd && !x87->twd && seam_active())
		state->header.xfeatures &= ~XFEATURE_MASK_FP;
}

static int __init softseam_cpu_init(void)
{
	if (seam_active())
		init_fpstate.regs.xsave.header.xfeatures &= ~XFEATURE_MASK_FP;
	else
		static_branch_disable(&softseam_has_msrs);
	return 0;
}
early_initcall(softseam_cpu_init);

u64 seam_host_vmcb_pa(void)
{
	return per_cpu_ptr_to_phys(this_cpu_ptr(&host_vmcb));
}

/* Called at every entry, since a CPU that was offline was reset. */
void seam_enable_svm(void)
{
	u64 efer = native_rdmsrq(MSR_EFER);

	if (efer & EFER_SVME)
		return;
	native_wrmsrq(MSR_EFER, efer | EFER_SVME);
	native_wrmsrq(MSR_VM_HSAVE_PA, per_cpu_ptr_to_phys(this_cpu_ptr(&hsave)));
}
