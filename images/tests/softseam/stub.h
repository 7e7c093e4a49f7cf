/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The part of the kernel that softseam's files need to run in a process: one
 * CPU, a physical address is its pointer.
 */
#ifndef STUB_H
#define STUB_H

#include <errno.h>
#include <limits.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>

#define u8 uint8_t
#define u16 uint16_t
#define u32 uint32_t
#define u64 unsigned long long

#define static_assert _Static_assert
#define __init
#define __maybe_unused __attribute__((unused))
#define __user
#define unlikely(x) (x)
#define U16_MAX UINT16_MAX
#define PAGE_SHIFT 12
#define PAGE_SIZE (1UL << PAGE_SHIFT)
#define PAGE_MASK (~(PAGE_SIZE - 1))
#define BITS_PER_LONG 64
#define BIT(n) (1UL << (n))
#define BIT_ULL(n) (1ULL << (n))
#define GENMASK_ULL(h, l) (((~0ULL) << (l)) & (~0ULL >> (63 - (h))))
#define GENMASK(h, l) ((unsigned long)GENMASK_ULL(h, l))
#define ARRAY_SIZE(a) (sizeof(a) / sizeof((a)[0]))
#define DECLARE_BITMAP(name, bits) unsigned long name[(bits) / BITS_PER_LONG]
#define min(a, b) ((a) < (b) ? (a) : (b))
#define __va(pa) ((void *)(uintptr_t)(pa))
#define SHA384_DIGEST_SIZE 48
#define X86_EFLAGS_CF BIT(0)
#define X86_EFLAGS_PF BIT(2)
#define X86_EFLAGS_AF BIT(4)
#define X86_EFLAGS_ZF BIT(6)
#define X86_EFLAGS_SF BIT(7)
#define X86_EFLAGS_OF BIT(11)

struct sha384_ctx { u64 words[26]; };

struct pt_regs {
	unsigned long r15, r14, r13, r12, bp, bx, r11, r10, r9, r8, ax, cx, dx, si, di;
	unsigned long orig_ax, ip, cs, flags, sp, ss;
};

struct task_struct { int stub; };

static struct task_struct *const current __maybe_unused = &(struct task_struct) { 0 };

static struct { int x86_phys_bits; } boot_cpu_data __maybe_unused = { 46 };

#define READ_ONCE(x) (*(const volatile __typeof__(x) *)&(x))
#define WRITE_ONCE(x, val) (*(volatile __typeof__(x) *)&(x) = (val))
#define smp_store_release(p, val) __atomic_store_n(p, val, __ATOMIC_RELEASE)
#define try_cmpxchg(p, old, new) \
	__atomic_compare_exchange_n(p, old, new, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)

typedef struct { int counter; } atomic_t;
typedef struct { long long counter; } atomic64_t;
typedef struct { long counter; } atomic_long_t;
#define atomic_read(v) ((v)->counter)
#define atomic64_read(v) ((v)->counter)
#define atomic64_set(v, i) ((v)->counter = (i))
#define atomic64_andnot(i, v) ((v)->counter &= ~(i))
#define atomic_long_read(v) ((v)->counter)
#define atomic_long_set(v, i) ((v)->counter = (i))
#define atomic_long_inc(v) ((v)->counter++)
#define atomic_long_dec(v) ((v)->counter--)
#define atomic_long_andnot(i, v) ((v)->counter &= ~(i))
#define test_bit(nr, p) (!!((p)[(nr) / BITS_PER_LONG] & BIT((nr) % BITS_PER_LONG)))
#define set_bit(nr, p) ((p)[(nr) / BITS_PER_LONG] |= BIT((nr) % BITS_PER_LONG))

static inline bool test_and_clear_bit(long nr, unsigned long *p)
{
	bool was = p[nr / BITS_PER_LONG] & BIT(nr % BITS_PER_LONG);

	p[nr / BITS_PER_LONG] &= ~BIT(nr % BITS_PER_LONG);
	return was;
}

/* What another CPU does while this one waits for a raw spinlock, once */
static void (*others_before_lock)(void) __maybe_unused;

#define DEFINE_RAW_SPINLOCK(name) int name __maybe_unused
#define lockdep_assert_held(lock) do { } while (0)
#define raw_spin_unlock_irqrestore(lock, flags) ((void)(flags))
#define raw_spin_lock_irqsave(lock, flags) do {			\
	void (*others)(void) = others_before_lock;		\
								\
	(flags) = 0;						\
	others_before_lock = NULL;				\
	if (others)						\
		others();					\
} while (0)

#define local_clock() 0ULL
#define pr_info(...) do { } while (0)
#define pr_err(...) do { } while (0)

struct seq_file {
	char text[1 << 20];
	size_t len;
};

/* What another CPU does after the next line of a report */
static void (*others_after_print)(void) __maybe_unused;

__attribute__((format(printf, 2, 3)))
static inline void seq_printf(struct seq_file *m, const char *format, ...)
{
	void (*others)(void) = others_after_print;
	va_list args;

	va_start(args, format);
	m->len += vsnprintf(m->text + m->len, sizeof(m->text) - m->len, format, args);
	va_end(args);
	others_after_print = NULL;
	if (others)
		others();
}

#define seq_puts(m, s) seq_printf(m, "%s", s)

#define CHECK(condition) do {							\
	if (!(condition)) {							\
		fprintf(stderr, "%s:%d: %s\n", __func__, __LINE__, #condition);	\
		exit(1);							\
	}									\
} while (0)

struct unit_case {
	const char *name;
	void (*run)(void);
};

static inline int run_case(const struct unit_case *cases, size_t nr, const char *name)
{
	size_t i;

	for (i = 0; i < nr; i++) {
		if (!strcmp(cases[i].name, name)) {
			cases[i].run();
			return 0;
		}
	}
	fprintf(stderr, "no case %s\n", name);
	return 2;
}

#endif
