// SPDX-License-Identifier: Apache-2.0
/* The spool: what goes in comes out, whole and in order, and nothing else does. */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <cmocka.h>

#include "source.h"

static const uint8_t key[ASR_KEY_BYTES] = { 1, 2, 3 };
static struct loop *l;
static struct pack like;
static struct spool_owner owner;
static char dir[64], sub[80];
static struct spool *s;
static struct batch b;
static uint8_t data[ASR_PAYLOAD_MAX];
static uint64_t next_seq, written_end;
static int failures, refusal;

static void on_written(uint64_t ring_end, unsigned int attachment, void *arg)
{
	assert_int_equal(attachment, 5);
	assert_true(ring_end > written_end);
	written_end = ring_end;
}

static void on_failed(void *arg)
{
	failures++;
}

static void on_kick(void *arg)
{
	loop_stop(l);
}

static int on_check(const char *path, void *arg, struct why *why)
{
	return refusal ? why_set(why, -refusal, "it is not liked") : 0;
}

static const struct spool_ops ops = { on_written, on_failed, on_kick, on_check };

static void open_spool(uint64_t max)
{
	assert_int_equal(spool_open(l, dir, max, &owner, &like, &ops, NULL, &s), 0);
}

static void close_spool(void)
{
	spool_close(s);
	s = NULL;
}

/* A frame of one write; its content follows from its number */
static int add(uint32_t bytes)
{
	struct asr_rec r = { .kind = ASR_KIND_WRITE, .seq = next_seq, .time_ns = 1000 + next_seq,
			     .sector = next_seq * 8, .sectors = bytes / 512, .payload_bytes = bytes };
	int ret;

	for (uint32_t i = 0; i < bytes; i += 8) {
		uint64_t v = (next_seq + i) * 0x9e3779b97f4a7c15ull;

		memcpy(data + i, &v, 8);
	}
	batch_reset(&b);
	assert_int_equal(batch_add(&b, &r, data), 0);
	b.ring_end = next_seq * 1000000;
	ret = spool_add(s, &b, 5);
	if (!ret)
		next_seq++;
	return ret;
}

/* Until all that was added is written, or has failed */
static void settle(void)
{
	int before = failures;

	spool_flush(s);
	while (written_end < (next_seq - 1) * 1000000 && failures == before)
		assert_int_equal(loop_run(l), 0);
}

static void add_all(int frames, uint32_t bytes)
{
	while (frames) {
		int r = add(bytes);

		assert_true(!r || r == -EAGAIN);
		if (r)
			assert_int_equal(loop_run(l), 0);
		else
			frames--;
	}
	settle();
}

/* Reads to the end: how many frames, the first one being number from */
static int read_all(uint64_t from, struct why *why)
{
	struct frame_view v;
	const uint8_t *plain;
	int n = 0, r;

	while ((r = spool_read(s, &v, &plain, why))) {
		uint64_t seq = from + (uint64_t)n, word;

		if (r == -EAGAIN) {
			assert_int_equal(loop_run(l), 0);
			continue;
		}
		if (r < 0)
			return r;
		memcpy(&word, plain + 8, sizeof(word));
		assert_int_equal(v.hdr.first_seq, seq);
		assert_int_equal(v.recs[0].time_ns, 1000 + seq);
		assert_int_equal(word, (seq + 8) * 0x9e3779b97f4a7c15ull);
		spool_pass(s);
		n++;
	}
	return n;
}

static int set_up(void **state)
{
	memset(&like, 0, sizeof(like));
	memset(&owner, 0, sizeof(owner));
	like.generation = 1;
	memset(owner.group, 0x11, 16);
	memset(owner.stream, 0x22, 16);
	strcpy(owner.host_id, "abc");
	strcpy(owner.host, "web-1");
	strcpy(owner.name, "g");
	owner.key = key;
	strcpy(dir, access("/dev/shm", W_OK) ? "/tmp/asr-spool-XXXXXX" : "/dev/shm/asr-spool-XXXXXX");
	next_seq = 1;
	written_end = 0;
	failures = refusal = 0;
	if (!mkdtemp(dir) || pack_room_create(&like.room) || loop_create(&l, 64))
		return -1;
	snprintf(sub, sizeof(sub), "%s/g", dir);
	return 0;
}

static int tear_down(void **state)
{
	char cmd[200];

	if (s)
		close_spool();
	loop_destroy(l);
	pack_room_destroy(like.room);
	snprintf(cmd, sizeof(cmd), "rm -rf %s", dir);
	return system(cmd);
}

static char *state_of(void)
{
	static char text[32];
	json_t *j = spool_status(s);

	snprintf(text, sizeof(text), "%s", json_string_value(json_object_get(j, "state")));
	json_decref(j);
	return text;
}

static int count_files(void)
{
	char cmd[200], line[32] = "";
	FILE *f;

	snprintf(cmd, sizeof(cmd), "ls %s | grep -c frames$", sub);
	f = popen(cmd, "r");
	assert_non_null(f);
	assert_non_null(fgets(line, sizeof(line), f));
	pclose(f);
	return atoi(line);
}

/* ------------------------------------------------------------------ order */

static void what_goes_in_comes_out(void **state)
{
	struct why why = { "" };

	open_spool(1ull << 30);
	assert_string_equal(state_of(), "empty");
	assert_int_equal(read_all(1, &why), 0);
	add_all(300, 65536);		/* more than all buffers */
	assert_int_equal(spool_last_seq(s), 300);
	assert_int_equal(read_all(1, &why), 300);
	assert_int_equal(spool_unread(s), 0);
	add_all(5, 4096);		/* behind the reader, which stands at the end */
	assert_int_equal(read_all(301, &why), 5);
	spool_rewind(s);
	assert_int_equal(read_all(1, &why), 305);
	spool_forget(s, 304);
	assert_true(spool_has_content(s));
	spool_forget(s, 305);
	assert_false(spool_has_content(s));
	assert_int_equal(count_files(), 0);
	add_all(2, 4096);
	assert_int_equal(read_all(306, &why), 2);
}

static void another_process_goes_on(void **state)
{
	struct why why = { "" };

	for (int i = 0; i < 5; i++) {
		open_spool(1ull << 30);
		assert_int_equal(spool_last_seq(s), (uint64_t)i * 10);
		add_all(10, 8192);
		close_spool();
	}
	open_spool(1ull << 30);
	assert_int_equal(count_files(), 5);
	assert_int_equal(spool_last_seq(s), 50);
	assert_int_equal(read_all(1, &why), 50);
	spool_rewind(s);
	spool_forget(s, 25);		/* the third file holds 26 and on */
	assert_int_equal(count_files(), 3);
	assert_int_equal(read_all(21, &why), 30);
}

/* -------------------------------------------------------------------- cap */

static void takes_what_fits_and_no_more(void **state)
{
	struct why why = { "" };
	int r, n = 0;

	open_spool(8 << 20);
	while ((r = add(131072)) != -ENOSPC) {
		assert_true(!r || r == -EAGAIN);
		if (r)
			assert_int_equal(loop_run(l), 0);
		n += !r;
	}
	settle();
	assert_string_equal(state_of(), "full");
	assert_true(n > 50 && n < 64);
	assert_false(spool_usable(s));
	assert_int_equal(read_all(1, &why), n);
	spool_forget(s, 30);
	while (!spool_usable(s))
		usleep(10000);		/* it looks once a second */
	add_all(3, 131072);
	assert_int_equal(read_all((uint64_t)n + 1, &why), 3);
}

static void a_folder_that_is_not_liked(void **state)
{
	open_spool(8 << 20);
	refusal = -EPERM;
	assert_int_equal(spool_begin(s), -EPERM);
	assert_string_equal(state_of(), "failed");
	assert_int_equal(add(4096), -ENOSPC);
	assert_int_not_equal(access(sub, F_OK), 0);	/* nothing was made there */
}

static void a_write_that_fails(void **state)
{
	struct rlimit old, small = { 300000, RLIM_INFINITY };
	struct why why = { "" };

	getrlimit(RLIMIT_FSIZE, &old);
	signal(SIGXFSZ, SIG_IGN);
	open_spool(1ull << 30);
	add_all(2, 65536);
	small.rlim_max = old.rlim_max;
	assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
	for (int i = 0; i < 6; i++)
		assert_int_equal(add(65536), 0);
	settle();
	assert_int_equal(failures, 1);
	assert_int_equal(setrlimit(RLIMIT_FSIZE, &old), 0);
	assert_string_equal(state_of(), "failed");
	assert_false(spool_usable(s));
	assert_int_equal(spool_last_seq(s), 2);
	/* the next process is not kept waiting, and does not see the half of a frame */
	close_spool();
	open_spool(1ull << 30);
	assert_int_equal(spool_last_seq(s), 2);
	next_seq = 3;
	add_all(6, 65536);
	assert_int_equal(read_all(1, &why), 8);
	assert_int_equal(spool_unread(s), 0);
}

/* ------------------------------------------------------------------- torn */

static char *path_of(uint64_t no)
{
	static char path[160];

	snprintf(path, sizeof(path), "%s/%016llx.frames", sub, (unsigned long long)no);
	return path;
}

static uint8_t *slurp(const char *path, size_t *bytes)
{
	char *p;

	assert_int_equal(file_read(path, 1 << 20, &p, bytes, NULL), 0);
	return (uint8_t *)p;
}

static void spill(const char *path, const uint8_t *from, size_t bytes)
{
	int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);

	assert_true(fd >= 0);
	assert_int_equal(write(fd, from, bytes), bytes);
	close(fd);
}

static void torn_at_every_byte(void **state)
{
	struct why why = { "" };
	size_t whole, two;
	uint8_t *all;
	struct stat st;

	open_spool(1ull << 30);
	add_all(2, 512);
	assert_int_equal(stat(path_of(1), &st), 0);
	two = (size_t)st.st_size;
	add_all(1, 512);
	close_spool();
	all = slurp(path_of(1), &whole);
	log_init("test", 0);
	for (size_t n = two; n < whole; n++) {
		spill(path_of(1), all, n);
		open_spool(1ull << 30);
		assert_int_equal(spool_last_seq(s), 2);
		assert_int_equal(read_all(1, &why), 2);
		assert_int_equal(stat(path_of(1), &st), 0);
		assert_int_equal(st.st_size, two);
		close_spool();
	}
	for (size_t n = two; n < whole; n += 3) {	/* and a bit flipped there */
		all[n] ^= 1;
		spill(path_of(1), all, whole);
		all[n] ^= 1;
		open_spool(1ull << 30);
		assert_int_equal(spool_last_seq(s), 2);
		assert_int_equal(read_all(1, &why), 2);
		close_spool();
	}
	/* a tail cut off does not stand in the way */
	spill(path_of(1), all, whole - 1);
	open_spool(1ull << 30);
	next_seq = 3;
	written_end = 2000000;
	add_all(4, 512);
	assert_int_equal(read_all(1, &why), 6);
	close_spool();
	/* but the file before the last is torn: what follows continues nothing */
	spill(path_of(1), all, two - 1);
	open_spool(1ull << 30);
	assert_int_equal(spool_last_seq(s), 1);
	assert_int_equal(read_all(1, &why), 1);
	log_init("test", LOG_LVL_WARN);
	free(all);
}

static void damaged_in_the_middle(void **state)
{
	struct why why = { "" };
	uint8_t *all;
	size_t bytes;

	for (int i = 0; i < 4; i++) {
		open_spool(1ull << 30);
		add_all(3, 512);
		close_spool();
	}
	all = slurp(path_of(1), &bytes);
	all[bytes - 30] ^= 1;
	spill(path_of(1), all, bytes);
	free(all);
	open_spool(1ull << 30);
	assert_int_equal(spool_last_seq(s), 12);
	assert_int_equal(read_all(1, &why), -EBADMSG);
	assert_non_null(strstr(why.text, "frame 3"));
	close_spool();
	unlink(path_of(4));		/* a file is missing */
	unlink(path_of(1));
	open_spool(1ull << 30);
	spool_rewind(s);
	assert_int_equal(read_all(7, &why), 6);
}

/* ------------------------------------------------------------ whose it is */

static void refused(const char *what)
{
	struct why why = { "" };
	struct frame_view v;
	const uint8_t *plain;

	open_spool(1ull << 30);
	assert_true(spool_refused(s, &why));
	if (!strstr(why.text, what))
		fail_msg("\"%s\" does not say \"%s\"", why.text, what);
	assert_string_equal(state_of(), "refused");
	assert_int_equal(add(512), -ENOSPC);
	assert_int_equal(spool_read(s, &v, &plain, &why), 0);
	assert_int_equal(spool_last_seq(s), 0);
	close_spool();
	assert_int_equal(count_files(), 1);
}

static void somebody_elses_is_left_alone(void **state)
{
	static const uint8_t other[ASR_KEY_BYTES] = { 9 };
	char header[160];
	uint8_t *h, *frames, *after;
	size_t bytes, n, m;

	open_spool(1ull << 30);
	add_all(3, 512);
	close_spool();
	snprintf(header, sizeof(header), "%s/header", sub);
	h = slurp(header, &bytes);
	frames = slurp(path_of(1), &n);
	log_init("test", 0);
	owner.key = other;
	refused("another data key");
	owner.key = key;
	owner.stream[3] ^= 1;
	refused("another group (g of host web-1)");
	owner.stream[3] ^= 1;
	owner.host_id[0] = 'z';
	refused("another host (web-1, id abc)");
	owner.host_id[0] = 'a';
	for (size_t i = 0; i < bytes; i++) {
		h[i] ^= 0x40;
		spill(header, h, bytes);
		h[i] ^= 0x40;
		if (i < offsetof(struct spool_header, reserved2))
			refused(i < 8 ? "no spool's header" : i < 12 ? "version" : "damaged");
	}
	for (size_t i = 0; i < bytes; i++) {
		spill(header, h, i);
		refused("header");
	}
	unlink(header);
	refused("no header file");
	after = slurp(path_of(1), &m);
	assert_int_equal(n, m);
	assert_memory_equal(frames, after, n);
	/* named, it goes */
	open_spool(1ull << 30);
	assert_int_equal(spool_discard(s, NULL), 0);
	assert_false(spool_refused(s, NULL));
	assert_int_not_equal(access(sub, F_OK), 0);
	next_seq = 1;
	written_end = 0;
	add_all(1, 512);
	log_init("test", LOG_LVL_WARN);
	free(h);
	free(frames);
	free(after);
}

/* ----------------------------------------------------------------- nonces */

struct nonce {
	uint8_t session[ASR_UUID_BYTES], tag[ASR_TAG_BYTES];
	uint64_t no;
};
static struct nonce seen[4096];
static int nonces;

static void gather(void)
{
	struct frame_view v;
	const uint8_t *plain;
	int r;

	spool_rewind(s);
	while ((r = spool_read(s, &v, &plain, NULL))) {
		if (r == -EAGAIN) {
			assert_int_equal(loop_run(l), 0);
			continue;
		}
		assert_int_equal(r, 1);
		memcpy(seen[nonces].session, v.hdr.session, ASR_UUID_BYTES);
		memcpy(seen[nonces].tag, v.tag, ASR_TAG_BYTES);
		seen[nonces++].no = v.hdr.frame_no;
		spool_pass(s);
	}
}

/* A crash takes back part of a file again and again: what is sealed in its place has the same
   number and another key */
static void no_nonce_twice(void **state)
{
	int same = 0;

	log_init("test", 0);
	for (int round = 0; round < 20; round++) {
		char cmd[200];

		open_spool(1ull << 30);
		add_all(6, 4096);
		gather();
		close_spool();
		snprintf(cmd, sizeof(cmd), "f=$(ls %s/*.frames | tail -n 1); truncate -s $(($(stat -c %%s $f) / 2)) $f",
			 sub);
		assert_int_equal(system(cmd), 0);
	}
	log_init("test", LOG_LVL_WARN);
	for (int i = 0; i < nonces; i++) {
		for (int j = 0; j < i; j++) {
			if (seen[i].no != seen[j].no)
				continue;
			same++;
			assert_int_equal(!memcmp(seen[i].session, seen[j].session, ASR_UUID_BYTES),
					 !memcmp(seen[i].tag, seen[j].tag, ASR_TAG_BYTES));
		}
	}
	assert_true(same > 500);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
#define T(f)	cmocka_unit_test_setup_teardown(f, set_up, tear_down)
		T(what_goes_in_comes_out), T(another_process_goes_on), T(takes_what_fits_and_no_more),
		T(a_folder_that_is_not_liked), T(a_write_that_fails), T(torn_at_every_byte), T(damaged_in_the_middle),
		T(somebody_elses_is_left_alone), T(no_nonce_twice),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
