// SPDX-License-Identifier: GPL-2.0-or-later
#include "acpi.h"
#include "fw_cfg.h"
#include "layout.h"

#define LOADER_FILE	"etc/table-loader"
#define RSDP_FILE	"etc/acpi/rsdp"
#define FILES_MAX	16

/* QEMU's docs/specs: the commands of etc/table-loader */
enum { ALLOCATE = 1, ADD_POINTER, ADD_CHECKSUM, WRITE_POINTER };

struct command {
	u32 what;
	union {
		struct {
			char file[FW_CFG_NAME_SIZE];
			u32 align;
			u8 zone;
		} __attribute__((packed)) allocate;
		struct {
			char to[FW_CFG_NAME_SIZE], of[FW_CFG_NAME_SIZE];
			u32 offset;
			u8 size;
		} __attribute__((packed)) pointer;
		struct {
			char file[FW_CFG_NAME_SIZE];
			u32 at, start, size;
		} __attribute__((packed)) checksum;
		struct {
			char to[FW_CFG_NAME_SIZE], of[FW_CFG_NAME_SIZE];
			u32 offset, of_offset;
			u8 size;
		} __attribute__((packed)) write;
		u8 whole[124];
	};
};

struct loaded {
	const char *name;
	u8 *at;
	u32 size;
};

struct header {
	char signature[4];
	u32 size;
	u8 revision, checksum;
	char oem[6], oem_table[8];
	u32 oem_revision;
	char creator[4];
	u32 creator_revision;
} __attribute__((packed));

struct rsdp {
	char signature[8];
	u8 checksum;
	char oem[6];
	u8 revision;
	u32 rsdt;
	u32 size;
	u64 xsdt;
	u8 extended_checksum, reserved[3];
} __attribute__((packed));

/* ACPI 6.4, 5.2.12.19 */
struct wake_up {
	u8 type, size;
	u16 mailbox_version;
	u32 reserved;
	u64 mailbox;
} __attribute__((packed));

#define MADT_WAKE_UP	0x10

/* ACPI 6.5, 5.2.34: where the log of measurements is */
struct ccel {
	struct header header;
	u8 type, subtype;
	u16 reserved;
	u64 size, start;
} __attribute__((packed));

#define CC_TDX		2

/* What the checksum of the first version covers */
#define RSDP_SIZE_OF_FIRST	20

static struct loaded files[FILES_MAX];
static u32 count;
static u64 free_from = ACPI_GPA;

static void *allocate(u64 size, u64 align)
{
	u64 at = ALIGN_UP(free_from, align ? align : 1);

	if (size > ACPI_END - ACPI_GPA || at + size > ACPI_END)
		fail("no room for ACPI tables", size);
	free_from = at + size;
	return (void *)at;
}

static u8 sum(const u8 *at, u64 size)
{
	u8 total = 0;

	while (size--)
		total += *at++;
	return total;
}

static struct loaded *find(const char *name)
{
	u32 i;

	for (i = 0; i < count; i++)
		if (text_equal(files[i].name, name, FW_CFG_NAME_SIZE))
			return &files[i];
	fail("a command refers to an ACPI file that is not loaded", 0);
}

/* Checks that a command stays in its file. */
static u8 *part(const struct loaded *file, u32 offset, u32 size)
{
	if (offset > file->size || size > file->size - offset)
		fail("a command leaves its ACPI file", offset);
	return file->at + offset;
}

static void load(const struct command *command)
{
	struct fw_cfg_file found;
	struct loaded *file = &files[count];

	if (count++ == FILES_MAX)
		fail("too many ACPI files", count);
	if (!fw_cfg_find(command->allocate.file, &found))
		fail("an ACPI file is missing", 0);
	file->name = command->allocate.file;
	file->size = found.size;
	file->at = allocate(found.size, command->allocate.align);
	fw_cfg_read(found.key, file->at, found.size);
}

static void add_pointer(const struct command *command)
{
	u32 size = command->pointer.size;
	u64 value = 0;
	u8 *at;

	if (size > sizeof(value))
		fail("an ACPI pointer is too long", size);
	at = part(find(command->pointer.to), command->pointer.offset, size);
	memcpy(&value, at, size);
	value += (u64)find(command->pointer.of)->at;
	memcpy(at, &value, size);
}

static void add_checksum(const struct command *command)
{
	const struct loaded *file = find(command->checksum.file);
	u8 *at = part(file, command->checksum.at, 1);
	u32 size = command->checksum.size;

	*at -= sum(part(file, command->checksum.start, size), size);
}

static void write_pointer(const struct command *command)
{
	u64 value = (u64)find(command->write.of)->at + command->write.of_offset;
	struct fw_cfg_file found;

	if (command->write.size > sizeof(value) || !fw_cfg_find(command->write.to, &found))
		fail("an ACPI file cannot be written", 0);
	fw_cfg_write(found.key, command->write.offset, &value, command->write.size);
}

static void execute(const struct command *commands, u64 size)
{
	const struct command *command;

	for (command = commands; size >= sizeof(*command); command++, size -= sizeof(*command)) {
		switch (command->what) {
		case ALLOCATE:
			load(command);
			break;
		case ADD_POINTER:
			add_pointer(command);
			break;
		case ADD_CHECKSUM:
			add_checksum(command);
			break;
		case WRITE_POINTER:
			write_pointer(command);
			break;
		}
	}
}

static void set_checksum(u8 *checksum, const void *table, u64 size)
{
	*checksum = 0;
	*checksum = -sum(table, size);
}

static void finish(struct header *table)
{
	set_checksum(&table->checksum, table, table->size);
}

/* Returns a copy of a table with room for more at its end, which the caller fills. */
static struct header *grow(const struct header *table, u64 more)
{
	struct header *made = allocate(table->size + more, 16);

	memcpy(made, table, table->size);
	made->size += more;
	return made;
}

static struct header *add_mailbox(const struct header *madt)
{
	struct header *made = grow(madt, sizeof(struct wake_up));
	struct wake_up *entry = (void *)made + madt->size;

	*entry = (struct wake_up) { MADT_WAKE_UP, sizeof(*entry), 0, 0, MAILBOX_GPA };
	finish(made);
	return made;
}

static struct header *make_ccel(const struct header *like)
{
	struct ccel *made = allocate(sizeof(*made), 16);

	memset(made, 0, sizeof(*made));
	made->header = *like;
	memcpy(made->header.signature, "CCEL", 4);
	made->header.size = sizeof(*made);
	made->header.revision = 1;
	made->type = CC_TDX;
	made->size = LOG_SIZE;
	made->start = LOG_GPA;
	finish(&made->header);
	return &made->header;
}

/* Returns a table of tables, RSDT or XSDT, with another MADT and with the log's table. */
static struct header *extend(const struct header *root, u64 width)
{
	struct header *made = grow(root, width);
	bool found = 0;
	u64 address = 0;
	void *at;

	for (at = made + 1; at + width <= (void *)made + root->size; at += width) {
		memcpy(&address, at, width);
		if (memcmp((const void *)address, "APIC", 4))
			continue;
		address = (u64)add_mailbox((const struct header *)address);
		memcpy(at, &address, width);
		found = 1;
	}
	if (!found)
		fail("QEMU's tables have no MADT", 0);
	address = (u64)make_ccel(root);
	memcpy(at, &address, width);
	finish(made);
	return made;
}

u64 acpi_install(void)
{
	struct fw_cfg_file loader;
	struct rsdp *rsdp;
	void *commands;

	if (!fw_cfg_find(LOADER_FILE, &loader))
		fail("QEMU offers no ACPI tables", 0);
	commands = allocate(loader.size, 16);
	fw_cfg_read(loader.key, commands, loader.size);
	execute(commands, loader.size);
	rsdp = (struct rsdp *)find(RSDP_FILE)->at;
	if (rsdp->revision >= 2 && rsdp->xsdt)
		rsdp->xsdt = (u64)extend((const struct header *)rsdp->xsdt, sizeof(rsdp->xsdt));
	else
		rsdp->rsdt = (u64)extend((const struct header *)(u64)rsdp->rsdt, sizeof(rsdp->rsdt));
	set_checksum(&rsdp->checksum, rsdp, RSDP_SIZE_OF_FIRST);
	if (rsdp->revision >= 2)
		set_checksum(&rsdp->extended_checksum, rsdp, rsdp->size);
	return (u64)rsdp;
}
