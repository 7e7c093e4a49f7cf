/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The VMCB (AMD64 APM volume 2, appendix B), as far as TDs need it.  Defined
 * here because the kernel's own names for it change between releases.
 */
#ifndef SOFTSEAM_VMCB_H
#define SOFTSEAM_VMCB_H

#include <linux/bits.h>
#include <linux/build_bug.h>
#include <linux/stddef.h>
#include <linux/types.h>

#define SEG_LONG	BIT(9)		/* CS.L in the packed attributes */

struct vmcb_segment {
	u16 selector;
	u16 attrib;
	u32 limit;
	u64 base;
};

struct seam_vmcb {
	u32 intercept_cr;
	u32 intercept_dr;
	u32 intercept_exceptions;
	u32 intercept_misc1;
	u32 intercept_misc2;
	u8 pad0[0x40 - 0x14];
	u64 iopm_pa;
	u64 msrpm_pa;
	u64 tsc_offset;
	u32 asid;
	u8 tlb_control;
	u8 pad1[3];
	u32 int_control;
	u32 int_vector;
	u64 int_state;
	u64 exit_code;
	u64 exit_info1;
	u64 exit_info2;
	u64 exit_int_info;
	u64 nested_control;
	u8 pad2[0xa8 - 0x98];
	u64 event_inject;
	u64 nested_cr3;
	u8 pad3[0x400 - 0xb8];
	struct vmcb_segment es, cs, ss, ds, fs, gs, gdtr, ldtr, idtr, tr;
	u8 pad4[0x4cb - 0x4a0];
	u8 cpl;
	u32 pad5;
	u64 efer;
	u8 pad6[0x548 - 0x4d8];
	u64 cr4;
	u64 cr3;
	u64 cr0;
	u64 dr7;
	u64 dr6;
	u64 rflags;
	u64 rip;
	u8 pad7[0x5d8 - 0x580];
	u64 rsp;
	u8 pad8[0x5f8 - 0x5e0];
	u64 rax;
	u64 star, lstar, cstar, sfmask, kernel_gs_base;
	u64 sysenter_cs, sysenter_esp, sysenter_eip;
	u64 cr2;
	u8 pad9[0x668 - 0x648];
	u64 pat;
	u8 pad10[0x1000 - 0x670];
};

static_assert(sizeof(struct vmcb_segment) == 16);
static_assert(sizeof(struct seam_vmcb) == 4096);
static_assert(offsetof(struct seam_vmcb, exit_code) == 0x70);
static_assert(offsetof(struct seam_vmcb, nested_control) == 0x90);
static_assert(offsetof(struct seam_vmcb, nested_cr3) == 0xb0);
static_assert(offsetof(struct seam_vmcb, es) == 0x400);
static_assert(offsetof(struct seam_vmcb, cpl) == 0x4cb);
static_assert(offsetof(struct seam_vmcb, efer) == 0x4d0);
static_assert(offsetof(struct seam_vmcb, cr4) == 0x548);
static_assert(offsetof(struct seam_vmcb, rip) == 0x578);
static_assert(offsetof(struct seam_vmcb, rax) == 0x5f8);
static_assert(offsetof(struct seam_vmcb, cr2) == 0x640);
static_assert(offsetof(struct seam_vmcb, pat) == 0x668);

/* intercept_misc1 */
#define ICPT_INTR		BIT(0)
#define ICPT_NMI		BIT(1)
#define ICPT_VINTR		BIT(4)
#define ICPT_RDTSC		BIT(14)
#define ICPT_RDPMC		BIT(15)
#define ICPT_CPUID		BIT(18)
#define ICPT_IRET		BIT(20)
#define ICPT_INVD		BIT(22)
#define ICPT_HLT		BIT(24)
#define ICPT_INVLPGA		BIT(26)
#define ICPT_IOIO		BIT(27)
#define ICPT_MSR		BIT(28)
#define ICPT_SHUTDOWN		BIT(31)
/* intercept_misc2: VMRUN is mandatory, the rest are not for a TD to execute */
#define ICPT2_SVM		GENMASK(6, 0)
#define ICPT2_RDTSCP		BIT(7)
#define ICPT2_WBINVD		BIT(9)
#define ICPT2_MONITOR		BIT(10)
#define ICPT2_MWAIT		BIT(11)
#define ICPT2_XSETBV		BIT(13)
/* intercept_cr */
#define ICPT_CR_READ(n)		BIT(n)
#define ICPT_CR_WRITE(n)	BIT(16 + (n))

#define INT_CTL_V_TPR		GENMASK(7, 0)
#define INT_CTL_V_IRQ		BIT(8)
#define INT_CTL_V_IGN_TPR	BIT(20)
#define INT_CTL_V_INTR_MASKING	BIT(24)
#define INT_STATE_SHADOW	BIT_ULL(0)

#define EVENT_INTR		0
#define EVENT_NMI		(2 << 8)
#define EVENT_EXCEPTION		(3 << 8)
#define EVENT_HAS_ERROR		BIT(11)
#define EVENT_VALID		BIT(31)

#define SVM_EXIT_CR_READ(n)	(n)
#define SVM_EXIT_CR_WRITE(n)	(0x10 + (n))
#define SVM_EXIT_EXC(n)		(0x40 + (n))
#define SVM_EXIT_PHYS_INTR	0x60
#define SVM_EXIT_PHYS_NMI	0x61
#define SVM_EXIT_VIRT_INTR	0x64
#define SVM_EXIT_RDTSC_INSN	0x6e
#define SVM_EXIT_RDPMC_INSN	0x6f
#define SVM_EXIT_CPUID_INSN	0x72
#define SVM_EXIT_IRET_INSN	0x74
#define SVM_EXIT_INVD_INSN	0x76
#define SVM_EXIT_HLT_INSN	0x78
#define SVM_EXIT_INVLPGA_INSN	0x7a
#define SVM_EXIT_IO_INSN	0x7b
#define SVM_EXIT_MSR_INSN	0x7c
#define SVM_EXIT_SHUTDOWN_EVT	0x7f
#define SVM_EXIT_VMRUN_INSN	0x80
#define SVM_EXIT_SKINIT_INSN	0x86
#define SVM_EXIT_RDTSCP_INSN	0x87
#define SVM_EXIT_WBINVD_INSN	0x89
#define SVM_EXIT_MONITOR_INSN	0x8a
#define SVM_EXIT_MWAIT_INSN	0x8b
#define SVM_EXIT_XSETBV_INSN	0x8d
#define SVM_EXIT_NESTED_PF	0x400

/* exit_info1 of a nested page fault */
#define NPF_PRESENT		BIT_ULL(0)
#define NPF_WRITE		BIT_ULL(1)
#define NPF_FETCH		BIT_ULL(4)
#define NPF_TABLE_WALK		BIT_ULL(33)

#endif
