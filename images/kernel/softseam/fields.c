// SPDX-License-Identifier: GPL-2.0-only
/*
 * Fields by their ids, in the order of the module's tables, which is the order in
 * which it names the next one.  Fields that are not in these tables, L2 VMs',
 * migration's and others, are unknown here though the module has them.
 */
#include <linux/array_size.h>
#include <linux/atomic.h>
#include <linux/bits.h>
#include <linux/string.h>
#include <linux/unaligned.h>

#include "abi.h"
#include "fields.h"
#include "sys.h"
#include "td.h"
#include "vp.h"

#define ALL	(~0ULL)

/* Elements of 48 bytes, in u64 */
#define DIGEST	6

/* @read and @write are the bits that a guest may access: none, if the field is not for it. */
struct field {
	u64 id;
	unsigned int elements;
	u64 read, write;
};

static const struct field sys_fields[] = {
	{ FIELD_VENDOR_ID, 1, ALL },
	{ FIELD_MINOR_VERSION, 1, ALL },
	{ FIELD_MAJOR_VERSION, 1, ALL },
	{ FIELD_UPDATE_VERSION, 1 },
	{ FIELD_SYS_ATTRIBUTES, 1, ALL },
	{ FIELD_NUM_TDX_FEATURES, 1, ALL },
	{ FIELD_FEATURES0, 1, ALL },
	{ FIELD_MAX_TDMRS, 1 },
	{ FIELD_MAX_RESERVED, 1 },
	{ FIELD_PAMT_4K_SIZE, 1 },
	{ FIELD_PAMT_2M_SIZE, 1 },
	{ FIELD_PAMT_1G_SIZE, 1 },
	{ FIELD_TDR_SIZE, 1 },
	{ FIELD_TDCS_SIZE, 1 },
	{ FIELD_TDVPS_SIZE, 1 },
	{ FIELD_ATTRIBUTES_FIXED0, 1 },
	{ FIELD_ATTRIBUTES_FIXED1, 1 },
	{ FIELD_XFAM_FIXED0, 1 },
	{ FIELD_XFAM_FIXED1, 1 },
	{ FIELD_NUM_CPUID_CONFIG, 1 },
	{ FIELD_MAX_VCPUS_PER_TD, 1 },
};

static const struct field td_fields[] = {
	{ FIELD_TDR_LIFECYCLE_STATE, 1 },
	{ FIELD_TDR_TD_UUID, 4, ALL },
	{ FIELD_TDCS_NUM_VCPUS, 1, ALL },
	{ FIELD_TDCS_NUM_L2_VMS, 1, ALL },
	{ FIELD_TDCS_ATTRIBUTES, 1, ALL },
	{ FIELD_TDCS_XFAM, 1, ALL },
	{ FIELD_TDCS_MAX_VCPUS, 1, ALL },
	{ FIELD_TDCS_GPAW, 1, ALL },
	{ FIELD_TDCS_TSC_OFFSET, 1 },
	{ FIELD_TDCS_TSC_MULTIPLIER, 1 },
	{ FIELD_TDCS_TSC_FREQUENCY, 1, ALL },
	{ FIELD_TDCS_NOTIFY_ENABLES, 1, BIT_ULL(0), BIT_ULL(0) },
	{ FIELD_TDCS_CONFIG_FLAGS, 1, ALL },
	{ FIELD_TDCS_TD_CTLS, 1, ALL, TD_CTLS_PENDING_VE_DISABLE | TD_CTLS_ENUM_TOPOLOGY },
	{ FIELD_TDCS_TOPOLOGY_ENUM, 1, ALL },
	{ FIELD_TDCS_MRTD, DIGEST, ALL },
	{ FIELD_TDCS_MRCONFIGID, DIGEST, ALL },
	{ FIELD_TDCS_MROWNER, DIGEST, ALL },
	{ FIELD_TDCS_MROWNERCONFIG, DIGEST, ALL },
	{ FIELD_TDCS_RTMR, SEAM_NR_RTMRS * DIGEST, ALL },
	{ FIELD_TDCS_SERVTD_HASH, DIGEST, ALL },
	{ FIELD_TDCS_SERVTD_NUM, 1, ALL },
};

static const struct field vp_fields[] = {
	{ FIELD_TDVPS_VCPU_INDEX, 1, ALL },
	{ FIELD_TDVPS_CPUID_SUPERVISOR_VE, 1, ALL, ALL },
	{ FIELD_TDVPS_CPUID_USER_VE, 1, ALL, ALL },
};

static const struct {
	const struct field *first, *end;
} tables[] = {
	[CONTEXT_SYS] = { sys_fields, sys_fields + ARRAY_SIZE(sys_fields) },
	[CONTEXT_TD] = { td_fields, td_fields + ARRAY_SIZE(td_fields) },
	[CONTEXT_VP] = { vp_fields, vp_fields + ARRAY_SIZE(vp_fields) },
};

static const struct field *find(enum field_context context, u64 id)
{
	const struct field *field;
	u64 name = id & FIELD_ID_NAME;

	for (field = tables[context].first; field < tables[context].end; field++)
		if (name >= (field->id & FIELD_ID_NAME) &&
		    name < (field->id & FIELD_ID_NAME) + field->elements)
			return field;
	return NULL;
}

/* The id of the first element behind that of @id which a guest may read; the first of all without @field */
static u64 next_id(enum field_context context, const struct field *field, u64 id)
{
	u64 element;

	if (field) {
		element = (id & FIELD_ID_NAME) - (field->id & FIELD_ID_NAME);
		if (element + 1 < field->elements)
			return field->id + element + 1;
		field++;
	} else {
		field = tables[context].first;
	}
	for (; field < tables[context].end; field++)
		if (field->read)
			return field->id;
	return FIELD_ID_NONE;
}

static u64 sys_value(const struct field *field)
{
	u64 val = 0;

	sys_field(field->id, &val);
	return val;
}

static u64 td_value(const struct seam_tdcs *tdcs, const struct field *field, unsigned int n)
{
	switch (field->id) {
	case FIELD_TDR_TD_UUID:
		return tdcs->uuid[n];
	case FIELD_TDCS_NUM_VCPUS:
		return tdcs->nr_vcpus;
	case FIELD_TDCS_ATTRIBUTES:
		return tdcs->attributes;
	case FIELD_TDCS_XFAM:
		return tdcs->xfam;
	case FIELD_TDCS_MAX_VCPUS:
		return tdcs->max_vcpus;
	case FIELD_TDCS_GPAW:
		return tdcs->gpaw == 52;
	case FIELD_TDCS_TSC_FREQUENCY:
		return tdcs->tsc_frequency;
	case FIELD_TDCS_NOTIFY_ENABLES:
		return tdcs->notify_enables;
	case FIELD_TDCS_CONFIG_FLAGS:
		return tdcs->config_flags;
	case FIELD_TDCS_TD_CTLS:
		return tdcs->td_ctls;
	case FIELD_TDCS_TOPOLOGY_ENUM:
		return tdcs->topology_configured;
	case FIELD_TDCS_MRTD:
		return get_unaligned((u64 *)tdcs->mrtd + n);
	case FIELD_TDCS_MRCONFIGID:
		return get_unaligned((u64 *)tdcs->mrconfigid + n);
	case FIELD_TDCS_MROWNER:
		return get_unaligned((u64 *)tdcs->mrowner + n);
	case FIELD_TDCS_MROWNERCONFIG:
		return get_unaligned((u64 *)tdcs->mrownerconfig + n);
	case FIELD_TDCS_RTMR:
		return get_unaligned((u64 *)tdcs->rtmr + n);
	default:
		return 0;
	}
}

static u64 vp_value(const struct seam_tdvps *tdvps, const struct field *field)
{
	switch (field->id) {
	case FIELD_TDVPS_CPUID_SUPERVISOR_VE:
		return tdvps->cpuid_ve[0];
	case FIELD_TDVPS_CPUID_USER_VE:
		return tdvps->cpuid_ve[1];
	default:
		return tdvps->index;
	}
}

static u64 value(const struct seam_vp *vp, enum field_context context, const struct field *field,
		 u64 id)
{
	unsigned int n = (id & FIELD_ID_NAME) - (field->id & FIELD_ID_NAME);

	switch (context) {
	case CONTEXT_SYS:
		return sys_value(field);
	case CONTEXT_TD:
		return td_value(vp->td.tdcs, field, n);
	default:
		return vp_value(vp->tdvps, field);
	}
}

/* Also returns the next field's id; for FIELD_ID_NONE, no value and the first field's. */
u64 fields_read(const struct seam_vp *vp, enum field_context context, u64 id, u64 *val, u64 *next)
{
	const struct field *field;

	*val = 0;
	*next = FIELD_ID_NONE;
	if (FIELD_ID_IS_NONE(id)) {
		*next = next_id(context, NULL, 0);
		return SEAM_METADATA_FIRST_FIELD;
	}
	if (id & (FIELD_ID_RSVD | FIELD_ID_COUNTS))
		return SEAM_METADATA_FIELD_ID_INCORRECT;
	field = find(context, id);
	if (!field)
		return SEAM_METADATA_FIELD_ID_INCORRECT;
	if (!field->read)
		return SEAM_METADATA_FIELD_NOT_READABLE;
	*val = value(vp, context, field, id) & field->read;
	*next = next_id(context, field, id);
	return SEAM_SUCCESS;
}

/* TD_CTLS: what the host must have allowed or prepared */
static bool controls_ok(const struct seam_tdcs *tdcs, u64 old, u64 val)
{
	if ((old ^ val) & TD_CTLS_PENDING_VE_DISABLE &&
	    !(tdcs->config_flags & TD_CONFIG_FLEXIBLE_PENDING_VE))
		return false;
	return !(val & TD_CTLS_ENUM_TOPOLOGY) || tdcs->topology_configured;
}

/* Other vCPUs may write the TD's fields meanwhile. */
static u64 replace(u64 *field, u64 old, u64 val)
{
	if (cmpxchg(field, old, val) != old)
		return OPND(SEAM_OPERAND_BUSY, OPND_METADATA_FIELD);
	return SEAM_SUCCESS;
}

static u64 set_value(struct seam_vp *vp, const struct field *field, u64 old, u64 val)
{
	struct seam_tdcs *tdcs = vp->td.tdcs;

	switch (field->id) {
	case FIELD_TDCS_TD_CTLS:
		if (!controls_ok(tdcs, old, val))
			return SEAM_METADATA_FIELD_VALUE_NOT_VALID;
		return replace(&tdcs->td_ctls, old, val);
	case FIELD_TDCS_NOTIFY_ENABLES:
		return replace(&tdcs->notify_enables, old, val);
	case FIELD_TDVPS_CPUID_SUPERVISOR_VE:
		vp->tdvps->cpuid_ve[0] = val;
		break;
	case FIELD_TDVPS_CPUID_USER_VE:
		vp->tdvps->cpuid_ve[1] = val;
		break;
	}
	return SEAM_SUCCESS;
}

u64 fields_write(struct seam_vp *vp, enum field_context context, u64 id, u64 val, u64 mask,
		 u64 *old)
{
	const struct field *field;
	u64 writable, now, err;

	*old = 0;
	if (id & (FIELD_ID_RSVD | FIELD_ID_COUNTS))
		return SEAM_METADATA_FIELD_ID_INCORRECT;
	field = find(context, id);
	if (!field)
		return SEAM_METADATA_FIELD_ID_INCORRECT;
	writable = field->write & GENMASK_ULL(FIELD_ID_SIZE(field->id) - 1, 0);
	if (!(mask & writable))
		return SEAM_METADATA_FIELD_NOT_WRITABLE;
	now = value(vp, context, field, id);
	if ((now ^ val) & mask & ~writable)
		return SEAM_METADATA_FIELD_VALUE_NOT_VALID;
	err = set_value(vp, field, now, (now & ~(mask & writable)) | (val & mask & writable));
	if (!err)
		*old = now & field->read;
	return err;
}

#define LIST_COUNT(n)	((u64)(n) << 38)	/* of a sequence header, less one */

/*
 * All fields of the module that a guest may read, beginning with that of *@next:
 * a header with the list's size and its sequences, each of which is the id of its
 * first field and the values.  They fit into one page.
 */
u64 fields_dump_sys(u64 *list, u64 *next)
{
	u64 id = *next, *to = list + 1, *sequence = NULL;
	const struct field *field, *last = NULL;
	unsigned int sequences = 0;

	if (FIELD_ID_IS_NONE(id))
		id = next_id(CONTEXT_SYS, NULL, 0);
	*next = FIELD_ID_NONE;
	field = find(CONTEXT_SYS, id);
	if (!field)
		return SEAM_METADATA_FIELD_ID_INCORRECT;
	for (; field < sys_fields + ARRAY_SIZE(sys_fields); field++) {
		if (!field->read)
			continue;
		/* A sequence has fields of one class and size whose codes follow each other. */
		if (last && field->id == last->id + 1) {
			*sequence += LIST_COUNT(1);
		} else {
			sequence = to++;
			*sequence = field->id;
			sequences++;
		}
		*to++ = sys_value(field);
		last = field;
	}
	*list = (u64)((void *)to - (void *)list) | (u64)sequences << 16;
	return SEAM_SUCCESS;
}
