// SPDX-License-Identifier: GPL-2.0-only
/* Reports of TDs whose pages the host reclaims and overwrites meanwhile. */
#include "stub.h"

struct file;
struct dentry;

struct file_operations {
	void *owner, *llseek;
	ssize_t (*read)(struct file *file, char *to, size_t len, loff_t *pos);
	ssize_t (*write)(struct file *file, const char *from, size_t len, loff_t *pos);
};

#define THIS_MODULE NULL
#define DEFINE_SHOW_ATTRIBUTE(name) \
	static int (*name##_fops)(struct seq_file *m, void *v) __maybe_unused = name##_show
#define DEFINE_SHOW_STORE_ATTRIBUTE(name) \
	DEFINE_SHOW_ATTRIBUTE(name); \
	static ssize_t (*name##_store)(struct file *file, const char *from, size_t len, \
				       loff_t *pos) __maybe_unused = name##_write
#define DEFINE_MUTEX(name) int name __maybe_unused
#define mutex_lock(lock) do { } while (0)
#define mutex_unlock(lock) do { } while (0)
#define copy_from_user(to, from, len) (memcpy(to, from, len), 0)
#define sysfs_streq(a, b) (!strcmp(a, b))
#define default_llseek NULL
#define debugfs_create_dir(name, parent) NULL
#define debugfs_create_file(name, mode, dir, data, fops) ((void)(dir), (void)(fops))
#define late_initcall(fn) static int (*initcall)(void) __maybe_unused = fn

#include "pamt.c"
#include "debugfs.c"

u32 seam_nr_keyids, seam_max_vcpus;
unsigned long seam_packages;
enum seam_sys_state seam_sys_state;

bool seam_active(void) { return true; }
unsigned int seam_nr_leaves(void) { return 0; }
int seam_leaf_by_name(const char *name) { return 0; }
struct task_struct *seam_hold_owner;
void seam_hold(void) { }
int seam_hold_arm(unsigned int leaf, unsigned int cpu, u32 nth, u32 ms) { return 0; }
void seam_hold_release(void) { }
void seam_hold_show(struct seq_file *m) { }
int seam_inject_arm(unsigned int leaf, u32 nth, u32 count, u64 code) { return 0; }
void seam_inject_clear(void) { }
void seam_inject_show(struct seq_file *m) { }
void seam_errors_show(struct seq_file *m) { }
void seam_leaves_show(struct seq_file *m) { }
int seam_manual_call(char *line) { return 0; }
void seam_manual_show(struct seq_file *m) { }
ssize_t seam_manual_read(char *to, size_t len, loff_t *pos) { return 0; }
ssize_t seam_manual_write(const char *from, size_t len, loff_t *pos) { return 0; }
void kot_show(struct seq_file *m) { }
void kot_history_show(struct seq_file *m) { }

/* A TDMR of four pages: TDR, TDCS, TDVPR and one that is free */
enum { TDR, TDCS, TDVPR, FREE, NR_PAGES };

static u8 pages[NR_PAGES][4096] __attribute__((aligned(4096)));
static struct seam_pamt pamt[NR_PAGES];
static struct seam_tdr *tdr = (void *)pages[TDR];
static struct seam_tdcs *tdcs = (void *)pages[TDCS];
static struct seam_tdvps *tdvps = (void *)pages[TDVPR];
static struct seq_file report;

static void setup(void)
{
	seam_nr_tdmrs = 1;
	seam_tdmrs[0] = (struct seam_tdmr) {
		.base = (uintptr_t)pages, .size = sizeof(pages), .initialised = sizeof(pages),
		.pamt = pamt,
	};
	pamt_take(&pamt[TDR], PT_TDR, 0);
	pamt_take(&pamt[TDCS], PT_TDCX, (uintptr_t)tdr);
	pamt_take(&pamt[TDVPR], PT_TDVPR, (uintptr_t)tdr);
	tdr->lifecycle = TD_KEYS_CONFIGURED;
	tdr->nr_tdcx = 1;
	tdr->tdcx[TDCS_STATE] = (uintptr_t)tdcs;
	tdcs->op_state = OP_RUNNABLE;
	tdcs->max_vcpus = 7;
	tdvps->index = 5;
}

static void reclaim(int page)
{
	pamt_release(&pamt[page]);
	memset(pages[page], 0xa5, PAGE_SIZE);
}

static void reclaim_all(void)
{
	reclaim(TDVPR);
	reclaim(TDCS);
	reclaim(TDR);
}

static void td_is_reported(void)
{
	setup();
	tds_show(&report, NULL);
	CHECK(strstr(report.text, "state=keys_configured "));
	CHECK(strstr(report.text, "op=runnable "));
	CHECK(strstr(report.text, "max_vcpus=7 "));
	vcpus_show(&report, NULL);
	CHECK(strstr(report.text, "index=5 "));
}

static void states_out_of_range(void)
{
	setup();
	tdr->lifecycle = TD_KEYS_CONFIGURED;
	tdcs->op_state = 0x10000;
	tds_show(&report, NULL);
	CHECK(strstr(report.text, "op=? "));
	tdr->lifecycle = 0x10000;
	tds_show(&report, NULL);
	CHECK(strstr(report.text, "state=? hkid=- op=uninitialized "));
}

static void page_reclaimed_before_it_is_read(void)
{
	setup();
	others_before_lock = reclaim_all;
	tds_show(&report, NULL);
	CHECK(!report.len);
	CHECK(!others_before_lock);

	setup();
	others_before_lock = reclaim_all;
	vcpus_show(&report, NULL);
	CHECK(!report.len);
}

static void tdcs_that_is_not_the_tds(void)
{
	setup();
	tdr->tdcx[TDCS_STATE] = 0xdead000;
	tds_show(&report, NULL);
	CHECK(strstr(report.text, "op=uninitialized vcpus=0 "));

	report.len = 0;
	tdr->tdcx[TDCS_STATE] = (uintptr_t)tdcs;
	pamt[TDCS].owner = (uintptr_t)pages[FREE];
	tds_show(&report, NULL);
	CHECK(strstr(report.text, "op=uninitialized vcpus=0 "));

	report.len = 0;
	pamt[TDCS].owner = (uintptr_t)tdr;
	reclaim(TDCS);
	tds_show(&report, NULL);
	CHECK(strstr(report.text, "op=uninitialized vcpus=0 "));
}

static void busy_td_is_reported(void)
{
	setup();
	CHECK(seam_trylock_excl(&pamt[TDR].lock) && seam_trylock_excl(&pamt[TDVPR].lock));
	tds_show(&report, NULL);
	vcpus_show(&report, NULL);
	CHECK(strstr(report.text, "op=runnable ") && strstr(report.text, "index=5 "));
	seam_unlock_excl(&pamt[TDR].lock);
	seam_unlock_excl(&pamt[TDVPR].lock);
}

static const struct unit_case cases[] = {
	{ "td_is_reported", td_is_reported },
	{ "states_out_of_range", states_out_of_range },
	{ "page_reclaimed_before_it_is_read", page_reclaimed_before_it_is_read },
	{ "tdcs_that_is_not_the_tds", tdcs_that_is_not_the_tds },
	{ "busy_td_is_reported", busy_td_is_reported },
};

int main(int argc, char **argv)
{
	return run_case(cases, ARRAY_SIZE(cases), argv[1]);
}
