// SPDX-License-Identifier: Apache-2.0
/*
 * Brings one disk back as it was at a point, into a new sparse raw file.
 *
 * Design: the records are walked from the point back to the beginning, newest
 * first, and each writes only the sectors that no newer one has covered; so a
 * sector is written once, and the walk ends when all are covered. The walk is
 * done twice: dry, over the footers alone, to know how many bytes it will
 * write before anything is written; then for real, reading each frame that
 * contributes once.
 *
 *   segments  newest -> oldest
 *     frames of it that hold records of the disk, newest -> oldest
 *       records, newest -> oldest: take what is uncovered
 *       any taken: read, check, open the frame; write the pieces
 *
 * Zeroes and discards leave holes. Coverage is a bitmap of sectors in chunks
 * of 16 MiB of disk that exist while they are partly covered.
 *
 * Invariants: not one byte is written that did not come out of a frame whose
 * envelope, chain, tags, digests and place in the footer fit. The image gets
 * its name when it is whole and durable; before, it has none (O_TMPFILE), or a
 * temporary one that is removed on the way out.
 *
 * Context: blocks on the file system. Memory: coverage (1/4096 of the disk at
 * worst), one segment's tables, one frame.
 */
#include "vault.h"

#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>

/* ----------------------------------------------------------------- coverage */

#define CHUNK_SECTORS	32768u
#define CHUNK_WORDS	(CHUNK_SECTORS / 64)

struct chunk {
	uint32_t left;			/* uncovered sectors */
	uint64_t covered[CHUNK_WORDS];
};
static struct chunk chunk_full;		/* stands for every chunk that is wholly covered */

struct cover {
	struct chunk **chunk;		/* NULL: nothing covered yet */
	uint64_t chunks, sectors, left;
};

static int cover_init(struct cover *c, uint64_t sectors)
{
	c->sectors = c->left = sectors;
	c->chunks = (sectors + CHUNK_SECTORS - 1) / CHUNK_SECTORS;
	c->chunk = calloc(c->chunks + 1, sizeof(*c->chunk));
	return c->chunk ? 0 : -ENOMEM;
}

static void cover_free(struct cover *c)
{
	for (uint64_t i = 0; c->chunk && i < c->chunks; i++)
		if (c->chunk[i] != &chunk_full)
			free(c->chunk[i]);
	free(c->chunk);
	c->chunk = NULL;
}

static bool bit_get(const struct chunk *k, uint32_t n)
{
	return k->covered[n / 64] >> (n % 64) & 1;
}

/* What was uncovered in [sector, sector + sectors), and is covered now: run by run */
typedef int take_fn(uint64_t sector, uint32_t sectors, void *arg);

static int take_in_chunk(struct cover *c, uint64_t index, uint32_t first, uint32_t end, take_fn *fn, void *arg)
{
	struct chunk *k = c->chunk[index];
	uint64_t base = index * CHUNK_SECTORS;
	uint32_t run;
	int ret = 0;

	if (k == &chunk_full)
		return 0;
	if (!k && !first && (end == CHUNK_SECTORS || base + end == c->sectors)) {
		c->chunk[index] = &chunk_full;
		c->left -= end;
		return fn(base, end, arg);
	}
	if (!k) {
		k = c->chunk[index] = calloc(1, sizeof(*k));
		if (!k)
			return -ENOMEM;
		k->left = c->sectors - base < CHUNK_SECTORS ? (uint32_t)(c->sectors - base) : CHUNK_SECTORS;
	}
	for (uint32_t n = first; n < end && !ret; n = run) {
		for (run = n; run < end && !bit_get(k, run); run++)
			k->covered[run / 64] |= 1ULL << (run % 64);
		if (run > n) {
			k->left -= run - n;
			c->left -= run - n;
			ret = fn(base + n, run - n, arg);
		}
		while (run < end && bit_get(k, run))
			run++;
	}
	if (!k->left) {
		free(k);
		c->chunk[index] = &chunk_full;
	}
	return ret;
}

static int cover_take(struct cover *c, uint64_t sector, uint64_t sectors, take_fn *fn, void *arg)
{
	uint64_t end = sector + sectors < c->sectors ? sector + sectors : c->sectors;
	int ret = 0;

	while (sector < end && !ret) {
		uint64_t index = sector / CHUNK_SECTORS;
		uint64_t stop = (index + 1) * CHUNK_SECTORS < end ? (index + 1) * CHUNK_SECTORS : end;

		ret = take_in_chunk(c, index, (uint32_t)(sector % CHUNK_SECTORS),
				    (uint32_t)(stop - index * CHUNK_SECTORS), fn, arg);
		sector = stop;
	}
	return ret;
}

/* --------------------------------------------------------------------- walk */

/* A piece of a record that is to be written */
struct piece {
	const struct seg_rec *rec;
	uint64_t sector;
	uint32_t sectors;
};

#define SESSIONS	8

struct restore {
	const struct restore_args *a;
	struct restore_result *r;
	struct why *why;
	struct index *ix;
	struct point_disk disk;
	uint64_t floor_frame;		/* the disk's slot was another's up to here ... */
	uint32_t floor_record;		/* ... and this record of that frame */
	struct cover cover;
	bool dry;
	uint64_t want_bytes;		/* dry: that will be written */
	struct piece *pieces;
	size_t piece_count, piece_room;
	const struct seg_rec *rec;	/* whose pieces are being taken */
	uint8_t *key;			/* group data key, secret memory */
	struct {
		uint8_t session[ASR_UUID_BYTES];
		struct seal *seal;
	} sessions[SESSIONS];
	unsigned int session_next;
	uint8_t *frame, *plain;
	int fd;
};

static int take_piece(uint64_t sector, uint32_t sectors, void *arg)
{
	struct restore *w = arg;

	if (w->dry) {
		if (wire_kind_has_payload(w->rec->kind))
			w->want_bytes += (uint64_t)sectors * 512;
		return 0;
	}
	if (w->piece_count == w->piece_room) {
		size_t room = w->piece_room ? w->piece_room * 2 : 256;
		struct piece *more = reallocarray(w->pieces, room, sizeof(*more));

		if (!more)
			return -ENOMEM;
		w->pieces = more;
		w->piece_room = room;
	}
	w->pieces[w->piece_count++] = (struct piece){ w->rec, sector, sectors };
	return 0;
}

static struct seal *session_seal(struct restore *w, const uint8_t *session)
{
	unsigned int n;

	for (n = 0; n < SESSIONS; n++)
		if (w->sessions[n].seal && !memcmp(w->sessions[n].session, session, ASR_UUID_BYTES))
			return w->sessions[n].seal;
	n = w->session_next++ % SESSIONS;
	seal_destroy(w->sessions[n].seal);
	w->sessions[n].seal = NULL;
	if (seal_create(w->key, session, &w->sessions[n].seal))
		return NULL;
	memcpy(w->sessions[n].session, session, ASR_UUID_BYTES);
	return w->sessions[n].seal;
}

static int frame_damaged(struct restore *w, const struct index_seg *seg, const struct seg_frame *f, const char *text)
{
	return why_set(w->why, EBADMSG, "segment %s, offset %llu: %.400s", seg->file,
		       (unsigned long long)f->offset, text);
}

static bool rec_matches(const struct frame_view *v, const struct seg_rec *s)
{
	const struct frame_rec *r = &v->recs[s->record];

	return r->disk == s->disk && r->sector == s->sector && r->sectors == s->sectors &&
	       r->kind == s->kind && r->seq == s->seq;
}

static bool is_content(uint8_t kind)
{
	return wire_kind_has_payload(kind) || kind == ASR_KIND_ZEROES || kind == ASR_KIND_DISCARD ||
	       kind == ASR_KIND_SYNC_ZEROES;
}

/* The footer lists the records of the disk in this frame as they are, and all of them */
static bool frame_matches(const struct restore *w, const struct frame_view *v, const struct seg_rec *const *recs,
			  size_t count)
{
	size_t there = 0;

	for (uint32_t i = 0; i < v->hdr.records; i++)
		if (v->recs[i].disk == w->disk.slot && is_content(v->recs[i].kind))
			there++;
	for (size_t i = 0; i < count; i++)
		if (!rec_matches(v, recs[i]))
			return false;
	return there == count;
}

static int write_at(struct restore *w, const uint8_t *p, size_t bytes, uint64_t offset)
{
	while (bytes) {
		ssize_t n = pwrite(w->fd, p, bytes, (off_t)offset);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return why_set(w->why, errno, "cannot write to %s: %s", w->a->to, strerror(errno));
		p += n;
		offset += (uint64_t)n;
		bytes -= (size_t)n;
	}
	return 0;
}

static int pieces_write(struct restore *w, const struct frame_view *v)
{
	for (size_t i = 0; i < w->piece_count; i++) {
		const struct piece *p = &w->pieces[i];
		const struct frame_rec *r = &v->recs[p->rec->record];
		size_t bytes = (size_t)p->sectors * 512;
		int ret;

		if (!wire_kind_has_payload(r->kind))
			continue;
		ret = write_at(w, w->plain + r->offset + (p->sector - r->sector) * 512, bytes, p->sector * 512);
		if (ret)
			return ret;
		w->r->written_bytes += bytes;
	}
	return 0;
}

/* Opens the frame that the pieces are from, and writes them. recs: all of the disk in it. */
static int frame_apply(struct restore *w, struct index_seg *seg, uint32_t frame,
		       const struct seg_rec *const *recs, size_t count)
{
	const struct seg_frame *f = &seg->table.frames[frame];
	struct frame_view v;
	struct seal *seal;
	struct why inner;
	int ret = index_frame_read(w->ix, seg, frame, w->frame, &v, w->why);

	if (ret)
		return ret;
	if (!frame_matches(w, &v, recs, count))
		return frame_damaged(w, seg, f, "the footer does not list the frame's records as they are");
	seal = session_seal(w, v.hdr.session);
	if (!seal)
		return why_set(w->why, ENOMEM, "cannot make a session key");
	ret = seal_frame_open(seal, &v, w->plain, &inner);
	if (ret)
		return frame_damaged(w, seg, f, inner.text);
	w->r->frames_read++;
	w->r->frames_bytes += f->bytes;
	return pieces_write(w, &v);
}

/* Newest first */
static int newest_first(const void *pa, const void *pb)
{
	const struct seg_rec *a = *(const struct seg_rec *const *)pa, *b = *(const struct seg_rec *const *)pb;

	if (a->frame != b->frame)
		return a->frame > b->frame ? -1 : 1;
	return a->record > b->record ? -1 : a->record < b->record;
}

/* Is a record of the segment before or at the point, and behind the floor? */
static bool in_reach(const struct restore *w, uint64_t frame_no, uint32_t record)
{
	const struct point *p = &w->r->point;

	if (frame_no > p->frame_no || (frame_no == p->frame_no && record >= p->records))
		return false;
	return frame_no > w->floor_frame || (frame_no == w->floor_frame && record > w->floor_record);
}

static int progress(struct restore *w)
{
	uint64_t done = (w->cover.sectors - w->cover.left) * 512;

	if (w->dry || !w->a->progress || !w->a->progress(done, w->cover.sectors * 512, w->a->arg))
		return 0;
	return why_set(w->why, ECANCELED, "stopped; nothing was left behind");
}

/* The records of the disk in one frame: recs[0 .. count), newest first */
static int frame_walk(struct restore *w, struct index_seg *seg, const struct seg_rec *const *recs, size_t count)
{
	uint64_t frame_no = seg->hdr.first_frame_no + recs[0]->frame;
	int ret;

	w->piece_count = 0;
	for (size_t i = 0; i < count; i++) {
		w->rec = recs[i];
		if (!in_reach(w, frame_no, recs[i]->record))
			continue;
		ret = cover_take(&w->cover, recs[i]->sector, recs[i]->sectors, take_piece, w);
		if (ret)
			return why_set(w->why, -ret, "out of memory");
	}
	if (!w->piece_count)
		return 0;
	ret = frame_apply(w, seg, recs[0]->frame, recs, count);
	return ret ? ret : progress(w);
}

static int seg_walk(struct restore *w, struct index_seg *seg)
{
	cleanup_free const struct seg_rec **recs = NULL;
	size_t count = 0, n;
	int ret = index_seg_load(w->ix, seg, w->why);

	if (ret)
		return ret;
	recs = calloc(seg->table.foot.records + 1, sizeof(*recs));
	if (!recs)
		return why_set(w->why, ENOMEM, "out of memory");
	for (uint32_t i = 0; i < seg->table.foot.records; i++)
		if (seg->table.recs[i].disk == w->disk.slot)
			recs[count++] = &seg->table.recs[i];
	qsort(recs, count, sizeof(*recs), newest_first);
	for (size_t i = 0; i < count && w->cover.left && !ret; i += n) {
		for (n = 1; i + n < count && recs[i + n]->frame == recs[i]->frame; n++)
			;
		ret = frame_walk(w, seg, recs + i, n);
	}
	return ret;
}

static int walk(struct restore *w, bool dry)
{
	struct index_stream *st = &w->ix->streams[w->r->point.stream];
	int ret = 0;

	cover_free(&w->cover);
	if (cover_init(&w->cover, w->disk.sectors))
		return why_set(w->why, ENOMEM, "out of memory");
	w->dry = dry;
	for (size_t i = st->count; i > 0 && w->cover.left && !ret; i--) {
		struct index_seg *seg = &st->segs[i - 1];

		if (seg->hdr.first_frame_no > w->r->point.frame_no)
			continue;
		if (seg->hdr.first_frame_no + seg->table.foot.frames <= w->floor_frame)
			break;
		ret = seg_walk(w, seg);
		index_seg_unload(seg);
	}
	return ret;
}

/* ----------------------------------------------------------------- preparing */

static int disk_find(struct restore *w)
{
	cleanup_free struct point_disk *disks = NULL;
	char names[300] = "";
	size_t count, n = 0;
	int ret = point_disks(w->ix, &w->r->point, &disks, &count, w->why);

	if (ret)
		return ret;
	for (size_t i = 0; i < count; i++) {
		if (!strcmp(disks[i].name, point_disk_name(w->a->disk))) {
			w->disk = disks[i];
			return 0;
		}
		if (n + sizeof(disks[i].name) + 2 < sizeof(names))
			n += (size_t)snprintf(names + n, sizeof(names) - n, "%s%s", n ? ", " : "", disks[i].name);
	}
	return why_set(w->why, ENOENT, "group %s had no disk \"%.64s\" at that point; it had: %s", w->ix->name,
		       point_disk_name(w->a->disk), n ? names : "none");
}

/* Slots are used again: nothing before the disk got its slot is the disk's */
static void floor_find(struct restore *w)
{
	const struct index_stream *st = &w->ix->streams[w->r->point.stream];
	const char *holder = NULL;

	for (size_t i = 0; i < st->count; i++) {
		const struct seg_table *t = &st->segs[i].table;

		for (uint32_t k = 0; k < t->foot.disks && !i; k++)
			if (t->disks[k].disk == w->disk.slot)
				holder = t->disks[k].name;
		for (uint32_t k = 0; k < t->foot.events; k++) {
			const struct seg_event *e = &t->events[k];
			uint64_t frame_no = st->segs[i].hdr.first_frame_no + e->frame;

			if (e->kind != ASR_KIND_DISK || e->disk != w->disk.slot)
				continue;
			if (!in_reach(w, frame_no, e->record))
				return;
			if (holder && strcmp(holder, e->name)) {
				w->floor_frame = frame_no;
				w->floor_record = e->record;
			}
			holder = e->name;
		}
	}
}

static int key_open(struct restore *w)
{
	cleanup_free uint8_t *der = NULL;
	size_t bytes;
	int ret = index_wrapped_key(w->ix, w->r->point.stream, &der, &bytes, w->why);

	if (ret)
		return ret;
	w->key = secret_alloc(ASR_KEY_BYTES);
	if (!w->key)
		return why_set(w->why, ENOMEM, "out of memory");
	return seal_key_unwrap(der, bytes, w->a->key_pem, w->a->cert_pem, w->a->passphrase, w->key, w->why);
}

static int room_check(struct restore *w, const char *dir)
{
	struct statvfs fs;
	uint64_t room;

	if (statvfs(dir, &fs) < 0)
		return why_set(w->why, errno, "cannot look at %s: %s", dir, strerror(errno));
	room = (uint64_t)fs.f_bavail * fs.f_frsize;
	if (room >= w->want_bytes)
		return 0;
	return why_set(w->why, ENOSPC, "%s has %llu bytes free, the image of %s takes %llu (sparse, of %llu)",
		       dir, (unsigned long long)room, w->a->disk, (unsigned long long)w->want_bytes,
		       (unsigned long long)w->disk.sectors * 512);
}

static int dest_check(const struct restore_args *a, const char *dir, struct why *why)
{
	struct stat st;

	if (lstat(a->to, &st) == 0)
		return why_set(why, EEXIST, "%s exists: give a name that does not", a->to);
	if (errno != ENOENT)
		return why_set(why, errno, "cannot write to %s: %s", a->to, strerror(errno));
	if (access(dir, W_OK | X_OK) < 0)
		return why_set(why, errno, "cannot write into %s: %s", dir, strerror(errno));
	return 0;
}

/* Without a name where the file system can; else *tmp is set */
static int dest_open(struct restore *w, const char *dir, char **tmp)
{
	w->fd = open(dir, O_RDWR | O_TMPFILE | O_CLOEXEC, 0600);
	if (w->fd < 0) {
		if (asprintf(tmp, "%s.%d.part", w->a->to, (int)getpid()) < 0) {
			*tmp = NULL;
			return why_set(w->why, ENOMEM, "out of memory");
		}
		w->fd = open(*tmp, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
		if (w->fd < 0) {	/* what has this name is not ours to remove */
			int err = errno;

			free(*tmp);
			*tmp = NULL;
			return why_set(w->why, err, "cannot make %s: %s", w->a->to, strerror(err));
		}
	}
	if (w->fd < 0 || ftruncate(w->fd, (off_t)(w->disk.sectors * 512)) < 0)
		return why_set(w->why, errno, "cannot make %s: %s%s", w->a->to, strerror(errno),
			       errno == EFBIG ? " (the file system takes no file of the disk's size)" : "");
	return 0;
}

static int dest_name(struct restore *w, const char *dir, const char *tmp)
{
	cleanup_fd int d = -1;
	char self[40];
	int ret;

	if (fsync(w->fd) < 0)
		return why_set(w->why, errno, "cannot write to %s: %s", w->a->to, strerror(errno));
	snprintf(self, sizeof(self), "/proc/self/fd/%d", w->fd);
	ret = linkat(AT_FDCWD, tmp ? tmp : self, AT_FDCWD, w->a->to, tmp ? 0 : AT_SYMLINK_FOLLOW);
	if (ret < 0)
		return why_set(w->why, errno, "cannot make %s: %s", w->a->to, strerror(errno));
	d = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (d >= 0)
		fsync(d);
	return 0;
}

/* Nothing covers these sectors: they are zeroes only if all of the disk's history is there */
static int history_check(struct restore *w)
{
	const struct index_seg *first = &w->ix->streams[w->r->point.stream].segs[0];

	if (!w->cover.left || w->floor_frame || first->hdr.number == 1)
		return 0;
	return why_set(w->why, EBADMSG, "%llu bytes of %s were last written before segment %s, number %llu of its "
		       "stream: the segments before it are missing", (unsigned long long)w->cover.left * 512,
		       w->a->disk, first->file, (unsigned long long)first->hdr.number);
}

static int image_make(struct restore *w, const char *dir)
{
	char *tmp = NULL;
	int ret = dest_open(w, dir, &tmp);

	if (!ret)
		ret = walk(w, false);
	if (!ret)
		ret = dest_name(w, dir, tmp);
	if (tmp)
		unlink(tmp);
	free(tmp);
	return ret;
}

static void restore_free(struct restore *w)
{
	for (unsigned int i = 0; i < SESSIONS; i++)
		seal_destroy(w->sessions[i].seal);
	secret_free(w->key);
	secret_free(w->plain);
	free(w->frame);
	free(w->pieces);
	cover_free(&w->cover);
	index_close(w->ix);
	if (w->fd >= 0)
		close(w->fd);
}

int restore_disk(const struct restore_args *a, struct restore_result *r, struct why *why)
{
	struct restore w = { .a = a, .r = r, .why = why, .fd = -1 };
	cleanup_free char *to = strdup(a->to);
	const char *dir = to ? dirname(to) : "";
	uint64_t began = now_ns();
	int ret;

	memset(r, 0, sizeof(*r));
	ret = dest_check(a, dir, why);
	if (!ret)
		ret = index_open(a->vault_dir, a->group, &w.ix, why);
	if (!ret)
		ret = point_resolve(w.ix, a->point, a->disk, &r->point, why);
	if (!ret)
		ret = disk_find(&w);
	if (!ret)
		ret = key_open(&w);
	if (ret)
		goto out_free;
	floor_find(&w);
	w.frame = aligned_alloc(8, (INDEX_FRAME_ROOM + 7) & ~(size_t)7);
	w.plain = secret_alloc(ASR_FRAME_PAYLOAD_MAX);
	ret = w.frame && w.plain ? walk(&w, true) : why_set(why, ENOMEM, "out of memory");
	if (!ret)
		ret = history_check(&w);
	if (!ret)
		ret = room_check(&w, dir);
	if (!ret)
		ret = image_make(&w, dir);
	if (ret)
		goto out_free;
	r->disk_bytes = w.disk.sectors * 512;
	r->unwritten_bytes = w.cover.left * 512;
	r->elapsed_ns = now_ns() - began;
	if (a->progress)
		a->progress(r->disk_bytes, r->disk_bytes, a->arg);
out_free:
	restore_free(&w);
	return ret;
}

json_t *restore_json(const struct restore_args *a, const struct restore_result *r)
{
	char when[40];

	return json_pack("{s:s,s:s,s:I,s:s,s:s,s:I,s:I,s:I,s:I,s:I,s:f}", "disk", a->disk, "to", a->to,
			 "seq", (json_int_t)r->point.seq, "time", time_format(r->point.time_ns, when),
			 "name", r->point.name, "disk_bytes", (json_int_t)r->disk_bytes,
			 "written_bytes", (json_int_t)r->written_bytes,
			 "unwritten_bytes", (json_int_t)r->unwritten_bytes,
			 "frames", (json_int_t)r->frames_read, "frames_bytes", (json_int_t)r->frames_bytes,
			 "seconds", (double)r->elapsed_ns / 1e9);
}
