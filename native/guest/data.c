/* The user's data disks: each mounted below the image's root, at a mount point that is made when it is not there. */
#define _GNU_SOURCE
#include "guest.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#define FILE_TYPE "erofs-file"
#define ASIDE "/.cocoon-volume"

/* data=<serial or device>,<file system>,<mount point>; the mount point is the rest, whatever it holds. */
void parse_data(char *text, struct config *config)
{
	if (config->data_count == MAX_DATA)
		fail("boot configuration: more than %d data", MAX_DATA);
	struct data_disk *disk = &config->data[config->data_count++];
	char *rest = text;

	disk->name = strsep(&rest, ",");
	disk->type = rest ? strsep(&rest, ",") : NULL;
	disk->place = rest;
	if (!disk->place || *disk->place != '/')
		fail("boot configuration: bad data %s", disk->name);
}

static bool mount_directory(const char *device, char *place, const char *type)
{
	unsigned long flags = strcmp(type, "erofs") == 0 ? MS_RDONLY : MS_NOATIME;

	make_directories(place, 0755);
	return mount(device, place, type, flags, NULL) == 0;
}

/* A volume of one file: the disk holds it as /file, and it is bound to its place. */
static bool mount_file(const char *device, char *place)
{
	char *slash = strrchr(place, '/');

	if (slash > place) {
		*slash = '\0';
		make_directories(place, 0755);
		*slash = '/';
	}
	int fd = open(place, O_WRONLY | O_CREAT | O_NOCTTY | O_NONBLOCK | O_CLOEXEC, 0644);
	if (fd >= 0)
		close(fd);
	mkdir(ASIDE, 0700);
	bool mounted = fd >= 0 && mount(device, ASIDE, "erofs", MS_RDONLY, NULL) == 0 &&
	               mount(ASIDE "/file", place, NULL, MS_BIND, NULL) == 0;
	int error = errno;
	umount2(ASIDE, MNT_DETACH);
	rmdir(ASIDE);
	errno = error;
	return mounted;
}

/* After the switch of roots, so that links in the image lead to places in the image. In the engine's order, which has
 * /a before /a/b. A machine without a disk that its user counts on must not start to work: it would write elsewhere. */
void mount_data(const struct config *config)
{
	char device[64];

	for (size_t i = 0; i < config->data_count; i++) {
		const struct data_disk *disk = &config->data[i];
		find_disk(disk->name, device, sizeof device);
		if (!(strcmp(disk->type, FILE_TYPE) == 0 ? mount_file(device, disk->place)
		                                         : mount_directory(device, disk->place, disk->type)))
			fail("cannot mount data disk %s (%s) at %s: %s", disk->name, device, disk->place, strerror(errno));
	}
}

/* Leaves the file systems clean on disk; whatever cannot be taken away is synced at least. */
void seal_data(const struct config *config)
{
	for (size_t i = config->data_count; i-- > 0;)
		if (umount2(config->data[i].place, UMOUNT_NOFOLLOW) < 0)
			mount(NULL, config->data[i].place, NULL, MS_REMOUNT | MS_RDONLY, NULL);
}
