/* The tar format, as POSIX.1-2008's pax has it, and what both directions share. */
#ifndef COCOON_TAR_H
#define COCOON_TAR_H

#include <limits.h>
#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

enum { BLOCK = 512, MAX_EXTENDED = 256 * 1024, MAX_XATTR = 64 * 1024, MAX_ATTRIBUTES = 64 };
struct tar_header {
	char name[100], mode[8], uid[8], gid[8], size[12], mtime[12], checksum[8], type, link[100];
	char magic[6], version[2], user[32], group[32], major[8], minor[8], prefix[155], padding[12];
};
_Static_assert(sizeof(struct tar_header) == BLOCK, "a header is a block");

struct tar_member {
	char type;
	char name[PATH_MAX], link[PATH_MAX];
	mode_t mode;
	uid_t uid;
	gid_t gid;
	dev_t device;
	long long size, mtime;
	const char *attributes[MAX_ATTRIBUTES]; /* names, each with its value behind its NUL */
	size_t lengths[MAX_ATTRIBUTES], attribute_count;
};

/* tar_read.c: the archive on stdin. */
enum tar_next { TAR_MEMBER, TAR_END, TAR_BROKEN };
enum tar_next tar_next(struct tar_member *member);
bool tar_read(void *bytes, size_t count);
bool tar_skip(long long count);
long long tar_padded(long long size);

/* tar_out.c */
unsigned tar_checksum(const struct tar_header *header);
bool is_copied_attribute(const char *name); /* extended attributes that go along */

#endif
