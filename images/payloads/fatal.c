/* SPDX-License-Identifier: GPL-2.0-or-later */
/* payload: base=0xffff4000 */
/* Reports a fatal error with code 0xdead and the text "payload" in R14, R15…, as GHCI says. */
#include "tdx.h"

void payload_main(u64 index, u64 rcx)
{
	struct vmcall call = { VMCALL_FATAL, 0xdead, 0, 0x64616f6c796170UL, index };

	(void)rcx;
	vmcall(&call);
	stop();
}
