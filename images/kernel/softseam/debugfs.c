// SPDX-License-Identifier: GPL-2.0-only
/*
 * The ground truth, in /sys/kernel/debug/softseam: one record a line, key=value,
 * from the tables that the leaves work on.
 */
#include <linux/array_size.h>
#include <linux/atomic.h>
#include <linux/debugfs.h>
#include <linux/init.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/seq_file.h>
#include <linux/string.h>
#include <linux/uaccess.h>
#include <asm/page.h>

#include "abi.h"
#include "cpu.h"
#include "hold.h"
#include "inject.h"
#include "kot.h"
#include "leaf.h"
#include "manual.h"
#include "package.h"
#include "pamt.h"
#include "sys.h"
#include "td.h"
#include "vp.h"

#define NR_OWNERS	1024

static int module_show(struct seq_file *m, void *v)
{
	seq_printf(m, "version=%u.%u.%u keyid_start=%u keyids=%u packages=0x%lx max_vcpus_per_td=%u ready=%d leaves=%u\n",
		   SEAM_VERSION_MAJOR, SEAM_VERSION_MINOR, SEAM_VERSION_UPDATE,
		   SEAM_FIRST_KEYID, seam_nr_keyids, seam_packages, seam_max_vcpus,
		   seam_sys_state == SYS_READY, seam_nr_leaves());
	return 0;
}
DEFINE_SHOW_ATTRIBUTE(module);

static int keys_show(struct seq_file *m, void *v)
{
	kot_show(m);
	return 0;
}
DEFINE_SHOW_ATTRIBUTE(keys);

static int history_show(struct seq_file *m, void *v)
{
	kot_history_show(m);
	return 0;
}
DEFINE_SHOW_ATTRIBUTE(history);

static int leaves_show(struct seq_file *m, void *v)
{
	seam_leaves_show(m);
	return 0;
}
DEFINE_SHOW_ATTRIBUTE(leaves);

static int errors_show(struct seq_file *m, void *v)
{
	seam_errors_show(m);
	return 0;
}
DEFINE_SHOW_ATTRIBUTE(errors);

/* @nr comes from a donated page. */
static const char *name_of(const char * const *names, unsigned int nr_names, u32 nr)
{
	return nr < nr_names ? names[nr] : "?";
}

static void show_td(u64 pa, const struct seam_pamt *pamt, void *arg)
{
	static const char * const lifecycle[] = {
		[TD_HKID_ASSIGNED] = "hkid_assigned", [TD_KEYS_CONFIGURED] = "keys_configured",
		[TD_BLOCKED] = "blocked", [TD_TEARDOWN] = "teardown",
	};
	static const char * const op[] = {
		[OP_UNINITIALIZED] = "uninitialized", [OP_INITIALIZED] = "initialized",
		[OP_RUNNABLE] = "runnable",
	};
	static const struct seam_tdcs none;
	const struct seam_tdr *tdr = __va(pa);
	const struct seam_tdcs *tdcs = NULL;
	struct seq_file *m = arg;

	/* In teardown the host reclaims the TDCS, in any order. */
	if (tdr->nr_tdcx > TDCS_STATE && tdr->lifecycle < TD_TEARDOWN)
		tdcs = pamt_peek(tdr->tdcx[TDCS_STATE], PT_TDCX, pa);
	if (!tdcs)
		tdcs = &none;

	seq_printf(m, "tdr=0x%llx state=%s ", pa,
		   name_of(lifecycle, ARRAY_SIZE(lifecycle), tdr->lifecycle));
	if (tdr->lifecycle < TD_TEARDOWN)
		seq_printf(m, "hkid=%u ", tdr->hkid);
	else
		seq_puts(m, "hkid=- ");
	seq_printf(m, "op=%s vcpus=%u vcpus_assoc=%d max_vcpus=%u attributes=0x%llx xfam=0x%llx gpaw=%u children=%lld fatal=%u\n",
		   name_of(op, ARRAY_SIZE(op), tdcs->op_state), tdcs->nr_vcpus,
		   atomic_read(&tdcs->nr_assoc), tdcs->max_vcpus, tdcs->attributes, tdcs->xfam,
		   tdcs->gpaw, atomic64_read(&tdr->children), tdr->fatal);
}

static int tds_show(struct seq_file *m, void *v)
{
	pamt_for_each(PT_TDR, show_td, m);
	return 0;
}
DEFINE_SHOW_ATTRIBUTE(tds);

static void show_vcpu(u64 pa, const struct seam_pamt *pamt, void *arg)
{
	const struct seam_tdvps *tdvps = __va(pa);
	struct seq_file *m = arg;
	const char *state = tdvps->state == VCPU_READY ? "ready" :
			    tdvps->state == VCPU_ACTIVE ? "active" :
			    tdvps->state == VCPU_DISABLED ? "disabled" : "uninit";
	int lp = atomic_read(&tdvps->lp);

	seq_printf(m, "tdvpr=0x%llx tdr=0x%llx index=%u x2apic_id=%u state=%s ", pa, pamt->owner,
		   tdvps->index, tdvps->x2apic_id, state);
	if (lp < 0)
		seq_puts(m, "cpu=- ");
	else
		seq_printf(m, "cpu=%d ", lp);
	seq_printf(m, "entries=%llu exits=%llu ", tdvps->nr_entries, tdvps->nr_exits);
	seq_printf(m, "exit=0x%llx rip=0x%llx\n", tdvps->exit_code, tdvps->exit_rip);
}

static int vcpus_show(struct seq_file *m, void *v)
{
	pamt_for_each(PT_TDVPR, show_vcpu, m);
	return 0;
}
DEFINE_SHOW_ATTRIBUTE(vcpus);

struct owners {
	unsigned int nr;
	struct { u64 tdr; u64 count; } of[NR_OWNERS];
};

static void count_owner(u64 pa, const struct seam_pamt *pamt, void *arg)
{
	struct owners *owners = arg;
	unsigned int i;

	for (i = 0; i < owners->nr; i++)
		if (owners->of[i].tdr == pamt->owner)
			break;
	if (i == owners->nr) {
		if (owners->nr == NR_OWNERS)
			return;
		owners->of[owners->nr++].tdr = pamt->owner;
	}
	owners->of[i].count++;
}

static int pages_show(struct seq_file *m, void *v)
{
	static const enum seam_page_type types[] = { PT_TDR, PT_TDCX, PT_TDVPR, PT_EPT, PT_REG };
	static DEFINE_MUTEX(lock);
	static struct owners owners;
	unsigned int t, i;

	mutex_lock(&lock);
	for (t = 0; t < ARRAY_SIZE(types); t++) {
		memset(&owners, 0, sizeof(owners));
		pamt_for_each(types[t], count_owner, &owners);
		for (i = 0; i < owners.nr; i++) {
			if (owners.of[i].tdr)
				seq_printf(m, "tdr=0x%llx ", owners.of[i].tdr);
			else
				seq_puts(m, "tdr=- ");
			seq_printf(m, "type=%s count=%llu\n", pamt_type_name(types[t]),
				   owners.of[i].count);
		}
	}
	mutex_unlock(&lock);
	return 0;
}
DEFINE_SHOW_ATTRIBUTE(pages);

static int inject_show(struct seq_file *m, void *v)
{
	seam_inject_show(m);
	return 0;
}

static ssize_t inject_write(struct file *file, const char __user *from, size_t len, loff_t *pos)
{
	char buf[128] = {}, name[40];
	u32 nth = 1, count = 1;
	int leaf, ret;
	u64 code;

	if (len >= sizeof(buf))
		return -E2BIG;
	if (copy_from_user(buf, from, len))
		return -EFAULT;
	if (sysfs_streq(buf, "clear")) {
		seam_inject_clear();
		return len;
	}
	if (sscanf(buf, "leaf=%39s nth=%u count=%u code=%llx", name, &nth, &count, &code) != 4)
		return -EINVAL;
	leaf = seam_leaf_by_name(name);
	if (leaf < 0)
		return leaf;
	ret = seam_inject_arm(leaf, nth, count, code);
	return ret ?: len;
}

DEFINE_SHOW_STORE_ATTRIBUTE(inject);

static int hold_show(struct seq_file *m, void *v)
{
	seam_hold_show(m);
	return 0;
}

static ssize_t hold_write(struct file *file, const char __user *from, size_t len, loff_t *pos)
{
	char buf[128] = {}, name[40];
	u32 cpu, nth, ms;
	int leaf, ret;

	if (len >= sizeof(buf))
		return -E2BIG;
	if (copy_from_user(buf, from, len))
		return -EFAULT;
	if (sysfs_streq(buf, "release")) {
		seam_hold_release();
		return len;
	}
	if (sscanf(buf, "leaf=%39s cpu=%u nth=%u ms=%u", name, &cpu, &nth, &ms) != 4)
		return -EINVAL;
	leaf = seam_leaf_by_name(name);
	if (leaf < 0)
		return leaf;
	ret = seam_hold_arm(leaf, cpu, nth, ms);
	return ret ?: len;
}

DEFINE_SHOW_STORE_ATTRIBUTE(hold);

static int seamcall_show(struct seq_file *m, void *v)
{
	seam_manual_show(m);
	return 0;
}

static ssize_t seamcall_write(struct file *file, const char __user *from, size_t len, loff_t *pos)
{
	char buf[256] = {};
	int ret;

	if (len >= sizeof(buf))
		return -E2BIG;
	if (copy_from_user(buf, from, len))
		return -EFAULT;
	ret = seam_manual_call(buf);
	return ret ?: len;
}

DEFINE_SHOW_STORE_ATTRIBUTE(seamcall);

static ssize_t donated_read(struct file *file, char __user *to, size_t len, loff_t *pos)
{
	return seam_manual_read(to, len, pos);
}

static ssize_t donated_write(struct file *file, const char __user *from, size_t len, loff_t *pos)
{
	return seam_manual_write(from, len, pos);
}

static const struct file_operations donated_fops = {
	.owner = THIS_MODULE,
	.read = donated_read,
	.write = donated_write,
	.llseek = default_llseek,
};

static int __init softseam_debugfs(void)
{
	struct dentry *dir;

	if (!seam_active())
		return 0;
	dir = debugfs_create_dir("softseam", NULL);
	debugfs_create_file("module", 0400, dir, NULL, &module_fops);
	debugfs_create_file("keys", 0400, dir, NULL, &keys_fops);
	debugfs_create_file("history", 0400, dir, NULL, &history_fops);
	debugfs_create_file("tds", 0400, dir, NULL, &tds_fops);
	debugfs_create_file("vcpus", 0400, dir, NULL, &vcpus_fops);
	debugfs_create_file("pages", 0400, dir, NULL, &pages_fops);
	debugfs_create_file("leaves", 0400, dir, NULL, &leaves_fops);
	debugfs_create_file("errors", 0400, dir, NULL, &errors_fops);
	debugfs_create_file("inject", 0600, dir, NULL, &inject_fops);
	debugfs_create_file("hold", 0600, dir, NULL, &hold_fops);
	debugfs_create_file("seamcall", 0600, dir, NULL, &seamcall_fops);
	debugfs_create_file("donated", 0600, dir, NULL, &donated_fops);
	return 0;
}
late_initcall(softseam_debugfs);
