// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * init of the Linux that tests boot as a TD; it runs from the initramfs.
 *
 * Loads the modules, prints two lines on the console (each byte there is an exit of the TD, so no more),
 *
 *	tdx-guest: user space after 1.23 s
 *	Debian GNU/Linux tdx-guest login: root (automatic login)
 *
 * and executes commands from the control channel: the virtio-serial port org.tdx-e2e.control if the machine
 * has it at boot, ttyS0 otherwise.  It consists of lines; the ids are decimal numbers that the host chooses:
 *
 *	host:   12 uname -r	execute this by sh -c, in a process group of its own
 *	guest:  12|6.12.117	a line that it printed, on standard output or standard error
 *	guest:  12=0		it has ended and nobody can print for it any more: exit status, 128 + signal
 *	host:   12!15		send signal 15 to its process group
 *
 * Commands run beside each other; a line is written whole.  The power button powers off.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/input.h>
#include <linux/netlink.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#define PORT_NAME	"org.tdx-e2e.control"
#define MODULES		"/lib/modules/"
#define PORT_WAIT_MS	10000
/* How often a control channel whose other end is closed is looked at, should its SIGIO have been missed. */
#define CLOSED_LOOK_MS	1000
#define LINE_SIZE	4096
#define COMMANDS	32
#define BUTTONS		8

enum { SIGNALS, CONTROL, FIRST_BUTTON, FIRST_COMMAND = FIRST_BUTTON + BUTTONS,
       POLLED = FIRST_COMMAND + COMMANDS };

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

static struct pollfd polled[POLLED];
static struct command commands[COMMANDS];
static struct lines asked;
static int control;
static sigset_t signals;

__attribute__((format(printf, 1, 2)))
static void say(const char *format, ...)
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

/* Returns the size, 0 when the file cannot be read. */
static size_t read_file(const char *path, char *text, size_t size)
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

/* Opens the control port; -1 if no port has its name. */
static int open_port(void)
{
	DIR *ports = opendir("/sys/class/virtio-ports");
	struct dirent *entry;
	char path[320], name[64];
	int fd = -1;

	while (ports && fd < 0 && (entry = readdir(ports))) {
		snprintf(path, sizeof(path), "/sys/class/virtio-ports/%s/name", entry->d_name);
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
	DIR *devices = opendir("/sys/bus/virtio/drivers/virtio_console");
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

static void open_control(void)
{
	struct termios terminal;

	control = wait_for_port();
	if (control >= 0) {
		/* The port has SIGIO for the return of a host that had closed its end; poll does not wait. */
		fcntl(control, F_SETOWN, getpid());
		fcntl(control, F_SETFL, O_RDWR | O_ASYNC);
	} else {
		control = open("/dev/ttyS0", O_RDWR | O_CLOEXEC | O_NOCTTY);
		if (!tcgetattr(control, &terminal)) {
			terminal.c_lflag &= ~(ECHO | ISIG);
			terminal.c_oflag &= ~OPOST;
			tcsetattr(control, TCSANOW, &terminal);
		}
	}
	polled[CONTROL] = (struct pollfd){ .fd = control, .events = POLLIN };
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

static void finish(struct command *command)
{
	int index = command - commands, code;
	char status[8];

	if (command->pid || polled[FIRST_COMMAND + index].fd >= 0)
		return;
	if (command->printed.used)
		answer(command->id, '|', command->printed.text, command->printed.used);
	code = WIFSIGNALED(command->status) ? 128 + WTERMSIG(command->status) : WEXITSTATUS(command->status);
	answer(command->id, '=', status, snprintf(status, sizeof(status), "%d", code));
	command->taken = false;
}

static void start(unsigned long id, const char *text)
{
	struct command *command = commands;
	sigset_t none;
	int ends[2];

	while (command < commands + COMMANDS && command->taken)
		command++;
	if (command == commands + COMMANDS || pipe2(ends, O_CLOEXEC)) {
		answer(id, '|', "too many commands", 17);
		answer(id, '=', "126", 3);
		return;
	}
	*command = (struct command){ .taken = true, .id = id, .pid = fork() };
	if (!command->pid) {
		sigemptyset(&none);
		sigprocmask(SIG_SETMASK, &none, NULL);
		setpgid(0, 0);
		dup2(open("/dev/null", O_RDONLY), STDIN_FILENO);
		dup2(ends[1], STDOUT_FILENO);
		dup2(ends[1], STDERR_FILENO);
		execl("/bin/sh", "sh", "-c", text, NULL);
		_exit(127);
	}
	/* Here too, so that a signal that is asked for next finds the group. */
	setpgid(command->pid, command->pid);
	close(ends[1]);
	polled[FIRST_COMMAND + (command - commands)] = (struct pollfd){ .fd = ends[0], .events = POLLIN };
	if (command->pid < 0) {
		command->pid = 0;
		command->status = 126 << 8;
	}
}

static void take_order(char *line)
{
	char *rest;
	unsigned long id = strtoul(line, &rest, 10);

	if (rest > line && *rest == ' ') {
		start(id, rest + 1);
	} else if (rest > line && *rest == '!') {
		for (int i = 0; i < COMMANDS; i++)
			if (commands[i].taken && commands[i].pid && commands[i].id == id)
				kill(-commands[i].pid, atoi(rest + 1));
	} else if (*line) {
		say("tdx-guest: error: not a command: %s\n", line);
	}
}

/*
 * Reads what is there and hands over each whole line, without its newline; a longer one comes in pieces.
 * Returns what read() returned.
 */
static ssize_t read_lines(int fd, struct lines *lines, struct command *command)
{
	ssize_t got = read(fd, lines->text + lines->used, LINE_SIZE - 1 - lines->used);
	char *begin = lines->text, *end;

	if (got <= 0)
		return got;
	lines->used += got;
	while ((end = memchr(begin, '\n', lines->text + lines->used - begin)) ||
	       (begin == lines->text && lines->used == LINE_SIZE - 1)) {
		if (!end)
			end = begin + lines->used;
		*end = '\0';
		if (command)
			answer(command->id, '|', begin, end - begin);
		else
			take_order(begin);
		begin = end + 1;
		if (begin > lines->text + lines->used)
			begin = lines->text + lines->used;
	}
	lines->used -= begin - lines->text;
	memmove(lines->text, begin, lines->used);
	return got;
}

static void end(int how)
{
	sync();
	reboot(how);
}

static void take_signals(void)
{
	struct signalfd_siginfo news;
	pid_t pid;
	int status;

	if (read(polled[SIGNALS].fd, &news, sizeof(news)) != sizeof(news))
		return;
	polled[CONTROL].fd = control;
	while ((pid = waitpid(-1, &status, WNOHANG)) > 0) {
		for (int i = 0; i < COMMANDS; i++) {
			if (!commands[i].taken || commands[i].pid != pid)
				continue;
			commands[i].pid = 0;
			commands[i].status = status;
			finish(&commands[i]);
		}
	}
}

static void take_button(int fd)
{
	struct input_event event;

	if (read(fd, &event, sizeof(event)) == sizeof(event) && event.type == EV_KEY &&
	    event.code == KEY_POWER && event.value) {
		say("tdx-guest: power button\n");
		end(RB_POWER_OFF);
	}
}

static void serve(void)
{
	/* Without a host at the other end a port is always ready and has nothing to read. */
	if (poll(polled, POLLED, polled[CONTROL].fd < 0 ? CLOSED_LOOK_MS : -1) <= 0)
		polled[CONTROL].fd = control;
	if (polled[SIGNALS].revents)
		take_signals();
	if (polled[CONTROL].revents && read_lines(control, &asked, NULL) <= 0)
		polled[CONTROL].fd = -1;
	for (int i = FIRST_BUTTON; i < FIRST_COMMAND; i++)
		if (polled[i].revents)
			take_button(polled[i].fd);
	for (int i = 0; i < COMMANDS; i++) {
		struct pollfd *output = &polled[FIRST_COMMAND + i];

		if (output->fd < 0 || !output->revents ||
		    read_lines(output->fd, &commands[i].printed, &commands[i]) > 0)
			continue;
		close(output->fd);
		output->fd = -1;
		finish(&commands[i]);
	}
}

int main(void)
{
	struct timespec up;

	clock_gettime(CLOCK_BOOTTIME, &up);
	sigemptyset(&signals);
	sigaddset(&signals, SIGCHLD);
	sigaddset(&signals, SIGIO);
	sigprocmask(SIG_BLOCK, &signals, NULL);
	reboot(RB_DISABLE_CAD);
	setenv("PATH", "/bin", 1);
	setenv("HOME", "/", 1);
	for (int i = 0; i < POLLED; i++)
		polled[i].fd = -1;
	polled[SIGNALS] = (struct pollfd){ .fd = signalfd(-1, &signals, SFD_CLOEXEC), .events = POLLIN };
	say("tdx-guest: user space after %ld.%02ld s\n", (long)up.tv_sec, up.tv_nsec / 10000000);

	mount_one("proc", "/proc");
	mount_one("sysfs", "/sys");
	mount_one("devtmpfs", "/dev");
	mount_one("tmpfs", "/tmp");
	load_modules();
	mount_one("configfs", "/sys/kernel/config");
	if (sethostname("tdx-guest", 9))
		say("tdx-guest: error: host name: %s\n", strerror(errno));
	open_buttons();
	open_control();
	say("Debian GNU/Linux tdx-guest login: root (automatic login)\n");
	for (;;)
		serve();
}
