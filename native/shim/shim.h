/* cocoon-shim: what its parts share.
 *
 *   caller ── spec, go pipe, report pipe, alive lock ──► supervisor (host side: console, logs, exit record)
 *                                                           │ birth: words and pids     ▲ ending: wait status
 *                                                           ▼                           │
 *                                                        PID 1 of the capsule ──► VMM (own uid, no capabilities)
 *
 * Whoever dies takes what is below along: PID 1 has a parent-death signal, and the kernel ends a PID namespace with
 * its first process. Both of ours hold the alive lock; the VMM never does.
 */
#ifndef COCOON_SHIM_H
#define COCOON_SHIM_H

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define SPEC_FORMAT 1
#define MESSAGE 512 /* the longest line of words that we say */

enum { FD_SPEC = 3, FD_GO = 4, FD_REPORT = 5, FD_LOCK = 6, FD_FIRST_FREE = 7 };

#ifdef COCOON_TEST
void failpoint(const char *name); /* main.c: sleeps there when COCOON_SHIM_FAILPOINT says so */
#else
#define failpoint(name) ((void)0)
#endif

/* spec.c: the order, as host/capsule.py writes it. All strings point into the one mapping. */
struct bind {
	char *host, *inner;
	bool writable;
};
struct device {
	char *inner;
	uint64_t major, minor;
};
struct spec {
	char *vm, *netns, *run_dir, *log_dir, *exit_record;
	uint64_t format, uid, gid, log_limit, kill_after_ms, memlock, open_files, insecure, foreground;
	struct bind binds[512];
	struct device devices[64];
	char *cgroups[32], *arguments[512], *environment[128];
	size_t bind_count, device_count, cgroup_count, argument_count, environment_count;
	char text[512 * 1024]; /* never touched pages cost nothing */
};
struct spec *spec_read(int fd, char error[MESSAGE]);
void spec_free(struct spec *spec);
bool spec_parse(struct spec *spec, size_t length, char error[MESSAGE]);
bool unescape(char *text);

/* capsule.c: PID 1. `birth` carries its words, `ending` the VMM's wait status. */
struct cords {
	int birth, ending, terminal, errors;
};
_Noreturn void capsule_main(struct spec *spec, const struct cords *cords, bool own_pids);
int make_target(int root, const char *inner, bool directory);
const char *attach_bind(int tree, int target, bool writable);

/* log.c: a stream of bytes kept as two segments; a position is a count of bytes since this shim began. */
struct segment {
	int fd;
	uint64_t base, start, size, limit; /* stream position and file offset of the first byte; bytes; most bytes */
};
struct log {
	const char *name;
	int directory;
	uint64_t limit, end;
	struct segment now, before;
	uint64_t window_ms, window_bytes, dropped; /* rate limit */
};
void log_open(struct log *log, int directory, const char *name, uint64_t limit);
void log_write(struct log *log, const char *data, size_t length);
void log_write_limited(struct log *log, const char *data, size_t length);
ssize_t log_read(const struct log *log, uint64_t *position, char *data, size_t length);
uint64_t log_oldest(const struct log *log);

/* console.c: clients of the console socket. */
#define CLIENTS 16
#define BACKLOG_BYTES 65536
void console_listen(int directory, int terminal, struct log *log);
size_t console_poll(struct pollfd *fds);
void console_serve(const struct pollfd *fds);
void console_flush(uint64_t milliseconds);
int console_clients(void);
short console_wants(void);
void console_push(void);

/* control.c: the engine's socket, and the rescue of a paused guest. */
#define CONTROLS 4
struct processes {
	pid_t init, vmm;
	uint64_t init_ticks, vmm_ticks;
	const char *phase;
	int root, errors; /* the capsule's root; where a rescuer says how it went */
	uid_t uid;
};
void control_listen(int directory, const struct processes *processes);
size_t control_poll(struct pollfd *fds);
void control_serve(const struct pollfd *fds);

/* main.c, supervisor.c, attach.c */
_Noreturn void supervise(struct spec *spec);
int attach_main(int count, char **words);
void report(const char *kind, const char *format, ...) __attribute__((format(printf, 2, 3)));
void say(int fd, const char *text);
uint64_t now_ms(void);
uint64_t start_ticks(int directory, const char *path);
int listen_at(int directory, const char *name, int type);
int accept_root(int listener);
int close_from(unsigned first, unsigned flags);

#endif
