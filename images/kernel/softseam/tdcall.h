/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef SOFTSEAM_TDCALL_H
#define SOFTSEAM_TDCALL_H

#include "exit.h"
#include "vp.h"

enum guest_next tdcall_handle(struct seam_vp *vp, struct seam_exit *exit);

#endif
