/* JSON as serde_json reads it into structures: objects whose members are told by name, each at most once. */
#ifndef FAKE_VMM_JSON_H
#define FAKE_VMM_JSON_H
#include <ctype.h>
#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum type { J_NULL, J_BOOLEAN, J_INTEGER, J_OTHER_NUMBER, J_TEXT, J_OBJECT, J_LIST };
enum { MEMBERS = 32, TEXT_MAX = 4096 };
struct member { char name[64]; enum type type; int64_t number; const char *begin, *end; };
struct object { int count; struct member members[MEMBERS]; };

static const char *json_value(const char *at, struct member *into, int depth);

static const char *json_space(const char *at) {
	while (*at && strchr(" \t\r\n", *at))
		at++;
	return at;
}

/* The end of the string that begins at the quote `at`, or NULL. */
static const char *json_text(const char *at) {
	for (at++; *at && *at != '"'; at++)
		if ((unsigned char)*at < 0x20 || (*at == '\\' && !*++at))
			return NULL;
	return *at ? at + 1 : NULL;
}

/* The members of the object that begins at `at`; where it ends, or NULL. */
static const char *json_object(const char *at, struct object *into, int depth) {
	into->count = 0;
	if (*at != '{' || depth > 8)
		return NULL;
	at = json_space(at + 1);
	if (*at == '}')
		return at + 1;
	for (;;) {
		struct member *member = &into->members[into->count];
		const char *name = at, *end = *at == '"' ? json_text(at) : NULL;
		if (!end || into->count == MEMBERS || (size_t)(end - name - 2) >= sizeof(member->name))
			return NULL;
		memcpy(member->name, name + 1, (size_t)(end - name - 2));
		member->name[end - name - 2] = 0;
		at = json_space(end);
		if (*at++ != ':' || !(at = json_value(json_space(at), member, depth + 1)))
			return NULL;
		into->count++;
		at = json_space(at);
		if (*at == '}')
			return at + 1;
		if (*at++ != ',')
			return NULL;
		at = json_space(at);
	}
}

static const char *json_list(const char *at, int depth) {
	struct member ignored;
	at = json_space(at + 1);
	if (*at == ']')
		return at + 1;
	while (depth < 8 && (at = json_value(at, &ignored, depth + 1))) {
		at = json_space(at);
		if (*at == ']')
			return at + 1;
		if (*at++ != ',')
			return NULL;
		at = json_space(at);
	}
	return NULL;
}

static const char *json_number(const char *at, struct member *into) {
	char *end;
	errno = 0;
	into->number = strtoll(at, &end, 10);
	into->type = errno || strchr(".eE", *end) ? J_OTHER_NUMBER : J_INTEGER;
	if (*end && strchr(".eE", *end))
		strtod(at, &end);
	return end;
}

static const char *json_word(const char *at, const char *word) {
	return strncmp(at, word, strlen(word)) ? NULL : at + strlen(word);
}

static const char *json_value(const char *at, struct member *into, int depth) {
	struct object nested;
	const char *begin = at, *end = NULL;
	if (*at == '"')
		into->type = J_TEXT, end = json_text(at);
	else if (*at == '{')
		into->type = J_OBJECT, end = json_object(at, &nested, depth);
	else if (*at == '[')
		into->type = J_LIST, end = json_list(at, depth);
	else if (*at == 't' || *at == 'f')
		into->type = J_BOOLEAN, into->number = *at == 't', end = json_word(at, *at == 't' ? "true" : "false");
	else if (*at == 'n')
		into->type = J_NULL, end = json_word(at, "null");
	else if (isdigit((unsigned char)*at) || (*at == '-' && isdigit((unsigned char)at[1])))
		end = json_number(at, into);
	into->begin = begin, into->end = end;
	return end;
}

/* The whole of `text` as one object. */
static bool json_read(const char *text, struct object *into) {
	const char *end = json_object(json_space(text), into, 0);
	return end && !*json_space(end);
}

static const struct member *json_find(const struct object *object, const char *name) {
	for (int i = 0; i < object->count; i++)
		if (!strcmp(object->members[i].name, name) && object->members[i].type != J_NULL)
			return &object->members[i];
	return NULL;
}

/* A member's text without its escapes but for quotes and backslashes, "" when it is not there. */
static const char *json_string(const struct object *object, const char *name, char into[TEXT_MAX]) {
	const struct member *member = json_find(object, name);
	char *to = into;
	if (member && member->type == J_TEXT)
		for (const char *at = member->begin + 1; at < member->end - 1 && to < into + TEXT_MAX - 1; at++)
			*to++ = *at == '\\' ? *++at : *at;
	*to = 0;
	return into;
}

static int64_t json_integer(const struct object *object, const char *name, int64_t otherwise) {
	const struct member *member = json_find(object, name);
	return member ? member->number : otherwise;
}
#endif
