// SPDX-License-Identifier: Apache-2.0
/*
 * A disk at a point, to be read anywhere, by several threads at once.
 *
 * Design: the view's walk is done once and remembered: extents in order of
 * sector, each a piece of a record, and the frames that they are of. To read is
 * to find the extents that the range meets and to open their frames; opened
 * payloads are kept, up to a cap, the least recently used go first. What no
 * extent has is zeroes.
 *
 *   extent  sector, sectors -> frame, record
 *   frame   where it stands, its tags -> block, or none
 *   block   an opened payload and its record table; who reads it holds it
 *
 * A frame that two threads want is opened once: the second waits.
 *
 * Invariants: what is damaged is an error for each who wants it, and is never
 * kept, nor taken for zeroes. A block that is held does not go.
 *
 * Locks: lock, over frames' blocks, the list and the readers; never held while
 * a frame is read or opened.
 *
 * Context: blocks on the file system. Memory: 24 bytes for each extent, 136 for
 * each frame, the cap, and what is being read.
 */
#include "vault.h"

#include <errno.h>
#include <pthread.h>
#include <string.h>

#define XXH_STATIC_LINKING_ONLY	/* the state, on the stack */
#include <xxhash.h>

#define READERS		4

struct extent {
	uint64_t sector;
	uint32_t sectors;
	uint32_t frame;			/* in image.frames */
	uint16_t record;
};

struct block {
	struct block *newer, *older;	/* of those that nobody holds */
	struct frame *frame;
	unsigned int holders;
	bool ready;			/* else it is being opened */
	int err;
	struct why why;
	uint8_t *plain;			/* secret memory */
	size_t bytes, cost;		/* of the payload; of all of the block */
	struct frame_rec *recs;
};

struct frame {
	struct seg_frame at;
	uint64_t frame_no;
	const struct index_seg *seg;
	uint32_t recs;			/* of the disk, as the footer says; and what it says of them: */
	XXH128_hash_t recs_sum;
	uint8_t prev_tag[ASR_TAG_BYTES];
	struct block *block;
};

struct image {
	struct view *view;
	struct why *why;		/* of the walk */
	uint64_t bytes;
	struct extent *extents;
	size_t extent_count, extent_room;
	struct frame *frames;
	size_t frame_count, frame_room;
	pthread_mutex_t lock;
	pthread_cond_t changed;		/* a block is ready, a reader is free */
	struct view_reader *readers[READERS];
	uint8_t *plain[READERS];	/* where it opens a payload; NULL: in use */
	size_t cap, kept;		/* memory of blocks that nobody holds */
	uint8_t secret[XXH3_SECRET_SIZE_MIN];	/* nobody can make two lists of records that have one sum */
	struct block ends;		/* of the list: .older is the newest, .newer the oldest */
};

/* ------------------------------------------------------------------- extents */

static int grow(void *list, size_t *room, size_t count, size_t size)
{
	void **at = list, *more;

	if (count < *room)
		return 0;
	more = reallocarray(*at, *room ? *room * 2 : 1024, size);
	if (!more)
		return -ENOMEM;
	*at = more;
	*room = *room ? *room * 2 : 1024;
	return 0;
}

/* What is said of a record: by the footer and by its frame, whose sums are compared when it is opened */
struct said {
	uint64_t sector, seq;
	uint32_t sectors, record, kind, zero;
};

static void sum_add(XXH3_state_t *sum, uint32_t record, uint64_t sector, uint32_t sectors, uint32_t kind, uint64_t seq)
{
	const struct said said = { sector, seq, sectors, record, kind, 0 };

	XXH3_128bits_update(sum, &said, sizeof(said));
}

/* The footer's, which the walk has newest first: that is by falling record */
static XXH128_hash_t sum_footer(const struct image *im, const struct view_frame *f)
{
	XXH3_state_t sum;

	XXH3_128bits_reset_withSecret(&sum, im->secret, sizeof(im->secret));
	for (size_t i = f->rec_count; i > 0; i--)
		sum_add(&sum, f->recs[i - 1]->record, f->recs[i - 1]->sector, f->recs[i - 1]->sectors,
			f->recs[i - 1]->kind, f->recs[i - 1]->seq);
	return XXH3_128bits_digest(&sum);
}

static XXH128_hash_t sum_frame(const struct image *im, const struct frame_view *v)
{
	uint16_t slot = view_slot(im->view);
	XXH3_state_t sum;

	XXH3_128bits_reset_withSecret(&sum, im->secret, sizeof(im->secret));
	for (uint32_t i = 0; i < v->hdr.records; i++)
		if (v->recs[i].disk == slot && view_is_content(v->recs[i].kind))
			sum_add(&sum, i, v->recs[i].sector, v->recs[i].sectors, v->recs[i].kind, v->recs[i].seq);
	return XXH3_128bits_digest(&sum);
}

/* The newest are met first, so what is met is never part of what is there */
static int remember(const struct view_frame *f, void *arg)
{
	struct image *im = arg;
	size_t before = im->extent_count;
	struct frame_view v;
	bool zeroes = false;
	int ret;

	for (size_t i = 0; i < f->count; i++)
		zeroes |= !wire_kind_has_payload(f->pieces[i].kind);
	/* nobody will read it again for what it says are zeroes: it is looked at now */
	ret = zeroes ? view_frame_read(im->readers[0], f, im->plain[0], &v, im->why) : 0;
	if (ret)
		return ret;
	for (size_t i = 0; i < f->count; i++) {
		if (!wire_kind_has_payload(f->pieces[i].kind))
			continue;
		if (grow(&im->extents, &im->extent_room, im->extent_count, sizeof(*im->extents)))
			return -ENOMEM;
		im->extents[im->extent_count++] = (struct extent){ f->pieces[i].sector, f->pieces[i].sectors,
								   (uint32_t)im->frame_count, f->pieces[i].record };
	}
	if (im->extent_count == before)
		return 0;
	if (im->frame_count == UINT32_MAX || grow(&im->frames, &im->frame_room, im->frame_count, sizeof(*im->frames)))
		return -ENOMEM;
	im->frames[im->frame_count] = (struct frame){ .at = f->at, .frame_no = f->frame_no, .seg = f->seg,
						      .recs = (uint32_t)f->rec_count,
						      .recs_sum = sum_footer(im, f) };
	memcpy(im->frames[im->frame_count++].prev_tag, f->prev_tag, ASR_TAG_BYTES);
	return 0;
}

static int by_sector(const void *pa, const void *pb)
{
	const struct extent *a = pa, *b = pb;

	return a->sector < b->sector ? -1 : a->sector > b->sector;
}

/* The first extent that ends behind this sector */
static size_t extent_at(const struct image *im, uint64_t sector)
{
	size_t low = 0, high = im->extent_count;

	while (low < high) {
		size_t mid = low + (high - low) / 2;

		if (im->extents[mid].sector + im->extents[mid].sectors > sector)
			high = mid;
		else
			low = mid + 1;
	}
	return low;
}

bool image_extent(const struct image *im, uint64_t offset, uint64_t limit, uint64_t *bytes)
{
	size_t i = extent_at(im, offset / 512);
	uint64_t end;

	if (i == im->extent_count || im->extents[i].sector * 512 > offset) {
		end = i == im->extent_count ? im->bytes : im->extents[i].sector * 512;
		*bytes = end - offset;
		return false;
	}
	do
		end = im->extents[i].sector + im->extents[i].sectors;
	while (++i < im->extent_count && im->extents[i].sector == end && end * 512 < offset + limit);
	*bytes = end * 512 - offset;
	return true;
}

/* -------------------------------------------------------------------- blocks */

static void list_out(struct image *im, struct block *b)
{
	b->newer->older = b->older;
	b->older->newer = b->newer;
	im->kept -= b->cost;
}

static void list_in(struct image *im, struct block *b)
{
	b->newer = &im->ends;
	b->older = im->ends.older;
	b->older->newer = b;
	im->ends.older = b;
	im->kept += b->cost;
}

static void block_free(struct block *b)
{
	secret_free(b->plain);
	free(b->recs);
	free(b);
}

/* With the lock. The last holder of what failed takes it away: who comes next tries again */
static void block_drop(struct image *im, struct block *b)
{
	struct block *old;

	if (--b->holders)
		return;
	if (b->err) {
		b->frame->block = NULL;
		block_free(b);
		return;
	}
	list_in(im, b);
	while (im->kept > im->cap && (old = im->ends.newer) != &im->ends) {
		list_out(im, old);
		old->frame->block = NULL;
		block_free(old);
	}
}

/* Without the lock */
static int block_open(const struct image *im, struct view_reader *r, uint8_t *plain, struct block *b)
{
	const struct frame *f = b->frame;
	struct view_frame vf = { .seg = f->seg, .at = f->at, .frame_no = f->frame_no, .rec_count = f->recs };
	struct frame_view v;
	int ret;

	memcpy(vf.prev_tag, f->prev_tag, ASR_TAG_BYTES);
	ret = view_frame_read(r, &vf, plain, &v, &b->why);
	if (ret)
		return ret;
	if (!XXH128_isEqual(sum_frame(im, &v), f->recs_sum))
		return why_set(&b->why, EBADMSG, "segment %s, offset %llu: the footer does not list the frame's "
			       "records as they are", f->seg->file, (unsigned long long)f->at.offset);
	b->bytes = v.hdr.plain_bytes;
	b->cost = sizeof(*b) + v.hdr.records * sizeof(*b->recs) + b->bytes + 2 * 4096;	/* in whole pages */
	b->plain = secret_alloc(b->bytes + 1);
	b->recs = calloc(v.hdr.records + 1, sizeof(*b->recs));
	if (!b->plain || !b->recs)
		return why_set(&b->why, ENOMEM, "out of memory");
	memcpy(b->plain, plain, b->bytes);
	memcpy(b->recs, v.recs, v.hdr.records * sizeof(*b->recs));
	return 0;
}

/* With the lock, which it lets go meanwhile */
static void block_make(struct image *im, struct block *b)
{
	uint8_t *plain;
	int n, err;

	for (n = 0; n < READERS && !im->plain[n]; n++)
		;
	while (n == READERS) {
		pthread_cond_wait(&im->changed, &im->lock);
		for (n = 0; n < READERS && !im->plain[n]; n++)
			;
	}
	plain = im->plain[n];
	im->plain[n] = NULL;
	pthread_mutex_unlock(&im->lock);
	err = block_open(im, im->readers[n], plain, b);
	pthread_mutex_lock(&im->lock);
	im->plain[n] = plain;
	b->err = err;
	b->ready = true;
	pthread_cond_broadcast(&im->changed);
}

/* With the lock. The block of a frame, held; *err: it cannot be opened */
static struct block *block_hold(struct image *im, struct frame *f, int *err, struct why *why)
{
	struct block *b = f->block;

	if (b && !b->holders)
		list_out(im, b);
	if (!b) {
		b = calloc(1, sizeof(*b));
		if (!b) {
			*err = why_set(why, ENOMEM, "out of memory");
			return NULL;
		}
		b->frame = f;
		f->block = b;
		b->holders = 1;
		block_make(im, b);
	} else {
		b->holders++;
		while (!b->ready)
			pthread_cond_wait(&im->changed, &im->lock);
	}
	if (!b->err)
		return b;
	*err = b->err;
	*why = b->why;
	block_drop(im, b);
	return NULL;
}

/* ------------------------------------------------------------------- reading */

static int read_extent(struct image *im, const struct extent *e, uint8_t *buf, uint64_t offset, size_t bytes,
		       struct why *why)
{
	const struct frame_rec *r;
	struct block *b;
	uint64_t from;
	int err = 0;

	pthread_mutex_lock(&im->lock);
	b = block_hold(im, &im->frames[e->frame], &err, why);
	pthread_mutex_unlock(&im->lock);
	if (!b)
		return err;
	r = &b->recs[e->record];
	from = r->offset + (offset - r->sector * 512);
	/* the footer says so, and a frame that does not is not opened: looked at all the same */
	if (offset < r->sector * 512 || from + bytes > b->bytes || !wire_kind_has_payload(r->kind) ||
	    e->sector + e->sectors > r->sector + r->sectors)
		err = why_set(why, EBADMSG, "segment %s, offset %llu: the footer does not list the frame's records as "
			      "they are", b->frame->seg->file, (unsigned long long)b->frame->at.offset);
	else
		memcpy(buf, b->plain + from, bytes);
	pthread_mutex_lock(&im->lock);
	block_drop(im, b);
	pthread_mutex_unlock(&im->lock);
	return err;
}

int image_read(struct image *im, void *buf, size_t bytes, uint64_t offset, struct why *why)
{
	uint64_t end = offset + bytes;
	uint8_t *to = buf;
	size_t i;
	int ret = 0;

	if (end < offset || end > im->bytes)
		return why_set(why, EINVAL, "the disk ends before");
	memset(buf, 0, bytes);
	for (i = extent_at(im, offset / 512); !ret && i < im->extent_count; i++) {
		const struct extent *e = &im->extents[i];
		uint64_t a = e->sector * 512, z = a + (uint64_t)e->sectors * 512;

		if (a >= end)
			break;
		a = a < offset ? offset : a;
		z = z > end ? end : z;
		ret = read_extent(im, e, to + (a - offset), a, (size_t)(z - a), why);
	}
	return ret;
}

/* ------------------------------------------------------------------ life */

int image_open(struct view *v, size_t cache_bytes, struct image **out, struct why *why)
{
	struct image *im = calloc(1, sizeof(*im));
	int ret = im ? 0 : -ENOMEM;

	if (im) {
		im->view = v;
		im->bytes = view_sectors(v) * 512;
		im->cap = cache_bytes;
		im->ends.newer = im->ends.older = &im->ends;
		pthread_mutex_init(&im->lock, NULL);
		pthread_cond_init(&im->changed, NULL);
		im->why = why;
		ret = seal_random(im->secret, sizeof(im->secret));
	}
	for (int n = 0; n < READERS && !ret; n++) {
		ret = view_reader_create(v, &im->readers[n]);
		im->plain[n] = ret ? NULL : secret_alloc(ASR_FRAME_PAYLOAD_MAX);
		if (!im->plain[n])
			ret = -ENOMEM;
	}
	why->text[0] = 0;
	if (!ret)
		ret = view_walk(v, remember, im, why);
	if (ret) {
		if (ret == -ENOMEM)
			why_set(why, ENOMEM, "out of memory");
		image_close(im);
		return ret;
	}
	qsort(im->extents, im->extent_count, sizeof(*im->extents), by_sector);
	*out = im;
	return 0;
}

void image_close(struct image *im)
{
	struct block *b;

	if (!im)
		return;
	while ((b = im->ends.newer) != &im->ends) {
		list_out(im, b);
		block_free(b);
	}
	for (int n = 0; n < READERS; n++) {
		view_reader_destroy(im->readers[n]);
		secret_free(im->plain[n]);
	}
	pthread_mutex_destroy(&im->lock);
	pthread_cond_destroy(&im->changed);
	free(im->extents);
	free(im->frames);
	free(im);
}
