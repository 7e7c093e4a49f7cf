// SPDX-License-Identifier: GPL-2.0-only
#include <linux/array_size.h>
#include <linux/bits.h>
#include <linux/init.h>
#include <linux/string.h>
#include <asm/msr-index.h>
#include <asm/msr.h>
#include <asm/page.h>
#include <asm/softseam.h>
#include <asm/trapnr.h>

#include "abi.h"
#include "cpuid.h"
#include "event.h"
#include "msr.h"
#include "td.h"
#include "tsc.h"
#include "vapic.h"
#include "vmcb.h"
#include "vp.h"

#define KEPT_TSC_AUX	8

#define DEBUGCTL_DEFINED	(GENMASK_ULL(14, 6) | GENMASK_ULL(2, 0))
#define DEBUGCTL_TR		BIT_ULL(6)
#define DEBUGCTL_TR_BTS		GENMASK_ULL(7, 6)
#define DEBUGCTL_UNCORE_PMI	BIT_ULL(13)

/* What an access does */
enum access {
	VE,			/* #VE: the guest asks the host; also for every MSR without a rule */
	GP,			/* #GP(0) */
	OWN,			/* the CPU, without an exit */
	KEPT,			/* a value that is kept for the vCPU; nothing else depends on it */
	INERT,			/* reads as 0, writes have no effect: hardware that is not modelled */
	VAPIC,			/* the virtual APIC page */
	SPECIAL,		/* special_read(), special_write() */
};

/* A feature without which every access is #GP(0) */
enum gate {
	ALWAYS, GATE_CET, GATE_DCA, GATE_LBR, GATE_PERFMON, GATE_PKS, GATE_PT, GATE_TME,
	GATE_TSC_DEADLINE, GATE_TSX, GATE_UINTR, GATE_WAITPKG, GATE_XFD,
};

/*
 * By the TDX module's table of MSRs, whose order and ranges it has.  @kept is
 * one more than the index of the value, @writable has the bits that a write may
 * set.
 */
static const struct rule {
	u32 first, last;
	enum gate gate;
	enum access read, write;
	u64 writable;
	u8 kept;
} rules[] = {
	{ 0x10, 0x10, ALWAYS, SPECIAL, VE },				/* TSC */
	{ 0x48, 0x48, ALWAYS, KEPT, KEPT, 0x5ff, 1 },			/* SPEC_CTRL */
	{ 0x49, 0x49, ALWAYS, GP, INERT, BIT_ULL(0) },			/* PRED_CMD */
	{ 0x87, 0x87, GATE_TME, VE, VE },				/* MKTME partitioning */
	{ 0x8c, 0x8f, ALWAYS, GP, GP },					/* SGX key hashes */
	{ 0x98, 0x9b, ALWAYS, GP, GP },					/* WBINVDP to SMM monitor */
	{ 0x9e, 0x9e, ALWAYS, GP, GP },					/* SMBASE */
	{ 0xbc, 0xbc, ALWAYS, INERT, VE },				/* MISC_PACKAGE_CTLS */
	{ 0xbd, 0xbd, ALWAYS, SPECIAL, GP },				/* XAPIC_DISABLE_STATUS */
	{ 0xc1, 0xc8, GATE_PERFMON, INERT, INERT },
	{ 0xe1, 0xe1, GATE_WAITPKG, KEPT, KEPT, GENMASK_ULL(31, 2) | 1, 2 },	/* UMWAIT */
	{ 0x10a, 0x10a, ALWAYS, SPECIAL, GP },				/* ARCH_CAPABILITIES */
	{ 0x10b, 0x10b, ALWAYS, GP, INERT, BIT_ULL(0) },		/* FLUSH_CMD */
	{ 0x122, 0x122, GATE_TSX, KEPT, KEPT, 3, 3 },			/* TSX_CTRL */
	{ 0x174, 0x176, ALWAYS, OWN, OWN },				/* SYSENTER */
	{ 0x186, 0x18d, GATE_PERFMON, INERT, INERT },
	{ 0x195, 0x195, ALWAYS, GP, GP },				/* OVERCLOCKING_STATUS */
	{ 0x1a0, 0x1a0, ALWAYS, SPECIAL, VE },				/* MISC_ENABLE */
	{ 0x1a6, 0x1a7, GATE_PERFMON, INERT, INERT },
	{ 0x1c4, 0x1c5, GATE_XFD, INERT, INERT },
	{ 0x1d9, 0x1d9, ALWAYS, KEPT, SPECIAL, 0, 4 },			/* DEBUGCTL */
	{ 0x1f8, 0x1fa, GATE_DCA, VE, VE },
	{ 0x276, 0x276, ALWAYS, GP, GP },				/* SLAM_ENABLE */
	{ 0x277, 0x277, ALWAYS, OWN, OWN },				/* PAT */
	{ 0x309, 0x310, GATE_PERFMON, INERT, INERT },
	{ 0x329, 0x329, GATE_PERFMON, INERT, INERT },
	{ 0x345, 0x345, ALWAYS, INERT, GP },				/* PERF_CAPABILITIES */
	{ 0x38d, 0x392, GATE_PERFMON, INERT, INERT },
	{ 0x3f1, 0x3f2, GATE_PERFMON, INERT, INERT },
	{ 0x3f6, 0x3f7, GATE_PERFMON, INERT, INERT },
	{ 0x480, 0x480, ALWAYS, INERT, GP },				/* VMX capabilities … */
	{ 0x481, 0x484, ALWAYS, VE, GP },
	{ 0x485, 0x489, ALWAYS, INERT, GP },
	{ 0x48a, 0x48a, ALWAYS, VE, GP },
	{ 0x48b, 0x492, ALWAYS, INERT, GP },				/* … to PROCBASED_CTLS3 */
	{ 0x4c1, 0x4c8, GATE_PERFMON, INERT, INERT },
	{ 0x500, 0x500, ALWAYS, GP, GP },				/* SGX_SVN_STATUS */
	{ 0x560, 0x561, GATE_PT, INERT, INERT },
	{ 0x570, 0x572, GATE_PT, INERT, INERT },
	{ 0x580, 0x587, GATE_PT, INERT, INERT },
	{ 0x600, 0x600, ALWAYS, KEPT, KEPT, ~0ULL, 5 },			/* DS_AREA */
	{ 0x6a0, 0x6a0, GATE_CET, INERT, INERT },
	{ 0x6a2, 0x6a2, GATE_CET, INERT, INERT },
	{ 0x6a4, 0x6a8, GATE_CET, INERT, INERT },
	{ 0x6e0, 0x6e0, GATE_TSC_DEADLINE, VE, VE },
	{ 0x6e1, 0x6e1, GATE_PKS, KEPT, KEPT, GENMASK_ULL(31, 0), 6 },	/* PKRS */
	{ 0x800, 0x801, ALWAYS, GP, GP },
	{ 0x802, 0x802, ALWAYS, SPECIAL, VE },				/* APIC id */
	{ 0x804, 0x807, ALWAYS, GP, GP },
	{ 0x808, 0x80c, ALWAYS, VAPIC, VAPIC },				/* TPR, PPR, EOI */
	{ 0x80e, 0x80e, ALWAYS, VAPIC, VAPIC },
	{ 0x810, 0x827, ALWAYS, VAPIC, VAPIC },				/* ISR, TMR, IRR */
	{ 0x829, 0x82e, ALWAYS, GP, GP },
	{ 0x831, 0x831, ALWAYS, GP, GP },
	{ 0x83f, 0x83f, ALWAYS, VAPIC, VAPIC },				/* SELF_IPI */
	{ 0x840, 0x8ff, ALWAYS, GP, GP },
	{ 0x981, 0x984, GATE_TME, VE, VE },
	{ 0x985, 0x98a, GATE_UINTR, INERT, INERT },
	{ 0xc80, 0xc80, ALWAYS, INERT, VE },				/* DEBUG_INTERFACE */
	{ 0xd90, 0xd90, ALWAYS, GP, GP },				/* BNDCFGS */
	{ 0xd93, 0xd93, ALWAYS, GP, GP },				/* PASID */
	{ 0xda0, 0xda0, ALWAYS, INERT, SPECIAL },			/* XSS */
	{ 0x1200, 0x12ff, GATE_LBR, INERT, INERT },
	{ 0x14ce, 0x14cf, GATE_LBR, INERT, INERT },
	{ 0x1500, 0x16ff, GATE_LBR, INERT, INERT },
	{ 0x1b01, 0x1b01, ALWAYS, KEPT, KEPT, BIT_ULL(0), 7 },		/* UARCH_MISC_CTL */
	{ 0xc0000080, 0xc0000080, ALWAYS, SPECIAL, SPECIAL },		/* EFER */
	{ 0xc0000081, 0xc0000082, ALWAYS, OWN, OWN },			/* STAR, LSTAR */
	{ 0xc0000084, 0xc0000084, ALWAYS, OWN, OWN },			/* FMASK */
	{ 0xc0000100, 0xc0000102, ALWAYS, OWN, OWN },			/* FS, GS, kernel GS base */
	{ 0xc0000103, 0xc0000103, ALWAYS, KEPT, KEPT, GENMASK_ULL(31, 0), KEPT_TSC_AUX },
};

static_assert(KEPT_TSC_AUX <= SEAM_NR_KEPT_MSRS);

static const struct rule no_rule = { .read = VE, .write = VE };

/* Two bits an MSR, from 0, from 0xc0000000 and from 0xc0010000: reads and writes that exit */
static u8 permissions[2 * PAGE_SIZE] __aligned(PAGE_SIZE);

static void __init allow(u32 msr)
{
	u32 bit = msr >= 0xc0000000 ? 0x2000 * 2 + (msr - 0xc0000000) * 2 : msr * 2;

	permissions[bit / 8] &= ~(3 << bit % 8);
}

static int __init permissions_init(void)
{
	const struct rule *rule;
	u32 msr;

	memset(permissions, 0xff, sizeof(permissions));
	for (rule = rules; rule < rules + ARRAY_SIZE(rules); rule++)
		if (rule->read == OWN)
			for (msr = rule->first; msr <= rule->last; msr++)
				allow(msr);
	return 0;
}
early_initcall(permissions_init);

u64 msr_permissions_pa(void)
{
	return __pa_symbol(permissions);
}

static const struct rule *find(u32 msr)
{
	const struct rule *rule;

	for (rule = rules; rule < rules + ARRAY_SIZE(rules); rule++)
		if (msr >= rule->first && msr <= rule->last)
			return rule;
	return &no_rule;
}

static bool is_open(const struct seam_tdcs *tdcs, enum gate gate)
{
	switch (gate) {
	case ALWAYS:
		return true;
	case GATE_PERFMON:
		return tdcs->attributes & TD_ATTR_PERFMON;
	case GATE_PKS:
		return tdcs->attributes & TD_ATTR_PKS;
	case GATE_PT:
		return tdcs->xfam & XFAM_PT;
	case GATE_CET:
		return tdcs->xfam & XFAM_CET;
	case GATE_UINTR:
		return tdcs->xfam & XFAM_UINTR;
	case GATE_LBR:
		return tdcs->xfam & XFAM_LBR;
	case GATE_XFD:
		return tdcs->xfam & XFAM_AMX;
	case GATE_DCA:
		return cpuid_offers(tdcs, CPUID_DCA);
	case GATE_TME:
		return cpuid_offers(tdcs, CPUID_TME);
	case GATE_TSC_DEADLINE:
		return cpuid_offers(tdcs, CPUID_TSC_DEADLINE);
	case GATE_TSX:
		return cpuid_offers(tdcs, CPUID_TSX);
	case GATE_WAITPKG:
		return cpuid_offers(tdcs, CPUID_WAITPKG);
	}
	return false;
}

static u64 special_read(const struct seam_vp *vp, u32 msr)
{
	u64 val = 0;

	switch (msr) {
	case 0x10:
		return tsc_now(vp->td.tdcs);
	case 0xbd:
		return BIT_ULL(0);		/* no xAPIC mode */
	case 0x10a:
		softseam_rdmsr(MSR_IA32_ARCH_CAPABILITIES, &val);
		return val;
	case 0x1a0:
		return BIT_ULL(0) | BIT_ULL(12);	/* fast strings; no PEBS, no counters */
	case 0x802:
		return vp->tdvps->x2apic_id;
	default:				/* EFER */
		return vp_vmcb(vp->tdvps)->efer & ~EFER_SVME;
	}
}

static enum access special_write(struct seam_vp *vp, const struct rule *rule, u64 val)
{
	struct seam_vmcb *vmcb = vp_vmcb(vp->tdvps);
	u64 changed;

	switch (rule->first) {
	case 0x1d9:
		if (val & ~DEBUGCTL_DEFINED)
			return GP;
		if ((val & DEBUGCTL_TR_BTS) == DEBUGCTL_TR)
			return VE;
		vp->tdvps->kept_msrs[rule->kept - 1] = val & ~DEBUGCTL_UNCORE_PMI;
		return KEPT;
	case 0xda0:
		return val ? GP : KEPT;		/* XFAM has no supervisor state here */
	default:				/* EFER */
		changed = (vmcb->efer ^ val) & ~(EFER_SVME | EFER_LMA);
		if (changed & ~EFER_SCE || val & EFER_SVME)
			return VE;
		vmcb->efer ^= changed;
		return KEPT;
	}
}

static enum access read(const struct seam_vp *vp, const struct rule *rule, u32 msr, u64 *val)
{
	*val = 0;
	switch (rule->read) {
	case KEPT:
		*val = vp->tdvps->kept_msrs[rule->kept - 1];
		break;
	case VAPIC:
		*val = vapic_read(vp->tdvps, msr);
		break;
	case SPECIAL:
		if (msr == 0x802 && !(vp->td.tdcs->td_ctls & TD_CTLS_ENUM_TOPOLOGY))
			return VE;
		*val = special_read(vp, msr);
		break;
	default:
		break;
	}
	return rule->read;
}

static enum access write(struct seam_vp *vp, const struct rule *rule, u32 msr, u64 val)
{
	switch (rule->write) {
	case KEPT:
		if (val & ~rule->writable)
			return GP;
		vp->tdvps->kept_msrs[rule->kept - 1] = val;
		return KEPT;
	case INERT:
		return rule->writable && val & ~rule->writable ? GP : INERT;
	case VAPIC:
		return vapic_write(vp->tdvps, msr, val) ? VAPIC : GP;
	case SPECIAL:
		return special_write(vp, rule, val);
	default:
		return rule->write;
	}
}

/* RDMSR or WRMSR that is not the CPU's own */
void msr_access(struct seam_vp *vp)
{
	struct seam_vmcb *vmcb = vp_vmcb(vp->tdvps);
	struct seam_gprs *gprs = &vp->tdvps->gprs;
	u64 val = (u32)vmcb->rax | gprs->rdx << 32;
	bool is_write = vmcb->exit_info1 & 1;
	const struct rule *rule;
	enum access access;
	u32 msr = gprs->rcx;

	rule = find(msr);
	if (!is_open(vp->td.tdcs, rule->gate))
		access = GP;
	else if (is_write)
		access = write(vp, rule, msr, val);
	else
		access = read(vp, rule, msr, &val);
	if (access == GP) {
		event_exception(vp, X86_TRAP_GP, true, 0);
		return;
	}
	if (access == VE) {
		event_ve(vp, is_write ? EXIT_WRMSR : EXIT_RDMSR, 0, 0, 0, 2, 0);
		return;
	}
	if (!is_write) {
		vmcb->rax = (u32)val;
		gprs->rdx = val >> 32;
	}
	vmcb->rip += 2;
}

/* TSC_AUX is what RDTSCP and RDPID return; returns the host's. */
u64 msr_load(const struct seam_vp *vp)
{
	u64 host;

	host = native_rdmsrq(MSR_TSC_AUX);
	native_wrmsrq(MSR_TSC_AUX, vp->tdvps->kept_msrs[KEPT_TSC_AUX - 1]);
	return host;
}

void msr_put_back(u64 host)
{
	native_wrmsrq(MSR_TSC_AUX, host);
}

/* RDTSC, or RDTSCP, of a TD whose TSC has another rate than the CPU's */
void msr_rdtsc(struct seam_vp *vp, bool with_aux)
{
	struct seam_vmcb *vmcb = vp_vmcb(vp->tdvps);
	u64 now = tsc_now(vp->td.tdcs);

	vmcb->rax = (u32)now;
	vp->tdvps->gprs.rdx = now >> 32;
	if (with_aux)
		vp->tdvps->gprs.rcx = vp->tdvps->kept_msrs[KEPT_TSC_AUX - 1];
	vmcb->rip += with_aux ? 3 : 2;
}
