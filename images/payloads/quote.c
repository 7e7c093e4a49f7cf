/* SPDX-License-Identifier: GPL-2.0-or-later */
/* payload: base=0xffff4000 */
/*
 * Asks for an interrupt of vector 0x61 when a quote is done, and tells the status.  Then asks for quotes, one after
 * another, in the page at 2 MiB, which has to be shared memory: tells the status of each request, and after the
 * interrupt, until which it halts, how many there were and what has become of the request (GHCI 1.5, GetQuote).
 */
#include "interrupt.h"

#define VMCALL_GET_QUOTE	0x10002
#define VMCALL_NOTIFY		0x10004
#define VECTOR			0x61
#define QUOTE_GPA		0x200000UL
#define PAGE			4096UL

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
	/* Version, status */
	volatile u64 *quote = (u64 *)(SHARED_VA + QUOTE_GPA);
	struct vmcall call = { VMCALL_NOTIFY, VECTOR, 0, 0, 0 };
	u32 told;

	(void)index;
	(void)rcx;
	set_vector(idt, VECTOR);
	load_idt(idt);
	enable_apic();
	tell(vmcall(&call));
	for (told = 0;;) {
		quote[0] = 1;
		quote[1] = 0;
		call = (struct vmcall) { VMCALL_GET_QUOTE, SHARED_GPA | QUOTE_GPA, PAGE, 0, 0 };
		tell(vmcall(&call));
		while (seen == told) {
			halt(0);
			asm volatile("sti; nop; cli" : : : "memory");
		}
		told = seen;
		tell(told);
		tell(quote[1]);
	}
}
