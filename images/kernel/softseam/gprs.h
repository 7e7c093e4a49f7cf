/* SPDX-License-Identifier: GPL-2.0-only */
/* A guest's general registers other than RAX and RSP, which the VMCB contains. */
#ifndef SOFTSEAM_GPRS_H
#define SOFTSEAM_GPRS_H

#define GPRS_RCX	0
#define GPRS_RDX	8
#define GPRS_RBX	16
#define GPRS_RBP	24
#define GPRS_RSI	32
#define GPRS_RDI	40
#define GPRS_R8		48
#define GPRS_R9		56
#define GPRS_R10	64
#define GPRS_R11	72
#define GPRS_R12	80
#define GPRS_R13	88
#define GPRS_R14	96
#define GPRS_R15	104

#ifndef __ASSEMBLER__
#include <linux/build_bug.h>
#include <linux/stddef.h>
#include <linux/types.h>

struct seam_gprs {
	u64 rcx, rdx, rbx, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15;
};

static_assert(offsetof(struct seam_gprs, rcx) == GPRS_RCX);
static_assert(offsetof(struct seam_gprs, rdx) == GPRS_RDX);
static_assert(offsetof(struct seam_gprs, rbx) == GPRS_RBX);
static_assert(offsetof(struct seam_gprs, rbp) == GPRS_RBP);
static_assert(offsetof(struct seam_gprs, rsi) == GPRS_RSI);
static_assert(offsetof(struct seam_gprs, rdi) == GPRS_RDI);
static_assert(offsetof(struct seam_gprs, r8) == GPRS_R8);
static_assert(offsetof(struct seam_gprs, r9) == GPRS_R9);
static_assert(offsetof(struct seam_gprs, r10) == GPRS_R10);
static_assert(offsetof(struct seam_gprs, r11) == GPRS_R11);
static_assert(offsetof(struct seam_gprs, r12) == GPRS_R12);
static_assert(offsetof(struct seam_gprs, r13) == GPRS_R13);
static_assert(offsetof(struct seam_gprs, r14) == GPRS_R14);
static_assert(offsetof(struct seam_gprs, r15) == GPRS_R15);
#endif

#endif
