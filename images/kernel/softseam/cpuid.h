/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef SOFTSEAM_CPUID_H
#define SOFTSEAM_CPUID_H

#include <linux/types.h>

#include "abi.h"
#include "td.h"
#include "vp.h"

enum cpuid_feature { CPUID_DCA, CPUID_TME, CPUID_TSC_DEADLINE, CPUID_TSX, CPUID_WAITPKG };

unsigned int cpuid_nr_configs(void);
u64 cpuid_config_leaf(unsigned int config);
void cpuid_config_mask(unsigned int config, struct seam_cpuid *mask);
u64 cpuid_apply(struct seam_tdcs *tdcs, const struct seam_td_params *params, u64 *info);
bool cpuid_guest(const struct seam_vp *vp, u32 leaf, u32 subleaf, struct seam_cpuid *to);
bool cpuid_offers(const struct seam_tdcs *tdcs, enum cpuid_feature feature);
const struct seam_cpuid *cpuid_find_field(const struct seam_tdcs *tdcs, u64 field);
u32 cpuid_platform_fms(void);

#endif
