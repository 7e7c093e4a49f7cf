// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * secret TEXT PAGES: fills pages of private memory with a pattern, prints "ready" and waits for SIGTERM; then it
 * compares all pages, and prints "whole" or "changed: page N" and ends with 1.
 *
 * The pattern is TEXT with each byte exclusive-or 0x5a, repeated.  TEXT itself has come through shared memory,
 * where a host may find it; the pattern is nowhere but in these pages.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define PAGE	4096
#define KEY	0x5a

int main(int argc, char **argv)
{
	size_t pages = argc > 2 ? strtoull(argv[2], NULL, 10) : 0, length = argc > 1 ? strlen(argv[1]) : 0;
	char page[PAGE], *memory;
	sigset_t end;
	int number;

	if (!pages || !length) {
		puts("usage: secret TEXT PAGES");
		return 2;
	}
	sigemptyset(&end);
	sigaddset(&end, SIGTERM);
	sigprocmask(SIG_BLOCK, &end, NULL);
	setvbuf(stdout, NULL, _IOLBF, 0);
	memory = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (memory == MAP_FAILED) {
		printf("error: memory: %s\n", strerror(errno));
		return 2;
	}
	for (size_t i = 0; i < PAGE; i++)
		page[i] = argv[1][i % length] ^ KEY;
	for (size_t i = 0; i < pages; i++)
		memcpy(memory + i * PAGE, page, PAGE);
	puts("ready");
	sigwait(&end, &number);
	for (size_t i = 0; i < pages; i++) {
		if (memcmp(memory + i * PAGE, page, PAGE)) {
			printf("changed: page %zu\n", i);
			return 1;
		}
	}
	puts("whole");
	return 0;
}
