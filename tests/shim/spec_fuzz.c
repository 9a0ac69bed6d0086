/* spec-fuzz ROUNDS SEED < order: mutates a good order at random and parses it; the sanitizers are the judges. */
#include "shim.h"

static uint64_t state;

static uint64_t next(void) {
	state ^= state << 13;
	state ^= state >> 7;
	return state ^= state << 17;
}

int main(int count, char **words) {
	static char good[65536];
	static const char pieces[] = "\t\n\\\0/.=0123456789bindargument";
	ssize_t length = read(0, good, sizeof(good));
	long rounds = count > 2 ? atol(words[1]) : 1, parsed = 0;
	state = (count > 2 ? strtoull(words[2], NULL, 10) : 1) | 1;
	struct spec *spec = calloc(1, sizeof(*spec));
	if (length <= 0 || !spec)
		return 2;
	for (long i = 0; i < rounds; i++) {
		char error[MESSAGE] = "";
		memset(spec, 0, offsetof(struct spec, text) + sizeof(good));
		size_t size = i % 64 ? (size_t)length : (size_t)(next() % (uint64_t)length);
		memcpy(spec->text, good, size);
		for (uint64_t changes = i ? next() % 8 : 0; size && changes; changes--) {
			char *at = spec->text + next() % size;
			*at = next() % 2 ? pieces[next() % (sizeof(pieces) - 1)] : (char)next();
		}
		bool fine = spec_parse(spec, size, error);
		if (!fine && !*error)
			abort();
		/* Whatever is accepted must be whole: touch all of it. */
		for (char **word = spec->arguments; fine && *word; word++)
			parsed += strlen(*word) > SIZE_MAX / 2;
		for (const struct bind *bind = spec->binds; fine && bind->host; bind++)
			parsed += strlen(bind->host) + strlen(bind->inner) > SIZE_MAX / 2;
		parsed += fine;
	}
	free(spec);
	printf("%ld of %ld accepted\n", parsed, rounds);
	return 0;
}
