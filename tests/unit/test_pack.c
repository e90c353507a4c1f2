// SPDX-License-Identifier: Apache-2.0
/* A packed frame is a legal frame, opens to what went in, and continues the chain. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>
#include <cmocka.h>

#include "source.h"

static const uint8_t key[ASR_KEY_BYTES] = { 1, 2, 3 };
static const uint8_t no_tag[ASR_TAG_BYTES];
static struct batch b;
static uint8_t data[ASR_PAYLOAD_MAX], plain[ASR_FRAME_PAYLOAD_MAX];

static void fill(size_t bytes, bool compressible)
{
	uint32_t x = 1;

	for (size_t i = 0; i < bytes; i++) {
		x = x * 1664525 + 1013904223;
		data[i] = compressible ? (uint8_t)("some text "[i % 10]) : (uint8_t)(x >> 24);
	}
}

static void add(uint64_t seq, uint64_t sector, uint32_t sectors, const uint8_t *from)
{
	struct asr_rec r = { .kind = ASR_KIND_WRITE, .seq = seq, .time_ns = seq, .sector = sector,
			     .sectors = sectors, .payload_bytes = sectors * 512 };

	assert_int_equal(batch_add(&b, &r, from), 0);
}

static void new_pack(struct pack *p, int level)
{
	memset(p, 0, sizeof(*p));
	p->level = level;
	p->generation = 1;
	assert_int_equal(pack_room_create(&p->room), 0);
	assert_int_equal(pack_session(p, key, 7, no_tag), 0);
}

static void end_pack(struct pack *p)
{
	pack_end(p);
	pack_room_destroy(p->room);
}

static void check_opens(struct pack *p, const uint8_t *frame, size_t bytes, size_t payload)
{
	struct frame_view v;
	struct why why = { "" };
	struct seal *s;

	assert_int_equal(wire_frame_parse(frame, bytes, &v, &why), 0);
	assert_int_equal(seal_create(key, v.hdr.session, &s), 0);
	assert_int_equal(v.hdr.plain_bytes, payload);
	assert_int_equal(seal_frame_open(s, &v, plain, &why), 0);
	assert_memory_equal(plain, data, payload);
	assert_memory_equal(v.tag, p->prev_tag, ASR_TAG_BYTES);
	seal_destroy(s);
}

static void round_trip(int level, bool compressible, bool expect_smaller)
{
	struct pack p;
	const uint8_t *frame;
	size_t bytes;

	fill(ASR_FRAME_PAYLOAD, compressible);
	new_pack(&p, level);
	batch_reset(&b);
	for (uint32_t i = 0; i < 32; i++)
		add(i + 1, i * 1000, 8, data + i * 4096);
	assert_int_equal(pack_frame(&p, &b, &frame, &bytes), 0);
	assert_int_equal(p.frame_no, 8);
	check_opens(&p, frame, bytes, ASR_FRAME_PAYLOAD);
	assert_true(expect_smaller == (bytes < ASR_FRAME_PAYLOAD));
	end_pack(&p);
}

static void raw_opens(void **state) { round_trip(0, false, false); }
static void compressed_opens(void **state) { round_trip(1, true, true); }
/* Stored raw when compression does not pay. */
static void incompressible_stays_raw(void **state) { round_trip(1, false, false); }

/* Unaligned and short writes: digests are of whole blocks only, the payload is whole. */
static void odd_writes_open(void **state)
{
	struct pack p;
	const uint8_t *frame;
	size_t bytes, at = 0;

	fill(sizeof(data), false);
	new_pack(&p, 0);
	batch_reset(&b);
	for (uint32_t i = 1; i < 40; i++) {
		if (at + i * 512 > ASR_FRAME_PAYLOAD)
			break;
		add(i, i * 3, i, data + at);
		at += i * 512;
	}
	assert_int_equal(pack_frame(&p, &b, &frame, &bytes), 0);
	check_opens(&p, frame, bytes, at);
	end_pack(&p);
}

/* A frame without payload is legal; each frame repeats the tag of the one before. */
static void chain_goes_on(void **state)
{
	struct pack p;
	const uint8_t *frame;
	struct frame_view v;
	struct why why;
	uint8_t tag[ASR_TAG_BYTES];
	size_t bytes;
	struct asr_rec flush = { .kind = ASR_KIND_FLUSH, .seq = 1, .time_ns = 1, .disk = ASR_DISK_NONE };

	new_pack(&p, 1);
	for (uint64_t i = 0; i < 3; i++) {
		memcpy(tag, p.prev_tag, sizeof(tag));
		batch_reset(&b);
		assert_int_equal(batch_add(&b, &flush, NULL), 0);
		assert_int_equal(pack_frame(&p, &b, &frame, &bytes), 0);
		check_opens(&p, frame, bytes, 0);
		assert_int_equal(wire_frame_parse(frame, bytes, &v, &why), 0);
		assert_memory_equal(v.hdr.prev_tag, tag, ASR_TAG_BYTES);
		assert_int_equal(v.hdr.frame_no, 8 + i);
	}
	end_pack(&p);
}

/* No session, or nothing to ship: refused, the number does not move. */
static void empty_is_refused(void **state)
{
	struct pack p;
	const uint8_t *frame;
	size_t bytes;

	new_pack(&p, 0);
	batch_reset(&b);
	assert_int_equal(pack_frame(&p, &b, &frame, &bytes), -EINVAL);
	pack_end(&p);
	add(1, 0, 8, data);
	assert_int_equal(pack_frame(&p, &b, &frame, &bytes), -EINVAL);
	assert_int_equal(p.frame_no, 7);
	end_pack(&p);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(raw_opens),
		cmocka_unit_test(compressed_opens),
		cmocka_unit_test(incompressible_stays_raw),
		cmocka_unit_test(odd_writes_open),
		cmocka_unit_test(chain_goes_on),
		cmocka_unit_test(empty_is_refused),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
