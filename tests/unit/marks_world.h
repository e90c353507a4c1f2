/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Three hosts, played, for test_marks.c: their kernels' holds, who makes their applications quiet, a network that is
 * slow and breaks, chains of writes; and the judgement of all declared marks.
 */
#ifndef MARKS_WORLD_H
#define MARKS_WORLD_H

#include "../../userland/marks.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>
#include <cmocka.h>

#define HOSTS		3
#define CHAINS		6
#define QUEUE		4096
#define MARKS		100000
#define US		1000ull
#define MS		1000000ull

struct packet {
	bool used;
	int from, to;
	uint64_t at;
	struct marks_msg msg;
};

struct host {
	struct world *w;
	int n;
	struct marks *marks;
	uint64_t incarnation, epoch;	/* epoch: as it knows it */
	uint64_t clock;			/* its wall clock is ahead by so much */
	/* its kernel */
	uint64_t pos;			/* records in its stream */
	uint64_t marks_made, hold_id, hold_until;
	bool on, broken;
	/* who makes its applications quiet */
	enum { APP_NONE, APP_ASKED, APP_QUIET, APP_MARKED } app;
	uint64_t app_number, app_at, quiet_pos;	/* the next step then; its stream when it became quiet */
	char app_name[ASR_NAME_BYTES], app_mark[ASR_NAME_BYTES];
	bool no_app, app_fails, thaw_fails;
	char asked[ASR_NAME_BYTES], mark[ASR_NAME_BYTES], why[200];
};

struct chain {
	int host;			/* of the newest write */
	uint64_t pos;			/* and its place there */
	bool done;
	uint64_t before[HOSTS];		/* of all earlier ones, the last place on each host; 0: none */
};

/* A mark, by its name: where it stands; and what chains had done by then is judged at the end */
struct placed {
	char name[ASR_NAME_BYTES];
	uint64_t pos[HOSTS];
	bool declared;
	unsigned int app;		/* hosts that have declared that they were quiet */
};

struct world {
	struct host host[HOSTS];
	bool link[HOSTS][HOSTS];
	struct packet queue[QUEUE];
	uint64_t sent_last[HOSTS][HOSTS];
	struct chain chain[CHAINS];
	struct placed *placed;
	unsigned int placed_count;
	/* all steps of all chains: the write at pos on host was issued when what is in "before" had completed */
	struct step {
		int host;
		uint64_t pos, before[HOSTS];
	} *steps;
	unsigned int step_count;
	uint64_t now, seed, epoch;
	bool no_hold, refuse;
	unsigned int declared, torn, tries;
};

static uint64_t rnd(struct world *w, uint64_t below)
{
	w->seed ^= w->seed << 13;
	w->seed ^= w->seed >> 7;
	w->seed ^= w->seed << 17;
	return w->seed % below;
}

/* ----------------------------------------------------------------- kernel */

static struct placed *placed_of(struct world *w, const char *name)
{
	for (unsigned int i = w->placed_count; i > 0; i--)
		if (!strcmp(w->placed[i - 1].name, name))
			return &w->placed[i - 1];
	assert_true(w->placed_count < MARKS);
	snprintf(w->placed[w->placed_count].name, ASR_NAME_BYTES, "%s", name);
	return &w->placed[w->placed_count++];
}

static void timer(struct host *h)
{
	if (h->on && h->w->now >= h->hold_until) {
		h->on = false;
		h->broken = true;
	}
}

static int k_mark(void *arg, struct asr_mark *m)
{
	struct host *h = arg;
	struct placed *p;

	timer(h);
	if (m->flags & ASR_MARK_DECLARE) {
		if (m->id != h->hold_id || h->on || h->broken)
			return -ESTALE;
		p = placed_of(h->w, m->name);
		h->w->declared += !p->declared;
		p->declared = true;
		h->pos++;
		return 0;
	}
	if (h->on)
		return -EBUSY;
	if (h->w->refuse || !rnd(h->w, 50)) {
		h->w->tries++;
		return -ENOSPC;
	}
	p = placed_of(h->w, m->name);
	assert_int_equal(p->pos[h->n], 0);	/* one of a name */
	p->pos[h->n] = ++h->pos;
	m->id = h->hold_id = ++h->marks_made;
	h->on = true;
	h->broken = false;
	h->hold_until = h->w->now + m->hold_ns;
	return 0;
}

static int k_release(void *arg, struct asr_release *r)
{
	struct host *h = arg;

	timer(h);
	if (r->id != h->hold_id)
		return -ENOENT;
	r->broken = h->broken;
	h->on = false;
	return 0;
}

/* ---------------------------------------------------------------- network */

static void k_send(void *arg, const char *host_id, const struct marks_msg *m)
{
	struct host *h = arg;
	struct world *w = h->w;
	int to = host_id[0] - 'a';
	uint8_t group[ASR_UUID_BYTES], back[ASR_UUID_BYTES];
	json_t *j;

	if (!w->link[h->n][to])
		return;
	for (int i = 0; i < QUEUE; i++) {
		struct packet *p = &w->queue[i];

		if (p->used)
			continue;
		/* in order, as a connection is; sometimes slow */
		p->at = w->now + 50 * US + rnd(w, rnd(w, 20) ? 500 * US : 60 * MS);
		if (p->at <= w->sent_last[h->n][to])
			p->at = w->sent_last[h->n][to] + 1;
		w->sent_last[h->n][to] = p->at;
		memset(group, h->n, sizeof(group));
		j = marks_msg_json(m, group);
		assert_int_equal(marks_msg_parse(j, &p->msg, back), 0);
		assert_memory_equal(group, back, sizeof(group));
		json_decref(j);
		p->used = true;
		p->from = h->n;
		p->to = to;
		return;
	}
	fail_msg("the network's queue is full");
}

static void k_asked(void *arg, const char *name, const char *mark, const char *why)
{
	struct host *h = arg;

	assert_string_equal(name, h->asked);
	h->asked[0] = 0;
	snprintf(h->mark, sizeof(h->mark), "%s", mark ? mark : "");
	snprintf(h->why, sizeof(h->why), "%s", why ? why : "");
}

static uint64_t k_random(void *arg)
{
	struct host *h = arg;

	return rnd(h->w, UINT64_MAX);
}

static const char *k_quiet(void *arg, const char *name, uint64_t number, uint64_t limit_ns)
{
	struct host *h = arg;

	/* who serves is still at the one before, whose asker is gone: asrctl takes one after the other */
	if (h->app == APP_MARKED)
		placed_of(h->w, h->app_mark)->app++;
	else
		assert_int_equal(h->app, APP_NONE);
	h->app = APP_NONE;
	if (h->no_app)
		return "nobody there";
	snprintf(h->app_name, sizeof(h->app_name), "%s", name);
	h->app = APP_ASKED;
	h->app_number = number;
	h->app_at = h->w->now + rnd(h->w, limit_ns);
	return NULL;
}

static void k_loud(void *arg, const char *name, const char *mark, uint64_t id, const char *why)
{
	struct host *h = arg;

	assert_int_not_equal(h->app, APP_NONE);
	assert_string_equal(name, h->app_name);
	if (!mark) {
		assert_non_null(why);
		h->app = APP_NONE;
		return;
	}
	/* made while it was quiet: of that very mark */
	assert_int_equal(h->app, APP_QUIET);
	assert_int_equal(id, h->hold_id);
	assert_int_equal(strncmp(mark, name, strlen(name)), 0);
	assert_true(placed_of(h->w, mark)->pos[h->n] > h->quiet_pos);
	snprintf(h->app_mark, sizeof(h->app_mark), "%s", mark);
	h->app = APP_MARKED;
	h->app_at = h->w->now + rnd(h->w, 30 * MS);
}

static const struct marks_ops ops = { k_mark, k_release, k_send, k_asked, k_random, k_quiet, k_loud };

static void cut(struct world *w, int a, int b)
{
	char id[2] = "a";

	if (!w->link[a][b])
		return;
	w->link[a][b] = w->link[b][a] = false;
	for (int i = 0; i < QUEUE; i++)
		if ((w->queue[i].from == a && w->queue[i].to == b) || (w->queue[i].from == b && w->queue[i].to == a))
			w->queue[i].used = false;
	id[0] = (char)('a' + b);
	marks_peer(w->host[a].marks, id, false, "cut", w->now);
	id[0] = (char)('a' + a);
	marks_peer(w->host[b].marks, id, false, "cut", w->now);
}

static void join_up(struct world *w, int a, int b)
{
	char id[2] = "a";

	if (w->link[a][b])
		return;
	w->link[a][b] = w->link[b][a] = true;
	w->sent_last[a][b] = w->sent_last[b][a] = 0;
	id[0] = (char)('a' + b);
	marks_peer(w->host[a].marks, id, true, "", w->now);
	id[0] = (char)('a' + a);
	marks_peer(w->host[b].marks, id, true, "", w->now);
}

/* Both have a new connection before either has found the old one dead; what was on its way is lost */
static void replaced(struct world *w, int a, int b)
{
	for (int i = 0; i < QUEUE; i++)
		if ((w->queue[i].from == a && w->queue[i].to == b) || (w->queue[i].from == b && w->queue[i].to == a))
			w->queue[i].used = false;
	w->link[a][b] = w->link[b][a] = false;
	join_up(w, a, b);
}

/* ------------------------------------------------------------------ hosts */

static void set_members(struct host *h)
{
	struct marks_member list[HOSTS] = { { .up = false } };
	char me[2] = { (char)('a' + h->n), 0 };

	for (int i = 0; i < HOSTS; i++) {
		list[i].host_id[0] = (char)('a' + i);
		snprintf(list[i].host, sizeof(list[i].host), "host-%d", i);
	}
	h->epoch = h->w->epoch;
	marks_set(h->marks, me, h->epoch, 10, 20, list, HOSTS, h->w->now);
}

/* asrd dies: its hold is broken, its memory gone; and is back */
static void restart(struct world *w, int n)
{
	struct host *h = &w->host[n];

	for (int i = 0; i < HOSTS; i++)
		if (i != n)
			cut(w, n, i);
	if (h->on)
		h->broken = true;
	h->on = false;
	h->app = APP_NONE;
	marks_destroy(h->marks);
	assert_int_equal(marks_create(&ops, h, &h->marks), 0);
	h->asked[0] = 0;
	set_members(h);
	marks_self(h->marks, ++h->incarnation, NULL, w->now);
}

static struct world *world_new(uint64_t seed, bool no_hold)
{
	struct world *w = calloc(1, sizeof(*w));

	w->placed = calloc(MARKS, sizeof(*w->placed));
	w->steps = calloc(4000000, sizeof(*w->steps));
	w->seed = seed * 0x9e3779b97f4a7c15ull + 1;
	w->no_hold = no_hold;
	w->epoch = 1;
	w->now = 1000 * MS;
	for (int i = 0; i < HOSTS; i++) {
		w->host[i] = (struct host){ .w = w, .n = i, .incarnation = 7 + (uint64_t)i };
		assert_int_equal(marks_create(&ops, &w->host[i], &w->host[i].marks), 0);
		set_members(&w->host[i]);
		marks_self(w->host[i].marks, w->host[i].incarnation, NULL, w->now);
	}
	for (int c = 0; c < CHAINS; c++)
		w->chain[c].done = true;
	return w;
}

static void world_free(struct world *w)
{
	for (int i = 0; i < HOSTS; i++)
		marks_destroy(w->host[i].marks);
	free(w->placed);
	free(w->steps);
	free(w);
}

static void writes(struct world *w)
{
	for (int i = 0; i < CHAINS; i++) {
		struct chain *c = &w->chain[i];
		struct host *h = &w->host[c->host];

		timer(h);
		if (!c->done && (!h->on || w->no_hold)) {	/* a hold withholds what came after its mark */
			c->done = true;
			c->before[c->host] = c->pos;
		}
		if (!c->done || rnd(w, 3))
			continue;
		c->host = (int)rnd(w, HOSTS);
		c->pos = ++w->host[c->host].pos;
		c->done = false;
		if (w->step_count < 4000000) {
			struct step *s = &w->steps[w->step_count++];

			s->host = c->host;
			s->pos = c->pos;
			memcpy(s->before, c->before, sizeof(s->before));
		}
	}
}

static void deliver(struct world *w)
{
	for (;;) {
		struct packet *first = NULL, p;
		char from[2] = "a";

		for (int i = 0; i < QUEUE; i++)
			if (w->queue[i].used && w->queue[i].at <= w->now && (!first || w->queue[i].at < first->at))
				first = &w->queue[i];
		if (!first)
			return;
		p = *first;
		first->used = false;
		from[0] = (char)('a' + p.from);
		marks_message(w->host[p.to].marks, from, &p.msg, w->now, w->now + w->host[p.to].clock);
	}
}

static void trouble(struct world *w)
{
	int a = (int)rnd(w, HOSTS), b = (int)rnd(w, HOSTS);

	if (!rnd(w, 400) && a != b)
		cut(w, a, b);
	if (!rnd(w, 400) && a != b)
		replaced(w, a, b);
	if (!rnd(w, 1500))
		restart(w, a);
	if (!rnd(w, 3000))
		w->epoch++;
	if (!rnd(w, 40) && w->host[a].epoch != w->epoch)
		set_members(&w->host[a]);
	if (!rnd(w, 20) && a != b)
		join_up(w, a, b);
}

/* The writes of each chain are at most a prefix in front of a declared mark */
static void judge(struct world *w)
{
	for (unsigned int i = 0; i < w->placed_count; i++) {
		const struct placed *p = &w->placed[i];

		if (!p->declared)
			continue;
		for (int h = 0; h < HOSTS; h++)
			assert_true(p->pos[h]);
	}
	for (unsigned int k = 0; k < w->step_count; k++) {
		const struct step *s = &w->steps[k];

		/* marks stand in order on each host: those near the write are those that it can tear */
		for (unsigned int i = 0; i < w->placed_count; i++) {
			const struct placed *p = &w->placed[i];

			if (!p->declared || s->pos > p->pos[s->host])
				continue;
			for (int h = 0; h < HOSTS; h++)
				if (s->before[h] > p->pos[h])
					w->torn++;
			break;	/* the first mark behind it: a later one has all that this one has */
		}
	}
}

/* Each host's applications, as asrctl would make them quiet */
static void applications(struct world *w)
{
	for (int i = 0; i < HOSTS; i++) {
		struct host *h = &w->host[i];

		if (h->app == APP_NONE || h->app == APP_QUIET || w->now < h->app_at)
			continue;
		if (h->app == APP_MARKED) {
			h->app = APP_NONE;
			placed_of(w, h->app_mark)->app += !h->thaw_fails;
			marks_loud(h->marks, h->app_number, h->thaw_fails ? "thawed early" : NULL, w->now);
		} else {
			h->app = h->app_fails ? APP_NONE : APP_QUIET;
			h->quiet_pos = h->pos;
			assert_int_equal(marks_quiet(h->marks, h->app_number, h->app_fails ? "a script failed" : NULL,
						     w->now), 0);
		}
	}
}

static void play_one(struct world *w)
{
	w->now += 20 * US + rnd(w, 300 * US);
	deliver(w);
	applications(w);
	for (int h = 0; h < HOSTS; h++)
		marks_tick(w->host[h].marks, w->now, w->now + w->host[h].clock);
	writes(w);
}

static void play(struct world *w, unsigned int steps, bool with_trouble)
{
	for (unsigned int i = 0; i < steps; i++) {
		if (with_trouble)
			trouble(w);
		play_one(w);
	}
	judge(w);
}

static void connect_all(struct world *w)
{
	join_up(w, 0, 1);
	join_up(w, 0, 2);
	join_up(w, 1, 2);
}

#endif /* MARKS_WORLD_H */
