// SPDX-License-Identifier: GPL-2.0-only
/* Packages with sparse physical ids, and a history that wraps while it is read. */
#include "stub.h"

static int this_cpu;

#define raw_smp_processor_id() this_cpu
#define topology_max_packages() 2
#define topology_logical_package_id(cpu) (cpu)
#define topology_physical_package_id(cpu) ((cpu) ? 70 : 3)

#include "package.c"
#include "kot.c"

u32 seam_nr_keyids = 4;
struct task_struct *seam_hold_owner;

void seam_hold(void) { }

static struct seq_file report;

static void every_package_is_written_back(void)
{
	struct pt_regs regs = {};

	for (this_cpu = 0; this_cpu < 2; this_cpu++)
		set_bit(seam_this_package(), &seam_packages);
	kot_assign(SEAM_FIRST_KEYID, 0x1000);
	kot_flush(SEAM_FIRST_KEYID);
	for (this_cpu = 0; this_cpu < 2; this_cpu++) {
		CHECK(!kot_written_back(SEAM_FIRST_KEYID));
		CHECK(leaf_phymem_cache_wb(&regs) == SEAM_SUCCESS);
	}
	CHECK(kot_written_back(SEAM_FIRST_KEYID));
	CHECK(seam_packages == 3);
}

static void write_back_begun_anew_is_interrupted_anew(void)
{
	struct pt_regs start = { .cx = 0 };
	struct pt_regs resume = { .cx = 1 };

	kot_interrupt_cache_wb();
	CHECK(leaf_phymem_cache_wb(&start) == SEAM_INTERRUPTED_RESUMABLE);
	CHECK(leaf_phymem_cache_wb(&start) == SEAM_INTERRUPTED_RESUMABLE);
	CHECK(leaf_phymem_cache_wb(&resume) == SEAM_NO_HKID_READY_TO_WBCACHE);
	CHECK(leaf_phymem_cache_wb(&start) == SEAM_NO_HKID_READY_TO_WBCACHE);
}

static void write_back_resumes_on_its_package(void)
{
	struct pt_regs resume = { .cx = 1 };

	this_cpu = 1;
	kot_interrupt_cache_wb();
	this_cpu = 0;
	CHECK(leaf_phymem_cache_wb(&resume) == SEAM_WBCACHE_RESUME_ERROR);
	this_cpu = 1;
	CHECK(leaf_phymem_cache_wb(&resume) == SEAM_NO_HKID_READY_TO_WBCACHE);
	CHECK(leaf_phymem_cache_wb(&resume) == SEAM_WBCACHE_RESUME_ERROR);
}

/* Events whose TDR is their sequence number */
static void fill(u64 first, u64 count)
{
	u64 seq;

	for (seq = first; seq < first + count; seq++)
		kot_assign(SEAM_FIRST_KEYID, seq);
}

static void wrap_half(void)
{
	fill(HISTORY_SIZE + 10, HISTORY_SIZE / 2);
}

static void history_is_read_while_it_wraps(void)
{
	unsigned long long seq, tdr;
	int lines = 0;
	char *line;

	fill(0, HISTORY_SIZE + 10);
	others_after_print = wrap_half;
	kot_history_show(&report);
	for (line = strtok(report.text, "\n"); line; line = strtok(NULL, "\n"), lines++) {
		CHECK(sscanf(line, "seq=%llu ns=0 event=assign hkid=16 tdr=0x%llx",
			     &seq, &tdr) == 2);
		CHECK(seq == tdr);
	}
	CHECK(lines == 1 + HISTORY_SIZE / 2);
}

static const struct unit_case cases[] = {
	{ "every_package_is_written_back", every_package_is_written_back },
	{ "write_back_begun_anew_is_interrupted_anew", write_back_begun_anew_is_interrupted_anew },
	{ "write_back_resumes_on_its_package", write_back_resumes_on_its_package },
	{ "history_is_read_while_it_wraps", history_is_read_while_it_wraps },
};

int main(int argc, char **argv)
{
	return run_case(cases, ARRAY_SIZE(cases), argv[1]);
}
