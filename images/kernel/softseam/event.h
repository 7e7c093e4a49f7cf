/* SPDX-License-Identifier: GPL-2.0-only */
/* Events for the guest, injected by its next VMRUN. */
#ifndef SOFTSEAM_EVENT_H
#define SOFTSEAM_EVENT_H

#include <linux/types.h>

#include "vp.h"

void event_exception(struct seam_vp *vp, int vector, bool has_error, u32 error);
void event_ve(struct seam_vp *vp, u32 reason, u64 qualification, u64 gla, u64 gpa,
	      u32 insn_len, u32 insn_info);

#endif
