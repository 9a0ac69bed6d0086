/* What Firecracker makes of one request after the other: each is answered with "" or with the words of its refusal.
 *
 * With effects, files and TAPs are opened and sockets bound as the real one does; without, only what is said counts. */
#ifndef FAKE_VMM_MACHINE_H
#define FAKE_VMM_MACHINE_H
#include <fcntl.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "facts.h"
#include "json.h"

enum { WORDS_MAX = 1024, DEVICES_MAX = 64, SHORT_TEXT = 64, TUN_SET_IFF = 0x400454ca };
enum { IFF_TAP_FLAG = 0x0002, IFF_NO_PI_FLAG = 0x1000, IFF_VNET_HDR_FLAG = 0x4000 };
struct device { char id[SHORT_TEXT], mac[SHORT_TEXT]; bool root; int fd; };
struct machine {
	int version;
	bool effects, started, has_kernel, huge_pages, balloon, entropy, vsock, metrics;
	int64_t memory_mib, balloon_mib;
	int drives, nics, vsock_fd, metrics_fd;
	struct device drive[DEVICES_MAX], nic[DEVICES_MAX];
	char vsock_path[108], words[WORDS_MAX];
};

#define REFUSE(machine, ...) (snprintf((machine)->words, WORDS_MAX, __VA_ARGS__), (machine)->words)

static const char *opened(struct machine *machine, const char *what, const char *path, int flags) {
	int fd = machine->effects ? open(path, flags | O_NONBLOCK | O_CLOEXEC) : -2;
	return fd == -1 ? REFUSE(machine, "%s %s: %s", what, path, strerror(errno)) : "";
}

static bool plain_id(const char *id) {
	if (!*id || strlen(id) >= SHORT_TEXT)
		return false;
	for (; *id; id++)
		if (!isalnum((unsigned char)*id) && *id != '_')
			return false;
	return true;
}

/* Both shapes of a limiter: two buckets, or one. */
static bool limits(const struct member *member, enum kind kind) {
	struct object object;
	bool size = false, refill = false;
	if (member->type != J_OBJECT || !json_object(member->begin, &object, 0))
		return false;
	for (int i = 0; i < object.count; i++) {
		const struct member *part = &object.members[i];
		bool bucket = kind == LIMITER && (!strcmp(part->name, "bandwidth") || !strcmp(part->name, "ops"));
		if (bucket ? !limits(part, BUCKET) : kind == LIMITER || part->type != J_INTEGER || part->number < 0)
			return false;
		if (!bucket && !strstr(" size refill_time one_time_burst ", part->name))
			return false;
		size = size || !strcmp(part->name, "size");
		refill = refill || !strcmp(part->name, "refill_time");
	}
	return kind == LIMITER || (size && refill);
}

static bool fits(const struct field *field, const struct member *member, const char *id) {
	char text[TEXT_MAX + 2] = " ";
	struct object one = {.count = 1, .members = {*member}};
	switch (field->kind) {
	case INTEGER:
		return member->type == J_INTEGER && member->number >= field->least && member->number <= field->most;
	case BOOLEAN:
		return member->type == J_BOOLEAN;
	case LIMITER:
	case BUCKET:
		return limits(member, field->kind);
	default:
		json_string(&one, member->name, text + 1);
		if (member->type != J_TEXT || (field->kind == ID && strcmp(text + 1, id)))
			return false;
		strcat(text, " ");
		return !field->choices || strstr(field->choices, text);
	}
}

static bool about(const struct field *field, const struct call *call) {
	return !strcmp(field->method, call->method) && !strcmp(field->path, call->path);
}

/* Whether the body has the fields of its call in this version, all that must be, and no others. */
static const char *check_fields(
	struct machine *machine, const struct call *call, const char *id, const struct object *body) {
	for (int i = 0; i < body->count; i++) {
		const struct member *member = &body->members[i];
		const struct field *field = FIELDS;
		while (field->method
			&& (!about(field, call) || strcmp(field->name, member->name) || field->since > machine->version))
			field++;
		if (!field->method)
			return REFUSE(machine, "unknown field `%s`", member->name);
		for (int j = 0; j < i; j++)
			if (!strcmp(body->members[j].name, member->name))
				return REFUSE(machine, "duplicate field `%s`", member->name);
		if ((member->type != J_NULL || field->required) && !fits(field, member, id))
			return REFUSE(machine, "invalid value for `%s`: %.*s", member->name,
				(int)(member->end - member->begin), member->begin);
	}
	for (const struct field *field = FIELDS; field->method; field++)
		if (about(field, call) && field->required && field->since <= machine->version && !json_find(body, field->name))
			return REFUSE(machine, "missing field `%s`", field->name);
	return "";
}

static const char *put_boot_source(struct machine *machine, const struct object *body) {
	char path[TEXT_MAX], text[TEXT_MAX];
	json_string(body, "kernel_image_path", path);
	const char *words = opened(machine, "The kernel file cannot be opened:", path, O_RDONLY);
	if (!*words && *json_string(body, "initrd_path", path))
		words = opened(machine, "The initrd file cannot be opened:", path, O_RDONLY);
	if (*words)
		return words;
	if (strlen(json_string(body, "boot_args", text)) >= CMDLINE_MAX)
		return REFUSE(machine, "The kernel command line is invalid: too long");
	machine->has_kernel = true;
	return "";
}

static struct device *find_device(struct device *devices, int *count, const char *id) {
	int at = 0;
	while (at < *count && strcmp(devices[at].id, id))
		at++;
	if (at == DEVICES_MAX)
		return NULL;
	*count += at == *count;
	strcpy(devices[at].id, id);
	return &devices[at];
}

static const char *put_drive(struct machine *machine, const char *id, const struct object *body) {
	char path[TEXT_MAX];
	bool root = json_integer(body, "is_root_device", 0), read_only = json_integer(body, "is_read_only", 0);
	if (!*json_string(body, "path_on_host", path))
		return REFUSE(machine, "Unable to create the block device: invalid configuration");
	for (int i = 0; i < machine->drives; i++)
		if (root && machine->drive[i].root && strcmp(machine->drive[i].id, id))
			return REFUSE(machine, "A root block device already exists!");
	const char *what = "Unable to create the virtio block device: Error manipulating the backing file:";
	const char *words = opened(machine, what, path, read_only ? O_RDONLY : O_RDWR);
	if (*words)
		return words;
	struct device *drive = find_device(machine->drive, &machine->drives, id);
	if (!drive)
		return REFUSE(machine, "too many drives");
	drive->root = root;
	return "";
}

/* What was open under that id is closed first: a TAP has one owner. */
static const char *open_tap(struct machine *machine, struct device *nic, const char *name) {
	struct { char name[16]; short flags; char rest[22]; } request = {
		.flags = IFF_TAP_FLAG | IFF_NO_PI_FLAG | IFF_VNET_HDR_FLAG,
	};
	if (strlen(name) >= sizeof(request.name))
		return REFUSE(machine, "Open tap device failed: Invalid interface name");
	strcpy(request.name, name);
	if (!machine->effects)
		return "";
	if (nic->fd > 0)
		close(nic->fd);
	nic->fd = open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC);
	if (nic->fd < 0 || ioctl(nic->fd, TUN_SET_IFF, &request))
		return REFUSE(machine, "Open tap device failed: %s: %s", name, strerror(errno));
	return "";
}

static const char *put_nic(struct machine *machine, const char *id, const struct object *body) {
	char text[TEXT_MAX], mac[TEXT_MAX];
	unsigned part[6];
	int length = 0;
	json_string(body, "guest_mac", mac);
	int found = sscanf(mac, "%2x:%2x:%2x:%2x:%2x:%2x%n",
		part, part + 1, part + 2, part + 3, part + 4, part + 5, &length);
	if (*mac && (found != 6 || length != 17 || mac[length]))
		return REFUSE(machine, "invalid value for `guest_mac`: %.40s", mac);
	for (int i = 0; i < machine->nics; i++)
		if (*mac && !strcasecmp(machine->nic[i].mac, mac) && strcmp(machine->nic[i].id, id))
			return REFUSE(machine, "The MAC address is already in use: %s", mac);
	struct device *nic = find_device(machine->nic, &machine->nics, id);
	if (!nic)
		return REFUSE(machine, "too many NICs");
	snprintf(nic->mac, SHORT_TEXT, "%.32s", mac);
	return open_tap(machine, nic, json_string(body, "host_dev_name", text));
}

static bool balloon_excluded(const struct machine *machine, bool balloon, bool huge_pages) {
	return balloon && huge_pages && machine->version < BALLOON_WITH_HUGE_PAGES_SINCE;
}

static const char *put_machine_config(struct machine *machine, const struct object *body) {
	char text[TEXT_MAX];
	int64_t memory = json_integer(body, "mem_size_mib", 0), cpus = json_integer(body, "vcpu_count", 0);
	bool huge = !strcmp(json_string(body, "huge_pages", text), "2M");
	if (json_integer(body, "smt", 0) && cpus > 1 && cpus % 2)
		return REFUSE(machine, "The vCPU number is invalid!");
	if (huge && memory % 2)
		return REFUSE(machine, "The memory size (MiB) is invalid: no multiple of the page size.");
	if (machine->balloon && machine->balloon_mib > memory)
		return REFUSE(machine, "The memory size (MiB) is smaller than the balloon device target size.");
	if (balloon_excluded(machine, machine->balloon, huge))
		return REFUSE(machine, "Huge pages are incompatible with memory ballooning.");
	machine->memory_mib = memory, machine->huge_pages = huge;
	return "";
}

static const char *put_balloon(struct machine *machine, const struct object *body) {
	int64_t amount = json_integer(body, "amount_mib", 0);
	if (amount > machine->memory_mib)
		return REFUSE(machine, "Amount of pages requested exceeds the memory of the guest.");
	if (balloon_excluded(machine, true, machine->huge_pages))
		return REFUSE(machine, "Huge pages are incompatible with memory ballooning.");
	machine->balloon = true, machine->balloon_mib = amount;
	return "";
}

static const char *put_vsock(struct machine *machine, const struct object *body) {
	struct sockaddr_un name = {.sun_family = AF_UNIX};
	char path[TEXT_MAX];
	if (strlen(json_string(body, "uds_path", path)) >= sizeof(name.sun_path))
		return REFUSE(machine, "Cannot create backend for vsock device: path too long");
	machine->vsock = true;
	if (!machine->effects)
		return "";
	if (machine->vsock_fd >= 0) {
		close(machine->vsock_fd);
		unlink(machine->vsock_path);
	}
	strcpy(name.sun_path, strcpy(machine->vsock_path, path));
	machine->vsock_fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (bind(machine->vsock_fd, (void *)&name, sizeof(name)) || listen(machine->vsock_fd, 16))
		return REFUSE(machine, "Cannot create backend for vsock device: %s: %s", path, strerror(errno));
	return "";
}

static const char *put_metrics(struct machine *machine, const struct object *body) {
	char path[TEXT_MAX];
	if (machine->metrics)
		return REFUSE(machine, "Metrics error: Cannot initialize the metrics system: already initialized");
	json_string(body, "metrics_path", path);
	const char *words = opened(machine, "Cannot initialize the metrics system:", path, O_RDWR);
	if (*words)
		return words;
	machine->metrics = true;
	machine->metrics_fd = machine->effects ? open(path, O_RDWR | O_NONBLOCK | O_CLOEXEC) : -1;
	return "";
}

static const char *out_of_order(struct machine *machine) {
	const char *when = machine->started ? "after" : "before";
	return REFUSE(machine, "The requested operation is not supported %s starting the microVM.", when);
}

static const char *start(struct machine *machine) {
	int devices = machine->drives + machine->nics + machine->balloon + machine->entropy + machine->vsock;
	int places = INTERRUPTS - 1 - (machine->version >= VMCLOCK_SINCE);
	if (!machine->has_kernel)
		return REFUSE(machine, "Start microvm error: Cannot start microvm without kernel configuration.");
	if (devices > places)
		return REFUSE(machine, "Start microvm error: %d devices, and interrupts for %d", devices, places);
	machine->started = true;
	return "";
}

static const char *act(struct machine *machine, const struct object *body) {
	static const char numbers[] = "{\"utc_timestamp_ms\": 1, \"vmm\": {\"panic_count\": 0}}\n";
	char type[TEXT_MAX];
	json_string(body, "action_type", type);
	bool starting = !strcmp(type, "InstanceStart");
	if (starting == machine->started)
		return out_of_order(machine);
	if (starting)
		return start(machine);
	if (strcmp(type, "FlushMetrics"))
		return "";
	if (!machine->metrics || (machine->effects && write(machine->metrics_fd, numbers, sizeof(numbers) - 1) < 0))
		return REFUSE(machine, "Cannot flush the metrics");
	return "";
}

static const char *take(
	struct machine *machine, const struct call *call, const char *id, const struct object *body) {
	if (!strcmp(call->path, "actions"))
		return act(machine, body);
	if (strcmp(call->method, "PUT"))
		return "";
	if (!strcmp(call->path, "boot-source"))
		return put_boot_source(machine, body);
	if (!strcmp(call->path, "drives"))
		return put_drive(machine, id, body);
	if (!strcmp(call->path, "network-interfaces"))
		return put_nic(machine, id, body);
	if (!strcmp(call->path, "machine-config"))
		return put_machine_config(machine, body);
	if (!strcmp(call->path, "balloon"))
		return put_balloon(machine, body);
	if (!strcmp(call->path, "vsock"))
		return put_vsock(machine, body);
	if (!strcmp(call->path, "metrics"))
		return put_metrics(machine, body);
	machine->entropy = machine->entropy || !strcmp(call->path, "entropy");
	return "";
}

/* One request; `text` is its body, "" for none. */
static const char *ask(struct machine *machine, const char *method, const char *path, const char *text) {
	struct object body = {0};
	char name[SHORT_TEXT] = "", id[SHORT_TEXT] = "", beyond;
	int parts = sscanf(path, "/%63[^/]/%63[^/]/%c", name, id, &beyond);
	const struct call *call = CALLS;
	while (call->method
		&& (strcmp(call->method, method) || strcmp(call->path, name) || call->since > machine->version))
		call++;
	if (!call->method || *path != '/' || parts > (call->has_id == WITH_ID ? 2 : 1))
		return REFUSE(machine, "Invalid request method and/or path: %s %s.", method, path);
	if (call->has_id == WITH_ID && !plain_id(id))
		return REFUSE(machine, "The ID is empty, or has other characters than letters, digits and underscores.");
	if (!strcmp(method, "GET"))
		return *text ? REFUSE(machine, "GET request cannot have a body.") : "";
	if (!*text)
		return REFUSE(machine, "Empty %s request.", method);
	if (!json_read(text, &body))
		return REFUSE(machine, "The body is no JSON object.");
	const char *words = check_fields(machine, call, id, &body);
	if (*words)
		return words;
	if (call->phase != ALWAYS && (call->phase == AFTER_START) != machine->started)
		return out_of_order(machine);
	return take(machine, call, id, &body);
}
#endif
