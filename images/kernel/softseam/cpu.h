/* SPDX-License-Identifier: GPL-2.0-only */
/* The CPU under softseam: whether it is an emulated one, and the command line's numbers. */
#ifndef SOFTSEAM_CPU_H
#define SOFTSEAM_CPU_H

#include <linux/types.h>

#define SEAM_MAX_KEYIDS		256
#define SEAM_NR_MKTME_KEYIDS	15
#define SEAM_FIRST_KEYID	(SEAM_NR_MKTME_KEYIDS + 1)

extern u32 seam_nr_keyids;		/* TDX KeyIDs, the global one included */
extern u32 seam_max_vcpus;		/* max_vcpus_per_td */

bool seam_active(void);
void seam_enable_svm(void);
u64 seam_host_vmcb_pa(void);

#endif
