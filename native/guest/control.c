/* The control channel: lines of text over a virtio-serial port, one at a time, each answered by one line.
 *
 *   ping TEXT           -> pong TEXT
 *   shutdown [SECONDS]  -> ok, then an orderly shutdown with that grace
 *   anything else       -> error unknown
 *   (by itself)            exit STATUS, when the command has ended and a host is listening
 *
 * The host may go and come back at any time. A NUL byte drops the line so far: a new client begins with one, so that
 * it does not end the line of another that went away. A host that does not read loses answers and stalls nobody.
 * The transport is only in open_channel; a vsock will give a descriptor as well. */
#define _GNU_SOURCE
#include "guest.h"

#include <dirent.h>
#include <fcntl.h>
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

/* Sends what fits. The rest waits for the next edge: data from a host that has just connected can arrive before the
 * news that it is there, and until then the port takes nothing. */
static void flush_answers(struct channel *channel)
{
	ssize_t count = write(channel->fd, channel->answers, channel->unsent);

	if (count < 0)
		return;
	channel->unsent -= (size_t)count;
	memmove(channel->answers, channel->answers + count, channel->unsent);
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
	if ((size_t)length > sizeof channel->answers - channel->unsent)
		return;
	memcpy(channel->answers + channel->unsent, line, (size_t)length);
	channel->unsent += (size_t)length;
	flush_answers(channel);
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
	if (byte == '\0') {
		channel->used = 0;
		channel->overlong = false;
		return REQUEST_NONE;
	}
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

/* Takes what has arrived and sends what has waited. Call it at every edge that epoll reports: it leaves nothing. */
enum request serve_channel(struct channel *channel, long *grace_s)
{
	char bytes[512];
	ssize_t count;

	if (channel->unsent)
		flush_answers(channel);
	while ((count = read(channel->fd, bytes, sizeof bytes)) > 0)
		for (ssize_t i = 0; i < count; i++)
			if (take_byte(channel, bytes[i], grace_s) == REQUEST_SHUTDOWN)
				return REQUEST_SHUTDOWN;
	return REQUEST_NONE;
}
