/* Requests and answers: records "key=value\0", the first of a request its verb, of an answer "ok" or "error=WORDS". */
#define _GNU_SOURCE
#include "agent.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* The value of the record after `previous` (a value, or NULL to begin) whose key is `key`; NULL when there is none. */
const char *next_record(const struct request *request, const char *key, const char *previous)
{
	const char *end = request->records + request->size;
	const char *record = previous ? previous + strlen(previous) + 1 : request->records;
	size_t length = strlen(key);

	for (; record < end; record += strlen(record) + 1)
		if (strncmp(record, key, length) == 0 && record[length] == '=')
			return record + length + 1;
	return NULL;
}

const char *find_record(const struct request *request, const char *key)
{
	return next_record(request, key, NULL);
}

size_t count_records(const struct request *request, const char *key)
{
	size_t count = 0;

	for (const char *value = NULL; (value = next_record(request, key, value));)
		count++;
	return count;
}

/* Whether `key` is one of the words of `allowed`, where a word with a star may come again. */
static bool is_allowed(const char *key, size_t length, const char *allowed, bool *again)
{
	for (const char *word = allowed; *word; word += strcspn(word, " "), word += *word == ' ') {
		size_t size = strcspn(word, " *");
		if (size == length && memcmp(word, key, length) == 0) {
			*again = word[size] == '*';
			return true;
		}
	}
	return false;
}

/* Every record has a key of `allowed` ("verb cwd arg*"), which comes once unless it is starred. */
bool check_request(const struct request *request, const char *allowed, const char **culprit)
{
	const char *end = request->records + request->size;

	*culprit = "";
	if (!request->size || end[-1] != '\0')
		return false;
	for (const char *record = request->records; record < end; record += strlen(record) + 1) {
		const char *equals = strchr(record, '=');
		bool again = false;
		char key[32] = "";
		*culprit = record;
		if (!equals || (size_t)(equals - record) >= sizeof key ||
		    !is_allowed(record, (size_t)(equals - record), allowed, &again))
			return false;
		memcpy(key, record, (size_t)(equals - record));
		if (!again && find_record(request, key) != equals + 1)
			return false;
	}
	return true;
}

void add_record(struct answer *answer, const char *format, ...)
{
	size_t room = sizeof answer->text - answer->used;
	va_list arguments;

	va_start(arguments, format);
	int length = vsnprintf(answer->text + answer->used, room, format, arguments);
	va_end(arguments);
	if (length < 0 || (size_t)length >= room)
		answer->overlong = true;
	else
		answer->used += (size_t)length + 1;
}

void send_answer(struct connection *connection, const struct answer *answer)
{
	size_t sent = 0;

	do {
		size_t part = answer->used - sent < MAX_PAYLOAD ? answer->used - sent : MAX_PAYLOAD;
		if (!send_frame(connection, ANSWER, sent + part < answer->used, answer->text + sent, part))
			return;
		sent += part;
	} while (sent < answer->used);
}

void refuse(struct connection *connection, const char *kind, const char *format, ...)
{
	static struct answer answer;
	char words[512];
	va_list arguments;

	va_start(arguments, format);
	vsnprintf(words, sizeof words, format, arguments);
	va_end(arguments);
	answer.used = 0;
	add_record(&answer, "error=%s", words);
	add_record(&answer, "kind=%s", kind);
	send_answer(connection, &answer);
}

void agree(struct connection *connection)
{
	send_frame(connection, ANSWER, 0, "ok", 3);
}
