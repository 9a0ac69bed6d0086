/* Reads an archive: headers of ustar, pax and GNU, checked. What it says is anybody's. */
#define _GNU_SOURCE
#include "agent.h"
#include "tar.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#define MAX_SIZE (LLONG_MAX / 4)

static struct {
	char *extended; /* the pax header of the next member */
	size_t extended_size;
	char long_name[PATH_MAX], long_link[PATH_MAX];
} ahead;

bool tar_read(void *bytes, size_t count)
{
	for (size_t done = 0; done < count;) {
		ssize_t got = read(0, (char *)bytes + done, count - done);
		if (got < 0 && errno == EINTR)
			continue;
		if (got <= 0)
			return false;
		done += (size_t)got;
	}
	return true;
}

bool tar_skip(long long count)
{
	char bytes[BLOCK * 8];

	for (; count > 0; count -= (long long)sizeof bytes)
		if (!tar_read(bytes, count < (long long)sizeof bytes ? (size_t)count : sizeof bytes))
			return false;
	return true;
}

long long tar_padded(long long size)
{
	return (size + BLOCK - 1) / BLOCK * BLOCK;
}

/* Octal digits, or a binary number with the first bit set; -1 for anything else. */
static long long get_number(const char *field, size_t size)
{
	const unsigned char *bytes = (const unsigned char *)field;
	unsigned long long number = 0;

	if (bytes[0] == 0x80) {
		for (size_t i = 1; i < size; i++) {
			if (number >> 55)
				return -1;
			number = number << 8 | bytes[i];
		}
		return (long long)number;
	}
	while (size && (*field == ' ' || *field == '0')) {
		field++;
		size--;
	}
	for (; size && *field >= '0' && *field <= '7'; field++, size--) {
		if (number >> 59)
			return -1;
		number = number << 3 | (unsigned)(*field - '0');
	}
	return size == 0 || *field == '\0' || *field == ' ' ? (long long)number : -1;
}

static void get_text(char *text, const char *field, size_t size)
{
	memcpy(text, field, size);
	text[size] = '\0';
}

static void take_decimal(const char *value, size_t size, long long high, long long *number)
{
	char text[24];
	long long found;
	char *end;

	if (size >= sizeof text || !size || value[0] < '0' || value[0] > '9')
		return;
	get_text(text, value, size);
	found = strtoll(text, &end, 10);
	if ((*end == '\0' || *end == '.') && found >= 0 && found <= high)
		*number = found;
}

static void take_string(const char *value, size_t size, char text[PATH_MAX])
{
	if (size && size < PATH_MAX && !memchr(value, '\0', size))
		get_text(text, value, size);
}

static void take_extension(struct tar_member *member, const char *key, const char *value, size_t size)
{
	long long uid = member->uid, gid = member->gid;

	if (strcmp(key, "path") == 0)
		take_string(value, size, member->name);
	else if (strcmp(key, "linkpath") == 0)
		take_string(value, size, member->link);
	else if (strcmp(key, "size") == 0)
		take_decimal(value, size, MAX_SIZE, &member->size);
	else if (strcmp(key, "mtime") == 0)
		take_decimal(value, size, LLONG_MAX, &member->mtime);
	else if (strcmp(key, "uid") == 0)
		take_decimal(value, size, 0xfffffffeLL, &uid);
	else if (strcmp(key, "gid") == 0)
		take_decimal(value, size, 0xfffffffeLL, &gid);
	else if (strncmp(key, "SCHILY.xattr.", 13) == 0 && is_copied_attribute(key + 13) &&
		 member->attribute_count < MAX_ATTRIBUTES) {
		member->attributes[member->attribute_count] = key + 13;
		member->lengths[member->attribute_count++] = size;
	}
	member->uid = (uid_t)uid;
	member->gid = (gid_t)gid;
}

/* "<length> <key>=<value>\n" ...; what is malformed ends the header. Keys are ended with NUL in place. */
static void apply_extended(struct tar_member *member)
{
	char *at = ahead.extended, *end = ahead.extended + ahead.extended_size;

	while (at && at < end) {
		char *digits_end;
		unsigned long long length = *at >= '1' && *at <= '9' ? strtoull(at, &digits_end, 10) : 0;
		if (!length || *digits_end != ' ' || length > (unsigned long long)(end - at) || at[length - 1] != '\n')
			return;
		char *key = digits_end + 1, *stop = at + length - 1;
		char *equals = key < stop ? memchr(key, '=', (size_t)(stop - key)) : NULL;
		if (!equals)
			return;
		*equals = '\0';
		take_extension(member, key, equals + 1, (size_t)(stop - equals - 1));
		at = stop + 1;
	}
}

static bool read_extended(long long size)
{
	free(ahead.extended);
	ahead.extended = NULL;
	ahead.extended_size = 0;
	if (size > MAX_EXTENDED)
		return tar_skip(tar_padded(size));
	ahead.extended = malloc((size_t)tar_padded(size) + 1);
	if (!ahead.extended || !tar_read(ahead.extended, (size_t)tar_padded(size)))
		return false;
	ahead.extended[size] = '\0';
	ahead.extended_size = (size_t)size;
	return true;
}

static bool read_long(long long size, char text[PATH_MAX])
{
	char bytes[PATH_MAX + BLOCK];

	if (size > PATH_MAX)
		return tar_skip(tar_padded(size));
	if (!tar_read(bytes, (size_t)tar_padded(size)))
		return false;
	bytes[size] = '\0';
	snprintf(text, PATH_MAX, "%.*s", PATH_MAX - 1, bytes);
	return true;
}

static bool read_member(const struct tar_header *header, struct tar_member *member)
{
	long long mode = get_number(header->mode, 8), uid = get_number(header->uid, 8), gid = get_number(header->gid, 8);
	long long major_number = get_number(header->major, 8), minor_number = get_number(header->minor, 8);
	char prefix[160], name[104];

	get_text(prefix, header->prefix, 155);
	get_text(name, header->name, 100);
	bool posix = memcmp(header->magic, "ustar", 6) == 0;
	snprintf(member->name, sizeof member->name, "%s%s%s", posix ? prefix : "", posix && *prefix ? "/" : "", name);
	get_text(member->link, header->link, 100);
	member->type = header->type == '\0' || header->type == '7' ? '0' : header->type;
	member->mode = (mode_t)(mode & 07777);
	member->uid = (uid_t)uid;
	member->gid = (gid_t)gid;
	member->size = get_number(header->size, 12);
	member->mtime = get_number(header->mtime, 12);
	member->device = makedev((unsigned)(major_number < 0 ? 0 : major_number), (unsigned)(minor_number < 0 ? 0 : minor_number));
	member->attribute_count = 0;
	return mode >= 0 && uid >= 0 && gid >= 0 && member->size >= 0 &&
	       member->size <= MAX_SIZE && get_number(header->checksum, 8) == tar_checksum(header);
}

static void finish_member(struct tar_member *member)
{
	if (*ahead.long_name)
		memcpy(member->name, ahead.long_name, sizeof member->name);
	if (*ahead.long_link)
		memcpy(member->link, ahead.long_link, sizeof member->link);
	apply_extended(member);
	*ahead.long_name = *ahead.long_link = '\0';
	if (member->mtime < 0)
		member->mtime = 0;
	/* A name ends without slashes; a directory is known by its type. */
	size_t length = strlen(member->name);
	while (length > 1 && member->name[length - 1] == '/') {
		member->name[--length] = '\0';
		member->type = member->type == '0' ? '5' : member->type;
	}
}

static void forget_extended(void)
{
	free(ahead.extended);
	ahead.extended = NULL;
	ahead.extended_size = 0;
}

/* The next member, with its name and attributes as the headers before it say; its content is what comes next. */
enum tar_next tar_next(struct tar_member *member)
{
	static const char zeros[BLOCK];
	struct tar_header header;

	forget_extended();
	for (;;) {
		if (!tar_read(&header, sizeof header))
			return TAR_BROKEN;
		if (memcmp(&header, zeros, BLOCK) == 0)
			return TAR_END;
		if (!read_member(&header, member))
			return TAR_BROKEN;
		bool whole = true;
		if (member->type == 'x')
			whole = read_extended(member->size);
		else if (member->type == 'L')
			whole = read_long(member->size, ahead.long_name);
		else if (member->type == 'K')
			whole = read_long(member->size, ahead.long_link);
		else if (member->type == 'g')
			whole = tar_skip(tar_padded(member->size));
		else
			break;
		if (!whole)
			return TAR_BROKEN;
	}
	finish_member(member);
	return TAR_MEMBER;
}
