/* One interface's way to an address and onwards (RFC 2131, figure 5):
 *
 *   SELECTING ──► REQUESTING ──► BOUND ──► RENEWING ──► REBINDING ──► over, the address goes: SELECTING
 *        ▲                         ▲  ACK ───┴────────────┘
 *        └─────────── NAK          └── REBOOTING ◄── the link was gone and is back
 */
#define _GNU_SOURCE
#include "dhcp.h"

#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>

enum { MAX_BACKOFF = 6, ASK_AGAIN_MS = 60000, REBOOT_TRIES = 3, REQUEST_TRIES = 4 };

/* In a machine's first second the kernel may not have all the entropy that it wants for keys; this needs less. */
static uint32_t draw(void)
{
	uint32_t number = 0;

	getrandom(&number, sizeof number, 4 /* GRND_INSECURE: does not wait */);
	return number;
}

static int64_t backoff_ms(unsigned tries)
{
	return (1000LL << (tries < MAX_BACKOFF ? tries : MAX_BACKOFF)) + draw() % 500;
}

/* ---- what is sent, and when ---- */

void begin(struct client *client, enum state state, int64_t when_ms)
{
	client->state = state;
	client->tries = 0;
	client->next_ms = when_ms;
	if (state == REBOOTING || state == SELECTING || state == RENEWING)
		client->asked.transaction = draw();
}

/* From the beginning, the later the more often that was in vain. */
static void start_over(struct client *client, int64_t now)
{
	drop_address(client);
	close_datagrams(client);
	begin(client, SELECTING, now + (client->failures ? backoff_ms(client->failures) : 0));
	client->failures++;
}

static void send_request(struct client *client)
{
	unsigned char packet[MAX_PACKET];
	struct dhcp_request *asked = &client->asked;
	bool is_known = client->state == RENEWING || client->state == REBINDING;

	asked->type = client->state == SELECTING ? DISCOVER : REQUEST_LEASE;
	asked->own = is_known ? client->lease.address : 0;
	asked->server = client->state == REQUESTING ? client->wanted.server : 0;
	asked->requested = client->state == REQUESTING || client->state == REBOOTING ? client->wanted.address : 0;
	size_t size = write_packet(asked, packet);
	if (client->state != RENEWING || !send_to_server(client, packet, size))
		broadcast(client, packet, size);
	client->tries++;
}

/* Half of what is left, but neither all the time nor too late. */
static int64_t ask_again_ms(int64_t now, int64_t end_ms)
{
	int64_t half = (end_ms - now) / 2;
	int64_t next = now + (half > ASK_AGAIN_MS ? half : ASK_AGAIN_MS);

	return next < end_ms ? next : end_ms;
}

void go_on(struct client *client, int64_t now)
{
	const int64_t rebind_ms = client->bound_ms + client->lease.rebind_s * 1000LL;
	const int64_t end_ms = client->bound_ms + client->lease.lease_s * 1000LL;

	if (client->state == BOUND)
		begin(client, RENEWING, now);
	if (client->state == RENEWING && now >= rebind_ms)
		client->state = REBINDING;
	if ((client->state == REBINDING && now >= end_ms) || (client->state == REBOOTING && client->tries == REBOOT_TRIES) ||
	    (client->state == REQUESTING && client->tries == REQUEST_TRIES)) {
		start_over(client, now);
		lease_changed();
		return;
	}
	send_request(client);
	if (client->state == RENEWING)
		client->next_ms = ask_again_ms(now, rebind_ms);
	else if (client->state == REBINDING)
		client->next_ms = ask_again_ms(now, end_ms);
	else
		client->next_ms = now + backoff_ms(client->tries - 1);
}

/* ---- what comes in ---- */

static bool differs(const struct lease *a, const struct lease *b)
{
	return a->address != b->address || a->prefix != b->prefix || a->route_count != b->route_count ||
	       memcmp(a->routes, b->routes, a->route_count * sizeof *a->routes) != 0;
}

static void take_lease(struct client *client, const struct lease *lease, int64_t now)
{
	int most = client->interface->mtu, mtu = lease->mtu && lease->mtu < most ? lease->mtu : most;
	bool changed = differs(&client->lease, lease);

	if (changed)
		drop_address(client);
	client->lease = *lease;
	client->state = BOUND;
	client->bound_ms = now;
	client->next_ms = now + lease->renew_s * 1000LL;
	client->tries = client->failures = 0;
	close_datagrams(client);
	set_link(client->netlink, client->index, true, mtu, NULL);
	keep_address(client);
	if (changed)
		set_routes(client);
	lease_changed();
}

static void take_answer(struct client *client, enum dhcp_type type, const struct lease *answer, int64_t now)
{
	bool is_known = client->state == RENEWING || client->state == REBINDING;
	bool waits = is_known || client->state == REQUESTING || client->state == REBOOTING;
	const struct lease *wanted = is_known ? &client->lease : &client->wanted;

	if (type == OFFER && client->state == SELECTING) {
		client->wanted = *answer;
		begin(client, REQUESTING, now);
	} else if (type == ACK && waits && answer->address == wanted->address &&
		   (client->state != REQUESTING || answer->server == wanted->server)) {
		take_lease(client, answer, now);
	} else if (type == NAK && waits && (client->state == REBINDING || answer->server == wanted->server)) {
		client->failures += !client->failures; /* whoever refuses what it has offered is not asked at once */
		start_over(client, now);
		lease_changed();
	}
}

void receive(struct client *client, int64_t now)
{
	unsigned char packet[MAX_PACKET];
	enum dhcp_type type;
	struct lease lease;
	ssize_t size = recv(client->packets, packet, sizeof packet, MSG_TRUNC);

	if (size > 0 && size <= MAX_PACKET && read_packet(packet, (size_t)size, &client->asked, &type, &lease))
		take_answer(client, type, &lease, now);
}

/* The address may have gone with the link; whether it may come back, the network says. */
static void wake_up(struct client *client, int64_t now)
{
	if (client->lease.address)
		client->wanted = client->lease;
	drop_address(client);
	client->failures = 0;
	begin(client, client->wanted.address ? REBOOTING : SELECTING, now);
}

void note_link(struct client *client, bool runs, int64_t now)
{
	unsigned char before[MAC_SIZE];
	bool ran = client->running;

	memcpy(before, client->asked.mac, MAC_SIZE);
	read_link(client);
	client->running = runs;
	bool is_another = memcmp(before, client->asked.mac, MAC_SIZE) != 0;
	if (is_another) {
		drop_address(client);
		client->wanted.address = 0;
	}
	if (!runs) {
		close_datagrams(client);
		begin(client, ASLEEP, 0);
	} else if (is_another || !ran) {
		wake_up(client, now);
	}
}
