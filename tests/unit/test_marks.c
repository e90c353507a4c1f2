// SPDX-License-Identifier: Apache-2.0
/*
 * Marks of several hosts (userland/marks.c), all of it played: three hosts, their kernels' holds,
 * a network that is slow and breaks, daemons that die, members that change; and chains of writes,
 * each issued when the one before has completed, on any host. The property is the model's: no
 * declared mark has a write in front of it on one host whose predecessor stands behind it on
 * another. With kernels that do not withhold, the same test must find one that is torn.
 */
#include "marks_world.h"

static void consistent(void **state)
{
	unsigned int declared = 0;

	for (uint64_t seed = 1; seed <= 20; seed++) {
		struct world *w = world_new(seed, false);

		connect_all(w);
		play(w, 30000, true);
		assert_int_equal(w->torn, 0);
		declared += w->declared;
		world_free(w);
	}
	print_message("%u marks declared, none torn\n", declared);
	assert_true(declared > 1000);
}

static void torn_without_holds(void **state)
{
	struct world *w = world_new(3, true);

	connect_all(w);
	play(w, 30000, true);
	print_message("%u marks declared, %u torn\n", w->declared, w->torn);
	assert_true(w->torn > 0);
	world_free(w);
}

static void calm(void **state)
{
	struct world *w = world_new(5, false);
	struct host *h = &w->host[2];
	json_t *j;
	double count;

	connect_all(w);
	play(w, 3000, false);
	print_message("%u marks declared\n", w->declared);
	assert_true(w->declared > 3);
	assert_int_equal(w->torn, 0);
	/* of a host that is not the coordinator, and of that one */
	for (int i = 0; i < 3; i += 2) {
		h = &w->host[i];
		strcpy(h->asked, "before-the-upgrade");
		assert_int_equal(marks_ask(h->marks, h->asked, 0, w->now), 0);
		play(w, 3000, false);
		assert_string_equal(h->asked, "");
		assert_int_equal(strncmp(h->mark, "before-the-upgrade+0001", 23), 0);
		assert_true(placed_of(w, h->mark)->declared);
	}
	assert_int_equal(marks_ask(h->marks, "a+b", 0, w->now), -EINVAL);
	j = marks_json(w->host[0].marks, w->now, w->now);
	assert_int_equal(json_unpack(j, "{s:{s:f}}", "holds", "p99_us", &count), 0);
	json_decref(j);
	world_free(w);
}

static void loud_again(struct world *w)
{
	play(w, 3000, false);
	for (int i = 0; i < HOSTS; i++)
		assert_int_equal(w->host[i].app, APP_NONE);
}

/* Asks on host n for a mark with quiet applications, and waits for the end: is it there? */
static bool ask_app(struct world *w, int n, const char *name)
{
	struct host *h = &w->host[n];

	strcpy(h->asked, name);
	h->mark[0] = h->why[0] = 0;
	assert_int_equal(marks_ask(h->marks, name, 1000 * MS, w->now), 0);
	for (int i = 0; i < 200000 && *h->asked; i++)
		play_one(w);
	assert_string_equal(h->asked, "");
	return *h->mark;
}

static void quiet_applications(void **state)
{
	struct world *w = world_new(13, false);
	unsigned int before;

	connect_all(w);
	play(w, 2000, false);
	for (int n = 0; n < HOSTS; n++) {
		before = w->declared;
		assert_true(ask_app(w, n, "quiet"));
		assert_int_equal(placed_of(w, w->host[n].mark)->app, HOSTS);
		assert_true(placed_of(w, w->host[n].mark)->declared);
		assert_true(w->declared > before + 1);	/* others go on meanwhile */
		loud_again(w);
	}
	/* nobody there, a script that fails, on any host: no mark, and all go on */
	for (int n = 0; n < HOSTS; n++) {
		w->host[n].no_app = true;
		assert_false(ask_app(w, 1, "bad"));
		assert_non_null(strstr(w->host[1].why, "nobody there"));
		w->host[n].no_app = false;
		loud_again(w);
		w->host[n].app_fails = true;
		assert_false(ask_app(w, 1, "bad"));
		assert_non_null(strstr(w->host[1].why, "a script failed"));
		w->host[n].app_fails = false;
		loud_again(w);
		/* the mark is there, and what it is not is said */
		w->host[n].thaw_fails = true;
		assert_false(ask_app(w, 2, "half"));
		assert_non_null(strstr(w->host[2].why, "it is there, but not application-consistent"));
		assert_non_null(strstr(w->host[2].why, "thawed early"));
		w->host[n].thaw_fails = false;
		loud_again(w);
	}
	/* two at once, of the same name: one after the other, each with its own mark */
	for (int n = 0; n < HOSTS; n += 2) {
		strcpy(w->host[n].asked, "same");
		w->host[n].mark[0] = 0;
		assert_int_equal(marks_ask(w->host[n].marks, "same", 1000 * MS, w->now), 0);
	}
	for (int i = 0; i < 200000 && (*w->host[0].asked || *w->host[2].asked); i++)
		play_one(w);
	assert_string_not_equal(w->host[0].mark, w->host[2].mark);
	for (int n = 0; n < HOSTS; n += 2)
		assert_int_equal(placed_of(w, w->host[n].mark)->app, HOSTS);
	/* who makes the marks is lost: whoever has asked is told at once, and who asks then is, too */
	strcpy(w->host[1].asked, "lost");
	assert_int_equal(marks_ask(w->host[1].marks, "lost", 1000 * MS, w->now), 0);
	cut(w, 0, 1);
	assert_string_equal(w->host[1].asked, "");
	assert_string_equal(w->host[1].why, "cut");
	assert_int_equal(marks_ask(w->host[1].marks, "lost", 1000 * MS, w->now), -ENOTCONN);
	play(w, 60000, false);
	assert_int_equal(marks_quiet(w->host[0].marks, 7, NULL, w->now), -ESTALE);
	assert_int_equal(marks_loud(w->host[0].marks, 7, NULL, w->now), -ESTALE);
	world_free(w);
}

/* Links that break and asrds that die at any moment of it: each asker is told, and all go on */
static void quiet_in_trouble(void **state)
{
	unsigned int made = 0, not_made = 0;

	for (uint64_t seed = 1; seed <= 5; seed++) {
		struct world *w = world_new(seed, false);

		connect_all(w);
		for (int round = 0; round < 30; round++) {
			struct host *h = &w->host[rnd(w, HOSTS)];

			strcpy(h->asked, "x");
			h->mark[0] = 0;
			if (marks_ask(h->marks, "x", 100 * MS, w->now)) {
				h->asked[0] = 0;	/* a mark waits for a host that is away */
				continue;
			}
			for (int i = 0; i < 300000 && *h->asked; i++) {
				if (!rnd(w, 4))
					trouble(w);
				play_one(w);
			}
			assert_string_equal(h->asked, "");
			made += *h->mark != 0;
			not_made += !*h->mark;
			if (*h->mark)
				assert_int_equal(placed_of(w, h->mark)->app, HOSTS);
		}
		while (w->epoch != w->host[0].epoch || w->epoch != w->host[1].epoch || w->epoch != w->host[2].epoch)
			for (int i = 0; i < HOSTS; i++)
				set_members(&w->host[i]);
		connect_all(w);
		play(w, 20000, false);
		assert_int_equal(w->torn, 0);
		loud_again(w);
		world_free(w);
	}
	print_message("%u marks with quiet applications, %u not made\n", made, not_made);
	assert_true(made > 20);
	assert_true(not_made > 20);
}

static void away(void **state)
{
	struct world *w = world_new(9, false);
	const struct marks_member *m;
	unsigned int before;

	connect_all(w);
	play(w, 2000, false);
	before = w->declared;
	assert_true(before);
	cut(w, 0, 2);
	strcpy(w->host[1].asked, "x");
	assert_int_equal(marks_ask(w->host[1].marks, "x", 0, w->now), 0);
	play(w, 90000, false);
	assert_int_equal(w->declared, before);
	m = marks_member(w->host[0].marks, 2);
	assert_string_equal(m->why, "cut");
	assert_string_equal(w->host[1].asked, "");	/* it has been told, and why */
	assert_non_null(strstr(w->host[1].why, "host-2"));
	join_up(w, 0, 2);
	play(w, 3000, false);
	assert_true(w->declared > before);
	world_free(w);
}

/* A clock that is off by hours is told, and does not matter */
static void skewed(void **state)
{
	struct world *w = world_new(15, false);
	int64_t hours = 5 * 3600ll * 1000 * (int64_t)MS;

	w->host[1].clock = (uint64_t)hours;
	connect_all(w);
	play(w, 20000, false);
	assert_true(w->declared > 20);
	assert_int_equal(w->torn, 0);
	for (int i = 0; i < HOSTS; i += 2) {
		assert_true(llabs(marks_member(w->host[i].marks, 1)->skew_ns - hours) < 100 * (int64_t)MS);
		assert_true(llabs(marks_member(w->host[i].marks, 2 - (unsigned int)i)->skew_ns) < 100 * (int64_t)MS);
	}
	assert_true(llabs(marks_member(w->host[1].marks, 0)->skew_ns + hours) < 100 * (int64_t)MS);
	world_free(w);
}

/* A host that holds when its connection is replaced goes on taking marks, whatever was lost with the old one */
static void connected_anew(void **state)
{
	struct world *w = world_new(11, false);
	unsigned int before;

	connect_all(w);
	for (int round = 0; round < 20; round++) {
		for (int i = 0; i < 10000 && !w->host[1].on; i++)
			play_one(w);
		assert_true(w->host[1].on);
		replaced(w, 0, 1);
		assert_false(w->host[1].on);
		before = w->declared;
		play(w, 3000, false);
		assert_true(w->declared > before);
	}
	world_free(w);
}

/* Who waits for a mark is told when the group is left to one host; a name that cannot be is tried now and then */
static void asked_for_in_vain(void **state)
{
	struct world *w = world_new(13, false);
	struct marks_member alone = { .host_id = "a", .host = "host-0" };
	uint64_t until;

	connect_all(w);
	play(w, 1000, false);
	w->refuse = true;
	w->tries = 0;
	strcpy(w->host[0].asked, "never");
	assert_int_equal(marks_ask(w->host[0].marks, "never", 0, w->now), 0);
	for (until = w->now + 9000 * MS; w->now < until; )
		play_one(w);
	print_message("%u marks refused in 9 s\n", w->tries);
	assert_true(w->tries < 4000);	/* 100 a second are made by themselves, on up to three hosts */
	assert_string_equal(w->host[0].asked, "never");
	marks_set(w->host[0].marks, "a", 2, 10, 20, &alone, 1, w->now);
	assert_string_equal(w->host[0].asked, "");
	assert_string_equal(w->host[0].mark, "");
	world_free(w);
}

static void histogram(void **state)
{
	struct holds h = { 0 };

	for (uint64_t us = 1; us <= 100000; us++)
		holds_add(&h, us * 1000, 1);
	assert_int_equal(h.count, 100000);
	assert_true(holds_quantile(&h, 0.5) >= 50000000 && holds_quantile(&h, 0.5) <= 57000000);
	assert_true(holds_quantile(&h, 0.99) >= 99000000 && holds_quantile(&h, 0.99) <= 100000000);
	holds_add(&h, 5000000000ull, 1);
	assert_int_equal(holds_quantile(&h, 1.0), 5000000000ull);
	holds_add(&h, UINT64_MAX, 1);
}

static void names(void **state)
{
	char full[ASR_NAME_BYTES], name[ASR_NAME_BYTES], longest[ASR_NAME_BYTES];
	uint64_t epoch = 0;

	memset(longest, 'x', sizeof(longest));
	longest[WIRE_GROUP_MARK_NAME] = 0;
	assert_int_equal(wire_group_mark(longest, 0xabcd, UINT64_MAX, full), 0);
	assert_true(wire_group_mark_parse(full, name, &epoch));
	assert_string_equal(name, longest);
	assert_int_equal(epoch, 0xabcd);
	longest[WIRE_GROUP_MARK_NAME] = 'x';
	longest[WIRE_GROUP_MARK_NAME + 1] = 0;
	assert_int_equal(wire_group_mark(longest, 1, 0, full), -EINVAL);
	assert_int_equal(wire_group_mark("a", 0, 0, full), -EINVAL);
	assert_int_equal(wire_group_mark("a", 0x10000, 0, full), -EINVAL);
	assert_false(wire_group_mark_parse("a+00010000000000000000x", name, &epoch));
	assert_false(wire_group_mark_parse("a+000100000000000000", name, &epoch));
	assert_false(wire_group_mark_parse("+00010000000000000000", name, &epoch));
	assert_false(wire_group_mark_parse("a+0000ffffffffffffffff", name, &epoch));
	assert_false(wire_group_mark_parse("mark-15", name, &epoch));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(names), cmocka_unit_test(histogram), cmocka_unit_test(calm),
		cmocka_unit_test(quiet_applications), cmocka_unit_test(quiet_in_trouble), cmocka_unit_test(skewed),
		cmocka_unit_test(away),
		cmocka_unit_test(connected_anew), cmocka_unit_test(asked_for_in_vain),
		cmocka_unit_test(consistent), cmocka_unit_test(torn_without_holds),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
