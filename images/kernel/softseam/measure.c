// SPDX-License-Identifier: GPL-2.0-only
/*
 * RTMRs and the report.  A report has the structure and the hashes of a real one,
 * but no CPU authenticates it: where one has what only a CPU makes, CPUSVN and
 * MAC, this one has text that says so.
 */
#include <crypto/sha2.h>
#include <linux/align.h>
#include <linux/build_bug.h>
#include <linux/stddef.h>
#include <linux/string.h>

#include "abi.h"
#include "exit.h"
#include "gpa.h"
#include "gprs.h"
#include "lock.h"
#include "measure.h"
#include "td.h"
#include "vp.h"

#define RTMR_DATA_ALIGN		64
#define REPORT_DATA_SIZE	64
#define REPORT_TYPE_TDX		0x81
#define REPORT_SUBTYPE		0
/* TEE_TCB_INFO without the bytes behind it that its hash does not cover */
#define TCB_INFO_SIZE		239
/* The fields at 8-byte steps that are there: TEE_TCB_SVN and MRSEAM, and VALID itself */
#define TCB_INFO_VALID		0x1ffULL

static const char cpusvn[16] = "softseam";
static const char mrseam[48] = "softseam: a model of the TDX module for testing";
static const char mac[33] = "softseam is no CPU: not verified";

struct report {
	struct report_mac {
		u8 type, subtype, version, reserved0;
		u8 reserved1[12];
		u8 cpusvn[16];
		u8 tcb_info_hash[SHA384_DIGEST_SIZE];
		u8 td_info_hash[SHA384_DIGEST_SIZE];
		u8 data[REPORT_DATA_SIZE];
		u8 reserved2[32];
		u8 mac[32];
	} mac;
	struct tcb_info {
		u64 valid;
		u8 svn[16];
		u8 mrseam[48], mrsigner[48];
		u64 attributes;
		u8 reserved[128];
	} tcb_info;
	struct td_info {
		u64 attributes, xfam;
		u8 mrtd[SHA384_DIGEST_SIZE];
		u8 mrconfigid[48], mrowner[48], mrownerconfig[48];
		u8 rtmr[SEAM_NR_RTMRS][SHA384_DIGEST_SIZE];
		u8 servtd_hash[SHA384_DIGEST_SIZE];
		u8 reserved[64];
	} td_info;
};

static_assert(sizeof(struct report) == 1024);
static_assert(offsetof(struct report, mac.mac) == 224);
static_assert(offsetof(struct report, tcb_info) == 256);
static_assert(offsetof(struct report, td_info) == 512);

static void sha384_of(const void *data, size_t len, u8 *digest)
{
	struct sha384_ctx ctx;

	sha384_init(&ctx);
	sha384_update(&ctx, data, len);
	sha384_final(&ctx, digest);
}

static enum gpa_end fail(u64 *err, u64 code, u32 opnd)
{
	*err = OPND(code, opnd);
	return GPA_WRONG;
}

/* TDG.MR.RTMR.EXTEND: rcx GPA of 48 bytes of private memory, rdx index */
enum gpa_end measure_extend(struct seam_vp *vp, struct seam_exit *exit, u64 *err)
{
	u64 gpa = vp->tdvps->gprs.rcx, index = vp->tdvps->gprs.rdx;
	struct seam_tdcs *tdcs = vp->td.tdcs;
	struct sha384_ctx ctx;
	enum gpa_end end;
	void *data;

	if (!IS_ALIGNED(gpa, RTMR_DATA_ALIGN))
		return fail(err, SEAM_OPERAND_INVALID, OPND_RCX);
	end = gpa_map(vp, gpa, 0, &data, exit);
	if (end == GPA_WRONG)
		return fail(err, SEAM_OPERAND_INVALID, OPND_RCX);
	if (end != GPA_MAPPED)
		return end;
	if (index >= SEAM_NR_RTMRS)
		return fail(err, SEAM_OPERAND_INVALID, OPND_RDX);
	if (!seam_trylock_excl(&tdcs->rtmr_lock))
		return fail(err, SEAM_OPERAND_BUSY, OPND_RTMR);
	sha384_init(&ctx);
	sha384_update(&ctx, tdcs->rtmr[index], SHA384_DIGEST_SIZE);
	sha384_update(&ctx, data, SHA384_DIGEST_SIZE);
	sha384_final(&ctx, tdcs->rtmr[index]);
	seam_unlock_excl(&tdcs->rtmr_lock);
	*err = SEAM_SUCCESS;
	return GPA_MAPPED;
}

static void fill_report(const struct seam_tdcs *tdcs, const void *data, struct report *report)
{
	struct tcb_info *tcb_info = &report->tcb_info;
	struct td_info *td_info = &report->td_info;
	struct report_mac *head = &report->mac;

	memset(report, 0, sizeof(*report));
	td_info->attributes = tdcs->attributes;
	td_info->xfam = tdcs->xfam;
	memcpy(td_info->mrtd, tdcs->mrtd, sizeof(td_info->mrtd));
	memcpy(td_info->mrconfigid, tdcs->mrconfigid, sizeof(td_info->mrconfigid));
	memcpy(td_info->mrowner, tdcs->mrowner, sizeof(td_info->mrowner));
	memcpy(td_info->mrownerconfig, tdcs->mrownerconfig, sizeof(td_info->mrownerconfig));
	memcpy(td_info->rtmr, tdcs->rtmr, sizeof(td_info->rtmr));
	tcb_info->valid = TCB_INFO_VALID;
	memcpy(tcb_info->mrseam, mrseam, sizeof(tcb_info->mrseam));
	head->type = REPORT_TYPE_TDX;
	head->subtype = REPORT_SUBTYPE;
	memcpy(head->cpusvn, cpusvn, sizeof(head->cpusvn));
	sha384_of(tcb_info, TCB_INFO_SIZE, head->tcb_info_hash);
	sha384_of(td_info, sizeof(*td_info), head->td_info_hash);
	memcpy(head->data, data, sizeof(head->data));
	memcpy(head->mac, mac, sizeof(head->mac));
}

/* TDG.MR.REPORT: rcx GPA of the report, rdx GPA of REPORTDATA, private or shared, r8 sub-type */
enum gpa_end measure_report(struct seam_vp *vp, struct seam_exit *exit, u64 *err)
{
	struct seam_gprs *gprs = &vp->tdvps->gprs;
	struct seam_tdcs *tdcs = vp->td.tdcs;
	struct report report;
	enum gpa_end end;
	void *data, *to;

	if (!IS_ALIGNED(gprs->rcx, sizeof(report)))
		return fail(err, SEAM_OPERAND_INVALID, OPND_RCX);
	if (!IS_ALIGNED(gprs->rdx, REPORT_DATA_SIZE))
		return fail(err, SEAM_OPERAND_INVALID, OPND_RDX);
	end = gpa_map(vp, gprs->rdx, GPA_MAY_SHARE, &data, exit);
	if (end == GPA_WRONG)
		return fail(err, SEAM_OPERAND_INVALID, OPND_RDX);
	if (end != GPA_MAPPED)
		return end;
	if (gprs->r8 != REPORT_SUBTYPE)
		return fail(err, SEAM_OPERAND_INVALID, OPND_R8);
	if (!seam_trylock_shared(&tdcs->rtmr_lock))
		return fail(err, SEAM_OPERAND_BUSY, OPND_RTMR);
	fill_report(tdcs, data, &report);
	seam_unlock_shared(&tdcs->rtmr_lock);
	end = gpa_map(vp, gprs->rcx, GPA_WRITE | GPA_MAY_SHARE, &to, exit);
	if (end == GPA_WRONG)
		return fail(err, SEAM_OPERAND_INVALID, OPND_RCX);
	if (end != GPA_MAPPED)
		return end;
	memcpy(to, &report, sizeof(report));
	*err = SEAM_SUCCESS;
	return GPA_MAPPED;
}
