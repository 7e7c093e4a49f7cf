/* SPDX-License-Identifier: GPL-2.0-or-later */
/* payload: base=0xffff4000 */
/*
 * Does what it is told by letters over the serial port; for a VMM that has a 16550 at 0x3f8.  The boot vCPU
 * listens; every other vCPU counts in private memory.  Needs memory at 1 MiB.  Prints "ready, N vCPUs\n", and
 * for each letter one line:
 * c: adds 1 to a number in private and to one in shared memory; "count P S", then the counts of the other vCPUs;
 * s: makes the page with the shared number shared (as it is at the start) and sets it to 0; "shared STATUS";
 * p: makes it private and accepts it; "private STATUS VALUE";
 * f: reports a fatal error, code 0xdead0000, text "payload";
 * r: asks the chipset for a reset; t: triple fault; any other: "what?".  A line's end is no letter.
 */
#include "tdx.h"

#define PORT_LSR	0x3fd
#define LSR_RECEIVED	0x01
#define LSR_CAN_SEND	0x20
#define PORT_RESET	0xcf9
#define RESET_NOW	0x06

#define PAGE_GPA	0x100000UL
#define PAGE		4096UL
#define MAX_VCPUS	8

static volatile u32 counts[MAX_VCPUS];

static volatile u32 *const shared = (u32 *)(SHARED_VA + PAGE_GPA);

static void say(char c)
{
	while (!(io(PORT_LSR, 1, 0, 0) & LSR_CAN_SEND))
		;
	put(c);
}

static void say_text(const char *text)
{
	while (*text)
		say(*text++);
}

static void say_number(u64 value)
{
	char digits[20];
	int n = 0;

	do {
		digits[n++] = '0' + value % 10;
		value /= 10;
	} while (value);
	while (n)
		say(digits[--n]);
}

static void say_word(const char *text, u64 value)
{
	say_text(text);
	say_number(value);
}

static void count(u64 vcpus)
{
	u64 i;

	say_word("count ", ++counts[0]);
	say_word(" ", ++*shared);
	for (i = 1; i < vcpus; i++)
		say_word(" ", counts[i]);
}

static void share(void)
{
	u64 status = map_gpa(SHARED_GPA | PAGE_GPA, PAGE);

	if (!status)
		*shared = 0;
	say_word("shared ", status);
}

static void make_private(void)
{
	u64 status = map_gpa(PAGE_GPA, PAGE);

	if (!status)
		status = tdcall_accept(PAGE_GPA);
	say_word("private ", status);
	if (!status)
		say_word(" ", *(volatile u32 *)PAGE_GPA);
}

static void do_as_told(char letter, u64 vcpus)
{
	struct vmcall fatal = { VMCALL_FATAL, 0xdead0000, 0, 0x64616f6c796170UL, 0 };

	switch (letter) {
	case '\n':
		return;
	case 'c':
		count(vcpus);
		break;
	case 's':
		share();
		break;
	case 'p':
		make_private();
		break;
	case 'f':
		vmcall(&fatal);
		stop();
	case 'r':
		io(PORT_RESET, 1, 1, RESET_NOW);
		stop();
	case 't':
		asm volatile("ud2");
		break;
	default:
		say_text("what?");
	}
	say('\n');
}

void payload_main(u64 index, u64 rcx)
{
	struct vp_info info;

	(void)rcx;
	if (index) {
		for (;;) {
			counts[index]++;
			/* Leaves to the VMM, so that nobody starves where CPUs are few. */
			io(PORT_LSR, 1, 0, 0);
		}
	}
	tdcall_info(&info);
	info.vcpus &= 0xffffffff;
	map_gpa(SHARED_GPA | PAGE_GPA, PAGE);
	say_word("ready, ", info.vcpus);
	say_text(" vCPUs\n");
	for (;;) {
		if (io(PORT_LSR, 1, 0, 0) & LSR_RECEIVED)
			do_as_told(io(PORT_TEXT, 1, 0, 0), info.vcpus);
	}
}
