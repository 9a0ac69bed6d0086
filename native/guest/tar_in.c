/* `tar-in`: unpacks the archive on stdin into a directory, in a process of its own. Every name is resolved by the kernel
 * inside that directory (openat2, RESOLVE_IN_ROOT), so that no "..", no absolute name and no symbolic link of an archive
 * leads out of it. What does not go is told on stderr; the rest goes on. */
#define _GNU_SOURCE
#include "agent.h"
#include "tar.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/xattr.h>
#include <unistd.h>

#ifndef SYS_openat2
#define SYS_openat2 437
#endif
#define IN_ROOT 0x10
#define NO_MAGIC_LINKS 0x02
/* Directories get their mode and time at the end: writing into them would change both. */
#define MAX_LATE 65536

struct late {
	char *name;
	mode_t mode;
	long long mtime;
};

static struct {
	int root;
	struct late *late;
	size_t late_count;
	bool incomplete;
} in;

static void report(const char *name, const char *what)
{
	dprintf(2, "%.300s: %s\n", name, what);
	in.incomplete = true;
}

static int open_inside(const char *name, int flags, mode_t mode)
{
	const struct { uint64_t flags, mode, resolve; } how = {
		.flags = (uint64_t)(flags | O_CLOEXEC), .mode = mode, .resolve = IN_ROOT | NO_MAGIC_LINKS,
	};

	return (int)syscall(SYS_openat2, in.root, name, &how, sizeof how);
}

/* Opens a directory inside, and makes what is missing on the way. `path` comes back as it was. */
static int open_directory(char *path)
{
	int fd = open_inside(*path ? path : ".", O_RDONLY | O_DIRECTORY, 0);

	if (fd >= 0 || errno != ENOENT || !*path)
		return fd;
	char *slash = strrchr(path, '/');
	if (slash)
		*slash = '\0';
	int above = slash ? open_directory(path) : open_inside(".", O_RDONLY | O_DIRECTORY, 0);
	if (slash)
		*slash = '/';
	if (above < 0)
		return -1;
	mkdirat(above, slash ? slash + 1 : path, 0755);
	close(above);
	return open_inside(path, O_RDONLY | O_DIRECTORY, 0);
}

/* The directory that `name` is in; its last part goes to `*last`. */
static int open_parent(const char *name, const char **last)
{
	char path[PATH_MAX];

	snprintf(path, sizeof path, "%s", name);
	char *slash = strrchr(path, '/');
	*last = slash ? name + (slash - path) + 1 : name;
	*(slash ? slash : path) = '\0';
	return open_directory(path);
}

static bool write_content(int fd, const char *name, long long size)
{
	static char bytes[64 * 1024];
	bool full = false;

	for (long long left = size; left > 0;) {
		size_t part = left < (long long)sizeof bytes ? (size_t)left : sizeof bytes;
		if (!tar_read(bytes, part))
			return false;
		for (size_t done = 0; !full && done < part;) {
			ssize_t count = write(fd, bytes + done, part - done);
			if (count < 0 && errno != EINTR) {
				report(name, strerror(errno));
				full = true;
			}
			done += count > 0 ? (size_t)count : 0;
		}
		left -= (long long)part;
	}
	return tar_skip(tar_padded(size) - size);
}

static void set_times(int parent, const char *last, long long mtime)
{
	const struct timespec times[2] = {{.tv_nsec = UTIME_OMIT}, {.tv_sec = mtime}};

	utimensat(parent, last, times, AT_SYMLINK_NOFOLLOW);
}

static void set_attributes(const struct tar_member *member, int parent, const char *last)
{
	char path[PATH_MAX];

	for (size_t i = 0; i < member->attribute_count; i++) {
		const char *name = member->attributes[i], *value = name + strlen(name) + 1;
		if ((size_t)snprintf(path, sizeof path, "/proc/self/fd/%d/%s", parent, last) < sizeof path)
			lsetxattr(path, name, value, member->lengths[i], 0);
	}
}

static void remember(const struct tar_member *member)
{
	if (in.late_count % 64 == 0 && in.late_count < MAX_LATE) {
		struct late *longer = realloc(in.late, (in.late_count + 64) * sizeof *longer);
		if (!longer)
			return;
		in.late = longer;
	}
	char *name = in.late_count < MAX_LATE ? strdup(member->name) : NULL;
	if (name)
		in.late[in.late_count++] = (struct late){.name = name, .mode = member->mode, .mtime = member->mtime};
}

/* Whatever is in the way of a file goes, an empty directory too; a directory's place keeps a directory. */
static void clear_place(int parent, const char *last)
{
	if (unlinkat(parent, last, 0) < 0 && (errno == EISDIR || errno == EPERM))
		unlinkat(parent, last, AT_REMOVEDIR);
}

static int make_hard_link(const struct tar_member *member, int parent, const char *last)
{
	char path[64];
	int fd = open_inside(member->link, O_PATH | O_NOFOLLOW, 0);

	if (fd < 0)
		return -1;
	snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
	int result = linkat(AT_FDCWD, path, parent, last, AT_SYMLINK_FOLLOW);
	close(fd);
	return result;
}

static int make_directory(int parent, const char *last)
{
	struct stat status;

	if (fstatat(parent, last, &status, 0) == 0 && S_ISDIR(status.st_mode))
		return 0;
	clear_place(parent, last);
	return mkdirat(parent, last, 0700);
}

static int make_node(const struct tar_member *member, int parent, const char *last)
{
	static const mode_t types[] = {['3'] = S_IFCHR, ['4'] = S_IFBLK, ['6'] = S_IFIFO};

	switch (member->type) {
	case '1':
		return make_hard_link(member, parent, last);
	case '2':
		return symlinkat(member->link, parent, last);
	case '3':
	case '4':
	case '6':
		return mknodat(parent, last, types[(int)member->type] | 0600, member->device);
	}
	errno = ENOTSUP;
	return -1;
}

/* Owner before mode, since a change of the owner takes set-uid away; attributes after the owner for the same reason. */
static void dress(const struct tar_member *member, int parent, const char *last)
{
	if (member->type == '1')
		return;
	if (fchownat(parent, last, member->uid, member->gid, AT_SYMLINK_NOFOLLOW) < 0)
		report(member->name, strerror(errno));
	if (member->type != '2' && member->type != '5')
		fchmodat(parent, last, member->mode, 0);
	set_attributes(member, parent, last);
	set_times(parent, last, member->mtime);
	if (member->type == '5')
		remember(member);
}

static bool unpack(const struct tar_member *member)
{
	const char *last;
	bool is_file = member->type == '0', whole = true;
	int parent = open_parent(member->name, &last);

	if (parent < 0 || !*last || strcmp(last, "..") == 0) {
		report(member->name, parent < 0 ? strerror(errno) : "no name for a member");
		whole = !is_file || tar_skip(tar_padded(member->size));
	} else if (is_file) {
		clear_place(parent, last);
		int fd = openat(parent, last, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
		if (fd < 0)
			report(member->name, strerror(errno));
		whole = fd < 0 ? tar_skip(tar_padded(member->size)) : write_content(fd, member->name, member->size);
		if (fd >= 0)
			close(fd);
		if (fd >= 0 && whole)
			dress(member, parent, last);
	} else {
		if (member->type != '5')
			clear_place(parent, last);
		if ((member->type == '5' ? make_directory(parent, last) : make_node(member, parent, last)) < 0)
			report(member->name, strerror(errno));
		else
			dress(member, parent, last);
	}
	if (parent >= 0)
		close(parent);
	return whole;
}

/* False when the archive ends within it. */
static bool take_member(const struct tar_member *member)
{
	bool is_file = member->type == '0';

	if (member->type >= '0' && member->type <= '6')
		return (is_file || member->type == '1' || tar_skip(tar_padded(member->size))) && unpack(member);
	report(member->name, "a kind of member that is not known");
	return tar_skip(tar_padded(member->size));
}

static void dress_directories(void)
{
	while (in.late_count--) {
		const struct late *late = &in.late[in.late_count];
		const struct timespec times[2] = {{.tv_nsec = UTIME_OMIT}, {.tv_sec = late->mtime}};
		int fd = open_inside(late->name, O_RDONLY | O_DIRECTORY, 0);
		if (fd < 0)
			continue;
		fchmod(fd, late->mode);
		futimens(fd, times);
		close(fd);
	}
}

int tar_in_task(const struct request *request)
{
	const char *path = find_record(request, "path");
	static struct tar_member member;
	enum tar_next next = TAR_MEMBER;

	umask(0);
	in.root = path ? open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;
	if (in.root < 0 || (open_inside(".", O_RDONLY | O_DIRECTORY, 0) < 0 && errno == ENOSYS)) {
		report(path ? path : "tar-in", path ? strerror(errno) : "no path given");
		return 1;
	}
	while (next == TAR_MEMBER && (next = tar_next(&member)) == TAR_MEMBER)
		if (!take_member(&member))
			next = TAR_BROKEN;
	dress_directories();
	if (next == TAR_BROKEN)
		report(path, "the archive is damaged or ends too early");
	while (tar_skip(BLOCK)) /* whoever sends more than the end is not held up */
		;
	return in.incomplete;
}
