/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef SOFTSEAM_CR_H
#define SOFTSEAM_CR_H

#include "vp.h"

void cr_write(struct seam_vp *vp, unsigned int cr);
void cr8_access(struct seam_vp *vp, bool is_write);
void cr_xsetbv(struct seam_vp *vp);

#endif
