/* cocoon-shim: what its parts share.
 *   caller ── order, go pipe, report pipe, alive lock ──► supervisor: console, logs, exit record
 *                                                           │ birth: words and pids     ▲ wait status
 *                                                           ▼                           │
 *                                                        PID 1 of the capsule ──► VMM (own uid, no capabilities)
 *
 * Whoever dies takes along what is below: PID 1 has a parent-death signal, and the kernel ends a PID namespace with its
 * first process. Both of ours hold the alive lock; the VMM never does. */
#ifndef COCOON_SHIM_H
#define COCOON_SHIM_H
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { FD_SPEC = 3, FD_GO, FD_REPORT, FD_LOCK, FD_FIRST_FREE, MESSAGE = 512, CLIENTS = 16, FIFOS = 2, CONSOLE_FDS = CLIENTS + 2 };
#ifndef COCOON_TEST /* whose failpoint() sleeps where COCOON_SHIM_FAILPOINT says so */
#define failpoint(name) ((void)0)
#endif
void (failpoint)(const char *name);

/* spec.c: the order. Every value is one word of 64 bits; each list ends with zeros. */
struct bind { uint64_t writable; char *host, *inner; };
struct device { char *inner; uint64_t major, minor; };
struct fifo { char *name, *log; uint64_t limit; };
struct spec {
	char *vm, *netns, *run_dir, *log_dir, *exit_record;
	uint64_t uid, gid, log_limit, kill_after_ms, memlock, open_files, insecure, foreground;
	struct bind binds[513];
	struct device devices[65];
	struct fifo fifos[FIFOS + 1];
	char *cgroups[33], *arguments[1537], *environment[129];
	char text[512 * 1024]; /* what is never touched costs nothing */
};
struct spec *spec_read(int fd, char error[MESSAGE]);
bool spec_parse(struct spec *spec, size_t length, char error[MESSAGE]);

/* capsule.c: PID 1, and what attach needs of it. */
struct cords { int birth, terminal, errors, *wait_status; };
_Noreturn void capsule_main(struct spec *spec, const struct cords *cords);
int attach_main(char **words);

/* log.c: a stream of bytes kept as two segments; a position is a count of bytes since this shim began. */
struct segment { int fd; bool memory; uint64_t base, start, size, limit; }; /* position, file offset, bytes, most */
struct log { const char *name; int directory; uint64_t limit, end; struct segment now, before; };
void log_open(struct log *log, int directory, const char *name, uint64_t limit);
void log_write(struct log *log, const char *data, size_t length);
ssize_t log_read(const struct log *log, uint64_t *position, char *data, size_t length);

/* console.c: clients of the console socket; `fds` has CONSOLE_FDS entries. */
void console_listen(int directory, int terminal, struct log *log);
bool console_poll(struct pollfd *fds, bool ending);
void console_serve(const struct pollfd *fds);

/* control.c: the engine's socket. `root` is the capsule's; `errors` is where a rescuer says how it went. */
struct processes { pid_t init, vmm; uint64_t init_ticks, vmm_ticks; const char *phase; int root, errors; uid_t uid; };
void control_accept(int listener, const struct processes *processes);

_Noreturn void supervise(struct spec *spec); /* supervisor.c; the rest is main.c's */
extern int report_fd;
void report(const char *kind, const char *format, ...) __attribute__((format(printf, 2, 3)));
int check(long result, const char *what, const char *value);
void say(int fd, const char *text);
uint64_t now_ms(void);
uint64_t start_ticks(pid_t pid);
int listen_at(int directory, const char *name, int type);
int accept_root(int listener);
#endif
