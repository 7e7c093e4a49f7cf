/* SPDX-License-Identifier: GPL-2.0-or-later */
/* payload: base=0xffff4000 */
/* Executes HLT, IN, RDMSR and CPUID of a leaf that the module does not know: each must come back as #VE.  Tells its exit reason. */
#include "interrupt.h"

static struct gate idt[NR_VECTORS];

void payload_ve(struct frame *frame)
{
	register u64 r8 asm("r8");
	register u64 r9 asm("r9");
	register u64 r10 asm("r10");
	u64 rax = TDG_VP_VEINFO_GET, rcx, rdx;

	asm volatile(".byte 0x66, 0x0f, 0x01, 0xcc"
		     : "+a" (rax), "=c" (rcx), "=d" (rdx), "=r" (r8), "=r" (r9), "=r" (r10)
		     : : "memory", "cc");
	frame->rip += (u32)r10;
	tell(rax ? 0xffffffff : rcx);
}

void payload_main(u64 index, u64 rcx)
{
	u32 eax = 0x40000000, ecx = 0x79;

	(void)index;
	(void)rcx;
	set_gate(&idt[VECTOR_VE], ve_entry);
	load_idt(idt);
	asm volatile("hlt");
	asm volatile("inb $0x80, %%al" : : : "rax");
	asm volatile("rdmsr" : : "c" (ecx) : "rax", "rdx");
	asm volatile("cpuid" : "+a" (eax) : : "rbx", "rcx", "rdx");
	tell(0x600d);
	stop();
}
