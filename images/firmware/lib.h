/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Memory, text and the end of a firmware that cannot go on. */
#ifndef LIB_H
#define LIB_H

#include "tdx.h"

#define PAGE_SIZE	4096UL
#define ALIGN_UP(value, to)	(((value) + (to) - 1) & ~((u64)(to) - 1))
#define ALIGN_DOWN(value, to)	((value) & ~((u64)(to) - 1))
#define ARRAY_SIZE(array)	(sizeof(array) / sizeof((array)[0]))

static inline u16 swap16(u16 value)
{
	return __builtin_bswap16(value);
}

static inline u32 swap32(u32 value)
{
	return __builtin_bswap32(value);
}

static inline u64 swap64(u64 value)
{
	return __builtin_bswap64(value);
}

void *memcpy(void *to, const void *from, u64 size);
void *memset(void *to, int value, u64 size);
int memcmp(const void *a, const void *b, u64 size);
u64 text_size(const char *text);
bool text_equal(const char *a, const char *b, u64 size);

/* In payloads/lib */
u64 vmcall_all(u64 registers[12]);

void print_number(u64 value);
void print_hex(u64 value);

/* Prints why the firmware cannot go on, and a number if it is not 0; reports a fatal error to the VMM. */
_Noreturn void fail(const char *why, u64 number);

#endif
