// SPDX-License-Identifier: GPL-2.0-only
#include <linux/bits.h>
#include <linux/string.h>
#include <asm/msr-index.h>

#include "gprs.h"
#include "gva.h"
#include "insn.h"
#include "sept.h"
#include "vmcb.h"
#include "vp.h"

#define REX_FIRST	0x40
#define REX_LAST	0x4f

/* SVM's EXITINFO1 of an I/O instruction */
#define IOIO_IN		BIT_ULL(0)
#define IOIO_STRING	BIT_ULL(2)
#define IOIO_REP	BIT_ULL(3)
#define IOIO_16		BIT_ULL(5)
#define IOIO_32		BIT_ULL(6)
#define IOIO_PORT	GENMASK_ULL(31, 16)
/* VMX's exit qualification (SDM 28.2.1, table 28-5); bits 2:0 are the size less one */
#define IOQ_IN		BIT_ULL(3)
#define IOQ_STRING	BIT_ULL(4)
#define IOQ_REP		BIT_ULL(5)
#define IOQ_IMMEDIATE	BIT_ULL(6)

static bool is_prefix(u8 byte)
{
	switch (byte) {
	case 0x26:
	case 0x2e:
	case 0x36:
	case 0x3e:
	case 0x64 ... 0x67:
	case 0xf0:
	case 0xf2 ... 0xf3:
		return true;
	default:
		return false;
	}
}

/* Copies the bytes at RIP, which may cross a page, up to the first that is not mapped. */
void insn_fetch(struct seam_vp *vp, struct seam_insn *insn)
{
	struct seam_vmcb *vmcb = vp_vmcb(vp->tdvps);
	u64 gpa;
	u8 *byte;

	memset(insn, 0, sizeof(*insn));
	while (insn->len < INSN_MAX) {
		if (!gva_to_gpa(vp, vmcb->cs.base + vmcb->rip + insn->len, &gpa))
			break;
		byte = sept_gpa_to_va(vp->td.tdcs, gpa);
		if (!byte)
			break;
		insn->bytes[insn->len++] = *byte;
	}
	while (insn->opcode + 1 < insn->len && is_prefix(insn->bytes[insn->opcode]))
		insn->opcode++;
	if (insn->opcode + 1 < insn->len && vmcb->efer & EFER_LMA && vmcb->cs.attrib & SEG_LONG &&
	    insn->bytes[insn->opcode] >= REX_FIRST && insn->bytes[insn->opcode] <= REX_LAST)
		insn->rex = insn->bytes[insn->opcode++];
}

/* True if the instruction, prefixes included, begins with @bytes. */
bool insn_is(const struct seam_insn *insn, const u8 *bytes, unsigned int len)
{
	return insn->len >= len && !memcmp(insn->bytes, bytes, len);
}

u64 insn_io_qualification(struct seam_vp *vp)
{
	u64 info = vp_vmcb(vp->tdvps)->exit_info1, qualification;
	struct seam_insn insn;
	u8 opcode;

	qualification = info & IOIO_PORT;
	qualification |= info & IOIO_32 ? 3 : info & IOIO_16 ? 1 : 0;
	if (info & IOIO_IN)
		qualification |= IOQ_IN;
	if (info & IOIO_STRING)
		qualification |= IOQ_STRING;
	if (info & IOIO_REP)
		qualification |= IOQ_REP;
	insn_fetch(vp, &insn);
	opcode = insn.bytes[insn.opcode];
	if (opcode >= 0xe4 && opcode <= 0xe7)
		qualification |= IOQ_IMMEDIATE;
	return qualification;
}

/* A general register by its number in an instruction. */
u64 *insn_gpr(struct seam_vp *vp, unsigned int n)
{
	struct seam_gprs *gprs = &vp->tdvps->gprs;
	struct seam_vmcb *vmcb = vp_vmcb(vp->tdvps);
	u64 *const registers[] = {
		&vmcb->rax, &gprs->rcx, &gprs->rdx, &gprs->rbx,
		&vmcb->rsp, &gprs->rbp, &gprs->rsi, &gprs->rdi,
		&gprs->r8, &gprs->r9, &gprs->r10, &gprs->r11,
		&gprs->r12, &gprs->r13, &gprs->r14, &gprs->r15,
	};

	return registers[n & 15];
}
