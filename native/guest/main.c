/* cocoon-init is PID 1 of the engine's own initramfs: it turns an image's layers into a running machine.
 *
 *   modules -> boot configuration -> layers + COW disk = overlay -> network -> new root
 *           -> the image's init takes over as PID 1, or its command runs as our child until the machine ends
 *
 * Whatever goes wrong before the command runs ends the machine with one line on the console: a VM that hangs without
 * a word is the worst outcome. There is nobody to free memory for, so nothing is freed. */
#define _GNU_SOURCE
#include "agent.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <unistd.h>

bool end_by_reboot;

static void print_line(const char *format, va_list arguments)
{
	char line[1024];
	int length = vsnprintf(line, sizeof line - 2, format, arguments);

	if (length > (int)sizeof line - 3)
		length = sizeof line - 3;
	/* The command may have left the terminal raw: bring the carriage back ourselves. */
	dprintf(2, "\rcocoon-init: %.*s\r\n", length, line);
}

void complain(const char *format, ...)
{
	va_list arguments;

	va_start(arguments, format);
	print_line(format, arguments);
	va_end(arguments);
}

_Noreturn void fail(const char *format, ...)
{
	va_list arguments;

	va_start(arguments, format);
	print_line(format, arguments);
	va_end(arguments);
	power_off();
}

_Noreturn void power_off(void)
{
	sync();
	reboot(end_by_reboot ? RB_AUTOBOOT : RB_POWER_OFF);
	/* No power management: halting keeps the promise that nothing runs any more. */
	for (;;)
		reboot(RB_HALT_SYSTEM);
}

static void mount_early(void)
{
	mkdir("/proc", 0555);
	mkdir("/sys", 0555);
	mkdir("/dev", 0755);
	if (mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL) < 0)
		fail("cannot mount /proc: %s", strerror(errno));
	if (mount("sysfs", "/sys", "sysfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL) < 0)
		fail("cannot mount /sys: %s", strerror(errno));
	if (mount("devtmpfs", "/dev", "devtmpfs", MS_NOSUID, "mode=0755") < 0)
		fail("cannot mount /dev: %s", strerror(errno));
}

/* The kernel opens /dev/console for us, but not one whose driver is a module that we are yet to load (hvc0): then we
 * start without any descriptor. Called before and after. */
static void open_standard_streams(void)
{
	int fd = open("/dev/console", O_RDWR | O_NOCTTY);

	if (fd < 0)
		fd = open("/dev/null", O_RDWR);
	if (fd < 0)
		return;
	for (int target = 0; target < 3; target++)
		dup2(fd, target);
	if (fd > 2)
		close(fd);
}

/* The value of `name=` on the kernel's command line, which is trusted: the engine wrote it. */
static char *kernel_parameter(char *cmdline, const char *name)
{
	size_t length = strlen(name);

	for (char *word = strtok(cmdline, " \n"); word; word = strtok(NULL, " \n"))
		if (strncmp(word, name, length) == 0 && word[length] == '=')
			return word + length + 1;
	return NULL;
}

static bool is_called(const char *wanted, int count, char **words)
{
	const char *name = count ? strrchr(words[0], '/') : NULL;

	return strcmp(name ? name + 1 : count ? words[0] : "", wanted) == 0;
}

/* `cocoon-agent`, or `cocoon-init --agent`: the same program as a service. */
static bool is_agent(int count, char **words)
{
	return is_called("cocoon-agent", count, words) || (count > 1 && strcmp(words[1], "--agent") == 0);
}

int main(int count, char **words)
{
	static struct config config;
	static char cmdline[8192];

	if (getpid() != 1 && is_called(ENDING_NAME, count, words))
		return end_instead(count > 1 ? words[1] : "");
	if (getpid() != 1 && is_agent(count, words))
		run_agent();
	if (getpid() != 1) {
		dprintf(2, "cocoon-init is the first program of a virtual machine; elsewhere it serves as --agent only\n");
		return 1;
	}
	umask(022);
	reboot(RB_DISABLE_CAD);
	mount_early();
	end_by_reboot = ends_by_reboot();
	open_standard_streams();
	load_modules("/modules/order");
	open_standard_streams();

	if (read_file("/proc/cmdline", cmdline, sizeof cmdline) < 0)
		fail("cannot read /proc/cmdline: %s", strerror(errno));
	char *disk = kernel_parameter(cmdline, "cocoon.config");
	if (!disk)
		fail("the kernel command line names no configuration disk (cocoon.config=)");
	find_disk(disk, config.device, sizeof config.device);
	read_config(config.device, &config);

	mount_root(&config);
	switch_root();
	mount_data(&config);
	mount_interfaces(config.is_init);
	write_identity(&config);
	start_network(&config);
	if (config.is_init)
		become_init(&config);
	supervise(&config);
}
