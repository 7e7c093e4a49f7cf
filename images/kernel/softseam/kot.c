// SPDX-License-Identifier: GPL-2.0-only
/*
 * The key ownership table: the TD that each TDX KeyID belongs to, the packages
 * that have to write it back before it is free again, and a history.
 */
#include <linux/atomic.h>
#include <linux/bitops.h>
#include <linux/sched/clock.h>
#include <linux/spinlock.h>

#include "abi.h"
#include "cpu.h"
#include "kot.h"
#include "package.h"

#define HISTORY_SIZE	4096

/* Guards the states; the history has its own. */
struct seam_lock kot_lock;

static struct {
	enum kot_state state;
	u64 tdr;
	atomic_long_t pending_wb;	/* packages whose caches may hold its lines */
	unsigned long configured;	/* packages that have its key */
} kot[SEAM_MAX_KEYIDS];

static unsigned long interrupted_wb;	/* packages */

static DEFINE_RAW_SPINLOCK(history_lock);
static struct event {
	u64 ns, tdr;
	const char *name;
	u32 hkid, in_use;
} history[HISTORY_SIZE];
static u64 nr_events;
static u32 in_use;

static void record(const char *name, u32 keyid, u64 tdr, int change)
{
	unsigned long flags;
	u32 slot;

	raw_spin_lock_irqsave(&history_lock, flags);
	in_use += change;
	slot = nr_events++ % HISTORY_SIZE;
	history[slot].ns = local_clock();
	history[slot].name = name;
	history[slot].hkid = keyid;
	history[slot].tdr = tdr;
	history[slot].in_use = in_use;
	raw_spin_unlock_irqrestore(&history_lock, flags);
}

bool kot_is_tdx_keyid(u64 keyid)
{
	return keyid >= SEAM_FIRST_KEYID && keyid < SEAM_FIRST_KEYID + seam_nr_keyids;
}

enum kot_state kot_state(u32 keyid)
{
	return kot[keyid].state;
}

void kot_reserve(u32 keyid)
{
	kot[keyid].state = KOT_RESERVED;
	kot[keyid].configured = 0;
}

void kot_assign(u32 keyid, u64 tdr)
{
	kot[keyid].state = KOT_ASSIGNED;
	kot[keyid].tdr = tdr;
	kot[keyid].configured = 0;
	record("assign", keyid, tdr, 1);
}

void kot_configured(u32 keyid, unsigned long packages)
{
	kot[keyid].configured = packages;
	record("configure", keyid, kot[keyid].tdr, 0);
}

void kot_flush(u32 keyid)
{
	kot[keyid].state = KOT_FLUSHED;
	atomic_long_set(&kot[keyid].pending_wb, seam_packages);
	record("flush", keyid, kot[keyid].tdr, 0);
}

bool kot_written_back(u32 keyid)
{
	return !atomic_long_read(&kot[keyid].pending_wb);
}

void kot_free(u32 keyid)
{
	u64 tdr = kot[keyid].tdr;

	kot[keyid].state = KOT_FREE;
	kot[keyid].tdr = 0;
	kot[keyid].configured = 0;
	record("free", keyid, tdr, -1);
}

/* A write-back of this package stopped half-way, which only an injected fault makes it do. */
void kot_interrupt_cache_wb(void)
{
	set_bit(seam_this_package(), &interrupted_wb);
}

/*
 * TDH.PHYMEM.CACHE.WB: rcx 0 start, 1 resume.  Writes back the caches of this
 * package, for every KeyID that is flushed now.
 */
u64 leaf_phymem_cache_wb(struct pt_regs *regs)
{
	static struct seam_lock wbt[SEAM_MAX_PACKAGES];
	unsigned int package = seam_this_package();
	bool any = false;
	u64 err = SEAM_SUCCESS;
	u32 k;

	if (regs->cx > 1)
		return OPND(SEAM_OPERAND_INVALID, OPND_RCX);
	if (!seam_trylock_excl(&wbt[package]))
		return OPND(SEAM_OPERAND_BUSY, OPND_WBCACHE);
	if (!seam_trylock_shared(&kot_lock)) {
		err = OPND(SEAM_OPERAND_BUSY, OPND_KOT);
		goto out;
	}
	if (regs->cx && !test_and_clear_bit(package, &interrupted_wb)) {
		err = SEAM_WBCACHE_RESUME_ERROR;
	} else if (!regs->cx && test_bit(package, &interrupted_wb)) {
		/* It has all its work before it again, and no more time for it. */
		err = SEAM_INTERRUPTED_RESUMABLE;
	} else {
		for (k = 0; k < SEAM_MAX_KEYIDS; k++) {
			if (kot[k].state != KOT_FLUSHED)
				continue;
			any = true;
			atomic_long_andnot(BIT(package), &kot[k].pending_wb);
		}
		if (!any)
			err = SEAM_NO_HKID_READY_TO_WBCACHE;
	}
	seam_unlock_shared(&kot_lock);
out:
	seam_unlock_excl(&wbt[package]);
	return err;
}

void kot_show(struct seq_file *m)
{
	static const char * const names[] = {
		[KOT_FREE] = "free", [KOT_ASSIGNED] = "assigned",
		[KOT_FLUSHED] = "flushed", [KOT_RESERVED] = "reserved",
	};
	u32 k;

	for (k = SEAM_FIRST_KEYID; k < SEAM_FIRST_KEYID + seam_nr_keyids; k++) {
		enum kot_state state = READ_ONCE(kot[k].state);
		unsigned long configured = READ_ONCE(kot[k].configured);
		u64 tdr = READ_ONCE(kot[k].tdr);
		bool ready = state == KOT_ASSIGNED && configured == seam_packages;

		seq_printf(m, "hkid=%u state=%s ", k, ready ? "configured" : names[state]);
		if (tdr)
			seq_printf(m, "tdr=0x%llx ", tdr);
		else
			seq_puts(m, "tdr=- ");
		seq_printf(m, "configured=0x%lx pending_wb=0x%lx\n", configured,
			   atomic_long_read(&kot[k].pending_wb));
	}
}

/* Copy event @seq; false if a later one has taken its slot. */
static bool history_get(u64 seq, struct event *event)
{
	unsigned long flags;
	bool kept;

	raw_spin_lock_irqsave(&history_lock, flags);
	kept = nr_events - seq <= HISTORY_SIZE;
	if (kept)
		*event = history[seq % HISTORY_SIZE];
	raw_spin_unlock_irqrestore(&history_lock, flags);
	return kept;
}

void kot_history_show(struct seq_file *m)
{
	u64 end = READ_ONCE(nr_events), seq;
	struct event event;

	for (seq = end > HISTORY_SIZE ? end - HISTORY_SIZE : 0; seq < end; seq++)
		if (history_get(seq, &event))
			seq_printf(m, "seq=%llu ns=%llu event=%s hkid=%u tdr=0x%llx in_use=%u\n",
				   seq, event.ns, event.name, event.hkid, event.tdr, event.in_use);
}
