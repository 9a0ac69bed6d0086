/* PID 1 of a capsule: builds the small root, starts the VMM in it with nothing in its hands, waits for its end.
 *
 * The root is a subdirectory of a tmpfs: we pivot to the tmpfs and then chroot into the subdirectory, because the
 * kernel gives no user namespace (and so no new capabilities) to a process in a chroot (user_namespaces(7), EPERM). */
#include "shim.h"

#include <grp.h>
#include <stdarg.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/sysmacros.h>

/* linux/mount.h, linux/capability.h and linux/securebits.h: musl-gcc does not see the kernel's headers. */
#ifndef OPEN_TREE_CLONE
#define OPEN_TREE_CLONE 1
#endif
enum { TREE_CLOEXEC = O_CLOEXEC, EMPTY_PATH = 0x1000, FROM_EMPTY_PATH = 4, TO_EMPTY_PATH = 0x40 };
enum { ATTR_RDONLY = 1, ATTR_NOSUID = 2, ATTR_NODEV = 4, ATTR_NOEXEC = 8 };
enum { KILL_CAPABILITY = 5, CAPABILITY_VERSION_3 = 0x20080522, CLOEXEC_RANGE = 4 };
/* NOROOT, NO_SETUID_FIXUP, KEEP_CAPS (off) and NO_CAP_AMBIENT_RAISE, each locked. */
enum { SECUREBITS = 0x01 | 0x02 | 0x04 | 0x08 | 0x20 | 0x40 | 0x80 };
struct mount_attributes {
	uint64_t set, clear, propagation, user_namespace;
};

/* The ends that our words and pids go to; fixed numbers, so that everything else can be closed in one go. */
enum { BIRTH = 3, ENDING = 4 };

static void tell(char kind, const char *format, va_list values)
{
	char line[MESSAGE] = {kind};
	vsnprintf(line + 1, sizeof(line) - 1, format, values);
	send(BIRTH, line, strlen(line), MSG_NOSIGNAL);
}

/* Ends the capsule; the supervisor passes the words on to whoever started it. */
static _Noreturn __attribute__((format(printf, 1, 2))) void fail(const char *format, ...)
{
	va_list values;
	va_start(values, format);
	tell('f', format, values);
	va_end(values);
	_exit(1);
}

/* `kind` is 'w' for a warning, 'u' for a protection that is not in force: `name<TAB>reason`. */
static __attribute__((format(printf, 2, 3))) void note(char kind, const char *format, ...)
{
	va_list values;
	va_start(values, format);
	tell(kind, format, values);
	va_end(values);
}

/* A required protection: without it we go on only when told so, and say it. */
static void require(const struct spec *spec, long result, const char *protection, const char *what)
{
	if (result >= 0)
		return;
	if (!spec->insecure)
		fail("%s: %s", what, strerror(errno));
	note('u', "%s\t%s: %s", protection, what, strerror(errno));
}

static void check(long result, const char *what, const char *value)
{
	if (result < 0)
		fail("%s %s: %s", what, value, strerror(errno));
}

/* Makes `inner` below `root`, with its parents, and returns an O_PATH descriptor of it, or -1. No symlink is followed:
 * in a running capsule some directories belong to the VMM. */
int make_target(int root, const char *inner, bool directory)
{
	char name[256];
	int at = fcntl(root, F_DUPFD_CLOEXEC, FD_FIRST_FREE);
	while (at >= 0 && *inner) {
		size_t length = strcspn(++inner, "/");
		bool last = !inner[length];
		if (length >= sizeof(name)) {
			close(at);
			errno = ENAMETOOLONG;
			return -1;
		}
		memcpy(name, inner, length);
		name[length] = 0;
		int made = 0;
		if (last && !directory) {
			made = openat(at, name, O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC | O_NOFOLLOW, 0444);
			if (made >= 0)
				made = close(made);
		} else if (mkdirat(at, name, 0755) == 0) {
			made = fchmodat(at, name, 0755, 0); /* whatever the umask */
		} else {
			made = -1;
		}
		int next = -1;
		if (made == 0 || errno == EEXIST)
			next = openat(at, name, O_PATH | O_NOFOLLOW | O_CLOEXEC | (last && !directory ? 0 : O_DIRECTORY));
		int reason = errno;
		close(at);
		errno = reason;
		at = next;
		inner += length;
	}
	return at;
}

/* Puts the detached mount `tree` onto `target`. Everything is nosuid and nodev; what is writable is not executable.
 * NULL, or what went wrong (with errno). */
const char *attach_bind(int tree, int target, bool writable)
{
	struct mount_attributes flags = {.set = ATTR_NOSUID | ATTR_NODEV | (writable ? ATTR_NOEXEC : ATTR_RDONLY)};
	if (syscall(SYS_mount_setattr, tree, "", EMPTY_PATH, &flags, sizeof(flags)) < 0)
		return "mount_setattr";
	if (syscall(SYS_move_mount, tree, "", target, "", FROM_EMPTY_PATH | TO_EMPTY_PATH) < 0)
		return "move_mount";
	return NULL;
}

static void make_bind(int root, const struct bind *bind)
{
	struct stat about;
	/* Not recursive: what is mounted below a directory of the host is not shown. */
	int tree = (int)syscall(SYS_open_tree, AT_FDCWD, bind->host, OPEN_TREE_CLONE | TREE_CLOEXEC);
	check(tree, "open", bind->host);
	check(fstat(tree, &about), "stat", bind->host);
	int target = make_target(root, bind->inner, S_ISDIR(about.st_mode));
	check(target, "make in the capsule", bind->inner);
	const char *wrong = attach_bind(tree, target, bind->writable);
	check(wrong ? -1 : 0, wrong ? wrong : "", bind->host);
	close(target);
	close(tree);
}

static void make_directory(int root, const char *inner, mode_t mode, const struct spec *owner)
{
	int made = make_target(root, inner, true);
	check(made, "make in the capsule", inner);
	check(fchmodat(root, inner + 1, mode, 0), "chmod", inner);
	if (owner)
		check(fchownat(root, inner + 1, (uid_t)owner->uid, (gid_t)owner->gid, 0), "chown", inner);
	close(made);
}

static void make_device(int root, const struct device *device, mode_t mode, const struct spec *owner)
{
	char parent[4096];
	const char *name = device->inner + 1, *slash = strrchr(device->inner, '/');
	snprintf(parent, sizeof(parent), "%.*s", (int)(slash - device->inner), device->inner);
	if (*parent)
		make_directory(root, parent, 0755, NULL);
	check(mknodat(root, name, S_IFCHR, makedev((unsigned)device->major, (unsigned)device->minor)), "mknod", device->inner);
	check(fchmodat(root, name, mode, 0), "chmod", device->inner);
	if (owner)
		check(fchownat(root, name, (uid_t)owner->uid, (gid_t)owner->gid, 0), "chown", device->inner);
}

static void build_root(const struct spec *spec)
{
	static const struct device common[] = {{"/dev/null", 1, 3}, {"/dev/zero", 1, 5}, {"/dev/urandom", 1, 9}};
	check(mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL), "make mounts private", "");
	/* Over /proc, in our own namespace only: it exists everywhere, and nothing that we bind lies below it. */
	check(mount("capsule", "/proc", "tmpfs", MS_NOSUID | MS_NOEXEC, "size=4m,nr_inodes=4k,mode=0755"), "mount", "tmpfs");
	check(chdir("/proc"), "enter", "tmpfs");
	check(mkdir("root", 0755), "make", "root");
	int root = open("root", O_PATH | O_DIRECTORY | O_CLOEXEC);
	check(root, "open", "root");
	check(chmod("root", 0755), "chmod", "root");
	make_directory(root, "/vm", 0755, NULL);
	make_directory(root, "/vm/run", 0700, spec);
	make_directory(root, "/vm/out", 0700, spec);
	make_directory(root, "/tmp", 0700, spec);
	for (size_t i = 0; i < sizeof(common) / sizeof(*common); i++)
		make_device(root, &common[i], 0666, NULL);
	for (size_t i = 0; i < spec->device_count; i++)
		make_device(root, &spec->devices[i], 0600, spec);
	for (size_t i = 0; i < spec->bind_count; i++)
		make_bind(root, &spec->binds[i]);
	close(root);
	failpoint("built");
	/* The old root ends up on top of the new one at the same place, and is taken off (pivot_root(2)). */
	check(syscall(SYS_pivot_root, ".", "."), "pivot_root", "");
	check(umount2(".", MNT_DETACH), "detach", "the old root");
	check(chroot("root"), "chroot", "");
	check(chdir("/"), "enter", "the capsule");
}

static void enter_namespaces(const struct spec *spec)
{
	check(unshare(CLONE_NEWNS), "new mount namespace", "");
	require(spec, unshare(CLONE_NEWIPC | CLONE_NEWUTS), "private-ipc", "new IPC and UTS namespaces");
	if (*spec->netns) {
		char path[300];
		snprintf(path, sizeof(path), "/run/netns/%s", spec->netns);
		int netns = strchr(spec->netns, '/') ? -1 : open(path, O_RDONLY | O_CLOEXEC);
		check(netns, "open network namespace", path);
		check(setns(netns, CLONE_NEWNET), "enter network namespace", path);
		close(netns);
	} else {
		require(spec, unshare(CLONE_NEWNET), "private-network", "new network namespace");
	}
	sethostname(spec->vm, strlen(spec->vm) > 63 ? 63 : strlen(spec->vm)); /* only a name; in vain when not ours */
}

/* Gives up every capability but those in `keep`, for good: no program that is executed later gets one back. */
static void drop_capabilities(const struct spec *spec, uint32_t keep)
{
	struct { uint32_t version; int pid; } header = {CAPABILITY_VERSION_3, 0};
	struct { uint32_t effective, permitted, inheritable; } sets[2] = {{keep, keep, 0}, {0, 0, 0}};
	const char *name = "no-capabilities";
	prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
	for (unsigned long i = 0; i < 64 && prctl(PR_CAPBSET_READ, i, 0, 0, 0) >= 0; i++)
		if (!(i < 32 && keep & (1u << i)))
			require(spec, prctl(PR_CAPBSET_DROP, i, 0, 0, 0), name, "drop a capability");
	require(spec, prctl(PR_SET_SECUREBITS, SECUREBITS, 0, 0, 0), name, "lock the secure bits");
	if (!keep) {
		uid_t real, effective, saved;
		require(spec, setgroups(0, NULL), "own-uid", "drop groups");
		require(spec, setresgid((gid_t)spec->gid, (gid_t)spec->gid, (gid_t)spec->gid), "own-uid", "setgid");
		require(spec, setresuid((uid_t)spec->uid, (uid_t)spec->uid, (uid_t)spec->uid), "own-uid", "setuid");
		if (!getresuid(&real, &effective, &saved) && (!real || !effective || !saved)) {
			errno = EPERM;
			require(spec, -1, "own-uid", "the VMM would be root");
		}
	}
	require(spec, syscall(SYS_capset, &header, sets), name, "give up capabilities");
	require(spec, prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), name, "no_new_privs");
}

static void limit(int what, uint64_t most, const char *name)
{
	struct rlimit limits = {most, most};
	if (setrlimit(what, &limits) == 0)
		return;
	/* Without CAP_SYS_RESOURCE the hard limit stays; the VMM may still do with less. */
	getrlimit(what, &limits);
	limits.rlim_cur = limits.rlim_max;
	setrlimit(what, &limits);
	note('w', "limit of %s stays at %llu", name, (unsigned long long)limits.rlim_max);
}

static _Noreturn void start_vmm(struct spec *spec)
{
	char go;
	sigset_t none;
	setsid(); /* without a controlling terminal: what the guest types cannot become a signal */
	dup2(0, 1);
	limit(RLIMIT_NOFILE, spec->open_files, "open files");
	limit(RLIMIT_MEMLOCK, spec->memlock, "locked memory");
	limit(RLIMIT_CORE, 0, "core");
	drop_capabilities(spec, 0);
	prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0); /* cleared by the change of uid, so only now */
	failpoint("vmm");
	/* The supervisor learns our pid from the credentials of this message, and answers when it has noted it. */
	if (send(BIRTH, "v", 1, MSG_NOSIGNAL) != 1 || recv(BIRTH, &go, 1, 0) != 1)
		_exit(1);
	for (int number = 1; number < 65; number++)
		signal(number, SIG_DFL);
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	close_from(3, CLOEXEC_RANGE); /* BIRTH too: its end tells that we are the VMM now */
	execve(spec->arguments[0], spec->arguments, spec->environment);
	fail("execute %s: %s", spec->arguments[0], strerror(errno));
}

/* Waits for the VMM. SIGTERM is passed on and after a while followed by SIGKILL; SIGINT means SIGKILL at once.
 * A VMM that were PID 1 itself would not get the SIGTERM at all (pid_namespaces(7)). */
static _Noreturn void keep_vmm(pid_t vmm, uint64_t kill_after_ms)
{
	sigset_t all;
	siginfo_t about;
	uint64_t deadline = 0;
	int status;
	sigfillset(&all);
	for (;;) {
		uint64_t now = now_ms(), left = deadline > now ? deadline - now : 0;
		struct timespec wait = {(time_t)(left / 1000), (long)(left % 1000) * 1000000};
		int number = deadline ? sigtimedwait(&all, &about, &wait) : sigwaitinfo(&all, &about);
		if (number == SIGTERM && !deadline) {
			kill(vmm, SIGTERM);
			deadline = now_ms() + kill_after_ms + 1;
		} else if (number == SIGINT || (number < 0 && errno == EAGAIN)) {
			kill(vmm, SIGKILL);
			deadline = 0;
		}
		for (pid_t gone; (gone = waitpid(-1, &status, WNOHANG)) > 0;) {
			if (gone != vmm)
				continue;
			failpoint("reaped");
			if (write(ENDING, &status, sizeof(status)) < 0)
				_exit(1);
			_exit(0);
		}
	}
}

/* `cords` are the ends that the supervisor made for us; `own_pids` is false when there is no PID namespace. */
_Noreturn void capsule_main(struct spec *spec, const struct cords *cords, bool own_pids)
{
	const int kept[] = {cords->terminal, cords->terminal, cords->errors, cords->birth, cords->ending};
	for (int i = 0; i < 5; i++)
		dup2(kept[i], i); /* all of them are above 6 */
	close(FD_REPORT);
	close_from(FD_FIRST_FREE, 0);
	/* PDEATHSIG comes too late when the supervisor has died already: then nobody reads our words. */
	struct pollfd supervisor = {.fd = ENDING, .events = POLLOUT};
	prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
	if (poll(&supervisor, 1, 0) == 1 && supervisor.revents & POLLERR)
		_exit(1);
	if (!own_pids)
		note('u', "private-pids\tnew PID namespace: not permitted");
	setsid();
	failpoint("building");
	enter_namespaces(spec);
	build_root(spec);
	pid_t vmm = fork();
	check(vmm, "fork", "");
	if (!vmm)
		start_vmm(spec);
	drop_capabilities(spec, 1u << KILL_CAPABILITY);
	prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
	int nowhere = open("/dev/null", O_RDWR | O_CLOEXEC);
	for (int i = 0; i < 3; i++)
		dup2(nowhere, i); /* the VMM's terminal and pipe end with the VMM */
	close(nowhere);
	close(BIRTH);
	uint64_t kill_after_ms = spec->kill_after_ms;
	spec_free(spec);
	keep_vmm(vmm, kill_after_ms);
}
