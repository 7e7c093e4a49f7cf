/* SPDX-License-Identifier: GPL-2.0-only */
/* The physical address metadata table: a type and an owner for every page of a TDMR. */
#ifndef SOFTSEAM_PAMT_H
#define SOFTSEAM_PAMT_H

#include <linux/types.h>

#include "abi.h"
#include "lock.h"

#define SEAM_MAX_TDMRS		64
#define SEAM_MAX_RESERVED	16

struct seam_pamt {
	struct seam_lock lock;
	u8 type;
	u8 reserved;
	u32 bepoch;			/* TD epoch when the page was blocked */
	u64 owner;			/* PA of the TDR, 0 for a TDR */
};

static_assert(sizeof(struct seam_pamt) == 16);

struct seam_tdmr {
	u64 base, size;
	u64 initialised;		/* bytes of PAMT set up so far, from base */
	struct seam_pamt *pamt;
	struct seam_lock lock;
	u32 nr_reserved;
	struct { u64 offset, size; } reserved[SEAM_MAX_RESERVED];
};

typedef void (*pamt_report_fn)(u64 pa, const struct seam_pamt *pamt, void *arg);

extern struct seam_tdmr seam_tdmrs[SEAM_MAX_TDMRS];
extern u32 seam_nr_tdmrs;

u64 seam_check_pa(u64 pa, u64 align, u32 opnd);
u64 pamt_get(u64 pa, u32 opnd, struct seam_pamt **pamt);
u64 pamt_lock_page(u64 pa, u32 opnd, enum seam_page_type type,
		   enum seam_lock_kind kind, struct seam_pamt **pamt);
void pamt_take(struct seam_pamt *pamt, enum seam_page_type type, u64 owner);
void pamt_release(struct seam_pamt *pamt);
void pamt_init_range(struct seam_tdmr *tdmr, u64 bytes);
void pamt_for_each(enum seam_page_type type, pamt_report_fn fn, void *arg);
const void *pamt_peek(u64 pa, enum seam_page_type type, u64 owner);
const char *pamt_type_name(enum seam_page_type type);

#endif
