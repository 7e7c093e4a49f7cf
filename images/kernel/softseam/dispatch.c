// SPDX-License-Identifier: GPL-2.0-only
/* SEAMCALL: which leaf, whether it may be called now, and its counters. */
#include <linux/string.h>

#include "softseam.h"

struct leaf {
	const char *name;
	u64 (*fn)(struct pt_regs *regs);
	u8 max_version;
	bool before_ready;
};

#define LEAF(id, leaf_name, function, ...) \
	[LEAF_##id] = { .name = (leaf_name), .fn = (function), ##__VA_ARGS__ }

static const struct leaf leaves[NR_LEAVES] = {
	LEAF(VP_ENTER,		"TDH.VP.ENTER",		leaf_vp_enter),
	LEAF(MNG_ADDCX,		"TDH.MNG.ADDCX",	leaf_mng_addcx),
	LEAF(MEM_PAGE_ADD,	"TDH.MEM.PAGE.ADD",	leaf_mem_page_add),
	LEAF(MEM_SEPT_ADD,	"TDH.MEM.SEPT.ADD",	leaf_mem_sept_add),
	LEAF(VP_ADDCX,		"TDH.VP.ADDCX",		leaf_vp_addcx),
	LEAF(MEM_PAGE_AUG,	"TDH.MEM.PAGE.AUG",	leaf_mem_page_aug),
	LEAF(MEM_RANGE_BLOCK,	"TDH.MEM.RANGE.BLOCK",	leaf_mem_range_block),
	LEAF(MNG_KEY_CONFIG,	"TDH.MNG.KEY.CONFIG",	leaf_mng_key_config),
	LEAF(MNG_CREATE,	"TDH.MNG.CREATE",	leaf_mng_create),
	LEAF(VP_CREATE,		"TDH.VP.CREATE",	leaf_vp_create),
	LEAF(MNG_RD,		"TDH.MNG.RD",		leaf_mng_rd),
	LEAF(MR_EXTEND,		"TDH.MR.EXTEND",	leaf_mr_extend),
	LEAF(MR_FINALIZE,	"TDH.MR.FINALIZE",	leaf_mr_finalize),
	LEAF(VP_FLUSH,		"TDH.VP.FLUSH",		leaf_vp_flush),
	LEAF(MNG_VPFLUSHDONE,	"TDH.MNG.VPFLUSHDONE",	leaf_mng_vpflushdone),
	LEAF(MNG_KEY_FREEID,	"TDH.MNG.KEY.FREEID",	leaf_mng_key_freeid),
	LEAF(MNG_INIT,		"TDH.MNG.INIT",		leaf_mng_init),
	LEAF(VP_INIT,		"TDH.VP.INIT",		leaf_vp_init, .max_version = 1),
	LEAF(PHYMEM_PAGE_RDMD,	"TDH.PHYMEM.PAGE.RDMD",	leaf_phymem_page_rdmd),
	LEAF(VP_RD,		"TDH.VP.RD",		leaf_vp_rd),
	LEAF(PHYMEM_PAGE_RECLAIM, "TDH.PHYMEM.PAGE.RECLAIM", leaf_phymem_page_reclaim),
	LEAF(MEM_PAGE_REMOVE,	"TDH.MEM.PAGE.REMOVE",	leaf_mem_page_remove),
	LEAF(SYS_KEY_CONFIG,	"TDH.SYS.KEY.CONFIG",	leaf_sys_key_config, .before_ready = true),
	LEAF(SYS_INIT,		"TDH.SYS.INIT",		leaf_sys_init, .before_ready = true),
	LEAF(SYS_RD,		"TDH.SYS.RD",		leaf_sys_rd, .before_ready = true),
	LEAF(SYS_LP_INIT,	"TDH.SYS.LP.INIT",	leaf_sys_lp_init, .before_ready = true),
	LEAF(SYS_TDMR_INIT,	"TDH.SYS.TDMR.INIT",	leaf_sys_tdmr_init),
	LEAF(MEM_TRACK,		"TDH.MEM.TRACK",	leaf_mem_track),
	LEAF(PHYMEM_CACHE_WB,	"TDH.PHYMEM.CACHE.WB",	leaf_phymem_cache_wb),
	LEAF(PHYMEM_PAGE_WBINVD, "TDH.PHYMEM.PAGE.WBINVD", leaf_phymem_page_wbinvd),
	LEAF(VP_WR,		"TDH.VP.WR",		leaf_vp_wr),
	LEAF(SYS_CONFIG,	"TDH.SYS.CONFIG",	leaf_sys_config, .before_ready = true),
	LEAF(SYS_SHUTDOWN,	"TDH.SYS.SHUTDOWN",	leaf_sys_shutdown),
	LEAF(SYS_DISABLE,	"TDH.SYS.DISABLE",	leaf_sys_shutdown, .before_ready = true),
};

static struct {
	atomic64_t calls, errors;
} counters[NR_LEAVES];

static const struct leaf *leaf_get(unsigned int nr)
{
	return nr < NR_LEAVES && leaves[nr].fn ? &leaves[nr] : NULL;
}

/* The dispatcher's own checks, in the module's order. */
static u64 dispatch_check(u64 rax, const struct leaf *leaf)
{
	u64 version = (rax & SEAM_VERSION_MASK) >> SEAM_VERSION_SHIFT;

	if (rax & SEAM_RESERVED_MASK)
		return OPND(SEAM_OPERAND_INVALID, OPND_RAX);
	if (version > (leaf ? leaf->max_version : 0))
		return OPND(SEAM_OPERAND_INVALID, OPND_RAX);
	if (seam_sys_state == SYS_SHUTDOWN_DONE)
		return SEAM_SYS_SHUTDOWN;
	if (seam_sys_state != SYS_READY && !(leaf && leaf->before_ready))
		return SEAM_SYS_NOT_READY;
	if (!leaf)
		return OPND(SEAM_OPERAND_INVALID, OPND_RAX);
	return SEAM_SUCCESS;
}

u64 seam_dispatch(struct pt_regs *regs)
{
	unsigned int nr = regs->ax & SEAM_LEAF_MASK;
	const struct leaf *leaf = leaf_get(nr);
	u64 ret;

	ret = dispatch_check(regs->ax, leaf);
	if (!leaf)
		return ret;

	atomic64_inc(&counters[nr].calls);
	if (!ret && !seam_injected(nr, &ret))
		ret = leaf->fn(regs);
	if (nr == LEAF_PHYMEM_CACHE_WB && ret == SEAM_INTERRUPTED_RESUMABLE)
		kot_interrupt_cache_wb();
	/* VP.ENTER's low half is an exit reason, not an error. */
	if (nr == LEAF_VP_ENTER ? ret >> 32 : ret) {
		atomic64_inc(&counters[nr].errors);
		seam_errors_count(nr, ret);
	}
	return ret;
}

const char *seam_leaf_name(unsigned int nr)
{
	const struct leaf *leaf = leaf_get(nr);

	return leaf ? leaf->name : "?";
}

int seam_leaf_by_name(const char *name)
{
	int nr;

	for (nr = 0; nr < NR_LEAVES; nr++)
		if (leaf_get(nr) && !strcmp(leaves[nr].name, name))
			return nr;
	return -ENOENT;
}

unsigned int seam_nr_leaves(void)
{
	unsigned int nr, n = 0;

	for (nr = 0; nr < NR_LEAVES; nr++)
		n += !!leaf_get(nr);
	return n;
}

void seam_leaves_show(struct seq_file *m)
{
	int nr;

	for (nr = 0; nr < NR_LEAVES; nr++)
		if (leaf_get(nr))
			seq_printf(m, "nr=%d name=%s calls=%lld errors=%lld\n", nr,
				   leaves[nr].name,
				   atomic64_read(&counters[nr].calls),
				   atomic64_read(&counters[nr].errors));
}
