// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * init of the Linux that tests boot as a TD; it runs from the initramfs.
 *
 * Loads the modules, prints two lines on the console (each byte there is an exit of the TD, so no more),
 *
 *	tdx-guest: user space after 1.23 s
 *	Debian GNU/Linux tdx-guest login: root (automatic login)
 *
 * and executes commands (commands.c) from the control channel: the virtio-serial port org.tdx-e2e.control if
 * the machine has it at boot, ttyS0 otherwise.  The power button powers off.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/input.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "init.h"

#define MODULES		"/lib/modules/"
#define BUTTONS		8
/* How often a control channel whose other end is closed is looked at, should its SIGIO have been missed. */
#define CLOSED_LOOK_MS	1000

enum {
	SIGNALS,
	CONTROL,
	FIRST_BUTTON,
	FIRST_OUTPUT = FIRST_BUTTON + BUTTONS,
	POLLED = FIRST_OUTPUT + COMMANDS
};

static struct pollfd polled[POLLED];

void say(const char *format, ...)
{
	char line[256];
	va_list args;
	int length;

	va_start(args, format);
	length = vsnprintf(line, sizeof(line), format, args);
	va_end(args);
	if (length >= (int)sizeof(line))
		length = sizeof(line) - 1;
	if (write(STDOUT_FILENO, line, length) < 0)
		return;
}

size_t read_file(const char *path, char *text, size_t size)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t got = fd < 0 ? 0 : read(fd, text, size - 1);

	if (fd >= 0)
		close(fd);
	text[got > 0 ? got : 0] = '\0';
	return got > 0 ? got : 0;
}

static void mount_one(const char *type, const char *target)
{
	mkdir(target, 0755);
	if (mount(type, target, type, 0, NULL))
		say("tdx-guest: error: mounting %s: %s\n", target, strerror(errno));
}

static void load_modules(void)
{
	char list[LINE_SIZE], path[128], *name, *rest = list;
	int fd;

	read_file(MODULES "autoload", list, sizeof(list));
	while ((name = strsep(&rest, "\n"))) {
		if (!*name)
			continue;
		snprintf(path, sizeof(path), MODULES "%s", name);
		fd = open(path, O_RDONLY | O_CLOEXEC);
		/* ENODEV: a driver that is for a TD only. */
		if ((fd < 0 || syscall(SYS_finit_module, fd, "", 0)) && errno != ENODEV)
			say("tdx-guest: error: loading %s: %s\n", name, strerror(errno));
		if (fd >= 0)
			close(fd);
	}
}

static void open_buttons(void)
{
	char path[32];

	for (int i = 0; i < BUTTONS; i++) {
		snprintf(path, sizeof(path), "/dev/input/event%d", i);
		polled[FIRST_BUTTON + i].fd = open(path, O_RDONLY | O_CLOEXEC);
		polled[FIRST_BUTTON + i].events = POLLIN;
	}
}

static void take_button(int fd)
{
	struct input_event event;

	if (read(fd, &event, sizeof(event)) != sizeof(event) || event.type != EV_KEY ||
	    event.code != KEY_POWER || !event.value)
		return;
	say("tdx-guest: power button\n");
	sync();
	reboot(RB_POWER_OFF);
}

static void take_signal(void)
{
	struct signalfd_siginfo news;
	int status;
	pid_t pid;

	if (read(polled[SIGNALS].fd, &news, sizeof(news)) != sizeof(news))
		return;
	while ((pid = waitpid(-1, &status, WNOHANG)) > 0)
		commands_reaped(pid, status);
}

static void serve(int control)
{
	/* A port without a host at its other end is always ready and has nothing to read. */
	int wait_ms = polled[CONTROL].fd < 0 ? CLOSED_LOOK_MS : -1;

	if (poll(polled, POLLED, wait_ms) < 0)
		return;
	if (polled[SIGNALS].revents)
		take_signal();
	if (polled[CONTROL].fd < 0)
		polled[CONTROL].fd = control;
	else if (polled[CONTROL].revents && commands_take() <= 0)
		polled[CONTROL].fd = -1;
	for (int i = FIRST_BUTTON; i < FIRST_OUTPUT; i++)
		if (polled[i].revents)
			take_button(polled[i].fd);
	commands_pass_on();
}

int main(int argc, char **argv)
{
	struct timespec up;
	sigset_t signals;
	int control;

	(void)argc;
	(void)argv;
	clock_gettime(CLOCK_BOOTTIME, &up);
	sigemptyset(&signals);
	sigaddset(&signals, SIGCHLD);
	sigaddset(&signals, SIGIO);
	sigprocmask(SIG_BLOCK, &signals, NULL);
	reboot(RB_DISABLE_CAD);
	setenv("PATH", "/bin", 1);
	setenv("HOME", "/", 1);
	say("tdx-guest: user space after %ld.%02ld s\n", (long)up.tv_sec, up.tv_nsec / 10000000);

	mount_one("proc", "/proc");
	mount_one("sysfs", "/sys");
	mount_one("devtmpfs", "/dev");
	mount_one("tmpfs", "/tmp");
	load_modules();
	mount_one("configfs", "/sys/kernel/config");
	if (sethostname("tdx-guest", 9))
		say("tdx-guest: error: host name: %s\n", strerror(errno));
	for (int i = 0; i < POLLED; i++)
		polled[i].fd = -1;
	open_buttons();
	control = control_open();
	polled[SIGNALS] = (struct pollfd){ .fd = signalfd(-1, &signals, SFD_CLOEXEC), .events = POLLIN };
	polled[CONTROL] = (struct pollfd){ .fd = control, .events = POLLIN };
	commands_init(control, polled + FIRST_OUTPUT);
	say("Debian GNU/Linux tdx-guest login: root (automatic login)\n");
	for (;;)
		serve(control);
}
