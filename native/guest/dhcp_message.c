/* DHCP's messages. What comes in was written by anybody on the network: every length is checked before what it is about,
 * every value has a range, and a message that makes no sense is as if it had not come. */
#define _GNU_SOURCE
#include "dhcp.h"

#include <arpa/inet.h>
#include <string.h>

enum { IP_SIZE = 20, UDP_SIZE = 8, SERVER_PORT = 67, CLIENT_PORT = 68, PROTOCOL_UDP = 17 };
enum { OP = 0, TYPE = 1, LENGTH = 2, TRANSACTION = 4, OWN = 12, YOURS = 16, HARDWARE = 28, NAME = 44, FILE_NAME = 108,
       COOKIE = 236, OPTIONS = 240 };
enum { PAD = 0, MASK = 1, ROUTER = 3, DNS = 6, HOST_NAME = 12, DOMAIN = 15, MTU = 26, REQUESTED = 50, LEASE_TIME = 51,
       OVERLOAD = 52, MESSAGE_TYPE = 53, SERVER = 54, PARAMETERS = 55, MAX_SIZE = 57, T1 = 58, T2 = 59,
       CLIENT_ID = 61, ROUTES = 121, END_OF_OPTIONS = 255 };
enum { IN_FILE = 1, IN_NAME = 2, NAME_SIZE = FILE_NAME - NAME, FILE_SIZE = COOKIE - FILE_NAME, MAX_OPTION = 512 };

static const unsigned char cookie[4] = {99, 130, 83, 99};

/* ---- what we write ---- */

static void put16(unsigned char *at, unsigned number)
{
	at[0] = (unsigned char)(number >> 8);
	at[1] = (unsigned char)number;
}

static uint32_t sum(const unsigned char *bytes, size_t size, uint32_t total)
{
	for (size_t i = 0; i + 1 < size; i += 2)
		total += (uint32_t)bytes[i] << 8 | bytes[i + 1];
	return size % 2 ? total + ((uint32_t)bytes[size - 1] << 8) : total;
}

static unsigned fold(uint32_t total)
{
	while (total >> 16)
		total = (total & 0xffff) + (total >> 16);
	return ~total & 0xffff;
}

static unsigned char *put_option(unsigned char *at, int code, const void *bytes, size_t size)
{
	*at++ = (unsigned char)code;
	*at++ = (unsigned char)size;
	memcpy(at, bytes, size);
	return at + size;
}

static unsigned char *put_options(unsigned char *at, const struct dhcp_request *request)
{
	/* Routes before the router: a server that gives both means the first (RFC 3442). */
	static const unsigned char wanted[] = {MASK, ROUTES, ROUTER, DNS, DOMAIN, MTU, T1, T2};
	const unsigned char type = (unsigned char)request->type, size[2] = {MAX_PACKET >> 8, MAX_PACKET & 255};
	unsigned char id[1 + MAC_SIZE] = {1};

	memcpy(id + 1, request->mac, MAC_SIZE);
	at = put_option(at, MESSAGE_TYPE, &type, 1);
	at = put_option(at, CLIENT_ID, id, sizeof id);
	at = put_option(at, MAX_SIZE, size, sizeof size);
	at = put_option(at, PARAMETERS, wanted, sizeof wanted);
	if (request->requested)
		at = put_option(at, REQUESTED, &request->requested, 4);
	if (request->server)
		at = put_option(at, SERVER, &request->server, 4);
	if (request->hostname && *request->hostname)
		at = put_option(at, HOST_NAME, request->hostname, strnlen(request->hostname, 63));
	*at++ = END_OF_OPTIONS;
	return at;
}

static void put_headers(unsigned char *packet, size_t size, uint32_t source)
{
	static const unsigned char everybody[4] = {255, 255, 255, 255};
	unsigned char *udp = packet + IP_SIZE;

	packet[0] = 0x45;
	put16(packet + 2, (unsigned)size);
	packet[8] = 64;
	packet[9] = PROTOCOL_UDP;
	memcpy(packet + 12, &source, 4);
	memcpy(packet + 16, everybody, 4);
	put16(packet + 10, fold(sum(packet, IP_SIZE, 0)));
	put16(udp, CLIENT_PORT);
	put16(udp + 2, SERVER_PORT);
	put16(udp + 4, (unsigned)size - IP_SIZE);
	unsigned check = fold(sum(udp, size - IP_SIZE, sum(packet + 12, 8, PROTOCOL_UDP + (uint32_t)size - IP_SIZE)));
	put16(udp + 6, check ? check : 0xffff);
}

/* To everybody; whoever has a way to the server sends what begins at UDP_PAYLOAD. */
size_t write_packet(const struct dhcp_request *request, unsigned char packet[MAX_PACKET])
{
	unsigned char *message = packet + UDP_PAYLOAD;

	memset(packet, 0, MAX_PACKET);
	message[OP] = 1;
	message[TYPE] = 1;
	message[LENGTH] = MAC_SIZE;
	memcpy(message + TRANSACTION, &request->transaction, 4);
	memcpy(message + OWN, &request->own, 4);
	memcpy(message + HARDWARE, request->mac, MAC_SIZE);
	memcpy(message + COOKIE, cookie, sizeof cookie);
	size_t size = (size_t)(put_options(message + OPTIONS, request) - packet);
	if (size < MIN_PACKET) /* relays and servers older than DHCP drop shorter ones */
		size = MIN_PACKET;
	put_headers(packet, size, request->own);
	return size;
}

/* ---- what others write ---- */

struct options {
	struct {
		const unsigned char *bytes;
		size_t size;
	} areas[3];
	size_t count;
};

/* The value of an option, its parts put together in their order (RFC 3396); what is more than `limit` bytes is cut. */
static size_t gather(const struct options *options, int code, unsigned char *value, size_t limit)
{
	size_t used = 0;

	for (size_t area = 0; area < options->count; area++) {
		const unsigned char *bytes = options->areas[area].bytes;
		for (size_t at = 0, size = options->areas[area].size; at < size && bytes[at] != END_OF_OPTIONS;) {
			if (bytes[at] == PAD) {
				at++;
				continue;
			}
			if (at + 2 > size || at + 2 + bytes[at + 1] > size)
				break;
			size_t length = bytes[at + 1] < limit - used ? bytes[at + 1] : limit - used;
			if (bytes[at] == code) {
				memcpy(value + used, bytes + at + 2, length);
				used += length;
			}
			at += 2u + bytes[at + 1];
		}
	}
	return used;
}

static void add_area(struct options *options, const unsigned char *bytes, size_t size)
{
	options->areas[options->count].bytes = bytes;
	options->areas[options->count++].size = size;
}

static struct options find_options(const unsigned char *message, size_t size)
{
	struct options options = {.count = 0};
	unsigned char overload;

	add_area(&options, message + OPTIONS, size - OPTIONS);
	if (gather(&options, OVERLOAD, &overload, 1) == 1) {
		if (overload & IN_FILE)
			add_area(&options, message + FILE_NAME, FILE_SIZE);
		if (overload & IN_NAME)
			add_area(&options, message + NAME, NAME_SIZE);
	}
	return options;
}

static uint32_t get32(const struct options *options, int code, uint32_t fallback)
{
	uint32_t number;

	return gather(options, code, (unsigned char *)&number, 4) == 4 ? number : fallback;
}

/* An address that a machine can have. */
static bool is_ordinary(uint32_t address)
{
	unsigned first = ntohl(address) >> 24;

	return first != 0 && first != 127 && first < 224;
}

/* The length of a netmask; 0 for what is none. Without one the class of the address decides (RFC 791). */
static int prefix_of(uint32_t mask, uint32_t address)
{
	uint32_t bits = ntohl(mask), first = ntohl(address) >> 24;
	int prefix = 0;

	if (!bits)
		return first < 128 ? 8 : first < 192 ? 16 : 24;
	while (prefix < 32 && bits >> (31 - prefix) & 1)
		prefix++;
	return prefix == 32 || !(bits << prefix) ? prefix : 0;
}

static uint32_t mask_of(int prefix)
{
	return prefix ? htonl(0xffffffffu << (32 - prefix)) : 0;
}

/* RFC 3442: PREFIX, as many bytes of the network as it has, the router's address. False when it makes no sense. */
static bool read_routes(const unsigned char *value, size_t size, struct lease *lease)
{
	for (size_t at = 0; at < size && lease->route_count < MAX_ROUTES;) {
		struct lease_route *route = &lease->routes[lease->route_count];
		size_t significant = (value[at] + 7u) / 8;
		if (value[at] > 32 || at + 1 + significant + 4 > size)
			return false;
		*route = (struct lease_route){.prefix = value[at]};
		memcpy(&route->to, value + at + 1, significant);
		route->to &= mask_of(route->prefix);
		memcpy(&route->via, value + at + 1 + significant, 4);
		if (route->via && !is_ordinary(route->via))
			return false;
		lease->route_count++;
		at += 1 + significant + 4;
	}
	return lease->route_count > 0;
}

static void read_gateways(const struct options *options, struct lease *lease)
{
	unsigned char value[MAX_OPTION];
	uint32_t router;

	if (read_routes(value, gather(options, ROUTES, value, sizeof value), lease))
		return;
	lease->route_count = 0;
	router = get32(options, ROUTER, 0);
	if (is_ordinary(router))
		lease->routes[lease->route_count++] = (struct lease_route){.via = router};
}

static void read_names(const struct options *options, struct lease *lease)
{
	uint32_t servers[16];
	size_t count = gather(options, DNS, (unsigned char *)servers, sizeof servers) / 4;

	for (size_t i = 0; i < count && lease->dns_count < MAX_LEASE_DNS; i++)
		if (is_ordinary(servers[i]))
			lease->dns[lease->dns_count++] = servers[i];
	size_t length = gather(options, DOMAIN, (unsigned char *)lease->domain, sizeof lease->domain - 1);
	lease->domain[length] = '\0';
	/* It comes to stand in a file that others parse. */
	length = strspn(lease->domain, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-_");
	if (lease->domain[length] || lease->domain[0] == '.' || lease->domain[0] == '-')
		lease->domain[0] = '\0';
}

/* Whatever a server says, it is not asked more often than every few seconds, and always before the lease is over. */
static void read_times(const struct options *options, struct lease *lease)
{
	uint32_t all = ntohl(get32(options, LEASE_TIME, htonl(3600)));

	lease->lease_s = all < MIN_LEASE_S ? MIN_LEASE_S : all;
	lease->renew_s = ntohl(get32(options, T1, 0));
	lease->rebind_s = ntohl(get32(options, T2, 0));
	if (!lease->rebind_s || lease->rebind_s >= lease->lease_s)
		lease->rebind_s = lease->lease_s - lease->lease_s / 8;
	if (!lease->renew_s || lease->renew_s >= lease->rebind_s)
		lease->renew_s = lease->lease_s / 2 < lease->rebind_s ? lease->lease_s / 2 : lease->rebind_s - 1;
	if (lease->renew_s < MIN_RENEW_S)
		lease->renew_s = MIN_RENEW_S;
	if (lease->rebind_s <= lease->renew_s)
		lease->rebind_s = lease->renew_s + 1; /* still before the end: MIN_LEASE_S is twice MIN_RENEW_S */
}

static bool read_lease(const unsigned char *message, const struct options *options, struct lease *lease)
{
	unsigned char mtu[2];

	memcpy(&lease->address, message + YOURS, 4);
	if (!is_ordinary(lease->address) || !is_ordinary(lease->server))
		return false;
	lease->prefix = prefix_of(get32(options, MASK, 0), lease->address);
	if (!lease->prefix)
		return false;
	if (gather(options, MTU, mtu, sizeof mtu) == sizeof mtu && (mtu[0] << 8 | mtu[1]) >= MIN_MTU)
		lease->mtu = mtu[0] << 8 | mtu[1];
	read_times(options, lease);
	read_names(options, lease);
	read_gateways(options, lease);
	return true;
}

/* The message in a whole IPv4 packet from a server's port to ours; NULL when there is none. Checksums are not looked at:
 * between machines of one host nobody fills them in. */
static const unsigned char *find_message(const unsigned char *packet, size_t size, size_t *length)
{
	if (size < IP_SIZE + UDP_SIZE || packet[0] >> 4 != 4 || packet[9] != PROTOCOL_UDP)
		return NULL;
	size_t head = (size_t)(packet[0] & 15) * 4, total = (size_t)packet[2] << 8 | packet[3];
	if (head < IP_SIZE || total > size || total < head + UDP_SIZE || (packet[6] & 0x3f) || packet[7])
		return NULL;
	const unsigned char *udp = packet + head;
	size_t datagram = (size_t)udp[4] << 8 | udp[5];
	if ((udp[0] << 8 | udp[1]) != SERVER_PORT || (udp[2] << 8 | udp[3]) != CLIENT_PORT || datagram > total - head)
		return NULL;
	if (datagram < UDP_SIZE + OPTIONS)
		return NULL;
	*length = datagram - UDP_SIZE;
	return udp + UDP_SIZE;
}

/* True when the packet answers `asked`. `lease` is set but for a NAK, of which only `server` counts. */
bool read_packet(const unsigned char *packet, size_t size, const struct dhcp_request *asked, enum dhcp_type *type,
		 struct lease *lease)
{
	size_t length;
	const unsigned char *message = find_message(packet, size, &length);
	unsigned char kind;

	if (!message || message[OP] != 2 || message[TYPE] != 1 || message[LENGTH] != MAC_SIZE ||
	    memcmp(message + TRANSACTION, &asked->transaction, 4) != 0 ||
	    memcmp(message + HARDWARE, asked->mac, MAC_SIZE) != 0 || memcmp(message + COOKIE, cookie, sizeof cookie) != 0)
		return false;
	struct options options = find_options(message, length);
	if (gather(&options, MESSAGE_TYPE, &kind, 1) != 1)
		return false;
	*type = (enum dhcp_type)kind;
	*lease = (struct lease){.server = get32(&options, SERVER, 0)};
	return kind == NAK || ((kind == OFFER || kind == ACK) && read_lease(message, &options, lease));
}
