/* The order, parsed strictly: words that end with a NUL, a directive and then its values. No value needs escaping so. The
 * last word is `end`, so that a cut-off order is noticed. Anything unknown is an error. */
#include "shim.h"

/* The kind of each value: t text, u a number below 2^32 - 1, n any number. What may be given once must be. */
static const struct directive { const char *name, *kinds; size_t offset, most; } directives[] = {
#define ONE(name, kind, field) {name, kind, offsetof(struct spec, field), 1}
#define MANY(name, kinds, field) {name, kinds, offsetof(struct spec, field), \
	sizeof(((struct spec *)0)->field) / sizeof(*((struct spec *)0)->field) - 1}
	ONE("vm", "t", vm), ONE("uid", "u", uid), ONE("gid", "u", gid), ONE("netns", "t", netns),
	ONE("run-dir", "t", run_dir), ONE("log-dir", "t", log_dir), ONE("exit-record", "t", exit_record),
	ONE("log-limit", "u", log_limit), ONE("kill-after", "u", kill_after_ms), ONE("memlock", "n", memlock),
	ONE("open-files", "u", open_files), ONE("insecure", "u", insecure), ONE("foreground", "u", foreground),
	MANY("cgroup", "t", cgroups), MANY("bind", "utt", binds), MANY("device", "tuu", devices), MANY("fifo", "ttn", fifos),
	MANY("argument", "t", arguments), MANY("environment", "t", environment),
};
enum { DIRECTIVES = sizeof(directives) / sizeof(*directives), WORD = sizeof(uint64_t) };
_Static_assert(sizeof(char *) == WORD, "a value is a word");

static bool parse_value(char kind, char *text, void *word) {
	char *rest;
	*(char **)word = text;
	if (kind == 't') return true;
	errno = 0;
	*(uint64_t *)word = strtoull(text, &rest, 10);
	return *text >= '0' && *text <= '9' && !*rest && !errno && (kind == 'n' || *(uint64_t *)word < UINT32_MAX);
}

/* The word at `*at`, which moves on; NULL after the last. */
static char *next_word(char **at, const char *last) {
	char *word = *at;
	*at += *at < last ? strlen(word) + 1 : 0;
	return *at == word ? NULL : word;
}

static bool parse_directive(struct spec *spec, const char *name, char **at, const char *last, size_t *counts) {
	for (size_t i = 0; i < DIRECTIVES; i++) {
		const struct directive *directive = &directives[i];
		size_t values = strlen(directive->kinds);
		if (strcmp(name, directive->name)) continue;
		char *word = (char *)spec + directive->offset + counts[i]++ * values * WORD, *value = "";
		for (size_t j = 0; counts[i] <= directive->most && j < values; j++, word += WORD)
			if (!(value = next_word(at, last)) || !parse_value(directive->kinds[j], value, word))
				return false;
		return counts[i] <= directive->most;
	}
	return false;
}

/* Parses the `length` bytes in `spec->text`, after which there is a NUL; everything else in `spec` is zero. */
bool spec_parse(struct spec *spec, size_t length, char error[MESSAGE]) {
	size_t counts[DIRECTIVES] = {0};
	char *at = spec->text, *last = at + length, *name;
	for (int number = 1; (name = next_word(&at, last)) && strcmp(name, "end"); number++) {
		snprintf(error, MESSAGE, "directive %d of the order is not understood: %.40s", number, name);
		if (!parse_directive(spec, name, &at, last, counts)) return false;
	}
	snprintf(error, MESSAGE, "the order is cut off");
	bool whole = name && at == last;
	for (size_t i = 0; whole && i < DIRECTIVES; i++) {
		snprintf(error, MESSAGE, "the order does not say `%s`", directives[i].name);
		whole = counts[i] || directives[i].most > 1;
	}
	return whole;
}

/* The order on `fd`, to be freed; NULL with the reason in `error`. */
struct spec *spec_read(int fd, char error[MESSAGE]) {
	struct spec *spec = calloc(1, sizeof(*spec));
	size_t length = 0;
	ssize_t got;
	while (spec && (got = read(fd, spec->text + length, sizeof(spec->text) - length)) > 0)
		length += (size_t)got;
	snprintf(error, MESSAGE, "the order is too long");
	if (spec && length < sizeof(spec->text) && spec_parse(spec, length, error)) return spec;
	free(spec);
	return NULL;
}
