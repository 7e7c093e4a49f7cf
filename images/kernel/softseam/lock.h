/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The module's locks: shared or exclusive, tried once.  A SEAMCALL that finds
 * one taken gives up with OPERAND_BUSY, it never waits.
 */
#ifndef SOFTSEAM_LOCK_H
#define SOFTSEAM_LOCK_H

#include <linux/atomic.h>
#include <linux/types.h>

struct seam_lock {
	u16 holders;
};

#define SEAM_LOCK_EXCLUSIVE	U16_MAX

static inline bool seam_trylock_excl(struct seam_lock *lock)
{
	u16 free = 0;

	return try_cmpxchg(&lock->holders, &free, SEAM_LOCK_EXCLUSIVE);
}

static inline bool seam_trylock_shared(struct seam_lock *lock)
{
	u16 old = READ_ONCE(lock->holders);

	do {
		if (old >= SEAM_LOCK_EXCLUSIVE - 1)
			return false;
	} while (!try_cmpxchg(&lock->holders, &old, old + 1));
	return true;
}

static inline void seam_unlock_excl(struct seam_lock *lock)
{
	/* What was done under the lock is seen by whoever takes it next. */
	smp_store_release(&lock->holders, 0);
}

static inline void seam_unlock_shared(struct seam_lock *lock)
{
	u16 old = READ_ONCE(lock->holders);

	while (!try_cmpxchg(&lock->holders, &old, old - 1))
		;
}

#endif
