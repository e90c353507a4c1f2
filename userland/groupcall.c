// SPDX-License-Identifier: Apache-2.0
/*
 * What hosts ask the vault about groups: made, joined, left, who is in them.
 *
 * Design: a group has members: hosts, each with a stream and a key of its own.
 * The first is who made it; others join when a member has admitted them. Each
 * change of the members begins an epoch, whose number the group's marks carry:
 * so a mark says for itself which streams it must be in. The folder has the new
 * epoch of a join before the catalogue does, for nobody makes marks for it
 * before; that of one who leaves after it, for with fewer hosts more moments are
 * points. What a crash leaves in between is put right by the catalogue when a
 * stream is opened, and at the next change.
 *
 * Invariants: a host learns of a group, and changes it, only as a member or,
 * by its name, when admitted.
 *
 * Context: blocks on the file system; never per frame.
 */
#include "vault.h"

#include <errno.h>
#include <string.h>

#define WRAPPED_MAX	65536
#define RECIPIENTS_MAX	64
#define RECIPIENT_MAX	512		/* characters of the line that tells who it is */
#define MEMBERS_MAX	64

static int uuid_of(const json_t *p, const char *key, uint8_t out[ASR_UUID_BYTES], struct why *why)
{
	if (!hex_decode(text_of(p, key), out, ASR_UUID_BYTES))
		return 0;
	return why_set(why, EINVAL, "\"%s\" must be 32 hex digits", key);
}

static int base64_digit(char ch)
{
	static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
	const char *p = ch ? strchr(digits, ch) : NULL;

	return p ? (int)(p - digits) : -1;
}

/* -EINVAL: not base64, empty, or more than room */
static int base64_decode(const char *text, uint8_t *out, size_t room, size_t *bytes)
{
	uint32_t bits = 0;
	int have = 0, d;
	size_t n = 0;

	for (; *text && *text != '='; text++) {
		d = base64_digit(*text);
		if (d < 0)
			return -EINVAL;
		bits = bits << 6 | (uint32_t)d;
		have += 6;
		if (have >= 8) {
			if (n == room)
				return -EINVAL;
			have -= 8;
			out[n++] = (uint8_t)(bits >> have);
		}
	}
	*bytes = n;
	return n && !text[strspn(text, "=")] ? 0 : -EINVAL;
}

static bool recipients_ok(const json_t *list)
{
	const json_t *v;
	size_t i;

	if (!json_is_array(list) || !json_array_size(list) || json_array_size(list) > RECIPIENTS_MAX)
		return false;
	json_array_foreach(list, i, v)
		if (!json_is_string(v) || json_string_length(v) > RECIPIENT_MAX)
			return false;
	return true;
}


/* ------------------------------------------------------------------ members */

struct roll {
	const struct groupcall *c;
	json_t *list;			/* of those who are in it */
	struct catalog_member mine;	/* host_id "": this host has none */
	bool admitted, any;
	unsigned int members;
};

static int each_member(const struct catalog_member *m, void *arg)
{
	struct roll *r = arg;
	bool mine = !strcmp(m->host_id, r->c->host_id);
	char stream[33], when[40];

	r->any = true;
	if (m->gone_ns)
		return 0;
	r->admitted |= mine && !m->joined_ns;
	if (!m->joined_ns)
		return 0;
	if (mine)
		r->mine = *m;
	r->members++;
	hex_encode(m->stream, ASR_UUID_BYTES, stream);
	json_array_append_new(r->list, json_pack("{s:s, s:s, s:s, s:s}", "host_id", m->host_id, "host",
						 *m->host ? m->host : m->host_id, "stream", stream, "joined",
						 time_format(m->joined_ns, when)));
	return 0;
}

static int roll_call(const struct groupcall *c, const struct catalog_group *g, struct roll *r, struct why *why)
{
	*r = (struct roll){ .c = c, .list = json_array() };
	return catalog_members(c->cat, g->uuid, each_member, r, why);
}

static int fail(const char **code, const char *name, int err)
{
	*code = name;
	return err;
}

/* The group that a call names, if this host is in it. *r: the caller drops its list */
static int own_group(const struct groupcall *c, json_t *p, struct catalog_group *g, struct roll *r, const char **code,
		     struct why *why)
{
	uint8_t uuid[ASR_UUID_BYTES];
	int ret = uuid_of(p, "group", uuid, why);

	r->list = NULL;
	if (ret)
		return fail(code, "bad-parameter", ret);
	ret = catalog_group_get(c->cat, uuid, g, why);
	if (!ret)
		ret = roll_call(c, g, r, why);
	if (!ret && !r->any) {
		json_decref(r->list);
		r->list = NULL;
		ret = catalog_member_first(c->cat, g, why);
		if (!ret)
			ret = roll_call(c, g, r, why);
	}
	if (ret)
		return fail(code, ret == -ENOENT ? "unknown-group" : "vault-failed", ret);
	/* who made a group that was deleted may ask again; its history stays that host's */
	if (*r->mine.host_id || (g->deleted_ns && !strcmp(g->host_id, c->host_id)))
		return 0;
	return fail(code, "not-allowed", why_set(why, EACCES, "that group is another host's"));
}

static const json_t *of_stream(const json_t *list, const char *stream)
{
	const json_t *m;
	size_t i;

	json_array_foreach(list, i, m)
		if (!strcmp(text_of(m, "stream"), stream))
			return m;
	return NULL;
}

/*
 * The folder as of g and of the roll, which the catalogue has, without the host gone, and with add (stolen;
 * both may be NULL). Whoever else the folder has as a member is one that a crash left there.
 */
static int roll_write(const struct groupcall *c, const struct catalog_group *g, const json_t *roll, const char *gone,
		      json_t *add, struct why *why)
{
	uint64_t epoch;
	cleanup_json members = folder_members(c->dir, g->uuid, &epoch, why);
	cleanup_json mine = add;
	json_t *m;
	char when[40];
	size_t i;

	if (!members)
		return -EIO;
	for (i = 0; add && i < json_array_size(members); )
		if (!strcmp(text_of(json_array_get(members, i), "stream"), text_of(add, "stream")))
			json_array_remove(members, i);
		else
			i++;
	json_array_foreach(members, i, m) {
		const json_t *in = of_stream(roll, text_of(m, "stream"));

		if (in && !*text_of(m, "name"))
			json_object_set(m, "name", json_object_get(in, "host"));
		if (in && !(gone && !strcmp(text_of(in, "host_id"), gone)))
			json_object_set_new(m, "left", json_null());
		else if (json_is_null(json_object_get(m, "left")))
			json_object_set_new(m, "left", json_string(time_format(now_real_ns(), when)));
	}
	if (add)
		json_array_append(members, mine);
	return folder_make(c->dir, g, members, why);
}

static json_t *member_json(const struct groupcall *c, json_t *p, uint64_t joined_ns)
{
	struct catalog_host h = { .name = "" };
	char when[40];

	catalog_host_get(c->cat, c->host_id, &h, NULL);
	return json_pack("{s:s, s:s, s:s, s:O, s:s, s:n}", "host", c->host_id, "name", h.name, "stream",
			 text_of(p, "stream"), "recipients", json_object_get(p, "recipients"), "joined",
			 time_format(joined_ns, when), "left");
}

/* What create and join have in common */
static int source_parameters(json_t *p, struct catalog_group *g, uint8_t *stream, uint8_t *wrapped, size_t *bytes,
			     struct why *why)
{
	int ret = uuid_of(p, "group", g->uuid, why);

	if (!ret)
		ret = uuid_of(p, "stream", stream, why);
	if (!ret)
		ret = name_check("group", text_of(p, "name"), why);
	if (ret)
		return ret;
	snprintf(g->name, sizeof(g->name), "%s", text_of(p, "name"));
	if (base64_decode(text_of(p, "wrapped_key"), wrapped, WRAPPED_MAX, bytes))
		return why_set(why, EINVAL, "\"wrapped_key\" must be base64");
	if (!recipients_ok(json_object_get(p, "recipients")))
		return why_set(why, EINVAL, "\"recipients\" must be 1 to %d lines of at most %d characters",
			       RECIPIENTS_MAX, RECIPIENT_MAX);
	return 0;
}

/* -------------------------------------------------------------------- calls */

static int group_create(const struct groupcall *c, json_t *p, json_t **answer, const char **code, struct why *why)
{
	cleanup_free uint8_t *wrapped = malloc(WRAPPED_MAX);
	struct catalog_group old, g = { .generation = 1, .epoch = 1, .mark_ms = GROUP_MARK_MS,
					.hold_ms = GROUP_HOLD_MS };
	bool added = false;
	size_t bytes = 0;
	int ret = wrapped ? source_parameters(p, &g, g.stream, wrapped, &bytes, why) : -ENOMEM;

	if (ret)
		return fail(code, "bad-parameter", ret);
	snprintf(g.host_id, sizeof(g.host_id), "%s", c->host_id);
	g.created_ns = now_real_ns();
	ret = catalog_group_get(c->cat, g.uuid, &old, why);
	if (!ret && (strcmp(old.host_id, c->host_id) || old.deleted_ns))
		return fail(code, "not-allowed", why_set(why, EACCES, "that group is another host's, or was deleted"));
	if (!ret && (strcmp(old.name, g.name) || memcmp(old.stream, g.stream, ASR_UUID_BYTES)))
		return fail(code, "bad-parameter",
			    why_set(why, EINVAL, "that group exists under another name or stream"));
	if (!ret && old.epoch > 1)
		return 0;	/* others have joined since: it was made */
	if (ret == -ENOENT) {
		ret = catalog_group_add(c->cat, &g, why);
		if (ret)
			return fail(code, ret == -EEXIST ? "name-taken" : "vault-failed", ret);
		added = true;
	}
	if (!ret)
		ret = folder_key(c->dir, g.uuid, g.stream, wrapped, bytes, why);
	if (!ret)
		ret = roll_write(c, &g, NULL, NULL, member_json(c, p, g.created_ns), why);
	if (ret) {
		if (added)
			catalog_group_delete(c->cat, g.uuid, NULL);
		return fail(code, "vault-failed", ret);
	}
	log_info("host %s: group %s", c->host_id, g.name);
	catalog_audit(c->cat, c->host_id, "group.create", g.name);
	return 0;
}

/* Takes a member out; with the last one the group has no source any more */
static int leave(const struct groupcall *c, struct catalog_group *g, const struct roll *r, const char *host_id,
		 const char **code, struct why *why)
{
	int ret;

	if (g->epoch == GROUP_EPOCHS)
		return fail(code, "not-allowed", why_set(why, ERANGE, "group %s has had too many members", g->name));
	g->epoch++;
	if (r->members == 1)
		g->deleted_ns = now_real_ns();
	/* a folder that lags behind lacks points, until roll_heal; one ahead would offer those of fewer hosts */
	ret = r->members == 1 ? roll_write(c, g, r->list, host_id, NULL, why) : 0;
	if (!ret)
		ret = catalog_member_leave(c->cat, g, host_id, why);
	if (!ret && r->members > 1)
		ret = roll_write(c, g, r->list, host_id, NULL, why);
	return ret ? fail(code, "vault-failed", ret) : 0;
}

/* What a crash between catalogue and folder has left */
static int roll_heal(const struct groupcall *c, const struct catalog_group *g, const json_t *roll, struct why *why)
{
	uint64_t epoch;
	json_t *members = folder_members(c->dir, g->uuid, &epoch, why);

	json_decref(members);
	if (!members || epoch == g->epoch || (!epoch && g->epoch == 1))
		return members ? 0 : -EIO;
	log_warn("group %s: its folder is of members list %llu, and %llu counts: written anew", g->name,
		 (unsigned long long)epoch, (unsigned long long)g->epoch);
	return roll_write(c, g, roll, NULL, NULL, why);
}

static int group_delete(const struct groupcall *c, json_t *p, json_t **answer, const char **code, struct why *why)
{
	struct catalog_group g;
	struct roll r;
	int ret = own_group(c, p, &g, &r, code, why);

	if (!ret && !g.deleted_ns) {	/* else: the answer was lost, the host asks once more */
		ret = leave(c, &g, &r, c->host_id, code, why);
		if (!ret)
			catalog_audit(c->cat, c->host_id, "group.delete", g.name);
	} else if (ret == -EACCES) {
		ret = fail(code, "unknown-group", ret);	/* left already, or never in it: the same to the host */
	}
	json_decref(r.list);
	return ret;
}

/* A host that another call of a member names: *h */
static int other_host(const struct groupcall *c, json_t *p, struct catalog_host *h, const char **code, struct why *why)
{
	int ret = catalog_host_find(c->cat, text_of(p, "host"), h, why);

	return ret ? fail(code, ret == -ENOENT || ret == -EINVAL ? "unknown-host" : "vault-failed", ret) : 0;
}

static bool is_member(const json_t *list, const char *host_id)
{
	const json_t *m;
	size_t i;

	json_array_foreach(list, i, m)
		if (!strcmp(text_of(m, "host_id"), host_id))
			return true;
	return false;
}

static int group_admit(const struct groupcall *c, json_t *p, json_t **answer, const char **code, struct why *why)
{
	struct catalog_group g;
	struct catalog_host h;
	struct roll r;
	int ret = own_group(c, p, &g, &r, code, why);

	if (!ret && g.deleted_ns)
		ret = fail(code, "not-allowed", why_set(why, EACCES, "group %s was deleted", g.name));
	if (!ret)
		ret = other_host(c, p, &h, code, why);
	if (!ret && is_member(r.list, h.id))
		ret = fail(code, "bad-parameter", why_set(why, EEXIST, "host %s is in group %s", h.name, g.name));
	if (!ret && r.members >= MEMBERS_MAX)
		ret = fail(code, "not-allowed", why_set(why, ENOSPC, "a group has at most %d hosts", MEMBERS_MAX));
	if (!ret) {
		ret = catalog_member_admit(c->cat, g.uuid, h.id, why);
		if (ret)
			fail(code, "vault-failed", ret);
		catalog_audit(c->cat, c->host_id, "group.admit", g.name);
		*answer = json_pack("{s:s, s:s}", "host_id", h.id, "host", h.name);
	}
	json_decref(r.list);
	return ret;
}

static int group_evict(const struct groupcall *c, json_t *p, json_t **answer, const char **code, struct why *why)
{
	struct catalog_group g;
	struct catalog_host h;
	struct roll r;
	int ret = own_group(c, p, &g, &r, code, why);

	if (!ret)
		ret = other_host(c, p, &h, code, why);
	if (!ret && !strcmp(h.id, c->host_id))
		ret = fail(code, "bad-parameter", why_set(why, EINVAL, "this host leaves by `asrctl group delete`"));
	if (!ret && !is_member(r.list, h.id)) {		/* or was it admitted only? */
		ret = catalog_member_refuse(c->cat, g.uuid, h.id, why);
		if (ret == -ENOENT)
			ret = fail(code, "bad-parameter", why_set(why, ENOENT, "host %s is not in group %s", h.name,
								  g.name));
		else if (ret)
			fail(code, "vault-failed", ret);
	} else if (!ret) {
		ret = leave(c, &g, &r, h.id, code, why);
	}
	if (!ret) {
		catalog_audit(c->cat, c->host_id, "group.evict", g.name);
		*answer = json_pack("{s:s, s:s}", "host_id", h.id, "host", h.name);
	}
	json_decref(r.list);
	return ret;
}

/* By its name, for who may join it, or is in it already: its answer was lost then */
static int find_admitted(const struct groupcall *c, json_t *p, struct catalog_group *g, struct roll *r,
			 const char **code, struct why *why)
{
	int ret = name_check("group", text_of(p, "name"), why);

	r->list = NULL;
	if (ret)
		return fail(code, "bad-parameter", ret);
	ret = catalog_group_find(c->cat, text_of(p, "name"), g, why);
	if (!ret)
		ret = roll_call(c, g, r, why);
	if (ret && ret != -ENOENT)
		return fail(code, "vault-failed", ret);
	if (!ret && (r->admitted || *r->mine.host_id))
		return 0;
	return fail(code, "not-allowed", why_set(why, EACCES, "this vault has no group %.64s that admits this host: on "
						 "a host of the group, `asrctl group admit` does", text_of(p, "name")));
}

static int group_find(const struct groupcall *c, json_t *p, json_t **answer, const char **code, struct why *why)
{
	struct catalog_group g;
	struct roll r;
	char uuid[33];
	int ret = find_admitted(c, p, &g, &r, code, why);

	if (!ret) {
		hex_encode(g.uuid, ASR_UUID_BYTES, uuid);
		*answer = json_pack("{s:s, s:I}", "group", uuid, "generation", (json_int_t)g.generation);
	}
	json_decref(r.list);
	return ret;
}

static int each_stream(const struct catalog_member *m, void *arg)
{
	return !memcmp(m->stream, arg, ASR_UUID_BYTES);
}

/* Or is it none at all? A stream is one host's, and once. */
static bool stream_taken(const struct groupcall *c, const struct catalog_group *g, uint8_t *stream)
{
	static const uint8_t none[ASR_UUID_BYTES];

	return !memcmp(stream, none, sizeof(none)) || !memcmp(stream, g->stream, sizeof(none)) ||
	       catalog_members(c->cat, g->uuid, each_stream, stream, NULL);
}

static int group_join(const struct groupcall *c, json_t *p, json_t **answer, const char **code, struct why *why)
{
	cleanup_free uint8_t *wrapped = malloc(WRAPPED_MAX);
	struct catalog_member m = { .joined_ns = now_real_ns() };
	struct catalog_group g, asked = { .name = "" };
	struct roll r = { .list = NULL };
	size_t bytes = 0;
	int ret = wrapped ? source_parameters(p, &asked, m.stream, wrapped, &bytes, why) : -ENOMEM;

	if (ret)
		return fail(code, "bad-parameter", ret);
	ret = find_admitted(c, p, &g, &r, code, why);
	if (!ret && memcmp(g.uuid, asked.uuid, ASR_UUID_BYTES))
		ret = fail(code, "not-allowed", why_set(why, ESTALE, "group %s is another one by now", g.name));
	if (!ret && *r.mine.host_id) {
		if (memcmp(r.mine.stream, m.stream, ASR_UUID_BYTES))
			ret = fail(code, "not-allowed", why_set(why, EEXIST, "this host is in group %s already",
								g.name));
		json_decref(r.list);
		return ret;
	}
	if (!ret && (g.epoch == GROUP_EPOCHS || r.members >= MEMBERS_MAX))
		ret = fail(code, "not-allowed", why_set(why, ERANGE, "group %s has or has had too many members",
							g.name));
	if (!ret && stream_taken(c, &g, m.stream))
		ret = fail(code, "bad-parameter", why_set(why, EEXIST, "that stream is not a new one"));
	if (ret) {
		json_decref(r.list);
		return ret;
	}
	g.epoch++;
	snprintf(m.host_id, sizeof(m.host_id), "%s", c->host_id);
	ret = folder_key(c->dir, g.uuid, m.stream, wrapped, bytes, why);
	if (!ret)
		ret = roll_write(c, &g, r.list, NULL, member_json(c, p, m.joined_ns), why);
	if (!ret) {
		ret = catalog_member_join(c->cat, &g, &m, why);
		g.epoch--;
		if (ret && roll_write(c, &g, r.list, NULL, NULL, NULL))
			log_warn("group %s: its folder names a host that has not joined, until its next change",
				 g.name);
	}
	json_decref(r.list);
	if (ret)
		return fail(code, ret == -EACCES ? "not-allowed" : "vault-failed", ret);
	log_info("host %s: joined group %s", c->host_id, g.name);
	catalog_audit(c->cat, c->host_id, "group.join", g.name);
	return 0;
}

static int group_members(const struct groupcall *c, json_t *p, json_t **answer, const char **code, struct why *why)
{
	struct catalog_group g;
	struct roll r;
	int ret = own_group(c, p, &g, &r, code, why);
	json_t *m;
	size_t i;

	json_array_foreach(r.list, i, m)
		if (!ret && json_object_set_new(m, "certificates", catalog_certs(c->cat, text_of(m, "host_id"))))
			ret = fail(code, "vault-failed", why_set(why, EIO, "the vault's catalogue cannot be read"));
	if (ret) {
		json_decref(r.list);
		return ret;
	}
	*answer = json_pack("{s:s, s:I, s:I, s:I, s:o}", "you", c->host_id, "epoch", (json_int_t)g.epoch, "mark_ms",
			    (json_int_t)g.mark_ms, "hold_ms", (json_int_t)g.hold_ms, "members", r.list);
	return 0;
}

static int group_marks(const struct groupcall *c, json_t *p, json_t **answer, const char **code, struct why *why)
{
	json_int_t mark, hold;
	struct catalog_group g;
	struct roll r;
	int ret = own_group(c, p, &g, &r, code, why);

	json_decref(r.list);
	if (ret)
		return ret;
	mark = (json_int_t)g.mark_ms;
	hold = (json_int_t)g.hold_ms;
	if (json_unpack(p, "{s?I, s?I}", "mark_ms", &mark, "hold_ms", &hold) ||
	    (mark && (mark < 100 || mark > 3600000)) || hold < 1 || hold > 1000)
		return fail(code, "bad-parameter", why_set(why, EINVAL, "mark_ms must be 100 to 3600000, or 0: no "
							   "marks; hold_ms 1 to 1000"));
	ret = catalog_group_marks(c->cat, g.uuid, (uint64_t)mark, (uint64_t)hold, why);
	if (ret)
		return fail(code, "vault-failed", ret);
	catalog_audit(c->cat, c->host_id, "group.marks", g.name);
	return 0;
}

json_t *groupcall(const struct groupcall *c, const char *method, json_t *parameters, const char **code,
		  struct why *why)
{
	static const struct {
		const char *name;
		int (*fn)(const struct groupcall *c, json_t *p, json_t **answer, const char **code, struct why *why);
	} calls[] = {
		{ "group.create", group_create }, { "group.delete", group_delete }, { "group.admit", group_admit },
		{ "group.evict", group_evict }, { "group.find", group_find }, { "group.join", group_join },
		{ "group.members", group_members }, { "group.marks", group_marks },
	};
	json_t *answer = NULL;

	for (size_t i = 0; i < sizeof(calls) / sizeof(calls[0]); i++) {
		if (strcmp(method, calls[i].name))
			continue;
		if (!calls[i].fn(c, parameters, &answer, code, why))
			return answer ? answer : json_object();
		json_decref(answer);
		return NULL;
	}
	*code = "unknown-method";
	why_set(why, ENOSYS, "%.100s", method);
	return NULL;
}

int groupcall_stream(const struct groupcall *c, json_t *p, struct catalog_group *g, uint8_t stream[ASR_UUID_BYTES],
		     const char **code, struct why *why)
{
	json_int_t generation = json_integer_value(json_object_get(p, "generation"));
	struct roll r;
	int ret = own_group(c, p, g, &r, code, why);

	if (!ret && !g->deleted_ns && roll_heal(c, g, r.list, why))
		ret = fail(code, "vault-failed", -EIO);
	json_decref(r.list);
	if (ret)
		return ret;
	if (g->deleted_ns)
		return fail(code, "not-allowed", why_set(why, EACCES, "that group was deleted: its history is kept, it "
							 "takes no more"));
	if (uuid_of(p, "stream", stream, NULL) || memcmp(stream, r.mine.stream, ASR_UUID_BYTES))
		return fail(code, "not-allowed", why_set(why, EACCES, "that stream is not this host's of the group"));
	if (generation < 1 || (uint64_t)generation != g->generation)
		return fail(code, (uint64_t)generation < g->generation ? "fenced" : "bad-parameter",
			    why_set(why, ESTALE, "the group is in another generation: it has been failed over"));
	return 0;
}
