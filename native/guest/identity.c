/* `identity`: makes a machine somebody: after a boot, or in a clone that must not go on as the one it was cloned from. In a
 * process of its own. Says on stdout what became of each thing that was asked for, as records "key=done|unchanged|failed:
 * WHY"; the status is 1 when something failed. */
#define _GNU_SOURCE
#include "agent.h"
#include "network.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define MAX_HOSTS (64 * 1024)
#define MAX_ENTROPY 512

/* linux/random.h, which musl's headers do not have */
struct rand_pool_info {
	int entropy_count, buf_size; /* bits, bytes */
};
#define RNDADDENTROPY _IOW('R', 0x03, int[2])
#define RNDRESEEDCRNG _IO('R', 0x07)

enum outcome { DONE, UNCHANGED, FAILED };
static int exit_status;

static void tell(const char *key, enum outcome outcome, const char *why)
{
	if (outcome == FAILED)
		printf("%s=failed: %s%c", key, why, 0);
	else
		printf("%s=%s%c", key, outcome == DONE ? "done" : "unchanged", 0);
	exit_status |= outcome == FAILED;
}

/* ---- entropy and clock, before anything that is made from them ---- */

static size_t read_hex(const char *text, unsigned char *bytes, size_t size)
{
	size_t count = strlen(text) / 2;

	if (strlen(text) % 2 || count > size)
		return 0;
	for (size_t i = 0; i < count; i++)
		if (sscanf(text + 2 * i, "%2hhx", &bytes[i]) != 1)
			return 0;
	return count;
}

static void add_entropy(const char *text)
{
	union {
		struct rand_pool_info head;
		unsigned char bytes[sizeof(struct rand_pool_info) + MAX_ENTROPY];
	} pool = {0};
	size_t count = read_hex(text, pool.bytes + sizeof pool.head, MAX_ENTROPY);

	if (count < 32) {
		tell("entropy", FAILED, "it is 32 to 512 bytes in hex");
		return;
	}
	pool.head.entropy_count = (int)count * 8;
	pool.head.buf_size = (int)count;
	int fd = open("/dev/urandom", O_RDWR | O_CLOEXEC);
	bool done = fd >= 0 && ioctl(fd, RNDADDENTROPY, &pool.head) == 0 && ioctl(fd, RNDRESEEDCRNG) == 0;
	tell("entropy", done ? DONE : FAILED, strerror(errno));
	if (fd >= 0)
		close(fd);
}

static void set_clock(const char *text)
{
	long nanoseconds;
	bool parsed = parse_number(text, 0, INT64_MAX, &nanoseconds);
	const struct timespec time = {.tv_sec = nanoseconds / 1000000000, .tv_nsec = nanoseconds % 1000000000};

	errno = EINVAL;
	tell("clock", parsed && clock_settime(CLOCK_REALTIME, &time) == 0 ? DONE : FAILED, strerror(errno));
}

/* ---- names ---- */

static bool is_hostname(const char *name)
{
	size_t length = strspn(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-.");

	return length && length <= 64 && !name[length];
}

static bool ends_word(char letter)
{
	return letter == '\0' || strchr(" \t\r\n#", letter) != NULL;
}

/* The machine's own addresses; "" for none. */
struct own_addresses {
	char ipv4[64], ipv6[64];
};

/* What is to stand in front of the machine's name in place of the address that `line` begins with; NULL: nothing. */
static const char *new_address(const char *line, size_t head, const struct own_addresses *own)
{
	if (strncmp(line, "127.", 4) == 0 || line[0] == ':' || (!*own->ipv4 && !*own->ipv6))
		return "";
	const char *address = memchr(line, ':', head) ? own->ipv6 : own->ipv4;
	return *address ? address : NULL;
}

/* One line of /etc/hosts with `old` for `new`, and with the machine's new address. */
static bool print_renamed(FILE *file, const char *line, const char *old, const char *new, const struct own_addresses *own)
{
	size_t length = strlen(old), head = strcspn(line, " \t");
	const char *address = new_address(line, head, own);
	const char *found = *old && line[0] != '#' ? line + head : "";

	while ((found = strstr(found, old)) && (!ends_word(found[-1]) || !ends_word(found[length])))
		found += length;
	if (!found) {
		fprintf(file, "%s\n", line);
		return false;
	}
	if (!address)
		return false; /* It had one of that kind, and has none any more. */
	if (*address)
		fprintf(file, "%s%.*s%s%s\n", address, (int)(found - line - (long)head), line + head, new, found + length);
	else
		fprintf(file, "%.*s%s%s\n", (int)(found - line), line, new, found + length);
	return true;
}

static bool rewrite_hosts(const char *old, const char *new, const struct own_addresses *own)
{
	static char text[MAX_HOSTS];
	char *result = NULL, *rest = text;
	size_t size;
	bool named = false;

	if (read_file("/etc/hosts", text, sizeof text) < 0)
		*text = '\0';
	FILE *file = open_memstream(&result, &size);
	if (!file)
		return false;
	for (char *line; (line = strsep(&rest, "\n"));)
		if (*line || rest)
			named = print_renamed(file, line, old, new, own) || named;
	if (!named)
		fprintf(file, "%s\t%s\n", *own->ipv4 ? own->ipv4 : *own->ipv6 ? own->ipv6 : "127.0.1.1", new);
	fclose(file);
	bool written = write_file("/etc/hosts", result, 0644) == 0;
	free(result);
	return written;
}

static void set_hostname(const char *name, const struct own_addresses *own)
{
	char old[256] = "", line[80];

	gethostname(old, sizeof old - 1);
	if (!is_hostname(name)) {
		tell("hostname", FAILED, "it is no host name");
		return;
	}
	snprintf(line, sizeof line, "%s\n", name);
	bool done = sethostname(name, strlen(name)) == 0 && write_file("/etc/hostname", line, 0644) == 0 &&
	            rewrite_hosts(old, name, own);
	tell("hostname", !done ? FAILED : strcmp(old, name) == 0 && !*own->ipv4 && !*own->ipv6 ? UNCHANGED : DONE, strerror(errno));
}

static void set_machine_id(const char *text)
{
	static const char *const places[] = {"/etc/machine-id", "/var/lib/dbus/machine-id"};
	unsigned char bytes[16];
	char id[34] = "", now[40];
	struct stat status;

	if (strcmp(text, "new") == 0 && getrandom(bytes, sizeof bytes, 0) == sizeof bytes) {
		bytes[6] = (bytes[6] & 0x0f) | 0x40; /* a random UUID, as machine-id(5) has it */
		bytes[8] = (bytes[8] & 0x3f) | 0x80;
		for (size_t i = 0; i < sizeof bytes; i++)
			snprintf(id + 2 * i, 3, "%02x", bytes[i]);
	} else if (strlen(text) == 32 && strspn(text, "0123456789abcdef") == 32) {
		memcpy(id, text, 32);
	} else {
		tell("machine-id", FAILED, "it is 32 hex digits, or `new`");
		return;
	}
	id[32] = '\n';
	bool same = read_file(places[0], now, sizeof now) > 0 && strcmp(now, id) == 0;
	bool done = write_file(places[0], id, 0444) == 0;
	int error = errno;
	if (lstat(places[1], &status) == 0 && S_ISREG(status.st_mode))
		write_file(places[1], id, 0444);
	tell("machine-id", !done ? FAILED : same ? UNCHANGED : DONE, strerror(error));
}

/* ---- network ---- */

/* MAC,MTU,ADDRESS/PREFIX,GATEWAY,ADDRESS6/PREFIX,GATEWAY6[,NEW MAC] */
/* False unless the interface is to ask by DHCP, as `asks`. */
static bool set_nic(const char *text, int number, struct dhcp_interface *asks)
{
	char copy[256], why[160], *new_mac = NULL;
	const char *step;
	struct nic nic;
	int commas = 0;

	snprintf(copy, sizeof copy, "%s", text);
	for (char *letter = copy; *letter; letter++)
		if (*letter == ',' && ++commas == 6) {
			*letter = '\0';
			new_mac = letter + 1;
			break;
		}
	if (!parse_nic(copy, &nic)) {
		tell("nic", FAILED, "it is MAC,MTU,ADDRESS/PREFIX,GATEWAY,ADDRESS6/PREFIX,GATEWAY6");
		return false;
	}
	bool done = change_nic(&nic, new_mac, number, asks, &step);
	snprintf(why, sizeof why, "%s %.40s: %s", step, nic.mac, strerror(errno));
	tell("nic", done ? DONE : FAILED, why);
	return done && !has_address(&nic);
}

/* What the DHCP client is told of the machine. */
static void ask_by_dhcp(const struct dhcp_interface *asks, size_t count, const struct request *request)
{
	static char hostname[256];
	static struct config config = {.hostname = hostname};

	fflush(stdout);
	gethostname(hostname, sizeof hostname - 1);
	for (const char *server = NULL; config.dns_count < MAX_DNS && (server = next_record(request, "dns", server));)
		config.dns[config.dns_count++] = (char *)server;
	start_dhcp(asks, count, &config, false);
}

/* The interfaces are all that the machine has: one that is not named has nobody who asks for it any more. */
static void set_nics(const struct request *request)
{
	static struct dhcp_interface asks[MAX_NICS];
	size_t count = 0;
	int number = 0;
	/* An init of the image's own has a client of its own, unless it had ours. */
	bool ours = find_record(request, "nic") && (stop_dhcp() || host_program.config);

	for (const char *nic = NULL; number < MAX_NICS && (nic = next_record(request, "nic", nic));)
		count += set_nic(nic, number++, &asks[count]);
	if (count && ours)
		ask_by_dhcp(asks, count, request);
}

static void set_servers(const struct request *request)
{
	char text[2048], now[2048];
	size_t used = 0;

	for (const char *server = NULL; (server = next_record(request, "dns", server)) && used < sizeof text - 100;)
		used += (size_t)snprintf(text + used, sizeof text - used, "nameserver %.64s\n", server);
	bool same = read_file("/etc/resolv.conf", now, sizeof now) > 0 && strcmp(now, text) == 0;
	bool done = same || write_file("/etc/resolv.conf", text, 0644) == 0;
	tell("dns", !done ? FAILED : same ? UNCHANGED : DONE, strerror(errno));
}

/* ---- the SSH server's keys ---- */

static void remove_host_keys(void)
{
	DIR *directory = opendir("/etc/ssh");
	struct dirent *entry;

	while (directory && (entry = readdir(directory)))
		if (strncmp(entry->d_name, "ssh_host_", 9) == 0 && strstr(entry->d_name, "_key"))
			unlinkat(dirfd(directory), entry->d_name, 0);
	if (directory)
		closedir(directory);
}

/* A server that runs reads its keys again. */
static void tell_server(void)
{
	char text[32];
	long pid;

	if (read_file("/run/sshd.pid", text, sizeof text) > 0 && parse_number(trim(text), 2, INT32_MAX, &pid))
		kill((pid_t)pid, SIGHUP);
}

static void make_host_keys(const char *text)
{
	static char *const words[] = {"ssh-keygen", "-A", NULL};
	int status = 0;

	if (strcmp(text, "new") != 0 || access("/usr/bin/ssh-keygen", X_OK) < 0) {
		if (strcmp(text, "new") == 0)
			tell("host-keys", UNCHANGED, "");
		else
			tell("host-keys", FAILED, "it is `new`");
		return;
	}
	remove_host_keys();
	pid_t pid = fork();
	if (pid == 0) {
		dup2(open("/dev/null", O_RDWR), 1);
		execv("/usr/bin/ssh-keygen", words);
		_exit(127);
	}
	bool done = pid > 0 && waitpid(pid, &status, 0) == pid && status == 0;
	if (done)
		tell_server();
	tell("host-keys", done ? DONE : FAILED, "ssh-keygen -A failed");
}

/* The addresses of the first interface are those that the machine's own name is to have. */
static struct own_addresses find_own_addresses(const struct request *request)
{
	struct own_addresses own = {.ipv4 = ""};
	const char *text = find_record(request, "nic");

	for (int field = 0; text && field < 5; field++) {
		text = strchr(text, ',');
		text = text ? text + 1 : NULL;
		if (text && field == 1)
			snprintf(own.ipv4, sizeof own.ipv4, "%.*s", (int)strcspn(text, "/,"), text);
		if (text && field == 3)
			snprintf(own.ipv6, sizeof own.ipv6, "%.*s", (int)strcspn(text, "/,"), text);
	}
	return own;
}

int identity_task(const struct request *request)
{
	const struct own_addresses own = find_own_addresses(request);
	const char *text;

	if ((text = find_record(request, "entropy")))
		add_entropy(text);
	if ((text = find_record(request, "clock")))
		set_clock(text);
	if ((text = find_record(request, "hostname")))
		set_hostname(text, &own);
	if ((text = find_record(request, "machine-id")))
		set_machine_id(text);
	set_nics(request);
	if (find_record(request, "dns"))
		set_servers(request);
	if ((text = find_record(request, "host-keys")))
		make_host_keys(text);
	fflush(stdout);
	return exit_status;
}
