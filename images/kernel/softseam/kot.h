/* SPDX-License-Identifier: GPL-2.0-only */
/* The key ownership table. */
#ifndef SOFTSEAM_KOT_H
#define SOFTSEAM_KOT_H

#include <linux/ptrace.h>
#include <linux/seq_file.h>
#include <linux/types.h>

#include "lock.h"

enum kot_state { KOT_FREE, KOT_ASSIGNED, KOT_FLUSHED, KOT_RESERVED };

extern struct seam_lock kot_lock;

bool kot_is_tdx_keyid(u64 keyid);
void kot_reserve(u32 keyid);
enum kot_state kot_state(u32 keyid);
void kot_assign(u32 keyid, u64 tdr);
void kot_configured(u32 keyid, unsigned long packages);
void kot_flush(u32 keyid);
bool kot_written_back(u32 keyid);
void kot_free(u32 keyid);
void kot_interrupt_cache_wb(void);
void kot_show(struct seq_file *m);
void kot_history_show(struct seq_file *m);
u64 leaf_phymem_cache_wb(struct pt_regs *regs);

#endif
