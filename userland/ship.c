// SPDX-License-Identifier: Apache-2.0
/*
 * The one connection to the vault: frames and calls go, replies and
 * acknowledgements come.
 *
 * Design. It is dialled again for ever, 100 ms after the first failure and
 * never later than 10 s after the last, with a quarter of jitter so that the
 * hosts of a site do not come back in step. A host without an identity looks
 * for one now and then, and at once when told (ship_reload). Only a change is
 * logged: connected, lost and why, or a new reason for not getting there.
 *
 * Nothing is queued here: a frame that finds no room stays with its owner,
 * who is told when there is room; a call whose connection breaks is answered
 * with -EPIPE.
 *
 * Invariants. ops->up after the vault's HELLO and before anything else;
 * ops->down once for each up. A call's done runs once, unless forgotten.
 *
 * Context. The loop's thread. Blocks on the identity's files, and in the
 * resolver when the vault is given by name.
 */
#include <errno.h>
#include <string.h>

#include "source.h"

#define BACKOFF_FIRST_NS	100000000ull
#define BACKOFF_MAX_NS		10000000000ull
#define IDENTITY_MAX		65536

struct call {
	struct call *next;
	uint64_t id;
	ship_done *done;
	void *arg;
};

struct ship {
	struct loop *loop;
	char *state_dir;
	const struct ship_ops *ops;
	void *arg;
	SSL_CTX *ctx;
	char address[256], port[8], host[ASR_NAME_BYTES];
	struct conn *conn;
	bool up, closing;
	struct loop_op timer;
	uint64_t backoff_ns, since_ns, next_id, bytes_before;
	struct call *calls;
	char last_error[256];
};

static void dial(struct ship *s);

/* ------------------------------------------------------------ identity */

static int path_in(const struct ship *s, const char *name, char *out, size_t bytes)
{
	return snprintf(out, bytes, "%s/%s", s->state_dir, name) < (int)bytes ? 0 : -ENAMETOOLONG;
}

static int read_vault(struct ship *s, struct why *why)
{
	char path[512];
	cleanup_free char *text = NULL;
	cleanup_json root = NULL;
	const char *address = NULL;
	json_t *port;
	json_error_t e;
	int r;

	r = path_in(s, "vault.json", path, sizeof(path));
	if (!r)
		r = file_read(path, IDENTITY_MAX, &text, NULL, why);
	if (r == -ENOENT)
		return why_set(why, ENOENT, "this host is not registered with a vault: asrctl register");
	if (r)
		return r;
	root = json_loads(text, 0, &e);
	port = json_object_get(root, "port");
	address = json_string_value(json_object_get(root, "address"));
	if (!address || strlen(address) >= sizeof(s->address) || (!json_is_string(port) && !json_is_integer(port)))
		return why_set(why, EINVAL, "%s: it must hold \"address\" and \"port\": register again", path);
	snprintf(s->address, sizeof(s->address), "%s", address);
	if (json_is_string(port))
		snprintf(s->port, sizeof(s->port), "%s", json_string_value(port));
	else
		snprintf(s->port, sizeof(s->port), "%lld", (long long)json_integer_value(port));
	return 0;
}

static int load_identity(struct ship *s, struct why *why)
{
	char ca[512], cert[512], key[512];
	const struct tls_files files = { ca, cert, key };
	int r = read_vault(s, why);

	if (!r && (path_in(s, "ca.crt", ca, sizeof(ca)) || path_in(s, "host.crt", cert, sizeof(cert)) ||
		   path_in(s, "host.key", key, sizeof(key))))
		r = why_set(why, ENAMETOOLONG, "state folder %s: its path is too long", s->state_dir);
	return r ? r : tls_client(&files, false, &s->ctx, why);
}

/* ---------------------------------------------------------- connection */

static void say_error(struct ship *s, const char *text)
{
	if (!strcmp(s->last_error, text))
		return;
	snprintf(s->last_error, sizeof(s->last_error), "%s", text);
	log_warn("vault %s%s%s: %s", s->address[0] ? s->address : "(none)", s->port[0] ? ":" : "",
		 s->port, text);
}

static void dial_later(struct ship *s)
{
	uint64_t jitter = 0;

	if (s->closing || s->timer.active)
		return;
	seal_random(&jitter, sizeof(jitter));
	s->backoff_ns = s->backoff_ns ? s->backoff_ns * 2 : BACKOFF_FIRST_NS;
	if (s->backoff_ns > BACKOFF_MAX_NS)
		s->backoff_ns = BACKOFF_MAX_NS;
	loop_timeout(s->loop, &s->timer, s->backoff_ns - jitter % (s->backoff_ns / 4));
}

static void timer_done(struct loop_op *op, int res, unsigned int flags)
{
	struct ship *s = op->arg;

	if (s->closing) {
		free(s->state_dir);
		free(s);
	} else if (!s->conn) {
		dial(s);
	}
}

static void fail_calls(struct ship *s, int err, const struct why *why)
{
	struct call *c, *list = s->calls;

	s->calls = NULL;
	while ((c = list)) {
		list = c->next;
		if (c->done)
			c->done(err, NULL, why, c->arg);
		free(c);
	}
}

static void on_up(struct conn *c, void *arg)
{
	struct ship *s = arg;

	if (strncmp(conn_peer(c) ? conn_peer(c) : "", "asr:vault:", 10)) {
		conn_close(c, -EACCES, "the peer's certificate is not a vault's");
		return;
	}
	conn_send_json(c, MSG_HELLO, json_pack("{s:i, s:s, s:s}", "protocol", 1, "software",
					       "dm-asr " ASR_VERSION, "host", s->host));
}

static void on_hello(struct ship *s, const json_t *body)
{
	json_t *protocol = json_object_get(body, "protocol");

	if (s->up)
		return;
	if (json_integer_value(protocol) != 1) {
		conn_close(s->conn, -EPROTONOSUPPORT, "the vault speaks another protocol version");
		return;
	}
	s->up = true;
	s->backoff_ns = 0;
	s->since_ns = now_real_ns();
	s->last_error[0] = 0;
	log_info("vault %s:%s: connected", s->address, s->port);
	s->ops->up(s->arg);
}

static void on_reply(struct ship *s, json_t *body)
{
	uint64_t id = (uint64_t)json_integer_value(json_object_get(body, "id"));
	const char *error = json_string_value(json_object_get(body, "error"));
	const char *text = json_string_value(json_object_get(body, "text"));
	struct call *c, **p;
	struct why why = { "" };

	for (p = &s->calls; *p && (*p)->id != id; p = &(*p)->next)
		;
	c = *p;
	if (!c)
		return;
	*p = c->next;
	if (error)
		snprintf(why.text, sizeof(why.text), "%s: %s", error, text ? text : "no reason given");
	if (c->done)
		c->done(error ? -EREMOTEIO : 0, error ? NULL : json_object_get(body, "parameters"),
			&why, c->arg);
	free(c);
}

static void on_error(struct ship *s, const json_t *body)
{
	const char *error = json_string_value(json_object_get(body, "error"));
	const char *text = json_string_value(json_object_get(body, "text"));
	char why[400];

	snprintf(why, sizeof(why), "refused by the vault: %s: %s", error ? error : "?", text ? text : "");
	conn_close(s->conn, -ECONNREFUSED, why);
}

static void on_msg(struct conn *c, uint32_t type, const uint8_t *body, size_t bytes, void *arg)
{
	struct ship *s = arg;
	cleanup_json root = NULL;

	if (type == MSG_ACK && bytes == sizeof(struct msg_ack) && s->up) {
		s->ops->ack((const struct msg_ack *)body, s->arg);
		return;
	}
	if (type == MSG_MAP && s->up) {
		if (s->ops->map(body, bytes, s->arg))
			conn_close(c, -EPROTO, "the vault sent a map of digests that is none");
		return;
	}
	root = json_loadb((const char *)body, bytes, 0, NULL);
	if (!json_is_object(root) || (type != MSG_HELLO && !s->up && type != MSG_ERROR))
		conn_close(c, -EPROTO, "the vault sent nonsense");
	else if (type == MSG_HELLO)
		on_hello(s, root);
	else if (type == MSG_REPLY)
		on_reply(s, root);
	else if (type == MSG_ERROR)
		on_error(s, root);
	else
		conn_close(c, -EPROTO, "the vault sent a message of unknown type");
}

static void on_room(struct conn *c, void *arg)
{
	struct ship *s = arg;

	s->ops->room(s->arg);
}

static void on_down(struct conn *c, int err, const struct why *why, void *arg)
{
	struct ship *s = arg;
	bool was_up = s->up;

	s->bytes_before += conn_bytes_sent(c);
	s->conn = NULL;
	s->up = false;
	s->since_ns = now_real_ns();
	fail_calls(s, -EPIPE, why);
	if (s->closing)
		return;
	say_error(s, why->text);
	if (was_up)
		s->ops->down(s->arg);
	dial_later(s);
}

static const struct conn_ops conn_ops = { on_up, on_msg, on_room, on_down };

static void dial(struct ship *s)
{
	struct why why = { "" };
	int r = s->ctx ? 0 : load_identity(s, &why);

	if (!r)
		r = conn_dial(s->loop, s->ctx, s->address, s->port, &conn_ops, s, &s->conn, &why);
	if (r) {
		s->conn = NULL;
		say_error(s, why.text[0] ? why.text : strerror(-r));
		dial_later(s);
	}
}

/* -------------------------------------------------------------- public */

int ship_create(struct loop *l, const char *state_dir, const struct ship_ops *ops, void *arg,
		struct ship **out)
{
	struct ship *s = calloc(1, sizeof(*s));

	if (!s || !(s->state_dir = strdup(state_dir))) {
		free(s);
		return -ENOMEM;
	}
	s->loop = l;
	s->ops = ops;
	s->arg = arg;
	s->since_ns = now_real_ns();
	s->timer = (struct loop_op){ .done = timer_done, .arg = s };
	if (gethostname(s->host, sizeof(s->host) - 1))
		strcpy(s->host, "?");
	loop_timeout(l, &s->timer, 1);
	*out = s;
	return 0;
}

void ship_destroy(struct ship *s)
{
	static const struct why gone = { "asrd ends" };

	if (!s)
		return;
	s->closing = true;
	fail_calls(s, -EPIPE, &gone);
	if (s->conn)
		conn_close(s->conn, -ESHUTDOWN, "asrd ends");
	tls_free(s->ctx);
	s->ctx = NULL;
	if (s->timer.active) {
		loop_cancel(s->loop, &s->timer);
	} else if (!s->conn) {
		free(s->state_dir);
		free(s);
	}
}

int ship_reload(struct ship *s, struct why *why)
{
	SSL_CTX *old = s->ctx;
	int r;

	s->ctx = NULL;
	r = load_identity(s, why);
	if (r) {
		s->ctx = old;
		return r;
	}
	tls_free(old);
	s->backoff_ns = 0;
	if (s->conn)
		conn_close(s->conn, -ECONNRESET, "the identity has changed");	/* then dials anew */
	else if (s->timer.active)
		loop_cancel(s->loop, &s->timer);	/* its done dials */
	else
		dial(s);
	return 0;
}

bool ship_is_up(const struct ship *s)
{
	return s->up;
}

bool ship_has_room(const struct ship *s)
{
	if (!s->up)
		return false;
	if (conn_has_room(s->conn))
		return true;
	conn_send(s->conn, MSG_FRAME, NULL, 0);	/* -EAGAIN, and asks for ops->room */
	return false;
}

int ship_frame(struct ship *s, const uint8_t *frame, size_t bytes)
{
	struct iovec v = { (void *)(uintptr_t)frame, bytes };

	return s->up ? conn_send(s->conn, MSG_FRAME, &v, 1) : -EPIPE;
}

int ship_call(struct ship *s, const char *method, json_t *parameters, ship_done *done, void *arg)
{
	struct call *c = s->up ? calloc(1, sizeof(*c)) : NULL;
	int r;

	if (!c) {
		json_decref(parameters);
		return s->up ? -ENOMEM : -ENOTCONN;
	}
	*c = (struct call){ .next = s->calls, .id = ++s->next_id, .done = done, .arg = arg };
	r = conn_send_json(s->conn, MSG_CALL, json_pack("{s:I, s:s, s:o}", "id", (json_int_t)c->id,
							"method", method, "parameters", parameters));
	if (r) {
		free(c);
		return r;
	}
	s->calls = c;
	return 0;
}

void ship_break(struct ship *s, const char *why)
{
	if (s->conn)
		conn_close(s->conn, -ECONNRESET, why);
}

void ship_forget(struct ship *s, void *arg)
{
	for (struct call *c = s->calls; c; c = c->next)
		if (c->arg == arg)
			c->done = NULL;
}

json_t *ship_status(const struct ship *s)
{
	char where[300] = "", since[40];

	if (s->address[0])
		snprintf(where, sizeof(where), "%s:%s", s->address, s->port);
	return json_pack("{s:s, s:b, s:s, s:s}", "address", where, "connected", s->up, "since",
			 time_format(s->since_ns, since), "last_error", s->last_error);
}

int ship_local_address(const struct ship *s, char out[64])
{
	return s->up ? conn_local_address(s->conn, out) : -ENOTCONN;
}

uint64_t ship_bytes(const struct ship *s)
{
	return s->bytes_before + (s->conn ? conn_bytes_sent(s->conn) : 0);
}
