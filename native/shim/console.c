/* The console socket. A client is a position in the log and nothing else: one that does not read falls behind, skips
 * ahead, and never holds up the guest.
 *
 * The first byte of a client says what it wants: `r` to read, `w` to write as well if nobody else does, `t` to write
 * instead of whoever does. The answer is one byte, `r` or `w`; then follow the last 64 KiB of this boot and what comes. */
#include "shim.h"

struct client {
	int fd;
	bool greeted, writer, deaf; /* deaf: it has shut down its sending side */
	uint64_t position;
};

static struct client clients[CLIENTS];
static int listener = -1, terminal = -1;
static struct log *console;
static char input[1024]; /* typed, but not yet taken by the VMM */
static size_t input_length;

/* `directory` gets `console.sock`. Without it the VM still runs: the terminal is read all the same. */
void console_listen(int directory, int terminal_fd, struct log *log)
{
	for (int i = 0; i < CLIENTS; i++)
		clients[i].fd = -1;
	terminal = terminal_fd;
	console = log;
	listener = listen_at(directory, "console.sock", SOCK_STREAM);
	if (listener < 0)
		report("warning", "no console: %s", strerror(errno));
}

static void drop(struct client *client)
{
	close(client->fd);
	client->fd = -1;
}

/* Fills in 1 + CLIENTS entries; unused ones have the descriptor -1, which poll(2) ignores. */
size_t console_poll(struct pollfd *fds)
{
	bool room = false;
	for (int i = 0; i < CLIENTS; i++) {
		const struct client *client = &clients[i];
		bool hear = !client->deaf && !(client->writer && input_length);
		bool tell = client->greeted && client->position < console->end;
		fds[i + 1] = (struct pollfd){client->fd, (short)((hear ? POLLIN : 0) | (tell ? POLLOUT : 0)), 0};
		room |= client->fd < 0;
	}
	fds[0] = (struct pollfd){room ? listener : -1, POLLIN, 0};
	return 1 + CLIENTS;
}

static void greet(struct client *client, char wish)
{
	struct client *writer = NULL;
	for (int i = 0; i < CLIENTS; i++)
		if (clients[i].fd >= 0 && clients[i].writer)
			writer = &clients[i];
	if (wish == 't' && writer)
		writer->writer = false;
	client->writer = wish == 't' || (wish == 'w' && !writer);
	uint64_t oldest = log_oldest(console), end = console->end;
	client->position = end - oldest > BACKLOG_BYTES ? end - BACKLOG_BYTES : oldest;
	client->greeted = true;
	if (send(client->fd, client->writer ? "w" : "r", 1, MSG_DONTWAIT | MSG_NOSIGNAL) != 1)
		drop(client);
}

/* Hands what was typed to the VMM as far as it takes it; back-pressure is the writer's alone. */
static void push_input(void)
{
	ssize_t taken = input_length ? write(terminal, input, input_length) : 0;
	if (taken > 0) {
		input_length -= (size_t)taken;
		memmove(input, input + taken, input_length);
	}
}

static void hear(struct client *client)
{
	char ignored[256];
	if (!client->greeted) {
		char wish;
		ssize_t got = recv(client->fd, &wish, 1, MSG_DONTWAIT);
		if (got == 1 && strchr("rwt", wish) && wish)
			greet(client, wish);
		else if (got >= 0 || errno != EAGAIN)
			drop(client);
		return;
	}
	ssize_t got = recv(client->fd, client->writer ? input : ignored, client->writer ? sizeof(input) : sizeof(ignored),
	                   MSG_DONTWAIT);
	if (got > 0 && client->writer) {
		input_length = (size_t)got;
		push_input();
	} else if (got == 0) {
		client->deaf = true;
	} else if (got < 0 && errno != EAGAIN) {
		drop(client);
	}
}

static void tell(struct client *client)
{
	char data[4096];
	uint64_t position = client->position;
	ssize_t got = log_read(console, &position, data, sizeof(data));
	if (got <= 0) {
		client->position = console->end; /* unreadable: go on with what is new */
		return;
	}
	ssize_t sent = send(client->fd, data, (size_t)got, MSG_DONTWAIT | MSG_NOSIGNAL);
	if (sent > 0)
		client->position = position + (uint64_t)sent;
	else if (errno != EAGAIN)
		drop(client);
}

static void accept_client(void)
{
	int fd = accept_root(listener);
	for (int i = 0; fd >= 0 && i < CLIENTS; i++) {
		if (clients[i].fd < 0) {
			clients[i] = (struct client){.fd = fd};
			return;
		}
	}
	if (fd >= 0)
		close(fd);
}

/* `fds` as console_poll filled them in, after poll(2). */
void console_serve(const struct pollfd *fds)
{
	for (int i = 0; i < CLIENTS; i++) {
		struct client *client = &clients[i];
		short events = fds[i + 1].revents;
		if (client->fd < 0 || client->fd != fds[i + 1].fd)
			continue;
		if (events & POLLIN && !(client->writer && input_length))
			hear(client);
		if (client->fd >= 0 && events & POLLOUT)
			tell(client);
		if (client->fd >= 0 && events & (POLLHUP | POLLERR) && !(events & POLLIN))
			drop(client);
	}
	if (fds[0].revents & POLLIN)
		accept_client();
}

/* Whether the terminal should be polled for room, and what to do when it has some. */
short console_wants(void)
{
	return input_length ? POLLOUT : 0;
}

void console_push(void)
{
	push_input();
}

int console_clients(void)
{
	int count = 0;
	for (int i = 0; i < CLIENTS; i++)
		count += clients[i].fd >= 0 && clients[i].greeted;
	return count;
}

/* The end: clients get what they have not read yet, as long as they read it, but not for long. */
void console_flush(uint64_t milliseconds)
{
	struct pollfd fds[1 + CLIENTS];
	uint64_t deadline = now_ms() + milliseconds;
	for (uint64_t now; (now = now_ms()) < deadline;) {
		int behind = 0;
		console_poll(fds);
		fds[0].fd = -1;
		for (int i = 1; i <= CLIENTS; i++) {
			fds[i].events &= POLLOUT;
			if (!fds[i].events)
				fds[i].fd = -1;
			behind += fds[i].fd >= 0;
		}
		if (!behind || poll(fds, 1 + CLIENTS, (int)(deadline - now)) <= 0)
			return;
		console_serve(fds);
	}
}
