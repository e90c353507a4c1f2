// SPDX-License-Identifier: Apache-2.0
/* A frame is accepted exactly as it is defined; every broken one is refused, at no bad access. */
#include "frames.h"

static struct maker *sample(void)
{
	struct maker *m = maker_new();

	make_disk(m, 0, "root", 2048, ASR_DISKF_DIRTY);
	make_data(m, ASR_KIND_WRITE, 0, 3, 21, 0xaa);
	make_rec(m, ASR_KIND_ZEROES, 0, 100, 8);
	make_rec(m, ASR_KIND_FLUSH, ASR_DISK_NONE, 0, 0);
	make_mark(m, "m1", 1);
	make_rec(m, ASR_KIND_RESYNC_BEGIN, ASR_DISK_NONE, 0, 0);
	make_data(m, ASR_KIND_SYNC, 0, 0, 128, 0xbb);
	make_rec(m, ASR_KIND_SYNC_ZEROES, 0, 128, 1920);
	make_rec(m, ASR_KIND_RESYNC_END, ASR_DISK_NONE, 0, 0);
	make_frame(m);
	return m;
}

static void good(void **state)
{
	struct maker *m = sample();
	struct frame_view v;
	struct why why;

	assert_int_equal(wire_frame_parse(m->frame, m->bytes, &v, &why), 0);
	assert_int_equal(v.hdr.records, 9);
	assert_int_equal(wire_rec_blocks(&v.recs[1]), 2);	/* 3..24 covers 8..16 and 16..24 */
	assert_int_equal(wire_rec_blocks(&v.recs[6]), 16);
	assert_int_equal(v.hdr.digest_bytes, 18 * 16);
	assert_string_equal(wire_disk(&v, &v.recs[0])->name, "root");
	assert_string_equal(wire_mark(&v, &v.recs[4])->name, "m1");
	assert_int_equal(wire_consistency(&v, &v.recs[0]), CONSISTENCY_LOST);
	assert_int_equal(wire_consistency(&v, &v.recs[1]), CONSISTENCY_SAME);
	assert_int_equal(wire_consistency(&v, &v.recs[5]), CONSISTENCY_LOST);
	assert_int_equal(wire_consistency(&v, &v.recs[8]), CONSISTENCY_REACHED);
	free(m);
}

/* Cut off anywhere, in memory that ends there: the address sanitizer or a guard would see more */
static void cut_off(void **state)
{
	struct maker *m = sample();
	struct frame_view v;

	for (size_t n = 0; n < m->bytes; n++) {
		uint8_t *copy = aligned_alloc(8, (n + 8) & ~7UL);

		memcpy(copy, m->frame, n);
		assert_int_equal(wire_frame_parse(copy, n, &v, NULL), -EBADMSG);
		free(copy);
	}
	free(m);
}

struct change {
	size_t offset;
	uint32_t value;
	size_t bytes;
};

static void bad_headers(void **state)
{
	static const struct change changes[] = {
		{ offsetof(struct frame_hdr, magic), 1, 4 },
		{ offsetof(struct frame_hdr, version), 2, 2 },
		{ offsetof(struct frame_hdr, hdr_bytes), 160, 2 },
		{ offsetof(struct frame_hdr, total_bytes), 0, 4 },
		{ offsetof(struct frame_hdr, flags), 2, 4 },
		{ offsetof(struct frame_hdr, records), 0, 4 },
		{ offsetof(struct frame_hdr, records), 0xffffffff, 4 },
		{ offsetof(struct frame_hdr, meta_bytes), 0xfffffff8, 4 },
		{ offsetof(struct frame_hdr, digest_bytes), 0xfffffff0, 4 },
		{ offsetof(struct frame_hdr, stored_bytes), 0xffffffff, 4 },
		{ offsetof(struct frame_hdr, plain_bytes), 0xffffffff, 4 },
		{ offsetof(struct frame_hdr, reserved), 1, 4 },
		{ offsetof(struct frame_hdr, frame_no), 0, 4 },
		{ offsetof(struct frame_hdr, first_seq), 99, 4 },
		{ offsetof(struct frame_hdr, last_seq), 99, 4 },
	};
	struct frame_view v;

	for (size_t i = 0; i < sizeof(changes) / sizeof(changes[0]); i++) {
		struct maker *m = sample();

		memcpy(m->frame + changes[i].offset, &changes[i].value, changes[i].bytes);
		assert_int_equal(wire_frame_parse(m->frame, m->bytes, &v, NULL), -EBADMSG);
		free(m);
	}
}

static void bad_records(void **state)
{
	static const struct change changes[] = {	/* of record 1, a WRITE */
		{ offsetof(struct frame_rec, seq), 0, 4 },
		{ offsetof(struct frame_rec, seq), 50, 4 },
		{ offsetof(struct frame_rec, time_ns), 1, 4 },
		{ offsetof(struct frame_rec, sector) + 4, 0xffffffff, 4 },
		{ offsetof(struct frame_rec, sectors), 0, 4 },
		{ offsetof(struct frame_rec, sectors), 20, 4 },
		{ offsetof(struct frame_rec, offset), 512, 4 },
		{ offsetof(struct frame_rec, bytes), 512, 4 },
		{ offsetof(struct frame_rec, disk), 256, 2 },
		{ offsetof(struct frame_rec, kind), 0, 1 },
		{ offsetof(struct frame_rec, kind), 8, 1 },
		{ offsetof(struct frame_rec, kind), 36, 1 },
		{ offsetof(struct frame_rec, kind), ASR_KIND_ZEROES, 1 },
		{ offsetof(struct frame_rec, kind), ASR_KIND_MARK, 1 },
		{ offsetof(struct frame_rec, flags), 4, 1 },
	};
	struct frame_view v;

	for (size_t i = 0; i < sizeof(changes) / sizeof(changes[0]); i++) {
		struct maker *m = sample();

		memcpy(m->frame + sizeof(struct frame_hdr) + sizeof(struct frame_rec) + changes[i].offset,
		       &changes[i].value, changes[i].bytes);
		if (wire_frame_parse(m->frame, m->bytes, &v, NULL) != -EBADMSG)
			fail_msg("change %zu was accepted", i);
		free(m);
	}
}

static void bad_bodies(void **state)
{
	struct maker *m = sample();
	struct frame_view v;
	size_t meta;

	assert_int_equal(wire_frame_parse(m->frame, m->bytes, &v, NULL), 0);
	meta = (size_t)(v.meta - m->frame);
	for (size_t i = 0; i < sizeof(struct asr_rec_disk); i++) {
		uint8_t was = m->frame[meta + i];

		if (i < 8)
			continue;	/* the size: any is legal */
		m->frame[meta + i] = 0xff;
		assert_int_equal(wire_frame_parse(m->frame, m->bytes, &v, NULL), -EBADMSG);
		m->frame[meta + i] = was;
	}
	free(m);
}

/* A mark says of itself that it holds, of another what was declared; nothing else is legal */
static void marks(void **state)
{
	static const uint32_t good_flags[] = { 0, ASR_MARK_HOLD, ASR_MARK_DECLARE | ASR_MARK_APP,
		ASR_MARK_DECLARE | ASR_MARK_GROUP, ASR_MARK_DECLARE | ASR_MARK_APP | ASR_MARK_GROUP };

	for (uint32_t flags = 0; flags < 32; flags++) {
		struct maker *m = maker_new();
		struct frame_view v;
		bool good = false;

		for (size_t i = 0; i < sizeof(good_flags) / sizeof(good_flags[0]); i++)
			good |= flags == good_flags[i];
		make_mark(m, "m", 7);
		((struct asr_rec_mark *)(m->meta))->flags = flags;
		make_frame(m);
		assert_int_equal(wire_frame_parse(m->frame, m->bytes, &v, NULL), good ? 0 : -EBADMSG);
		free(m);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(good), cmocka_unit_test(cut_off), cmocka_unit_test(bad_headers),
		cmocka_unit_test(bad_records), cmocka_unit_test(bad_bodies), cmocka_unit_test(marks),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
