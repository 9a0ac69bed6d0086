/* A program in the place of a VMM, with the behaviour that a test wants: `puppet WORD...`. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/un.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

static void put(const char *path, const char *text) {
	int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
	if (fd < 0 || write(fd, text, strlen(text)) < 0)
		perror(path);
	close(fd);
}

/* Writes numbered lines as fast as they are taken, and beats in /vm/run/beat. */
static void flood(int fd, long lines) {
	char line[128], count[32];
	for (long i = 0; lines < 0 || i < lines; i++) {
		int length = snprintf(line, sizeof(line), "line %010ld %s\n", i, "the guest prints and prints and prints");
		if (write(fd, line, (size_t)length) < 0)
			exit(4);
		if (i % 200 == 0) {
			snprintf(count, sizeof(count), "%ld", i);
			put("/vm/run/beat", count);
		}
	}
}

static void echo(void) {
	char data[4096];
	ssize_t got;
	printf("ready\n");
	while ((got = read(0, data, sizeof(data))) > 0) {
		if (got == 1 && *data == 'Q')
			exit(0);
		if (write(1, data, (size_t)got) < 0)
			exit(4);
	}
}

/* A monitor as QEMU has one: a greeting, events in between, an answer for each request. */
static void monitor(void) {
	struct sockaddr_un name = {AF_UNIX, "/vm/run/rescue.sock"};
	int listener = socket(AF_UNIX, SOCK_STREAM, 0), fd;
	if (bind(listener, (void *)&name, sizeof(name)) || listen(listener, 4))
		exit(5);
	printf("ready\n");
	while ((fd = accept(listener, NULL, NULL)) >= 0) {
		FILE *in = fdopen(fd, "r+");
		char line[512];
		setvbuf(in, NULL, _IONBF, 0);
		fprintf(in, "{\"QMP\": {}}\r\n");
		while (fgets(line, sizeof(line), in)) {
			if (strstr(line, "hang"))
				sleep(60);
			fprintf(in, "{\"event\": \"NOISE\"}\r\n{\"return\": {}}\r\n");
			if (strstr(line, "cont"))
				put("/vm/run/resumed", "yes");
		}
		fclose(in);
	}
}

static void say(const char *what, long result) {
	printf("%s=%d\n", what, result >= 0 ? 0 : errno);
}

static void walk(const char *path) {
	struct stat about;
	char child[1024];
	int fd, reads, writes, executes;
	if (lstat(path, &about))
		return;
	reads = (fd = open(path, O_RDONLY | O_NONBLOCK | O_NOFOLLOW)) >= 0 && (close(fd), 1);
	writes = S_ISDIR(about.st_mode) ? (snprintf(child, sizeof(child), "%s/probe", path), mkdir(child, 0700) == 0 && rmdir(child) == 0)
	                                : (fd = open(path, O_WRONLY | O_NONBLOCK | O_NOFOLLOW)) >= 0 && (close(fd), 1);
	executes = S_ISREG(about.st_mode) && access(path, X_OK) == 0;
	printf("path %s %c%c%c %s\n", path, reads ? 'r' : '-', writes ? 'w' : '-', executes ? 'x' : '-',
	       S_ISDIR(about.st_mode) ? "directory" : S_ISCHR(about.st_mode) ? "device" : S_ISREG(about.st_mode) ? "file" : "other");
	if (!S_ISDIR(about.st_mode))
		return;
	DIR *directory = opendir(path);
	for (struct dirent *entry; directory && (entry = readdir(directory));) {
		if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, ".."))
			continue;
		snprintf(child, sizeof(child), "%s/%s", strcmp(path, "/") ? path : "", entry->d_name);
		walk(child);
	}
	if (directory)
		closedir(directory);
}

/* Everything that an intruder would try, one line each. */
static void hostile(void) {
	char text[64];
	struct sockaddr_in inside = {AF_INET, htons(80), {htonl(0x7f000001)}, {0}}, outside = {AF_INET, htons(80), {htonl(0xa9fea9fe)}, {0}};
	struct { unsigned version; int pid; } header = {0x20080522, 0};
	unsigned sets[6] = {1, 1, 1, 1, 1, 1};
	uid_t r, e, s;
	int fd;
	walk("/");
	for (fd = 0; fd < 1024; fd++) {
		struct stat about;
		if (fstat(fd, &about) == 0)
			printf("fd %d %s\n", fd, S_ISCHR(about.st_mode) ? "terminal" : S_ISFIFO(about.st_mode) ? "pipe" : "other");
	}
	getresuid(&r, &e, &s);
	printf("uid=%u,%u,%u\ngroups=%d\n", r, e, s, getgroups(0, NULL));
	printf("no_new_privs=%d\nsecurebits=%#x\n", prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0), prctl(PR_GET_SECUREBITS));
	for (int bounding = 0, i = 0; i < 64; i++) {
		bounding += prctl(PR_CAPBSET_READ, i) == 1;
		if (i == 63)
			printf("bounding=%d\n", bounding);
	}
	printf("pid=%d\nparent=%d\nsession=%d\n", getpid(), getppid(), getsid(0) == getpid());
	struct rlimit core;
	getrlimit(RLIMIT_CORE, &core);
	printf("core=%ld\n", (long)core.rlim_max);
	say("setuid", setuid(0));
	say("setgid", setgid(0));
	say("capset", syscall(SYS_capset, &header, sets));
	say("ambient", prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, 21, 0, 0));
	say("mount", mount("x", "/tmp", "tmpfs", 0, NULL));
	say("remount", mount("x", "/", NULL, MS_REMOUNT | MS_BIND, NULL));
	say("umount", umount2("/bin/puppet", MNT_DETACH));
	say("chroot", chroot("/tmp"));
	say("pivot_root", syscall(SYS_pivot_root, "/tmp", "/tmp"));
	say("open_tree", syscall(SYS_open_tree, -100, "/", 1));
	for (int i = 0; i < 8; i++) {
		static const int kinds[] = {CLONE_NEWUSER, CLONE_NEWNS, CLONE_NEWPID, CLONE_NEWNET, CLONE_NEWIPC, CLONE_NEWUTS, 0x02000000, 0x80};
		static const char *const names[] = {"user", "mount", "pid", "net", "ipc", "uts", "cgroup", "time"};
		snprintf(text, sizeof(text), "unshare-%s", names[i]);
		say(text, unshare(kinds[i]));
	}
	say("setns", setns(1, 0));
	say("mknod", mknod("/vm/run/disk", S_IFBLK | 0666, makedev(254, 0)));
	say("mknod-char", mknod("/vm/run/kvm", S_IFCHR | 0666, makedev(10, 232)));
	say("ptrace", ptrace(PTRACE_ATTACH, 1, 0, 0));
	say("kill-init", kill(1, SIGKILL));
	say("kill-all", kill(-1, SIGCONT));
	say("kill-host", kill(atoi(getenv("HOST_PID")), 0));
	say("read-memory", syscall(SYS_process_vm_readv, 1, NULL, 0, NULL, 0, 0));
	say("pidfd", syscall(SYS_pidfd_open, 1, 0));
	say("tiocsti", ioctl(0, TIOCSTI, "x"));
	say("ctty", ioctl(0, TIOCSCTTY, 1));
	say("dev-tty", open("/dev/tty", O_RDWR));
	say("network-inside", connect(socket(AF_INET, SOCK_STREAM, 0), (void *)&inside, sizeof(inside)));
	say("network-outside", connect(socket(AF_INET, SOCK_STREAM, 0), (void *)&outside, sizeof(outside)));
	say("raw-socket", socket(AF_INET, SOCK_RAW, 1));
	say("packet-socket", socket(17, SOCK_RAW, 0));
	struct sockaddr_un abstract = {AF_UNIX, ""};
	strcpy(abstract.sun_path + 1, getenv("ABSTRACT"));
	say("abstract-socket", connect(socket(AF_UNIX, SOCK_STREAM, 0), (void *)&abstract,
	                               (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + strlen(getenv("ABSTRACT")))));
	say("sethostname", sethostname("x", 1));
	say("reboot", syscall(SYS_reboot, 0xfee1dead, 672274793, 0, NULL));
	say("settime", clock_settime(CLOCK_REALTIME, &(struct timespec){0}));
	say("init_module", syscall(SYS_init_module, NULL, 0, ""));
	say("raise-nofile", setrlimit(RLIMIT_NOFILE, &(struct rlimit){1 << 20, 1 << 20}));
	say("sched-fifo", syscall(SYS_sched_setscheduler, 0, SCHED_FIFO, &(int){1}));
	say("nice", setpriority(PRIO_PROCESS, 0, -5));
	say("script", (put("/vm/run/script", "x"), chmod("/vm/run/script", 0700), execl("/vm/run/script", "script", NULL)));
	long filled = 0;
	int big = open("/vm/run/big", O_WRONLY | O_CREAT, 0600);
	static char block[65536];
	for (ssize_t wrote; (wrote = write(big, block, sizeof(block))) > 0;)
		filled += wrote;
	printf("tmpfs-limit=%s\n", filled > (8 << 20) ? "too much" : "bounded");
	unlink("/vm/run/big");
	printf("end\n");
}

int main(int count, char **words) {
	const char *what = count > 1 ? words[1] : "";
	setvbuf(stdout, NULL, _IOLBF, 0);
	if (!strcmp(what, "exit"))
		return atoi(words[2]);
	if (!strcmp(what, "abort"))
		abort();
	if (!strcmp(what, "stubborn"))
		signal(SIGTERM, SIG_IGN);
	if (!strcmp(what, "opost")) {
		struct termios settings;
		tcgetattr(0, &settings);
		settings.c_oflag |= OPOST;
		tcsetattr(0, TCSANOW, &settings);
		printf("one\ntwo\n");
	}
	if (!strcmp(what, "flood"))
		flood(atoi(words[2]), atol(words[3]));
	if (!strcmp(what, "echo"))
		echo();
	if (!strcmp(what, "monitor"))
		monitor();
	if (!strcmp(what, "hostile"))
		hostile();
	if (!strcmp(what, "orphans"))
		for (int i = 0; i < 3; i++)
			if (!fork()) {
				if (!fork())
					pause();
				_exit(0);
			}
	if (!strcmp(what, "tell")) { /* tell PATH TEXT COUNT: as a VMM writes its log, without waiting for anybody */
		int fd = open(words[2], O_RDWR | O_NONBLOCK);
		say("open", fd);
		for (long left = atol(words[4]); left > 0; left -= write(fd, words[3], strlen(words[3])) > 0)
			;
		printf("told\n");
		pause();
	}
	if (!strcmp(what, "show"))
		for (int i = 2; i < count; i++) {
			int fd = open(words[i], O_RDONLY);
			char text[256];
			ssize_t got = read(fd, text, sizeof(text) - 1);
			printf("%s: %.*s\n", words[i], got > 0 ? (int)got : 0, text);
		}
	if (!strcmp(what, "stubborn") || !strcmp(what, "wait") || !strcmp(what, "orphans")) {
		printf("ready\n");
		for (;;)
			pause();
	}
	return 0;
}
