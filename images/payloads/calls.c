/* SPDX-License-Identifier: GPL-2.0-or-later */
/* payload: base=0xffff4000 */
/*
 * Tells, in this order: GPA width; vCPUs of the TD; most vCPUs it may have; own index; initial RCX; upper half
 * of the attributes and lower half; status of TDVMCALL CPUID(0x40000000) and its EBX; status of a TDVMCALL
 * RDMSR of IA32_APIC_BASE and its low half; status of GetTdVmCallInfo; status of an unknown TDVMCALL (low
 * half); RAX >> 32 of an unknown TDCALL; what came in from port 0x510.
 */
#include "tdx.h"

void payload_main(u64 index, u64 rcx)
{
	struct vmcall call;
	struct vp_info info;
	u64 rax = 0xffff;

	tdcall_info(&info);
	tell(info.gpaw);
	tell(info.vcpus);
	tell(info.vcpus >> 32);
	tell(info.index);
	tell(rcx);
	tell(info.attributes >> 32);
	tell(info.attributes);

	call = (struct vmcall) { VMCALL_CPUID, 0x40000000, 0, 0, 0 };
	tell(vmcall(&call));
	tell(call.r13);

	call = (struct vmcall) { VMCALL_RDMSR, 0x1b, 0, 0, 0 };
	tell(vmcall(&call));
	tell(call.leaf);

	call = (struct vmcall) { VMCALL_GET_INFO, 0, 0, 0, 0 };
	tell(vmcall(&call));

	call = (struct vmcall) { 0x12345, 0, 0, 0, 0 };
	tell(vmcall(&call));

	asm volatile(".byte 0x66, 0x0f, 0x01, 0xcc" : "+a" (rax) : : "rcx", "memory", "cc");
	tell(rax >> 32);

	tell(io(0x510, 4, 0, 0));
	(void)index;
	stop();
}
