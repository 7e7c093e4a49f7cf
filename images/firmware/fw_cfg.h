/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What QEMU hands to its firmware (QEMU's docs/specs/fw_cfg.rst). */
#ifndef FW_CFG_H
#define FW_CFG_H

#include "lib.h"

#define FW_CFG_KERNEL_SIZE	0x08
#define FW_CFG_INITRD_SIZE	0x0b
#define FW_CFG_KERNEL_DATA	0x11
#define FW_CFG_INITRD_DATA	0x12
#define FW_CFG_CMDLINE_SIZE	0x14
#define FW_CFG_CMDLINE_DATA	0x15
#define FW_CFG_SETUP_SIZE	0x17
#define FW_CFG_SETUP_DATA	0x18

#define FW_CFG_NAME_SIZE	56

struct fw_cfg_file {
	u32 size;
	u16 key;
};

/* Shares the buffer with the VMM; read and write need it. */
void fw_cfg_begin(void);
/* Makes the buffer private again; it has to be accepted. */
void fw_cfg_end(void);
void fw_cfg_read(u16 key, void *to, u64 size);
void fw_cfg_write(u16 key, u32 offset, const void *from, u64 size);
u32 fw_cfg_read_u32(u16 key);
bool fw_cfg_find(const char *name, struct fw_cfg_file *file);

#endif
