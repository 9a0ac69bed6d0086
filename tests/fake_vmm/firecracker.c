/* A program in the place of Firecracker: its arguments, its API with its refusals, a serial console; no guest.
 *
 *     firecracker --check VERSION     requests on stdin, one `METHOD PATH BODY` a line; for each an empty line or the
 *                                     words of its refusal; nothing is opened; after a line `-` a new one is asked
 *     DIRECTORY/firecracker OPTION... as the real one, in the version and with the whims that DIRECTORY is named after:
 *
 *     1.12.1              as it should be
 *     1.12.1+die=3        ends at the third request; +hang=3 stops as by SIGSTOP; +mute=3 never answers it;
 *                         +refuse=3 answers 400; +garbage=3 answers what is not HTTP; +part=3 half an answer, then its end
 *     1.12.1+dead         ends at once with a word; +shy never listens
 *     1.12.1+deaf         has a guest that ignores Ctrl-Alt-Del; +stubborn, and SIGTERM does not end it either
 *     1.12.1+brief        has a guest that reboots when it has started
 *
 * The directory's name and nothing else says so, because a capsule lets nothing else in: it is in argv[0]. */
#define _GNU_SOURCE
#include <poll.h>
#include <signal.h>
#include <termios.h>

#include "machine.h"

#define LENGTH_HEADER "\r\nContent-Length:"
enum { CLIENTS = 10, REQUEST_MAX = PAYLOAD_MAX + 8192, HEADER_MAX = 1024 };
enum { SLOT_CONSOLE, SLOT_API, SLOT_VSOCK, FIRST_CLIENT, SLOTS = FIRST_CLIENT + CLIENTS };
struct client { size_t length; char data[REQUEST_MAX + 1]; };
struct whims {
	char text[256];
	char version[32];
};

static const struct machine FRESH = {.memory_mib = 128, .vsock_fd = -1, .metrics_fd = -1};
static struct machine machine;
static struct client clients[CLIENTS];
static struct pollfd slots[SLOTS];
static struct whims whims;
static int log_fd = -1, requests;

static bool has(const char *whim) {
	char word[64];
	snprintf(word, sizeof(word), "+%s+", whim);
	return strstr(whims.text, word);
}

static bool now(const char *whim) {
	char word[64];
	snprintf(word, sizeof(word), "%s=%d", whim, requests);
	return has(word);
}

static void say(int fd, const char *text) {
	if (write(fd, text, strlen(text)) < 0)
		return; /* Nobody listens: the real one does not care either. */
}

static _Noreturn void end(int status, const char *words) {
	char line[WORDS_MAX + 64];
	snprintf(line, sizeof(line), "Error: %s\n", words);
	say(status ? 2 : log_fd, status ? line : "Vmm is stopping.\n");
	exit(status);
}

/* The version and the whims, from the name of the directory that this program is called in. */
static void read_whims(const char *path) {
	const char *last = strrchr(path, '/'), *first = last;
	while (first && first > path && first[-1] != '/')
		first--;
	snprintf(whims.text, sizeof(whims.text), "+%.*s+", first ? (int)(last - first) : 0, first ? first : "");
	int major = 0, minor = 0;
	if (sscanf(whims.text, "+%31[0-9.]", whims.version) == 1)
		sscanf(whims.version, "%d.%d", &major, &minor);
	machine.version = V(major, minor);
}

static int check(const char *version) {
	static char line[REQUEST_MAX], method[16], path[HEADER_MAX];
	int major = 0, minor = 0, at;
	if (sscanf(version, "%d.%d", &major, &minor) != 2)
		return 2;
	machine.version = V(major, minor);
	while (fgets(line, sizeof(line), stdin)) {
		line[strcspn(line, "\n")] = 0;
		if (!strcmp(line, "-")) {
			machine = FRESH;
			machine.version = V(major, minor);
			continue;
		}
		at = 0;
		if (sscanf(line, "%15s %1023s %n", method, path, &at) != 2)
			return 2;
		puts(ask(&machine, method, path, line + at));
	}
	return 0;
}

static int listen_at(const char *path) {
	struct sockaddr_un name = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (strlen(path) >= sizeof(name.sun_path))
		end(153, "the API socket's path is too long");
	strcpy(name.sun_path, path);
	if (bind(fd, (void *)&name, sizeof(name)) || listen(fd, CLIENTS))
		end(153, "Failed to open the API socket");
	return fd;
}

static void open_log(const char *path) {
	int made = machine.version >= LOG_FILE_MADE_SINCE ? O_CREAT : 0;
	log_fd = open(path, O_RDWR | O_NONBLOCK | O_CLOEXEC | made, 0600);
	if (log_fd < 0)
		end(1, "LoggerInitialization(Failed to open target file)");
}

/* The API socket's path; what is no argument of the real one ends us as it would end that. */
static const char *read_arguments(int count, char **words) {
	const char *socket_path = "/run/firecracker.socket", *log_path = NULL;
	for (int i = 1; i < count; i++) {
		const char *value = i + 1 < count ? words[i + 1] : NULL;
		if (!strcmp(words[i], "--version")) {
			printf("Firecracker v%s\n\n", whims.version);
			exit(0);
		}
		if (!strncmp(words[i], "--show-", strlen("--show-")))
			continue;
		if (!value)
			end(153, "an argument has no value");
		if (!strcmp(words[i], "--api-sock"))
			socket_path = value;
		else if (!strcmp(words[i], "--log-path"))
			log_path = value;
		else if (!strcmp(words[i], "--id")) {
			for (const char *at = value; *at; at++)
				if (at - value >= INSTANCE_ID_MAX || (!isalnum((unsigned char)*at) && *at != '-'))
					end(153, "Invalid instance ID");
		} else if (!strcmp(words[i], "--metrics-path")) {
			machine.metrics_fd = open(value, O_RDWR | O_NONBLOCK | O_CLOEXEC);
			if (machine.metrics_fd < 0)
				end(153, "MetricsInitialization");
			machine.metrics = true;
		} else if (strcmp(words[i], "--level") && strcmp(words[i], "--module"))
			end(153, "an argument was not expected");
		i++;
	}
	if (log_path)
		open_log(log_path);
	return socket_path;
}

static void reply(int fd, int status, const char *body) {
	char text[2 * WORDS_MAX], about[128] = "";
	if (status != 204)
		sprintf(about, "Content-Type: application/json\r\nContent-Length: %zu\r\n", strlen(body));
	snprintf(text, sizeof(text), "HTTP/1.1 %d \r\nServer: Firecracker API\r\nConnection: keep-alive\r\n%s\r\n%s",
		status, about, body);
	say(fd, now("part") ? "HTTP/1.1 20" : text);
}

static void refuse(int fd, const char *words) {
	char body[WORDS_MAX + 64], *to = body + sprintf(body, "{\"fault_message\":\"");
	for (const char *at = words; *at && to < body + sizeof(body) - 8; at++) {
		if (*at == '"' || *at == '\\')
			*to++ = '\\';
		*to++ = *at;
	}
	strcpy(to, "\"}");
	say(log_fd, "Received Error. Status code: 400 Bad Request. Message: ");
	say(log_fd, words);
	say(log_fd, "\n");
	reply(fd, 400, body);
}

static void boot(void) {
	say(1, "[    0.000000] Linux version 0.0.0-fake\r\nfake login: ");
	if (has("brief"))
		end(0, "");
}

/* Does what was asked. Returns false when the connection is to end. */
static bool answer(int fd, const char *method, const char *path, const char *body) {
	bool started = machine.started;
	requests++;
	if (now("die"))
		end(148, "the fake ends here, as it was told");
	if (now("hang"))
		raise(SIGSTOP);
	if (now("mute"))
		return true;
	if (now("garbage")) {
		say(fd, "\x01\x02 this is not HTTP\r\n\r\n");
		return true;
	}
	const char *words = now("refuse") ? "the fake refuses this, as it was told" : ask(&machine, method, path, body);
	if (*words)
		refuse(fd, words);
	else if (strcmp(method, "GET"))
		reply(fd, 204, "");
	else
		reply(fd, 200, started ? "{\"state\":\"Running\"}" : "{\"state\":\"Not started\"}");
	if (machine.started && !started)
		boot();
	if (!*words && strstr(body, "SendCtrlAltDel") && !has("deaf") && !has("stubborn"))
		end(0, "");
	return !now("part");
}

/* Reads what a client sent, and answers each request that is whole. Returns false when the connection is to end. */
static bool serve(int fd, struct client *client) {
	static char method[16], path[HEADER_MAX], body[REQUEST_MAX + 1];
	ssize_t got = read(fd, client->data + client->length, REQUEST_MAX - client->length);
	if (got <= 0)
		return got < 0 && errno == EAGAIN;
	client->length += (size_t)got;
	client->data[client->length] = 0;
	char *head = strstr(client->data, "\r\n\r\n"), *length_at = strcasestr(client->data, LENGTH_HEADER);
	if (!head)
		return client->length < REQUEST_MAX;
	size_t length = length_at && length_at < head ? strtoul(length_at + strlen(LENGTH_HEADER), NULL, 10) : 0;
	if (length > PAYLOAD_MAX || sscanf(client->data, "%15s %1023s HTTP/1.1", method, path) != 2) {
		refuse(fd, "The request is not HTTP, or its payload is too long");
		return false;
	}
	size_t whole = (size_t)(head - client->data) + 4 + length;
	if (client->length < whole)
		return true;
	memcpy(body, head + 4, length);
	body[length] = 0;
	client->length -= whole;
	memmove(client->data, client->data + whole, client->length);
	return answer(fd, method, path, body);
}

static void take_client(int listener) {
	int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
	for (int i = 0; i < CLIENTS && fd >= 0; i++)
		if (slots[FIRST_CLIENT + i].fd < 0) {
			slots[FIRST_CLIENT + i].fd = fd;
			clients[i].length = 0;
			return;
		}
	close(fd);
}

/* No guest listens on any port: whoever asks for one is hung up on. */
static void refuse_vsock(void) {
	int fd = accept4(machine.vsock_fd, NULL, NULL, SOCK_CLOEXEC);
	if (fd >= 0)
		close(fd);
}

static void echo(void) {
	char data[256];
	ssize_t got = read(0, data, sizeof(data));
	if (got <= 0) {
		slots[SLOT_CONSOLE].fd = -1;
		return;
	}
	if (machine.started && write(1, data, (size_t)got) < 0)
		slots[SLOT_CONSOLE].fd = -1;
}

static void run(void) {
	slots[SLOT_VSOCK].fd = machine.vsock_fd;
	if (poll(slots, SLOTS, -1) < 0)
		return;
	if (slots[SLOT_CONSOLE].revents)
		echo();
	if (slots[SLOT_API].revents)
		take_client(slots[SLOT_API].fd);
	if (slots[SLOT_VSOCK].revents)
		refuse_vsock();
	for (int i = 0; i < CLIENTS; i++) {
		struct pollfd *slot = &slots[FIRST_CLIENT + i];
		if (slot->fd >= 0 && slot->revents && !serve(slot->fd, &clients[i])) {
			close(slot->fd);
			slot->fd = -1;
		}
	}
}

int main(int count, char **words) {
	struct termios raw;
	machine = FRESH;
	if (count == 3 && !strcmp(words[1], "--check"))
		return check(words[2]);
	read_whims(words[0]);
	signal(SIGPIPE, SIG_IGN);
	const char *path = read_arguments(count, words);
	machine.effects = true;
	if (has("dead"))
		end(1, "the fake does not want to live");
	if (has("stubborn"))
		signal(SIGTERM, SIG_IGN);
	if (tcgetattr(0, &raw) == 0) {
		cfmakeraw(&raw);
		tcsetattr(0, TCSANOW, &raw);
	}
	for (int i = 0; i < SLOTS; i++)
		slots[i] = (struct pollfd){.fd = -1, .events = POLLIN};
	slots[SLOT_CONSOLE].fd = 0;
	if (!has("shy"))
		slots[SLOT_API].fd = listen_at(path);
	for (;;)
		run();
}
