// SPDX-License-Identifier: Apache-2.0
/* What goes into a frame, how, and when it is full. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>
#include <cmocka.h>

#include "source.h"

static struct batch b;
static uint8_t data[ASR_PAYLOAD_MAX];

static struct asr_rec write_rec(uint64_t seq, uint32_t sectors)
{
	return (struct asr_rec){ .kind = ASR_KIND_WRITE, .seq = seq, .time_ns = 1000 + seq, .sector = seq * 8,
				 .sectors = sectors, .payload_bytes = sectors * 512 };
}

/* A payload is pointed at, not copied; 32 records of 4 KiB fill a frame. */
static void fills_at_its_size(void **state)
{
	memset(data, 7, sizeof(data));
	batch_reset(&b);
	for (uint64_t i = 1; i <= 32; i++) {
		struct asr_rec r = write_rec(i, 8);

		assert_int_equal(batch_add(&b, &r, data), 0);
		assert_ptr_equal(b.iov[i - 1].iov_base, data);
		assert_int_equal(b.recs[i - 1].offset, (i - 1) * 4096);
	}
	assert_int_equal(b.plain_bytes, ASR_FRAME_PAYLOAD);
	assert_int_equal(b.digests, 32);
	assert_int_equal(b.first_seq, 1);
	assert_int_equal(b.last_seq, 32);

	struct asr_rec one = write_rec(33, 1);

	assert_int_equal(batch_add(&b, &one, data), -ENOSPC);
	assert_int_equal(b.records, 32);
	assert_int_equal(b.last_seq, 32);
}

/* The largest record goes into an empty batch. */
static void takes_the_largest(void **state)
{
	struct asr_rec r = write_rec(1, ASR_PAYLOAD_MAX / 512);

	data[0] = 1;
	batch_reset(&b);
	assert_int_equal(batch_add(&b, &r, data), 0);
	batch_reset(&b);
	assert_int_equal(b.records, 0);
	assert_int_equal(batch_add(&b, &r, data), 0);
}

/* Nothing but zeroes ships nothing; one byte that is not zero, anywhere, ships all. */
static void zeroes_ship_nothing(void **state)
{
	static const size_t places[] = { 0, 1, 15, 16, 17, 511, 2048, 4095 };
	struct asr_rec r = write_rec(1, 8);

	memset(data, 0, sizeof(data));
	batch_reset(&b);
	assert_int_equal(batch_add(&b, &r, data), 0);
	assert_int_equal(b.recs[0].kind, ASR_KIND_ZEROES);
	assert_int_equal(b.recs[0].bytes, 0);
	assert_int_equal(b.recs[0].sectors, 8);
	assert_int_equal(b.plain_bytes + b.pieces + b.digests, 0);
	for (size_t i = 0; i < sizeof(places) / sizeof(places[0]); i++) {
		data[places[i]] = 1;
		assert_false(batch_is_zero(data, 4096));
		data[places[i]] = 0;
	}
	assert_true(batch_is_zero(data, 4096));
}

/* Only blocks that a record covers wholly have a digest. */
static void counts_whole_blocks(void **state)
{
	struct asr_rec r = write_rec(1, 15);

	data[0] = 1;
	batch_reset(&b);
	r.sector = 1;
	assert_int_equal(batch_add(&b, &r, data), 0);
	assert_int_equal(b.digests, 1);
	r.sectors = 7;
	r.payload_bytes = 7 * 512;
	assert_int_equal(batch_add(&b, &r, data), 0);
	assert_int_equal(b.digests, 1);
}

/* Bodies stand in meta; times are the least and the greatest, not the first and the last. */
static void keeps_bodies_and_times(void **state)
{
	struct asr_rec_mark mark = { .id = 3, .name = "noon" };
	struct asr_rec r = { .kind = ASR_KIND_MARK, .seq = 5, .time_ns = 900, .disk = ASR_DISK_NONE,
			     .payload_bytes = sizeof(mark) };
	struct asr_rec flush = { .kind = ASR_KIND_FLUSH, .seq = 6, .time_ns = 800, .disk = ASR_DISK_NONE };

	batch_reset(&b);
	assert_int_equal(batch_add(&b, &r, (const uint8_t *)&mark), 0);
	assert_int_equal(batch_add(&b, &flush, NULL), 0);
	assert_int_equal(b.meta_bytes, sizeof(mark));
	assert_memory_equal(b.meta, &mark, sizeof(mark));
	assert_int_equal(b.first_time_ns, 800);
	assert_int_equal(b.last_time_ns, 900);
}

/* TRACK and a disk that is there call for a resync, nothing else does. */
static void knows_what_ends_consistency(void **state)
{
	struct asr_rec r = { .kind = ASR_KIND_STATE };
	struct asr_rec_state to_track = { .to = ASR_STATE_TRACK }, to_capture = { .to = ASR_STATE_CAPTURE };
	struct asr_rec_state made = { .to = ASR_STATE_CAPTURE, .reason = ASR_WHY_START };
	struct asr_rec_disk came = { .sectors = 8, .flags = ASR_DISKF_DIRTY }, left = { .sectors = 0 };

	assert_true(batch_loses_consistency(&r, (const uint8_t *)&to_track));
	assert_false(batch_loses_consistency(&r, (const uint8_t *)&to_capture));
	assert_true(batch_loses_consistency(&r, (const uint8_t *)&made));
	r.kind = ASR_KIND_DISK;
	assert_true(batch_loses_consistency(&r, (const uint8_t *)&came));
	assert_false(batch_loses_consistency(&r, (const uint8_t *)&left));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(fills_at_its_size),
		cmocka_unit_test(takes_the_largest),
		cmocka_unit_test(zeroes_ship_nothing),
		cmocka_unit_test(counts_whole_blocks),
		cmocka_unit_test(keeps_bodies_and_times),
		cmocka_unit_test(knows_what_ends_consistency),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
