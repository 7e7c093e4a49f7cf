/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef SOFTSEAM_VMX_H
#define SOFTSEAM_VMX_H

#include <linux/ptrace.h>
#include <linux/types.h>
#include <asm/processor-flags.h>

/* Flags that SEAMCALL and the VMX instructions set or clear to report an outcome */
#define VMX_STATUS_FLAGS	(X86_EFLAGS_CF | X86_EFLAGS_PF | X86_EFLAGS_AF | \
				 X86_EFLAGS_ZF | X86_EFLAGS_SF | X86_EFLAGS_OF)

bool vmx_emulate(struct pt_regs *regs, const u8 *opcode, int modrm,
		 unsigned long mem, unsigned long *rm, unsigned long *reg);

#endif
