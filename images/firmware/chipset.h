/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What a firmware sets in QEMU's q35 before its ACPI tables are made.  BARs are left to the kernel, and there is no
 * memory-mapped configuration space: with it Linux looks for devices on all of its 256 buses, each look an exit.
 */
#ifndef CHIPSET_H
#define CHIPSET_H

void chipset_init(void);

#endif
