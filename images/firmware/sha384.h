/* SPDX-License-Identifier: GPL-2.0-or-later */
/* SHA-384 (FIPS 180-4) */
#ifndef SHA384_H
#define SHA384_H

#include "lib.h"

#define SHA384_SIZE	48
#define SHA384_BLOCK	128

struct sha384 {
	u64 state[8], size;
	u8 block[SHA384_BLOCK];		/* what fills no block yet */
};

void sha384_init(struct sha384 *hash);
void sha384_update(struct sha384 *hash, const void *data, u64 size);
void sha384_final(struct sha384 *hash, u8 digest[SHA384_SIZE]);

#endif
