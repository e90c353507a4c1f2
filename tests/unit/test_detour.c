// SPDX-License-Identifier: Apache-2.0
/*
 * The way through the spool and what is remembered of it: a group of asrd with a ring in a file, a
 * spool and a state folder, all of them real; the vault is played here. What must hold: behind a hole
 * nothing is called consistent, and nothing is thrown away without need.
 */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <cmocka.h>

#include "source.h"

#define PAGE	4096
#define RING	ASR_RING_MIN
#define DISK_BYTES	(4u << 20)

/* ------------------------------------------------------------- the vault */

#define SEEN_MAX	8192

struct seen {
	uint64_t seq, frame_no;
	uint8_t kind, disk;
	uint32_t reason;
};

static struct {
	bool up, room, broken;
	ship_done *opening;
	void *arg;
	uint64_t frame_no, seq;		/* of the last that came */
	struct seen seen[SEEN_MAX];
	int count;
} v;

bool ship_is_up(const struct ship *s) { return v.up; }
bool ship_has_room(const struct ship *s) { return v.up && v.room; }
void ship_break(struct ship *s, const char *why) { v.broken = true; }
uint64_t ship_bytes(const struct ship *s) { return 0; }
json_t *ship_status(const struct ship *s) { return json_object(); }
void ship_forget(struct ship *s, void *arg) { }

int ship_call(struct ship *s, const char *method, json_t *parameters, ship_done *done, void *arg)
{
	json_decref(parameters);
	if (strcmp(method, "stream.open"))
		return -ENOTCONN;
	v.opening = done;
	v.arg = arg;
	return 0;
}

int ship_frame(struct ship *s, const uint8_t *frame, size_t bytes)
{
	struct frame_view f;
	struct why why;

	if (v.broken)
		return -EPIPE;
	assert_int_equal(wire_frame_parse(frame, bytes, &f, &why), 0);
	assert_int_equal(f.hdr.frame_no, v.frame_no + 1);
	assert_true(f.hdr.first_seq >= v.seq);
	for (uint32_t i = 0; i < f.hdr.records; i++) {
		const struct frame_rec *r = &f.recs[i];

		assert_true(v.count < SEEN_MAX);
		v.seen[v.count++] = (struct seen){ r->seq, f.hdr.frame_no, r->kind, (uint8_t)r->disk,
						   r->kind == ASR_KIND_STATE ? wire_state(&f, r)->reason : 0 };
	}
	v.frame_no = f.hdr.frame_no;
	v.seq = f.hdr.last_seq;
	return 0;
}

/* Place of the n-th record of a kind among all that came; -1: there is none */
static int place(uint8_t kind, int n)
{
	for (int i = 0; i < v.count; i++)
		if (v.seen[i].kind == kind && !n--)
			return i;
	return -1;
}

/* Where the stream begins anew; -1: nowhere */
static int place_start(void)
{
	for (int i = 0; i < v.count; i++)
		if (v.seen[i].kind == ASR_KIND_STATE && v.seen[i].reason == ASR_WHY_START)
			return i;
	return -1;
}

/* -------------------------------------------------------------- the host */

static struct asrd d;
static struct group *g;
static char dir[64], ring[80], disk[80], state[80], spool[80];
static uint8_t *mem;
static struct asr_ring_consumer *cons;
static struct asr_ring_producer *prod;
static uint64_t seq;

static void write_file(const char *path, const void *data, size_t bytes)
{
	assert_int_equal(file_write(path, 0600, data, bytes, NULL), 0);
}

static void group_files(void)
{
	const char *text = "{\"name\": \"b\", \"uuid\": \"11111111111111111111111111111111\", \"stream\": "
			   "\"22222222222222222222222222222222\", \"generation\": 1, \"ring_bytes\": 1048576, "
			   "\"compression\": 0, \"pending\": false, \"recipients\": []}";
	char path[160];
	uint8_t key[ASR_KEY_BYTES] = { 7 };

	snprintf(path, sizeof(path), "%s/groups/b", state);
	assert_int_equal(dir_make(path, 0700, NULL), 0);
	snprintf(path, sizeof(path), "%s/groups/b/group.json", state);
	write_file(path, text, strlen(text));
	snprintf(path, sizeof(path), "%s/groups/b/data.key", state);
	write_file(path, key, sizeof(key));
	text = "{\"first_seq\": 1, \"last_seq\": 0, \"was_consistent\": true}";
	snprintf(path, sizeof(path), "%s/groups/b/state.json", state);
	write_file(path, text, strlen(text));
}

static void on_turn(struct loop_op *op, int res, unsigned int flags)
{
	loop_stop(d.loop);
}

/* The loop for some milliseconds */
static void turns(int n)
{
	struct loop_op op = { .done = on_turn };

	for (int i = 0; i < n; i++) {
		flow_kick(g);
		loop_timeout(d.loop, &op, 1000000);
		assert_int_equal(loop_run(d.loop), 0);
	}
}

#define await(what) do { \
	for (int n_ = 0; !(what); n_++) { \
		if (n_ > 10000) \
			fail_msg("%s:%d: not so in the end: %s", __FILE__, __LINE__, #what); \
		turns(1); \
	} \
} while (0)

static void asrd_start(void)
{
	assert_int_equal(group_load_all(&d, NULL), 0);
	g = d.groups;
	assert_non_null(g);
	assert_non_null(g->source);
}

/* As by kill -9: nothing is said to anybody */
static void asrd_kill(void)
{
	turns(5);
	if (v.up)
		v.up = v.broken = false;
	d.groups = NULL;
	spool_close(g->spool);
	resync_destroy(g->resync);
	compare_destroy(g->compare);
	source_close(g->source, NULL, NULL);
	pack_end(&g->pack);
	g = NULL;
	v.opening = NULL;
}

static void vault_up(void)
{
	v.up = v.room = true;
	v.broken = false;
	flow_open(g);
	assert_non_null(v.opening);
}

static void vault_answers(uint64_t frame_no, uint64_t last_seq, bool consistent)
{
	ship_done *done = v.opening;
	struct why why = { "" };
	json_t *p = json_pack("{s:I, s:I, s:s, s:b, s:I, s:[{s:i, s:s}]}", "frame_no", (json_int_t)frame_no,
			      "last_seq", (json_int_t)last_seq, "last_tag", "00112233445566778899aabbccddeeff",
			      "consistent", consistent, "generation", 1, "disks", "slot", 0, "name", "bench");

	v.frame_no = frame_no;
	v.seq = last_seq;
	v.opening = NULL;
	done(0, p, &why, v.arg);
	json_decref(p);
}

/* All that has come is durable */
static void vault_acks(void)
{
	struct msg_ack ack = { .frame_no = v.frame_no };

	flow_ack(g, &ack);
}

static void vault_goes(void)
{
	v.up = v.broken = false;
	flow_close(g);
}

static void detour_begins(void)
{
	g->away_ns = 0;
	await(g->detour);
	await(!source_readable(g->source) && !spool_unread(g->spool) == !spool_has_content(g->spool) &&
	      source_tail(g->source) == source_head(g->source));
}

/* ------------------------------------------------------------- the ring */

static struct asr_rec *put_rec(uint16_t kind, uint32_t sectors, const void *meta, uint32_t bytes)
{
	struct asr_rec *r = (struct asr_rec *)(mem + 2 * PAGE + (prod->head & (RING - 1)));
	uint32_t payload = meta ? bytes : kind == ASR_KIND_WRITE ? sectors * 512 : 0;
	uint32_t whole = (uint32_t)(sizeof(*r) + payload + ASR_REC_ALIGN - 1) & ~(ASR_REC_ALIGN - 1);

	assert_true(prod->head + whole - cons->tail <= RING);
	*r = (struct asr_rec){ .state = ASR_REC_COMMITTED, .bytes = whole, .pos = prod->head, .seq = seq,
			       .time_ns = now_real_ns(), .sectors = sectors, .payload_bytes = payload, .kind = kind };
	for (uint32_t i = 0; i < payload; i++)
		mem[2 * PAGE + ((prod->head + sizeof(*r) + i) & (RING - 1))] =
			meta ? ((const uint8_t *)meta)[i] : (uint8_t)seq;
	prod->head += whole;
	seq++;
	return r;
}

static void put(int n)
{
	while (n--)
		put_rec(ASR_KIND_WRITE, 8, NULL, 0);
}

static void put_start(void)
{
	struct asr_rec_state s = { ASR_STATE_CAPTURE, ASR_STATE_CAPTURE, ASR_WHY_START, 0 };
	struct asr_rec_disk k = { .sectors = DISK_BYTES / 512, .name = "bench" };

	put_rec(ASR_KIND_STATE, 0, &s, sizeof(s));
	put_rec(ASR_KIND_DISK, 0, &k, sizeof(k));
}

static int dirty_chunks(void)
{
	struct asr_group_info i = { .name = "b" };

	assert_int_equal(source_ioctl(g->source, ASR_IOC_GROUP_INFO, &i), 0);
	return (int)i.dirty_chunks;
}

/* Nothing is dirty, up to 10 is durable, the group is consistent and the vault is not there */
static int set_up(void **st)
{
	struct stat s;
	char map[96];
	int fd;

	memset(&v, 0, sizeof(v));
	memset(&d, 0, sizeof(d));
	strcpy(dir, access("/dev/shm", W_OK) ? "/tmp/asr-detour-XXXXXX" : "/dev/shm/asr-detour-XXXXXX");
	if (!mkdtemp(dir) || stat(dir, &s))
		return -1;
	snprintf(ring, sizeof(ring), "%s/ring", dir);
	snprintf(disk, sizeof(disk), "%s/disk", dir);
	snprintf(map, sizeof(map), "%s/disk.dirty", dir);
	snprintf(state, sizeof(state), "%s/state", dir);
	snprintf(spool, sizeof(spool), "%s/spool", dir);
	fd = open(ring, O_RDWR | O_CREAT, 0600);
	if (fd < 0 || ftruncate(fd, RING + 2 * PAGE))
		return -1;
	mem = mmap(NULL, RING + 2 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	close(fd);
	cons = (void *)mem;
	prod = (void *)(mem + PAGE);
	prod->state = ASR_STATE_CAPTURE;
	fd = open(disk, O_RDWR | O_CREAT, 0600);
	if (fd < 0 || ftruncate(fd, DISK_BYTES) || close(fd))
		return -1;
	fd = open(map, O_RDWR | O_CREAT, 0600);		/* all clean */
	if (fd < 0 || ftruncate(fd, DISK_BYTES / (ASR_CHUNK_SECTORS * 512)) || close(fd))
		return -1;
	d = (struct asrd){ .state_dir = state, .ring_file = ring, .ring_disk = disk, .spool_dir = spool,
			   .spool_max = 1ull << 30, .batch_delay_ns = 1000000 };
	log_init("test", 0);
	if (loop_create(&d.loop, 64) || pack_room_create(&d.room))
		return -1;
	d.idle = (struct loop_idle){ .fn = flow_run_all, .arg = &d };
	loop_idle_add(d.loop, &d.idle);
	group_files();
	seq = 1;
	asrd_start();
	put_start();
	put(8);
	vault_up();
	vault_answers(0, 0, false);
	await(v.seq == 10 && place(ASR_KIND_RESYNC_BEGIN, 0) >= 0);
	await(({ vault_acks(); place(ASR_KIND_RESYNC_END, 0) >= 0; }));
	vault_acks();
	turns(2);
	assert_true(resync_consistent(g->resync));
	assert_int_equal(dirty_chunks(), 0);
	vault_goes();
	v.count = 0;
	return 0;
}

static int tear_down(void **st)
{
	char cmd[200];

	asrd_kill();
	turns(0);
	munmap(mem, RING + 2 * PAGE);
	pack_room_destroy(d.room);
	snprintf(cmd, sizeof(cmd), "rm -rf %s", dir);
	return system(cmd);
}

/* ----------------------------------------------------------------- tests */

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

static void first_file_goes(void)
{
	char cmd[200];

	snprintf(cmd, sizeof(cmd), "rm $(ls %s/b/*.frames | head -n 1)", spool);
	assert_int_equal(system(cmd), 0);
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

static void dirty_set(void)
{
	struct asr_dirty k = { .slot = 0, .chunk = 3, .count = 1 };

	assert_int_equal(source_ioctl(g->source, ASR_IOC_DIRTY_SET, &k), 0);
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

/* ... and straight, as the last that was written: the copy without it keeps the number that it had */
static void a_failed_write_that_is_the_last(void **st)
{
	put(3);
	vault_up();
	vault_answers(v.frame_no, 10, true);
	await(v.seq == 13);
	vault_acks();
	put_rec(ASR_KIND_WRITE, 8, NULL, 0)->state = ASR_REC_DISCARDED;
	dirty_set();
	await(({ vault_acks(); place(ASR_KIND_RESYNC_END, 0) >= 0; }));
	assert_int_equal(v.seen[place(ASR_KIND_RESYNC_BEGIN, 0)].seq, 14);
	assert_int_equal(v.seq, 14);
}

/* ... or before another: that one is no point, for the copy lacks what the failed one left on the disk */
static void a_failed_write_before_another(void **st)
{
	put(3);
	vault_up();
	vault_answers(v.frame_no, 10, true);
	await(v.seq == 13);
	vault_acks();
	put_rec(ASR_KIND_WRITE, 8, NULL, 0)->state = ASR_REC_DISCARDED;
	dirty_set();
	put(1);
	await(v.seq == 15);
	assert_int_equal(place(ASR_KIND_RESYNC_BEGIN, 0), 3);
	assert_int_equal(v.seen[3].seq, 14);
	assert_int_equal(place(ASR_KIND_WRITE, 3), 4);
	await(({ vault_acks(); place(ASR_KIND_RESYNC_END, 0) >= 0; }));
}

static void put_disk(const char *name, uint64_t sectors)
{
	struct asr_rec_disk k = { .sectors = sectors };

	strcpy(k.name, name);
	put_rec(ASR_KIND_DISK, 0, &k, sizeof(k));
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
#define T(f)	cmocka_unit_test_setup_teardown(f, set_up, tear_down)
		T(to_and_fro), T(begun_anew_until_durable), T(discarded_and_killed), T(vault_that_lost_something),
		T(begun_anew_before_the_detour), T(somebody_elses_spool_stays), T(a_spool_without_its_first_file),
		T(numbers_go_on), T(files_that_the_vault_has_are_not_missed), T(a_spool_that_is_gone),
		T(two_boots_without_a_vault), T(not_consistent_when_it_begins), T(a_failed_write_on_the_detour),
		T(a_pad_is_no_failed_write),
		T(a_failed_write_that_is_the_last), T(a_failed_write_before_another),
		T(a_disk_that_comes_back_behind_another), T(numbers_given_twice),
		T(numbers_given_twice_to_what_is_not_read_yet), T(a_reader_without_a_descriptor),
		T(a_spool_that_cannot_be_read),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
