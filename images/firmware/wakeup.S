/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Where every vCPU but the first waits until the kernel names it in the mailbox (ACPI 6.4, 5.2.12.19).  A timer
 * wakes it a hundred times a second to look: a vCPU that spins would take its CPU from those that boot.
 *
 * There may be any number of vCPUs, so they have no memory of their own.  They share a stack: what an interrupt
 * leaves there is not used.
 */
#include "layout.h"

#define MAILBOX_COMMAND	0
#define MAILBOX_APIC_ID	4
#define MAILBOX_VECTOR	8
#define COMMAND_NOOP	0
#define COMMAND_WAKE_UP	1

#define TDVMCALL_CPUID	10
#define TDVMCALL_HLT	12
#define TDVMCALL_WRMSR	32
#define TDVMCALL_MASK	0xfc00			/* R10 to R15 */
#define CPUID_TOPOLOGY	0xb			/* EDX: x2APIC id */

#define X2APIC_EOI	0x80b
#define X2APIC_SPIV	0x80f
#define SPIV_AT_RESET	0xff
#define SPIV_ENABLED	0x1ff
#define X2APIC_TIMER	0x832
#define TIMER_MASKED	0x10000
#define TIMER_PERIODIC	0x20000
#define X2APIC_COUNT	0x838
#define COUNT_10_MS	250000			/* at the 25 MHz of a TD's APIC */
#define X2APIC_DIVIDE	0x83e
#define DIVIDE_BY_1	0xb

#define VECTOR		0x20
#define GATE		0x8e00			/* present, interrupt gate */
#define CODE		0x10

	.macro	tdvmcall
	xorl	%r10d, %r10d
	xorl	%eax, %eax			/* TDG.VP.VMCALL */
	movl	$TDVMCALL_MASK, %ecx
	.byte	0x66, 0x0f, 0x01, 0xcc
	.endm

	.macro	write_apic register value
	movl	$TDVMCALL_WRMSR, %r11d
	movl	$\register, %r12d
	movl	$\value, %r13d
	tdvmcall
	.endm

	.text
	.code64
	.globl	await_kernel
await_kernel:
	movl	$stack_end, %esp
	leaq	timer(%rip), %rax
	movw	%ax, gate(%rip)			/* all write the same */
	shrl	$16, %eax
	movw	%ax, gate + 6(%rip)
	lidt	idt_pointer(%rip)
	movl	$TDVMCALL_CPUID, %r11d
	movl	$CPUID_TOPOLOGY, %r12d
	xorl	%r13d, %r13d
	tdvmcall
	movl	%r15d, %ebx
	movl	$MAILBOX_GPA, %edi
	write_apic X2APIC_SPIV, SPIV_ENABLED
	write_apic X2APIC_DIVIDE, DIVIDE_BY_1
	write_apic X2APIC_TIMER, TIMER_PERIODIC | VECTOR
	write_apic X2APIC_COUNT, COUNT_10_MS
look:
	cmpw	$COMMAND_WAKE_UP, MAILBOX_COMMAND(%rdi)
	jne	sleep
	cmpl	%ebx, MAILBOX_APIC_ID(%rdi)
	je	wake_up
sleep:
	movl	$TDVMCALL_HLT, %r11d
	xorl	%r12d, %r12d			/* interrupts are not blocked */
	xorl	%r10d, %r10d
	xorl	%eax, %eax
	movl	$TDVMCALL_MASK, %ecx
	sti
	.byte	0x66, 0x0f, 0x01, 0xcc
	cli
	jmp	look

timer:
	movl	$stack_end, %esp
	movl	$X2APIC_EOI, %ecx
	xorl	%eax, %eax
	xorl	%edx, %edx
	wrmsr
	jmp	look

wake_up:
	write_apic X2APIC_TIMER, TIMER_MASKED
	/* An interrupt that is pending comes now, and not to the kernel. */
	sti
	nop
	cli
	write_apic X2APIC_SPIV, SPIV_AT_RESET
	movq	MAILBOX_VECTOR(%rdi), %rax
	movw	$COMMAND_NOOP, MAILBOX_COMMAND(%rdi)
	jmp	*%rax

	.section .data.wakeup, "aw"
	.balign	16
idt:
	.fill	2 * VECTOR, 8, 0
gate:
	.word	0, CODE, GATE, 0
	.quad	0
idt_end:
idt_pointer:
	.word	idt_end - idt - 1
	.quad	idt

	.section .bss.wakeup, "aw", @nobits
	.balign	16
	.fill	64, 1, 0
stack_end:
