// SPDX-License-Identifier: GPL-2.0-only
/* CR0, CR4, CR8 and XCR0 as the guest accesses them. */
#include <linux/array_size.h>
#include <linux/bits.h>
#include <asm/cpuid/api.h>
#include <asm/msr-index.h>
#include <asm/processor-flags.h>
#include <asm/trapnr.h>

#include "abi.h"
#include "cr.h"
#include "event.h"
#include "insn.h"
#include "td.h"
#include "vapic.h"
#include "vmcb.h"
#include "vp.h"

#define CR0_IGNORED	(GENMASK_ULL(28, 19) | BIT_ULL(17) | GENMASK_ULL(15, 6))
#define CR0_LMSW	(X86_CR0_MP | X86_CR0_EM | X86_CR0_TS)

#define QUALIFICATION(cr, gpr)	((cr) | (u64)(gpr) << 8)

enum cr_result { CR_DONE, CR_GP, CR_VE };

/* Bits of CR4 that need a feature, by its CPUID bit */
static const struct {
	u64 cr4;
	u32 leaf, reg, bit;
} cr4_feature[] = {
	{ X86_CR4_VME | X86_CR4_PVI, 1, CPUID_EDX, 1 },
	{ X86_CR4_DE, 1, CPUID_EDX, 2 },
	{ X86_CR4_PSE, 1, CPUID_EDX, 3 },
	{ X86_CR4_TSD, 1, CPUID_EDX, 4 },
	{ X86_CR4_PAE, 1, CPUID_EDX, 6 },
	{ X86_CR4_MCE, 1, CPUID_EDX, 7 },
	{ X86_CR4_PGE, 1, CPUID_EDX, 13 },
	{ X86_CR4_OSFXSR, 1, CPUID_EDX, 24 },
	{ X86_CR4_OSXMMEXCPT, 1, CPUID_EDX, 25 },
	{ X86_CR4_PCIDE, 1, CPUID_ECX, 17 },
	{ X86_CR4_OSXSAVE, 1, CPUID_ECX, 26 },
	{ X86_CR4_FSGSBASE, 7, CPUID_EBX, 0 },
	{ X86_CR4_SMEP, 7, CPUID_EBX, 7 },
	{ X86_CR4_SMAP, 7, CPUID_EBX, 20 },
	{ X86_CR4_UMIP, 7, CPUID_ECX, 2 },
	{ X86_CR4_PKE, 7, CPUID_ECX, 3 },
	{ X86_CR4_LA57, 7, CPUID_ECX, 16 },
};

static bool in_64bit_mode(const struct seam_vmcb *vmcb)
{
	return vmcb->efer & EFER_LMA && vmcb->cs.attrib & SEG_LONG;
}

/*
 * Bits that every CPU with TDX has.  QEMU 7.2 lacks PCID: PCIDE can be set without an
 * exception, as OVMF does in passing when an AP returns to it, but is not kept.
 */
#define CR4_ALWAYS	(X86_CR4_PCE | X86_CR4_VMXE | X86_CR4_SMXE | X86_CR4_PCIDE)

/* The bits that the CPU has */
static u64 cr4_native(void)
{
	u64 bits = X86_CR4_PCE;
	u32 regs[4];
	int i;

	for (i = 0; i < ARRAY_SIZE(cr4_feature); i++) {
		cpuid_count(cr4_feature[i].leaf, 0, &regs[CPUID_EAX], &regs[CPUID_EBX],
			    &regs[CPUID_ECX], &regs[CPUID_EDX]);
		if (regs[cr4_feature[i].reg] & BIT_U32(cr4_feature[i].bit))
			bits |= cr4_feature[i].cr4;
	}
	return bits;
}

static enum cr_result set_cr0(struct seam_vmcb *vmcb, u64 val)
{
	u64 old = vmcb->cr0;

	if (val >> 32 || !(val & X86_CR0_NE))
		return CR_GP;
	if (val & X86_CR0_PG && !(val & X86_CR0_PE))
		return CR_GP;
	if (!(val & X86_CR0_PE) || val & (X86_CR0_NW | X86_CR0_CD))
		return CR_VE;
	if (!(old & X86_CR0_PG) && val & X86_CR0_PG && vmcb->efer & EFER_LME) {
		if (vmcb->cs.attrib & SEG_LONG)
			return CR_GP;
		vmcb->efer |= EFER_LMA;
	} else if (old & X86_CR0_PG && !(val & X86_CR0_PG)) {
		if (in_64bit_mode(vmcb) || vmcb->cr4 & X86_CR4_PCIDE)
			return CR_GP;
		vmcb->efer &= ~EFER_LMA;
	}
	vmcb->cr0 = (val & ~CR0_IGNORED) | (old & CR0_IGNORED) | X86_CR0_ET;
	return CR_DONE;
}

static enum cr_result set_cr4(const struct seam_vp *vp, struct seam_vmcb *vmcb, u64 val)
{
	u64 old = vmcb->cr4, native = cr4_native();

	if (val & ~(native | CR4_ALWAYS))
		return CR_GP;
	if (val & X86_CR4_PKE && !(vp->td.tdcs->xfam & XFAM_PKRU))
		return CR_GP;
	if (vmcb->efer & EFER_LMA &&
	    (!(val & X86_CR4_PAE) || (old ^ val) & X86_CR4_LA57))
		return CR_GP;
	if (val & X86_CR4_PCIDE && !(old & X86_CR4_PCIDE) &&
	    (!(vmcb->efer & EFER_LMA) || vmcb->cr3 & X86_CR3_PCID_MASK))
		return CR_GP;
	if (!(val & X86_CR4_MCE) || val & (X86_CR4_VMXE | X86_CR4_SMXE))
		return CR_VE;
	/* Without PAE a guest would take the host's paging away: see CR4_RESET in guest.c. */
	vmcb->cr4 = (val & native) | X86_CR4_PAE;
	return CR_DONE;
}

static void finish(struct seam_vp *vp, enum cr_result result, u64 qualification,
		   unsigned int len)
{
	switch (result) {
	case CR_DONE:
		vp_vmcb(vp->tdvps)->rip += len;
		break;
	case CR_GP:
		event_exception(vp, X86_TRAP_GP, true, 0);
		break;
	case CR_VE:
		event_ve(vp, EXIT_CR_ACCESS, qualification, 0, 0, len, 0);
		break;
	}
}

/* MOV to CR0 or CR4, LMSW and CLTS, which a TD executes at CPL 0 only */
void cr_write(struct seam_vp *vp, unsigned int cr)
{
	struct seam_vmcb *vmcb = vp_vmcb(vp->tdvps);
	enum cr_result result;
	struct seam_insn insn;
	unsigned int at, gpr;
	u8 opcode;
	u64 val;

	insn_fetch(vp, &insn);
	at = insn.opcode;
	opcode = insn.bytes[at + 1];
	if (insn.bytes[at] == 0x0f && opcode == 0x06) {		/* CLTS */
		vmcb->cr0 &= ~X86_CR0_TS;
		vmcb->rip += at + 2;
		return;
	}
	if (insn.bytes[at] != 0x0f || at + 2 >= insn.len) {
		event_exception(vp, X86_TRAP_UD, false, 0);
		return;
	}
	gpr = (insn.bytes[at + 2] & 7) | (insn.rex & 1) << 3;
	val = *insn_gpr(vp, gpr);
	if (!in_64bit_mode(vmcb))
		val = (u32)val;
	if (opcode == 0x01) {					/* LMSW */
		/* Only from a register; Linux and firmware do not use it at all. */
		if (insn.bytes[at + 2] >> 6 != 3) {
			event_exception(vp, X86_TRAP_UD, false, 0);
			return;
		}
		val = (vmcb->cr0 & ~(u64)CR0_LMSW) | (val & CR0_LMSW);
	}
	result = cr ? set_cr4(vp, vmcb, val) : set_cr0(vmcb, val);
	finish(vp, result, QUALIFICATION(cr, gpr), at + 3);
}

/*
 * MOV from and to CR8, the priority of the virtual APIC.  Not left to the CPU: QEMU 7.2
 * aborts if one changes while a virtual interrupt is pending (helper_write_crN()
 * in target/i386/tcg/sysemu/misc_helper.c, which does not hold the lock).
 */
void cr8_access(struct seam_vp *vp, bool is_write)
{
	struct seam_vmcb *vmcb = vp_vmcb(vp->tdvps);
	struct seam_insn insn;
	unsigned int at;
	u64 *gpr;

	insn_fetch(vp, &insn);
	at = insn.opcode;
	gpr = insn_gpr(vp, (insn.bytes[at + 2] & 7) | (insn.rex & 1) << 3);
	if (!is_write) {
		*gpr = vapic_read(vp->tdvps, X2APIC_TPR) >> 4;
	} else if (*gpr >> 4 || !vapic_write(vp->tdvps, X2APIC_TPR, *gpr << 4)) {
		event_exception(vp, X86_TRAP_GP, true, 0);
		return;
	}
	vmcb->rip += at + 3;
}

static bool xcr0_ok(u64 val, u64 xfam)
{
	if (val & ~xfam || !(val & XFAM_X87))
		return false;
	return !(val & XFAM_AVX) || val & XFAM_SSE;
}

void cr_xsetbv(struct seam_vp *vp)
{
	struct seam_vmcb *vmcb = vp_vmcb(vp->tdvps);
	u64 val = (u32)vmcb->rax | vp->tdvps->gprs.rdx << 32;

	if ((u32)vp->tdvps->gprs.rcx || vmcb->cpl || !xcr0_ok(val, vp->td.tdcs->xfam)) {
		event_exception(vp, X86_TRAP_GP, true, 0);
		return;
	}
	vp->tdvps->xcr0 = val;
	vmcb->rip += 3;
}
