// SPDX-License-Identifier: GPL-2.0-or-later
#include "lib.h"

#define FATAL_CODE	(1UL << 16)	/* QEMU takes none with a bit in 15:0 */
#define MESSAGE_SIZE	64

/* The compiler calls these too. */
void *memcpy(void *to, const void *from, u64 size)
{
	void *at = to;
	u64 words = size / 8, bytes = size % 8;

	asm volatile("rep movsq" : "+D" (at), "+S" (from), "+c" (words) : : "memory");
	asm volatile("rep movsb" : "+D" (at), "+S" (from), "+c" (bytes) : : "memory");
	return to;
}

void *memset(void *to, int value, u64 size)
{
	void *at = to;

	asm volatile("rep stosb" : "+D" (at), "+c" (size) : "a" (value) : "memory");
	return to;
}

int memcmp(const void *a, const void *b, u64 size)
{
	const u8 *left = a, *right = b;

	for (; size; size--, left++, right++)
		if (*left != *right)
			return *left - *right;
	return 0;
}

u64 text_size(const char *text)
{
	u64 size = 0;

	while (text[size])
		size++;
	return size;
}

/* Compares texts that end with a NUL or after @size characters. */
bool text_equal(const char *a, const char *b, u64 size)
{
	for (; size && *a == *b; size--, a++, b++)
		if (!*a)
			return 1;
	return !size;
}

static void print_in_base(u64 value, u32 base)
{
	char digits[20];
	int n = 0;

	do {
		digits[n++] = "0123456789abcdef"[value % base];
		value /= base;
	} while (value);
	while (n)
		put(digits[--n]);
}

void print_number(u64 value)
{
	print_in_base(value, 10);
}

void print_hex(u64 value)
{
	print("0x");
	print_in_base(value, 16);
}

_Noreturn void fail(const char *why, u64 number)
{
	/* R10 to R15, RBX, RDI, RSI, R8, R9, RDX; the message is in R14, R15 and those that follow. */
	u64 registers[12] = { 0, VMCALL_FATAL, FATAL_CODE };
	char *message = (char *)&registers[4];
	u32 i;

	for (i = 0; i < MESSAGE_SIZE && why[i]; i++)
		message[i] = why[i];
	print("firmware: ");
	print(why);
	if (number) {
		print(": ");
		print_hex(number);
	}
	print("\r\n");
	vmcall_all(registers);
	stop();
}
