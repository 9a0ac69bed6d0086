/* How a machine without power management ends, whatever ends it. Its VMM ends on a reset; a kernel that is to power off only
 * halts there, and the VMM would be left with nothing in it. Our own PID 1 reboots instead (main.c); so does systemd, by
 * this program, which it runs last of all from its directory for that (systemd-shutdown(8)). */
#define _GNU_SOURCE
#include "guest.h"

#include <fcntl.h>
#include <string.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <unistd.h>

#define HOOKS "/usr/lib/systemd/system-shutdown"

/* The engine says `reboot=` to the kernel of such a machine. */
bool ends_by_reboot(void)
{
	char words[8192] = " ";

	return read_file("/proc/cmdline", words + 1, sizeof words - 1) > 0 && strstr(words, " reboot=");
}

static bool copy_file(int source, int target)
{
	char bytes[16384];
	ssize_t count;

	while ((count = read(source, bytes, sizeof bytes)) > 0)
		if (write(target, bytes, (size_t)count) != count)
			return false;
	return count == 0;
}

/* Puts this program where systemd finds it; an image without systemd has no such place. */
void leave_ending(void)
{
	int source, target;

	if (!ends_by_reboot() || access(HOOKS, F_OK) < 0)
		return;
	unlink(HOOKS "/" ENDING_NAME);
	source = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
	target = open(HOOKS "/" ENDING_NAME, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0755);
	if (source < 0 || target < 0 || !copy_file(source, target)) {
		complain("poweroff will only halt this machine: cannot write " HOOKS "/" ENDING_NAME);
		unlink(HOOKS "/" ENDING_NAME);
	}
	if (source >= 0)
		close(source);
	if (target >= 0)
		close(target);
}

/* `what` is systemd's word for what it is about to do; everything is unmounted or read-only by then. */
int end_instead(const char *what)
{
	if (ends_by_reboot() && (strcmp(what, "poweroff") == 0 || strcmp(what, "halt") == 0)) {
		sync();
		reboot(RB_AUTOBOOT);
	}
	return 0;
}
