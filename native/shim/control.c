/* The engine's socket, one word a packet: `status`, `term`, `kill`, and `rescue` with a script. Each connection is a
 * child's, so that the supervisor never waits for one. A rescue is armed before a guest is paused: when its connection
 * ends without `done`, whoever paused the guest has died, and the child plays the script against a socket of the VMM.
 * Its words end with a NUL: `rescue`, the socket's name in the capsule, milliseconds for each step, then per step a
 * request and what the answer must contain. */
#include "shim.h"

enum { CONNECTION = 3, ROOT, WORDS, LAST, SCRIPT_BYTES = 8192 };

/* A socket of the VMM, by its name in the capsule. The directory is the VMM's: no symlink is followed, and the peer must
 * be of its uid, so that it cannot send us to somebody else. */
static int connect_inside(const char *inner, uid_t uid) {
	const struct { uint64_t flags, mode, resolve; } how = {O_PATH | O_CLOEXEC, 0, 0x04 | 0x10}; /* no symlinks, in root */
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	struct ucred peer;
	socklen_t size = sizeof(peer);
	int found = (int)syscall(SYS_openat2, ROOT, inner, &how, sizeof(how)), fd = socket(AF_UNIX, SOCK_STREAM, 0);
	snprintf(address.sun_path, sizeof(address.sun_path), "/proc/self/fd/%d", found);
	if (found < 0 || connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0 ||
	    getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) < 0 || peer.uid != uid)
		return -1;
	return fd;
}

/* Sends `request` and reads until the answer contains `expected`. */
static bool play_step(int fd, const char *request, const char *expected, uint64_t deadline) {
	char reply[SCRIPT_BYTES];
	size_t length = 0, wanted = strlen(expected), kept;
	if (*request && send(fd, request, strlen(request), 0) != (ssize_t)strlen(request)) return false;
	do {
		kept = length < wanted ? length : wanted; /* may be the beginning of the answer */
		memmove(reply, reply + length - kept, kept);
		ssize_t got = recv(fd, reply + kept, sizeof(reply) - kept, 0);
		if (got <= 0 || now_ms() > deadline) return false;
		length = kept + (size_t)got;
	} while (!memmem(reply, length, expected, wanted));
	return true;
}

static const char *play(const char *path, const char *step, const char *last, uint64_t milliseconds, uid_t uid) {
	struct timeval most = {(time_t)(milliseconds / 1000), (suseconds_t)(milliseconds % 1000 * 1000)};
	int fd = connect_inside(path, uid);
	if (setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &most, sizeof(most)) < 0 ||
	    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &most, sizeof(most)) < 0)
		return "failed: its socket does not answer";
	for (const char *expected; step < last; step = expected + strlen(expected) + 1) {
		expected = step + strlen(step) + 1;
		if (expected >= last || !play_step(fd, step, expected, now_ms() + milliseconds))
			return "failed: the VMM did not answer as expected";
	}
	return "done";
}

static void rescue(const char *path, const char *last, uid_t uid) {
	char line[MESSAGE];
	const char *number = path + strlen(path) + 1, *steps = number + (number < last ? strlen(number) + 1 : 0);
	uint64_t milliseconds = number < last ? strtoull(number, NULL, 10) : 0;
	if (*path != '/' || !milliseconds || milliseconds > 3600000 || steps >= last) {
		say(CONNECTION, "failed: the script is not understood");
		return;
	}
	say(CONNECTION, "armed");
	if (recv(CONNECTION, line, sizeof(line), 0) == 4 && !memcmp(line, "done", 4)) {
		say(CONNECTION, "ok");
		return;
	}
	snprintf(line, sizeof(line), "cocoon-shim: whoever paused the VMM died; rescue %s\n",
	         play(path, steps, last, milliseconds, uid));
	say(WORDS, line);
}

static void answer(const char *word, const struct processes *all) {
	char line[MESSAGE] = "failed: not understood";
	if (!strcmp(word, "status"))
		snprintf(line, sizeof(line), "phase %s\nsupervisor %d\ninit %d %llu\nvmm %d %llu\n", all->phase, getppid(), all->init,
		         (unsigned long long)all->init_ticks, all->vmm, (unsigned long long)all->vmm_ticks);
	else if (!strcmp(word, "term") || !strcmp(word, "kill"))
		strcpy(line, kill(all->init, *word == 't' ? SIGTERM : SIGINT) ? "failed: it has gone" : "ok");
	say(CONNECTION, line);
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
		if (got > 7 && !strcmp(text, "rescue")) {
			rescue(text + 7, text + got, all->uid);
			break;
		}
		answer(text, all);
	}
	_exit(0);
}
