// SPDX-License-Identifier: GPL-2.0-or-later
/* From the reset of a TD that QEMU made to the kernel of its -kernel. */
#include "acpi.h"
#include "chipset.h"
#include "fw_cfg.h"
#include "layout.h"
#include "linux.h"
#include "memory.h"

_Noreturn void enter_kernel(u64 entry, struct boot_params *params);
_Noreturn void firmware_main(void);

_Noreturn void firmware_main(void)
{
	struct boot_params *params;
	u64 entry;

	memory_init();
	chipset_init();
	fw_cfg_begin();
	entry = linux_load(&params);
	linux_set_rsdp(params, acpi_install());
	fw_cfg_end();
	memory_accept(SHARED_BUFFER_GPA, SHARED_BUFFER_GPA + SHARED_BUFFER_SIZE);
	if (!linux_accepts_memory(params))
		memory_accept_all();
	print("firmware: starting the kernel\r\n");
	enter_kernel(entry, params);
}
