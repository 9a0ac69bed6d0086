/* What one interface is for the DHCP client: its sockets, its address and its routes. */
#define _GNU_SOURCE
#include "dhcp.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netpacket/packet.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

enum { ETHERTYPE_IPV4 = 0x0800, ATTACH_FILTER = 26 };

struct filter { /* struct sock_filter, and sock_fprog */
	uint16_t code;
	uint8_t yes, no;
	uint32_t number;
};
struct filter_program {
	unsigned short length;
	const struct filter *filter;
};

static bool attach_filter(int fd, const struct filter *filter, unsigned short length)
{
	const struct filter_program program = {.length = length, .filter = filter};

	return setsockopt(fd, SOL_SOCKET, ATTACH_FILTER, &program, sizeof program) == 0;
}

/* Whole IPv4 packets as they come in, whatever the interface's addresses are: it has none yet, and the kernel would drop
 * most of what is for it. Of all that passes only UDP to our port wakes us. */
int open_packets(int index)
{
	static const struct filter ours[] = {
		{0x30, 0, 0, 9},      {0x15, 0, 6, 17}, /* the protocol is UDP */
		{0x28, 0, 0, 6},      {0x45, 4, 0, 0x3fff}, /* not a fragment */
		{0xb1, 0, 0, 0},      {0x48, 0, 0, 2}, /* behind the header: the port */
		{0x15, 0, 1, 68},     {0x06, 0, 0, 65535}, {0x06, 0, 0, 0},
	};
	const struct sockaddr_ll address = {.sll_family = AF_PACKET, .sll_protocol = htons(ETHERTYPE_IPV4), .sll_ifindex = index};
	int fd = socket(AF_PACKET, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	if (fd >= 0 && attach_filter(fd, ours, sizeof ours / sizeof *ours) &&
	    bind(fd, (const struct sockaddr *)&address, sizeof address) == 0)
		return fd;
	int error = errno;
	if (fd >= 0)
		close(fd);
	errno = error;
	return -1;
}

/* For what goes to the server alone. It never receives (the other socket does), but keeps the kernel from telling the
 * server that nobody listens here. */
static int open_datagrams(const struct client *client)
{
	static const struct filter nothing[] = {{0x06, 0, 0, 0}};
	const struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(68)};
	const char *name = client->interface->name;
	int yes = 1, fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	if (fd >= 0 && attach_filter(fd, nothing, 1) && setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes) == 0 &&
	    setsockopt(fd, SOL_SOCKET, SO_BINDTODEVICE, name, (socklen_t)strlen(name)) == 0 &&
	    bind(fd, (const struct sockaddr *)&address, sizeof address) == 0)
		return fd;
	if (fd >= 0)
		close(fd);
	return -1;
}

void close_datagrams(struct client *client)
{
	if (client->datagrams >= 0)
		close(client->datagrams);
	client->datagrams = -1;
}

void broadcast(const struct client *client, const unsigned char *packet, size_t size)
{
	struct sockaddr_ll everybody = {.sll_family = AF_PACKET, .sll_protocol = htons(ETHERTYPE_IPV4),
					.sll_ifindex = client->index, .sll_halen = MAC_SIZE};

	memset(everybody.sll_addr, 0xff, MAC_SIZE);
	sendto(client->packets, packet, size, 0, (const struct sockaddr *)&everybody, sizeof everybody);
}

bool send_to_server(struct client *client, const unsigned char *packet, size_t size)
{
	const struct sockaddr_in server = {.sin_family = AF_INET, .sin_port = htons(67), .sin_addr.s_addr = client->lease.server};

	if (client->datagrams < 0)
		client->datagrams = open_datagrams(client);
	return client->datagrams >= 0 && sendto(client->datagrams, packet + UDP_PAYLOAD, size - UDP_PAYLOAD, 0,
						(const struct sockaddr *)&server, sizeof server) > 0;
}

/* Takes over the interface's MAC. Whether it is connected. */
bool read_link(struct client *client)
{
	struct ifreq request = {0};
	int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

	if (fd < 0)
		return false;
	snprintf(request.ifr_name, sizeof request.ifr_name, "%s", client->interface->name);
	if (ioctl(fd, SIOCGIFHWADDR, &request) == 0)
		memcpy(client->asked.mac, request.ifr_hwaddr.sa_data, MAC_SIZE);
	bool runs = ioctl(fd, SIOCGIFFLAGS, &request) == 0 && (request.ifr_flags & IFF_RUNNING);
	close(fd);
	return runs;
}

static struct ip ipv4(uint32_t address)
{
	struct ip ip = {.family = AF_INET};

	memcpy(ip.bytes, &address, sizeof address);
	return ip;
}

static struct address own_address(const struct lease *lease)
{
	return (struct address){.ip = ipv4(lease->address), .prefix = lease->prefix, .lifetime_s = lease->lease_s};
}

void drop_address(struct client *client)
{
	const struct address address = own_address(&client->lease);

	if (client->lease.address)
		remove_address(client->netlink, client->index, &address); /* its routes go along */
	client->lease.address = 0;
}

/* The address of the lease, for as long as it is good. */
void keep_address(const struct client *client)
{
	const struct address address = own_address(&client->lease);

	if (!add_address(client->netlink, client->index, &address))
		complain("%s: cannot have the address of its lease: %s", client->interface->name, strerror(errno));
}

void set_routes(const struct client *client)
{
	const struct address own = own_address(&client->lease);

	/* The way to a router that is not in our subnet must be there before what leads through it. */
	for (size_t i = 0; i < client->lease.route_count; i++) {
		const struct lease_route *from = &client->lease.routes[i];
		struct route route = {.to = ipv4(from->to), .prefix = from->prefix, .source = own.ip,
				      .metric = DHCP_METRIC + client->interface->number};
		if (from->via) {
			route.via = ipv4(from->via);
			route.on_link = !share_subnet(&own.ip, &route.via, own.prefix);
		}
		add_route(client->netlink, client->index, &route);
	}
}
