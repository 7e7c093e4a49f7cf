/* SPDX-License-Identifier: GPL-2.0-or-later */
/* ACPI tables: QEMU's, and what a TD needs besides. */
#ifndef ACPI_H
#define ACPI_H

#include "lib.h"

/*
 * Installs QEMU's tables, with the mailbox for vCPUs that wait and the log of measurements; returns the address
 * of the RSDP.
 */
u64 acpi_install(void);

#endif
