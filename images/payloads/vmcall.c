/* SPDX-License-Identifier: GPL-2.0-or-later */
/* payload: base=0xffff4000 */
/*
 * Makes the TDVMCALLs that the test asks for.  Shared memory at 2 MiB holds the registers, each a u64: R10 to
 * R15, RBX, RDI, RSI, R8, R9, RDX; after the call they stand there again, followed by RAX.  Tells 0 when it is
 * ready, then after each call how many there were.
 */
#include "tdx.h"

#define REGISTERS	12

u64 vmcall_all(u64 *registers);

void payload_main(u64 index, u64 rcx)
{
	volatile u64 *box = (u64 *)(SHARED_VA + 0x200000UL);
	u64 registers[REGISTERS];
	u32 calls = 0;
	int i;

	(void)index;
	(void)rcx;
	for (;;) {
		tell(calls++);
		for (i = 0; i < REGISTERS; i++)
			registers[i] = box[i];
		box[REGISTERS] = vmcall_all(registers);
		for (i = 0; i < REGISTERS; i++)
			box[i] = registers[i];
	}
}
