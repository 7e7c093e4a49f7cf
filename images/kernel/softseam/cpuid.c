// SPDX-License-Identifier: GPL-2.0-only
/*
 * A TD's CPUID: that of the CPU, less what TDX hides, plus what the host
 * configures among the bits that it may.
 */
#include <linux/array_size.h>
#include <linux/bitops.h>
#include <linux/bits.h>
#include <linux/build_bug.h>
#include <linux/string.h>
#include <asm/cpuid/api.h>
#include <asm/fpu/xcr.h>
#include <asm/msr-index.h>
#include <asm/processor-flags.h>

#include "abi.h"
#include "cpuid.h"
#include "td.h"
#include "vmcb.h"
#include "vp.h"

#define NO_SUBLEAF	0xffffffffU
#define ALL		0xffffffffU

/* Bits by their names in the SDM, CPUID.(leaf, sub-leaf):register */
#define EDX1_ACPI	BIT_U32(22)

#define ECX1_MONITOR	BIT_U32(3)
#define ECX1_DS_CPL	BIT_U32(4)
#define ECX1_VMX	BIT_U32(5)
#define ECX1_SMX	BIT_U32(6)
#define ECX1_EIST	BIT_U32(7)
#define ECX1_TM2	BIT_U32(8)
#define ECX1_SDBG	BIT_U32(11)
#define ECX1_FMA	BIT_U32(12)
#define ECX1_CX16	BIT_U32(13)
#define ECX1_XTPR	BIT_U32(14)
#define ECX1_DCA	BIT_U32(18)
#define ECX1_X2APIC	BIT_U32(21)
#define ECX1_POPCNT	BIT_U32(23)
#define ECX1_TSC_DEADLINE BIT_U32(24)
#define ECX1_OSXSAVE	BIT_U32(27)
#define ECX1_AVX	BIT_U32(28)
#define ECX1_F16C	BIT_U32(29)
#define ECX1_RDRAND	BIT_U32(30)
#define ECX1_HYPERVISOR	BIT_U32(31)

#define EBX1_INITIAL_APIC_ID(n)	((u32)(n) << 24)

/* All but reserved bits and the size of a cache's line */
#define EAX4_CONFIG	(~GENMASK_U32(13, 10))
#define EBX4_CONFIG	GENMASK_U32(31, 12)
#define EBX4_LINE	GENMASK_U32(11, 0)
#define EDX4_CONFIG	(~BIT_U32(2))
#define EDX4_3_CONFIG	GENMASK_U32(2, 0)

#define EBX7_SGX	BIT_U32(2)
#define EBX7_HLE	BIT_U32(4)
#define EBX7_AVX2	BIT_U32(5)
#define EBX7_RTM	BIT_U32(11)
#define EBX7_MPX	BIT_U32(14)
#define ECX7_WAITPKG	BIT_U32(5)
#define ECX7_OSPKE	BIT_U32(4)
#define ECX7_CET_SS	BIT_U32(7)
#define ECX7_VAES	BIT_U32(9)
#define ECX7_VPCLMULQDQ	BIT_U32(10)
#define ECX7_TME	BIT_U32(13)
#define ECX7_LA57	BIT_U32(16)
#define ECX7_BUS_LOCK	BIT_U32(24)
#define ECX7_PKU	GENMASK_U32(4, 3)	/* and OSPKE */
#define ECX7_PKS	BIT_U32(31)
#define EDX7_CET_IBT	BIT_U32(20)
/* BF16, TILE, INT8 */
#define EDX7_AMX	(BIT_U32(22) | GENMASK_U32(25, 24))
/* F, DQ, IFMA, PF, ER, CD, BW, VL */
#define EBX7_AVX512	(BIT_U32(16) | BIT_U32(17) | BIT_U32(21) | GENMASK_U32(28, 26) | \
			 GENMASK_U32(31, 30))
/* VBMI, VBMI2, VNNI, BITALG, VPOPCNTDQ */
#define ECX7_AVX512	(BIT_U32(1) | BIT_U32(6) | BIT_U32(11) | BIT_U32(12) | BIT_U32(14))
/* 4VNNIW, 4FMAPS, VP2INTERSECT, FP16 */
#define EDX7_AVX512	(BIT_U32(2) | BIT_U32(3) | BIT_U32(8) | BIT_U32(23))

/* LAHF, LZCNT, PREFETCHW; SYSCALL, NX, 1 GiB pages, RDTSCP, long mode */
#define ECX81_NATIVE	(BIT_U32(0) | BIT_U32(5) | BIT_U32(8))
#define EDX81_SYSCALL	BIT_U32(11)
#define EDX81_NATIVE	(EDX81_SYSCALL | BIT_U32(20) | GENMASK_U32(27, 26) | BIT_U32(29))
#define EDX87_INVARIANT_TSC BIT_U32(8)

#define ECX1_ALWAYS	(ECX1_CX16 | ECX1_X2APIC | ECX1_POPCNT | ECX1_RDRAND | ECX1_HYPERVISOR)
#define ECX1_NEVER	(ECX1_MONITOR | ECX1_VMX | ECX1_SMX | ECX1_OSXSAVE)
#define ECX1_CONFIG	(ECX1_DS_CPL | ECX1_EIST | ECX1_TM2 | ECX1_SDBG | ECX1_XTPR | \
			 ECX1_DCA | ECX1_TSC_DEADLINE)
#define EBX7_CONFIG	(EBX7_HLE | EBX7_RTM | EBX7_MPX)
#define ECX7_CONFIG	(ECX7_WAITPKG | ECX7_TME | ECX7_LA57 | ECX7_BUS_LOCK)

/* Features whose registers XFAM turns on */
#define ECX1_NEEDS_AVX	(ECX1_FMA | ECX1_AVX | ECX1_F16C)
#define ECX7_NEEDS_AVX	(ECX7_VAES | ECX7_VPCLMULQDQ)

#define LAST_BASE	0x23U
#define LAST_EXTENDED	0x80000008U
#define FIRST_OF_VMM	0x40000000U
#define TOPOLOGY	0xbU
#define TOPOLOGY_V2	0x1fU
#define TOPOLOGY_LEVELS	3	/* that a host may configure */

/* ECX of a sub-leaf of TOPOLOGY and TOPOLOGY_V2: its number and the level's type */
#define TOPOLOGY_ECX(subleaf, type)	((subleaf) | (type) << 8)
#define TOPOLOGY_TYPE(ecx)		((ecx) >> 8 & 0xff)
#define TOPOLOGY_NUMBER(ecx)		((ecx) & 0xff)
#define LEVEL_SMT	1
#define LEVEL_CORE	2
#define LEVEL_MAX	7
#define LAST_OF_VMM	0x4fffffffU

struct virtual_leaf {
	u32 leaf, subleaf;
	struct seam_cpuid config;	/* bits that the host sets */
	struct seam_cpuid native;	/* bits copied from the CPU */
	struct seam_cpuid fixed1;
	u64 xfam;			/* all zeroes without one of these bits, if not 0 */
};

#define V(a, b, c, d)	{ .val = { a, b, c, d } }
#define ZERO(leaf)	{ leaf, NO_SUBLEAF }
#define CACHE(n, edx)	{ 4, n, .config = V(EAX4_CONFIG, EBX4_CONFIG, ALL, edx), \
			  .native = V(0, EBX4_LINE, 0, 0) }
#define XSTATE(n, bit)	{ 0xd, n, .native = V(ALL, ALL, ALL, 0), .xfam = bit }

/* Leaves and sub-leaves that are not here are #VE. */
static const struct virtual_leaf leaves[] = {
	{ 0, NO_SUBLEAF, .native = V(0, ALL, ALL, ALL), .fixed1 = V(LAST_BASE, 0, 0, 0) },
	{ 1, NO_SUBLEAF,
	  .config = V(0x0fff3fff, 0x00ff0000, ECX1_CONFIG, EDX1_ACPI),
	  .native = V(0, 0x0000ff00, ~(ECX1_CONFIG | ECX1_NEVER), ~EDX1_ACPI),
	  .fixed1 = V(0, 0, ECX1_ALWAYS, 0) },
	ZERO(3),
	CACHE(0, EDX4_CONFIG),
	CACHE(1, EDX4_CONFIG),
	CACHE(2, EDX4_CONFIG),
	CACHE(3, EDX4_3_CONFIG),
	{ 4, 4 },
	{ 7, 0,
	  .config = V(0, EBX7_CONFIG, ECX7_CONFIG, 0),
	  .native = V(0, ~(EBX7_CONFIG | EBX7_SGX), ~(ECX7_CONFIG | ECX7_CET_SS), ALL) },
	{ 7, 1 },
	{ 7, 2 },
	ZERO(8),
	ZERO(0xa),
	/* Derived from 0x1f */
	{ TOPOLOGY, 0 },
	{ TOPOLOGY, 1 },
	{ TOPOLOGY, 2 },
	{ 0xd, 0, .native = V(0, ALL, ALL, 0) },
	{ 0xd, 1, .native = V(0xf, ALL, 0, 0) },
	XSTATE(2, BIT_ULL(2)),
	XSTATE(3, BIT_ULL(3)),
	XSTATE(4, BIT_ULL(4)),
	XSTATE(5, BIT_ULL(5)),
	XSTATE(6, BIT_ULL(6)),
	XSTATE(7, BIT_ULL(7)),
	XSTATE(8, BIT_ULL(8)),
	XSTATE(9, BIT_ULL(9)),
	XSTATE(10, BIT_ULL(10)),
	XSTATE(11, BIT_ULL(11)),
	XSTATE(12, BIT_ULL(12)),
	XSTATE(13, BIT_ULL(13)),
	XSTATE(14, BIT_ULL(14)),
	XSTATE(15, BIT_ULL(15)),
	XSTATE(16, BIT_ULL(16)),
	XSTATE(17, BIT_ULL(17)),
	XSTATE(18, BIT_ULL(18)),
	ZERO(0xe),
	ZERO(0x11),
	ZERO(0x12),
	ZERO(0x13),
	{ 0x14, 0 },
	{ 0x14, 1 },
	{ 0x15, NO_SUBLEAF, .fixed1 = V(1, 0, 25000000, 0) },
	ZERO(0x19),
	ZERO(0x1c),
	{ 0x1d, 0 },
	{ 0x1d, 1 },
	ZERO(0x1e),
	{ TOPOLOGY_V2, 0, .config = V(0x1f, 0xffff, 0xffff, 0) },
	{ TOPOLOGY_V2, 1, .config = V(0x1f, 0xffff, 0xffff, 0) },
	{ TOPOLOGY_V2, 2, .config = V(0x1f, 0xffff, 0xffff, 0) },
	{ TOPOLOGY_V2, 3 },
	{ TOPOLOGY_V2, 4 },
	{ TOPOLOGY_V2, 5 },
	ZERO(0x20),
	/* "IntelTDX    " */
	{ 0x21, 0, .fixed1 = V(0, 0x65746e49, 0x20202020, 0x5844546c) },
	ZERO(0x22),
	{ 0x23, 0 },
	{ 0x23, 1 },
	{ 0x23, 2 },
	{ 0x23, 3 },
	{ 0x80000000, NO_SUBLEAF, .fixed1 = V(LAST_EXTENDED, 0, 0, 0) },
	{ 0x80000001, NO_SUBLEAF, .native = V(0, 0, ECX81_NATIVE, EDX81_NATIVE) },
	{ 0x80000006, NO_SUBLEAF, .native = V(0, 0, ALL, 0) },
	{ 0x80000007, NO_SUBLEAF, .fixed1 = V(0, 0, 0, EDX87_INVARIANT_TSC) },
	{ 0x80000008, NO_SUBLEAF,
	  .config = V(0x00ff0000, 0, 0, 0), .native = V(0xffff, 0, 0, 0) },
};

/* Bits that are hidden unless XFAM and ATTRIBUTES have all of the given ones */
static const struct gated {
	u64 xfam, attributes;
	u32 leaf;
	struct seam_cpuid bits;
} gated[] = {
	{ .xfam = XFAM_AVX, .leaf = 1, .bits = V(0, 0, ECX1_NEEDS_AVX, 0) },
	{ .xfam = XFAM_AVX, .leaf = 7, .bits = V(0, EBX7_AVX2, ECX7_NEEDS_AVX, 0) },
	{ .xfam = XFAM_AVX512, .leaf = 7, .bits = V(0, EBX7_AVX512, ECX7_AVX512, EDX7_AVX512) },
	{ .xfam = XFAM_PKRU, .leaf = 7, .bits = V(0, 0, ECX7_PKU, 0) },
	{ .xfam = XFAM_CET, .leaf = 7, .bits = V(0, 0, ECX7_CET_SS, EDX7_CET_IBT) },
	{ .xfam = XFAM_AMX, .leaf = 7, .bits = V(0, 0, 0, EDX7_AMX) },
	{ .attributes = TD_ATTR_PKS, .leaf = 7, .bits = V(0, 0, ECX7_PKS, 0) },
};

static_assert(ARRAY_SIZE(leaves) <= SEAM_NR_CPUID);

u32 cpuid_platform_fms(void)
{
	return cpuid_eax(1);
}

static void native_leaf(const struct virtual_leaf *v, struct seam_cpuid *to)
{
	cpuid_count(v->leaf, v->subleaf == NO_SUBLEAF ? 0 : v->subleaf,
		    &to->val[0], &to->val[1], &to->val[2], &to->val[3]);
}

static bool configurable(const struct virtual_leaf *v)
{
	return memchr_inv(&v->config, 0, sizeof(v->config));
}

static const struct virtual_leaf *nth_config(unsigned int config)
{
	const struct virtual_leaf *v;

	for (v = leaves; v < leaves + ARRAY_SIZE(leaves); v++)
		if (configurable(v) && !config--)
			return v;
	return NULL;
}

unsigned int cpuid_nr_configs(void)
{
	unsigned int n = 0;

	while (nth_config(n))
		n++;
	return n;
}

/* Metadata form: leaf in [31:0], sub-leaf or all ones in [63:32] */
u64 cpuid_config_leaf(unsigned int config)
{
	const struct virtual_leaf *v = nth_config(config);

	return v->leaf | (u64)v->subleaf << 32;
}

void cpuid_config_mask(unsigned int config, struct seam_cpuid *mask)
{
	*mask = nth_config(config)->config;
	/* CPUID.80000008H:EAX[23:16] follows GPAW and is not configurable. */
	if (nth_config(config)->leaf == 0x80000008)
		mask->val[0] = 0;
}

static void hide_gated(const struct seam_tdcs *tdcs, u32 leaf, struct seam_cpuid *to)
{
	const struct gated *g;
	unsigned int r;

	for (g = gated; g < gated + ARRAY_SIZE(gated); g++) {
		if (g->leaf != leaf)
			continue;
		if ((tdcs->xfam & g->xfam) == g->xfam &&
		    (tdcs->attributes & g->attributes) == g->attributes)
			continue;
		for (r = 0; r < 4; r++)
			to->val[r] &= ~g->bits.val[r];
	}
}

static u64 wrong(const struct virtual_leaf *v, u64 *info)
{
	*info = v->leaf | (u64)v->subleaf << 32;
	return OPND(SEAM_OPERAND_INVALID, OPND_CPUID_CONFIG);
}

static const struct virtual_leaf *find(u32 leaf, u32 subleaf)
{
	const struct virtual_leaf *v;

	for (v = leaves; v < leaves + ARRAY_SIZE(leaves); v++)
		if (v->leaf == leaf && (v->subleaf == NO_SUBLEAF || v->subleaf == subleaf))
			return v;
	return NULL;
}

static struct seam_cpuid *topology(const struct seam_tdcs *tdcs, u32 leaf, u32 level)
{
	return &tdcs->cpuid[find(leaf, level) - leaves];
}

/*
 * What a host that configures no topology leaves to the CPU.  The emulated one has
 * none: as many cores of one thread as the TD may have vCPUs.
 */
static void default_topology(struct seam_tdcs *tdcs)
{
	*topology(tdcs, TOPOLOGY_V2, 0) =
		(struct seam_cpuid)V(0, 1, TOPOLOGY_ECX(0, LEVEL_SMT), 0);
	*topology(tdcs, TOPOLOGY_V2, 1) =
		(struct seam_cpuid)V(fls(tdcs->max_vcpus - 1), tdcs->max_vcpus,
				     TOPOLOGY_ECX(1, LEVEL_CORE), 0);
}

/*
 * Check leaf 0x1f and derive leaf 0xb: the level of threads, if there is one, and
 * all the others as one level of cores.
 */
static u64 apply_topology(struct seam_tdcs *tdcs)
{
	u32 level, type, last_type = 0, core = 0;
	struct seam_cpuid *v2, last = {};
	bool has_core = false;

	for (level = 0; level < TOPOLOGY_LEVELS; level++)
		if (memchr_inv(topology(tdcs, TOPOLOGY_V2, level), 0, sizeof(*v2)))
			break;
	if (level == TOPOLOGY_LEVELS)
		default_topology(tdcs);
	else if (level)
		return SEAM_CPUID_LEAF_1F_FORMAT;

	for (level = 0; level < TOPOLOGY_LEVELS; level++) {
		v2 = topology(tdcs, TOPOLOGY_V2, level);
		type = TOPOLOGY_TYPE(v2->val[2]);
		if (!type) {
			if (!has_core)
				return SEAM_CPUID_LEAF_1F_FORMAT;
			last_type = type;
			continue;
		}
		if (type <= last_type || type >= LEVEL_MAX ||
		    TOPOLOGY_NUMBER(v2->val[2]) != level || (type == LEVEL_SMT && level))
			return SEAM_CPUID_LEAF_1F_FORMAT;
		if (type == LEVEL_SMT) {
			*topology(tdcs, TOPOLOGY, 0) = *v2;
			core = 1;
		}
		has_core |= type == LEVEL_CORE;
		last = *v2;
		last_type = type;
	}
	if (!has_core)
		return SEAM_CPUID_LEAF_1F_FORMAT;
	last.val[2] = TOPOLOGY_ECX(core, LEVEL_CORE);
	*topology(tdcs, TOPOLOGY, core) = last;
	for (level = core + 1; level < TOPOLOGY_LEVELS; level++)
		memset(topology(tdcs, TOPOLOGY, level), 0, sizeof(last));
	return SEAM_SUCCESS;
}

u64 cpuid_apply(struct seam_tdcs *tdcs, const struct seam_td_params *params, u64 *info)
{
	const u32 (*wanted)[4] = params->cpuid;
	unsigned int config = 0, i, r;

	for (i = 0; i < ARRAY_SIZE(leaves); i++) {
		const struct virtual_leaf *v = &leaves[i];
		struct seam_cpuid native, mask = {}, *to = &tdcs->cpuid[i];

		native_leaf(v, &native);
		for (r = 0; r < 4; r++)
			to->val[r] = (native.val[r] & v->native.val[r]) | v->fixed1.val[r];
		if (v->xfam && !(tdcs->xfam & v->xfam))
			memset(to, 0, sizeof(*to));
		hide_gated(tdcs, v->leaf, to);
		if (v->leaf == 0xd && !v->subleaf)
			to->val[0] |= tdcs->xfam;
		if (v->leaf == 0x15)
			to->val[1] = params->tsc_frequency;
		if (!configurable(v))
			continue;
		cpuid_config_mask(config, &mask);
		for (r = 0; r < 4; r++) {
			if (wanted[config][r] & ~mask.val[r])
				return wrong(v, info);
			to->val[r] |= wanted[config][r];
		}
		if (v->leaf == 1) {
			if (!wanted[config][0])
				to->val[0] |= cpuid_platform_fms() & mask.val[0];
			else if (wanted[config][0] != (cpuid_platform_fms() & mask.val[0]))
				return wrong(v, info);
		}
		if (v->leaf == 0x80000008)
			to->val[0] |= 48 << 16;
		config++;
	}
	if (memchr_inv(wanted[config], 0, sizeof(params->cpuid) - config * sizeof(wanted[0])))
		return OPND(SEAM_OPERAND_INVALID, OPND_RDX);
	return apply_topology(tdcs);
}

/* A feature that the host configures, by its bit in the TD's CPUID */
bool cpuid_offers(const struct seam_tdcs *tdcs, enum cpuid_feature feature)
{
	const struct seam_cpuid *leaf1 = &tdcs->cpuid[find(1, 0) - leaves];
	const struct seam_cpuid *leaf7 = &tdcs->cpuid[find(7, 0) - leaves];

	switch (feature) {
	case CPUID_DCA:
		return leaf1->val[2] & ECX1_DCA;
	case CPUID_TSC_DEADLINE:
		return leaf1->val[2] & ECX1_TSC_DEADLINE;
	case CPUID_TME:
		return leaf7->val[2] & ECX7_TME;
	case CPUID_TSX:
		return leaf7->val[1] & (EBX7_HLE | EBX7_RTM);
	case CPUID_WAITPKG:
		return leaf7->val[2] & ECX7_WAITPKG;
	}
	return false;
}

/* The bits that depend on the vCPU and its registers */
static void apply_dynamic(const struct seam_vp *vp, u32 leaf, u32 subleaf, struct seam_cpuid *to)
{
	const struct seam_vmcb *vmcb = vp_vmcb(vp->tdvps);
	const struct seam_tdcs *tdcs = vp->td.tdcs;
	u64 host_xcr0;
	u32 a, c, d;

	switch (leaf) {
	case 1:
		to->val[1] |= EBX1_INITIAL_APIC_ID(tdcs->td_ctls & TD_CTLS_ENUM_TOPOLOGY ?
						   vp->tdvps->x2apic_id : vp->tdvps->index);
		if (vmcb->cr4 & X86_CR4_OSXSAVE)
			to->val[2] |= ECX1_OSXSAVE;
		break;
	case 7:
		if (subleaf)
			break;
		to->val[2] &= ~ECX7_OSPKE;
		if (vmcb->cr4 & X86_CR4_PKE)
			to->val[2] |= ECX7_OSPKE;
		break;
	case TOPOLOGY:
	case TOPOLOGY_V2:
		to->val[3] = vp->tdvps->x2apic_id;
		break;
	case 0xd:
		if (subleaf > 1)
			break;
		host_xcr0 = xgetbv(XCR_XFEATURE_ENABLED_MASK);
		xsetbv(XCR_XFEATURE_ENABLED_MASK, vp->tdvps->xcr0);
		cpuid_count(leaf, subleaf, &a, &to->val[1], &c, &d);
		xsetbv(XCR_XFEATURE_ENABLED_MASK, host_xcr0);
		break;
	case 0x80000001:
		if (!(vmcb->efer & EFER_LMA && vmcb->cs.attrib & SEG_LONG))
			to->val[3] &= ~EDX81_SYSCALL;
		break;
	}
}

/* False for what the guest has to ask the host. */
bool cpuid_guest(const struct seam_vp *vp, u32 leaf, u32 subleaf, struct seam_cpuid *to)
{
	const struct virtual_leaf *v;

	if (leaf > LAST_EXTENDED ||
	    (leaf > LAST_BASE && leaf < FIRST_OF_VMM) ||
	    (leaf > LAST_OF_VMM && leaf < 0x80000000))
		leaf = LAST_BASE;
	v = find(leaf, subleaf);
	if (!v)
		return false;
	if ((leaf == TOPOLOGY || leaf == TOPOLOGY_V2) &&
	    !(vp->td.tdcs->td_ctls & TD_CTLS_ENUM_TOPOLOGY))
		return false;
	*to = vp->td.tdcs->cpuid[v - leaves];
	apply_dynamic(vp, leaf, subleaf, to);
	return true;
}

/* Field id: leaf bit 31 in 16, leaf[6:0] in 15:9, no sub-leaf in 8, sub-leaf in 7:1 */
const struct seam_cpuid *cpuid_find_field(const struct seam_tdcs *tdcs, u64 field)
{
	u32 leaf = (field >> 9 & 0x7f) | (u32)(field >> 16 & 1) << 31;
	u32 subleaf = field & BIT_U32(8) ? NO_SUBLEAF : field >> 1 & 0x7f;
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(leaves); i++)
		if (leaves[i].leaf == leaf && leaves[i].subleaf == subleaf)
			return &tdcs->cpuid[i];
	return NULL;
}
