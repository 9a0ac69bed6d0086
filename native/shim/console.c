/* The console socket. A client is a position in the log and nothing else: one that does not read falls behind, skips
 * ahead, and never holds up the guest.
 * The first byte of a client says what it wants: `r` to read, `w` to write as well if nobody else does, `t` to write
 * instead of whoever does. The answer is one byte, `r` or `w`; then follow the last 64 KiB of this boot and what comes. */
#include "shim.h"

enum { BACKLOG_BYTES = 65536, LISTENER = CLIENTS, TERMINAL };

static struct client { int fd; bool greeted; uint64_t position; } clients[CLIENTS], *writer;
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
}

static void leave(struct client *client) {
	close(client->fd);
	client->fd = -1;
	writer = writer == client ? NULL : writer;
}

/* What to wait for (-1: nothing); when `ending`, only that clients read on. True while one has not been told all. */
bool console_poll(struct pollfd *fds, bool ending) {
	bool behind = false;
	fds[LISTENER] = (struct pollfd){ending ? -1 : listener, POLLIN, 0};
	fds[TERMINAL] = (struct pollfd){input_length && !ending ? terminal : -1, POLLOUT, 0};
	for (int i = 0; i < CLIENTS; i++) {
		const struct client *client = &clients[i];
		/* A waiting writer's hang-up is not asked for either: what it typed before may not be read yet. */
		bool waits = ending || (client == writer && input_length);
		bool tell = client->fd >= 0 && client->greeted && client->position < console->end;
		fds[i] = (struct pollfd){waits && !tell ? -1 : client->fd, (short)((waits ? 0 : POLLIN) | (tell ? POLLOUT : 0)), 0};
		behind |= tell;
	}
	return behind;
}

/* Hands what was typed to the VMM as far as it takes it; until then, the writer and nobody else waits. */
static void push_input(void) {
	ssize_t taken = write(terminal, input, input_length);
	input_length -= taken > 0 ? (size_t)taken : 0;
	memmove(input, input + (taken > 0 ? taken : 0), input_length);
}

static void greet(struct client *client) {
	char wish = 0;
	ssize_t got = recv(client->fd, &wish, 1, MSG_DONTWAIT);
	if (wish == 't' || (wish == 'w' && !writer)) writer = client;
	client->position = console->end > BACKLOG_BYTES ? console->end - BACKLOG_BYTES : 0;
	client->greeted = got == 1 && (wish == 'r' || wish == 'w' || wish == 't');
	if (!client->greeted || send(client->fd, client == writer ? "w" : "r", 1, MSG_DONTWAIT) != 1)
		leave(client);
}

static void hear(struct client *client) {
	char ignored[256];
	bool types = client == writer;
	ssize_t got = recv(client->fd, types ? input : ignored, types ? sizeof(input) : sizeof(ignored), MSG_DONTWAIT);
	if (got == 0 || (got < 0 && errno != EAGAIN)) leave(client);
	if (got > 0 && types) {
		input_length = (size_t)got;
		push_input();
	}
}

static void tell(struct client *client) {
	char data[4096];
	ssize_t got = log_read(console, &client->position, data, sizeof(data));
	ssize_t sent = got > 0 ? send(client->fd, data, (size_t)got, MSG_DONTWAIT) : 0;
	if (got <= 0)
		client->position = console->end; /* unreadable: go on with what is new */
	else if (sent > 0)
		client->position += (uint64_t)sent;
	else if (errno != EAGAIN)
		leave(client);
}

/* `fds` as console_poll filled them in, after poll(2). */
void console_serve(const struct pollfd *fds) {
	struct client *place = NULL;
	if (fds[TERMINAL].revents) push_input();
	for (int i = 0; i < CLIENTS; i++) {
		struct client *client = &clients[i];
		if (client->fd >= 0 && fds[i].revents & POLLIN && !(client == writer && input_length))
			(client->greeted ? hear : greet)(client);
		if (client->fd >= 0 && fds[i].revents & POLLOUT) tell(client);
		place = client->fd < 0 ? client : place;
	}
	int fd = fds[LISTENER].revents ? accept_root(listener) : -1;
	if (fd >= 0 && place)
		*place = (struct client){.fd = fd};
	else
		close(fd); /* one too many */
}
