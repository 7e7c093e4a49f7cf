/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * From the reset vector, 32-bit and without paging, to payload_main(index, rcx) in 64-bit mode.
 *
 * Virtual memory: [0, 4 GiB) is private memory at the same address; from 512 GiB on the same 4 GiB once
 * more, as shared memory (GPA bit 47).
 */
#define STACK_SHIFT	11
#define MAX_VCPUS	8

	.section .reset, "ax"
	.code32
	.globl reset
reset:
	jmp	start32

	.section .text.start, "ax"
	.code32
start32:
	movl	$pml4, %eax
	movl	%eax, %cr3
	movl	%cr4, %eax
	orl	$(1 << 5), %eax			/* PAE; EFER.LME is set at reset */
	movl	%eax, %cr4
	lgdtl	gdt_pointer
	movl	%cr0, %eax
	orl	$(1 << 31), %eax
	movl	%eax, %cr0
	ljmpl	$8, $start64

	.code64
start64:
	movl	$16, %eax
	movl	%eax, %ds
	movl	%eax, %es
	movl	%eax, %ss
	movl	%esi, %edi			/* the vCPU's index */
	leal	1(%rsi), %eax
	shll	$STACK_SHIFT, %eax
	movl	$stacks, %esp
	addq	%rax, %rsp
	movq	%r8, %rsi			/* what KVM_TDX_INIT_VCPU gave */
	xorl	%ebp, %ebp
	call	payload_main
1:
	ud2
	jmp	1b

	.section .data.tables, "aw"
	.balign	4096
pml4:
	.quad	pdpt_private + 3
	.quad	pdpt_shared + 3
	.fill	510, 8, 0
pdpt_private:
	.set	n, 0
	.rept	4
	.quad	(n << 30) | 0x83
	.set	n, n + 1
	.endr
	.fill	508, 8, 0
pdpt_shared:
	.set	n, 0
	.rept	4
	.quad	(1 << 47) | (n << 30) | 0x83
	.set	n, n + 1
	.endr
	.fill	508, 8, 0
stacks:
	.fill	MAX_VCPUS << STACK_SHIFT, 1, 0

	.balign	8
gdt:
	.quad	0
	.quad	0x00af9b000000ffff		/* 64-bit code */
	.quad	0x00cf93000000ffff		/* data */
gdt_pointer:
	.word	gdt_pointer - gdt - 1
	.long	gdt
