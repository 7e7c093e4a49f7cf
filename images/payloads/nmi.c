/* SPDX-License-Identifier: GPL-2.0-or-later */
/* payload: base=0xffff4000 */
/*
 * Tells 0 when it is ready.  For each NMI its handler tells the number of NMIs so far and, in bits 15:8, how many
 * handlers are running; it leaves with IRET.
 *
 * If RCX is 1 it causes a #VE then.  The #VE's handler tells 0x10000 and the number of NMIs so far twice, before
 * it asks the TDX module about the #VE.
 */
#include "interrupt.h"

#define VECTOR_NMI	2
#define SPINS	1000

static struct gate idt[NR_VECTORS];
static volatile u32 seen, running;

#define IN_VE	0x10000

__attribute__((visibility("hidden"))) void nmi_entry(void);

void payload_nmi(struct frame *frame)
{
	int i;

	(void)frame;
	seen++;
	running++;
	tell(running << 8 | seen);
	/* One that comes during the exit above would be taken now. */
	for (i = 0; i < SPINS; i++)
		asm volatile("pause");
	running--;
}

void payload_ve(struct frame *frame)
{
	u64 rax = TDG_VP_VEINFO_GET;

	tell(IN_VE | seen);
	tell(IN_VE | seen);
	asm volatile(".byte 0x66, 0x0f, 0x01, 0xcc"
		     : "+a" (rax) : : "rcx", "rdx", "r8", "r9", "r10", "r11", "memory", "cc");
	frame->rip++;
}

void payload_main(u64 index, u64 rcx)
{
	(void)index;
	set_gate(&idt[VECTOR_NMI], nmi_entry);
	set_gate(&idt[VECTOR_VE], ve_entry);
	load_idt(idt);
	tell(0);
	if (rcx == 1)
		asm volatile("hlt" : : : "memory");
	for (;;)
		asm volatile("pause");
}
