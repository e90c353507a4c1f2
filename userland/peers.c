// SPDX-License-Identifier: Apache-2.0
/*
 * The hosts that this one shares groups with: who they are, the connections to them, and their marks.
 *
 * Design. The vault says who is in a group and where they were last reached; the
 * answer is kept on file, so that marks go on while the vault is away. Of two
 * hosts the one with the lower id dials: one connection for all the groups that
 * they share, mutual TLS with the vault's CA. Nothing listens and nobody is
 * dialled before a group has two hosts. What is said is marks.h's; this file gives
 * marks.c its clock, kernel and network.
 *
 * Invariants. A peer that shares no group is let go before it is heard, and so is one
 * whose certificate does not count (any more) by the list of one that it shares. What a
 * peer sends reaches only groups that it is in.
 *
 * Context. The loop's thread. Blocks on small files when the members of a group change;
 * not in the resolver: addresses are numbers.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <string.h>

#include "source.h"

#define NS_PER_S	1000000000ull
#define MEMBERS_NS	(5 * NS_PER_S)	/* the vault is asked so often */
#define SILENCE_NS	(8 * NS_PER_S)
#define CONNS_MAX	256
#define STRANGERS_MAX	16		/* that have not shown who they are */
#define REVOKED		"its certificate was revoked"

struct peer {
	struct peer *next;
	struct peers *p;
	struct conn *conn;
	bool up;
	bool replaced;			/* by a newer one: its end is no news of the host */
	char host_id[33];		/* known when dialled, or up */
	char serial[TLS_SERIAL_BYTES];	/* of its certificate, when up */
};

struct peers {
	struct asrd *d;
	char *listen, *address;
	struct listener *listener;
	SSL_CTX *server, *client;
	struct peer *list;
	unsigned int count;
	uint64_t incarnation;		/* of this process; the rest is each group's */
	char trouble[256];
};

/* When marks.c is to be called again; may outlive its group by a moment */
struct marks_timer {
	struct loop_op op;
	struct group *g;		/* NULL: gone */
	uint64_t due;			/* now_ns clock */
};

static struct group *group_of(struct asrd *d, const uint8_t *uuid)
{
	struct group *g = d->groups;

	while (g && memcmp(g->pack.group, uuid, ASR_UUID_BYTES))
		g = g->next;
	return g;
}

static bool has_member(const struct group *g, const char *host_id)
{
	const struct marks_member *m;

	if (g->members_void)
		return false;
	for (unsigned int i = 0; (m = marks_member(g->marks, i)); i++)
		if (!strcmp(m->host_id, host_id))
			return true;
	return false;
}

static const json_t *entry_of(const struct group *g, const char *host_id)
{
	const json_t *m;
	size_t i;

	json_array_foreach(json_object_get(g->members, "members"), i, m)
		if (!strcmp(text_of(m, "host_id"), host_id))
			return m;
	return NULL;
}

/* By the vault's list of a group's hosts. serial NULL: has it any? A vault that lists none knows no revocation */
static bool certified(const struct group *g, const char *host_id, const char *serial)
{
	const json_t *certs = json_object_get(entry_of(g, host_id), "certificates"), *c;
	size_t i;

	if (!json_is_array(certs))
		return true;
	json_array_foreach(certs, i, c)
		if (!serial || !strcmp(json_string_value(c) ?: "", serial))
			return true;
	return false;
}

static void trouble(struct peers *p, const char *text)
{
	if (!strcmp(p->trouble, text))
		return;
	snprintf(p->trouble, sizeof(p->trouble), "%s", text);
	if (*text)
		log_warn("hosts of the same groups: %s", text);
}

/* ------------------------------------------------------------ connections */

static void tell_groups(struct peer *peer, bool up, const char *why)
{
	for (struct group *g = peer->p->d->groups; g; g = g->next)
		if (has_member(g, peer->host_id)) {
			marks_peer(g->marks, peer->host_id, up, why, now_ns());
			peers_run(g);
		}
}

static void on_up(struct conn *c, void *arg)
{
	struct peer *peer = arg;
	const char *uri = conn_peer(c), *id = uri && !strncmp(uri, "asr:host:", 9) ? uri + 9 : "";
	bool known = false, counts = !conn_serial(c, peer->serial, sizeof(peer->serial));

	for (struct group *g = peer->p->d->groups; g; g = g->next) {
		if (!has_member(g, id))
			continue;
		known = true;
		if (certified(g, id, peer->serial))
			continue;
		counts = false;
		if (g->members_ns > now_ns() + NS_PER_S)	/* or it is new */
			g->members_ns = now_ns() + NS_PER_S;
	}
	if (!known || (*peer->host_id && strcmp(peer->host_id, id))) {
		conn_close(c, -EACCES, known ? "another host answers there" : "that host is in no group of this one");
		return;
	}
	if (!counts) {
		conn_close(c, -EKEYREVOKED, "its certificate is not one that the vault names");
		return;
	}
	for (struct peer *o = peer->p->list; o; o = o->next)
		if (o != peer && o->up && !strcmp(o->host_id, id)) {
			o->up = false;
			o->replaced = true;
			conn_close(o->conn, -ECONNRESET, "the host has a newer connection");
		}
	snprintf(peer->host_id, sizeof(peer->host_id), "%s", id);
	peer->up = true;
	conn_silence(c, SILENCE_NS);
	tell_groups(peer, true, "");
}

static void on_msg(struct conn *c, uint32_t type, const uint8_t *body, size_t bytes, void *arg)
{
	struct peer *peer = arg;
	uint8_t uuid[ASR_UUID_BYTES];
	struct marks_msg msg;
	cleanup_json root = NULL;
	struct group *g;

	if (type == MSG_PING || !peer->up)
		return;
	root = type == MSG_PEER ? json_loadb((const char *)body, bytes, JSON_REJECT_DUPLICATES, NULL) : NULL;
	if (!root || marks_msg_parse(root, &msg, uuid)) {
		conn_close(c, -EPROTO, "that host sent nonsense");
		return;
	}
	g = group_of(peer->p->d, uuid);
	if (!g)
		return;		/* it has left here, or is not yet known to be shared */
	marks_message(g->marks, peer->host_id, &msg, now_ns(), now_real_ns());
	if (msg.kind == MARKS_STATE && msg.epoch != marks_epoch(g->marks) && g->members_ns > now_ns() + NS_PER_S)
		g->members_ns = now_ns() + NS_PER_S;	/* who is in it has changed: one of us does not know yet */
	peers_run(g);
}

static void on_down(struct conn *c, int err, const struct why *why, void *arg)
{
	struct peer *peer = arg, **at = &peer->p->list;

	while (*at != peer)
		at = &(*at)->next;
	*at = peer->next;
	peer->p->count--;
	if (*peer->host_id && !peer->replaced)
		tell_groups(peer, false, why->text);
	free(peer);
}

static const struct conn_ops conn_ops = { .up = on_up, .msg = on_msg, .down = on_down };

static struct peer *peer_new(struct peers *p, const char *host_id)
{
	struct peer *peer = p->count < CONNS_MAX ? calloc(1, sizeof(*peer)) : NULL;

	if (!peer)
		return NULL;
	peer->p = p;
	snprintf(peer->host_id, sizeof(peer->host_id), "%s", host_id);
	peer->next = p->list;
	p->list = peer;
	p->count++;
	return peer;
}

static void peer_undo(struct peer *peer)
{
	peer->p->list = peer->next;
	peer->p->count--;
	free(peer);
}

static void on_accept(int fd, void *arg)
{
	struct peers *p = arg;
	unsigned int strangers = 0;
	struct peer *peer;

	for (peer = p->list; peer; peer = peer->next)
		strangers += !*peer->host_id;
	peer = p->server && strangers < STRANGERS_MAX ? peer_new(p, "") : NULL;
	if (peer && !conn_accept(p->d->loop, p->server, fd, &conn_ops, peer, &peer->conn))
		return;
	if (peer)
		peer_undo(peer);
	close(fd);
}

static struct peer *peer_of(const struct peers *p, const char *host_id, bool up)
{
	struct peer *peer = p->list;

	while (peer && (strcmp(peer->host_id, host_id) || (up && !peer->up)))
		peer = peer->next;
	return peer;
}

static void dial(struct peers *p, struct group *g, const char *host_id, const char *address)
{
	char host[256], port[8];
	uint8_t number[16];
	struct why why = { "" };
	struct peer *peer;
	int r = address_split(address, host, port, &why);

	if (!r && inet_pton(AF_INET, host, number) != 1 && inet_pton(AF_INET6, host, number) != 1)
		r = why_set(&why, EINVAL, "its address is no number: [peers] address in its asrd.conf");
	peer = r ? NULL : peer_new(p, host_id);
	if (peer) {
		r = conn_dial(p->d->loop, p->client, host, port, &conn_ops, peer, &peer->conn, &why);
		if (r)
			peer_undo(peer);
	}
	if (r)
		marks_peer(g->marks, host_id, false, why.text[0] ? why.text : strerror(-r), now_ns());
}

/* --------------------------------------------------------------- identity */

static int load(struct peers *p, struct why *why)
{
	char ca[512], cert[512], key[512];
	const struct tls_files files = { ca, cert, key };
	int r;

	if (snprintf(ca, sizeof(ca), "%s/ca.crt", p->d->state_dir) >= (int)sizeof(ca))
		return why_set(why, ENAMETOOLONG, "state folder %s: its path is too long", p->d->state_dir);
	snprintf(cert, sizeof(cert), "%s/host.crt", p->d->state_dir);
	snprintf(key, sizeof(key), "%s/host.key", p->d->state_dir);
	r = p->server ? 0 : tls_peer(&files, true, &p->server, why);
	return r || p->client ? r : tls_peer(&files, false, &p->client, why);
}

void peers_reload(struct peers *p)
{
	tls_free(p->server);
	tls_free(p->client);
	p->server = p->client = NULL;
	for (struct peer *peer = p->list; peer; peer = peer->next)
		conn_close(peer->conn, -ECONNABORTED, "the identity has changed");
}

/* ---------------------------------------------------------------- members */

static int by_id(const void *a, const void *b)
{
	return strcmp(((const struct marks_member *)a)->host_id, ((const struct marks_member *)b)->host_id);
}

/* What the vault, or the file, says of the group */
static int members_use(struct group *g, const json_t *p)
{
	struct marks_member list[MARKS_MEMBERS_MAX] = { { .up = false } };
	json_int_t epoch = json_integer_value(json_object_get(p, "epoch"));
	json_int_t mark = json_integer_value(json_object_get(p, "mark_ms"));
	json_int_t hold = json_integer_value(json_object_get(p, "hold_ms"));
	const json_t *members = json_object_get(p, "members"), *m;
	unsigned int n = 0;
	size_t i;

	if (epoch < 1 || epoch > 0xffff || mark < 0 || mark > 3600000 || hold < 1 || hold > 1000 ||
	    !json_is_array(members) || json_array_size(members) > MARKS_MEMBERS_MAX)
		return -EPROTO;
	json_array_foreach(members, i, m) {
		if (!*text_of(m, "host_id") || strlen(text_of(m, "host_id")) >= sizeof(list[n].host_id) ||
		    name_check("host", text_of(m, "host"), NULL))
			return -EPROTO;
		snprintf(list[n].host_id, sizeof(list[n].host_id), "%s", text_of(m, "host_id"));
		snprintf(list[n].host, sizeof(list[n].host), "%.63s", text_of(m, "host"));
		n++;
	}
	qsort(list, n, sizeof(*list), by_id);
	for (unsigned int k = 1; k < n; k++)
		if (!by_id(&list[k - 1], &list[k]))
			return -EPROTO;
	marks_set(g->marks, text_of(p, "you"), (uint64_t)epoch, (uint64_t)mark, (uint64_t)hold, list, n, now_ns());
	for (unsigned int k = 0; k < n; k++)	/* who was connected before it was in this group */
		if (peer_of(g->d->peers, list[k].host_id, true) && !marks_member(g->marks, k)->up)
			marks_peer(g->marks, list[k].host_id, true, "", now_ns());
	return 0;
}

/* Who is connected with a certificate that counts no longer */
static void part_revoked(struct group *g)
{
	for (struct peer *peer = g->d->peers->list; peer; peer = peer->next)
		if (peer->up && has_member(g, peer->host_id) && !certified(g, peer->host_id, peer->serial)) {
			log_warn("host %s: connected no longer: " REVOKED, peer->host_id);
			conn_close(peer->conn, -EKEYREVOKED, REVOKED);
		}
}

/* An address that is not known now is the one that was */
static void keep_addresses(json_t *now, const json_t *old)
{
	json_t *m, *o;
	size_t i, k;

	json_array_foreach(json_object_get(now, "members"), i, m)
		json_array_foreach(json_object_get(old, "members"), k, o)
			if (!strcmp(text_of(m, "host_id"), text_of(o, "host_id")) && !json_object_get(m, "address") &&
			    json_object_get(o, "address"))
				json_object_set(m, "address", json_object_get(o, "address"));
	json_array_foreach(json_object_get(now, "members"), i, m)
		json_object_del(m, "connected");	/* changes too often to be written down */
}

static void members_answer(int err, json_t *reply, const struct why *why, void *arg)
{
	struct group *g = arg;
	struct why w = { "" };
	cleanup_json copy = NULL;

	g->members_asked = false;
	if (err || !json_is_object(reply)) {
		if (err == -EREMOTEIO)
			log_debug("group %s: who is in it: %s", g->name, why->text);
		if (err == -EREMOTEIO && (!strncmp(why->text, "not-allowed:", 12) ||
					  !strncmp(why->text, "unknown-group:", 14)))
			g->members_void = true;
		return;
	}
	g->members_void = false;
	copy = json_deep_copy(reply);
	if (!copy)
		return;
	keep_addresses(copy, g->members);
	if (g->members && json_equal(copy, g->members))
		return;
	if (members_use(g, copy)) {
		log_warn("group %s: the vault's list of its hosts is none", g->name);
		return;
	}
	json_decref(g->members);
	g->members = json_incref(copy);
	part_revoked(g);
	if (!g->pending && group_save(g, &w))
		log_warn("group %s: its file cannot be written: %s", g->name, w.text);
	peers_run(g);
}

/* Where others reach this host. A number that the connection to the vault has is what a site's hosts see, too */
static void own_address(const struct peers *p, char out[300])
{
	char host[256], port[8], ip[64];

	out[0] = 0;
	if (p->address)
		snprintf(out, 300, "%s", p->address);
	else if (!address_split(p->listen, host, port, NULL) && *host && strcmp(host, "0.0.0.0") && strcmp(host, "::"))
		snprintf(out, 300, "%s", p->listen);
	else if (!ship_local_address(p->d->ship, ip) && !address_split(p->listen, host, port, NULL))
		snprintf(out, 300, strchr(ip, ':') ? "[%s]:%s" : "%s:%s", ip, port);
}

static void members_ask(struct peers *p, struct group *g, uint64_t now)
{
	char uuid[2 * ASR_UUID_BYTES + 1], address[300];

	if (g->pending || !ship_is_up(p->d->ship)) {
		g->members_asked = false;	/* its answer was lost with the connection */
		return;
	}
	if (g->members_asked || now < g->members_ns)
		return;
	hex_encode(g->pack.group, ASR_UUID_BYTES, uuid);
	own_address(p, address);
	g->members_asked = !ship_call(p->d->ship, "group.members", json_pack("{s:s, s:s}", "group", uuid, "address",
				      address), members_answer, g);
	g->members_ns = now + MEMBERS_NS;
}

/* ------------------------------------------------------------------ marks */

static int do_mark(void *arg, struct asr_mark *m)
{
	struct group *g = arg;

	return g->source ? source_ioctl(g->source, ASR_IOC_MARK, m) : -ENOTCONN;
}

static int do_release(void *arg, struct asr_release *r)
{
	struct group *g = arg;

	return g->source ? source_ioctl(g->source, ASR_IOC_RELEASE, r) : -ENOTCONN;
}

static void do_send(void *arg, const char *host_id, const struct marks_msg *m)
{
	struct group *g = arg;
	struct peer *peer = peer_of(g->d->peers, host_id, true);

	if (peer && !conn_has_room(peer->conn))
		conn_close(peer->conn, -ENOBUFS, "that host does not read what it is told");
	else if (peer)
		conn_send_json(peer->conn, MSG_PEER, marks_msg_json(m, g->pack.group));
}

static uint64_t do_random(void *arg)
{
	uint64_t n = 0;

	seal_random(&n, sizeof(n));
	return n;
}

static void wait_free(struct group *g, struct wait *w)
{
	struct wait **at = &g->waits;

	while (*at != w)
		at = &(*at)->next;
	*at = w->next;
	free(w);
}

static void do_asked(void *arg, const char *name, const char *mark, const char *why)
{
	struct group *g = arg;
	struct wait *w = g->waits;

	while (w && strcmp(w->name, name))
		w = w->next;
	if (!w)
		return;
	if (w->call && mark)
		control_reply(w->call, json_pack("{s:s}", "mark", mark), false);
	else if (w->call)
		control_error(w->call, "no mark of all hosts of group %s: %s", g->name, why);
	wait_free(g, w);
}

static const struct marks_ops marks_ops = {
	do_mark, do_release, do_send, do_asked, do_random, quiet_begin, quiet_end
};

static void wait_gone(void *arg)
{
	struct wait *w = arg;

	w->call = NULL;		/* the mark is made all the same */
}

void peers_mark(struct group *g, const char *name, uint64_t limit_ns, struct control_call *call)
{
	struct wait *w = calloc(1, sizeof(*w));
	int r = w ? 0 : -ENOMEM;

	for (const struct wait *o = g->waits; o && !r; o = o->next)
		if (!strcmp(o->name, name))
			r = -EEXIST;
	if (!r) {
		*w = (struct wait){ .next = g->waits, .call = call };
		snprintf(w->name, sizeof(w->name), "%s", name);
		g->waits = w;
		control_on_gone(call, wait_gone, w);
		r = marks_ask(g->marks, name, limit_ns, now_ns());
		if (r)
			g->waits = w->next;
	}
	if (r) {
		control_on_gone(call, NULL, NULL);
		if (r == -ENOTCONN)
			control_error(call, "no mark %s: host %s, which makes the marks of group %s, is away: %s", name,
				      marks_member(g->marks, 0)->host, g->name, marks_member(g->marks, 0)->why);
		else if (r == -EINVAL)
			control_error(call, "bad name \"%s\" for a mark of several hosts: no +, and at most %d "
				      "characters", name, WIRE_GROUP_MARK_NAME);
		else
			control_error(call, r == -EEXIST ? "a mark %s is being made" : "no mark %s: too many are being "
				      "made", name);
		free(w);
		return;
	}
	peers_run(g);
}

static void on_time(struct loop_op *op, int res, unsigned int flags)
{
	struct marks_timer *t = op->arg;

	if (t->g)
		peers_run(t->g);
	else
		free(t);
}

/* Something has happened, or it is time */
void peers_run(struct group *g)
{
	uint64_t now = now_ns(), due = marks_tick(g->marks, now, now_real_ns());
	struct marks_timer *t = g->timer;

	/* what is set for an earlier time finds nothing to do, and sets this one */
	if (!due || (t->op.active && t->due <= due))
		return;
	t->due = due;
	if (t->op.active)
		loop_cancel(g->d->loop, &t->op);	/* comes here again */
	else
		loop_timeout(g->d->loop, &t->op, due > now ? due - now : 1);
}

void peers_group_reads(struct group *g)
{
	const struct peers *p = g->d->peers;
	const char *why = NULL;

	if (!g->timer)
		return;
	if (!g->source)
		why = "it does not read its ring";
	else if (source_state(g->source) == ASR_STATE_TRACK)
		why = "its writes are tracked, not captured";
	marks_self(g->marks, p->incarnation + g->attachment, why, now_ns());
	peers_run(g);
}

int peers_group_begin(struct group *g)
{
	int r = marks_create(&marks_ops, g, &g->marks);

	g->timer = r ? NULL : calloc(1, sizeof(*g->timer));
	if (!g->timer)
		return -ENOMEM;
	*g->timer = (struct marks_timer){ .op = { .done = on_time, .arg = g->timer }, .g = g };
	if (g->members && members_use(g, g->members))
		log_warn("group %s: the list of its hosts on file is none", g->name);
	return 0;
}

void peers_group_end(struct group *g)
{
	struct marks_timer *t = g->timer;

	while (g->waits) {
		struct wait *w = g->waits;

		if (w->call)
			control_error(w->call, "group %s goes", g->name);
		wait_free(g, w);
	}
	quiet_group_end(g);
	g->timer = NULL;
	if (!t)
		return;
	t->g = NULL;
	if (t->op.active)
		loop_cancel(g->d->loop, &t->op);
	else
		free(t);
}

json_t *peers_status(const struct group *g)
{
	json_t *j;

	if (!marks_wanted(g->marks))
		return json_null();
	j = marks_json(g->marks, now_ns(), now_real_ns());
	json_object_set_new(j, "trouble", json_string(g->d->peers->trouble));
	return j;
}

/* ---------------------------------------------------------- once a second */

/* Dials whom this host is to dial, and says of the others why they are not there */
static void connect_group(struct peers *p, struct group *g)
{
	const char *me = text_of(g->members, "you");
	const struct marks_member *m;
	char why[160];

	for (unsigned int i = 0; (m = marks_member(g->marks, i)); i++) {
		if (m->up || !strcmp(m->host_id, me) || peer_of(p, m->host_id, false))
			continue;
		if (g->members_void) {
			marks_peer(g->marks, m->host_id, false, "this host is no longer in the group", now_ns());
		} else if (!certified(g, m->host_id, NULL)) {
			marks_peer(g->marks, m->host_id, false, REVOKED, now_ns());
		} else if (strcmp(me, m->host_id) > 0) {
			snprintf(why, sizeof(why), "has not connected to this host");
			marks_peer(g->marks, m->host_id, false, why, now_ns());
		} else if (!*text_of(entry_of(g, m->host_id), "address")) {
			marks_peer(g->marks, m->host_id, false, "the vault has not said yet where it is", now_ns());
		} else {
			dial(p, g, m->host_id, text_of(entry_of(g, m->host_id), "address"));
		}
	}
}

static void listen_now(struct peers *p)
{
	struct why why = { "" };

	if (p->listener) {
		listen_tick(p->listener);
		return;
	}
	if (!load(p, &why) && !listen_open(p->d->loop, p->listen, false, on_accept, p, &p->listener, &why))
		log_info("hosts of the same groups reach this one at %s", p->listen);
	trouble(p, why.text);
}

/* Who waits for long sees that somebody is there */
static void wait_second(struct group *g)
{
	for (struct wait *w = g->waits; w; w = w->next)
		if (w->call && control_wants_more(w->call))
			control_reply(w->call, json_object(), true);
}

void peers_second(struct peers *p)
{
	uint64_t now = now_ns();
	struct why why = { "" };
	bool wanted = false;

	for (struct group *g = p->d->groups; g; g = g->next) {
		members_ask(p, g, now);
		wait_second(g);
		wanted |= marks_wanted(g->marks);
	}
	if (!wanted)
		return;
	listen_now(p);
	if (load(p, &why)) {
		trouble(p, why.text);
		return;
	}
	for (struct group *g = p->d->groups; g; g = g->next)
		if (marks_wanted(g->marks)) {
			connect_group(p, g);
			peers_group_reads(g);
		}
}

int peers_create(struct asrd *d, const char *listen, const char *address, struct peers **out)
{
	struct peers *p = calloc(1, sizeof(*p));

	if (!p || !(p->listen = strdup(listen)) || (address && !(p->address = strdup(address))))
		return -ENOMEM;
	p->d = d;
	seal_random(&p->incarnation, sizeof(p->incarnation));
	p->incarnation >>= 2;	/* JSON's numbers have a sign; attachments are added */
	*out = p;
	return 0;
}
