// SPDX-License-Identifier: GPL-2.0-or-later
/* The control channel: a virtio-serial port by its name, or the serial console. */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/netlink.h>
#include <poll.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <termios.h>
#include <unistd.h>

#include "init.h"

#define PORT_NAME	"org.tdx-e2e.control"
#define PORTS		"/sys/class/virtio-ports"
#define DRIVER		"/sys/bus/virtio/drivers/virtio_console"
#define SERIAL		"/dev/ttyS0"
#define PORT_WAIT_MS	10000

/* Returns -1 if no port has the name. */
static int open_port(void)
{
	char path[sizeof(PORTS) + 300], name[64];
	DIR *ports = opendir(PORTS);
	struct dirent *entry;
	int fd = -1;

	while (ports && fd < 0 && (entry = readdir(ports))) {
		snprintf(path, sizeof(path), PORTS "/%s/name", entry->d_name);
		read_file(path, name, sizeof(name));
		name[strcspn(name, "\n")] = '\0';
		if (strcmp(name, PORT_NAME))
			continue;
		snprintf(path, sizeof(path), "/dev/%s", entry->d_name);
		fd = open(path, O_RDWR | O_CLOEXEC);
	}
	if (ports)
		closedir(ports);
	return fd;
}

static bool has_serial_bus(void)
{
	DIR *devices = opendir(DRIVER);
	struct dirent *entry;
	bool found = false;

	while (devices && !found && (entry = readdir(devices)))
		found = !strncmp(entry->d_name, "virtio", 6);
	if (devices)
		closedir(devices);
	return found;
}

/* The driver learns the names of its ports from the device a while after it has found the device. */
static int wait_for_port(void)
{
	struct sockaddr_nl address = { .nl_family = AF_NETLINK, .nl_groups = 1 };
	struct pollfd news = { .events = POLLIN };
	char event[LINE_SIZE];
	int fd;

	news.fd = socket(AF_NETLINK, SOCK_DGRAM | SOCK_CLOEXEC, NETLINK_KOBJECT_UEVENT);
	if (news.fd < 0 || bind(news.fd, (struct sockaddr *)&address, sizeof(address)))
		say("tdx-guest: error: uevents: %s\n", strerror(errno));
	for (;;) {
		fd = open_port();
		if (fd >= 0 || !has_serial_bus() || poll(&news, 1, PORT_WAIT_MS) <= 0 ||
		    recv(news.fd, event, sizeof(event), 0) < 0)
			break;
	}
	if (news.fd >= 0)
		close(news.fd);
	return fd;
}

int control_open(void)
{
	struct termios terminal;
	int fd = wait_for_port();

	if (fd >= 0) {
		/* poll() does not wait for a host that has closed its end; its return is a SIGIO. */
		fcntl(fd, F_SETOWN, getpid());
		fcntl(fd, F_SETFL, O_RDWR | O_ASYNC);
		return fd;
	}
	fd = open(SERIAL, O_RDWR | O_CLOEXEC | O_NOCTTY);
	if (!tcgetattr(fd, &terminal)) {
		terminal.c_lflag &= ~(ECHO | ISIG);
		terminal.c_oflag &= ~OPOST;
		tcsetattr(fd, TCSANOW, &terminal);
	}
	return fd;
}
