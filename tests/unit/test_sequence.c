// SPDX-License-Identifier: Apache-2.0
/*
 * Sequence numbers and whose history a slot has: one number names one state of the disks, no record is
 * stepped over that nobody has, and a disk that came back is compared as far back as a restore looks.
 */
#include "detour.h"

/* Nothing is written after the spool's records were lost: what is copied then is no state that had a number before */
static void numbers_go_on(void **st)
{
	for (int i = 0; i < 2; i++) {
		put(20);
		detour_begins();
		asrd_kill();
		if (i)
			first_file_goes();
		asrd_start();
	}
	v.count = 0;
	vault_up();
	vault_answers(v.frame_no, 10, true);
	await(({ vault_acks(); place(ASR_KIND_RESYNC_END, 0) >= 0; }));
	assert_int_equal(place_start(), 0);
	for (int i = 0; i < v.count; i++)
		assert_int_equal(v.seen[i].seq, seq - 1);
	vault_acks();
	turns(2);
	asrd_kill();
	v.count = 0;
	asrd_start();
	vault_up();
	vault_answers(v.frame_no, v.seq, true);
	put(1);
	await(v.count && v.seq == seq - 1);
	assert_int_equal(place_start(), -1);
}

static void fourteen_fails(void)
{
	put(3);
	vault_up();
	vault_answers(v.frame_no, 10, true);
	await(v.seq == 13);
	vault_acks();
	put_rec(ASR_KIND_WRITE, 8, NULL, 0)->state = ASR_REC_DISCARDED;
	dirty_set();
}

/* A write that the lower device failed, as the last one: the copy without it keeps the number that it had */
static void a_failed_write_that_is_the_last(void **st)
{
	fourteen_fails();
	await(({ vault_acks(); place(ASR_KIND_RESYNC_END, 0) >= 0; }));
	assert_int_equal(v.seen[place(ASR_KIND_RESYNC_BEGIN, 0)].seq, 14);
	assert_int_equal(v.seq, 14);
}

/* ... or before another: that one is no point, for the copy lacks what the failed one left on the disk */
static void a_failed_write_before_another(void **st)
{
	fourteen_fails();
	put(1);
	await(v.seq == 15);
	assert_int_equal(place(ASR_KIND_RESYNC_BEGIN, 0), 3);
	assert_int_equal(v.seen[3].seq, 14);
	assert_int_equal(place(ASR_KIND_WRITE, 3), 4);
	await(({ vault_acks(); place(ASR_KIND_RESYNC_END, 0) >= 0; }));
}

/* Another disk has had the slot meanwhile, and is gone by now: a restore looks back no further than to the return */
static void a_disk_that_comes_back_behind_another(void **st)
{
	vault_up();
	vault_answers(v.frame_no, 10, true);
	put_disk("bench", 0);
	put_disk("other", DISK_BYTES / 512);
	put_disk("other", 0);
	put_disk("bench", DISK_BYTES / 512);
	await(({ vault_acks(); v.seq == seq - 1 && place(ASR_KIND_RESYNC_END, 0) >= 0; }));
	assert_true(place(ASR_KIND_SYNC_ZEROES, 0) > place(ASR_KIND_DISK, 3));	/* all of it, which is empty */
}

/* The kernel's group was made anew and counts from a number that the vault has seen */
static void numbers_given_twice(void **st)
{
	for (int again = 0; again < 2; again++) {
		vault_acks();
		asrd_kill();
		cons->tail = prod->head;
		seq = again ? 20 : 6;
		put_start();
		put(8);
		v.count = 0;
		asrd_start();
		vault_up();
		vault_answers(v.frame_no, v.seq, true);
		await(v.seq == seq - 1);
		assert_in_range(place_start(), 0, again);	/* that the resync goes on may be said before */
		if (again)
			continue;
		assert_int_equal(v.seen[0].seq, 10);
		assert_int_equal(dirty_chunks(), DISK_BYTES / (ASR_CHUNK_SECTORS * 512));
	}
	assert_int_equal(v.seen[place_start()].seq, 20);	/* above all: its own record says it */
	assert_int_equal(place(ASR_KIND_STATE, 1), -1);
}

/* ... while a write of it is under way, and while it goes into the spool */
static void numbers_given_twice_to_what_is_not_read_yet(void **st)
{
	struct asr_rec *busy;

	asrd_kill();
	cons->tail = prod->head;
	seq = 1;
	put_start();
	put(3);
	busy = put_rec(ASR_KIND_WRITE, 8, NULL, 0);
	busy->state = ASR_REC_BUSY;
	put(8);					/* up to 14 */
	v.count = 0;
	asrd_start();
	g->away_ns = 0;
	await(g->detour && !source_readable(g->source));
	vault_up();
	vault_answers(v.frame_no, 10, true);
	turns(50);
	assert_int_equal(v.count, 0);
	__atomic_store_n(&busy->state, ASR_REC_COMMITTED, __ATOMIC_RELEASE);
	await(({ g->retry_ns = 0; if (!g->open && !g->opening) flow_open(g); v.opening || g->open; }));
	if (v.opening)
		vault_answers(v.frame_no, 10, true);
	await(v.seq == 14);
	assert_int_equal(place_start(), 0);
	assert_int_equal(v.seen[0].seq, 10);
	await(({ vault_acks(); place(ASR_KIND_RESYNC_END, 0) >= 0; }));
	assert_int_equal(v.seen[place(ASR_KIND_WRITE, 0)].seq, 11);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		T(numbers_go_on), T(a_failed_write_that_is_the_last), T(a_failed_write_before_another),
		T(a_disk_that_comes_back_behind_another), T(numbers_given_twice),
		T(numbers_given_twice_to_what_is_not_read_yet),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
