/* Where clients come in: the virtio ports of this machine, or its vsock, whichever it has. */
#define _GNU_SOURCE
#include "agent.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define PORT_PREFIX "cocoon."

/* Ports come one by one, after their driver, which may be a module that the image's init loads: so we look again for a
 * while, after 50 ms, 100 ms, and so on. */
#define FIRST_PAUSE_MS 50
#define LAST_PAUSE_MS 16000

static int open_port(const char *port, bool opened[MAX_CONNECTIONS])
{
	char path[300], name[128];
	long number;

	snprintf(path, sizeof path, "/sys/class/virtio-ports/%s/name", port);
	if (read_file(path, name, sizeof name) <= 0 || strncmp(trim(name), PORT_PREFIX, strlen(PORT_PREFIX)) != 0)
		return -1;
	if (!parse_number(trim(name) + strlen(PORT_PREFIX), 0, MAX_CONNECTIONS - 1, &number) || opened[number])
		return -1;
	snprintf(path, sizeof path, "/dev/%s", port);
	int fd = open(path, O_RDWR | O_NONBLOCK | O_CLOEXEC);
	opened[number] = fd >= 0;
	return fd;
}

/* How many ports were opened. None: this machine has none, or another program serves them. */
static size_t open_ports(void)
{
	static bool opened[MAX_CONNECTIONS];
	DIR *directory = opendir("/sys/class/virtio-ports");
	struct dirent *entry;
	size_t count = 0;

	while (directory && (entry = readdir(directory))) {
		int fd = entry->d_name[0] == '.' ? -1 : open_port(entry->d_name, opened);
		if (fd >= 0 && !add_connection(fd, true))
			close(fd);
		count += fd >= 0;
	}
	if (directory)
		closedir(directory);
	return count;
}

/* Looks for ports when it is time; says when to come again, 0 for never, and in `*found` how many there are by now. */
int64_t find_ports(size_t *found)
{
	static int64_t next_ms, pause_ms = FIRST_PAUSE_MS;
	static size_t count;
	int64_t now = now_ms();

	if (pause_ms <= LAST_PAUSE_MS && now >= next_ms) {
		count += open_ports() + open_vsock();
		next_ms = now + pause_ms;
		pause_ms *= 2;
	}
	*found = count;
	return pause_ms <= LAST_PAUSE_MS ? next_ms : 0;
}
