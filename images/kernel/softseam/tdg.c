// SPDX-License-Identifier: GPL-2.0-only
#include <linux/align.h>
#include <linux/bits.h>
#include <asm/page.h>

#include "abi.h"
#include "fields.h"
#include "gpa.h"
#include "gprs.h"
#include "tdg.h"
#include "vp.h"

/* TDG.VM.RD: rcx 0, rdx field; out r8 value, from version 1 on rdx the next field */
u64 tdg_vm_rd(struct seam_vp *vp, unsigned int version)
{
	struct seam_gprs *gprs = &vp->tdvps->gprs;
	u64 field = gprs->rdx, next, err;

	gprs->r8 = 0;
	if (version)
		gprs->rdx = FIELD_ID_NONE;
	if (version > 1)
		return OPND(SEAM_OPERAND_INVALID, OPND_RAX);
	if (gprs->rcx)
		return OPND(SEAM_OPERAND_INVALID, OPND_RCX);
	if (!version && FIELD_ID_IS_NONE(field))
		return SEAM_METADATA_FIELD_ID_INCORRECT;
	err = fields_read(vp, CONTEXT_TD, field, &gprs->r8, &next);
	if (version)
		gprs->rdx = next;
	return err;
}

/* TDG.VM.WR: rcx 0, rdx field, r8 value, r9 mask; out r8 the previous value */
u64 tdg_vm_wr(struct seam_vp *vp)
{
	struct seam_gprs *gprs = &vp->tdvps->gprs;
	u64 val = gprs->r8;

	gprs->r8 = 0;
	if (gprs->rcx)
		return OPND(SEAM_OPERAND_INVALID, OPND_RCX);
	return fields_write(vp, CONTEXT_TD, gprs->rdx, val, gprs->r9, &gprs->r8);
}

/* TDG.VP.RD: rcx 0, rdx field; out r8 value, rdx the next field */
u64 tdg_vp_rd(struct seam_vp *vp)
{
	struct seam_gprs *gprs = &vp->tdvps->gprs;
	u64 field = gprs->rdx;

	gprs->rdx = FIELD_ID_NONE;
	gprs->r8 = 0;
	if (gprs->rcx)
		return OPND(SEAM_OPERAND_INVALID, OPND_RCX);
	return fields_read(vp, CONTEXT_VP, field, &gprs->r8, &gprs->rdx);
}

/* TDG.VP.WR: rcx 0, rdx field, r8 value, r9 mask; out r8 the previous value */
u64 tdg_vp_wr(struct seam_vp *vp)
{
	struct seam_gprs *gprs = &vp->tdvps->gprs;
	u64 val = gprs->r8;

	gprs->r8 = 0;
	if (gprs->rcx)
		return OPND(SEAM_OPERAND_INVALID, OPND_RCX);
	return fields_write(vp, CONTEXT_VP, gprs->rdx, val, gprs->r9, &gprs->r8);
}

/* TDG.SYS.RD: rdx field; out r8 value, rdx the next field */
u64 tdg_sys_rd(struct seam_vp *vp)
{
	struct seam_gprs *gprs = &vp->tdvps->gprs;

	return fields_read(vp, CONTEXT_SYS, gprs->rdx, &gprs->r8, &gprs->rdx);
}

/* TDG.SYS.RDALL: rdx GPA of a page of private memory, r8 first field; out r8 the next field */
enum gpa_end tdg_sys_rdall(struct seam_vp *vp, struct seam_exit *exit, u64 *err)
{
	struct seam_gprs *gprs = &vp->tdvps->gprs;
	u64 field = gprs->r8;
	enum gpa_end end;
	void *list;

	*err = OPND(SEAM_OPERAND_INVALID, OPND_RDX);
	if (!IS_ALIGNED(gprs->rdx, PAGE_SIZE)) {
		gprs->r8 = FIELD_ID_NONE;
		return GPA_WRONG;
	}
	end = gpa_map(vp, gprs->rdx, GPA_WRITE, &list, exit);
	if (end == GPA_REPEAT || end == GPA_EXIT)
		return end;
	gprs->r8 = FIELD_ID_NONE;
	if (end == GPA_WRONG)
		return end;
	gprs->r8 = field;
	*err = fields_dump_sys(list, &gprs->r8);
	return GPA_MAPPED;
}
