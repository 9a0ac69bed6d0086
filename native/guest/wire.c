/* The wire of docs/protocol.md, sections 2 and 3: greeting and frames. The client may be anybody, may go in the middle of a
 * frame and come back as somebody else, and on a virtio port nothing in the stream says so. */
#define _GNU_SOURCE
#include "agent.h"

#include <endian.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

#define GREETING "cocoon?\n"
#define WELCOME "cocoon!\n"
#define GREETING_SIZE 32
#define VERSION 1

static uint32_t get32(const unsigned char *bytes)
{
	uint32_t number;

	memcpy(&number, bytes, sizeof number);
	return le32toh(number);
}

static uint16_t get16(const unsigned char *bytes)
{
	return (uint16_t)(bytes[0] | bytes[1] << 8);
}

static void put32(unsigned char *bytes, uint32_t number)
{
	number = htole32(number);
	memcpy(bytes, &number, sizeof number);
}

void flush_output(struct connection *connection)
{
	while (connection->unsent && connection->watch.fd >= 0) {
		ssize_t count = write(connection->watch.fd, connection->output, connection->unsent);
		if (count < 0 && errno == EINTR)
			continue;
		if (count < 0 && errno != EAGAIN && !connection->is_port)
			end_connection(connection);
		if (count <= 0)
			return;
		connection->unsent -= (size_t)count;
		memmove(connection->output, connection->output + count, connection->unsent);
	}
}

bool has_room(const struct connection *connection)
{
	return connection->greeted && connection->unsent == 0;
}

static void finish_frame(struct connection *connection, enum frame type, unsigned lane, size_t length)
{
	unsigned char *frame = connection->output + connection->unsent;

	put32(frame, connection->key);
	frame[4] = (unsigned char)type;
	frame[5] = (unsigned char)lane;
	frame[6] = (unsigned char)length;
	frame[7] = (unsigned char)(length >> 8);
	put32(frame + HEADER + length, connection->key);
	connection->unsent += HEADER + length + 4;
	flush_output(connection);
}

/* False when the client does not read: it has had room for 48 KiB of answers, and is let go. */
bool send_frame(struct connection *connection, enum frame type, unsigned lane, const void *payload, size_t length)
{
	if (!connection->greeted)
		return false;
	if (connection->unsent + HEADER + length + 4 > sizeof connection->output) {
		break_off(connection);
		return false;
	}
	if (length)
		memcpy(connection->output + connection->unsent + HEADER, payload, length);
	finish_frame(connection, type, lane, length);
	return true;
}

void send_numbers(struct connection *connection, enum frame type, unsigned lane, uint32_t a, uint32_t b, uint32_t c)
{
	unsigned char payload[12];

	put32(payload, a);
	put32(payload + 4, b);
	put32(payload + 8, c);
	send_frame(connection, type, lane, payload, type == EXIT ? 12 : 4);
}

ssize_t send_from(struct connection *connection, unsigned lane, int fd, size_t limit)
{
	ssize_t count = read(fd, connection->output + connection->unsent + HEADER, limit < MAX_PAYLOAD ? limit : MAX_PAYLOAD);

	if (count > 0)
		finish_frame(connection, DATA, lane, (size_t)count);
	return count;
}

/* Early in a boot the kernel has no random numbers yet; the key only has to differ from the last ones. */
static uint32_t make_key(void)
{
	uint32_t key = 0, greeting;

	memcpy(&greeting, GREETING, sizeof greeting);
	do {
		if (getrandom(&key, sizeof key, GRND_NONBLOCK) != sizeof key)
			key = key * 2654435761u + (uint32_t)now_ms() + (uint32_t)getpid();
	} while (key == 0 || key == greeting);
	return key;
}

/* A greeting that comes again, because the first answer was slow, is answered again and changes nothing. */
static void greet(struct connection *connection, const unsigned char *greeting)
{
	bool again = connection->key && memcmp(connection->nonce, greeting + 16, 16) == 0;
	bool common = get16(greeting + 8) <= VERSION && VERSION <= get16(greeting + 10);
	unsigned char *welcome;

	if (!again) {
		break_off(connection);
		memcpy(connection->nonce, greeting + 16, 16);
		connection->key = make_key();
	}
	if (connection->unsent + GREETING_SIZE > sizeof connection->output)
		return;
	connection->in_step = connection->greeted = common;
	welcome = connection->output + connection->unsent;
	memset(welcome, 0, GREETING_SIZE);
	memcpy(welcome, WELCOME, 8);
	welcome[8] = VERSION;
	put32(welcome + 12, common ? connection->key : 0);
	memcpy(welcome + 16, greeting + 16, 16);
	connection->unsent += GREETING_SIZE;
	flush_output(connection);
}

static void take_credit(struct connection *connection, unsigned lane, uint32_t more)
{
	if ((lane != STDOUT && lane != STDERR) || more > MAX_CREDIT || connection->credit[lane] + more > MAX_CREDIT) {
		break_off(connection);
		return;
	}
	connection->credit[lane] += more;
	feed(connection);
}

/* A request may come in several frames; `more` says that this is not the last. */
static void take_request(struct connection *connection, unsigned more, char *bytes, size_t length)
{
	struct request request = {.records = bytes, .size = length};

	if (connection->message || more) {
		if (connection->message_used + length > MAX_MESSAGE) {
			break_off(connection);
			return;
		}
		char *longer = realloc(connection->message, connection->message_used + length + 1);
		if (!longer) {
			break_off(connection);
			return;
		}
		memcpy(longer + connection->message_used, bytes, length);
		connection->message = longer;
		connection->message_used += length;
		if (more)
			return;
		request = (struct request){.records = longer, .size = connection->message_used};
		connection->message = NULL;
		connection->message_used = 0;
		serve_request(connection, &request);
		free(longer);
		return;
	}
	serve_request(connection, &request);
}

/* False for what the protocol does not allow. */
static bool take_session_frame(struct connection *connection, unsigned type, const unsigned char *payload, size_t length)
{
	struct session *session = connection->session;

	if (type == SIGNAL && length == 4) {
		if (session)
			signal_session(session, (int)get32(payload));
	} else if (type == RESIZE && length == 4) {
		if (session)
			resize_session(session, get16(payload), get16(payload + 2));
	} else if (type == DETACH && length == 0) {
		detach(connection);
	} else {
		return false;
	}
	return true;
}

static void take_frame(struct connection *connection, unsigned char *frame, size_t length)
{
	unsigned type = frame[4], lane = frame[5];
	unsigned char *payload = frame + HEADER;

	/* What is about a session that has just ended is late, and no mistake. */
	if (type == REQUEST && lane <= 1)
		take_request(connection, lane, (char *)payload, length);
	else if (type == DATA && lane == STDIN && length && (!connection->session || length <= connection->input_left))
		take_input(connection, payload, length);
	else if (type == END && lane == STDIN && length == 0)
		end_input(connection);
	else if (type == CREDIT && length == 4)
		take_credit(connection, lane, get32(payload));
	else if (type == BYE && length == 0)
		break_off(connection);
	else if (!take_session_frame(connection, type, payload, length))
		break_off(connection);
}

static void drop_input(struct connection *connection, size_t count)
{
	connection->used -= count;
	memmove(connection->input, connection->input + count, connection->used);
}

/* Out of step: everything up to the next greeting goes, but for what may be its beginning. */
static bool look_for_greeting(struct connection *connection)
{
	unsigned char *found = memmem(connection->input, connection->used, GREETING, 8);

	if (!found) {
		size_t keep = connection->used < 7 ? connection->used : 7;
		drop_input(connection, connection->used - keep);
		return false;
	}
	drop_input(connection, (size_t)(found - connection->input));
	return true;
}

/* Takes one greeting or frame from the input; false when there is no whole one. */
static bool take_one(struct connection *connection)
{
	unsigned char *input = connection->input;
	size_t prefix = connection->used < 8 ? connection->used : 8;

	if (!connection->in_step && !look_for_greeting(connection))
		return false;
	if (prefix && memcmp(input, GREETING, prefix) == 0) {
		unsigned char greeting[GREETING_SIZE];
		if (connection->used < GREETING_SIZE)
			return false;
		memcpy(greeting, input, sizeof greeting);
		drop_input(connection, GREETING_SIZE);
		greet(connection, greeting);
		return true;
	}
	if (!connection->in_step || connection->used < HEADER)
		return false;
	size_t length = get16(input + 6);
	if (get32(input) != connection->key || length > MAX_PAYLOAD) {
		break_off(connection);
		return true;
	}
	if (connection->used < HEADER + length + 4)
		return false;
	if (get32(input + HEADER + length) == connection->key)
		take_frame(connection, input, length);
	else
		break_off(connection);
	if (connection->watch.fd >= 0)
		drop_input(connection, HEADER + length + 4);
	return true;
}

void take_bytes(struct connection *connection, const unsigned char *bytes, size_t count)
{
	while (count && connection->watch.fd >= 0) {
		size_t room = sizeof connection->input - connection->used, part = count < room ? count : room;
		memcpy(connection->input + connection->used, bytes, part);
		connection->used += part;
		bytes += part;
		count -= part;
		while (connection->used && connection->watch.fd >= 0 && take_one(connection))
			;
	}
}
