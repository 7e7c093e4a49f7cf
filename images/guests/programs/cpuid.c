// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * cpuid: prints each CPUID leaf as "leaf sub eax ebx ecx edx", in hexadecimal, and what the TSC does:
 *
 *	tsc cpuid 2500000000 Hz		leaf 0x15, 0 if it does not give a frequency
 *	tsc measured 2500012345 Hz	against a second of CLOCK_MONOTONIC
 *
 * A leaf with sub-leaves is printed with the first 8 of them (64 for the state components), but a sub-leaf
 * other than 0 only if it is not all 0.  It shows one CPU: taskset(1) chooses that.
 */
#include <cpuid.h>
#include <stdbool.h>
#include <stdio.h>
#include <time.h>
#include <x86intrin.h>

#define SECOND		1000000000ULL
#define FEW		8
#define COMPONENTS	64
#define MOST_LEAVES	0x100

static const unsigned int with_subleaves[] = {
	0x4, 0x7, 0xb, 0xd, 0xf, 0x10, 0x12, 0x14, 0x17, 0x18, 0x1b, 0x1d, 0x1e, 0x1f, 0x20, 0x23, 0x24,
	0x8000001d, 0x80000026,
};

static unsigned int subleaves_of(unsigned int leaf)
{
	if (leaf == 0xd)
		return COMPONENTS;
	for (unsigned int i = 0; i < sizeof(with_subleaves) / sizeof(with_subleaves[0]); i++)
		if (with_subleaves[i] == leaf)
			return FEW;
	return 1;
}

static void print_range(unsigned int first)
{
	unsigned int last, a, b, c, d;

	__cpuid_count(first, 0, last, b, c, d);
	/* A range that the CPU lacks gives what the highest basic leaf does. */
	if (last < first || last - first >= MOST_LEAVES)
		last = first;
	for (unsigned int leaf = first; leaf <= last; leaf++) {
		for (unsigned int sub = 0; sub < subleaves_of(leaf); sub++) {
			__cpuid_count(leaf, sub, a, b, c, d);
			if (!sub || a || b || c || d)
				printf("%08x %02x %08x %08x %08x %08x\n", leaf, sub, a, b, c, d);
		}
	}
}

static unsigned long long read_clock(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * SECOND + now.tv_nsec;
}

static void print_tsc(void)
{
	unsigned int denominator, numerator, crystal, unused;
	unsigned long long hertz = 0, begin, end, tsc;

	__cpuid_count(0, 0, unused, numerator, crystal, denominator);
	if (unused >= 0x15) {
		__cpuid_count(0x15, 0, denominator, numerator, crystal, unused);
		if (denominator)
			hertz = (unsigned long long)crystal * numerator / denominator;
	}
	printf("tsc cpuid %llu Hz\n", hertz);
	begin = read_clock();
	tsc = __rdtsc();
	do
		end = read_clock();
	while (end - begin < SECOND);
	tsc = __rdtsc() - tsc;
	printf("tsc measured %llu Hz\n", (unsigned long long)((unsigned __int128)tsc * SECOND / (end - begin)));
}

int main(int argc, char **argv)
{
	if (argc > 1) {
		printf("usage: %s\n", argv[0]);
		return 2;
	}
	print_range(0);
	print_range(0x40000000);
	print_range(0x80000000);
	print_tsc();
	return 0;
}
