/* The order, parsed strictly: one directive per line, `name<TAB>value<TAB>...`, `\n \t \\` for those characters, every
 * single value exactly once, `end` last, so that a cut-off order is noticed. Anything unknown is an error. */
#include "shim.h"

#include <sys/mman.h>

enum kind { TEXT, NAME, PATH, NUMBER };

/* The single values; each must be given once. `highest` bounds a number. */
static const struct single {
	const char *name;
	enum kind kind;
	size_t offset;
	uint64_t highest;
} singles[] = {
	{"shim", NUMBER, offsetof(struct spec, format), SPEC_FORMAT},
	{"vm", NAME, offsetof(struct spec, vm), 0},
	{"uid", NUMBER, offsetof(struct spec, uid), UINT32_MAX - 1},
	{"gid", NUMBER, offsetof(struct spec, gid), UINT32_MAX - 1},
	{"netns", TEXT, offsetof(struct spec, netns), 0},
	{"run-dir", PATH, offsetof(struct spec, run_dir), 0},
	{"log-dir", PATH, offsetof(struct spec, log_dir), 0},
	{"exit-record", PATH, offsetof(struct spec, exit_record), 0},
	{"log-limit", NUMBER, offsetof(struct spec, log_limit), 1ull << 40},
	{"kill-after", NUMBER, offsetof(struct spec, kill_after_ms), 86400000},
	{"memlock", NUMBER, offsetof(struct spec, memlock), UINT64_MAX},
	{"open-files", NUMBER, offsetof(struct spec, open_files), 1 << 30},
	{"insecure", NUMBER, offsetof(struct spec, insecure), 1},
	{"foreground", NUMBER, offsetof(struct spec, foreground), 1},
};
enum { SINGLES = sizeof(singles) / sizeof(*singles), FIELDS = 4 };

/* Turns `\n`, `\t`, `\r` and `\\` into what they stand for, in place; false for any other escape. */
bool unescape(char *text)
{
	char *out = text;
	for (; *text; text++, out++) {
		*out = *text;
		if (*text != '\\')
			continue;
		switch (*++text) {
		case 'n': *out = '\n'; break;
		case 't': *out = '\t'; break;
		case 'r': *out = '\r'; break;
		case '\\': *out = '\\'; break;
		default: return false;
		}
	}
	*out = 0;
	return true;
}

static bool parse_number(const char *text, uint64_t highest, uint64_t *number)
{
	size_t digits = strspn(text, "0123456789");
	if (!digits || digits > 20 || text[digits])
		return false;
	errno = 0;
	*number = strtoull(text, NULL, 10);
	return !errno && *number <= highest;
}

/* An absolute path without empty, `.` or `..` components: it means what it says, whatever symlinks there are. */
static bool is_path(const char *text)
{
	if (*text != '/' || strlen(text) >= 4096)
		return false;
	while (*text) {
		size_t length = strcspn(++text, "/");
		if (!length || (length == 1 && text[0] == '.') || (length == 2 && text[0] == '.' && text[1] == '.'))
			return false;
		text += length;
	}
	return true;
}

/* One component of a path: what `netns` and `vm` become. */
static bool is_name(const char *text)
{
	return *text && strlen(text) < 256 && !strchr(text, '/') && strcmp(text, ".") && strcmp(text, "..");
}

static bool parse_single(struct spec *spec, const struct single *single, char *value)
{
	void *field = (char *)spec + single->offset;
	if (single->kind == NUMBER)
		return parse_number(value, single->highest, field);
	if ((single->kind == PATH && !is_path(value)) || (single->kind == NAME && !is_name(value)))
		return false;
	*(char **)field = value;
	return true;
}

#define ROOM(list, count) ((count) < sizeof(list) / sizeof(*(list)))

/* The values of which there may be many. `end` needs one place less than there is: the lists end with NULL. */
static bool parse_repeated(struct spec *spec, char **fields, int values)
{
	const char *name = fields[0];
	if (!strcmp(name, "argument") && values == 1 && ROOM(spec->arguments, spec->argument_count + 1)) {
		spec->arguments[spec->argument_count++] = fields[1];
		return true;
	}
	if (!strcmp(name, "environment") && values == 1 && ROOM(spec->environment, spec->environment_count + 1)) {
		spec->environment[spec->environment_count++] = fields[1];
		return strchr(fields[1], '=') != NULL;
	}
	if (!strcmp(name, "cgroup") && values == 1 && ROOM(spec->cgroups, spec->cgroup_count)) {
		spec->cgroups[spec->cgroup_count++] = fields[1];
		return is_path(fields[1]);
	}
	if (!strcmp(name, "bind") && values == 3 && ROOM(spec->binds, spec->bind_count)) {
		spec->binds[spec->bind_count++] = (struct bind){fields[2], fields[3], !strcmp(fields[1], "rw")};
		return (!strcmp(fields[1], "rw") || !strcmp(fields[1], "ro")) && is_path(fields[2]) && is_path(fields[3]);
	}
	if (!strcmp(name, "device") && values == 3 && ROOM(spec->devices, spec->device_count)) {
		struct device *device = &spec->devices[spec->device_count++];
		device->inner = fields[1];
		return is_path(fields[1]) && parse_number(fields[2], 4095, &device->major) &&
		       parse_number(fields[3], 1 << 20, &device->minor);
	}
	return false;
}

/* Cuts one line at its tabs; the number of values after the name, or -1. */
static int split(char *line, char **fields)
{
	int count = 0;
	for (char *next = line; next; count++) {
		if (count == FIELDS)
			return -1;
		fields[count] = strsep(&next, "\t");
		if (!unescape(fields[count]))
			return -1;
	}
	return count - 1;
}

static bool parse_line(struct spec *spec, char *line, uint32_t *seen)
{
	char *fields[FIELDS];
	int values = split(line, fields);
	for (size_t i = 0; values == 1 && i < SINGLES; i++) {
		if (strcmp(fields[0], singles[i].name))
			continue;
		bool again = *seen & (1u << i);
		*seen |= 1u << i;
		return !again && parse_single(spec, &singles[i], fields[1]);
	}
	return values >= 1 && parse_repeated(spec, fields, values);
}

/* For the words of an error: bytes that a terminal may act on are shown as `?`. */
static void show(char *out, size_t size, const char *text)
{
	strncpy(out, text, size - 1);
	out[size - 1] = 0;
	for (; *out; out++)
		if (*out < ' ' || *out > '~')
			*out = '?';
}

/* Parses `length` bytes that are in `spec->text`; everything else in `spec` is zero. */
bool spec_parse(struct spec *spec, size_t length, char error[MESSAGE])
{
	uint32_t seen = 0;
	char *line = spec->text, *last = spec->text + length, shown[80];
	for (int number = 1; line < last; number++) {
		char *stop = memchr(line, '\n', (size_t)(last - line));
		if (!stop || memchr(line, 0, (size_t)(stop - line)))
			break;
		*stop = 0;
		if (!strcmp(line, "end") && stop + 1 == last) {
			for (size_t i = 0; i < SINGLES; i++) {
				if (!(seen & (1u << i))) {
					snprintf(error, MESSAGE, "the order does not say `%s`", singles[i].name);
					return false;
				}
			}
			snprintf(error, MESSAGE, "the order names no program");
			return spec->argument_count > 0 && spec->arguments[0][0] == '/';
		}
		show(shown, sizeof(shown), line);
		if (!parse_line(spec, line, &seen)) {
			snprintf(error, MESSAGE, "line %d of the order is not understood: %s", number, shown);
			return false;
		}
		line = stop + 1;
	}
	snprintf(error, MESSAGE, "the order is cut off");
	return false;
}

/* Reads the order from `fd` to its end. NULL with the reason in `error`. */
struct spec *spec_read(int fd, char error[MESSAGE])
{
	struct spec *spec = mmap(NULL, sizeof(*spec), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	size_t length = 0;
	ssize_t got = 1;
	if (spec == MAP_FAILED) {
		snprintf(error, MESSAGE, "no memory for the order");
		return NULL;
	}
	while (got > 0 && length < sizeof(spec->text)) {
		got = read(fd, spec->text + length, sizeof(spec->text) - length);
		length += got > 0 ? (size_t)got : 0;
	}
	if (got == 0 && spec_parse(spec, length, error))
		return spec;
	if (got)
		snprintf(error, MESSAGE, got < 0 ? "the order cannot be read" : "the order is too long");
	spec_free(spec);
	return NULL;
}

void spec_free(struct spec *spec)
{
	munmap(spec, sizeof(*spec));
}
