// SPDX-License-Identifier: Apache-2.0
/*
 * Points of a group over hosts (userland/cut.c): what two streams and a list of members allow to be called one, and
 * everything that must not be: a mark that one of them lacks, or did not hold for, or was not consistent at; one
 * that nobody declared; one of other members.
 */
#include "frames.h"

#define GROUP	"11111111111111111111111111111111"
#define A	"22222222222222222222222222222222"
#define B	"55555555555555555555555555555555"
#define S_NS	1000000000ull
#define MARK(n)	"auto+0002000000000000000" n

struct world {
	char *dir;
	struct maker *m[2];
	struct feeder f[2];
	uint64_t ids[2];
};

static void flush(struct world *w, int h)
{
	struct why why;

	make_frame(w->m[h]);
	assert_int_equal(ingest_frame(w->f[h].s, w->m[h]->frame, w->m[h]->bytes, &why), 0);
	feeder_wait(&w->f[h], w->m[h]->frame_no);
}

/* A write on host h, and the clock goes on */
static void write_one(struct world *w, int h, uint8_t fill)
{
	make_data(w->m[h], ASR_KIND_WRITE, 0, 0, 8, fill);
	flush(w, h);
	w->m[0]->time_ns += S_NS;
	w->m[1]->time_ns += S_NS;
}

#define NO_HOLD	1u
#define NO_GROUP	2u
#define APP	4u

static void mark(struct world *w, int h, const char *name, unsigned int how)
{
	make_mark(w->m[h], name, ++w->ids[h]);
	if (!(how & NO_HOLD))
		((struct asr_rec_mark *)(w->m[h]->meta + w->m[h]->hdr.meta_bytes) - 1)->flags = ASR_MARK_HOLD;
	if (!(how & NO_GROUP))
		make_declaration(w->m[h], name, w->ids[h], ASR_MARK_GROUP);
	if (how & APP)
		make_declaration(w->m[h], name, w->ids[h], ASR_MARK_APP);
	flush(w, h);
}

static void both(struct world *w, const char *name, unsigned int how_a, unsigned int how_b)
{
	mark(w, 0, name, how_a);
	mark(w, 1, name, how_b);
}

static void begin(struct world *w, int h, const char *disk)
{
	make_disk(w->m[h], 0, disk, 64, 0);
	make_rec(w->m[h], ASR_KIND_RESYNC_BEGIN, ASR_DISK_NONE, 0, 0);
	make_rec(w->m[h], ASR_KIND_RESYNC_END, ASR_DISK_NONE, 0, 0);
	flush(w, h);
}

static void members(struct world *w, uint64_t epoch, uint64_t begun_ns, bool with_b)
{
	struct catalog_group g = { .name = "g", .host_id = "a", .generation = 1, .created_ns = begun_ns,
				   .epoch = epoch };
	json_t *list = json_pack("[{s:s, s:s, s:s, s:n}]", "host", "a", "name", "host-a", "stream", A, "left");
	char path[200], when[40];
	json_t *root, *epochs;

	memcpy(g.uuid, w->m[0]->group, 16);
	if (epoch > 1)
		json_array_append_new(list, json_pack("{s:s, s:s, s:s, s:o}", "host", "b", "name", "host-b",
						      "stream", B, "left", with_b ? json_null() :
						      json_string("2026-01-01T00:00:00Z")));
	assert_int_equal(folder_make(w->dir, &g, list, NULL), 0);
	json_decref(list);
	/* the vault's clock is the streams' here */
	snprintf(path, sizeof(path), "%s/groups/" GROUP "/group.json", w->dir);
	root = json_load_file(path, 0, NULL);
	epochs = json_object_get(root, "epochs");
	json_object_set_new(json_array_get(epochs, json_array_size(epochs) - 1), "begun",
			    json_string(time_format(begun_ns, when)));
	assert_int_equal(json_dump_file(root, path, 0), 0);
	json_decref(root);
}

static struct world *world_new(void)
{
	struct world *w = calloc(1, sizeof(*w));
	struct why why;

	w->dir = temp_dir();
	for (int h = 0; h < 2; h++) {
		w->m[h] = maker_new();
		w->m[h]->time_ns = 1700000000 * S_NS;
	}
	memset(w->m[1]->stream, 0x55, 16);
	memset(w->m[1]->session, 0x66, 16);
	for (int h = 0; h < 2; h++)
		assert_int_equal(folder_key(w->dir, w->m[h]->group, w->m[h]->stream, w->m[h]->key, 4, NULL), 0);
	members(w, 1, w->m[0]->time_ns - S_NS, false);
	for (int h = 0; h < 2; h++)
		assert_int_equal(feeder_open(&w->f[h], w->dir, w->m[h], 1 << 20, &why), 0);
	begin(w, 0, "d");
	write_one(w, 0, 1);
	mark(w, 0, "alone", NO_HOLD | NO_GROUP);
	write_one(w, 0, 2);
	members(w, 2, w->m[0]->time_ns, true);
	write_one(w, 0, 3);
	begin(w, 1, "d");
	write_one(w, 1, 4);
	return w;
}

static void world_free(struct world *w)
{
	for (int h = 0; h < 2; h++) {
		feeder_close(&w->f[h], true);
		free(w->m[h]);
	}
	remove_dir(w->dir);
	free(w);
}

static struct why why;
static struct point p;

/* Resolves, closes; the point's number in its stream, or -errno */
static int64_t at(struct world *w, const char *text, const char *disk)
{
	struct index *ix;
	int r = index_open(w->dir, "g", &ix, &why);

	assert_int_equal(r, 0);
	r = point_resolve(ix, text, disk, &p, &why);
	index_close(ix);
	return r ? r : (int64_t)p.seq;
}

static void offered(void **state)
{
	struct world *w = world_new();
	int64_t a, b, later;
	char text[80], when[40];
	struct index *ix;
	json_t *j;

	assert_int_equal(at(w, "latest", "host-a/d"), -ESTALE);
	assert_non_null(strstr(why.text, "host:latest"));
	both(w, MARK("1"), 0, 0);
	a = at(w, "latest", "host-a/d");
	b = at(w, "latest", "host-b/d");
	assert_int_equal(a, w->m[0]->seq - 1);		/* its declaration stands behind it */
	assert_int_equal(b, w->m[1]->seq - 1);
	assert_string_equal(p.name, MARK("1"));
	write_one(w, 0, 5);
	write_one(w, 1, 6);
	assert_int_equal(at(w, "latest", "host-a/d"), a);
	/* one declaration is enough; by the name as given, and as it is */
	both(w, "upgrade+00020000000000000007", NO_GROUP | APP, APP);
	later = at(w, "name:upgrade", "host-a/d");
	assert_true(later > a);
	/* one host alone had quiet applications, whatever else is declared of it */
	both(w, "half+00020000000000000008", APP, 0);
	both(w, "other+00020000000000000009", 0, APP);
	assert_int_equal(at(w, "name:upgrade+00020000000000000007", "host-a/d"), later);
	assert_true(at(w, "latest", "host-a/d") > later);
	assert_int_equal(at(w, "name:" MARK("1"), "host-b/d"), b);
	snprintf(text, sizeof(text), "time:%s", time_format(w->m[0]->time_ns - 2 * S_NS, when));
	assert_int_equal(at(w, text, "host-b/d"), b);
	/* both hosts have a disk d */
	assert_int_equal(at(w, "latest", "d"), -EINVAL);
	assert_non_null(strstr(why.text, "HOST/d"));
	assert_int_equal(at(w, "latest", "host-a/e"), -ENOENT);
	assert_int_equal(at(w, "latest", "host-c/d"), -ENOENT);
	assert_int_equal(at(w, "seq:3", "host-a/d"), -EINVAL);
	assert_int_equal(at(w, "yesterday", "host-a/d"), -EINVAL);
	assert_int_equal(at(w, "name:nobody", "host-a/d"), -ENOENT);
	/* a host's own */
	assert_int_equal(at(w, "host:latest", "host-a/d"), w->m[0]->seq);
	assert_int_equal(at(w, "host:seq:2", "host-a/d"), 2);
	assert_int_equal(at(w, "host:name:alone", "host-a/d"), 3);
	/* of the time when A was alone: A's disk, and nobody else's of that name */
	assert_int_equal(at(w, "name:alone", "host-a/d"), 3);
	assert_int_equal(at(w, "name:alone", "host-b/d"), -ENOENT);
	assert_int_equal(at(w, "name:alone", "nosuchhost/d"), -ENOENT);
	assert_int_equal(index_open(w->dir, "g", &ix, &why), 0);
	j = point_list_json(ix, &why);
	assert_int_equal(json_array_size(json_object_get(j, "marks")), 5);
	for (size_t i = 1; i < 5; i++)
		assert_string_equal(text_of(json_array_get(json_object_get(j, "marks"), i), "consistency"),
				    i == 2 ? "app" : "crash");
	json_decref(j);
	index_close(ix);
	world_free(w);
}

static void not_offered(void **state)
{
	struct world *w = world_new();
	int64_t a;

	both(w, MARK("1"), 0, 0);
	a = at(w, "latest", "host-a/d");
	assert_true(a > 0);
	write_one(w, 0, 5);
	write_one(w, 1, 5);
	mark(w, 0, MARK("2"), 0);				/* B lacks it */
	both(w, MARK("3"), NO_GROUP, NO_GROUP);			/* nobody says that all held */
	both(w, MARK("4"), 0, NO_HOLD);				/* B did not hold */
	both(w, "auto+00010000000000000005", 0, 0);		/* of other members than A and B */
	both(w, "auto+00030000000000000006", 0, 0);		/* of members that nobody knows */
	both(w, "auto", 0, 0);					/* not one of several hosts */
	make_declaration(w->m[0], MARK("7"), w->ids[0] + 1, ASR_MARK_GROUP);	/* said before it was made */
	flush(w, 0);
	both(w, MARK("7"), NO_GROUP, NO_GROUP);
	make_declaration(w->m[0], MARK("7"), w->ids[0] - 1, ASR_MARK_GROUP);	/* of another number */
	flush(w, 0);
	both(w, MARK("8"), 0, 0);				/* twice in one stream: which one is meant? */
	mark(w, 1, MARK("8"), 0);
	make_state(w->m[1], ASR_STATE_CAPTURE, ASR_STATE_TRACK, ASR_WHY_RING_FULL);
	flush(w, 1);
	both(w, MARK("9"), 0, 0);				/* B was not consistent */
	assert_int_equal(at(w, "latest", "host-a/d"), a);
	for (char c = '2'; c <= '9'; c++) {
		char text[60];

		snprintf(text, sizeof(text), "name:" MARK("%c"), c);
		assert_int_equal(at(w, text, "host-a/d"), -ENOENT);
	}
	assert_int_equal(at(w, "name:auto+00010000000000000005", "host-a/d"), -ENOENT);
	assert_int_equal(at(w, "name:auto+00030000000000000006", "host-a/d"), -ENOENT);
	world_free(w);
}

/* Before another host came, and after it has left, every moment of the one is a point */
static void alone(void **state)
{
	struct world *w = world_new();
	char text[80], when[40];
	int64_t both_at;

	assert_int_equal(at(w, "name:alone", "d"), 3);
	snprintf(text, sizeof(text), "time:%s", time_format(1700000000 * S_NS + S_NS / 2, when));
	assert_int_equal(at(w, text, "d"), 2);
	assert_int_equal(at(w, text, "host-b/d"), -ENOENT);
	both(w, MARK("1"), 0, 0);
	both_at = at(w, "latest", "host-a/d");
	write_one(w, 0, 7);
	mark(w, 0, "own", NO_HOLD | NO_GROUP);		/* of A alone, while B is in the group */
	assert_int_equal(at(w, "name:own", "host-a/d"), -ENOENT);
	assert_int_equal(at(w, "latest", "host-a/d"), both_at);
	write_one(w, 0, 8);
	members(w, 3, w->m[0]->time_ns, false);
	write_one(w, 0, 9);
	assert_int_equal(at(w, "latest", "d"), w->m[0]->seq);
	assert_int_equal(at(w, "latest", "host-b/d"), -ENOENT);
	assert_int_equal(at(w, "seq:2", "d"), 2);
	assert_int_equal(at(w, "name:" MARK("1"), "host-b/d"), w->m[1]->seq - 1);	/* what was stays */
	mark(w, 0, "own", NO_HOLD | NO_GROUP);
	assert_int_equal(at(w, "name:own", "d"), w->m[0]->seq);
	world_free(w);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(offered), cmocka_unit_test(not_offered), cmocka_unit_test(alone),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
