// SPDX-License-Identifier: GPL-2.0-or-later
#include "layout.h"
#include "memory.h"

#define UNIT		0x200000UL
#define LEVEL_2M	1
#define RANGES_MAX	64

#define STATUS(rax)	((rax) >> 32)
#define OPERAND_BUSY		0x80000200
#define PAGE_ALREADY_ACCEPTED	0x00000b0a
#define PAGE_SIZE_MISMATCH	0xc0000b0b

#define VMCALL_RETRY	1

/* UEFI Platform Initialization: hand-off blocks */
#define HOB_RESOURCE	3
#define HOB_END		0xffff
#define RESOURCE_MEMORY		0
#define RESOURCE_UNACCEPTED	7

struct hob {
	u16 type, size;
	u32 reserved;
	u8 owner[16];
	u32 resource, attributes;
	u64 start, length;
};

/* A set bit stands for 2 MiB that nobody has accepted. */
struct unaccepted {
	u32 version, unit;
	u64 base, size;
	u64 bitmap[];
};

#define BITMAP_MAX	((LOW_END - UNACCEPTED_GPA - sizeof(struct unaccepted)) / 8)

extern u64 pdpt_shared[512];

static struct unaccepted *const unaccepted = (struct unaccepted *)UNACCEPTED_GPA;
static struct range list[RANGES_MAX];
static u32 count;
static u64 shared_bit;

static u64 accept_one(u64 gpa, u32 level)
{
	u64 status;

	do
		status = STATUS(tdcall_accept(gpa | level));
	while (status == OPERAND_BUSY);
	if (status && status != PAGE_ALREADY_ACCEPTED && status != PAGE_SIZE_MISMATCH)
		fail("the TDX module does not accept memory", gpa);
	return status;
}

static void accept_pages(u64 start, u64 end)
{
	for (; start < end; start += PAGE_SIZE)
		accept_one(start, 0);
}

/* The module refuses a large page where the VMM has mapped small ones. */
static void accept_unit(u64 start)
{
	if (accept_one(start, LEVEL_2M) == PAGE_SIZE_MISMATCH)
		accept_pages(start, start + UNIT);
}

static void add_range(u64 start, u64 end)
{
	if (count && start < list[count - 1].end)
		fail("the list of memory is not in order", start);
	if (count && start == list[count - 1].end) {
		list[count - 1].end = end;
		return;
	}
	if (count == RANGES_MAX)
		fail("the list of memory is too long", count);
	list[count++] = (struct range) { start, end };
}

static void read_list(void)
{
	const struct hob *hob = (const struct hob *)HOB_GPA;

	for (; hob->type != HOB_END; hob = (const void *)hob + hob->size) {
		if (!hob->size || (u64)hob + hob->size > HOB_GPA + HOB_SIZE)
			fail("the list of memory has no end", 0);
		if (hob->type == HOB_RESOURCE &&
		    (hob->resource == RESOURCE_MEMORY || hob->resource == RESOURCE_UNACCEPTED))
			add_range(hob->start, hob->start + hob->length);
	}
	if (memory_low_end() < SHARED_BUFFER_GPA + SHARED_BUFFER_SIZE)
		fail("not enough memory", memory_low_end());
}

/* What fills no unit is accepted: a bit cannot stand for it. */
static void mark(const struct range *range)
{
	u64 start = ALIGN_UP(range->start, UNIT), end = ALIGN_DOWN(range->end, UNIT), unit;

	if (start >= end) {
		accept_pages(range->start, range->end);
		return;
	}
	accept_pages(range->start, start);
	accept_pages(end, range->end);
	for (unit = start / UNIT; unit < end / UNIT; unit++)
		unaccepted->bitmap[unit / 64] |= 1UL << unit % 64;
}

void memory_init(void)
{
	struct vp_info info;
	u64 i, words;

	tdcall_info(&info);
	shared_bit = 1UL << ((info.gpaw & 0x3f) - 1);
	for (i = 0; i < 4; i++)
		pdpt_shared[i] = shared_bit | i << 30 | 0x83;

	read_list();
	/* The firmware's own memory: some pages of it the VMM has added. */
	accept_pages(0, UNIT);
	words = ALIGN_UP(list[count - 1].end, UNIT * 64) / (UNIT * 64);
	if (words > BITMAP_MAX)
		fail("too much memory", list[count - 1].end);
	*unaccepted = (struct unaccepted) { 1, UNIT, 0, words * 8 };
	memset(unaccepted->bitmap, 0, words * 8);
	for (i = 0; i < count; i++)
		mark(&list[i]);
	unaccepted->bitmap[0] &= ~1UL;
}

u32 memory_ranges(const struct range **ranges)
{
	*ranges = list;
	return count;
}

u64 memory_low_end(void)
{
	return count && !list[0].start ? list[0].end : 0;
}

void memory_accept(u64 start, u64 end)
{
	u64 unit, last = ALIGN_UP(end, UNIT) / UNIT;

	for (unit = start / UNIT; unit < last && unit < unaccepted->size * 8; unit++) {
		if (!(unaccepted->bitmap[unit / 64] & 1UL << unit % 64))
			continue;
		accept_unit(unit * UNIT);
		unaccepted->bitmap[unit / 64] &= ~(1UL << unit % 64);
	}
}

void memory_accept_all(void)
{
	memory_accept(0, unaccepted->size * 8 * UNIT);
}

u64 memory_unaccepted_table(void)
{
	return UNACCEPTED_GPA;
}

static void map(u64 gpa, u64 size)
{
	struct vmcall call;
	u64 end = gpa + size, status;

	while (gpa < end) {
		call = (struct vmcall) { VMCALL_MAP_GPA, gpa, end - gpa, 0, 0 };
		status = vmcall(&call);
		if (!status)
			return;
		if (status != VMCALL_RETRY || call.leaf <= gpa - 1)
			fail("the VMM does not convert memory", status);
		gpa = call.leaf;
	}
}

void memory_share(u64 gpa, u64 size)
{
	map(shared_bit | gpa, size);
}

void memory_unshare(u64 gpa, u64 size)
{
	map(gpa, size);
}
