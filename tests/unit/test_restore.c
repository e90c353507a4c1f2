// SPDX-License-Identifier: Apache-2.0
/* Every point restores to the disk as it was then, or is refused with the reason; no flipped byte ever becomes data. */
#include "frames.h"

#include <pthread.h>

#define SECTORS		1024
#define BYTES		(SECTORS * 512)
#define SEQS		4000

/* A stream of random writes to two disks, and what disk 0 was after each seq */
struct world {
	char *dir, *cert[2], *key[2];
	struct maker *m;
	uint8_t disk[BYTES];
	uint8_t *after[SEQS];		/* NULL: not consistent */
	bool consistent;
	uint64_t segment_bytes;
	unsigned int seed;
};

static unsigned int rnd(struct world *w, unsigned int n)
{
	w->seed = w->seed * 1103515245 + 12345;
	return (w->seed >> 8) % n;
}

static void snapshot(struct world *w)
{
	uint64_t seq = w->m->seq;

	assert_true(seq < SEQS);
	free(w->after[seq]);
	w->after[seq] = NULL;
	if (w->consistent) {
		w->after[seq] = malloc(BYTES);
		memcpy(w->after[seq], w->disk, BYTES);
	}
}

static void copy_all(struct world *w)
{
	make_rec(w->m, ASR_KIND_RESYNC_BEGIN, ASR_DISK_NONE, 0, 0);
	w->consistent = false;
	for (uint32_t s = 0; s < SECTORS; s += 128) {
		uint8_t fill = w->disk[s * 512];
		bool same = fill && !memcmp(w->disk + s * 512, w->disk + s * 512 + 1, 65535);

		if (same) {
			make_data(w->m, ASR_KIND_SYNC, 0, s, 128, fill);
			continue;
		}
		/* as read from the disk */
		make_data(w->m, ASR_KIND_SYNC, 0, s, 128, 0);
		memcpy(w->m->payload + w->m->hdr.plain_bytes - 65536, w->disk + s * 512, 65536);
	}
	make_rec(w->m, ASR_KIND_RESYNC_END, ASR_DISK_NONE, 0, 0);
	w->consistent = true;
	snapshot(w);
}

static void write_some(struct world *w)
{
	uint32_t sectors = 1 + rnd(w, 40), sector = rnd(w, SECTORS - sectors);
	uint8_t fill = (uint8_t)(1 + rnd(w, 255));
	unsigned int what = rnd(w, 12);

	if (what == 0) {
		make_rec(w->m, ASR_KIND_ZEROES, 0, sector, sectors);
		fill = 0;
	} else if (what == 1) {
		make_rec(w->m, ASR_KIND_DISCARD, 0, sector, sectors);
		fill = 0;
	} else if (what == 2) {
		make_rec(w->m, ASR_KIND_FLUSH, ASR_DISK_NONE, 0, 0);
		sectors = 0;
	} else if (what == 3) {
		make_data(w->m, ASR_KIND_WRITE, 1, sector, sectors, fill);
		sectors = 0;
	} else {
		make_data(w->m, ASR_KIND_WRITE, 0, sector, sectors, fill);
	}
	memset(w->disk + sector * 512, fill, sectors * 512);
	snapshot(w);
}

static void world_frames(struct world *w, struct feeder *f, int frames)
{
	struct why why;

	for (int i = 0; i < frames; i++) {
		if (!w->m->frame_no) {
			make_disk(w->m, 0, "root", SECTORS, ASR_DISKF_DIRTY);
			make_disk(w->m, 1, "other", SECTORS, ASR_DISKF_DIRTY);
			make_data(w->m, ASR_KIND_WRITE, 0, 5, 9, 0x77);
			memset(w->disk + 5 * 512, 0x77, 9 * 512);
			copy_all(w);
		} else if (w->m->frame_no == 20) {
			make_state(w->m, ASR_STATE_CAPTURE, ASR_STATE_TRACK, ASR_WHY_RING_FULL);
			w->consistent = false;
			snapshot(w);
			write_some(w);
		} else if (w->m->frame_no == 24) {
			make_state(w->m, ASR_STATE_TRACK, ASR_STATE_CAPTURE, ASR_WHY_REQUEST);
			snapshot(w);
			copy_all(w);
		} else {
			for (unsigned int n = 1 + rnd(w, 5); n; n--)
				write_some(w);
			if (w->m->frame_no % 10 == 5) {
				char name[40];

				snprintf(name, sizeof(name), "mark-%llu", (unsigned long long)w->m->frame_no);
				make_mark(w->m, name, w->m->frame_no);
				snapshot(w);
				if (w->m->frame_no == 15) {
					make_declaration(w->m, name, 15, ASR_MARK_APP);
					snapshot(w);
					make_declaration(w->m, "mark-5", 15, ASR_MARK_GROUP);	/* not its name */
					snapshot(w);
					make_declaration(w->m, name, 14, ASR_MARK_GROUP);	/* not its number */
					snapshot(w);
				}
			}
		}
		w->m->zstd = w->m->frame_no % 2 && w->m->hdr.plain_bytes > 8192;
		if (w->m->frame_no % 7 == 0)
			w->m->session[0]++;
		make_frame(w->m);
		assert_int_equal(ingest_frame(f->s, w->m->frame, w->m->bytes, &why), 0);
		feeder_wait(f, w->m->frame_no);
	}
}

static struct world *world_new(int frames, uint64_t segment_bytes)
{
	struct world *w = calloc(1, sizeof(*w));
	struct feeder f;
	struct why why;

	w->dir = temp_dir();
	w->m = maker_new();
	w->seed = 42;
	make_cert("rsa:2048", &w->cert[0], &w->key[0]);
	make_cert("ec", &w->cert[1], &w->key[1]);
	make_group(w->dir, w->m, w->cert, 2);
	assert_int_equal(feeder_open(&f, w->dir, w->m, segment_bytes, &why), 0);
	world_frames(w, &f, frames);
	feeder_close(&f, true);
	return w;
}

static void world_free(struct world *w)
{
	for (int i = 0; i < SEQS; i++)
		free(w->after[i]);
	for (int i = 0; i < 2; i++) {
		free(w->cert[i]);
		free(w->key[i]);
	}
	remove_dir(w->dir);
	free(w->m);
	free(w);
}

static int restore(struct world *w, const char *point, const char *key, uint8_t *out,
		   struct restore_result *r, struct why *why)
{
	char to[300];
	struct restore_args a = { .vault_dir = w->dir, .group = "g", .disk = "root", .point = point,
				  .key_pem = key, .to = to };
	char *data;
	size_t bytes;
	int ret;

	snprintf(to, sizeof(to), "%s/image", w->dir);
	ret = restore_disk(&a, r, why);
	if (ret) {
		assert_int_not_equal(access(to, F_OK), 0);
		return ret;
	}
	assert_int_equal(file_read(to, 1 << 22, &data, &bytes, NULL), 0);
	assert_int_equal(bytes, BYTES);
	memcpy(out, data, BYTES);
	free(data);
	unlink(to);
	return 0;
}

/* The same by way of image.c, from either end */
static int image_whole(struct world *w, const char *point, const char *key, uint8_t *out, struct why *why)
{
	const struct view_args a = { .disk = "root", .point = point, .key_pem = key };
	struct image *im = NULL;
	struct index *ix = NULL;
	struct view *v = NULL;
	int ret = index_open(w->dir, "g", &ix, why);

	if (!ret)
		ret = view_open(ix, &a, &v, why);
	if (!ret)
		ret = image_open(v, 1 << 20, &im, why);
	if (!ret)
		ret = image_read(im, out + BYTES / 2, BYTES / 2, BYTES / 2, why);
	if (!ret)
		ret = image_read(im, out, BYTES / 2, 0, why);
	image_close(im);
	view_close(v);
	index_close(ix);
	return ret;
}

static void every_seq(void **state)
{
	static uint8_t out[BYTES];
	struct world *w = world_new(60, 100000);
	struct restore_result r;
	struct why why;
	char point[40];
	int good = 0, bad = 0;

	for (uint64_t seq = 1; seq <= w->m->seq; seq++) {
		snprintf(point, sizeof(point), "seq:%llu", (unsigned long long)seq);
		why.text[0] = 0;
		if (w->after[seq]) {
			if (restore(w, point, w->key[seq & 1], out, &r, &why))
				fail_msg("%s: %s", point, why.text);
			assert_int_equal(r.point.seq, seq);
			if (memcmp(out, w->after[seq], BYTES))
				fail_msg("%s: the image differs", point);
			good++;
		} else {
			int ret = restore(w, point, w->key[0], out, &r, &why);

			if (ret != -ESTALE && ret != -ENOENT)
				fail_msg("%s: %d %s", point, ret, why.text);
			bad++;
		}
	}
	assert_true(good > 100 && bad >= 3);
	assert_int_equal(restore(w, "latest", w->key[1], out, &r, &why), 0);
	assert_memory_equal(out, w->disk, BYTES);
	assert_int_equal(r.point.seq, w->m->seq);
	assert_int_equal(r.unwritten_bytes, 0);
	world_free(w);
}

/* ------------------------------------------------------------ random reads */

struct readers {
	struct image *im;
	const uint8_t *want;
	int wrong;
	pthread_mutex_t lock;
};

static void *read_about(void *arg)
{
	struct readers *r = arg;
	unsigned int seed = (unsigned int)(uintptr_t)&seed;
	static _Thread_local uint8_t buf[70000];
	struct why why;

	for (int i = 0; i < 400; i++) {
		uint64_t offset = (uint64_t)rand_r(&seed) % BYTES;
		size_t bytes = 1 + (size_t)rand_r(&seed) % (i % 2 ? 300 : sizeof(buf));

		if (bytes > BYTES - offset)
			bytes = BYTES - offset;
		memset(buf, 0xee, bytes);
		if (image_read(r->im, buf, bytes, offset, &why) || memcmp(buf, r->want + offset, bytes)) {
			pthread_mutex_lock(&r->lock);
			r->wrong++;
			pthread_mutex_unlock(&r->lock);
		}
	}
	return NULL;
}

/* Holes are zeroes, what is no hole is what the records say, and the whole is the disk */
static void extents_check(struct image *im, const uint8_t *want)
{
	static const uint8_t zeroes[BYTES];
	uint64_t run;

	for (uint64_t offset = 0; offset < BYTES; offset += run) {
		bool data = image_extent(im, offset, BYTES, &run), next;
		uint64_t more, tail;

		assert_true(run && offset + run <= BYTES);
		if (!data)
			assert_memory_equal(want + offset, zeroes, run);
		/* from within, the same end; and behind it something else */
		assert_int_equal(image_extent(im, offset + run - 1, BYTES, &tail), data);
		assert_int_equal(tail, 1);
		if (offset + run < BYTES) {
			next = image_extent(im, offset + run, BYTES, &more);
			assert_int_not_equal(next, data);
		}
	}
}

/* Any range, by several threads at once, with a cache that is too small for anything, or large enough for all */
static void read_anywhere(void **state)
{
	static const size_t caches[] = { 0, 200000, 64 << 20 };
	struct world *w = world_new(60, 100000);
	struct readers r = { .lock = PTHREAD_MUTEX_INITIALIZER };
	struct view_args a = { .disk = "root", .key_pem = w->key[0] };
	pthread_t thread[6];
	struct index *ix;
	struct view *v;
	struct why why;
	char point[40];
	json_t *names;
	uint8_t byte;
	int tried = 0;

	assert_int_equal(index_open(w->dir, "g", &ix, &why), 0);
	names = view_names(ix);
	assert_true(json_object_size(names) == 2 && json_object_get(names, "root") && json_object_get(names, "other"));
	json_decref(names);
	a.point = point;
	for (uint64_t seq = w->m->seq; seq > 1; seq = seq > 37 ? seq - 37 : 1) {
		if (!w->after[seq])
			continue;
		snprintf(point, sizeof(point), "seq:%llu", (unsigned long long)seq);
		assert_int_equal(view_open(ix, &a, &v, &why), 0);
		assert_int_equal(view_point(v)->seq, seq);
		assert_int_equal(image_open(v, caches[tried % 3], &r.im, &why), 0);
		r.want = w->after[seq];
		extents_check(r.im, r.want);
		for (int i = 0; i < 6; i++)
			pthread_create(&thread[i], NULL, read_about, &r);
		for (int i = 0; i < 6; i++)
			pthread_join(thread[i], NULL);
		assert_int_equal(r.wrong, 0);
		assert_int_equal(image_read(r.im, &byte, 1, BYTES, &why), -EINVAL);
		assert_int_equal(image_read(r.im, &byte, 1, UINT64_MAX, &why), -EINVAL);
		image_close(r.im);
		view_close(v);
		tried++;
	}
	assert_true(tried > 3);
	index_close(ix);
	world_free(w);
}

static void points(void **state)
{
	static uint8_t out[BYTES];
	struct world *w = world_new(40, 100000);
	struct restore_result r;
	struct point_list list;
	struct index *ix;
	struct point p;
	struct why why;
	char text[80], when[40];
	json_t *json;

	assert_int_equal(index_open(w->dir, "g", &ix, &why), 0);
	assert_int_equal(point_list_make(ix, &list, &why), 0);
	assert_int_equal(list.interval_count, 2);
	assert_false(list.intervals[0].open);
	assert_non_null(strstr(list.intervals[0].end_reason, "ring was full"));
	assert_true(list.intervals[1].open);
	assert_int_equal(list.intervals[1].to_seq, w->m->seq);
	assert_int_equal(list.mark_count, 4);
	for (size_t i = 0; i < 4; i++) {
		assert_int_equal(list.marks[i].app, i == 1);
		assert_false(list.marks[i].group);
	}
	assert_false(list.intervals[0].to_seq >= list.intervals[1].from_seq);
	/* by name, by time, at both ends of an interval */
	assert_int_equal(point_resolve(ix, "name:mark-15", NULL, &p, &why), 0);
	assert_int_equal(p.seq, list.marks[1].seq);
	snprintf(text, sizeof(text), "time:%s", time_format(list.marks[1].time_ns, when));
	assert_int_equal(point_resolve(ix, text, NULL, &p, &why), 0);
	assert_int_equal(p.seq, list.marks[1].seq);
	snprintf(text, sizeof(text), "time:%s", time_format(list.intervals[1].from_time_ns, when));
	assert_int_equal(point_resolve(ix, text, NULL, &p, &why), 0);
	assert_int_equal(p.seq, list.intervals[1].from_seq);
	assert_int_equal(restore(w, text, w->key[0], out, &r, &why), 0);
	assert_memory_equal(out, w->after[p.seq], BYTES);
	snprintf(text, sizeof(text), "time:%s", time_format(list.intervals[0].to_time_ns + 1500, when));
	assert_int_equal(point_resolve(ix, text, NULL, &p, &why), -ESTALE);
	assert_non_null(strstr(why.text, "the ring was full"));
	assert_non_null(strstr(why.text, "before, seq "));
	/* what is refused, and why */
	assert_int_equal(point_resolve(ix, "name:nope", NULL, &p, &why), -ENOENT);
	assert_non_null(strstr(why.text, "mark-35"));
	assert_int_equal(point_resolve(ix, "time:1999-01-01T00:00:00Z", NULL, &p, &why), -ENOENT);
	assert_non_null(strstr(why.text, "before the window"));
	assert_int_equal(point_resolve(ix, "time:2999-01-01T00:00:00Z", NULL, &p, &why), -ERANGE);
	assert_int_equal(point_resolve(ix, "seq:999999", NULL, &p, &why), -ERANGE);
	assert_non_null(strstr(why.text, "future"));
	assert_int_equal(point_resolve(ix, "seq:0", NULL, &p, &why), -ENOENT);
	assert_int_equal(point_resolve(ix, "seq:1x", NULL, &p, &why), -EINVAL);
	assert_int_equal(point_resolve(ix, "time:yesterday", NULL, &p, &why), -EINVAL);
	assert_int_equal(point_resolve(ix, "now", NULL, &p, &why), -EINVAL);
	json = point_list_json(ix, &why);
	assert_int_equal(json_array_size(json_object_get(json, "disks")), 2);
	assert_int_equal(json_array_size(json_object_get(json, "intervals")), 2);
	json_decref(json);
	point_list_free(&list);
	index_close(ix);
	assert_int_equal(index_open(w->dir, "h", &ix, &why), -ENOENT);
	assert_non_null(strstr(why.text, "there is: g"));
	world_free(w);
}

static int stop_it(uint64_t done, uint64_t total, void *arg)
{
	return 1;
}

static void destinations(void **state)
{
	struct world *w = world_new(5, 100000);
	char to[300], bare[400], *other_cert, *other_key;
	struct restore_args a = { .vault_dir = w->dir, .group = "g", .disk = "root", .point = "latest",
				  .key_pem = w->key[0], .to = to };
	struct restore_result r;
	struct why why;

	make_cert("ec", &other_cert, &other_key);
	snprintf(to, sizeof(to), "%s/image", w->dir);
	a.disk = "usr";
	assert_int_equal(restore_disk(&a, &r, &why), -ENOENT);
	assert_non_null(strstr(why.text, "root, other"));
	a.disk = "root";
	a.key_pem = other_key;
	assert_int_equal(restore_disk(&a, &r, &why), -EKEYREJECTED);
	a.key_pem = "no key";
	assert_int_equal(restore_disk(&a, &r, &why), -EKEYREJECTED);
	a.key_pem = w->key[0];
	a.progress = stop_it;
	assert_int_equal(restore_disk(&a, &r, &why), -ECANCELED);
	a.progress = NULL;
	assert_int_not_equal(access(to, F_OK), 0);
	/* a bare copy of the group's folder is enough */
	snprintf(bare, sizeof(bare), "%s/groups/11111111111111111111111111111111", w->dir);
	a.vault_dir = bare;
	a.group = NULL;
	assert_int_equal(restore_disk(&a, &r, &why), 0);
	assert_int_equal(restore_disk(&a, &r, &why), -EEXIST);
	a.to = "/nonexistent/x";
	assert_int_equal(restore_disk(&a, &r, &why), -ENOENT);
	a.to = "/proc/x";
	assert_int_not_equal(restore_disk(&a, &r, &why), 0);
	a.to = to;
	unlink(to);
	a.vault_dir = "/tmp";
	assert_int_equal(restore_disk(&a, &r, &why), -ENOENT);
	free(other_cert);
	free(other_key);
	world_free(w);
}

/* The first file whose name ends so */
static char *find_file(struct world *w, const char *glob)
{
	char cmd[300], *out;

	snprintf(cmd, sizeof(cmd), "ls %s/groups/*/%s | head -n 1", w->dir, glob);
	out = run_output(cmd);
	*strchr(out, '\n') = 0;
	return out;
}

/*
 * Flips bytes of a file, one after the other; the restore fails, or (the byte
 * was never needed) gives the very same image. Returns how many were caught.
 */
static int flip_all(struct world *w, const char *file, const char *point, const uint8_t *want, size_t stride)
{
	static uint8_t out[BYTES];
	struct restore_result r;
	struct why why;
	char *data;
	size_t bytes;
	int fd, caught = 0;

	assert_int_equal(file_read(file, 1 << 24, &data, &bytes, NULL), 0);
	fd = open(file, O_RDWR);
	for (size_t i = 0; i < bytes; i += stride) {
		uint8_t flipped = (uint8_t)data[i] ^ (uint8_t)(1 << i % 8);

		assert_int_equal(pwrite(fd, &flipped, 1, (off_t)i), 1);
		why.text[0] = 0;
		if (restore(w, point, w->key[1], out, &r, &why)) {
			assert_true(why.text[0]);
			if (strstr(file, ".seg") && !strstr(why.text, strrchr(file, '/') + 1))
				fail_msg("byte %zu: the place is not named: %s", i, why.text);
			caught++;
		} else if (memcmp(out, want, BYTES)) {
			fail_msg("%s: byte %zu was restored as data", file, i);
		}
		why.text[0] = 0;
		if (i / stride % 16)
			;	/* each sixteenth is enough */
		else if (image_whole(w, point, w->key[1], out, &why))
			assert_true(why.text[0]);
		else if (memcmp(out, want, BYTES))
			fail_msg("%s: byte %zu was read as data", file, i);
		assert_int_equal(pwrite(fd, data + i, 1, (off_t)i), 1);
	}
	close(fd);
	free(data);
	return caught;
}

static void flip_sealed(void **state)
{
	struct world *w = world_new(8, 40000);
	char *first = find_file(w, "segments/*.seg"), *last = find_file(w, "segments/*.seg | sort -r");
	struct stat a, b;
	int caught;

	stat(first, &a);
	stat(last, &b);
	caught = flip_all(w, first, "latest", w->disk, 61);
	assert_true(caught > (int)(a.st_size / 61) * 9 / 10);
	caught = flip_all(w, last, "latest", w->disk, 1 + (size_t)b.st_size / 1000);
	assert_true(caught > 100);
	free(first);
	free(last);
	world_free(w);
}

/* A footer that lies about one record, with checksums that fit: what a restore refuses, image.c refuses, too */
static void footer_lies(void **state)
{
	struct world *w = world_new(18, 40000);
	char *file = find_file(w, "segments/*.seg | sort -r"), *data;
	static uint8_t out[BYTES], again[BYTES];
	bool refused;
	struct restore_result r;
	struct seg_trailer tr, made;
	struct seg_rec *recs, was;
	struct seg_foot *foot;
	struct why why;
	size_t bytes, n;
	int fd, caught = 0;

	assert_int_equal(file_read(file, 1 << 24, &data, &bytes, NULL), 0);
	memcpy(&tr, data + bytes - sizeof(tr), sizeof(tr));
	foot = (void *)(data + tr.foot_offset);
	n = foot->records * sizeof(*recs);
	recs = (void *)(data + tr.foot_offset + tr.foot_bytes - n);
	fd = open(file, O_RDWR);
	for (uint32_t i = 0; i < 3 * foot->records; i++) {
		struct seg_rec *rec = &recs[i / 3];

		if (rec->disk || !wire_kind_has_payload(rec->kind))
			continue;
		was = *rec;
		if (i % 3 == 0)
			rec->kind = ASR_KIND_ZEROES;
		else if (i % 3 == 1)
			rec->sectors = 1;
		else
			rec->seq++;
		made = tr;
		made.recs_check = seg_check(recs, n);
		made.check = seg_check(&made, offsetof(struct seg_trailer, check));
		assert_int_equal(pwrite(fd, recs, n, (char *)recs - data), n);
		assert_int_equal(pwrite(fd, &made, sizeof(made), (off_t)(bytes - sizeof(made))), sizeof(made));
		why.text[0] = 0;
		refused = restore(w, "latest", w->key[1], out, &r, &why) != 0;
		if ((image_whole(w, "latest", w->key[1], again, &why) != 0) != refused ||
		    (!refused && memcmp(out, again, BYTES)))
			fail_msg("record %u, lie %u: restore %s it, image does not", i / 3, i % 3,
				 refused ? "refuses" : "takes");
		caught += refused;
		*rec = was;
	}
	assert_true(caught > 10);
	close(fd);
	free(data);
	free(file);
	world_free(w);
}

/* In the unsealed tail a broken last frame cannot be told from a torn one: then it is not restored */
static void flip_tail(void **state)
{
	struct world *w = world_new(5, 64 << 20);
	static uint8_t out[BYTES];
	struct restore_result r;
	struct why why;
	char *tail = find_file(w, "segments/*.open"), *data;
	size_t bytes;
	int fd, gone = 0, caught = 0;

	assert_int_equal(file_read(tail, 1 << 24, &data, &bytes, NULL), 0);
	while (bytes && !data[bytes - 1])	/* what fills the last block is no part of the segment */
		bytes--;
	fd = open(tail, O_RDWR);
	for (size_t i = 0; i < bytes; i += 1 + bytes / 500) {
		uint8_t flipped = (uint8_t)data[i] ^ 4;
		int ret;

		assert_int_equal(pwrite(fd, &flipped, 1, (off_t)i), 1);
		ret = restore(w, "latest", w->key[1], out, &r, &why);
		if (!ret && r.point.seq == w->m->seq)
			fail_msg("byte %zu was not noticed", i);
		if (!ret)
			assert_memory_equal(out, w->after[r.point.seq], BYTES);
		gone += !ret;
		caught += ret != 0;
		assert_int_equal(pwrite(fd, data + i, 1, (off_t)i), 1);
	}
	assert_true(caught > gone);
	close(fd);
	free(data);
	free(tail);
	world_free(w);
}

static void flip_rest(void **state)
{
	struct world *w = world_new(4, 40000);
	char *key = find_file(w, "wrapped-*.key"), *meta = find_file(w, "group.json");

	assert_true(flip_all(w, key, "latest", w->disk, 5) > 50);
	flip_all(w, meta, "latest", w->disk, 3);
	free(key);
	free(meta);
	world_free(w);
}

static void cut_and_missing(void **state)
{
	struct world *w = world_new(30, 60000);
	static uint8_t out[BYTES];
	struct restore_result r;
	struct why why;
	char *seg = find_file(w, "segments/*.seg"), *second = find_file(w, "segments/*.seg | sed 1d"), away[300];
	struct stat st;

	assert_int_equal(stat(second, &st), 0);
	snprintf(away, sizeof(away), "%s/away", w->dir);
	assert_int_equal(rename(second, away), 0);
	assert_int_equal(restore(w, "latest", w->key[0], out, &r, &why), -EBADMSG);
	assert_non_null(strstr(why.text, "something is missing"));
	assert_int_equal(rename(away, second), 0);
	for (off_t cut = 0; cut < st.st_size; cut += 1 + st.st_size / 50) {
		char cmd[800];

		snprintf(cmd, sizeof(cmd), "cp %s %s && truncate -s %ld %s", second, away, (long)cut, second);
		assert_int_equal(system(cmd), 0);
		assert_int_equal(restore(w, "latest", w->key[0], out, &r, &why), -EBADMSG);
		assert_int_equal(rename(away, second), 0);
	}
	assert_int_equal(restore(w, "latest", w->key[0], out, &r, &why), 0);
	free(seg);
	free(second);
	world_free(w);
}

/* Without its oldest segments a copy gives what lies in the others wholly, and no zeroes for the rest */
static void oldest_missing(void **state)
{
	struct world *w = world_new(60, 100000);
	static uint8_t out[BYTES];
	struct restore_result r;
	struct why why;
	char *first = find_file(w, "segments/*.seg"), point[40];
	int good = 0, refused = 0;

	assert_int_equal(unlink(first), 0);
	for (uint64_t seq = 1; seq <= w->m->seq; seq += 3) {
		int ret;

		snprintf(point, sizeof(point), "seq:%llu", (unsigned long long)seq);
		ret = restore(w, point, w->key[1], out, &r, &why);
		if (!ret && (!w->after[seq] || memcmp(out, w->after[seq], BYTES)))
			fail_msg("%s: the image differs", point);
		good += !ret;
		if (ret == -EBADMSG) {
			assert_non_null(strstr(why.text, "missing"));
			refused++;
		}
	}
	assert_true(good > 10 && refused > 5);
	free(first);
	world_free(w);
}

/* A size that no disk has: neither a frame nor a footer may say so */
static void absurd_sizes(void **state)
{
	static const uint64_t sizes[] = { UINT64_MAX, UINT64_MAX - 40000, (UINT64_MAX >> 9) + 1, (INT64_MAX >> 9) + 1 };
	struct maker *m = maker_new();
	struct frame_view v;
	struct why why;

	for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
		struct seg_table t = { 0 };
		struct seg_state st;
		struct seg_trailer *tr;
		uint8_t *foot;
		size_t bytes;

		make_disk(m, 0, "root", 4096, 0);
		make_frame(m);
		assert_int_equal(wire_frame_parse(m->frame, m->bytes, &v, &why), 0);
		seg_state_init(&st);
		st.next_frame_no = m->frame_no;
		assert_int_equal(seg_table_begin(&t, &st), 0);
		assert_int_equal(seg_table_add(&t, &st, &v, sizeof(struct seg_hdr) + sizeof(struct seg_env), 0), 0);
		t.events[0].value = sizes[i];
		assert_int_equal(seg_foot_make(&t, 4096, &foot, &bytes), 0);
		seg_table_free(&t);
		tr = (void *)(foot + bytes - sizeof(*tr));
		assert_int_equal(seg_foot_parse(foot, tr->foot_bytes, &t, &why), -EBADMSG);
		free(foot);
		make_disk(m, 0, "root", sizes[i], 0);
		make_frame(m);
		assert_int_equal(wire_frame_parse(m->frame, m->bytes, &v, &why), -EBADMSG);
	}
	free(m);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(every_seq), cmocka_unit_test(read_anywhere), cmocka_unit_test(points),
		cmocka_unit_test(destinations),
		cmocka_unit_test(flip_sealed), cmocka_unit_test(footer_lies), cmocka_unit_test(flip_tail),
		cmocka_unit_test(flip_rest),
		cmocka_unit_test(cut_and_missing), cmocka_unit_test(oldest_missing),
		cmocka_unit_test(absurd_sizes),
	};

	log_init("test_restore", LOG_LVL_ERR);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
