// SPDX-License-Identifier: GPL-2.0-only
/*
 * Packages by their logical id: physical ids depend on the width of the APIC
 * id's fields, so two packages can be number 0 and 128.
 */
#include <linux/smp.h>
#include <linux/topology.h>

#include "package.h"

unsigned long seam_packages;

bool seam_packages_fit(void)
{
	return topology_max_packages() <= SEAM_MAX_PACKAGES;
}

unsigned int seam_this_package(void)
{
	return topology_logical_package_id(raw_smp_processor_id());
}
