/* SPDX-License-Identifier: GPL-2.0-or-later */
/* QEMU's -kernel, -initrd and -append (Linux's Documentation/arch/x86/boot.rst). */
#ifndef LINUX_H
#define LINUX_H

#include "lib.h"

struct boot_params;

/* Loads all of it; returns the 64-bit entry of the kernel. */
u64 linux_load(struct boot_params **params);
/* Whether the kernel accepts the memory that is not accepted yet: the default, see README. */
bool linux_accepts_memory(const struct boot_params *params);
void linux_set_rsdp(struct boot_params *params, u64 rsdp);

#endif
