// SPDX-License-Identifier: Apache-2.0
/*
 * Listening sockets on the loop: "ADDR:PORT", "[v6]:PORT", ":PORT".
 *
 * Design: one socket for each address that the text stands for, IPv6 apart
 * from IPv4. Out of descriptors is no reason to spin: accepting goes on at the
 * next listen_tick().
 *
 * Context: the loop's thread. listen_open blocks in the resolver, and up to
 * two seconds for a port that a killed daemon's kernel has not let go yet.
 */
#include "asr.h"

#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/socket.h>

#define SOCKETS_MAX	8
#define TRIES		20	/* 100 ms apart */

struct listener {
	struct loop *loop;
	void (*accepted)(int fd, void *arg);
	void *arg;
	bool closing;
	int count;
	struct listening {
		struct listener *l;
		int fd;
		struct loop_op op;
	} socket[SOCKETS_MAX];
};

static void let_go(struct listener *l)
{
	for (int i = 0; i < l->count; i++)
		if (l->socket[i].op.active)
			return;
	for (int i = 0; i < l->count; i++)
		close(l->socket[i].fd);
	free(l);
}

static void on_accept(struct loop_op *op, int res, unsigned int flags)
{
	struct listening *s = op->arg;
	struct listener *l = s->l;

	if (res >= 0 && !l->closing)
		l->accepted(res, l->arg);
	else if (res >= 0)
		close(res);
	else if (res != -ECANCELED && res != -ECONNABORTED && res != -EINTR)
		log_warn("cannot accept a connection: %s", strerror(-res));
	/* out of descriptors, say: the tick tries again */
	if (!l->closing && (res >= 0 || res == -ECONNABORTED || res == -EINTR))
		loop_accept(l->loop, op, s->fd, false);
	if (l->closing)
		let_go(l);
}

static int bind_patiently(int fd, const struct addrinfo *ai, bool patient)
{
	for (int i = 0; i < TRIES; i++) {
		if (bind(fd, ai->ai_addr, ai->ai_addrlen) == 0 && listen(fd, 128) == 0)
			return 0;
		if (errno != EADDRINUSE || !patient)
			break;
		usleep(100000);
	}
	return -errno;
}

static int open_one(struct listener *l, const struct addrinfo *ai, bool patient)
{
	int one = 1, ret, fd = socket(ai->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
	struct listening *s = &l->socket[l->count];

	if (fd < 0)
		return -errno;
	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	if (ai->ai_family == AF_INET6)
		setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &one, sizeof(one));
	ret = bind_patiently(fd, ai, patient);
	if (ret) {
		close(fd);
		return ret;
	}
	*s = (struct listening){ .l = l, .fd = fd, .op = { .done = on_accept, .arg = s } };
	l->count++;
	return 0;
}

int address_split(const char *text, char host[256], char port[8], struct why *why)
{
	const char *colon = strrchr(text, ':'), *from = text;
	size_t n = colon ? (size_t)(colon - text) : 0;

	if (!colon || !colon[1] || strlen(colon + 1) > 5 || strspn(colon + 1, "0123456789") != strlen(colon + 1) ||
	    n >= 256 || strtoul(colon + 1, NULL, 10) > 65535)
		return why_set(why, EINVAL, "\"%.100s\": ADDR:PORT is wanted", text);
	if (*from == '[' && n > 2 && from[n - 1] == ']') {
		from++;
		n -= 2;
	}
	snprintf(host, 256, "%.*s", (int)n, from);
	snprintf(port, 8, "%.5s", colon + 1);
	return 0;
}

int listen_open(struct loop *loop, const char *text, bool patient, void (*accepted)(int fd, void *arg), void *arg,
		struct listener **out, struct why *why)
{
	struct addrinfo hints = { .ai_flags = AI_PASSIVE, .ai_socktype = SOCK_STREAM }, *list, *ai;
	struct listener *l;
	char host[256], port[8];
	struct why bad;
	int ret;

	if (address_split(text, host, port, &bad))
		return why_set(why, EINVAL, "listen %.400s", bad.text);
	ret = getaddrinfo(*host ? host : NULL, port, &hints, &list);
	if (ret)
		return why_set(why, EINVAL, "listen \"%.100s\": %s", text, gai_strerror(ret));
	l = calloc(1, sizeof(*l));
	if (!l) {
		freeaddrinfo(list);
		return why_set(why, ENOMEM, "out of memory");
	}
	*l = (struct listener){ .loop = loop, .accepted = accepted, .arg = arg };
	ret = -EADDRNOTAVAIL;
	for (ai = list; ai && l->count < SOCKETS_MAX; ai = ai->ai_next)
		ret = open_one(l, ai, patient);
	freeaddrinfo(list);
	if (!l->count) {
		free(l);
		return why_set(why, -ret, "cannot listen on %.100s: %s", text, strerror(-ret));
	}
	for (int i = 0; i < l->count; i++)
		loop_accept(loop, &l->socket[i].op, l->socket[i].fd, false);
	*out = l;
	return 0;
}

void listen_tick(struct listener *l)
{
	for (int i = 0; l && i < l->count; i++)
		if (!l->socket[i].op.active)
			loop_accept(l->loop, &l->socket[i].op, l->socket[i].fd, false);
}

void listen_close(struct listener *l)
{
	if (!l)
		return;
	l->closing = true;
	for (int i = 0; i < l->count; i++)
		loop_cancel(l->loop, &l->socket[i].op);
	let_go(l);
}
