/* Runs the parts of cocoon-init that read what others wrote, outside a virtual machine, for the tests and under ASan:
 *
 *   driver config FILE         what the boot configuration says, one `key value` a line; 1 and a message when it is bad
 *   driver serve SOCKET        the agent, on a Unix socket with any number of clients; `shutdown` is said on stdout
 *   driver listen DIRECTORY    the agent, on one Unix socket for each port of the channel, as it is on a vsock
 *   driver account ROOT USER   the account of USER in the image whose root is ROOT (needs root: it uses chroot)
 *
 * main.c is not linked: failing here must not power anything off. */
#define _GNU_SOURCE
#include "../agent.h"

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
		printf("nic %s %s %d %s %d\n", config.nics[i].mac, config.nics[i].address, config.nics[i].prefix,
		       config.nics[i].gateway, config.nics[i].mtu);
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
	return 2;
}
