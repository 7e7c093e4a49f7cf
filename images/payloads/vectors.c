/* SPDX-License-Identifier: GPL-2.0-or-later */
/* payload: base=0xffff4000 */
/*
 * Tells 0x1000000 when it is ready, then the vector of each interrupt that it takes, 32 to 255, before it ends it;
 * between them it halts.
 */
#include "interrupt.h"

static struct gate idt[NR_VECTORS];

void payload_vector(u64 vector)
{
	tell(vector);
	wrmsr(X2APIC_EOI, 0);
}

void payload_main(u64 index, u64 rcx)
{
	u32 vector;

	(void)index;
	(void)rcx;
	for (vector = FIRST_VECTOR; vector < NR_VECTORS; vector++)
		set_vector(idt, vector);
	load_idt(idt);
	enable_apic();
	tell(0x1000000);
	for (;;) {
		/* With interrupts off, saying that they are on: see interrupt.c. */
		halt(0);
		asm volatile("sti; nop; cli" : : : "memory");
	}
}
