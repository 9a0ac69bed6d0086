/* Fixed addresses on interfaces found by MAC, and the names that go with them. */
#define _GNU_SOURCE
#include "network.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static bool find_interface(const char *mac, char *name)
{
	DIR *directory = opendir("/sys/class/net");
	struct dirent *entry;
	bool found = false;

	while (directory && !found && (entry = readdir(directory))) {
		char path[300], text[64];
		snprintf(path, sizeof path, "/sys/class/net/%s/address", entry->d_name);
		if (strlen(entry->d_name) < IFNAMSIZ && read_file(path, text, sizeof text) > 0 &&
		    strcasecmp(trim(text), mac) == 0) {
			strcpy(name, entry->d_name);
			found = true;
		}
	}
	if (directory)
		closedir(directory);
	return found;
}

static bool parse_mac(const char *text, unsigned char *mac)
{
	errno = EINVAL;
	return sscanf(text, "%2hhx:%2hhx:%2hhx:%2hhx:%2hhx:%2hhx", &mac[0], &mac[1], &mac[2], &mac[3], &mac[4], &mac[5]) == 6;
}

/* What the engine gave is all there is: no address or route from whoever announces some, and nobody is asked whether the
 * interface's own link-local address is taken. A kernel without IPv6 has no such switches. */
static void listen_to_nobody(const char *name)
{
	static const char *const switches[] = {"accept_ra", "accept_dad"};
	char path[96];

	for (size_t i = 0; i < sizeof switches / sizeof *switches; i++) {
		snprintf(path, sizeof path, "/proc/sys/net/ipv6/conf/%s/%s", name, switches[i]);
		if (access(path, F_OK) == 0)
			write_file(path, "0", 0);
	}
}

/* What has the address of an interface other than the first goes out by that one, whatever the destination: by another it
 * would be taken for forged. So the machine answers on all of its interfaces, also on two in one network. A kernel without
 * such rules is fine. */
static bool answer_by_itself(int netlink, int index, const struct address *address, const struct route *out, int number)
{
	const struct route near = {.to = mask_ip(&address->ip, address->prefix), .prefix = address->prefix,
				   .table = FIRST_TABLE + number};
	struct route far = *out;

	far.table = near.table;
	if (!add_rule(netlink, &address->ip, near.table))
		return errno == EOPNOTSUPP || errno == EAFNOSUPPORT;
	return add_route(netlink, index, &near) && (!far.via.family || add_route(netlink, index, &far));
}

static bool set_fixed(int netlink, int index, const struct fixed_address *fixed, int number)
{
	struct address address = {.prefix = fixed->prefix};
	struct route out = {.metric = STATIC_METRIC + number};

	if (!*fixed->address)
		return true;
	if (!parse_ip(fixed->address, &address.ip) || !add_address(netlink, index, &address))
		return false;
	if (*fixed->gateway) {
		if (!parse_ip(fixed->gateway, &out.via))
			return false;
		out.on_link = !share_subnet(&address.ip, &out.via, address.prefix); /* a /32, as some clouds do */
		if (!add_route(netlink, index, &out))
			return false;
	}
	return !number || answer_by_itself(netlink, index, &address, &out, number);
}

/* Without one it asks by DHCP, and its kernel takes what routers announce. */
bool has_address(const struct nic *nic)
{
	return *nic->ipv4.address || *nic->ipv6.address;
}

/* Interface number `number` of the machine: the lower, the rather its gateway is everything's. */
static bool set_up(int netlink, const struct nic *nic, const char *name, int number, const char **step)
{
	int index = (int)if_nametoindex(name);

	if (has_address(nic))
		listen_to_nobody(name);
	*step = "cannot set the MTU of";
	if (!set_link(netlink, index, false, nic->mtu, NULL))
		return false;
	*step = "cannot bring up";
	if (!set_link(netlink, index, true, 0, NULL))
		return false;
	*step = "cannot give its address and gateway to";
	if (!set_fixed(netlink, index, &nic->ipv4, number))
		return false;
	*step = "cannot give its IPv6 address and gateway to";
	return access("/proc/sys/net/ipv6", F_OK) < 0 || set_fixed(netlink, index, &nic->ipv6, number);
}

static bool find_nic(const char *mac, char *name, const char **step)
{
	*step = "no network interface has the address";
	errno = ENODEV;
	return find_interface(mac, name);
}

/* Gives the interface other addresses; what it had goes, with its routes. `new_mac` is NULL to keep its own. A client of
 * the image's own that asks by DHCP sees the link go and come, and asks again. */
bool change_nic(const struct nic *nic, char *new_mac, int number, struct dhcp_interface *asks, const char **step)
{
	unsigned char mac[MAC_SIZE];
	char *name = asks->name;
	int netlink = open_netlink(0);

	*step = "cannot ask the kernel about";
	*asks = (struct dhcp_interface){.number = number, .mtu = nic->mtu};
	bool has_it = new_mac && find_interface(new_mac, name);
	bool done = netlink >= 0 && (has_it || find_nic(nic->mac, name, step));
	if (done) {
		int index = (int)if_nametoindex(name);
		*step = "cannot take down";
		done = set_link(netlink, index, false, 0, NULL) && flush_addresses(netlink, index);
		remove_rules(netlink, AF_INET, FIRST_TABLE + number);
		remove_rules(netlink, AF_INET6, FIRST_TABLE + number);
		if (done && new_mac && !has_it) {
			*step = "cannot change the MAC of";
			done = parse_mac(new_mac, mac) && set_link(netlink, index, false, 0, mac);
		}
		done = done && set_up(netlink, nic, name, number, step);
	}
	int error = errno;
	if (netlink >= 0)
		close(netlink);
	errno = error;
	return done;
}

/* A machine without network is still worth having (its console works), so trouble here is told and not fatal. */
void start_network(const struct config *config)
{
	static struct dhcp_interface by_dhcp[MAX_NICS];
	int netlink = open_netlink(0);
	size_t count = 0;

	if (netlink < 0) {
		complain("this kernel has no network: %s", strerror(errno));
		return;
	}
	set_link(netlink, (int)if_nametoindex("lo"), true, 0, NULL);
	for (size_t i = 0; i < config->nic_count; i++) {
		const struct nic *nic = &config->nics[i];
		struct dhcp_interface *asks = &by_dhcp[count];
		const char *step;
		bool is_found = find_nic(nic->mac, asks->name, &step);
		if (!is_found || !set_up(netlink, nic, asks->name, (int)i, &step))
			complain("%s %s: %s", step, nic->mac, strerror(errno));
		asks->number = (int)i;
		asks->mtu = nic->mtu;
		count += is_found && !has_address(nic);
	}
	close(netlink);
	if (count)
		start_dhcp(by_dhcp, count, config, true);
}

static void write_hosts(const struct config *config)
{
	static char text[8192];
	size_t used = (size_t)snprintf(text, sizeof text,
				       "127.0.0.1\tlocalhost\n"
				       "::1\tlocalhost ip6-localhost ip6-loopback\n"
				       "fe00::\tip6-localnet\nff00::\tip6-mcastprefix\n"
				       "ff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n");
	bool named = false;

	for (size_t i = 0; i < config->nic_count; i++) {
		const char *const addresses[] = {config->nics[i].ipv4.address, config->nics[i].ipv6.address};
		for (size_t j = 0; j < 2; j++)
			if (*addresses[j] && used < sizeof text - 200) {
				used += (size_t)snprintf(text + used, sizeof text - used, "%.64s\t%.64s\n", addresses[j], config->hostname);
				named = true;
			}
	}
	if (!named)
		snprintf(text + used, sizeof text - used, "127.0.1.1\t%s\n", config->hostname);
	if (write_file("/etc/hosts", text, 0644) < 0)
		complain("cannot write /etc/hosts: %s", strerror(errno));
}

/* /etc/resolv.conf, unless we have written just that before: in between it is others' to change. `domain` may be "". */
void write_resolver(char *const *servers, size_t count, const char *domain)
{
	static char text[2048], before[2048];
	size_t used = 0;

	if (*domain)
		used = (size_t)snprintf(text, sizeof text, "search %.255s\n", domain);
	for (size_t i = 0; i < count && used < sizeof text - 100; i++)
		used += (size_t)snprintf(text + used, sizeof text - used, "nameserver %.64s\n", servers[i]);
	if (!used || strcmp(before, text) == 0)
		return;
	strcpy(before, text);
	if (write_file("/etc/resolv.conf", text, 0644) < 0)
		complain("cannot write /etc/resolv.conf: %s", strerror(errno));
}

/* Hostname, /etc/hosts and /etc/resolv.conf, written into the overlay at every boot as Docker does. */
void write_identity(const struct config *config)
{
	static char text[300];

	if (sethostname(config->hostname, strlen(config->hostname)) < 0)
		complain("cannot set the hostname %s: %s", config->hostname, strerror(errno));
	mkdir("/etc", 0755);
	snprintf(text, sizeof text, "%s\n", config->hostname);
	if (write_file("/etc/hostname", text, 0644) < 0)
		complain("cannot write /etc/hostname: %s", strerror(errno));
	write_hosts(config);
	write_resolver(config->dns, config->dns_count, "");
}
