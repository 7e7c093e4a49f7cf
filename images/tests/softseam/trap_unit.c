// SPDX-License-Identifier: GPL-2.0-only
/* The #UD handler: operands, and machines that softseam refuses. */
#include "stub.h"

#define DIE_TRAP 1
#define X86_TRAP_UD 6
#define NOTIFY_DONE 0
#define NOTIFY_STOP 1
#define X86_MODRM_MOD(modrm) (((modrm) & 0xc0) >> 6)

struct insn {
	struct { u8 bytes[4]; int value; } opcode, modrm;
	int length;
};

struct notifier_block {
	int (*notifier_call)(struct notifier_block *nb, unsigned long val, void *data);
	int priority;
};

struct die_args {
	struct pt_regs *regs;
	int trapnr;
};

static void *address;
static unsigned int packages = 1;
static struct notifier_block *handler;
static unsigned long emulated_mem;
static int emulated;

#define user_mode(regs) false
#define early_initcall(fn)
#define insn_get_modrm_rm_off(insn, regs) ((int)offsetof(struct pt_regs, ax))
#define insn_get_modrm_reg_off(insn, regs) ((int)offsetof(struct pt_regs, cx))
#define insn_get_addr_ref(insn, regs) address

/* VMREAD %rcx, (%rax) */
static int insn_decode_kernel(struct insn *insn, void *ip)
{
	*insn = (struct insn) {
		.opcode = { .bytes = { 0x0f, 0x78 } }, .modrm = { .bytes = { 0x08 }, .value = 0x08 },
		.length = 3,
	};
	return 0;
}

static int register_die_notifier(struct notifier_block *nb)
{
	handler = nb;
	return 0;
}

#include "trap.c"

u32 seam_nr_keyids = 4;

bool seam_active(void)
{
	return true;
}

bool seam_packages_fit(void)
{
	return packages <= SEAM_MAX_PACKAGES;
}

u64 seam_dispatch(struct pt_regs *regs)
{
	return 0;
}

bool vmx_emulate(struct pt_regs *regs, const u8 *opcode, int modrm,
		 unsigned long mem, unsigned long *rm, unsigned long *reg)
{
	emulated++;
	emulated_mem = mem;
	return true;
}

static int trap(struct pt_regs *regs)
{
	struct die_args args = { .regs = regs, .trapnr = X86_TRAP_UD };

	CHECK(!softseam_init() && handler);
	return handler->notifier_call(handler, DIE_TRAP, &args);
}

static void operand_in_memory(void)
{
	struct pt_regs regs = { .ip = 0x1000 };
	u64 operand;

	address = &operand;
	CHECK(trap(&regs) == NOTIFY_STOP);
	CHECK(emulated == 1 && emulated_mem == (unsigned long)&operand && regs.ip == 0x1003);
}

static void operand_without_an_address(void)
{
	struct pt_regs regs = { .ip = 0x1000 };

	address = (void *)-1L;
	CHECK(trap(&regs) == NOTIFY_DONE);
	CHECK(!emulated && regs.ip == 0x1000);
}

static void more_packages_than_bits(void)
{
	packages = 65;
	CHECK(softseam_init() < 0 && !handler);
}

static const struct unit_case cases[] = {
	{ "operand_in_memory", operand_in_memory },
	{ "operand_without_an_address", operand_without_an_address },
	{ "more_packages_than_bits", more_packages_than_bits },
};

int main(int argc, char **argv)
{
	return run_case(cases, ARRAY_SIZE(cases), argv[1]);
}
