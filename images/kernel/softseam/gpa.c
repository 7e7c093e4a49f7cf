// SPDX-License-Identifier: GPL-2.0-only
#include <linux/mm.h>
#include <asm/page.h>

#include "abi.h"
#include "event.h"
#include "gpa.h"
#include "sept.h"
#include "td.h"
#include "vp.h"

#define TDCALL_LEN	4
#define EPT_PRESENT	(BIT_ULL(0) | BIT_ULL(1) | BIT_ULL(2))
#define EPT_READ	BIT_ULL(0)
#define EPT_WRITE	BIT_ULL(1)
#define EPT_LARGE	BIT_ULL(7)
#define EPT_SUPPRESS_VE	BIT_ULL(63)
#define SHIFT_4K	12
#define SHIFT_ROOT	39

/* The host's EPT entry that maps @gpa, or the first on the way that is not present; 0 without an EPT */
static u64 shared_entry(const struct seam_vp *vp, u64 gpa, int *shift)
{
	u64 *table, entry;

	*shift = SHIFT_ROOT;
	if (!vp->tdvps->shared_eptp)
		return EPT_SUPPRESS_VE;
	table = __va(vp->tdvps->shared_eptp);
	for (;; *shift -= 9) {
		entry = READ_ONCE(table[gpa >> *shift & 511]);
		if (!(entry & EPT_PRESENT) || *shift == SHIFT_4K || entry & EPT_LARGE)
			return entry;
		table = __va(entry & PT_PA);
	}
}

/* True unless the host's EPT suppresses #VE for @gpa. */
bool gpa_shared_fault_is_ve(const struct seam_vp *vp, u64 gpa)
{
	int shift;

	return !(shared_entry(vp, gpa, &shift) & (EPT_PRESENT | EPT_SUPPRESS_VE));
}

static enum gpa_end raise_ve(struct seam_vp *vp, u64 gpa, u64 qualification)
{
	event_ve(vp, EXIT_EPT_VIOLATION, qualification, 0, gpa, TDCALL_LEN, 0);
	return GPA_REPEAT;
}

static enum gpa_end leave(struct seam_exit *exit, u64 gpa, u64 qualification, u64 extended)
{
	exit->rax = EXIT_EPT_VIOLATION;
	exit->rcx = qualification;
	exit->rdx = extended;
	exit->r8 = gpa & PAGE_MASK;
	return GPA_EXIT;
}

static enum gpa_end map_shared(struct seam_vp *vp, u64 gpa, u64 qualification, void **to,
			       struct seam_exit *exit)
{
	u64 needed = EPT_READ | (qualification & EPTV_WRITE ? EPT_WRITE : 0), entry, pa;
	int shift;

	entry = shared_entry(vp, gpa, &shift);
	if ((entry & needed) != needed) {
		if (!(entry & (EPT_PRESENT | EPT_SUPPRESS_VE)))
			return raise_ve(vp, gpa, qualification);
		return leave(exit, gpa, qualification, 0);
	}
	pa = (entry & PT_PA & ~(BIT_ULL(shift) - 1)) | (gpa & (BIT_ULL(shift) - 1));
	if (!pfn_valid(PHYS_PFN(pa)))
		return GPA_WRONG;
	*to = __va(pa);
	return GPA_MAPPED;
}

/* Find the memory at @gpa, as the module's check_walk_and_map_guest_side_gpa() does. */
enum gpa_end gpa_map(struct seam_vp *vp, u64 gpa, u32 flags, void **to, struct seam_exit *exit)
{
	u64 qualification = EPTV_READ | (flags & GPA_WRITE ? EPTV_WRITE : 0);
	const struct seam_tdcs *tdcs = vp->td.tdcs;
	struct sept_walk walk;
	u64 entry;

	if (gpa >> tdcs->gpaw)
		return GPA_WRONG;
	if (!sept_gpa_is_private(tdcs, gpa)) {
		if (!(flags & GPA_MAY_SHARE))
			return GPA_WRONG;
		return map_shared(vp, gpa, qualification, to, exit);
	}
	*to = sept_gpa_to_va(tdcs, gpa);
	if (*to)
		return GPA_MAPPED;
	sept_walk_to(tdcs, gpa, 0, &walk);
	entry = READ_ONCE(*walk.entry);
	if (!sept_is_leaf(entry) || sept_state(entry) != SEPT_PENDING)
		return leave(exit, gpa, qualification, 0);
	if (tdcs->td_ctls & TD_CTLS_PENDING_VE_DISABLE)
		return leave(exit, gpa, qualification, EPTV_EXT_PENDING);
	return raise_ve(vp, gpa, qualification);
}
