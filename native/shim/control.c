/* The engine's socket, one word a packet: `status`, `term`, `kill`, and `rescue` with a script. Each connection is a
 * child's, so that the supervisor never waits for one.
 *
 * A rescue is armed before a guest is paused. When its connection ends without `done`, whoever paused the guest has died,
 * and the child plays the script against a socket of the VMM: `rescue<TAB>path<TAB>milliseconds<LF>`, then a line
 * `request<TAB>what the answer must contain<LF>` per step. */
#include "shim.h"

enum { CONNECTION = 3, ROOT, WORDS, LAST, SCRIPT_BYTES = 8192, REPLY_BYTES = 4096 };

/* A socket of the VMM, by its name in the capsule. The directory is the VMM's: no symlink is followed, and the peer must
 * be of its uid, so that it cannot send us to somebody else. */
static int connect_inside(const char *inner, uid_t uid) {
	const struct { uint64_t flags, mode, resolve; } how = {O_PATH | O_CLOEXEC, 0, 0x04 | 0x10}; /* no symlinks, in root */
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	struct ucred peer;
	socklen_t size = sizeof(peer);
	int found = (int)syscall(SYS_openat2, ROOT, inner, &how, sizeof(how));
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	snprintf(address.sun_path, sizeof(address.sun_path), "/proc/self/fd/%d", found);
	if (found < 0 || connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0 ||
	    getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) < 0 || peer.uid != uid)
		return -1;
	return fd;
}

/* Sends `request` and reads until the answer contains `expected`. */
static bool play_step(int fd, const char *request, const char *expected, uint64_t deadline) {
	char reply[REPLY_BYTES];
	size_t length = 0, wanted = strlen(expected), left = strlen(request);
	while (left || !memmem(reply, length, expected, wanted)) {
		struct pollfd ready = {fd, left ? POLLIN | POLLOUT : POLLIN, 0};
		uint64_t now = now_ms();
		if (now >= deadline || poll(&ready, 1, (int)(deadline - now)) < 0)
			return false;
		if (ready.revents & POLLOUT) {
			ssize_t sent = send(fd, request, left, MSG_NOSIGNAL);
			if (sent < 0)
				return false;
			request += sent;
			left -= (size_t)sent;
		} else if (ready.revents) {
			size_t kept = length < wanted ? length : wanted; /* may be the beginning of the answer */
			if (length > REPLY_BYTES / 2)
				memmove(reply, reply + length - kept, kept), length = kept;
			ssize_t got = recv(fd, reply + length, REPLY_BYTES - length, 0);
			if (got <= 0)
				return false;
			length += (size_t)got;
		}
	}
	return true;
}

static const char *play(char *steps, const char *path, uint64_t milliseconds, uid_t uid) {
	int fd = connect_inside(path, uid);
	if (fd < 0)
		return "failed: its socket does not answer";
	for (char *expected; (expected = strsep(&steps, "\n")) && *expected;) {
		char *request = strsep(&expected, "\t");
		if (!expected || !unescape(request) || !unescape(expected))
			return "failed: a step is not understood";
		if (!play_step(fd, request, expected, now_ms() + milliseconds))
			return "failed: the VMM did not answer as expected";
	}
	return "done";
}

static void rescue(char *script, uid_t uid) {
	char line[MESSAGE];
	char *head = strsep(&script, "\n"), *path = (strsep(&head, "\t"), strsep(&head, "\t"));
	uint64_t milliseconds = head ? strtoull(head, NULL, 10) : 0;
	if (!script || !path || *path != '/' || !milliseconds || milliseconds > 3600000) {
		say(CONNECTION, "failed: the script is not understood");
		return;
	}
	say(CONNECTION, "armed");
	if (recv(CONNECTION, line, sizeof(line), 0) == 4 && !memcmp(line, "done", 4)) {
		say(CONNECTION, "ok");
		return;
	}
	snprintf(line, sizeof(line), "cocoon-shim: whoever paused the VMM died; rescue %s\n", play(script, path, milliseconds, uid));
	say(WORDS, line);
}

static void answer(const char *word, const struct processes *all) {
	char line[MESSAGE];
	if (!strcmp(word, "status")) {
		snprintf(line, sizeof(line), "phase %s\nsupervisor %d\ninit %d %llu\nvmm %d %llu\n", all->phase, getppid(), all->init,
		         (unsigned long long)all->init_ticks, all->vmm, (unsigned long long)all->vmm_ticks);
		say(CONNECTION, line);
	} else if (!strcmp(word, "term") || !strcmp(word, "kill")) {
		say(CONNECTION, kill(all->init, *word == 't' ? SIGTERM : SIGINT) ? "failed: it has gone" : "ok");
	} else {
		say(CONNECTION, "failed: not understood");
	}
}

void control_accept(int listener, const struct processes *all) {
	static char text[SCRIPT_BYTES + 1]; /* touched in the child only */
	int connection = accept_root(listener);
	if (connection < 0 || fork()) {
		close(connection);
		return;
	}
	prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
	dup2(connection, CONNECTION);
	dup2(all->root, ROOT);
	dup2(all->errors, WORDS);
	syscall(SYS_close_range, LAST, ~0u, 0); /* the alive lock and the clients of the console are not its business */
	for (ssize_t got; (got = recv(CONNECTION, text, SCRIPT_BYTES, 0)) > 0;) {
		text[got] = 0;
		if (!strncmp(text, "rescue\t", 7)) {
			rescue(text, all->uid);
			break;
		}
		answer(text, all);
	}
	_exit(0);
}
