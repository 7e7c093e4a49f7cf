/* SPDX-License-Identifier: GPL-2.0-only */
#include <linux/linkage.h>
#include <linux/objtool.h>

#include "gprs.h"

	.text

/*
 * void seam_vmrun(u64 guest_vmcb_pa, u64 host_vmcb_pa, struct seam_gprs *gprs)
 *
 * Called with interrupts off.  STI between CLGI and VMRUN, where none can be
 * taken, lets a pending one make the CPU exit from the guest whatever the
 * guest's own RFLAGS.IF is.
 */
SYM_FUNC_START(seam_vmrun)
	push	%rbp
	push	%rbx
	push	%r12
	push	%r13
	push	%r14
	push	%r15
	push	%rdx
	push	%rsi
	push	%rdi

	clgi
	sti
	mov	%rsi, %rax
	vmsave	%rax
	mov	(%rsp), %rax
	vmload	%rax

	mov	GPRS_RCX(%rdx), %rcx
	mov	GPRS_RBX(%rdx), %rbx
	mov	GPRS_RBP(%rdx), %rbp
	mov	GPRS_RSI(%rdx), %rsi
	mov	GPRS_RDI(%rdx), %rdi
	mov	GPRS_R8(%rdx), %r8
	mov	GPRS_R9(%rdx), %r9
	mov	GPRS_R10(%rdx), %r10
	mov	GPRS_R11(%rdx), %r11
	mov	GPRS_R12(%rdx), %r12
	mov	GPRS_R13(%rdx), %r13
	mov	GPRS_R14(%rdx), %r14
	mov	GPRS_R15(%rdx), %r15
	mov	GPRS_RDX(%rdx), %rdx

	vmrun	%rax
	vmsave	%rax

	mov	16(%rsp), %rax
	mov	%rcx, GPRS_RCX(%rax)
	mov	%rdx, GPRS_RDX(%rax)
	mov	%rbx, GPRS_RBX(%rax)
	mov	%rbp, GPRS_RBP(%rax)
	mov	%rsi, GPRS_RSI(%rax)
	mov	%rdi, GPRS_RDI(%rax)
	mov	%r8, GPRS_R8(%rax)
	mov	%r9, GPRS_R9(%rax)
	mov	%r10, GPRS_R10(%rax)
	mov	%r11, GPRS_R11(%rax)
	mov	%r12, GPRS_R12(%rax)
	mov	%r13, GPRS_R13(%rax)
	mov	%r14, GPRS_R14(%rax)
	mov	%r15, GPRS_R15(%rax)

	mov	8(%rsp), %rax
	vmload	%rax
	cli
	stgi

	add	$24, %rsp
	pop	%r15
	pop	%r14
	pop	%r13
	pop	%r12
	pop	%rbx
	pop	%rbp
	RET
SYM_FUNC_END(seam_vmrun)
STACK_FRAME_NON_STANDARD seam_vmrun
