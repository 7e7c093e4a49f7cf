// SPDX-License-Identifier: GPL-2.0-only
/* The leaves that the module offers: their names, calls and errors. */
#include <linux/array_size.h>
#include <linux/atomic.h>
#include <linux/errno.h>
#include <linux/string.h>

#include "abi.h"
#include "leaf.h"

static const char * const names[NR_LEAVES] = {
	[LEAF_VP_ENTER]			= "TDH.VP.ENTER",
	[LEAF_MNG_ADDCX]		= "TDH.MNG.ADDCX",
	[LEAF_MEM_PAGE_ADD]		= "TDH.MEM.PAGE.ADD",
	[LEAF_MEM_SEPT_ADD]		= "TDH.MEM.SEPT.ADD",
	[LEAF_VP_ADDCX]			= "TDH.VP.ADDCX",
	[LEAF_MEM_PAGE_AUG]		= "TDH.MEM.PAGE.AUG",
	[LEAF_MEM_RANGE_BLOCK]		= "TDH.MEM.RANGE.BLOCK",
	[LEAF_MNG_KEY_CONFIG]		= "TDH.MNG.KEY.CONFIG",
	[LEAF_MNG_CREATE]		= "TDH.MNG.CREATE",
	[LEAF_VP_CREATE]		= "TDH.VP.CREATE",
	[LEAF_MNG_RD]			= "TDH.MNG.RD",
	[LEAF_MR_EXTEND]		= "TDH.MR.EXTEND",
	[LEAF_MR_FINALIZE]		= "TDH.MR.FINALIZE",
	[LEAF_VP_FLUSH]			= "TDH.VP.FLUSH",
	[LEAF_MNG_VPFLUSHDONE]		= "TDH.MNG.VPFLUSHDONE",
	[LEAF_MNG_KEY_FREEID]		= "TDH.MNG.KEY.FREEID",
	[LEAF_MNG_INIT]			= "TDH.MNG.INIT",
	[LEAF_VP_INIT]			= "TDH.VP.INIT",
	[LEAF_PHYMEM_PAGE_RDMD]		= "TDH.PHYMEM.PAGE.RDMD",
	[LEAF_VP_RD]			= "TDH.VP.RD",
	[LEAF_PHYMEM_PAGE_RECLAIM]	= "TDH.PHYMEM.PAGE.RECLAIM",
	[LEAF_MEM_PAGE_REMOVE]		= "TDH.MEM.PAGE.REMOVE",
	[LEAF_SYS_KEY_CONFIG]		= "TDH.SYS.KEY.CONFIG",
	[LEAF_SYS_INIT]			= "TDH.SYS.INIT",
	[LEAF_SYS_RD]			= "TDH.SYS.RD",
	[LEAF_SYS_LP_INIT]		= "TDH.SYS.LP.INIT",
	[LEAF_SYS_TDMR_INIT]		= "TDH.SYS.TDMR.INIT",
	[LEAF_MEM_TRACK]		= "TDH.MEM.TRACK",
	[LEAF_PHYMEM_CACHE_WB]		= "TDH.PHYMEM.CACHE.WB",
	[LEAF_PHYMEM_PAGE_WBINVD]	= "TDH.PHYMEM.PAGE.WBINVD",
	[LEAF_VP_WR]			= "TDH.VP.WR",
	[LEAF_SYS_CONFIG]		= "TDH.SYS.CONFIG",
	[LEAF_SYS_SHUTDOWN]		= "TDH.SYS.SHUTDOWN",
	[LEAF_SYS_DISABLE]		= "TDH.SYS.DISABLE",
};

static struct {
	atomic64_t calls, errors;
} counters[NR_LEAVES];

const char *seam_leaf_name(unsigned int leaf)
{
	return leaf < ARRAY_SIZE(names) && names[leaf] ? names[leaf] : "?";
}

int seam_leaf_by_name(const char *name)
{
	int leaf;

	for (leaf = 0; leaf < NR_LEAVES; leaf++)
		if (names[leaf] && !strcmp(names[leaf], name))
			return leaf;
	return -ENOENT;
}

unsigned int seam_nr_leaves(void)
{
	unsigned int leaf, n = 0;

	for (leaf = 0; leaf < NR_LEAVES; leaf++)
		n += !!names[leaf];
	return n;
}

void seam_leaf_called(unsigned int leaf)
{
	atomic64_inc(&counters[leaf].calls);
}

void seam_leaf_failed(unsigned int leaf)
{
	atomic64_inc(&counters[leaf].errors);
}

void seam_leaves_show(struct seq_file *m)
{
	int leaf;

	for (leaf = 0; leaf < NR_LEAVES; leaf++)
		if (names[leaf])
			seq_printf(m, "nr=%d name=%s calls=%lld errors=%lld\n", leaf, names[leaf],
				   atomic64_read(&counters[leaf].calls),
				   atomic64_read(&counters[leaf].errors));
}
