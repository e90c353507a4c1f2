// SPDX-License-Identifier: Apache-2.0
/*
 * Where the newest version of each sector of a range stands: the vault's answer
 * to a source that wants to compare its disk with the copy.
 *
 * Design. The range, 32 MiB at most, is painted from the newest segment to the
 * oldest, and in each from the newest record to the oldest; a sector takes the
 * first colour that it meets, so painting ends when all have one. Of the frames
 * that have a part in it, the heads of sealed ones are then begun to be read, all
 * at once: one after the other they take longer than the source takes to read its
 * disk. At last what is painted is written down in order of sector, and each frame
 * that is named contributes its header and its sealed digests.
 *
 *   not yet sealed   tables in memory, all records of them are looked at: they
 *                    are one segment's size, whatever the history
 *   sealed           records stand sorted in the footer. At the first visit the
 *                    footer is read whole, checked, and of its records every
 *                    SAMPLEth is remembered; so are the few that are long. From
 *                    then on a visit reads what lies between two samples
 *
 * So a map costs what the range and the number of segments cost. The work is done
 * in slices, for other hosts wait meanwhile.
 *
 * A slot's records from before the disk got it are another disk's: the walk ends
 * at the DISK record that gave the slot, as a restore does.
 *
 * Invariants. What is answered is right as of frame_no, which was the newest
 * accepted frame when the map began; segments that were in memory then are
 * painted at once, the others never change. A record is used only if its frame
 * has it where the footer says. Nothing is known here but places and sealed bytes.
 *
 * Context. The loop's thread; blocks on the file system for SLICE_NS and one
 * read. Memory: a map some 3 MiB and 136 bytes for each record that is the newest
 * somewhere; of each segment visited its head and 16 bytes for each SAMPLE records.
 */
#include "vault.h"

#include <errno.h>
#include <string.h>

#define SAMPLE		256u
#define LONG_SECTORS	2048u		/* what carries data is no longer than this */
#define LONGS_MAX	4096u		/* more of them in a segment: all its records are read */
#define SLICE_NS	2000000ull
#define HEAD_MAX	(sizeof(struct frame_hdr) + ASR_FRAME_RECORDS_MAX * sizeof(struct frame_rec) + \
			 ASR_FRAME_META_MAX + ASR_FRAME_PAYLOAD_MAX / 4096 * ASR_DIGEST_BYTES + ASR_TAG_BYTES)

struct sample {
	uint64_t sector;
	uint32_t disk;
};

/* What is remembered of a sealed segment */
struct map_seg {
	uint64_t first;			/* frame number */
	bool visited;
	struct seg_table head;		/* events and disks; neither frames nor records */
	uint64_t frames_at, recs_at;
	struct sample *samples;
	struct seg_rec *longs;
	uint32_t long_count;
};

struct map_cache {
	struct map_seg *segs;		/* in order of frames */
	size_t count;
	uint64_t upto;			/* segments that begin before this frame were listed */
};

/* A record that is the newest somewhere */
struct version {
	uint64_t seg;			/* its first frame's number */
	const struct map_seg *sealed;	/* NULL: it was in memory */
	struct seg_frame at;		/* the frame in it; of a sealed one once placed */
	uint32_t base, out;		/* its first digest, its frame in the answer; once read */
	struct seg_rec rec;
};
#define UNREAD	UINT32_MAX

struct map {
	struct ingest_stream *s;
	struct map_cache *cache;
	struct map_ask ask;
	uint64_t frame_no, first;	/* the first frame that stood in memory */
	size_t segs, seg;		/* sealed ones there are, still to be visited */
	bool whole;			/* the history was seen from the disk's first record on */
	uint32_t left;			/* sectors without a colour */
	uint32_t next[MAP_SECTORS_MAX + 1];	/* towards the next sector without a colour */
	uint32_t colour[MAP_SECTORS_MAX];	/* version + 1; 0: none */
	struct version *versions;
	uint32_t count, room;
	uint32_t *by_frame;		/* versions in order of frame */
	uint32_t placed;		/* of them: the frame's place is known, and being read */
	uint32_t at;			/* sectors written down */
	struct msg_map *out;		/* MAP_BYTES_MAX: the message */
	uint8_t *frames;		/* what will stand behind its extents */
	size_t frames_bytes;
	uint8_t *head;			/* HEAD_MAX */
};

/* ------------------------------------------------------- sealed segments */

static void seg_forget(struct map_seg *g)
{
	seg_table_free(&g->head);
	free(g->samples);
	free(g->longs);
	g->samples = NULL;
	g->longs = NULL;
	g->visited = false;
}

void map_cache_free(struct map_cache *c)
{
	for (size_t i = 0; c && i < c->count; i++)
		seg_forget(&c->segs[i]);
	if (c)
		free(c->segs);
	free(c);
}

static int on_name(const char *name, void *arg)
{
	const struct map *m = arg;
	struct map_cache *c = m->cache;
	uint8_t stream[ASR_UUID_BYTES];
	struct map_seg *more;
	uint64_t first;
	bool sealed;

	if (!index_seg_name(name, stream, &first, &sealed) || !sealed || first < c->upto || first >= m->first ||
	    memcmp(stream, ingest_uuid(m->s), ASR_UUID_BYTES))
		return 0;
	more = reallocarray(c->segs, c->count + 1, sizeof(*more));
	if (!more)
		return -ENOMEM;
	c->segs = more;
	c->segs[c->count++] = (struct map_seg){ .first = first };
	return 0;
}

static void folder_name(const struct map *m, char out[SEG_NAME_BYTES])
{
	char group[2 * ASR_UUID_BYTES + 1];

	hex_encode(ingest_group(m->s), ASR_UUID_BYTES, group);
	snprintf(out, SEG_NAME_BYTES, "groups/%s/segments", group);
}

/* Segments that were sealed since the last map */
static int list_more(struct map *m)
{
	char folder[SEG_NAME_BYTES];
	int ret;

	if (m->cache->upto >= m->first)
		return 0;
	folder_name(m, folder);
	ret = store_list(ingest_store(m->s), folder, on_name, m);
	if (ret && ret != -ENOENT)
		return ret;
	m->cache->upto = m->first;
	return 0;
}

static void seg_file(const struct map *m, const struct map_seg *g, char out[SEG_NAME_BYTES + 8])
{
	char name[SEG_NAME_BYTES];

	seg_name(ingest_group(m->s), ingest_uuid(m->s), g->first, name);
	snprintf(out, SEG_NAME_BYTES + 8, "%s.seg", name);
}

static int seg_read(const struct map *m, const struct map_seg *g, uint64_t offset, void *buf, size_t bytes)
{
	char file[SEG_NAME_BYTES + 8];

	seg_file(m, g, file);
	return store_get(ingest_store(m->s), file, offset, buf, bytes);
}

static int remember(struct map_seg *g, const struct seg_table *t)
{
	uint32_t n = t->foot.records, longs = 0;

	g->samples = calloc(n / SAMPLE + 1, sizeof(*g->samples));
	for (uint32_t i = 0; i < n; i++)
		longs += t->recs[i].sectors > LONG_SECTORS;
	g->longs = calloc(longs + 1, sizeof(*g->longs));
	if (!g->samples || !g->longs)
		return -ENOMEM;
	for (uint32_t i = 0; i < n; i += SAMPLE)
		g->samples[i / SAMPLE] = (struct sample){ t->recs[i].sector, t->recs[i].disk };
	g->long_count = longs;
	for (uint32_t i = 0, k = 0; i < n && longs <= LONGS_MAX; i++)
		if (t->recs[i].sectors > LONG_SECTORS)
			g->longs[k++] = t->recs[i];
	return 0;
}

/* The first visit: all of the footer, checked */
static int seg_visit(struct map *m, size_t index, struct why *why)
{
	struct map_seg *g = &m->cache->segs[index];
	uint64_t next = index + 1 < m->cache->count ? g[1].first : m->first;
	struct index_seg seg = { .sealed = true };
	cleanup_free uint8_t *recs = NULL;
	char folder[SEG_NAME_BYTES], name[SEG_NAME_BYTES + 8];
	struct seg_trailer tr;
	size_t n;
	int ret;

	if (g->visited)
		return 0;
	folder_name(m, folder);
	seg_file(m, g, name);
	snprintf(seg.file, sizeof(seg.file), "%s", strrchr(name, '/') + 1);
	ret = index_head_read(ingest_store(m->s), folder, &seg, &tr, why);
	if (ret)
		return ret;
	n = seg.table.foot.records * sizeof(struct seg_rec);
	g->recs_at = tr.foot_offset + tr.foot_bytes - n;
	g->frames_at = tr.foot_offset + sizeof(struct seg_foot);
	recs = malloc(n + 1);
	ret = recs ? seg_read(m, g, g->recs_at, recs, n) : -ENOMEM;
	if (!ret && (seg_check(recs, n) != tr.recs_check || g->first + seg.table.foot.frames != next))
		ret = -EBADMSG;
	if (!ret)
		ret = seg_recs_parse(recs, n, &seg.table, why);
	if (!ret)
		ret = remember(g, &seg.table);
	free(seg.table.recs);
	free(seg.table.frames);
	seg.table.recs = NULL;
	seg.table.frames = NULL;
	g->head = seg.table;
	g->visited = true;
	if (!ret)
		return 0;
	seg_forget(g);
	return why_set(why, -ret, "segment %s: %s", seg.file, ret == -EBADMSG ? "its footer is damaged, or the segment "
		       "behind it is missing" : strerror(-ret));
}

/* --------------------------------------------------------------- painting */

static uint32_t uncoloured(struct map *m, uint32_t i)
{
	while (m->next[i] != i) {
		m->next[i] = m->next[m->next[i]];
		i = m->next[i];
	}
	return i;
}

static bool overlaps(const struct map *m, const struct seg_rec *r)
{
	return r->disk == m->ask.disk && r->sector < m->ask.sector + m->ask.sectors &&
	       r->sector + r->sectors > m->ask.sector;
}

/* Sectors of the record that have no colour get its; *used: any */
static void paint(struct map *m, const struct seg_rec *r, uint32_t colour, bool *used)
{
	uint64_t from = r->sector > m->ask.sector ? r->sector - m->ask.sector : 0;
	uint64_t end = r->sector + r->sectors - m->ask.sector;

	if (end > m->ask.sectors)
		end = m->ask.sectors;
	for (uint32_t i = uncoloured(m, (uint32_t)from); i < end; i = uncoloured(m, i)) {
		m->colour[i] = colour;
		m->next[i] = i + 1;
		m->left--;
		*used = true;
	}
}

static int version_room(struct map *m)
{
	uint32_t room = m->room ? 2 * m->room : 256;
	struct version *more;

	if (m->count < m->room)
		return 0;
	more = reallocarray(m->versions, room, sizeof(*more));
	if (!more)
		return -ENOMEM;
	m->versions = more;
	m->room = room;
	return 0;
}

static int newest_first(const void *pa, const void *pb)
{
	const struct seg_rec *a = pa, *b = pb;

	if (a->frame != b->frame)
		return a->frame > b->frame ? -1 : 1;
	return a->record > b->record ? -1 : a->record < b->record;
}

struct found {
	struct seg_rec *recs;
	size_t count, room;
};

static int found_add(struct found *f, const struct seg_rec *r)
{
	if (f->count == f->room) {
		size_t room = f->room ? 2 * f->room : 256;
		struct seg_rec *more = reallocarray(f->recs, room, sizeof(*more));

		if (!more)
			return -ENOMEM;
		f->recs = more;
		f->room = room;
	}
	f->recs[f->count++] = *r;
	return 0;
}

/* Where in a segment the slot became the disk's: *there false: before the segment, or never another's */
struct floor {
	bool there;
	uint32_t frame;
	uint16_t record;
};

/* The records of a segment that lie in the range, painted newest first */
static int paint_found(struct map *m, struct found *f, const struct floor *floor, uint64_t first,
		       const struct map_seg *sealed, const struct seg_table *t)
{
	qsort(f->recs, f->count, sizeof(*f->recs), newest_first);
	for (size_t i = 0; i < f->count && m->left; i++) {
		const struct seg_rec *r = &f->recs[i];
		bool used = false;

		if (floor->there && (r->frame < floor->frame ||
				     (r->frame == floor->frame && r->record < floor->record)))
			break;
		if (version_room(m))
			return -ENOMEM;
		paint(m, r, m->count + 1, &used);
		if (!used)
			continue;
		m->versions[m->count++] = (struct version){
			.seg = first, .sealed = sealed, .rec = *r, .out = UNREAD,
			.at = sealed ? (struct seg_frame){0} : t->frames[r->frame] };
	}
	return 0;
}

/* Heads of all segments as one sequence: sealed ones, then those that were in memory, oldest first */
struct heads {
	struct map *m;
	const struct ingest_part *parts;
	size_t part_count;
};

static const struct seg_table *head_of(struct heads *h, size_t i, struct why *why)
{
	if (i >= h->m->segs)
		return h->parts[h->part_count - 1 - (i - h->m->segs)].table;
	return seg_visit(h->m, i, why) ? NULL : &h->m->cache->segs[i].head;
}

/* Who had the slot before segment i: 1 and name, 0: nobody ever, -errno */
static int holder_before(struct heads *h, size_t i, const char **name, struct why *why)
{
	const struct seg_table *t = head_of(h, i, why);
	uint16_t slot = h->m->ask.disk;

	for (;;) {
		if (!t)
			return -EBADMSG;
		for (uint32_t k = 0; k < t->foot.disks; k++)
			if (t->disks[k].disk == slot) {
				*name = t->disks[k].name;
				return 1;
			}
		if (!i--)
			return 0;
		t = head_of(h, i, why);
		for (uint32_t k = t ? t->foot.events : 0; k > 0; k--)
			if (t->events[k - 1].kind == ASR_KIND_DISK && t->events[k - 1].disk == slot) {
				*name = t->events[k - 1].name;
				return 1;
			}
	}
}

static int floor_find(struct heads *h, size_t i, struct floor *floor, struct why *why)
{
	const struct seg_table *t = head_of(h, i, why);
	const char *holder = NULL;
	bool asked = false;

	*floor = (struct floor){ .there = false };
	for (uint32_t k = 0; t && k < t->foot.events; k++) {
		const struct seg_event *e = &t->events[k];

		if (e->kind != ASR_KIND_DISK || e->disk != h->m->ask.disk)
			continue;
		if (!asked && holder_before(h, i, &holder, why) < 0)
			return -EBADMSG;
		asked = true;
		if (holder && strcmp(holder, e->name))
			*floor = (struct floor){ true, e->frame, e->record };
		holder = e->name;
	}
	return t ? 0 : -EBADMSG;
}

static int paint_parts(struct map *m, const struct ingest_part *parts, size_t count, struct why *why)
{
	struct heads h = { m, parts, count };
	struct floor floor = { .there = false };
	int ret = 0;

	for (size_t i = 0; i < count && m->left && !floor.there && !ret; i++) {
		const struct seg_table *t = parts[i].table;
		struct found f = { .recs = NULL };

		ret = floor_find(&h, m->segs + count - 1 - i, &floor, why);
		for (uint32_t k = 0; k < t->foot.records && !ret; k++)
			if (overlaps(m, &t->recs[k]) && found_add(&f, &t->recs[k]))
				ret = why_set(why, ENOMEM, "out of memory");
		if (!ret && paint_found(m, &f, &floor, parts[i].first_frame_no, NULL, t))
			ret = why_set(why, ENOMEM, "out of memory");
		free(f.recs);
	}
	if (floor.there) {
		m->seg = 0;
		m->whole = true;
	}
	return ret;
}

static bool before(const struct seg_rec *r, uint32_t disk, uint64_t sector)
{
	return r->disk != disk ? r->disk < disk : r->sector < sector;
}

/* Records of a sealed segment that overlap the range */
static int seg_search(struct map *m, const struct map_seg *g, struct found *f)
{
	uint64_t from = m->ask.sector > LONG_SECTORS ? m->ask.sector - LONG_SECTORS : 0;
	bool all = g->long_count > LONGS_MAX;
	uint32_t n = g->head.foot.records, lo = 0, hi = (n + SAMPLE - 1) / SAMPLE, got;
	struct seg_rec recs[SAMPLE];
	int ret = 0;

	for (uint32_t k = 0; !all && k < g->long_count && !ret; k++)
		ret = overlaps(m, &g->longs[k]) ? found_add(f, &g->longs[k]) : 0;
	while (!all && hi - lo > 1) {	/* the last sample before from */
		uint32_t mid = lo + (hi - lo) / 2;
		struct seg_rec s = { .disk = (uint16_t)g->samples[mid].disk, .sector = g->samples[mid].sector };

		*(before(&s, m->ask.disk, from) ? &lo : &hi) = mid;
	}
	for (uint32_t i = lo * SAMPLE; i < n && !ret; i += got) {
		got = n - i < SAMPLE ? n - i : SAMPLE;
		ret = seg_read(m, g, g->recs_at + (uint64_t)i * sizeof(*recs), recs, got * sizeof(*recs));
		for (uint32_t k = 0; k < got && !ret; k++)
			if (overlaps(m, &recs[k]) && (all || recs[k].sectors <= LONG_SECTORS))
				ret = found_add(f, &recs[k]);
		if (!ret && !before(&recs[got - 1], m->ask.disk, m->ask.sector + m->ask.sectors))
			break;
	}
	return ret;
}

static int paint_sealed(struct map *m, size_t i, struct why *why)
{
	struct heads h = { .m = m };
	struct found f = { .recs = NULL };
	struct floor floor;
	int ret = seg_visit(m, i, why);

	if (!ret)
		ret = floor_find(&h, i, &floor, why);
	if (ret)
		return ret;
	ret = seg_search(m, &m->cache->segs[i], &f);
	for (size_t k = 0; k < f.count && !ret; k++)
		if (f.recs[k].frame >= m->cache->segs[i].head.foot.frames)
			ret = -EBADMSG;
	if (!ret)
		ret = paint_found(m, &f, &floor, m->cache->segs[i].first, &m->cache->segs[i], NULL);
	free(f.recs);
	if (floor.there)
		m->seg = 0;
	m->whole |= floor.there || m->cache->segs[i].first == 1;
	return ret ? why_set(why, -ret, "the segment with frame %llu: %s",
			     (unsigned long long)m->cache->segs[i].first, strerror(-ret)) : 0;
}

/* ----------------------------------------------------------- writing down */

static int damaged(const struct version *v, const char *text, struct why *why)
{
	return why_set(why, EBADMSG, "frame %llu: %s", (unsigned long long)(v->seg + v->rec.frame), text);
}

/* What is read of the frame at first: mostly all that is wanted of it */
static size_t head_guess(const struct version *v)
{
	size_t guess = sizeof(struct frame_hdr) + (size_t)v->at.records * sizeof(struct frame_rec) + 1024;

	return guess < v->at.bytes ? guess : v->at.bytes;
}

/* Where the next version's frame lies, which its segment's footer says; reading its head begins */
static int place_next(struct map *m, struct why *why)
{
	uint32_t n = m->placed++;
	struct version *v = &m->versions[m->by_frame[n]];
	const struct version *o = n ? &m->versions[m->by_frame[n - 1]] : NULL;
	char file[SEG_NAME_BYTES + 8];
	int ret;

	if (o && o->seg == v->seg && o->rec.frame == v->rec.frame)
		v->at = o->at;
	if (!v->sealed || v->at.bytes)
		return 0;
	ret = seg_read(m, v->sealed, v->sealed->frames_at + v->rec.frame * sizeof(v->at), &v->at, sizeof(v->at));
	if (ret || v->at.bytes < sizeof(struct frame_hdr) || v->at.records > ASR_FRAME_RECORDS_MAX)
		return damaged(v, ret ? strerror(-ret) : "the footer does not fit it", why);
	seg_file(m, v->sealed, file);
	store_ahead(ingest_store(m->s), file, v->at.offset, head_guess(v));
	return 0;
}

/* The frame's head, as far as its sealed digests and their tag: 0 and its header */
static int head_read(struct map *m, struct version *v, struct frame_hdr *h, struct why *why)
{
	size_t guess = head_guess(v), whole;
	int ret;

	ret = ingest_read(m->s, v->seg, v->at.offset, m->head, guess);
	if (ret)
		return damaged(v, strerror(-ret), why);
	if (wire_frame_peek(m->head, guess, h, why))
		return -EBADMSG;
	whole = sizeof(*h) + h->records * sizeof(struct frame_rec) + h->meta_bytes + h->digest_bytes + ASR_TAG_BYTES;
	if (h->total_bytes != v->at.bytes || h->records != v->at.records || h->frame_no != v->seg + v->rec.frame ||
	    memcmp(h->group, ingest_group(m->s), ASR_UUID_BYTES) ||
	    memcmp(h->stream, ingest_uuid(m->s), ASR_UUID_BYTES))
		return damaged(v, "this is not the frame that the footer names", why);
	if (whole > guess)
		ret = ingest_read(m->s, v->seg, v->at.offset + guess, m->head + guess, whole - guess);
	return ret ? damaged(v, strerror(-ret), why) : 0;
}

static int by_frame(const void *pa, const void *pb, void *arg)
{
	const struct version *v = arg, *a = &v[*(const uint32_t *)pa], *b = &v[*(const uint32_t *)pb];
	uint64_t fa = a->seg + a->rec.frame, fb = b->seg + b->rec.frame;

	if (fa != fb)
		return fa < fb ? -1 : 1;
	return a->rec.record < b->rec.record ? -1 : a->rec.record > b->rec.record;
}

/* The versions that one frame holds, in order of record: where they begin in by_frame */
static uint32_t frame_versions(const struct map *m, const struct version *v)
{
	uint32_t lo = 0, hi = m->count;

	while (lo < hi) {
		uint32_t mid = lo + (hi - lo) / 2;
		const struct version *o = &m->versions[m->by_frame[mid]];

		if (o->seg + o->rec.frame < v->seg + v->rec.frame)
			lo = mid + 1;
		else
			hi = mid;
	}
	return lo;
}

/* What of the head the versions of this frame want: which digest is their first */
static int bases_find(struct map *m, const struct version *v, const struct frame_hdr *h, struct why *why)
{
	const struct frame_rec *recs = (const void *)(m->head + sizeof(*h));
	uint32_t k = frame_versions(m, v), digests = 0;

	for (uint32_t i = 0; i < h->records; i++) {
		for (; k < m->count; k++) {
			struct version *o = &m->versions[m->by_frame[k]];
			const struct seg_rec *s = &o->rec;

			if (o->seg + s->frame != v->seg + v->rec.frame || s->record != i)
				break;
			if (recs[i].disk != s->disk || recs[i].sector != s->sector ||
			    recs[i].sectors != s->sectors || recs[i].kind != s->kind || recs[i].seq != s->seq)
				return damaged(v, "the footer does not list its records as they are", why);
			o->base = digests;
			o->out = m->out->frames;
		}
		if (wire_kind_has_payload(recs[i].kind))
			digests += wire_rec_blocks(&recs[i]);
	}
	if (v->out == UNREAD || digests * ASR_DIGEST_BYTES != h->digest_bytes)
		return damaged(v, "its record table does not fit its digests", why);
	return 0;
}

/* 1: the message is full */
static int frame_add(struct map *m, struct version *v, struct why *why)
{
	struct frame_hdr h;
	size_t used = sizeof(*m->out) + (m->out->extents + 1) * sizeof(struct map_extent) + m->frames_bytes, bytes;
	int ret = head_read(m, v, &h, why);

	if (ret)
		return ret;
	bytes = h.digest_bytes + ASR_TAG_BYTES;
	if (used + sizeof(h) + bytes > MAP_BYTES_MAX)
		return 1;
	ret = bases_find(m, v, &h, why);
	if (ret)
		return ret;
	memcpy(m->frames + m->frames_bytes, &h, sizeof(h));
	memcpy(m->frames + m->frames_bytes + sizeof(h),
	       m->head + sizeof(h) + h.records * sizeof(struct frame_rec) + h.meta_bytes, bytes);
	m->frames_bytes += sizeof(h) + bytes;
	m->out->frames++;
	return 0;
}

/* The next extent: 1: the message is full */
static int extent_add(struct map *m, struct why *why)
{
	struct map_extent *all = (void *)(m->out + 1), *e = &all[m->out->extents];
	uint32_t colour = m->colour[m->at], n = 1;
	struct version *v = colour ? &m->versions[colour - 1] : NULL;
	uint64_t sector = m->ask.sector + m->at;
	uint32_t kind = !v && m->whole ? MAP_NEVER : MAP_UNKNOWN;
	int ret;

	while (m->at + n < m->ask.sectors && m->colour[m->at + n] == colour)
		n++;
	if (v && wire_kind_has_payload(v->rec.kind))
		kind = wire_blocks(sector, n) ? MAP_DATA : MAP_UNKNOWN;
	else if (v && v->rec.kind != ASR_KIND_DISCARD)
		kind = MAP_ZEROES;
	if (kind == MAP_DATA && v->out == UNREAD) {
		ret = frame_add(m, v, why);
		if (ret)
			return ret;
	}
	m->at += n;
	if (kind != MAP_DATA && m->out->extents && e[-1].kind == kind) {
		e[-1].sectors += n;
		return 0;
	}
	if (sizeof(*m->out) + (m->out->extents + 1) * sizeof(*e) + m->frames_bytes > MAP_BYTES_MAX) {
		m->at -= n;
		return 1;
	}
	*e = (struct map_extent){ .sectors = n, .kind = kind };
	if (kind == MAP_DATA) {
		e->frame = v->out;
		e->digest = v->base + wire_blocks(v->rec.sector, sector + ASR_BLOCK_SECTORS - 1 - v->rec.sector);
	}
	m->out->extents++;
	return 0;
}

static int order_versions(struct map *m)
{
	m->by_frame = calloc(m->count + 1, sizeof(*m->by_frame));
	if (!m->by_frame)
		return -ENOMEM;
	for (uint32_t i = 0; i < m->count; i++)
		m->by_frame[i] = i;
	qsort_r(m->by_frame, m->count, sizeof(*m->by_frame), by_frame, m->versions);
	return 0;
}

static void finish(struct map *m, const uint8_t **data, size_t *bytes)
{
	struct msg_map *h = m->out;
	uint8_t *end = (uint8_t *)(h + 1) + h->extents * sizeof(struct map_extent);

	memcpy(h->stream, m->ask.stream, sizeof(h->stream));
	h->frame_no = m->frame_no;
	h->sector = m->ask.sector;
	h->sectors = m->at;
	h->disk = m->ask.disk;
	memcpy(end, m->frames, m->frames_bytes);
	*data = (const void *)h;
	*bytes = (size_t)(end - *data) + m->frames_bytes;
}

int map_step(struct map *m, const uint8_t **data, size_t *bytes, struct why *why)
{
	uint64_t until = now_ns() + SLICE_NS;
	int ret = 0;

	do {
		if (m->seg && m->left) {
			m->seg--;
			ret = paint_sealed(m, m->seg, why);
		} else if (!m->by_frame) {
			ret = order_versions(m);
		} else if (m->placed < m->count) {
			ret = place_next(m, why);
		} else {
			ret = extent_add(m, why);
			if (ret == 1 || (!ret && m->at == m->ask.sectors)) {
				finish(m, data, bytes);
				return 0;
			}
		}
	} while (!ret && now_ns() < until);
	return ret ? ret : 1;
}

/* ------------------------------------------------------------ beginning, end */

void map_end(struct map *m)
{
	if (!m)
		return;
	free(m->versions);
	free(m->by_frame);
	free(m->out);
	free(m->frames);
	free(m->head);
	free(m);
}

/* The part of the range that the disk has, as the slot is now */
static int disk_check(struct map *m, struct why *why)
{
	const struct seg_state *st = ingest_state(m->s);

	for (uint32_t i = 0; i < st->disks; i++) {
		if (st->disk[i].disk != m->ask.disk)
			continue;
		if (strcmp(st->disk[i].name, m->ask.name))
			break;
		return 0;
	}
	return why_set(why, ENOENT, "slot %u is not disk %s", m->ask.disk, m->ask.name);
}

static int begin(struct map *m, struct why *why)
{
	size_t count = ingest_parts(m->s, NULL, 0);
	cleanup_free struct ingest_part *parts = calloc(count + 1, sizeof(*parts));
	struct map_cache **cache = ingest_map_cache(m->s);
	int ret;

	m->out = calloc(1, MAP_BYTES_MAX);
	m->frames = malloc(MAP_BYTES_MAX);
	m->head = aligned_alloc(8, (HEAD_MAX + 7) & ~(size_t)7);
	if (!*cache)
		*cache = calloc(1, sizeof(**cache));
	m->cache = *cache;
	if (!parts || !m->out || !m->frames || !m->head || !m->cache)
		return why_set(why, ENOMEM, "out of memory");
	ingest_parts(m->s, parts, count);
	m->frame_no = ingest_state(m->s)->next_frame_no - 1;
	m->first = count ? parts[count - 1].first_frame_no : m->frame_no + 1;
	ret = list_more(m);
	if (ret)
		return why_set(why, -ret, "cannot list the segments: %s", strerror(-ret));
	m->segs = m->seg = m->cache->count;
	m->whole = m->first == 1;
	m->left = m->ask.sectors;
	for (uint32_t i = 0; i <= m->ask.sectors; i++)
		m->next[i] = i;
	return paint_parts(m, parts, count, why);
}

int map_begin(struct ingest_stream *s, const struct map_ask *ask, struct map **out, struct why *why)
{
	struct map *m = calloc(1, sizeof(*m));
	int ret;

	if (!m)
		return why_set(why, ENOMEM, "out of memory");
	m->s = s;
	m->ask = *ask;
	ret = disk_check(m, why);
	if (!ret)
		ret = begin(m, why);
	if (ret) {
		map_end(m);
		return ret;
	}
	*out = m;
	return 0;
}
