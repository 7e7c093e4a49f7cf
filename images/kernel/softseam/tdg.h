/* SPDX-License-Identifier: GPL-2.0-only */
/* TDCALL leaves that access the metadata of the module, a TD and a vCPU. */
#ifndef SOFTSEAM_TDG_H
#define SOFTSEAM_TDG_H

#include <linux/types.h>

#include "exit.h"
#include "gpa.h"
#include "vp.h"

u64 tdg_vm_rd(struct seam_vp *vp, unsigned int version);
u64 tdg_vm_wr(struct seam_vp *vp);
u64 tdg_vp_rd(struct seam_vp *vp);
u64 tdg_vp_wr(struct seam_vp *vp);
u64 tdg_sys_rd(struct seam_vp *vp);
enum gpa_end tdg_sys_rdall(struct seam_vp *vp, struct seam_exit *exit, u64 *err);

#endif
