/* Runs the parts of cocoon-init that read what others wrote, outside a virtual machine, for the tests and under ASan:
 *
 *   driver config FILE         what the boot configuration says, one `key value` a line; 1 and a message when it is bad
 *   driver channel             serves the control channel on stdin, a socket, and says on stdout if it was `shutdown`
 *   driver account ROOT USER   the account of USER in the image whose root is ROOT (needs root: it uses chroot)
 *
 * main.c is not linked: failing here must not power anything off. */
#define _GNU_SOURCE
#include "../guest.h"

#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
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
	printf("stop_signal %d\ninit %d\nreboot %d\n", config.stop_signal, config.is_init, config.reboots);
	return 0;
}

static int serve(void)
{
	static struct channel channel;
	long grace_s;

	channel.fd = 0;
	if (serve_channel(&channel, &grace_s) == REQUEST_SHUTDOWN)
		printf("shutdown %ld\n", grace_s);
	return 0;
}

static int show_account(const char *root, const char *user)
{
	static struct account account;

	if (chroot(root) < 0 || chdir("/") < 0)
		fail("cannot enter %s", root);
	find_account(user, &account);
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
	if (count == 2 && strcmp(words[1], "channel") == 0)
		return serve();
	if (count == 4 && strcmp(words[1], "account") == 0)
		return show_account(words[2], words[3]);
	return 2;
}
