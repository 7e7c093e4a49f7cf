// SPDX-License-Identifier: GPL-2.0-or-later
#include "chipset.h"
#include "lib.h"

#define PORT_ADDRESS	0xcf8
#define PORT_DATA	0xcfc
#define ENABLE		(1U << 31)
#define DEVICE(n)	((u32)(n) << 11)

#define ISA_BRIDGE	DEVICE(0x1f)
#define PMBASE		0x40
#define PMBASE_IO	1
#define ACPI_CONTROL	0x44
#define ACPI_ENABLE	0x80
#define PM_PORT		0x600

static void write_config(u32 device, u32 offset, u32 value)
{
	io(PORT_ADDRESS, 4, 1, ENABLE | device | offset);
	io(PORT_DATA, 4, 1, value);
}

void chipset_init(void)
{
	write_config(ISA_BRIDGE, PMBASE, PM_PORT | PMBASE_IO);
	write_config(ISA_BRIDGE, ACPI_CONTROL, ACPI_ENABLE);
}
