/* cocoon-init: what its parts share. Every path is as seen from the root that is current at the time of the call. */
#ifndef COCOON_GUEST_H
#define COCOON_GUEST_H

#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

#define MAX_LAYERS 256
#define MAX_NICS 32
#define MAX_DNS 8
#define MAX_DATA 64

/* What the boot configuration says; all strings point into one buffer that lives as long as the machine. */
struct fixed_address {
	char *address, *gateway; /* "" for none */
	int prefix;
};
struct nic {
	char *mac;
	struct fixed_address ipv4, ipv6; /* without either: by DHCP */
	int mtu;
};
struct data_disk {
	char *name, *type, *place;
};
struct config {
	char device[64]; /* the disk that this was read from, and the exit status is left on */
	char *layers[MAX_LAYERS]; /* serials or device paths, top layer first */
	size_t layer_count;
	char *cow, *hostname, *user, *cwd;
	char **arguments, **environment; /* both end with NULL */
	size_t argument_count, environment_count;
	struct nic nics[MAX_NICS];
	size_t nic_count;
	char *dns[MAX_DNS];
	size_t dns_count;
	struct data_disk data[MAX_DATA];
	size_t data_count;
	int stop_signal; /* 0: not given */
	bool is_init;    /* the command is an init: it becomes PID 1 */
	enum stdio { ON_CONSOLE, ON_PIPES, ON_TERMINAL } stdio;
};

/* main.c: words on the console, and the two ways in which a machine ends. */
void complain(const char *format, ...) __attribute__((format(printf, 1, 2)));
_Noreturn void fail(const char *format, ...) __attribute__((format(printf, 1, 2)));
_Noreturn void power_off(void);
extern bool end_by_reboot;

/* files.c */
ssize_t read_file(const char *path, char *buffer, size_t size); /* NUL-terminated; bytes read, or -1 */
int write_file(const char *path, const char *text, mode_t mode);
void make_directories(char *path, mode_t mode);
char *trim(char *text);
bool parse_number(const char *text, long low, long high, long *number);

/* modules.c, bootconfig.c, disks.c, root.c, network.c */
void load_modules(const char *order_path);
void read_config(const char *device, struct config *config);
bool parse_nic(char *text, struct nic *nic);
void parse_config(char *bytes, size_t size, struct config *config);
void find_disk(const char *name, char *device, size_t size);
void mount_root(const struct config *config);
void switch_root(void);
void mount_interfaces(bool for_init);
void seal_root(void);
void start_network(const struct config *config);
void write_identity(const struct config *config);

/* data.c */
void parse_data(char *text, struct config *config);
void mount_data(const struct config *config);
void seal_data(const struct config *config);

/* ending.c */
#define ENDING_NAME "cocoon-ending"
bool ends_by_reboot(void);
void leave_ending(void);
int end_instead(const char *what);

/* command.c: the image's init in our place. */
_Noreturn void become_init(struct config *config);

/* account.c: `user` as OCI writes it, resolved in the image's /etc/passwd and /etc/group. */
#define MAX_GROUPS 128
struct account {
	uid_t uid;
	gid_t gid;
	gid_t groups[MAX_GROUPS];
	size_t group_count;
	char home[4096];
};
bool find_account(const char *user, struct account *account, char *why, size_t size);

/* supervise.c: from the start of the command to the end of the machine. */
_Noreturn void supervise(struct config *config);

#endif
