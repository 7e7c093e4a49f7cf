/* SPDX-License-Identifier: GPL-2.0-only */
/* Faults on request, and errors by code. */
#ifndef SOFTSEAM_INJECT_H
#define SOFTSEAM_INJECT_H

#include <linux/seq_file.h>
#include <linux/types.h>

bool seam_injected(unsigned int leaf, u64 *code);
int seam_inject_arm(unsigned int leaf, u32 nth, u32 count, u64 code);
void seam_inject_clear(void);
void seam_inject_show(struct seq_file *m);
void seam_errors_count(unsigned int leaf, u64 code);
void seam_errors_show(struct seq_file *m);

#endif
