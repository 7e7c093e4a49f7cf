/* SPDX-License-Identifier: GPL-2.0-only */
/* The TDR and TDCS, and a leaf's hold on them. */
#ifndef SOFTSEAM_TD_H
#define SOFTSEAM_TD_H

#include <crypto/sha2.h>
#include <linux/atomic.h>
#include <linux/bitmap.h>
#include <linux/types.h>
#include <asm/page.h>

#include "abi.h"
#include "lock.h"
#include "pamt.h"

#define SEAM_NR_TDCS_PAGES	6
#define SEAM_NR_CPUID		80
#define SEAM_NR_RTMRS		4

/* What the pages that TDH.MNG.ADDCX adds contain; the others are there because real ones are. */
enum { TDCS_STATE, TDCS_CPUID, TDCS_SPARE, TDCS_SEPT_ROOT };

struct seam_tdr {
	u32 lifecycle;
	u32 fatal;
	u32 hkid;
	u32 nr_tdcx;
	atomic64_t children;		/* pages that are owned by this TD */
	unsigned long configured;	/* packages that have its key */
	u64 tdcx[SEAM_NR_TDCS_PAGES];
};

struct seam_cpuid {
	u32 val[4];			/* eax, ebx, ecx, edx */
};

struct seam_tdcs {
	u32 op_state;
	u32 nr_vcpus;
	atomic_t nr_assoc;
	struct seam_lock sept_lock;
	struct seam_lock epoch_lock;
	u64 epoch;
	atomic_t in_epoch[2];		/* vCPUs inside, by parity of their epoch */
	u64 attributes;
	u64 xfam;
	u64 config_flags;
	u64 eptp_controls;
	u64 tsc_offset;
	u64 tsc_multiplier;
	u16 max_vcpus;
	u16 tsc_frequency;
	u8 gpaw;			/* 48 or 52 */
	u8 mrconfigid[48], mrowner[48], mrownerconfig[48];
	struct sha384_ctx measuring;
	u8 mrtd[SHA384_DIGEST_SIZE];
	u8 rtmr[SEAM_NR_RTMRS][SHA384_DIGEST_SIZE];
	struct seam_lock rtmr_lock;
	bool topology_configured;	/* every vCPU has an x2APIC id */
	u64 uuid[4];
	/* What the guest sets with TDG.VM.WR */
	u64 td_ctls;
	u64 notify_enables;
	u64 sept_root;
	struct seam_cpuid *cpuid;	/* SEAM_NR_CPUID values, in a page of the TD's */
	DECLARE_BITMAP(x2apic_ids, 1024);
};

static_assert(sizeof(struct seam_tdr) <= PAGE_SIZE);
static_assert(sizeof(struct seam_tdcs) <= PAGE_SIZE);

/* A TD that a leaf works on, with what has to be unlocked afterwards */
struct seam_td {
	u64 pa;
	struct seam_pamt *pamt;
	enum seam_lock_kind kind;
	struct seam_tdr *tdr;
	struct seam_tdcs *tdcs;
};

#define OP_MASK(state)	BIT(OP_##state)

u64 td_lock(u64 tdr_pa, u32 opnd, enum seam_lock_kind kind, struct seam_td *td);
u64 td_lock_owner(struct seam_pamt *page, enum seam_lock_kind kind, struct seam_td *td);
u64 td_check_state(struct seam_td *td, u32 op_mask);
void td_unlock(struct seam_td *td);
u64 seam_take_page(struct seam_td *td, u64 pa, u32 opnd, enum seam_page_type type);

#endif
