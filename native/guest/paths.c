/* `stat`: what a copy must know about a path of the guest before it begins. */
#define _GNU_SOURCE
#include "agent.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static const char *type_of(mode_t mode)
{
	return S_ISREG(mode) ? "file" : S_ISDIR(mode) ? "directory" : S_ISLNK(mode) ? "link" : "other";
}

/* Records on stdout; status 1, and a line on stderr, when there is no such path. */
int stat_task(const struct request *request)
{
	const char *path = find_record(request, "path");
	char target[PATH_MAX] = "";
	struct stat status, resolved;

	if (!path || lstat(path, &status) < 0) {
		dprintf(2, "%s: %s\n", path ? path : "no path", path ? strerror(errno) : "given");
		return 1;
	}
	if (S_ISLNK(status.st_mode)) {
		ssize_t length = readlink(path, target, sizeof target - 1);
		target[length < 0 ? 0 : length] = '\0';
	}
	const char *resolves = stat(path, &resolved) == 0 ? type_of(resolved.st_mode) : "nothing";
	printf("type=%s%cmode=%o%csize=%lld%cuid=%u%cgid=%u%cmtime=%lld%ctarget=%s%cresolves=%s%c", type_of(status.st_mode), 0,
	       status.st_mode & 07777, 0, (long long)status.st_size, 0, status.st_uid, 0, status.st_gid, 0,
	       (long long)status.st_mtime, 0, target, 0, resolves, 0);
	fflush(stdout);
	return 0;
}
