// SPDX-License-Identifier: GPL-2.0-only
/*
 * Faults on request, and the count of every error that was returned.
 *
 * An injected call only returns its code, like a call that fails the module's
 * first check.
 */
#include <linux/errno.h>
#include <linux/spinlock.h>
#include <linux/string.h>

#include "inject.h"
#include "leaf.h"

#define MAX_ARMED	32
#define MAX_ERRORS	256

static DEFINE_RAW_SPINLOCK(inject_lock);
static struct armed {
	unsigned int leaf;
	u32 skip;		/* calls before the first that fails */
	u32 count;		/* calls that fail then, 0 is a free slot */
	u64 code;
} armed[MAX_ARMED];
static unsigned int nr_armed;

static struct error {
	unsigned int leaf;
	u64 code;
	u64 count;
} errors[MAX_ERRORS];
static unsigned int nr_errors;

bool seam_injected(unsigned int leaf, u64 *code)
{
	bool hit = false;
	unsigned long flags;
	int i;

	if (!READ_ONCE(nr_armed))
		return false;

	raw_spin_lock_irqsave(&inject_lock, flags);
	for (i = 0; i < MAX_ARMED; i++) {
		if (!armed[i].count || armed[i].leaf != leaf)
			continue;
		if (armed[i].skip) {
			armed[i].skip--;
			continue;
		}
		*code = armed[i].code;
		if (!--armed[i].count)
			WRITE_ONCE(nr_armed, nr_armed - 1);
		hit = true;
		break;
	}
	raw_spin_unlock_irqrestore(&inject_lock, flags);
	return hit;
}

/* The @nth call from now (1 is the next) and the @count - 1 after it return @code. */
int seam_inject_arm(unsigned int leaf, u32 nth, u32 count, u64 code)
{
	unsigned long flags;
	int i, ret = -ENOSPC;

	if (!nth || !count)
		return -EINVAL;

	raw_spin_lock_irqsave(&inject_lock, flags);
	for (i = 0; i < MAX_ARMED; i++) {
		if (armed[i].count)
			continue;
		armed[i].leaf = leaf;
		armed[i].skip = nth - 1;
		armed[i].count = count;
		armed[i].code = code;
		WRITE_ONCE(nr_armed, nr_armed + 1);
		ret = 0;
		break;
	}
	raw_spin_unlock_irqrestore(&inject_lock, flags);
	return ret;
}

void seam_inject_clear(void)
{
	unsigned long flags;

	raw_spin_lock_irqsave(&inject_lock, flags);
	memset(armed, 0, sizeof(armed));
	WRITE_ONCE(nr_armed, 0);
	raw_spin_unlock_irqrestore(&inject_lock, flags);
}

void seam_inject_show(struct seq_file *m)
{
	unsigned long flags;
	struct armed one;
	int i;

	for (i = 0; i < MAX_ARMED; i++) {
		raw_spin_lock_irqsave(&inject_lock, flags);
		one = armed[i];
		raw_spin_unlock_irqrestore(&inject_lock, flags);
		if (one.count)
			seq_printf(m, "leaf=%s nth=%u count=%u code=0x%llx\n",
				   seam_leaf_name(one.leaf), one.skip + 1, one.count, one.code);
	}
}

void seam_errors_count(unsigned int leaf, u64 code)
{
	unsigned long flags;
	int i;

	raw_spin_lock_irqsave(&inject_lock, flags);
	for (i = 0; i < nr_errors; i++)
		if (errors[i].leaf == leaf && errors[i].code == code)
			break;
	if (i == nr_errors && nr_errors < MAX_ERRORS) {
		errors[i].leaf = leaf;
		errors[i].code = code;
		nr_errors++;
	}
	if (i < nr_errors)
		errors[i].count++;
	raw_spin_unlock_irqrestore(&inject_lock, flags);
}

void seam_errors_show(struct seq_file *m)
{
	unsigned long flags;
	struct error one;
	int i;

	/* Entries are only ever added. */
	for (i = 0; i < READ_ONCE(nr_errors); i++) {
		raw_spin_lock_irqsave(&inject_lock, flags);
		one = errors[i];
		raw_spin_unlock_irqrestore(&inject_lock, flags);
		seq_printf(m, "name=%s code=0x%llx count=%llu\n", seam_leaf_name(one.leaf),
			   one.code, one.count);
	}
}
