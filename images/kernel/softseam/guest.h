/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef SOFTSEAM_GUEST_H
#define SOFTSEAM_GUEST_H

#include <linux/types.h>

#include "exit.h"
#include "vp.h"

void guest_reset(struct seam_vp *vp, u64 rcx);
void guest_sync_shared_root(struct seam_vp *vp);
enum guest_next guest_handle_exit(struct seam_vp *vp, struct seam_exit *exit);

#endif
