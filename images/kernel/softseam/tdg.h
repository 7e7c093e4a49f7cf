/* SPDX-License-Identifier: GPL-2.0-only */
/* The guest's leaves on its TD. */
#ifndef SOFTSEAM_TDG_H
#define SOFTSEAM_TDG_H

#include <linux/types.h>

#include "vp.h"

u64 tdg_rtmr_extend(struct seam_vp *vp);
u64 tdg_vm_rd(struct seam_vp *vp);
u64 tdg_vm_wr(struct seam_vp *vp);

#endif
