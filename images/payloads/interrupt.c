/* SPDX-License-Identifier: GPL-2.0-or-later */
/* payload: base=0xffff4000 */
/*
 * Enables its APIC in KVM's eyes too (WRMSR of SPIV by TDVMCALL), without which KVM drops what is sent to it.
 * Tells 0x1000000 when it is ready, then the number of interrupts of vector 0x51 so far, after each; between
 * them it halts.  A self-IPI first: it tells 1 before anything came from outside.
 */
#include "interrupt.h"

#define VECTOR	0x51

static struct gate idt[NR_VECTORS];
static volatile u32 seen;

void payload_vector(u64 vector)
{
	(void)vector;
	seen++;
	wrmsr(X2APIC_EOI, 0);
}

void payload_main(u64 index, u64 rcx)
{
	u32 told = 0;

	(void)index;
	(void)rcx;
	set_vector(idt, VECTOR);
	load_idt(idt);
	enable_apic();
	wrmsr(X2APIC_SELF_IPI, VECTOR);
	asm volatile("sti" : : : "memory");
	while (!seen)
		asm volatile("pause");
	for (;;) {
		asm volatile("cli" : : : "memory");
		if (seen != told) {
			told = seen;
			asm volatile("sti" : : : "memory");
			tell(told);
			if (told == 1)
				tell(0x1000000);
			continue;
		}
		/*
		 * Halt with interrupts off, saying that they are on, as Linux does: one that comes after the
		 * check stays pending and ends the halt, instead of being taken just before it.
		 */
		halt(0);
		asm volatile("sti; nop" : : : "memory");
	}
}
