/* The supervisor: one poll loop between the terminal, the logs, the sockets and PID 1. It allocates nothing, grows with
 * nothing, and polls nothing that does not move. */
#include "shim.h"

#include <sched.h>
#include <sys/ioctl.h>
#include <sys/signalfd.h>
#include <termios.h>

#ifndef TIOCGPTPEER
#define TIOCGPTPEER 0x5441
#endif
enum { FLUSH_MS = 300 };
enum { SIGNALS, BIRTH, ENDING, TERMINAL, ERRORS, FIXED };

static struct {
	int fds[FIXED]; /* ours of what the loop waits for; -1 when it is over */
	int slave, run_directory, exit_directory, wait_status;
	char exit_name[256], message[MESSAGE];
	double started;
	bool running, failed, ended;
	struct log console, errors;
	struct processes processes;
} all;

static double wall_clock(void)
{
	struct timespec now;
	clock_gettime(CLOCK_REALTIME, &now);
	return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

/* Text as the inside of a JSON string; what is not plain ASCII becomes `?`. */
static void quote(char *out, size_t size, const char *text)
{
	size_t used = 0;
	for (; *text && used + 3 < size; text++) {
		if (*text == '"' || *text == '\\')
			out[used++] = '\\';
		out[used++] = *text < ' ' || *text > '~' ? '?' : *text;
	}
	out[used] = 0;
}

/* How it ended, readable once the alive lock is free. The first record, written at the start, says `lost`: it is what
 * remains when the supervisor itself is killed. */
static void record(const char *reason, int status, int number)
{
	char text[MESSAGE * 3], quoted[MESSAGE * 2], temporary[270];
	quote(quoted, sizeof(quoted), all.message);
	int length = snprintf(text, sizeof(text),
	                      "{\"reason\":\"%s\",\"status\":%d,\"signal\":%d,\"phase\":\"%s\",\"started\":%.3f,"
	                      "\"time\":%.3f,\"message\":\"%s\"}\n",
	                      reason, status, number, all.processes.phase, all.started, wall_clock(), quoted);
	snprintf(temporary, sizeof(temporary), "%s.new", all.exit_name);
	int fd = openat(all.exit_directory, temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
	bool good = fd >= 0 && write(fd, text, (size_t)length) == length && (!all.ended || fsync(fd) == 0);
	if (fd >= 0)
		close(fd);
	if (good && renameat(all.exit_directory, temporary, all.exit_directory, all.exit_name) == 0) {
		if (all.ended)
			fsync(all.exit_directory);
		return;
	}
	/* The disk is full: over the first record then, which has its block already. */
	unlinkat(all.exit_directory, temporary, 0);
	fd = openat(all.exit_directory, all.exit_name, O_WRONLY | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
	if (fd >= 0 && write(fd, text, (size_t)length) == length && ftruncate(fd, length) == 0)
		fsync(fd);
	if (fd >= 0)
		close(fd);
}

static _Noreturn void give_up(const char *what, const char *value)
{
	report("failed", "%s %s: %s", what, value, strerror(errno));
	_exit(1);
}

static int open_directory(const char *path)
{
	int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0)
		give_up("open", path);
	return fd;
}

/* A raw terminal: what the guest and the user say to each other is not for us to translate. */
static void open_terminal(void)
{
	struct termios raw;
	struct winsize size = {.ws_row = 24, .ws_col = 80};
	int unlock = 0, master = open("/dev/ptmx", O_RDWR | O_NOCTTY | O_CLOEXEC | O_NONBLOCK);
	if (master < 0 || ioctl(master, TIOCSPTLCK, &unlock) < 0)
		give_up("open", "/dev/ptmx");
	/* Not by a path: which devpts /dev/pts shows may differ. Kept open, so that the master never hangs up. */
	all.slave = ioctl(master, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC);
	if (all.slave < 0 || tcgetattr(all.slave, &raw) < 0)
		give_up("open", "the terminal");
	cfmakeraw(&raw);
	tcsetattr(all.slave, TCSANOW, &raw);
	ioctl(master, TIOCSWINSZ, &size);
	all.fds[TERMINAL] = master;
}

static void open_signals(void)
{
	sigset_t wanted;
	sigemptyset(&wanted);
	sigaddset(&wanted, SIGCHLD);
	sigaddset(&wanted, SIGTERM);
	sigaddset(&wanted, SIGINT);
	all.fds[SIGNALS] = signalfd(-1, &wanted, SFD_CLOEXEC | SFD_NONBLOCK);
	if (all.fds[SIGNALS] < 0)
		give_up("open", "signalfd");
}

/* Everything of the host's side, before there is a capsule. */
static void prepare(const struct spec *spec)
{
	int run = all.run_directory = open_directory(spec->run_dir), logs = open_directory(spec->log_dir);
	char *slash = strrchr(spec->exit_record, '/');
	snprintf(all.exit_name, sizeof(all.exit_name), "%s", slash + 1);
	*slash = 0;
	all.exit_directory = open_directory(*spec->exit_record ? spec->exit_record : "/");
	log_open(&all.console, logs, "console.log", spec->log_limit);
	log_open(&all.errors, logs, "vmm.log", spec->log_limit);
	open_terminal();
	open_signals();
	all.processes.phase = "building";
	all.processes.uid = (uid_t)spec->uid;
	snprintf(all.message, sizeof(all.message), "the supervisor was killed");
	record("lost", 0, 0);
	console_listen(run, all.fds[TERMINAL], &all.console);
	control_listen(run, &all.processes);
}

/* Starts PID 1; the raw system call, because only clone(2) makes the child alone the first of a PID namespace. */
static void start_init(struct spec *spec)
{
	int birth[2], ending[2], errors[2], yes = 1;
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, birth) < 0 || pipe2(ending, O_CLOEXEC) < 0 ||
	    pipe2(errors, O_CLOEXEC) < 0 || setsockopt(birth[0], SOL_SOCKET, SO_PASSCRED, &yes, sizeof(yes)) < 0)
		give_up("make", "pipes");
	struct cords cords = {birth[1], ending[1], all.slave, errors[1]};
	bool own_pids = true;
	pid_t child = (pid_t)syscall(SYS_clone, CLONE_NEWPID | SIGCHLD, 0, 0, 0, 0);
	if (child < 0 && spec->insecure) {
		own_pids = false;
		child = fork();
	}
	if (child < 0)
		give_up("start", "a PID namespace");
	if (child == 0)
		capsule_main(spec, &cords, own_pids);
	close(birth[1]);
	close(ending[1]);
	fcntl(errors[0], F_SETFL, O_NONBLOCK);
	all.fds[BIRTH] = birth[0];
	all.fds[ENDING] = ending[0];
	all.fds[ERRORS] = errors[0];
	all.processes.errors = errors[1]; /* ours too: the pipe never ends before we do */
	all.processes.init = child;
	char path[64];
	snprintf(path, sizeof(path), "/proc/%d/stat", child);
	all.processes.init_ticks = start_ticks(AT_FDCWD, path);
}

static void note_vmm(pid_t pid)
{
	char path[64];
	all.processes.vmm = pid;
	snprintf(path, sizeof(path), "/proc/%d/stat", pid);
	all.processes.vmm_ticks = start_ticks(AT_FDCWD, path);
	snprintf(path, sizeof(path), "/proc/%d/root", all.processes.init);
	all.processes.root = open(path, O_PATH | O_DIRECTORY | O_CLOEXEC);
	send(all.fds[BIRTH], "g", 1, MSG_NOSIGNAL);
}

/* What PID 1 and the unborn VMM say; the end of it means that the VMM is executed, or that nothing came of it. */
static void hear_birth(void)
{
	char text[MESSAGE + 1];
	union { struct cmsghdr header; char room[CMSG_SPACE(sizeof(struct ucred))]; } control;
	struct iovec into = {text, MESSAGE};
	struct msghdr message = {.msg_iov = &into, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control)};
	ssize_t got = recvmsg(all.fds[BIRTH], &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
	if (got < 0 && errno == EAGAIN)
		return;
	text[got > 0 ? got : 0] = 0;
	if (got > 0 && *text == 'v') {
		struct ucred sender = {0};
		struct cmsghdr *header = CMSG_FIRSTHDR(&message);
		if (header && header->cmsg_type == SCM_CREDENTIALS)
			memcpy(&sender, CMSG_DATA(header), sizeof(sender));
		note_vmm(sender.pid);
	} else if (got > 0 && *text == 'f') {
		all.failed = true;
		snprintf(all.message, sizeof(all.message), "%s", text + 1);
	} else if (got > 0) {
		report(*text == 'u' ? "unprotected" : "warning", "%s", text + 1);
	} else {
		close(all.fds[BIRTH]);
		all.fds[BIRTH] = -1;
		if (all.failed || !all.processes.vmm)
			return;
		all.running = true;
		all.started = wall_clock();
		all.processes.phase = "running";
		record("lost", 0, 0);
		report("started", "%d %llu %d %llu", all.processes.init, (unsigned long long)all.processes.init_ticks,
		       all.processes.vmm, (unsigned long long)all.processes.vmm_ticks);
		close(FD_REPORT);
	}
}

/* The VMM's wait status, or the end of PID 1 without one. */
static void hear_ending(void)
{
	if (read(all.fds[ENDING], &all.wait_status, sizeof(all.wait_status)) != sizeof(all.wait_status))
		all.wait_status = -1;
	close(all.fds[ENDING]);
	all.fds[ENDING] = -1;
}

static void hear_signals(void)
{
	struct signalfd_siginfo about;
	while (read(all.fds[SIGNALS], &about, sizeof(about)) == sizeof(about)) {
		if (about.ssi_signo != SIGCHLD) {
			kill(all.processes.init, SIGTERM);
			continue;
		}
		/* PID 1 is reaped last of all: until then nobody else can have its pid. */
		siginfo_t gone = {0};
		while (waitid(P_ALL, 0, &gone, WEXITED | WNOHANG | WNOWAIT) == 0 && gone.si_pid) {
			all.ended |= gone.si_pid == all.processes.init;
			if (gone.si_pid == all.processes.init)
				break;
			waitpid(gone.si_pid, NULL, 0);
			gone.si_pid = 0;
		}
	}
}

/* Copies what is there into a log; false when there is no more. */
static bool relay(int fd, struct log *log, void (*write_log)(struct log *, const char *, size_t))
{
	char data[4096];
	ssize_t got = read(fd, data, sizeof(data));
	if (got > 0)
		write_log(log, data, (size_t)got);
	return got > 0;
}

static void drain(int fd, struct log *log, void (*write_log)(struct log *, const char *, size_t))
{
	for (int i = 0; i < 4096 && relay(fd, log, write_log); i++)
		;
}

/* Records the end; what the clients of the console have not read yet is given to them before we leave. */
static _Noreturn void finish(void)
{

	int status = all.wait_status, code = 1;
	if (all.fds[BIRTH] >= 0)
		for (int i = 0; i < 64 && all.fds[BIRTH] >= 0; i++)
			hear_birth();
	close(all.slave);
	drain(all.fds[TERMINAL], &all.console, log_write);
	drain(all.fds[ERRORS], &all.errors, log_write_limited);
	if (!all.failed)
		*all.message = 0;
	if (all.failed) {
		record("failed", 0, 0);
	} else if (status == -1) {
		snprintf(all.message, sizeof(all.message), "PID 1 of the capsule was killed");
		record("killed", 0, SIGKILL);
	} else if (WIFSIGNALED(status)) {
		record("signaled", 0, WTERMSIG(status));
		code = 128 + WTERMSIG(status);
	} else {
		record("exited", WEXITSTATUS(status), 0);
		code = WEXITSTATUS(status);
	}
	if (!all.running)
		report("failed", "%s", *all.message ? all.message : "the VMM ended before it began");
	unlinkat(all.run_directory, "console.sock", 0);
	unlinkat(all.run_directory, "shim.sock", 0);
	console_flush(FLUSH_MS);
	_exit(code);
}

/* Runs until PID 1, and with it the VMM, has ended. */
_Noreturn void supervise(struct spec *spec)
{
	struct pollfd fds[FIXED + 1 + CLIENTS + 1 + CONTROLS];
	prepare(spec);
	start_init(spec);
	spec_free(spec);
	close(FD_SPEC);
	close(FD_GO);
	while (!all.ended) {
		for (int i = 0; i < FIXED; i++)
			fds[i] = (struct pollfd){all.fds[i], POLLIN, 0};
		fds[TERMINAL].events |= console_wants();
		size_t count = FIXED;
		count += console_poll(fds + count);
		count += control_poll(fds + count);
		if (poll(fds, count, -1) < 0)
			continue;
		if (fds[BIRTH].revents)
			hear_birth();
		if (fds[ENDING].revents)
			hear_ending();
		if (fds[TERMINAL].revents & POLLIN)
			relay(all.fds[TERMINAL], &all.console, log_write);
		if (fds[TERMINAL].revents & POLLOUT)
			console_push();
		if (fds[ERRORS].revents)
			relay(all.fds[ERRORS], &all.errors, log_write_limited);
		console_serve(fds + FIXED);
		control_serve(fds + FIXED + 1 + CLIENTS);
		if (fds[SIGNALS].revents)
			hear_signals();
	}
	finish();
}
