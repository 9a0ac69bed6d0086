/* Connections: a virtio port that stays while its clients come and go unheard, or a socket that ends with its client. */
#define _GNU_SOURCE
#include "agent.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <unistd.h>

/* News of a hang-up comes in another queue than the data: it counts when it is still true after a while. */
#define HANGUP_MS 1000
/* A virtio port can lose the news that it may be written again (a Linux defect of 2025): then we look by ourselves. */
#define RETRY_MS 200
#define MAX_READS 64

struct connection connections[MAX_CONNECTIONS];

/* The client has gone, or has broken the rules: nothing of it goes on but what was detached. */
void break_off(struct connection *connection)
{
	leave(connection);
	free(connection->message);
	connection->message = NULL;
	connection->message_used = 0;
	connection->greeted = connection->in_step = connection->farewell = false;
	connection->unsent = 0;
}

void end_connection(struct connection *connection)
{
	break_off(connection);
	if (connection->is_port)
		return;
	close_watch(&connection->watch);
	connection->listener = NULL;
}

static void read_input(struct connection *connection)
{
	unsigned char bytes[4096];
	ssize_t count = 1;

	connection->unread = false;
	for (int turns = 0; connection->watch.fd >= 0; turns++) {
		if (turns == MAX_READS) { /* the others are there, too */
			connection->unread = true;
			return;
		}
		count = read(connection->watch.fd, bytes, sizeof bytes);
		if (count == 0)
			break;
		if (count < 0) {
			if (errno != EAGAIN && !connection->is_port)
				end_connection(connection);
			return;
		}
		take_bytes(connection, bytes, (size_t)count);
	}
	if (count == 0 && !connection->is_port)
		end_connection(connection);
}

static void note_hangup(struct connection *connection, bool hung)
{
	if (!hung)
		connection->hung_since_ms = 0;
	else if (!connection->hung_since_ms && connection->greeted)
		connection->hung_since_ms = now_ms();
}

static void serve_connection(struct watch *watch, uint32_t events)
{
	struct connection *connection = (struct connection *)watch;

	if (connection->is_port)
		note_hangup(connection, events & EPOLLHUP);
	flush_output(connection);
	read_input(connection);
	if (connection->session && has_room(connection))
		feed(connection);
}

struct connection *add_connection(int fd, bool is_port)
{
	for (size_t i = 0; i < MAX_CONNECTIONS; i++) {
		struct connection *connection = &connections[i];
		if (connection->watch.ready && connection->watch.fd >= 0)
			continue;
		connection->is_port = is_port;
		connection->listener = NULL;
		connection->greeted = connection->in_step = connection->farewell = false;
		connection->used = connection->unsent = 0;
		connection->key = 0;
		connection->hung_since_ms = 0;
		/* Edge-triggered: a port without a client hangs up all the time, and would keep us busy. */
		if (!add_watch(&connection->watch, fd, EPOLLIN | EPOLLOUT | EPOLLET, serve_connection))
			return NULL;
		return connection;
	}
	return NULL;
}

static void check_hangup(struct connection *connection)
{
	struct pollfd state = {.fd = connection->watch.fd, .events = POLLIN};

	poll(&state, 1, 0);
	if (state.revents & POLLHUP)
		break_off(connection);
	connection->hung_since_ms = 0;
}

int64_t serve_connections(void)
{
	int64_t next_ms = 0, now = now_ms();

	for (size_t i = 0; i < MAX_CONNECTIONS; i++) {
		struct connection *connection = &connections[i];
		if (!connection->watch.ready || connection->watch.fd < 0)
			continue;
		if (connection->hung_since_ms && now >= connection->hung_since_ms + HANGUP_MS)
			check_hangup(connection);
		if (connection->hung_since_ms)
			next_ms = sooner(next_ms, connection->hung_since_ms + HANGUP_MS);
		if (connection->unread)
			read_input(connection);
		if (connection->unread)
			next_ms = now;
		if (!connection->unsent)
			continue;
		flush_output(connection);
		if (!connection->unsent && connection->session)
			feed(connection);
		if (connection->unsent)
			next_ms = sooner(next_ms, now + RETRY_MS);
	}
	return next_ms;
}
