// SPDX-License-Identifier: GPL-2.0-only
/*
 * What the CPU and its firmware would say: whether softseam stands in for
 * hardware here, the MSRs of VMX and of the KeyIDs, and SVM under it all.
 */
#define pr_fmt(fmt) "softseam: " fmt

#include <linux/cpu.h>
#include <linux/export.h>
#include <linux/init.h>
#include <linux/kernel.h>
#include <linux/smp.h>
#include <linux/topology.h>
#include <asm/cpufeature.h>
#include <asm/cpuid/api.h>
#include <asm/fpu/types.h>
#include <asm/msr.h>
#include <asm/softseam.h>

#include "softseam.h"

#define X87_CWD_INIT	0x37f

u32 seam_nr_keyids = 16;
u32 seam_max_vcpus = 576;

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
 * No real CPU is from Intel and has SVM.  An emulated one can be told to be,
 * which is how a tester asks for softseam.
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
 * may be 1.  The values offer what KVM requires, plus EPT and APICv, which TDX
 * requires, and leave out what would make KVM look further.
 */
#define MAY(bits)	((u64)(bits) << 32)

/* external-interrupt and NMI exiting, virtual NMIs, preemption timer, posted interrupts */
#define PIN_MUST	0x16ULL
#define PIN_MAY		(PIN_MUST | BIT(0) | BIT(3) | BIT(5) | BIT(6) | BIT(7))
#define PROC_MUST	0x0401e172ULL
#define PROC_MAY	0xfff9fffeULL
/* APIC access, EPT, RDTSCP, x2APIC, VPID, WBINVD, UG, APIC regs, VID, INVPCID, XSAVES */
#define PROC2_MAY	(BIT(0) | BIT(1) | BIT(2) | BIT(3) | BIT(4) | BIT(5) | BIT(6) | \
			 BIT(7) | BIT(8) | BIT(9) | BIT(12) | BIT(20))
#define VMEXIT_MUST	0x36dffULL
#define VMEXIT_MAY	0x7fffffULL
#define VMENTRY_MUST	0x11ffULL
#define VMENTRY_MAY	0xf3ffULL
/* execute-only, 4-level, WB, 2M, 1G, INVEPT single and global, A/D; all of INVVPID */
#define EPT_VPID_CAP	(BIT_ULL(0) | BIT(6) | BIT(14) | BIT(16) | BIT(17) | BIT(20) | \
			 BIT(21) | BIT(25) | BIT(26) | BIT_ULL(32) | (0xfULL << 40))
#define LAST_VMX_MSR	0x493

/* revision 1, 4096 bytes, write-back, INS/OUTS info, true controls absent, NO_SEAMRET_INVD_VMCS */
#define BASIC		(1ULL | (0x1000ULL << 32) | (6ULL << 50) | BIT_ULL(54) | BIT_ULL(60))

bool softseam_rdmsr(u32 msr, u64 *val)
{
	if (!seam_active())
		return false;

	switch (msr) {
	case MSR_IA32_FEAT_CTL:
		*val = FEAT_CTL_LOCKED | FEAT_CTL_VMX_ENABLED_OUTSIDE_SMX;
		return true;
	case MSR_IA32_ARCH_CAPABILITIES:
		/* As all CPUs with TDX; L1TF would make KVM look at physical address bits. */
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
		*val = PIN_MUST | MAY(PIN_MAY);
		return true;
	case MSR_IA32_VMX_PROCBASED_CTLS:
		*val = PROC_MUST | MAY(PROC_MAY);
		return true;
	case MSR_IA32_VMX_PROCBASED_CTLS2:
		*val = MAY(PROC2_MAY);
		return true;
	case MSR_IA32_VMX_EXIT_CTLS:
		*val = VMEXIT_MUST | MAY(VMEXIT_MAY);
		return true;
	case MSR_IA32_VMX_ENTRY_CTLS:
		*val = VMENTRY_MUST | MAY(VMENTRY_MAY);
		return true;
	case MSR_IA32_VMX_MISC:
		*val = 0x1c0;
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
 * CR4.VMXE stays in the kernel's shadow and never reaches the CPU: to set a bit
 * that the emulated CPU does not have makes it hang.
 */
unsigned long softseam_hw_cr4(unsigned long val)
{
	return val & X86_CR4_VMXE && seam_active() ? val & ~X86_CR4_VMXE : val;
}

/*
 * XSAVE says of all state that it is in use, and for x87 state in use XRSTOR
 * clears a flag of the first CPU's without a lock (cpu_clear_ignne() in QEMU's
 * target/i386/tcg).  If that CPU is just leaving a guest, it goes on in the host
 * with the guest's nested paging.
 */
void softseam_before_xrstor(struct xregs_state *state)
{
	const struct fxregs_state *x87 = &state->i387;

	/* The initial state is read-only by then, see below. */
	if (state == &init_fpstate.regs.xsave)
		return;
	if (x87->cwd == X87_CWD_INIT && !x87->swd && !x87->twd && seam_active())
		state->header.xfeatures &= ~XFEATURE_MASK_FP;
}

static int __init x87_init(void)
{
	if (seam_active())
		init_fpstate.regs.xsave.header.xfeatures &= ~XFEATURE_MASK_FP;
	return 0;
}
early_initcall(x87_init);

int seam_this_package(void)
{
	return topology_physical_package_id(raw_smp_processor_id());
}

u64 seam_hsave_pa(void)
{
	return per_cpu_ptr_to_phys(this_cpu_ptr(&hsave));
}

u64 seam_host_vmcb_pa(void)
{
	return per_cpu_ptr_to_phys(this_cpu_ptr(&host_vmcb));
}

/* A CPU that went offline and came back was reset: this is cheap enough for every entry. */
void seam_enable_svm(void)
{
	u64 efer = native_rdmsrq(MSR_EFER);

	if (efer & EFER_SVME)
		return;
	native_wrmsrq(MSR_EFER, efer | EFER_SVME);
	native_wrmsrq(MSR_VM_HSAVE_PA, seam_hsave_pa());
}
