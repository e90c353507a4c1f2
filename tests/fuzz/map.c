// SPDX-License-Identifier: Apache-2.0
/* Any bytes as a MSG_MAP: refused, or every extent can be followed into its frame's digests; as a call, too. */
#include "asr.h"

#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

/* Sums that fit, so that the fuzzer gets behind them */
static void make_fit(uint8_t *p, size_t bytes)
{
	struct msg_map m;
	struct frame_hdr h;
	size_t at;

	if (bytes < sizeof(m))
		return;
	memcpy(&m, p, sizeof(m));
	at = sizeof(m) + (size_t)m.extents * sizeof(struct map_extent);
	for (uint32_t i = 0; i < m.frames && at < bytes && bytes - at >= sizeof(h); i++) {
		memcpy(&h, p + at, sizeof(h));
		h.magic = ASR_FRAME_MAGIC;
		h.version = ASR_FRAME_VERSION;
		h.hdr_bytes = sizeof(h);
		h.total_bytes = (uint32_t)(sizeof(h) + (uint64_t)h.records * sizeof(struct frame_rec) + h.meta_bytes +
				h.digest_bytes + h.stored_bytes + 2 * ASR_TAG_BYTES);
		memcpy(p + at, &h, sizeof(h));
		at += sizeof(h) + h.digest_bytes + ASR_TAG_BYTES;
	}
}

static void follow(const struct map_view *v, const uint8_t *data, size_t bytes)
{
	uint64_t sector = v->hdr.sector;

	for (uint32_t i = 0; i < v->hdr.extents; i++) {
		const struct map_extent *e = &v->extents[i];
		uint32_t blocks = wire_blocks(sector, e->sectors);

		if (e->kind == MAP_DATA) {
			const uint8_t *d = (const uint8_t *)(v->frame[e->frame] + 1) + e->digest * ASR_DIGEST_BYTES;

			if (d < data || d + blocks * ASR_DIGEST_BYTES + ASR_TAG_BYTES > data + bytes)
				abort();
		}
		sector += e->sectors;
	}
	if (sector != v->hdr.sector + v->hdr.sectors)
		abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
	static struct map_view v;
	uint8_t *copy = aligned_alloc(8, (bytes + 8) & ~(size_t)7);
	struct map_ask ask;
	struct why why;
	json_t *p = json_loadb((const char *)data, bytes, 0, NULL);

	if (p && !wire_map_ask(p, &ask, &why) && (!ask.sectors || ask.sectors > MAP_SECTORS_MAX))
		abort();
	json_decref(p);
	memcpy(copy, data, bytes);
	for (int fit = 0; fit < 2; fit++) {
		if (!wire_map_parse(copy, bytes, &v, &why))
			follow(&v, copy, bytes);
		make_fit(copy, bytes);
	}
	free(copy);
	return 0;
}
