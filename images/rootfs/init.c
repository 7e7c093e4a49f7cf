// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * init of the nested TDX host.
 *
 * Mounts what a test needs, starts the bootstrap of the agent, loads KVM, starts sshd, lets the bootstrap
 * take an agent, says "tdx-e2e: ready" on the console and then reaps.  So an agent that answers means that
 * KVM is loaded.  The root file system stays read-only: what is written goes to tmpfs.  Static, and no
 * shell on the way: a fork and exec costs some 10 ms under TCG.
 *
 * Kernel command line:
 *   tdx_e2e.modules=/dev/vdb   disk with the kernel's modules; its file "autoload" says which to load
 *   tdx_e2e.qemu=/dev/vdc      disk with the QEMU that moves TDs, for QEMU below
 *   tdx_e2e.guests=/dev/vdd    disk with the Linux for TDs; what runs here leaves CPU 0 to the kernel
 *   tdx_e2e.shell              a root shell on the console, for a person; leaving it powers off
 *
 * sshd starts once both of its keys are there: at boot if QEMU has them as fw_cfg files
 * (opt/tdx-e2e/ssh_host_key, opt/tdx-e2e/authorized_keys), or when process 1 gets USR1 after the agent has
 * written them (HOST_KEY, AUTHORIZED), so that a saved state of this machine contains no key.
 *
 * Other signals to process 1: USR2 powers off, TERM reboots.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <net/route.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define RUN		"/run/tdx-e2e"
#define MODULES		RUN "/modules"
#define HOST_KEY	RUN "/ssh_host_key"
#define AUTHORIZED	RUN "/authorized_keys"
#define QEMU		"/usr/lib/tdx-e2e/qemu"
#define FW_CFG		"/sys/firmware/qemu_fw_cfg/by_name/opt/tdx-e2e/"
#define AGENT_WAIT_MS	20000
#define SECRET_MAX	16384

/* A service is started again no sooner than this after its last start. */
#define RESTART_MS	1000

/* Descriptors that the first bootstrap inherits: it says that it listens, it hears that the host is ready. */
#define LISTENING_FD	3
#define READY_FD	4

struct service {
	const char *name;
	char *const *argv;
	const char *tty;	/* controlling terminal, or NULL */
	bool wanted;
	bool final;		/* power off when it ends */
	pid_t pid;
	long long started_ms;
};

static char *const agent_argv[] = { "/usr/bin/python3", "-I", "-S", "/usr/lib/tdx-e2e/bootstrap.py", NULL };
static char *const sshd_argv[] = { "/usr/sbin/sshd", "-D", "-e", "-f", "/etc/ssh/tdx_e2e_sshd_config", NULL };
static char *const shell_argv[] = { "/bin/bash", "-l", NULL };

enum { AGENT, SSHD, SHELL, SERVICES };

static struct service services[SERVICES] = {
	[AGENT] = { .name = "agent bootstrap", .argv = agent_argv },
	[SSHD] = { .name = "sshd", .argv = sshd_argv },
	[SHELL] = { .name = "shell", .argv = shell_argv, .tty = "/dev/console", .final = true },
};

static char cmdline[4096];

static long long now_ms(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000LL + now.tv_nsec / 1000000;
}

/* One write a line, so that lines of ours and of the kernel's do not mix. */
__attribute__((format(printf, 1, 2)))
static void say(const char *format, ...)
{
	char line[512] = "tdx-e2e: ";
	size_t used = strlen(line);
	va_list args;
	int added;

	va_start(args, format);
	added = vsnprintf(line + used, sizeof(line) - used - 1, format, args);
	va_end(args);
	if (added < 0)
		return;
	used += added;
	if (used > sizeof(line) - 2)
		used = sizeof(line) - 2;
	line[used++] = '\n';
	if (write(STDOUT_FILENO, line, used) < 0)
		return;
}

/* Returns the number of bytes read, or -1 with errno. */
static ssize_t read_file(const char *path, char *buffer, size_t size)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t total = 0, got;

	if (fd < 0)
		return -1;
	while ((got = read(fd, buffer + total, size - 1 - total)) > 0)
		total += got;
	close(fd);
	if (got < 0)
		return -1;
	buffer[total] = '\0';
	return total;
}

static int write_file(const char *path, const char *text, size_t size, int flags, mode_t mode)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC | flags, mode);
	ssize_t wrote;

	if (fd < 0)
		return -1;
	wrote = write(fd, text, size);
	close(fd);
	return wrote == (ssize_t)size ? 0 : -1;
}

/* The value of a word "key=value" of the command line, "" for a bare "key", NULL when it is absent. */
static const char *parameter(const char *key)
{
	static char value[256];
	size_t length = strlen(key);
	const char *at = cmdline;

	while ((at = strstr(at, key))) {
		bool starts = at == cmdline || at[-1] == ' ';
		size_t size;

		at += length;
		if (!starts || (*at && !strchr("= \n", *at)))
			continue;
		at += *at == '=';
		size = strcspn(at, " \n");
		if (size >= sizeof(value))
			return NULL;
		memcpy(value, at, size);
		value[size] = '\0';
		return value;
	}
	return NULL;
}

static void mount_one(const char *type, const char *target, unsigned long flags, const char *options)
{
	if (mount(type, target, type, flags, options) && errno != EBUSY)
		say("error: mounting %s on %s: %s", type, target, strerror(errno));
}

static void mount_all(void)
{
	const unsigned long safe = MS_NOSUID | MS_NODEV | MS_NOEXEC;

	mount_one("proc", "/proc", safe, NULL);
	mount_one("sysfs", "/sys", safe, NULL);
	mount_one("devtmpfs", "/dev", MS_NOSUID, "mode=0755");
	mkdir("/dev/pts", 0755);
	mkdir("/dev/shm", 01777);
	mount_one("devpts", "/dev/pts", MS_NOSUID | MS_NOEXEC, "mode=0620,ptmxmode=0666");
	mount_one("tmpfs", "/dev/shm", MS_NOSUID | MS_NODEV, "mode=1777");
	mount_one("tmpfs", "/run", MS_NOSUID | MS_NODEV, "mode=0755");
	mount_one("tmpfs", "/tmp", MS_NOSUID | MS_NODEV, "mode=1777");
	mount_one("tmpfs", "/var/tmp", MS_NOSUID | MS_NODEV, "mode=1777");
	mount_one("tmpfs", "/var/log", MS_NOSUID | MS_NODEV, "mode=0755");
	mount_one("tmpfs", "/root", MS_NOSUID | MS_NODEV, "mode=0700");
	mount_one("debugfs", "/sys/kernel/debug", safe, NULL);
	mount_one("cgroup2", "/sys/fs/cgroup", safe, NULL);
	mkdir("/run/sshd", 0755);
	mkdir(RUN, 0700);
	mkdir(MODULES, 0755);
	if (symlink("/proc/self/fd", "/dev/fd") && errno != EEXIST)
		say("error: /dev/fd: %s", strerror(errno));
}

static void enable_controllers(void)
{
	static const char *const wanted[] = { "misc", "pids", "memory" };
	char available[256], word[16];

	if (read_file("/sys/fs/cgroup/cgroup.controllers", available, sizeof(available)) < 0) {
		say("error: cgroup.controllers: %s", strerror(errno));
		return;
	}
	for (size_t i = 0; i < sizeof(wanted) / sizeof(wanted[0]); i++) {
		int length = snprintf(word, sizeof(word), "+%s", wanted[i]);

		if (strstr(available, wanted[i]) &&
		    write_file("/sys/fs/cgroup/cgroup.subtree_control", word, length, 0, 0))
			say("error: cgroup controller %s: %s", wanted[i], strerror(errno));
	}
}

/* QEMU's user network: 10.0.2.15/24 by way of 10.0.2.2. */
static void set_up_network(void)
{
	struct sockaddr_in address = { .sin_family = AF_INET };
	struct ifreq request = { .ifr_name = "lo" };
	struct rtentry route = { .rt_flags = RTF_UP | RTF_GATEWAY };
	int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

	if (fd < 0)
		return;
	request.ifr_flags = IFF_UP;
	ioctl(fd, SIOCSIFFLAGS, &request);
	strcpy(request.ifr_name, "eth0");
	address.sin_addr.s_addr = inet_addr("10.0.2.15");
	memcpy(&request.ifr_addr, &address, sizeof(address));
	if (ioctl(fd, SIOCSIFADDR, &request))
		goto out;		/* no network card */
	address.sin_addr.s_addr = inet_addr("255.255.255.0");
	memcpy(&request.ifr_netmask, &address, sizeof(address));
	ioctl(fd, SIOCSIFNETMASK, &request);
	request.ifr_flags = IFF_UP | IFF_RUNNING;
	ioctl(fd, SIOCSIFFLAGS, &request);
	address.sin_addr.s_addr = INADDR_ANY;
	memcpy(&route.rt_dst, &address, sizeof(address));
	memcpy(&route.rt_genmask, &address, sizeof(address));
	address.sin_addr.s_addr = inet_addr("10.0.2.2");
	memcpy(&route.rt_gateway, &address, sizeof(address));
	if (ioctl(fd, SIOCADDRT, &route) && errno != EEXIST)
		say("error: default route: %s", strerror(errno));
out:
	close(fd);
}

static bool copy_secret(const char *name, const char *target)
{
	static char secret[SECRET_MAX];
	char source[128];
	ssize_t size;
	bool copied;

	snprintf(source, sizeof(source), FW_CFG "%s/raw", name);
	size = read_file(source, secret, sizeof(secret));
	copied = size > 0 && !write_file(target, secret, size, O_CREAT | O_TRUNC, 0600);
	if (size > 0 && !copied)
		say("error: %s: %s", target, strerror(errno));
	explicit_bzero(secret, sizeof(secret));
	return copied;
}

/* One line of "autoload": a file name and the module's parameters. */
static bool load_module(char *line)
{
	char *parameters = strchrnul(line, ' ');
	char path[256];
	int fd;

	if (*parameters)
		*parameters++ = '\0';
	snprintf(path, sizeof(path), MODULES "/%s", line);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0 || (syscall(SYS_finit_module, fd, parameters, 0) && errno != EEXIST)) {
		say("error: loading %s: %s", line, strerror(errno));
		if (fd >= 0)
			close(fd);
		return false;
	}
	close(fd);
	return true;
}

/* Mounts the disk that a word of the command line names; false without such a word too. */
static bool mount_disk(const char *word, const char *target)
{
	const char *disk = parameter(word);

	if (!disk)
		return false;
	if (mount(disk, target, "ext4", MS_RDONLY | MS_NOSUID | MS_NODEV, NULL)) {
		say("error: mounting %s=%s: %s", word, disk, strerror(errno));
		return false;
	}
	return true;
}

static void load_modules(void)
{
	char list[4096], *line, *rest = list;

	if (!mount_disk("tdx_e2e.modules", MODULES))
		return;
	if (read_file(MODULES "/autoload", list, sizeof(list)) < 0) {
		say("error: autoload of the modules disk: %s", strerror(errno));
		return;
	}
	while ((line = strsep(&rest, "\n")))
		if (*line && !load_module(line))
			return;
}

/* The descriptors are -1, or what the child gets as LISTENING_FD and READY_FD. */
static void start(struct service *service, int listening, int ready)
{
	service->started_ms = now_ms();
	service->pid = fork();
	if (service->pid < 0) {
		say("error: fork for %s: %s", service->name, strerror(errno));
		return;
	}
	if (service->pid)
		return;

	sigset_t none;

	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	setsid();
	if (service->tty) {
		setenv("TERM", "vt102", 1);
		int tty = open(service->tty, O_RDWR);

		if (tty >= 0) {
			ioctl(tty, TIOCSCTTY, 1);
			for (int fd = 0; fd < 3; fd++)
				dup2(tty, fd);
			if (tty > 2)
				close(tty);
		}
	}
	if (listening >= 0 && ready >= 0) {
		/* Out of the way first, or one could be what the other becomes. */
		listening = fcntl(listening, F_DUPFD_CLOEXEC, READY_FD + 1);
		ready = fcntl(ready, F_DUPFD_CLOEXEC, READY_FD + 1);
		dup2(listening, LISTENING_FD);
		dup2(ready, READY_FD);
	}
	execv(service->argv[0], service->argv);
	say("error: %s: %s", service->argv[0], strerror(errno));
	_exit(127);
}

static void start_sshd(void)
{
	if (services[SSHD].wanted)
		return;
	if (access(HOST_KEY, F_OK) || access(AUTHORIZED, F_OK)) {
		say("no sshd: its keys are not there");
		return;
	}
	services[SSHD].wanted = true;
	start(&services[SSHD], -1, -1);
}

/*
 * listening: where the bootstrap writes a byte when it has its port, or closes its end when there is none.
 * ready: closed when the host is ready for an agent.
 */
static void start_agent(int *listening, int *ready)
{
	int heard[2], told[2];

	services[AGENT].wanted = true;
	if (pipe2(heard, O_CLOEXEC) || pipe2(told, O_CLOEXEC)) {
		say("error: pipe: %s", strerror(errno));
		start(&services[AGENT], -1, -1);
		return;
	}
	start(&services[AGENT], heard[1], told[0]);
	close(heard[1]);
	close(told[0]);
	*listening = heard[0];
	*ready = told[1];
}

static void wait_for_agent(int listening)
{
	struct pollfd wait = { .fd = listening, .events = POLLIN };
	char byte;

	if (listening < 0)
		return;
	if (poll(&wait, 1, AGENT_WAIT_MS) <= 0)
		say("error: the agent bootstrap does not answer");
	else if (read(listening, &byte, 1) != 1)
		say("no agent: it has no port");
	close(listening);
}

static void end(int how)
{
	kill(-1, SIGTERM);
	sync();
	reboot(how);
	_exit(0);
}

static void reap(void)
{
	pid_t pid;

	while ((pid = waitpid(-1, NULL, WNOHANG)) > 0) {
		for (int i = 0; i < SERVICES; i++) {
			if (services[i].pid != pid)
				continue;
			services[i].pid = 0;
			if (services[i].final)
				end(RB_POWER_OFF);
			if (services[i].wanted)
				say("%s ended, starting it again", services[i].name);
		}
	}
}

/* Start what has ended; returns how long to sleep until something is due, in ms, or -1 for ever. */
static long long restart_services(void)
{
	long long next = -1;

	for (int i = 0; i < SERVICES; i++) {
		struct service *service = &services[i];
		long long due = service->started_ms + RESTART_MS - now_ms();

		if (!service->wanted || service->pid > 0)
			continue;
		if (due <= 0) {
			start(service, -1, -1);
			due = RESTART_MS;
		}
		if (service->pid <= 0 && (next < 0 || due < next))
			next = due;
	}
	return next;
}

static void serve(const sigset_t *signals)
{
	for (;;) {
		long long wait_ms = restart_services();
		struct timespec wait = { wait_ms / 1000, wait_ms % 1000 * 1000000 };
		int number = wait_ms < 0 ? sigwaitinfo(signals, NULL) : sigtimedwait(signals, NULL, &wait);

		if (number == SIGUSR1)
			start_sshd();
		if (number == SIGUSR2)
			end(RB_POWER_OFF);
		if (number == SIGTERM || number == SIGINT)
			end(RB_AUTOBOOT);
		reap();
	}
}

/*
 * A CPU that restores x87 state, as a Linux in a TD does all the time, may undo
 * a change of the first CPU's flags under QEMU's TCG (FINDINGS.md, Q10): no guest
 * may run there.
 */
static void leave_first_cpu(void)
{
	cpu_set_t cpus;

	if (sched_getaffinity(0, sizeof(cpus), &cpus) || CPU_COUNT(&cpus) < 2)
		return;
	CPU_CLR(0, &cpus);
	if (sched_setaffinity(0, sizeof(cpus), &cpus))
		say("error: sched_setaffinity: %s", strerror(errno));
}

int main(void)
{
	const struct rlimit files = { 65536, 65536 };
	int listening = -1, ready = -1;
	sigset_t signals;

	sigemptyset(&signals);
	sigaddset(&signals, SIGCHLD);
	sigaddset(&signals, SIGUSR1);
	sigaddset(&signals, SIGUSR2);
	sigaddset(&signals, SIGTERM);
	sigaddset(&signals, SIGINT);
	sigprocmask(SIG_BLOCK, &signals, NULL);
	reboot(RB_DISABLE_CAD);
	setenv("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", 1);
	setenv("HOME", "/root", 1);
	unsetenv("TERM");
	setrlimit(RLIMIT_NOFILE, &files);
	if (chdir("/"))
		say("error: chdir: %s", strerror(errno));

	mount_all();
	if (read_file("/proc/cmdline", cmdline, sizeof(cmdline)) < 0)
		say("error: /proc/cmdline: %s", strerror(errno));
	if (parameter("tdx_e2e.guests"))
		leave_first_cpu();
	start_agent(&listening, &ready);
	if (sethostname("tdx-e2e", 7))
		say("error: host name: %s", strerror(errno));
	enable_controllers();
	set_up_network();
	load_modules();
	mount_disk("tdx_e2e.qemu", QEMU);
	if (copy_secret("ssh_host_key", HOST_KEY) && copy_secret("authorized_keys", AUTHORIZED))
		start_sshd();
	wait_for_agent(listening);
	if (!services[AGENT].pid || access("/dev/virtio-ports/tdx-e2e.agent", F_OK))
		services[AGENT].wanted = false;
	if (ready >= 0)
		close(ready);
	say("ready");
	if (parameter("tdx_e2e.shell"))
		services[SHELL].wanted = true;
	serve(&signals);
}
