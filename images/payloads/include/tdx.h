/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What a payload can do: TDCALL, TDVMCALL (GHCI 1.5), and telling the test through I/O ports.
 *
 * Ports: 0x3f8 takes text, a byte at a time; 0x500 takes 32-bit values, which a payload explains at its top.
 */
#ifndef TDX_H
#define TDX_H

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long u64;
typedef _Bool bool;

#define PORT_TEXT	0x3f8
#define PORT_VALUE	0x500
#define SHARED_VA	(1UL << 39)
#define SHARED_GPA	(1UL << 47)

#define TDG_VP_VMCALL		0
#define TDG_VP_INFO		1
#define TDG_VP_VEINFO_GET	3
#define TDG_MEM_PAGE_ACCEPT	6

#define VMCALL_CPUID		10
#define VMCALL_HLT		12
#define VMCALL_IO		30
#define VMCALL_RDMSR		31
#define VMCALL_WRMSR		32
#define VMCALL_MMIO		48
#define VMCALL_MAP_GPA		0x10001
#define VMCALL_GET_INFO		0x10000
#define VMCALL_FATAL		0x10003

/* R10 to R15 pass */
#define VMCALL_MASK		0xfc00

struct vmcall {
	u64 leaf;		/* r11 */
	u64 r12, r13, r14, r15;
};

/* Returns R10, 0 is success; R11 to R15 come back in the struct. */
static inline u64 vmcall(struct vmcall *call)
{
	register u64 r10 asm("r10") = 0;
	register u64 r11 asm("r11") = call->leaf;
	register u64 r12 asm("r12") = call->r12;
	register u64 r13 asm("r13") = call->r13;
	register u64 r14 asm("r14") = call->r14;
	register u64 r15 asm("r15") = call->r15;
	u64 rax = TDG_VP_VMCALL, rcx = VMCALL_MASK;

	asm volatile(".byte 0x66, 0x0f, 0x01, 0xcc"
		     : "+a" (rax), "+c" (rcx), "+r" (r10), "+r" (r11), "+r" (r12), "+r" (r13),
		       "+r" (r14), "+r" (r15)
		     : : "memory", "cc");
	call->leaf = r11;
	call->r12 = r12;
	call->r13 = r13;
	call->r14 = r14;
	call->r15 = r15;
	return rax ? rax : r10;
}

static inline u64 tdcall_accept(u64 gpa)
{
	u64 rax = TDG_MEM_PAGE_ACCEPT;

	asm volatile(".byte 0x66, 0x0f, 0x01, 0xcc" : "+a" (rax) : "c" (gpa) : "memory", "cc");
	return rax;
}

struct vp_info {
	u64 gpaw, attributes, vcpus, index;
};

static inline void tdcall_info(struct vp_info *info)
{
	register u64 r8 asm("r8") = 0;
	register u64 r9 asm("r9") = 0;
	u64 rax = TDG_VP_INFO, rcx = 0, rdx = 0;

	asm volatile(".byte 0x66, 0x0f, 0x01, 0xcc"
		     : "+a" (rax), "+c" (rcx), "+d" (rdx), "+r" (r8), "+r" (r9)
		     : : "r10", "r11", "memory", "cc");
	info->gpaw = rcx;
	info->attributes = rdx;
	info->vcpus = r8;
	info->index = r9;
}

static inline u32 io(u32 port, u32 size, bool write, u32 value)
{
	struct vmcall call = { VMCALL_IO, size, write, port, value };

	vmcall(&call);
	return call.leaf;
}

static inline void put(char c)
{
	io(PORT_TEXT, 1, 1, (u8)c);
}

static inline void print(const char *text)
{
	while (*text)
		put(*text++);
}

static inline void tell(u32 value)
{
	io(PORT_VALUE, 4, 1, value);
}

/* Waits for an interrupt; KVM leaves to user space or sleeps. */
static inline void halt(bool interrupts_blocked)
{
	struct vmcall call = { VMCALL_HLT, interrupts_blocked, 0, 0, 0 };

	vmcall(&call);
}

static inline u64 map_gpa(u64 gpa, u64 size)
{
	struct vmcall call = { VMCALL_MAP_GPA, gpa, size, 0, 0 };

	return vmcall(&call);
}

static inline void wrmsr(u32 msr, u64 value)
{
	asm volatile("wrmsr" : : "c" (msr), "a" ((u32)value), "d" ((u32)(value >> 32)) : "memory");
}

static inline u64 rdmsr(u32 msr)
{
	u32 low, high;

	asm volatile("rdmsr" : "=a" (low), "=d" (high) : "c" (msr) : "memory");
	return low | (u64)high << 32;
}

/* Nobody is there to tell: stay where the test can see it. */
_Noreturn static inline void stop(void)
{
	for (;;)
		halt(1);
}

void payload_main(u64 index, u64 rcx);

#endif
