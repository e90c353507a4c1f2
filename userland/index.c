// SPDX-License-Identifier: Apache-2.0
/*
 * A group's folder, opened for reading: which frames are there, what happened.
 *
 * Design: sealed segments are known by their footers: at opening their heads
 * are read, checked and kept without the frame tables; frame and record tables
 * come in segment by segment when somebody walks them. The unsealed tail is
 * scanned. Nothing is written, no daemon is asked and none is disturbed: a
 * tail that is sealed meanwhile is found under its new name.
 *
 *   DIR/groups/<uuid>/group.json wrapped-<stream>.key segments/<stream>-<frame no>.seg
 *
 * Invariants: the segments of a stream follow each other without a gap, in
 * number, frame number and chain; where they do not, opening fails and names
 * the place.
 *
 * Context: blocks on the file system. Memory: heads of all segments, tables
 * of those loaded.
 */
#include "vault.h"

#include <dirent.h>
#include <errno.h>
#include <string.h>
#include <sys/stat.h>

#define GROUP_JSON_MAX	(1u << 20)
#define WRAPPED_KEY_MAX	(64u << 10)

/* ------------------------------------------------------------ finding groups */

int index_group_read(const char *dir, json_t **out, struct why *why)
{
	cleanup_free char *path = NULL, *text = NULL;
	json_error_t err;
	int ret;

	if (asprintf(&path, "%s/group.json", dir) < 0)
		return why_set(why, ENOMEM, "out of memory");
	ret = file_read(path, GROUP_JSON_MAX, &text, NULL, why);
	if (ret)
		return ret;
	*out = json_loads(text, JSON_REJECT_DUPLICATES, &err);
	if (!*out || !json_is_string(json_object_get(*out, "name")) ||
	    !json_is_string(json_object_get(*out, "uuid"))) {
		json_decref(*out);
		return why_set(why, EBADMSG, "%s is damaged: %s", path, err.text);
	}
	return 0;
}

static bool exists(const char *dir, const char *name)
{
	cleanup_free char *path = NULL;
	struct stat st;

	return asprintf(&path, "%s/%s", dir, name) >= 0 && stat(path, &st) == 0;
}

json_t *index_groups(const char *dir, struct why *why)
{
	cleanup_free char *groups = NULL, *path = NULL;
	json_t *list = json_array(), *g;
	struct why bad;
	struct dirent *d;
	DIR *stream;

	if (asprintf(&groups, "%s/groups", dir) < 0)
		return NULL;
	stream = opendir(groups);
	if (!stream && !exists(dir, "vault.db")) {
		why_set(why, errno, "%s is neither a vault nor a group's folder: it has no groups/ and no "
			"group.json (%s)", dir, strerror(errno));
		json_decref(list);
		return NULL;
	}
	while (stream && (d = readdir(stream)) != NULL) {
		free(path);
		if (d->d_name[0] == '.' || asprintf(&path, "%s/%s", groups, d->d_name) < 0) {
			path = NULL;
			continue;
		}
		if (!exists(path, "group.json"))
			continue;	/* made half before a crash: never acknowledged */
		if (index_group_read(path, &g, &bad)) {	/* no reason to do without the others */
			log_warn("%s", bad.text);
			continue;
		}
		json_object_set_new(g, "dir", json_string(path));
		json_array_append_new(list, g);
	}
	if (stream)
		closedir(stream);
	return list;
}

/* "a, b, c" into out */
static void names_list(json_t *groups, char *out, size_t bytes)
{
	size_t i, n = 0;
	json_t *g;

	*out = 0;
	json_array_foreach(groups, i, g)
		if (n < bytes)
			n += (size_t)snprintf(out + n, bytes - n, "%s%s", i ? ", " : "", text_of(g, "name"));
}

/* By uuid, or by name: the one with a source, else the only one */
static int group_find(const char *dir, const char *group, char **path, struct why *why)
{
	cleanup_json groups = index_groups(dir, why);
	json_t *g, *found = NULL;
	char names[256];
	size_t i, matches = 0;

	if (!groups)
		return -ENOENT;
	if (!group)
		return why_set(why, EINVAL, "%s is a vault: say which group", dir);
	json_array_foreach(groups, i, g) {
		if (!strcmp(text_of(g, "uuid"), group)) {
			found = g;
			matches = 1;
			break;
		}
		if (strcmp(text_of(g, "name"), group))
			continue;
		if (!json_is_true(json_object_get(g, "deleted"))) {
			found = g;
			matches = 1;
			break;
		}
		matches++;
		found = g;
	}
	if (matches > 1)
		return why_set(why, EINVAL, "%zu deleted groups had the name %s: give the uuid instead",
			       matches, group);
	if (!found) {
		names_list(groups, names, sizeof(names));
		return why_set(why, ENOENT, "no group \"%.64s\" in %s; there is: %s", group, dir,
			       *names ? names : "none");
	}
	*path = strdup(text_of(found, "dir"));
	return *path ? 0 : -ENOMEM;
}

/* ----------------------------------------------------------------- segments */

static int seg_read(struct index *ix, const struct index_seg *seg, uint64_t offset, void *buf, size_t bytes)
{
	char name[SEG_NAME_BYTES];
	int ret;

	snprintf(name, sizeof(name), "segments/%s", seg->file);
	ret = store_get(ix->store, name, offset, buf, bytes);
	if (ret == -ENOENT && !seg->sealed) {	/* sealed since */
		snprintf(strrchr(name, '.'), 5, ".seg");
		ret = store_get(ix->store, name, offset, buf, bytes);
	}
	return ret;
}

static int damaged(const struct index_seg *seg, uint64_t offset, struct why *why, int err, const char *text)
{
	return why_set(why, err, "segment %s, offset %llu: %.400s", seg->file, (unsigned long long)offset, text);
}

static int io_failed(const struct index_seg *seg, uint64_t offset, struct why *why, int ret)
{
	return damaged(seg, offset, why, ret == -ENODATA || ret == -ENOENT ? EBADMSG : -ret,
		       ret == -ENODATA ? "the file ends before" : strerror(-ret));
}

/* store_get of a sealed segment with the reason */
static int sealed_read(struct store *store, const char *folder, const struct index_seg *seg, uint64_t offset,
		       void *buf, size_t bytes, struct why *why)
{
	char name[SEG_NAME_BYTES];
	int ret;

	snprintf(name, sizeof(name), "%s/%s", folder, seg->file);
	ret = store_get(store, name, offset, buf, bytes);
	return ret ? io_failed(seg, offset, why, ret) : 0;
}

int index_head_read(struct store *store, const char *folder, struct index_seg *seg, struct seg_trailer *tr,
		    struct why *why)
{
	cleanup_free uint8_t *head = NULL;
	char name[SEG_NAME_BYTES];
	struct seg_foot foot;
	uint64_t bytes, at;
	struct why w;
	size_t n;
	int ret;

	snprintf(name, sizeof(name), "%s/%s", folder, seg->file);
	ret = store_head(store, name, &bytes);
	if (ret)
		return io_failed(seg, 0, why, ret);
	at = bytes < sizeof(*tr) ? 0 : bytes - sizeof(*tr);
	ret = sealed_read(store, folder, seg, at, tr, sizeof(*tr), why);
	if (ret)
		return ret;
	if (seg_trailer_check(tr, bytes, &w))
		return damaged(seg, at, why, EBADMSG, w.text);
	ret = sealed_read(store, folder, seg, tr->foot_offset, &foot, sizeof(foot), why);
	if (ret)
		return ret;
	if (seg_head_bytes(&foot, tr->foot_bytes, &n, &w))
		return damaged(seg, tr->foot_offset, why, EBADMSG, w.text);
	head = malloc(n);
	if (!head)
		return why_set(why, ENOMEM, "out of memory");
	ret = sealed_read(store, folder, seg, tr->foot_offset, head, n, why);
	if (ret)
		return ret;
	if (seg_check(head, n) != tr->head_check)
		return damaged(seg, tr->foot_offset, why, EBADMSG, "the footer does not fit its checksum");
	seg_table_free(&seg->table);
	ret = seg_foot_parse(head, n, &seg->table, &w);
	if (ret)
		return damaged(seg, tr->foot_offset, why, -ret, w.text);
	seg->bytes = tr->foot_offset;
	return 0;
}

static uint64_t frames_end(const struct seg_table *t)
{
	const struct seg_frame *last = &t->frames[t->foot.frames - 1];

	return last->offset + ((last->bytes + 7ULL) & ~7ULL);
}

static int sealed_open(struct index *ix, struct index_seg *seg, struct why *why)
{
	struct seg_trailer tr;
	int ret = index_head_read(ix->store, "segments", seg, &tr, why);

	if (ret)
		return ret;
	if (frames_end(&seg->table) != tr.foot_offset)
		return damaged(seg, tr.foot_offset, why, EBADMSG, "the footer does not follow the last frame");
	free(seg->table.frames);
	seg->table.frames = NULL;
	return 0;
}

/* 1: nothing was ever written to it */
static int tail_open(struct index *ix, struct index_seg *seg, struct index_stream *s, struct why *why)
{
	char name[SEG_NAME_BYTES];
	cleanup_fd int fd = -1;
	struct stat st;
	struct why w;
	int ret;

	snprintf(name, sizeof(name), "segments/%.*s", (int)(strlen(seg->file) - 5), seg->file);
	fd = store_tail_open(ix->store, name);
	if (fd == -ENOENT) {	/* sealed since */
		snprintf(strrchr(seg->file, '.'), 5, ".seg");
		seg->sealed = true;
		return sealed_open(ix, seg, why);
	}
	if (fd < 0 || fstat(fd, &st) < 0)
		return io_failed(seg, 0, why, fd < 0 ? fd : -errno);
	ret = seg_scan(fd, (uint64_t)st.st_size, &seg->hdr, &seg->table, &s->state, &seg->bytes, &s->torn, &w);
	if (ret)
		return damaged(seg, seg->bytes, why, -ret, w.text);
	return seg->table.foot.frames ? 0 : 1;
}

/* Does it follow the segments before it? */
static int seg_fits(const struct index_seg *seg, const struct index_stream *s, struct why *why)
{
	char text[160];

	if (!s->count)
		return 0;
	if (seg->hdr.number == s->state.next_number && seg->hdr.first_frame_no == s->state.next_frame_no)
		return 0;
	snprintf(text, sizeof(text), "segment %llu with frame %llu follows where segment %llu with frame %llu "
		 "is due: something is missing", (unsigned long long)seg->hdr.number,
		 (unsigned long long)seg->hdr.first_frame_no, (unsigned long long)s->state.next_number,
		 (unsigned long long)s->state.next_frame_no);
	return damaged(seg, 0, why, EBADMSG, text);
}

/* Footer against what the segments before it ended with */
static int foot_fits(const struct index_seg *seg, const struct index_stream *s, struct why *why)
{
	const struct seg_foot *f = &seg->table.foot;

	if (!s->count)
		return 0;
	if (memcmp(f->prev_tag, s->state.last_tag, ASR_TAG_BYTES) || f->begin_seq != s->state.last_seq)
		return damaged(seg, seg->bytes, why, EBADMSG,
			       "its first frame does not continue the chain of the segment before");
	if (f->begin_consistent != s->state.consistent || f->disks != s->state.disks ||
	    memcmp(seg->table.disks, s->state.disk, f->disks * sizeof(*seg->table.disks)))
		return damaged(seg, seg->bytes, why, EBADMSG,
			       "its footer does not begin where the segment before ended");
	return 0;
}

static int hdr_load(struct index *ix, struct index_seg *seg, const uint8_t *stream, uint64_t first,
		    struct why *why)
{
	static const struct seg_hdr zero;
	struct why w;
	int ret = seg_read(ix, seg, 0, &seg->hdr, sizeof(seg->hdr));

	if (!seg->sealed && (ret == -ENODATA || (!ret && !memcmp(&seg->hdr, &zero, sizeof(zero)))))
		return 1;	/* made, and never written to */
	if (ret)
		return io_failed(seg, 0, why, ret);
	if (seg_hdr_check(&seg->hdr, &w))
		return damaged(seg, 0, why, EBADMSG, w.text);
	if (memcmp(seg->hdr.group, ix->uuid, ASR_UUID_BYTES) ||
	    memcmp(seg->hdr.stream, stream, ASR_UUID_BYTES) || seg->hdr.first_frame_no != first)
		return damaged(seg, 0, why, EBADMSG, "group, stream or frame number are not those of its name");
	return 0;
}

static int seg_open(struct index *ix, struct index_stream *s, struct index_seg *seg, uint64_t first,
		    struct why *why)
{
	int ret = hdr_load(ix, seg, s->uuid, first, why);

	if (ret)
		return ret;
	ret = seg_fits(seg, s, why);
	if (ret)
		return ret;
	if (!s->count && seg->hdr.number != 1 && !seg->sealed)
		return damaged(seg, 0, why, EBADMSG, "the segments before it are missing");
	ret = seg->sealed ? sealed_open(ix, seg, why) : tail_open(ix, seg, s, why);
	if (ret || !seg->sealed)
		return ret;	/* a scan has checked the chain itself */
	ret = foot_fits(seg, s, why);
	if (!ret)
		seg_state_after(&s->state, &seg->hdr, &seg->table);
	return ret;
}

static struct index_stream *stream_of(struct index *ix, const uint8_t *uuid)
{
	struct index_stream *s;

	for (size_t i = 0; i < ix->count; i++)
		if (!memcmp(ix->streams[i].uuid, uuid, ASR_UUID_BYTES))
			return &ix->streams[i];
	s = reallocarray(ix->streams, ix->count + 1, sizeof(*s));
	if (!s)
		return NULL;
	ix->streams = s;
	s += ix->count++;
	memset(s, 0, sizeof(*s));
	memcpy(s->uuid, uuid, ASR_UUID_BYTES);
	seg_state_init(&s->state);
	return s;
}

struct opening {
	struct index *ix;
	struct why *why;
	char last[80];			/* newest name, without its ending */
};

bool index_seg_name(const char *name, uint8_t stream[ASR_UUID_BYTES], uint64_t *first, bool *sealed)
{
	unsigned long long no;
	char hex[33], end[8];
	int n = 0;

	if (sscanf(name, "%32[0-9a-f]-%16llx.%5[a-z]%n", hex, &no, end, &n) != 3 || name[n] ||
	    hex_decode(hex, stream, ASR_UUID_BYTES) || (strcmp(end, "seg") && strcmp(end, "open")))
		return false;
	*first = no;
	*sealed = !strcmp(end, "seg");
	return true;
}

/* Names come in order: by stream, then frame number; .open before .seg of one name */
static int on_name(const char *name, void *arg)
{
	struct opening *o = arg;
	struct index_seg seg = { .sealed = true }, *more;
	struct index_stream *s;
	uint8_t uuid[ASR_UUID_BYTES];
	uint64_t first;
	int ret;

	if (strlen(name) >= sizeof(seg.file) || !index_seg_name(name, uuid, &first, &seg.sealed))
		return why_set(o->why, EBADMSG, "%s/segments/%s does not belong there", o->ix->dir, name);
	snprintf(seg.file, sizeof(seg.file), "%s", name);
	if (!strncmp(o->last, name, 49))
		return 0;	/* listed while it was renamed */
	snprintf(o->last, sizeof(o->last), "%.49s", name);
	s = stream_of(o->ix, uuid);
	if (!s)
		return -ENOMEM;
	ret = seg_open(o->ix, s, &seg, first, o->why);
	more = ret ? NULL : reallocarray(s->segs, s->count + 1, sizeof(seg));
	if (!more) {
		seg_table_free(&seg.table);
		return ret == 1 ? 0 : ret ? ret : -ENOMEM;
	}
	s->segs = more;
	s->segs[s->count++] = seg;
	return 0;
}

int index_open(const char *dir, const char *group, struct index **out, struct why *why)
{
	struct index *ix = calloc(1, sizeof(*ix));
	struct opening o = { .ix = ix, .why = why };
	int ret;

	if (!ix)
		return why_set(why, ENOMEM, "out of memory");
	if (exists(dir, "group.json")) {
		ix->dir = strdup(dir);
		ret = ix->dir ? 0 : -ENOMEM;
	} else {
		ret = group_find(dir, group, &ix->dir, why);
	}
	if (!ret)
		ret = index_group_read(ix->dir, &ix->group, why);
	if (ret)
		goto fail;
	snprintf(ix->name, sizeof(ix->name), "%s", text_of(ix->group, "name"));
	if (hex_decode(text_of(ix->group, "uuid"), ix->uuid, sizeof(ix->uuid))) {
		ret = why_set(why, EBADMSG, "%s/group.json is damaged: bad uuid", ix->dir);
		goto fail;
	}
	if (group && strcmp(group, ix->name) && strcmp(group, text_of(ix->group, "uuid"))) {
		ret = why_set(why, ENOENT, "%s is the folder of group %s, not of %.64s", dir, ix->name, group);
		goto fail;
	}
	ret = store_open(ix->dir, &ix->store, why);
	if (!ret)
		ret = store_list(ix->store, "segments", on_name, &o);
	if (ret == -ENOENT && !ix->count)
		ret = 0;	/* nothing has arrived yet */
	if (ret == -ENOMEM)
		why_set(why, ENOMEM, "out of memory");
	if (!ret) {
		*out = ix;
		return 0;
	}
fail:
	index_close(ix);
	return ret;
}

void index_close(struct index *ix)
{
	if (!ix)
		return;
	for (size_t i = 0; i < ix->count; i++) {
		for (size_t k = 0; k < ix->streams[i].count; k++)
			seg_table_free(&ix->streams[i].segs[k].table);
		free(ix->streams[i].segs);
	}
	free(ix->streams);
	store_close(ix->store);
	json_decref(ix->group);
	free(ix->dir);
	free(ix);
}

int index_seg_load(struct index *ix, struct index_seg *seg, struct why *why)
{
	cleanup_free uint8_t *recs = NULL;
	struct seg_trailer tr;
	struct why w;
	uint64_t at;
	size_t n;
	int ret;

	if (!seg->sealed || seg->table.recs)
		return 0;
	ret = index_head_read(ix->store, "segments", seg, &tr, why);
	if (ret)
		return ret;
	n = seg->table.foot.records * sizeof(struct seg_rec);
	at = tr.foot_offset + tr.foot_bytes - n;
	recs = malloc(n + 1);
	if (!recs)
		return why_set(why, ENOMEM, "out of memory");
	ret = seg_read(ix, seg, at, recs, n);
	if (ret)
		return io_failed(seg, at, why, ret);
	if (seg_check(recs, n) != tr.recs_check)
		return damaged(seg, at, why, EBADMSG, "the footer's records do not fit their checksum");
	ret = seg_recs_parse(recs, n, &seg->table, &w);
	return ret ? damaged(seg, at, why, -ret, w.text) : 0;
}

void index_seg_unload(struct index_seg *seg)
{
	if (!seg->sealed)
		return;
	free(seg->table.frames);
	free(seg->table.recs);
	seg->table.frames = NULL;
	seg->table.recs = NULL;
}

const uint8_t *index_prev_tag(const struct index_seg *seg, uint32_t frame)
{
	return frame ? seg->table.frames[frame - 1].tag : seg->table.foot.prev_tag;
}

int index_frame_read(struct index *ix, const struct index_seg *seg, const struct seg_frame *f, uint64_t frame_no,
		     const uint8_t *prev_tag, uint8_t *buf, struct frame_view *v, struct why *why)
{
	size_t whole = sizeof(struct seg_env) + ((f->bytes + 7ULL) & ~7ULL);
	uint64_t at = f->offset - sizeof(struct seg_env);
	struct why w;
	int ret = seg_read(ix, seg, at, buf, whole);

	if (ret)
		return io_failed(seg, at, why, ret);
	if (seg_env_check(buf, whole, &w) != (int64_t)whole ||
	    wire_frame_parse(buf + sizeof(struct seg_env), f->bytes, v, &w))
		return damaged(seg, at, why, EBADMSG, w.text);
	if (v->hdr.frame_no != frame_no || v->hdr.records != f->records ||
	    memcmp(v->hdr.group, seg->hdr.group, ASR_UUID_BYTES) ||
	    memcmp(v->hdr.stream, seg->hdr.stream, ASR_UUID_BYTES) || memcmp(v->tag, f->tag, ASR_TAG_BYTES))
		return damaged(seg, at, why, EBADMSG, "this is not the frame that the footer names");
	if (memcmp(v->hdr.prev_tag, prev_tag, ASR_TAG_BYTES))
		return damaged(seg, at, why, EBADMSG, "the frame does not continue the chain");
	return 0;
}

int index_wrapped_key(struct index *ix, size_t stream, uint8_t **der, size_t *bytes, struct why *why)
{
	cleanup_free char *path = NULL, *old = NULL;
	char hex[33];

	hex_encode(ix->streams[stream].uuid, ASR_UUID_BYTES, hex);
	if (asprintf(&path, "%s/wrapped-%s.key", ix->dir, hex) < 0 || asprintf(&old, "%s/wrapped.key", ix->dir) < 0)
		return why_set(why, ENOMEM, "out of memory");
	/* wrapped.key: of a group that was made before each stream had a key of its own */
	return file_read(access(path, F_OK) && !access(old, F_OK) ? old : path, WRAPPED_KEY_MAX, (char **)der, bytes,
			 why);
}

/* ------------------------------------------------------------------ members */

static const json_t *member_of(const struct index *ix, size_t stream)
{
	const json_t *m;
	char hex[33];
	size_t i;

	hex_encode(ix->streams[stream].uuid, ASR_UUID_BYTES, hex);
	json_array_foreach(json_object_get(ix->group, "members"), i, m)
		if (!strcmp(text_of(m, "stream"), hex))
			return m;
	return NULL;
}

const char *index_host(const struct index *ix, size_t stream)
{
	const json_t *m = member_of(ix, stream);
	const char *name = m ? text_of(m, "name") : "";

	return m && !*name ? text_of(m, "host") : name;
}

const char *index_host_id(const struct index *ix, size_t stream)
{
	const json_t *m = member_of(ix, stream);

	return m ? text_of(m, "host") : "";
}

bool index_is_member(const struct index *ix, size_t stream)
{
	const json_t *m = member_of(ix, stream);

	return !m || json_is_null(json_object_get(m, "left"));
}

static bool has_stream(const json_t *streams, const uint8_t *uuid)
{
	const json_t *s;
	char hex[33];
	size_t i;

	hex_encode(uuid, ASR_UUID_BYTES, hex);
	json_array_foreach(streams, i, s)
		if (json_is_string(s) && !strcmp(json_string_value(s), hex))
			return true;
	return false;
}

size_t index_epoch(const struct index *ix, uint64_t epoch, bool *in)
{
	const json_t *e, *streams;
	size_t i, n = 0;

	memset(in, 0, ix->count * sizeof(*in));
	json_array_foreach(json_object_get(ix->group, "epochs"), i, e) {
		if ((uint64_t)json_integer_value(json_object_get(e, "epoch")) != epoch)
			continue;
		streams = json_object_get(e, "streams");
		for (size_t k = 0; k < ix->count; k++) {
			in[k] = has_stream(streams, ix->streams[k].uuid);
			n += in[k];
		}
		return n == json_array_size(streams) ? n : 0;
	}
	return 0;
}

uint64_t index_epoch_at(const struct index *ix, uint64_t time_ns)
{
	const json_t *epochs = json_object_get(ix->group, "epochs"), *e;
	uint64_t begun, found = 1;
	size_t i;

	json_array_foreach(epochs, i, e)
		if (!time_parse(text_of(e, "begun"), &begun) && begun <= time_ns &&
		    json_array_size(json_object_get(e, "streams")))	/* none: the group has ended */
			found = (uint64_t)json_integer_value(json_object_get(e, "epoch"));
	return found;
}
