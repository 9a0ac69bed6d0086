/* The machine's console, as a file of this root. */
#define _GNU_SOURCE
#include "agent.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

/* /dev/console cannot be reopened by name as somebody's terminal (tty(1), ssh, screen), its driver's node can. */
int open_console(int flags)
{
	char names[256], path[300];

	if (read_file("/sys/class/tty/console/active", names, sizeof names) > 0) {
		char *name = trim(names), *last = strrchr(name, ' ');
		snprintf(path, sizeof path, "/dev/%s", last ? last + 1 : name);
		int fd = open(path, flags | O_NOCTTY | O_CLOEXEC);
		if (fd >= 0)
			return fd;
	}
	return open("/dev/console", flags | O_NOCTTY | O_CLOEXEC);
}

/* A serial line carries no size: whoever sits at its other end says it here, and what runs on it gets SIGWINCH. */
bool resize_console(unsigned rows, unsigned columns)
{
	const struct winsize size = {.ws_row = (unsigned short)rows, .ws_col = (unsigned short)columns};
	int fd = open_console(O_RDWR | O_NONBLOCK);
	bool done = fd >= 0 && ioctl(fd, TIOCSWINSZ, &size) == 0;

	if (fd >= 0)
		close(fd);
	return done;
}
