// SPDX-License-Identifier: Apache-2.0
/*
 * The frame decoder: is this a frame, and does every length in it hold?
 *
 * Design: pure functions over the caller's bytes, no allocation, no copy but
 * of the header. After wire_frame_parse said 0 the rest of the program may
 * follow every offset and count in the view without looking again.
 *
 *   peek   the fixed header alone: enough to know how many bytes to wait for
 *   parse  everything: sizes add up, sequence never falls, times lie in the
 *          header's range, payload offsets run on without gap or overlap (so
 *          the work a frame can ask for is bounded by its size), bodies are of
 *          their one right size and stand one behind the other
 *
 * Invariants: no read outside data[0 .. bytes). One legal encoding: what a
 * writer may leave open is checked to be zero.
 *
 * Context: any thread; O(records), a record costs some ten comparisons.
 */
#include "asr.h"

#include <errno.h>
#include <string.h>

_Static_assert(sizeof(struct frame_hdr) == 152, "frame_hdr is part of the format");
_Static_assert(sizeof(struct frame_rec) == 40, "frame_rec is part of the format");
_Static_assert(sizeof(struct msg_hdr) == 8, "msg_hdr is part of the format");
_Static_assert(sizeof(struct msg_ack) == 32, "msg_ack is part of the format");
_Static_assert(sizeof(struct msg_map) == 48, "msg_map is part of the format");
_Static_assert(sizeof(struct map_extent) == 16, "map_extent is part of the format");

#define RECF_ALL	(ASR_RECF_FUA | ASR_RECF_FLUSH)

bool wire_kind_has_payload(uint8_t kind)
{
	return kind == ASR_KIND_WRITE || kind == ASR_KIND_SYNC;
}

bool wire_kind_has_meta(uint8_t kind)
{
	return kind == ASR_KIND_MARK || kind == ASR_KIND_STATE || kind == ASR_KIND_DISK;
}

/* Kinds that say what a range of a disk contains */
static bool has_range(uint8_t kind)
{
	return wire_kind_has_payload(kind) || kind == ASR_KIND_ZEROES || kind == ASR_KIND_DISCARD ||
	       kind == ASR_KIND_SYNC_ZEROES;
}

uint32_t wire_blocks(uint64_t sector, uint64_t sectors)
{
	uint64_t first = (sector + ASR_BLOCK_SECTORS - 1) / ASR_BLOCK_SECTORS;
	uint64_t end = (sector + sectors) / ASR_BLOCK_SECTORS;

	return end > first ? (uint32_t)(end - first) : 0;
}

uint32_t wire_rec_blocks(const struct frame_rec *rec)
{
	return wire_blocks(rec->sector, rec->sectors);
}

static uint64_t sum_sizes(const struct frame_hdr *h)
{
	return sizeof(*h) + (uint64_t)h->records * sizeof(struct frame_rec) + h->meta_bytes +
	       (uint64_t)h->digest_bytes + ASR_TAG_BYTES + (uint64_t)h->stored_bytes + ASR_TAG_BYTES;
}

int wire_frame_peek(const uint8_t *data, size_t bytes, struct frame_hdr *hdr, struct why *why)
{
	if (bytes < sizeof(*hdr))
		return why_set(why, EBADMSG, "%zu bytes are too few for a frame header", bytes);
	memcpy(hdr, data, sizeof(*hdr));
	if (hdr->magic != ASR_FRAME_MAGIC)
		return why_set(why, EBADMSG, "not a frame: magic %08x", hdr->magic);
	if (hdr->version != ASR_FRAME_VERSION || hdr->hdr_bytes != sizeof(*hdr))
		return why_set(why, EBADMSG, "frame version %u with a header of %u bytes: this program "
			       "knows version %d", hdr->version, hdr->hdr_bytes, ASR_FRAME_VERSION);
	if (hdr->flags & ~ASR_FRAMEF_ZSTD || hdr->reserved)
		return why_set(why, EBADMSG, "unknown frame flags %x %x", hdr->flags, hdr->reserved);
	if (!hdr->records || hdr->records > ASR_FRAME_RECORDS_MAX)
		return why_set(why, EBADMSG, "%u records in a frame: 1 to %d are legal", hdr->records,
			       ASR_FRAME_RECORDS_MAX);
	if (hdr->meta_bytes > ASR_FRAME_META_MAX || hdr->meta_bytes % 8)
		return why_set(why, EBADMSG, "bad meta size %u", hdr->meta_bytes);
	if (hdr->plain_bytes > ASR_FRAME_PAYLOAD_MAX || hdr->stored_bytes > hdr->plain_bytes ||
	    (hdr->flags & ASR_FRAMEF_ZSTD ? !hdr->stored_bytes : hdr->stored_bytes != hdr->plain_bytes))
		return why_set(why, EBADMSG, "bad payload size: %u stored, %u plain", hdr->stored_bytes,
			       hdr->plain_bytes);
	if (hdr->digest_bytes % ASR_DIGEST_BYTES ||
	    hdr->digest_bytes > ASR_FRAME_PAYLOAD_MAX / 4096 * ASR_DIGEST_BYTES)
		return why_set(why, EBADMSG, "bad digest size %u", hdr->digest_bytes);
	if (sum_sizes(hdr) != hdr->total_bytes || hdr->total_bytes > ASR_FRAME_MAX)
		return why_set(why, EBADMSG, "frame of %u bytes: its parts make %llu", hdr->total_bytes,
			       (unsigned long long)sum_sizes(hdr));
	if (!hdr->frame_no || hdr->first_seq > hdr->last_seq || hdr->first_time_ns > hdr->last_time_ns)
		return why_set(why, EBADMSG, "bad frame number, sequence or time range");
	return 0;
}

static bool name_ok(const char name[ASR_NAME_BYTES])
{
	size_t n = strnlen(name, ASR_NAME_BYTES);

	if (n == ASR_NAME_BYTES || name_check("", name, NULL))
		return false;
	for (; n < ASR_NAME_BYTES; n++)
		if (name[n])
			return false;
	return true;
}

static size_t body_bytes(uint8_t kind)
{
	if (kind == ASR_KIND_MARK)
		return sizeof(struct asr_rec_mark);
	if (kind == ASR_KIND_STATE)
		return sizeof(struct asr_rec_state);
	return sizeof(struct asr_rec_disk);
}

static bool state_ok(uint32_t state)
{
	return state == ASR_STATE_CAPTURE || state == ASR_STATE_TRACK;
}

/* A mark, with a hold or without; or what is said of one */
static bool mark_ok(const struct asr_rec_mark *m)
{
	uint32_t says = m->flags & (ASR_MARK_APP | ASR_MARK_GROUP);

	return !m->reserved && name_ok(m->name) && m->id &&
	       (m->flags & ASR_MARK_DECLARE ? says && m->flags == (says | ASR_MARK_DECLARE) :
		!(m->flags & ~ASR_MARK_HOLD));
}

/* Content of a MARK, STATE or DISK body whose place has been checked */
static bool body_ok(const struct frame_rec *r, const uint8_t *body)
{
	const struct asr_rec_state *s = (const void *)body;
	const struct asr_rec_disk *d = (const void *)body;

	switch (r->kind) {
	case ASR_KIND_MARK:
		return mark_ok((const void *)body);
	case ASR_KIND_STATE:
		return (state_ok(s->from) || !s->from) && state_ok(s->to) && !s->reserved;
	default:
		return !(d->flags & ~ASR_DISKF_DIRTY) && !d->reserved && r->disk < ASR_DISKS_MAX &&
		       d->sectors <= ASR_DISK_SECTORS_MAX && name_ok(d->name);
	}
}

/* Where the next payload and the next body must stand, and what was seen so far */
struct cursor {
	uint64_t payload, meta, blocks;
	uint64_t seq, time_min, time_max;
};

static bool rec_ok(const struct frame_view *v, const struct frame_rec *r, struct cursor *c)
{
	if (r->seq < c->seq || r->flags & ~RECF_ALL)
		return false;
	c->seq = r->seq;
	if (r->time_ns < c->time_min)
		c->time_min = r->time_ns;
	if (r->time_ns > c->time_max)
		c->time_max = r->time_ns;
	if (has_range(r->kind)) {
		if (!r->sectors || r->disk >= ASR_DISKS_MAX ||
		    r->sector > (UINT64_MAX >> 9) - r->sectors)
			return false;
	} else if (r->kind != ASR_KIND_FLUSH && r->kind != ASR_KIND_RESYNC_BEGIN &&
		   r->kind != ASR_KIND_RESYNC_END && !wire_kind_has_meta(r->kind)) {
		return false;
	}
	if (wire_kind_has_payload(r->kind)) {
		if (r->offset != c->payload || r->bytes != (uint64_t)r->sectors * 512)
			return false;
		c->payload += r->bytes;
		c->blocks += wire_rec_blocks(r);
		return c->payload <= v->hdr.plain_bytes;
	}
	if (wire_kind_has_meta(r->kind)) {
		if (r->offset != c->meta || r->bytes != body_bytes(r->kind) ||
		    c->meta + r->bytes > v->hdr.meta_bytes)
			return false;
		c->meta += r->bytes;
		return body_ok(r, v->meta + r->offset);
	}
	return !r->offset && !r->bytes;
}

int wire_frame_parse(const uint8_t *data, size_t bytes, struct frame_view *v, struct why *why)
{
	struct cursor c = { .time_min = UINT64_MAX };
	const struct frame_hdr *h = &v->hdr;
	int ret;

	_Static_assert(sizeof(struct asr_rec_mark) % 8 == 0 && sizeof(struct asr_rec_state) % 8 == 0 &&
		       sizeof(struct asr_rec_disk) % 8 == 0, "bodies leave no padding between them");
	ret = wire_frame_peek(data, bytes, &v->hdr, why);
	if (ret)
		return ret;
	if (h->total_bytes != bytes)
		return why_set(why, EBADMSG, "frame %llu says %u bytes, there are %zu",
			       (unsigned long long)h->frame_no, h->total_bytes, bytes);
	v->bytes = data;
	v->recs = (const struct frame_rec *)(data + sizeof(*h));
	v->meta = (const uint8_t *)(v->recs + h->records);
	v->digests = v->meta + h->meta_bytes;
	v->payload = v->digests + h->digest_bytes + ASR_TAG_BYTES;
	v->tag = v->payload + h->stored_bytes;
	c.seq = h->first_seq;
	for (uint32_t i = 0; i < h->records; i++)
		if (!rec_ok(v, &v->recs[i], &c))
			return why_set(why, EBADMSG, "frame %llu: record %u of %u is not legal (kind %u)",
				       (unsigned long long)h->frame_no, i, h->records, v->recs[i].kind);
	if (v->recs[0].seq != h->first_seq || c.seq != h->last_seq || c.time_min != h->first_time_ns ||
	    c.time_max != h->last_time_ns)
		return why_set(why, EBADMSG, "frame %llu: records and header differ in sequence or time",
			       (unsigned long long)h->frame_no);
	if (c.payload != h->plain_bytes || c.meta != h->meta_bytes ||
	    c.blocks * ASR_DIGEST_BYTES != h->digest_bytes)
		return why_set(why, EBADMSG, "frame %llu: records take %llu payload, %llu meta bytes and "
			       "%llu digests, the header says %u, %u and %u",
			       (unsigned long long)h->frame_no, (unsigned long long)c.payload,
			       (unsigned long long)c.meta, (unsigned long long)c.blocks, h->plain_bytes,
			       h->meta_bytes, h->digest_bytes / ASR_DIGEST_BYTES);
	return 0;
}

const struct asr_rec_mark *wire_mark(const struct frame_view *v, const struct frame_rec *r)
{
	return r->kind == ASR_KIND_MARK ? (const void *)(v->meta + r->offset) : NULL;
}

const struct asr_rec_state *wire_state(const struct frame_view *v, const struct frame_rec *r)
{
	return r->kind == ASR_KIND_STATE ? (const void *)(v->meta + r->offset) : NULL;
}

const struct asr_rec_disk *wire_disk(const struct frame_view *v, const struct frame_rec *r)
{
	return r->kind == ASR_KIND_DISK ? (const void *)(v->meta + r->offset) : NULL;
}

/* A disk that grew loses consistency too: whoever keeps the sizes sees that (segment.c). */
enum consistency wire_consistency(const struct frame_view *v, const struct frame_rec *r)
{
	switch (r->kind) {
	case ASR_KIND_RESYNC_END:
		return CONSISTENCY_REACHED;
	case ASR_KIND_RESYNC_BEGIN:
		return CONSISTENCY_LOST;
	case ASR_KIND_STATE:
		return wire_state(v, r)->to == ASR_STATE_TRACK || wire_state(v, r)->reason == ASR_WHY_START ?
		       CONSISTENCY_LOST : CONSISTENCY_SAME;
	case ASR_KIND_DISK:
		return wire_disk(v, r)->flags & ASR_DISKF_DIRTY ? CONSISTENCY_LOST : CONSISTENCY_SAME;
	default:
		return CONSISTENCY_SAME;
	}
}

/* ------------------------------------------------------------ digest.map */

int wire_map_ask(const json_t *p, struct map_ask *ask, struct why *why)
{
	json_int_t disk = -1, sector = -1, sectors = -1;
	const char *stream = "", *name = "";

	memset(ask, 0, sizeof(*ask));
	if (json_unpack((json_t *)(uintptr_t)p, "{s:s, s:I, s:s, s:I, s:I}", "stream", &stream, "disk", &disk,
			"name", &name, "sector", &sector, "sectors", &sectors) ||
	    hex_decode(stream, ask->stream, sizeof(ask->stream)))
		return why_set(why, EINVAL, "digest.map wants stream (32 hex digits), disk, name, sector, sectors");
	if (name_check("disk", name, why))
		return -EINVAL;
	if (disk < 0 || disk >= ASR_DISKS_MAX || sectors < 1 || sectors > MAP_SECTORS_MAX || sector < 0 ||
	    (uint64_t)sector > ASR_DISK_SECTORS_MAX)
		return why_set(why, EINVAL, "disk %lld, sector %lld, sectors %lld: a slot below %d and 1 to %u "
			       "sectors are right", (long long)disk, (long long)sector, (long long)sectors,
			       ASR_DISKS_MAX, MAP_SECTORS_MAX);
	snprintf(ask->name, sizeof(ask->name), "%s", name);
	ask->disk = (uint16_t)disk;
	ask->sector = (uint64_t)sector;
	ask->sectors = (uint32_t)sectors;
	return 0;
}

/* The frames behind the extents, each at its place: 0, or -EBADMSG */
static int map_frames(const uint8_t *data, size_t bytes, struct map_view *v)
{
	struct frame_hdr h;
	size_t at = 0, whole;

	for (uint32_t i = 0; i < v->hdr.frames; i++, at += whole) {
		if (bytes - at < sizeof(h) || wire_frame_peek(data + at, bytes - at, &h, NULL))
			return -EBADMSG;
		whole = sizeof(h) + h.digest_bytes + ASR_TAG_BYTES;
		if (bytes - at < whole || !h.digest_bytes || h.frame_no > v->hdr.frame_no)
			return -EBADMSG;
		v->frame[i] = (const void *)(data + at);
	}
	return at == bytes ? 0 : -EBADMSG;
}

static bool extent_ok(const struct map_view *v, const struct map_extent *e, uint64_t sector, uint32_t *named)
{
	uint32_t blocks = wire_blocks(sector, e->sectors), digests;

	if (e->kind != MAP_DATA)
		return e->kind <= MAP_NEVER && !e->frame && !e->digest;
	if (!blocks || e->frame > *named || e->frame >= v->hdr.frames)
		return false;
	*named += e->frame == *named;
	digests = v->frame[e->frame]->digest_bytes / ASR_DIGEST_BYTES;
	return e->digest < digests && blocks <= digests - e->digest;
}

int wire_map_parse(const uint8_t *data, size_t bytes, struct map_view *v, struct why *why)
{
	const struct msg_map *h = &v->hdr;
	uint64_t sectors = 0;
	uint32_t named = 0;
	size_t head;

	if (bytes < sizeof(*h) || bytes > MAP_BYTES_MAX)
		return why_set(why, EBADMSG, "a map of %zu bytes", bytes);
	memcpy(&v->hdr, data, sizeof(v->hdr));
	head = sizeof(*h) + (size_t)h->extents * sizeof(struct map_extent);
	if (h->disk >= ASR_DISKS_MAX || h->reserved || !h->sectors || h->sectors > MAP_SECTORS_MAX ||
	    h->sector > ASR_DISK_SECTORS_MAX || h->extents > h->sectors || h->frames > MAP_FRAMES_MAX || head > bytes)
		return why_set(why, EBADMSG, "a map of %u sectors with %u extents and %u frames in %zu bytes",
			       h->sectors, h->extents, h->frames, bytes);
	v->extents = (const void *)(data + sizeof(*h));
	if (map_frames(data + head, bytes - head, v))
		return why_set(why, EBADMSG, "a map whose frames are not as it says");
	for (uint32_t i = 0; i < h->extents; i++) {
		if (!v->extents[i].sectors || v->extents[i].sectors > h->sectors - sectors ||
		    !extent_ok(v, &v->extents[i], h->sector + sectors, &named))
			return why_set(why, EBADMSG, "a map whose extent %u is not legal", i);
		sectors += v->extents[i].sectors;
	}
	if (sectors != h->sectors || named != h->frames)
		return why_set(why, EBADMSG, "a map whose extents do not add up");
	return 0;
}

/* ------------------------------------------------------- marks of several hosts */

int wire_group_mark(const char *name, uint64_t epoch, uint64_t random, char out[ASR_NAME_BYTES])
{
	if (name_check("mark", name, NULL) || strchr(name, '+') || strlen(name) > WIRE_GROUP_MARK_NAME ||
	    !epoch || epoch > 0xffff)
		return -EINVAL;
	snprintf(out, ASR_NAME_BYTES, "%s+%04llx%016llx", name, (unsigned long long)epoch, (unsigned long long)random);
	return 0;
}

bool wire_group_mark_parse(const char *full, char name[ASR_NAME_BYTES], uint64_t *epoch)
{
	const char *plus = memchr(full, '+', strnlen(full, ASR_NAME_BYTES));
	char hex[5] = "";

	if (!plus || plus == full || strlen(plus + 1) != 20 || strspn(plus + 1, "0123456789abcdef") != 20)
		return false;
	memcpy(hex, plus + 1, 4);
	*epoch = strtoul(hex, NULL, 16);
	snprintf(name, ASR_NAME_BYTES, "%.*s", (int)(plus - full), full);
	return *epoch;
}
