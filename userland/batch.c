// SPDX-License-Identifier: Apache-2.0
/*
 * Gathers records into the frame that goes out next.
 *
 * Design. A frame is up to ASR_FRAME_PAYLOAD bytes of payload: small enough
 * to be hashed, compressed, sealed and encrypted while it is in the second
 * level cache. Payloads are only pointed at. A write of nothing but zeroes
 * becomes a ZEROES record: it says the same and ships nothing; the test looks
 * at the first words and is over at once for nearly everything else.
 *
 * Invariants. first/last seq and time are those of the records held; pieces
 * stand in record order, their sum is plain_bytes; what does not fit leaves
 * the batch as it was.
 *
 * Context. Pure, no system call; the loop's thread.
 */
#include <errno.h>
#include <string.h>

#include "source.h"

void batch_reset(struct batch *b)
{
	memset(b, 0, offsetof(struct batch, recs));
}

bool batch_is_zero(const uint8_t *data, size_t bytes)
{
	static const uint8_t zero[16];

	if (bytes < sizeof(zero))
		return !memcmp(data, zero, bytes);
	return !memcmp(data, zero, sizeof(zero)) &&
	       !memcmp(data, data + sizeof(zero), bytes - sizeof(zero));
}

bool batch_loses_consistency(const struct asr_rec *rec, const uint8_t *payload)
{
	const struct asr_rec_state *state = (const void *)payload;
	const struct asr_rec_disk *disk = (const void *)payload;

	/* a group made anew knows nothing of what was written before it, and has no disk yet */
	if (rec->kind == ASR_KIND_STATE)
		return state->to == ASR_STATE_TRACK || state->reason == ASR_WHY_START;
	/* one that came or grew; one that shrank too, which costs an empty resync */
	if (rec->kind == ASR_KIND_DISK)
		return disk->sectors;
	return rec->kind == ASR_KIND_RESYNC_BEGIN;	/* out of the spool (detour.c) */
}

static int add_payload(struct batch *b, struct frame_rec *f, const uint8_t *payload)
{
	if (b->plain_bytes && b->plain_bytes + f->bytes > ASR_FRAME_PAYLOAD)
		return -ENOSPC;
	f->offset = b->plain_bytes;
	b->iov[b->pieces++] = (struct iovec){ (void *)(uintptr_t)payload, f->bytes };
	b->plain_bytes += f->bytes;
	b->digests += wire_rec_blocks(f);
	return 0;
}

static int add_meta(struct batch *b, struct frame_rec *f, const uint8_t *payload)
{
	if (b->meta_bytes + f->bytes > BATCH_META)
		return -ENOSPC;
	f->offset = b->meta_bytes;
	memcpy(b->meta + b->meta_bytes, payload, f->bytes);
	b->meta_bytes += f->bytes;
	return 0;
}

int batch_add(struct batch *b, const struct asr_rec *rec, const uint8_t *payload)
{
	struct frame_rec *f = &b->recs[b->records];
	int r = 0;

	if (b->records == BATCH_RECORDS)
		return -ENOSPC;
	*f = (struct frame_rec){
		.seq = rec->seq,
		.time_ns = rec->time_ns,
		.sector = rec->sector,
		.sectors = rec->sectors,
		.bytes = rec->payload_bytes,
		.disk = rec->disk,
		.kind = (uint8_t)rec->kind,
		.flags = (uint8_t)(rec->flags & (ASR_RECF_FUA | ASR_RECF_FLUSH)),
	};
	if (f->kind == ASR_KIND_WRITE && batch_is_zero(payload, f->bytes)) {
		f->kind = ASR_KIND_ZEROES;
		f->bytes = 0;
	}
	if (wire_kind_has_payload(f->kind))
		r = add_payload(b, f, payload);
	else if (wire_kind_has_meta(f->kind))
		r = add_meta(b, f, payload);
	else
		f->bytes = 0;
	if (r)
		return r;
	if (!b->records++) {
		b->first_seq = rec->seq;
		b->first_time_ns = b->last_time_ns = rec->time_ns;
	}
	b->last_seq = rec->seq;
	if (rec->time_ns < b->first_time_ns)
		b->first_time_ns = rec->time_ns;
	if (rec->time_ns > b->last_time_ns)
		b->last_time_ns = rec->time_ns;
	return 0;
}
