// SPDX-License-Identifier: Apache-2.0
/*
 * The way through the spool and what is remembered of it. What must hold: behind a hole nothing is called
 * consistent, and nothing is thrown away without need.
 */
#include "detour.h"

static void to_and_fro(void **st)
{
	put(20);
	detour_begins();
	asrd_kill();
	put(1);
	asrd_start();
	assert_true(g->detour);
	vault_up();
	vault_answers(v.frame_no, 10, true);
	await(v.seq == 31);
	vault_acks();
	await(!g->detour);
	assert_int_equal(v.count, 21);
	assert_int_equal(dirty_chunks(), 0);
	assert_int_equal(place_start(), -1);
	assert_true(resync_consistent(g->resync));
}

/* The vault comes, takes what begins the stream anew, and is gone before it has said so; then there is
   an outage with records behind the hole. Nothing of them may come before the new beginning. */
static void again_until_durable(uint64_t frame_no, uint64_t last)
{
	await(place_start() >= 0 && place(ASR_KIND_DISK, 0) > place_start());
	vault_goes();
	put(5);
	detour_begins();
	v.count = 0;
	vault_up();
	vault_answers(frame_no, last, true);
	put(1);
	await(v.count && v.seq == seq - 1);
	assert_int_equal(place_start(), 0);
	assert_int_equal(place(ASR_KIND_DISK, 0), 1);
	vault_acks();		/* now it is known */
	vault_goes();
	frame_no = v.frame_no;
	v.count = 0;
	asrd_kill();
	asrd_start();
	vault_up();
	vault_answers(frame_no, seq - 1, false);
	put(1);
	await(v.seq == seq - 1);
	assert_int_equal(place_start(), -1);
}

static void begun_anew_until_durable(void **st)
{
	uint64_t frame_no = v.frame_no;
	char cmd[100];

	put(20);
	detour_begins();
	asrd_kill();
	snprintf(cmd, sizeof(cmd), "rm -r %s", spool);
	assert_int_equal(system(cmd), 0);
	put(1);
	asrd_start();
	vault_up();
	vault_answers(frame_no, 10, true);
	again_until_durable(frame_no, 10);
}

static void discarded_and_killed(void **st)
{
	uint64_t frame_no = v.frame_no;

	put(20);
	detour_begins();
	assert_int_equal(detour_discard(g, NULL), 0);
	put(3);
	detour_begins();
	asrd_kill();
	put(1);
	asrd_start();
	vault_up();
	vault_answers(frame_no, 10, true);
	await(v.seq == seq - 1 || place_start() >= 0);
	assert_int_equal(place_start(), 0);
	again_until_durable(frame_no, 10);
}

static void vault_that_lost_something(void **st)
{
	uint64_t frame_no = v.frame_no - 1;

	vault_up();
	vault_answers(frame_no, 9, true);
	await(place(ASR_KIND_RESYNC_BEGIN, 0) >= 0);
	assert_int_equal(place_start(), 0);
	again_until_durable(frame_no, 9);
}

/* The socket is full, and then the ring: that the stream begins anew is said first, all the same */
static void begun_anew_before_the_detour(void **st)
{
	vault_up();
	v.room = false;
	vault_answers(v.frame_no - 1, 10, true);
	for (int i = 0; i < 9; i++)
		put_rec(ASR_KIND_WRITE, 128, NULL, 0);
	turns(200);
	assert_false(g->detour);
	v.room = true;
	await(v.seq == seq - 1);
	assert_int_equal(place_start(), 0);
	assert_int_equal(place(ASR_KIND_DISK, 0), 1);
	await(({ vault_acks(); place(ASR_KIND_RESYNC_END, 0) >= 0; }));
	assert_false(g->over);
}

static void somebody_elses_spool_stays(void **st)
{
	char path[100];

	assert_int_equal(group_save_state(g, NULL), 0);
	asrd_kill();
	snprintf(path, sizeof(path), "%s/b", spool);
	assert_int_equal(dir_make(path, 0700, NULL), 0);
	snprintf(path, sizeof(path), "%s/b/header", spool);
	write_file(path, "not mine", 8);
	asrd_start();
	vault_up();
	vault_answers(v.frame_no - 1, 9, true);
	await(place(ASR_KIND_RESYNC_BEGIN, 0) > place_start());
	assert_int_equal(place_start(), 0);
	assert_int_equal(access(path, F_OK), 0);
	assert_int_equal(detour_discard(g, NULL), 0);	/* by name, it goes */
	assert_int_not_equal(access(path, F_OK), 0);
}

static void a_spool_without_its_first_file(void **st)
{
	put_rec(ASR_KIND_FLUSH, 0, NULL, 0)->state = ASR_REC_DISCARDED;		/* this is no hole */
	for (int i = 0; i < 3; i++) {		/* a file each */
		put(20);
		detour_begins();
		asrd_kill();
		asrd_start();
	}
	vault_up();
	vault_answers(v.frame_no, 10, true);
	await(v.seq == 71);
	assert_int_equal(v.count, 60);
	assert_int_equal(place_start(), -1);
	vault_goes();				/* it has not said that they are durable */
	asrd_kill();
	first_file_goes();
	asrd_start();
	put(5);
	detour_begins();			/* what comes meanwhile hides nothing */
	asrd_kill();
	asrd_start();
	v.count = 0;
	vault_up();
	vault_answers(v.frame_no, 10, true);
	put(1);
	await(v.count && v.seq == seq - 1);
	assert_int_equal(place_start(), 0);
}

static void files_that_the_vault_has_are_not_missed(void **st)
{
	for (int i = 0; i < 3; i++) {
		put(20);
		detour_begins();
		asrd_kill();
		asrd_start();
	}
	vault_up();
	vault_answers(v.frame_no, 10, true);
	await(v.seq == 70);
	vault_goes();
	asrd_kill();
	asrd_start();
	vault_up();
	vault_answers(v.frame_no, 45, true);	/* the third file goes on behind 50 */
	await(spool_last_seq(g->spool) == 70);
	v.seq = 45;
	await(v.seq == 70);
	vault_acks();
	await(!g->detour);
	assert_int_equal(place_start(), -1);
}

/* The spool is gone, and it is used again before the vault is back */
static void a_spool_that_is_gone(void **st)
{
	char cmd[100];

	put(20);
	detour_begins();
	asrd_kill();
	snprintf(cmd, sizeof(cmd), "rm -r %s", spool);
	assert_int_equal(system(cmd), 0);
	put(1);
	for (int i = 0; i < 2; i++) {
		asrd_start();
		g->away_ns = 0;
		put(5);
		turns(500);
		assert_false(spool_has_content(g->spool));	/* it would hide that something is missing */
		asrd_kill();
	}
	asrd_start();
	vault_up();
	vault_answers(v.frame_no, 10, true);
	put(1);
	await(v.count && v.seq == seq - 1);
	assert_int_equal(place_start(), 0);
}

/* The host goes down and comes up twice without a vault, and the power cut takes the spool of the first time, or not */
static void two_boots_without_a_vault(void **st)
{
	char cmd[100];

	snprintf(cmd, sizeof(cmd), "rm %s/b/*.frames", spool);
	for (int lost = 0; lost < 2; lost++) {
		v.count = 0;
		for (int boot = 0; boot < 3; boot++) {
			asrd_kill();
			cons->tail = prod->head;
			if (lost && boot == 1)
				assert_int_equal(system(cmd), 0);
			seq += 1000;
			put_start();
			put(5);
			asrd_start();
			if (boot < 2)
				detour_begins();
		}
		vault_up();
		vault_answers(v.frame_no, v.seq, true);
		await(v.seq == seq - 1);
		assert_false(g->over);
		assert_int_equal(dirty_chunks(), 0);
		await(({ vault_acks(); place(ASR_KIND_RESYNC_END, 0) >= 0; }));
		vault_acks();
		turns(2);
		vault_goes();
	}
}

/* A chunk is dirty for a reason that no record tells, and the vault's slowness keeps that from being said */
static void not_consistent_when_it_begins(void **st)
{
	vault_up();
	vault_answers(v.frame_no, 10, true);
	turns(5);
	v.room = false;
	dirty_set();
	flow_check(g);
	for (int i = 0; i < 9; i++)
		put_rec(ASR_KIND_WRITE, 128, NULL, 0);
	await(g->detour);
	v.room = true;
	await(v.seq == 19);
	assert_int_equal(place(ASR_KIND_RESYNC_BEGIN, 0), 0);
	await(({ vault_acks(); place(ASR_KIND_RESYNC_END, 0) >= 0; }));
	vault_acks();
	assert_true(resync_consistent(g->resync));
}

/* A write that the lower device failed, while all goes into the spool */
static void a_failed_write_on_the_detour(void **st)
{
	put(3);
	put_rec(ASR_KIND_WRITE, 8, NULL, 0)->state = ASR_REC_DISCARDED;
	dirty_set();
	put(3);
	put_rec(ASR_KIND_WRITE, 8, NULL, 0)->state = ASR_REC_DISCARDED;
	detour_begins();
	vault_up();
	vault_answers(v.frame_no, 10, true);
	await(place(ASR_KIND_RESYNC_BEGIN, 1) >= 0);
	assert_int_equal(place(ASR_KIND_RESYNC_BEGIN, 0), 3);
	assert_int_equal(v.seen[4].seq, 15);
	await(({ vault_acks(); place(ASR_KIND_RESYNC_END, 0) >= 0; }));
	assert_true(place(ASR_KIND_SYNC_ZEROES, 0) > place(ASR_KIND_WRITE, 5));
}

/* What only fills the ring up is none */
static void a_pad_is_no_failed_write(void **st)
{
	dirty_set();		/* as in TRACK, of which a record behind will tell */
	put(3);
	put_rec(0, 0, NULL, 0)->state = ASR_REC_DISCARDED;
	put(3);
	detour_begins();
	vault_up();
	vault_answers(v.frame_no, 10, true);
	await(place(ASR_KIND_RESYNC_BEGIN, 0) >= 0);
	assert_int_equal(place(ASR_KIND_RESYNC_BEGIN, 0), 6);
}

/* No file may be opened for a while: that is no damage */
static void a_reader_without_a_descriptor(void **st)
{
	struct rlimit old, none;

	put(20);
	detour_begins();
	vault_up();
	assert_int_equal(getrlimit(RLIMIT_NOFILE, &old), 0);
	none = (struct rlimit){ 0, old.rlim_max };
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &none), 0);
	vault_answers(v.frame_no, 10, true);
	for (int i = 0; i < 20; i++) {
		g->spool_read_ns = 0;
		turns(2);
	}
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &old), 0);
	assert_int_equal(v.count, 0);
	g->spool_read_ns = 0;
	await(v.seq == 30);
	assert_int_equal(v.count, 20);
	assert_int_equal(place_start(), -1);
}

/* What cannot be read at all is tried some times, and then given up */
static void a_spool_that_cannot_be_read(void **st)
{
	char cmd[200];

	put(20);
	detour_begins();
	vault_up();
	snprintf(cmd, sizeof(cmd), "cd %s/b && f=$(ls *.frames) && rm $f && ln -s /dev/null $f", spool);
	assert_int_equal(system(cmd), 0);
	vault_answers(v.frame_no, 10, true);
	turns(5);
	assert_int_equal(place_start(), -1);
	await(({ g->spool_read_ns = 0; place_start() >= 0; }));
	assert_int_equal(place_start(), 0);
	assert_int_equal(v.seen[1].kind, ASR_KIND_DISK);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		T(to_and_fro), T(begun_anew_until_durable), T(discarded_and_killed),
		T(vault_that_lost_something), T(begun_anew_before_the_detour), T(somebody_elses_spool_stays),
		T(a_spool_without_its_first_file), T(files_that_the_vault_has_are_not_missed),
		T(a_spool_that_is_gone), T(two_boots_without_a_vault), T(not_consistent_when_it_begins),
		T(a_failed_write_on_the_detour), T(a_pad_is_no_failed_write), T(a_reader_without_a_descriptor),
		T(a_spool_that_cannot_be_read),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
