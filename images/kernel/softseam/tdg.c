// SPDX-License-Identifier: GPL-2.0-only
#include <crypto/sha2.h>
#include <linux/align.h>
#include <linux/bits.h>

#include "abi.h"
#include "gprs.h"
#include "sept.h"
#include "td.h"
#include "tdg.h"
#include "vp.h"

#define RTMR_DATA_ALIGN		64

/* TD_CTLS; a bit that is not here is not the guest's to set */
#define TD_CTLS_PENDING_VE_DISABLE	BIT_ULL(0)
#define TD_CTLS_WRITABLE		0ULL
#define NOTIFY_ENABLES_WRITABLE		BIT_ULL(0)

/* TDG.MR.RTMR.EXTEND: rcx GPA of 48 bytes, rdx index; memory that is not mapped is an operand error */
u64 tdg_rtmr_extend(struct seam_vp *vp)
{
	u64 gpa = vp->tdvps->gprs.rcx, index = vp->tdvps->gprs.rdx;
	struct seam_tdcs *tdcs = vp->td.tdcs;
	struct sha384_ctx ctx;
	const u8 *data;

	if (!IS_ALIGNED(gpa, RTMR_DATA_ALIGN))
		return OPND(SEAM_OPERAND_INVALID, OPND_RCX);
	if (index >= SEAM_NR_RTMRS)
		return OPND(SEAM_OPERAND_INVALID, OPND_RDX);
	data = sept_gpa_to_va(tdcs, gpa);
	if (!data)
		return OPND(SEAM_OPERAND_INVALID, OPND_RCX);
	sha384_init(&ctx);
	sha384_update(&ctx, tdcs->rtmr[index], SHA384_DIGEST_SIZE);
	sha384_update(&ctx, data, SHA384_DIGEST_SIZE);
	sha384_final(&ctx, tdcs->rtmr[index]);
	return SEAM_SUCCESS;
}

static u64 read_field(const struct seam_tdcs *tdcs, u64 field, u64 *val)
{
	*val = 0;
	switch (field) {
	case FIELD_TDCS_CONFIG_FLAGS:
		*val = tdcs->config_flags;
		return SEAM_SUCCESS;
	case FIELD_TDCS_TD_CTLS:
		*val = tdcs->td_ctls;
		if (tdcs->attributes & TD_ATTR_SEPT_VE_DISABLE)
			*val |= TD_CTLS_PENDING_VE_DISABLE;
		return SEAM_SUCCESS;
	case FIELD_TDCS_NOTIFY_ENABLES:
		*val = tdcs->notify_enables;
		return SEAM_SUCCESS;
	case FIELD_TDCS_TOPOLOGY_ENUM:
		return SEAM_SUCCESS;
	default:
		return SEAM_METADATA_FIELD_ID_INCORRECT;
	}
}

/* TDG.VM.RD: rdx field; out r8 value */
u64 tdg_vm_rd(struct seam_vp *vp)
{
	struct seam_gprs *gprs = &vp->tdvps->gprs;

	return read_field(vp->td.tdcs, gprs->rdx, &gprs->r8);
}

/* TDG.VM.WR: rdx field, r8 value, r9 mask; out r8 the previous value */
u64 tdg_vm_wr(struct seam_vp *vp)
{
	struct seam_gprs *gprs = &vp->tdvps->gprs;
	u64 val = gprs->r8, mask = gprs->r9, old, writable, err;
	struct seam_tdcs *tdcs = vp->td.tdcs;
	u64 *to;

	err = read_field(tdcs, gprs->rdx, &old);
	if (err) {
		gprs->r8 = 0;
		return err;
	}
	gprs->r8 = old;
	switch (gprs->rdx) {
	case FIELD_TDCS_TD_CTLS:
		to = &tdcs->td_ctls;
		writable = TD_CTLS_WRITABLE;
		break;
	case FIELD_TDCS_NOTIFY_ENABLES:
		to = &tdcs->notify_enables;
		writable = NOTIFY_ENABLES_WRITABLE;
		break;
	default:
		return SEAM_METADATA_FIELD_NOT_WRITABLE;
	}
	if ((old ^ val) & mask & ~writable)
		return SEAM_METADATA_FIELD_VALUE_NOT_VALID;
	*to = (*to & ~(mask & writable)) | (val & mask & writable);
	return SEAM_SUCCESS;
}
