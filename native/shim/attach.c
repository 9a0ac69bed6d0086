/* cocoon-shim attach PID TICKS HOST INNER ro|rw: puts a file or directory of the host into the capsule whose PID 1 is
 * that process. The mount is made on the host's side and moved over, so the capsule never sees a path of the host. */
#include "shim.h"

#include <sched.h>

static int complain(const char *what, const char *value)
{
	char line[MESSAGE];
	snprintf(line, sizeof(line), "%s %s: %s\n", what, value, strerror(errno));
	return write(2, line, strlen(line)) < 0 ? 1 : 1;
}

int attach_main(int count, char **words)
{
	char path[32];
	struct stat about;
	if (count != 5 || words[3][0] != '/' || (strcmp(words[4], "ro") && strcmp(words[4], "rw"))) {
		errno = EINVAL;
		return complain("attach", "PID TICKS HOST INNER ro|rw");
	}
	/* Everything through one descriptor of /proc/PID: once its start time is right, it stays that process. */
	snprintf(path, sizeof(path), "/proc/%.20s", words[0]);
	int process = open(path, O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (process < 0 || start_ticks(process, "stat") != strtoull(words[1], NULL, 10)) {
		errno = ESRCH;
		return complain("process", words[0]);
	}
	int root = openat(process, "root", O_PATH | O_DIRECTORY | O_CLOEXEC);
	int mounts = openat(process, "ns/mnt", O_RDONLY | O_CLOEXEC);
	if (root < 0 || mounts < 0)
		return complain("open", path);
	int tree = (int)syscall(SYS_open_tree, AT_FDCWD, words[2], 1 | O_CLOEXEC); /* OPEN_TREE_CLONE */
	if (tree < 0 || fstat(tree, &about) < 0)
		return complain("open", words[2]);
	if (setns(mounts, CLONE_NEWNS) < 0)
		return complain("enter", path);
	umask(077);
	int target = make_target(root, words[3], S_ISDIR(about.st_mode));
	if (target < 0)
		return complain("make in the capsule", words[3]);
	const char *wrong = attach_bind(tree, target, !strcmp(words[4], "rw"));
	return wrong ? complain(wrong, words[3]) : 0;
}
