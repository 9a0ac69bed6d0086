/* `tar-out`: a pax archive of one path of the guest on stdout, in a process of its own. Nothing is followed, what cannot be
 * read is told on stderr and left out, and what shrinks while it is read is filled up with zeros. */
#define _GNU_SOURCE
#include "agent.h"
#include "tar.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/xattr.h>
#include <unistd.h>

#define MAX_DEPTH 1024

/* Files with several names: the first is archived whole, the others as links to it. */
struct seen {
	struct seen *next;
	dev_t device;
	ino_t inode;
	char name[];
};

static struct {
	unsigned char buffer[64 * 1024];
	size_t used;
	char *extended;
	size_t extended_used;
	struct seen *seen[1024];
	bool incomplete;
} out;

static void report(const char *name, const char *what)
{
	dprintf(2, "%s: %s\n", name, what);
	out.incomplete = true;
}

/* A client that went away ends us by SIGPIPE. */
static void flush(void)
{
	for (size_t done = 0; done < out.used;) {
		ssize_t count = write(1, out.buffer + done, out.used - done);
		if (count < 0 && errno != EINTR)
			_exit(1);
		done += count > 0 ? (size_t)count : 0;
	}
	out.used = 0;
}

static void put(const void *bytes, size_t count)
{
	while (count) {
		size_t room = sizeof out.buffer - out.used, part = count < room ? count : room;
		memcpy(out.buffer + out.used, bytes, part);
		out.used += part;
		bytes = (const char *)bytes + part;
		count -= part;
		if (out.used == sizeof out.buffer)
			flush();
	}
}

static void pad(unsigned long long size)
{
	static const char zeros[BLOCK];

	put(zeros, (size_t)(-size % BLOCK));
}

/* One record of a pax header: "<length> <key>=<value>\n", where the length counts itself. */
static void extend(const char *key, const void *value, size_t size)
{
	size_t rest = strlen(key) + size + 3, length = rest + 1;
	char digits[24];

	while (length != rest + (size_t)snprintf(digits, sizeof digits, "%zu", length))
		length = rest + strlen(digits);
	if (out.extended_used + length > MAX_EXTENDED)
		return;
	if (!out.extended && !(out.extended = malloc(MAX_EXTENDED + 1)))
		_exit(1);
	char *at = out.extended + out.extended_used;
	int head = snprintf(at, MAX_EXTENDED + 1 - out.extended_used, "%zu %s=", length, key);
	memcpy(at + head, value, size);
	at[length - 1] = '\n';
	out.extended_used += length;
}

/* A number as octal digits, or in the pax header when it has too many. */
static void set_number(char *field, size_t size, unsigned long long number, const char *key)
{
	char text[32];
	int length = snprintf(text, sizeof text, "%0*llo", (int)size - 1, number);

	if ((size_t)length < size) {
		memcpy(field, text, size);
		return;
	}
	memset(field, '0', size - 1);
	if (key) {
		length = snprintf(text, sizeof text, "%llu", number);
		extend(key, text, (size_t)length);
	}
}

static void set_text(char *field, size_t size, const char *text, const char *key)
{
	size_t length = strlen(text);

	memcpy(field, text, length < size ? length : size);
	if (length > size)
		extend(key, text, length);
}

unsigned tar_checksum(const struct tar_header *header)
{
	const unsigned char *bytes = (const unsigned char *)header;
	unsigned sum = 0;

	for (size_t i = 0; i < BLOCK; i++)
		sum += i >= offsetof(struct tar_header, checksum) && i < offsetof(struct tar_header, type) ? ' ' : bytes[i];
	return sum;
}

bool is_copied_attribute(const char *name)
{
	return strncmp(name, "user.", 5) == 0 || strcmp(name, "security.capability") == 0 ||
	       strncmp(name, "system.posix_acl_", 17) == 0;
}

static void finish_header(struct tar_header *header, char type)
{
	header->type = type;
	memcpy(header->magic, "ustar", 6);
	memcpy(header->version, "00", 2);
	snprintf(header->checksum, sizeof header->checksum, "%06o", tar_checksum(header));
	header->checksum[7] = ' ';
	put(header, sizeof *header);
}

static void write_extended(void)
{
	struct tar_header header = {.name = "pax-header"};

	if (!out.extended_used)
		return;
	set_number(header.mode, sizeof header.mode, 0644, NULL);
	set_number(header.uid, sizeof header.uid, 0, NULL);
	set_number(header.gid, sizeof header.gid, 0, NULL);
	set_number(header.mtime, sizeof header.mtime, 0, NULL);
	set_number(header.size, sizeof header.size, out.extended_used, NULL);
	finish_header(&header, 'x');
	put(out.extended, out.extended_used);
	pad(out.extended_used);
	out.extended_used = 0;
}

/* `path` is /proc/self/fd/N or below: the last link of it is not followed. */
static void add_attributes(const char *path)
{
	static char names[MAX_XATTR], value[MAX_XATTR];
	ssize_t size = llistxattr(path, names, sizeof names);

	for (const char *name = names; size > 0 && name < names + size; name += strlen(name) + 1) {
		char key[300];
		ssize_t length = is_copied_attribute(name) ? lgetxattr(path, name, value, sizeof value) : -1;
		if (length < 0 || (size_t)snprintf(key, sizeof key, "SCHILY.xattr.%s", name) >= sizeof key)
			continue;
		extend(key, value, (size_t)length);
	}
}

static char type_of(mode_t mode)
{
	return S_ISREG(mode) ? '0' : S_ISLNK(mode) ? '2' : S_ISCHR(mode) ? '3' : S_ISBLK(mode) ? '4' : S_ISDIR(mode) ? '5' : '6';
}

/* The earlier name of the same file, or NULL, and then this one is remembered. */
static const char *find_earlier(const struct stat *status, const char *name)
{
	struct seen **place = &out.seen[status->st_ino % (sizeof out.seen / sizeof *out.seen)];

	for (struct seen *seen = *place; seen; seen = seen->next)
		if (seen->inode == status->st_ino && seen->device == status->st_dev)
			return seen->name;
	struct seen *seen = malloc(sizeof *seen + strlen(name) + 1);
	if (seen) {
		*seen = (struct seen){.next = *place, .device = status->st_dev, .inode = status->st_ino};
		strcpy(seen->name, name);
		*place = seen;
	}
	return NULL;
}

static void write_header(const char *name, const char *link, const struct stat *status, char type)
{
	struct tar_header header = {0};

	set_text(header.name, sizeof header.name, name, "path");
	set_text(header.link, sizeof header.link, link, "linkpath");
	set_number(header.mode, sizeof header.mode, status->st_mode & 07777, NULL);
	set_number(header.uid, sizeof header.uid, status->st_uid, "uid");
	set_number(header.gid, sizeof header.gid, status->st_gid, "gid");
	set_number(header.size, sizeof header.size, type == '0' ? (unsigned long long)status->st_size : 0, "size");
	set_number(header.mtime, sizeof header.mtime, status->st_mtime > 0 ? (unsigned long long)status->st_mtime : 0, "mtime");
	set_number(header.major, sizeof header.major, type == '3' || type == '4' ? major(status->st_rdev) : 0, NULL);
	set_number(header.minor, sizeof header.minor, type == '3' || type == '4' ? minor(status->st_rdev) : 0, NULL);
	write_extended();
	finish_header(&header, type);
}

static void write_content(int fd, const char *name, unsigned long long size)
{
	static char bytes[64 * 1024];
	unsigned long long left = size;

	while (left) {
		ssize_t count = read(fd, bytes, left < sizeof bytes ? (size_t)left : sizeof bytes);
		if (count < 0 && errno == EINTR)
			continue;
		if (count <= 0) {
			report(name, count ? strerror(errno) : "it became shorter while it was read");
			memset(bytes, 0, sizeof bytes);
			for (; left; left -= (unsigned long long)count) {
				count = left < sizeof bytes ? (ssize_t)left : (ssize_t)sizeof bytes;
				put(bytes, (size_t)count);
			}
			break;
		}
		put(bytes, (size_t)count);
		left -= (unsigned long long)count;
	}
	pad(size);
}

static void write_entry(int directory, const char *entry, const char *name, int depth);

static void write_directory(int fd, const char *name, const struct stat *status, int depth)
{
	char inner[PATH_MAX];
	bool slash = name[strlen(name) - 1] == '/';

	snprintf(inner, sizeof inner, "%s%s", name, slash ? "" : "/");
	write_header(inner, "", status, '5');
	DIR *directory = depth < MAX_DEPTH ? fdopendir(fd) : NULL;
	if (!directory) {
		report(name, depth < MAX_DEPTH ? strerror(errno) : "too deep");
		close(fd);
		return;
	}
	for (struct dirent *entry; (entry = readdir(directory));) {
		if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0)
			continue;
		if ((size_t)snprintf(inner, sizeof inner, "%s%s%s", name, slash ? "" : "/", entry->d_name) < sizeof inner)
			write_entry(dirfd(directory), entry->d_name, inner, depth + 1);
		else
			report(name, "a name in it is too long");
	}
	closedir(directory);
}

static void write_other(int directory, const char *entry, const char *name, const struct stat *status)
{
	char target[PATH_MAX] = "";

	if (S_ISSOCK(status->st_mode))
		return;
	if (S_ISLNK(status->st_mode)) {
		ssize_t length = readlinkat(directory, entry, target, sizeof target - 1);
		target[length < 0 ? 0 : length] = '\0';
	}
	write_header(name, target, status, type_of(status->st_mode));
}

static void write_entry(int directory, const char *entry, const char *name, int depth)
{
	char path[PATH_MAX];
	struct stat status;
	int fd = -1;

	if (fstatat(directory, entry, &status, AT_SYMLINK_NOFOLLOW) < 0) {
		report(name, strerror(errno));
		return;
	}
	const char *earlier = !S_ISDIR(status.st_mode) && status.st_nlink > 1 ? find_earlier(&status, name) : NULL;
	if (earlier) {
		write_header(name, earlier, &status, '1');
		return;
	}
	if (S_ISREG(status.st_mode) || S_ISDIR(status.st_mode)) {
		fd = openat(directory, entry, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
		if (fd < 0 || fstat(fd, &status) < 0) {
			report(name, strerror(errno));
			return;
		}
	}
	if (directory >= 0)
		snprintf(path, sizeof path, "/proc/self/fd/%d/%s", directory, entry);
	else
		snprintf(path, sizeof path, "%s", entry);
	add_attributes(path);
	if (fd >= 0 && S_ISDIR(status.st_mode)) {
		write_directory(fd, name, &status, depth);
	} else if (fd >= 0 && S_ISREG(status.st_mode)) {
		write_header(name, "", &status, '0');
		write_content(fd, name, (unsigned long long)status.st_size);
		close(fd);
	} else {
		write_other(directory, entry, name, &status);
	}
}

/* The name of the archive's first member: the last part of the path, "." for what has none. */
static const char *last_part(char *path)
{
	size_t length = strlen(path);

	while (length > 1 && path[length - 1] == '/')
		path[--length] = '\0';
	char *slash = strrchr(path, '/');
	const char *part = slash ? slash + 1 : path;
	return *part && strcmp(part, "..") != 0 ? part : ".";
}

int tar_out_task(const struct request *request)
{
	static const char ending[2 * BLOCK];
	const char *path = find_record(request, "path");
	char copy[PATH_MAX], resolved[PATH_MAX];

	if (!path || strlen(path) >= sizeof copy) {
		report("tar-out", path ? "the path is too long" : "no path given");
		return 1;
	}
	strcpy(copy, path);
	const char *name = last_part(copy);
	/* A slash at its end says that a link is to be followed. */
	bool follow = path[strlen(path) - (*path ? 1 : 0)] == '/';
	if (follow && !realpath(path, resolved)) {
		report(path, strerror(errno));
		return 1;
	}
	write_entry(AT_FDCWD, follow ? resolved : copy, name, 0);
	put(ending, sizeof ending);
	flush();
	return out.incomplete;
}
