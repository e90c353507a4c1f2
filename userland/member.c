// SPDX-License-Identifier: Apache-2.0
/*
 * Groups and their hosts, as far as the vault has a say: made, joined, left, admitted, evicted.
 *
 * Design. Each call goes to the vault, and is answered when the vault has
 * answered. To join, a host asks for the group by its name, makes it here with
 * a stream and a key of its own, pending, and tells the vault.
 *
 * Invariants. A call is answered exactly once. Errors leave nothing behind, but
 * a group that the vault may have: that one stays pending. A group is in one
 * call to the vault at a time, which may take it away.
 *
 * Context. The loop's thread.
 */
#include <errno.h>
#include <string.h>

#include "source.h"

#define RECIPIENTS_MAX	16

/* A method under way at the vault */
struct pending {
	struct control_call *call;
	struct asrd *d;
	struct group *g;
};

static struct pending *pending_new(struct control_call *call, struct asrd *d, struct group *g)
{
	struct pending *p = malloc(sizeof(*p));

	if (p)
		*p = (struct pending){ call, d, g };
	return p;
}

static void created(int err, json_t *reply, const struct why *why, void *arg)
{
	struct pending *p = arg;
	char uuid[2 * ASR_UUID_BYTES + 1];
	struct why disk = { "" };

	p->g->asked = false;
	if (err == -EPIPE) {
		/* the vault may have it, and its name: it stays pending and is told again */
		control_error(p->call, "the connection broke before the vault answered: %s. Group %s is kept and "
			      "confirmed when the vault is back; asrctl group delete takes it away", why->text,
			      p->g->name);
	} else if (err) {
		control_error(p->call, "group %s was not made: the vault says %s", p->g->name, why->text);
		group_drop(p->g);
	} else if (group_confirm(p->g, &disk)) {
		control_error(p->call, "group %s is made, but its file was not written: %s", p->g->name, disk.text);
	} else {
		hex_encode(p->g->pack.group, ASR_UUID_BYTES, uuid);
		log_info("group %s: made, uuid %s", p->g->name, uuid);
		control_reply(p->call, json_pack("{s:s, s:s}", "name", p->g->name, "uuid", uuid), false);
	}
	free(p);
}

static int check_create(struct asrd *d, const char *name, uint64_t *ring, json_t *recipients, int level,
			struct why *why)
{
	char line[512];
	int r = name_check("group", name, why);

	if (r)
		return r;
	if (group_find(d, name))
		return why_set(why, EEXIST, "there is a group %s already", name);
	if (d->ring_file && d->groups)
		return why_set(why, EEXIST, "a ring file serves one group, and %s has it", d->groups->name);
	if (!*ring)
		*ring = ASR_RING_DEFAULT;
	if (*ring < ASR_RING_MIN || *ring > ASR_RING_MAX || (*ring & (*ring - 1)))
		return why_set(why, EINVAL, "a ring of %llu bytes: a power of two from 1 MiB to 4 GiB is right",
			       (unsigned long long)*ring);
	if (level < 0 || level > 19)
		return why_set(why, EINVAL, "compression %d: 0 (off) to 19 is right", level);
	if (!json_array_size(recipients) || json_array_size(recipients) > RECIPIENTS_MAX)
		return why_set(why, EINVAL, "%zu recipients: 1 to %d certificates are needed, or nobody could restore",
			       json_array_size(recipients), RECIPIENTS_MAX);
	for (size_t i = 0; i < json_array_size(recipients) && !r; i++) {
		const char *pem = json_string_value(json_array_get(recipients, i));

		r = pem ? seal_cert_describe(pem, line, sizeof(line), why) :
			  why_set(why, EINVAL, "recipient %zu is not PEM text", i + 1);
	}
	if (!r && !ship_is_up(d->ship)) {
		cleanup_json s = ship_status(d->ship);

		r = why_set(why, ENOTCONN, "a new group needs the vault, which is not connected: %s",
			    json_string_value(json_object_get(s, "last_error")));
	}
	return r;
}

/* What create and join have in common: the parameters, which n points into */
static int new_parameters(json_t *parameters, struct asrd *d, struct group_new *n, struct why *why)
{
	json_int_t ring = 0;

	*n = (struct group_new){ .compression = -1 };
	if (json_unpack(parameters, "{s:s, s?I, s:o, s?i}", "name", &n->name, "ring_bytes", &ring, "recipients",
			&n->recipients, "compression", &n->compression) || ring < 0)
		return why_set(why, EINVAL, "wrong parameters: name, recipients (PEM texts), and if wanted ring_bytes, "
			       "compression");
	n->ring_bytes = (uint64_t)ring;
	if (n->compression == -1)
		n->compression = d->compression;
	return check_create(d, n->name, &n->ring_bytes, n->recipients, n->compression, why);
}

/* ... and the group itself: here, then at the vault, whose answer is the call's */
static void make(struct control_call *call, struct asrd *d, const struct group_new *n)
{
	struct why why = { "" };
	struct pending *p;
	struct group *g;
	int r = group_make(d, n, &g, &why);

	if (r) {
		control_error(call, "%s", why.text[0] ? why.text : strerror(-r));
		return;
	}
	p = pending_new(call, d, g);
	r = p ? group_register(g, created, p, &why) : -ENOMEM;
	g->asked = !r;
	if (r) {
		control_error(call, "%s", why.text[0] ? why.text : strerror(-r));
		group_drop(g);
		free(p);
	}
}

void member_create(struct control_call *call, json_t *parameters, struct asrd *d)
{
	struct group_new n;
	struct why why = { "" };

	if (new_parameters(parameters, d, &n, &why)) {
		control_error(call, "%s", why.text);
		return;
	}
	n.generation = 1;
	make(call, d, &n);
}

static void deleted(int err, json_t *reply, const struct why *why, void *arg)
{
	struct pending *p = arg;

	p->g->asked = false;
	if (err && strncmp(why->text, "unknown-group", 13)) {
		control_error(p->call, "the vault did not let group %s go: %s", p->g->name, why->text);
	} else {
		log_info("group %s: deleted", p->g->name);
		group_drop(p->g);
		control_reply(p->call, json_object(), false);
	}
	free(p);
}

void member_delete(struct control_call *call, json_t *parameters, struct asrd *d)
{
	struct group *g = method_group(call, parameters, "name", d);
	char uuid[2 * ASR_UUID_BYTES + 1];
	struct pending *p;
	unsigned int n;

	if (!g)
		return;
	if (g->asked) {
		control_error(call, "group %s is being made or deleted: the vault has not answered yet", g->name);
		return;
	}
	n = method_active_disks(g);
	if (n) {
		control_error(call, "group %s protects %u disk%s: unprotect first (asrctl disk unprotect)", g->name, n,
			      n > 1 ? "s" : "");
		return;
	}
	hex_encode(g->pack.group, ASR_UUID_BYTES, uuid);
	p = pending_new(call, d, g);
	if (!p || ship_call(d->ship, "group.delete", json_pack("{s:s}", "group", uuid), deleted, p)) {
		control_error(call, "the vault is not connected: it must learn that group %s ends", g->name);
		free(p);
		return;
	}
	g->asked = true;
}


/* ------------------------------------------------------------------- joining */

struct join {
	struct control_call *call;
	struct asrd *d;
	struct group_new n;
	char name[ASR_NAME_BYTES];
	json_t *recipients;
};

static void join_free(struct join *j)
{
	json_decref(j->recipients);
	free(j);
}

static void found(int err, json_t *reply, const struct why *why, void *arg)
{
	struct join *j = arg;
	uint8_t uuid[ASR_UUID_BYTES];
	const char *hex = json_string_value(json_object_get(reply, "group"));
	json_int_t generation = json_integer_value(json_object_get(reply, "generation"));

	if (err) {
		control_error(j->call, "group %s was not joined: the vault says %s", j->name, why->text);
	} else if (!hex || hex_decode(hex, uuid, sizeof(uuid)) || generation < 1) {
		control_error(j->call, "group %s was not joined: the vault's answer is nonsense", j->name);
	} else if (group_find(j->d, j->name)) {
		control_error(j->call, "there is a group %s already", j->name);
	} else {
		j->n.name = j->name;
		j->n.uuid = uuid;
		j->n.generation = (uint64_t)generation;
		make(j->call, j->d, &j->n);
	}
	join_free(j);
}

void member_join(struct control_call *call, json_t *parameters, struct asrd *d)
{
	struct group_new n;
	struct why why = { "" };
	int r = new_parameters(parameters, d, &n, &why);
	struct join *j = r ? NULL : calloc(1, sizeof(*j));

	if (!j) {
		control_error(call, "%s", r ? why.text : "out of memory");
		return;
	}
	*j = (struct join){ .call = call, .d = d, .recipients = json_incref(n.recipients), .n = n };
	snprintf(j->name, sizeof(j->name), "%s", n.name);
	if (ship_call(d->ship, "group.find", json_pack("{s:s}", "name", n.name), found, j)) {
		control_error(call, "the vault is not connected: it must say which group %s is", n.name);
		join_free(j);
	}
}

/* -------------------------------------------------- what members say of others */

struct relay {
	struct control_call *call;
	char name[ASR_NAME_BYTES];
};

static void relayed(int err, json_t *reply, const struct why *why, void *arg)
{
	struct relay *r = arg;

	if (err)
		control_error(r->call, "group %s: the vault says %s", r->name, why->text);
	else
		control_reply(r->call, json_incref(reply), false);
	free(r);
}

/* To the vault as it is, with the group's uuid; its answer is the call's */
static void relay(struct control_call *call, struct group *g, const char *method, json_t *parameters)
{
	struct relay *r = malloc(sizeof(*r));
	char uuid[2 * ASR_UUID_BYTES + 1];

	hex_encode(g->pack.group, ASR_UUID_BYTES, uuid);
	json_object_set_new(parameters, "group", json_string(uuid));
	if (r) {
		r->call = call;
		memcpy(r->name, g->name, sizeof(r->name));
	}
	if (!r || ship_call(g->d->ship, method, json_incref(parameters), relayed, r)) {
		control_error(call, "the vault is not connected: it has the list of the hosts of group %s", g->name);
		free(r);
	}
	g->members_ns = 0;	/* ask soon who is in it now */
	json_decref(parameters);
}

static void of_host(struct control_call *call, json_t *parameters, struct asrd *d, const char *method)
{
	const char *host = json_string_value(json_object_get(parameters, "host"));
	struct group *g = method_group(call, parameters, "name", d);

	if (g && !host)
		control_error(call, "parameter \"host\" is missing: a host's name or id");
	else if (g)
		relay(call, g, method, json_pack("{s:s}", "host", host));
}

void member_admit(struct control_call *call, json_t *parameters, struct asrd *d)
{
	of_host(call, parameters, d, "group.admit");
}

void member_evict(struct control_call *call, json_t *parameters, struct asrd *d)
{
	of_host(call, parameters, d, "group.evict");
}

void member_marks(struct control_call *call, json_t *parameters, struct asrd *d)
{
	static const char *const keys[] = { "mark_ms", "hold_ms" };
	struct group *g = method_group(call, parameters, "name", d);
	json_t *p;

	if (!g)
		return;
	p = json_object();
	for (int i = 0; i < 2; i++) {
		json_t *v = json_object_get(parameters, keys[i]);

		if (v && !json_is_integer(v)) {
			control_error(call, "%s must be a number of milliseconds", keys[i]);
			json_decref(p);
			return;
		}
		if (v)
			json_object_set(p, keys[i], v);
	}
	relay(call, g, "group.marks", p);
}
