// SPDX-License-Identifier: Apache-2.0
/*
 * Makes a sealed frame of a batch: digests, compression, seal.
 *
 * Design. Three passes over 128 KiB, the first of which brings the payload
 * into the cache: XXH3-128 of every covered block; zstd when it pays; AES-GCM
 * from where the bytes lie (ring memory, or the compressor's output) straight
 * into the frame. Without compression that seal is the only copy.
 *
 * Compression wants its input in one piece, so the payload is gathered first,
 * which costs a twentieth of the compression itself. While frames do not
 * shrink, a sample from the middle is tried first and settles it.
 *
 * All groups share one room: its buffers stay in the cache from frame to
 * frame.
 *
 * Invariants. A frame number is sealed once per session; frame_no and prev_tag
 * move only when a frame was made.
 *
 * Context. Pure but for the key's random salt; the loop's thread.
 */
#include <errno.h>
#include <string.h>
#include <xxhash.h>
#include <zstd.h>
#if defined(__x86_64__)
#include <xxh_x86dispatch.h>	/* picks AVX2 at run time */
#endif

#include "source.h"

#define SAMPLE		4096
#define WORTH(n)	((n) - (n) / 16)	/* stored raw unless 6 % smaller */
#define DIGESTS_MAX	(ASR_FRAME_PAYLOAD / 4096 * ASR_DIGEST_BYTES)

struct pack_room {
	ZSTD_CCtx *zstd;
	uint8_t digests[DIGESTS_MAX];
	uint8_t plain[ASR_FRAME_PAYLOAD];
	uint8_t packed[ASR_FRAME_PAYLOAD];
	_Alignas(64) uint8_t out[PACK_BYTES_MAX];
};

int pack_room_create(struct pack_room **out)
{
	struct pack_room *room = aligned_alloc(64, (sizeof(*room) + 63) / 64 * 64);

	if (!room)
		return -ENOMEM;
	room->zstd = ZSTD_createCCtx();
	if (!room->zstd) {
		free(room);
		return -ENOMEM;
	}
	*out = room;
	return 0;
}

void pack_room_destroy(struct pack_room *room)
{
	if (!room)
		return;
	ZSTD_freeCCtx(room->zstd);
	free(room);
}

int pack_session(struct pack *p, const uint8_t key[ASR_KEY_BYTES], uint64_t frame_no,
		 const uint8_t prev_tag[ASR_TAG_BYTES])
{
	int r;

	pack_end(p);
	r = seal_random(p->session, sizeof(p->session));
	if (!r)
		r = seal_create(key, p->session, &p->seal);
	if (r)
		return r;
	p->frame_no = frame_no;
	memcpy(p->prev_tag, prev_tag, ASR_TAG_BYTES);
	return 0;
}

void pack_end(struct pack *p)
{
	seal_destroy(p->seal);
	p->seal = NULL;
}

static uint32_t make_digests(const struct batch *b, uint8_t *out)
{
	const struct iovec *piece = b->iov;
	uint8_t *end = out;

	for (uint32_t i = 0; i < b->records; i++) {
		const struct frame_rec *f = &b->recs[i];
		const uint8_t *data;
		uint32_t n;

		if (!wire_kind_has_payload(f->kind))
			continue;
		data = (const uint8_t *)piece++->iov_base +
		       (-f->sector % ASR_BLOCK_SECTORS) * 512;
		for (n = wire_rec_blocks(f); n; n--, data += 4096, end += ASR_DIGEST_BYTES)
			XXH128_canonicalFromHash((XXH128_canonical_t *)end, XXH3_128bits(data, 4096));
	}
	return (uint32_t)(end - out);
}

static void gather(const struct batch *b, uint8_t *out)
{
	for (uint32_t i = 0; i < b->pieces; i++) {
		memcpy(out, b->iov[i].iov_base, b->iov[i].iov_len);
		out += b->iov[i].iov_len;
	}
}

/* Bytes in room->packed, 0: stored raw */
static uint32_t compress(struct pack *p, const struct batch *b)
{
	struct pack_room *room = p->room;
	size_t n;

	if (!p->level || b->plain_bytes < 512)
		return 0;
	gather(b, room->plain);
	if (!p->shrinks && b->plain_bytes >= 4 * SAMPLE) {
		n = ZSTD_compressCCtx(room->zstd, room->packed, SAMPLE, room->plain + b->plain_bytes / 2,
				      SAMPLE, p->level);
		if (ZSTD_isError(n) || n > WORTH(SAMPLE))
			return 0;
	}
	n = ZSTD_compressCCtx(room->zstd, room->packed, WORTH(b->plain_bytes), room->plain,
			      b->plain_bytes, p->level);
	p->shrinks = !ZSTD_isError(n);
	return p->shrinks ? (uint32_t)n : 0;
}

static void fill_header(struct pack *p, const struct batch *b, struct frame_hdr *h,
			uint32_t digest_bytes, uint32_t packed)
{
	*h = (struct frame_hdr){
		.magic = ASR_FRAME_MAGIC,
		.version = ASR_FRAME_VERSION,
		.hdr_bytes = sizeof(*h),
		.flags = packed ? ASR_FRAMEF_ZSTD : 0,
		.generation = p->generation,
		.frame_no = p->frame_no + 1,
		.first_seq = b->first_seq,
		.last_seq = b->last_seq,
		.first_time_ns = b->first_time_ns,
		.last_time_ns = b->last_time_ns,
		.records = b->records,
		.meta_bytes = b->meta_bytes,
		.digest_bytes = digest_bytes,
		.stored_bytes = packed ? packed : b->plain_bytes,
		.plain_bytes = b->plain_bytes,
	};
	memcpy(h->group, p->group, ASR_UUID_BYTES);
	memcpy(h->stream, p->stream, ASR_UUID_BYTES);
	memcpy(h->session, p->session, ASR_UUID_BYTES);
	memcpy(h->prev_tag, p->prev_tag, ASR_TAG_BYTES);
	h->total_bytes = sizeof(*h) + h->records * (uint32_t)sizeof(struct frame_rec) + h->meta_bytes +
			 h->digest_bytes + h->stored_bytes + 2 * ASR_TAG_BYTES;
}

int pack_frame(struct pack *p, const struct batch *b, const uint8_t **frame, size_t *bytes)
{
	struct pack_room *room = p->room;
	struct frame_hdr *h = (struct frame_hdr *)room->out;
	uint8_t *at = room->out + sizeof(*h);
	struct iovec one;
	int r;

	if (!p->seal || !b->records)
		return -EINVAL;
	one = (struct iovec){ room->digests, make_digests(b, room->digests) };
	fill_header(p, b, h, (uint32_t)one.iov_len, compress(p, b));
	memcpy(at, b->recs, b->records * sizeof(b->recs[0]));
	at += b->records * sizeof(b->recs[0]);
	memcpy(at, b->meta, b->meta_bytes);
	at += b->meta_bytes;
	r = seal_section(p->seal, h->frame_no, 1, h, sizeof(*h), &one, one.iov_len ? 1 : 0, at);
	if (r)
		return r;
	at += one.iov_len + ASR_TAG_BYTES;
	one = (struct iovec){ room->packed, h->stored_bytes };
	if (h->flags & ASR_FRAMEF_ZSTD)
		r = seal_section(p->seal, h->frame_no, 2, room->out, (size_t)(at - room->out), &one, 1, at);
	else
		r = seal_section(p->seal, h->frame_no, 2, room->out, (size_t)(at - room->out),
				 b->iov, (int)b->pieces, at);
	if (r)
		return r;
	p->frame_no++;
	memcpy(p->prev_tag, at + h->stored_bytes, ASR_TAG_BYTES);
	p->plain_bytes += b->plain_bytes;
	p->stored_bytes += h->stored_bytes;
	*frame = room->out;
	*bytes = h->total_bytes;
	return 0;
}
