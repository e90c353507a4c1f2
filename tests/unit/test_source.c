// SPDX-License-Identifier: Apache-2.0
/* The ring's reader: order, states, wrap, seek, tail; and what a broken ring gets. */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>
#include <sys/mman.h>
#include <cmocka.h>

#include "source.h"

#define PAGE	4096
#define RING	ASR_RING_MIN

static struct loop *loop;
static struct source *s;
static uint8_t *mem;
static struct asr_ring_consumer *cons;
static struct asr_ring_producer *prod;
static uint64_t seq;
static char path[] = "/tmp/asr-ring-XXXXXX";

static struct asr_rec *at(uint64_t pos)
{
	return (struct asr_rec *)(mem + 2 * PAGE + (pos & (RING - 1)));
}

static void kick(void *arg)
{
}

static int setup(void **state)
{
	struct why why;
	int fd;

	strcpy(path, "/tmp/asr-ring-XXXXXX");
	fd = mkstemp(path);
	if (fd < 0 || ftruncate(fd, RING + 2 * PAGE))
		return -1;
	mem = mmap(NULL, RING + 2 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	close(fd);
	cons = (void *)mem;
	prod = (void *)(mem + PAGE);
	seq = 1;
	return loop_create(&loop, 8) || source_open_file(loop, path, NULL, 1000000, kick, NULL, &s, &why);
}

static int teardown(void **state)
{
	source_close(s, NULL, NULL);
	loop_destroy(loop);
	munmap(mem, RING + 2 * PAGE);
	unlink(path);
	return 0;
}

/* Header and payload; the payload's first byte tells the seq, so that a wrap shows */
static struct asr_rec *put(uint32_t state, uint32_t sectors)
{
	struct asr_rec *r = at(prod->head);
	uint32_t bytes = sizeof(*r) + sectors * 512;

	*r = (struct asr_rec){ .state = state, .bytes = bytes, .pos = prod->head, .seq = seq, .time_ns = seq,
			       .sector = 8, .sectors = sectors, .payload_bytes = sectors * 512,
			       .kind = sectors ? ASR_KIND_WRITE : ASR_KIND_FLUSH };
	for (uint32_t i = 0; i < sectors * 512; i++)
		mem[2 * PAGE + ((prod->head + sizeof(*r) + i) & (RING - 1))] = (uint8_t)seq;
	prod->head += bytes;
	seq++;
	return r;
}

static void reads_in_order(void **state)
{
	struct asr_rec rec;
	const uint8_t *p;
	struct asr_rec *busy;

	assert_int_equal(source_next(s, &rec, &p), 0);
	put(ASR_REC_COMMITTED, 8);
	put(ASR_REC_DISCARDED, 8);
	put(ASR_REC_COMMITTED, 1);
	busy = put(ASR_REC_BUSY, 8);
	put(ASR_REC_COMMITTED, 8);
	assert_int_equal(source_next(s, &rec, &p), 1);
	assert_int_equal(rec.seq, 1);
	assert_int_equal(p[0], 1);
	assert_int_equal(source_next(s, &rec, &p), 1);
	assert_int_equal(rec.seq, 3);
	assert_int_equal(source_discarded(s), 1);
	/* the first that is not committed stops it, whatever stands behind */
	assert_int_equal(source_next(s, &rec, &p), 0);
	assert_false(source_readable(s));
	busy->state = ASR_REC_COMMITTED;
	assert_true(source_readable(s));
	assert_int_equal(source_next(s, &rec, &p), 1);
	assert_int_equal(source_next(s, &rec, &p), 1);
	assert_int_equal(rec.seq, 5);
	assert_int_equal(source_next(s, &rec, &p), 0);
}

/* A record that runs over the end reads contiguous; positions only grow. */
static void wraps(void **state)
{
	struct asr_rec rec;
	const uint8_t *p;

	for (int i = 0; i < 1000; i++) {
		put(ASR_REC_COMMITTED, 1 + i % 256);
		assert_int_equal(source_next(s, &rec, &p), 1);
		assert_int_equal(rec.seq, seq - 1);
		for (uint32_t k = 0; k < rec.payload_bytes; k += 511)
			assert_int_equal(p[k], (uint8_t)rec.seq);
		source_release(s, source_pos(s));
		assert_int_equal(cons->tail, prod->head);
	}
}

/* The tail moves forward only, and never beyond what was read. */
static void releases_what_was_read(void **state)
{
	struct asr_rec rec;
	const uint8_t *p;

	put(ASR_REC_COMMITTED, 8);
	put(ASR_REC_COMMITTED, 8);
	assert_int_equal(source_next(s, &rec, &p), 1);
	source_release(s, prod->head);
	assert_int_equal(cons->tail, 0);
	source_release(s, source_pos(s));
	assert_int_equal(cons->tail, source_pos(s));
	source_release(s, 0);
	assert_int_equal(cons->tail, source_pos(s));
}

/* After a reconnect: behind the last durable record, which may be beyond the tail. */
static void seeks(void **state)
{
	struct asr_rec rec;
	const uint8_t *p;

	for (int i = 0; i < 10; i++)
		put(ASR_REC_COMMITTED, 8);
	while (source_next(s, &rec, &p) == 1)
		;
	assert_int_equal(source_seek(s, 4), 0);
	assert_int_equal(cons->tail, 4 * (sizeof(rec) + 4096));
	assert_int_equal(source_next(s, &rec, &p), 1);
	assert_int_equal(rec.seq, 5);
	assert_int_equal(source_seek(s, 2), 0);
	assert_int_equal(source_next(s, &rec, &p), 1);
	assert_int_equal(rec.seq, 5);
}

/* Nothing that stands in the ring is believed. */
static void broken_records_are_refused(void **state)
{
	struct asr_rec rec, good;
	const uint8_t *p;
	struct asr_rec *r = put(ASR_REC_COMMITTED, 8);

	good = *r;
#define REFUSED(change) do { *r = good; change; assert_int_equal(source_next(s, &rec, &p), -EBADMSG); } while (0)
	REFUSED(r->pos = 64);
	REFUSED(r->bytes = 0);
	REFUSED(r->bytes = 65);
	REFUSED(r->bytes = good.bytes + 64);
	REFUSED(r->bytes = 0xffffffc0);
	REFUSED(r->payload_bytes = good.payload_bytes + 512);
	REFUSED(r->payload_bytes = 0xffffffff);
	REFUSED(r->sectors = 9);
	REFUSED(r->sectors = 0);
	REFUSED(r->kind = 0);
	REFUSED(r->kind = ASR_KIND_SYNC);
	REFUSED(r->kind = ASR_KIND_MARK);
	REFUSED(r->kind = ASR_KIND_DISCARD);
	REFUSED(r->disk = ASR_DISKS_MAX);
	REFUSED(r->state = 3);
	*r = good;
	assert_int_equal(source_next(s, &rec, &p), 1);
	prod->head = source_pos(s) - 64;
	assert_int_equal(source_next(s, &rec, &p), -EBADMSG);
	prod->head = source_pos(s) + RING + 64;
	assert_int_equal(source_next(s, &rec, &p), -EBADMSG);
}

/* Before it sleeps it says at which position it wants to be woken. */
static void says_when_to_wake(void **state)
{
	struct asr_rec rec;
	const uint8_t *p;

	source_awake(s);
	assert_true(cons->wake == ~0ull);
	assert_false(source_sleep(s, now_ns() + 1000000));
	assert_int_equal(cons->wake, RING / 4);
	for (int i = 0; i < 3; i++)
		put(ASR_REC_COMMITTED, 256);
	assert_true(source_sleep(s, now_ns() + 1000000));
	assert_true(cons->wake == ~0ull);
	while (source_next(s, &rec, &p) == 1)
		;
	assert_true(source_sleep(s, 1));	/* due already */
}

static void open_refuses(void **state)
{
	struct source *other;
	struct why why;

	assert_int_equal(source_open_file(loop, "/nonexistent/ring", NULL, 1, kick, NULL, &other, &why), -ENOENT);
	assert_int_equal(truncate(path, RING + 2 * PAGE + 512), 0);
	assert_int_equal(source_open_file(loop, path, NULL, 1, kick, NULL, &other, &why), -EINVAL);
	assert_int_equal(truncate(path, RING + 2 * PAGE), 0);
	cons->tail = 64;
	assert_int_equal(source_open_file(loop, path, NULL, 1, kick, NULL, &other, &why), -EBADMSG);
	assert_int_equal(source_open(loop, "/nonexistent", "g", 1, kick, NULL, &other, &why), -ENOENT);
	assert_non_null(strstr(why.text, "modprobe dm_asr"));
}

/* A flush is a header and nothing behind it: it has a number like every other record */
static void the_first_record_of_any_size(void **state)
{
	bool is_new = true;

	assert_int_equal(source_first(s, &is_new), 0);
	assert_false(is_new);
	seq = 7;
	put(ASR_REC_BUSY, 0);
	assert_int_equal(source_first(s, &is_new), 7);
	assert_false(is_new);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(reads_in_order, setup, teardown),
		cmocka_unit_test_setup_teardown(wraps, setup, teardown),
		cmocka_unit_test_setup_teardown(releases_what_was_read, setup, teardown),
		cmocka_unit_test_setup_teardown(seeks, setup, teardown),
		cmocka_unit_test_setup_teardown(broken_records_are_refused, setup, teardown),
		cmocka_unit_test_setup_teardown(says_when_to_wake, setup, teardown),
		cmocka_unit_test_setup_teardown(open_refuses, setup, teardown),
		cmocka_unit_test_setup_teardown(the_first_record_of_any_size, setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
