// SPDX-License-Identifier: GPL-2.0-or-later
/* The guest's commands.c without a guest: standard input is the control channel, both ways. */
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <unistd.h>

#include "init.h"

enum { SIGNALS, CONTROL, FIRST_OUTPUT, POLLED = FIRST_OUTPUT + COMMANDS };

void say(const char *format, ...)
{
	va_list args;

	va_start(args, format);
	vfprintf(stderr, format, args);
	va_end(args);
}

int main(void)
{
	struct pollfd polled[POLLED];
	struct signalfd_siginfo news;
	sigset_t signals;
	int status;
	pid_t pid;

	sigemptyset(&signals);
	sigaddset(&signals, SIGCHLD);
	sigprocmask(SIG_BLOCK, &signals, NULL);
	for (int i = 0; i < POLLED; i++)
		polled[i].fd = -1;
	polled[SIGNALS] = (struct pollfd){ .fd = signalfd(-1, &signals, SFD_CLOEXEC), .events = POLLIN };
	polled[CONTROL] = (struct pollfd){ .fd = STDIN_FILENO, .events = POLLIN };
	commands_init(STDIN_FILENO, polled + FIRST_OUTPUT);
	while (poll(polled, POLLED, -1) > 0) {
		if (polled[SIGNALS].revents && read(polled[SIGNALS].fd, &news, sizeof(news)) > 0)
			while ((pid = waitpid(-1, &status, WNOHANG)) > 0)
				commands_reaped(pid, status);
		if (polled[CONTROL].revents && commands_take() <= 0)
			return 0;
		commands_pass_on();
	}
	return 1;
}
