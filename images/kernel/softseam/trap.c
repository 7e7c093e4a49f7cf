// SPDX-License-Identifier: GPL-2.0-only
/*
 * SEAMCALL and the VMX instructions do not exist on the CPU below, so each
 * raises #UD, and the kernel offers #UD to its die notifiers before it looks
 * for a fixup: here they are decoded and emulated.
 */
#define pr_fmt(fmt) "softseam: " fmt

#include <linux/init.h>
#include <linux/kdebug.h>
#include <linux/notifier.h>
#include <asm/insn.h>
#include <asm/insn-eval.h>
#include <asm/processor-flags.h>
#include <asm/trapnr.h>

#include "softseam.h"

#define OPCODE_ESCAPE	0x0f
#define MODRM_SEAMCALL	0xcf		/* 66 0f 01 cf */

static void emulate_seamcall(struct pt_regs *regs)
{
	regs->flags &= ~(X86_EFLAGS_CF | X86_EFLAGS_ZF | X86_EFLAGS_PF |
			 X86_EFLAGS_AF | X86_EFLAGS_SF | X86_EFLAGS_OF);
	/* VMfailInvalid: there is no P-SEAMLDR, and RAX stays as it is. */
	if (regs->ax & SEAM_SEAMLDR)
		regs->flags |= X86_EFLAGS_CF;
	else
		regs->ax = seam_dispatch(regs);
}

static bool is_seamcall(struct insn *insn)
{
	return insn->opcode.bytes[1] == 0x01 && insn->modrm.bytes[0] == MODRM_SEAMCALL;
}

static int softseam_die(struct notifier_block *nb, unsigned long val, void *data)
{
	struct die_args *args = data;
	struct pt_regs *regs = args->regs;
	struct insn insn;

	if (val != DIE_TRAP || args->trapnr != X86_TRAP_UD || user_mode(regs))
		return NOTIFY_DONE;
	if (insn_decode_kernel(&insn, (void *)regs->ip) ||
	    insn.opcode.bytes[0] != OPCODE_ESCAPE)
		return NOTIFY_DONE;

	if (is_seamcall(&insn)) {
		emulate_seamcall(regs);
	} else {
		unsigned long mem = 0, *rm = NULL, *reg = NULL;
		int off;

		if (X86_MODRM_MOD(insn.modrm.value) == 3) {
			off = insn_get_modrm_rm_off(&insn, regs);
			if (off >= 0)
				rm = (void *)regs + off;
		} else {
			mem = (unsigned long)insn_get_addr_ref(&insn, regs);
		}
		off = insn_get_modrm_reg_off(&insn, regs);
		if (off >= 0)
			reg = (void *)regs + off;
		if (!vmx_emulate(regs, insn.opcode.bytes, insn.modrm.bytes[0],
				 mem, rm, reg))
			return NOTIFY_DONE;
	}
	regs->ip += insn.length;
	return NOTIFY_STOP;
}

static struct notifier_block softseam_nb = {
	.notifier_call = softseam_die,
	.priority = INT_MAX,
};

static int __init softseam_init(void)
{
	if (!seam_active())
		return 0;
	pr_info("a software TDX module for testing, %u KeyIDs; nothing is encrypted\n",
		seam_nr_keyids);
	return register_die_notifier(&softseam_nb);
}
early_initcall(softseam_init);
