// SPDX-License-Identifier: GPL-2.0-or-later
#include "layout.h"
#include "measure.h"
#include "sha384.h"

#define TDG_MR_RTMR_EXTEND	2
#define RTMR_ALIGN	64
#define EV_NO_ACTION	3
#define EV_IPL		0xd
#define ALGORITHM_SHA384	0xc
#define NO_EVENT	0xff

/* TCG PC Client Platform Firmware Profile: what the log begins with */
struct first_event {
	u32 index, type;
	u8 sha1[20];
	u32 size;
	char signature[16];
	u32 class;
	u8 minor, major, errata, words;		/* 4-byte words in a UINTN */
	u32 nr_algorithms;
	u16 algorithm, digest_size;
	u8 vendor_size;
} __attribute__((packed));

#define FIRST_EVENT_HEADER	32

struct event {
	u32 index, type, nr_digests;
	u16 algorithm;
	u8 digest[SHA384_SIZE];
	u32 size;
	char text[];
} __attribute__((packed));

static void *log_end = (void *)LOG_GPA;

void measure_init(void)
{
	struct first_event *first = log_end;

	memset(first, NO_EVENT, LOG_SIZE);
	*first = (struct first_event) {
		.type = EV_NO_ACTION, .size = sizeof(*first) - FIRST_EVENT_HEADER,
		.signature = "Spec ID Event03", .major = 2, .words = 2, .nr_algorithms = 1,
		.algorithm = ALGORITHM_SHA384, .digest_size = SHA384_SIZE,
	};
	log_end = first + 1;
}

static void log_event(u32 rtmr, const char *text, const u8 *digest)
{
	struct event *made = log_end;
	u32 size = text_size(text);

	if ((u64)made + sizeof(*made) + size > LOG_GPA + LOG_SIZE)
		fail("no room for an event", size);
	/* Register 0 of the log is MRTD. */
	made->index = rtmr + 1;
	made->type = EV_IPL;
	made->nr_digests = 1;
	made->algorithm = ALGORITHM_SHA384;
	memcpy(made->digest, digest, SHA384_SIZE);
	made->size = size;
	memcpy(made->text, text, size);
	log_end = made->text + size;
}

static u64 extend(const u8 *digest, u64 rtmr)
{
	u64 rax = TDG_MR_RTMR_EXTEND;

	asm volatile(".byte 0x66, 0x0f, 0x01, 0xcc"
		     : "+a" (rax) : "c" (digest), "d" (rtmr) : "memory", "cc");
	return rax;
}

void measure(u32 rtmr, const char *event, struct part first, struct part second)
{
	static u8 digest[SHA384_SIZE] __attribute__((aligned(RTMR_ALIGN)));
	struct sha384 hash;
	u64 status;

	sha384_init(&hash);
	sha384_update(&hash, first.data, first.size);
	sha384_update(&hash, second.data, second.size);
	sha384_final(&hash, digest);
	status = extend(digest, rtmr);
	if (status)
		fail("an RTMR cannot be extended", status);
	log_event(rtmr, event, digest);
}
