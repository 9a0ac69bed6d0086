/* A session's process: the program that a client asked for, or one of our own tasks; on pipes or on a terminal. */
#define _GNU_SOURCE
#include "agent.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <termios.h>
#include <unistd.h>

#define DEFAULT_PATH "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
#ifndef TIOCGPTPEER
#define TIOCGPTPEER _IO('T', 0x41)
#endif

static sigset_t inherited_mask;

/* Commands get the signals as we found them. */
void set_inherited_signals(const sigset_t *mask)
{
	inherited_mask = *mask;
}

static _Noreturn void give_up(const struct launch *launch, int failure_fd, enum failure what, int error)
{
	int32_t code = (int32_t)what + error;

	if (failure_fd >= 0)
		write(failure_fd, &code, sizeof code);
	else if (what == CANNOT_ENTER)
		complain("cannot enter the working directory %s: %s", launch->cwd, strerror(error));
	else if (what == CANNOT_BECOME)
		complain("cannot become user %u: %s", launch->account.uid, strerror(error));
	else
		complain("cannot run %s: %s", launch->arguments[0], strerror(error));
	_exit(what == CANNOT_RUN && error == ENOENT ? 127 : 126); /* the shell's convention, and Docker's */
}

/* Docker's defaults; what the image or the user sets wins. */
void set_environment(const struct launch *launch)
{
	static char *nothing[] = {NULL};
	char hostname[256] = "localhost";

	environ = launch->environment ? launch->environment : nothing;
	for (const char *text = NULL; launch->request && (text = next_record(launch->request, "env", text));)
		if (strchr(text, '='))
			putenv(strdup(text));
	gethostname(hostname, sizeof hostname - 1);
	setenv("PATH", DEFAULT_PATH, 0);
	setenv("HOSTNAME", hostname, 0);
	setenv("TERM", "xterm", 0);
	setenv("HOME", launch->account.home, 0);
}

static void enter_directory(const struct launch *launch, int failure_fd)
{
	char *path = strdup(launch->cwd && *launch->cwd ? launch->cwd : "/");

	if (path && launch->make_cwd)
		make_directories(path, 0755);
	if (!path || chdir(path) < 0)
		give_up(launch, failure_fd, CANNOT_ENTER, path ? errno : ENOMEM);
}

/* An interactive shell of root's, when a machine has no command at all, so that it can at least be looked at. */
static void run_shell(void)
{
	static char *bash[] = {"-bash", NULL}, *sh[] = {"-sh", NULL};

	if (access("/bin/bash", X_OK) == 0)
		execv("/bin/bash", bash);
	execv("/bin/sh", sh);
}

/* In the child, whose descriptors 0 to 2 are right. `failure_fd` is told why it could not run; -1: the console is. */
_Noreturn void run_program(const struct launch *launch, int failure_fd)
{
	const struct rlimit files = {.rlim_cur = 1024, .rlim_max = 524288};
	const struct account *account = &launch->account;

	setrlimit(RLIMIT_NOFILE, &files);
	enter_directory(launch, failure_fd);
	if (setgroups(account->group_count, account->groups) < 0 || setgid(account->gid) < 0 || setuid(account->uid) < 0)
		give_up(launch, failure_fd, CANNOT_BECOME, errno);
	set_environment(launch);
	signal(SIGPIPE, SIG_DFL);
	sigprocmask(SIG_SETMASK, &inherited_mask, NULL);
	if (!launch->arguments[0])
		run_shell();
	else
		execvp(launch->arguments[0], launch->arguments);
	give_up(launch, failure_fd, CANNOT_RUN, errno);
}

/* Our own task must not keep what belongs to other sessions: it executes nothing that would close it. */
static _Noreturn void run_task(const struct launch *launch)
{
	if (syscall(SYS_close_range, 3, ~0U, 0) < 0)
		for (int fd = 3; fd < 1024; fd++)
			close(fd);
	signal(SIGPIPE, SIG_DFL);
	sigprocmask(SIG_SETMASK, &inherited_mask, NULL);
	_exit(launch->task(launch->request));
}

static _Noreturn void become_child(const struct launch *launch, const int lanes[3], int failure_fd)
{
	setsid();
	if (launch->terminal)
		ioctl(lanes[0], TIOCSCTTY, 0);
	for (int target = 0; target < 3; target++)
		dup2(lanes[target], target);
	int fd = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);
	if (fd >= 0) {
		write(fd, "0", 1);
		close(fd);
	}
	if (launch->task)
		run_task(launch);
	/* Behind a descriptor that dup2 cannot have hit, since 0 to 2 are always open. */
	run_program(launch, failure_fd);
}

static void close_all(int *fds, size_t count)
{
	for (size_t i = 0; i < count; i++) {
		if (fds[i] >= 0)
			close(fds[i]);
		fds[i] = -1;
	}
}

/* A terminal, its other end the command's; the user may open it by name. */
static bool open_terminal(const struct launch *launch, int *master, int lanes[3])
{
	const struct winsize size = {.ws_row = (unsigned short)launch->rows, .ws_col = (unsigned short)launch->columns};
	int unlock = 0;

	*master = open("/dev/ptmx", O_RDWR | O_NOCTTY | O_CLOEXEC | O_NONBLOCK);
	if (*master < 0 || ioctl(*master, TIOCSPTLCK, &unlock) < 0)
		return false;
	lanes[0] = ioctl(*master, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC);
	if (lanes[0] < 0)
		return false;
	fchown(lanes[0], launch->account.uid, (gid_t)-1);
	fchmod(lanes[0], 0620);
	ioctl(*master, TIOCSWINSZ, &size);
	lanes[1] = fcntl(lanes[0], F_DUPFD_CLOEXEC, 3);
	lanes[2] = fcntl(lanes[0], F_DUPFD_CLOEXEC, 3);
	return lanes[1] >= 0 && lanes[2] >= 0;
}

static bool open_pipe(int *ours, int *theirs, bool we_write)
{
	int ends[2];

	if (pipe2(ends, O_CLOEXEC) < 0)
		return false;
	*ours = ends[we_write ? 1 : 0];
	*theirs = ends[we_write ? 0 : 1];
	return fcntl(*ours, F_SETFL, O_NONBLOCK) == 0;
}

static bool open_lanes(const struct launch *launch, struct spawned *spawned, int lanes[3])
{
	if (launch->terminal) {
		int master = -1;
		bool opened = open_terminal(launch, &master, lanes);
		spawned->output[0] = master;
		if (opened && !launch->no_input)
			spawned->input = fcntl(master, F_DUPFD_CLOEXEC, 3);
		return opened;
	}
	if (launch->no_input)
		lanes[0] = open("/dev/null", O_RDWR | O_CLOEXEC);
	else if (!open_pipe(&spawned->input, &lanes[0], true))
		return false;
	return lanes[0] >= 0 && open_pipe(&spawned->output[0], &lanes[1], false) &&
	       open_pipe(&spawned->output[1], &lanes[2], false);
}

/* Starts it. False, with errno, when this machine has no process, pipe or terminal left. */
bool spawn(const struct launch *launch, struct spawned *spawned)
{
	int lanes[3] = {-1, -1, -1}, failure_end = -1;

	*spawned = (struct spawned){.pid = -1, .input = -1, .output = {-1, -1}, .failure = -1};
	if (open_lanes(launch, spawned, lanes) && open_pipe(&spawned->failure, &failure_end, false))
		spawned->pid = fork();
	if (spawned->pid == 0)
		become_child(launch, lanes, failure_end);
	int error = errno;
	close_all(lanes, 3);
	close_all(&failure_end, 1);
	if (spawned->pid < 0) {
		close_all(&spawned->input, 1);
		close_all(spawned->output, 2);
		close_all(&spawned->failure, 1);
	}
	errno = error;
	return spawned->pid > 0;
}
