/* The life of PID 1 beside the image's command:
 *
 *   RUNNING --(shutdown asked: channel, Ctrl-Alt-Del, power button, poweroff)--> STOPPING --(grace over)--> killed
 *      \---------------------------- the command ends ----------------------------/------------------------/
 *                                            v
 *                  report its status, kill the rest, sync, make the disks read-only, power off */
#define _GNU_SOURCE
#include "agent.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
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
#define EXIT_BLOCK 4096
#define MAX_BUTTONS 16
#define EV_KEY 1
#define KEY_POWER 116

struct input_event { /* linux/input.h, which musl's headers do not have */
	struct timeval time;
	uint16_t type, code;
	int32_t value;
};

static struct {
	struct config *config;
	int64_t kill_at_ms; /* 0: nobody asked us to stop */
	struct watch signals, buttons[MAX_BUTTONS];
} machine;

/* Interactive shells ignore SIGTERM; whoever wants them to leave hangs up instead. proc(5): SigIgn, a hex mask. */
static bool ignores_signal(pid_t pid, int signal)
{
	char path[64], status[4096];

	snprintf(path, sizeof path, "/proc/%d/status", pid);
	if (read_file(path, status, sizeof status) <= 0)
		return false;
	char *mask = strstr(status, "\nSigIgn:");
	return mask && (strtoull(mask + strlen("\nSigIgn:"), NULL, 16) >> (signal - 1) & 1);
}

static bool begin_shutdown(long grace_s)
{
	int signal = machine.config->stop_signal ? machine.config->stop_signal : SIGTERM;
	int64_t kill_at_ms = now_ms() + grace_s * 1000;

	if (machine.kill_at_ms) { /* asked again: a shorter grace counts */
		machine.kill_at_ms = sooner(machine.kill_at_ms, kill_at_ms);
		return true;
	}
	machine.kill_at_ms = kill_at_ms;
	sessions[0].awaits_client = false; /* whoever asks for the end does not come to watch */
	if (!machine.config->stop_signal && ignores_signal(sessions[0].pid, signal))
		signal = SIGHUP;
	signal_session(&sessions[0], signal);
	signal_session(&sessions[0], SIGCONT);
	return true;
}

static void serve_signals(struct watch *watch, uint32_t events)
{
	struct signalfd_siginfo info;

	(void)events;
	while (read(watch->fd, &info, sizeof info) == sizeof info)
		if (info.ssi_signo != SIGCHLD)
			begin_shutdown(DEFAULT_GRACE_S);
	reap_children();
}

/* The ACPI power button arrives as a key of an input device. */
static void serve_button(struct watch *watch, uint32_t events)
{
	struct input_event event;
	ssize_t count;

	(void)events;
	while ((count = read(watch->fd, &event, sizeof event)) == sizeof event)
		if (event.type == EV_KEY && event.code == KEY_POWER && event.value == 1)
			begin_shutdown(DEFAULT_GRACE_S);
	if (count <= 0 && errno != EAGAIN) /* the device went away */
		close_watch(watch);
}

static void watch_buttons(void)
{
	DIR *directory = opendir("/dev/input");
	struct dirent *entry;
	int count = 0;

	while (directory && count < MAX_BUTTONS && (entry = readdir(directory)))
		if (strncmp(entry->d_name, "event", 5) == 0) {
			int fd = openat(dirfd(directory), entry->d_name, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
			if (!add_watch(&machine.buttons[count++], fd, EPOLLIN, serve_button) && fd >= 0)
				close(fd);
		}
	if (directory)
		closedir(directory);
}

/* What means "stop": the kernel's Ctrl-Alt-Del, and what poweroff(8), halt and reboot of busybox and others send. */
static void watch_signals(void)
{
	const int wanted[] = {SIGCHLD, SIGINT, SIGTERM, SIGUSR1, SIGUSR2, SIGPWR, SIGRTMIN + 4};
	sigset_t set, inherited;

	sigemptyset(&set);
	for (size_t i = 0; i < sizeof wanted / sizeof *wanted; i++)
		sigaddset(&set, wanted[i]);
	sigprocmask(SIG_BLOCK, &set, &inherited);
	set_inherited_signals(&inherited);
	signal(SIGPIPE, SIG_IGN);
	if (!add_watch(&machine.signals, signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC), EPOLLIN, serve_signals))
		fail("cannot watch for signals: %s", strerror(errno));
}

/* When the grace is over, everything is killed; the end of the main command then ends the machine. */
static int64_t press(void)
{
	if (!machine.kill_at_ms)
		return 0;
	if (now_ms() < machine.kill_at_ms)
		return machine.kill_at_ms;
	kill(-1, SIGKILL);
	return now_ms() + 1000;
}

/* For whoever asks when nobody was listening: in the last block of the configuration disk (guest/bootconfig.py). Not
 * on the console, where the command can write as well. */
static void leave_exit_status(void)
{
	const struct session *session = &sessions[0];
	char block[EXIT_BLOCK] = "";
	int status = (int)session->status;

	if (session->kind == KILLED)
		status += 128;
	else if (session->kind == NOT_STARTED)
		status = session->status == ENOENT ? 127 : 126;
	snprintf(block, sizeof block, "cocoon-exit 1 %d\n", status);
	int fd = open(machine.config->device, O_WRONLY | O_CLOEXEC);
	if (fd >= 0 && lseek(fd, -(off_t)sizeof block, SEEK_END) >= 0 && write(fd, block, sizeof block) > 0)
		fsync(fd);
	if (fd >= 0)
		close(fd);
}

static _Noreturn void end(void)
{
	const struct timespec step = {.tv_nsec = 5000000};

	kill(-1, SIGKILL);
	for (int waited = 0; waited < REAP_MS && waitpid(-1, NULL, WNOHANG) >= 0; waited += 5)
		nanosleep(&step, NULL);
	leave_exit_status();
	sync();
	seal_data(machine.config);
	seal_root();
	power_off();
}

_Noreturn void supervise(struct config *config)
{
	int64_t until_ms = 0;
	size_t ports;

	machine.config = config;
	host_program.config = config;
	host_program.shut_down = begin_shutdown;
	open_loop();
	watch_signals();
	watch_buttons();
	start_main_command(config);
	while (!main_command_is_over(&until_ms)) {
		until_ms = sooner(until_ms, find_ports(&ports));
		spin_agent(sooner(until_ms, press()));
		until_ms = 0;
	}
	end();
}
