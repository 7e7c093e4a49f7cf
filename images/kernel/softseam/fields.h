/* SPDX-License-Identifier: GPL-2.0-only */
/* The metadata fields that a guest may access. */
#ifndef SOFTSEAM_FIELDS_H
#define SOFTSEAM_FIELDS_H

#include <linux/types.h>

#include "vp.h"

enum field_context { CONTEXT_SYS, CONTEXT_TD, CONTEXT_VP };

u64 fields_read(const struct seam_vp *vp, enum field_context context, u64 id, u64 *val, u64 *next);
u64 fields_write(struct seam_vp *vp, enum field_context context, u64 id, u64 val, u64 mask,
		 u64 *old);
u64 fields_dump_sys(u64 *list, u64 *next);

#endif
