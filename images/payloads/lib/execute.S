/* SPDX-License-Identifier: GPL-2.0-or-later */
/* For the payload `execute`: code with chosen registers, and entries that end it. */
#define CODE_MAX	16

	.macro	for_each_register what
	\what	%rax, 0
	\what	%rcx, 8
	\what	%rdx, 16
	\what	%rbx, 24
	\what	%rbp, 32
	\what	%rsi, 40
	\what	%rdi, 48
	\what	%r8, 56
	\what	%r9, 64
	\what	%r10, 72
	\what	%r11, 80
	\what	%r12, 88
	\what	%r13, 96
	\what	%r14, 104
	\what	%r15, 112
	.endm
	.macro	load register offset
	movq	execute_registers+\offset(%rip), \register
	.endm
	.macro	store register offset
	movq	\register, execute_registers+\offset(%rip)
	.endm

	.text
	.code64
	.globl	execute
	.hidden	execute
execute:
	pushq	%rbx
	pushq	%rbp
	pushq	%r12
	pushq	%r13
	pushq	%r14
	pushq	%r15
	movq	%rsp, stack(%rip)
	for_each_register load
	jmp	execute_code
done:
	for_each_register store
	movq	stack(%rip), %rsp
	popq	%r15
	popq	%r14
	popq	%r13
	popq	%r12
	popq	%rbp
	popq	%rbx
	ret

/* 16 bytes each.  The CPU has pushed an error code for some vectors; the others push a 0. */
	.balign	16
	.globl	execute_entries
	.hidden	execute_entries
execute_entries:
	.set	vector, 0
	.rept	32
	.balign	16
	.if	!((0x60227d00 >> vector) & 1)
	pushq	$0
	.endif
	pushq	$vector
	jmp	exception
	.set	vector, vector + 1
	.endr
	.balign	16

/* On the stack: vector, error code, RIP, CS, RFLAGS, RSP, SS */
exception:
	popq	execute_vector(%rip)
	popq	execute_error(%rip)
	popq	execute_rip(%rip)
	jmp	done

	.section .data.execute, "awx"
	.balign	16
	.globl	execute_code
	.hidden	execute_code
execute_code:
	.fill	CODE_MAX, 1, 0x90
	jmp	done

	.section .bss.execute, "aw", @nobits
	.balign	8
	.globl	execute_registers, execute_vector, execute_error, execute_rip
	.hidden	execute_registers, execute_vector, execute_error, execute_rip
execute_registers:
	.fill	15, 8, 0
execute_vector:
	.quad	0
execute_error:
	.quad	0
execute_rip:
	.quad	0
stack:
	.quad	0
