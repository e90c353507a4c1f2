// SPDX-License-Identifier: Apache-2.0
/*
 * What asrd answers on its control socket.
 *
 * Design. A table of methods; each checks its parameters, does or refuses, and
 * says in words what was wrong, which value, and what would be right. Create
 * and Delete wait for the vault's answer; the others answer at once.
 *
 * RPO in seconds is the age of the oldest captured write that is not durable
 * at the vault; in TRACK, where no write is captured, the age of the newest
 * that is. RPO in bytes is what is captured or dirty, and not durable.
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

static int group_info(const struct group *g, struct asr_group_info *info)
{
	memset(info, 0, sizeof(*info));
	memcpy(info->name, g->name, sizeof(info->name));
	if (g->source)
		return source_ioctl(g->source, ASR_IOC_GROUP_INFO, info);
	return g->d->ring_file ? -ENODEV : source_control(g->d->device, ASR_IOC_GROUP_INFO, info, NULL);
}

struct group *method_group(struct control_call *call, json_t *parameters, const char *key, struct asrd *d)
{
	const char *name = json_string_value(json_object_get(parameters, key));
	struct group *g = name ? group_find(d, name) : NULL;

	if (!name)
		control_error(call, "parameter \"%s\" is missing: the name of a group", key);
	else if (!g)
		control_error(call, "there is no group %s on this host: asrctl group list names them", name);
	return g;
}

unsigned int method_active_disks(struct group *g)
{
	struct asr_group_info info;
	unsigned int n = 0;

	if (group_info(g, &info))
		return 0;
	for (uint32_t i = 0; g->source && i < info.disks; i++) {
		struct asr_disk_info disk = { .slot = i };

		n += !source_ioctl(g->source, ASR_IOC_DISK_INFO, &disk) && disk.active;
	}
	return n;
}

static void group_mark(struct control_call *call, json_t *parameters, struct asrd *d)
{
	struct group *g = method_group(call, parameters, "group", d);
	const char *name = json_string_value(json_object_get(parameters, "name"));
	json_int_t limit = json_integer_value(json_object_get(parameters, "app_timeout_s"));	/* 0: crash */
	struct asr_mark mark = { .flags = 0 };
	struct why why = { "" };
	int r;

	if (!g)
		return;
	if (!name || name_check("mark", name, &why)) {
		control_error(call, "%s", name ? why.text : "parameter \"name\" is missing: the name of the mark");
		return;
	}
	if (marks_wanted(g->marks)) {
		if (limit < 0 || limit > APP_TIMEOUT_MAX)
			control_error(call, "bad app_timeout_s %lld: 1 to %d seconds are right", (long long)limit,
				      APP_TIMEOUT_MAX);
		else
			peers_mark(g, name, (uint64_t)limit * 1000000000, call);
		return;
	}
	if (limit) {
		control_error(call, "group %s is on this host alone: asrctl makes its applications quiet by itself",
			      g->name);
		return;
	}
	snprintf(mark.name, sizeof(mark.name), "%s", name);
	r = g->source ? source_ioctl(g->source, ASR_IOC_MARK, &mark) : -ENOTCONN;
	if (r) {
		control_error(call, "no mark in group %s: %s", g->name,
			      r == -ENOSPC ? "its ring is full, or it is in TRACK: wait until it is consistent again" :
			      r == -ENOTCONN ? g->trouble : strerror(-r));
		return;
	}
	control_reply(call, json_pack("{s:I, s:I, s:I}", "id", (json_int_t)mark.id, "seq", (json_int_t)mark.seq,
				      "time_ns", (json_int_t)mark.time_ns), false);
}

/* -------------------------------------------------------------- status */

static const char *state_name(const struct group *g, const struct asr_group_info *info)
{
	if (!g->source)
		return "DOWN";
	return info->state == ASR_STATE_TRACK ? "TRACK" : "CAPTURE";
}

static const char *phase_name(const struct group *g)
{
	if (!g->resync || !g->open)
		return g->was_consistent ? "idle" : "initial";
	if (!resync_active(g->resync))
		return "idle";
	return g->was_consistent ? "resync" : "initial";
}

static double rpo_seconds(const struct group *g, bool track)
{
	uint64_t now = now_real_ns(), since = track ? g->durable_time_ns : flow_oldest_ns(g);

	return since && now > since ? (double)(now - since) / 1e9 : 0.0;
}

static bool is_consistent(const struct group *g, const struct asr_group_info *info)
{
	return g->open ? g->resync && resync_consistent(g->resync) && info->state != ASR_STATE_TRACK : false;
}

static json_t *status_of(const struct group *g)
{
	struct asr_group_info info;
	bool known = !group_info(g, &info), track = known && info.state == ASR_STATE_TRACK;
	uint64_t dirty = known ? info.dirty_chunks * ASR_CHUNK_SECTORS * 512 : 0;
	json_t *s;

	s = json_pack("{s:s, s:s, s:b, s:s, s:s, s:b, s:f, s:I}", "name", g->name, "state", state_name(g, &info),
		      "consistent", is_consistent(g, &info), "phase", phase_name(g), "trouble", g->trouble,
		      "pending", g->pending, "rpo_s", rpo_seconds(g, track),
		      "rpo_bytes", (json_int_t)(flow_waiting_bytes(g) + dirty));
	json_object_set_new(s, "resync", g->resync ? resync_status(g->resync) : json_null());
	json_object_set_new(s, "ring", json_pack("{s:I, s:I}", "bytes", (json_int_t)info.ring_bytes, "used",
						 (json_int_t)(info.head - info.tail)));
	json_object_set_new(s, "spool", detour_status(g));
	json_object_set_new(s, "rate", json_pack("{s:f, s:f}", "write_bytes_per_s", g->in_rate,
						 "ship_bytes_per_s", g->out_rate));
	json_object_set_new(s, "compression_ratio", json_real(g->pack.stored_bytes ?
			    (double)g->pack.plain_bytes / (double)g->pack.stored_bytes : 1.0));
	json_object_set_new(s, "frames", json_integer((json_int_t)g->frames));
	json_object_set_new(s, "last_seq", json_integer((json_int_t)g->last_seq));
	json_object_set_new(s, "durable_seq", json_integer((json_int_t)g->durable_seq));
	json_object_set_new(s, "durable_time_ns", json_integer((json_int_t)g->durable_time_ns));
	json_object_set_new(s, "disks", json_integer(method_active_disks((struct group *)(uintptr_t)g)));
	json_object_set_new(s, "missing", watch_missing(g));
	json_object_set_new(s, "overflows", json_integer((json_int_t)info.overflows));
	json_object_set_new(s, "wakeups", json_integer((json_int_t)info.wakeups));
	return s;
}

static void status(struct control_call *call, json_t *parameters, struct asrd *d)
{
	struct asr_info info;
	struct why why = { "" };
	json_t *groups = json_array();
	json_t *module = json_object();

	for (const struct group *g = d->groups; g; g = g->next)
		json_array_append_new(groups, status_of(g));
	if (!d->ring_file && source_control(d->device, ASR_IOC_GET_INFO, &info, &why))
		json_object_set_new(module, "error", json_string(why.text));
	json_object_set_new(module, "loaded", json_boolean(!why.text[0]));
	control_reply(call, json_pack("{s:s, s:s, s:o, s:o, s:o}", "version", ASR_VERSION, "state_dir", d->state_dir,
				      "module", module, "vault", ship_status(d->ship), "groups", groups), false);
}

static json_t *describe(const struct group *g)
{
	char uuid[2 * ASR_UUID_BYTES + 1], stream[2 * ASR_UUID_BYTES + 1], line[512];
	json_t *lines = json_array(), *s;

	for (size_t i = 0; i < json_array_size(g->recipients); i++)
		if (!seal_cert_describe(json_string_value(json_array_get(g->recipients, i)), line, sizeof(line), NULL))
			json_array_append_new(lines, json_string(line));
	hex_encode(g->pack.group, ASR_UUID_BYTES, uuid);
	hex_encode(g->pack.stream, ASR_UUID_BYTES, stream);
	s = json_pack("{s:s, s:s, s:s, s:I, s:I, s:i, s:o}", "name", g->name, "uuid", uuid, "stream", stream,
		      "generation", (json_int_t)g->pack.generation, "ring_bytes", (json_int_t)g->ring_bytes,
		      "compression", g->pack.level, "recipients", lines);
	json_object_set_new(s, "marks", peers_status(g));
	json_object_set_new(s, "status", status_of(g));
	return s;
}

static void group_list(struct control_call *call, json_t *parameters, struct asrd *d)
{
	json_t *groups = json_array();

	for (const struct group *g = d->groups; g; g = g->next)
		json_array_append_new(groups, describe(g));
	control_reply(call, json_pack("{s:o}", "groups", groups), false);
}

static void group_show(struct control_call *call, json_t *parameters, struct asrd *d)
{
	const struct group *g = method_group(call, parameters, "name", d);

	if (g)
		control_reply(call, describe(g), false);
}

static json_t *describe_log(const struct asr_disk_info *k)
{
	if (!k->log_region_sectors)
		return json_null();
	return json_pack("{s:I, s:I, s:b, s:I}", "region_bytes", (json_int_t)k->log_region_sectors * 512, "regions_set",
			 (json_int_t)k->log_regions_set, "broken", !!(k->log_flags & ASR_LOGF_BROKEN), "writes",
			 (json_int_t)k->log_writes);
}

static void spool_discard_call(struct control_call *call, json_t *parameters, struct asrd *d)
{
	struct group *g = method_group(call, parameters, "group", d);
	struct why why = { "" };
	int r = g ? detour_discard(g, &why) : 0;

	if (r)
		control_error(call, "%s", why.text[0] ? why.text : strerror(-r));
	else if (g)
		control_reply(call, json_object(), false);
}

static void list_disks(struct group *g, json_t *disks)
{
	struct asr_group_info info;

	if (!g->source || group_info(g, &info))
		return;
	for (uint32_t i = 0; i < info.disks; i++) {
		struct asr_disk_info k = { .slot = i };
		char lower[24];

		if (source_ioctl(g->source, ASR_IOC_DISK_INFO, &k))
			continue;
		snprintf(lower, sizeof(lower), "%u:%u", k.lower_major, k.lower_minor);
		json_array_append_new(disks, json_pack("{s:s, s:s, s:i, s:b, s:I, s:s, s:I, s:I, s:I, s:o}", "group",
				      g->name, "name", k.name, "slot", (int)i, "active", k.active > 0, "sectors",
				      (json_int_t)k.sectors, "lower", lower, "dirty_chunks",
				      (json_int_t)k.dirty_chunks, "errors", (json_int_t)k.errors, "memory_bytes",
				      (json_int_t)k.memory_bytes, "log", describe_log(&k)));
	}
}

/* -------------------------------------------------- resync and its like */

/* How fast, from now on and after a restart; and with "all", every chunk of every disk again */
static void group_resync(struct control_call *call, json_t *parameters, struct asrd *d)
{
	struct group *g = method_group(call, parameters, "name", d);
	json_t *rate = json_object_get(parameters, "rate");
	struct why why = { "" };

	if (!g)
		return;
	if (rate && (!json_is_integer(rate) || json_integer_value(rate) < 0)) {
		control_error(call, "rate is bytes a second, or 0: as fast as can be");
		return;
	}
	if (!g->source) {
		control_error(call, "group %s is not attached to its ring: %s", g->name, g->trouble);
		return;
	}
	if (rate) {
		g->resync_limit = (uint64_t)json_integer_value(rate);
		resync_limit(g->resync, g->resync_limit, g->paused);
	}
	if (json_is_true(json_object_get(parameters, "all"))) {
		flow_all_dirty(g);
		log_info("group %s: all disks are to be compared again", g->name);
	}
	flow_check(g);
	if (group_save(g, &why))
		control_error(call, "%s", why.text);
	else
		control_reply(call, status_of(g), false);
}

static void set_paused(struct control_call *call, json_t *parameters, struct asrd *d, bool paused)
{
	struct group *g = method_group(call, parameters, "name", d);
	struct why why = { "" };

	if (!g)
		return;
	if (g->paused != paused)
		log_info("group %s: resync is %s", g->name, paused ? "paused" : "resumed");
	g->paused = paused;
	if (g->resync)
		resync_limit(g->resync, g->resync_limit, paused);
	if (group_save(g, &why))
		control_error(call, "%s", why.text);
	else
		control_reply(call, status_of(g), false);
}

static void group_pause(struct control_call *call, json_t *parameters, struct asrd *d)
{
	set_paused(call, parameters, d, true);
}

static void group_resume(struct control_call *call, json_t *parameters, struct asrd *d)
{
	set_paused(call, parameters, d, false);
}

static void group_verify(struct control_call *call, json_t *parameters, struct asrd *d)
{
	struct group *g = method_group(call, parameters, "name", d);

	if (g && !g->source)
		control_error(call, "group %s is not attached to its ring: %s", g->name, g->trouble);
	else if (g)
		check_call(call, parameters, g);
}

static void disk_list(struct control_call *call, json_t *parameters, struct asrd *d)
{
	json_t *disks = json_array();

	for (struct group *g = d->groups; g; g = g->next)
		list_disks(g, disks);
	control_reply(call, json_pack("{s:o}", "disks", disks), false);
}

static void reload(struct control_call *call, json_t *parameters, struct asrd *d)
{
	struct why why = { "" };
	int r = ship_reload(d->ship, &why);

	peers_reload(d->peers);
	if (r)
		control_error(call, "%s", why.text[0] ? why.text : strerror(-r));
	else
		control_reply(call, json_object(), false);
}

static const struct {
	const char *name;
	void (*fn)(struct control_call *call, json_t *parameters, struct asrd *d);
} methods[] = {
	{ "io.asr.Status",		status },
	{ "io.asr.Group.Create",	member_create },
	{ "io.asr.Group.Join",		member_join },
	{ "io.asr.Group.Admit",		member_admit },
	{ "io.asr.Group.Evict",		member_evict },
	{ "io.asr.Group.Marks",		member_marks },
	{ "io.asr.Group.List",		group_list },
	{ "io.asr.Group.Show",		group_show },
	{ "io.asr.Group.Mark",		group_mark },
	{ "io.asr.Group.Delete",	member_delete },
	{ "io.asr.App.Serve",		quiet_serve },
	{ "io.asr.App.Wanted",		quiet_wanted },
	{ "io.asr.App.Quiet",		quiet_is },
	{ "io.asr.App.Loud",		quiet_was },
	{ "io.asr.Group.Resync",	group_resync },
	{ "io.asr.Group.Pause",		group_pause },
	{ "io.asr.Group.Resume",	group_resume },
	{ "io.asr.Group.Verify",	group_verify },
	{ "io.asr.Spool.Discard",	spool_discard_call },
	{ "io.asr.Disk.List",		disk_list },
	{ "io.asr.Reload",		reload },
};

void method_call(struct control_call *call, const char *method, json_t *parameters, void *asrd)
{
	for (size_t i = 0; i < sizeof(methods) / sizeof(methods[0]); i++) {
		if (!strcmp(method, methods[i].name)) {
			methods[i].fn(call, parameters, asrd);
			return;
		}
	}
	control_error(call, "asrd has no method %s", method);
}
