/* The life of PID 1 beside the image's command:
 *
 *   RUNNING --(shutdown asked: channel, Ctrl-Alt-Del, power button, poweroff)--> STOPPING --(grace over)--> killed
 *      \---------------------------- the command ends ----------------------------/------------------------/
 *                                            v
 *                  report its status, kill the rest, sync, make the disks read-only, power off */
#define _GNU_SOURCE
#include "guest.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mount.h>
#include <sys/signalfd.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define DEFAULT_GRACE_S 10
#define REAP_MS 2000
#define MAX_BUTTONS 16
#define EV_KEY 1
#define KEY_POWER 116

struct input_event { /* linux/input.h, which musl's headers do not have */
	struct timeval time;
	uint16_t type, code;
	int32_t value;
};

struct machine {
	struct config *config;
	struct channel channel;
	int epoll_fd, signal_fd;
	pid_t command;
	int64_t kill_at_ms; /* 0: nobody asked us to stop */
	bool ended;
	int status;
};

static int64_t now_ms(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

static void watch(struct machine *machine, int fd, uint32_t events)
{
	struct epoll_event event = {.events = events, .data.fd = fd};

	if (fd >= 0 && epoll_ctl(machine->epoll_fd, EPOLL_CTL_ADD, fd, &event) < 0)
		complain("cannot watch descriptor %d: %s", fd, strerror(errno));
}

/* The ACPI power button arrives as a key of an input device. */
static void watch_buttons(struct machine *machine)
{
	DIR *directory = opendir("/dev/input");
	struct dirent *entry;
	int count = 0;

	while (directory && count < MAX_BUTTONS && (entry = readdir(directory)))
		if (strncmp(entry->d_name, "event", 5) == 0) {
			watch(machine, openat(dirfd(directory), entry->d_name, O_RDONLY | O_NONBLOCK | O_CLOEXEC), EPOLLIN);
			count++;
		}
	if (directory)
		closedir(directory);
}

static void begin_shutdown(struct machine *machine, long grace_s)
{
	int signal = machine->config->stop_signal ? machine->config->stop_signal : SIGTERM;
	int64_t kill_at_ms = now_ms() + grace_s * 1000;

	if (machine->kill_at_ms) { /* asked again: a shorter grace counts */
		if (kill_at_ms < machine->kill_at_ms)
			machine->kill_at_ms = kill_at_ms;
		return;
	}
	machine->kill_at_ms = kill_at_ms;
	if (!machine->config->stop_signal && ignores_signal(machine->command, signal))
		signal = SIGHUP;
	kill(-machine->command, signal);
	kill(-machine->command, SIGCONT);
}

static void reap(struct machine *machine)
{
	int status;
	pid_t pid;

	while ((pid = waitpid(-1, &status, WNOHANG)) > 0)
		if (pid == machine->command) {
			machine->ended = true;
			machine->status = WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
		}
}

static void serve_signals(struct machine *machine)
{
	struct signalfd_siginfo info;

	while (read(machine->signal_fd, &info, sizeof info) == sizeof info)
		if (info.ssi_signo == SIGCHLD)
			reap(machine);
		else
			begin_shutdown(machine, DEFAULT_GRACE_S);
}

static void serve_button(struct machine *machine, int fd)
{
	struct input_event event;
	ssize_t count;

	while ((count = read(fd, &event, sizeof event)) == sizeof event)
		if (event.type == EV_KEY && event.code == KEY_POWER && event.value == 1)
			begin_shutdown(machine, DEFAULT_GRACE_S);
	if (count <= 0 && errno != EAGAIN) /* the device went away */
		close(fd);
}

static void serve(struct machine *machine, int fd)
{
	long grace_s;

	if (fd == machine->signal_fd)
		serve_signals(machine);
	else if (fd != machine->channel.fd)
		serve_button(machine, fd);
	else if (serve_channel(&machine->channel, &grace_s) == REQUEST_SHUTDOWN)
		begin_shutdown(machine, grace_s);
}

/* Sleeps until something happens or the grace is over. */
static void wait_once(struct machine *machine)
{
	struct epoll_event event;
	int64_t left_ms = -1;

	if (machine->kill_at_ms) {
		left_ms = machine->kill_at_ms - now_ms();
		if (left_ms <= 0) {
			kill(-1, SIGKILL);
			left_ms = 1000;
		}
	}
	if (epoll_wait(machine->epoll_fd, &event, 1, (int)left_ms) == 1)
		serve(machine, event.data.fd);
}

static _Noreturn void end(struct machine *machine)
{
	const struct timespec step = {.tv_nsec = 5000000};

	send_line(&machine->channel, "exit %d", machine->status);
	kill(-1, SIGKILL);
	for (int waited = 0; waited < REAP_MS && waitpid(-1, NULL, WNOHANG) >= 0; waited += 5)
		nanosleep(&step, NULL);
	sync();
	seal_data(machine->config);
	seal_root();
	power_off();
}

/* What means "stop": the kernel's Ctrl-Alt-Del, and what poweroff(8), halt and reboot of busybox and others send. */
static void block_signals(struct machine *machine, sigset_t *inherited)
{
	const int wanted[] = {SIGCHLD, SIGINT, SIGTERM, SIGUSR1, SIGUSR2, SIGPWR, SIGRTMIN + 4};
	sigset_t set;

	sigemptyset(&set);
	for (size_t i = 0; i < sizeof wanted / sizeof *wanted; i++)
		sigaddset(&set, wanted[i]);
	sigprocmask(SIG_BLOCK, &set, inherited);
	machine->signal_fd = signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC);
}

_Noreturn void supervise(struct config *config)
{
	static struct machine machine;
	sigset_t inherited;

	machine.config = config;
	block_signals(&machine, &inherited);
	machine.epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	if (machine.signal_fd < 0 || machine.epoll_fd < 0)
		fail("cannot watch for events: %s", strerror(errno));
	watch(&machine, machine.signal_fd, EPOLLIN);
	/* Edge-triggered: a port without a listener hangs up all the time, and would keep us busy. */
	watch(&machine, open_channel(&machine.channel), EPOLLIN | EPOLLOUT | EPOLLET);
	watch_buttons(&machine);
	machine.command = start_command(config, &inherited);
	while (!machine.ended)
		wait_once(&machine);
	end(&machine);
}
