/* The DHCP client, for machines whose network gives addresses itself. A process of its own: the machine does not wait for
 * a server that may not be there, and what strangers send does not reach PID 1. It hears of the link from the kernel. */
#define _GNU_SOURCE
#include "dhcp.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stddef.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/time.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum { GROUP_LINK = 1, LINK_IS = 16, LINK_GOES = 17 };

static struct {
	struct client clients[MAX_NICS];
	size_t count;
	const struct config *config;
	int netlink, events;
} dhcp;

/* Also while the machine was suspended, since a lease goes on then. */
static int64_t clock_ms(void)
{
	struct timespec now;

	clock_gettime(CLOCK_BOOTTIME, &now);
	return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/* Whose word counts: the first interface's. Where that has a fixed address, the engine's servers go first; else those of
 * the leases, in the order of the interfaces, and the engine's only when no lease names any. */
void lease_changed(void)
{
	static char texts[MAX_NICS * MAX_LEASE_DNS][INET_ADDRSTRLEN];
	static char *servers[MAX_DNS + MAX_NICS * MAX_LEASE_DNS];
	const struct config *config = dhcp.config;
	const char *domain = "";
	size_t count = 0, given = 0;

	if (dhcp.clients[0].interface->number)
		for (; count < config->dns_count; count++)
			servers[count] = config->dns[count];
	for (size_t i = 0; i < dhcp.count; i++) {
		const struct lease *lease = &dhcp.clients[i].lease;
		for (size_t j = 0; lease->address && j < lease->dns_count; j++)
			servers[count++] = (char *)inet_ntop(AF_INET, &lease->dns[j], texts[given++], INET_ADDRSTRLEN);
		if (lease->address && !*domain)
			domain = lease->domain;
	}
	for (size_t i = 0; !count && i < config->dns_count; i++)
		servers[i] = config->dns[i];
	write_resolver(servers, count ? count : config->dns_count, domain);
}

struct link_event { /* struct nlmsghdr, struct ifinfomsg */
	uint32_t length;
	uint16_t type, flags;
	uint32_t sequence, port;
	unsigned char family, pad;
	unsigned short kind;
	int index;
	unsigned link_flags, change;
};

static void take_event(const struct link_event *event, int64_t now)
{
	for (size_t i = 0; i < dhcp.count; i++) {
		struct client *client = &dhcp.clients[i];
		if (client->index != event->index || client->state == GONE)
			continue;
		if (event->type == LINK_IS)
			note_link(client, event->link_flags & IFF_RUNNING, now);
		else if (event->type == LINK_GOES)
			begin(client, GONE, 0);
	}
}

/* More happened than the kernel keeps for us: as if every link had been gone. */
static void assume_the_worst(int64_t now)
{
	for (size_t i = 0; i < dhcp.count; i++) {
		struct client *client = &dhcp.clients[i];
		if (client->state == GONE)
			continue;
		note_link(client, false, now);
		note_link(client, read_link(client), now);
	}
}

static void hear(int64_t now)
{
	_Alignas(8) unsigned char bytes[8192];
	struct link_event event;
	ssize_t size = recv(dhcp.events, bytes, sizeof bytes, MSG_DONTWAIT);

	if (size < 0 && errno == ENOBUFS)
		assume_the_worst(now);
	for (size_t at = 0; size > 0 && at + sizeof event <= (size_t)size; at += (event.length + 3u) & ~3u) {
		memcpy(&event, bytes + at, sizeof event);
		if (event.length < sizeof event)
			return;
		take_event(&event, now);
	}
}

static void open_client(const struct dhcp_interface *interface)
{
	struct client *client = &dhcp.clients[dhcp.count];

	*client = (struct client){.interface = interface, .netlink = dhcp.netlink, .datagrams = -1,
				  .index = (int)if_nametoindex(interface->name), .asked.hostname = dhcp.config->hostname};
	client->packets = open_packets(client->index);
	if (client->packets < 0) {
		complain("%s: cannot ask for an address: %s", interface->name, strerror(errno));
		return;
	}
	client->running = read_link(client);
	begin(client, client->running ? SELECTING : ASLEEP, client->running ? clock_ms() : 0);
	dhcp.count++;
}

static void run_once(void)
{
	struct pollfd polls[1 + MAX_NICS] = {{.fd = dhcp.events, .events = POLLIN}};
	int64_t next_ms = 0;

	for (size_t i = 0; i < dhcp.count; i++) {
		const struct client *client = &dhcp.clients[i];
		polls[1 + i] = (struct pollfd){.fd = client->state == GONE ? -1 : client->packets, .events = POLLIN};
		if (client->next_ms && (!next_ms || client->next_ms < next_ms))
			next_ms = client->next_ms;
	}
	int64_t left_ms = next_ms ? next_ms - clock_ms() : -1;
	left_ms = next_ms && left_ms < 0 ? 0 : left_ms > 60000 ? 60000 : left_ms;
	if (poll(polls, (nfds_t)(1 + dhcp.count), (int)left_ms) < 0 && errno != EINTR)
		_exit(1);
	int64_t now = clock_ms();
	if (polls[0].revents)
		hear(now);
	for (size_t i = 0; i < dhcp.count; i++) {
		if (polls[1 + i].revents)
			receive(&dhcp.clients[i], now);
		if (dhcp.clients[i].next_ms && dhcp.clients[i].next_ms <= now)
			go_on(&dhcp.clients[i], now);
	}
}

/* A name that only one process of the machine can have, and by which it is found. */
static int name_socket(struct sockaddr_un *address, socklen_t *size)
{
	static const char name[] = "cocoon-dhcp";

	*address = (struct sockaddr_un){.sun_family = AF_UNIX};
	memcpy(address->sun_path + 1, name, sizeof name - 1); /* abstract: no file */
	*size = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + sizeof name);
	return socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
}

static bool claim_name(void)
{
	struct sockaddr_un address;
	socklen_t size;
	int fd = name_socket(&address, &size);

	return fd >= 0 && bind(fd, (const struct sockaddr *)&address, size) == 0 && listen(fd, 1) == 0;
}

/* Ends the client that runs, if one does; what it has set up stays. */
bool stop_dhcp(void)
{
	const struct timeval patience = {.tv_sec = 5};
	struct sockaddr_un address;
	struct ucred peer;
	socklen_t size, peer_size = sizeof peer;
	int fd = name_socket(&address, &size);
	char byte;

	bool found = fd >= 0 && connect(fd, (const struct sockaddr *)&address, size) == 0 &&
		     getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &peer_size) == 0 && peer.uid == 0 && peer.pid > 1;
	if (found) {
		kill(peer.pid, SIGKILL);
		setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
		recv(fd, &byte, 1, 0); /* it is dead when its end of this closes */
	}
	if (fd >= 0)
		close(fd);
	return found;
}

_Noreturn void run_dhcp(const struct dhcp_interface *interfaces, size_t count, const struct config *config)
{
	dhcp.config = config;
	dhcp.netlink = open_netlink(0);
	dhcp.events = open_netlink(GROUP_LINK);
	if (dhcp.netlink < 0 || dhcp.events < 0 || !claim_name())
		complain("cannot ask for addresses: %s", strerror(errno));
	else
		for (size_t i = 0; i < count; i++)
			open_client(&interfaces[i]);
	while (dhcp.count)
		run_once();
	_exit(1);
}

/* Of a session's pipes, which somebody waits to see closed. */
static void drop_streams(void)
{
	int fd = open("/dev/null", O_RDWR | O_CLOEXEC);

	for (int target = 0; fd >= 0 && target < 3; target++)
		dup2(fd, target);
}

void start_dhcp(const struct dhcp_interface *interfaces, size_t count, const struct config *config, bool may_complain)
{
	pid_t pid = fork();

	if (pid < 0)
		complain("cannot ask for addresses: %s", strerror(errno));
	if (pid)
		return;
	setsid();
	if (!may_complain)
		drop_streams();
	prctl(PR_SET_NAME, "cocoon-dhcp");
	write_file("/proc/self/oom_score_adj", "-900", 0);
	run_dhcp(interfaces, count, config);
}
