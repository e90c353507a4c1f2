// SPDX-License-Identifier: Apache-2.0
/*
 * A disk at a point: which record wrote each of its sectors last, and those bytes.
 *
 * Design: the records are walked from the point back to the beginning, newest
 * first, and each has only the sectors that no newer one has covered; so a
 * sector comes up once, and the walk ends when all are covered.
 *
 *   segments  newest -> oldest
 *     frames of it that hold records of the disk, newest -> oldest
 *       records, newest -> oldest: take what is uncovered
 *       any taken: the caller is told, and may read, check and open the frame
 *
 * Coverage is a bitmap of sectors in chunks of 16 MiB of disk that exist while
 * they are partly covered. restore.c writes what comes up to a file, image.c
 * remembers it to read anywhere.
 *
 * Invariants: no byte is handed out that did not come out of a frame whose
 * envelope, chain, tags, digests and place in the footer fit.
 *
 * Context: blocks on the file system. A walk changes the index: one at a time.
 * Frames may be read by many threads, each with a reader of its own. Memory:
 * coverage (1/4096 of the disk at worst), one segment's tables; a reader: one frame.
 */
#include "vault.h"

#include <errno.h>
#include <string.h>

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

struct view {
	struct index *ix;
	struct point point;
	struct point_disk disk;
	uint64_t floor_frame;		/* the disk's slot was another's up to here ... */
	uint32_t floor_record;		/* ... and this record of that frame */
	struct cover cover;
	struct view_piece *pieces;
	size_t piece_count, piece_room;
	const struct seg_rec *rec;	/* whose pieces are being taken */
	uint8_t *key;			/* group data key, secret memory */
	view_fn *fn;
	void *arg;
};

static int take_piece(uint64_t sector, uint32_t sectors, void *arg)
{
	struct view *v = arg;

	if (v->piece_count == v->piece_room) {
		size_t room = v->piece_room ? v->piece_room * 2 : 256;
		struct view_piece *more = reallocarray(v->pieces, room, sizeof(*more));

		if (!more)
			return -ENOMEM;
		v->pieces = more;
		v->piece_room = room;
	}
	v->pieces[v->piece_count++] = (struct view_piece){ .sector = sector, .sectors = sectors,
							   .record = v->rec->record, .kind = v->rec->kind };
	return 0;
}

bool view_is_content(uint8_t kind)
{
	return wire_kind_has_payload(kind) || kind == ASR_KIND_ZEROES || kind == ASR_KIND_DISCARD ||
	       kind == ASR_KIND_SYNC_ZEROES;
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
static bool in_reach(const struct view *v, uint64_t frame_no, uint32_t record)
{
	const struct point *p = &v->point;

	if (frame_no > p->frame_no || (frame_no == p->frame_no && record >= p->records))
		return false;
	return frame_no > v->floor_frame || (frame_no == v->floor_frame && record > v->floor_record);
}

/* The records of the disk in one frame: recs[0 .. count), newest first */
static int frame_walk(struct view *v, struct index_seg *seg, const struct seg_rec *const *recs, size_t count,
		      struct why *why)
{
	uint32_t frame = recs[0]->frame;
	struct view_frame f = { .seg = seg, .at = seg->table.frames[frame], .frame_no = seg->hdr.first_frame_no + frame,
				.recs = recs, .rec_count = count };
	int ret;

	memcpy(f.prev_tag, index_prev_tag(seg, frame), ASR_TAG_BYTES);
	v->piece_count = 0;
	for (size_t i = 0; i < count; i++) {
		v->rec = recs[i];
		if (!in_reach(v, f.frame_no, recs[i]->record))
			continue;
		ret = cover_take(&v->cover, recs[i]->sector, recs[i]->sectors, take_piece, v);
		if (ret)
			return why_set(why, -ret, "out of memory");
	}
	if (!v->piece_count)
		return 0;
	f.pieces = v->pieces;
	f.count = v->piece_count;
	return v->fn(&f, v->arg);
}

static int seg_walk(struct view *v, struct index_seg *seg, struct why *why)
{
	cleanup_free const struct seg_rec **recs = NULL;
	size_t count = 0, n;
	int ret = index_seg_load(v->ix, seg, why);

	if (ret)
		return ret;
	recs = calloc(seg->table.foot.records + 1, sizeof(*recs));
	if (!recs)
		return why_set(why, ENOMEM, "out of memory");
	for (uint32_t i = 0; i < seg->table.foot.records; i++)
		if (seg->table.recs[i].disk == v->disk.slot)
			recs[count++] = &seg->table.recs[i];
	qsort(recs, count, sizeof(*recs), newest_first);
	for (size_t i = 0; i < count && v->cover.left && !ret; i += n) {
		for (n = 1; i + n < count && recs[i + n]->frame == recs[i]->frame; n++)
			;
		ret = frame_walk(v, seg, recs + i, n, why);
	}
	return ret;
}

/* Nothing covers these sectors: they are zeroes only if all of the disk's history is there */
static int history_check(const struct view *v, struct why *why)
{
	const struct index_seg *first = &v->ix->streams[v->point.stream].segs[0];

	if (!v->cover.left || v->floor_frame || first->hdr.number == 1)
		return 0;
	return why_set(why, EBADMSG, "%llu bytes of %s were last written before segment %s, number %llu of its "
		       "stream: the segments before it are missing", (unsigned long long)v->cover.left * 512,
		       v->disk.name, first->file, (unsigned long long)first->hdr.number);
}

int view_walk(struct view *v, view_fn *fn, void *arg, struct why *why)
{
	struct index_stream *st = &v->ix->streams[v->point.stream];
	int ret = 0;

	cover_free(&v->cover);
	if (cover_init(&v->cover, v->disk.sectors))
		return why_set(why, ENOMEM, "out of memory");
	v->fn = fn;
	v->arg = arg;
	for (size_t i = st->count; i > 0 && v->cover.left && !ret; i--) {
		struct index_seg *seg = &st->segs[i - 1];

		if (seg->hdr.first_frame_no > v->point.frame_no)
			continue;
		if (seg->hdr.first_frame_no + seg->table.foot.frames <= v->floor_frame)
			break;
		ret = seg_walk(v, seg, why);
		index_seg_unload(seg);
	}
	return ret ? ret : history_check(v, why);
}

/* ------------------------------------------------------------------- reading */

struct view_reader {
	struct view *v;
	struct seals *seals;
	uint8_t *frame;
};

static bool rec_matches(const struct frame_view *v, const struct seg_rec *s)
{
	const struct frame_rec *r = &v->recs[s->record];

	return r->disk == s->disk && r->sector == s->sector && r->sectors == s->sectors &&
	       r->kind == s->kind && r->seq == s->seq;
}

/* The footer lists the records of the disk in this frame as they are, and all of them */
static bool frame_matches(const struct view *w, const struct frame_view *v, const struct view_frame *f)
{
	size_t there = 0;

	for (uint32_t i = 0; i < v->hdr.records; i++)
		if (v->recs[i].disk == w->disk.slot && view_is_content(v->recs[i].kind))
			there++;
	for (size_t i = 0; f->recs && i < f->rec_count; i++)
		if (!rec_matches(v, f->recs[i]))
			return false;
	return there == f->rec_count;
}

int view_frame_read(struct view_reader *r, const struct view_frame *f, uint8_t *plain, struct frame_view *v,
		    struct why *why)
{
	struct seal *seal;
	struct why inner;
	int ret = index_frame_read(r->v->ix, f->seg, &f->at, f->frame_no, f->prev_tag, r->frame, v, why);

	if (ret)
		return ret;
	inner.text[0] = 0;
	seal = seals_get(r->seals, v->hdr.session);
	if (!seal)
		return why_set(why, ENOMEM, "cannot make a session key");
	if (!frame_matches(r->v, v, f))
		ret = why_set(&inner, EBADMSG, "the footer does not list the frame's records as they are");
	else
		ret = seal_frame_open(seal, v, plain, &inner);
	return !ret ? 0 : why_set(why, EBADMSG, "segment %s, offset %llu: %.400s", f->seg->file,
				  (unsigned long long)f->at.offset, inner.text);
}

int view_reader_create(struct view *v, struct view_reader **out)
{
	struct view_reader *r = calloc(1, sizeof(*r));

	if (r)
		r->frame = aligned_alloc(8, (INDEX_FRAME_ROOM + 7) & ~(size_t)7);
	if (!r || !r->frame || seals_create(v->key, &r->seals)) {
		view_reader_destroy(r);
		return -ENOMEM;
	}
	r->v = v;
	*out = r;
	return 0;
}

void view_reader_destroy(struct view_reader *r)
{
	if (!r)
		return;
	seals_destroy(r->seals);
	free(r->frame);
	free(r);
}

/* ----------------------------------------------------------------- preparing */

static int disk_find(struct view *v, const char *name, struct why *why)
{
	cleanup_free struct point_disk *disks = NULL;
	char names[300] = "";
	size_t count, n = 0;
	int ret = point_disks(v->ix, &v->point, &disks, &count, why);

	if (ret)
		return ret;
	for (size_t i = 0; i < count; i++) {
		if (!strcmp(disks[i].name, point_disk_name(name))) {
			v->disk = disks[i];
			return 0;
		}
		if (n + sizeof(disks[i].name) + 2 < sizeof(names))
			n += (size_t)snprintf(names + n, sizeof(names) - n, "%s%s", n ? ", " : "", disks[i].name);
	}
	return why_set(why, ENOENT, "group %s had no disk \"%.64s\" at that point; it had: %s", v->ix->name,
		       point_disk_name(name), n ? names : "none");
}

/* Slots are used again: nothing before the disk got its slot is the disk's */
static void floor_find(struct view *v)
{
	const struct index_stream *st = &v->ix->streams[v->point.stream];
	const char *holder = NULL;

	for (size_t i = 0; i < st->count; i++) {
		const struct seg_table *t = &st->segs[i].table;

		for (uint32_t k = 0; k < t->foot.disks && !i; k++)
			if (t->disks[k].disk == v->disk.slot)
				holder = t->disks[k].name;
		for (uint32_t k = 0; k < t->foot.events; k++) {
			const struct seg_event *e = &t->events[k];
			uint64_t frame_no = st->segs[i].hdr.first_frame_no + e->frame;

			if (e->kind != ASR_KIND_DISK || e->disk != v->disk.slot)
				continue;
			if (!in_reach(v, frame_no, e->record))
				return;
			if (holder && strcmp(holder, e->name)) {
				v->floor_frame = frame_no;
				v->floor_record = e->record;
			}
			holder = e->name;
		}
	}
}

static int key_open(struct view *v, const struct view_args *a, struct why *why)
{
	cleanup_free uint8_t *der = NULL;
	size_t bytes;
	int ret = index_wrapped_key(v->ix, v->point.stream, &der, &bytes, why);

	if (ret)
		return ret == -ENOENT ? -EBADMSG : ret;	/* the disk was there */
	v->key = secret_alloc(ASR_KEY_BYTES);
	if (!v->key)
		return why_set(why, ENOMEM, "out of memory");
	return seal_key_unwrap(der, bytes, a->key_pem, a->cert_pem, a->passphrase, v->key, why);
}

/* A disk's name, as view_open takes it, into a set */
static int name_add(json_t *set, const char *host, const char *name)
{
	char whole[2 * ASR_NAME_BYTES + 1];

	if (!*name)
		return 0;
	snprintf(whole, sizeof(whole), "%s%s%s", host, *host ? "/" : "", name);
	return json_object_set_new(set, whole, json_null()) ? -ENOMEM : 0;
}

json_t *view_names(const struct index *ix)
{
	bool hosts = cut_wanted(ix);
	json_t *set = json_object();
	int ret = set ? 0 : -ENOMEM;

	for (size_t i = 0; i < ix->count; i++)
		for (size_t n = 0; n < ix->streams[i].count; n++) {
			const struct seg_table *t = &ix->streams[i].segs[n].table;
			const char *host = hosts ? index_host(ix, i) : "";

			for (uint32_t k = 0; k < t->foot.disks && !ret; k++)
				ret = name_add(set, host, t->disks[k].name);
			for (uint32_t k = 0; k < t->foot.events && !ret; k++)
				if (t->events[k].kind == ASR_KIND_DISK)
					ret = name_add(set, host, t->events[k].name);
		}
	if (!ret)
		return set;
	json_decref(set);
	return NULL;
}

int view_open(struct index *ix, const struct view_args *a, struct view **out, struct why *why)
{
	struct view *v = calloc(1, sizeof(*v));
	int ret;

	if (!v)
		return why_set(why, ENOMEM, "out of memory");
	v->ix = ix;
	ret = point_resolve(ix, a->point, a->disk, &v->point, why);
	if (!ret)
		ret = disk_find(v, a->disk, why);
	if (!ret)
		ret = key_open(v, a, why);
	if (ret) {
		view_close(v);
		return ret;
	}
	floor_find(v);
	*out = v;
	return 0;
}

void view_close(struct view *v)
{
	if (!v)
		return;
	secret_free(v->key);
	free(v->pieces);
	cover_free(&v->cover);
	free(v);
}

const struct point *view_point(const struct view *v)
{
	return &v->point;
}

uint64_t view_sectors(const struct view *v)
{
	return v->disk.sectors;
}

uint16_t view_slot(const struct view *v)
{
	return v->disk.slot;
}

uint64_t view_uncovered(const struct view *v)
{
	return v->cover.left;
}
