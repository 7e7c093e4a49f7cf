/* SPDX-License-Identifier: GPL-2.0-only */
/* The MSRs of a guest. */
#ifndef SOFTSEAM_MSR_H
#define SOFTSEAM_MSR_H

#include <linux/types.h>

#include "vp.h"

u64 msr_permissions_pa(void);
void msr_access(struct seam_vp *vp);
u64 msr_load(const struct seam_vp *vp);
void msr_put_back(u64 host);
void msr_rdtsc(struct seam_vp *vp, bool with_aux);

#endif
