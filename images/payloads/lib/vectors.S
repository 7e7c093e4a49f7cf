/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Entries for the vectors 32 to 255, 16 bytes each, which call payload_vector(vector). */
	.text
	.code64
	.balign	16
	.globl	vector_entries
	.hidden	vector_entries
vector_entries:
	.set	vector, 32
	.rept	224
	.balign	16
	pushq	$vector
	jmp	save
	.set	vector, vector + 1
	.endr
	.balign	16
save:
	pushq	%rax
	pushq	%rcx
	pushq	%rdx
	pushq	%rsi
	pushq	%rdi
	pushq	%r8
	pushq	%r9
	pushq	%r10
	pushq	%r11
	movq	72(%rsp), %rdi
	call	payload_vector
	popq	%r11
	popq	%r10
	popq	%r9
	popq	%r8
	popq	%rdi
	popq	%rsi
	popq	%rdx
	popq	%rcx
	popq	%rax
	addq	$8, %rsp
	iretq
