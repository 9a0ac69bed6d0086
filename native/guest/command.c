/* What the image is for: its command as session 0, or its init in our own place. */
#define _GNU_SOURCE
#include "agent.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

/* How long the machine stays for a client that is to have the main command's output and status: from the command's begin
 * until one comes, and from its end until that one has it. */
#define FIRST_CLIENT_MS 30000
#define LAST_CLIENT_MS 10000

static void take_terminal(const struct account *account)
{
	int fd = open_console(O_RDWR);

	setsid();
	if (fd < 0)
		return;
	ioctl(fd, TIOCSCTTY, 1);
	/* So that the command may open /dev/stdout itself. */
	fchown(fd, account->uid, (gid_t)-1);
	fchmod(fd, 0620);
	for (int target = 0; target < 3; target++)
		dup2(fd, target);
}

static void start_on_console(struct session *session, const struct launch *launch)
{
	session->pid = fork();
	if (session->pid < 0)
		fail("cannot fork: %s", strerror(errno));
	if (session->pid == 0) {
		take_terminal(&launch->account);
		run_program(launch, -1);
	}
}

/* Its lanes are for clients, and the console gets a copy, as far as it takes one without waiting. */
static void start_on_lanes(struct session *session, const struct launch *launch)
{
	struct spawned spawned;

	if (!spawn(launch, &spawned))
		fail("cannot start %s: %s", launch->arguments[0], strerror(errno));
	session->awaits_client = true;
	session->echo_fd = open_console(O_WRONLY | O_NONBLOCK);
	start_session(session, &spawned, launch->terminal, true);
}

void start_main_command(struct config *config)
{
	static struct launch launch;
	struct session *session = new_main_session(config->arguments);
	char why[600];

	launch = (struct launch){.arguments = config->arguments, .environment = config->environment, .cwd = config->cwd,
				 .make_cwd = true, .terminal = config->stdio == ON_TERMINAL, .rows = 24, .columns = 80};
	if (!find_account(config->argument_count ? config->user : "0", &launch.account, why, sizeof why))
		fail("%s", why);
	if (config->stdio == ON_CONSOLE)
		start_on_console(session, &launch);
	else
		start_on_lanes(session, &launch);
}

/* Ended, and whoever wants to know how knows, or has had time enough. Otherwise `*look_again_ms` says when to ask, if at
 * all. A command that was to have a client and gets none (its VM was started again by itself) goes on without. */
bool main_command_is_over(int64_t *look_again_ms)
{
	static int64_t began_ms, ended_ms;
	struct session *session = &sessions[0];

	if (!began_ms)
		began_ms = now_ms();
	if (session->awaits_client && now_ms() >= began_ms + FIRST_CLIENT_MS) {
		session->awaits_client = false;
		session->more = true; /* its output waits for nobody now */
	}
	if (session->ended && !ended_ms)
		ended_ms = now_ms();
	if (session->awaits_client)
		*look_again_ms = began_ms + FIRST_CLIENT_MS;
	else if (session->ended)
		*look_again_ms = ended_ms + LAST_CLIENT_MS;
	if (!session->ended || session->awaits_client)
		return false;
	bool wanted = count_clients(session);
	for (size_t i = 0; i < MAX_CONNECTIONS; i++)
		wanted = wanted || connections[i].farewell;
	return !wanted || now_ms() >= *look_again_ms;
}

/* The agent goes on beside an init that has its own ideas: a child of PID 1 that no service of it knows. */
static void leave_agent_behind(void)
{
	if (fork() == 0) {
		setsid();
		run_agent();
	}
}

_Noreturn void become_init(struct config *config)
{
	const struct launch launch = {.environment = config->environment, .account.home = "/root"};

	leave_agent_behind();
	leave_ending();
	set_environment(&launch);
	execvp(config->arguments[0], config->arguments);
	fail("cannot run the image's init %s: %s", config->arguments[0], strerror(errno));
}
