// SPDX-License-Identifier: Apache-2.0
/* The loop over the dirty map: a kernel with one disk of some chunks, and a vault, played here. */
#include <errno.h>
#include <fcntl.h>

#include "frames.h"
#include "resync.h"

#define CHUNKS		560u			/* 35 MiB: two windows */
#define CHUNK		65536u
#define SECTORS		(CHUNKS * ASR_CHUNK_SECTORS)

/* What resync.c wants of source.c */
static struct {
	uint64_t pos, head;
	uint8_t dirty[CHUNKS], taken[CHUNKS];
	int fetched, returned, acked;
	char file[64];
} k;

uint64_t source_pos(const struct source *s) { return k.pos; }
uint64_t source_head(const struct source *s) { return k.head; }
uint64_t source_tail(const struct source *s) { return k.pos; }
uint64_t source_bytes(const struct source *s) { return 64 * ASR_RING_MIN; }
uint32_t source_state(const struct source *s) { return ASR_STATE_CAPTURE; }
bool source_is_file(const struct source *s) { return false; }
const char *source_disk_file(const struct source *s, uint32_t slot) { return k.file; }

static int marked(void)
{
	int n = 0;

	for (uint32_t i = 0; i < CHUNKS; i++)
		n += k.dirty[i] || k.taken[i];
	return n;
}

static int dirty_fetch(struct asr_dirty *d)
{
	uint64_t n = 0;

	if (d->slot)
		return -ENOENT;
	while (d->chunk < CHUNKS && !k.dirty[d->chunk])
		d->chunk++;
	if (d->chunk >= CHUNKS)
		return -ENODATA;
	for (; n < d->count && d->chunk + n < CHUNKS && k.dirty[d->chunk + n]; n++) {
		k.dirty[d->chunk + n] = 0;
		k.taken[d->chunk + n] = 1;
	}
	d->count = n;
	k.fetched++;
	return 0;
}

int source_ioctl(struct source *s, unsigned long request, void *arg)
{
	struct asr_dirty *d = arg;

	switch (request) {
	case ASR_IOC_GROUP_INFO: {
		struct asr_group_info *i = arg;

		i->disks = 1;
		i->dirty_chunks = (uint64_t)marked();
		return 0;
	}
	case ASR_IOC_DISK_INFO: {
		struct asr_disk_info *i = arg;

		i->active = !i->slot;
		i->sectors = SECTORS;
		strcpy(i->name, "data");
		return i->slot ? -ENOENT : 0;
	}
	case ASR_IOC_DIRTY_FETCH:
		return dirty_fetch(d);
	case ASR_IOC_DIRTY_SET:
		memset(k.dirty + d->chunk, 1, d->count);
		k.returned++;
		return 0;
	case ASR_IOC_DIRTY_ACK:
		memset(k.taken + d->chunk, 0, d->count);
		k.acked++;
		return 0;
	case ASR_IOC_DIRTY_RETURN:
		for (uint32_t i = 0; i < CHUNKS; i++) {
			k.dirty[i] |= k.taken[i];
			k.taken[i] = 0;
		}
		return 0;
	}
	return 0;
}

/* ------------------------------------------------------- the stream, the vault */

static struct {
	int emitted[64];
	uint64_t frames, data_sectors, zero_sectors, records;
	bool full;			/* no room on the connection */
	uint8_t *copy;			/* what the vault holds after all this, SECTORS * 512 */
} out;

/* As the batch does it: what is emitted is pointed at, until its frame is sealed */
static struct {
	struct asr_rec rec[64];
	const uint8_t *payload[64];
	uint32_t count, bytes;
} batch;

static void seal_batch(void)
{
	for (uint32_t i = 0; i < batch.count; i++) {
		const struct asr_rec *rec = &batch.rec[i];

		out.emitted[rec->kind]++;
		out.records++;
		if (rec->kind == ASR_KIND_SYNC) {
			out.data_sectors += rec->sectors;
			memcpy(out.copy + rec->sector * 512, batch.payload[i], rec->sectors * 512ul);
		} else if (rec->kind == ASR_KIND_SYNC_ZEROES) {
			out.zero_sectors += rec->sectors;
			memset(out.copy + rec->sector * 512, 0, rec->sectors * 512ul);
		}
	}
	out.frames += batch.count > 0;
	batch.count = batch.bytes = 0;
}

static int emit(void *arg, const struct asr_rec *rec, const uint8_t *payload, uint64_t *frame_no)
{
	if (out.full)
		return -EAGAIN;
	if (!rec || batch.count == 64 || batch.bytes + rec->payload_bytes > ASR_FRAME_PAYLOAD)
		seal_batch();
	*frame_no = out.frames;
	if (!rec)
		return 0;
	batch.rec[batch.count] = *rec;
	batch.payload[batch.count++] = payload;
	batch.bytes += rec->payload_bytes;
	++*frame_no;
	return 0;
}

static void kick(void *arg)
{
}

/* One digest.map call at a time is kept, and answered when a test says so */
static struct {
	struct map_ask ask[16];
	ship_done *done[16];
	void *arg[16];
	int count;
} calls;

int ship_call(struct ship *s, const char *method, json_t *p, ship_done *done, void *arg)
{
	assert_string_equal(method, "digest.map");
	assert_true(calls.count < 16);
	assert_int_equal(wire_map_ask(p, &calls.ask[calls.count], NULL), 0);
	calls.done[calls.count] = done;
	calls.arg[calls.count++] = arg;
	json_decref(p);
	return 0;
}

void ship_forget(struct ship *s, void *arg)
{
	for (int i = 0; i < calls.count; i++)
		if (calls.arg[i] == arg)
			calls.done[i] = NULL;
}

static struct maker *m;
static uint8_t key[ASR_KEY_BYTES];

/* A map as the vault sends it: of content, MAP_DATA in frames of 1 MiB; zero blocks as zeroes */
static uint8_t *make_map(const struct map_ask *ask, const uint8_t *content, uint64_t frame_no, size_t *bytes)
{
	uint8_t *body = aligned_alloc(8, MAP_BYTES_MAX), *frames = malloc(MAP_BYTES_MAX), *at = frames;
	struct msg_map *h = (void *)body;
	struct map_extent *e = (void *)(h + 1);

	*h = (struct msg_map){ .frame_no = frame_no, .sector = ask->sector, .disk = ask->disk };
	memcpy(h->stream, ask->stream, 16);
	for (uint64_t s = ask->sector; s < ask->sector + ask->sectors; s += e++->sectors, h->extents++) {
		uint32_t n = ask->sectors - (uint32_t)(s - ask->sector) < 2048 ?
			     ask->sectors - (uint32_t)(s - ask->sector) : 2048;

		*e = (struct map_extent){ .sectors = n, .kind = MAP_ZEROES };
		if (batch_is_zero(content + s * 512, n * 512ul))
			continue;
		make_data(m, ASR_KIND_WRITE, 0, s, n, 0);
		memcpy(m->payload, content + s * 512, n * 512ul);
		m->frame_no = frame_no - 1;
		make_frame(m);
		*e = (struct map_extent){ .sectors = n, .kind = MAP_DATA, .frame = h->frames++ };
		memcpy(at, m->frame, sizeof(struct frame_hdr));
		at += sizeof(struct frame_hdr);
		memcpy(at, m->frame + sizeof(struct frame_hdr) + sizeof(struct frame_rec), n / 8 * 16 + 16);
		at += n / 8 * 16 + 16;
	}
	h->sectors = ask->sectors;
	memcpy(e, frames, (size_t)(at - frames));
	*bytes = (size_t)((uint8_t *)e - body) + (size_t)(at - frames);
	free(frames);
	return body;
}

static struct {
	struct loop *loop;
	struct compare *compare;
	struct resync *r;
	uint8_t *disk, *vault;		/* contents */
	const char *missing;
	uint64_t vault_frame;
} t;

/* The oldest call; who has given up waiting gets a map all the same */
static void answer_one(int err, const char *why)
{
	struct map_ask ask = calls.ask[0];
	ship_done *done = calls.done[0];
	void *arg = calls.arg[0];
	struct why w;
	size_t bytes;

	calls.count--;
	memmove(calls.ask, calls.ask + 1, sizeof(calls.ask) - sizeof(ask));
	memmove(calls.done, calls.done + 1, sizeof(calls.done) - sizeof(done));
	memmove(calls.arg, calls.arg + 1, sizeof(calls.arg) - sizeof(arg));
	if (!err) {
		uint8_t *body = make_map(&ask, t.vault, t.vault_frame, &bytes);

		assert_int_equal(compare_map(t.compare, body, bytes), 0);
		free(body);
	}
	why_set(&w, EIO, "%s", why ? why : "");
	if (done)
		done(err, NULL, &w, arg);
}

static void answer_all(int err, const char *why)
{
	while (calls.count)
		answer_one(err, why);
}

static const char *missing(void *arg)
{
	return t.missing;
}

static void content_make(void)
{
	t.disk = malloc(SECTORS * 512ul);
	t.vault = malloc(SECTORS * 512ul);
	out.copy = malloc(SECTORS * 512ul);
	for (uint64_t i = 0; i < SECTORS * 64ul; i++)
		((uint64_t *)t.disk)[i] = (i + 1) * 0x9e3779b97f4a7c15ull;
	memset(t.disk + 200 * CHUNK, 0, 100 * CHUNK);
	memcpy(t.vault, t.disk, SECTORS * 512ul);
}

/* Always the same content: written once, for that takes longer than all else */
static char file[64];

static void disk_write(void)
{
	int fd;

	memcpy(out.copy, t.vault, SECTORS * 512ul);
	if (!*file) {
		snprintf(file, sizeof(file), "/tmp/asr-test-resync-XXXXXX");
		fd = mkstemp(file);
		assert_true(fd >= 0);
		assert_int_equal(write(fd, t.disk, SECTORS * 512ul), (ssize_t)(SECTORS * 512));
		close(fd);
	}
	memcpy(k.file, file, sizeof(file));
}

static void begin(void)
{
	struct resync_args a = { .group = "g", .emit = emit, .kick = kick, .missing = missing };

	memset(&k, 0, sizeof(k));
	memset(&out, 0, sizeof(out));
	memset(&calls, 0, sizeof(calls));
	memset(&t, 0, sizeof(t));
	batch.count = batch.bytes = 0;
	if (!m)
		m = maker_new();
	memcpy(key, m->key, sizeof(key));
	content_make();
	t.vault_frame = out.frames = 2;
	assert_int_equal(loop_create(&t.loop, 64), 0);
	assert_int_equal(compare_create(NULL, "g", m->stream, key, kick, NULL, &t.compare), 0);
	a.loop = t.loop;
	a.compare = t.compare;
	assert_int_equal(resync_create(&a, &t.r), 0);
}

static void end(void)
{
	resync_destroy(t.r);
	compare_destroy(t.compare);
	loop_destroy(t.loop);
	free(t.disk);
	free(t.vault);
	free(out.copy);
}

static void stop_done(struct loop_op *op, int res, unsigned int flags)
{
	loop_stop(op->arg);
}

/* One turn of the loop, a millisecond */
static void turn(void)
{
	struct loop_op op = { .done = stop_done, .arg = t.loop };

	loop_timeout(t.loop, &op, 1000000);
	loop_run(t.loop);
}

static enum resync_go step(void)
{
	enum resync_go go;

	while ((go = resync_step(t.r, k.pos < k.head)) == RESYNC_AGAIN)
		;
	return go;
}

/* Until END is in the stream, or so many turns have passed */
static bool run(int turns)
{
	while (turns-- && !out.emitted[ASR_KIND_RESYNC_END]) {
		if (step() == RESYNC_FREE)
			seal_batch();	/* its time is up */
		answer_all(0, NULL);
		turn();
	}
	return out.emitted[ASR_KIND_RESYNC_END];
}

static void open_all_dirty(void)
{
	disk_write();
	memset(k.dirty, 1, sizeof(k.dirty));
	resync_open(t.r, false, 2);
}

/* What stands before a disk's record is, at the vault, the disk's that had the slot before. */
static void waits_for_the_disks_record(void **state)
{
	begin();
	disk_write();
	k.head = 4096;			/* its DISK record is in there, not yet consumed */
	k.dirty[0] = 1;
	resync_open(t.r, false, 0);
	step();
	seal_batch();
	assert_int_equal(out.emitted[ASR_KIND_RESYNC_BEGIN], 1);
	assert_int_equal(k.fetched, 1);
	assert_int_equal(k.returned, 1);
	assert_true(k.dirty[0]);
	/* soon again, not after the pause that an unreadable device gets */
	assert_true(resync_due(t.r) && resync_due(t.r) < now_ns() + 100000000);
	assert_int_equal(out.emitted[ASR_KIND_SYNC] + out.emitted[ASR_KIND_SYNC_ZEROES], 0);
	assert_int_equal(out.emitted[ASR_KIND_RESYNC_END], 0);
	end();
}

static void equal_disks_ship_nothing(void **state)
{
	begin();
	open_all_dirty();
	assert_true(run(10000));
	assert_int_equal(out.records, 2);	/* BEGIN and END */
	resync_acked(t.r, out.frames);
	assert_int_equal(marked(), 0);
	assert_true(resync_consistent(t.r));
	end();
}

/* What equals the vault's copy is clean only when that copy is durable */
static void same_is_not_yet_durable(void **state)
{
	begin();
	t.vault_frame = 5000;
	open_all_dirty();
	assert_true(run(10000));
	assert_int_equal(marked(), CHUNKS);
	resync_acked(t.r, 4999);
	assert_int_equal(marked(), CHUNKS);
	resync_acked(t.r, 5000);
	assert_int_equal(marked(), 0);
	end();
}

static void only_what_differs_travels(void **state)
{
	uint64_t blocks = 0;

	begin();
	for (uint32_t i = 3; i < SECTORS / 8; i += 97, blocks++) {
		t.vault[i * 4096ul + i % 4096] ^= 1;
		if (i % 2) {		/* and its neighbour: one record for both */
			t.vault[(i + 1) * 4096ul] ^= 1;
			blocks++;
		}
	}
	open_all_dirty();
	assert_true(run(10000));
	assert_int_equal(out.data_sectors + out.zero_sectors, blocks * 8);
	assert_true(out.zero_sectors > 0);
	/* neighbours in one record; a pair may be cut at the end of a read */
	assert_in_range(out.records - 2, blocks * 2 / 3 - 1, blocks * 2 / 3 + blocks / 50 + 4);
	assert_memory_equal(out.copy, t.disk, SECTORS * 512ul);
	resync_acked(t.r, out.frames);
	assert_int_equal(marked(), 0);
	assert_true(resync_consistent(t.r));
	end();
}

/* A record that came into the stream after the question: the answer is old there */
static void spoiled_chunks_travel(void **state)
{
	begin();
	open_all_dirty();
	assert_int_equal(step(), RESYNC_FREE);
	assert_true(calls.count > 1);
	compare_saw(t.compare, NULL, 0, 10 * ASR_CHUNK_SECTORS + 5, 1);		/* one chunk */
	compare_saw(t.compare, NULL, 0, 511 * ASR_CHUNK_SECTORS + 127, 2);	/* two, in two windows */
	compare_saw(t.compare, NULL, 1, 50 * ASR_CHUNK_SECTORS, 8);		/* another disk's */
	assert_true(run(10000));
	assert_int_equal(out.data_sectors, 3 * ASR_CHUNK_SECTORS);
	assert_memory_equal(out.copy, t.disk, SECTORS * 512ul);
	end();
}

static void without_an_answer_all_travels(void **state)
{
	static const char *const why[] = { "unknown-method: digest.map", "vault-failed: broken" };

	for (int i = 0; i < 3; i++) {
		begin();
		open_all_dirty();
		if (i == 2)
			key[0] ^= 1;	/* another key than the vault's frames were sealed with */
		for (int n = 0; n < 10000 && !out.emitted[ASR_KIND_RESYNC_END]; n++) {
			if (step() == RESYNC_FREE)
				seal_batch();
			answer_all(i < 2 ? -EREMOTEIO : 0, why[i % 2]);
			resync_acked(t.r, out.frames);
			turn();
		}
		assert_int_equal(out.emitted[ASR_KIND_RESYNC_END], 1);
		assert_int_equal(out.data_sectors, SECTORS - 100 * ASR_CHUNK_SECTORS);
		assert_memory_equal(out.copy, t.disk, SECTORS * 512ul);
		end();
	}
}

/* The connection breaks at any turn: what was compared and durable is not compared again */
static void lost_and_opened_again(void **state)
{
	begin();
	for (uint32_t i = 3; i < SECTORS / 8; i += 97)
		t.vault[i * 4096ul] ^= 1;
	open_all_dirty();
	for (int n = 0; n < 20; n++) {
		run(n % 5);
		resync_acked(t.r, out.frames - (uint64_t)(n % 3));
		resync_lost(t.r);
		batch.count = batch.bytes = 0;
		compare_lost(t.compare);
		calls.count = 0;
		memcpy(t.vault, out.copy, SECTORS * 512ul);
		turn();
		resync_open(t.r, false, 2);
	}
	out.emitted[ASR_KIND_RESYNC_END] = 0;
	assert_true(run(10000));
	resync_acked(t.r, out.frames);
	assert_memory_equal(out.copy, t.disk, SECTORS * 512ul);
	assert_int_equal(marked(), 0);
	end();
}

/* Dirty again while it is under way: given back by the later read only */
static void taken_twice(void **state)
{
	begin();
	t.vault_frame = 5000;
	open_all_dirty();
	assert_false(run(3));
	for (uint32_t i = 0; i < CHUNKS; i += 7)
		k.dirty[i] = 1;
	resync_want(t.r);
	assert_true(run(10000));
	resync_acked(t.r, 5000);
	assert_int_equal(marked(), 0);
	end();
}

static void missing_disk_keeps_the_end_away(void **state)
{
	begin();
	t.missing = "waits for disk x";
	open_all_dirty();
	assert_false(run(200));
	resync_acked(t.r, out.frames);
	assert_int_equal(marked(), 0);
	assert_string_equal(resync_waits(t.r), "waits for disk x");
	t.missing = NULL;
	assert_true(run(10000));
	end();
}

static void paused_and_limited(void **state)
{
	uint64_t began;
	int left;

	begin();
	open_all_dirty();
	resync_limit(t.r, 0, true);
	assert_false(run(50));
	assert_int_equal(marked(), CHUNKS);
	resync_limit(t.r, 64 << 20, false);
	began = now_ns();
	for (int n = 0; n < 10000 && (left = marked()) > (int)CHUNKS / 2; n++) {
		if (step() == RESYNC_FREE)
			seal_batch();
		answer_all(0, NULL);
		turn();
	}
	/* half of the disk, less what may go at once: not faster than that */
	assert_true(now_ns() - began > 200000000);
	resync_limit(t.r, 0, false);
	assert_true(run(10000));
	end();
}

/* A window is given up and asked for anew: the answer to the first call is none to the second */
static void an_answer_that_comes_late(void **state)
{
	static struct window w = { .name = "data", .end = 8 * ASR_CHUNK_SECTORS };

	begin();
	compare_ask(t.compare, &w, 2);
	compare_ask(t.compare, &(struct window){ .name = "data", .sector = 8 * ASR_CHUNK_SECTORS,
						 .end = 9 * ASR_CHUNK_SECTORS }, 2);
	compare_lost(t.compare);
	memset(t.vault, 0x55, CHUNK);
	compare_ask(t.compare, &w, 2);
	memcpy(t.vault, t.disk, CHUNK);
	answer_one(0, NULL);
	answer_one(-EREMOTEIO, "busy: too many calls wait");
	memset(t.vault, 0x55, CHUNK);
	assert_int_equal(w.state, WINDOW_ASKED);
	answer_one(0, NULL);
	assert_int_equal(w.state, WINDOW_READY);
	assert_int_equal(compare_block(&w, 0, t.disk), COMPARE_DIFFERS);
	assert_int_equal(compare_block(&w, 0, t.vault), COMPARE_SAME);
	compare_ask(t.compare, &(struct window){ .name = "data", .end = ASR_CHUNK_SECTORS }, 2);
	end();			/* with a call under way */
	calls.count = 0;
}

/* A great many chunks wait to be durable, and each third of them is dirty again */
static void no_more_runs_than_there_is_room_for(void **state)
{
	begin();
	disk_write();
	resync_open(t.r, true, 2);
	t.r->run_count = RUNS - RUNS_SLACK - 1;
	for (uint32_t i = 0; i < t.r->run_count; i++) {
		t.r->runs[i] = (struct run){ .frame_no = 99, .chunk = i * 3, .count = 3, .slot = i * 3 + 3 > CHUNKS };
		if (!t.r->runs[i].slot)
			k.dirty[i * 3 + 1] = 1;
		for (uint32_t c = i * 3; c < i * 3 + 3 && !t.r->runs[i].slot; c++)
			k.taken[c] = 1;
	}
	resync_want(t.r);
	step();
	step();
	assert_int_equal(t.r->run_count, RUNS - PARTS);	/* those under way have theirs */
	/* what found no place is read again, and given back from there */
	for (uint32_t i = 0; i < t.r->run_count; i++)
		assert_false(t.r->runs[i].slot == 0 && t.r->runs[i].chunk == 500);
	assert_true(k.returned > 70 && k.fetched > 170 + 70 && k.taken[500]);
	end();
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(waits_for_the_disks_record), cmocka_unit_test(equal_disks_ship_nothing),
		cmocka_unit_test(same_is_not_yet_durable), cmocka_unit_test(only_what_differs_travels),
		cmocka_unit_test(spoiled_chunks_travel), cmocka_unit_test(without_an_answer_all_travels),
		cmocka_unit_test(lost_and_opened_again), cmocka_unit_test(taken_twice),
		cmocka_unit_test(missing_disk_keeps_the_end_away), cmocka_unit_test(paused_and_limited),
		cmocka_unit_test(an_answer_that_comes_late), cmocka_unit_test(no_more_runs_than_there_is_room_for),
	};

	int ret;

	log_init("test_resync", LOG_LVL_ERR);
	ret = cmocka_run_group_tests(tests, NULL, NULL);
	unlink(file);
	return ret;
}
