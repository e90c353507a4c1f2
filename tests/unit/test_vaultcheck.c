// SPDX-License-Identifier: Apache-2.0
/* A whole vault is sound; what is flipped, missing, foreign or forged in it is found, all of it; a check goes on where
   it was ended. */
#include "frames.h"

#include <glob.h>

#define FRAMES		60
#define SEGMENT		100000

struct vault {
	char *dir, *cert, *key;
	struct maker *m;
	glob_t segs;			/* sealed */
};

struct told {
	int count, until;		/* findings; calls of progress before it says that it is to end, 0: never */
	bool about_seq;
	char text[600];			/* of the first */
};

static void on_found(const struct vaultcheck_finding *f, void *arg)
{
	struct told *t = arg;

	t->about_seq |= f->seq != 0;
	if (!t->count++)
		snprintf(t->text, sizeof(t->text), "%s %s: %s", f->group, f->file, f->text);
}

static int on_progress(uint64_t done, uint64_t total, void *arg)
{
	struct told *t = arg;

	assert_true(done <= total);
	return t->until && !--t->until;
}

static int check(const struct vault *v, const char *key, const char *journal, struct told *t,
		 struct vaultcheck_result *r, struct why *why)
{
	struct vaultcheck_args a = { .vault_dir = v->dir, .key_pem = key, .journal = journal, .found = on_found,
				     .progress = on_progress, .arg = t };

	return vaultcheck_run(&a, r, why);
}

/* How many findings, of a check that came to its end */
static int findings(const struct vault *v, const char *key, struct told *t)
{
	struct vaultcheck_result r;
	struct why why = {0};

	*t = (struct told){0};
	if (check(v, key, NULL, t, &r, &why))
		fail_msg("%s", why.text);
	assert_int_equal(r.findings, t->count);
	return t->count;
}

static void vault_new(struct vault *v)
{
	struct feeder f;
	struct why why;
	char path[200];

	memset(v, 0, sizeof(*v));
	v->dir = temp_dir();
	v->m = maker_new();
	make_cert("ec", &v->cert, &v->key);
	make_group(v->dir, v->m, &v->cert, 1);
	assert_int_equal(feeder_open(&f, v->dir, v->m, SEGMENT, &why), 0);
	make_disk(v->m, 0, "root", 1024, ASR_DISKF_DIRTY);
	for (int i = 0; i < FRAMES; i++) {
		make_data(v->m, ASR_KIND_WRITE, 0, (uint64_t)(i * 16 % 1000), 16, (uint8_t)(i + 1));
		make_data(v->m, ASR_KIND_WRITE, 0, (uint64_t)(i * 8 % 900), 8, (uint8_t)(i + 2));
		make_frame(v->m);
		assert_int_equal(ingest_frame(f.s, v->m->frame, v->m->bytes, &why), 0);
		feeder_wait(&f, v->m->frame_no);
	}
	feeder_close(&f, true);
	snprintf(path, sizeof(path), "%s/groups/*/segments/*.seg", v->dir);
	assert_int_equal(glob(path, 0, NULL, &v->segs), 0);
	assert_true(v->segs.gl_pathc >= 4);
}

static void vault_free(struct vault *v)
{
	globfree(&v->segs);
	free(v->cert);
	free(v->key);
	free(v->m);
	remove_dir(v->dir);
}

/* Bytes of a file are XORed; twice: it is as before */
static void change(const char *path, off_t offset, uint8_t with)
{
	int fd = open(path, O_RDWR | O_CLOEXEC);
	uint8_t b;

	assert_int_equal(pread(fd, &b, 1, offset), 1);
	b ^= with;
	assert_int_equal(pwrite(fd, &b, 1, offset), 1);
	close(fd);
}

static void sound(void **state)
{
	struct vaultcheck_result r;
	struct told t = {0};
	struct vault v;
	struct why why;

	vault_new(&v);
	assert_int_equal(check(&v, NULL, NULL, &t, &r, &why), 0);
	assert_int_equal(t.count, 0);
	assert_int_equal(r.frames, FRAMES);
	assert_int_equal(r.records, 2 * FRAMES);
	assert_int_equal(r.segments, v.segs.gl_pathc + 1);
	assert_int_equal(r.bytes, r.total);
	assert_int_equal(r.blocks, 0);
	assert_int_equal(check(&v, v.key, NULL, &t, &r, &why), 0);
	assert_int_equal(t.count, 0);
	assert_int_equal(r.blocks, 3 * FRAMES);
	vault_free(&v);
}

static void each_flip(void **state)
{
	struct vault v;
	struct told t;
	int tried = 0;

	vault_new(&v);
	for (size_t i = 0; i < v.segs.gl_pathc; i++) {
		const char *path = v.segs.gl_pathv[i];
		struct stat st;

		assert_int_equal(stat(path, &st), 0);
		for (off_t at = (off_t)i; at < st.st_size; at += at < 112 || at > st.st_size - 200 ? 1 : 997) {
			change(path, at, 0x10);
			if (!findings(&v, NULL, &t) || !strstr(t.text, strrchr(path, '/') + 1))
				fail_msg("%s, byte %lld: %s", path, (long long)at, t.text);
			change(path, at, 0x10);
			tried++;
		}
	}
	assert_true(tried > 1000);
	assert_int_equal(findings(&v, NULL, &t), 0);
	vault_free(&v);
}

/* Two frames of one segment and one of another: each is named, with the points that it may spoil */
static void all_are_named(void **state)
{
	struct vault v;
	struct told t;

	vault_new(&v);
	change(v.segs.gl_pathv[0], 3000, 1);
	change(v.segs.gl_pathv[0], 60000, 1);
	change(v.segs.gl_pathv[2], 30000, 1);
	assert_int_equal(findings(&v, NULL, &t), 3);
	assert_true(t.about_seq);
	vault_free(&v);
}

static void gone_and_foreign(void **state)
{
	char cmd[700], path[300], hidden[300], group[200];
	struct vault v;
	struct told t;

	vault_new(&v);
	snprintf(hidden, sizeof(hidden), "%s/hidden", v.dir);
	for (size_t i = 0; i < v.segs.gl_pathc; i++) {
		assert_int_equal(rename(v.segs.gl_pathv[i], hidden), 0);
		assert_true(findings(&v, NULL, &t) >= 1);
		assert_non_null(strstr(t.text, "something is missing"));
		assert_int_equal(rename(hidden, v.segs.gl_pathv[i]), 0);
	}
	/* another segment under its name, and a file that is none */
	snprintf(cmd, sizeof(cmd), "cp %s %s && cp %s %s", v.segs.gl_pathv[1], hidden, v.segs.gl_pathv[2],
		 v.segs.gl_pathv[1]);
	assert_int_equal(system(cmd), 0);
	assert_true(findings(&v, NULL, &t) >= 1);
	assert_int_equal(rename(hidden, v.segs.gl_pathv[1]), 0);
	snprintf(path, sizeof(path), "%.*s/x", (int)(strrchr(v.segs.gl_pathv[0], '/') - v.segs.gl_pathv[0]),
		 v.segs.gl_pathv[0]);
	assert_int_equal(close(open(path, O_CREAT | O_WRONLY, 0600)), 0);
	assert_int_equal(findings(&v, NULL, &t), 1);
	assert_int_equal(unlink(path), 0);
	/* a truncated one */
	assert_int_equal(truncate(v.segs.gl_pathv[3], 50000), 0);
	assert_true(findings(&v, NULL, &t) >= 1);
	/* the key without which nothing opens */
	snprintf(cmd, sizeof(cmd), "rm %.*s/wrapped-*.key", (int)(strstr(v.segs.gl_pathv[0], "/segments") -
		 v.segs.gl_pathv[0]), v.segs.gl_pathv[0]);
	assert_int_equal(system(cmd), 0);
	assert_true(findings(&v, NULL, &t) >= 2);
	assert_non_null(strstr(t.text, "wrapped-"));
	/* the group's own file */
	snprintf(group, sizeof(group), "%.*s/group.json", (int)(strstr(v.segs.gl_pathv[0], "/segments") -
		 v.segs.gl_pathv[0]), v.segs.gl_pathv[0]);
	assert_int_equal(truncate(group, 10), 0);
	assert_int_equal(findings(&v, NULL, &t), 1);
	assert_non_null(strstr(t.text, "group.json"));
	vault_free(&v);
}

/* Content is changed and all checksums made to fit, as who wants to deceive would: the key finds it */
static void forged(void **state)
{
	struct seg_env *e;
	struct vault v;
	struct told t;
	char *data, *other;
	size_t bytes;
	int fd;

	vault_new(&v);
	assert_int_equal(file_read(v.segs.gl_pathv[0], 1 << 22, &data, &bytes, NULL), 0);
	e = (void *)(data + sizeof(struct seg_hdr));
	data[sizeof(struct seg_hdr) + sizeof(*e) + e->bytes - 40] ^= 1;
	seg_env_make(e, (uint8_t *)(e + 1), e->bytes, e->frame_no, e->durable_no, e->arrival_ns);
	fd = open(v.segs.gl_pathv[0], O_WRONLY | O_CLOEXEC);
	assert_int_equal(pwrite(fd, data, bytes, 0), bytes);
	close(fd);
	free(data);
	assert_int_equal(findings(&v, NULL, &t), 0);
	assert_int_equal(findings(&v, v.key, &t), 1);
	assert_true(t.about_seq);
	/* another's key opens nothing: that is said, and nothing is called sound by content */
	make_cert("ec", &other, &data);
	assert_int_equal(findings(&v, data, &t), 1);
	free(other);
	free(data);
	vault_free(&v);
}

static void goes_on(void **state)
{
	struct vaultcheck_result r, again;
	struct told t = { .until = 3 };
	char journal[200];
	struct vault v;
	struct why why;

	vault_new(&v);
	snprintf(journal, sizeof(journal), "%s/journal", v.dir);
	assert_int_equal(check(&v, NULL, journal, &t, &r, &why), -ECANCELED);
	t = (struct told){0};
	assert_int_equal(check(&v, NULL, journal, &t, &r, &why), 0);
	assert_true(r.skipped >= 1 && r.skipped < v.segs.gl_pathc);
	assert_int_equal(check(&v, NULL, journal, &t, &again, &why), 0);
	assert_int_equal(again.skipped, v.segs.gl_pathc);
	assert_int_equal(t.count, 0);
	/* frames were looked at, contents not */
	assert_int_equal(check(&v, v.key, journal, &t, &r, &why), 0);
	assert_int_equal(r.skipped, 0);
	assert_int_equal(check(&v, v.key, journal, &t, &r, &why), 0);
	assert_int_equal(r.skipped, v.segs.gl_pathc);
	/* what is behind a segment that was skipped is checked against it */
	assert_int_equal(unlink(v.segs.gl_pathv[1]), 0);
	assert_int_equal(check(&v, v.key, journal, &t, &r, &why), 0);
	assert_int_equal(t.count, 1);
	/* another file is not written to */
	assert_int_equal(check(&v, NULL, v.segs.gl_pathv[0], &t, &r, &why), -EINVAL);
	vault_free(&v);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(sound), cmocka_unit_test(each_flip), cmocka_unit_test(all_are_named),
		cmocka_unit_test(gone_and_foreign), cmocka_unit_test(forged), cmocka_unit_test(goes_on),
	};

	log_init("test_vaultcheck", LOG_LVL_ERR);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
