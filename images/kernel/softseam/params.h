/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef SOFTSEAM_PARAMS_H
#define SOFTSEAM_PARAMS_H

#include <linux/types.h>

#include "abi.h"
#include "td.h"

extern const u64 seam_attributes_fixed0, seam_attributes_fixed1;
extern const u64 seam_xfam_fixed0, seam_xfam_fixed1;

u64 params_apply(struct seam_tdcs *tdcs, const struct seam_td_params *params, u64 *info);

#endif
