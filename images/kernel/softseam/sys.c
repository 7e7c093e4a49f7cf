// SPDX-License-Identifier: GPL-2.0-only
/* The module as a whole: SYS leaves and the fields that SYS.RD returns. */
#include <linux/bitops.h>
#include <linux/init.h>
#include <linux/kernel.h>
#include <linux/percpu.h>
#include <linux/sizes.h>
#include <linux/string.h>
#include <asm/page.h>
#include <asm/processor.h>

#include "abi.h"
#include "cpu.h"
#include "cpuid.h"
#include "kot.h"
#include "lock.h"
#include "package.h"
#include "pamt.h"
#include "params.h"
#include "sys.h"
#include "td.h"
#include "vp.h"

#define MODULE_HANDOFF	1
#define VENDOR_INTEL	0x8086
#define FIELD_MODULE_HV	0x8900000100000000ULL
/* Bytes of a TDMR whose PAMT entries one TDH.SYS.TDMR.INIT sets up */
#define TDMR_INIT_CHUNK	SZ_64M

enum seam_sys_state seam_sys_state;

static struct seam_lock sys_lock;
static unsigned long configured_packages;
static DEFINE_PER_CPU(bool, lp_initialised);

/* TDMR_INFO, TDH.SYS.CONFIG */
struct host_tdmr {
	u64 base, size;
	u64 pamt_1g_base, pamt_1g_size;
	u64 pamt_2m_base, pamt_2m_size;
	u64 pamt_4k_base, pamt_4k_size;
	struct { u64 offset, size; } reserved[SEAM_MAX_RESERVED];
};

static bool this_lp_initialised(void)
{
	return __this_cpu_read(lp_initialised);
}

/* TDH.SYS.INIT: rcx attributes, all reserved */
u64 leaf_sys_init(struct pt_regs *regs)
{
	if (!seam_trylock_excl(&sys_lock))
		return SEAM_SYS_BUSY;
	if (regs->cx) {
		seam_unlock_excl(&sys_lock);
		return OPND(SEAM_OPERAND_INVALID, OPND_RCX);
	}
	if (seam_sys_state != SYS_INIT_PENDING) {
		seam_unlock_excl(&sys_lock);
		return SEAM_SYS_INIT_NOT_PENDING;
	}
	seam_sys_state = SYS_INIT_DONE;
	seam_unlock_excl(&sys_lock);
	return SEAM_SUCCESS;
}

/*
 * TDH.SYS.LP.INIT.  Unlike module 1.5.01 it is allowed after SYS.CONFIG, since
 * Linux calls it for a CPU that comes online for the first time.
 */
u64 leaf_sys_lp_init(struct pt_regs *regs)
{
	u64 err = SEAM_SUCCESS;

	regs->cx = 0;
	regs->dx = 0;
	regs->r8 = 0;
	if (!seam_trylock_shared(&sys_lock))
		return SEAM_SYS_BUSY;
	if (seam_sys_state == SYS_INIT_PENDING) {
		err = SEAM_SYS_LP_INIT_NOT_PENDING;
	} else if (this_lp_initialised()) {
		err = SEAM_SYS_LP_INIT_DONE;
	} else {
		seam_enable_svm();
		set_bit(seam_this_package(), &seam_packages);
		__this_cpu_write(lp_initialised, true);
	}
	seam_unlock_shared(&sys_lock);
	return err;
}

/* Fields that TDH.SYS.RD reports as a module with other limits would */
static struct { u64 field, val; } reported[8];
static unsigned int nr_reported;

static int __init parse_report(char *arg)
{
	char *item, *val;

	while ((item = strsep(&arg, ","))) {
		val = item;
		strsep(&val, ":");
		if (nr_reported == ARRAY_SIZE(reported) || !val ||
		    kstrtou64(item, 0, &reported[nr_reported].field) ||
		    kstrtou64(val, 0, &reported[nr_reported].val)) {
			pr_err("softseam.report: '%s' is no FIELD:VALUE, or too many\n", item);
			return -EINVAL;
		}
		nr_reported++;
	}
	return 0;
}
early_param("softseam.report", parse_report);

static u64 reported_value(u64 field, u64 val)
{
	unsigned int i;

	for (i = 0; i < nr_reported; i++)
		if (reported[i].field == field)
			return reported[i].val;
	return val;
}

/* A field of the module's, for its host and for guests; false without one of that id */
bool sys_field(u64 field, u64 *val)
{
	struct seam_cpuid mask;
	u64 n;

	switch (field) {
	case FIELD_VENDOR_ID:
		*val = VENDOR_INTEL;
		return true;
	case FIELD_MAJOR_VERSION:
		*val = SEAM_VERSION_MAJOR;
		return true;
	case FIELD_MINOR_VERSION:
		*val = SEAM_VERSION_MINOR;
		return true;
	case FIELD_UPDATE_VERSION:
		*val = SEAM_VERSION_UPDATE;
		return true;
	case FIELD_MODULE_HV:
		*val = MODULE_HANDOFF;
		return true;
	case FIELD_SYS_ATTRIBUTES:
		*val = 0;
		return true;
	case FIELD_NUM_TDX_FEATURES:
		*val = 1;
		return true;
	case FIELD_FEATURES0:
		*val = FEATURES0_TDG_VP_RDWR | FEATURES0_PENDING_EPT_VIOLATION |
		       FEATURES0_NO_RBP_MOD | FEATURES0_TOPOLOGY_ENUM;
		return true;
	case FIELD_MAX_TDMRS:
		*val = SEAM_MAX_TDMRS;
		return true;
	case FIELD_MAX_RESERVED:
		*val = SEAM_MAX_RESERVED;
		return true;
	case FIELD_PAMT_4K_SIZE:
	case FIELD_PAMT_2M_SIZE:
	case FIELD_PAMT_1G_SIZE:
		*val = sizeof(struct seam_pamt);
		return true;
	case FIELD_TDR_SIZE:
		*val = PAGE_SIZE;
		return true;
	case FIELD_TDCS_SIZE:
		*val = SEAM_NR_TDCS_PAGES * PAGE_SIZE;
		return true;
	case FIELD_TDVPS_SIZE:
		*val = SEAM_NR_TDVPS_PAGES * PAGE_SIZE;
		return true;
	case FIELD_ATTRIBUTES_FIXED0:
		*val = seam_attributes_fixed0;
		return true;
	case FIELD_ATTRIBUTES_FIXED1:
		*val = seam_attributes_fixed1;
		return true;
	case FIELD_XFAM_FIXED0:
		*val = seam_xfam_fixed0;
		return true;
	case FIELD_XFAM_FIXED1:
		*val = seam_xfam_fixed1;
		return true;
	case FIELD_NUM_CPUID_CONFIG:
		*val = cpuid_nr_configs();
		return true;
	case FIELD_MAX_VCPUS_PER_TD:
		*val = seam_max_vcpus;
		return true;
	}
	n = field - FIELD_CPUID_CONFIG_LEAVES;
	if (n < cpuid_nr_configs()) {
		*val = cpuid_config_leaf(n);
		return true;
	}
	n = field - FIELD_CPUID_CONFIG_VALUES;
	if (n < 2 * cpuid_nr_configs()) {
		cpuid_config_mask(n / 2, &mask);
		*val = mask.val[n % 2 * 2] | (u64)mask.val[n % 2 * 2 + 1] << 32;
		return true;
	}
	return false;
}

/*
 * TDH.SYS.RD: rdx field; out r8 value.  rdx does not return the next field,
 * which Linux ignores.
 */
u64 leaf_sys_rd(struct pt_regs *regs)
{
	u64 field = regs->dx, val;

	regs->r8 = 0;
	regs->dx = ~0ULL;
	if (!this_lp_initialised())
		return SEAM_SYS_LP_INIT_NOT_DONE;
	if (!sys_field(field, &val))
		return SEAM_METADATA_FIELD_ID_INCORRECT;
	regs->r8 = reported_value(field, val);
	return SEAM_SUCCESS;
}

static u64 check_reserved(const struct host_tdmr *from, struct seam_tdmr *tdmr, u32 n)
{
	u64 end = 0;
	u32 i;

	for (i = 0; i < SEAM_MAX_RESERVED && from->reserved[i].size; i++) {
		u64 offset = from->reserved[i].offset, size = from->reserved[i].size;

		if (offset < end)
			return SEAM_NON_ORDERED_RESERVED_IN_TDMR | i << 8 | n;
		if ((offset | size) & (PAGE_SIZE - 1) || offset + size > tdmr->size)
			return SEAM_INVALID_RESERVED_IN_TDMR | i << 8 | n;
		tdmr->reserved[i].offset = offset;
		tdmr->reserved[i].size = size;
		end = offset + size;
	}
	tdmr->nr_reserved = i;
	return SEAM_SUCCESS;
}

static u64 add_tdmr(const struct host_tdmr *from, u32 n)
{
	struct seam_tdmr *tdmr = &seam_tdmrs[n];
	u64 pamt_size = from->size / PAGE_SIZE * sizeof(struct seam_pamt);

	if (n && from->base < tdmr[-1].base + tdmr[-1].size)
		return SEAM_NON_ORDERED_TDMR | n;
	if (!from->size || (from->base | from->size) & (SZ_1G - 1) ||
	    (from->base + from->size - 1) >> boot_cpu_data.x86_phys_bits)
		return SEAM_INVALID_TDMR | n;
	if (from->pamt_4k_base & (PAGE_SIZE - 1) || from->pamt_4k_size < pamt_size)
		return SEAM_INVALID_PAMT | n;

	*tdmr = (struct seam_tdmr) {
		.base = from->base,
		.size = from->size,
		.pamt = __va(from->pamt_4k_base),
	};
	return check_reserved(from, tdmr, n);
}

/* TDH.SYS.CONFIG: rcx array of TDMR_INFO addresses, rdx their number, r8 global KeyID */
u64 leaf_sys_config(struct pt_regs *regs)
{
	u64 *array, err;
	u32 n;

	if (!seam_trylock_excl(&sys_lock))
		return SEAM_SYS_BUSY;
	err = SEAM_SYS_CONFIG_NOT_PENDING;
	if (seam_sys_state != SYS_INIT_DONE)
		goto out;
	err = seam_check_pa(regs->cx, 512, OPND_RCX);
	if (err)
		goto out;
	err = OPND(SEAM_OPERAND_INVALID, OPND_RDX);
	if (!regs->dx || regs->dx > SEAM_MAX_TDMRS)
		goto out;
	err = OPND(SEAM_OPERAND_INVALID, OPND_R8);
	if (!kot_is_tdx_keyid(regs->r8))
		goto out;
	kot_reserve(regs->r8);

	array = __va(regs->cx);
	for (n = 0; n < regs->dx; n++) {
		err = seam_check_pa(array[n], 512, OPND_RCX);
		if (!err)
			err = add_tdmr(__va(array[n]), n);
		if (err)
			goto out;
	}
	seam_nr_tdmrs = n;
	configured_packages = 0;
	seam_sys_state = SYS_CONFIG_DONE;
	err = SEAM_SUCCESS;
out:
	seam_unlock_excl(&sys_lock);
	return err;
}

/* TDH.SYS.KEY.CONFIG: the global key of this package; after the last one the module is ready */
u64 leaf_sys_key_config(struct pt_regs *regs)
{
	unsigned long package = BIT(seam_this_package());
	u64 err = SEAM_SUCCESS;

	if (!seam_trylock_excl(&sys_lock))
		return SEAM_SYS_BUSY;
	if (seam_sys_state != SYS_CONFIG_DONE) {
		err = SEAM_SYS_KEY_CONFIG_NOT_PENDING;
	} else if (configured_packages & package) {
		err = SEAM_KEY_CONFIGURED;
	} else {
		configured_packages |= package;
		if (configured_packages == seam_packages)
			seam_sys_state = SYS_READY;
	}
	seam_unlock_excl(&sys_lock);
	return err;
}

/* TDH.SYS.TDMR.INIT: rcx base of a TDMR; out rdx next address, by whole GiB */
u64 leaf_sys_tdmr_init(struct pt_regs *regs)
{
	u64 base = regs->cx;
	struct seam_tdmr *tdmr = NULL;
	u32 n;

	regs->dx = 0;
	for (n = 0; n < seam_nr_tdmrs; n++)
		if (seam_tdmrs[n].base == base)
			tdmr = &seam_tdmrs[n];
	if (!tdmr)
		return OPND(SEAM_OPERAND_INVALID, OPND_RCX);
	if (!seam_trylock_excl(&tdmr->lock))
		return OPND(SEAM_OPERAND_BUSY, OPND_RCX);
	if (tdmr->initialised == tdmr->size) {
		seam_unlock_excl(&tdmr->lock);
		return SEAM_TDMR_ALREADY_INITIALIZED;
	}
	pamt_init_range(tdmr, TDMR_INIT_CHUNK);
	regs->dx = base + round_down(tdmr->initialised, SZ_1G);
	seam_unlock_excl(&tdmr->lock);
	return SEAM_SUCCESS;
}

/* TDH.SYS.SHUTDOWN and TDH.SYS.DISABLE: every later leaf fails */
u64 leaf_sys_shutdown(struct pt_regs *regs)
{
	if (!seam_trylock_excl(&sys_lock))
		return SEAM_SYS_BUSY;
	seam_sys_state = SYS_SHUTDOWN_DONE;
	seam_unlock_excl(&sys_lock);
	return SEAM_SUCCESS;
}
