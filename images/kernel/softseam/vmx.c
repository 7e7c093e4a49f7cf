// SPDX-License-Identifier: GPL-2.0-only
/*
 * The part of VMX that KVM needs to load and to create a plain VM: VMREAD returns
 * what VMWRITE wrote, VMLAUNCH fails.
 */
#include <linux/build_bug.h>
#include <linux/percpu.h>
#include <linux/types.h>
#include <asm/page.h>
#include <asm/processor-flags.h>

#include "cpu.h"
#include "vmx.h"

#define NR_FIELDS	340

struct soft_vmcs {
	u32 revision;
	u32 abort;
	u32 fields[NR_FIELDS];		/* encoding + 1, 0 is an empty slot */
	u64 vals[NR_FIELDS];
};

static_assert(sizeof(struct soft_vmcs) <= PAGE_SIZE);

#define VMCS_INSTRUCTION_ERROR	0x4400
#define VMERR_ENTRY_INVALID_CONTROLS	7

static DEFINE_PER_CPU(struct soft_vmcs *, current_vmcs);

static void succeed(struct pt_regs *regs)
{
	regs->flags &= ~VMX_STATUS_FLAGS;
}

static void fail_invalid(struct pt_regs *regs)
{
	regs->flags = (regs->flags & ~VMX_STATUS_FLAGS) | X86_EFLAGS_CF;
}

static u64 *vmcs_slot(struct soft_vmcs *vmcs, u32 field)
{
	u32 first = (field * 2654435761U) % NR_FIELDS, i = first;

	do {
		if (vmcs->fields[i] == field + 1)
			return &vmcs->vals[i];
		if (!vmcs->fields[i]) {
			vmcs->fields[i] = field + 1;
			return &vmcs->vals[i];
		}
		i = (i + 1) % NR_FIELDS;
	} while (i != first);
	return NULL;
}

static void vmread_write(struct pt_regs *regs, bool write, unsigned long mem,
			 unsigned long *rm, unsigned long *reg)
{
	struct soft_vmcs *vmcs = __this_cpu_read(current_vmcs);
	unsigned long *operand = rm ?: (unsigned long *)mem;
	u64 *slot;

	slot = vmcs && reg ? vmcs_slot(vmcs, *reg) : NULL;
	if (!slot || !operand) {
		fail_invalid(regs);
		return;
	}
	if (write)
		*slot = *operand;
	else
		*operand = *slot;
	succeed(regs);
}

static void vmptrld(struct pt_regs *regs, unsigned long mem)
{
	__this_cpu_write(current_vmcs, __va(*(u64 *)mem));
	succeed(regs);
}

static void vmclear(struct pt_regs *regs, unsigned long mem)
{
	struct soft_vmcs *vmcs = __va(*(u64 *)mem);

	if (__this_cpu_read(current_vmcs) == vmcs)
		__this_cpu_write(current_vmcs, NULL);
	succeed(regs);
}

/* VMfailInvalid, which KVM reports as KVM_EXIT_FAIL_ENTRY. */
static void vmlaunch(struct pt_regs *regs)
{
	struct soft_vmcs *vmcs = __this_cpu_read(current_vmcs);
	u64 *slot = vmcs ? vmcs_slot(vmcs, VMCS_INSTRUCTION_ERROR) : NULL;

	if (slot)
		*slot = VMERR_ENTRY_INVALID_CONTROLS;
	fail_invalid(regs);
}

/* @opcode begins with 0f; false if it is no VMX instruction. */
bool vmx_emulate(struct pt_regs *regs, const u8 *opcode, int modrm,
		 unsigned long mem, unsigned long *rm, unsigned long *reg)
{
	switch (opcode[1]) {
	case 0x01:
		if (modrm == 0xc2 || modrm == 0xc3)	/* VMLAUNCH, VMRESUME */
			vmlaunch(regs);
		else if (modrm == 0xc4)			/* VMXOFF */
			succeed(regs);
		else
			return false;
		return true;
	case 0x78:
		vmread_write(regs, false, mem, rm, reg);
		return true;
	case 0x79:
		vmread_write(regs, true, mem, rm, reg);
		return true;
	case 0xc7:					/* /6 with a memory operand */
		if ((modrm >> 3 & 7) != 6 || !mem)
			return false;
		if (*(u8 *)regs->ip == 0xf3) {		/* VMXON */
			seam_enable_svm();
			succeed(regs);
		} else if (*(u8 *)regs->ip == 0x66) {
			vmclear(regs, mem);
		} else {
			vmptrld(regs, mem);
		}
		return true;
	case 0x38:
		if (opcode[2] != 0x80 && opcode[2] != 0x81)
			return false;
		/* INVEPT, INVVPID: every VMRUN flushes. */
		succeed(regs);
		return true;
	default:
		return false;
	}
}
