/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef SOFTSEAM_VAPIC_H
#define SOFTSEAM_VAPIC_H

#include <linux/types.h>

#include "vp.h"

void vapic_deliver(struct seam_vp *vp);
bool vapic_pending(const struct seam_tdvps *tdvps);
bool vapic_msr(struct seam_vp *vp, u32 msr, bool write, u64 *val);

#endif
