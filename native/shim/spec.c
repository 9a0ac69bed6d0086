/* The order, parsed strictly: a directive per line, `name<TAB>value<TAB>...`, with `\n \t \r \\` for those characters;
 * `end` comes last, so that a cut-off order is noticed. Anything unknown is an error. */
#include "shim.h"

/* The kind of each value: t text, c component of a path (o: or nothing), p path, m `ro` or `rw`, e NAME=VALUE, f our format, b 0 or 1,
 * u below 2^32 - 1, n any number. What may be given once must be. */
static const struct directive {
	const char *name, *kinds;
	size_t offset, most;
} directives[] = {
#define ONE(name, kind, field) {name, kind, offsetof(struct spec, field), 1}
#define MANY(name, kinds, field) {name, kinds, offsetof(struct spec, field), \
	sizeof(((struct spec *)0)->field) / sizeof(*((struct spec *)0)->field) - 1}
	ONE("vm", "c", vm), ONE("uid", "u", uid), ONE("gid", "u", gid), ONE("netns", "o", netns),
	ONE("run-dir", "p", run_dir), ONE("log-dir", "p", log_dir), ONE("exit-record", "p", exit_record),
	ONE("log-limit", "u", log_limit), ONE("kill-after", "u", kill_after_ms), ONE("memlock", "n", memlock),
	ONE("open-files", "u", open_files), ONE("insecure", "b", insecure), ONE("foreground", "b", foreground),
	MANY("cgroup", "p", cgroups), MANY("bind", "mpp", binds), MANY("device", "puu", devices),
	MANY("argument", "t", arguments), MANY("environment", "e", environment),
};
enum { DIRECTIVES = sizeof(directives) / sizeof(*directives), WORD = sizeof(uint64_t), FIELDS = 4 };
_Static_assert(sizeof(char *) == WORD, "a value is a word");

/* Turns escapes into what they stand for, in place; false for one that there is not. */
bool unescape(char *text) {
	for (char *out = text; (*out++ = *text) != 0; text++) {
		const char *pair = "n\nt\tr\r\\\\";
		if (*text != '\\')
			continue;
		for (text++; *pair && *pair != *text; pair += 2)
			;
		if (!*pair)
			return false;
		out[-1] = pair[1];
	}
	return true;
}

/* Absolute, without empty, `.` or `..` components: it means what it says. */
static bool is_path(const char *text) {
	if (*text != '/' || strlen(text) >= 4096)
		return false;
	for (size_t length; *text; text += length) {
		length = strcspn(++text, "/");
		if (!length || (*text == '.' && (length == 1 || (length == 2 && text[1] == '.'))))
			return false;
	}
	return true;
}

static bool parse_value(char kind, char *text, void *word) {
	uint64_t most = kind == 'b' ? 1 : kind == 'u' ? UINT32_MAX - 1 : UINT64_MAX;
	char *rest;
	switch (kind) {
	case 'b': case 'u': case 'n':
		errno = 0;
		*(uint64_t *)word = strtoull(text, &rest, 10);
		return *text >= '0' && *text <= '9' && !*rest && !errno && *(uint64_t *)word <= most;
	case 'p': if (!is_path(text)) return false; break;
	case 'o': if (!*text) break; /* fall through */
	case 'c': if (!*text || *text == '.' || strchr(text, '/') || strlen(text) > 255) return false; break;
	case 'm': if (strcmp(text, "ro") && strcmp(text, "rw")) return false; break;
	case 'e': if (!strchr(text, '=')) return false; break;
	}
	*(char **)word = text;
	return true;
}

static bool parse_line(struct spec *spec, char *line, size_t counts[DIRECTIVES]) {
	char *name = strsep(&line, "\t");
	for (size_t i = 0; i < DIRECTIVES; i++) {
		const struct directive *directive = &directives[i];
		if (strcmp(name, directive->name))
			continue;
		size_t values = strlen(directive->kinds);
		char *word = (char *)spec + directive->offset + counts[i]++ * values * WORD;
		bool good = counts[i] <= directive->most;
		for (size_t j = 0; good && j < values; j++, word += WORD) {
			char *value = strsep(&line, "\t");
			good = value && unescape(value) && parse_value(directive->kinds[j], value, word);
		}
		return good && !line;
	}
	return !strcmp(name, "shim") && line && !strcmp(line, "1");
}

/* Parses the `length` bytes in `spec->text`; everything else in `spec` is zero. */
bool spec_parse(struct spec *spec, size_t length, char error[MESSAGE]) {
	size_t counts[DIRECTIVES] = {0};
	char *line = spec->text, *last = spec->text + length, *stop, shown[80] = "";
	for (int number = 1; line < last && (stop = memchr(line, '\n', (size_t)(last - line))); number++) {
		*stop = 0;
		if (!strcmp(line, "end") && stop + 1 == last) {
			for (size_t i = 0; i < DIRECTIVES; i++) {
				snprintf(error, MESSAGE, "the order does not say `%s`", directives[i].name);
				if (!counts[i] && (directives[i].most == 1 || directives[i].offset == offsetof(struct spec, arguments)))
					return false;
			}
			*error = 0;
			return true;
		}
		for (size_t i = 0; i < sizeof(shown) - 1 && (shown[i] = line[i]); i++)
			if (shown[i] < ' ' || shown[i] > '~')
				shown[i] = '?'; /* these words may reach a terminal */
		snprintf(error, MESSAGE, "line %d of the order is not understood: %s", number, shown);
		if (strlen(line) != (size_t)(stop - line) || !parse_line(spec, line, counts))
			return false;
		line = stop + 1;
	}
	snprintf(error, MESSAGE, "the order is cut off");
	return false;
}

/* The order on `fd`, to be freed; NULL with the reason in `error`. */
struct spec *spec_read(int fd, char error[MESSAGE]) {
	struct spec *spec = calloc(1, sizeof(*spec));
	size_t length = 0;
	ssize_t got;
	while (spec && (got = read(fd, spec->text + length, sizeof(spec->text) - length)) > 0)
		length += (size_t)got;
	if (!spec || length == sizeof(spec->text))
		snprintf(error, MESSAGE, "the order is too long");
	else if (spec_parse(spec, length, error))
		return spec;
	free(spec);
	return NULL;
}
