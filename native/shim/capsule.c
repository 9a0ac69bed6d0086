/* PID 1 of a capsule: builds the small root, starts the VMM in it with nothing in its hands, waits for its end.
 * The root is a subdirectory of a tmpfs: we pivot to the tmpfs and then chroot into the subdirectory, because the kernel
 * gives no user namespace, and so no new capabilities, to a process in a chroot (user_namespaces(7): EPERM). */
#include "shim.h"
#include <grp.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/sysmacros.h>

/* From linux/{mount,fcntl,capability,securebits,close_range}.h: musl-gcc does not see the kernel's headers. */
enum { TREE_CLONE = 1, EMPTY_PATH = 0x1000, FROM_EMPTY_PATH = 4, TO_EMPTY_PATH = 0x40, CLOEXEC_RANGE = 4 };
enum { RDONLY = 1, NOSUID = 2, NODEV = 4, NOEXEC = 8, CAPABILITY_VERSION_3 = 0x20080522, KILL_CAPABILITY = 5 };
/* NOROOT, NO_SETUID_FIXUP and NO_CAP_AMBIENT_RAISE on, KEEP_CAPS off, each locked. */
enum { SECUREBITS = 0x01 | 0x02 | 0x04 | 0x08 | 0x20 | 0x40 | 0x80 };
enum { BIRTH = 3 }; /* where our words and pids go */

/* A required protection: without it we go on only when told so. */
static void require(const struct spec *spec, long result, const char *protection, const char *what) {
	if (!spec->insecure)
		check(result, protection, what);
	else if (result < 0)
		report("unprotected", "%s\t%s: %s", protection, what, strerror(errno));
}

/* Makes `inner` below `root`, with its parents, and returns an O_PATH descriptor of it, or -1. No symlink is followed: in
 * a running capsule some directories are the VMM's. */
static int make_target(int root, const char *inner, bool directory) {
	int at = fcntl(root, F_DUPFD_CLOEXEC, FD_FIRST_FREE);
	for (size_t length; at >= 0 && *inner; inner += length) {
		char name[256];
		length = strcspn(++inner, "/");
		int parent = at, kind = directory || inner[length] ? O_DIRECTORY : 0;
		snprintf(name, sizeof(name), "%.*s", (int)length, inner);
		if (!strcmp(name, "..") || length >= sizeof(name)) return -1;
		if (kind)
			mkdirat(parent, name, 0755);
		else
			close(openat(parent, name, O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC, 0444));
		at = openat(parent, name, O_PATH | O_NOFOLLOW | O_CLOEXEC | kind);
		close(parent);
	}
	return at;
}

/* A copy of one mount of the host, without those below it; `about` is what is there. */
static int copy_mount(const char *host, struct stat *about) {
	int tree = (int)syscall(SYS_open_tree, AT_FDCWD, host, TREE_CLONE | O_CLOEXEC);
	return tree >= 0 && fstat(tree, about) < 0 ? -1 : tree;
}

/* Puts it at `inner`: nosuid and nodev, and either read-only or not executable. */
static int place_mount(int root, const char *inner, int tree, bool directory, bool writable) {
	const struct { uint64_t set, clear, propagation, user_namespace; } flags = {
		.set = NOSUID | NODEV | (writable ? NOEXEC : RDONLY)};
	int target = make_target(root, inner, directory);
	if (target < 0 || syscall(SYS_mount_setattr, tree, "", EMPTY_PATH, &flags, sizeof(flags)) < 0 ||
	    syscall(SYS_move_mount, tree, "", target, "", FROM_EMPTY_PATH | TO_EMPTY_PATH) < 0)
		return -1;
	return close(target);
}

static void make_owned(int root, const char *inner, mode_t mode, const struct spec *owner) {
	check(fchownat(root, inner + 1, (uid_t)owner->uid, (gid_t)owner->gid, 0), "chown", inner);
	check(fchmodat(root, inner + 1, mode, 0), "chmod", inner);
}

static void make_device(int root, const char *inner, mode_t mode, dev_t number) {
	close(make_target(root, inner, false)); /* for its parents */
	unlinkat(root, inner + 1, 0);
	check(mknodat(root, inner + 1, S_IFCHR | mode, number), "mknod", inner);
}

static void build_root(const struct spec *spec) {
	static const char *const own[] = {"/vm/run", "/vm/out", "/tmp"};
	struct stat about;
	check(mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL), "detach", "/");
	/* Over /proc, in our own namespace only: it is there everywhere, and nothing that we bind lies below it. */
	check(mount("capsule", "/proc", "tmpfs", MS_NOSUID | MS_NOEXEC, "size=4m,nr_inodes=4k,mode=0755"), "mount", "tmpfs");
	umask(0);
	check(chdir("/proc") < 0 ? -1 : mkdir("root", 0755), "make", "root");
	int root = open("root", O_PATH | O_DIRECTORY | O_CLOEXEC);
	for (int i = 0; i < 3; i++) {
		close(make_target(root, own[i], true));
		make_owned(root, own[i], 0700, spec);
	}
	make_device(root, "/dev/null", 0666, makedev(1, 3));
	make_device(root, "/dev/zero", 0666, makedev(1, 5));
	make_device(root, "/dev/urandom", 0666, makedev(1, 9));
	for (const struct device *device = spec->devices; device->inner; device++) {
		make_device(root, device->inner, 0600, makedev((unsigned)device->major, (unsigned)device->minor));
		make_owned(root, device->inner, 0600, spec);
	}
	for (const struct bind *bind = spec->binds; bind->host; bind++) {
		int tree = check(copy_mount(bind->host, &about), "open", bind->host);
		check(place_mount(root, bind->inner, tree, S_ISDIR(about.st_mode), bind->writable), "bind", bind->inner);
		close(tree);
	}
	close(root);
	failpoint("built");
	/* The old root ends up on top of the new one at the same place, and is taken off (pivot_root(2)). */
	check(syscall(SYS_pivot_root, ".", "."), "pivot_root", ".");
	check(umount2(".", MNT_DETACH), "detach", "the old root");
	check(chroot("root") < 0 ? -1 : chdir("/"), "enter", "the capsule");
	umask(077);
}

static void enter_namespaces(const struct spec *spec) {
	char path[300];
	snprintf(path, sizeof(path), "/run/netns/%s", spec->netns);
	if (*spec->netns) {
		int netns = check(open(path, O_RDONLY | O_CLOEXEC), "open", path);
		check(setns(netns, CLONE_NEWNET), "enter", path);
		close(netns);
	}
	check(unshare(CLONE_NEWNS | CLONE_NEWIPC | CLONE_NEWUTS | (*spec->netns ? 0 : CLONE_NEWNET)), "make", "namespaces");
	check(sethostname(spec->vm, strnlen(spec->vm, 63)), "name", spec->vm);
}

/* Gives up every capability but those in `keep`, for good: no program that is executed later gets one back. With `keep`
 * zero we also become the VM's own user. */
static void drop_privileges(const struct spec *spec, uint32_t keep) {
	static const char name[] = "no-capabilities", own[] = "own-uid";
	const struct { uint32_t version; int pid; } header = {CAPABILITY_VERSION_3, 0};
	const struct { uint32_t effective, permitted, inheritable; } sets[2] = {{keep, keep, 0}, {0, 0, 0}};
	uid_t uid = (uid_t)spec->uid;
	gid_t gid = (gid_t)spec->gid;
	for (unsigned long i = 0; prctl(PR_CAPBSET_READ, i, 0, 0, 0) >= 0; i++)
		if (i > 31 || !(keep & (1u << i)))
			require(spec, prctl(PR_CAPBSET_DROP, i, 0, 0, 0), name, "bounding set");
	require(spec, prctl(PR_SET_SECUREBITS, SECUREBITS, 0, 0, 0), name, "secure bits");
	require(spec, setgroups(0, NULL), own, "setgroups");
	if (!keep) {
		require(spec, setresgid(gid, gid, gid), own, "setresgid");
		require(spec, setresuid(uid, uid, uid), own, "setresuid");
		errno = EPERM;
		require(spec, geteuid() && getegid() ? 0 : -1, own, "the VMM is root");
	}
	require(spec, syscall(SYS_capset, &header, sets), name, "capset"); /* empties the ambient set as well */
	require(spec, prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), name, "no_new_privs");
}

static void limit(int what, uint64_t most, const char *name) {
	struct rlimit limits = {most, most};
	if (setrlimit(what, &limits) == 0) return;
	getrlimit(what, &limits); /* without CAP_SYS_RESOURCE the hard limit stays; the VMM may still do with less */
	report("warning", "the limit of %s stays at %llu", name, (unsigned long long)limits.rlim_max);
	limits.rlim_cur = limits.rlim_max;
	setrlimit(what, &limits);
}

static _Noreturn void start_vmm(struct spec *spec) {
	char go[2];
	sigset_t none;
	setsid(); /* without a controlling terminal: what is typed cannot become a signal */
	limit(RLIMIT_NOFILE, spec->open_files, "open files");
	limit(RLIMIT_MEMLOCK, spec->memlock, "locked memory");
	limit(RLIMIT_CORE, 0, "core");
	drop_privileges(spec, 0);
	failpoint("vmm");
	/* The supervisor learns our pid from the credentials of this message, and answers when it has noted it. */
	say(BIRTH, "vmm");
	if (recv(BIRTH, go, sizeof(go), 0) <= 0) _exit(1);
	signal(SIGPIPE, SIG_DFL);
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	syscall(SYS_close_range, BIRTH, ~0u, CLOEXEC_RANGE); /* the end of BIRTH tells that we are the VMM now */
	check(execve(spec->arguments[0], spec->arguments, spec->environment), "execute", spec->arguments[0]);
	_exit(1);
}

/* Waits for the VMM. SIGTERM is passed on and after a while followed by SIGKILL; SIGINT means SIGKILL at once. A VMM that
 * were PID 1 itself would not get the SIGTERM at all (pid_namespaces(7)). */
static _Noreturn void keep_vmm(pid_t vmm, uint64_t kill_after_ms, int *wait_status) {
	sigset_t every;
	uint64_t deadline = 0, now;
	sigfillset(&every);
	for (;;) {
		uint64_t left = deadline > (now = now_ms()) ? deadline - now : 0;
		struct timespec wait = {(time_t)(left / 1000), (long)(left % 1000) * 1000000};
		int number = sigtimedwait(&every, NULL, deadline ? &wait : NULL), status;
		if (number == SIGTERM && !deadline) {
			kill(vmm, SIGTERM);
			deadline = now_ms() + kill_after_ms + 1;
		} else if (number == SIGINT || (number < 0 && errno == EAGAIN)) {
			kill(vmm, SIGKILL);
			deadline = 0;
		}
		for (pid_t gone; (gone = waitpid(-1, &status, WNOHANG)) > 0;) {
			if (gone == vmm) {
				failpoint("reaped");
				*wait_status = status;
				_exit(0);
			}
		}
	}
}

/* `cords` are the ends that the supervisor made for us; `wait_status` is memory that we share with it. */
_Noreturn void capsule_main(struct spec *spec, const struct cords *cords) {
	const int kept[] = {cords->terminal, cords->terminal, cords->errors, cords->birth};
	for (int i = 0; i < 4; i++)
		dup2(kept[i], i); /* each of them is above 6 */
	close(FD_GO);
	close(FD_REPORT);
	report_fd = BIRTH;
	syscall(SYS_close_range, FD_FIRST_FREE, ~0u, 0);
	/* When the supervisor has died already, no signal comes any more; then nobody holds the other end either. */
	struct pollfd supervisor = {.fd = BIRTH};
	prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
	if (poll(&supervisor, 1, 0) == 1) _exit(1);
	setsid();
	failpoint("building");
	enter_namespaces(spec);
	build_root(spec);
	pid_t vmm = check(fork(), "start", "the VMM");
	if (!vmm) start_vmm(spec);
	drop_privileges(spec, 1u << KILL_CAPABILITY);
	int nowhere = open("/dev/null", O_RDWR | O_CLOEXEC);
	for (int i = 0; i <= BIRTH; i++)
		dup2(nowhere, i); /* the VMM's terminal, pipe and birth are its own from now on */
	uint64_t kill_after_ms = spec->kill_after_ms;
	free(spec);
	keep_vmm(vmm, kill_after_ms, cords->wait_status);
}

/* cocoon-shim attach PID TICKS HOST INNER 0|1: puts a file or directory of the host into the capsule whose PID 1 is that
 * process, for writing or not. The mount is made on the host's side and moved over: the capsule never sees its path. */
int attach_main(char **words) {
	char path[32];
	struct stat about;
	pid_t pid = atoi(words[0]);
	report_fd = 2;
	snprintf(path, sizeof(path), "/proc/%d", pid);
	int process = check(open(path, O_PATH | O_DIRECTORY | O_CLOEXEC), "open", path);
	errno = ESRCH; /* looked at after the descriptor was opened, and that stays the same process */
	check(start_ticks(pid) == strtoull(words[1], NULL, 10) ? 0 : -1, "open", path);
	int root = check(openat(process, "root", O_PATH | O_DIRECTORY | O_CLOEXEC), "open root of", path);
	int mounts = check(openat(process, "ns/mnt", O_RDONLY | O_CLOEXEC), "open mounts of", path);
	int tree = check(copy_mount(words[2], &about), "open", words[2]);
	check(setns(mounts, CLONE_NEWNS), "enter", path);
	umask(0);
	return check(place_mount(root, words[3], tree, S_ISDIR(about.st_mode), *words[4] == '1'), "bind", words[3]);
}
