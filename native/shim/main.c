/* cocoon-shim: one static program beside each VMM.
 *   cocoon-shim run      order on fd 3, go pipe on 4, report pipe on 5, alive lock (flock held) on 6; see shim.h
 *   cocoon-shim attach   puts a file of the host into a running capsule; see capsule.c
 * Lines on the report pipe, until it is closed:
 *   supervisor PID TICKS | warning TEXT | unprotected NAME<TAB>TEXT | started PID TICKS PID TICKS | failed TEXT */
#include "shim.h"
#include <sys/file.h>

uint64_t now_ms(void) {
	struct timespec now;
	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

/* Says `text` to a pipe or a socket; that nobody listens any more is no concern of ours. */
void say(int fd, const char *text) {
	(void)!write(fd, text, strlen(text));
}

int report_fd = FD_REPORT; /* in PID 1, the birth */

/* One line `kind words`, in one piece. */
void report(const char *kind, const char *format, ...) {
	char line[MESSAGE];
	va_list values;
	size_t used = (size_t)snprintf(line, sizeof(line), "%s ", kind);
	va_start(values, format);
	vsnprintf(line + used, sizeof(line) - used - 1, format, values);
	va_end(values);
	say(report_fd, strcat(line, "\n"));
}

/* `result`, unless it is negative: then nothing comes of this VM. */
int check(long result, const char *what, const char *value) {
	if (result >= 0) return (int)result;
	report("failed", "%s %s: %s", what, value, strerror(errno));
	_exit(1);
}

/* Field 22 of a process's `stat`; 0 when it has gone. Its second field is a name in parentheses that may hold any. */
uint64_t start_ticks(pid_t pid) {
	char text[1024];
	snprintf(text, sizeof(text), "/proc/%d/stat", pid);
	int fd = open(text, O_RDONLY | O_CLOEXEC);
	ssize_t got = read(fd, text, sizeof(text) - 1);
	close(fd);
	text[got > 0 ? got : 0] = 0;
	char *at = strrchr(text, ')');
	for (int field = 2; at && field < 22; field++)
		at = strchr(at + 1, ' ');
	return at ? strtoull(at, NULL, 10) : 0;
}

/* A listening socket of root's alone, or -1; its path may be longer than the 108 bytes of an address. */
int listen_at(int directory, const char *name, int type) {
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	snprintf(address.sun_path, sizeof(address.sun_path), "/proc/self/fd/%d/%s", directory, name);
	unlinkat(directory, name, 0); /* of a shim that was killed: we hold the alive lock, so it is nobody's */
	if (bind(fd, (struct sockaddr *)&address, sizeof(address)) == 0 && listen(fd, 16) == 0) return fd;
	report("warning", "no %s: %s", name, strerror(errno));
	close(fd);
	return -1;
}

/* The next connection, if it is of our own user; -1 otherwise. */
int accept_root(int listener) {
	struct ucred peer;
	socklen_t size = sizeof(peer);
	int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
	if (fd >= 0 && getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) == 0 && peer.uid == geteuid())
		return fd;
	close(fd);
	return -1;
}

/* A session of its own, so that the VM survives the end of the login that started it; in the foreground the caller stays
 * the parent, and its death means SIGTERM. */
static void leave_caller(bool foreground) {
	if (!foreground && fork()) _exit(0);
	setsid();
	if (foreground)
		prctl(PR_SET_PDEATHSIG, SIGTERM, 0, 0, 0);
	else if (fork())
		_exit(0); /* not a session's leader either: it can never get a controlling terminal */
}

/* Signals, descriptors, directory and mask as we need them, whatever the caller had. */
static void settle(void) {
	sigset_t every;
	int nowhere = open("/dev/null", O_RDWR);
	for (int fd = 0; fd <= FD_LOCK; fd++)
		fd < FD_SPEC ? dup2(nowhere, fd) : fcntl(fd, F_SETFD, FD_CLOEXEC);
	syscall(SYS_close_range, FD_FIRST_FREE, ~0u, 0);
	for (int number = 1; number < 65; number++)
		signal(number, number == SIGPIPE ? SIG_IGN : SIG_DFL);
	sigfillset(&every);
	sigprocmask(SIG_SETMASK, &every, NULL);
	umask(077);
	check(chdir("/"), "enter", "/");
}

/* While nothing has happened yet: whatever comes later descends from us. */
static void join_cgroups(const struct spec *spec) {
	char path[4200];
	for (char *const *group = spec->cgroups; *group; group++) {
		snprintf(path, sizeof(path), "%s/cgroup.procs", *group);
		int fd = open(path, O_WRONLY | O_CLOEXEC);
		if (write(fd, "0", 1) != 1) report("unprotected", "cgroup\tjoin %s: %s", *group, strerror(errno));
		close(fd);
	}
}

static int run(void) {
	char error[MESSAGE], go;
	settle();
	struct spec *spec = spec_read(FD_SPEC, error);
	if (!spec || flock(FD_LOCK, LOCK_EX | LOCK_NB) < 0) {
		report("failed", "%s", spec ? "the alive lock is not ours" : error);
		return 2;
	}
	leave_caller(spec->foreground);
	join_cgroups(spec);
	report("supervisor", "%d %llu", getpid(), (unsigned long long)start_ticks(getpid()));
	failpoint("waiting");
	if (read(FD_GO, &go, 1) != 1) return 0; /* the caller died before its row was committed: nothing has happened */
	supervise(spec);
}

int main(int count, char **words) {
	if (count == 2 && !strcmp(words[1], "run")) return run();
	if (count == 7 && !strcmp(words[1], "attach")) return attach_main(words + 2);
	bool version = count == 2 && !strcmp(words[1], "version");
	say(version ? 1 : 2, version ? "cocoon-shim 1\n" : "usage: cocoon-shim run | attach PID TICKS HOST INNER 0|1 | version\n");
	return version ? 0 : 2;
}
