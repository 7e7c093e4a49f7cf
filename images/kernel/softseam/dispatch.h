/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef SOFTSEAM_DISPATCH_H
#define SOFTSEAM_DISPATCH_H

#include <linux/ptrace.h>
#include <linux/types.h>

u64 seam_dispatch(struct pt_regs *regs);

#endif
