// SPDX-License-Identifier: GPL-2.0-only
/*
 * A call on request that lasts, with the module's locks that it took, so that
 * what must not happen meanwhile can be tried in peace.
 *
 * Its CPU spins, and takes interrupts, unlike a real one, as the host would stand
 * still.  A call that is made with interrupts off does not last.
 */
#include <linux/errno.h>
#include <linux/irqflags.h>
#include <linux/math64.h>
#include <linux/preempt.h>
#include <linux/sched/clock.h>
#include <linux/smp.h>
#include <linux/spinlock.h>

#include "hold.h"
#include "leaf.h"

#define MAX_MS	10000

enum hold_state { HOLD_NONE, HOLD_ARMED, HOLD_HELD, HOLD_RELEASED, HOLD_EXPIRED };

static DEFINE_RAW_SPINLOCK(hold_lock);
static struct {
	enum hold_state state;
	unsigned int leaf, cpu;
	u32 skip;	/* calls on the CPU before the one that lasts */
	u32 ms;
} hold;

/* Who makes the call: a SEAMCALL cannot be preempted. */
struct task_struct *seam_hold_owner;

void seam_hold_enter(unsigned int leaf)
{
	unsigned long flags;

	if (READ_ONCE(hold.state) != HOLD_ARMED)
		return;

	raw_spin_lock_irqsave(&hold_lock, flags);
	if (hold.state == HOLD_ARMED && hold.leaf == leaf &&
	    hold.cpu == smp_processor_id() && !seam_hold_owner) {
		if (hold.skip)
			hold.skip--;
		else
			WRITE_ONCE(seam_hold_owner, current);
	}
	raw_spin_unlock_irqrestore(&hold_lock, flags);
}

/* A call that gave back no lock did not last: the next one will. */
void seam_hold_leave(void)
{
	if (READ_ONCE(seam_hold_owner) == current)
		WRITE_ONCE(seam_hold_owner, NULL);
}

void seam_hold(void)
{
	unsigned long flags;
	u64 end;

	raw_spin_lock_irqsave(&hold_lock, flags);
	WRITE_ONCE(seam_hold_owner, NULL);
	end = local_clock() + mul_u32_u32(hold.ms, NSEC_PER_MSEC);
	if (hold.state == HOLD_ARMED)
		WRITE_ONCE(hold.state, HOLD_HELD);
	raw_spin_unlock_irqrestore(&hold_lock, flags);

	preempt_disable();
	local_irq_enable();
	while (READ_ONCE(hold.state) == HOLD_HELD) {
		if (local_clock() > end)
			cmpxchg(&hold.state, HOLD_HELD, HOLD_EXPIRED);
		cpu_relax();
	}
	local_irq_disable();
	preempt_enable_no_resched();
}

/* The @nth call on @cpu from now (1 is the next) lasts until it is released, @ms at most. */
int seam_hold_arm(unsigned int leaf, unsigned int cpu, u32 nth, u32 ms)
{
	unsigned long flags;
	int ret = 0;

	if (!nth || !ms || ms > MAX_MS)
		return -EINVAL;

	raw_spin_lock_irqsave(&hold_lock, flags);
	if (hold.state == HOLD_ARMED || hold.state == HOLD_HELD) {
		ret = -EBUSY;
	} else {
		hold.leaf = leaf;
		hold.cpu = cpu;
		hold.skip = nth - 1;
		hold.ms = ms;
		WRITE_ONCE(hold.state, HOLD_ARMED);
	}
	raw_spin_unlock_irqrestore(&hold_lock, flags);
	return ret;
}

void seam_hold_release(void)
{
	unsigned long flags;

	raw_spin_lock_irqsave(&hold_lock, flags);
	if (hold.state == HOLD_ARMED)
		WRITE_ONCE(hold.state, HOLD_NONE);
	else
		cmpxchg(&hold.state, HOLD_HELD, HOLD_RELEASED);
	raw_spin_unlock_irqrestore(&hold_lock, flags);
}

void seam_hold_show(struct seq_file *m)
{
	static const char * const names[] = {
		[HOLD_ARMED] = "armed", [HOLD_HELD] = "held",
		[HOLD_RELEASED] = "released", [HOLD_EXPIRED] = "expired",
	};
	enum hold_state state = READ_ONCE(hold.state);

	if (state != HOLD_NONE)
		seq_printf(m, "leaf=%s state=%s\n", seam_leaf_name(hold.leaf), names[state]);
}
