/* Loads what the initramfs carries, in the order that the engine worked out from the modules' dependencies. */
#define _GNU_SOURCE
#include "guest.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

/* A module that is there already, or whose hardware is absent, is no failure. */
static void load_module(const char *name)
{
	char path[256];

	snprintf(path, sizeof path, "/modules/%s", name);
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0) {
		complain("cannot open module %s: %s", name, strerror(errno));
		return;
	}
	if (syscall(SYS_finit_module, fd, "", 0) < 0 && errno != EEXIST && errno != ENODEV)
		complain("cannot load module %s: %s", name, strerror(errno));
	close(fd);
}

void load_modules(const char *order_path)
{
	static char order[16384];

	if (read_file(order_path, order, sizeof order) < 0)
		fail("cannot read %s: %s", order_path, strerror(errno));
	for (char *name = strtok(order, "\n"); name; name = strtok(NULL, "\n"))
		load_module(name);
}
