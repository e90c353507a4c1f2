// SPDX-License-Identifier: Apache-2.0
/* The answer to digest.map equals a plain replay of the records, whatever lies in which segment. */
#include "frames.h"

#include <errno.h>

#define SECTORS	8192u
#define SLOTS	2

/* What each sector of each slot holds, by replay: 0: unknown, 1: zeroes, else the fill of its data */
static uint32_t model[SLOTS][SECTORS];
static uint64_t model_frame[SLOTS][SECTORS];

static uint32_t seed = 1;

static uint32_t rnd(uint32_t n)
{
	seed = seed * 1103515245 + 12345;
	return (seed >> 8) % n;
}

static void replay(struct maker *m, uint8_t kind, uint16_t slot, uint32_t sector, uint32_t sectors, uint32_t fill)
{
	for (uint32_t i = sector; i < sector + sectors && i < SECTORS; i++) {
		model[slot][i] = kind == ASR_KIND_DISCARD ? 0 : wire_kind_has_payload(kind) ? fill : 1;
		model_frame[slot][i] = m->frame_no + 1;
	}
}

static void make_random(struct maker *m)
{
	static const uint8_t kinds[] = { ASR_KIND_WRITE, ASR_KIND_WRITE, ASR_KIND_WRITE, ASR_KIND_SYNC, ASR_KIND_ZEROES,
					 ASR_KIND_DISCARD, ASR_KIND_SYNC_ZEROES };

	for (uint32_t n = 1 + rnd(12); n; n--) {
		uint8_t kind = kinds[rnd(sizeof(kinds))], fill = (uint8_t)(2 + rnd(250));
		uint16_t slot = (uint16_t)rnd(SLOTS);
		uint32_t sectors = rnd(8) ? 1 + rnd(40) : 1 + rnd(256), sector;

		if (!wire_kind_has_payload(kind) && !rnd(20))
			sectors = 2049 + rnd(4000);
		sector = rnd(SECTORS - 1);
		if (rnd(2))
			sector &= ~7u;
		if (sectors > SECTORS - sector)
			sectors = SECTORS - sector;
		if (wire_kind_has_payload(kind))
			make_data(m, kind, slot, sector, sectors, fill);
		else
			make_rec(m, kind, slot, sector, sectors);
		replay(m, kind, slot, sector, sectors, fill);
	}
	make_frame(m);
}

static void feed(struct feeder *f, struct maker *m)
{
	struct why why;

	if (ingest_full(f->s))
		feeder_wait(f, m->frame_no - 1);
	assert_int_equal(ingest_frame(f->s, m->frame, m->bytes, &why), 0);
	if (!rnd(7))
		feeder_wait(f, m->frame_no);
}

static int map(struct feeder *f, const struct maker *m, uint16_t slot, const char *name, uint32_t sector,
	       uint32_t sectors, struct map_view *v, uint8_t **copy)
{
	struct map_ask ask = { .disk = slot, .sector = sector, .sectors = sectors };
	const uint8_t *data;
	struct map *job;
	struct why why;
	size_t bytes;
	int ret;

	memcpy(ask.stream, m->stream, 16);
	snprintf(ask.name, sizeof(ask.name), "%s", name);
	ret = map_begin(f->s, &ask, &job, &why);
	if (ret)
		return ret;
	while ((ret = map_step(job, &data, &bytes, &why)) == 1)
		;
	if (!ret) {
		*copy = aligned_alloc(8, (bytes + 7) & ~7ul);
		memcpy(*copy, data, bytes);
		assert_int_equal(wire_map_parse(*copy, bytes, v, &why), 0);
	}
	map_end(job);
	return ret;
}

static void digest_is(const struct map_view *v, const struct maker *m, const struct map_extent *e, uint32_t block,
		      uint8_t fill)
{
	const struct frame_hdr *h = v->frame[e->frame];
	const uint8_t *sealed = (const uint8_t *)(h + 1);
	uint8_t plain[ASR_FRAME_PAYLOAD_MAX / 4096 * 16], block_of[4096];
	XXH128_canonical_t want;
	struct seal *s;

	memset(block_of, fill, sizeof(block_of));
	XXH128_canonicalFromHash(&want, XXH3_128bits(block_of, 4096));
	assert_int_equal(seal_create(m->key, h->session, &s), 0);
	assert_int_equal(seal_open(s, h->frame_no, 1, h, sizeof(*h), sealed, h->digest_bytes, sealed + h->digest_bytes,
				   plain), 0);
	seal_destroy(s);
	assert_memory_equal(plain + 16 * (e->digest + block), &want, 16);
}

static void check(struct feeder *f, const struct maker *m, struct map_view *v, uint16_t slot, uint32_t sector,
		  uint32_t sectors)
{
	uint8_t *copy;
	uint32_t at = sector;

	assert_int_equal(map(f, m, slot, slot ? "one" : "zero", sector, sectors, v, &copy), 0);
	assert_int_equal(v->hdr.frame_no, m->frame_no);
	assert_true(v->hdr.sector == sector && v->hdr.sectors == sectors && v->hdr.disk == slot);
	for (uint32_t i = 0; i < v->hdr.extents; i++) {
		const struct map_extent *e = &v->extents[i];

		for (uint32_t k = at; k < at + e->sectors; k++) {
			const uint32_t is = model[slot][k];

			if (e->kind == MAP_ZEROES) {
				assert_int_equal(is, 1);
			} else if (e->kind == MAP_NEVER) {
				assert_int_equal(model_frame[slot][k], 0);
			} else if (e->kind == MAP_DATA) {
				assert_true(is > 1);
				assert_int_equal(v->frame[e->frame]->frame_no, model_frame[slot][k]);
				if (k % 8 == 0 && k + 8 <= at + e->sectors)
					digest_is(v, m, e, k / 8 - (at + 7) / 8, (uint8_t)is);
			} else {
				/* no content, or a block that no one record covers */
				uint32_t b = k & ~7u;

				for (uint32_t n = b; is > 1 && b >= at && b + 8 <= at + e->sectors && n < b + 8; n++)
					if (model_frame[slot][n] != model_frame[slot][b] ||
					    model[slot][n] != model[slot][b])
						b = UINT32_MAX / 2;
				assert_true(is < 2 || b < at || b + 8 > at + e->sectors);
				assert_int_not_equal(is, 1);
			}
		}
		at += e->sectors;
	}
	free(copy);
}

static void begin(struct maker *m, struct feeder *f, const char *dir, uint64_t seg_bytes)
{
	struct why why;

	memset(model, 0, sizeof(model));
	memset(model_frame, 0, sizeof(model_frame));
	assert_int_equal(feeder_open(f, dir, m, seg_bytes, &why), 0);
	make_disk(m, 0, "zero", SECTORS, 0);
	make_disk(m, 1, "one", SECTORS, 0);
	make_frame(m);
	feed(f, m);
}

static void equals_replay(void **state)
{
	static const uint64_t sizes[] = { 64u << 20, 300000, 20000 };
	struct map_view *v = malloc(sizeof(*v));
	struct maker *m;
	struct feeder f;
	struct why why;

	for (int round = 0; round < 3; round++) {
		char *dir = temp_dir();

		m = maker_new();
		begin(m, &f, dir, sizes[round]);
		for (int n = 0; n < 300; n++) {
			make_random(m);
			feed(&f, m);
			if (n % 10 == 0) {
				uint32_t at = rnd(SECTORS - 1);

				check(&f, m, v, (uint16_t)rnd(SLOTS), at, 1 + rnd(SECTORS - at - 1));
			}
		}
		check(&f, m, v, 0, 0, SECTORS);
		check(&f, m, v, 1, 0, SECTORS);
		/* and the same by an ingest that knows the stream from its folder only */
		feeder_close(&f, true);
		assert_int_equal(feeder_open(&f, dir, m, sizes[round], &why), 0);
		check(&f, m, v, 0, 0, SECTORS);
		check(&f, m, v, 1, 0, SECTORS);
		feeder_close(&f, false);
		remove_dir(dir);
		free(m);
	}
	free(v);
}

/* A slot that was another disk's before; a boot in between takes no history away */
static void floor_is_kept(void **state)
{
	for (int reuse = 0; reuse < 2; reuse++) {
		struct map_view *v = malloc(sizeof(*v));
		struct maker *m = maker_new();
		char *dir = temp_dir();
		struct feeder f;
		uint8_t *copy;

		begin(m, &f, dir, 30000);
		make_data(m, ASR_KIND_WRITE, 0, 0, 16, 5);
		make_frame(m);
		feed(&f, m);
		for (int n = 0; n < 40; n++) {	/* some segments */
			make_data(m, ASR_KIND_WRITE, 1, 0, 64, 9);
			make_frame(m);
			feed(&f, m);
		}
		make_state(m, 0, ASR_STATE_CAPTURE, ASR_WHY_START);
		make_frame(m);
		feed(&f, m);
		for (int n = 0; n < 40; n++) {
			make_data(m, ASR_KIND_WRITE, 1, 0, 64, 9);
			make_frame(m);
			feed(&f, m);
		}
		make_disk(m, 0, reuse ? "other" : "zero", SECTORS, ASR_DISKF_DIRTY);
		make_data(m, ASR_KIND_WRITE, 0, 8, 8, 7);
		make_frame(m);
		feed(&f, m);
		assert_int_equal(map(&f, m, 0, reuse ? "zero" : "other", 0, 64, v, &copy), -ENOENT);
		assert_int_equal(map(&f, m, 0, reuse ? "other" : "zero", 0, 64, v, &copy), 0);
		assert_int_equal(v->hdr.extents, 3);
		assert_int_equal(v->extents[0].kind, reuse ? MAP_NEVER : MAP_DATA);
		if (!reuse)
			digest_is(v, m, &v->extents[0], 0, 5);
		assert_int_equal(v->extents[1].kind, MAP_DATA);
		digest_is(v, m, &v->extents[1], 0, 7);
		assert_int_equal(v->extents[2].kind, MAP_NEVER);
		free(copy);
		feeder_close(&f, true);
		remove_dir(dir);
		free(m);
		free(v);
	}
}

/* More than fits in one message is answered in part, never wrongly */
static void cut_where_full(void **state)
{
	struct map_view *v = malloc(sizeof(*v));
	struct maker *m = maker_new();
	char *dir = temp_dir();
	struct feeder f;
	uint8_t *copy;
	uint32_t at = 0;

	assert_int_equal(feeder_open(&f, dir, m, 4 << 20, &(struct why){ "" }), 0);
	make_disk(m, 0, "zero", MAP_SECTORS_MAX, 0);
	make_frame(m);
	feed(&f, m);
	for (uint32_t n = 0; n < MAP_SECTORS_MAX / 8; n++) {
		make_data(m, ASR_KIND_WRITE, 0, n * 2731 % (MAP_SECTORS_MAX / 8) * 8, 8, (uint8_t)n);
		make_frame(m);
		feed(&f, m);
	}
	while (at < MAP_SECTORS_MAX) {
		uint32_t sum = at;

		assert_int_equal(map(&f, m, 0, "zero", at, MAP_SECTORS_MAX - at, v, &copy), 0);
		assert_int_equal(v->hdr.sector, at);
		for (uint32_t i = 0; i < v->hdr.extents; i++, sum += 8) {
			uint64_t frame = v->frame[v->extents[i].frame]->frame_no - 2;

			assert_int_equal(frame * 2731 % (MAP_SECTORS_MAX / 8) * 8, sum);
		}
		at += v->hdr.sectors;
		free(copy);
	}
	assert_int_equal(at, MAP_SECTORS_MAX);
	feeder_close(&f, true);
	remove_dir(dir);
	free(m);
	free(v);
}

/* A footer that was changed, or a segment that is gone, is an error: never an older version instead */
static void damage_is_said(void **state)
{
	struct map_view *v = malloc(sizeof(*v));
	struct maker *m = maker_new();
	char *dir = temp_dir(), cmd[300];
	struct feeder f;
	uint8_t *copy;

	begin(m, &f, dir, 30000);
	for (int n = 0; n < 60; n++) {
		make_data(m, ASR_KIND_WRITE, 0, (uint64_t)n * 8, 8, (uint8_t)(n + 2));
		make_data(m, ASR_KIND_WRITE, 1, 0, 32, 9);
		make_frame(m);
		feed(&f, m);
	}
	feeder_wait(&f, m->frame_no);
	snprintf(cmd, sizeof(cmd), "rm $(ls %s/groups/*/segments/*.seg | sed -n 3p)", dir);
	assert_int_equal(system(cmd), 0);
	assert_int_equal(map(&f, m, 0, "zero", 0, 64, v, &copy), -EBADMSG);
	feeder_close(&f, true);
	remove_dir(dir);
	free(m);
	free(v);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(equals_replay), cmocka_unit_test(floor_is_kept), cmocka_unit_test(cut_where_full),
		cmocka_unit_test(damage_is_said),
	};

	log_init("test_map", LOG_LVL_ERR);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
