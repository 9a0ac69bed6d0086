/* A session's lanes: what its client sends goes to the command, what the command writes goes to its clients.
 *
 * A session with a client of its own moves output from its pipe straight into that client's frames, and reads no more of
 * it than the client has given credit for. One that goes on without clients (`stays`) writes into a ring first, where
 * each client is a cursor. Pipes are watched at their edges: whoever makes room comes back and asks again. */
#define _GNU_SOURCE
#include "agent.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <termios.h>
#include <unistd.h>

#define READS_PER_TURN 16
#define GRANT (INPUT_WINDOW / 4)

/* ---- input: what its patient client sends ---- */

static void grant(struct session *session, unsigned count)
{
	struct connection *client = find_patient_client(session);

	session->input_taken += count;
	if (!client || (session->input_taken < GRANT && session->input_used))
		return;
	client->input_left += session->input_taken;
	send_numbers(client, CREDIT, STDIN, session->input_taken, 0, 0);
	session->input_taken = 0;
}

static void finish_input(struct session *session)
{
	struct termios settings;
	char end = 4;

	if (session->terminal && session->input.fd >= 0) {
		if (tcgetattr(session->input.fd, &settings) == 0)
			end = (char)settings.c_cc[VEOF];
		write(session->input.fd, &end, 1);
	}
	close_watch(&session->input);
}

/* Writes what a command takes now; a command that has closed its input has everything else taken for nothing. */
static size_t write_input(struct session *session, const unsigned char *bytes, size_t count)
{
	ssize_t written = session->input.fd < 0 ? (ssize_t)count : write(session->input.fd, bytes, count);

	if (written < 0 && errno != EAGAIN && errno != EINTR) {
		close_watch(&session->input);
		written = (ssize_t)count;
	}
	return written < 0 ? 0 : (size_t)written;
}

void push_input(struct session *session)
{
	size_t count = session->input_used ? write_input(session, session->input_bytes, session->input_used) : 0;

	if (count) {
		session->input_used -= count;
		memmove(session->input_bytes, session->input_bytes + count, session->input_used);
		grant(session, (unsigned)count);
	}
	if (session->input_used)
		return;
	free(session->input_bytes);
	session->input_bytes = NULL;
	if (session->input_ends)
		finish_input(session);
}

void take_input(struct connection *connection, const unsigned char *bytes, size_t count)
{
	struct session *session = connection->session;

	if (!session || !connection->patient || session->input_ends)
		return;
	connection->input_left -= (uint32_t)count;
	size_t written = session->input_used ? 0 : write_input(session, bytes, count);
	if (written < count && !session->input_bytes)
		session->input_bytes = malloc(INPUT_WINDOW);
	if (written < count && session->input_bytes && session->input_used + count - written <= INPUT_WINDOW) {
		memcpy(session->input_bytes + session->input_used, bytes + written, count - written);
		session->input_used += count - written;
	} else if (written < count) {
		break_off(connection); /* no memory: better no copy than half of one */
		return;
	}
	if (written)
		grant(session, (unsigned)written);
}

void end_input(struct connection *connection)
{
	struct session *session = connection->session;

	if (!session || !connection->patient)
		return;
	session->input_ends = true;
	push_input(session);
}

void input_ready(struct watch *watch, uint32_t events)
{
	(void)events;
	push_input((struct session *)((char *)watch - offsetof(struct session, input)));
}

/* ---- output: what the command writes ---- */

/* How much of its output the session may take now. */
static size_t output_limit(struct session *session, unsigned lane)
{
	struct connection *client = find_patient_client(session);
	size_t limit = MAX_PAYLOAD, room;

	if (!session->stays) {
		if (!client || !has_room(client))
			return 0;
		limit = client->credit[lane] < limit ? client->credit[lane] : limit;
	} else if (client || session->awaits_client) {
		const struct cursor beginning = {0};
		room = ring_room(&session->ring, client ? &client->cursor : &beginning);
		limit = room < limit ? room : limit;
	}
	if (session->ended && !session->terminal && session->drain[lane - 1] < limit)
		limit = session->drain[lane - 1];
	return limit;
}

/* Sends what the ring holds for this client. True when it has seen everything. */
static bool send_kept(struct connection *connection)
{
	struct session *session = connection->session;
	unsigned char bytes[MAX_PAYLOAD];
	unsigned lane;
	size_t count;

	while (ring_peek(&session->ring, &connection->cursor, &lane, &count)) {
		if (lane > STDERR || !has_room(connection) || !connection->credit[lane])
			return false;
		if (count > connection->credit[lane])
			count = connection->credit[lane];
		ring_take(&session->ring, &connection->cursor, bytes, count);
		connection->credit[lane] -= (uint32_t)count;
		if (!send_frame(connection, DATA, lane, bytes, count))
			return false;
	}
	return true;
}

static ssize_t keep_output(struct session *session, unsigned lane, int fd, size_t limit)
{
	static unsigned char bytes[MAX_PAYLOAD];
	ssize_t count = read(fd, bytes, limit);

	if (count <= 0)
		return count;
	ring_append(&session->ring, lane, bytes, (size_t)count);
	if (session->echo_fd >= 0)
		write(session->echo_fd, bytes, (size_t)count); /* as much as the console takes now */
	FOR_CLIENTS(session, client)
		send_kept(client);
	return count;
}

/* The command has written its last, or a descendant of it holds the pipe, and what it had written is taken. */
static bool is_drained(const struct session *session, unsigned lane)
{
	if (!session->ended)
		return false;
	return session->terminal ? now_ms() >= session->finish_at_ms : session->drain[lane - 1] == 0;
}

static void take_output(struct session *session, unsigned lane)
{
	struct watch *watch = &session->output[lane - 1];
	ssize_t count = 1;
	size_t limit = 0;

	for (int reads = 0; watch->fd >= 0; reads++) {
		if (!session->terminal && is_drained(session, lane))
			break;
		limit = output_limit(session, lane);
		if (!limit)
			return;
		if (reads == READS_PER_TURN) {
			session->more = true;
			return;
		}
		if (session->stays) {
			count = keep_output(session, lane, watch->fd, limit);
		} else {
			struct connection *client = find_patient_client(session);
			count = send_from(client, lane, watch->fd, limit);
			if (count > 0)
				client->credit[lane] -= (uint32_t)count;
		}
		if (count < 0 && errno == EINTR)
			continue;
		if (count < 0 && errno == EAGAIN && !is_drained(session, lane))
			return;
		if (count <= 0)
			break;
		if (session->ended && !session->terminal)
			session->drain[lane - 1] -= (size_t)count;
	}
	close_watch(watch);
}

static bool is_complete(const struct session *session)
{
	return session->ended && session->output[0].fd < 0 && session->output[1].fd < 0;
}

void let_go(struct connection *connection)
{
	connection->session = NULL;
	connection->patient = false;
	connection->input_left = 0;
}

static void tell_end(struct connection *connection)
{
	struct session *session = connection->session;

	send_frame(connection, END, STDOUT, NULL, 0);
	send_frame(connection, END, STDERR, NULL, 0);
	send_numbers(connection, EXIT, 0, session->kind, session->status, connection->cursor.lost);
	connection->farewell = connection->greeted && session->number == 0;
	if (connection->session == session) /* it may have been too much for its output */
		let_go(connection);
	if (!session->stays)
		forget_session(session);
}

static void feed_client(struct connection *connection)
{
	struct session *session = connection->session;

	if (session->stays) {
		bool seen = send_kept(connection);
		if (connection->session == session && seen && is_complete(session))
			tell_end(connection);
		return;
	}
	/* Whoever floods one lane does not dry out the other. */
	session->turn ^= 1;
	take_output(session, session->turn ? STDOUT : STDERR);
	if (connection->session == session)
		take_output(session, session->turn ? STDERR : STDOUT);
	if (connection->session == session && is_complete(session))
		tell_end(connection);
}

void feed(struct connection *connection)
{
	if (!connection->session)
		return;
	if (connection->session->stays && connection->patient)
		connection->session->more = true; /* there may be room in the ring now */
	feed_client(connection);
}

/* Goes on with whatever the session can go on with. */
void move_output(struct session *session)
{
	session->more = false;
	FOR_CLIENTS(session, client)
		feed_client(client);
	if (!session->stays)
		return;
	take_output(session, STDOUT);
	take_output(session, STDERR);
	FOR_CLIENTS(session, client)
		feed_client(client);
}

void output_ready(struct watch *watch, uint32_t events)
{
	for (size_t i = 0; i < MAX_SESSIONS; i++)
		if (watch == &sessions[i].output[0] || watch == &sessions[i].output[1])
			move_output(&sessions[i]);
	(void)events;
}
