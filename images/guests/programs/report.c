// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * report [HEX]: prints the 1024 bytes of the TD's report, TDREPORT_STRUCT, as one line in hexadecimal.  The
 * report data are the given bytes, up to 64, and 0.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#define DEVICE		"/dev/tdx_guest"
#define DATA_SIZE	64
#define REPORT_SIZE	1024

/* As in linux/tdx-guest.h, which this machine's headers may lack. */
struct request {
	unsigned char data[DATA_SIZE];
	unsigned char report[REPORT_SIZE];
};

#define GET_REPORT0	_IOWR('T', 1, struct request)

int main(int argc, char **argv)
{
	struct request request = { 0 };
	int device = open(DEVICE, O_RDWR | O_CLOEXEC);

	for (size_t i = 0; argc > 1 && i < strlen(argv[1]) / 2; i++) {
		if (i == DATA_SIZE || sscanf(argv[1] + 2 * i, "%2hhx", &request.data[i]) != 1) {
			puts("usage: report [HEX], up to 128 digits");
			return 2;
		}
	}
	if (device < 0 || ioctl(device, GET_REPORT0, &request)) {
		printf("error: %s: %s\n", DEVICE, strerror(errno));
		return 1;
	}
	for (int i = 0; i < REPORT_SIZE; i++)
		printf("%02x", request.report[i]);
	putchar('\n');
	return 0;
}
