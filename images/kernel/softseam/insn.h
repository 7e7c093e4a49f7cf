/* SPDX-License-Identifier: GPL-2.0-only */
/* The instruction at the guest's RIP: VMX reports parts of it that SVM does not. */
#ifndef SOFTSEAM_INSN_H
#define SOFTSEAM_INSN_H

#include <linux/types.h>

#include "vp.h"

#define INSN_MAX	15

struct seam_insn {
	u8 bytes[INSN_MAX + 2];		/* zeroes behind what could be read */
	u8 len;				/* bytes that are mapped, in [0, INSN_MAX] */
	u8 opcode;			/* index of the first byte after the prefixes */
	u8 rex;				/* 0 without one */
};

void insn_fetch(struct seam_vp *vp, struct seam_insn *insn);
bool insn_is(const struct seam_insn *insn, const u8 *bytes, unsigned int len);
u64 insn_io_qualification(struct seam_vp *vp);
u64 *insn_gpr(struct seam_vp *vp, unsigned int n);

#endif
