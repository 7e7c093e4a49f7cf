// SPDX-License-Identifier: GPL-2.0-only
/*
 * The linear address of a nested page fault, which SVM does not report: the
 * address, among those that the instruction at RIP accesses, that the guest's
 * tables translate to the page that faulted.
 */
#include <linux/array_size.h>
#include <asm/insn.h>
#include <asm/msr-index.h>
#include <asm/page.h>

#include "gla.h"
#include "gprs.h"
#include "gva.h"
#include "insn.h"
#include "vmcb.h"
#include "vp.h"

#define RSP	4
#define RBP	5
#define RSI	6
#define RDI	7
#define STACK_WORD	8

static bool in_64bit_mode(const struct seam_vmcb *vmcb)
{
	return vmcb->efer & EFER_LMA && vmcb->cs.attrib & SEG_LONG;
}

/* An access may begin on the page before. */
static bool leads_to(struct seam_vp *vp, u64 address, u64 gpa, u64 *gla)
{
	u64 found;

	if (gva_to_gpa(vp, address, &found) && !((found ^ gpa) & PAGE_MASK)) {
		*gla = address;
		return true;
	}
	address = (address & PAGE_MASK) + PAGE_SIZE;
	if (gpa & ~PAGE_MASK || !gva_to_gpa(vp, address, &found) || found != gpa)
		return false;
	*gla = address;
	return true;
}

static u64 segment_base(const struct seam_vmcb *vmcb, const struct insn *insn, int base_register)
{
	unsigned int i;

	for (i = 0; i < insn->prefixes.nbytes; i++) {
		switch (insn->prefixes.bytes[i]) {
		case 0x64:
			return vmcb->fs.base;
		case 0x65:
			return vmcb->gs.base;
		}
	}
	if (in_64bit_mode(vmcb))
		return 0;
	return base_register == RSP || base_register == RBP ? vmcb->ss.base : vmcb->ds.base;
}

/* The address in a ModRM byte, with SIB byte and displacement */
static bool modrm_address(struct seam_vp *vp, struct insn *insn, u64 *address)
{
	struct seam_vmcb *vmcb = vp_vmcb(vp->tdvps);
	u8 rex = insn->rex_prefix.bytes[0];
	int mod, base, index;
	u64 sum;

	if (!insn->modrm.nbytes || X86_MODRM_MOD(insn->modrm.value) == 3 || insn->addr_bytes == 2)
		return false;
	mod = X86_MODRM_MOD(insn->modrm.value);
	base = X86_MODRM_RM(insn->modrm.value);
	sum = (s64)insn->displacement.value;
	if (insn->sib.nbytes) {
		base = X86_SIB_BASE(insn->sib.value);
		index = X86_SIB_INDEX(insn->sib.value) | (X86_REX_X(rex) ? 8 : 0);
		if (index != RSP)
			sum += *insn_gpr(vp, index) << X86_SIB_SCALE(insn->sib.value);
	}
	if (mod || base != RBP) {
		sum += *insn_gpr(vp, base | (X86_REX_B(rex) ? 8 : 0));
	} else if (!insn->sib.nbytes && in_64bit_mode(vmcb)) {
		sum += vmcb->rip + insn->length;
		base = -1;
	}
	if (insn->addr_bytes == 4)
		sum = (u32)sum;
	*address = segment_base(vmcb, insn, base) + sum;
	return true;
}

static bool is_string(const struct insn *insn)
{
	u8 opcode = insn->opcode.bytes[0];

	return insn->opcode.nbytes == 1 &&
	       ((opcode >= 0x6c && opcode <= 0x6f) || (opcode >= 0xa4 && opcode <= 0xa7) ||
		(opcode >= 0xaa && opcode <= 0xaf));
}

/* False if it is none of these, or 32-bit paging is on. */
bool gla_find(struct seam_vp *vp, u64 gpa, bool fetch, u64 *gla)
{
	struct seam_vmcb *vmcb = vp_vmcb(vp->tdvps);
	struct seam_insn bytes;
	struct insn insn;
	u64 address;

	if (fetch)
		return leads_to(vp, vmcb->cs.base + vmcb->rip, gpa, gla);
	insn_fetch(vp, &bytes);
	insn_init(&insn, bytes.bytes, bytes.len, in_64bit_mode(vmcb));
	if (!bytes.len || insn_get_length(&insn))
		return false;
	if (modrm_address(vp, &insn, &address) && leads_to(vp, address, gpa, gla))
		return true;
	if (insn.moffset1.nbytes) {
		address = (u32)insn.moffset1.value | (u64)(u32)insn.moffset2.value << 32;
		if (leads_to(vp, segment_base(vmcb, &insn, -1) + address, gpa, gla))
			return true;
	}
	if (is_string(&insn) &&
	    (leads_to(vp, segment_base(vmcb, &insn, -1) + *insn_gpr(vp, RSI), gpa, gla) ||
	     leads_to(vp, vmcb->es.base + *insn_gpr(vp, RDI), gpa, gla)))
		return true;
	return leads_to(vp, vmcb->ss.base + vmcb->rsp - STACK_WORD, gpa, gla) ||
	       leads_to(vp, vmcb->ss.base + vmcb->rsp, gpa, gla);
}
