/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What a firmware sets in QEMU's q35 before its ACPI tables are made; BARs are left to the kernel. */
#ifndef CHIPSET_H
#define CHIPSET_H

/* Above all memory below 4 GiB that q35 has */
#define MMCONFIG_GPA	0xb0000000
#define MMCONFIG_SIZE	0x10000000

void chipset_init(void);

#endif
