/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What a VMM has to know of the firmware (TDX Virtual Firmware Design Guide): which of the TD's memory exists
 * before it runs, and what of that is measured.
 */
#include "layout.h"

#define BOOT_FIRMWARE_VOLUME	0
#define TD_HOB			2
#define TEMPORARY_MEMORY	3
#define MEASURED		1

	.macro	section offset raw address size type attributes
	.long	\offset, \raw
	.quad	\address, \size
	.long	\type, \attributes
	.endm

	.section .rodata.metadata, "a"
	.balign	16
	.globl	metadata
metadata:
	.ascii	"TDVF"
	.long	metadata_end - metadata
	.long	1				/* version */
	.long	3				/* sections */
	section	0, firmware_size, FIRMWARE_GPA, firmware_size, BOOT_FIRMWARE_VOLUME, MEASURED
	section	0, 0, HOB_GPA, HOB_SIZE, TD_HOB, 0
	section	0, 0, MAILBOX_GPA, MAILBOX_SIZE, TEMPORARY_MEMORY, 0
metadata_end:

/* A table of GUIDs that is read from its end, 32 bytes before that of the firmware */
	.section .guids, "a"
guids:
	.long	metadata_distance
	.word	4 + 2 + 16
	.long	0xe47a6535			/* e47a6535-984a-4798-865e-4685a7bf8ec2: offset of the metadata */
	.word	0x984a, 0x4798
	.byte	0x86, 0x5e, 0x46, 0x85, 0xa7, 0xbf, 0x8e, 0xc2
	.word	guids_end - guids
	.long	0x96b582de			/* 96b582de-1fb2-45f7-baea-a366c55a082d: the table */
	.word	0x1fb2, 0x45f7
	.byte	0xba, 0xea, 0xa3, 0x66, 0xc5, 0x5a, 0x08, 0x2d
guids_end:
