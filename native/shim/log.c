/* A log that never outgrows its limit and never fails: two segments, `name` and `name.1`, each half of it. Readers are
 * only positions in it. When the disk cannot be written, a segment in memory stands in, so that the console goes on;
 * each time that one is full, the disk is tried again. */
#include "shim.h"

#include <sys/mman.h>

enum { MEMORY_SEGMENT = 65536, LIMITED_BYTES_PER_S = 256 * 1024 };

/* The file of the log with room left; a full one becomes `name.1`. */
static bool open_on_disk(struct log *log, struct segment *segment)
{
	char previous[32];
	struct stat about;
	snprintf(previous, sizeof(previous), "%s.1", log->name);
	for (int tries = 0; tries < 2; tries++) {
		/* O_APPEND: what an administrator truncates begins anew, without a hole. */
		int fd = openat(log->directory, log->name, O_RDWR | O_APPEND | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
		if (fd < 0)
			return false;
		if (fstat(fd, &about) == 0 && (uint64_t)about.st_size < log->limit) {
			uint64_t start = (uint64_t)about.st_size;
			*segment = (struct segment){fd, log->end, start, 0, log->limit - start};
			return true;
		}
		close(fd);
		if (renameat(log->directory, log->name, log->directory, previous) < 0)
			return false;
	}
	return false;
}

static void rotate(struct log *log, bool to_memory)
{
	if (log->before.fd >= 0)
		close(log->before.fd);
	log->before = log->now;
	if (!to_memory && open_on_disk(log, &log->now))
		return;
	log->now = (struct segment){memfd_create(log->name, MFD_CLOEXEC), log->end, 0, 0, MEMORY_SEGMENT};
}

/* `limit` bounds both segments together. */
void log_open(struct log *log, int directory, const char *name, uint64_t limit)
{
	*log = (struct log){.name = name, .directory = directory, .limit = limit / 2 + 1, .before.fd = -1, .now.fd = -1};
	rotate(log, false);
}

void log_write(struct log *log, const char *data, size_t length)
{
	bool failed = false;
	while (length) {
		uint64_t room = log->now.limit - log->now.size;
		if (!room || failed) {
			rotate(log, failed);
			failed = false;
			continue;
		}
		ssize_t wrote = write(log->now.fd, data, length < room ? length : (size_t)room);
		if (wrote > 0) {
			data += wrote;
			length -= (size_t)wrote;
			log->now.size += (uint64_t)wrote;
			log->end += (uint64_t)wrote;
		} else if (log->now.limit == MEMORY_SEGMENT) {
			return; /* not even memory: these bytes are lost, the guest is not */
		} else {
			failed = true;
		}
	}
}

/* As log_write, but at most LIMITED_BYTES_PER_S: what a VMM says in a flood (one line per page, seen) is counted
 * instead. It is never made to wait: it may hold up the guest with it. */
void log_write_limited(struct log *log, const char *data, size_t length)
{
	char note[64];
	uint64_t now = now_ms();
	if (now - log->window_ms >= 1000) {
		log->window_ms = now;
		log->window_bytes = 0;
		if (log->dropped) {
			int words = snprintf(note, sizeof(note), "\ncocoon-shim: %llu bytes dropped\n", (unsigned long long)log->dropped);
			log->dropped = 0;
			log_write(log, note, (size_t)words);
		}
	}
	log->window_bytes += length;
	if (log->window_bytes <= LIMITED_BYTES_PER_S)
		log_write(log, data, length);
	else
		log->dropped += length;
}

uint64_t log_oldest(const struct log *log)
{
	return log->before.fd >= 0 ? log->before.base : log->now.base;
}

/* The next bytes after `*position`, which moves on; a reader that fell behind the oldest byte skips ahead to it. */
ssize_t log_read(const struct log *log, uint64_t *position, char *data, size_t length)
{
	const struct segment *segment = &log->before;
	if (*position < log_oldest(log))
		*position = log_oldest(log);
	if (segment->fd < 0 || *position >= segment->base + segment->size)
		segment = &log->now;
	uint64_t offset = *position - segment->base, left = segment->size - offset;
	return pread(segment->fd, data, length < left ? length : (size_t)left, (off_t)(segment->start + offset));
}
