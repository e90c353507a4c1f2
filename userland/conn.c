// SPDX-License-Identifier: Apache-2.0
/*
 * A TLS connection on the loop that carries messages.
 *
 * Design: OpenSSL never sees the socket. A BIO of our own reads from the
 * buffer that the loop received into, and appends to the buffer that the loop
 * will send: one copy each way, where a memory BIO makes two. Ciphertext is
 * sent in batches (SEND_BATCH), which costs a fifth less than one system call
 * for each 16 KiB record. There are two send buffers: one is under way, one
 * fills.
 *
 * Invariants: messages are delivered one at a time, whole, in order, into one
 * aligned buffer that grows to the largest message and no further than
 * MSG_MAX; the length is checked before anything is allocated. After
 * conn_close no message is delivered; down is the last call and comes from
 * the loop, never from inside a call the owner makes.
 *
 * Context: one thread. Only conn_dial may block, in the resolver, when the
 * host is given by name.
 */
#include "asr.h"

#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <string.h>
#include <sys/socket.h>

#include <openssl/bio.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>

#define RECV_BYTES	262144
#define SEND_BATCH	262144
#define SEND_LIMIT	1048576
#define TLS_RECORD	16384
#define BODY_FIRST	65536		/* first size of the message buffer */
#define ENROL_MAX	65536		/* a stranger may not ask for more */
#define TICK_NS		1000000000ULL
#define PING_NS		5000000000ULL
#define SILENCE_NS	30000000000ULL
#define HANDSHAKE_NS	10000000000ULL

struct buffer {
	uint8_t *data;
	size_t pos, len, room;		/* pos: what has gone out already */
};

struct conn {
	struct loop *loop;
	const struct conn_ops *ops;
	void *arg;
	SSL *ssl;
	int fd;
	bool dialing, up, down_called, paused, delivering, want_room;
	bool telling;			/* it closes once what is being sent is out */
	int err;			/* why it closes, 0 while alive */
	struct why why;
	struct addrinfo *addrs, *addr;	/* dialing: all, and the one being tried */

	struct loop_op connect_op, recv_op, send_op, timer_op;
	uint64_t born, last_sent, last_received, bytes_sent, ping_ns, silence_ns;

	uint8_t *rx;			/* RECV_BYTES of ciphertext */
	size_t rx_pos, rx_len;
	struct buffer fill, sending;

	struct msg_hdr hdr;		/* of the message being read */
	size_t hdr_have, body_have, body_room;
	uint8_t *body;
	char *peer;
	uint8_t bounce[TLS_RECORD];	/* message header and the first bytes: one record */
};

static void fail(struct conn *c, int err, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
static void try_connect(struct conn *c);

/* ------------------------------------------------------------------ BIO */

static int bio_read(BIO *b, char *out, int n)
{
	struct conn *c = BIO_get_data(b);
	size_t have = c->rx_len - c->rx_pos;

	BIO_clear_retry_flags(b);
	if (!have) {
		BIO_set_retry_read(b);
		return -1;
	}
	if (have > (size_t)n)
		have = (size_t)n;
	memcpy(out, c->rx + c->rx_pos, have);
	c->rx_pos += have;
	return (int)have;
}

static int buffer_reserve(struct buffer *b, size_t more)
{
	size_t room = b->room ? b->room : SEND_BATCH + SEND_BATCH / 4;
	uint8_t *p;

	while (room < b->len + more)
		room *= 2;
	if (room == b->room)
		return 0;
	p = realloc(b->data, room);
	if (!p)
		return -ENOMEM;
	b->data = p;
	b->room = room;
	return 0;
}

static int bio_write(BIO *b, const char *in, int n)
{
	struct conn *c = BIO_get_data(b);

	BIO_clear_retry_flags(b);
	if (n <= 0 || buffer_reserve(&c->fill, (size_t)n))
		return -1;
	memcpy(c->fill.data + c->fill.len, in, (size_t)n);
	c->fill.len += (size_t)n;
	return n;
}

static long bio_ctrl(BIO *b, int cmd, long num, void *ptr)
{
	return cmd == BIO_CTRL_FLUSH;
}

static BIO *bio_create(struct conn *c)
{
	static BIO_METHOD *method;
	BIO *b;

	if (!method) {
		method = BIO_meth_new(BIO_get_new_index() | BIO_TYPE_SOURCE_SINK, "asr conn");
		if (!method)
			return NULL;
		BIO_meth_set_read(method, bio_read);
		BIO_meth_set_write(method, bio_write);
		BIO_meth_set_ctrl(method, bio_ctrl);
	}
	b = BIO_new(method);
	if (b) {
		BIO_set_data(b, c);
		BIO_set_init(b, 1);
	}
	return b;
}

/* -------------------------------------------------------------- life */

static void conn_free(struct conn *c)
{
	SSL_free(c->ssl);
	if (c->fd >= 0)
		close(c->fd);
	if (c->addrs)
		freeaddrinfo(c->addrs);
	free(c->rx);
	free(c->fill.data);
	free(c->sending.data);
	free(c->body);
	free(c->peer);
	free(c);
}

/* Called at every completion of a closing connection: the last one frees it */
static void finish(struct conn *c)
{
	if (c->connect_op.active || c->recv_op.active || c->send_op.active || c->timer_op.active)
		return;
	if (!c->down_called) {
		c->down_called = true;
		c->ops->down(c, c->err, &c->why, c->arg);
	}
	conn_free(c);
}

/* What is on its way out may go, for as long as a tick */
static void cancel_all(struct conn *c, bool sending_too)
{
	loop_cancel(c->loop, &c->connect_op);
	loop_cancel(c->loop, &c->recv_op);
	if (sending_too || !c->send_op.active) {
		loop_cancel(c->loop, &c->send_op);
		loop_cancel(c->loop, &c->timer_op);
	}
}

static void close_why(struct conn *c, int err, const char *text)
{
	if (c->err)
		return;
	c->err = err ? err : -ECONNRESET;
	why_set(&c->why, -c->err, "%s", text);
	/* the timer is always active: finish() will be called */
	cancel_all(c, !c->telling);
}

static void fail(struct conn *c, int err, const char *fmt, ...)
{
	char text[512];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	close_why(c, err, text);
}

static bool send_rest(struct conn *c, struct buffer *b)
{
	size_t left = b->len - b->pos;
	ssize_t n = left ? send(c->fd, b->data + b->pos, left, MSG_DONTWAIT | MSG_NOSIGNAL) : 0;

	if (n > 0)
		c->bytes_sent += (uint64_t)n;
	b->pos = b->len = 0;
	return n == (ssize_t)left;
}

/* An alert or a last message, as far as the socket takes it at once */
static void send_last(struct conn *c)
{
	if (!c->send_op.active && c->fd >= 0 && send_rest(c, &c->sending))
		send_rest(c, &c->fill);
}

void conn_close(struct conn *c, int err, const char *why)
{
	if (!c->err && c->up) {
		SSL_shutdown(c->ssl);
		send_last(c);
		c->telling = c->send_op.active;	/* the last message is behind what is being sent */
	}
	close_why(c, err, why ? why : "closed");
}

static const char *ssl_reason(void)
{
	static char text[256];
	unsigned long e = ERR_peek_last_error(), first = ERR_peek_error();

	ERR_error_string_n(first ? first : e, text, sizeof(text));
	ERR_clear_error();
	return text;
}

/* --------------------------------------------------------------- sending */

static void send_more(struct conn *c)
{
	struct buffer b;

	if (c->err || c->send_op.active || (c->dialing && c->connect_op.active))
		return;
	if (c->sending.pos == c->sending.len) {
		if (!c->fill.len)
			return;
		b = c->sending;
		c->sending = c->fill;
		c->fill = b;
		c->fill.pos = c->fill.len = 0;
	}
	loop_send(c->loop, &c->send_op, c->fd, c->sending.data + c->sending.pos,
		  c->sending.len - c->sending.pos);
}

static size_t queued(const struct conn *c)
{
	return c->fill.len + c->sending.len - c->sending.pos;
}

static void on_sent(struct loop_op *op, int res, unsigned int flags)
{
	struct conn *c = op->arg;

	if (c->err) {
		if (c->telling && res > 0) {
			c->sending.pos += (size_t)res;
			c->bytes_sent += (uint64_t)res;
			if (c->sending.pos < c->sending.len && c->timer_op.active) {	/* which ends it */
				loop_send(c->loop, op, c->fd, c->sending.data + c->sending.pos,
					  c->sending.len - c->sending.pos);
				return;
			}
			send_last(c);
		}
		cancel_all(c, true);
		finish(c);
		return;
	}
	if (res < 0 && res != -EAGAIN && res != -EINTR) {
		fail(c, res, "connection lost: %s", strerror(-res));
		return;
	}
	if (res > 0) {
		c->sending.pos += (size_t)res;
		c->bytes_sent += (uint64_t)res;
	}
	c->last_sent = now_ns();
	send_more(c);
	if (c->want_room && queued(c) < SEND_LIMIT / 2) {
		c->want_room = false;
		c->ops->room(c, c->arg);
	}
}

bool conn_has_room(const struct conn *c)
{
	return queued(c) < SEND_LIMIT;
}

static int write_all(struct conn *c, const uint8_t *data, size_t bytes)
{
	size_t done;

	for (; bytes; data += done, bytes -= done) {
		if (SSL_write_ex(c->ssl, data, bytes, &done) != 1) {
			fail(c, -EPROTO, "cannot encrypt: %s", ssl_reason());
			return -EPIPE;
		}
	}
	return 0;
}

int conn_send(struct conn *c, uint32_t type, const struct iovec *pieces, int n)
{
	struct msg_hdr hdr = { .type = type };
	size_t have = sizeof(hdr), total = 0, take;
	int ret = 0;

	if (c->err || !c->up)
		return -EPIPE;
	if (type == MSG_FRAME && !conn_has_room(c)) {
		c->want_room = true;
		return -EAGAIN;
	}
	for (int i = 0; i < n; i++)
		total += pieces[i].iov_len;
	if (total > MSG_MAX)
		return -EMSGSIZE;
	hdr.bytes = (uint32_t)total;
	memcpy(c->bounce, &hdr, sizeof(hdr));
	for (int i = 0; i < n && !ret; i++) {
		take = sizeof(c->bounce) - have;
		if (take > pieces[i].iov_len)
			take = pieces[i].iov_len;
		memcpy(c->bounce + have, pieces[i].iov_base, take);
		have += take;
		if (have == sizeof(c->bounce) && take < pieces[i].iov_len) {
			ret = write_all(c, c->bounce, have);
			if (!ret)
				ret = write_all(c, (const uint8_t *)pieces[i].iov_base + take,
						pieces[i].iov_len - take);
			have = 0;
		}
	}
	if (!ret)
		ret = write_all(c, c->bounce, have);
	if (ret)
		return ret;
	if (!c->send_op.active) {
		send_more(c);
		if (c->sending.len >= SEND_BATCH)
			loop_flush(c->loop);
	}
	return 0;
}

int conn_send_json(struct conn *c, uint32_t type, json_t *body)
{
	cleanup_free char *text = body ? json_dumps(body, JSON_COMPACT) : NULL;
	struct iovec v = { .iov_base = text };

	json_decref(body);
	if (!text)
		return -ENOMEM;
	v.iov_len = strlen(text);
	return conn_send(c, type, &v, 1);
}

/* ------------------------------------------------------------- receiving */

/* The role and identity in the peer's verified certificate: its first URI SAN */
static char *peer_uri(SSL *ssl)
{
	X509 *cert = SSL_get0_peer_certificate(ssl);
	GENERAL_NAMES *names;
	char *uri = NULL;

	if (!cert || SSL_get_verify_result(ssl) != X509_V_OK)
		return NULL;
	names = X509_get_ext_d2i(cert, NID_subject_alt_name, NULL, NULL);
	for (int i = 0; names && i < sk_GENERAL_NAME_num(names) && !uri; i++) {
		const GENERAL_NAME *g = sk_GENERAL_NAME_value(names, i);

		if (g->type == GEN_URI &&
		    memchr(ASN1_STRING_get0_data(g->d.ia5), 0, (size_t)ASN1_STRING_length(g->d.ia5)) == NULL)
			uri = strndup((const char *)ASN1_STRING_get0_data(g->d.ia5),
				      (size_t)ASN1_STRING_length(g->d.ia5));
	}
	GENERAL_NAMES_free(names);
	return uri;
}

/* True when the handshake is done */
static bool shake(struct conn *c)
{
	int ret = SSL_do_handshake(c->ssl), e;
	long verified = SSL_get_verify_result(c->ssl);

	if (ret == 1) {
		c->peer = peer_uri(c->ssl);
		if (!c->peer && !conn_enrolling(c)) {
			fail(c, -EACCES, "the peer showed no certificate with an identity");
			return false;
		}
		c->up = true;
		c->ops->up(c, c->arg);
		return !c->err;
	}
	e = SSL_get_error(c->ssl, ret);
	if (e != SSL_ERROR_WANT_READ && e != SSL_ERROR_WANT_WRITE) {
		send_last(c);
		if (verified != X509_V_OK)
			fail(c, -EPROTO, "TLS handshake failed: the peer's certificate: %s",
			     X509_verify_cert_error_string(verified));
		else
			fail(c, -EPROTO, "TLS handshake failed: %s", ssl_reason());
	}
	return false;
}

static int body_reserve(struct conn *c)
{
	size_t max = conn_enrolling(c) ? ENROL_MAX : MSG_MAX;
	uint8_t *p;

	if (c->hdr.bytes > max) {
		fail(c, -EMSGSIZE, "the peer announced a message of %u bytes, at most %zu are allowed",
		     c->hdr.bytes, max);
		return -EMSGSIZE;
	}
	if (c->hdr.bytes < c->body_room)
		return 0;
	p = aligned_alloc(64, (c->hdr.bytes + 64 + BODY_FIRST - 1) / BODY_FIRST * BODY_FIRST);
	if (!p) {
		fail(c, -ENOMEM, "out of memory for a message of %u bytes", c->hdr.bytes);
		return -ENOMEM;
	}
	free(c->body);
	c->body = p;
	c->body_room = (c->hdr.bytes + 64 + BODY_FIRST - 1) / BODY_FIRST * BODY_FIRST;
	return 0;
}

/* Reads up to n bytes of plaintext; 0: nothing there now, or the connection failed */
static size_t read_some(struct conn *c, void *out, size_t n)
{
	size_t got;
	int e;

	if (SSL_read_ex(c->ssl, out, n, &got) == 1)
		return got;
	e = SSL_get_error(c->ssl, 0);
	if (e == SSL_ERROR_ZERO_RETURN)
		fail(c, -ECONNRESET, "closed by the peer");
	else if (e != SSL_ERROR_WANT_READ && e != SSL_ERROR_WANT_WRITE)
		fail(c, -EPROTO, "TLS: %s", ssl_reason());
	return 0;
}

/* Reads on in the message under way; true when it is whole */
static bool read_message(struct conn *c)
{
	size_t got;

	while (c->hdr_have < sizeof(c->hdr)) {
		got = read_some(c, (uint8_t *)&c->hdr + c->hdr_have, sizeof(c->hdr) - c->hdr_have);
		if (!got)
			return false;
		c->hdr_have += got;
		if (c->hdr_have == sizeof(c->hdr) && body_reserve(c))
			return false;
	}
	while (c->body_have < c->hdr.bytes) {
		got = read_some(c, c->body + c->body_have, c->hdr.bytes - c->body_have);
		if (!got)
			return false;
		c->body_have += got;
	}
	return true;
}

static void deliver(struct conn *c)
{
	if (c->delivering)
		return;
	c->delivering = true;
	if (c->up || shake(c)) {
		while (!c->err && !c->paused && read_message(c)) {
			size_t bytes = c->hdr.bytes;

			c->hdr_have = c->body_have = 0;
			c->body[bytes] = 0;	/* JSON may be read as a string */
			if (c->hdr.type != MSG_PING)
				c->ops->msg(c, c->hdr.type, c->body, bytes, c->arg);
		}
	}
	c->delivering = false;
	send_more(c);	/* handshake, replies, key updates */
	if (!c->err && !c->paused && !c->recv_op.active) {
		c->rx_pos = c->rx_len = 0;
		loop_recv(c->loop, &c->recv_op, c->fd, c->rx, RECV_BYTES);
	}
}

static void on_received(struct loop_op *op, int res, unsigned int flags)
{
	struct conn *c = op->arg;

	if (c->err) {
		finish(c);
		return;
	}
	if (res == -EAGAIN || res == -EINTR) {
		loop_recv(c->loop, op, c->fd, c->rx, RECV_BYTES);
		return;
	}
	if (res <= 0) {
		fail(c, res ? res : -ECONNRESET, "connection lost: %s",
		     res ? strerror(-res) : "closed by the peer");
		return;
	}
	c->rx_pos = 0;
	c->rx_len = (size_t)res;
	c->last_received = now_ns();
	deliver(c);
}

void conn_pause(struct conn *c, bool paused)
{
	if (c->paused == paused || c->err)
		return;
	c->paused = paused;
	c->last_received = now_ns();
	if (!paused && !c->recv_op.active)
		deliver(c);
}

/* ----------------------------------------------------------- time limits */

static void on_tick(struct loop_op *op, int res, unsigned int flags)
{
	struct conn *c = op->arg;
	uint64_t now = now_ns();

	if (c->err) {
		cancel_all(c, true);
		finish(c);
		return;
	}
	if (!c->up && now - c->born > HANDSHAKE_NS)
		fail(c, -ETIMEDOUT, "no answer within %d s", (int)(HANDSHAKE_NS / 1000000000));
	else if (c->up && !c->paused && now - c->last_received > c->silence_ns)
		fail(c, -ETIMEDOUT, "the peer has been silent for %d s", (int)(c->silence_ns / 1000000000));
	else if (c->up && now - c->last_sent > c->ping_ns)
		conn_send(c, MSG_PING, NULL, 0);
	if (c->err)
		finish(c);
	else
		loop_timeout(c->loop, op, TICK_NS);
}

/* -------------------------------------------------------------- creation */

static struct conn *conn_create(struct loop *l, SSL_CTX *ctx, int fd, const struct conn_ops *ops, void *arg)
{
	struct conn *c = calloc(1, sizeof(*c));
	BIO *bio;

	if (!c)
		return NULL;
	c->loop = l;
	c->ops = ops;
	c->arg = arg;
	c->fd = fd;
	c->connect_op.arg = c->recv_op.arg = c->send_op.arg = c->timer_op.arg = c;
	c->recv_op.done = on_received;
	c->send_op.done = on_sent;
	c->timer_op.done = on_tick;
	c->born = c->last_sent = c->last_received = now_ns();
	c->ping_ns = PING_NS;
	c->silence_ns = SILENCE_NS;
	c->rx = malloc(RECV_BYTES);
	c->body = aligned_alloc(64, BODY_FIRST);
	c->body_room = BODY_FIRST;
	c->ssl = SSL_new(ctx);
	bio = c->ssl ? bio_create(c) : NULL;
	if (bio)
		SSL_set_bio(c->ssl, bio, bio);
	if (!c->rx || !c->body || !bio) {
		c->fd = -1;	/* stays the caller's */
		conn_free(c);
		return NULL;
	}
	return c;
}

static void socket_tune(int fd)
{
	int one = 1;

	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
}

int conn_accept(struct loop *l, SSL_CTX *ctx, int fd, const struct conn_ops *ops, void *arg, struct conn **out)
{
	struct conn *c = conn_create(l, ctx, fd, ops, arg);

	if (!c)
		return -ENOMEM;
	socket_tune(fd);
	SSL_set_accept_state(c->ssl);
	loop_timeout(l, &c->timer_op, TICK_NS);
	loop_recv(l, &c->recv_op, fd, c->rx, RECV_BYTES);
	*out = c;
	return 0;
}

static void on_connected(struct loop_op *op, int res, unsigned int flags)
{
	struct conn *c = op->arg;

	if (c->err) {
		finish(c);
		return;
	}
	if (res < 0) {
		c->addr = c->addr->ai_next;
		if (c->addr)
			try_connect(c);
		else
			fail(c, res, "cannot connect: %s", strerror(-res));
		return;
	}
	socket_tune(c->fd);
	deliver(c);	/* the first flight of the handshake, and the first receive */
}

static void try_connect(struct conn *c)
{
	if (c->fd >= 0)
		close(c->fd);
	c->fd = socket(c->addr->ai_family, SOCK_STREAM | SOCK_CLOEXEC, IPPROTO_TCP);
	if (c->fd < 0) {
		fail(c, -errno, "cannot make a socket: %s", strerror(errno));
		return;
	}
	loop_connect(c->loop, &c->connect_op, c->fd, c->addr->ai_addr, c->addr->ai_addrlen);
}

int conn_dial(struct loop *l, SSL_CTX *ctx, const char *host, const char *port,
	      const struct conn_ops *ops, void *arg, struct conn **out, struct why *why)
{
	struct addrinfo hints = { .ai_socktype = SOCK_STREAM, .ai_flags = AI_ADDRCONFIG };
	struct addrinfo *addrs;
	struct conn *c;
	int ret;

	ret = getaddrinfo(host, port, &hints, &addrs);
	if (ret == EAI_NONAME || ret == EAI_ADDRFAMILY) {
		hints.ai_flags = 0;	/* loopback alone is up: ADDRCONFIG hides it */
		ret = getaddrinfo(host, port, &hints, &addrs);
	}
	if (ret)
		return why_set(why, EHOSTUNREACH, "cannot resolve %s port %s: %s", host, port, gai_strerror(ret));
	c = conn_create(l, ctx, -1, ops, arg);
	if (!c) {
		freeaddrinfo(addrs);
		return why_set(why, ENOMEM, "out of memory for a connection");
	}
	c->dialing = true;
	c->addrs = c->addr = addrs;
	c->connect_op.done = on_connected;
	SSL_set_connect_state(c->ssl);
	SSL_set_tlsext_host_name(c->ssl, host);
	loop_timeout(l, &c->timer_op, TICK_NS);
	try_connect(c);
	*out = c;
	return 0;
}

/* --------------------------------------------------------------- queries */

const char *conn_peer(const struct conn *c)
{
	return c->peer;
}

bool conn_enrolling(const struct conn *c)
{
	static const char enrol[] = "dm-asr-enrol/1";
	const unsigned char *alpn;
	unsigned int bytes;

	SSL_get0_alpn_selected(c->ssl, &alpn, &bytes);
	return bytes == sizeof(enrol) - 1 && memcmp(alpn, enrol, bytes) == 0;
}

int conn_serial(const struct conn *c, char *out, size_t bytes)
{
	return tls_cert_serial(SSL_get0_peer_certificate(c->ssl), out, bytes);
}

SSL *conn_ssl(struct conn *c)
{
	return c->ssl;
}

uint64_t conn_bytes_sent(const struct conn *c)
{
	return c->bytes_sent;
}

void conn_silence(struct conn *c, uint64_t ns)
{
	c->silence_ns = ns;
	c->ping_ns = ns / 4;
}

int conn_local_address(const struct conn *c, char out[64])
{
	struct sockaddr_storage sa = { 0 };
	socklen_t n = sizeof(sa);

	if (c->fd < 0 || getsockname(c->fd, (struct sockaddr *)&sa, &n) < 0 ||
	    getnameinfo((struct sockaddr *)&sa, n, out, 64, NULL, 0, NI_NUMERICHOST))
		return -ENOTCONN;
	return 0;
}
