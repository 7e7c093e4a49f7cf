/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef SOFTSEAM_VAPIC_H
#define SOFTSEAM_VAPIC_H

#include <linux/types.h>

#include "vp.h"

#define X2APIC_TPR	0x808

void vapic_deliver(struct seam_vp *vp);
bool vapic_pending(const struct seam_tdvps *tdvps);
u64 vapic_read(const struct seam_tdvps *tdvps, u32 msr);
bool vapic_write(struct seam_tdvps *tdvps, u32 msr, u64 val);

#endif
