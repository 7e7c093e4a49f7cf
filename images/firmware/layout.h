/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Guest-physical addresses that the firmware uses, in C, assembler and the linker's script. */
#ifndef LAYOUT_H
#define LAYOUT_H

/* The firmware itself, up to 4 GiB */
#define FIRMWARE_GPA	0xffff0000

/* Below the BIOS's area: what the kernel copies or reserves before it uses this memory for itself */
#define SETUP_GPA	0x2000
#define SETUP_MAX	0xe000
#define PARAMS_GPA	0x10000
#define EFI_GPA		0x11000
#define EFI_END		0x20000
#define CMDLINE_GPA	0x20000
#define CMDLINE_MAX	0x10000
#define UNACCEPTED_GPA	0x30000
#define LOW_END		0xa0000

/* The VMM's list of memory, the mailbox of the vCPUs that wait for the kernel, and the log of measurements */
#define HOB_GPA		0x100000
#define HOB_SIZE	0x2000
#define MAILBOX_GPA	0x102000
#define MAILBOX_SIZE	0x1000
#define LOG_GPA		0x103000
#define LOG_SIZE	0xd000
#define KEPT_END	0x110000

/* ACPI tables */
#define ACPI_GPA	0x110000
#define ACPI_END	0x200000

/* Shared with the VMM while the firmware reads from it */
#define SHARED_BUFFER_GPA	0x200000
#define SHARED_BUFFER_SIZE	0x200000

#endif
