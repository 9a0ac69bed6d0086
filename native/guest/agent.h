/* The agent: the guest's end of the control channel, as docs/protocol.md has it.
 *
 *   loop.c      one thread sleeps here: descriptors, the clock
 *   ports.c     virtio ports, of which there is news one by one           vsock.c  what is listened on instead
 *   wire.c      greeting, frames, credit                           connections.c  clients come and go
 *   records.c   requests and answers
 *   verbs.c     what a client may ask for
 *   sessions.c  commands: from the request to the exit status     spawn.c  their processes
 *   lanes.c     their input and output                             ring.c   the output that waits for clients to come
 *   tar_out.c tar_in.c paths.c identity.c: verbs that run in a process of their own
 *
 * Nothing here waits but loop.c, and whoever does not read or write stalls nothing but their own lane. Buffers that are
 * never touched cost nothing: a connection that nobody uses is a descriptor. */
#ifndef COCOON_AGENT_H
#define COCOON_AGENT_H

#include "guest.h"

#include <stdint.h>
#include <sys/types.h>

#define PROGRAM_VERSION "1"
enum {
	MAX_PAYLOAD = 16384,
	HEADER = 8,
	MAX_FRAME = HEADER + MAX_PAYLOAD + 4,
	OUTPUT_SIZE = MAX_FRAME + 48 * 1024, /* one frame of data, and control frames besides */
	MAX_MESSAGE = 256 * 1024,
	MAX_CONNECTIONS = 24,
	CHANNEL_PORTS = 16,
	VSOCK_BASE = 1000, /* model/capsule.py has the same numbers */
	MAX_SESSIONS = 64,
	INPUT_WINDOW = 64 * 1024,
	MAX_CREDIT = 1024 * 1024,
	RING_SIZE = 256 * 1024,
};
enum frame { REQUEST = 1, ANSWER, DATA, END, CREDIT, EXIT, SIGNAL, RESIZE, DETACH, BYE };
enum lane { STDIN, STDOUT, STDERR };
enum exit_kind { EXITED, KILLED, NOT_STARTED };

/* loop.c. A watch may be removed at any time: events are taken one by one. */
struct watch {
	int fd; /* -1: nothing */
	void (*ready)(struct watch *watch, uint32_t events);
};
int64_t now_ms(void);
void open_loop(void);
bool add_watch(struct watch *watch, int fd, uint32_t events, void (*ready)(struct watch *, uint32_t));
void change_watch(struct watch *watch, uint32_t events);
void close_watch(struct watch *watch);
void run_loop_once(int64_t until_ms); /* 0: for ever */
int64_t sooner(int64_t a_ms, int64_t b_ms);

/* ring.c: what commands wrote while nobody or everybody looked; a reader is a position in it and nothing else. */
struct ring {
	int fd; /* -1: none */
	uint64_t start, end, dropped, total; /* positions of records; bytes of output overwritten, and ever written */
};
struct cursor {
	uint64_t position, seen; /* of a record; bytes of output before it */
	size_t part;             /* of that record, already read */
	uint32_t lost;           /* bytes that were overwritten unread */
};
bool open_ring(struct ring *ring);
void close_ring(struct ring *ring);
size_t ring_room(const struct ring *ring, const struct cursor *reader); /* bytes that would not overtake the reader */
void ring_append(struct ring *ring, unsigned lane, const void *bytes, size_t count);
void ring_seek(const struct ring *ring, struct cursor *cursor, bool to_start);
bool ring_peek(const struct ring *ring, struct cursor *cursor, unsigned *lane, size_t *left);
void ring_take(const struct ring *ring, struct cursor *cursor, void *bytes, size_t count);

/* wire.c */
struct session;
struct connection {
	struct watch watch;
	bool is_port; /* stays when its client goes, and cannot say so */
	const struct listener *listener; /* that accepted it; NULL for ports */
	bool greeted, in_step, unread; /* unread: bytes wait that we left for a later turn */
	uint32_t key;
	unsigned char nonce[16], input[MAX_FRAME], output[OUTPUT_SIZE];
	size_t used, unsent;
	int64_t hung_since_ms;
	char *message; /* a request of several frames */
	size_t message_used;
	struct session *session;
	struct cursor cursor; /* in the session's ring */
	uint32_t credit[3], input_left;
	bool patient;  /* the session waits for this client, and takes its input */
	bool farewell; /* it knows how the main command ended, and has not left yet */
};
extern struct connection connections[MAX_CONNECTIONS];
struct connection *add_connection(int fd, bool is_port);
void take_bytes(struct connection *connection, const unsigned char *bytes, size_t count);
bool send_frame(struct connection *connection, enum frame type, unsigned lane, const void *payload, size_t length);
void send_numbers(struct connection *connection, enum frame type, unsigned lane, uint32_t a, uint32_t b, uint32_t c);
/* Reads at most a frame of `fd` straight into the output. What read(2) gave; nothing is sent unless it is positive. */
ssize_t send_from(struct connection *connection, unsigned lane, int fd, size_t limit);
bool has_room(const struct connection *connection); /* for a frame of data */
void flush_output(struct connection *connection);
void break_off(struct connection *connection); /* until the next greeting */
void end_connection(struct connection *connection);
int64_t serve_connections(void);               /* what is due; when to come again, 0 for never */

/* ports.c */
int64_t find_ports(size_t *found);

/* vsock.c */
size_t open_vsock(void);
int64_t serve_listeners(void);
bool listen_at(unsigned port, int listening_fd); /* a vsock's, and a Unix socket in tests; one client at a time */

/* records.c: "key=value\0" ... */
struct request {
	char *records;
	size_t size;
};
const char *find_record(const struct request *request, const char *key); /* NULL without it */
const char *next_record(const struct request *request, const char *key, const char *previous);
size_t count_records(const struct request *request, const char *key);
bool check_request(const struct request *request, const char *allowed, const char **culprit);
struct answer {
	size_t used;
	bool overlong;
	char text[24 * 1024];
};
void add_record(struct answer *answer, const char *format, ...) __attribute__((format(printf, 2, 3)));
void send_answer(struct connection *connection, const struct answer *answer);
void refuse(struct connection *connection, const char *kind, const char *format, ...)
	__attribute__((format(printf, 3, 4)));
void agree(struct connection *connection);

/* verbs.c */
void serve_request(struct connection *connection, struct request *request);

/* spawn.c */
enum failure { CANNOT_RUN = 0, CANNOT_ENTER = 1 << 16, CANNOT_BECOME = 2 << 16 }; /* added to errno */
struct launch {
	char **arguments;               /* NULL-terminated */
	const struct request *request;  /* whose env= are added; or what `task` works on */
	int (*task)(const struct request *request); /* instead of a program, in a process of its own */
	char **environment;             /* what env= adds to; NULL for none */
	const char *cwd;
	bool make_cwd, terminal, no_input;
	unsigned rows, columns;
	struct account account;
};
struct spawned {
	pid_t pid;
	int input, output[2], failure; /* ours; -1: none */
};
void set_inherited_signals(const sigset_t *mask);
bool spawn(const struct launch *launch, struct spawned *spawned);
_Noreturn void run_program(const struct launch *launch, int failure_fd);
void set_environment(const struct launch *launch);

/* sessions.c */
struct session {
	bool used, ended, stays, terminal, awaits_client, more;
	uint32_t number;
	pid_t pid;
	enum exit_kind kind;
	uint32_t status;
	int64_t started_s, kill_at_ms, finish_at_ms;
	struct watch input, output[2];
	int failure_fd, echo_fd; /* echo: the console, which gets a copy of the main command's output */
	bool input_ends;
	size_t input_used, drain[2];
	unsigned input_taken, turn;
	unsigned char *input_bytes;
	struct ring ring;
	char command[160];
};
extern struct session sessions[MAX_SESSIONS];
struct session *find_session(uint32_t number);
struct session *new_session(char *const *words); /* numbered from 1; NULL when there is no place */
struct session *new_main_session(char *const *words);
void start_session(struct session *session, const struct spawned *spawned, bool terminal, bool stays);
#define FOR_CLIENTS(session, client)                                                                                   \
	for (struct connection *client = connections; client < connections + MAX_CONNECTIONS; client++)                \
		if (client->session == (session))
struct connection *find_patient_client(const struct session *session);
void attach(struct connection *connection, struct session *session, uint32_t credit, bool replay, bool patient);
void leave(struct connection *connection); /* its client has gone */
void detach(struct connection *connection);
bool signal_session(const struct session *session, int number);
void resize_session(const struct session *session, unsigned rows, unsigned columns);
bool forget_session(struct session *session);
void reap_children(void);
int64_t serve_sessions(void);
size_t count_clients(const struct session *session);

/* lanes.c */
void take_input(struct connection *connection, const unsigned char *bytes, size_t count);
void end_input(struct connection *connection);
void push_input(struct session *session);
void input_ready(struct watch *watch, uint32_t events);
void feed(struct connection *connection); /* room or credit: go on with output */
void move_output(struct session *session);
void output_ready(struct watch *watch, uint32_t events);
void let_go(struct connection *connection); /* it is in no session now */

/* console.c */
int open_console(int flags);
bool resize_console(unsigned rows, unsigned columns);

/* Verbs as processes: they write to their stdout and stderr and give an exit status. */
int stat_task(const struct request *request);
int tar_out_task(const struct request *request);
int tar_in_task(const struct request *request);
int identity_task(const struct request *request);

/* What a request gets from the machine that the agent runs in. */
struct host_program {
	const struct config *config;             /* the image's defaults for commands; NULL in mode `agent` */
	bool (*shut_down)(long grace_s);
};
extern struct host_program host_program;

/* command.c: session 0 */
void start_main_command(struct config *config);
bool main_command_is_over(int64_t *look_again_ms); /* ended, and whoever wants to know knows, or has had time enough */

/* agent.c: mode `agent` */
_Noreturn void run_agent(void);
void spin_agent(int64_t until_ms); /* one turn of the loop, in either mode */

#endif
