/* The supervisor: one poll loop between the terminal, the logs, the sockets and PID 1. It grows with nothing. */
#include "shim.h"
#include <sys/ioctl.h>
#include <sys/signalfd.h>
#include <termios.h>

enum { SIGNALS, BIRTH, TERMINAL, ERRORS, CONTROL, FIFO, FIXED = FIFO + FIFOS, FLUSH_MS = 300, RECORD_BYTES = 1024 };

static struct {
	int fds[FIXED], slave, run_directory, record, *wait_status; /* fds: what the loop waits for; -1 when it is over */
	char message[MESSAGE];
	time_t started;
	bool failed, ended;
	struct log console, errors, more[FIFOS], *fifos[FIFOS]; /* fifos: the log that each goes to */
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
	if (pwrite(all.record, text, sizeof(text), 0) == sizeof(text) && all.ended) fsync(all.record);
}

/* A raw terminal: what the guest and the user say to each other is not for us to translate. */
static int open_terminal(void) {
	struct termios raw;
	int unlocked = 0, master = check(open("/dev/ptmx", O_RDWR | O_NOCTTY | O_CLOEXEC | O_NONBLOCK), "open", "/dev/ptmx");
	check(ioctl(master, TIOCSPTLCK, &unlocked), "unlock", "terminal");
	/* Not by a path, since /dev/pts may show another instance. Kept open, so that the master never hangs up. */
	all.slave = check(ioctl(master, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC), "open", "terminal");
	check(tcgetattr(all.slave, &raw), "read", "terminal");
	cfmakeraw(&raw);
	raw.c_oflag = 0; /* QEMU switches OPOST on again: then there must be nothing left for it to do */
	tcsetattr(all.slave, TCSANOW, &raw);
	return master;
}

/* A pipe with a name, which the capsule has bound: what the VMM writes there goes to a log. Ours to write as well: it does
 * not end before we do. */
static void open_fifo(int number, const struct spec *spec, int logs) {
	const struct fifo *fifo = &spec->fifos[number];
	unlinkat(all.run_directory, fifo->name, 0); /* of an earlier boot, and who knows what is still in it */
	check(mkfifoat(all.run_directory, fifo->name, 0600), "make", fifo->name);
	int fd = check(openat(all.run_directory, fifo->name, O_RDWR | O_NONBLOCK | O_CLOEXEC), "open", fifo->name);
	check(fchown(fd, (uid_t)spec->uid, (gid_t)spec->gid), "chown", fifo->name);
	all.fds[FIFO + number] = fd;
	all.fifos[number] = strcmp(fifo->log, all.errors.name) ? &all.more[number] : &all.errors;
	if (all.fifos[number] != &all.errors) /* its name outlives the order */
		log_open(all.fifos[number], logs, strdup(fifo->log), fifo->limit);
}

/* Everything on the host's side, before there is a capsule. */
static void prepare(const struct spec *spec) {
	const int directory = O_RDONLY | O_DIRECTORY | O_CLOEXEC, file = O_WRONLY | O_CREAT | O_NOFOLLOW | O_CLOEXEC;
	int logs = check(open(spec->log_dir, directory), "open", spec->log_dir);
	sigset_t wanted;
	sigemptyset(&wanted), sigaddset(&wanted, SIGCHLD), sigaddset(&wanted, SIGTERM);
	all.run_directory = check(open(spec->run_dir, directory), "open", spec->run_dir);
	all.record = check(open(spec->exit_record, file, 0600), "open", spec->exit_record);
	all.processes.phase = "building";
	all.processes.uid = (uid_t)spec->uid;
	strcpy(all.message, "the supervisor was killed");
	record("lost", 0, 0);
	log_open(&all.console, logs, "console.log", spec->log_limit);
	log_open(&all.errors, logs, "vmm.log", spec->log_limit);
	for (int i = 0; i < FIFOS; i++)
		all.fds[FIFO + i] = -1;
	for (int i = 0; spec->fifos[i].name; i++)
		open_fifo(i, spec, logs);
	all.fds[TERMINAL] = open_terminal();
	all.fds[SIGNALS] = check(signalfd(-1, &wanted, SFD_CLOEXEC | SFD_NONBLOCK), "open", "signalfd");
	all.fds[CONTROL] = listen_at(all.run_directory, "shim.sock", SOCK_SEQPACKET);
	console_listen(all.run_directory, all.fds[TERMINAL], &all.console);
}

/* By the raw system call: with unshare(2) every later child of ours would be born into the new PID namespace. */
static void start_init(struct spec *spec) {
	int birth[2], errors[2], yes = 1;
	void *shared = mmap(NULL, sizeof(int), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	check(shared == MAP_FAILED || pipe2(errors, O_CLOEXEC) < 0 ? -1 : 0, "make", "pipe");
	check(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, birth), "make", "socketpair");
	check(setsockopt(birth[0], SOL_SOCKET, SO_PASSCRED, &yes, sizeof(yes)), "ask for", "credentials");
	const struct cords cords = {birth[1], all.slave, errors[1], shared};
	*cords.wait_status = -1;
	pid_t child = check(syscall(SYS_clone, CLONE_NEWPID | SIGCHLD, 0, 0, 0, 0), "make", "PID namespace");
	if (child == 0) capsule_main(spec, &cords);
	close(birth[1]);
	fcntl(errors[0], F_SETFL, O_NONBLOCK);
	all.wait_status = shared;
	all.fds[BIRTH] = birth[0];
	all.fds[ERRORS] = errors[0];
	all.processes.errors = errors[1]; /* ours as well: the pipe does not end before we do */
	all.processes.init = child;
	all.processes.init_ticks = start_ticks(child);
}

/* The VMM is executed, or nothing came of it. */
static void end_birth(void) {
	struct processes *now = &all.processes;
	close(all.fds[BIRTH]);
	all.fds[BIRTH] = -1;
	if (all.failed || !now->vmm) return;
	all.started = time(NULL);
	now->phase = "running";
	record("lost", 0, 0);
	report("started", "%d %llu %d %llu", now->init, (unsigned long long)now->init_ticks, now->vmm,
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
	if (all.fds[BIRTH] >= 0 && (got == 0 || (got < 0 && errno != EAGAIN))) end_birth();
	if (got <= 0) return false;
	text[got] = 0;
	if (!strncmp(text, "vmm", 3) && CMSG_FIRSTHDR(&message)) {
		struct ucred sender;
		memcpy(&sender, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof(sender));
		all.processes.vmm = sender.pid;
		all.processes.vmm_ticks = start_ticks(sender.pid);
		snprintf(text, sizeof(text), "/proc/%d/root", all.processes.init);
		all.processes.root = open(text, O_PATH | O_DIRECTORY | O_CLOEXEC);
		say(all.fds[BIRTH], "go"); /* the VMM-to-be waits until we know it */
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
	if (got > 0) log_write(log, data, (size_t)got);
	return got > 0;
}

/* A round of what the VMM says; false when there is nothing more. */
static bool hear_vmm(void) {
	bool more = relay(all.fds[TERMINAL], &all.console) | relay(all.fds[ERRORS], &all.errors);
	for (int i = 0; i < FIFOS; i++)
		more |= all.fds[FIFO + i] >= 0 && relay(all.fds[FIFO + i], all.fifos[i]);
	return more;
}

/* PID 1 is gone, and everything in the capsule with it. Clients of the console get what they have not read yet. */
static _Noreturn void finish(void) {
	struct pollfd fds[CONSOLE_FDS];
	while (hear_birth() || hear_vmm())
		;
	bool killed = !all.failed && *all.wait_status == -1;
	int status = all.failed || killed ? 0 : *all.wait_status, number = killed ? SIGKILL : WTERMSIG(status);
	if (!all.failed) strcpy(all.message, killed ? "PID 1 of the capsule was killed" : "");
	record(all.failed ? "failed" : killed ? "killed" : number ? "signaled" : "exited", WEXITSTATUS(status), number);
	report("failed", "%s", *all.message ? all.message : "the VMM ended before it began");
	unlinkat(all.run_directory, "console.sock", 0);
	unlinkat(all.run_directory, "shim.sock", 0);
	for (uint64_t last = now_ms() + FLUSH_MS; console_poll(fds, true) && now_ms() < last;)
		if (poll(fds, CONSOLE_FDS, FLUSH_MS) > 0)
			console_serve(fds);
	_exit(all.failed ? 1 : number ? 128 + number : WEXITSTATUS(status));
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
		console_poll(fds + FIXED, false);
		if (poll(fds, FIXED + CONSOLE_FDS, -1) < 0) continue;
		if (fds[BIRTH].revents) hear_birth();
		if (fds[TERMINAL].revents) relay(all.fds[TERMINAL], &all.console);
		if (fds[ERRORS].revents) relay(all.fds[ERRORS], &all.errors);
		for (int i = 0; i < FIFOS; i++)
			if (fds[FIFO + i].revents) relay(all.fds[FIFO + i], all.fifos[i]);
		console_serve(fds + FIXED);
		if (fds[CONTROL].revents) control_accept(all.fds[CONTROL], &all.processes);
		if (fds[SIGNALS].revents) hear_signals();
	}
	finish();
}
