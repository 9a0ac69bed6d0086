/* The output that commands leave for clients to come: records {lane, length, bytes}, the oldest overwritten. It lies in a
 * memfd, which is the guest's page cache and not our memory, and costs what was written to it. */
#define _GNU_SOURCE
#include "agent.h"

#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#define RECORD_HEADER 3

bool open_ring(struct ring *ring)
{
	memset(ring, 0, sizeof *ring);
	ring->fd = (int)syscall(SYS_memfd_create, "cocoon-output", MFD_CLOEXEC);
	return ring->fd >= 0;
}

void close_ring(struct ring *ring)
{
	if (ring->fd >= 0)
		close(ring->fd);
	ring->fd = -1;
}

static void put(const struct ring *ring, uint64_t position, const void *bytes, size_t count)
{
	size_t at = position % RING_SIZE, first = count < RING_SIZE - at ? count : RING_SIZE - at;

	pwrite(ring->fd, bytes, first, (off_t)at);
	if (first < count)
		pwrite(ring->fd, (const char *)bytes + first, count - first, 0);
}

static void get(const struct ring *ring, uint64_t position, void *bytes, size_t count)
{
	size_t at = position % RING_SIZE, first = count < RING_SIZE - at ? count : RING_SIZE - at;

	memset(bytes, 0, count);
	pread(ring->fd, bytes, first, (off_t)at);
	if (first < count)
		pread(ring->fd, (char *)bytes + first, count - first, 0);
}

static size_t record_at(const struct ring *ring, uint64_t position, unsigned *lane)
{
	unsigned char header[RECORD_HEADER];

	get(ring, position, header, sizeof header);
	*lane = header[0];
	return header[1] | (size_t)header[2] << 8;
}

size_t ring_room(const struct ring *ring, const struct cursor *reader)
{
	uint64_t from = reader->position > ring->start ? reader->position : ring->start, kept = ring->end - from;

	return kept + RECORD_HEADER >= RING_SIZE ? 0 : RING_SIZE - RECORD_HEADER - (size_t)kept;
}

void ring_append(struct ring *ring, unsigned lane, const void *bytes, size_t count)
{
	const unsigned char header[RECORD_HEADER] = {(unsigned char)lane, (unsigned char)count, (unsigned char)(count >> 8)};

	while (ring->end + sizeof header + count - ring->start > RING_SIZE) {
		unsigned old_lane;
		size_t old = record_at(ring, ring->start, &old_lane);
		ring->start += RECORD_HEADER + old;
		ring->dropped += old;
	}
	put(ring, ring->end, header, sizeof header);
	put(ring, ring->end + sizeof header, bytes, count);
	ring->end += sizeof header + count;
	ring->total += count;
}

void ring_seek(const struct ring *ring, struct cursor *cursor, bool to_start)
{
	*cursor = (struct cursor){.position = to_start ? ring->start : ring->end, .seen = to_start ? ring->dropped : ring->total};
}

/* What comes next: `left` bytes of `lane`. False at the end. What has been overwritten meanwhile is counted as lost. */
bool ring_peek(const struct ring *ring, struct cursor *cursor, unsigned *lane, size_t *left)
{
	if (cursor->position < ring->start) {
		cursor->lost += (uint32_t)(ring->dropped - cursor->seen - cursor->part);
		*cursor = (struct cursor){.position = ring->start, .seen = ring->dropped, .lost = cursor->lost};
	}
	if (cursor->position >= ring->end)
		return false;
	*left = record_at(ring, cursor->position, lane) - cursor->part;
	return true;
}

/* Takes `count` bytes, at most what ring_peek found left. */
void ring_take(const struct ring *ring, struct cursor *cursor, void *bytes, size_t count)
{
	unsigned lane;
	size_t whole = record_at(ring, cursor->position, &lane);

	get(ring, cursor->position + RECORD_HEADER + cursor->part, bytes, count);
	cursor->part += count;
	if (cursor->part == whole) {
		cursor->position += RECORD_HEADER + whole;
		cursor->seen += whole;
		cursor->part = 0;
	}
}
