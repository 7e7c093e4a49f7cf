// SPDX-License-Identifier: GPL-2.0-only
#define pr_fmt(fmt) "softseam: " fmt

#include <linux/bits.h>
#include <linux/printk.h>
#include <asm/msr-index.h>
#include <asm/page.h>
#include <asm/processor-flags.h>

#include "gva.h"
#include "sept.h"
#include "vmcb.h"
#include "vp.h"

#define PT_PRESENT	BIT_ULL(0)
#define PT_LARGE	BIT_ULL(7)
#define PT_ENTRIES	512
#define SHIFT_4K	12
#define SHIFT_ROOT	39

static bool has_four_levels(const struct seam_vmcb *vmcb)
{
	return vmcb->cr0 & X86_CR0_PG && vmcb->efer & EFER_LMA && !(vmcb->cr4 & X86_CR4_LA57);
}

static bool is_last(u64 entry, int shift)
{
	return shift == SHIFT_4K || (shift < SHIFT_ROOT && entry & PT_LARGE);
}

static u64 *table_at(const struct seam_vp *vp, u64 gpa)
{
	return sept_gpa_to_va(vp->td.tdcs, gpa & PT_PA);
}

static int index_in(u64 gva, int shift)
{
	return gva >> shift & (PT_ENTRIES - 1);
}

/* What it leads to need not be mapped. */
bool gva_to_gpa(struct seam_vp *vp, u64 gva, u64 *gpa)
{
	struct seam_vmcb *vmcb = vp_vmcb(vp->tdvps);
	u64 entry = vmcb->cr3, offset, *table;
	int shift;

	if (!(vmcb->cr0 & X86_CR0_PG)) {
		*gpa = gva;
		return true;
	}
	if (!has_four_levels(vmcb))
		return false;
	for (shift = SHIFT_ROOT; ; shift -= 9) {
		table = table_at(vp, entry);
		if (!table)
			return false;
		entry = table[index_in(gva, shift)];
		if (!(entry & PT_PRESENT))
			return false;
		if (is_last(entry, shift))
			break;
	}
	offset = BIT_ULL(shift) - 1;
	*gpa = (entry & PT_PA & ~offset) | (gva & offset);
	return true;
}

static int count_used(const u64 *table)
{
	int i, used = 0;

	for (i = 0; i < PT_ENTRIES; i++)
		used += !!READ_ONCE(table[i]);
	return used;
}

/* A line for each table on the way to @gva, up to the one where the way ends. */
void gva_print(struct seam_vp *vp, const char *what, u64 gva)
{
	struct seam_vmcb *vmcb = vp_vmcb(vp->tdvps);
	u64 entry = vmcb->cr3, *table;
	int shift;

	if (!has_four_levels(vmcb))
		return;
	for (shift = SHIFT_ROOT; ; shift -= 9) {
		table = table_at(vp, entry);
		if (!table) {
			pr_info_ratelimited("%s 0x%llx: no private page at gpa 0x%llx\n", what, gva,
					    entry & PT_PA);
			return;
		}
		entry = READ_ONCE(table[index_in(gva, shift)]);
		pr_info_ratelimited("%s 0x%llx: entry 0x%llx in a table at 0x%lx with %d entries\n",
				    what, gva, entry, __pa(table), count_used(table));
		if (!(entry & PT_PRESENT) || is_last(entry, shift))
			return;
	}
}
