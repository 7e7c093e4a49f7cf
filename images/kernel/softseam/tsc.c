// SPDX-License-Identifier: GPL-2.0-only
#include <linux/bits.h>
#include <linux/math64.h>
#include <asm/tsc.h>

#include "td.h"
#include "tsc.h"

#define FRACTION_BITS	48
#define ONE		BIT_ULL(FRACTION_BITS)
#define UNIT_KHZ	25000ULL

static u64 scaled(const struct seam_tdcs *tdcs, u64 tsc)
{
	return mul_u64_u64_shr(tsc, tdcs->tsc_multiplier, FRACTION_BITS);
}

/*
 * SVM under TCG does not scale the TSC, so that RDTSC is an exit in a TD that wants
 * another rate.  The host's own, by whole units, is within 1/64 of one that is
 * asked for and left as it is.
 */
void tsc_start(struct seam_tdcs *tdcs)
{
	u64 ratio = ONE;

	/* 0 if the kernel could not find it out */
	if (tsc_khz)
		ratio = mul_u64_u64_div_u64(tdcs->tsc_frequency * UNIT_KHZ, ONE, tsc_khz);
	tdcs->tsc_multiplier = ratio > ONE - ONE / 64 && ratio < ONE + ONE / 64 ? ONE : ratio;
	tdcs->tsc_offset = -scaled(tdcs, rdtsc());
}

bool tsc_is_scaled(const struct seam_tdcs *tdcs)
{
	return tdcs->tsc_multiplier != ONE;
}

u64 tsc_now(const struct seam_tdcs *tdcs)
{
	return scaled(tdcs, rdtsc()) + tdcs->tsc_offset;
}
