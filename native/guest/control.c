/* The control channel: lines of text over a virtio-serial port, one at a time, each answered by one line.
 *
 *   ping TEXT           -> pong TEXT
 *   shutdown [SECONDS]  -> ok, then an orderly shutdown with that grace
 *   anything else       -> error unknown
 *   (by itself)            exit STATUS, when the command has ended and a host is listening
 *
 * The host may go and come back at any time: a half line is dropped when it goes. A host that does not read loses
 * answers and stalls nobody. The transport is only in open_channel; a vsock will give a descriptor as well. */
#define _GNU_SOURCE
#include "guest.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define PORT_NAME "cocoon.control"
#define DEFAULT_GRACE_S 10
#define MAX_GRACE_S 3600

static int open_port(const char *port)
{
	char path[300], name[128];

	snprintf(path, sizeof path, "/sys/class/virtio-ports/%s/name", port);
	if (read_file(path, name, sizeof name) <= 0 || strcmp(trim(name), PORT_NAME) != 0)
		return -1;
	snprintf(path, sizeof path, "/dev/%s", port);
	return open(path, O_RDWR | O_NONBLOCK | O_CLOEXEC);
}

int open_channel(struct channel *channel)
{
	DIR *directory = opendir("/sys/class/virtio-ports");
	struct dirent *entry;

	memset(channel, 0, sizeof *channel);
	channel->fd = -1;
	while (directory && channel->fd < 0 && (entry = readdir(directory)))
		if (entry->d_name[0] != '.')
			channel->fd = open_port(entry->d_name);
	if (directory)
		closedir(directory);
	return channel->fd;
}

void send_line(struct channel *channel, const char *format, ...)
{
	char line[sizeof channel->line + 16];
	va_list arguments;

	if (channel->fd < 0)
		return;
	va_start(arguments, format);
	int length = vsnprintf(line, sizeof line - 1, format, arguments);
	va_end(arguments);
	if (length > (int)sizeof line - 2)
		length = sizeof line - 2;
	line[length++] = '\n';
	/* One write: the port takes 32 KiB whole or, without a listener, nothing. */
	if (write(channel->fd, line, (size_t)length) < 0 && errno != EAGAIN)
		complain("cannot answer on the control channel: %s", strerror(errno));
}

static enum request answer(struct channel *channel, char *line, long *grace_s)
{
	if (strncmp(line, "ping ", 5) == 0 || strcmp(line, "ping") == 0) {
		send_line(channel, "pong%s", line + 4);
	} else if (strcmp(line, "shutdown") == 0) {
		*grace_s = DEFAULT_GRACE_S;
		send_line(channel, "ok");
		return REQUEST_SHUTDOWN;
	} else if (strncmp(line, "shutdown ", 9) == 0 && parse_number(line + 9, 0, MAX_GRACE_S, grace_s)) {
		send_line(channel, "ok");
		return REQUEST_SHUTDOWN;
	} else if (*line) {
		send_line(channel, "error unknown");
	}
	return REQUEST_NONE;
}

static enum request take_byte(struct channel *channel, char byte, long *grace_s)
{
	if (byte != '\n') {
		if (channel->used < sizeof channel->line - 1)
			channel->line[channel->used++] = byte;
		else
			channel->overlong = true;
		return REQUEST_NONE;
	}
	enum request request = REQUEST_NONE;
	channel->line[channel->used] = '\0';
	if (channel->overlong)
		send_line(channel, "error too long");
	else
		request = answer(channel, channel->line, grace_s);
	channel->used = 0;
	channel->overlong = false;
	return request;
}

/* Takes what has arrived. Call it at every edge that epoll reports: it reads until nothing is left. */
enum request serve_channel(struct channel *channel, long *grace_s)
{
	char bytes[512];
	ssize_t count;

	while ((count = read(channel->fd, bytes, sizeof bytes)) > 0)
		for (ssize_t i = 0; i < count; i++)
			if (take_byte(channel, bytes[i], grace_s) == REQUEST_SHUTDOWN)
				return REQUEST_SHUTDOWN;
	if (count == 0) { /* the host has gone */
		channel->used = 0;
		channel->overlong = false;
	}
	return REQUEST_NONE;
}
