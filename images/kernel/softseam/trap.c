// SPDX-License-Identifier: GPL-2.0-only
/*
 * The emulated CPU lacks SEAMCALL and the VMX instructions and raises #UD, which
 * the kernel passes to its die notifiers before it searches for a fixup: here
 * they are decoded and emulated.
 */
#define pr_fmt(fmt) "softseam: " fmt

#include <linux/errno.h>
#include <linux/init.h>
#include <linux/kdebug.h>
#include <linux/notifier.h>
#include <linux/printk.h>
#include <asm/insn.h>
#include <asm/insn-eval.h>
#include <asm/processor-flags.h>
#include <asm/trapnr.h>

#include "abi.h"
#include "cpu.h"
#include "dispatch.h"
#include "package.h"
#include "vmx.h"

#define OPCODE_ESCAPE	0x0f
#define MODRM_SEAMCALL	0xcf		/* 66 0f 01 cf */
#define NO_ADDRESS	(-1UL)		/* an error of insn_get_addr_ref() */

static void emulate_seamcall(struct pt_regs *regs)
{
	regs->flags &= ~VMX_STATUS_FLAGS;
	/* VMfailInvalid: there is no P-SEAMLDR, and RAX is unchanged. */
	if (regs->ax & SEAM_SEAMLDR)
		regs->flags |= X86_EFLAGS_CF;
	else
		regs->ax = seam_dispatch(regs);
}

static bool is_seamcall(struct insn *insn)
{
	return insn->opcode.bytes[1] == 0x01 && insn->modrm.bytes[0] == MODRM_SEAMCALL;
}

static bool emulate_vmx(struct insn *insn, struct pt_regs *regs)
{
	unsigned long mem = 0, *rm = NULL, *reg = NULL;
	int off;

	if (X86_MODRM_MOD(insn->modrm.value) == 3) {
		off = insn_get_modrm_rm_off(insn, regs);
		if (off >= 0)
			rm = (void *)regs + off;
	} else {
		mem = (unsigned long)insn_get_addr_ref(insn, regs);
		if (mem == NO_ADDRESS)
			return false;
	}
	off = insn_get_modrm_reg_off(insn, regs);
	if (off >= 0)
		reg = (void *)regs + off;
	return vmx_emulate(regs, insn->opcode.bytes, insn->modrm.bytes[0], mem, rm, reg);
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

	if (is_seamcall(&insn))
		emulate_seamcall(regs);
	else if (!emulate_vmx(&insn, regs))
		return NOTIFY_DONE;
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
	if (!seam_packages_fit()) {
		pr_err("more than %u packages, SEAMCALL and VMX stay undefined\n",
		       SEAM_MAX_PACKAGES);
		return -E2BIG;
	}
	pr_info("a software TDX module for testing, %u KeyIDs; nothing is encrypted\n",
		seam_nr_keyids);
	return register_die_notifier(&softseam_nb);
}
early_initcall(softseam_init);
