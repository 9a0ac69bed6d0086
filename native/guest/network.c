/* Static IPv4 addresses on interfaces found by MAC, and the names that go with them. */
#define _GNU_SOURCE
#include "guest.h"

#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <net/if.h>
#include <net/route.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

static bool parse_address(const char *text, struct sockaddr *place)
{
	struct sockaddr_in address = {.sin_family = AF_INET};

	if (inet_pton(AF_INET, text, &address.sin_addr) != 1)
		return false;
	memcpy(place, &address, sizeof address);
	return true;
}

static in_addr_t netmask(int prefix)
{
	return prefix ? htonl(0xffffffffu << (32 - prefix)) : 0;
}

static void set_mask(struct sockaddr *place, int prefix)
{
	struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = netmask(prefix)};

	memcpy(place, &address, sizeof address);
}

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

static bool bring_up(int fd, const char *name)
{
	struct ifreq request = {0};

	strcpy(request.ifr_name, name);
	if (ioctl(fd, SIOCGIFFLAGS, &request) < 0)
		return false;
	request.ifr_flags |= IFF_UP;
	return ioctl(fd, SIOCSIFFLAGS, &request) == 0;
}

static bool add_route(int fd, const struct rtentry *route)
{
	return ioctl(fd, SIOCADDRT, route) == 0 || errno == EEXIST;
}

/* The default route. A gateway outside the interface's own subnet (a /32, as some clouds do) needs a route itself. */
static bool set_gateway(int fd, const struct nic *nic, char *name)
{
	struct rtentry route = {.rt_flags = RTF_UP | RTF_GATEWAY, .rt_dev = name};
	struct rtentry link = {.rt_flags = RTF_UP | RTF_HOST, .rt_dev = name};

	if (!parse_address(nic->gateway, &route.rt_gateway))
		return false;
	set_mask(&route.rt_dst, 0);
	set_mask(&route.rt_genmask, 0);
	if ((inet_addr(nic->address) ^ inet_addr(nic->gateway)) & netmask(nic->prefix)) {
		link.rt_dst = route.rt_gateway;
		set_mask(&link.rt_genmask, 32);
		if (!add_route(fd, &link))
			return false;
	}
	return add_route(fd, &route);
}

static bool set_address(int fd, const struct nic *nic, const char *name)
{
	struct ifreq request = {0};

	strcpy(request.ifr_name, name);
	if (!parse_address(nic->address, &request.ifr_addr) || ioctl(fd, SIOCSIFADDR, &request) < 0)
		return false;
	set_mask(&request.ifr_netmask, nic->prefix);
	return ioctl(fd, SIOCSIFNETMASK, &request) == 0;
}

static bool set_mac(int fd, const char *name, const char *mac)
{
	struct ifreq request = {.ifr_hwaddr.sa_family = 1 /* ARPHRD_ETHER */};
	unsigned bytes[6];

	if (sscanf(mac, "%2x:%2x:%2x:%2x:%2x:%2x", &bytes[0], &bytes[1], &bytes[2], &bytes[3], &bytes[4], &bytes[5]) != 6) {
		errno = EINVAL;
		return false;
	}
	strcpy(request.ifr_name, name);
	for (size_t i = 0; i < 6; i++)
		request.ifr_hwaddr.sa_data[i] = (char)bytes[i];
	return ioctl(fd, SIOCSIFHWADDR, &request) == 0;
}

static bool set_up(int fd, const struct nic *nic, const char **step)
{
	struct ifreq request = {.ifr_mtu = nic->mtu};
	char name[IFNAMSIZ];

	*step = "no network interface has the address";
	errno = ENODEV;
	if (!find_interface(nic->mac, name))
		return false;
	strcpy(request.ifr_name, name);
	*step = "cannot set the MTU of";
	if (ioctl(fd, SIOCSIFMTU, &request) < 0)
		return false;
	*step = "cannot give an address to";
	if (*nic->address && !set_address(fd, nic, name))
		return false;
	*step = "cannot bring up";
	if (!bring_up(fd, name))
		return false;
	*step = "cannot route through the gateway of";
	return !*nic->address || !*nic->gateway || set_gateway(fd, nic, name);
}

/* A machine without network is still worth having (its console works), so trouble here is told and not fatal. */
static void start_nic(int fd, const struct nic *nic)
{
	const char *step;

	if (!set_up(fd, nic, &step))
		complain("%s %s: %s", step, nic->mac, strerror(errno));
}

/* Gives the interface another address; what it had goes, with its routes. `new_mac` is NULL to keep its own. */
bool change_nic(const struct nic *nic, char *new_mac, const char **step)
{
	int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	struct nic wanted = *nic;
	struct ifreq request = {0};
	bool done = false;

	*step = "no network interface has the address";
	if (new_mac && find_interface(new_mac, request.ifr_name))
		wanted.mac = new_mac;
	if (fd >= 0 && find_interface(wanted.mac, request.ifr_name)) {
		*step = "cannot take down";
		done = ioctl(fd, SIOCGIFFLAGS, &request) == 0;
		request.ifr_flags &= (short)~IFF_UP;
		done = done && ioctl(fd, SIOCSIFFLAGS, &request) == 0;
		if (done && new_mac && wanted.mac != new_mac) {
			*step = "cannot change the MAC of";
			done = set_mac(fd, request.ifr_name, new_mac);
			wanted.mac = done ? new_mac : wanted.mac;
		}
		done = done && set_up(fd, &wanted, step);
	}
	int error = errno;
	if (fd >= 0)
		close(fd);
	errno = error;
	return done;
}

void start_network(const struct config *config)
{
	int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

	if (fd < 0) {
		complain("this kernel has no IPv4: %s", strerror(errno));
		return;
	}
	bring_up(fd, "lo");
	for (size_t i = 0; i < config->nic_count; i++)
		start_nic(fd, &config->nics[i]);
	close(fd);
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

	for (size_t i = 0; i < config->nic_count; i++)
		if (*config->nics[i].address) {
			used += (size_t)snprintf(text + used, sizeof text - used, "%s\t%s\n", config->nics[i].address, config->hostname);
			named = true;
		}
	if (!named)
		snprintf(text + used, sizeof text - used, "127.0.1.1\t%s\n", config->hostname);
	if (write_file("/etc/hosts", text, 0644) < 0)
		complain("cannot write /etc/hosts: %s", strerror(errno));
}

/* Hostname, /etc/hosts and /etc/resolv.conf, written into the overlay at every boot as Docker does. */
void write_identity(const struct config *config)
{
	static char text[2048];
	size_t used = 0;

	if (sethostname(config->hostname, strlen(config->hostname)) < 0)
		complain("cannot set the hostname %s: %s", config->hostname, strerror(errno));
	mkdir("/etc", 0755);
	snprintf(text, sizeof text, "%s\n", config->hostname);
	if (write_file("/etc/hostname", text, 0644) < 0)
		complain("cannot write /etc/hostname: %s", strerror(errno));
	write_hosts(config);
	for (size_t i = 0; i < config->dns_count; i++)
		used += (size_t)snprintf(text + used, sizeof text - used, "nameserver %.64s\n", config->dns[i]);
	if (used && write_file("/etc/resolv.conf", text, 0644) < 0)
		complain("cannot write /etc/resolv.conf: %s", strerror(errno));
}
