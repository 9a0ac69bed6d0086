/* Runs what the image is for: its command as a child on the console, or its init in our own place. */
#define _GNU_SOURCE
#include "guest.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <termios.h>
#include <unistd.h>

#define DEFAULT_PATH "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

/* Docker's defaults; what the image or the user sets wins. */
static void complete_environment(const struct config *config, const char *home)
{
	environ = config->environment;
	setenv("PATH", DEFAULT_PATH, 0);
	setenv("HOSTNAME", config->hostname, 0);
	setenv("TERM", "xterm", 0);
	setenv("HOME", home, 0);
}

/* /dev/console cannot be reopened by name as somebody's terminal (tty(1), ssh, screen), its driver's node can. */
static int open_console(void)
{
	char names[256], path[300];

	if (read_file("/sys/class/tty/console/active", names, sizeof names) > 0) {
		char *name = trim(names), *last = strrchr(name, ' ');
		snprintf(path, sizeof path, "/dev/%s", last ? last + 1 : name);
		int fd = open(path, O_RDWR | O_NOCTTY);
		if (fd >= 0)
			return fd;
	}
	return open("/dev/console", O_RDWR | O_NOCTTY);
}

static void take_terminal(const struct account *account)
{
	int fd = open_console();

	setsid();
	if (fd < 0)
		return;
	ioctl(fd, TIOCSCTTY, 1);
	/* So that the command may open /dev/stdout itself. */
	fchown(fd, account->uid, (gid_t)-1);
	fchmod(fd, 0620);
	for (int target = 0; target < 3; target++)
		dup2(fd, target);
	if (fd > 2)
		close(fd);
}

static void enter_directory(const char *cwd)
{
	char *path = strdup(cwd && *cwd ? cwd : "/");

	if (path)
		make_directories(path, 0755);
	if (!path || chdir(path) < 0) {
		complain("cannot enter the working directory %s: %s", cwd, strerror(errno));
		_exit(126);
	}
}

static void become(const struct account *account)
{
	if (setgroups(account->group_count, account->groups) < 0 || setgid(account->gid) < 0 || setuid(account->uid) < 0) {
		complain("cannot become user %u: %s", account->uid, strerror(errno));
		_exit(126);
	}
}

/* No command at all: a login shell, so that the machine can at least be looked at. */
static void choose_shell(struct config *config)
{
	static char *bash[] = {"-bash", NULL}, *sh[] = {"-sh", NULL};

	config->user = NULL;
	if (access("/bin/bash", X_OK) == 0) {
		config->arguments = bash;
		execv("/bin/bash", bash);
	}
	config->arguments = sh;
	execv("/bin/sh", sh);
}

static _Noreturn void run_command(struct config *config, const struct account *account, const sigset_t *mask)
{
	const struct rlimit files = {.rlim_cur = 1024, .rlim_max = 524288};

	take_terminal(account);
	setrlimit(RLIMIT_NOFILE, &files);
	enter_directory(config->cwd);
	become(account);
	complete_environment(config, account->home);
	sigprocmask(SIG_SETMASK, mask, NULL);
	if (config->argument_count)
		execvp(config->arguments[0], config->arguments);
	else
		choose_shell(config);
	int error = errno;
	complain("cannot run %s: %s", config->arguments[0], strerror(error));
	_exit(error == ENOENT ? 127 : 126); /* the shell's convention, and Docker's */
}

pid_t start_command(struct config *config, const sigset_t *inherited_mask)
{
	static struct account account;

	find_account(config->argument_count ? config->user : "0", &account);
	pid_t pid = fork();
	if (pid < 0)
		fail("cannot fork: %s", strerror(errno));
	if (pid == 0)
		run_command(config, &account, inherited_mask);
	return pid;
}

_Noreturn void become_init(struct config *config)
{
	complete_environment(config, "/root");
	execvp(config->arguments[0], config->arguments);
	fail("cannot run the image's init %s: %s", config->arguments[0], strerror(errno));
}

/* Interactive shells ignore SIGTERM; whoever wants them to leave hangs up instead. proc(5): SigIgn, a hex mask. */
bool ignores_signal(pid_t pid, int signal)
{
	char path[64], status[4096];

	snprintf(path, sizeof path, "/proc/%d/status", pid);
	if (read_file(path, status, sizeof status) <= 0)
		return false;
	char *mask = strstr(status, "\nSigIgn:");
	return mask && (strtoull(mask + strlen("\nSigIgn:"), NULL, 16) >> (signal - 1) & 1);
}
