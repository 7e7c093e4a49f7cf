// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * diskwork FILE [BLOCKS]: writes 4 KiB blocks to a disk or file in a loop, past the page cache, and reads each
 * back, and one that was written earlier.  Overwrites the first BLOCKS (256) blocks.  Prints each second
 *
 *	written 123 verified 246
 *
 * Upon SIGTERM it reads all blocks once more, prints the same with "total" in front and ends with 0; with 1
 * once a block is not what was written last.
 *
 * A block consists of 512 words in the machine's byte order: "DISKWORK", its sequence number from 1, its place,
 * the sum (FNV-1a over bytes) of all words that follow, and words that follow from the sequence number.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define BLOCK	4096
#define WORDS	(BLOCK / 8)
#define BLOCKS	256

enum { MAGIC, SEQUENCE, PLACE, SUM, DATA };

static int disk;
static uint64_t *written_last;	/* by place: the sequence number of what is there, or 0 */
static uint64_t *buffer, *expected;
static unsigned long long written, verified;

static uint64_t sum_of(const uint64_t *words, size_t count)
{
	const unsigned char *byte = (const unsigned char *)words;
	uint64_t sum = 0xcbf29ce484222325;

	for (size_t i = 0; i < count * 8; i++)
		sum = (sum ^ byte[i]) * 0x100000001b3;
	return sum;
}

static void fill(uint64_t *words, uint64_t sequence, uint64_t place)
{
	uint64_t state = sequence * 0x9e3779b97f4a7c15 + place;

	memcpy(&words[MAGIC], "DISKWORK", 8);
	words[SEQUENCE] = sequence;
	words[PLACE] = place;
	for (int i = DATA; i < WORDS; i++) {
		state ^= state << 13;
		state ^= state >> 7;
		state ^= state << 17;
		words[i] = state;
	}
	words[SUM] = sum_of(words + DATA, WORDS - DATA);
}

static void fail(const char *what, uint64_t place)
{
	printf("error: %s block %llu: %s\n", what, (unsigned long long)place,
	       errno ? strerror(errno) : "not whole");
	exit(1);
}

static void verify(uint64_t place)
{
	if (!written_last[place])
		return;
	errno = 0;
	if (pread(disk, buffer, BLOCK, place * BLOCK) != BLOCK)
		fail("reading", place);
	fill(expected, written_last[place], place);
	if (memcmp(buffer, expected, BLOCK)) {
		printf("mismatch: block %llu has sequence %llu, place %llu, %s sum; expected sequence %llu\n",
		       (unsigned long long)place, (unsigned long long)buffer[SEQUENCE],
		       (unsigned long long)buffer[PLACE],
		       buffer[SUM] == sum_of(buffer + DATA, WORDS - DATA) ? "right" : "wrong",
		       (unsigned long long)written_last[place]);
		exit(1);
	}
	verified++;
}

static void print(const char *begin)
{
	printf("%swritten %llu verified %llu\n", begin, written, verified);
}

static bool is_ended(const sigset_t *end)
{
	const struct timespec none = { 0, 0 };

	return sigtimedwait(end, NULL, &none) == SIGTERM;
}

int main(int argc, char **argv)
{
	uint64_t blocks = argc > 2 ? strtoull(argv[2], NULL, 10) : BLOCKS, earlier = 0;
	time_t printed = time(NULL);
	sigset_t end;

	sigemptyset(&end);
	sigaddset(&end, SIGTERM);
	sigprocmask(SIG_BLOCK, &end, NULL);
	setvbuf(stdout, NULL, _IOLBF, 0);
	disk = argc > 1 ? open(argv[1], O_RDWR | O_CREAT | O_DIRECT | O_SYNC | O_CLOEXEC, 0600) : -1;
	if (disk < 0 || !blocks) {
		printf("error: %s: %s\n", argc > 1 ? argv[1] : "usage: diskwork FILE [BLOCKS]", strerror(errno));
		return 2;
	}
	written_last = calloc(blocks, sizeof(*written_last));
	buffer = aligned_alloc(BLOCK, BLOCK);
	expected = aligned_alloc(BLOCK, BLOCK);
	if (!written_last || !buffer || !expected)
		return 2;
	while (!is_ended(&end)) {
		uint64_t place = written % blocks;

		fill(buffer, written + 1, place);
		errno = 0;
		if (pwrite(disk, buffer, BLOCK, place * BLOCK) != BLOCK)
			fail("writing", place);
		written_last[place] = ++written;
		verify(place);
		/* 7919 is a prime: all places have their turn, in an order of its own. */
		earlier = (earlier + 7919) % blocks;
		verify(earlier);
		if (time(NULL) != printed) {
			printed = time(NULL);
			print("");
		}
	}
	for (uint64_t place = 0; place < blocks; place++)
		verify(place);
	print("total ");
	return 0;
}
