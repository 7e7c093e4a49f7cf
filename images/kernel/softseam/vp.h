/* SPDX-License-Identifier: GPL-2.0-only */
/* The TDVPS, and a leaf's hold on it. */
#ifndef SOFTSEAM_VP_H
#define SOFTSEAM_VP_H

#include <linux/atomic.h>
#include <linux/bits.h>
#include <linux/ptrace.h>
#include <linux/types.h>
#include <asm/page.h>

#include "abi.h"
#include "gprs.h"
#include "td.h"
#include "vmcb.h"

#define SEAM_NR_TDVPS_PAGES	6
#define SEAM_NR_KEPT_MSRS	8

/* What the pages that TDH.VP.ADDCX adds contain */
enum { TDVPS_VMCB, TDVPS_APIC, TDVPS_XSAVE };

struct seam_ve_info {
	bool valid;
	u32 exit_reason;
	u64 qualification, gla, gpa;
	u32 insn_len, insn_info;
};

enum last_exit { LAST_ASYNC, LAST_TDVMCALL };

/* From an NMI until the IRET of its handler is done there is no other. */
enum nmi_state { NMI_OPEN, NMI_BLOCKED, NMI_IN_IRET };

struct seam_tdvps {
	u32 state;
	u32 nr_pages;
	u32 index;
	u32 x2apic_id;
	atomic_t lp;			/* associated logical processor, -1 none */
	u32 last_exit;
	u32 vmcall_mask;
	u8 cpuid_ve[2];			/* CPUID is #VE: at CPL 0, above it */
	bool repeat_accept;		/* the last exit to the host was by an accept */
	u64 epoch;
	u64 tdcx[SEAM_NR_TDVPS_PAGES - 1];
	struct seam_gprs gprs;
	struct seam_ve_info ve;
	/* Fields that TDH.VP.WR sets */
	u16 posted_vector;
	bool posted_vector_set, posted_desc_set;
	bool pend_nmi;
	u8 nmi_state;
	u32 pin_controls, proc2_controls, notify_window;
	u64 posted_desc;
	u64 shared_eptp;
	u64 nr_entries, nr_exits;
	u64 exit_code, exit_rip;		/* the last, for debugfs */
	u64 xcr0;
	u64 kept_msrs[SEAM_NR_KEPT_MSRS];	/* of the rules in msr.c */
};

static_assert(sizeof(struct seam_tdvps) <= PAGE_SIZE);

static inline struct seam_vmcb *vp_vmcb(const struct seam_tdvps *tdvps)
{
	return __va(tdvps->tdcx[TDVPS_VMCB]);
}

static inline void *vp_apic_page(const struct seam_tdvps *tdvps)
{
	return __va(tdvps->tdcx[TDVPS_APIC]);
}

static inline void *vp_xsave_area(const struct seam_tdvps *tdvps)
{
	return __va(tdvps->tdcx[TDVPS_XSAVE]);
}

/* A vCPU that a leaf works on, with what has to be unlocked afterwards */
struct seam_vp {
	u64 pa;
	struct seam_pamt *pamt;
	enum seam_lock_kind kind;
	struct seam_tdvps *tdvps;
	struct seam_td td;
};

u64 vp_lock(u64 pa, u32 opnd, enum seam_lock_kind kind, enum seam_lock_kind td_kind,
	    struct seam_vp *vp);
void vp_unlock(struct seam_vp *vp);
u64 vp_associate(struct seam_vp *vp, bool allow_disabled);
u64 leaf_vp_create(struct pt_regs *regs);
u64 leaf_vp_addcx(struct pt_regs *regs);
u64 leaf_vp_init(struct pt_regs *regs);
u64 leaf_vp_flush(struct pt_regs *regs);
u64 leaf_vp_rd(struct pt_regs *regs);
u64 leaf_vp_wr(struct pt_regs *regs);

#endif
