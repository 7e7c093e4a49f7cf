/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef SOFTSEAM_MNG_H
#define SOFTSEAM_MNG_H

#include <linux/ptrace.h>
#include <linux/types.h>

u64 leaf_mng_create(struct pt_regs *regs);
u64 leaf_mng_key_config(struct pt_regs *regs);
u64 leaf_mng_addcx(struct pt_regs *regs);
u64 leaf_mng_init(struct pt_regs *regs);
u64 leaf_mng_rd(struct pt_regs *regs);
u64 leaf_mr_extend(struct pt_regs *regs);
u64 leaf_mr_finalize(struct pt_regs *regs);
u64 leaf_mng_vpflushdone(struct pt_regs *regs);
u64 leaf_mng_key_freeid(struct pt_regs *regs);

#endif
