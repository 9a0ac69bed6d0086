/* Reads the boot configuration, a raw disk that src/cocoon/guest/bootconfig.py renders:
 *
 *   "cocoon-config 1 <length>\n"   version 1; <length> decimal: the bytes of records that follow
 *   "key=value\0" ...              exactly <length> bytes
 *   zeros up to a multiple of 4096, and 4096 bytes more, where supervise.c leaves the exit status
 *
 * At most 1 MiB in all. An unknown key, a repeated single one or a malformed value ends the machine: engine and
 * initramfs are of one version or somebody should know. */
#define _GNU_SOURCE
#include "guest.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_SIZE (1024 * 1024)
#define MAGIC "cocoon-config 1 "

static void append(char **list, size_t *count, size_t limit, const char *key, char *value)
{
	if (*count == limit)
		fail("boot configuration: more than %zu %s", limit, key);
	list[(*count)++] = value;
}

static void set_once(char **field, const char *key, char *value)
{
	if (*field)
		fail("boot configuration: %s twice", key);
	*field = value;
}

static bool parse_fixed(char **rest, long bits, struct fixed_address *fixed)
{
	long prefix = 0;

	fixed->address = strsep(rest, ",");
	fixed->gateway = strsep(rest, ",");
	if (!fixed->gateway)
		return false;
	char *slash = strchr(fixed->address, '/');
	if (slash)
		*slash++ = '\0';
	if (*fixed->address && (!slash || !parse_number(slash, 0, bits, &prefix)))
		return false;
	fixed->prefix = (int)prefix;
	return true;
}

/* nic=<mac>,<mtu>,<address>/<prefix>,<gateway>,<IPv6 address>/<prefix>,<gateway>; the last four may be empty
 * ("aa:..:ff,1500,,,,"). */
bool parse_nic(char *text, struct nic *nic)
{
	long mtu = 0;
	char *rest = text;

	nic->mac = strsep(&rest, ",");
	char *number = strsep(&rest, ",");
	if (!number || !parse_number(number, 68, 65535, &mtu))
		return false;
	nic->mtu = (int)mtu;
	return parse_fixed(&rest, 32, &nic->ipv4) && parse_fixed(&rest, 128, &nic->ipv6) && !rest;
}

static void add_nic(char *text, struct config *config)
{
	if (config->nic_count == MAX_NICS)
		fail("boot configuration: more than %d nic", MAX_NICS);
	struct nic *nic = &config->nics[config->nic_count++];
	if (!parse_nic(text, nic))
		fail("boot configuration: bad nic %s", nic->mac);
}

static void parse_stop_signal(const char *value, struct config *config)
{
	long number;

	if (!parse_number(value, 1, 64, &number))
		fail("boot configuration: bad stop_signal %s", value);
	config->stop_signal = (int)number;
}

static enum stdio parse_stdio(const char *value)
{
	static const char *const names[] = {[ON_CONSOLE] = "console", [ON_PIPES] = "pipes", [ON_TERMINAL] = "terminal"};

	for (size_t i = 0; i < sizeof names / sizeof *names; i++)
		if (strcmp(value, names[i]) == 0)
			return (enum stdio)i;
	fail("boot configuration: bad stdio %s", value);
}

static bool parse_flag(const char *key, const char *value)
{
	if (strcmp(value, "yes") != 0)
		fail("boot configuration: bad %s %s", key, value);
	return true;
}

static void apply(const char *key, char *value, struct config *config, size_t record_limit)
{
	if (strcmp(key, "arg") == 0)
		append(config->arguments, &config->argument_count, record_limit, key, value);
	else if (strcmp(key, "env") == 0)
		append(config->environment, &config->environment_count, record_limit, key, value);
	else if (strcmp(key, "layer") == 0)
		append(config->layers, &config->layer_count, MAX_LAYERS, key, value);
	else if (strcmp(key, "dns") == 0)
		append(config->dns, &config->dns_count, MAX_DNS, key, value);
	else if (strcmp(key, "nic") == 0)
		add_nic(value, config);
	else if (strcmp(key, "data") == 0)
		parse_data(value, config);
	else if (strcmp(key, "cow") == 0)
		set_once(&config->cow, key, value);
	else if (strcmp(key, "hostname") == 0)
		set_once(&config->hostname, key, value);
	else if (strcmp(key, "user") == 0)
		set_once(&config->user, key, value);
	else if (strcmp(key, "cwd") == 0)
		set_once(&config->cwd, key, value);
	else if (strcmp(key, "stop_signal") == 0)
		parse_stop_signal(value, config);
	else if (strcmp(key, "stdio") == 0)
		config->stdio = parse_stdio(value);
	else if (strcmp(key, "init") == 0)
		config->is_init = parse_flag(key, value);
	else
		fail("boot configuration: unknown key %s", key);
}

/* `bytes` has room for a NUL at bytes[size]. The configuration keeps pointers into it. */
void parse_config(char *bytes, size_t size, struct config *config)
{
	char *newline = memchr(bytes, '\n', size < 64 ? size : 64);
	long length;

	if (!newline || strncmp(bytes, MAGIC, strlen(MAGIC)) != 0)
		fail("the configuration disk holds no boot configuration of version 1");
	*newline = '\0';
	char *record = newline + 1;
	if (!parse_number(bytes + strlen(MAGIC), 0, (long)(bytes + size - record), &length))
		fail("boot configuration: bad length %s", bytes + strlen(MAGIC));
	char *end = record + length;
	if (length && end[-1] != '\0')
		fail("boot configuration: the last record does not end");

	/* No record is shorter than two bytes, so this bounds both lists; one element each is the final NULL. */
	size_t limit = (size_t)length / 2 + 1;
	config->arguments = calloc(limit + 1, sizeof(char *));
	config->environment = calloc(limit + 1, sizeof(char *));
	if (!config->arguments || !config->environment)
		fail("boot configuration: out of memory");
	for (char *next; record < end; record = next) {
		next = record + strlen(record) + 1;
		char *equals = strchr(record, '=');
		if (!equals)
			fail("boot configuration: record without '=': %s", record);
		*equals = '\0';
		apply(record, equals + 1, config, limit);
	}
	if (!config->layer_count || !config->cow || !config->hostname)
		fail("boot configuration: it lacks layer=, cow= or hostname=");
}

void read_config(const char *device, struct config *config)
{
	char *bytes = malloc(MAX_SIZE + 1);

	ssize_t size = bytes ? read_file(device, bytes, MAX_SIZE + 1) : -1;
	if (size < 0)
		fail("cannot read the boot configuration from %s: %s", device, strerror(errno));
	parse_config(bytes, (size_t)size, config);
}
