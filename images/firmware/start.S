/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * From the reset vector, 32-bit and without paging: vCPU 0 to firmware_main() in 64-bit mode, every other
 * to await_kernel (wakeup.S).
 *
 * Virtual memory: [0, 4 GiB) is private memory at the same address; from 512 GiB on the same 4 GiB once
 * more, as shared memory.  The tables stay valid while vCPUs wait: they are in the firmware's own memory.
 */
#define STACK_SIZE	0x2000

	.section .reset, "ax"
	.code32
	.globl	reset
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
	ljmpl	$0x10, $start64

	.code64
start64:
	movl	$0x18, %eax
	movl	%eax, %ds
	movl	%eax, %es
	movl	%eax, %ss
	testl	%esi, %esi			/* the vCPU's index */
	jnz	await_kernel
	movl	$stack_end, %esp
	xorl	%ebp, %ebp
	call	firmware_main

/* void enter_kernel(u64 entry, struct boot_params *params) */
	.text
	.globl	enter_kernel
enter_kernel:
	movq	%rdi, %rax
	xorl	%ebp, %ebp
	xorl	%edi, %edi
	xorl	%ebx, %ebx
	jmp	*%rax

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
/* Filled once the width of an address is known. */
	.globl	pdpt_shared
pdpt_shared:
	.fill	512, 8, 0

/* Selectors as Linux's boot protocol wants them: 0x10 code, 0x18 data */
	.balign	8
gdt:
	.quad	0, 0
	.quad	0x00af9b000000ffff
	.quad	0x00cf93000000ffff
gdt_pointer:
	.word	gdt_pointer - gdt - 1
	.long	gdt

	.section .bss.stack, "aw", @nobits
	.balign	16
stack:
	.fill	STACK_SIZE, 1, 0
stack_end:
