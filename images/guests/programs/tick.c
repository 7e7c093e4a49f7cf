// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * tick [HZ]: a timer on each CPU, 100 steps a second.  Prints for each CPU, each second
 *
 *	cpu 0 count 100 missed 0 maxgap 10213 us backwards 0 0
 *
 * and upon SIGTERM the same for all the time, begun by "total" and ended by the time since the first step,
 * "elapsed 12345678 us".  A step that comes when the next is due already counts those in between as missed.
 * The last two numbers count readings of CLOCK_MONOTONIC and of the TSC that were smaller than one that any
 * CPU had taken before.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <x86intrin.h>

#define CPUS	1024
#define SECOND	1000000000LL

struct cpu {
	int number;
	pthread_t thread;
	atomic_llong count, missed, gap, clock_back, tsc_back;
	long long seen_count, seen_missed, seen_clock, seen_tsc, longest;
};

static struct cpu *cpus;
static int present;
static long long period, begin;
static atomic_llong last_clock, last_tsc;

static long long read_clock(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * SECOND + now.tv_nsec;
}

/* Returns whether a reading is smaller than an earlier one; the latest is loaded before the reading is taken. */
static bool goes_back(atomic_llong *last, long long before, long long reading)
{
	long long latest = atomic_load(last);

	while (latest < reading && !atomic_compare_exchange_weak(last, &latest, reading))
		;
	return reading < before;
}

static long long look(struct cpu *cpu)
{
	long long before = atomic_load(&last_tsc), reading;

	_mm_lfence();
	reading = __rdtsc();
	_mm_lfence();
	if (goes_back(&last_tsc, before, reading))
		atomic_fetch_add(&cpu->tsc_back, 1);
	before = atomic_load(&last_clock);
	reading = read_clock();
	if (goes_back(&last_clock, before, reading))
		atomic_fetch_add(&cpu->clock_back, 1);
	return reading;
}

static void *run(void *argument)
{
	struct cpu *cpu = argument;
	long long due = begin, last = begin, now;

	for (;;) {
		struct timespec until = { due / SECOND, due % SECOND };

		clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL);
		now = look(cpu);
		if (now - last > atomic_load(&cpu->gap))
			atomic_store(&cpu->gap, now - last);
		last = now;
		atomic_fetch_add(&cpu->count, 1);
		if (now > due)
			atomic_fetch_add(&cpu->missed, (now - due) / period);
		due += now > due ? (now - due) / period * period + period : period;
	}
	return NULL;
}

static void print_second(struct cpu *cpu)
{
	long long count = atomic_load(&cpu->count), missed = atomic_load(&cpu->missed);
	long long clock = atomic_load(&cpu->clock_back), tsc = atomic_load(&cpu->tsc_back);
	long long gap = atomic_exchange(&cpu->gap, 0);

	printf("cpu %d count %lld missed %lld maxgap %lld us backwards %lld %lld\n", cpu->number,
	       count - cpu->seen_count, missed - cpu->seen_missed, gap / 1000, clock - cpu->seen_clock,
	       tsc - cpu->seen_tsc);
	cpu->seen_count = count;
	cpu->seen_missed = missed;
	cpu->seen_clock = clock;
	cpu->seen_tsc = tsc;
	if (gap > cpu->longest)
		cpu->longest = gap;
}

int main(int argc, char **argv)
{
	long long hz = argc > 1 ? atoll(argv[1]) : 100;
	struct timespec second = { 1, 0 };
	sigset_t end;
	cpu_set_t all;

	if (hz <= 0 || hz > SECOND || sched_getaffinity(0, sizeof(all), &all))
		return 2;
	period = SECOND / hz;
	cpus = calloc(CPUS, sizeof(*cpus));
	sigemptyset(&end);
	sigaddset(&end, SIGTERM);
	sigprocmask(SIG_BLOCK, &end, NULL);
	setvbuf(stdout, NULL, _IOLBF, 0);
	begin = read_clock() + period;
	for (int number = 0; number < CPUS; number++) {
		struct cpu *cpu = &cpus[present];
		pthread_attr_t pinned;
		cpu_set_t only;

		if (!CPU_ISSET(number, &all))
			continue;
		CPU_ZERO(&only);
		CPU_SET(number, &only);
		cpu->number = number;
		pthread_attr_init(&pinned);
		pthread_attr_setaffinity_np(&pinned, sizeof(only), &only);
		if (pthread_create(&cpu->thread, &pinned, run, cpu))
			return 2;
		present++;
	}
	while (sigtimedwait(&end, NULL, &second) < 0)
		for (int i = 0; i < present; i++)
			print_second(&cpus[i]);
	for (int i = 0; i < present; i++) {
		struct cpu *cpu = &cpus[i];
		long long gap = atomic_load(&cpu->gap) > cpu->longest ? atomic_load(&cpu->gap) : cpu->longest;

		printf("total cpu %d count %lld missed %lld maxgap %lld us backwards %lld %lld elapsed %lld us\n",
		       cpu->number, atomic_load(&cpu->count), atomic_load(&cpu->missed), gap / 1000,
		       atomic_load(&cpu->clock_back), atomic_load(&cpu->tsc_back), (read_clock() - begin) / 1000);
	}
	return 0;
}
