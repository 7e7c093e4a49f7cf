/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * softseam: a software model of the TDX module, for testing KVM.
 *
 * Where state lives: what belongs to a TD lies in the pages that the host
 * gave for it (TDR, TDCX, TDVPR, S-EPT) and what the module knows of a page
 * lies in the PAMT that the host gave at SYS.CONFIG, as in the real one.
 * Nothing is allocated at run time and nothing sleeps: leaves run in the #UD
 * handler with interrupts off.
 */
#ifndef SOFTSEAM_H
#define SOFTSEAM_H

#include <crypto/sha2.h>
#include <linux/atomic.h>
#include <linux/mm_types.h>
#include <linux/io.h>
#include <linux/percpu.h>
#include <linux/ptrace.h>
#include <linux/seq_file.h>

#include "abi.h"
#include "lock.h"
#include "vmcb.h"

/* The first version whose ABI has all that Linux 7.3 asks for is 1.5.05. */
#define SEAM_VERSION_MAJOR	1
#define SEAM_VERSION_MINOR	5
#define SEAM_VERSION_UPDATE	24

#define SEAM_MAX_KEYIDS		256
#define SEAM_MAX_TDMRS		64
#define SEAM_MAX_RESERVED	16
#define SEAM_NR_TDCS_PAGES	6
#define SEAM_NR_TDVPS_PAGES	6
#define SEAM_NR_CPUID		32
/* In any code that carries an operand's id */
#define OPND(code, id)		((code) | (id))

/* cpu.c: is this an emulated CPU, and what was asked for on the command line */
extern u32 seam_nr_keyids;		/* TDX KeyIDs, the global one included */
extern u32 seam_max_vcpus;		/* max_vcpus_per_td */
#define SEAM_NR_MKTME_KEYIDS	15
#define SEAM_FIRST_KEYID	(SEAM_NR_MKTME_KEYIDS + 1)
bool seam_active(void);
void seam_enable_svm(void);
/* arch/x86/kernel/fpu/core.c */
extern struct fpstate init_fpstate;

u64 seam_hsave_pa(void);
u64 seam_host_vmcb_pa(void);
int seam_this_package(void);

/* trap.c, vmx.c */
bool vmx_emulate(struct pt_regs *regs, const u8 *opcode, int modrm,
		 unsigned long mem, unsigned long *reg1, unsigned long *reg2);

/* dispatch.c */
u64 seam_dispatch(struct pt_regs *regs);
const char *seam_leaf_name(unsigned int leaf);
int seam_leaf_by_name(const char *name);
void seam_leaves_show(struct seq_file *m);
unsigned int seam_nr_leaves(void);

/* inject.c */
bool seam_injected(unsigned int leaf, u64 *code);
int seam_inject_arm(unsigned int leaf, u32 nth, u32 count, u64 code);
void seam_inject_clear(void);
void seam_inject_show(struct seq_file *m);
void seam_errors_count(unsigned int leaf, u64 code);
void seam_errors_show(struct seq_file *m);

/* sys.c */
enum seam_sys_state {
	SYS_INIT_PENDING, SYS_INIT_DONE, SYS_CONFIG_DONE, SYS_READY,
	SYS_SHUTDOWN_DONE,
};

extern enum seam_sys_state seam_sys_state;
extern u64 seam_packages;		/* bitmap, those that initialised */
bool seam_lp_initialised(void);
u64 leaf_sys_init(struct pt_regs *regs);
u64 leaf_sys_lp_init(struct pt_regs *regs);
u64 leaf_sys_rd(struct pt_regs *regs);
u64 leaf_sys_config(struct pt_regs *regs);
u64 leaf_sys_key_config(struct pt_regs *regs);
u64 leaf_sys_tdmr_init(struct pt_regs *regs);
u64 leaf_sys_shutdown(struct pt_regs *regs);

/* pamt.c: a type and an owner for every page of a TDMR */
struct seam_pamt {
	struct seam_lock lock;
	u8 type;
	u8 reserved;
	u32 bepoch;			/* TD epoch when the page was blocked */
	u64 owner;			/* PA of the TDR, 0 for a TDR */
};

static_assert(sizeof(struct seam_pamt) == 16);

struct seam_tdmr {
	u64 base, size;
	u64 initialised;		/* bytes of PAMT set up so far, from base */
	struct seam_pamt *pamt;
	struct seam_lock lock;
	u32 nr_reserved;
	struct { u64 offset, size; } reserved[SEAM_MAX_RESERVED];
};

enum seam_lock_kind { SHARED, EXCLUSIVE };

extern struct seam_tdmr seam_tdmrs[SEAM_MAX_TDMRS];
extern u32 seam_nr_tdmrs;
u64 seam_check_pa(u64 pa, u64 align, u32 opnd);
u64 pamt_get(u64 pa, u32 opnd, struct seam_pamt **pamt);
u64 pamt_lock_page(u64 pa, u32 opnd, enum seam_page_type type,
		   enum seam_lock_kind kind, struct seam_pamt **pamt);
void pamt_unlock(struct seam_pamt *pamt, enum seam_lock_kind kind);
void pamt_take(struct seam_pamt *pamt, enum seam_page_type type, u64 owner);
void pamt_release(struct seam_pamt *pamt);
void pamt_init_range(struct seam_tdmr *tdmr, u64 bytes);
void pamt_for_each(enum seam_page_type type,
		   void (*fn)(u64 pa, struct seam_pamt *pamt, void *arg), void *arg);
long pamt_count(enum seam_page_type type);
const char *pamt_type_name(enum seam_page_type type);
u64 leaf_phymem_page_rdmd(struct pt_regs *regs);
u64 leaf_phymem_page_reclaim(struct pt_regs *regs);
u64 leaf_phymem_page_wbinvd(struct pt_regs *regs);

/* kot.c: the key ownership table */
enum kot_state { KOT_FREE, KOT_ASSIGNED, KOT_FLUSHED, KOT_RESERVED };

extern struct seam_lock kot_lock;
bool kot_is_tdx_keyid(u64 keyid);
void kot_reserve(u32 keyid);
enum kot_state kot_state(u32 keyid);
void kot_assign(u32 keyid, u64 tdr);
void kot_configured(u32 keyid, u64 packages);
void kot_flush(u32 keyid);
bool kot_written_back(u32 keyid);
void kot_free(u32 keyid);
void kot_interrupt_cache_wb(void);
u64 leaf_phymem_cache_wb(struct pt_regs *regs);
void kot_show(struct seq_file *m);
void kot_history_show(struct seq_file *m);

/* td.c: the TDR and TDCS */
struct seam_tdr {
	u32 lifecycle;
	u32 fatal;
	u32 hkid;
	u32 nr_tdcx;
	atomic64_t children;		/* pages that are owned by this TD */
	u64 configured;			/* packages that have its key */
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
u64 leaf_mng_create(struct pt_regs *regs);
u64 leaf_mng_key_config(struct pt_regs *regs);
u64 leaf_mng_addcx(struct pt_regs *regs);
u64 leaf_mng_init(struct pt_regs *regs);
u64 leaf_mng_rd(struct pt_regs *regs);
u64 leaf_mr_extend(struct pt_regs *regs);
u64 leaf_mr_finalize(struct pt_regs *regs);
u64 leaf_mng_vpflushdone(struct pt_regs *regs);
u64 leaf_mng_key_freeid(struct pt_regs *regs);

/* params.c, cpuid.c */
extern const u64 seam_attributes_fixed0, seam_attributes_fixed1;
extern const u64 seam_xfam_fixed0, seam_xfam_fixed1;
u64 params_apply(struct seam_tdcs *tdcs, const struct seam_td_params *params, u64 *info);
unsigned int cpuid_nr_configs(void);
u64 cpuid_config_leaf(unsigned int config);
void cpuid_config_mask(unsigned int config, struct seam_cpuid *mask);
u64 cpuid_apply(struct seam_tdcs *tdcs, const struct seam_td_params *params, u64 *info);
const struct seam_cpuid *cpuid_find(const struct seam_tdcs *tdcs, u32 leaf, u32 subleaf);
const struct seam_cpuid *cpuid_find_field(const struct seam_tdcs *tdcs, u64 field);
u32 cpuid_platform_fms(void);

/* sept.c: S-EPT entries are nested page table entries that the CPU walks */
struct sept_walk {
	u64 *entry;
	int level;			/* where the walk ended */
};

enum seam_sept_state sept_state(u64 entry);
bool sept_is_leaf(u64 entry);
u64 sept_entry_pa(u64 entry);
void sept_walk_to(const struct seam_tdcs *tdcs, u64 gpa, int level, struct sept_walk *walk);
void *sept_gpa_to_va(const struct seam_tdcs *tdcs, u64 gpa);
u64 sept_accept(struct seam_tdcs *tdcs, u64 gpa, int level);
bool sept_gpa_is_private(const struct seam_tdcs *tdcs, u64 gpa);
u64 leaf_mem_sept_add(struct pt_regs *regs);
u64 leaf_mem_page_add(struct pt_regs *regs);
u64 leaf_mem_page_aug(struct pt_regs *regs);
u64 leaf_mem_range_block(struct pt_regs *regs);
u64 leaf_mem_track(struct pt_regs *regs);
u64 leaf_mem_page_remove(struct pt_regs *regs);

/* vp.c: the TDVPS */
struct seam_gprs {
	u64 rcx, rdx, rbx, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15;
};

struct seam_ve_info {
	bool valid;
	u32 exit_reason;
	u64 qualification, gla, gpa;
	u32 insn_len, insn_info;
};

enum last_exit { LAST_ASYNC, LAST_TDVMCALL };

struct seam_tdvps {
	u32 state;
	u32 nr_pages;
	u32 index;
	u32 x2apic_id;
	atomic_t lp;			/* associated logical processor, -1 none */
	u32 last_exit;
	u32 vmcall_mask;
	u32 cpuidve;
	u64 epoch;
	u64 tdcx[SEAM_NR_TDVPS_PAGES - 1];
	struct seam_gprs gprs;
	struct seam_ve_info ve;
	/* what the host may set, VMCS encoding */
	u16 posted_vector;
	bool posted_vector_set, posted_desc_set;
	bool pend_nmi;
	u32 pin_controls, proc2_controls, notify_window;
	u64 posted_desc;
	u64 shared_eptp;
	u64 nr_entries, nr_exits;
};

static_assert(sizeof(struct seam_tdvps) <= PAGE_SIZE);

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
struct seam_vmcb *vp_vmcb(const struct seam_tdvps *tdvps);
u64 leaf_vp_create(struct pt_regs *regs);
u64 leaf_vp_addcx(struct pt_regs *regs);
u64 leaf_vp_init(struct pt_regs *regs);
u64 leaf_vp_flush(struct pt_regs *regs);
u64 leaf_vp_rd(struct pt_regs *regs);
u64 leaf_vp_wr(struct pt_regs *regs);

/* enter.c, guest.c, tdcall.c, vapic.c */
struct seam_exit {
	u64 rax, rcx, rdx, r8, r9;	/* VP.ENTER's outputs of an asynchronous exit */
	bool tdvmcall;			/* outputs are the guest's registers instead */
};

enum guest_next { GUEST_RESUME, GUEST_EXIT };

u64 leaf_vp_enter(struct pt_regs *regs);
void guest_reset(struct seam_vp *vp, u64 rcx);
enum guest_next guest_handle_exit(struct seam_vp *vp, struct seam_exit *exit);
void guest_inject_exception(struct seam_vp *vp, int vector, bool has_error, u32 error);
void guest_inject_ve(struct seam_vp *vp, u32 reason, u64 qualification, u64 gla, u64 gpa,
		     u32 insn_len, u32 insn_info);
void guest_sync_shared_root(struct seam_vp *vp);
bool guest_read_insn(struct seam_vp *vp, u8 *buf, unsigned int len);
enum guest_next tdcall_handle(struct seam_vp *vp, struct seam_exit *exit);
void vapic_deliver(struct seam_vp *vp);
bool vapic_pending(const struct seam_tdvps *tdvps);
bool vapic_msr(struct seam_vp *vp, u32 msr, bool write, u64 *val);

/* vmrun.S */
void seam_vmrun(u64 guest_vmcb_pa, u64 host_vmcb_pa, struct seam_gprs *gprs);

#endif
