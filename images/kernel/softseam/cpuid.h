/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef SOFTSEAM_CPUID_H
#define SOFTSEAM_CPUID_H

#include <linux/types.h>

#include "abi.h"
#include "td.h"

unsigned int cpuid_nr_configs(void);
u64 cpuid_config_leaf(unsigned int config);
void cpuid_config_mask(unsigned int config, struct seam_cpuid *mask);
u64 cpuid_apply(struct seam_tdcs *tdcs, const struct seam_td_params *params, u64 *info);
const struct seam_cpuid *cpuid_find(const struct seam_tdcs *tdcs, u32 leaf, u32 subleaf);
const struct seam_cpuid *cpuid_find_field(const struct seam_tdcs *tdcs, u64 field);
u32 cpuid_platform_fms(void);

#endif
