/* What a client may ask for. Every request is answered once, at once: what takes time is a process of its own. */
#define _GNU_SOURCE
#include "agent.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define DEFAULT_CREDIT (256 * 1024)
#define DEFAULT_GRACE_S 10
#define MAX_GRACE_S 3600
#define MAX_TERMINAL 9999

struct host_program host_program;
static struct answer answer; /* one at a time, and too large for a stack */

static long number_of(const struct request *request, const char *key, long low, long high, long otherwise)
{
	const char *text = find_record(request, key);
	long number;

	return text && parse_number(text, low, high, &number) ? number : text ? -1 : otherwise;
}

static bool says(const struct request *request, const char *key, const char *word)
{
	const char *text = find_record(request, key);

	return text && strcmp(text, word) == 0;
}

static void begin_answer(void)
{
	answer.used = 0;
	answer.overlong = false;
	add_record(&answer, "ok");
}

static void answer_session(struct connection *connection, const struct session *session)
{
	begin_answer();
	add_record(&answer, "session=%" PRIu32, session->number);
	add_record(&answer, "pid=%d", session->pid);
	send_answer(connection, &answer);
}

static struct session *session_of(struct connection *connection, const struct request *request)
{
	long number = number_of(request, "session", 0, UINT32_MAX, -1);
	struct session *session = number < 0 ? NULL : find_session((uint32_t)number);

	if (number < 0)
		refuse(connection, "invalid", "session= is missing or no number");
	else if (!session)
		refuse(connection, "missing", "no session %ld", number);
	return session;
}

/* ---- ping, version, list ---- */

static void ping(struct connection *connection, const struct request *request)
{
	const char *text = find_record(request, "text");

	begin_answer();
	add_record(&answer, "text=%s", text ? text : "");
	if (answer.overlong)
		refuse(connection, "invalid", "the text is longer than an answer may be");
	else
		send_answer(connection, &answer);
}

static void tell_version(struct connection *connection, const struct request *request)
{
	static const char *const features[] = {"terminal", "detach", "tar", "identity"};
	char boot[64] = "";

	(void)request;
	read_file("/proc/sys/kernel/random/boot_id", boot, sizeof boot);
	begin_answer();
	add_record(&answer, "protocol=1");
	add_record(&answer, "program=" PROGRAM_VERSION);
	add_record(&answer, "mode=%s", host_program.config ? "init" : "agent");
	for (size_t i = 0; i < sizeof features / sizeof *features; i++)
		add_record(&answer, "feature=%s", features[i]);
	add_record(&answer, "boot=%s", trim(boot));
	send_answer(connection, &answer);
}

static void list(struct connection *connection, const struct request *request)
{
	static const char *const kinds[] = {"exited", "killed", "not-started"};

	(void)request;
	begin_answer();
	for (size_t i = 0; i < MAX_SESSIONS; i++) {
		const struct session *session = &sessions[i];
		if (!session->used)
			continue;
		add_record(&answer, "session=%" PRIu32, session->number);
		add_record(&answer, "pid=%d", session->pid);
		add_record(&answer, "state=%s", session->ended ? "ended" : "running");
		add_record(&answer, "kind=%s", session->ended ? kinds[session->kind] : "");
		add_record(&answer, "status=%" PRIu32, session->status);
		add_record(&answer, "started=%" PRId64, session->started_s);
		add_record(&answer, "joined=%zu", count_clients(session));
		add_record(&answer, "command=%s", session->command);
	}
	send_answer(connection, &answer);
}

/* ---- exec and the verbs that are processes ---- */

/* The request's arg= as a list for execve; NULL when there is no memory. */
static char **list_arguments(const struct request *request)
{
	char **arguments = calloc(count_records(request, "arg") + 1, sizeof *arguments);
	size_t count = 0;

	for (const char *word = NULL; arguments && (word = next_record(request, "arg", word));)
		arguments[count++] = (char *)word;
	return arguments;
}

static bool read_terminal(const struct request *request, struct launch *launch)
{
	const char *text = find_record(request, "tty");

	launch->terminal = text != NULL;
	return !text || (sscanf(text, "%5ux%5u", &launch->rows, &launch->columns) == 2 && launch->rows <= UINT16_MAX &&
			 launch->columns <= UINT16_MAX);
}

/* Starts `launch` as a session and puts the client into it. */
static void begin_session(struct connection *connection, const struct launch *launch, bool stays, long credit)
{
	struct session *session = new_session(launch->arguments);
	struct spawned spawned;

	if (!session) {
		refuse(connection, "busy", "%d sessions are running: no more", MAX_SESSIONS);
		return;
	}
	if (!spawn(launch, &spawned)) {
		session->used = false;
		refuse(connection, "failed", "cannot start a process: %s", strerror(errno));
		return;
	}
	start_session(session, &spawned, launch->terminal, stays);
	answer_session(connection, session);
	if (!stays && connection->greeted)
		attach(connection, session, (uint32_t)credit, true, true);
}

static void run(struct connection *connection, const struct request *request)
{
	const struct config *config = host_program.config;
	static struct launch launch; /* holds an account, which is large */
	const char *user = find_record(request, "user"), *cwd = find_record(request, "cwd");
	long credit = number_of(request, "credit", 1, MAX_CREDIT, DEFAULT_CREDIT);
	char why[600];

	launch = (struct launch){.request = request, .cwd = cwd ? cwd : config ? config->cwd : "/"};
	launch.environment = config ? config->environment : NULL;
	launch.no_input = says(request, "stdin", "no") || (says(request, "detach", "yes") && !find_record(request, "tty"));
	if (connection->session)
		refuse(connection, "busy", "this connection is in a session");
	else if (credit < 0 || !read_terminal(request, &launch) || !find_record(request, "arg"))
		refuse(connection, "invalid", "exec needs arg=; tty= is ROWSxCOLUMNS, credit= is 1 to %d", MAX_CREDIT);
	else if (!find_account(user ? user : config ? config->user : NULL, &launch.account, why, sizeof why))
		refuse(connection, "missing", "%s", why);
	else if (!(launch.arguments = list_arguments(request)))
		refuse(connection, "failed", "out of memory");
	else
		begin_session(connection, &launch, says(request, "detach", "yes"), credit);
	free(launch.arguments);
	launch.arguments = NULL;
}

static void run_own_task(struct connection *connection, const struct request *request, const char *verb,
			 int (*task)(const struct request *))
{
	char *words[] = {(char *)verb, (char *)find_record(request, "path"), NULL};
	const struct launch launch = {.arguments = words, .request = request, .task = task};
	long credit = number_of(request, "credit", 1, MAX_CREDIT, DEFAULT_CREDIT);

	if (connection->session)
		refuse(connection, "busy", "this connection is in a session");
	else if (credit < 0)
		refuse(connection, "invalid", "credit= is 1 to %d", MAX_CREDIT);
	else
		begin_session(connection, &launch, false, credit);
}

static void run_stat(struct connection *connection, const struct request *request)
{
	run_own_task(connection, request, "stat", stat_task);
}

static void run_tar_out(struct connection *connection, const struct request *request)
{
	run_own_task(connection, request, "tar-out", tar_out_task);
}

static void run_tar_in(struct connection *connection, const struct request *request)
{
	run_own_task(connection, request, "tar-in", tar_in_task);
}

static void run_identity(struct connection *connection, const struct request *request)
{
	run_own_task(connection, request, "identity", identity_task);
}

/* ---- join, signal, forget, shutdown ---- */

static void join(struct connection *connection, const struct request *request)
{
	struct session *session = session_of(connection, request);
	long credit = number_of(request, "credit", 1, MAX_CREDIT, DEFAULT_CREDIT);

	if (!session)
		return;
	if (connection->session)
		refuse(connection, "busy", "this connection is in a session");
	else if (credit < 0)
		refuse(connection, "invalid", "credit= is 1 to %d", MAX_CREDIT);
	else if (!session->stays)
		refuse(connection, "busy", "session %" PRIu32 " is another client's", session->number);
	else {
		answer_session(connection, session);
		if (connection->greeted)
			attach(connection, session, (uint32_t)credit, !says(request, "replay", "no"), !says(request, "stall", "no"));
	}
}

static void send_signal(struct connection *connection, const struct request *request)
{
	struct session *session = session_of(connection, request);
	long number = number_of(request, "signal", 0, 64, -1);

	if (!session)
		return;
	if (number < 0)
		refuse(connection, "invalid", "signal= is missing or no signal");
	else if (!signal_session(session, (int)number))
		refuse(connection, "missing", "session %" PRIu32 " has ended", session->number);
	else
		agree(connection);
}

static void forget(struct connection *connection, const struct request *request)
{
	struct session *session = session_of(connection, request);

	if (!session)
		return;
	if (forget_session(session))
		agree(connection);
	else
		refuse(connection, "busy", "session %" PRIu32 " is running, has clients, or is the main one", session->number);
}

static void shut_down(struct connection *connection, const struct request *request)
{
	long grace_s = number_of(request, "grace", 0, MAX_GRACE_S, DEFAULT_GRACE_S);

	if (grace_s < 0)
		refuse(connection, "invalid", "grace= is 0 to %d seconds", MAX_GRACE_S);
	else if (host_program.shut_down(grace_s))
		agree(connection);
	else
		refuse(connection, "unsupported", "this guest has no poweroff to ask for: %s", strerror(errno));
}

static void size_console(struct connection *connection, const struct request *request)
{
	long rows = number_of(request, "rows", 1, MAX_TERMINAL, -1);
	long columns = number_of(request, "columns", 1, MAX_TERMINAL, -1);

	if (rows < 0 || columns < 0)
		refuse(connection, "invalid", "rows= and columns= are 1 to %d", MAX_TERMINAL);
	else if (resize_console((unsigned)rows, (unsigned)columns))
		agree(connection);
	else
		refuse(connection, "failed", "the console takes no size: %s", strerror(errno));
}

static const struct verb {
	const char *name, *keys;
	void (*serve)(struct connection *connection, const struct request *request);
} verbs[] = {
	{"ping", "verb text", ping},
	{"version", "verb", tell_version},
	{"list", "verb", list},
	{"exec", "verb arg* env* cwd user tty detach stdin credit", run},
	{"join", "verb session credit replay stall", join},
	{"signal", "verb session signal", send_signal},
	{"forget", "verb session", forget},
	{"shutdown", "verb grace", shut_down},
	{"console", "verb rows columns", size_console},
	{"stat", "verb path credit", run_stat},
	{"tar-out", "verb path credit", run_tar_out},
	{"tar-in", "verb path credit", run_tar_in},
	{"identity", "verb hostname machine-id nic* dns* clock entropy host-keys credit", run_identity},
};

void serve_request(struct connection *connection, struct request *request)
{
	const char *name, *culprit;

	if (!request->size || request->records[request->size - 1] != '\0' || !(name = find_record(request, "verb"))) {
		refuse(connection, "invalid", "the request has no verb, or does not end");
		return;
	}
	for (size_t i = 0; i < sizeof verbs / sizeof *verbs; i++) {
		if (strcmp(verbs[i].name, name) != 0)
			continue;
		if (check_request(request, verbs[i].keys, &culprit))
			verbs[i].serve(connection, request);
		else
			refuse(connection, "invalid", "%s does not take %.100s", name, culprit);
		return;
	}
	refuse(connection, "unknown", "no verb %.100s", name);
}
