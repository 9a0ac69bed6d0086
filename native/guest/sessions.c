/* Sessions: commands, and the clients that look at them, from their begin to their end. docs/protocol.md, sections 5, 6. */
#define _GNU_SOURCE
#include "agent.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#define KILL_AFTER_MS 5000
/* A terminal whose last words are on their way while a descendant keeps it open. */
#define LAST_WORDS_MS 100
#define RETRY_MS 100

struct session sessions[MAX_SESSIONS];

struct session *find_session(uint32_t number)
{
	for (size_t i = 0; i < MAX_SESSIONS; i++)
		if (sessions[i].used && sessions[i].number == number)
			return &sessions[i];
	return NULL;
}

size_t count_clients(const struct session *session)
{
	size_t count = 0;

	FOR_CLIENTS(session, client)
		count++;
	return count;
}

struct connection *find_patient_client(const struct session *session)
{
	FOR_CLIENTS(session, client)
		if (client->patient)
			return client;
	return NULL;
}

static void close_fd(int *fd)
{
	if (*fd >= 0)
		close(*fd);
	*fd = -1;
}

static void close_lanes(struct session *session)
{
	close_watch(&session->input);
	close_watch(&session->output[0]);
	close_watch(&session->output[1]);
	close_fd(&session->failure_fd);
	close_fd(&session->echo_fd);
	free(session->input_bytes);
	session->input_bytes = NULL;
	session->input_used = 0;
}

bool forget_session(struct session *session)
{
	if (!session->ended || count_clients(session) || session->number == 0)
		return false;
	close_lanes(session);
	close_ring(&session->ring);
	session->used = false;
	return true;
}

static struct session *find_place(void)
{
	struct session *oldest = NULL;

	for (size_t i = 0; i < MAX_SESSIONS; i++) {
		struct session *session = &sessions[i];
		if (!session->used)
			return session;
		if (session->ended && session->number && !count_clients(session) && (!oldest || session->number < oldest->number))
			oldest = session;
	}
	return oldest && forget_session(oldest) ? oldest : NULL;
}

static void prepare(struct session *session, uint32_t number, char *const *words)
{
	size_t used = 0, room = sizeof session->command - 1;

	*session = (struct session){.used = true, .number = number, .started_s = time(NULL), .failure_fd = -1, .echo_fd = -1};
	session->input.fd = session->output[0].fd = session->output[1].fd = session->ring.fd = -1;
	for (; words && *words && used < room; words++) {
		for (const char *letter = *words; *letter && used < room; letter++)
			session->command[used++] = *letter > 0 && *letter < ' ' ? '?' : *letter;
		if (words[1] && used < room)
			session->command[used++] = ' ';
	}
}

struct session *new_session(char *const *words)
{
	static uint32_t last;
	struct session *session = find_place();

	if (session)
		prepare(session, ++last ? last : ++last, words);
	return session;
}

struct session *new_main_session(char *const *words)
{
	prepare(&sessions[0], 0, words);
	open_ring(&sessions[0].ring);
	sessions[0].stays = true;
	return &sessions[0];
}

bool signal_session(const struct session *session, int number)
{
	if (session->ended || number < 0 || number > 64)
		return false;
	/* Until the child has made its own group there is only itself. */
	return kill(-session->pid, number) == 0 || kill(session->pid, number) == 0;
}

void resize_session(const struct session *session, unsigned rows, unsigned columns)
{
	const struct winsize size = {.ws_row = (unsigned short)rows, .ws_col = (unsigned short)columns};

	if (session->terminal && session->output[0].fd >= 0)
		ioctl(session->output[0].fd, TIOCSWINSZ, &size);
}

/* ---- clients come and go ---- */

void attach(struct connection *connection, struct session *session, uint32_t credit, bool replay, bool patient)
{
	connection->patient = patient && !find_patient_client(session);
	connection->session = session;
	connection->credit[STDOUT] = connection->credit[STDERR] = credit;
	connection->input_left = connection->patient ? INPUT_WINDOW - (uint32_t)session->input_used : 0;
	session->input_taken = 0;
	ring_seek(&session->ring, &connection->cursor, replay);
	session->awaits_client = false;
	session->more = true;
}

void leave(struct connection *connection)
{
	struct session *session = connection->session;

	let_go(connection);
	if (!session || session->stays) {
		if (session)
			session->more = true; /* it waits for nobody now */
		return;
	}
	signal_session(session, SIGHUP);
	signal_session(session, SIGCONT);
	close_lanes(session);
	session->kill_at_ms = now_ms() + KILL_AFTER_MS;
	if (session->ended)
		forget_session(session);
}

void detach(struct connection *connection)
{
	struct session *session = connection->session;

	if (session && !session->stays) {
		if (!open_ring(&session->ring)) {
			break_off(connection);
			return;
		}
		session->stays = true;
	}
	if (session)
		session->more = true;
	let_go(connection);
	send_frame(connection, DETACH, 0, NULL, 0);
}

void start_session(struct session *session, const struct spawned *spawned, bool terminal, bool stays)
{
	session->pid = spawned->pid;
	session->terminal = terminal;
	session->failure_fd = spawned->failure;
	if (stays && session->ring.fd < 0)
		stays = open_ring(&session->ring);
	session->stays = stays;
	if (spawned->input >= 0 && !add_watch(&session->input, spawned->input, EPOLLOUT | EPOLLET, input_ready))
		close(spawned->input);
	for (int i = 0; i < 2; i++)
		if (spawned->output[i] >= 0 &&
		    !add_watch(&session->output[i], spawned->output[i], EPOLLIN | EPOLLET, output_ready))
			close(spawned->output[i]);
}

/* ---- the end ---- */

static void note_end(struct session *session, int status)
{
	int32_t failure;

	session->ended = true;
	session->kind = WIFSIGNALED(status) ? KILLED : EXITED;
	session->status = (uint32_t)(WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status));
	if (session->failure_fd >= 0 && read(session->failure_fd, &failure, sizeof failure) == sizeof failure) {
		session->kind = NOT_STARTED;
		session->status = (uint32_t)failure;
	}
	close_fd(&session->failure_fd);
	session->kill_at_ms = 0;
	session->finish_at_ms = now_ms() + LAST_WORDS_MS;
	for (int i = 0; i < 2; i++) {
		int left = 0;
		if (session->output[i].fd >= 0 && ioctl(session->output[i].fd, FIONREAD, &left) == 0 && left > 0)
			session->drain[i] = (size_t)left;
	}
	if (!session->stays && !count_clients(session))
		forget_session(session);
	else
		move_output(session);
}

static struct session *find_by_pid(pid_t pid)
{
	for (size_t i = 0; i < MAX_SESSIONS; i++)
		if (sessions[i].used && !sessions[i].ended && sessions[i].pid == pid)
			return &sessions[i];
	return NULL;
}

/* Collects the dead. What a client that went left running in a session's group ends with it, while the group's number
 * is still ours to name. */
void reap_children(void)
{
	int status;

	for (;;) {
		siginfo_t info = {0};
		if (waitid(P_ALL, 0, &info, WEXITED | WNOHANG | WNOWAIT) < 0 || info.si_pid == 0)
			return;
		struct session *session = find_by_pid(info.si_pid);
		if (session && session->kill_at_ms)
			kill(-info.si_pid, SIGKILL);
		if (waitpid(info.si_pid, &status, 0) == info.si_pid && session)
			note_end(session, status);
	}
}

int64_t serve_sessions(void)
{
	int64_t next_ms = 0, now = now_ms();

	for (size_t i = 0; i < MAX_SESSIONS; i++) {
		struct session *session = &sessions[i];
		if (!session->used)
			continue;
		if (session->kill_at_ms && now >= session->kill_at_ms) {
			signal_session(session, SIGKILL);
			session->kill_at_ms = now + KILL_AFTER_MS;
		}
		next_ms = sooner(next_ms, session->kill_at_ms);
		bool lingers = session->ended && session->terminal && session->output[0].fd >= 0;
		if (session->more || (lingers && now >= session->finish_at_ms))
			move_output(session);
		if (session->input_used && session->terminal) /* a terminal does not always say that it takes more */
			push_input(session);
		if (session->used && session->more)
			next_ms = now;
		else if (session->used && (lingers || (session->input_used && session->terminal)))
			next_ms = sooner(next_ms, now + RETRY_MS);
	}
	return next_ms;
}
