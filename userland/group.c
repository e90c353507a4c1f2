// SPDX-License-Identifier: Apache-2.0
/*
 * The groups of this host: what of them is on file, and their coming and going.
 *
 * Design. STATE_DIR/groups/NAME/ holds
 *
 *   group.json   what the group is; written when that changes
 *   data.key     the group data key, 32 bytes, mode 0600
 *   state.json   how far sequence numbers have got, and frames at the vault;
 *                written once a minute
 *
 * A group is made pending, here first and then at the vault, and confirmed
 * when the vault has it: an asrd that dies in between asks the vault again,
 * which takes the same group twice. It is taken away in the other order.
 *
 * The state file may lag behind, so a group that has to be made anew in the
 * kernel (after a boot) starts 2^32 above what the file says.
 *
 * Invariants. A key is in locked memory and in its file, nowhere else. A
 * group in the table has been loaded or written whole.
 *
 * Context. The loop's thread; blocks on small files in the state folder.
 */
#include <dirent.h>
#include <errno.h>
#include <string.h>
#include <sys/stat.h>

#include "source.h"

#define FILE_MAX	1048576
#define SAVE_NS		60000000000ull
#define NS_PER_S	1000000000ull

/* --------------------------------------------------------------- files */

static void path_of(const struct asrd *d, const char *name, const char *file, char out[512])
{
	snprintf(out, 512, "%s/groups/%s%s%s", d->state_dir, name, file ? "/" : "", file ? file : "");
}

static int write_json(const struct group *g, const char *file, json_t *root, struct why *why)
{
	cleanup_free char *text = root ? json_dumps(root, JSON_INDENT(1)) : NULL;
	char path[512];

	json_decref(root);
	if (!text)
		return -ENOMEM;
	path_of(g->d, g->name, file, path);
	return file_write(path, 0600, text, strlen(text), why);
}

int group_save(struct group *g, struct why *why)
{
	char uuid[2 * ASR_UUID_BYTES + 1], stream[2 * ASR_UUID_BYTES + 1];

	hex_encode(g->pack.group, ASR_UUID_BYTES, uuid);
	hex_encode(g->pack.stream, ASR_UUID_BYTES, stream);
	return write_json(g, "group.json",
			  json_pack("{s:s, s:s, s:s, s:I, s:I, s:i, s:b, s:O, s:I, s:b, s:b, s:O*}", "name", g->name,
				    "uuid", uuid,
				    "stream", stream, "generation", (json_int_t)g->pack.generation,
				    "ring_bytes", (json_int_t)g->ring_bytes, "compression", g->pack.level,
				    "pending", g->pending, "recipients", g->recipients,
				    "resync_limit", (json_int_t)g->resync_limit, "paused", g->paused,
				    "joined", g->joined, "members", g->members), why);
}

int group_save_state(struct group *g, struct why *why)
{
	uint64_t seq = g->last_seq > g->saved_seq ? g->last_seq : g->saved_seq;
	int r;

	if (seq < detour_seq(g))
		seq = detour_seq(g);
	r = write_json(g, "state.json",
		       json_pack("{s:I, s:I, s:I, s:b, s:b, s:I, s:b}", "first_seq", (json_int_t)g->first_seq,
				 "last_seq", (json_int_t)seq, "durable_frame", (json_int_t)g->durable_frame,
				 "was_consistent", g->was_consistent, "spooling", g->spooling, "spool_from",
				 (json_int_t)g->spool_from, "over", g->over), why);
	g->saved_ns = now_ns();
	if (!r)
		g->saved_seq = seq;
	return r;
}

static int read_json(const struct asrd *d, const char *name, const char *file, json_t **root, struct why *why)
{
	cleanup_free char *text = NULL;
	json_error_t e;
	char path[512];
	int r;

	path_of(d, name, file, path);
	r = file_read(path, FILE_MAX, &text, NULL, why);
	if (r)
		return r;
	*root = json_loads(text, 0, &e);
	return *root ? 0 : why_set(why, EINVAL, "%s, line %d: %s", path, e.line, e.text);
}

static int load_key(struct group *g, struct why *why)
{
	cleanup_free char *key = NULL;
	char path[512];
	size_t bytes;
	int r;

	path_of(g->d, g->name, "data.key", path);
	r = file_read(path, ASR_KEY_BYTES, &key, &bytes, why);
	if (!r && bytes != ASR_KEY_BYTES)
		r = why_set(why, EINVAL, "%s has %zu bytes, a key has %d", path, bytes, ASR_KEY_BYTES);
	if (!r)
		memcpy(g->key, key, ASR_KEY_BYTES);
	if (key)
		explicit_bzero(key, bytes);
	return r;
}

static int load_fields(struct group *g, struct why *why)
{
	cleanup_json root = NULL;
	cleanup_json state = NULL;
	const char *uuid, *stream;
	json_int_t generation, ring, first = 0, last = 0, durable = 0, limit = 0, from = 0;
	int pending, consistent = 0, paused = 0, spooling = 0, over = 0, joined = 0, r;

	r = read_json(g->d, g->name, "group.json", &root, why);
	if (r)
		return r;
	if (json_unpack(root, "{s:s, s:s, s:I, s:I, s:i, s:b, s:O, s?I, s?b, s?b, s?O}", "uuid", &uuid, "stream",
			&stream, "generation", &generation, "ring_bytes", &ring, "compression", &g->pack.level,
			"pending", &pending, "recipients", &g->recipients,
			"resync_limit", &limit, "paused", &paused, "joined", &joined, "members", &g->members) ||
	    limit < 0 ||
	    hex_decode(uuid, g->pack.group, ASR_UUID_BYTES) ||
	    hex_decode(stream, g->pack.stream, ASR_UUID_BYTES))
		return why_set(why, EINVAL, "group.json of %s is not whole", g->name);
	g->pack.generation = (uint64_t)generation;
	g->ring_bytes = (uint64_t)ring;
	g->pending = pending;
	g->paused = paused;
	g->joined = joined;
	g->resync_limit = (uint64_t)limit;
	r = read_json(g->d, g->name, "state.json", &state, why);
	if (r)
		return r;
	if (json_unpack(state, "{s:I, s:I, s?I, s:b, s?b, s?I, s?b}", "first_seq", &first, "last_seq", &last,
			"durable_frame", &durable, "was_consistent", &consistent, "spooling", &spooling,
			"spool_from", &from, "over", &over))
		return why_set(why, EINVAL, "state.json of %s is not whole", g->name);
	g->first_seq = (uint64_t)first;
	g->saved_seq = (uint64_t)last;
	g->durable_frame = (uint64_t)durable;
	g->was_consistent = consistent;
	g->spooling = spooling;
	g->spool_from = (uint64_t)from;
	g->over = over;
	return 0;
}

/* ---------------------------------------------------------------- life */

static void free_group(struct group *g)
{
	marks_destroy(g->marks);
	json_decref(g->members);
	json_decref(g->recipients);
	json_decref(g->lost);
	json_decref(g->half);
	secret_free(g->key);
	pack_end(&g->pack);
	spool_close(g->spool);
	free(g);
}

static struct group *new_group(struct asrd *d, const char *name)
{
	struct group *g = calloc(1, sizeof(*g));

	if (!g)
		return NULL;
	g->key = secret_alloc(ASR_KEY_BYTES);
	if (!g->key) {
		free(g);
		return NULL;
	}
	snprintf(g->name, sizeof(g->name), "%s", name);
	g->d = d;
	g->pack.room = d->room;
	g->seen_ns = g->saved_ns = now_ns();
	return g;
}

static void attach(struct group *g)
{
	struct why why = { "" };
	int r = flow_attach(g, &why);

	g->retry_ns = now_ns() + NS_PER_S;
	if (r) {
		flow_trouble(g, "%s", why.text[0] ? why.text : strerror(-r));
		return;
	}
	flow_trouble(g, "%s", "");
	flow_open(g);
}

static void load(struct asrd *d, const char *name)
{
	struct group *g = new_group(d, name);
	struct why why = { "" };
	int r = g ? load_fields(g, &why) : -ENOMEM;

	if (!r)
		r = load_key(g, &why);
	if (!r)
		r = detour_open(g);
	if (!r)
		r = peers_group_begin(g);
	if (r) {
		log_err("group %s is left out: %s", name, why.text[0] ? why.text : strerror(-r));
		if (g)
			free_group(g);
		return;
	}
	g->next = d->groups;
	d->groups = g;
	attach(g);
}

int group_load_all(struct asrd *d, struct why *why)
{
	char path[512];
	struct dirent *e;
	DIR *dir;
	int r;

	path_of(d, "", NULL, path);
	r = dir_make(path, 0700, why);
	if (r)
		return r;
	dir = opendir(path);
	if (!dir)
		return why_set(why, errno, "cannot read %s: %s", path, strerror(errno));
	while ((e = readdir(dir)))
		if (!name_check("group", e->d_name, NULL))
			load(d, e->d_name);
	closedir(dir);
	return 0;
}

void group_stop_all(struct asrd *d)
{
	for (struct group *g = d->groups; g; g = g->next)
		group_save_state(g, NULL);
}

struct group *group_find(struct asrd *d, const char *name)
{
	struct group *g = d->groups;

	while (g && strcmp(g->name, name))
		g = g->next;
	return g;
}

static void remove_files(const struct asrd *d, const char *name)
{
	static const char *const files[] = { "group.json", "data.key", "state.json" };
	char path[512];

	for (int i = 0; i < 3; i++) {
		path_of(d, name, files[i], path);
		unlink(path);
	}
	remember_forget_all(d->state_dir, name);
	path_of(d, name, NULL, path);
	rmdir(path);
}

static void dropped(void *arg)
{
	struct group *g = arg;
	struct asr_group_name name;
	int r;

	memcpy(name.name, g->name, sizeof(name.name));
	r = g->d->ring_file || !g->first_seq ? 0 : source_control(g->d->device, ASR_IOC_GROUP_DELETE, &name, NULL);
	if (r && r != -ENOENT)
		log_warn("group %s: the kernel does not let it go: %s", g->name, strerror(-r));
	free_group(g);
}

void group_drop(struct group *g)
{
	struct group **p = &g->d->groups;

	while (*p != g)
		p = &(*p)->next;
	*p = g->next;
	remove_files(g->d, g->name);
	if (!spool_refused(g->spool, NULL))
		spool_discard(g->spool, NULL);
	ship_forget(g->d->ship, g);
	peers_group_end(g);
	flow_detach(g, dropped, g);
}

static int write_all(struct group *g, struct why *why)
{
	char path[512];
	int r;

	path_of(g->d, g->name, NULL, path);
	r = dir_make(path, 0700, why);
	path_of(g->d, g->name, "data.key", path);
	if (!r)
		r = file_write(path, 0600, g->key, ASR_KEY_BYTES, why);
	if (!r)
		r = group_save_state(g, why);
	return r ? r : group_save(g, why);	/* last: a folder with a group.json is whole */
}

int group_make(struct asrd *d, const struct group_new *n, struct group **out, struct why *why)
{
	struct group *g = new_group(d, n->name);
	int r;

	if (!g)
		return -ENOMEM;
	g->recipients = json_incref(n->recipients);
	g->ring_bytes = n->ring_bytes;
	g->pack.level = n->compression;
	g->pack.generation = n->generation;
	g->pending = true;
	g->joined = n->uuid;
	if (n->uuid)
		memcpy(g->pack.group, n->uuid, ASR_UUID_BYTES);
	r = n->uuid ? 0 : seal_random(g->pack.group, ASR_UUID_BYTES);
	if (!r)
		r = seal_random(g->pack.stream, ASR_UUID_BYTES);
	if (!r)
		r = seal_random(g->key, ASR_KEY_BYTES);
	if (!r)
		r = detour_open(g);
	if (!r)
		r = peers_group_begin(g);
	if (!r)
		r = write_all(g, why);
	if (!r)
		r = flow_attach(g, why);
	if (r) {
		remove_files(d, n->name);
		peers_group_end(g);
		dropped(g);
		return r;
	}
	g->next = d->groups;
	d->groups = g;
	*out = g;
	return 0;
}

/* --------------------------------------------------------------- disks */

bool group_find_disk(const struct group *g, const struct asr_group_info *info, const char *name,
		     struct asr_disk_info *disk)
{
	for (uint32_t i = 0; g->source && i < info->disks; i++) {
		*disk = (struct asr_disk_info){ .slot = i };
		if (!source_ioctl(g->source, ASR_IOC_DISK_INFO, disk) && disk->active && !strcmp(disk->name, name))
			return true;
	}
	return false;
}

const char *group_missing(void *group)
{
	struct group *g = group;
	struct asr_group_info info = { .index = 0 };
	struct asr_disk_info disk;
	cleanup_json disks = NULL;
	json_t *d;
	size_t i;

	memcpy(info.name, g->name, sizeof(info.name));
	if (!g->source || g->d->ring_file)
		return NULL;
	if (source_ioctl(g->source, ASR_IOC_GROUP_INFO, &info) ||
	    remember_list(g->d->state_dir, g->name, &disks, NULL))
		return "waits: which disks are configured cannot be read; it is tried again";
	json_array_foreach(disks, i, d) {
		const char *name = json_string_value(json_object_get(d, "name"));

		if (group_find_disk(g, &info, name, &disk)) {
			if (!watch_half(g, d))
				continue;
			snprintf(g->missing, sizeof(g->missing), "waits for disk %s: what was written while asr was "
				 "put on it is not known yet", name);
			return g->missing;
		}
		snprintf(g->missing, sizeof(g->missing), "waits for disk %s: it is configured and not there; "
			 "`asrctl boot` brings it up, `asrctl disk unprotect %s --forget` gives it up", name, name);
		return g->missing;
	}
	return NULL;
}

/* -------------------------------------------------------- at the vault */

static char *base64(const uint8_t *in, size_t bytes)
{
	static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
	char *out = malloc((bytes + 2) / 3 * 4 + 1), *p = out;

	for (size_t i = 0; out && i < bytes; i += 3) {
		uint32_t v = (uint32_t)in[i] << 16 | (i + 1 < bytes ? (uint32_t)in[i + 1] << 8 : 0) |
			     (i + 2 < bytes ? in[i + 2] : 0);

		*p++ = digits[v >> 18];
		*p++ = digits[v >> 12 & 63];
		*p++ = i + 1 < bytes ? digits[v >> 6 & 63] : '=';
		*p++ = i + 2 < bytes ? digits[v & 63] : '=';
	}
	if (out)
		*p = 0;
	return out;
}

/* The data key for the recipients, in base64, and a line about each of them */
static int wrap(struct group *g, char **text, json_t *lines, struct why *why)
{
	size_t n = json_array_size(g->recipients), bytes = 0;
	cleanup_free char **pems = calloc(n ? n : 1, sizeof(*pems));
	cleanup_free uint8_t *der = NULL;
	char line[512];
	int r = pems ? 0 : -ENOMEM;

	for (size_t i = 0; i < n && !r; i++) {
		pems[i] = (char *)(uintptr_t)json_string_value(json_array_get(g->recipients, i));
		r = pems[i] ? seal_cert_describe(pems[i], line, sizeof(line), why) : -EINVAL;
		if (!r)
			json_array_append_new(lines, json_string(line));
	}
	if (!r)
		r = seal_key_wrap(g->key, pems, n, &der, &bytes, why);
	if (r)
		return r;
	*text = base64(der, bytes);
	return *text ? 0 : -ENOMEM;
}

int group_register(struct group *g, ship_done *done, void *arg, struct why *why)
{
	char uuid[2 * ASR_UUID_BYTES + 1], stream[2 * ASR_UUID_BYTES + 1];
	cleanup_json lines = json_array();
	cleanup_free char *wrapped = NULL;
	int r = wrap(g, &wrapped, lines, why);

	if (r)
		return r;
	hex_encode(g->pack.group, ASR_UUID_BYTES, uuid);
	hex_encode(g->pack.stream, ASR_UUID_BYTES, stream);
	r = ship_call(g->d->ship, g->joined ? "group.join" : "group.create",
		      json_pack("{s:s, s:s, s:s, s:s, s:O}", "group", uuid, "name", g->name, "stream", stream,
				"wrapped_key", wrapped, "recipients", lines), done, arg);
	return r ? why_set(why, -r, "the vault is not connected") : 0;
}

int group_confirm(struct group *g, struct why *why)
{
	int r;

	g->pending = false;
	r = group_save(g, why);
	flow_open(g);
	return r;
}

/* A group that an earlier asrd had not got confirmed */
static void confirmed(int err, json_t *p, const struct why *why, void *arg)
{
	struct group *g = arg;

	if (!err)
		group_confirm(g, NULL);
	else if (err != -EPIPE)
		flow_trouble(g, "the vault does not take the group: %s", why->text);
}

static void vault_up(void *arg)
{
	struct asrd *d = arg;

	for (struct group *g = d->groups; g; g = g->next) {
		struct why why = { "" };

		if (!g->pending)
			flow_open(g);
		else if (group_register(g, confirmed, g, &why))
			flow_trouble(g, "%s", why.text);
	}
}

static void vault_down(void *arg)
{
	struct asrd *d = arg;

	for (struct group *g = d->groups; g; g = g->next)
		flow_close(g);
}

static void vault_ack(const struct msg_ack *ack, void *arg)
{
	struct asrd *d = arg;

	for (struct group *g = d->groups; g; g = g->next)
		if (!memcmp(g->pack.stream, ack->stream, ASR_UUID_BYTES))
			flow_ack(g, ack);
}

static void vault_room(void *arg)
{
	struct asrd *d = arg;

	for (struct group *g = d->groups; g; g = g->next)
		flow_kick(g);
}

static int vault_map(const uint8_t *body, size_t bytes, void *arg)
{
	const struct msg_map *map = (const void *)body;
	struct asrd *d = arg;

	if (bytes < sizeof(*map))
		return -EPROTO;
	for (struct group *g = d->groups; g; g = g->next)
		if (g->compare && !memcmp(g->pack.stream, map->stream, ASR_UUID_BYTES))
			return compare_map(g->compare, body, bytes);
	return 0;	/* of a group that has gone */
}

const struct ship_ops group_ship_ops = { vault_up, vault_down, vault_ack, vault_room, vault_map };

/* ------------------------------------------------------- once a second */

static double rate(uint64_t now, uint64_t *seen, double seconds, double old)
{
	double r = (double)(now - *seen) / seconds;

	*seen = now;
	return old + (r - old) * 0.5;	/* a second's jitter is of no interest to people */
}

static void second(struct group *g, uint64_t now)
{
	double seconds = (double)(now - g->seen_ns) / 1e9;

	if (seconds > 0) {
		g->in_rate = rate(g->in_bytes, &g->seen_in, seconds, g->in_rate);
		g->out_rate = rate(g->out_bytes, &g->seen_out, seconds, g->out_rate);
		g->seen_ns = now;
	}
	if (!g->source && now >= g->retry_ns && (!g->pending || g->first_seq))
		attach(g);
	if (!g->open && now >= g->retry_ns)
		flow_open(g);
	flow_check(g);
	watch_group(g, now);
	spool_second(g->spool);
	if (!g->open || g->detour)
		flow_kick(g);
	if (g->resync && resync_consistent(g->resync) && !g->was_consistent) {
		g->was_consistent = true;
		group_save_state(g, NULL);
	} else if (g->source && now - g->saved_ns > SAVE_NS && g->last_seq > g->saved_seq) {
		group_save_state(g, NULL);
	}
}

void group_second(struct asrd *d)
{
	uint64_t now = now_ns();

	for (struct group *g = d->groups; g; g = g->next)
		second(g, now);
}
