// SPDX-License-Identifier: GPL-2.0-or-later
#include "fw_cfg.h"
#include "layout.h"
#include "memory.h"

#define PORT_SELECT	0x510
#define PORT_DATA	0x511
#define PORT_DMA_HIGH	0x514
#define PORT_DMA_LOW	0x518

#define KEY_ID		0x01
#define KEY_DIRECTORY	0x19
#define DIRECTORY_MAX	256
#define ID_HAS_DMA	0x02

#define DMA_ERROR	0x01
#define DMA_READ	0x02
#define DMA_SKIP	0x04
#define DMA_SELECT	0x08
#define DMA_WRITE	0x10

/* The buffer's first page has the command, the others the data. */
struct command {
	u32 control;
	u32 size;
	u64 address;
};

#define DATA_OFFSET	PAGE_SIZE
#define DATA_SIZE	(SHARED_BUFFER_SIZE - DATA_OFFSET)

struct directory_entry {
	u32 size;
	u16 key;
	u16 reserved;
	char name[FW_CFG_NAME_SIZE];
};

struct directory {
	u32 count;
	struct directory_entry entries[DIRECTORY_MAX];
};

static void *buffer(u64 offset)
{
	return (void *)(SHARED_VA + SHARED_BUFFER_GPA + offset);
}

void fw_cfg_begin(void)
{
	memory_share(SHARED_BUFFER_GPA, SHARED_BUFFER_SIZE);
	io(PORT_SELECT, 2, 1, KEY_ID);
	if (!(io(PORT_DATA, 1, 0, 0) & ID_HAS_DMA))
		fail("fw_cfg has no DMA", 0);
}

void fw_cfg_end(void)
{
	memory_unshare(SHARED_BUFFER_GPA, SHARED_BUFFER_SIZE);
}

/* Data pass between the VMM and the buffer.  The VMM finds memory by its address without the shared bit. */
static void transfer(u32 control, u64 size)
{
	volatile struct command *command = buffer(0);

	command->size = swap32(size);
	command->address = swap64(SHARED_BUFFER_GPA + DATA_OFFSET);
	command->control = swap32(control);
	io(PORT_DMA_HIGH, 4, 1, 0);
	io(PORT_DMA_LOW, 4, 1, swap32(SHARED_BUFFER_GPA));
	while ((control = swap32(command->control)))
		if (control & DMA_ERROR)
			fail("fw_cfg DMA failed", control);
}

static u32 select(u16 key)
{
	return (u32)key << 16 | DMA_SELECT;
}

void fw_cfg_read(u16 key, void *to, u64 size)
{
	u32 control = select(key) | DMA_READ;
	u64 part;

	for (; size; size -= part, to += part) {
		part = size < DATA_SIZE ? size : DATA_SIZE;
		transfer(control, part);
		memcpy(to, buffer(DATA_OFFSET), part);
		control = DMA_READ;
	}
}

void fw_cfg_write(u16 key, u32 offset, const void *from, u64 size)
{
	transfer(select(key) | DMA_SKIP, offset);
	memcpy(buffer(DATA_OFFSET), from, size);
	transfer(DMA_WRITE, size);
}

u32 fw_cfg_read_u32(u16 key)
{
	u32 value;

	fw_cfg_read(key, &value, sizeof(value));
	return value;
}

bool fw_cfg_find(const char *name, struct fw_cfg_file *file)
{
	const struct directory *directory = buffer(DATA_OFFSET);
	u32 i, count;

	transfer(select(KEY_DIRECTORY) | DMA_READ, sizeof(*directory));
	count = swap32(directory->count);
	for (i = 0; i < count && i < DIRECTORY_MAX; i++) {
		const struct directory_entry *entry = &directory->entries[i];

		if (text_equal(entry->name, name, FW_CFG_NAME_SIZE)) {
			file->size = swap32(entry->size);
			file->key = swap16(entry->key);
			return 1;
		}
	}
	return 0;
}
