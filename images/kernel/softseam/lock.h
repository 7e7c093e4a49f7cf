/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The module's locks: shared or exclusive, tried once.  A SEAMCALL that finds
 * one taken returns OPERAND_BUSY, it never waits.
 *
 * Not rwlock_t: each entry of the PAMT contains a lock, in the 16 bytes that the
 * host provides for an entry, and the size of rwlock_t depends on the config.
 */
#ifndef SOFTSEAM_LOCK_H
#define SOFTSEAM_LOCK_H

#include <linux/atomic.h>
#include <linux/limits.h>
#include <linux/types.h>

#include "hold.h"

struct seam_lock {
	u16 holders;
};

#define SEAM_LOCK_EXCLUSIVE	U16_MAX

enum seam_lock_kind { SHARED, EXCLUSIVE };

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
	seam_hold_before_unlock();
	/* Pairs with the try_cmpxchg() of the next holder. */
	smp_store_release(&lock->holders, 0);
}

static inline void seam_unlock_shared(struct seam_lock *lock)
{
	u16 old;

	seam_hold_before_unlock();
	old = READ_ONCE(lock->holders);
	while (!try_cmpxchg(&lock->holders, &old, old - 1))
		;
}

static inline bool seam_trylock(struct seam_lock *lock, enum seam_lock_kind kind)
{
	return kind == EXCLUSIVE ? seam_trylock_excl(lock) : seam_trylock_shared(lock);
}

static inline void seam_unlock(struct seam_lock *lock, enum seam_lock_kind kind)
{
	if (kind == EXCLUSIVE)
		seam_unlock_excl(lock);
	else
		seam_unlock_shared(lock);
}

#endif
