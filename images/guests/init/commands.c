// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The commands of the host, which run beside each other.  The channel consists of lines; the host chooses the
 * ids, which are decimal numbers:
 *
 *	host:   12 uname -r	execute this by sh -c, in a process group of its own
 *	guest:  12|6.12.117	a line that it printed, on standard output or standard error
 *	guest:  12=0		it has ended and nobody can print for it any more: exit status, 128 + signal
 *	host:   12!15		send signal 15 to its process group
 *
 * A line is written whole; one that is longer than 4095 bytes comes in pieces.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "init.h"

#define CANNOT_START	126

struct lines {
	size_t used;
	char text[LINE_SIZE];
};

struct command {
	bool taken;
	pid_t pid;		/* 0: it was reaped */
	int status;
	unsigned long id;
	struct lines printed;
};

static struct command commands[COMMANDS];
static struct pollfd *outputs;
static struct lines asked;
static int control;

static void answer(unsigned long id, char what, const char *text, size_t size)
{
	char line[LINE_SIZE + 32];
	size_t used = snprintf(line, sizeof(line), "%lu%c", id, what);
	ssize_t wrote = 0;

	memcpy(line + used, text, size);
	used += size;
	line[used++] = '\n';
	for (size_t done = 0; done < used && wrote >= 0; done += wrote)
		wrote = write(control, line + done, used - done);
}

static void answer_status(unsigned long id, int code)
{
	char text[8];

	answer(id, '=', text, snprintf(text, sizeof(text), "%d", code));
}

/* Ends a command that was reaped and whose output has ended. */
static void finish(struct command *command)
{
	int status = command->status;

	if (command->pid || outputs[command - commands].fd >= 0)
		return;
	if (command->printed.used)
		answer(command->id, '|', command->printed.text, command->printed.used);
	answer_status(command->id, WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status));
	command->taken = false;
}

static void execute(const char *text, int output)
{
	sigset_t none;

	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	setpgid(0, 0);
	dup2(open("/dev/null", O_RDONLY), STDIN_FILENO);
	dup2(output, STDOUT_FILENO);
	dup2(output, STDERR_FILENO);
	execl("/bin/sh", "sh", "-c", text, NULL);
	_exit(CANNOT_START);
}

static void start(unsigned long id, const char *text)
{
	struct command *command = commands;
	int ends[2];

	while (command < commands + COMMANDS && command->taken)
		command++;
	if (command == commands + COMMANDS || pipe2(ends, O_CLOEXEC)) {
		answer_status(id, CANNOT_START);
		return;
	}
	*command = (struct command){ .taken = true, .id = id, .pid = fork() };
	if (!command->pid)
		execute(text, ends[1]);
	/* Here too, so that a signal that is asked for next finds the group. */
	setpgid(command->pid, command->pid);
	close(ends[1]);
	outputs[command - commands] = (struct pollfd){ .fd = ends[0], .events = POLLIN };
	if (command->pid < 0) {
		command->pid = 0;
		command->status = CANNOT_START << 8;
	}
}

static void take_order(const char *line)
{
	char *rest;
	unsigned long id = strtoul(line, &rest, 10);

	if (rest > line && *rest == ' ') {
		start(id, rest + 1);
	} else if (rest > line && *rest == '!') {
		for (int i = 0; i < COMMANDS; i++)
			if (commands[i].taken && commands[i].pid > 0 && commands[i].id == id)
				kill(-commands[i].pid, atoi(rest + 1));
	} else if (*line) {
		say("tdx-guest: error: not a command: %s\n", line);
	}
}

/* Reads what is there; each whole line is printed for a command, or is an order if there is none. */
static ssize_t read_lines(int fd, struct lines *lines, const struct command *command)
{
	ssize_t got = read(fd, lines->text + lines->used, LINE_SIZE - 1 - lines->used);
	char *begin = lines->text, *end, *newline;

	if (got <= 0)
		return got;
	lines->used += got;
	end = lines->text + lines->used;
	for (;;) {
		newline = memchr(begin, '\n', end - begin);
		if (!newline && (begin > lines->text || lines->used < LINE_SIZE - 1))
			break;
		if (!newline)
			newline = end;
		*newline = '\0';
		if (command)
			answer(command->id, '|', begin, newline - begin);
		else
			take_order(begin);
		begin = newline < end ? newline + 1 : end;
	}
	lines->used = end - begin;
	memmove(lines->text, begin, lines->used);
	return got;
}

void commands_init(int control_fd, struct pollfd *polled)
{
	control = control_fd;
	outputs = polled;
}

ssize_t commands_take(void)
{
	return read_lines(control, &asked, NULL);
}

void commands_pass_on(void)
{
	for (int i = 0; i < COMMANDS; i++) {
		if (outputs[i].fd < 0 || !outputs[i].revents ||
		    read_lines(outputs[i].fd, &commands[i].printed, &commands[i]) > 0)
			continue;
		close(outputs[i].fd);
		outputs[i].fd = -1;
		finish(&commands[i]);
	}
}

void commands_reaped(pid_t pid, int status)
{
	for (int i = 0; i < COMMANDS; i++) {
		if (!commands[i].taken || commands[i].pid != pid)
			continue;
		commands[i].pid = 0;
		commands[i].status = status;
		finish(&commands[i]);
	}
}
