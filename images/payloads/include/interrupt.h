/* SPDX-License-Identifier: GPL-2.0-or-later */
/* An IDT with interrupt vectors and #VE. */
#ifndef INTERRUPT_H
#define INTERRUPT_H

#include "tdx.h"

#define VECTOR_VE	20
#define X2APIC_SPIV	0x80f
#define SPIV_ENABLED	0x100
#define X2APIC_EOI	0x80b
#define X2APIC_SELF_IPI	0x83f
#define NR_VECTORS	256
#define FIRST_VECTOR	32

struct frame {
	u64 rip, cs, rflags, rsp, ss;
};

struct gate {
	u16 low, selector, type, middle;
	u32 high, reserved;
};

/* What a payload does at the vectors that it has taken with set_vector(); it has to end them with an EOI. */
__attribute__((visibility("hidden"))) void payload_vector(u64 vector);
__attribute__((visibility("hidden"))) extern u8 vector_entries[];
__attribute__((visibility("hidden"))) void ve_entry(void);

static inline void set_gate(struct gate *gate, void (*entry)(void))
{
	u64 at = (u64)entry;

	*gate = (struct gate) { at, 8, 0x8e00, at >> 16, at >> 32, 0 };
}

static inline void set_vector(struct gate *idt, u32 vector)
{
	set_gate(&idt[vector], (void (*)(void))(vector_entries + 16 * (vector - FIRST_VECTOR)));
}

/* In KVM's eyes too, which drops what is sent to a disabled APIC. */
static inline void enable_apic(void)
{
	struct vmcall enable = { VMCALL_WRMSR, X2APIC_SPIV, SPIV_ENABLED | 0xff, 0, 0 };

	vmcall(&enable);
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
