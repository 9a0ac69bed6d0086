/* What connections are made of: the virtio ports of this machine, or whatever a listening socket accepts. */
#define _GNU_SOURCE
#include "agent.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#define PORT_PREFIX "cocoon."

static int open_port(const char *port)
{
	char path[300], name[128];

	snprintf(path, sizeof path, "/sys/class/virtio-ports/%s/name", port);
	if (read_file(path, name, sizeof name) <= 0 || strncmp(trim(name), PORT_PREFIX, strlen(PORT_PREFIX)) != 0)
		return -1;
	snprintf(path, sizeof path, "/dev/%s", port);
	return open(path, O_RDWR | O_NONBLOCK | O_CLOEXEC);
}

bool open_ports(void)
{
	DIR *directory = opendir("/sys/class/virtio-ports");
	struct dirent *entry;
	bool found = false;

	while (directory && (entry = readdir(directory))) {
		int fd = entry->d_name[0] == '.' ? -1 : open_port(entry->d_name);
		if (fd >= 0)
			found = add_connection(fd, true) != NULL || found;
	}
	if (directory)
		closedir(directory);
	return found;
}

static void accept_clients(struct watch *watch, uint32_t events)
{
	int fd = accept4(watch->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);

	(void)events;
	if (fd >= 0 && !add_connection(fd, false))
		close(fd);
}

void listen_at(int listening_fd)
{
	static struct watch listener;

	if (!add_watch(&listener, listening_fd, EPOLLIN, accept_clients))
		fail("cannot listen for clients: %s", strerror(errno));
}
