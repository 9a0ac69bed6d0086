/* Small files, whole and bounded. */
#define _GNU_SOURCE
#include "guest.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* Reads at most size-1 bytes and ends them with NUL. */
ssize_t read_file(const char *path, char *buffer, size_t size)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	size_t used = 0;
	ssize_t count = 0;

	if (fd < 0)
		return -1;
	while (used < size - 1 && (count = read(fd, buffer + used, size - 1 - used)) != 0) {
		if (count < 0 && errno != EINTR)
			break;
		if (count > 0)
			used += (size_t)count;
	}
	close(fd);
	buffer[used] = '\0';
	return count < 0 ? -1 : (ssize_t)used;
}

/* Replaces the file; a symbolic link in its place is replaced too, not followed. Pseudo-files are just written. */
int write_file(const char *path, const char *text, mode_t mode)
{
	size_t length = strlen(text);
	struct stat status;

	if (lstat(path, &status) == 0 && S_ISLNK(status.st_mode))
		unlink(path);
	int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, mode);
	if (fd < 0)
		return -1;
	ssize_t written = write(fd, text, length);
	if (close(fd) < 0 || written != (ssize_t)length)
		return -1;
	return 0;
}

/* `mkdir -p`; errors show themselves when the directory is used. */
void make_directories(char *path, mode_t mode)
{
	for (char *slash = strchr(path + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
		*slash = '\0';
		mkdir(path, mode);
		*slash = '/';
	}
	mkdir(path, mode);
}

/* Cuts white space off both ends, in place: serials are padded with blanks. */
char *trim(char *text)
{
	size_t length = strlen(text);

	while (length && isspace((unsigned char)text[length - 1]))
		text[--length] = '\0';
	while (isspace((unsigned char)*text))
		text++;
	return text;
}

bool parse_number(const char *text, long low, long high, long *number)
{
	char *end;

	if (!isdigit((unsigned char)*text))
		return false;
	errno = 0;
	*number = strtol(text, &end, 10);
	return errno == 0 && *end == '\0' && *number >= low && *number <= high;
}
