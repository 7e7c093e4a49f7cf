/* SPDX-License-Identifier: GPL-2.0-or-later */
/* payload: base=0xffff4000 */
/* Has no IDT and executes an invalid instruction: #UD, double fault, triple fault. */
#include "tdx.h"

void payload_main(u64 index, u64 rcx)
{
	(void)index;
	(void)rcx;
	asm volatile("ud2");
}
