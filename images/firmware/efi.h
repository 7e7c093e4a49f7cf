/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The little of EFI that Linux wants to see before it accepts memory by itself: a system table with a table of
 * unaccepted memory, and a memory map.  There are no services.
 */
#ifndef EFI_H
#define EFI_H

#include "lib.h"

/* Has the kernel ask for no services. */
#define EFI_CMDLINE	"efi=noruntime"

enum efi_memory { EFI_RESERVED = 0, EFI_CONVENTIONAL = 7, EFI_ACPI = 9, EFI_NVS = 10 };

/* struct efi_info of Linux's boot parameters */
struct efi_info {
	u32 signature, system_table, descriptor_size, descriptor_version;
	u32 memory_map, memory_map_size, system_table_high, memory_map_high;
} __attribute__((packed));

/* Makes a system table with one table. */
void efi_init(struct efi_info *info, u64 unaccepted);
/* Adds a range to the memory map. */
void efi_add(struct efi_info *info, u64 start, u64 size, enum efi_memory type);

#endif
