/* SPDX-License-Identifier: GPL-2.0-only */
/* The guest's own page tables. */
#ifndef SOFTSEAM_GVA_H
#define SOFTSEAM_GVA_H

#include <linux/types.h>

#include "vp.h"

bool gva_to_gpa(struct seam_vp *vp, u64 gva, u64 *gpa);
void gva_print(struct seam_vp *vp, const char *what, u64 gva);

#endif
