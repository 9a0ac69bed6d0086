/* The supervisor: one poll loop between the terminal, the logs, the sockets and PID 1. It grows with nothing, and wakes up
 * for nothing that does not move. */
#include "shim.h"

#include <sys/ioctl.h>
#include <sys/signalfd.h>
#include <termios.h>

#ifndef TIOCGPTPEER
#define TIOCGPTPEER 0x5441
#endif
enum { SIGNALS, BIRTH, TERMINAL, ERRORS, CONTROL, FIXED, FLUSH_MS = 300, RECORD_BYTES = 1024 };

static struct {
	int fds[FIXED], slave, run_directory, record, *wait_status; /* fds: what the loop waits for; -1 when it is over */
	char message[MESSAGE];
	time_t started;
	bool failed, ended;
	struct log console, errors;
	struct processes processes;
} all;

/* How it ended, to be read once the alive lock is free. Always the same bytes of the same file, so that a full disk
 * cannot prevent it. The first record says `lost`: it is what remains when the supervisor itself is killed. */
static void record(const char *reason, int status, int number) {
	char text[RECORD_BYTES];
	for (char *at = all.message; *at; at++)
		if (*at < ' ' || *at > '~' || *at == '"' || *at == '\\')
			*at = '\''; /* it becomes a string of JSON */
	int length = snprintf(text, sizeof(text), "{\"reason\":\"%s\",\"status\":%d,\"signal\":%d,\"phase\":\"%s\",\"started\":%lld,"
	                      "\"time\":%lld,\"message\":\"%s\"}", reason, status, number, all.processes.phase,
	                      (long long)all.started, (long long)time(NULL), all.message);
	memset(text + length, ' ', sizeof(text) - (size_t)length);
	text[sizeof(text) - 1] = '\n';
	if (pwrite(all.record, text, sizeof(text), 0) == sizeof(text) && all.ended)
		fsync(all.record);
}

static int require(int result, const char *what) {
	if (result < 0) {
		report(FD_REPORT, "failed", "%s: %s", what, strerror(errno));
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
	raw.c_oflag = 0; /* ONLCR too: QEMU sets OPOST again, and then it would count */
	tcsetattr(all.slave, TCSANOW, &raw);
	ioctl(master, TIOCSWINSZ, &size);
	return master;
}

/* Everything on the host's side, before there is a capsule. */
static void prepare(const struct spec *spec) {
	int logs = require(open(spec->log_dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC), spec->log_dir);
	int how = O_WRONLY | O_CREAT | O_NOFOLLOW | O_CLOEXEC;
	sigset_t wanted;
	sigemptyset(&wanted);
	sigaddset(&wanted, SIGCHLD);
	sigaddset(&wanted, SIGTERM);
	all.run_directory = require(open(spec->run_dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC), spec->run_dir);
	all.record = require(open(spec->exit_record, how, 0600), spec->exit_record);
	all.processes.phase = "building";
	all.processes.uid = (uid_t)spec->uid;
	strcpy(all.message, "the supervisor was killed");
	record("lost", 0, 0);
	log_open(&all.console, logs, "console.log", spec->log_limit);
	log_open(&all.errors, logs, "vmm.log", spec->log_limit);
	all.fds[TERMINAL] = open_terminal();
	all.fds[SIGNALS] = require(signalfd(-1, &wanted, SFD_CLOEXEC | SFD_NONBLOCK), "signalfd");
	all.fds[CONTROL] = listen_at(all.run_directory, "shim.sock", SOCK_SEQPACKET);
	console_listen(all.run_directory, all.fds[TERMINAL], &all.console);
}

static uint64_t ticks_of(pid_t pid) {
	char path[32];
	snprintf(path, sizeof(path), "/proc/%d/stat", pid);
	return start_ticks(AT_FDCWD, path);
}

/* The raw system call, because of clone(2)'s flags only this makes the child, and nothing else of ours, the first of a PID
 * namespace. */
static void start_init(struct spec *spec) {
	int birth[2], errors[2], yes = 1;
	void *shared = mmap(NULL, sizeof(int), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	require(shared == MAP_FAILED ? -1 : 0, "mmap");
	require(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, birth), "socketpair");
	require(setsockopt(birth[0], SOL_SOCKET, SO_PASSCRED, &yes, sizeof(yes)), "SO_PASSCRED");
	require(pipe2(errors, O_CLOEXEC), "pipe");
	const struct cords cords = {birth[1], all.slave, errors[1], shared};
	*cords.wait_status = -1;
	pid_t child = require((pid_t)syscall(SYS_clone, CLONE_NEWPID | SIGCHLD, 0, 0, 0, 0), "new PID namespace");
	if (child == 0)
		capsule_main(spec, &cords);
	close(birth[1]);
	fcntl(errors[0], F_SETFL, O_NONBLOCK);
	all.wait_status = cords.wait_status;
	all.fds[BIRTH] = birth[0];
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
	say(all.fds[BIRTH], "go");
}

/* The end of the birth: the VMM is executed, or nothing came of it. */
static void end_birth(void) {
	struct processes *now = &all.processes;
	close(all.fds[BIRTH]);
	all.fds[BIRTH] = -1;
	if (all.failed || !now->vmm)
		return;
	all.started = time(NULL);
	now->phase = "running";
	record("lost", 0, 0);
	report(FD_REPORT, "started", "%d %llu %d %llu", now->init, (unsigned long long)now->init_ticks, now->vmm,
	       (unsigned long long)now->vmm_ticks);
	dup2(0, FD_REPORT);
}

/* What PID 1 and the unborn VMM say, which is for the caller; false when there is no more for now. */
static bool hear_birth(void) {
	char text[MESSAGE + 1];
	union { struct cmsghdr header; char room[CMSG_SPACE(sizeof(struct ucred))]; } control;
	struct iovec into = {text, MESSAGE};
	struct msghdr message = {.msg_iov = &into, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control)};
	ssize_t got = all.fds[BIRTH] < 0 ? 0 : recvmsg(all.fds[BIRTH], &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
	if (all.fds[BIRTH] >= 0 && (got == 0 || (got < 0 && errno != EAGAIN)))
		end_birth();
	if (got <= 0)
		return false;
	text[got] = 0;
	if (!strncmp(text, "vmm", 3) && CMSG_FIRSTHDR(&message)) {
		struct ucred sender;
		memcpy(&sender, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof(sender));
		note_vmm(sender.pid);
	} else if (!strncmp(text, "failed ", 7)) {
		all.failed = true;
		text[got - 1] = 0;
		strcpy(all.message, text + 7);
	} else {
		say(FD_REPORT, text);
	}
	return true;
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
static bool relay(int fd, struct log *log) {
	char data[4096];
	ssize_t got = read(fd, data, sizeof(data));
	if (got > 0)
		log_write(log, data, (size_t)got);
	return got > 0;
}

/* PID 1 is gone, and everything in the capsule with it. Records the end; what the clients of the console have not read
 * yet is given to them before we leave. */
static _Noreturn void finish(void) {
	int status = *all.wait_status, code = status == -1 ? 0 : WEXITSTATUS(status), number = status == -1 ? SIGKILL : WTERMSIG(status);
	while (hear_birth() || relay(all.fds[TERMINAL], &all.console) || relay(all.fds[ERRORS], &all.errors))
		;
	if (!all.failed)
		strcpy(all.message, status == -1 ? "PID 1 of the capsule was killed" : "");
	record(all.failed ? "failed" : status == -1 ? "killed" : number ? "signaled" : "exited", code, number);
	report(FD_REPORT, "failed", "%s", *all.message ? all.message : "the VMM ended before it began");
	unlinkat(all.run_directory, "console.sock", 0);
	unlinkat(all.run_directory, "shim.sock", 0);
	console_flush(FLUSH_MS);
	_exit(all.failed ? 1 : number ? 128 + number : code);
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
		if (fds[TERMINAL].revents)
			relay(all.fds[TERMINAL], &all.console);
		if (fds[ERRORS].revents)
			relay(all.fds[ERRORS], &all.errors);
		console_serve(fds + FIXED);
		if (fds[CONTROL].revents)
			control_accept(all.fds[CONTROL], &all.processes);
		if (fds[SIGNALS].revents)
			hear_signals();
	}
	finish();
}
