/* SPDX-License-Identifier: GPL-2.0-or-later */
/* An IDT with one interrupt vector and #VE. */
#ifndef INTERRUPT_H
#define INTERRUPT_H

#include "tdx.h"

#define VECTOR_VE	20
#define X2APIC_SPIV	0x80f
#define SPIV_ENABLED	0x100
#define X2APIC_EOI	0x80b
#define X2APIC_SELF_IPI	0x83f
#define NR_VECTORS	256

struct frame {
	u64 rip, cs, rflags, rsp, ss;
};

struct gate {
	u16 low, selector, type, middle;
	u32 high, reserved;
};

__attribute__((visibility("hidden"))) void interrupt_entry(void);
__attribute__((visibility("hidden"))) void ve_entry(void);

static inline void set_gate(struct gate *gate, void (*entry)(void))
{
	u64 at = (u64)entry;

	*gate = (struct gate) { at, 8, 0x8e00, at >> 16, at >> 32, 0 };
}

static inline void load_idt(struct gate *idt)
{
	struct {
		u16 limit;
		u64 base;
	} __attribute__((packed)) pointer = { NR_VECTORS * sizeof(*idt) - 1, (u64)idt };

	asm volatile("lidt %0" : : "m" (pointer));
}

#endif
