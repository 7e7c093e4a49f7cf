/* SPDX-License-Identifier: GPL-2.0-only */
/* A call on request that lasts, with the module's locks that it took. */
#ifndef SOFTSEAM_HOLD_H
#define SOFTSEAM_HOLD_H

#include <linux/compiler.h>
#include <linux/sched.h>
#include <linux/seq_file.h>
#include <linux/types.h>

extern struct task_struct *seam_hold_owner;

void seam_hold_enter(unsigned int leaf);
void seam_hold_leave(void);
void seam_hold(void);
int seam_hold_arm(unsigned int leaf, unsigned int cpu, u32 nth, u32 ms);
void seam_hold_release(void);
void seam_hold_show(struct seq_file *m);

/* The call has done its work, and gives back the first of its locks. */
static inline void seam_hold_before_unlock(void)
{
	if (unlikely(READ_ONCE(seam_hold_owner) == current))
		seam_hold();
}

#endif
