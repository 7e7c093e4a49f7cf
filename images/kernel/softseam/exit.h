/* SPDX-License-Identifier: GPL-2.0-only */
/* What ends a TDH.VP.ENTER. */
#ifndef SOFTSEAM_EXIT_H
#define SOFTSEAM_EXIT_H

#include <linux/types.h>

struct seam_exit {
	u64 rax, rcx, rdx, r8, r9;	/* VP.ENTER's outputs of an asynchronous exit */
	bool tdvmcall;			/* outputs are the guest's registers instead */
};

enum guest_next { GUEST_RESUME, GUEST_EXIT };

#endif
