/* What the kernel is asked to do with network interfaces, by rtnetlink(7). It is trusted; a program that holds no
 * descriptor of ours cannot answer in its place. The structures are those of linux/netlink.h, if_addr.h and rtnetlink.h,
 * which musl's headers do not have. */
#define _GNU_SOURCE
#include "network.h"

#include <arpa/inet.h>
#include <errno.h>
#include <string.h>
#include <unistd.h>

#define NETLINK_ROUTE 0
enum { DONE = 3, ERROR = 2, SETLINK = 19, NEWADDR = 20, DELADDR = 21, GETADDR = 22, NEWROUTE = 24, NEWRULE = 32,
       DELRULE = 33 };
enum { FLAG_REQUEST = 1, FLAG_ACK = 4, FLAG_DUMP = 0x300, FLAG_REPLACE = 0x100, FLAG_CREATE = 0x400 };
enum { LINK_ADDRESS = 1, LINK_MTU = 4 };
enum { ADDR_ADDRESS = 1, ADDR_LOCAL = 2, ADDR_BROADCAST = 4, ADDR_CACHE = 6, ADDR_NODAD = 0x02 };
enum { ROUTE_TO = 1, ROUTE_DEVICE = 4, ROUTE_VIA = 5, ROUTE_METRIC = 6, ROUTE_SOURCE = 7 };
enum { RULE_FROM = 2, RULE_PRIORITY = 6, TO_TABLE = 1, FIRST_PRIORITY = 10000, MAX_RULES = 64 };
enum { TABLE_MAIN = 254, PROTOCOL_STATIC = 4, SCOPE_LINK = 253, TYPE_UNICAST = 1, VIA_ON_LINK = 4 };

struct netlink_address { /* struct sockaddr_nl */
	unsigned short family, pad;
	uint32_t port, groups;
};
struct head { /* struct nlmsghdr */
	uint32_t length;
	uint16_t type, flags;
	uint32_t sequence, port;
};
struct attribute {
	uint16_t length, type;
};
struct link_head { /* struct ifinfomsg */
	unsigned char family, pad;
	unsigned short type;
	int index;
	unsigned flags, change;
};
struct address_head { /* struct ifaddrmsg */
	uint8_t family, prefix, flags, scope;
	uint32_t index;
};
struct route_head { /* struct rtmsg; struct fib_rule_hdr is the same but for names */
	unsigned char family, to_length, from_length, tos, table, protocol, scope, type;
	unsigned flags;
};
struct message {
	_Alignas(4) unsigned char bytes[256]; /* no request of ours has half of that */
	size_t used;
};

bool parse_ip(const char *text, struct ip *ip)
{
	*ip = (struct ip){.family = strchr(text, ':') ? AF_INET6 : AF_INET};
	errno = EINVAL;
	return inet_pton(ip->family, text, ip->bytes) == 1;
}

static size_t ip_size(const struct ip *ip)
{
	return ip->family == AF_INET6 ? 16 : 4;
}

struct ip mask_ip(const struct ip *ip, int prefix)
{
	struct ip masked = *ip;

	for (int i = 0; i < 16; i++) {
		int kept = prefix - 8 * i;
		masked.bytes[i] &= kept >= 8 ? 0xff : kept <= 0 ? 0 : (unsigned char)(0xff << (8 - kept));
	}
	return masked;
}

bool share_subnet(const struct ip *a, const struct ip *b, int prefix)
{
	const struct ip left = mask_ip(a, prefix), right = mask_ip(b, prefix);

	return left.family == right.family && memcmp(left.bytes, right.bytes, sizeof left.bytes) == 0;
}

int open_netlink(uint32_t groups)
{
	const struct netlink_address address = {.family = AF_NETLINK, .groups = groups};
	const struct timeval patience = {.tv_sec = 5};
	int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);

	if (fd < 0)
		return -1;
	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
	if (bind(fd, (const struct sockaddr *)&address, sizeof address) == 0)
		return fd;
	close(fd);
	return -1;
}

static void append(struct message *message, const void *bytes, size_t size)
{
	memcpy(message->bytes + message->used, bytes, size);
	message->used += (size + 3) & ~(size_t)3;
}

static void add_attribute(struct message *message, int type, const void *bytes, size_t size)
{
	const struct attribute head = {.length = (uint16_t)(sizeof head + size), .type = (uint16_t)type};

	append(message, &head, sizeof head);
	append(message, bytes, size);
}

static struct message begin(int type, int flags, const void *head, size_t size)
{
	struct message message = {.used = 0};
	const struct head first = {.type = (uint16_t)type, .flags = (uint16_t)(FLAG_REQUEST | flags)};

	append(&message, &first, sizeof first);
	append(&message, head, size);
	return message;
}

static bool send_message(int netlink, struct message *message)
{
	const uint32_t length = (uint32_t)message->used;

	memcpy(message->bytes, &length, sizeof length);
	return send(netlink, message->bytes, message->used, 0) == (ssize_t)message->used;
}

/* The kernel's yes or no. */
static bool ask(int netlink, struct message *message)
{
	_Alignas(4) unsigned char answer[1024];
	struct head head;
	int32_t error;

	if (!send_message(netlink, message))
		return false;
	do {
		ssize_t size = recv(netlink, answer, sizeof answer, 0);
		if (size < 0 && errno == EINTR)
			continue;
		if (size < (ssize_t)(sizeof head + sizeof error))
			return false;
		memcpy(&head, answer, sizeof head);
	} while (head.type != ERROR);
	memcpy(&error, answer + sizeof head, sizeof error);
	errno = -error;
	return error == 0;
}

bool set_link(int netlink, int index, bool up, int mtu, const unsigned char *mac)
{
	const struct link_head head = {.index = index, .flags = up ? IFF_UP : 0, .change = IFF_UP};
	struct message message = begin(SETLINK, FLAG_ACK, &head, sizeof head);

	if (mtu)
		add_attribute(&message, LINK_MTU, &mtu, sizeof mtu);
	if (mac)
		add_attribute(&message, LINK_ADDRESS, mac, MAC_SIZE);
	return ask(netlink, &message);
}

static struct message begin_address(int type, int flags, int index, const struct address *address)
{
	/* Nobody else has an address that the engine gave: no second of waiting to find that out (RFC 4862, 5.4). */
	const struct address_head head = {.family = (uint8_t)address->ip.family, .prefix = (uint8_t)address->prefix,
					  .flags = address->ip.family == AF_INET6 ? ADDR_NODAD : 0,
					  .index = (uint32_t)index};
	struct message message = begin(type, FLAG_ACK | flags, &head, sizeof head);

	add_attribute(&message, ADDR_LOCAL, address->ip.bytes, ip_size(&address->ip));
	add_attribute(&message, ADDR_ADDRESS, address->ip.bytes, ip_size(&address->ip));
	return message;
}

bool add_address(int netlink, int index, const struct address *address)
{
	struct message message = begin_address(NEWADDR, FLAG_CREATE | FLAG_REPLACE, index, address);

	if (address->ip.family == AF_INET && address->prefix < 31) {
		uint32_t all;
		memcpy(&all, address->ip.bytes, sizeof all);
		all |= htonl(0xffffffffu >> address->prefix);
		add_attribute(&message, ADDR_BROADCAST, &all, sizeof all);
	}
	if (address->lifetime_s) {
		const uint32_t cache[4] = {address->lifetime_s, address->lifetime_s, 0, 0};
		add_attribute(&message, ADDR_CACHE, cache, sizeof cache);
	}
	return ask(netlink, &message);
}

bool remove_address(int netlink, int index, const struct address *address)
{
	struct message message = begin_address(DELADDR, 0, index, address);

	return ask(netlink, &message);
}

bool add_route(int netlink, int index, const struct route *route)
{
	const struct ip *any = route->via.family ? &route->via : &route->to;
	const struct route_head head = {
		.family = (unsigned char)any->family, .to_length = (unsigned char)route->prefix, .protocol = PROTOCOL_STATIC, .type = TYPE_UNICAST, .scope = route->via.family ? 0 : SCOPE_LINK,
		.flags = route->on_link ? VIA_ON_LINK : 0,
		.table = (unsigned char)(route->table ? route->table : TABLE_MAIN),
	};
	struct message message = begin(NEWROUTE, FLAG_ACK | FLAG_CREATE | FLAG_REPLACE, &head, sizeof head);

	add_attribute(&message, ROUTE_DEVICE, &index, sizeof index);
	add_attribute(&message, ROUTE_METRIC, &route->metric, sizeof route->metric);
	if (route->prefix)
		add_attribute(&message, ROUTE_TO, route->to.bytes, ip_size(&route->to));
	if (route->via.family)
		add_attribute(&message, ROUTE_VIA, route->via.bytes, ip_size(&route->via));
	if (route->source.family)
		add_attribute(&message, ROUTE_SOURCE, route->source.bytes, ip_size(&route->source));
	return ask(netlink, &message);
}

bool add_rule(int netlink, const struct ip *from, int table)
{
	const struct route_head head = {.family = (unsigned char)from->family, .from_length = (unsigned char)(8 * ip_size(from)),
					.table = (unsigned char)table, .type = TO_TABLE};
	const uint32_t priority = FIRST_PRIORITY + (uint32_t)table;
	struct message message = begin(NEWRULE, FLAG_ACK | FLAG_CREATE, &head, sizeof head);

	add_attribute(&message, RULE_FROM, from->bytes, ip_size(from));
	add_attribute(&message, RULE_PRIORITY, &priority, sizeof priority);
	return ask(netlink, &message);
}

void remove_rules(int netlink, int family, int table)
{
	const struct route_head head = {.family = (unsigned char)family, .table = (unsigned char)table, .type = TO_TABLE};
	const uint32_t priority = FIRST_PRIORITY + (uint32_t)table;
	bool removed = true;

	for (int count = 0; removed && count < MAX_RULES; count++) {
		struct message message = begin(DELRULE, FLAG_ACK, &head, sizeof head);
		add_attribute(&message, RULE_PRIORITY, &priority, sizeof priority);
		removed = ask(netlink, &message);
	}
}

/* The address that a message of the dump is about, if it is one of the interface's that we would remove. */
static bool read_address(const unsigned char *bytes, size_t size, int index, struct address *address)
{
	struct address_head head;
	struct attribute attribute;

	if (size < sizeof head)
		return false;
	memcpy(&head, bytes, sizeof head);
	if ((int)head.index != index || head.scope == SCOPE_LINK || (head.family != AF_INET && head.family != AF_INET6))
		return false;
	*address = (struct address){.prefix = head.prefix};
	for (size_t at = sizeof head; at + sizeof attribute <= size; at += (attribute.length + 3u) & ~3u) {
		memcpy(&attribute, bytes + at, sizeof attribute);
		if (attribute.length < sizeof attribute || at + attribute.length > size)
			break;
		/* IPv6 has only the second; of IPv4's two, the local one is the interface's own. */
		if (attribute.type != ADDR_LOCAL && (attribute.type != ADDR_ADDRESS || address->ip.family))
			continue;
		address->ip.family = head.family;
		if (attribute.length - sizeof attribute == ip_size(&address->ip))
			memcpy(address->ip.bytes, bytes + at + sizeof attribute, ip_size(&address->ip));
	}
	return address->ip.family != AF_UNSPEC;
}

/* The addresses of the interface, at most `limit`; a dump that is not read to its end is of no use. */
static bool list_addresses(int netlink, int index, struct address *addresses, size_t limit, size_t *count)
{
	static _Alignas(4) unsigned char bytes[32768];
	const struct address_head all = {.family = AF_UNSPEC};
	struct message message = begin(GETADDR, FLAG_DUMP, &all, sizeof all);
	struct head head;

	*count = 0;
	if (!send_message(netlink, &message))
		return false;
	for (;;) {
		ssize_t size = recv(netlink, bytes, sizeof bytes, 0);
		if (size < 0 && errno != EINTR)
			return false;
		for (size_t at = 0; size > 0 && at + sizeof head <= (size_t)size; at += (head.length + 3u) & ~3u) {
			memcpy(&head, bytes + at, sizeof head);
			if (head.type == DONE || head.length < sizeof head || at + head.length > (size_t)size)
				return head.type == DONE;
			if (*count < limit && read_address(bytes + at + sizeof head, head.length - sizeof head, index, &addresses[*count]))
				++*count;
		}
	}
}

bool flush_addresses(int netlink, int index)
{
	struct address addresses[64];
	size_t count;
	bool done = list_addresses(netlink, index, addresses, sizeof addresses / sizeof *addresses, &count);

	for (size_t i = 0; i < count; i++) /* A secondary one may have gone with its primary. */
		done = (remove_address(netlink, index, &addresses[i]) || errno == EADDRNOTAVAIL) && done;
	return done;
}
