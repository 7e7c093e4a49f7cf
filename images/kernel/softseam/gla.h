/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef SOFTSEAM_GLA_H
#define SOFTSEAM_GLA_H

#include <linux/types.h>

#include "vp.h"

bool gla_find(struct seam_vp *vp, u64 gpa, bool fetch, u64 *gla);

#endif
