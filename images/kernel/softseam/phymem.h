/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef SOFTSEAM_PHYMEM_H
#define SOFTSEAM_PHYMEM_H

#include <linux/ptrace.h>
#include <linux/types.h>

u64 leaf_phymem_page_rdmd(struct pt_regs *regs);
u64 leaf_phymem_page_reclaim(struct pt_regs *regs);
u64 leaf_phymem_page_wbinvd(struct pt_regs *regs);

#endif
