/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef SOFTSEAM_ENTER_H
#define SOFTSEAM_ENTER_H

#include <linux/ptrace.h>
#include <linux/types.h>

u64 leaf_vp_enter(struct pt_regs *regs);

#endif
