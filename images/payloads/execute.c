/* SPDX-License-Identifier: GPL-2.0-or-later */
/* payload: base=0xffff0000 */
/*
 * Executes the instructions that the test asks for, each with the registers that the test chose.
 *
 * Shared memory at 2 MiB: a u64 with the number of rows, at offset 64 the rows, struct row.  Each row's results
 * replace what was there.  Tells 0 when it is ready, then after each round how many there were.
 */
#include "interrupt.h"

#define ROWS_AT		64
#define CODE_MAX	16
#define REGISTERS	15
#define NO_VECTOR	0xff
#define EXCEPTIONS	32

struct row {
	u8 code[CODE_MAX];		/* one or more instructions; the rest is NOPs */
	u64 registers[REGISTERS];	/* RAX, RCX, RDX, RBX, RBP, RSI, RDI, R8 to R15 */
	u64 vector;			/* of the exception that ended it, 0xff without one */
	u64 error;			/* at first: 1 leaves the information on a #VE where it is */
	u64 offset;			/* of RIP in the code at the exception */
	u64 cr2;
	u64 ve[7];			/* RAX, RCX, RDX, R8, R9, R10, R11 of TDG.VP.VEINFO.GET after a #VE */
};

__attribute__((visibility("hidden"))) extern u64 execute_registers[REGISTERS];
__attribute__((visibility("hidden"))) extern u64 execute_vector, execute_error, execute_rip;
__attribute__((visibility("hidden"))) extern u8 execute_code[];
__attribute__((visibility("hidden"))) extern u8 execute_entries[];
__attribute__((visibility("hidden"))) void execute(void);

static struct gate idt[NR_VECTORS];

static void ve_info(u64 *to)
{
	register u64 r8 asm("r8") = 0;
	register u64 r9 asm("r9") = 0;
	register u64 r10 asm("r10") = 0;
	register u64 r11 asm("r11") = 0;
	u64 rax = TDG_VP_VEINFO_GET, rcx = 0, rdx = 0;

	asm volatile(".byte 0x66, 0x0f, 0x01, 0xcc"
		     : "+a" (rax), "+c" (rcx), "+d" (rdx), "+r" (r8), "+r" (r9), "+r" (r10), "+r" (r11)
		     : : "memory", "cc");
	to[0] = rax;
	to[1] = rcx;
	to[2] = rdx;
	to[3] = r8;
	to[4] = r9;
	to[5] = r10;
	to[6] = r11;
}

static void run(volatile struct row *row)
{
	bool leave_ve = row->error;
	u64 ve[7] = { 0 }, cr2;
	int i;

	for (i = 0; i < CODE_MAX; i++)
		execute_code[i] = row->code[i];
	for (i = 0; i < REGISTERS; i++)
		execute_registers[i] = row->registers[i];
	execute_vector = NO_VECTOR;
	execute_error = 0;
	execute_rip = (u64)execute_code;
	execute();
	asm volatile("mov %%cr2, %0" : "=r" (cr2));
	if (execute_vector == VECTOR_VE && !leave_ve)
		ve_info(ve);
	for (i = 0; i < REGISTERS; i++)
		row->registers[i] = execute_registers[i];
	row->vector = execute_vector;
	row->error = execute_error;
	row->offset = execute_rip - (u64)execute_code;
	row->cr2 = cr2;
	for (i = 0; i < 7; i++)
		row->ve[i] = ve[i];
}

void payload_main(u64 index, u64 rcx)
{
	volatile u64 *count = (u64 *)(SHARED_VA + 0x200000UL);
	volatile struct row *rows = (struct row *)(SHARED_VA + 0x200000UL + ROWS_AT);
	u32 rounds = 0;
	u64 i;

	(void)index;
	(void)rcx;
	for (i = 0; i < EXCEPTIONS; i++)
		set_gate(&idt[i], (void (*)(void))(execute_entries + 16 * i));
	load_idt(idt);
	for (;;) {
		tell(rounds++);
		for (i = 0; i < *count; i++)
			run(&rows[i]);
	}
}
