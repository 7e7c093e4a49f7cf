// SPDX-License-Identifier: GPL-2.0-only
/* Exceptions that the module raises in the guest, #VE among them. */
#include <asm/trapnr.h>

#include "event.h"
#include "vmcb.h"
#include "vp.h"

void event_exception(struct seam_vp *vp, int vector, bool has_error, u32 error)
{
	vp_vmcb(vp->tdvps)->event_inject = EVENT_VALID | EVENT_EXCEPTION | vector |
		(has_error ? EVENT_HAS_ERROR | (u64)error << 32 : 0);
}

/* A second #VE before TDG.VP.VEINFO.GET becomes #DF. */
void event_ve(struct seam_vp *vp, u32 reason, u64 qualification, u64 gla, u64 gpa,
	      u32 insn_len, u32 insn_info)
{
	if (vp->tdvps->ve.valid) {
		event_exception(vp, X86_TRAP_DF, true, 0);
		return;
	}
	vp->tdvps->ve = (struct seam_ve_info) {
		.valid = true, .exit_reason = reason, .qualification = qualification,
		.gla = gla, .gpa = gpa, .insn_len = insn_len, .insn_info = insn_info,
	};
	event_exception(vp, X86_TRAP_VE, false, 0);
}
