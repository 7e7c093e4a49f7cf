/* SPDX-License-Identifier: GPL-2.0-or-later */
/* payload: base=0xffff4000 */
/*
 * Makes 8 MiB at 1 GiB shared.  Where the host asks for a retry it goes on from R11, as Linux does.  Tells the number
 * of its calls, and the status of the last.
 */
#include "tdx.h"

#define BASE		0x40000000UL
#define SIZE		0x800000UL
#define STATUS_RETRY	1

void payload_main(u64 index, u64 rcx)
{
	u64 start = SHARED_GPA | BASE, end = start + SIZE, status;
	struct vmcall call;
	u32 calls = 0;

	(void)index;
	(void)rcx;
	do {
		call = (struct vmcall) { VMCALL_MAP_GPA, start, end - start, 0, 0 };
		status = vmcall(&call);
		start = call.leaf;
		calls++;
	} while (status == STATUS_RETRY);
	tell(calls);
	tell(status);
	stop();
}
