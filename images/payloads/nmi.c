/* SPDX-License-Identifier: GPL-2.0-or-later */
/* payload: base=0xffff4000 */
/*
 * Tells 0 when it is ready.  For each NMI its handler tells the number of NMIs so far and, in bits 15:8, how many
 * handlers are running; it leaves with IRET.
 */
#include "interrupt.h"

#define VECTOR_NMI	2
#define SPINS	1000

static struct gate idt[NR_VECTORS];
static volatile u32 seen, running;

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

void payload_main(u64 index, u64 rcx)
{
	(void)index;
	(void)rcx;
	set_gate(&idt[VECTOR_NMI], nmi_entry);
	load_idt(idt);
	tell(0);
	for (;;)
		asm volatile("pause");
}
