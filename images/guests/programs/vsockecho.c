// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * vsockecho PORT: sends back what comes over vsock, on any number of connections at once.  Prints "listening",
 * and for each connection that has ended "echoed N bytes".
 */
#define _GNU_SOURCE
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <errno.h>
#include <sys/socket.h>
#include <linux/vm_sockets.h>
#include <unistd.h>

static int echo(int connection)
{
	unsigned long long total = 0;
	char data[16384];
	ssize_t got;

	while ((got = recv(connection, data, sizeof(data), 0)) > 0) {
		for (ssize_t done = 0, sent; done < got; done += sent) {
			sent = send(connection, data + done, got - done, MSG_NOSIGNAL);
			if (sent < 0)
				goto out;
		}
		total += got;
	}
out:
	printf("echoed %llu bytes\n", total);
	return 0;
}

int main(int argc, char **argv)
{
	struct sockaddr_vm address = { .svm_family = AF_VSOCK, .svm_cid = VMADDR_CID_ANY };
	int listener = socket(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC, 0), connection;

	setvbuf(stdout, NULL, _IOLBF, 0);
	address.svm_port = argc > 1 ? strtoul(argv[1], NULL, 10) : 0;
	if (!address.svm_port || listener < 0 ||
	    bind(listener, (struct sockaddr *)&address, sizeof(address)) || listen(listener, 64)) {
		printf("error: %s: %s\n", argc > 1 ? argv[1] : "usage: vsockecho PORT", strerror(errno));
		return 2;
	}
	signal(SIGCHLD, SIG_IGN);
	puts("listening");
	while ((connection = accept(listener, NULL, NULL)) >= 0) {
		if (!fork())
			return echo(connection);
		close(connection);
	}
	printf("error: accept: %s\n", strerror(errno));
	return 1;
}
