/* The supervisor: one poll loop between the terminal, the logs, the sockets and PID 1. It grows with nothing, and wakes up
 * for nothing that does not move. */
#include "shim.h"

#include <sys/ioctl.h>
#include <sys/signalfd.h>
#include <termios.h>

#ifndef TIOCGPTPEER
#define TIOCGPTPEER 0x5441
#endif
enum { SIGNALS, BIRTH, ENDING, TERMINAL, ERRORS, CONTROL, FIXED, FLUSH_MS = 300, RECORD_BYTES = 1024 };

static struct {
	int fds[FIXED]; /* what the loop waits for; -1 when it is over */
	int slave, run_directory, record, wait_status;
	char message[MESSAGE];
	double started;
	bool failed, ended;
	struct log console, errors;
	struct processes processes;
} all;

/* How it ended, to be read once the alive lock is free. Always the same bytes of the same file, so that a full disk
 * cannot prevent it. The first record says `lost`: it is what remains when the supervisor itself is killed. */
static void record(const char *reason, int status, int number) {
	char text[RECORD_BYTES];
	struct timespec now;
	clock_gettime(CLOCK_REALTIME, &now);
	for (char *at = all.message; *at; at++)
		if (*at < ' ' || *at > '~' || *at == '"' || *at == '\\')
			*at = '\''; /* it becomes a string of JSON */
	memset(text, ' ', sizeof(text));
	int length = snprintf(text, sizeof(text), "{\"reason\":\"%s\",\"status\":%d,\"signal\":%d,\"phase\":\"%s\","
	                      "\"started\":%.3f,\"time\":%.3f,\"message\":\"%s\"}", reason, status, number, all.processes.phase,
	                      all.started, (double)now.tv_sec + (double)now.tv_nsec / 1e9, all.message);
	text[length] = ' ';
	text[sizeof(text) - 1] = '\n';
	if (pwrite(all.record, text, sizeof(text), 0) == sizeof(text) && all.ended)
		fsync(all.record);
}

static int require(int result, const char *what) {
	if (result < 0) {
		report("failed", "%s: %s", what, strerror(errno));
		_exit(1);
	}
	return result;
}

/* A raw terminal: what the guest and the user say to each other is not for us to translate. */
static int open_terminal(void) {
	struct termios raw;
	struct winsize size = {.ws_row = 24, .ws_col = 80};
	int unlocked = 0, master = require(open("/dev/ptmx", O_RDWR | O_NOCTTY | O_CLOEXEC | O_NONBLOCK), "/dev/ptmx");
	require(ioctl(master, TIOCSPTLCK, &unlocked), "unlock the terminal");
	/* Not by a path, since /dev/pts may show another instance. Kept open, so that the master never hangs up. */
	all.slave = require(ioctl(master, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC), "open the terminal");
	require(tcgetattr(all.slave, &raw), "terminal");
	cfmakeraw(&raw);
	tcsetattr(all.slave, TCSANOW, &raw);
	ioctl(master, TIOCSWINSZ, &size);
	return master;
}

/* Everything on the host's side, before there is a capsule. */
static void prepare(const struct spec *spec) {
	int logs = require(open(spec->log_dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC), spec->log_dir);
	sigset_t wanted;
	all.run_directory = require(open(spec->run_dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC), spec->run_dir);
	all.record = require(open(spec->exit_record, O_WRONLY | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0600),
	                     spec->exit_record);
	all.processes.phase = "building";
	all.processes.uid = (uid_t)spec->uid;
	strcpy(all.message, "the supervisor was killed");
	record("lost", 0, 0);
	log_open(&all.console, logs, "console.log", spec->log_limit);
	log_open(&all.errors, logs, "vmm.log", spec->log_limit);
	all.fds[TERMINAL] = open_terminal();
	sigemptyset(&wanted);
	sigaddset(&wanted, SIGCHLD);
	sigaddset(&wanted, SIGTERM);
	all.fds[SIGNALS] = require(signalfd(-1, &wanted, SFD_CLOEXEC | SFD_NONBLOCK), "signalfd");
	console_listen(all.run_directory, all.fds[TERMINAL], &all.console);
	all.fds[CONTROL] = listen_at(all.run_directory, "shim.sock", SOCK_SEQPACKET);
	if (all.fds[CONTROL] < 0)
		report("warning", "no control socket: %s", strerror(errno));
}

static uint64_t ticks_of(pid_t pid) {
	char path[32];
	snprintf(path, sizeof(path), "/proc/%d/stat", pid);
	return start_ticks(AT_FDCWD, path);
}

/* The raw system call, because of clone(2)'s flags only this makes the child, and nothing else of ours, the first of a PID
 * namespace. */
static void start_init(struct spec *spec) {
	int birth[2], ending[2], errors[2], yes = 1;
	require(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, birth), "socketpair");
	require(setsockopt(birth[0], SOL_SOCKET, SO_PASSCRED, &yes, sizeof(yes)), "SO_PASSCRED");
	require(pipe2(ending, O_CLOEXEC), "pipe");
	require(pipe2(errors, O_CLOEXEC), "pipe");
	const struct cords cords = {birth[1], ending[1], all.slave, errors[1]};
	pid_t child = (pid_t)syscall(SYS_clone, CLONE_NEWPID | SIGCHLD, 0, 0, 0, 0);
	bool own_pids = child >= 0 || !spec->insecure;
	if (!own_pids)
		child = fork();
	if (require(child, "new PID namespace") == 0)
		capsule_main(spec, &cords, own_pids);
	close(birth[1]);
	close(ending[1]);
	fcntl(errors[0], F_SETFL, O_NONBLOCK);
	all.fds[BIRTH] = birth[0];
	all.fds[ENDING] = ending[0];
	all.fds[ERRORS] = errors[0];
	all.processes.errors = errors[1]; /* ours as well: the pipe does not end before we do */
	all.processes.init = child;
	all.processes.init_ticks = ticks_of(child);
}

/* The VMM-to-be waits until we know it. */
static void note_vmm(pid_t pid) {
	char path[32];
	snprintf(path, sizeof(path), "/proc/%d/root", all.processes.init);
	all.processes.root = open(path, O_PATH | O_DIRECTORY | O_CLOEXEC);
	all.processes.vmm = pid;
	all.processes.vmm_ticks = ticks_of(pid);
	say(all.fds[BIRTH], "g");
}

/* The end of the birth: the VMM is executed, or nothing came of it. */
static void end_birth(void) {
	struct processes *now = &all.processes;
	struct timespec time;
	close(all.fds[BIRTH]);
	all.fds[BIRTH] = -1;
	if (all.failed || !now->vmm)
		return;
	clock_gettime(CLOCK_REALTIME, &time);
	all.started = (double)time.tv_sec + (double)time.tv_nsec / 1e9;
	now->phase = "running";
	record("lost", 0, 0);
	report("started", "%d %llu %d %llu", now->init, (unsigned long long)now->init_ticks, now->vmm,
	       (unsigned long long)now->vmm_ticks);
	dup2(0, FD_REPORT);
}

/* What PID 1 and the unborn VMM say; false when there is no more for now. */
static bool hear_birth(void) {
	char text[MESSAGE + 1];
	union { struct cmsghdr header; char room[CMSG_SPACE(sizeof(struct ucred))]; } control;
	struct iovec into = {text, MESSAGE};
	struct msghdr message = {.msg_iov = &into, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control)};
	ssize_t got = all.fds[BIRTH] < 0 ? 0 : recvmsg(all.fds[BIRTH], &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
	if (got <= 0) {
		if (all.fds[BIRTH] >= 0 && (got == 0 || errno != EAGAIN))
			end_birth();
		return false;
	}
	text[got] = 0;
	if (*text == 'v' && CMSG_FIRSTHDR(&message)) {
		struct ucred sender;
		memcpy(&sender, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof(sender));
		note_vmm(sender.pid);
	} else if (*text == 'f') {
		all.failed = true;
		strcpy(all.message, text + 1);
	} else {
		report(*text == 'u' ? "unprotected" : "warning", "%s", text + 1);
	}
	return true;
}

/* The VMM's wait status, or the end of PID 1 without one. */
static void hear_ending(void) {
	if (read(all.fds[ENDING], &all.wait_status, sizeof(all.wait_status)) != sizeof(all.wait_status))
		all.wait_status = -1;
	close(all.fds[ENDING]);
	all.fds[ENDING] = -1;
}

static void hear_signals(void) {
	struct signalfd_siginfo about;
	while (read(all.fds[SIGNALS], &about, sizeof(about)) == sizeof(about))
		if (about.ssi_signo == SIGTERM)
			kill(all.processes.init, SIGTERM);
	for (pid_t gone; (gone = waitpid(-1, NULL, WNOHANG)) > 0;)
		all.ended |= gone == all.processes.init;
}

/* Copies what is there into a log; false when there is no more. */
static bool relay(int fd, struct log *log, log_writer *write_log) {
	char data[4096];
	ssize_t got = read(fd, data, sizeof(data));
	if (got > 0)
		write_log(log, data, (size_t)got);
	return got > 0;
}

/* PID 1 is gone, and everything in the capsule with it. Records the end; what the clients of the console have not read
 * yet is given to them before we leave. */
static _Noreturn void finish(void) {
	int status = all.wait_status, code = 1;
	while (hear_birth() || relay(all.fds[TERMINAL], &all.console, log_write) ||
	       relay(all.fds[ERRORS], &all.errors, log_write_limited))
		;
	if (all.fds[ENDING] >= 0)
		hear_ending();
	if (!all.failed)
		strcpy(all.message, status == -1 ? "PID 1 of the capsule was killed" : "");
	if (all.failed)
		record("failed", 0, 0);
	else if (status == -1)
		record("killed", 0, SIGKILL);
	else if (WIFSIGNALED(status))
		record("signaled", 0, WTERMSIG(status)), code = 128 + WTERMSIG(status);
	else
		record("exited", WEXITSTATUS(status), 0), code = WEXITSTATUS(status);
	report("failed", "%s", *all.message ? all.message : "the VMM ended before it began"); /* no one hears it once started */
	unlinkat(all.run_directory, "console.sock", 0);
	unlinkat(all.run_directory, "shim.sock", 0);
	console_flush(FLUSH_MS);
	_exit(code);
}

/* Runs until PID 1, and with it the VMM, has ended. */
_Noreturn void supervise(struct spec *spec) {
	struct pollfd fds[FIXED + CONSOLE_FDS];
	prepare(spec);
	start_init(spec);
	free(spec);
	dup2(0, FD_SPEC); /* to nowhere: these numbers stay taken, a child of ours counts on it */
	dup2(0, FD_GO);
	while (!all.ended) {
		for (int i = 0; i < FIXED; i++)
			fds[i] = (struct pollfd){all.fds[i], POLLIN, 0};
		console_poll(fds + FIXED);
		if (poll(fds, FIXED + CONSOLE_FDS, -1) < 0)
			continue;
		if (fds[BIRTH].revents)
			hear_birth();
		if (fds[ENDING].revents)
			hear_ending();
		if (fds[TERMINAL].revents)
			relay(all.fds[TERMINAL], &all.console, log_write);
		if (fds[ERRORS].revents)
			relay(all.fds[ERRORS], &all.errors, log_write_limited);
		console_serve(fds + FIXED);
		if (fds[CONTROL].revents)
			control_accept(all.fds[CONTROL], &all.processes);
		if (fds[SIGNALS].revents)
			hear_signals();
	}
	finish();
}
