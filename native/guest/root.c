/* The root file system: an overlay of the image's EROFS layers (read-only, shared) and the VM's own COW disk. */
#define _GNU_SOURCE
#include "guest.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

/* In the initramfs. Short, because mount(2) takes one page of options and an image may have 256 layers. */
#define LAYERS "/l"
#define COW "/cow"
#define ROOT "/root"

/* The COW file system ends up below the new root, out of reach of any path: this is how it is found again. */
static int cow_fd = -1;

static void mount_layer(const char *name, size_t index)
{
	char device[64], place[32];

	find_disk(name, device, sizeof device);
	snprintf(place, sizeof place, LAYERS "/%zu", index);
	mkdir(place, 0755);
	if (mount(device, place, "erofs", MS_RDONLY, NULL) < 0)
		fail("cannot mount layer %s (%s): %s", name, device, strerror(errno));
}

static void mount_cow(const char *name)
{
	char device[64];

	find_disk(name, device, sizeof device);
	mkdir(COW, 0700);
	if (mount(device, COW, "ext4", MS_NOATIME, NULL) < 0)
		fail("cannot mount COW disk %s (%s): %s", name, device, strerror(errno));
	mkdir(COW "/upper", 0755);
	mkdir(COW "/work", 0700);
	cow_fd = open(COW, O_PATH | O_DIRECTORY | O_CLOEXEC);
}

/* The original's guests use index=on too. It ties the COW disk to the kernel that first booted it (another one encodes
 * EROFS file handles differently: "failed to verify upper root origin"), so we leave it, like Docker. A kernel that
 * lacks one of the options gets the plain overlay. */
static void mount_overlay(size_t layer_count)
{
	static const char *const features[] = {",redirect_dir=on,metacopy=on,xino=on", ""};
	char lower[MAX_LAYERS * 8] = "", options[MAX_LAYERS * 8 + 256];
	size_t used = 0;

	for (size_t i = 0; i < layer_count; i++)
		used += (size_t)snprintf(lower + used, sizeof lower - used, "%s" LAYERS "/%zu", i ? ":" : "", i);
	mkdir(ROOT, 0755);
	for (size_t i = 0; i < 2; i++) {
		snprintf(options, sizeof options, "lowerdir=%s,upperdir=" COW "/upper,workdir=" COW "/work%s", lower, features[i]);
		if (mount("overlay", ROOT, "overlay", 0, options) == 0)
			return;
		if (errno != EINVAL)
			break;
	}
	fail("cannot mount the overlay of %zu layers: %s", layer_count, strerror(errno));
}

/* Clones and siblings must not share a machine id: an init makes a new one when it finds the file empty. Only a fresh
 * COW disk has none of its own, so the id survives later boots. */
static void reset_machine_id(void)
{
	struct stat status;

	if (lstat(COW "/upper/etc/machine-id", &status) < 0 && lstat(ROOT "/etc/machine-id", &status) == 0 &&
	    S_ISREG(status.st_mode) && status.st_size > 0)
		write_file(ROOT "/etc/machine-id", "", 0444);
}

void mount_root(const struct config *config)
{
	mkdir(LAYERS, 0755);
	for (size_t i = 0; i < config->layer_count; i++)
		mount_layer(config->layers[i], i);
	mount_cow(config->cow);
	mount_overlay(config->layer_count);
	reset_machine_id();
}

/* The initramfs lives in memory that the guest can use better. Our own text stays until we end. */
static void free_initramfs(void)
{
	DIR *directory = opendir("/modules");
	struct dirent *entry;
	char path[300];

	while (directory && (entry = readdir(directory))) {
		snprintf(path, sizeof path, "/modules/%s", entry->d_name);
		unlink(path);
	}
	if (directory)
		closedir(directory);
	unlink("/init");
}

static void move_mount_point(const char *from, const char *to, mode_t mode)
{
	mkdir(to, mode);
	if (mount(from, to, NULL, MS_MOVE, NULL) < 0)
		fail("cannot move %s into the image's root: %s", from, strerror(errno));
}

void switch_root(void)
{
	free_initramfs();
	move_mount_point("/proc", ROOT "/proc", 0555);
	move_mount_point("/sys", ROOT "/sys", 0555);
	move_mount_point("/dev", ROOT "/dev", 0755);
	if (chdir(ROOT) < 0 || mount(".", "/", NULL, MS_MOVE, NULL) < 0 || chroot(".") < 0 || chdir("/") < 0)
		fail("cannot switch to the image's root: %s", strerror(errno));
}

static void mount_wanted(const char *type, const char *place, mode_t mode, unsigned long flags, const char *options)
{
	mkdir(place, mode);
	if (mount(type, place, type, flags, options) < 0)
		complain("cannot mount %s: %s", place, strerror(errno));
}

/* What programs expect besides /proc, /sys and /dev. Like Docker we leave the image's own /run and /tmp in place:
 * images keep directories there that their services need. An init mounts its own /run, /tmp and control groups. */
void mount_interfaces(bool for_init)
{
	mkdir("/run", 0755);
	if (mkdir("/tmp", 01777) == 0)
		chmod("/tmp", 01777);
	mount_wanted("devpts", "/dev/pts", 0755, MS_NOSUID | MS_NOEXEC, "ptmxmode=0666,mode=0620,gid=5");
	mount_wanted("tmpfs", "/dev/shm", 01777, MS_NOSUID | MS_NODEV, "mode=1777");
	if (for_init)
		return;
	mount_wanted("mqueue", "/dev/mqueue", 01777, MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL);
	mount_wanted("cgroup2", "/sys/fs/cgroup", 0755, MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL);
	symlink("/proc/self/fd", "/dev/fd");
	symlink("/proc/self/fd/0", "/dev/stdin");
	symlink("/proc/self/fd/1", "/dev/stdout");
	symlink("/proc/self/fd/2", "/dev/stderr");
	/* As in Docker: a user other than root may listen on low ports and send pings. */
	write_file("/proc/sys/net/ipv4/ip_unprivileged_port_start", "0", 0);
	write_file("/proc/sys/net/ipv4/ping_group_range", "0 2147483647", 0);
}

/* Leaves both file systems clean on disk. Best effort: everything has been synced before. */
void seal_root(void)
{
	char place[64];

	mount(NULL, "/", NULL, MS_REMOUNT | MS_RDONLY, NULL);
	snprintf(place, sizeof place, "/proc/self/fd/%d", cow_fd);
	mount(NULL, place, NULL, MS_REMOUNT | MS_RDONLY, NULL);
}
