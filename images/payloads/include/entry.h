/* SPDX-License-Identifier: GPL-2.0-or-later */
/* An entry from the IDT that calls a C function with the interrupt's frame; for vectors without an error code. */
	.macro	entry name handler
	.globl	\name
\name:
	pushq	%rax
	pushq	%rcx
	pushq	%rdx
	pushq	%rsi
	pushq	%rdi
	pushq	%r8
	pushq	%r9
	pushq	%r10
	pushq	%r11
	leaq	72(%rsp), %rdi			/* RIP, CS, RFLAGS, RSP, SS */
	call	\handler
	popq	%r11
	popq	%r10
	popq	%r9
	popq	%r8
	popq	%rdi
	popq	%rsi
	popq	%rdx
	popq	%rcx
	popq	%rax
	iretq
	.endm
