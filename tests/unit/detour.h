// SPDX-License-Identifier: Apache-2.0
/*
 * detour.h - a group of asrd with a ring in a file, a spool and a state folder, all of them real; the
 * vault is played here. For test_detour.c and test_sequence.c.
 */
#ifndef ASR_TEST_DETOUR_H
#define ASR_TEST_DETOUR_H

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
int ship_local_address(const struct ship *s, char out[64]) { return -ENOTCONN; }

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
static inline int place(uint8_t kind, int n)
{
	for (int i = 0; i < v.count; i++)
		if (v.seen[i].kind == kind && !n--)
			return i;
	return -1;
}

/* Where the stream begins anew; -1: nowhere */
static inline int place_start(void)
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

static inline void write_file(const char *path, const void *data, size_t bytes)
{
	assert_int_equal(file_write(path, 0600, data, bytes, NULL), 0);
}

static inline void group_files(void)
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

static inline void on_turn(struct loop_op *op, int res, unsigned int flags)
{
	loop_stop(d.loop);
}

/* The loop for some milliseconds */
static inline void turns(int n)
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

static inline void asrd_start(void)
{
	assert_int_equal(peers_create(&d, ":0", NULL, &d.peers), 0);
	assert_int_equal(group_load_all(&d, NULL), 0);
	g = d.groups;
	assert_non_null(g);
	assert_non_null(g->source);
}

/* As by kill -9: nothing is said to anybody */
static inline void asrd_kill(void)
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

static inline void vault_up(void)
{
	v.up = v.room = true;
	v.broken = false;
	flow_open(g);
	assert_non_null(v.opening);
}

static inline void vault_answers(uint64_t frame_no, uint64_t last_seq, bool consistent)
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
static inline void vault_acks(void)
{
	struct msg_ack ack = { .frame_no = v.frame_no };

	flow_ack(g, &ack);
}

static inline void vault_goes(void)
{
	v.up = v.broken = false;
	flow_close(g);
}

static inline void detour_begins(void)
{
	g->away_ns = 0;
	await(g->detour);
	await(!source_readable(g->source) && !spool_unread(g->spool) == !spool_has_content(g->spool) &&
	      source_tail(g->source) == source_head(g->source));
}

/* ------------------------------------------------------------- the ring */

static inline struct asr_rec *put_rec(uint16_t kind, uint32_t sectors, const void *meta, uint32_t bytes)
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

static inline void put(int n)
{
	while (n--)
		put_rec(ASR_KIND_WRITE, 8, NULL, 0);
}

static inline void put_start(void)
{
	struct asr_rec_state s = { ASR_STATE_CAPTURE, ASR_STATE_CAPTURE, ASR_WHY_START, 0 };
	struct asr_rec_disk k = { .sectors = DISK_BYTES / 512, .name = "bench" };

	put_rec(ASR_KIND_STATE, 0, &s, sizeof(s));
	put_rec(ASR_KIND_DISK, 0, &k, sizeof(k));
}

static inline int dirty_chunks(void)
{
	struct asr_group_info i = { .name = "b" };

	assert_int_equal(source_ioctl(g->source, ASR_IOC_GROUP_INFO, &i), 0);
	return (int)i.dirty_chunks;
}

/* Nothing is dirty, up to 10 is durable, the group is consistent and the vault is not there */
static inline int set_up(void **st)
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

static inline int tear_down(void **st)
{
	char cmd[200];

	asrd_kill();
	turns(0);
	munmap(mem, RING + 2 * PAGE);
	pack_room_destroy(d.room);
	snprintf(cmd, sizeof(cmd), "rm -rf %s", dir);
	return system(cmd);
}

static inline void first_file_goes(void)
{
	char cmd[200];

	snprintf(cmd, sizeof(cmd), "rm $(ls %s/b/*.frames | head -n 1)", spool);
	assert_int_equal(system(cmd), 0);
}

static inline void dirty_set(void)
{
	struct asr_dirty k = { .slot = 0, .chunk = 3, .count = 1 };

	assert_int_equal(source_ioctl(g->source, ASR_IOC_DIRTY_SET, &k), 0);
}

static inline void put_disk(const char *name, uint64_t sectors)
{
	struct asr_rec_disk k = { .sectors = sectors };

	strcpy(k.name, name);
	put_rec(ASR_KIND_DISK, 0, &k, sizeof(k));
}

#define T(f)	cmocka_unit_test_setup_teardown(f, set_up, tear_down)

#endif
