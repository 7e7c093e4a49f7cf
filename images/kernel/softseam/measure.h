/* SPDX-License-Identifier: GPL-2.0-only */
/* A TD's measurements, as its guest extends and reports them. */
#ifndef SOFTSEAM_MEASURE_H
#define SOFTSEAM_MEASURE_H

#include <linux/types.h>

#include "exit.h"
#include "gpa.h"
#include "vp.h"

/* The result is in @err, if the end is GPA_MAPPED or GPA_WRONG. */
enum gpa_end measure_extend(struct seam_vp *vp, struct seam_exit *exit, u64 *err);
enum gpa_end measure_report(struct seam_vp *vp, struct seam_exit *exit, u64 *err);

#endif
