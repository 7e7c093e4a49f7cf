/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The TD's memory: what there is, what is accepted, what is shared. */
#ifndef MEMORY_H
#define MEMORY_H

#include "lib.h"

struct range {
	u64 start, end;
};

/* Reads the VMM's list of memory, and accepts what cannot be left for later; has to be called first. */
void memory_init(void);
/* The ranges of the VMM's list, ascending, adjoining ones joined; returns their number. */
u32 memory_ranges(const struct range **ranges);
/* The end of the memory that begins at 0. */
u64 memory_low_end(void);
/* Accepts what is not yet accepted of a range of memory. */
void memory_accept(u64 start, u64 end);
void memory_accept_all(void);
/* The rest, as a table that Linux knows (include/linux/efi.h, struct efi_unaccepted_memory) */
u64 memory_unaccepted_table(void);
void memory_share(u64 gpa, u64 size);
void memory_unshare(u64 gpa, u64 size);

#endif
