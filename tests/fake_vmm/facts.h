/* What Firecracker's API takes, from 1.12 on, as facts of our own: one line per call and per field.
 *
 * Sources: the structures marked `deny_unknown_fields` in src/vmm/src/vmm_config, checked_id() and the table of routes
 * in src/firecracker/src/api_server, resources.rs and the GSI allocator, each at v1.12.1, v1.13.2, v1.14.4, v1.15.1 and
 * v1.16.1. Only what an engine may want: no MMDS, no pmem, no memory hotplug, no vhost-user. */
#ifndef FAKE_VMM_FACTS_H
#define FAKE_VMM_FACTS_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define V(major, minor) ((major) * 1000 + (minor))
#define FIRST V(1, 12)
#define U8 0, UINT8_MAX
#define U16 0, UINT16_MAX
#define U32 0, UINT32_MAX
#define ANY 0, INT64_MAX
#define REQUIRED true
#define OPTIONAL false

/* A limiter is an object of two buckets; a bucket has its three numbers. An id must be the one in the path. */
enum kind { INTEGER, BOOLEAN, TEXT, ID, LIMITER, BUCKET };
enum phase { BEFORE_START, AFTER_START, ALWAYS };
enum has_id { WITHOUT_ID, WITH_ID };

static const struct call {
	const char *method, *path;
	enum has_id has_id;
	enum phase phase;
	int since;
} CALLS[] = {
	{"GET", "", WITHOUT_ID, ALWAYS, FIRST},
	{"PUT", "actions", WITHOUT_ID, ALWAYS, FIRST},
	{"PUT", "balloon", WITHOUT_ID, BEFORE_START, FIRST},
	{"PATCH", "balloon", WITHOUT_ID, AFTER_START, FIRST},
	{"PUT", "boot-source", WITHOUT_ID, BEFORE_START, FIRST},
	{"PUT", "drives", WITH_ID, BEFORE_START, FIRST},
	{"PUT", "entropy", WITHOUT_ID, BEFORE_START, FIRST},
	{"PUT", "logger", WITHOUT_ID, BEFORE_START, FIRST},
	{"PUT", "machine-config", WITHOUT_ID, BEFORE_START, FIRST},
	{"PUT", "metrics", WITHOUT_ID, BEFORE_START, FIRST},
	{"PUT", "network-interfaces", WITH_ID, BEFORE_START, FIRST},
	{"PUT", "serial", WITHOUT_ID, BEFORE_START, V(1, 14)},
	{"PATCH", "vm", WITHOUT_ID, AFTER_START, FIRST},
	{"PUT", "vsock", WITHOUT_ID, BEFORE_START, FIRST},
	{0},
};

static const struct field {
	const char *method, *path, *name;
	enum kind kind;
	bool required;
	int64_t least, most;
	const char *choices; /* words with a space around each, or NULL */
	int since;
} FIELDS[] = {
	{"PUT", "actions", "action_type", TEXT, REQUIRED, ANY, " FlushMetrics InstanceStart SendCtrlAltDel ", FIRST},

	{"PUT", "balloon", "amount_mib", INTEGER, REQUIRED, U32, NULL, FIRST},
	{"PUT", "balloon", "deflate_on_oom", BOOLEAN, REQUIRED, ANY, NULL, FIRST},
	{"PUT", "balloon", "stats_polling_interval_s", INTEGER, OPTIONAL, U16, NULL, FIRST},
	{"PUT", "balloon", "free_page_hinting", BOOLEAN, OPTIONAL, ANY, NULL, V(1, 14)},
	{"PUT", "balloon", "free_page_reporting", BOOLEAN, OPTIONAL, ANY, NULL, V(1, 14)},
	{"PATCH", "balloon", "amount_mib", INTEGER, REQUIRED, U32, NULL, FIRST},

	{"PUT", "boot-source", "kernel_image_path", TEXT, REQUIRED, ANY, NULL, FIRST},
	{"PUT", "boot-source", "initrd_path", TEXT, OPTIONAL, ANY, NULL, FIRST},
	{"PUT", "boot-source", "boot_args", TEXT, OPTIONAL, ANY, NULL, FIRST},

	{"PUT", "drives", "drive_id", ID, REQUIRED, ANY, NULL, FIRST},
	{"PUT", "drives", "is_root_device", BOOLEAN, REQUIRED, ANY, NULL, FIRST},
	{"PUT", "drives", "is_read_only", BOOLEAN, OPTIONAL, ANY, NULL, FIRST},
	{"PUT", "drives", "path_on_host", TEXT, OPTIONAL, ANY, NULL, FIRST},
	{"PUT", "drives", "partuuid", TEXT, OPTIONAL, ANY, NULL, FIRST},
	{"PUT", "drives", "cache_type", TEXT, OPTIONAL, ANY, " Unsafe Writeback ", FIRST},
	{"PUT", "drives", "io_engine", TEXT, OPTIONAL, ANY, " Sync Async ", FIRST},
	{"PUT", "drives", "rate_limiter", LIMITER, OPTIONAL, ANY, NULL, FIRST},

	{"PUT", "entropy", "rate_limiter", LIMITER, OPTIONAL, ANY, NULL, FIRST},

	{"PUT", "logger", "log_path", TEXT, OPTIONAL, ANY, NULL, FIRST},
	{"PUT", "logger", "level", TEXT, OPTIONAL, ANY, " Off Error Warning Info Debug Trace ", FIRST},
	{"PUT", "logger", "show_level", BOOLEAN, OPTIONAL, ANY, NULL, FIRST},
	{"PUT", "logger", "show_log_origin", BOOLEAN, OPTIONAL, ANY, NULL, FIRST},
	{"PUT", "logger", "module", TEXT, OPTIONAL, ANY, NULL, FIRST},

	{"PUT", "machine-config", "vcpu_count", INTEGER, REQUIRED, 1, 32, NULL, FIRST},
	{"PUT", "machine-config", "mem_size_mib", INTEGER, REQUIRED, 1, INT64_MAX, NULL, FIRST},
	{"PUT", "machine-config", "smt", BOOLEAN, OPTIONAL, ANY, NULL, FIRST},
	{"PUT", "machine-config", "cpu_template", TEXT, OPTIONAL, ANY, " None C3 T2 T2S T2CL T2A V1N1 ", FIRST},
	{"PUT", "machine-config", "track_dirty_pages", BOOLEAN, OPTIONAL, ANY, NULL, FIRST},
	{"PUT", "machine-config", "huge_pages", TEXT, OPTIONAL, ANY, " None 2M ", FIRST},

	{"PUT", "metrics", "metrics_path", TEXT, REQUIRED, ANY, NULL, FIRST},

	{"PUT", "network-interfaces", "iface_id", ID, REQUIRED, ANY, NULL, FIRST},
	{"PUT", "network-interfaces", "host_dev_name", TEXT, REQUIRED, ANY, NULL, FIRST},
	{"PUT", "network-interfaces", "guest_mac", TEXT, OPTIONAL, ANY, NULL, FIRST},
	{"PUT", "network-interfaces", "mtu", INTEGER, OPTIONAL, 68, UINT16_MAX, NULL, V(1, 16)},
	{"PUT", "network-interfaces", "rx_rate_limiter", LIMITER, OPTIONAL, ANY, NULL, FIRST},
	{"PUT", "network-interfaces", "tx_rate_limiter", LIMITER, OPTIONAL, ANY, NULL, FIRST},

	{"PUT", "serial", "serial_out_path", TEXT, OPTIONAL, ANY, NULL, V(1, 14)},
	{"PUT", "serial", "rate_limiter", BUCKET, OPTIONAL, ANY, NULL, V(1, 16)},

	{"PATCH", "vm", "state", TEXT, REQUIRED, ANY, " Paused Resumed ", FIRST},

	{"PUT", "vsock", "vsock_id", TEXT, OPTIONAL, ANY, NULL, FIRST},
	/* The specification says so; the program takes less. */
	{"PUT", "vsock", "guest_cid", INTEGER, REQUIRED, 3, UINT32_MAX, NULL, FIRST},
	{"PUT", "vsock", "uds_path", TEXT, REQUIRED, ANY, NULL, FIRST},
	{0},
};

enum {
	CMDLINE_MAX = 2048,        /* arch/x86_64/layout.rs, with the NUL at its end */
	PAYLOAD_MAX = 51200,       /* --http-api-max-payload-size */
	REQUEST_LINE_MAX = 1024,   /* micro-http reads lines into a buffer of that size; so for headers */
	INSTANCE_ID_MAX = 64,
	/* Interrupts 5 to 23 are all there is for virtio-mmio; the generation id takes one, vmclock (1.15) another. */
	INTERRUPTS = 19,
	VMCLOCK_SINCE = V(1, 15),
	/* Until then a balloon and huge pages exclude each other. */
	BALLOON_WITH_HUGE_PAGES_SINCE = V(1, 14),
	/* Until then --log-path must exist. */
	LOG_FILE_MADE_SINCE = V(1, 14),
};
#endif
