/* SPDX-License-Identifier: GPL-2.0-only */
/* A TD's TSC, which starts at 0 with it and runs at TSC_FREQUENCY. */
#ifndef SOFTSEAM_TSC_H
#define SOFTSEAM_TSC_H

#include <linux/types.h>

#include "td.h"

void tsc_start(struct seam_tdcs *tdcs);
bool tsc_is_scaled(const struct seam_tdcs *tdcs);
u64 tsc_now(const struct seam_tdcs *tdcs);

#endif
