/* The console socket. A client is a position in the log and nothing else: one that does not read falls behind, skips
 * ahead, and never holds up the guest.
 *
 * The first byte of a client says what it wants: `r` to read, `w` to write as well if nobody else does, `t` to write
 * instead of whoever does. The answer is one byte, `r` or `w`; then follow the last 64 KiB of this boot and what comes.*/
#include "shim.h"

enum { BACKLOG_BYTES = 65536, LISTENER = CLIENTS, TERMINAL };

static struct client {
	int fd;
	bool greeted, deaf; /* deaf: it has shut down its sending side */
	uint64_t position;
} clients[CLIENTS], *writer;
static struct log *console;
static int listener, terminal;
static char input[1024]; /* typed, but not yet taken by the VMM */
static size_t input_length;

/* `directory` gets `console.sock`. Without it the VM still runs: its terminal is read all the same. */
void console_listen(int directory, int terminal_fd, struct log *log) {
	for (int i = 0; i < CLIENTS; i++)
		clients[i].fd = -1;
	terminal = terminal_fd;
	console = log;
	listener = listen_at(directory, "console.sock", SOCK_STREAM);
	if (listener < 0)
		report("warning", "no console socket: %s", strerror(errno));
}

static void leave(struct client *client) {
	close(client->fd);
	client->fd = -1;
	writer = writer == client ? NULL : writer;
}

static struct client *free_place(void) {
	for (int i = 0; i < CLIENTS; i++)
		if (clients[i].fd < 0)
			return &clients[i];
	return NULL;
}

/* What to wait for. Entries of no use have the descriptor -1, which poll(2) ignores. */
void console_poll(struct pollfd *fds) {
	for (int i = 0; i < CLIENTS; i++) {
		const struct client *client = &clients[i];
		bool waits = client == writer && input_length, tell = client->greeted && client->position < console->end;
		short events = (short)((waits || client->deaf ? 0 : POLLIN) | (tell ? POLLOUT : 0));
		/* Not even its hang-up: what it typed before may not be read yet. */
		fds[i] = (struct pollfd){waits && !tell ? -1 : client->fd, events, 0};
	}
	fds[LISTENER] = (struct pollfd){free_place() ? listener : -1, POLLIN, 0};
	fds[TERMINAL] = (struct pollfd){input_length ? terminal : -1, POLLOUT, 0};
}

static void greet(struct client *client, char wish) {
	if (wish == 't' || (wish == 'w' && !writer))
		writer = client;
	uint64_t oldest = log_oldest(console), end = console->end;
	client->position = end - oldest > BACKLOG_BYTES ? end - BACKLOG_BYTES : oldest;
	client->greeted = true;
	if (send(client->fd, client == writer ? "w" : "r", 1, MSG_DONTWAIT | MSG_NOSIGNAL) != 1)
		leave(client);
}

/* Hands what was typed to the VMM as far as it takes it; until then, the writer and nobody else waits. */
static void push_input(void) {
	ssize_t taken = write(terminal, input, input_length);
	if (taken > 0)
		memmove(input, input + taken, input_length -= (size_t)taken);
}

static void hear(struct client *client) {
	char ignored[256], wish;
	bool types = client == writer;
	if (!client->greeted) {
		ssize_t got = recv(client->fd, &wish, 1, MSG_DONTWAIT);
		if (got == 1 && (wish == 'r' || wish == 'w' || wish == 't'))
			greet(client, wish);
		else
			leave(client);
		return;
	}
	ssize_t got = recv(client->fd, types ? input : ignored, types ? sizeof(input) : sizeof(ignored), MSG_DONTWAIT);
	client->deaf = got == 0;
	if (got < 0 && errno != EAGAIN)
		leave(client);
	if (got <= 0 || !types)
		return;
	input_length = (size_t)got;
	push_input();
}

static void tell(struct client *client) {
	char data[4096];
	ssize_t got = log_read(console, &client->position, data, sizeof(data));
	ssize_t sent = got > 0 ? send(client->fd, data, (size_t)got, MSG_DONTWAIT | MSG_NOSIGNAL) : 0;
	if (got <= 0)
		client->position = console->end; /* unreadable: go on with what is new */
	else if (sent > 0)
		client->position += (uint64_t)sent;
	else if (errno != EAGAIN)
		leave(client);
}

/* `fds` as console_poll filled them in, after poll(2). */
void console_serve(const struct pollfd *fds) {
	if (fds[TERMINAL].revents)
		push_input();
	for (int i = 0; i < CLIENTS; i++) {
		struct client *client = &clients[i];
		if (client->fd >= 0 && fds[i].revents & POLLIN && !(client == writer && input_length))
			hear(client);
		if (client->fd >= 0 && fds[i].revents & POLLOUT)
			tell(client);
		if (client->fd >= 0 && fds[i].revents & (POLLHUP | POLLERR) && !(fds[i].revents & (POLLIN | POLLOUT)))
			leave(client);
	}
	/* Last, so that no place is given away while `fds` still speaks of its former owner. */
	int fd = fds[LISTENER].revents ? accept_root(listener) : -1;
	if (fd >= 0)
		*free_place() = (struct client){.fd = fd};
}

/* The end: clients get what they have not read yet, as long as they read it, but not for long. */
void console_flush(uint64_t milliseconds) {
	struct pollfd fds[CONSOLE_FDS];
	uint64_t now, deadline = now_ms() + milliseconds;
	for (bool behind = true; behind && (now = now_ms()) < deadline;) {
		behind = false;
		console_poll(fds);
		for (int i = 0; i < CONSOLE_FDS; i++) {
			if (!(fds[i].events & POLLOUT) || i == TERMINAL)
				fds[i].fd = -1;
			behind |= fds[i].fd >= 0;
		}
		if (behind && poll(fds, CONSOLE_FDS, (int)(deadline - now)) > 0)
			console_serve(fds);
	}
}
