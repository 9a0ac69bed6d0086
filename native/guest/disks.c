/* Finds disks by the serial that the engine gave them, or by device path on a VMM that has no serials. */
#define _GNU_SOURCE
#include "guest.h"

#include <dirent.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#define WAIT_MS 10000
#define STEP_MS 10

static bool has_serial(const char *disk, const char *serial)
{
	static const char *const places[] = {"/sys/block/%s/serial", "/sys/block/%s/device/serial"};
	char path[300], text[128];

	for (size_t i = 0; i < 2; i++) {
		snprintf(path, sizeof path, places[i], disk);
		if (read_file(path, text, sizeof text) > 0 && strcmp(trim(text), serial) == 0)
			return true;
	}
	return false;
}

static bool find_by_serial(const char *serial, char *device, size_t size)
{
	DIR *directory = opendir("/sys/block");
	struct dirent *entry;
	bool found = false;

	if (!directory)
		return false;
	while (!found && (entry = readdir(directory)))
		if (strncmp(entry->d_name, "vd", 2) == 0 && has_serial(entry->d_name, serial)) {
			snprintf(device, size, "/dev/%s", entry->d_name);
			found = true;
		}
	closedir(directory);
	return found;
}

static bool find_once(const char *name, char *device, size_t size)
{
	struct stat status;

	if (strncmp(name, "/dev/", 5) != 0)
		return find_by_serial(name, device, size);
	snprintf(device, size, "%s", name);
	return stat(device, &status) == 0 && S_ISBLK(status.st_mode);
}

/* Disks are normally there when their driver has loaded; a slow machine gets ten seconds. */
void find_disk(const char *name, char *device, size_t size)
{
	const struct timespec step = {.tv_nsec = STEP_MS * 1000000L};

	for (int waited = 0; waited <= WAIT_MS; waited += STEP_MS) {
		if (find_once(name, device, size))
			return;
		nanosleep(&step, NULL);
	}
	fail("no disk %s after %d seconds", name, WAIT_MS / 1000);
}
