// SPDX-License-Identifier: GPL-2.0-only
/* SEAMCALL: finds the leaf's function and checks that it may be called now. */
#include <asm/processor-flags.h>

#include "abi.h"
#include "dispatch.h"
#include "enter.h"
#include "hold.h"
#include "inject.h"
#include "kot.h"
#include "leaf.h"
#include "mng.h"
#include "phymem.h"
#include "sept.h"
#include "sys.h"
#include "vp.h"

struct leaf {
	u64 (*fn)(struct pt_regs *regs);
	u8 max_version;
	bool before_ready;
};

#define LEAF(id, function, ...) \
	[LEAF_##id] = { .fn = (function), ##__VA_ARGS__ }

static const struct leaf leaves[NR_LEAVES] = {
	LEAF(VP_ENTER, leaf_vp_enter),
	LEAF(MNG_ADDCX, leaf_mng_addcx),
	LEAF(MEM_PAGE_ADD, leaf_mem_page_add),
	LEAF(MEM_SEPT_ADD, leaf_mem_sept_add),
	LEAF(VP_ADDCX, leaf_vp_addcx),
	LEAF(MEM_PAGE_AUG, leaf_mem_page_aug),
	LEAF(MEM_RANGE_BLOCK, leaf_mem_range_block),
	LEAF(MNG_KEY_CONFIG, leaf_mng_key_config),
	LEAF(MNG_CREATE, leaf_mng_create),
	LEAF(VP_CREATE, leaf_vp_create),
	LEAF(MNG_RD, leaf_mng_rd),
	LEAF(MR_EXTEND, leaf_mr_extend),
	LEAF(MR_FINALIZE, leaf_mr_finalize),
	LEAF(VP_FLUSH, leaf_vp_flush),
	LEAF(MNG_VPFLUSHDONE, leaf_mng_vpflushdone),
	LEAF(MNG_KEY_FREEID, leaf_mng_key_freeid),
	LEAF(MNG_INIT, leaf_mng_init),
	LEAF(VP_INIT, leaf_vp_init, .max_version = 1),
	LEAF(PHYMEM_PAGE_RDMD, leaf_phymem_page_rdmd),
	LEAF(VP_RD, leaf_vp_rd),
	LEAF(PHYMEM_PAGE_RECLAIM, leaf_phymem_page_reclaim),
	LEAF(MEM_PAGE_REMOVE, leaf_mem_page_remove),
	LEAF(SYS_KEY_CONFIG, leaf_sys_key_config, .before_ready = true),
	LEAF(SYS_INIT, leaf_sys_init, .before_ready = true),
	LEAF(SYS_RD, leaf_sys_rd, .before_ready = true),
	LEAF(SYS_LP_INIT, leaf_sys_lp_init, .before_ready = true),
	LEAF(SYS_TDMR_INIT, leaf_sys_tdmr_init),
	LEAF(MEM_TRACK, leaf_mem_track),
	LEAF(PHYMEM_CACHE_WB, leaf_phymem_cache_wb),
	LEAF(PHYMEM_PAGE_WBINVD, leaf_phymem_page_wbinvd),
	LEAF(VP_WR, leaf_vp_wr),
	LEAF(SYS_CONFIG, leaf_sys_config, .before_ready = true),
	LEAF(SYS_SHUTDOWN, leaf_sys_shutdown),
	LEAF(SYS_DISABLE, leaf_sys_shutdown, .before_ready = true),
};

static const struct leaf *leaf_get(unsigned int nr)
{
	return nr < NR_LEAVES && leaves[nr].fn ? &leaves[nr] : NULL;
}

/* The checks common to all leaves, in the module's order. */
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

	seam_leaf_called(nr);
	if (!ret && !seam_injected(nr, &ret)) {
		if (regs->flags & X86_EFLAGS_IF)
			seam_hold_enter(nr);
		ret = leaf->fn(regs);
		seam_hold_leave();
	}
	if (nr == LEAF_PHYMEM_CACHE_WB && ret == SEAM_INTERRUPTED_RESUMABLE)
		kot_interrupt_cache_wb();
	/* VP.ENTER's low half is an exit reason, not an error. */
	if (nr == LEAF_VP_ENTER ? ret >> 32 : ret) {
		seam_leaf_failed(nr);
		seam_errors_count(nr, ret);
	}
	return ret;
}
