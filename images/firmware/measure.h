/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Measurements in the TD's RTMRs, and the log of them (UEFI 2.10, 38: CC measurement protocol). */
#ifndef MEASURE_H
#define MEASURE_H

#include "lib.h"

struct part {
	const void *data;
	u64 size;
};

#define RTMR_KERNEL	1
#define RTMR_OS		2

void measure_init(void);
/* Extends an RTMR with the SHA-384 of data that are in two parts; the event's text goes to the log. */
void measure(u32 rtmr, const char *event, struct part first, struct part second);

#endif
