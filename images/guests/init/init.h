/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The parts of the guest's init. */
#ifndef INIT_H
#define INIT_H

#include <stddef.h>
#include <sys/types.h>

#define LINE_SIZE	4096

/* init.c */

/* One write for a line, so that lines of ours and of the kernel's do not mix. */
__attribute__((format(printf, 1, 2))) void say(const char *format, ...);

/* Returns the size; 0 and an empty text when the file cannot be read. */
size_t read_file(const char *path, char *text, size_t size);

/* control.c */

/* Opens the control channel. */
int control_open(void);

/* commands.c */

#define COMMANDS	32

struct pollfd;

/* Sets the channel, and the COMMANDS places for the output of commands in what is polled. */
void commands_init(int control, struct pollfd *outputs);

/* Reads the control channel and carries out whole lines; returns what read() returned. */
ssize_t commands_take(void);

/* Passes on what the commands have printed. */
void commands_pass_on(void);

/* A child has ended. */
void commands_reaped(pid_t pid, int status);

#endif
