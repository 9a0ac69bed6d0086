/* Runs the parts of cocoon-init that read what others wrote, outside a virtual machine, for the tests and under ASan:
 *
 *   driver config FILE         what the boot configuration says, one `key value` a line; 1 and a message when it is bad
 *   driver serve SOCKET        the agent, on a Unix socket with any number of clients; `shutdown` is said on stdout
 *   driver listen DIRECTORY    the agent, on one Unix socket for each port of the channel, as it is on a vsock
 *   driver network FILE        sets up the interfaces of this namespace as the boot configuration says, and asks nobody
 *   driver nic TEXT NUMBER     changes one, as `identity` does
 *   driver lease PACKET        what a DHCP server's answer to transaction 1 of 02:00:00:00:00:01 gives; 1 when it is none
 *   driver dhcp ROOT NAME MTU  the DHCP client for interface NAME, /etc below ROOT; for ever
 *   driver account ROOT USER   the account of USER in the image whose root is ROOT (needs root: it uses chroot)
 *
 * main.c is not linked: failing here must not power anything off. */
#define _GNU_SOURCE
#include "../agent.h"
#include "../dhcp.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

/* cocoon-init frees nothing, on purpose; and the leak checker needs a /proc that `account` leaves behind. */
const char *__asan_default_options(void);
const char *__asan_default_options(void)
{
	return "detect_leaks=0";
}

void complain(const char *format, ...)
{
	va_list arguments;

	va_start(arguments, format);
	vfprintf(stderr, format, arguments);
	va_end(arguments);
	fputc('\n', stderr);
}

_Noreturn void fail(const char *format, ...)
{
	va_list arguments;

	va_start(arguments, format);
	vfprintf(stderr, format, arguments);
	va_end(arguments);
	fputc('\n', stderr);
	exit(1);
}

static void show(const char *key, char *const *values, size_t count)
{
	for (size_t i = 0; i < count; i++)
		printf("%s %s\n", key, values[i]);
}

static void show_nic(const struct nic *nic)
{
	printf("nic %s %d", nic->mac, nic->mtu);
	printf(" %s %d %s", nic->ipv4.address, nic->ipv4.prefix, nic->ipv4.gateway);
	printf(" %s %d %s\n", nic->ipv6.address, nic->ipv6.prefix, nic->ipv6.gateway);
}

static int show_config(const char *path)
{
	static struct config config;

	read_config(path, &config);
	show("layer", config.layers, config.layer_count);
	show("cow", &config.cow, 1);
	show("hostname", &config.hostname, 1);
	show("arg", config.arguments, config.argument_count);
	show("env", config.environment, config.environment_count);
	show("dns", config.dns, config.dns_count);
	show("user", &config.user, config.user != NULL);
	show("cwd", &config.cwd, config.cwd != NULL);
	for (size_t i = 0; i < config.nic_count; i++)
		show_nic(&config.nics[i]);
	for (size_t i = 0; i < config.data_count; i++)
		printf("data %s %s %s\n", config.data[i].name, config.data[i].type, config.data[i].place);
	printf("stop_signal %d\ninit %d\n", config.stop_signal, config.is_init);
	return 0;
}

static bool shut_down(long grace_s)
{
	printf("shutdown %ld\n", grace_s);
	fflush(stdout);
	return true;
}

static void take_signals(struct watch *watch, uint32_t events)
{
	struct signalfd_siginfo info;

	(void)events;
	while (read(watch->fd, &info, sizeof info) == sizeof info)
		;
	reap_children();
}

static int bind_socket(const char *path)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	snprintf(address.sun_path, sizeof address.sun_path, "%s", path);
	if (bind(fd, (struct sockaddr *)&address, sizeof address) < 0)
		fail("cannot bind %s", path);
	return fd;
}

static void prepare(void)
{
	static struct watch signals;
	sigset_t set, inherited;

	sigemptyset(&set);
	sigaddset(&set, SIGCHLD);
	sigprocmask(SIG_BLOCK, &set, &inherited);
	set_inherited_signals(&inherited);
	signal(SIGPIPE, SIG_IGN);
	host_program.shut_down = shut_down;
	open_loop();
	add_watch(&signals, signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC), EPOLLIN, take_signals);
}

static void accept_anybody(struct watch *watch, uint32_t events)
{
	int fd = accept4(watch->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);

	(void)events;
	if (fd >= 0 && !add_connection(fd, false))
		close(fd);
}

static _Noreturn void serve(const char *path)
{
	static struct watch listener;
	int fd = bind_socket(path);

	prepare();
	add_watch(&listener, fd, EPOLLIN, accept_anybody);
	listen(fd, 64);
	for (;;)
		spin_agent(0);
}

static _Noreturn void serve_each(const char *directory)
{
	char path[100];

	prepare();
	for (unsigned port = 0; port < CHANNEL_PORTS; port++) {
		snprintf(path, sizeof path, "%s/%u", directory, VSOCK_BASE + port);
		if (!listen_at(port, bind_socket(path)))
			fail("cannot listen at %s", path);
	}
	for (;;)
		spin_agent(0);
}

static int show_account(const char *root, const char *user)
{
	static struct account account;
	char why[600];

	if (chroot(root) < 0 || chdir("/") < 0)
		fail("cannot enter %s", root);
	if (!find_account(user, &account, why, sizeof why))
		fail("%s", why);
	printf("%u %u %s", account.uid, account.gid, account.home);
	for (size_t i = 0; i < account.group_count; i++)
		printf(" %u", account.groups[i]);
	putchar('\n');
	return 0;
}

static const char *dotted(uint32_t address)
{
	return inet_ntoa((struct in_addr){.s_addr = address});
}

static int show_lease(const char *path)
{
	const struct dhcp_request asked = {.transaction = htonl(1), .mac = {2, 0, 0, 0, 0, 1}};
	static char content[65536];
	struct lease lease;
	enum dhcp_type type;
	ssize_t size = read_file(path, content, sizeof content);
	unsigned char *packet = malloc(size > 0 ? (size_t)size : 1); /* its end is where ASan sees it */

	if (size <= 0 || !packet)
		return 1;
	memcpy(packet, content, (size_t)size);
	if (!read_packet(packet, (size_t)size, &asked, &type, &lease))
		return 1;
	printf("type %d\naddress %s\nprefix %d\n", type, dotted(lease.address), lease.prefix);
	printf("server %s\nmtu %d\ntimes %u %u %u\ndomain %s\n", dotted(lease.server), lease.mtu, lease.renew_s, lease.rebind_s,
	       lease.lease_s, lease.domain);
	for (size_t i = 0; i < lease.dns_count; i++)
		printf("dns %s\n", dotted(lease.dns[i]));
	for (size_t i = 0; i < lease.route_count; i++) {
		printf("route %s/%d", dotted(lease.routes[i].to), lease.routes[i].prefix);
		printf(" %s\n", dotted(lease.routes[i].via));
	}
	return 0;
}

static int set_up_network(const char *path)
{
	static struct config config;

	read_config(path, &config);
	start_network(&config);
	return 0;
}

static int set_up_nic(char *text, int number)
{
	struct dhcp_interface asks;
	const char *step;
	struct nic nic;

	if (!parse_nic(text, &nic))
		fail("bad nic");
	if (!change_nic(&nic, NULL, number, &asks, &step))
		fail("%s %s", step, nic.mac);
	return 0;
}

static int ask_by_dhcp(const char *root, const char *name, int mtu)
{
	static struct config config = {.hostname = "tester"};
	struct dhcp_interface interface = {.mtu = mtu};

	snprintf(interface.name, sizeof interface.name, "%s", name);
	if (chroot(root) < 0 || chdir("/") < 0)
		fail("cannot enter %s", root);
	run_dhcp(&interface, 1, &config);
}

int main(int count, char **words)
{
	if (count == 3 && strcmp(words[1], "config") == 0)
		return show_config(words[2]);
	if (count == 3 && strcmp(words[1], "serve") == 0)
		serve(words[2]);
	if (count == 3 && strcmp(words[1], "listen") == 0)
		serve_each(words[2]);
	if (count == 4 && strcmp(words[1], "account") == 0)
		return show_account(words[2], words[3]);
	if (count == 3 && strcmp(words[1], "network") == 0)
		return set_up_network(words[2]);
	if (count == 4 && strcmp(words[1], "nic") == 0)
		return set_up_nic(words[2], atoi(words[3]));
	if (count == 3 && strcmp(words[1], "lease") == 0)
		return show_lease(words[2]);
	if (count == 5 && strcmp(words[1], "dhcp") == 0)
		return ask_by_dhcp(words[2], words[3], atoi(words[4]));
	return 2;
}
