// SPDX-License-Identifier: GPL-2.0-only
/*
 * A vCPU's virtual APIC page: interrupts that the host posts, and the registers
 * that the guest accesses without an exit.
 */
#include <linux/array_size.h>
#include <linux/atomic.h>
#include <linux/bitops.h>
#include <asm/apic.h>
#include <asm/page.h>
#include <asm/processor-flags.h>

#include "abi.h"
#include "vapic.h"
#include "vmcb.h"
#include "vp.h"

#define X2APIC_FIRST	0x800
#define VECTOR_NMI	2
#define PRIO(vector)	((vector) >> 4)

/* The posted-interrupt descriptor, 64 bytes of the host's memory */
struct posted_desc {
	u64 requests[4];
	unsigned long control;		/* bit 0: outstanding */
};

static u32 *vapic_reg(const struct seam_tdvps *tdvps, u32 offset)
{
	return vp_apic_page(tdvps) + offset;
}

/* IRR and ISR: 256 bits, 32 to each register, registers 16 bytes apart */
static u32 *vapic_word(const struct seam_tdvps *tdvps, u32 base, u32 vector)
{
	return vapic_reg(tdvps, base + vector / 32 * 16);
}

static int vapic_highest(const struct seam_tdvps *tdvps, u32 base)
{
	int word;

	for (word = 7; word >= 0; word--) {
		u32 bits = *vapic_word(tdvps, base, word * 32);

		if (bits)
			return word * 32 + fls(bits) - 1;
	}
	return -1;
}

static int vapic_ppr(const struct seam_tdvps *tdvps)
{
	int tpr = *vapic_reg(tdvps, APIC_TASKPRI) & 0xff;
	int isr = vapic_highest(tdvps, APIC_ISR);

	return isr >= 0 && PRIO(isr) > PRIO(tpr) ? isr & 0xf0 : tpr;
}

bool vapic_pending(const struct seam_tdvps *tdvps)
{
	int vector = vapic_highest(tdvps, APIC_IRR);

	return vector >= 0 && PRIO(vector) > PRIO(vapic_ppr(tdvps));
}

/*
 * As a CPU in the guest does when the notification comes.  Here it exits, and one
 * that the host sends itself before it enters stays pending.
 */
static void take_posted(struct seam_tdvps *tdvps)
{
	struct posted_desc *desc;
	int i;

	if (!(tdvps->pin_controls & PIN_POSTED_INTR))
		return;
	desc = __va(tdvps->posted_desc);
	if (!test_bit(0, &desc->control) || !lapic_vector_set_in_irr(tdvps->posted_vector) ||
	    !test_and_clear_bit(0, &desc->control))
		return;
	for (i = 0; i < ARRAY_SIZE(desc->requests); i++) {
		u64 bits = xchg(&desc->requests[i], 0);

		*vapic_word(tdvps, APIC_IRR, i * 64) |= (u32)bits;
		*vapic_word(tdvps, APIC_IRR, i * 64 + 32) |= bits >> 32;
	}
}

static bool takes_interrupts(const struct seam_vmcb *vmcb)
{
	return vmcb->rflags & X86_EFLAGS_IF && !(vmcb->int_state & INT_STATE_SHADOW) &&
	       !(vmcb->event_inject & EVENT_VALID);
}

static void inject_highest(struct seam_tdvps *tdvps, struct seam_vmcb *vmcb)
{
	int vector = vapic_highest(tdvps, APIC_IRR);

	*vapic_word(tdvps, APIC_IRR, vector) &= ~BIT(vector % 32);
	*vapic_word(tdvps, APIC_ISR, vector) |= BIT(vector % 32);
	vmcb->event_inject = EVENT_VALID | EVENT_INTR | vector;
}

/* Before each entry: inject what is deliverable now, else request an interrupt-window exit. */
void vapic_deliver(struct seam_vp *vp)
{
	struct seam_vmcb *vmcb = vp_vmcb(vp->tdvps);

	take_posted(vp->tdvps);
	vmcb->int_control &= ~(INT_CTL_V_IRQ | INT_CTL_V_IGN_TPR);
	vmcb->intercept_misc1 &= ~ICPT_VINTR;

	/* A guest handles its #VE first: one in the handler of the NMI would be #DF. */
	if (vp->tdvps->pend_nmi && vp->tdvps->nmi_state == NMI_OPEN && !vp->tdvps->ve.valid &&
	    !(vmcb->event_inject & EVENT_VALID)) {
		vmcb->event_inject = EVENT_VALID | EVENT_NMI | VECTOR_NMI;
		vmcb->intercept_misc1 |= ICPT_IRET;
		vp->tdvps->pend_nmi = false;
		vp->tdvps->nmi_state = NMI_BLOCKED;
	}
	if (!vapic_pending(vp->tdvps))
		return;
	if (takes_interrupts(vmcb)) {
		inject_highest(vp->tdvps, vmcb);
	} else {
		vmcb->int_control |= INT_CTL_V_IRQ | INT_CTL_V_IGN_TPR;
		vmcb->intercept_misc1 |= ICPT_VINTR;
	}
}

static void vapic_eoi(struct seam_tdvps *tdvps)
{
	int vector = vapic_highest(tdvps, APIC_ISR);

	if (vector >= 0)
		*vapic_word(tdvps, APIC_ISR, vector) &= ~BIT(vector % 32);
}

/* A register that the guest accesses directly; the page has 0 for one without a meaning. */
u64 vapic_read(const struct seam_tdvps *tdvps, u32 msr)
{
	u32 reg = (msr - X2APIC_FIRST) << 4;

	return reg == APIC_PROCPRI ? vapic_ppr(tdvps) : *vapic_reg(tdvps, reg);
}

/* False for a read-only register, and for a value that sets a reserved bit. */
bool vapic_write(struct seam_tdvps *tdvps, u32 msr, u64 val)
{
	u32 reg = (msr - X2APIC_FIRST) << 4;

	switch (reg) {
	case APIC_TASKPRI:
		if (val & ~0xffULL)
			return false;
		*vapic_reg(tdvps, reg) = val;
		return true;
	case APIC_EOI:
		if (val)
			return false;
		vapic_eoi(tdvps);
		return true;
	case APIC_SELF_IPI:
		if (val & ~0xffULL)
			return false;
		*vapic_word(tdvps, APIC_IRR, val) |= BIT(val % 32);
		return true;
	default:
		return false;
	}
}
