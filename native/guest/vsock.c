/* The control channel where the machine has a vsock (Firecracker, Cloud Hypervisor): port N of the channel is port
 * VSOCK_BASE + N of it, where we listen. Each has one client at a time, as a virtio port has, but the end of a connection
 * is the end of its client: nothing of it is left for the next. */
#define _GNU_SOURCE
#include "agent.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

/* linux/vm_sockets.h, which musl's headers do not have. */
struct vsock_address {
	sa_family_t family;
	uint16_t reserved;
	uint32_t port, cid;
	uint8_t flags, zero[3];
};
#define GET_LOCAL_CID 0x7b9
#define ANY_CID UINT32_MAX
#define HOST_CID 2
#define FIRST_GUEST_CID 3

#define BACKLOG 8
/* How long a client that comes waits for the end of the former one: that has gone (the port's lock on the host is the new
 * one's), and the last that it sent is on its way to us. */
#define FORMER_MS 1000

static struct listener {
	struct watch watch;
	int64_t waiting_since_ms; /* that somebody wants to come in; 0 for nobody */
} listeners[CHANNEL_PORTS];

/* A vsock whose other end is the host. Programs of this machine, and machines inside it, can have one with us as well. */
static bool has_vsock(void)
{
	uint32_t cid = ANY_CID;
	int fd = open("/dev/vsock", O_RDONLY | O_CLOEXEC);

	if (fd < 0)
		return false;
	bool found = ioctl(fd, GET_LOCAL_CID, &cid) == 0 && cid >= FIRST_GUEST_CID && cid != ANY_CID;
	close(fd);
	return found;
}

/* Whoever may give orders here is root: only the host may, by the kernel's word, and what tests connect from. */
static bool is_host(const struct vsock_address *peer)
{
	return peer->family != AF_VSOCK || peer->cid == HOST_CID;
}

static struct connection *find_client(const struct listener *listener)
{
	for (size_t i = 0; i < MAX_CONNECTIONS; i++)
		if (connections[i].listener == listener)
			return &connections[i];
	return NULL;
}

static void accept_client(struct watch *watch, uint32_t events)
{
	struct listener *listener = (struct listener *)watch;
	struct vsock_address peer = {0};
	socklen_t size = sizeof peer;

	(void)events;
	if (find_client(listener)) {
		listener->waiting_since_ms = now_ms();
		change_watch(watch, 0);
		return;
	}
	int fd = accept4(watch->fd, (struct sockaddr *)&peer, &size, SOCK_NONBLOCK | SOCK_CLOEXEC);
	if (fd < 0)
		return;
	if (!is_host(&peer)) {
		close(fd);
		return;
	}
	struct connection *connection = add_connection(fd, false);
	if (connection)
		connection->listener = listener;
	else
		close(fd);
}

/* Lets in who waits, as soon as the former client has gone or has had time enough to; when to come again, 0 for never. */
int64_t serve_listeners(void)
{
	int64_t next_ms = 0, now = now_ms();

	for (size_t i = 0; i < CHANNEL_PORTS; i++) {
		struct listener *listener = &listeners[i];
		int64_t until_ms = listener->waiting_since_ms + FORMER_MS;
		if (!listener->waiting_since_ms)
			continue;
		struct connection *former = find_client(listener);
		if (former && now < until_ms) {
			next_ms = sooner(next_ms, until_ms);
			continue;
		}
		if (former)
			end_connection(former);
		listener->waiting_since_ms = 0;
		change_watch(&listener->watch, EPOLLIN);
	}
	return next_ms;
}

bool listen_at(unsigned port, int listening_fd)
{
	struct watch *watch = &listeners[port].watch;

	return listen(listening_fd, BACKLOG) == 0 && add_watch(watch, listening_fd, EPOLLIN, accept_client);
}

static int bind_port(unsigned port)
{
	const struct vsock_address address = {.family = AF_VSOCK, .port = VSOCK_BASE + port, .cid = ANY_CID};
	int fd = socket(AF_VSOCK, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

	if (fd >= 0 && bind(fd, (const struct sockaddr *)&address, sizeof address) == 0)
		return fd;
	if (fd >= 0)
		close(fd);
	return -1;
}

/* How many ports are listened on now that were not. None: this machine has no vsock yet, or another program serves it. */
size_t open_vsock(void)
{
	static bool listening;
	size_t count = 0;

	if (listening || !has_vsock())
		return 0;
	for (unsigned port = 0; port < CHANNEL_PORTS; port++) {
		int fd = bind_port(port);
		if (fd < 0)
			break;
		if (listen_at(port, fd))
			count++;
		else
			close(fd);
	}
	listening = count > 0;
	return count;
}
