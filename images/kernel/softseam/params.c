// SPDX-License-Identifier: GPL-2.0-only
/* TD_PARAMS: what TDH.MNG.INIT accepts, checked in the module's order. */
#include <linux/random.h>
#include <linux/string.h>

#include "abi.h"
#include "cpu.h"
#include "cpuid.h"
#include "params.h"
#include "td.h"
#include "tsc.h"

#define ATTR_MIGRATABLE		BIT_ULL(29)

#define CONFIG_FLAGS_FIXED0	(TD_CONFIG_GPAW_52 | TD_CONFIG_FLEXIBLE_PENDING_VE | \
				 TD_CONFIG_NO_RBP_MOD)
#define EPTP_MT_WB		6
#define EPTP_LEVELS(n)		(((n) - 1ULL) << 3)
#define TSC_FREQUENCY_MIN	4
#define TSC_FREQUENCY_MAX	400

const u64 seam_attributes_fixed0 = TD_ATTR_DEBUG | TD_ATTR_SEPT_VE_DISABLE |
				   ATTR_MIGRATABLE | TD_ATTR_PKS | TD_ATTR_PERFMON;
const u64 seam_attributes_fixed1;
const u64 seam_xfam_fixed0 = XFAM_X87_SSE | XFAM_AVX | XFAM_PKRU;
const u64 seam_xfam_fixed1 = XFAM_X87_SSE;

static bool attributes_ok(u64 attributes)
{
	if (attributes & ~seam_attributes_fixed0)
		return false;
	return !(attributes & ATTR_MIGRATABLE &&
		 attributes & (TD_ATTR_DEBUG | TD_ATTR_PERFMON));
}

static bool xfam_ok(u64 xfam)
{
	return !(xfam & ~seam_xfam_fixed0) && (xfam & seam_xfam_fixed1) == seam_xfam_fixed1;
}

/* 4-level tables only: nested paging of the emulated CPU has no others. */
static bool eptp_ok(u64 eptp, u64 config_flags)
{
	return eptp == (EPTP_MT_WB | EPTP_LEVELS(4)) && !(config_flags & TD_CONFIG_GPAW_52);
}

static bool zero(const void *from, size_t size)
{
	return !memchr_inv(from, 0, size);
}

u64 params_apply(struct seam_tdcs *tdcs, const struct seam_td_params *params, u64 *info)
{
	u64 err;

	if (!attributes_ok(params->attributes))
		return OPND(SEAM_OPERAND_INVALID, OPND_ATTRIBUTES);
	if (!xfam_ok(params->xfam))
		return OPND(SEAM_OPERAND_INVALID, OPND_XFAM);
	if (!params->max_vcpus || params->max_vcpus > seam_max_vcpus)
		return OPND(SEAM_OPERAND_INVALID, OPND_MAX_VCPUS);
	if (params->num_l2_vms || !zero(params->reserved0, sizeof(params->reserved0)))
		return OPND(SEAM_OPERAND_INVALID, OPND_RDX);
	if (params->config_flags & ~CONFIG_FLAGS_FIXED0)
		return OPND(SEAM_OPERAND_INVALID, OPND_EXEC_CONTROLS);
	if (!eptp_ok(params->eptp_controls, params->config_flags))
		return OPND(SEAM_OPERAND_INVALID, OPND_EPTP_CONTROLS);
	if (params->tsc_frequency < TSC_FREQUENCY_MIN ||
	    params->tsc_frequency > TSC_FREQUENCY_MAX)
		return OPND(SEAM_OPERAND_INVALID, OPND_TSC_FREQUENCY);
	if (!zero(params->reserved1, sizeof(params->reserved1)) || params->arch_capabilities ||
	    !zero(params->reserved2, sizeof(params->reserved2)))
		return OPND(SEAM_OPERAND_INVALID, OPND_RDX);

	tdcs->attributes = params->attributes;
	tdcs->xfam = params->xfam;
	tdcs->max_vcpus = params->max_vcpus;
	err = cpuid_apply(tdcs, params, info);
	if (err)
		return err;

	tdcs->config_flags = params->config_flags;
	tdcs->td_ctls = params->attributes & TD_ATTR_SEPT_VE_DISABLE ? TD_CTLS_PENDING_VE_DISABLE : 0;
	tdcs->topology_configured = true;
	get_random_bytes(tdcs->uuid, sizeof(tdcs->uuid));
	tdcs->eptp_controls = params->eptp_controls;
	tdcs->tsc_frequency = params->tsc_frequency;
	tdcs->gpaw = 48;
	tsc_start(tdcs);
	memcpy(tdcs->mrconfigid, params->mrconfigid, sizeof(tdcs->mrconfigid));
	memcpy(tdcs->mrowner, params->mrowner, sizeof(tdcs->mrowner));
	memcpy(tdcs->mrownerconfig, params->mrownerconfig, sizeof(tdcs->mrownerconfig));
	return SEAM_SUCCESS;
}
