// SPDX-License-Identifier: Apache-2.0
/*
 * Proves a vault: every frame, the chain between them, the footers against the
 * frames, the catalogue against the folders; with a recipient's key every block
 * against its digest.
 *
 * Design. One segment after the other, in the order of its stream:
 *
 *   sealed   all frames are read as if there were no footer, from the state that
 *            the segment before has left: envelopes, structure, numbers, chain.
 *            What they give is made into a footer, which must be the one that is
 *            there, byte for byte. If a frame is broken, each that the footer
 *            names is looked at by itself, so that all that are broken are named
 *   unsealed read as the daemon would at its start; a torn end is no damage, for
 *            nothing in it was acknowledged, and the daemon may be writing it
 *
 * Damage is reported and the check goes on: the footer says what the state was
 * before and behind its segment. Nothing is written but the journal, which lists
 * the sealed segments that were found sound, for they never change: with it a
 * check that was ended goes on where it was. A running daemon is not disturbed.
 *
 * Invariants. "Sound" is said of nothing that was not read. What is in the journal
 * counts only for a segment of the same name and checksum, and only for content if
 * that was checked.
 *
 * Context: blocks on the file system. Memory: one segment's tables twice.
 *
 * Not done. The end of a stream: nothing outside of it says how far it went, so
 * newest segments that were taken away are not noticed. Repair: what is provably
 * safe to put right, a torn tail, the daemon puts right at its start.
 */
#include "vault.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#define JOURNAL_HEAD	"asr-vault-check 1\n"
#define JOURNAL_MAX	(64u << 20)

struct name {
	char file[80];
	uint64_t bytes;
};

struct check {
	const struct vaultcheck_args *a;
	struct vaultcheck_result *r;
	struct why *why;		/* of what ends the check */
	struct index ix;		/* the group; its streams have no segments here */
	struct name *names;
	size_t count, room;
	const struct index_stream *stream;
	struct seg_state st;		/* before the next segment ... */
	bool follows;			/* ... if that is known */
	uint8_t *key;
	struct seals *seals;		/* NULL: content is not looked at */
	uint8_t *frame, *plain;
	json_t *journal;		/* "UUID FILE CHECK": is its content known to be sound? */
	FILE *more;			/* ... and its end */
	uint64_t began_ns, paced;	/* bytes since */
};

/* ------------------------------------------------------------------- reports */

static void found(struct check *c, const char *file, uint64_t seq, const struct why *what)
{
	struct vaultcheck_finding f = { .group = c->ix.name, .file = file, .seq = seq, .text = what->text };

	f.host = c->stream ? index_host(&c->ix, (size_t)(c->stream - c->ix.streams)) : "";
	c->r->findings++;
	c->a->found(&f, c->a->arg);
}

__attribute__((format(printf, 4, 5)))
static void found_text(struct check *c, const char *file, uint64_t seq, const char *fmt, ...)
{
	struct why w;
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(w.text, sizeof(w.text), fmt, ap);
	va_end(ap);
	found(c, file, seq, &w);
}

/* Some bytes were looked at: what time they may take. -ECANCELED: it is to end */
static int pace(struct check *c, uint64_t bytes)
{
	const struct timespec nap = { .tv_nsec = 50000000 };

	c->r->bytes += bytes;
	c->paced += bytes;
	do {
		if (c->a->progress && c->a->progress(c->r->bytes, c->r->total, c->a->arg))
			return why_set(c->why, ECANCELED, "stopped");
		if (!c->a->rate || (double)(now_ns() - c->began_ns) * (double)c->a->rate / 1e9 >= (double)c->paced)
			return 0;
		nanosleep(&nap, NULL);
	} while (1);
}

/* ------------------------------------------------------------------- journal */

static void journal_key(const struct check *c, const char *file, const struct seg_trailer *tr, char out[160])
{
	char uuid[2 * ASR_UUID_BYTES + 1];

	hex_encode(c->ix.uuid, ASR_UUID_BYTES, uuid);
	snprintf(out, 160, "%s %s %016llx", uuid, file, (unsigned long long)tr->check);
}

static int journal_open(struct check *c)
{
	cleanup_free char *text = NULL;
	const char *path = c->a->journal;
	char *line, *save = NULL, *what;
	int ret;

	if (!path)
		return 0;
	ret = access(path, F_OK) < 0 && errno == ENOENT ? 0 : file_read(path, JOURNAL_MAX, &text, NULL, c->why);
	if (ret)
		return ret;
	if (text && *text && strncmp(text, JOURNAL_HEAD, strlen(JOURNAL_HEAD)))
		return why_set(c->why, EINVAL, "%s is not the journal of a check: give a new name, or that of one that "
			       "was ended", path);
	c->journal = json_object();
	line = text && *text ? strtok_r(text + strlen(JOURNAL_HEAD), "\n", &save) : NULL;
	for (; line; line = strtok_r(NULL, "\n", &save)) {
		what = strrchr(line, ' ');
		if (!what)
			continue;	/* the end of a check that was killed */
		*what++ = 0;
		if (!strcmp(what, "content") || !strcmp(what, "frames"))
			json_object_set_new(c->journal, line, json_boolean(*what == 'c'));
	}
	c->more = fopen(path, "ae");
	if (!c->more || (!(text && *text) && (fputs(JOURNAL_HEAD, c->more) < 0 || fflush(c->more))))
		return why_set(c->why, errno, "cannot write %s: %s", path, strerror(errno));
	return 0;
}

static bool journal_has(const struct check *c, const char *file, const struct seg_trailer *tr)
{
	char key[160];
	json_t *is;

	journal_key(c, file, tr, key);
	is = json_object_get(c->journal, key);
	return is && (!c->seals || json_is_true(is));
}

static int journal_add(struct check *c, const char *file, const struct seg_trailer *tr)
{
	char key[160];

	if (!c->more)
		return 0;
	journal_key(c, file, tr, key);
	if (fprintf(c->more, "%s %s\n", key, c->seals ? "content" : "frames") < 0 || fflush(c->more))
		return why_set(c->why, errno, "cannot write %s: %s", c->a->journal, strerror(errno));
	return 0;
}

/* ------------------------------------------------------------------ a segment */

/* Frame i of a loaded table by itself: 0, or 1: it was reported */
static int frame_check(struct check *c, const struct index_seg *seg, const struct seg_table *t, uint32_t i)
{
	const uint8_t *prev = i ? t->frames[i - 1].tag : t->foot.prev_tag;
	struct frame_view v;
	struct seal *seal;
	struct why w;
	int ret = index_frame_read(&c->ix, seg, &t->frames[i], seg->hdr.first_frame_no + i, prev, c->frame, &v, &w);

	if (!ret && c->seals) {
		seal = seals_get(c->seals, v.hdr.session);
		ret = seal ? seal_frame_open(seal, &v, c->plain, &w) : why_set(&w, ENOMEM, "out of memory");
		if (ret) {
			found_text(c, seg->file, t->frames[i].first_seq, "offset %llu: %.400s",
				   (unsigned long long)t->frames[i].offset, w.text);
			return 1;
		}
		c->r->blocks += v.hdr.digest_bytes / ASR_DIGEST_BYTES;
	}
	if (ret)
		found(c, seg->file, t->frames[i].first_seq, &w);
	return ret != 0;
}

/* All frames of a table, each by itself: how many were reported, or -ECANCELED */
static int frames_check(struct check *c, const struct index_seg *seg, const struct seg_table *t)
{
	int bad = 0;

	for (uint32_t i = 0; i < t->foot.frames; i++) {
		bad += frame_check(c, seg, t, i);
		if (i % 64 == 63 && pace(c, 0))
			return -ECANCELED;
	}
	return bad;
}

/* What the footer says was before the segment */
static void state_before(struct seg_state *st, const struct index_seg *seg)
{
	const struct seg_foot *f = &seg->table.foot;

	seg_state_init(st);
	st->next_frame_no = seg->hdr.first_frame_no;
	st->next_number = seg->hdr.number;
	st->last_seq = f->begin_seq;
	st->last_time_ns = f->begin_time_ns;
	memcpy(st->last_tag, f->prev_tag, ASR_TAG_BYTES);
	st->consistent = f->begin_consistent;
	st->disks = f->disks;
	memcpy(st->disk, seg->table.disks, f->disks * sizeof(*st->disk));
}

/* Is what stands behind the frames the footer that follows from them? */
static int foot_check(struct check *c, const struct index_seg *seg, struct seg_table *t, uint64_t at, uint64_t bytes)
{
	cleanup_free uint8_t *made = NULL, *there = NULL;
	char name[SEG_NAME_BYTES];
	size_t n;

	if (seg_foot_make(t, at, &made, &n))
		return why_set(c->why, ENOMEM, "out of memory");
	there = malloc(n);
	if (!there)
		return why_set(c->why, ENOMEM, "out of memory");
	snprintf(name, sizeof(name), "segments/%s", seg->file);
	if (at + n == bytes && !store_get(c->ix.store, name, at, there, n) && !memcmp(made, there, n))
		return 0;
	found_text(c, seg->file, 0, "offset %llu: the footer is not the one that its frames give",
		   (unsigned long long)at);
	return 1;
}

/* The frames of a file, from c->st on: 0, or 1: reported; -errno: the check ends. *st: behind them */
static int scan_check(struct check *c, struct index_seg *seg, int fd, uint64_t bytes, const struct seg_trailer *tr,
		      struct seg_state *st, struct seg_table *t)
{
	uint64_t frames_end = tr ? tr->foot_offset : bytes, end = 0;
	struct why w;
	bool torn;
	int ret;

	*st = c->st;
	ret = seg_scan(fd, frames_end, &seg->hdr, t, st, &end, &torn, &w);
	if (ret == -ENOMEM)
		return why_set(c->why, ENOMEM, "out of memory");
	if (!ret && tr && end != frames_end)
		ret = why_set(&w, EBADMSG, "offset %llu: this is no frame", (unsigned long long)end);
	if (ret && tr) {
		int bad = frames_check(c, seg, &seg->table);

		if (bad < 0)
			return bad;
		if (!bad)
			found(c, seg->file, 0, &w);
		return 1;
	}
	if (ret) {
		found(c, seg->file, 0, &w);
		return 1;
	}
	c->r->frames += t->foot.frames;
	c->r->records += t->foot.records;
	ret = tr ? foot_check(c, seg, t, frames_end, bytes) : 0;
	if (ret < 0)
		return ret;
	if (c->seals) {
		int bad = frames_check(c, seg, t);

		ret = bad < 0 ? bad : ret | !!bad;
	}
	return ret;
}

static int sealed_check(struct check *c, struct index_seg *seg, int fd, uint64_t bytes)
{
	struct seg_table t = {0};
	struct seg_trailer tr;
	struct seg_state st;
	struct why w;
	int ret;

	if (index_head_read(c->ix.store, "segments", seg, &tr, &w)) {
		found(c, seg->file, 0, &w);
		c->follows = false;
		return 0;
	}
	if (!c->follows)
		state_before(&c->st, seg);
	if (journal_has(c, seg->file, &tr)) {
		c->r->skipped++;
		ret = 0;
	} else {
		ret = scan_check(c, seg, fd, bytes, &tr, &st, &t);
		if (!ret)
			ret = journal_add(c, seg->file, &tr);
	}
	seg_table_free(&t);
	if (ret < 0)
		return ret;
	seg_state_after(&c->st, &seg->hdr, &seg->table);
	c->follows = true;
	return 0;
}

static int tail_check(struct check *c, struct index_seg *seg, int fd, uint64_t bytes)
{
	struct seg_table t = {0};
	struct seg_state st;
	int ret;

	if (!c->follows) {
		found_text(c, seg->file, 0, "cannot be checked: what is before it is damaged or missing");
		return 0;
	}
	ret = scan_check(c, seg, fd, bytes, NULL, &st, &t);
	seg_table_free(&t);
	c->follows = !ret;
	if (!ret)
		c->st = st;
	return ret < 0 ? ret : 0;
}

/* 0; 1: it was made and never written to; 2: reported */
static int header_check(struct check *c, struct index_seg *seg, int fd, uint64_t bytes, uint64_t first)
{
	static const struct seg_hdr zero;
	struct why w;

	if (bytes < sizeof(seg->hdr) || pread(fd, &seg->hdr, sizeof(seg->hdr), 0) != sizeof(seg->hdr)) {
		if (!seg->sealed)
			return 1;
		found_text(c, seg->file, 0, "it is too short for its header, or cannot be read");
		return 2;
	}
	if (!seg->sealed && !memcmp(&seg->hdr, &zero, sizeof(zero)))
		return 1;
	if (seg_hdr_check(&seg->hdr, &w)) {
		found(c, seg->file, 0, &w);
		if (!c->follows)
			return 2;
		/* what must be in it is known: its frames can be checked */
		seg_hdr_make(&seg->hdr, c->ix.uuid, c->stream->uuid, c->st.next_number, first);
		return first == c->st.next_frame_no ? 0 : 2;
	}
	if (memcmp(seg->hdr.group, c->ix.uuid, ASR_UUID_BYTES) || seg->hdr.first_frame_no != first ||
	    memcmp(seg->hdr.stream, c->stream->uuid, ASR_UUID_BYTES)) {
		found_text(c, seg->file, 0, "its group, stream or frame number are not those of its name");
		return 2;
	}
	if (c->follows && (seg->hdr.number != c->st.next_number || first != c->st.next_frame_no)) {
		found_text(c, seg->file, 0, "it is segment %llu, from frame %llu on, and segment %llu, from frame %llu "
			   "on, is due: something is missing", (unsigned long long)seg->hdr.number,
			   (unsigned long long)first, (unsigned long long)c->st.next_number,
			   (unsigned long long)c->st.next_frame_no);
		c->follows = false;
	}
	return 0;
}

static int seg_open(struct check *c, struct index_seg *seg)
{
	cleanup_free char *path = NULL;
	int fd;

	if (asprintf(&path, "%s/segments/%s", c->ix.dir, seg->file) < 0)
		return -ENOMEM;
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0 && errno == ENOENT && !seg->sealed) {	/* sealed since */
		snprintf(strrchr(seg->file, '.'), 5, ".seg");
		snprintf(strrchr(path, '.'), 5, ".seg");
		seg->sealed = true;
		fd = open(path, O_RDONLY | O_CLOEXEC);
	}
	return fd < 0 ? -errno : fd;
}

static int segment_check(struct check *c, const struct name *n, uint64_t first, bool sealed)
{
	struct index_seg seg = { .sealed = sealed };
	cleanup_fd int fd = -1;
	struct stat st;
	int ret;

	snprintf(seg.file, sizeof(seg.file), "%s", n->file);
	fd = seg_open(c, &seg);
	if (fd < 0 || fstat(fd, &st) < 0) {
		found_text(c, seg.file, 0, "cannot be read: %s", strerror(fd < 0 ? -fd : errno));
		c->follows = false;
		return pace(c, n->bytes);
	}
	ret = header_check(c, &seg, fd, (uint64_t)st.st_size, first);
	if (!ret) {
		c->r->segments++;
		ret = seg.sealed ? sealed_check(c, &seg, fd, (uint64_t)st.st_size) :
		      tail_check(c, &seg, fd, (uint64_t)st.st_size);
	} else {
		c->follows &= ret == 1;
		ret = 0;
	}
	seg_table_free(&seg.table);
	return ret ? ret : pace(c, n->bytes);
}

/* -------------------------------------------------------------------- a group */

static void stream_end(struct check *c)
{
	seals_destroy(c->seals);
	secret_free(c->key);
	c->seals = NULL;
	c->key = NULL;
	c->stream = NULL;
}

static int stream_begin(struct check *c, const uint8_t *uuid)
{
	struct index_stream *more = reallocarray(c->ix.streams, c->ix.count + 1, sizeof(*more));
	cleanup_free uint8_t *der = NULL;
	struct why w;
	size_t bytes;
	int ret;

	stream_end(c);
	if (!more)
		return why_set(c->why, ENOMEM, "out of memory");
	c->ix.streams = more;
	memset(&more[c->ix.count], 0, sizeof(*more));
	memcpy(more[c->ix.count].uuid, uuid, ASR_UUID_BYTES);
	c->stream = &more[c->ix.count++];
	seg_state_init(&c->st);
	c->follows = true;
	c->r->streams++;
	ret = index_wrapped_key(&c->ix, c->ix.count - 1, &der, &bytes, &w);
	if (ret)	/* without it all that the stream holds is lost */
		found(c, "", 0, &w);
	if (ret || !c->a->key_pem)
		return 0;
	c->key = secret_alloc(ASR_KEY_BYTES);
	if (!c->key)
		return why_set(c->why, ENOMEM, "out of memory");
	if (seal_key_unwrap(der, bytes, c->a->key_pem, c->a->cert_pem, c->a->passphrase, c->key, &w)) {
		c->r->locked++;
		found(c, "", 0, &w);
		return 0;
	}
	return seals_create(c->key, &c->seals) ? why_set(c->why, ENOMEM, "out of memory") : 0;
}

static int on_name(const char *name, void *arg)
{
	struct check *c = arg;
	char path[SEG_NAME_BYTES];
	struct name *more;

	if (c->count && strlen(name) == 53 && !strncmp(c->names[c->count - 1].file, name, 49))
		return 0;	/* listed while it was renamed */
	if (c->count == c->room) {
		c->room = 2 * c->room + 64;
		more = reallocarray(c->names, c->room, sizeof(*more));
		if (!more)
			return -ENOMEM;
		c->names = more;
	}
	more = &c->names[c->count++];
	snprintf(more->file, sizeof(more->file), "%s", name);
	snprintf(path, sizeof(path), "segments/%s", name);
	if (store_head(c->ix.store, path, &more->bytes))
		more->bytes = 0;
	return 0;
}

static void group_end(struct check *c)
{
	stream_end(c);
	store_close(c->ix.store);
	json_decref(c->ix.group);
	free(c->ix.streams);
	free(c->ix.dir);
	free(c->names);
	c->names = NULL;
	c->count = c->room = 0;
	memset(&c->ix, 0, sizeof(c->ix));
}

/* 1: what is there is no group, and that was reported */
static int group_begin(struct check *c, const char *dir)
{
	const char *base = strrchr(dir, '/');
	struct why w;
	int ret;

	c->ix.dir = strdup(dir);
	if (!c->ix.dir)
		return why_set(c->why, ENOMEM, "out of memory");
	snprintf(c->ix.name, sizeof(c->ix.name), "%.*s", ASR_NAME_BYTES - 1, base ? base + 1 : dir);
	if (index_group_read(dir, &c->ix.group, &w)) {
		found(c, "", 0, &w);
		return 1;
	}
	snprintf(c->ix.name, sizeof(c->ix.name), "%s", text_of(c->ix.group, "name"));
	if (hex_decode(text_of(c->ix.group, "uuid"), c->ix.uuid, ASR_UUID_BYTES)) {
		found_text(c, "", 0, "%s/group.json is damaged: bad uuid", dir);
		return 1;
	}
	c->r->groups++;
	ret = store_open(dir, &c->ix.store, c->why);
	if (!ret)
		ret = store_list(c->ix.store, "segments", on_name, c);
	if (ret == -ENOENT && c->ix.store)
		return 0;		/* nothing has arrived yet */
	return ret ? why_set(c->why, -ret, "cannot list %s/segments: %s", dir, strerror(-ret)) : 0;
}

static bool has_key(const struct check *c, const char *name)
{
	cleanup_free char *path = NULL;

	return asprintf(&path, "%s/%s", c->ix.dir, name) >= 0 && !access(path, R_OK);
}

/* Keys of hosts that have shipped nothing yet; of the others, stream_begin */
static void keys_check(struct check *c)
{
	json_t *members = json_object_get(c->ix.group, "members"), *m;
	char name[80];
	size_t i;

	if (!json_array_size(members) && !c->count && !has_key(c, "wrapped.key"))
		found_text(c, "", 0, "%s is no group of a vault: it has neither segments nor a key", c->ix.dir);
	json_array_foreach(members, i, m) {
		const char *stream = text_of(m, "stream");
		bool shipped = false;

		for (size_t n = 0; n < c->count; n++)
			shipped |= !strncmp(c->names[n].file, stream, strlen(stream));
		snprintf(name, sizeof(name), "wrapped-%.40s.key", stream);
		if (!shipped && !has_key(c, name) && !has_key(c, "wrapped.key"))
			found_text(c, name, 0, "the key of host %s is missing or cannot be read", text_of(m, "name"));
	}
}

static int group_check(struct check *c)
{
	uint8_t uuid[ASR_UUID_BYTES];
	uint64_t first;
	bool sealed;
	int ret = 0;

	keys_check(c);
	for (size_t i = 0; i < c->count && !ret; i++) {
		if (!index_seg_name(c->names[i].file, uuid, &first, &sealed)) {
			found_text(c, c->names[i].file, 0, "it does not belong there");
			continue;
		}
		if (!c->stream || memcmp(c->stream->uuid, uuid, ASR_UUID_BYTES))
			ret = stream_begin(c, uuid);
		if (!ret)
			ret = segment_check(c, &c->names[i], first, sealed);
	}
	return ret;
}

/* ------------------------------------------------------------------ all of it */

static int on_group(const struct catalog_group *g, void *arg)
{
	cleanup_free char *path = NULL;
	char uuid[2 * ASR_UUID_BYTES + 1];
	struct check *c = arg;

	hex_encode(g->uuid, ASR_UUID_BYTES, uuid);
	if (asprintf(&path, "%s/groups/%s/group.json", c->a->vault_dir, uuid) < 0)
		return -ENOMEM;
	if (access(path, F_OK) < 0)
		found_text(c, "vault.db", 0, "group %s of the catalogue has no folder groups/%s", g->name, uuid);
	return 0;
}

static int catalogue_check(struct check *c)
{
	struct catalog *cat = NULL;
	struct why w;
	int ret = catalog_open(c->a->vault_dir, &cat, &w);

	if (ret == -ENOENT)
		return 0;		/* a bare copy of groups */
	if (!ret)
		ret = catalog_sound(cat, &w);
	if (ret)
		found(c, "vault.db", 0, &w);
	else
		ret = catalog_groups(cat, on_group, c, c->why);
	catalog_close(cat);
	return ret == -ENOMEM ? ret : 0;
}

/* How much there is to be read in a group's folder: what progress is told by */
static uint64_t bytes_of(const char *dir)
{
	cleanup_free char *path = NULL;
	uint64_t bytes = 0;
	struct dirent *d;
	struct stat st;
	DIR *segments;

	if (asprintf(&path, "%s/segments", dir) < 0)
		return 0;
	segments = opendir(path);
	while (segments && (d = readdir(segments)) != NULL)
		if (d->d_name[0] != '.' && !fstatat(dirfd(segments), d->d_name, &st, 0))
			bytes += (uint64_t)st.st_size;
	if (segments)
		closedir(segments);
	return bytes;
}

static bool wanted(const char *group, const char *dir)
{
	cleanup_json g = NULL;
	struct why w;

	return !group || (!index_group_read(dir, &g, &w) &&
			  (!strcmp(group, text_of(g, "name")) || !strcmp(group, text_of(g, "uuid"))));
}

/* The folders of the groups that are asked for, sorted */
static int groups_find(struct check *c, json_t *out)
{
	const char *dir = c->a->vault_dir, *group = c->a->group;
	cleanup_free char *path = NULL, *own = NULL, *db = NULL;
	struct dirent **names;
	int n;

	if (asprintf(&path, "%s/groups", dir) < 0 || asprintf(&own, "%s/group.json", dir) < 0 ||
	    asprintf(&db, "%s/vault.db", dir) < 0)
		return why_set(c->why, ENOMEM, "out of memory");
	if (!access(own, F_OK)) {
		if (!wanted(group, dir))
			return why_set(c->why, ENOENT, "%s is the folder of another group than %.64s", dir, group);
		json_array_append_new(out, json_string(dir));
		return 0;
	}
	n = scandir(path, &names, NULL, alphasort);
	if (n < 0 && errno != ENOENT)
		return why_set(c->why, errno, "cannot list %s: %s", path, strerror(errno));
	for (int i = 0; i < n; i++) {
		cleanup_free char *at = NULL, *json = NULL;

		/* without group.json: made half before a crash, never acknowledged */
		if (names[i]->d_name[0] != '.' && asprintf(&at, "%s/%s", path, names[i]->d_name) >= 0 &&
		    asprintf(&json, "%s/group.json", at) >= 0 && !access(json, F_OK) && wanted(group, at))
			json_array_append_new(out, json_string(at));
		free(names[i]);
	}
	if (n >= 0)
		free(names);
	if (access(db, F_OK) && !json_array_size(out))
		return why_set(c->why, ENOENT, "%s is neither a vault nor a group's folder: it has no vault.db, no "
			       "group in groups/, and no group.json", dir);
	if (group && !json_array_size(out))
		return why_set(c->why, ENOENT, "no group \"%.64s\" in %s: `asrctl vault status` lists those there are",
			       group, dir);
	return 0;
}

int vaultcheck_run(const struct vaultcheck_args *a, struct vaultcheck_result *r, struct why *why)
{
	struct check c = { .a = a, .r = r, .why = why, .began_ns = now_ns() };
	cleanup_json groups = json_array();
	json_t *g;
	size_t i;
	int ret;

	memset(r, 0, sizeof(*r));
	c.frame = aligned_alloc(8, (INDEX_FRAME_ROOM + 7) & ~(size_t)7);
	c.plain = secret_alloc(ASR_FRAME_PAYLOAD_MAX);
	ret = c.frame && c.plain ? groups_find(&c, groups) : why_set(why, ENOMEM, "out of memory");
	if (!ret)
		ret = journal_open(&c);
	if (!ret && !a->group)
		ret = catalogue_check(&c);
	json_array_foreach(groups, i, g)
		r->total += bytes_of(json_string_value(g));
	json_array_foreach(groups, i, g) {
		if (ret)
			break;
		ret = group_begin(&c, json_string_value(g));
		if (!ret)
			ret = group_check(&c);
		ret = ret == 1 ? 0 : ret;
		group_end(&c);
	}
	json_decref(c.journal);
	if (c.more)
		fclose(c.more);
	secret_free(c.plain);
	free(c.frame);
	r->elapsed_ns = now_ns() - c.began_ns;
	return ret;
}

json_t *vaultcheck_json(const struct vaultcheck_result *r)
{
	return json_pack("{s:b, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:f}", "sound", !r->findings,
			 "findings_count", (json_int_t)r->findings, "groups", (json_int_t)r->groups,
			 "streams", (json_int_t)r->streams, "segments", (json_int_t)r->segments,
			 "segments_skipped", (json_int_t)r->skipped, "frames", (json_int_t)r->frames,
			 "records", (json_int_t)r->records, "blocks", (json_int_t)r->blocks,
			 "streams_locked", (json_int_t)r->locked, "bytes", (json_int_t)r->bytes,
			 "seconds", (double)r->elapsed_ns / 1e9);
}
