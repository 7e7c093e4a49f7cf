// SPDX-License-Identifier: GPL-2.0-only
/*
 * Faults on request, and the count of every error that was returned.
 *
 * An injected call does nothing but return its code, as a module that refuses
 * at its first check.
 */
#include <linux/spinlock.h>

#include "softseam.h"

#define MAX_ARMED	32
#define MAX_ERRORS	256

static DEFINE_RAW_SPINLOCK(inject_lock);
static struct {
	unsigned int leaf;
	u32 skip;		/* calls to let through first */
	u32 count;		/* calls to fail then, 0 is a free slot */
	u64 code;
} armed[MAX_ARMED];
static unsigned int nr_armed;

static struct {
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
	int i;

	for (i = 0; i < MAX_ARMED; i++)
		if (armed[i].count)
			seq_printf(m, "leaf=%s nth=%u count=%u code=0x%llx\n",
				   seam_leaf_name(armed[i].leaf), armed[i].skip + 1,
				   armed[i].count, armed[i].code);
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
	int i;

	for (i = 0; i < READ_ONCE(nr_errors); i++)
		seq_printf(m, "name=%s code=0x%llx count=%llu\n",
			   seam_leaf_name(errors[i].leaf), errors[i].code, errors[i].count);
}
