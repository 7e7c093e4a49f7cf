// SPDX-License-Identifier: GPL-2.0-or-later
#include "sha384.h"

#define ROUNDS	80

/* Of the cube roots of the first 80 primes, 64 bits behind the point */
static const u64 constants[ROUNDS] = {
	0x428a2f98d728ae22UL, 0x7137449123ef65cdUL, 0xb5c0fbcfec4d3b2fUL, 0xe9b5dba58189dbbcUL,
	0x3956c25bf348b538UL, 0x59f111f1b605d019UL, 0x923f82a4af194f9bUL, 0xab1c5ed5da6d8118UL,
	0xd807aa98a3030242UL, 0x12835b0145706fbeUL, 0x243185be4ee4b28cUL, 0x550c7dc3d5ffb4e2UL,
	0x72be5d74f27b896fUL, 0x80deb1fe3b1696b1UL, 0x9bdc06a725c71235UL, 0xc19bf174cf692694UL,
	0xe49b69c19ef14ad2UL, 0xefbe4786384f25e3UL, 0x0fc19dc68b8cd5b5UL, 0x240ca1cc77ac9c65UL,
	0x2de92c6f592b0275UL, 0x4a7484aa6ea6e483UL, 0x5cb0a9dcbd41fbd4UL, 0x76f988da831153b5UL,
	0x983e5152ee66dfabUL, 0xa831c66d2db43210UL, 0xb00327c898fb213fUL, 0xbf597fc7beef0ee4UL,
	0xc6e00bf33da88fc2UL, 0xd5a79147930aa725UL, 0x06ca6351e003826fUL, 0x142929670a0e6e70UL,
	0x27b70a8546d22ffcUL, 0x2e1b21385c26c926UL, 0x4d2c6dfc5ac42aedUL, 0x53380d139d95b3dfUL,
	0x650a73548baf63deUL, 0x766a0abb3c77b2a8UL, 0x81c2c92e47edaee6UL, 0x92722c851482353bUL,
	0xa2bfe8a14cf10364UL, 0xa81a664bbc423001UL, 0xc24b8b70d0f89791UL, 0xc76c51a30654be30UL,
	0xd192e819d6ef5218UL, 0xd69906245565a910UL, 0xf40e35855771202aUL, 0x106aa07032bbd1b8UL,
	0x19a4c116b8d2d0c8UL, 0x1e376c085141ab53UL, 0x2748774cdf8eeb99UL, 0x34b0bcb5e19b48a8UL,
	0x391c0cb3c5c95a63UL, 0x4ed8aa4ae3418acbUL, 0x5b9cca4f7763e373UL, 0x682e6ff3d6b2b8a3UL,
	0x748f82ee5defb2fcUL, 0x78a5636f43172f60UL, 0x84c87814a1f0ab72UL, 0x8cc702081a6439ecUL,
	0x90befffa23631e28UL, 0xa4506cebde82bde9UL, 0xbef9a3f7b2c67915UL, 0xc67178f2e372532bUL,
	0xca273eceea26619cUL, 0xd186b8c721c0c207UL, 0xeada7dd6cde0eb1eUL, 0xf57d4f7fee6ed178UL,
	0x06f067aa72176fbaUL, 0x0a637dc5a2c898a6UL, 0x113f9804bef90daeUL, 0x1b710b35131c471bUL,
	0x28db77f523047d84UL, 0x32caab7b40c72493UL, 0x3c9ebe0a15c9bebcUL, 0x431d67c49c100d4cUL,
	0x4cc5d4becb3e42b6UL, 0x597f299cfc657e2aUL, 0x5fcb6fab3ad6faecUL, 0x6c44198c4a475817UL,
};

/* Of the square roots of the ninth to the sixteenth prime */
static const u64 initial[8] = {
	0xcbbb9d5dc1059ed8UL, 0x629a292a367cd507UL, 0x9159015a3070dd17UL, 0x152fecd8f70e5939UL,
	0x67332667ffc00b31UL, 0x8eb44a8768581511UL, 0xdb0c2e0d64f98fa7UL, 0x47b5481dbefa4fa4UL,
};

static inline u64 rotate(u64 value, int by)
{
	return value >> by | value << (64 - by);
}

static void add_block(u64 state[8], const u8 *data)
{
	u64 a = state[0], b = state[1], c = state[2], d = state[3];
	u64 e = state[4], f = state[5], g = state[6], h = state[7];
	u64 w[16], first, second, word;
	int i;

	for (i = 0; i < ROUNDS; i++) {
		if (i < 16) {
			__builtin_memcpy(&word, data + 8 * i, sizeof(word));
			word = swap64(word);
		} else {
			first = w[(i + 1) % 16];
			second = w[(i + 14) % 16];
			word = w[i % 16] + w[(i + 9) % 16];
			word += rotate(first, 1) ^ rotate(first, 8) ^ first >> 7;
			word += rotate(second, 19) ^ rotate(second, 61) ^ second >> 6;
		}
		w[i % 16] = word;
		first = h + constants[i] + word + ((e & f) ^ (~e & g));
		first += rotate(e, 14) ^ rotate(e, 18) ^ rotate(e, 41);
		second = (a & b) ^ (a & c) ^ (b & c);
		second += rotate(a, 28) ^ rotate(a, 34) ^ rotate(a, 39);
		h = g;
		g = f;
		f = e;
		e = d + first;
		d = c;
		c = b;
		b = a;
		a = first + second;
	}
	state[0] += a;
	state[1] += b;
	state[2] += c;
	state[3] += d;
	state[4] += e;
	state[5] += f;
	state[6] += g;
	state[7] += h;
}

void sha384_init(struct sha384 *hash)
{
	memcpy(hash->state, initial, sizeof(initial));
	hash->size = 0;
}

void sha384_update(struct sha384 *hash, const void *data, u64 size)
{
	u64 used = hash->size % SHA384_BLOCK, part;

	hash->size += size;
	if (used) {
		part = SHA384_BLOCK - used < size ? SHA384_BLOCK - used : size;
		memcpy(hash->block + used, data, part);
		if (used + part < SHA384_BLOCK)
			return;
		add_block(hash->state, hash->block);
		data += part;
		size -= part;
	}
	for (; size >= SHA384_BLOCK; size -= SHA384_BLOCK, data += SHA384_BLOCK)
		add_block(hash->state, data);
	memcpy(hash->block, data, size);
}

/* A bit of 1, zeroes, and the size in bits in the last 16 bytes of a block */
void sha384_final(struct sha384 *hash, u8 digest[SHA384_SIZE])
{
	u64 used = hash->size % SHA384_BLOCK, bits = swap64(hash->size * 8);
	u64 words[SHA384_SIZE / 8];
	u32 i;

	hash->block[used++] = 0x80;
	memset(hash->block + used, 0, SHA384_BLOCK - used);
	if (used > SHA384_BLOCK - 16) {
		add_block(hash->state, hash->block);
		memset(hash->block, 0, SHA384_BLOCK);
	}
	memcpy(hash->block + SHA384_BLOCK - 8, &bits, sizeof(bits));
	add_block(hash->state, hash->block);
	for (i = 0; i < ARRAY_SIZE(words); i++)
		words[i] = swap64(hash->state[i]);
	memcpy(digest, words, SHA384_SIZE);
}
