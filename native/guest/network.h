/* Interfaces and their addresses: what network.c and the DHCP client share. */
#ifndef COCOON_NETWORK_H
#define COCOON_NETWORK_H

#include "guest.h"

#include <net/if.h>
#include <stdint.h>
#include <sys/socket.h>

enum { MAC_SIZE = 6, STATIC_METRIC = 100, DHCP_METRIC = 1024, FIRST_TABLE = 100 }; /* the interface's number is added */

struct ip {
	int family; /* AF_INET or AF_INET6; AF_UNSPEC: none */
	unsigned char bytes[16];
};
struct address {
	struct ip ip;
	int prefix;
	uint32_t lifetime_s; /* 0: for ever */
};
struct route {
	struct ip to; /* none: everything, by the family of `via` */
	int prefix;
	struct ip via, source; /* via none: on the link itself */
	bool on_link;          /* `via` is there although no address of the interface's says so */
	int metric, table;     /* table 0: the main one */
};

struct dhcp_interface {
	char name[IFNAMSIZ];
	int number, mtu; /* which one of the machine's; the most that its network carries */
};

/* netlink.c: one request to the kernel each, and its answer; false with errno. */
bool parse_ip(const char *text, struct ip *ip);
struct ip mask_ip(const struct ip *ip, int prefix);
bool share_subnet(const struct ip *a, const struct ip *b, int prefix);
int open_netlink(uint32_t groups);
bool set_link(int netlink, int index, bool up, int mtu, const unsigned char *mac); /* mtu 0, mac NULL: as it is */
bool add_address(int netlink, int index, const struct address *address);
bool remove_address(int netlink, int index, const struct address *address);
bool add_route(int netlink, int index, const struct route *route);
bool add_rule(int netlink, const struct ip *from, int table); /* what has this source goes by that table */
void remove_rules(int netlink, int family, int table);
bool flush_addresses(int netlink, int index); /* but for link-local IPv6 ones, which go when it is down */

/* network.c */
bool has_address(const struct nic *nic);
bool change_nic(const struct nic *nic, char *new_mac, int number, struct dhcp_interface *asks, const char **step);
void write_resolver(char *const *servers, size_t count, const char *domain);

/* dhcp.c: a process of its own, for the interfaces that have no fixed address */
void start_dhcp(const struct dhcp_interface *interfaces, size_t count, const struct config *config, bool may_complain);
bool stop_dhcp(void); /* whether one ran */
_Noreturn void run_dhcp(const struct dhcp_interface *interfaces, size_t count, const struct config *config);

#endif
