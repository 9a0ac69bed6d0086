/* The DHCP client (RFC 2131, 2132, 3396, 3442). Addresses are in network byte order.
 *
 *   dhcp.c          the process: all interfaces, the clock, the resolver's file
 *   dhcp_client.c   one interface: what is sent and when, what is made of the answers
 *   dhcp_link.c     its sockets, its address and its routes
 *   dhcp_message.c  the bytes */
#ifndef COCOON_DHCP_H
#define COCOON_DHCP_H

#include "network.h"

enum {
	MAX_PACKET = 1500, /* with the headers of IP and UDP */
	MIN_PACKET = 328,
	UDP_PAYLOAD = 28, /* where a packet's message begins */
	MAX_ROUTES = 16,
	MAX_LEASE_DNS = 3, /* resolv.conf(5) takes no more */
	MIN_LEASE_S = 10,
	MIN_RENEW_S = 5,
	MIN_MTU = 576,
};
enum dhcp_type { DISCOVER = 1, OFFER = 2, REQUEST_LEASE = 3, ACK = 5, NAK = 6 };

struct lease_route {
	uint32_t to, via; /* via 0: on the link */
	int prefix;
};
struct lease {
	uint32_t address, server; /* 0: none */
	int prefix, mtu;          /* mtu 0: nothing said */
	uint32_t lease_s, renew_s, rebind_s; /* renew < rebind < lease */
	uint32_t dns[MAX_LEASE_DNS];
	size_t dns_count, route_count;
	struct lease_route routes[MAX_ROUTES];
	char domain[256];
};
struct dhcp_request {
	enum dhcp_type type;
	uint32_t transaction, own, requested, server; /* 0: left out */
	unsigned char mac[MAC_SIZE];
	const char *hostname;
};

/* dhcp_message.c */
size_t write_packet(const struct dhcp_request *request, unsigned char packet[MAX_PACKET]);
bool read_packet(const unsigned char *packet, size_t size, const struct dhcp_request *asked, enum dhcp_type *type,
		 struct lease *lease);

enum state { ASLEEP, GONE, REBOOTING, SELECTING, REQUESTING, BOUND, RENEWING, REBINDING };
struct client {
	const struct dhcp_interface *interface;
	int netlink, index, packets, datagrams; /* the last: to the server alone; -1 when it is not needed */
	bool running;
	enum state state;
	unsigned tries, failures; /* of this state; since the last lease */
	int64_t next_ms, bound_ms; /* when there is something to do, 0 for never; since when it has the lease */
	struct dhcp_request asked;
	struct lease wanted, lease; /* what is asked for; what the interface has: address 0 for none */
};

/* dhcp_link.c */
int open_packets(int index);
void close_datagrams(struct client *client);
void broadcast(const struct client *client, const unsigned char *packet, size_t size);
bool send_to_server(struct client *client, const unsigned char *packet, size_t size);
bool read_link(struct client *client);
void drop_address(struct client *client);
void keep_address(const struct client *client);
void set_routes(const struct client *client);

/* dhcp_client.c */
void begin(struct client *client, enum state state, int64_t when_ms);
void go_on(struct client *client, int64_t now);
void receive(struct client *client, int64_t now);
void note_link(struct client *client, bool runs, int64_t now);

/* dhcp.c */
void lease_changed(void);

#endif
