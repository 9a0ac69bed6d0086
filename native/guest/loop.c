/* Where the agent sleeps: epoll over everything, one event at a time, so that no event outlives what it is about. */
#define _GNU_SOURCE
#include "agent.h"

#include <errno.h>
#include <string.h>
#include <sys/epoll.h>
#include <time.h>
#include <unistd.h>

static int epoll_fd = -1;

int64_t now_ms(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/* The earlier of two moments, of which 0 is never. */
int64_t sooner(int64_t a_ms, int64_t b_ms)
{
	return !a_ms ? b_ms : !b_ms ? a_ms : a_ms < b_ms ? a_ms : b_ms;
}

void open_loop(void)
{
	epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	if (epoll_fd < 0)
		fail("cannot watch for events: %s", strerror(errno));
}

bool add_watch(struct watch *watch, int fd, uint32_t events, void (*ready)(struct watch *, uint32_t))
{
	struct epoll_event event = {.events = events, .data.ptr = watch};

	watch->fd = -1;
	if (fd < 0 || epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event) < 0)
		return false;
	watch->fd = fd;
	watch->ready = ready;
	return true;
}

void change_watch(struct watch *watch, uint32_t events)
{
	struct epoll_event event = {.events = events, .data.ptr = watch};

	if (watch->fd >= 0)
		epoll_ctl(epoll_fd, EPOLL_CTL_MOD, watch->fd, &event);
}

/* Out of epoll by hand: a child between fork and exec may still hold the same file. */
void close_watch(struct watch *watch)
{
	if (watch->fd < 0)
		return;
	epoll_ctl(epoll_fd, EPOLL_CTL_DEL, watch->fd, NULL);
	close(watch->fd);
	watch->fd = -1;
}

void run_loop_once(int64_t until_ms)
{
	struct epoll_event event;
	int64_t left_ms = -1;

	if (until_ms) {
		left_ms = until_ms - now_ms();
		left_ms = left_ms < 0 ? 0 : left_ms > 60000 ? 60000 : left_ms;
	}
	if (epoll_wait(epoll_fd, &event, 1, (int)left_ms) != 1)
		return;
	struct watch *watch = event.data.ptr;
	watch->ready(watch, event.events);
}
