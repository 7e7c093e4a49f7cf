/* SPDX-License-Identifier: GPL-2.0-or-later */
#define VMCALL_MASK	0xffcc			/* all registers that may pass */

	.text
	.code64
/* u64 vmcall_all(u64 registers[12]): R10 to R15, RBX, RDI, RSI, R8, R9, RDX, both ways; returns RAX */
	.globl	vmcall_all
	.hidden	vmcall_all
vmcall_all:
	pushq	%rbx
	pushq	%r12
	pushq	%r13
	pushq	%r14
	pushq	%r15
	pushq	%rdi
	movq	%rdi, %rax
	movq	(%rax), %r10
	movq	8(%rax), %r11
	movq	16(%rax), %r12
	movq	24(%rax), %r13
	movq	32(%rax), %r14
	movq	40(%rax), %r15
	movq	48(%rax), %rbx
	movq	56(%rax), %rdi
	movq	64(%rax), %rsi
	movq	72(%rax), %r8
	movq	80(%rax), %r9
	movq	88(%rax), %rdx
	xorl	%eax, %eax			/* TDG.VP.VMCALL */
	movl	$VMCALL_MASK, %ecx
	.byte	0x66, 0x0f, 0x01, 0xcc
	popq	%rcx
	movq	%r10, (%rcx)
	movq	%r11, 8(%rcx)
	movq	%r12, 16(%rcx)
	movq	%r13, 24(%rcx)
	movq	%r14, 32(%rcx)
	movq	%r15, 40(%rcx)
	movq	%rbx, 48(%rcx)
	movq	%rdi, 56(%rcx)
	movq	%rsi, 64(%rcx)
	movq	%r8, 72(%rcx)
	movq	%r9, 80(%rcx)
	movq	%rdx, 88(%rcx)
	popq	%r15
	popq	%r14
	popq	%r13
	popq	%r12
	popq	%rbx
	ret
