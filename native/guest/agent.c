/* The agent beside an init of the image's own: a service, or a process that our PID 1 leaves behind when it becomes that
 * init. It serves the same channel, owns nothing of the machine, and goes when it is told to. */
#define _GNU_SOURCE
#include "agent.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <unistd.h>

void spin_agent(int64_t until_ms)
{
	until_ms = sooner(until_ms, serve_sessions());
	until_ms = sooner(until_ms, serve_connections());
	until_ms = sooner(until_ms, serve_listeners());
	run_loop_once(until_ms);
}

static void take_signals(struct watch *watch, uint32_t events)
{
	struct signalfd_siginfo info;

	(void)events;
	while (read(watch->fd, &info, sizeof info) == sizeof info)
		if (info.ssi_signo != SIGCHLD)
			_exit(0);
	reap_children();
}

static void watch_signals(void)
{
	static struct watch watch;
	sigset_t set, inherited;

	sigemptyset(&set);
	sigaddset(&set, SIGCHLD);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGINT);
	sigprocmask(SIG_BLOCK, &set, &inherited);
	set_inherited_signals(&inherited);
	signal(SIGPIPE, SIG_IGN);
	if (!add_watch(&watch, signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC), EPOLLIN, take_signals))
		fail("cannot watch for signals: %s", strerror(errno));
}

/* Android's `reboot` powers off as well. */
static char *const power_offs[][3] = {
	{"/sbin/poweroff"}, {"/usr/sbin/poweroff"}, {"/bin/poweroff"}, {"/usr/bin/poweroff"}, {"/system/bin/reboot", "-p"},
};
static char *const reboots[][3] = {
	{"/sbin/reboot"}, {"/usr/sbin/reboot"}, {"/bin/reboot"}, {"/usr/bin/reboot"}, {"/system/bin/reboot"},
};
enum { WAYS = sizeof power_offs / sizeof *power_offs };
_Static_assert(sizeof reboots == sizeof power_offs, "as many ways for both");

static bool power_off_by_init(long grace_s)
{
	char *const (*ways)[3] = ends_by_reboot() ? reboots : power_offs;

	(void)grace_s; /* an init has its own */
	for (size_t i = 0; i < WAYS; i++) {
		if (access(ways[i][0], X_OK) < 0)
			continue;
		pid_t pid = fork();
		if (pid == 0) {
			setsid();
			execv(ways[i][0], ways[i]);
			_exit(127);
		}
		return pid > 0;
	}
	return false;
}

static void protect_from_oom(void)
{
	write_file("/proc/self/oom_score_adj", "-900", 0);
}

_Noreturn void run_agent(void)
{
	int64_t look_again_ms;
	size_t ports;

	prctl(PR_SET_NAME, "cocoon-agent");
	host_program.shut_down = power_off_by_init;
	protect_from_oom();
	open_loop();
	watch_signals();
	while ((look_again_ms = find_ports(&ports)) || ports)
		spin_agent(look_again_ms);
	complain("this machine has no control channel, or another program serves it");
	_exit(1);
}
