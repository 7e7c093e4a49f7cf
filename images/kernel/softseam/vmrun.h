/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef SOFTSEAM_VMRUN_H
#define SOFTSEAM_VMRUN_H

#include <linux/types.h>

#include "gprs.h"

void seam_vmrun(u64 guest_vmcb_pa, u64 host_vmcb_pa, struct seam_gprs *gprs);

#endif
