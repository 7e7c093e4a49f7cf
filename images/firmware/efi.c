// SPDX-License-Identifier: GPL-2.0-or-later
#include "efi.h"
#include "layout.h"

#define LOADER_SIGNATURE	0x34364c45		/* EL64 */
#define TABLE_SIGNATURE		0x5453595320494249UL	/* IBI SYST */
#define REVISION		(2 << 16 | 100)		/* 2.10 */
#define WRITE_BACK		8

struct guid {
	u32 a;
	u16 b, c;
	u8 d[8];
};

struct table {
	struct guid guid;
	u64 at;
};

struct system_table {
	u64 signature;
	u32 revision, size, crc, reserved;
	u64 vendor;
	u32 vendor_revision, padding;
	u64 console[6], runtime, boot;
	u64 nr_tables, tables;
};

struct descriptor {
	u64 type, start, virtual, pages, attributes;
};

/* At EFI_GPA; Linux looks at no checksum. */
struct efi {
	struct system_table system;
	struct table table;
	u16 vendor[8];
	struct descriptor map[];
};

void efi_init(struct efi_info *info, u64 unaccepted)
{
	struct efi *efi = (struct efi *)EFI_GPA;

	memset(efi, 0, sizeof(*efi));
	efi->system.signature = TABLE_SIGNATURE;
	efi->system.revision = REVISION;
	efi->system.size = sizeof(efi->system);
	efi->system.vendor = (u64)efi->vendor;
	efi->system.nr_tables = 1;
	efi->system.tables = (u64)&efi->table;
	/* LINUX_EFI_UNACCEPTED_MEM_TABLE_GUID */
	efi->table.guid = (struct guid) {
		0xd5d1de3c, 0x105c, 0x44f9, { 0x9e, 0xa9, 0xbc, 0xef, 0x98, 0x12, 0x00, 0x31 }
	};
	efi->table.at = unaccepted;
	memcpy(efi->vendor, u"tdx-e2e", sizeof(u"tdx-e2e"));

	info->signature = LOADER_SIGNATURE;
	info->system_table = (u64)&efi->system;
	info->descriptor_size = sizeof(struct descriptor);
	info->descriptor_version = 1;
	info->memory_map = (u64)efi->map;
	info->memory_map_size = 0;
}

void efi_add(struct efi_info *info, u64 start, u64 size, enum efi_memory type)
{
	struct descriptor *made = (struct descriptor *)(u64)(info->memory_map + info->memory_map_size);

	if ((u64)(made + 1) > EFI_END)
		fail("too many ranges of memory", info->memory_map_size);
	*made = (struct descriptor) { type, start, 0, size / PAGE_SIZE, WRITE_BACK };
	info->memory_map_size += sizeof(*made);
}
