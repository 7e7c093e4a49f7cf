// SPDX-License-Identifier: GPL-2.0-or-later
#include "efi.h"
#include "fw_cfg.h"
#include "layout.h"
#include "linux.h"
#include "measure.h"
#include "memory.h"

#define HEADER_OFFSET	0x1f1
#define HEADER_END_AT	0x201		/* relative to 0x202 */
#define MAGIC		0x53726448	/* HdrS */
#define VERSION_MIN	0x20c		/* xloadflags */
#define ENTRY_64	0x200
#define XLF_KERNEL_64	1
#define LOADER_UNDEFINED 0xff
#define SECURE_BOOT_DISABLED	2
/* More than the memory that unpacks the kernel beside its image: heap, stack, page tables */
#define UNPACKER_SIZE	0x800000UL

#define E820_MAX	128
enum { E820_RAM = 1, E820_RESERVED, E820_ACPI, E820_NVS };

static const u8 efi_types[] = {
	[E820_RAM] = EFI_CONVENTIONAL,
	[E820_RESERVED] = EFI_RESERVED,
	[E820_ACPI] = EFI_ACPI,
	[E820_NVS] = EFI_NVS,
};

struct boot_params {
	u8 screen[0x70];
	u64 rsdp;
	u8 before_extensions[0xc0 - 0x78];
	u32 initrd_high, initrd_size_high, cmdline_high;
	u8 before_efi[0x1c0 - 0xcc];
	struct efi_info efi;
	u8 before_e820[0x1e8 - 0x1e0];
	u8 e820_entries;
	u8 before_secure[0x1ec - 0x1e9];
	u8 secure_boot;
	u8 before_header[0x1f1 - 0x1ed];
	u8 setup_sectors;
	u8 before_magic[0x202 - 0x1f2];
	u32 magic;
	u16 version;
	u8 before_loader[0x210 - 0x208];
	u8 loader, flags;
	u8 before_initrd[0x218 - 0x212];
	u32 initrd, initrd_size;
	u8 before_cmdline[0x228 - 0x220];
	u32 cmdline;
	u32 initrd_max;
	u32 alignment;
	u8 relocatable, min_alignment;
	u16 xloadflags;
	u32 cmdline_size;
	u8 before_preferred[0x258 - 0x23c];
	u64 preferred;
	u32 init_size;
	u8 before_table[0x2d0 - 0x264];
	struct {
		u64 start, size;
		u32 type;
	} __attribute__((packed)) e820[E820_MAX];
	u8 rest[0x1000 - 0x2d0 - E820_MAX * 20];
} __attribute__((packed));

_Static_assert(sizeof(struct boot_params) == PAGE_SIZE, "the zero page");

static void add(struct boot_params *params, u64 start, u64 end, u32 type)
{
	u32 n = params->e820_entries;

	if (start >= end)
		return;
	if (n == E820_MAX)
		fail("too many ranges of memory", n);
	params->e820[n].start = start;
	params->e820[n].size = end - start;
	params->e820[n].type = type;
	params->e820_entries = n + 1;
	if (params->efi.signature)
		efi_add(&params->efi, start, end - start, efi_types[type]);
}

static void describe_memory(struct boot_params *params)
{
	const struct range *ranges;
	u32 i, n = memory_ranges(&ranges);

	add(params, 0, LOW_END, E820_RAM);
	add(params, HOB_GPA, KEPT_END, E820_NVS);
	add(params, ACPI_GPA, ACPI_END, E820_ACPI);
	for (i = 0; i < n; i++) {
		u64 start = ranges[i].start;

		add(params, start > ACPI_END ? start : ACPI_END, ranges[i].end, E820_RAM);
	}
	add(params, FIRMWARE_GPA, 1UL << 32, E820_RESERVED);
}

/* Returns the first part of the kernel's file. */
static struct part read_header(struct boot_params *params)
{
	const u8 *setup = (const u8 *)SETUP_GPA;
	u32 size = fw_cfg_read_u32(FW_CFG_SETUP_SIZE);

	if (size < 0x402)
		fail("there is no kernel: QEMU was started without -kernel", 0);
	if (size > SETUP_MAX)
		fail("the kernel's setup is too long", size);
	fw_cfg_read(FW_CFG_SETUP_DATA, (void *)SETUP_GPA, size);
	memset(params, 0, sizeof(*params));
	memcpy((u8 *)params + HEADER_OFFSET, setup + HEADER_OFFSET,
	       0x202 + setup[HEADER_END_AT] - HEADER_OFFSET);
	if (params->magic != MAGIC || params->version < VERSION_MIN ||
	    !(params->xloadflags & XLF_KERNEL_64))
		fail("the kernel has no 64-bit entry", params->version);
	return (struct part) { setup, size };
}

static const struct part nothing;

static bool has_word(const char *text, const char *word)
{
	u64 size = text_size(word);

	for (;; text++) {
		if (!memcmp(text, word, size) && (!text[size] || text[size] == ' '))
			return 1;
		while (*text && *text != ' ')
			text++;
		if (!*text)
			return 0;
	}
}

static void read_cmdline(struct boot_params *params)
{
	u32 size = fw_cfg_read_u32(FW_CFG_CMDLINE_SIZE);
	char *text = (char *)CMDLINE_GPA;

	if (!size || size + sizeof(" " EFI_CMDLINE) > CMDLINE_MAX)
		fail("the command line is too long", size);
	memset(text, 0, CMDLINE_MAX);
	fw_cfg_read(FW_CFG_CMDLINE_DATA, text, size);
	measure(RTMR_OS, "cmdline", (struct part) { text, text_size(text) }, nothing);
	params->cmdline = CMDLINE_GPA;
	if (has_word(text, "accept_memory=eager"))
		return;
	memcpy(text + size - 1, " " EFI_CMDLINE, sizeof(" " EFI_CMDLINE));
	efi_init(&params->efi, memory_unaccepted_table());
}

/*
 * The kernel first copies itself to the end of what it needs, and unpacks itself from there.  It accepts what
 * lies between.
 */
static u64 read_kernel(struct boot_params *params, struct part setup)
{
	u64 start = params->preferred, size = fw_cfg_read_u32(FW_CFG_KERNEL_SIZE), end, copy;

	end = start + (size > params->init_size ? size : params->init_size);
	if (start < SHARED_BUFFER_GPA + SHARED_BUFFER_SIZE)
		fail("the kernel is to be loaded too low", start);
	if (end > memory_low_end())
		fail("not enough memory for the kernel", end);
	copy = size + UNPACKER_SIZE < end - start ? end - size - UNPACKER_SIZE : start;
	memory_accept(start, start + size);
	memory_accept(copy, end);
	fw_cfg_read(FW_CFG_KERNEL_DATA, (void *)start, size);
	measure(RTMR_KERNEL, "kernel", setup, (struct part) { (void *)start, size });
	return end;
}

/* At the end of low memory: as far as can be from the kernel, which is unpacked over what follows it. */
static void read_initrd(struct boot_params *params, u64 kernel_end)
{
	u64 size = fw_cfg_read_u32(FW_CFG_INITRD_SIZE), end = memory_low_end();

	if (!size)
		return;
	if (size > end - kernel_end - PAGE_SIZE)
		fail("not enough memory for the initrd", size);
	params->initrd = ALIGN_DOWN(end - size, PAGE_SIZE);
	params->initrd_size = size;
	memory_accept(params->initrd, end);
	fw_cfg_read(FW_CFG_INITRD_DATA, (void *)(u64)params->initrd, size);
	measure(RTMR_OS, "initrd", (struct part) { (void *)(u64)params->initrd, size }, nothing);
}

u64 linux_load(struct boot_params **made)
{
	struct boot_params *params = (struct boot_params *)PARAMS_GPA;
	u64 kernel_end;

	measure_init();
	kernel_end = read_kernel(params, read_header(params));
	read_cmdline(params);
	read_initrd(params, kernel_end);
	params->loader = LOADER_UNDEFINED;
	params->secure_boot = SECURE_BOOT_DISABLED;
	describe_memory(params);
	*made = params;
	return params->preferred + ENTRY_64;
}

bool linux_accepts_memory(const struct boot_params *params)
{
	return params->efi.signature;
}

void linux_set_rsdp(struct boot_params *params, u64 rsdp)
{
	params->rsdp = rsdp;
}
