/* SPDX-License-Identifier: GPL-2.0-only */
/* The guest's memory, as a TDCALL leaf accesses it. */
#ifndef SOFTSEAM_GPA_H
#define SOFTSEAM_GPA_H

#include <linux/bits.h>
#include <linux/types.h>

#include "exit.h"
#include "vp.h"

enum gpa_end {
	GPA_MAPPED,
	GPA_WRONG,		/* an error of the operand */
	GPA_REPEAT,		/* #VE: the guest handles it and repeats its TDCALL */
	GPA_EXIT,		/* an exit to the host, after which the guest repeats it */
};

#define GPA_WRITE	BIT(0)
#define GPA_MAY_SHARE	BIT(1)

enum gpa_end gpa_map(struct seam_vp *vp, u64 gpa, u32 flags, void **to, struct seam_exit *exit);
bool gpa_shared_fault_is_ve(const struct seam_vp *vp, u64 gpa);

#endif
