// SPDX-License-Identifier: Apache-2.0
/* What was acknowledged survives every torn tail; a footer follows from its frames, byte for byte. */
#include "frames.h"

#include <signal.h>
#include <sys/syscall.h>
#include <sys/wait.h>

static int flushes;

/* The vault's own, counted */
int fdatasync(int fd)
{
	flushes++;
	return (int)syscall(SYS_fdatasync, fd);
}

static void put_once(void **state)
{
	char *dir = temp_dir(), buf[8];
	struct store *s;
	uint64_t bytes;

	assert_int_equal(store_open(dir, &s, NULL), 0);
	assert_int_equal(store_put(s, "a/b/x", "hello", 5), 0);
	assert_int_equal(store_put(s, "a/b/x", "other", 5), -EEXIST);
	assert_int_equal(store_get(s, "a/b/x", 1, buf, 4), 0);
	assert_memory_equal(buf, "ello", 4);
	assert_int_equal(store_get(s, "a/b/x", 1, buf, 5), -ENODATA);
	assert_int_equal(store_get(s, "a/b/y", 0, buf, 1), -ENOENT);
	assert_int_equal(store_get(s, "../x", 0, buf, 1), -EINVAL);
	assert_int_equal(store_put(s, "/x", "", 0), -EINVAL);
	assert_int_equal(store_head(s, "a/b/x", &bytes), 0);
	assert_int_equal(bytes, 5);
	assert_int_equal(store_delete(s, "a/b/x"), 0);
	assert_int_equal(store_head(s, "a/b/x", &bytes), -ENOENT);
	store_close(s);
	remove_dir(dir);
}

static void step(struct maker *m)
{
	if (!m->frame_no) {
		make_disk(m, 0, "root", 4096, ASR_DISKF_DIRTY);
		make_rec(m, ASR_KIND_RESYNC_BEGIN, ASR_DISK_NONE, 0, 0);
		make_rec(m, ASR_KIND_SYNC_ZEROES, 0, 0, 4096);
		make_rec(m, ASR_KIND_RESYNC_END, ASR_DISK_NONE, 0, 0);
	} else {
		make_data(m, ASR_KIND_WRITE, 0, m->frame_no * 8 % 4000, 7, (uint8_t)m->frame_no);
		if (m->frame_no % 3 == 0)
			make_mark(m, "mark", m->frame_no);
	}
	make_frame(m);
}

static void feed(struct feeder *f, struct maker *m, int frames)
{
	struct why why;

	for (int i = 0; i < frames; i++) {
		step(m);
		if (ingest_full(f->s))
			feeder_wait(f, m->frame_no - 1);
		if (ingest_frame(f->s, m->frame, m->bytes, &why))
			fail_msg("%s", why.text);
	}
}

static uint64_t next_frame(struct feeder *f)
{
	return ingest_state(f->s)->next_frame_no;
}

static void refuse_wrong_frames(void **state)
{
	char *dir = temp_dir();
	struct maker *m = maker_new(), *wrong;
	struct feeder f;
	struct why why;

	assert_int_equal(feeder_open(&f, dir, m, 1 << 20, &why), 0);
	feed(&f, m, 3);
	wrong = malloc(sizeof(*wrong));
	*wrong = *m;
	wrong->frame_no++;
	step(wrong);
	assert_int_equal(ingest_frame(f.s, wrong->frame, wrong->bytes, &why), -EBADMSG);
	assert_non_null(strstr(why.text, "frame 5 came where frame 4 is due"));
	*wrong = *m;
	wrong->tag[3] ^= 1;
	step(wrong);
	assert_int_equal(ingest_frame(f.s, wrong->frame, wrong->bytes, &why), -EBADMSG);
	assert_non_null(strstr(why.text, "chain"));
	*wrong = *m;
	wrong->seq = 0;
	step(wrong);
	assert_int_equal(ingest_frame(f.s, wrong->frame, wrong->bytes, &why), -EBADMSG);
	assert_non_null(strstr(why.text, "sequence falls"));
	*wrong = *m;
	wrong->stream[0] ^= 1;
	step(wrong);
	assert_int_equal(ingest_frame(f.s, wrong->frame, wrong->bytes, &why), -EBADMSG);
	feed(&f, m, 2);
	feeder_wait(&f, 5);
	assert_int_equal(ingest_open(f.in, m->group, m->stream, &feeder_ops, &f, &f.s, &why), -EBUSY);
	feeder_close(&f, true);
	free(wrong);
	free(m);
	remove_dir(dir);
}

static int count_name(const char *name, void *arg)
{
	int *n = arg;

	n[!strcmp(strrchr(name, '.'), ".seg")]++;
	return 0;
}

/* Many small segments; reopened in between; the index sees one unbroken stream */
static void roll_and_reopen(void **state)
{
	char *dir = temp_dir(), *cert, *key;
	struct maker *m = maker_new();
	struct index *ix;
	struct feeder f;
	struct why why;
	int n[2] = { 0 };

	make_cert("ec", &cert, &key);
	make_group(dir, m, &cert, 1);
	for (int round = 0; round < 6; round++) {
		assert_int_equal(feeder_open(&f, dir, m, 20000, &why), 0);
		assert_int_equal(next_frame(&f), m->frame_no + 1);
		assert_memory_equal(ingest_state(f.s)->last_tag, m->tag, 16);
		assert_int_equal(ingest_state(f.s)->last_seq, m->seq);
		for (int i = 0; i < 10; i++) {
			feed(&f, m, 1 + i % 3);
			feeder_wait(&f, m->frame_no);
		}
		feeder_close(&f, round & 1);
	}
	assert_int_equal(store_open(dir, &f.store, NULL), 0);
	assert_int_equal(store_list(f.store, "groups/11111111111111111111111111111111/segments", count_name, n), 0);
	assert_true(n[1] > 5 && n[0] <= 1);
	store_close(f.store);
	assert_int_equal(index_open(dir, "g", &ix, &why), 0);
	assert_int_equal(ix->count, 1);
	assert_int_equal(ix->streams[0].state.next_frame_no, m->frame_no + 1);
	assert_true(ix->streams[0].state.consistent);
	index_close(ix);
	free(cert);
	free(key);
	free(m);
	remove_dir(dir);
}

static char *only_file(const char *dir, const char *end)
{
	char cmd[300], *out;

	snprintf(cmd, sizeof(cmd), "ls %s/groups/*/segments/*%s", dir, end);
	out = run_output(cmd);
	*strchr(out, '\n') = 0;
	return out;
}

/* Cut off at every byte: what is whole before stays, the next frame follows it */
static void torn_everywhere(void **state)
{
	char *dir = temp_dir(), *file, *whole;
	struct maker *m = maker_new(), *back = malloc(sizeof(*back));
	uint64_t ends[4] = { 0 };
	struct feeder f;
	struct stat st;
	struct why why;
	size_t bytes;

	for (int i = 0; i < 4; i++) {
		assert_int_equal(feeder_open(&f, dir, m, 1 << 20, &why), 0);
		feed(&f, m, 1);
		feeder_wait(&f, m->frame_no);
		feeder_close(&f, false);
		/* opening it once more cuts off what only fills the last block */
		assert_int_equal(feeder_open(&f, dir, m, 1 << 20, &why), 0);
		feeder_close(&f, false);
		file = only_file(dir, ".open");
		assert_int_equal(stat(file, &st), 0);
		ends[i] = (uint64_t)st.st_size;
		if (i == 2)
			*back = *m;
		if (i < 3)
			free(file);
	}
	assert_int_equal(file_read(file, 1 << 20, &whole, &bytes, NULL), 0);
	for (size_t cut = ends[2]; cut < bytes; cut += cut > ends[2] + 60 && cut < bytes - 60 ? 31 : 1) {
		for (int garbage = 0; garbage < 2; garbage++) {
			assert_int_equal(file_write(file, 0600, whole, cut, NULL), 0);
			if (garbage) {	/* the file is as long as it was, its end never arrived */
				assert_int_equal(truncate(file, (off_t)bytes), 0);
			}
			assert_int_equal(feeder_open(&f, dir, back, 1 << 20, &why), 0);
			assert_int_equal(next_frame(&f), 4);
			assert_memory_equal(ingest_state(f.s)->last_tag, back->tag, 16);
			feeder_close(&f, false);
			assert_int_equal(stat(file, &st), 0);
			assert_int_equal(st.st_size, ends[2]);
		}
	}
	/* and the stream goes on behind it */
	assert_int_equal(feeder_open(&f, dir, back, 1 << 20, &why), 0);
	feed(&f, back, 3);
	feeder_wait(&f, back->frame_no);
	feeder_close(&f, true);
	assert_int_equal(feeder_open(&f, dir, back, 1 << 20, &why), 0);
	assert_int_equal(next_frame(&f), 7);
	feeder_close(&f, true);
	free(whole);
	free(file);
	free(back);
	free(m);
	remove_dir(dir);
}

/* A segment that was made and never got a frame: the next one takes its number */
static void killed_before_the_first_frame(void **state)
{
	for (int frames = 1; frames < 40; frames += 9) {
		char *dir = temp_dir(), *file, *cert, *key, tail[200];
		struct maker *m = maker_new();
		struct index *ix;
		struct feeder f;
		struct why why;

		make_cert("ec", &cert, &key);
		make_group(dir, m, &cert, 1);
		snprintf(tail, sizeof(tail), "ls %s/groups/*/segments/*.open >/dev/null 2>&1", dir);
		do {
			assert_int_equal(feeder_open(&f, dir, m, 20000, &why), 0);
			feed(&f, m, m->frame_no ? 1 : frames);
			feeder_wait(&f, m->frame_no);
			feeder_close(&f, true);
		} while (system(tail));
		file = only_file(dir, ".open");
		assert_int_equal(truncate(file, sizeof(struct seg_hdr)), 0);
		free(file);
		for (int i = 0; i < 2; i++) {
			if (feeder_open(&f, dir, m, 20000, &why))
				fail_msg("%s", why.text);
			free(m);
			m = maker_new();
			while (m->frame_no + 1 < next_frame(&f))
				step(m);
			feed(&f, m, 1);
			feeder_wait(&f, m->frame_no);
			feeder_close(&f, true);
		}
		if (index_open(dir, "g", &ix, &why))
			fail_msg("%s", why.text);
		assert_int_equal(ix->streams[0].state.next_frame_no, m->frame_no + 1);
		index_close(ix);
		free(cert);
		free(key);
		free(m);
		remove_dir(dir);
	}
}

/* What recovery calls durable may have been in the page cache only: the killed vault never flushed it */
static void recovered_is_durable(void **state)
{
	char *dir = temp_dir();
	struct maker *m = maker_new();
	struct feeder f;
	struct why why;
	int before;

	assert_int_equal(feeder_open(&f, dir, m, 1 << 20, &why), 0);
	feed(&f, m, 2);
	feeder_wait(&f, m->frame_no);
	feeder_close(&f, true);
	before = flushes;
	assert_int_equal(feeder_open(&f, dir, m, 1 << 20, &why), 0);
	assert_int_equal(next_frame(&f), 3);
	assert_true(flushes > before);
	feeder_close(&f, true);
	free(m);
	remove_dir(dir);
}

/* A segment with a successor was durable to its end: what is broken there is damage, and nothing is cut off */
static void successor_vouches(void **state)
{
	char *dir = temp_dir(), *file, *data, *again, cmd[400];
	struct maker *m = maker_new();
	struct seg_trailer *tr;
	struct feeder f;
	struct why why;
	size_t bytes, after;

	assert_int_equal(feeder_open(&f, dir, m, 20000, &why), 0);
	while (m->frame_no < 20) {
		feed(&f, m, 1);
		feeder_wait(&f, m->frame_no);
	}
	feeder_close(&f, true);
	/* killed before any of them was sealed */
	snprintf(cmd, sizeof(cmd), "for f in %s/groups/*/segments/*.seg; do mv $f ${f%%.seg}.open; done", dir);
	assert_int_equal(system(cmd), 0);
	file = only_file(dir, "0001.open");
	assert_int_equal(file_read(file, 1 << 20, &data, &bytes, NULL), 0);
	tr = (void *)(data + bytes - sizeof(*tr));
	data[tr->foot_offset - 100] ^= 1;
	assert_int_equal(file_write(file, 0600, data, bytes, NULL), 0);
	assert_int_equal(feeder_open(&f, dir, m, 20000, &why), -EBADMSG);
	assert_non_null(strstr(why.text, "is damaged"));
	feeder_close(&f, true);
	assert_int_equal(file_read(file, 1 << 20, &again, &after, NULL), 0);
	assert_int_equal(after, bytes);
	assert_memory_equal(again, data, bytes);
	free(again);
	data[tr->foot_offset - 100] ^= 1;
	assert_int_equal(file_write(file, 0600, data, bytes, NULL), 0);
	if (feeder_open(&f, dir, m, 20000, &why))
		fail_msg("%s", why.text);
	assert_int_equal(next_frame(&f), 21);
	feeder_close(&f, true);
	free(data);
	free(file);
	free(m);
	remove_dir(dir);
}

/* A broken frame that a later envelope calls durable is damage: recovery refuses, and names it */
static void damage_is_no_tear(void **state)
{
	char *dir = temp_dir(), *file, *data;
	struct maker *m = maker_new();
	struct feeder f;
	struct why why;
	size_t bytes;

	assert_int_equal(feeder_open(&f, dir, m, 1 << 20, &why), 0);
	for (int i = 0; i < 4; i++) {
		feed(&f, m, 1);
		feeder_wait(&f, m->frame_no);
	}
	feeder_close(&f, true);
	file = only_file(dir, ".open");
	assert_int_equal(file_read(file, 1 << 20, &data, &bytes, NULL), 0);
	data[sizeof(struct seg_hdr) + 200] ^= 1;
	assert_int_equal(file_write(file, 0600, data, bytes, NULL), 0);
	assert_int_equal(feeder_open(&f, dir, m, 1 << 20, &why), -EBADMSG);
	assert_non_null(strstr(why.text, "frame 1, at offset 72, is damaged"));
	feeder_close(&f, true);
	data[sizeof(struct seg_hdr) + 200] ^= 1;
	data[20] ^= 1;
	assert_int_equal(file_write(file, 0600, data, bytes, NULL), 0);
	assert_int_equal(feeder_open(&f, dir, m, 1 << 20, &why), -EBADMSG);
	feeder_close(&f, true);
	free(data);
	free(file);
	free(m);
	remove_dir(dir);
}

/* The footer made while receiving equals the one made again from the frames */
static void footer_rebuilt(void **state)
{
	char *dir = temp_dir(), *file, *data, *again;
	struct maker *m = maker_new();
	struct seg_table t;
	struct seg_state st;
	struct seg_trailer *tr;
	struct feeder f;
	struct why why;
	size_t bytes, foot;
	uint64_t end;
	bool torn;
	int fd;

	assert_int_equal(feeder_open(&f, dir, m, 200000, &why), 0);
	while (m->frame_no < 80) {
		feed(&f, m, 1);
		feeder_wait(&f, m->frame_no);
	}
	feeder_close(&f, true);
	file = only_file(dir, "0001.seg");
	assert_int_equal(file_read(file, 1 << 20, &data, &bytes, NULL), 0);
	tr = (void *)(data + bytes - sizeof(*tr));
	assert_int_equal(seg_trailer_check(tr, bytes, &why), 0);
	fd = open(file, O_RDONLY);
	seg_state_init(&st);
	assert_int_equal(seg_scan(fd, bytes, (void *)data, &t, &st, &end, &torn, &why), 0);
	assert_int_equal(end, tr->foot_offset);
	assert_false(torn);
	assert_int_equal(seg_foot_make(&t, end, (uint8_t **)&again, &foot), 0);
	assert_int_equal(foot, bytes - end);
	assert_memory_equal(again, data + end, foot);
	seg_table_free(&t);
	close(fd);
	free(again);
	free(data);
	free(file);
	free(m);
	remove_dir(dir);
}

/* kill -9 while it writes, again and again: everything acknowledged is there */
static void killed(void **state)
{
	char *dir = temp_dir();
	struct maker *m = maker_new(), *child = malloc(sizeof(*child));
	struct feeder f;
	struct why why;

	for (int round = 0; round < 25; round++) {
		int fds[2], status;
		uint64_t acked = m->frame_no, got;
		pid_t pid;

		assert_int_equal(pipe(fds), 0);
		pid = fork();
		if (!pid) {
			*child = *m;
			if (feeder_open(&f, dir, child, 60000, &why))
				_exit(9);
			for (;;) {
				feed(&f, child, 1 + (int)(child->frame_no % 4));
				feeder_wait(&f, child->frame_no);
				if (write(fds[1], &f.durable, 8) != 8)
					_exit(8);
			}
		}
		close(fds[1]);
		usleep(3000 + (useconds_t)round * 700);
		kill(pid, SIGKILL);
		assert_int_equal(waitpid(pid, &status, 0), pid);
		assert_true(WIFSIGNALED(status));
		while (read(fds[0], &got, 8) == 8)
			acked = got;
		close(fds[0]);
		assert_int_equal(feeder_open(&f, dir, m, 60000, &why), 0);
		assert_true(next_frame(&f) > acked);
		/* the maker is deterministic: catch up with what is stored */
		while (m->frame_no + 1 < next_frame(&f))
			step(m);
		assert_memory_equal(ingest_state(f.s)->last_tag, m->tag, 16);
		feeder_close(&f, true);
	}
	assert_true(m->frame_no > 50);
	free(child);
	free(m);
	remove_dir(dir);
}

/* A source that asks for its group again, with another key, takes nothing from the history */
static void key_of_history_stays(void **state)
{
	char *dir = temp_dir(), path[200], *cert, *key, *before, *after;
	struct maker *m = maker_new();
	size_t bytes, again;
	struct feeder f;
	struct why why;

	make_cert("ec", &cert, &key);
	make_group(dir, m, &cert, 1);
	make_group(dir, m, &cert, 1);	/* nothing has arrived: the newer one counts */
	snprintf(path, sizeof(path), "%s/groups/11111111111111111111111111111111/"
		 "wrapped-22222222222222222222222222222222.key", dir);
	assert_int_equal(file_read(path, 1 << 16, &before, &bytes, NULL), 0);
	assert_int_equal(feeder_open(&f, dir, m, 1 << 20, &why), 0);
	feed(&f, m, 1);
	feeder_wait(&f, 1);
	feeder_close(&f, true);
	m->key[0] ^= 1;
	make_group(dir, m, &cert, 1);
	assert_int_equal(file_read(path, 1 << 16, &after, &again, NULL), 0);
	assert_int_equal(bytes, again);
	assert_memory_equal(before, after, bytes);
	free(before);
	free(after);
	free(cert);
	free(key);
	free(m);
	remove_dir(dir);
}

/* The segment cannot be made for a while: what gathers meanwhile goes behind the first frames, not over them */
static void made_at_second_try(void **state)
{
	static const char group[] = "groups/11111111111111111111111111111111";
	char *dir = temp_dir(), path[300];
	struct maker *m = maker_new();
	struct feeder f;
	struct why why;

	assert_int_equal(feeder_open(&f, dir, m, 1 << 20, &why), 0);
	snprintf(path, sizeof(path), "%s/%s/segments/22222222222222222222222222222222-0000000000000001.open",
		 dir, group);
	assert_int_equal(dir_make(path, 0700, &why), 0);
	for (int i = 0; i < 2; i++) {
		struct loop_idle idle = { .fn = (void (*)(void *))loop_stop, .arg = f.loop };

		feed(&f, m, 3);
		loop_idle_add(f.loop, &idle);	/* one turn: the idle hooks alone */
		assert_int_equal(loop_run(f.loop), 0);
		loop_idle_remove(f.loop, &idle);
	}
	assert_int_equal(f.durable, 0);
	assert_int_equal(rmdir(path), 0);
	feeder_wait(&f, 6);
	feeder_close(&f, true);
	assert_int_equal(feeder_open(&f, dir, m, 1 << 20, &why), 0);
	assert_int_equal(next_frame(&f), 7);
	feeder_close(&f, true);
	free(m);
	remove_dir(dir);
}

/* The host was booted: a disk that has not come back is not there, and nothing is consistent */
static void begun_anew(void **state)
{
	struct seg_state st;
	struct seg_event disk = { .kind = ASR_KIND_DISK, .disk = 1, .value = 800, .name = "log" };
	struct seg_event start = { .kind = ASR_KIND_STATE, .flags = ASR_WHY_START };
	struct asr_rec_state body = { .from = 0, .to = ASR_STATE_CAPTURE, .reason = ASR_WHY_START };
	struct frame_rec r = { .kind = ASR_KIND_STATE, .bytes = sizeof(body) };
	struct frame_view v = { .meta = (const uint8_t *)&body };

	seg_state_init(&st);
	seg_state_event(&st, &disk);
	disk.disk = 0;
	seg_state_event(&st, &disk);
	assert_int_equal(st.disks, 2);
	seg_state_event(&st, &start);
	assert_int_equal(st.disks, 0);
	assert_int_equal(wire_consistency(&v, &r), CONSISTENCY_LOST);
	body.reason = ASR_WHY_REQUEST;
	assert_int_equal(wire_consistency(&v, &r), CONSISTENCY_SAME);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(put_once), cmocka_unit_test(refuse_wrong_frames),
		cmocka_unit_test(roll_and_reopen), cmocka_unit_test(torn_everywhere),
		cmocka_unit_test(damage_is_no_tear), cmocka_unit_test(footer_rebuilt),
		cmocka_unit_test(killed), cmocka_unit_test(killed_before_the_first_frame),
		cmocka_unit_test(recovered_is_durable), cmocka_unit_test(successor_vouches),
		cmocka_unit_test(key_of_history_stays), cmocka_unit_test(begun_anew),
		cmocka_unit_test(made_at_second_try),
	};

	log_init("test_store", LOG_LVL_ERR);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
