/* SPDX-License-Identifier: GPL-2.0-or-later */
/* payload: base=0xffff4000 */
/*
 * Does what it is told by letters over the serial port; for a VMM that has a 16550 at 0x3f8.  The boot vCPU
 * listens, and halts until the serial port or, 18 times a second, the PIT interrupts it; every other vCPU counts
 * in private memory.  Needs memory at 1 MiB.  Prints "ready, N vCPUs\n", and for each letter one line:
 * c: adds 1 to a number in private and to one in shared memory; "count P S", then the counts of the other vCPUs;
 * s: makes the page with the shared number shared (as it is at the start) and sets it to 0; "shared STATUS";
 * p: makes it private and accepts it; "private STATUS VALUE";
 * h: adds 1 to a number in the first page of a firmware of 64 KiB, which it has made shared; "firmware NUMBER";
 * o: makes the page at 64 MiB plus 4 KiB shared; "shared STATUS";
 * a: counts like that, line after line, until there is another letter, which it takes;
 * g: "gap MOST NOW": the longest time for which it was not there to listen since the last g, and the time, in
 *    ticks of the TSC; from then on it does not halt, so that it is always there while it runs;
 * m: accepts 16 MiB more, from 16 MiB on; "accepted MIB", or "accepted MIB STATUS" when the TDX module refuses;
 * q: asks for a quote in the page at 2 MiB minus 4 KiB, which is shared; "quote STATUS"; w: what has become of it,
 *    "quote STATUS OF-THE-REQUEST" (GHCI: all ones is in flight);
 *    b: asks in the last page of 64 MiB, which is shared, and in the next, where there is no memory: what is to be
 *    read begins in the one and ends in the other; "quote STATUS";
 * M: writes MSRs that KVM emulates (MTRRs, machine check banks, MISC_ENABLE and KVM's poll control), and prints
 *    them like v; v: "msrs VALUE…"; W and V: the same of vCPU 1, with other values;
 * n: asks for an interrupt when a quote is done; "notify STATUS"; i: how many came; "notified COUNT";
 * f: reports a fatal error, code 0xdead0000, text "payload"; F: with the address of a page that says more;
 *    e: without a text; x: with the code 0xdead;
 * r: asks the chipset for a reset; t: triple fault; any other: "what?".  A line's end is no letter.
 */
#include "interrupt.h"

#define PORT_IER	0x3f9
#define IER_RECEIVED	0x01
#define PORT_LSR	0x3fd
#define LSR_RECEIVED	0x01
#define LSR_CAN_SEND	0x20
#define PORT_RESET	0xcf9
#define RESET_NOW	0x06

#define PORT_PIT	0x40
#define PORT_PIT_MODE	0x43
#define PIT_RATE	0x34	/* channel 0, both bytes, mode 2 */

#define IOAPIC_GPA	0xfec00000UL
#define IOAPIC_WINDOW	0x10
#define IOAPIC_PIN(n)	(0x10 + 2 * (n))
#define PIN_PIT		2
#define PIN_SERIAL	4
#define VECTOR		0x51
#define NOTIFY_VECTOR	0x61

#define PAGE_GPA	0x100000UL
#define QUOTE_GPA	0x1ff000UL
#define ODD_GPA		0x4001000UL
#define LAST_GPA	0x3fff000UL
#define FIRMWARE_GPA	0xffff0000UL
#define MORE_GPA	0x1000000UL
#define MORE		0x1000000UL
#define PAGE		4096UL
#define MAX_VCPUS	8

#define MSR_MISC_ENABLE		0x1a0
#define MSR_MTRR_PHYS_BASE0	0x200
#define MSR_MTRR_DEF_TYPE	0x2ff
#define MSR_MC0_CTL		0x400
#define MSR_POLL_CONTROL	0x4b564d05

#define VMCALL_GET_QUOTE	0x10002
#define VMCALL_NOTIFY		0x10004
/* GHCI 1.5, ReportFatalError; the text is in R14 and R15 here */
#define FATAL		0xdead0000UL
#define FATAL_RESERVED	0xdeadUL
#define GPA_VALID	(1UL << 63)
#define MESSAGE_MASK	0xc000UL

#define OPERAND_BUSY		0x80000200	/* the upper half of the TDX module's code */

struct quote_header {
	u64 version, status;
	u32 in_size, out_size;
};

static const u32 fixed_mtrrs[] = {
	0x250, 0x258, 0x259, 0x268, 0x269, 0x26a, 0x26b, 0x26c, 0x26d, 0x26e, 0x26f,
};

#define NR_FIXED	(sizeof(fixed_mtrrs) / sizeof(*fixed_mtrrs))
#define NR_VARIABLE	8
#define NR_BANKS	10
#define NR_MSRS		(3 + NR_FIXED + 2 * NR_VARIABLE + NR_BANKS)

static struct {
	u32 index;
	u64 value;
} msrs[NR_MSRS];

static volatile struct {
	u64 status, value;
} read[NR_MSRS];

/* M or v, for vCPU 1 to do */
static volatile char order;

static volatile u32 counts[MAX_VCPUS];

static volatile u32 *const shared = (u32 *)(SHARED_VA + PAGE_GPA);
static volatile struct quote_header *const quote = (struct quote_header *)(SHARED_VA + QUOTE_GPA);
static volatile struct quote_header *const last_quote = (struct quote_header *)(SHARED_VA + LAST_GPA);

static u64 accepted, last, longest;
static volatile u32 notified;
static bool busy;

static struct gate idt[NR_VECTORS];

void payload_vector(u64 vector)
{
	notified += vector == NOTIFY_VECTOR;
	wrmsr(X2APIC_EOI, 0);
}

static void write_mmio(u64 gpa, u32 value)
{
	struct vmcall call = { VMCALL_MMIO, 4, 1, SHARED_GPA | gpa, value };

	vmcall(&call);
}

/* To vCPU 0, edge-triggered */
static void route(u32 pin)
{
	write_mmio(IOAPIC_GPA, IOAPIC_PIN(pin) + 1);
	write_mmio(IOAPIC_GPA + IOAPIC_WINDOW, 0);
	write_mmio(IOAPIC_GPA, IOAPIC_PIN(pin));
	write_mmio(IOAPIC_GPA + IOAPIC_WINDOW, VECTOR);
}

/*
 * The serial port's interrupt ends the halt at once.  The PIT's is for one that gets lost with the VM in which it
 * was pending, when the TD moves or the chipset is reset.
 */
static void enable_interrupts(void)
{
	set_vector(idt, VECTOR);
	set_vector(idt, NOTIFY_VECTOR);
	load_idt(idt);
	enable_apic();
	route(PIN_SERIAL);
	io(PORT_IER, 1, 1, IER_RECEIVED);
	route(PIN_PIT);
	io(PORT_PIT_MODE, 1, 1, PIT_RATE);
	io(PORT_PIT, 1, 1, 0);
	io(PORT_PIT, 1, 1, 0);
}

/* Interrupts are off everywhere else: one that comes after the last look stays pending, and ends the halt. */
static void await_interrupt(void)
{
	halt(0);
	asm volatile("sti; nop; cli" : : : "memory");
}

static u64 rdtsc(void)
{
	u32 low, high;

	asm volatile("rdtsc" : "=a" (low), "=d" (high));
	return low | (u64)high << 32;
}

/* Called where it listens: how long was it away? */
static void measure_gap(void)
{
	u64 now = rdtsc();

	if (last && now - last > longest)
		longest = now - last;
	last = now;
}

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

/* What none has after a reset; each MTRR of each vCPU gets a value of its own. */
static void choose_msrs(u64 vcpu)
{
	static const u8 types[] = { 6, 5, 4, 1, 0 };
	u64 n = 0, i;

	msrs[n].index = MSR_MISC_ENABLE;
	msrs[n++].value = 0x1801;
	msrs[n].index = MSR_POLL_CONTROL;
	msrs[n++].value = 0;
	msrs[n].index = MSR_MTRR_DEF_TYPE;
	msrs[n++].value = 0xc00 | types[2 * vcpu];
	for (i = 0; i < NR_FIXED; i++) {
		msrs[n].index = fixed_mtrrs[i];
		msrs[n++].value = 0x0101010101010000 * types[vcpu] | types[i / 5] << 8 | types[i % 5];
	}
	for (i = 0; i < NR_VARIABLE; i++) {
		msrs[n].index = MSR_MTRR_PHYS_BASE0 + 2 * i;
		msrs[n++].value = (i + 1) << 28 | types[vcpu];
		msrs[n].index = MSR_MTRR_PHYS_BASE0 + 2 * i + 1;
		msrs[n++].value = 0xf00000800 | i << 28 | vcpu << 27;
	}
	for (i = 0; i < NR_BANKS; i++) {
		msrs[n].index = MSR_MC0_CTL + 4 * i;
		msrs[n++].value = 0;
	}
}

static void do_msrs(char letter, u64 vcpu)
{
	u64 i;

	choose_msrs(vcpu);
	for (i = 0; letter == 'M' && i < NR_MSRS; i++) {
		struct vmcall call = { VMCALL_WRMSR, msrs[i].index, msrs[i].value, 0, 0 };

		vmcall(&call);
	}
	for (i = 0; i < NR_MSRS; i++) {
		struct vmcall call = { VMCALL_RDMSR, msrs[i].index, 0, 0, 0 };

		read[i].status = vmcall(&call);
		read[i].value = call.leaf;
	}
}

static void say_msrs(char letter, u64 vcpu)
{
	u64 i;

	if (vcpu) {
		order = letter;
		while (order)
			io(PORT_LSR, 1, 0, 0);
	} else {
		do_msrs(letter, vcpu);
	}
	say_text("msrs");
	for (i = 0; i < NR_MSRS; i++)
		say_word(read[i].status ? " refused " : " ", read[i].value);
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

static void count_in_firmware(void)
{
	static volatile u32 *const number = (u32 *)(SHARED_VA + FIRMWARE_GPA);
	static bool mine;
	u64 status;

	if (!mine) {
		status = map_gpa(SHARED_GPA | FIRMWARE_GPA, PAGE);
		if (status) {
			say_word("refused ", status);
			return;
		}
		*number = 0;
		mine = 1;
	}
	say_word("firmware ", ++*number);
}

static bool is_told(void)
{
	return io(PORT_LSR, 1, 0, 0) & LSR_RECEIVED;
}

static void count_on(u64 vcpus)
{
	while (!is_told() || io(PORT_TEXT, 1, 0, 0) == '\n') {
		count(vcpus);
		say('\n');
	}
	say_text("stopped");
}

static void accept_more(void)
{
	u64 end = MORE_GPA + accepted + MORE, gpa, status = 0;

	for (gpa = MORE_GPA + accepted; gpa < end && !status; gpa += PAGE) {
		do {
			status = tdcall_accept(gpa);
		} while (status >> 32 == OPERAND_BUSY);
	}
	if (!status)
		accepted += MORE;
	say_word("accepted ", accepted >> 20);
	if (status)
		say_word(" ", status);
}

static void ask_for_quote(volatile struct quote_header *header, u64 gpa, u64 size, u32 in_size)
{
	struct vmcall call = { VMCALL_GET_QUOTE, SHARED_GPA | gpa, size, 0, 0 };

	map_gpa(SHARED_GPA | gpa, PAGE);
	header->version = 1;
	header->status = 0;
	header->in_size = in_size;
	header->out_size = 0;
	say_word("quote ", vmcall(&call));
}

static void ask_to_be_notified(void)
{
	struct vmcall call = { VMCALL_NOTIFY, NOTIFY_VECTOR, 0, 0, 0 };

	say_word("notify ", vmcall(&call));
}

/* R13 is an address in all of them; bit 63 of the code makes it one for the host too. */
_Noreturn static void die(u64 error, u64 mask)
{
	register u64 r10 asm("r10") = 0;
	register u64 r11 asm("r11") = VMCALL_FATAL;
	register u64 r12 asm("r12") = error;
	register u64 r13 asm("r13") = PAGE_GPA;
	register u64 r14 asm("r14") = 0x64616f6c796170UL;
	register u64 r15 asm("r15") = 0;
	u64 rax = TDG_VP_VMCALL;

	asm volatile(".byte 0x66, 0x0f, 0x01, 0xcc"
		     : "+a" (rax), "+c" (mask), "+r" (r10), "+r" (r11), "+r" (r12), "+r" (r13),
		       "+r" (r14), "+r" (r15)
		     : : "memory", "cc");
	stop();
}

static void do_as_told(char letter, u64 vcpus)
{
	switch (letter) {
	case '\n':
		return;
	case 'c':
		count(vcpus);
		break;
	case 'a':
		count_on(vcpus);
		break;
	case 'g':
		busy = 1;
		say_word("gap ", longest);
		say_word(" ", rdtsc());
		longest = 0;
		break;
	case 'm':
		accept_more();
		break;
	case 'q':
		ask_for_quote(quote, QUOTE_GPA, PAGE, 64);
		break;
	case 'b':
		ask_for_quote(last_quote, LAST_GPA, 2 * PAGE, PAGE);
		break;
	case 'w':
		say_word("quote ", quote->status);
		break;
	case 's':
		share();
		break;
	case 'h':
		count_in_firmware();
		break;
	case 'o':
		say_word("shared ", map_gpa(SHARED_GPA | ODD_GPA, PAGE));
		break;
	case 'p':
		make_private();
		break;
	case 'M':
	case 'v':
		say_msrs(letter, 0);
		break;
	case 'W':
		say_msrs('M', 1);
		break;
	case 'V':
		say_msrs('v', 1);
		break;
	case 'n':
		ask_to_be_notified();
		break;
	case 'i':
		say_word("notified ", notified);
		break;
	case 'f':
		die(FATAL, VMCALL_MASK);
	case 'F':
		die(FATAL | GPA_VALID, VMCALL_MASK);
	case 'e':
		die(FATAL, VMCALL_MASK & ~MESSAGE_MASK);
	case 'x':
		die(FATAL_RESERVED, VMCALL_MASK);
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
			if (index == 1 && order) {
				do_msrs(order, index);
				order = 0;
			}
			/* Leaves to the VMM, so that nobody starves where CPUs are few. */
			io(PORT_LSR, 1, 0, 0);
		}
	}
	tdcall_info(&info);
	info.vcpus &= 0xffffffff;
	map_gpa(SHARED_GPA | PAGE_GPA, PAGE);
	enable_interrupts();
	say_word("ready, ", info.vcpus);
	say_text(" vCPUs\n");
	for (;;) {
		measure_gap();
		if (is_told()) {
			do_as_told(io(PORT_TEXT, 1, 0, 0), info.vcpus);
			last = 0;
		} else if (!busy) {
			await_interrupt();
		}
	}
}
