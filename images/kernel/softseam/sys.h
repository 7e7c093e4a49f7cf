/* SPDX-License-Identifier: GPL-2.0-only */
/* The module as a whole. */
#ifndef SOFTSEAM_SYS_H
#define SOFTSEAM_SYS_H

#include <linux/ptrace.h>
#include <linux/types.h>

/* The first version whose ABI has all that Linux 7.3 requires is 1.5.05. */
#define SEAM_VERSION_MAJOR	1
#define SEAM_VERSION_MINOR	5
#define SEAM_VERSION_UPDATE	24

enum seam_sys_state {
	SYS_INIT_PENDING, SYS_INIT_DONE, SYS_CONFIG_DONE, SYS_READY,
	SYS_SHUTDOWN_DONE,
};

extern enum seam_sys_state seam_sys_state;

bool sys_field(u64 field, u64 *val);
u64 leaf_sys_init(struct pt_regs *regs);
u64 leaf_sys_lp_init(struct pt_regs *regs);
u64 leaf_sys_rd(struct pt_regs *regs);
u64 leaf_sys_config(struct pt_regs *regs);
u64 leaf_sys_key_config(struct pt_regs *regs);
u64 leaf_sys_tdmr_init(struct pt_regs *regs);
u64 leaf_sys_shutdown(struct pt_regs *regs);

#endif
