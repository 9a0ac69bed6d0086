/* The user's data disks: each mounted below the image's root, at a mount point that is made when it is not there. */
#define _GNU_SOURCE
#include "guest.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>

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

/* After the switch of roots, so that links in the image lead to places in the image. In the engine's order, which has
 * /a before /a/b. A machine without a disk that its user counts on must not start to work: it would write elsewhere. */
void mount_data(const struct config *config)
{
	char device[64];

	for (size_t i = 0; i < config->data_count; i++) {
		const struct data_disk *disk = &config->data[i];
		find_disk(disk->name, device, sizeof device);
		make_directories(disk->place, 0755);
		if (mount(device, disk->place, disk->type, MS_NOATIME, NULL) < 0)
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
