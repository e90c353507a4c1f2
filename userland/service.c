// SPDX-License-Identifier: Apache-2.0
/*
 * Hosts at the vault: their connections, what they may ask, what they ship.
 *
 * Design: a connection shows who it is by its certificate; a host reaches its
 * own groups only. It opens streams by calls; from then on its frames go to
 * ingest, and acknowledgements come back after each flush. When a stream has
 * no room the whole connection stops being read, and TCP does the rest.
 *
 * A host that comes back before its old connection is found dead takes its
 * streams over: the old connection is closed. A stream whose last frames are
 * not durable yet is answered when they are, for the answer is what is durable.
 *
 * Invariants: nothing but HELLO and enrol is done for a peer without a
 * certificate; such a peer may ask once, soon, and leaves no trace on disk
 * unless it proved a registration key. A frame goes only into a stream that this connection opened, of
 * the generation that it opened. A bad frame ends the connection, with the
 * reason, and nothing of it is stored.
 *
 * Context: the loop's thread. Calls block on the file system; frames do not.
 */
#include "vault.h"

#include <arpa/inet.h>
#include <errno.h>
#include <string.h>
#include <sys/socket.h>

#define CLIENTS_MAX	1024
#define STREAMS_MAX	64	/* of one connection */
#define STRANGER_NS	30000000000ULL	/* to show a certificate, or to enrol */
#define ASKS_MAX	(4 * STREAMS_MAX)	/* digest.map calls of one connection that wait */

struct client {
	struct service *sv;
	struct conn *conn;
	char host_id[CATALOG_ID_BYTES];
	char host[ASR_NAME_BYTES];
	char serial[TLS_SERIAL_BYTES];	/* of its certificate */
	char address[INET6_ADDRSTRLEN], peer_address[300];
	uint64_t since_ns, born_ns, frames, bytes;
	bool hello, closing, asked;	/* asked: to be enrolled */
	struct slot {
		struct ingest_stream *stream;	/* NULL: the slot is free, or waits */
		uint8_t group[ASR_UUID_BYTES], uuid[ASR_UUID_BYTES];
		uint64_t generation;
		json_int_t waits;		/* the call to be answered when it is durable; -1 */
	} slot[STREAMS_MAX];
	struct ask {
		json_int_t id;
		struct map_ask ask;
	} asks[ASKS_MAX];		/* in order, from first */
	unsigned int ask_first, ask_count;
	uint64_t maps;			/* answered, or missed while nothing was asked */
	struct client *next;
};

struct service {
	struct service_args a;
	struct client *clients;
	unsigned int count;
	struct loop_idle idle;
	struct map *map;		/* the one that is being made, for the first ask of ... */
	struct client *mapping;		/* ... this client */
	uint64_t maps;			/* of the client that was served last */
	struct loop_op again;
};

/* ------------------------------------------------------------------ answers */

/* What a peer sent stands in these texts: it must not write log lines of its own */
static void complain(const struct client *c, const char *code, const char *text)
{
	char line[600];

	snprintf(line, sizeof(line), "%s (%s): %s: %s", *c->host ? c->host : "?", c->address, code, text);
	for (char *p = line; *p; p++)
		if ((unsigned char)*p < ' ' || *p == 0x7f)
			*p = '?';
	log_warn("host %s", line);
}

static void refuse(struct client *c, const char *code, const char *text)
{
	if (c->closing)
		return;
	complain(c, code, text);
	c->closing = true;
	conn_send_json(c->conn, MSG_ERROR, json_pack("{s:s, s:s}", "error", code, "text", text));
	conn_close(c->conn, -EPROTO, text);
}

static void reply(struct client *c, json_int_t id, json_t *parameters)
{
	conn_send_json(c->conn, MSG_REPLY, json_pack("{s:I, s:o}", "id", id, "parameters",
						     parameters ? parameters : json_object()));
}

static void reply_error(struct client *c, json_int_t id, const char *code, const char *text)
{
	complain(c, code, text);
	conn_send_json(c->conn, MSG_REPLY, json_pack("{s:I, s:s, s:s}", "id", id, "error", code, "text", text));
}

static struct slot *slot_of(struct client *c, const uint8_t *uuid)
{
	for (int i = 0; i < STREAMS_MAX; i++)
		if (c->slot[i].stream && !memcmp(c->slot[i].uuid, uuid, ASR_UUID_BYTES))
			return &c->slot[i];
	return NULL;
}

/* Its connection or its stream ends */
static void map_drop(struct client *c)
{
	if (c->sv->mapping != c)
		return;
	map_end(c->sv->map);
	c->sv->map = NULL;
	c->sv->mapping = NULL;
}

static void slot_close(struct client *c, struct slot *s)
{
	map_drop(c);	/* it may read the stream; its ask is still the first */
	if (s->stream)
		ingest_close(s->stream);
	s->stream = NULL;
	s->waits = -1;
}

static bool any_full(const struct client *c)
{
	for (int i = 0; i < STREAMS_MAX; i++)
		if (c->slot[i].stream && ingest_full(c->slot[i].stream))
			return true;
	return false;
}

static struct groupcall groupcall_of(const struct client *c)
{
	return (struct groupcall){ c->sv->a.cat, c->sv->a.dir, c->host_id };
}

/* Who is connected, and where their peers reach them */
static void add_addresses(const struct service *sv, json_t *members)
{
	json_t *m;
	size_t i;

	json_array_foreach(members, i, m) {
		const struct client *c = sv->clients;

		while (c && (c->closing || strcmp(c->host_id, text_of(m, "host_id"))))
			c = c->next;
		json_object_set_new(m, "connected", json_boolean(c));
		if (c && *c->peer_address)
			json_object_set_new(m, "address", json_string(c->peer_address));
	}
}

static void slot_end(struct client *c, struct slot *s)
{
	if (s->waits >= 0)
		reply_error(c, s->waits, "not-allowed", "this host is no longer in the group");
	if (s->stream || s->waits >= 0)
		slot_close(c, s);
	if (!any_full(c))
		conn_pause(c->conn, false);
}

/* A host is no longer in a group: a frame of it is one of a stream that is not open */
static void group_close(struct service *sv, const char *host_id, const uint8_t *group)
{
	for (struct client *c = sv->clients; c; c = c->next)
		for (int i = 0; i < STREAMS_MAX && !strcmp(c->host_id, host_id); i++)
			if (!memcmp(c->slot[i].group, group, ASR_UUID_BYTES))
				slot_end(c, &c->slot[i]);
}

static void group_call(struct client *c, json_int_t id, const char *method, json_t *p)
{
	const struct groupcall gc = groupcall_of(c);
	const char *code = "vault-failed", *address = text_of(p, "address");
	uint8_t group[ASR_UUID_BYTES];
	struct why why = { "out of memory" };
	json_t *answer;

	answer = groupcall(&gc, method, p, &code, &why);
	if (!answer) {
		reply_error(c, id, code, why.text);
		return;
	}
	if (!strcmp(method, "group.members")) {
		if (*address && strlen(address) < sizeof(c->peer_address))
			snprintf(c->peer_address, sizeof(c->peer_address), "%s", address);
		add_addresses(c->sv, json_object_get(answer, "members"));
	}
	if (!strcmp(method, "group.delete") && !hex_decode(text_of(p, "group"), group, sizeof(group)))
		group_close(c->sv, c->host_id, group);
	if (!strcmp(method, "group.evict") && !hex_decode(text_of(p, "group"), group, sizeof(group)))
		group_close(c->sv, text_of(answer, "host_id"), group);
	reply(c, id, answer);
}

/* ------------------------------------------------------------------ streams */

static void on_durable(struct ingest_stream *s, uint64_t frame_no, uint64_t last_seq, void *arg)
{
	struct client *c = arg;
	struct msg_ack ack = { .frame_no = frame_no, .last_seq = last_seq };
	struct iovec iov = { &ack, sizeof(ack) };

	memcpy(ack.stream, ingest_uuid(s), ASR_UUID_BYTES);
	conn_send(c->conn, MSG_ACK, &iov, 1);
}

static void on_room(struct ingest_stream *s, void *arg)
{
	struct client *c = arg;

	if (!c->closing && !any_full(c))
		conn_pause(c->conn, false);
}

static const struct ingest_ops ingest_ops = { on_durable, on_room };

/* An older connection has this stream: the host came back, that one is dead. Or this one has it: what is durable? */
static void take_over(struct client *by, const uint8_t *group, const uint8_t *uuid)
{
	for (struct client *c = by->sv->clients; c; c = c->next) {
		struct slot *s = slot_of(c, uuid);

		if (!s || memcmp(s->group, group, ASR_UUID_BYTES))
			continue;
		slot_close(c, s);
		if (c != by)
			refuse(c, "replaced", "the host has opened the stream on a newer connection");
		else if (!any_full(c))
			conn_pause(c->conn, false);
	}
}

/* Answers a stream.open, or leaves it waiting */
static void slot_open(struct client *c, struct slot *s)
{
	const struct seg_state *st;
	struct why why;
	json_int_t id = s->waits;
	char tag[2 * ASR_TAG_BYTES + 1];
	json_t *disks;
	int ret;

	ret = ingest_open(c->sv->a.ingest, s->group, s->uuid, &ingest_ops, c, &s->stream, &why);
	if (ret == -EAGAIN)
		return;
	s->waits = -1;
	if (ret) {
		s->stream = NULL;
		reply_error(c, id, ret == -EBADMSG ? "damaged" : "vault-failed", why.text);
		return;
	}
	st = ingest_state(s->stream);
	hex_encode(st->last_tag, ASR_TAG_BYTES, tag);
	disks = json_array();
	for (uint32_t i = 0; i < st->disks; i++)
		json_array_append_new(disks, json_pack("{s:i, s:s}", "slot", (int)st->disk[i].disk, "name",
						       st->disk[i].name));
	reply(c, id, json_pack("{s:I, s:I, s:s, s:b, s:I, s:o}", "frame_no", (json_int_t)st->next_frame_no - 1,
			       "last_seq", (json_int_t)st->last_seq, "last_tag", tag, "consistent",
			       st->consistent, "generation", (json_int_t)s->generation, "disks", disks));
}

static void stream_open(struct client *c, json_int_t id, json_t *p)
{
	const struct groupcall gc = groupcall_of(c);
	const char *code = "vault-failed";
	uint8_t uuid[ASR_UUID_BYTES];
	struct catalog_group g;
	struct slot *s = NULL;
	struct why why;

	if (groupcall_stream(&gc, p, &g, uuid, &code, &why)) {
		reply_error(c, id, code, why.text);
		return;
	}
	take_over(c, g.uuid, uuid);
	for (int i = 0; i < STREAMS_MAX && !s; i++)
		if (!c->slot[i].stream && c->slot[i].waits < 0)
			s = &c->slot[i];
	if (!s || c->closing) {
		reply_error(c, id, "not-allowed", "too many streams on one connection");
		return;
	}
	memcpy(s->group, g.uuid, ASR_UUID_BYTES);
	memcpy(s->uuid, uuid, ASR_UUID_BYTES);
	s->generation = g.generation;
	s->waits = id;
	slot_open(c, s);
}

/* --------------------------------------------------------------- digest.map */

static void digest_map(struct client *c, json_int_t id, json_t *p)
{
	struct map_ask ask;
	struct why why;

	if (wire_map_ask(p, &ask, &why)) {
		reply_error(c, id, "bad-parameter", why.text);
	} else if (!slot_of(c, ask.stream)) {
		reply_error(c, id, "not-allowed", "that stream is not open on this connection");
	} else if (c->ask_count == ASKS_MAX) {
		reply_error(c, id, "busy", "too many digest.map calls wait on this connection");
	} else {
		if (!c->ask_count && c->maps < c->sv->maps)
			c->maps = c->sv->maps;	/* a newcomer is not before all others until it has had as many */
		c->asks[(c->ask_first + c->ask_count++) % ASKS_MAX] = (struct ask){ id, ask };
	}
}

static void map_answer(struct client *c, int ret, const uint8_t *data, size_t bytes, const struct why *why)
{
	json_int_t id = c->asks[c->ask_first].id;
	struct iovec iov = { (void *)(uintptr_t)data, bytes };

	c->ask_first = (c->ask_first + 1) % ASKS_MAX;
	c->ask_count--;
	c->sv->maps = ++c->maps;
	if (ret) {
		reply_error(c, id, ret == -ENOENT ? "unknown-disk" : "vault-failed", why->text);
	} else {
		conn_send(c->conn, MSG_MAP, &iov, 1);
		reply(c, id, NULL);
	}
	map_drop(c);
}

static void map_more(struct client *c)
{
	const struct map_ask *ask = &c->asks[c->ask_first].ask;
	struct slot *s = slot_of(c, ask->stream);
	const uint8_t *data = NULL;
	size_t bytes = 0;
	struct why why = { "the stream was closed" };
	int ret = s ? 0 : -EIO;

	c->sv->mapping = c;
	if (!ret && !c->sv->map)
		ret = map_begin(s->stream, ask, &c->sv->map, &why);
	if (!ret)
		ret = map_step(c->sv->map, &data, &bytes, &why);
	if (ret != 1)
		map_answer(c, ret, data, bytes, &why);
}

static void nothing(struct loop_op *op, int res, unsigned int flags)
{
}

static bool map_wanted(const struct client *c)
{
	return c->ask_count && !c->closing && conn_has_room(c->conn);
}

/* A slice of the map under way, or of the next: one at a time, each host in its turn */
static void maps_run(struct service *sv)
{
	struct client *next = sv->mapping, *c;

	for (c = sv->clients; c && !sv->mapping; c = c->next)
		if (map_wanted(c) && (!next || c->maps < next->maps))
			next = c;
	if (!next)
		return;
	map_more(next);
	for (c = sv->clients; c && !map_wanted(c); c = c->next)
		;
	sv->again.done = nothing;
	if ((c || sv->mapping) && !sv->again.active)
		loop_timeout(sv->a.loop, &sv->again, 1);	/* see what else happened, then go on */
}

static void on_idle(void *arg)
{
	struct service *sv = arg;

	for (struct client *c = sv->clients; c; c = c->next) {
		if (!*c->host_id && !c->closing && now_ns() - c->born_ns > STRANGER_NS)
			refuse(c, "too-late", "a peer without a certificate has half a minute");
		for (int i = 0; i < STREAMS_MAX && !c->closing; i++)
			if (c->slot[i].waits >= 0)
				slot_open(c, &c->slot[i]);
	}
	maps_run(sv);
}

static void on_frame(struct client *c, const uint8_t *body, size_t bytes)
{
	const struct frame_hdr *h = (const void *)body;
	struct why why;
	struct slot *s;

	if (bytes < sizeof(*h)) {
		refuse(c, "bad-frame", "a frame is shorter than its header");
		return;
	}
	s = slot_of(c, h->stream);
	if (!s) {
		refuse(c, "not-allowed", "a frame of a stream that is not open on this connection");
		return;
	}
	if (h->generation != s->generation) {
		refuse(c, "fenced", "a frame of another generation than was opened");
		return;
	}
	if (ingest_frame(s->stream, body, bytes, &why)) {
		refuse(c, "bad-frame", why.text);
		return;
	}
	c->frames++;
	c->bytes += bytes;
	if (ingest_full(s->stream))
		conn_pause(c->conn, true);
}

/* ----------------------------------------------------------------- messages */

static const struct method {
	const char *name;
	void (*fn)(struct client *c, json_int_t id, json_t *parameters);
} methods[] = {
	{ "stream.open", stream_open },
	{ "digest.map", digest_map },
};

static void enrol(struct client *c, json_int_t id, json_t *p)
{
	const char *error = "vault-failed";
	struct why why = { "failed" };
	json_t *answer;

	if (c->asked) {
		refuse(c, "not-allowed", "one enrol call for a connection");
		return;
	}
	c->asked = true;
	answer = ident_enrol(c->sv->a.cat, c->sv->a.dir, conn_ssl(c->conn), p, &error, &why);
	if (answer) {
		log_info("host %s enrolled from %s", text_of(p, "host"), c->address);
		catalog_audit(c->sv->a.cat, text_of(answer, "host_id"), "enrol", text_of(p, "host"));
		reply(c, id, answer);
	} else {
		/* a stranger's guesses are in the log only: they must not fill the vault's disk */
		if (strcmp(error, "bad-parameter") && strcmp(error, "key-unknown") && strcmp(error, "proof-wrong"))
			catalog_audit(c->sv->a.cat, c->address, "enrol refused", why.text);
		reply_error(c, id, error, why.text);
	}
}

static void on_call(struct client *c, json_t *root)
{
	const char *method = text_of(root, "method");
	json_int_t id = json_integer_value(json_object_get(root, "id"));
	json_t *p = json_object_get(root, "parameters");

	if (id < 0 || !*method || (p && !json_is_object(p))) {
		refuse(c, "bad-call", "a call has an id, a method and parameters");
		return;
	}
	if (conn_enrolling(c->conn)) {
		if (strcmp(method, "enrol"))
			refuse(c, "not-allowed", "this connection is for enrolment only");
		else
			enrol(c, id, p);
		return;
	}
	for (size_t i = 0; i < sizeof(methods) / sizeof(methods[0]); i++)
		if (!strcmp(method, methods[i].name)) {
			methods[i].fn(c, id, p);
			return;
		}
	group_call(c, id, method, p);
}

static void on_hello(struct client *c, const json_t *root)
{
	if (json_integer_value(json_object_get(root, "protocol")) != 1) {
		refuse(c, "bad-protocol", "this vault speaks protocol 1");
		return;
	}
	c->hello = true;
	if (!*c->host)
		snprintf(c->host, sizeof(c->host), "%.63s", text_of(root, "host"));
}

static void on_msg(struct conn *conn, uint32_t type, const uint8_t *body, size_t bytes, void *arg)
{
	struct client *c = arg;
	cleanup_json root = NULL;

	if (c->closing || type == MSG_PING)
		return;
	if (type == MSG_FRAME && c->hello && !conn_enrolling(conn)) {
		on_frame(c, body, bytes);
		return;
	}
	root = type == MSG_HELLO || type == MSG_CALL ? json_loadb((const char *)body, bytes,
		JSON_REJECT_DUPLICATES, NULL) : NULL;
	if (!json_is_object(root) || (type == MSG_CALL && !c->hello))
		refuse(c, "bad-message", "a message of this type is not expected here, or is no JSON object");
	else if (type == MSG_HELLO)
		on_hello(c, root);
	else
		on_call(c, root);
}

/* -------------------------------------------------------------- connections */

/* What a catalogue says that could be read */
static bool is_refusal(int ret)
{
	return ret == -ENOENT || ret == -EKEYREJECTED || ret == -EKEYREVOKED;
}

static void on_up(struct conn *conn, void *arg)
{
	struct client *c = arg;
	const char *peer = conn_peer(conn);
	struct catalog_host h;
	struct why why = { "its certificate has no serial number" };
	int ret;

	conn_send_json(conn, MSG_HELLO, json_pack("{s:i, s:s}", "protocol", 1, "software",
						  "dm-asr " ASR_VERSION));
	if (conn_enrolling(conn))
		return;
	if (!peer || strncmp(peer, "asr:host:", 9) || strlen(peer + 9) >= sizeof(c->host_id)) {
		refuse(c, "not-allowed", "no certificate of a registered host: asrctl register");
		return;
	}
	snprintf(c->host_id, sizeof(c->host_id), "%s", peer + 9);
	ret = catalog_host_get(c->sv->a.cat, c->host_id, &h, &why);
	if (!ret)
		snprintf(c->host, sizeof(c->host), "%s", h.name);
	if (!ret)
		ret = conn_serial(conn, c->serial, sizeof(c->serial));
	if (!ret)
		ret = catalog_cert_check(c->sv->a.cat, c->host_id, c->serial, &why);
	if (ret) {
		refuse(c, is_refusal(ret) ? "not-allowed" : "vault-failed", why.text);
		return;
	}
	log_info("host %s connected from %s", c->host, c->address);
}

static void on_down(struct conn *conn, int err, const struct why *why, void *arg)
{
	struct client *c = arg;
	struct service *sv = c->sv;
	struct client **p = &sv->clients;

	for (int i = 0; i < STREAMS_MAX; i++)
		slot_close(c, &c->slot[i]);
	if (*c->host_id)
		log_info("host %s (%s) gone: %s", c->host, c->address, why->text);
	while (*p != c)
		p = &(*p)->next;
	*p = c->next;
	sv->count--;
	free(c);
}

static const struct conn_ops conn_ops = { .up = on_up, .msg = on_msg, .down = on_down };

static void address_text(int fd, char out[INET6_ADDRSTRLEN])
{
	struct sockaddr_storage sa = { 0 };
	socklen_t n = sizeof(sa);

	snprintf(out, INET6_ADDRSTRLEN, "?");
	if (getpeername(fd, (struct sockaddr *)&sa, &n) < 0)
		return;
	if (sa.ss_family == AF_INET6)
		inet_ntop(AF_INET6, &((struct sockaddr_in6 *)&sa)->sin6_addr, out, INET6_ADDRSTRLEN);
	else if (sa.ss_family == AF_INET)
		inet_ntop(AF_INET, &((struct sockaddr_in *)&sa)->sin_addr, out, INET6_ADDRSTRLEN);
}

void service_accept(struct service *sv, int fd)
{
	struct client *c = sv->count < CLIENTS_MAX ? calloc(1, sizeof(*c)) : NULL;

	if (!c) {
		close(fd);
		return;
	}
	c->sv = sv;
	c->since_ns = now_real_ns();
	c->born_ns = now_ns();
	for (int i = 0; i < STREAMS_MAX; i++)
		c->slot[i].waits = -1;
	address_text(fd, c->address);
	if (conn_accept(sv->a.loop, sv->a.ctx, fd, &conn_ops, c, &c->conn)) {
		close(fd);
		free(c);
		return;
	}
	c->next = sv->clients;
	sv->clients = c;
	sv->count++;
}

int service_recheck(struct service *sv, struct why *why)
{
	for (struct client *c = sv->clients; c; c = c->next) {
		int ret = *c->serial && !c->closing ? catalog_cert_check(sv->a.cat, c->host_id, c->serial, why) : 0;

		if (is_refusal(ret))
			refuse(c, "not-allowed", why->text);
		else if (ret)
			return ret;
	}
	return 0;
}

void service_stop(struct service *sv)
{
	for (struct client *c = sv->clients; c; c = c->next) {
		c->closing = true;
		conn_close(c->conn, -ESHUTDOWN, "the vault is stopping");
	}
}

int service_create(const struct service_args *a, struct service **out)
{
	struct service *sv = calloc(1, sizeof(*sv));

	if (!sv)
		return -ENOMEM;
	sv->a = *a;
	sv->idle = (struct loop_idle){ .fn = on_idle, .arg = sv };
	loop_idle_add(a->loop, &sv->idle);
	*out = sv;
	return 0;
}

/* After the loop has ended; what connections remain go with the process */
void service_destroy(struct service *sv)
{
	if (!sv)
		return;
	loop_idle_remove(sv->a.loop, &sv->idle);
	free(sv);
}

static json_t *streams_json(const struct client *c)
{
	json_t *list = json_array();
	char group[33];

	for (int i = 0; i < STREAMS_MAX; i++) {
		const struct seg_state *st = c->slot[i].stream ? ingest_state(c->slot[i].stream) : NULL;

		if (!st)
			continue;
		hex_encode(c->slot[i].group, ASR_UUID_BYTES, group);
		json_array_append_new(list, json_pack("{s:s, s:I, s:I, s:b}", "group", group, "frames",
			(json_int_t)st->next_frame_no - 1, "last_seq", (json_int_t)st->last_seq,
			"consistent", st->consistent));
	}
	return list;
}

json_t *service_json(const struct service *sv)
{
	json_t *list = json_array();
	char when[40];

	for (const struct client *c = sv->clients; c; c = c->next)
		if (*c->host_id)
			json_array_append_new(list, json_pack("{s:s, s:s, s:s, s:I, s:I, s:o}", "host", c->host,
				"address", c->address, "since", time_format(c->since_ns, when), "frames",
				(json_int_t)c->frames, "bytes", (json_int_t)c->bytes, "streams", streams_json(c)));
	return list;
}
