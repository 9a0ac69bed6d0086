/* A log that never outgrows its limit and never fails: two segments, `name` and `name.1`, each half of it. Readers are
 * only positions in it. When the disk cannot be written, a segment in memory stands in, so that the console goes on;
 * whenever that one is full, the disk is tried again. */
#include "shim.h"

enum { MEMORY_SEGMENT = 65536 };

/* The log's file as the current segment; a full one becomes `name.1` first. */
static bool open_on_disk(struct log *log) {
	char previous[32];
	struct stat about;
	snprintf(previous, sizeof(previous), "%s.1", log->name);
	for (int tries = 0; tries < 2; tries++) {
		/* O_APPEND: what an administrator truncates begins anew, without a hole. */
		int fd = openat(log->directory, log->name, O_RDWR | O_APPEND | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
		if (fd < 0 || fstat(fd, &about) < 0) return false;
		uint64_t start = (uint64_t)about.st_size;
		log->now = (struct segment){fd, false, log->end, start, 0, log->limit - start};
		if (start < log->limit) return true;
		close(fd);
		if (renameat(log->directory, log->name, log->directory, previous) < 0) return false;
	}
	return false;
}

static void rotate(struct log *log, bool to_memory) {
	if (log->before.fd >= 0) close(log->before.fd);
	log->before = log->now;
	if (to_memory || !open_on_disk(log))
		log->now = (struct segment){memfd_create(log->name, MFD_CLOEXEC), true, log->end, 0, 0, MEMORY_SEGMENT};
}

/* `limit` bounds both segments together. */
void log_open(struct log *log, int directory, const char *name, uint64_t limit) {
	*log = (struct log){.name = name, .directory = directory, .limit = limit / 2, .before.fd = -1, .now.fd = -1};
	rotate(log, false);
}

void log_write(struct log *log, const char *data, size_t length) {
	while (length) {
		struct segment *now = &log->now;
		uint64_t room = now->limit - now->size;
		ssize_t wrote = room ? write(now->fd, data, length < room ? length : (size_t)room) : 0;
		if (wrote <= 0 && room && now->memory) {
			now->limit = now->size; /* not even memory: these bytes are lost, the guest is not */
			return;
		}
		if (wrote <= 0) {
			rotate(log, room);
			continue;
		}
		data += wrote;
		length -= (size_t)wrote;
		now->size += (uint64_t)wrote;
		log->end += (uint64_t)wrote;
	}
}

/* The next bytes after `*position`, which first skips ahead when it fell behind the oldest byte. */
ssize_t log_read(const struct log *log, uint64_t *position, char *data, size_t length) {
	uint64_t oldest = log->before.fd >= 0 ? log->before.base : log->now.base;
	*position = *position < oldest ? oldest : *position;
	const struct segment *segment = *position < log->now.base ? &log->before : &log->now;
	uint64_t offset = *position - segment->base, left = segment->size - offset;
	return pread(segment->fd, data, length < left ? length : (size_t)left, (off_t)(segment->start + offset));
}
