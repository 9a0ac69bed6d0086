/* The engine's socket, one word a packet: `status`, `term`, `kill`, and `rescue` with a script.
 *
 * A rescue is armed before a guest is paused. A child of ours holds the connection and the script; when the connection
 * ends without `done`, whoever paused the guest has died, and the child plays the script against the VMM's socket. */
#include "shim.h"

enum { SCRIPT_BYTES = 8192, REPLY_BYTES = 4096, CONNECTION = 3, ROOT = 4, WORDS = 5 };

static int listener = -1, connections[CONTROLS];
static const struct processes *processes;

void control_listen(int directory, const struct processes *all)
{
	for (int i = 0; i < CONTROLS; i++)
		connections[i] = -1;
	processes = all;
	listener = listen_at(directory, "shim.sock", SOCK_SEQPACKET);
	if (listener < 0)
		report("warning", "no control socket: %s", strerror(errno));
}

size_t control_poll(struct pollfd *fds)
{
	bool room = false;
	for (int i = 0; i < CONTROLS; i++) {
		fds[i + 1] = (struct pollfd){connections[i], POLLIN, 0};
		room |= connections[i] < 0;
	}
	fds[0] = (struct pollfd){room ? listener : -1, POLLIN, 0};
	return 1 + CONTROLS;
}

/* A socket of the VMM, by its name in the capsule. The directory is the VMM's: no symlink is followed, and the peer
 * must be of its uid, so that it cannot send us to somebody else. */
static int connect_inside(const char *inner)
{
	struct { uint64_t flags, mode, resolve; } how = {O_PATH | O_NOFOLLOW | O_CLOEXEC, 0, 0x04 | 0x10};
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	struct ucred peer;
	socklen_t size = sizeof(peer);
	int found = (int)syscall(SYS_openat2, ROOT, inner, &how, sizeof(how)); /* RESOLVE_NO_SYMLINKS, RESOLVE_IN_ROOT */
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	snprintf(address.sun_path, sizeof(address.sun_path), "/proc/self/fd/%d", found);
	if (found < 0 || connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0 ||
	    getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) < 0 || peer.uid != processes->uid)
		return -1;
	return fd;
}

/* Sends `request` and reads until the answer contains `expected`. */
static bool play_step(int fd, const char *request, const char *expected, uint64_t deadline)
{
	char reply[REPLY_BYTES + 1];
	size_t length = 0, wanted = strlen(expected), left = strlen(request);
	for (;;) {
		struct pollfd ready = {fd, (short)(POLLIN | (left ? POLLOUT : 0)), 0};
		uint64_t now = now_ms();
		if (now >= deadline || poll(&ready, 1, (int)(deadline - now)) < 0)
			return false;
		if (ready.revents & POLLOUT && left) {
			ssize_t sent = send(fd, request, left, MSG_NOSIGNAL);
			if (sent < 0 && errno != EAGAIN)
				return false;
			request += sent > 0 ? sent : 0;
			left -= sent > 0 ? (size_t)sent : 0;
		} else if (ready.revents) {
			ssize_t got = recv(fd, reply + length, REPLY_BYTES - length, 0);
			if (got <= 0)
				return false;
			length += (size_t)got;
			if (!left && memmem(reply, length, expected, wanted))
				return true;
			/* Only what may be the beginning of the answer is kept. */
			size_t kept = length < wanted ? length : wanted;
			if (length == REPLY_BYTES)
				length = (size_t)((char *)memmove(reply, reply + length - kept, kept) - reply) + kept;
		}
	}
}

/* `rescue<TAB>path<TAB>milliseconds<LF>`, then `request<TAB>expected<LF>` per step. */
static const char *play(char *steps, const char *path, uint64_t milliseconds)
{
	int fd = connect_inside(path);
	if (fd < 0)
		return "its socket does not answer";
	for (char *line; (line = strsep(&steps, "\n")) && *line;) {
		char *request = strsep(&line, "\t");
		if (!line || !unescape(request) || !unescape(line))
			return "a step is not understood";
		if (!play_step(fd, request, line, now_ms() + milliseconds))
			return "it did not give the expected answer";
	}
	return NULL;
}

/* The steps are unescaped in place, one value at a time: a decoded value may hold tabs, so cuts come first. */
static _Noreturn void rescue(void)
{
	static char script[SCRIPT_BYTES + 1];
	char word[8], line[MESSAGE];
	ssize_t got = recv(CONNECTION, script, SCRIPT_BYTES, MSG_TRUNC);
	char *steps = script, *head = strsep(&steps, "\n");
	char *name = strsep(&head, "\t"), *path = strsep(&head, "\t"), *number = head;
	(void)name;
	unsigned long milliseconds = number ? strtoul(number, NULL, 10) : 0;
	if (got <= 0 || got > SCRIPT_BYTES || !steps || !path || *path != '/' || !milliseconds) {
		say(CONNECTION, "failed: the script is not understood");
		_exit(1);
	}
	say(CONNECTION, "armed");
	got = recv(CONNECTION, word, sizeof(word), 0);
	if (got == 4 && !memcmp(word, "done", 4)) {
		say(CONNECTION, "ok");
		_exit(0);
	}
	const char *wrong = play(steps, path, milliseconds);
	snprintf(line, sizeof(line), "cocoon-shim: whoever paused the VMM died; rescue %s%s\n", wrong ? "failed: " : "done",
	         wrong ? wrong : "");
	say(WORDS, line);
	_exit(wrong ? 1 : 0);
}

static void start_rescue(int connection)
{
	if (fork())
		return;
	prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
	dup2(connection, CONNECTION);
	dup2(processes->root, ROOT);
	dup2(processes->errors, WORDS);
	close_from(WORDS + 1, 0); /* the alive lock and the clients are not a rescuer's */
	rescue();
}

static void answer_status(int connection)
{
	char line[MESSAGE];
	snprintf(line, sizeof(line), "phase %s\nsupervisor %d %llu\ninit %d %llu\nvmm %d %llu\nclients %d\n",
	         processes->phase, getpid(), (unsigned long long)start_ticks(AT_FDCWD, "/proc/self/stat"), processes->init,
	         (unsigned long long)processes->init_ticks, processes->vmm, (unsigned long long)processes->vmm_ticks,
	         console_clients());
	say(connection, line);
}

/* One packet; false when the connection has ended or is not ours any more. */
static bool answer(int connection)
{
	char word[8];
	ssize_t got = recv(connection, word, sizeof(word), MSG_PEEK | MSG_DONTWAIT);
	if (got <= 0)
		return got < 0 && errno == EAGAIN;
	if (got >= 7 && !memcmp(word, "rescue\t", 7)) {
		start_rescue(connection);
		return false;
	}
	recv(connection, word, sizeof(word), MSG_DONTWAIT);
	if (got == 6 && !memcmp(word, "status", 6)) {
		answer_status(connection);
	} else if (got == 4 && (!memcmp(word, "term", 4) || !memcmp(word, "kill", 4))) {
		say(connection, kill(processes->init, *word == 't' ? SIGTERM : SIGINT) ? "failed: it has gone" : "ok");
	} else {
		say(connection, "failed: not understood");
	}
	return true;
}

void control_serve(const struct pollfd *fds)
{
	for (int i = 0; i < CONTROLS; i++) {
		if (connections[i] >= 0 && fds[i + 1].revents && !answer(connections[i])) {
			close(connections[i]);
			connections[i] = -1;
		}
	}
	int fd = fds[0].revents & POLLIN ? accept_root(listener) : -1;
	for (int i = 0; fd >= 0 && i < CONTROLS; i++) {
		if (connections[i] < 0) {
			connections[i] = fd;
			return;
		}
	}
}
