/* SPDX-License-Identifier: GPL-2.0-only */
#include <linux/linkage.h>
#include <linux/objtool.h>

	.text

/*
 * void seam_vmrun(u64 guest_vmcb_pa, u64 host_vmcb_pa, struct seam_gprs *gprs)
 *
 * Called with interrupts off.  They are enabled between CLGI and VMRUN, where
 * none can arrive, so that one that is pending makes the CPU leave the guest
 * whatever the guest's own RFLAGS.IF says.
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

	mov	0(%rdx), %rcx
	mov	16(%rdx), %rbx
	mov	24(%rdx), %rbp
	mov	32(%rdx), %rsi
	mov	40(%rdx), %rdi
	mov	48(%rdx), %r8
	mov	56(%rdx), %r9
	mov	64(%rdx), %r10
	mov	72(%rdx), %r11
	mov	80(%rdx), %r12
	mov	88(%rdx), %r13
	mov	96(%rdx), %r14
	mov	104(%rdx), %r15
	mov	8(%rdx), %rdx

	vmrun	%rax
	vmsave	%rax

	mov	16(%rsp), %rax
	mov	%rcx, 0(%rax)
	mov	%rdx, 8(%rax)
	mov	%rbx, 16(%rax)
	mov	%rbp, 24(%rax)
	mov	%rsi, 32(%rax)
	mov	%rdi, 40(%rax)
	mov	%r8, 48(%rax)
	mov	%r9, 56(%rax)
	mov	%r10, 64(%rax)
	mov	%r11, 72(%rax)
	mov	%r12, 80(%rax)
	mov	%r13, 88(%rax)
	mov	%r14, 96(%rax)
	mov	%r15, 104(%rax)

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
