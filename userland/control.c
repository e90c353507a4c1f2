// SPDX-License-Identifier: Apache-2.0
/*
 * The control socket: calls from people's tools to a daemon on this machine.
 *
 * Design. The Varlink wire format: JSON objects on a Unix socket, each ended
 * by a NUL; a call is {"method","parameters","more","oneway"}, a reply is
 * {"parameters","continues"} or {"error","parameters"}. The calls of one
 * connection are answered one after the other; a second one waits in the
 * connection's buffer until the first has its last reply. The socket is 0600
 * and every peer is asked for its credentials: root or the daemon's own user.
 *
 * Invariants. A connection holds at most MESSAGE_MAX bytes read and OUT_MAX
 * bytes to be written; there are at most PEERS_MAX of them. What breaks a
 * bound or the format is cut off, without an answer. Memory of a connection
 * lives until both of its operations have come back from the loop.
 * A call lives until control_error(), control_reply() without more, or its
 * on_gone function; without an on_gone function it outlives its peer, and
 * replies then return -EPIPE.
 *
 * Context. The server on the loop's thread; the client blocks, with a limit.
 *
 * Not done. Introspection (org.varlink.service).
 */
#include "asr.h"

#include <errno.h>
#include <stdarg.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/un.h>

#define MESSAGE_MAX	(1u << 20)	/* a request; more is no request of ours */
#define OUT_MAX		(16u << 20)	/* replies queued for a peer that does not read */
#define PEERS_MAX	64
#define CLIENT_MAX	(64u << 20)	/* a reply, as the client takes it */
#define CLIENT_WAIT_S	60		/* silence after which the client gives up */
#define READ_BYTES	16384

struct buf {
	char *data;
	size_t used;
	size_t size;
};

struct peer {
	struct control *control;
	struct peer *prev, *next;
	int fd;
	bool dead;
	bool dispatching;
	struct control_call *call;	/* the one that is being answered */
	struct loop_op recv, send;
	/* in moves while a receive is in flight, so that one has its own place */
	char chunk[READ_BYTES];
	struct buf in;
	size_t scanned;			/* of in: holds no NUL */
	struct buf out, queued;		/* in flight; gathering meanwhile */
	size_t sent;			/* of out */
};

struct control {
	struct loop *loop;
	int fd;
	struct loop_op accept, pause;
	bool closing;
	struct peer *peers;
	unsigned int count;
	control_fn *fn;
	void *arg;
	char path[sizeof(((struct sockaddr_un *)0)->sun_path)];
};

struct control_call {
	struct peer *peer;		/* NULL: gone */
	bool more, oneway;
	void (*gone)(void *arg);
	void *gone_arg;
};

/* ------------------------------------------------------------ both sides */

static int buf_room(struct buf *b, size_t bytes)
{
	size_t size = b->size ? b->size : READ_BYTES;
	char *data;

	while (size < b->used + bytes)
		size *= 2;
	if (size == b->size)
		return 0;
	data = realloc(b->data, size);
	if (!data)
		return -ENOMEM;
	b->data = data;
	b->size = size;
	return 0;
}

static void buf_free(struct buf *b)
{
	free(b->data);
	*b = (struct buf){0};
}

/* Appends the message with its NUL; -EMSGSIZE over max. */
static int buf_message(struct buf *b, const json_t *message, size_t max)
{
	cleanup_free char *text = json_dumps(message, JSON_COMPACT);
	size_t bytes;

	if (!text)
		return -ENOMEM;
	bytes = strlen(text) + 1;
	if (b->used + bytes > max)
		return -EMSGSIZE;
	if (buf_room(b, bytes))
		return -ENOMEM;
	memcpy(b->data + b->used, text, bytes);
	b->used += bytes;
	return 0;
}

static int address_set(struct sockaddr_un *a, const char *path, struct why *why)
{
	*a = (struct sockaddr_un){ .sun_family = AF_UNIX };
	if (!*path || strlen(path) >= sizeof(a->sun_path))
		return why_set(why, EINVAL, "control socket \"%s\": the path must have 1 to %zu characters",
			       path, sizeof(a->sun_path) - 1);
	strcpy(a->sun_path, path);
	return 0;
}

int control_parse(const char *text, size_t bytes, json_t **parameters, const char **method,
		  bool *more, bool *oneway, json_t **message)
{
	json_t *m = json_loadb(text, bytes, JSON_REJECT_DUPLICATES, NULL);
	json_t *p, *more_j, *oneway_j;

	*message = NULL;
	if (!json_is_object(m)) {
		json_decref(m);
		return -EBADMSG;
	}
	p = json_object_get(m, "parameters");
	more_j = json_object_get(m, "more");
	oneway_j = json_object_get(m, "oneway");
	*method = json_string_value(json_object_get(m, "method"));
	if (!*method || (p && !json_is_object(p) && !json_is_null(p)) ||
	    (more_j && !json_is_boolean(more_j)) || (oneway_j && !json_is_boolean(oneway_j))) {
		json_decref(m);
		return -EBADMSG;
	}
	if (!json_is_object(p)) {
		p = json_object();
		if (!p || json_object_set_new(m, "parameters", p)) {
			json_decref(m);
			return -ENOMEM;
		}
	}
	*parameters = p;
	*more = json_is_true(more_j);
	*oneway = json_is_true(oneway_j);
	*message = m;
	return 0;
}

/* ------------------------------------------------------- server: a peer */

static void control_release(struct control *c)
{
	if (!c->closing || c->accept.active || c->pause.active || c->peers)
		return;
	close(c->fd);
	free(c);
}

static void peer_release(struct peer *p)
{
	struct control *c = p->control;

	if (!p->dead || p->dispatching || p->recv.active || p->send.active)
		return;
	if (p->prev)
		p->prev->next = p->next;
	else
		c->peers = p->next;
	if (p->next)
		p->next->prev = p->prev;
	c->count--;
	close(p->fd);
	buf_free(&p->in);
	buf_free(&p->out);
	buf_free(&p->queued);
	free(p);
	control_release(c);
}

/* The end of a connection; the memory goes when nothing is in flight. */
static void peer_drop(struct peer *p)
{
	struct control_call *call = p->call;

	if (p->dead)
		return;
	p->dead = true;
	p->call = NULL;
	if (call) {
		call->peer = NULL;
		if (call->gone) {
			call->gone(call->gone_arg);
			free(call);
		}
	}
	shutdown(p->fd, SHUT_RDWR);
	if (p->recv.active)
		loop_cancel(p->control->loop, &p->recv);
	if (p->send.active)
		loop_cancel(p->control->loop, &p->send);
}

static void peer_flush(struct peer *p)
{
	if (p->dead || p->send.active)
		return;
	if (p->sent == p->out.used) {
		struct buf empty = p->out;

		empty.used = 0;
		p->out = p->queued;
		p->queued = empty;
		p->sent = 0;
	}
	if (p->sent < p->out.used)
		loop_send(p->control->loop, &p->send, p->fd, p->out.data + p->sent,
			  p->out.used - p->sent);
}

static void peer_sent(struct loop_op *op, int res, unsigned int flags)
{
	struct peer *p = op->arg;

	if (res <= 0)
		peer_drop(p);
	else
		p->sent += res;
	peer_flush(p);
	peer_release(p);
}

/* One message; the buffer keeps it while it is looked at. */
static void peer_call(struct peer *p, size_t bytes)
{
	struct control_call *call;
	const char *method;
	json_t *message, *parameters;
	bool more, oneway;

	if (control_parse(p->in.data, bytes, &parameters, &method, &more, &oneway, &message)) {
		peer_drop(p);
		return;
	}
	call = calloc(1, sizeof(*call));
	if (call) {
		call->peer = p;
		call->more = more;
		call->oneway = oneway;
		p->call = call;
		p->control->fn(call, method, parameters, p->control->arg);
	} else {
		peer_drop(p);
	}
	json_decref(message);
}

/* All whole messages, as long as each is answered at once. */
static void peer_dispatch(struct peer *p)
{
	if (p->dispatching)
		return;
	p->dispatching = true;
	while (!p->dead && !p->call) {
		char *from = p->in.data + p->scanned;
		char *end = p->scanned < p->in.used ? memchr(from, 0, p->in.used - p->scanned) : NULL;
		size_t bytes;

		if (!end) {
			p->scanned = p->in.used;
			break;
		}
		bytes = end - p->in.data;
		peer_call(p, bytes);
		p->in.used -= bytes + 1;
		memmove(p->in.data, end + 1, p->in.used);
		p->scanned = 0;
	}
	p->dispatching = false;
}

static void peer_received(struct loop_op *op, int res, unsigned int flags)
{
	struct peer *p = op->arg;

	if (res <= 0 || p->in.used + res > MESSAGE_MAX || buf_room(&p->in, res)) {
		peer_drop(p);
	} else if (!p->dead) {
		memcpy(p->in.data + p->in.used, p->chunk, res);
		p->in.used += res;
		peer_dispatch(p);
	}
	if (!p->dead)
		loop_recv(p->control->loop, &p->recv, p->fd, p->chunk, sizeof(p->chunk));
	peer_release(p);
}

/* ---------------------------------------------------- server: the socket */

static bool peer_allowed(int fd)
{
	struct ucred cred;
	socklen_t len = sizeof(cred);

	if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &cred, &len))
		return false;
	return cred.uid == 0 || cred.uid == geteuid();
}

static void peer_create(struct control *c, int fd)
{
	struct peer *p;

	p = c->count < PEERS_MAX && peer_allowed(fd) ? calloc(1, sizeof(*p)) : NULL;
	if (!p) {
		close(fd);
		return;
	}
	p->control = c;
	p->fd = fd;
	p->recv = (struct loop_op){ .done = peer_received, .arg = p };
	p->send = (struct loop_op){ .done = peer_sent, .arg = p };
	p->next = c->peers;
	if (p->next)
		p->next->prev = p;
	c->peers = p;
	c->count++;
	loop_recv(c->loop, &p->recv, fd, p->chunk, sizeof(p->chunk));
}

static void control_resume(struct loop_op *op, int res, unsigned int flags)
{
	struct control *c = op->arg;

	if (!c->closing)
		loop_accept(c->loop, &c->accept, c->fd, false);
	control_release(c);
}

static void control_accepted(struct loop_op *op, int res, unsigned int flags)
{
	struct control *c = op->arg;

	if (res >= 0 && c->closing)
		close(res);
	else if (res >= 0)
		peer_create(c, res);
	/* out of descriptors, say: not again at once, or the loop spins */
	if (res < 0 && !c->closing)
		loop_timeout(c->loop, &c->pause, 100000000);
	else if (!c->closing)
		loop_accept(c->loop, &c->accept, c->fd, false);
	control_release(c);
}

/* A socket file is left behind by a crash; one that answers is not ours. */
static int control_bind(int fd, const struct sockaddr_un *a, struct why *why)
{
	cleanup_fd int probe = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	mode_t mask;
	int err;

	if (!connect(probe, (const void *)a, sizeof(*a)))
		return why_set(why, EADDRINUSE, "%s is in use: another daemon answers there", a->sun_path);
	if (errno == ECONNREFUSED)
		unlink(a->sun_path);
	mask = umask(0177);
	err = bind(fd, (const void *)a, sizeof(*a)) || listen(fd, 16) ? errno : 0;
	umask(mask);
	if (err)
		return why_set(why, err, "control socket %s: %s", a->sun_path, strerror(err));
	return 0;
}

int control_listen(struct loop *l, const char *path, control_fn *fn, void *arg,
		   struct control **out, struct why *why)
{
	cleanup_fd int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	cleanup_free char *dir = strdup(path);
	struct sockaddr_un a;
	struct control *c;
	char *slash;
	int err;

	*out = NULL;
	if (fd < 0 || !dir)
		return why_set(why, fd < 0 ? errno : ENOMEM, "cannot make a socket: %s", strerror(errno));
	err = address_set(&a, path, why);
	if (err)
		return err;
	slash = strrchr(dir, '/');
	if (slash && slash != dir) {
		*slash = 0;
		err = dir_make(dir, 0755, why);
		if (err)
			return err;
	}
	err = control_bind(fd, &a, why);
	if (err)
		return err;
	c = calloc(1, sizeof(*c));
	if (!c)
		return -ENOMEM;
	c->loop = l;
	c->fn = fn;
	c->arg = arg;
	c->accept = (struct loop_op){ .done = control_accepted, .arg = c };
	c->pause = (struct loop_op){ .done = control_resume, .arg = c };
	c->fd = steal_fd(fd);
	strcpy(c->path, path);
	loop_accept(l, &c->accept, c->fd, false);
	*out = c;
	return 0;
}

void control_close(struct control *c)
{
	if (!c)
		return;
	unlink(c->path);
	if (c->accept.active)
		loop_cancel(c->loop, &c->accept);
	if (c->pause.active)
		loop_cancel(c->loop, &c->pause);
	for (struct peer *p = c->peers, *next; p; p = next) {
		next = p->next;
		peer_drop(p);
		peer_release(p);
	}
	/* from here on the last one to go takes c with it */
	c->closing = true;
	control_release(c);
}

/* ------------------------------------------------------- server: a reply */

static int call_answer(struct control_call *call, json_t *message, bool last)
{
	struct peer *p = call->peer;
	int err = 0;

	if (!p) {
		err = -EPIPE;
	} else if (!call->oneway && buf_message(&p->queued, message, OUT_MAX)) {
		if (last)
			p->call = NULL;	/* freed below, so not by peer_drop() */
		peer_drop(p);
		err = -EPIPE;
	}
	json_decref(message);
	if (last) {
		if (p)
			p->call = NULL;
		free(call);
	}
	if (err)
		return err;
	peer_flush(p);
	if (last && !p->dispatching) {
		peer_dispatch(p);
		peer_release(p);
	}
	return 0;
}

int control_reply(struct control_call *call, json_t *parameters, bool more)
{
	json_t *message;

	/* who did not ask for more gets one reply */
	if (!call->more)
		more = false;
	message = json_pack("{s:o*}", "parameters", parameters ? parameters : json_object());
	if (message && more)
		json_object_set_new(message, "continues", json_true());
	return call_answer(call, message, !more);
}

int control_error(struct control_call *call, const char *fmt, ...)
{
	char text[1024];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	return call_answer(call, json_pack("{s:s, s:{s:s}}", "error", "io.asr.Error",
					   "parameters", "text", text), true);
}

bool control_wants_more(const struct control_call *call)
{
	return call->more;
}

void control_on_gone(struct control_call *call, void (*fn)(void *arg), void *arg)
{
	call->gone = fn;
	call->gone_arg = arg;
}

/* -------------------------------------------------------------- client */

static int client_connect(const char *path, struct why *why)
{
	cleanup_fd int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	struct timeval limit = { .tv_sec = CLIENT_WAIT_S };
	struct sockaddr_un a;
	int err;

	if (fd < 0)
		return why_set(why, errno, "cannot make a socket: %s", strerror(errno));
	err = address_set(&a, path, why);
	if (err)
		return err;
	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
	setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit));
	if (!connect(fd, (void *)&a, sizeof(a)))
		return steal_fd(fd);
	err = errno;
	if (err == ENOENT || err == ECONNREFUSED)
		return why_set(why, err, "nobody answers at %s: the daemon is not running there", path);
	if (err == EACCES)
		return why_set(why, err, "%s: permission denied: only root may use it", path);
	return why_set(why, err, "%s: %s", path, strerror(err));
}

static int client_send(int fd, const struct buf *b, const char *path, struct why *why)
{
	for (size_t done = 0; done < b->used; ) {
		ssize_t n = send(fd, b->data + done, b->used - done, MSG_NOSIGNAL);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return why_set(why, errno, "%s: cannot send the call: %s", path, strerror(errno));
		done += n;
	}
	return 0;
}

/* 1: a message of *bytes stands at the beginning of b, NUL and all */
static int client_receive(int fd, struct buf *b, size_t *bytes, const char *path, struct why *why)
{
	size_t scanned = 0;

	for (;;) {
		char *end = b->used > scanned ? memchr(b->data + scanned, 0, b->used - scanned) : NULL;
		ssize_t n;

		if (end) {
			*bytes = end - b->data;
			return 1;
		}
		scanned = b->used;
		if (b->used > CLIENT_MAX)
			return why_set(why, EMSGSIZE, "%s: the answer is longer than %u bytes", path, CLIENT_MAX);
		if (buf_room(b, READ_BYTES))
			return -ENOMEM;
		n = recv(fd, b->data + b->used, READ_BYTES, 0);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
			return why_set(why, ETIMEDOUT, "%s: no answer within %d seconds", path, CLIENT_WAIT_S);
		if (n < 0)
			return why_set(why, errno, "%s: %s", path, strerror(errno));
		if (!n)
			return why_set(why, ECONNRESET, "%s: the daemon closed the connection "
				       "before it had answered", path);
		b->used += n;
	}
}

/* One reply: 1 when further ones follow, 0 when it was the last. */
static int client_reply(const char *text, size_t bytes, int (*each)(json_t *reply, void *arg),
			void *arg, const char *path, struct why *why)
{
	cleanup_json message = json_loadb(text, bytes, 0, NULL);
	const char *error, *reason = NULL;
	json_t *parameters;
	int err;

	if (!json_is_object(message))
		return why_set(why, EPROTO, "%s: the answer is not a JSON object", path);
	parameters = json_object_get(message, "parameters");
	error = json_string_value(json_object_get(message, "error"));
	if (error) {
		json_unpack(parameters, "{s:s}", "text", &reason);
		return why_set(why, EREMOTEIO, "%s", reason ? reason : error);
	}
	err = each ? each(parameters, arg) : 0;
	if (err)
		return err < 0 ? err : 0;
	return json_is_true(json_object_get(message, "continues"));
}

int control_call(const char *path, const char *method, json_t *parameters, bool more,
		 int (*each)(json_t *reply, void *arg), void *arg, struct why *why)
{
	cleanup_json message = json_pack("{s:s, s:o*}", "method", method,
					 "parameters", parameters ? parameters : json_object());
	struct buf out = {0}, in = {0};
	size_t bytes = 0;
	int fd, err;

	fd = client_connect(path, why);
	if (fd < 0)
		return fd;
	if (message && more)
		json_object_set_new(message, "more", json_true());
	err = message ? buf_message(&out, message, MESSAGE_MAX) : -ENOMEM;
	if (err)
		why_set(why, -err, "%s: %s is too large a call", path, method);
	else
		err = client_send(fd, &out, path, why);
	while (!err) {
		err = client_receive(fd, &in, &bytes, path, why);
		if (err < 0)
			break;
		err = client_reply(in.data, bytes, each, arg, path, why);
		if (err <= 0)
			break;
		in.used -= bytes + 1;
		memmove(in.data, in.data + bytes + 1, in.used);
		err = 0;
	}
	buf_free(&out);
	buf_free(&in);
	close(fd);
	return err;
}
