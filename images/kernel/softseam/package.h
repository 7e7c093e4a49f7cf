/* SPDX-License-Identifier: GPL-2.0-only */
/* Processor packages, numbered from 0 without gaps, as bits of an unsigned long. */
#ifndef SOFTSEAM_PACKAGE_H
#define SOFTSEAM_PACKAGE_H

#include <linux/bits.h>
#include <linux/types.h>

#define SEAM_MAX_PACKAGES	BITS_PER_LONG

extern unsigned long seam_packages;	/* those that a logical processor initialised */

bool seam_packages_fit(void);
unsigned int seam_this_package(void);

#endif
