// SPDX-License-Identifier: Apache-2.0
/*
 * Marks over several hosts at which the applications of all of them are quiet.
 *
 * Design. As the coordinator: QUIET to all, this host too; when all say IS_QUIET, the mark is tried as any other
 * is (marks.c). When it is declared, each host lets its applications go on, writes into its stream that they were
 * quiet until then, and says IS_LOUD. As a host: whoever makes applications quiet (asrctl app serve) is asked by
 * ops->quiet and ops->loud, and answers by marks_quiet and marks_loud.
 *
 * Invariants. What was made quiet is told to go on, whatever is lost: each step has a limit of its own, here and
 * in who does it. A point is application-consistent only if all streams say so: no word from the network makes it.
 * One such mark at a time; others go on meanwhile.
 *
 * Context. Pure, one thread.
 */
#include "marksint.h"

#include <errno.h>
#include <string.h>

#define QUIET_LIMITS	4		/* scripts, sync, freeze: each has the limit that the user gave */

/* ------------------------------------------------------------------- host */

/* To who asked: who makes the marks, perhaps here */
static void say_app(struct marks *m, enum marks_kind kind, const char *why)
{
	struct marks_msg msg = { .kind = kind, .number = m->quiet.number };

	m->quiet.at = kind == MARKS_IS_QUIET && !why ? QUIET : LOUD;
	memcpy(msg.name, m->quiet.name, sizeof(msg.name));
	snprintf(msg.text, sizeof(msg.text), "%s", why ? why : "");
	marks_clean(msg.text);
	if (*m->quiet.from)
		m->ops.send(m->arg, m->quiet.from, &msg);
	else
		app_heard(m, m->me, &msg);
}

/* There will be no mark, and who asked knows it */
void app_stop_quiet(struct marks *m, const char *why)
{
	bool on = m->quiet.at == ASKED || m->quiet.at == QUIET;

	m->quiet.at = LOUD;
	if (on)
		m->ops.loud(m->arg, m->quiet.name, NULL, 0, why);
}

static const char *refuse_quiet(const struct marks *m, const char *from, const struct marks_msg *msg)
{
	if (*from && strcmp(from, m->member[0].host_id))
		return "it is not the one who makes the marks";
	if (*m->self_why)
		return m->self_why;
	if (msg->incarnation != m->incarnation)
		return "its asrd was started anew";
	return msg->hold_ns && msg->hold_ns <= APP_LIMIT_MAX_NS ? NULL : "a limit that is none";
}

void app_on_quiet(struct marks *m, const char *from, const struct marks_msg *msg)
{
	const char *why = refuse_quiet(m, from, msg);

	if (why && *from) {
		struct marks_msg no = { .kind = MARKS_IS_QUIET, .number = msg->number };

		memcpy(no.name, msg->name, sizeof(no.name));
		snprintf(no.text, sizeof(no.text), "%s", why);
		m->ops.send(m->arg, from, &no);
		return;
	}
	app_stop_quiet(m, "another mark has come");
	memcpy(m->quiet.name, msg->name, sizeof(m->quiet.name));
	snprintf(m->quiet.from, sizeof(m->quiet.from), "%s", from);
	m->quiet.number = msg->number;
	m->quiet.limit_ns = msg->hold_ns;
	m->quiet.until = m->now + QUIET_LIMITS * msg->hold_ns;
	m->quiet.at = ASKED;
	m->quiet.mark[0] = 0;
	why = why ? why : m->ops.quiet(m->arg, msg->name, msg->number, msg->hold_ns);
	if (why && m->quiet.at == ASKED && m->quiet.number == msg->number)
		say_app(m, MARKS_IS_QUIET, why);
}

/* One of the same name may have been placed before they were quiet, and be declared now */
void app_placed(struct marks *m, const char *name, uint64_t number)
{
	if (m->quiet.at == QUIET && number && number == m->quiet.number)
		memcpy(m->quiet.mark, name, strlen(name) + 1);
}

/* The mark is declared, or (r) is not, here */
void app_marked(struct marks *m, const char *name, int r)
{
	if (m->quiet.at != QUIET || strcmp(m->quiet.mark, name))
		return;
	if (r) {
		m->ops.loud(m->arg, m->quiet.name, NULL, 0, "it was not written down here that all hosts had held");
		say_app(m, MARKS_IS_LOUD, "it was not written down there that all hosts had held");
		return;
	}
	m->quiet.at = MARKED;
	m->quiet.until = m->now + QUIET_LIMITS * m->quiet.limit_ns;
	m->ops.loud(m->arg, m->quiet.name, name, m->hold.id, NULL);
}

void app_expire_quiet(struct marks *m, uint64_t now)
{
	static const char *const why[] = {
		[ASKED] = "its applications did not become quiet in time", [QUIET] = "no mark within the time",
		[MARKED] = "its applications did not go on in time",
	};
	const char *text = why[m->quiet.at];
	bool marked = m->quiet.at == MARKED;

	if (m->quiet.at == LOUD || now < m->quiet.until)
		return;
	app_stop_quiet(m, text);
	say_app(m, marked ? MARKS_IS_LOUD : MARKS_IS_QUIET, text);
}

bool marks_wants_quiet(const struct marks *m, uint64_t number)
{
	return m->quiet.at == ASKED && m->quiet.number == number;
}

int marks_quiet(struct marks *m, uint64_t number, const char *why, uint64_t now)
{
	m->now = now;
	if ((m->quiet.at != ASKED && (!why || m->quiet.at != QUIET)) || (number && number != m->quiet.number))
		return -ESTALE;
	m->quiet.until = now + m->quiet.limit_ns;
	say_app(m, MARKS_IS_QUIET, why);
	return 0;
}

int marks_loud(struct marks *m, uint64_t number, const char *why, uint64_t now)
{
	m->now = now;
	if (m->quiet.at != MARKED || (number && number != m->quiet.number))
		return -ESTALE;
	say_app(m, MARKS_IS_LOUD, why);
	return 0;
}

/* ------------------------------------------------------------- coordinator */

struct ask *app_ask(struct marks *m)
{
	for (unsigned int i = 0; i < m->ask_count; i++)
		if (m->asks[i].at != ASK_WAITS)
			return &m->asks[i];
	return NULL;
}

/* Its end. All go on, if they are still quiet. */
__attribute__((format(printf, 2, 3)))
static void app_over(struct marks *m, const char *fmt, ...)
{
	struct ask *a = app_ask(m);
	char why[200], mark[ASR_NAME_BYTES];
	bool marked;
	va_list ap;

	if (!a || !marks_coordinates(m))
		return;
	va_start(ap, fmt);
	vsnprintf(why, sizeof(why), fmt, ap);
	va_end(ap);
	marked = a->at == ASK_MARKED;
	memcpy(mark, a->mark, sizeof(mark));
	for (unsigned int i = 1; i < m->count && !marked; i++) {
		struct marks_msg msg = { .kind = MARKS_LOUD, .number = a->number };

		memcpy(msg.name, a->name, sizeof(msg.name));
		snprintf(msg.text, sizeof(msg.text), "%.150s", why);
		m->ops.send(m->arg, m->member[i].host_id, &msg);
	}
	/* what asks, and what serves, may come back here from within these */
	marks_ask_ended(m, (unsigned int)(a - m->asks), *why ? NULL : mark, why);
	if (!marked && !*m->quiet.from)
		app_stop_quiet(m, why);
}

static void app_begin(struct marks *m, struct ask *a, uint64_t now)
{
	struct marks_msg msg = { .kind = MARKS_QUIET, .hold_ns = a->limit_ns };

	a->number = msg.number = m->ops.random(m->arg) >> 1 | 1;	/* JSON's numbers have a sign; 0 is none */
	a->at = ASK_QUIET;
	a->until = now + (QUIET_LIMITS + 1) * a->limit_ns + NS_PER_S;	/* each host ends it before that */
	memset(a->said, 0, sizeof(a->said));
	memcpy(msg.name, a->name, sizeof(msg.name));
	for (unsigned int i = 1; i < m->count; i++) {
		msg.incarnation = m->member[i].incarnation;
		m->ops.send(m->arg, m->member[i].host_id, &msg);
	}
	msg.incarnation = m->incarnation;
	app_on_quiet(m, "", &msg);
}

void app_heard(struct marks *m, unsigned int host, const struct marks_msg *msg)
{
	struct ask *a = app_ask(m);
	char name[ASR_NAME_BYTES];
	bool all = true;

	if (!a || a->number != msg->number)
		return;		/* of an earlier one */
	/* it was quiet no longer when the mark came to be declared, or thinks that it was declared already */
	if (a->at == ASK_MARKED ? msg->kind == MARKS_IS_QUIET && !*msg->text : msg->kind == MARKS_IS_LOUD)
		return;
	memcpy(name, m->member[host].host, sizeof(name));
	if (*msg->text && a->at != ASK_MARKED) {
		app_over(m, "host %s: %s", name, msg->text);
		return;
	}
	if (*msg->text && !*a->failure)
		snprintf(a->failure, sizeof(a->failure), "it is there, but not application-consistent: host %s: %.80s",
			 name, msg->text);
	a->said[host] = true;
	for (unsigned int i = 0; i < m->count; i++)
		all &= a->said[i];
	if (all && a->at == ASK_QUIET)
		a->at = ASK_READY;
	else if (all && a->at == ASK_MARKED)
		app_over(m, "%s", a->failure);
}

/* Time is over, or a host is gone: whose? */
static void app_expire(struct marks *m, const struct ask *a)
{
	unsigned int i = 0;

	while (i + 1 < m->count && a->said[i])
		i++;
	if (a->at == ASK_QUIET)
		app_over(m, "host %s: did not become quiet", m->member[i].host);
	else if (a->at == ASK_READY)
		app_over(m, "%s", *m->last_failure ? m->last_failure : "no answer");
	else
		app_over(m, "it is there, but not application-consistent: host %s: did not say that it had been quiet",
			 m->member[i].host);
}

/* A host is not what it was: with it, what it had said */
void app_lost(struct marks *m, const char *host, const char *why)
{
	const struct ask *a = app_ask(m);

	if (a && a->at == ASK_MARKED)
		app_over(m, "it is there, but perhaps not application-consistent: host %s: %.100s", host, why);
	else
		app_over(m, "host %s: %s", host, why);
}

/* The applications of all hosts, for the first that wants it, one at a time */
static void app_next(struct marks *m, uint64_t now)
{
	const struct marks_member *p = marks_in_the_way(m);

	if (!marks_coordinates(m) || app_ask(m))
		return;
	for (unsigned int i = 0; i < m->ask_count; i++) {
		if (!m->asks[i].limit_ns)
			continue;
		if (p)
			snprintf(m->last_failure, sizeof(m->last_failure), "host %s: %.120s", p->host, p->why);
		else
			app_begin(m, &m->asks[i], now);
		return;
	}
}

void app_declared(struct marks *m, struct ask *a)
{
	a->at = ASK_MARKED;
	a->until = m->now + (QUIET_LIMITS + 1) * a->limit_ns + NS_PER_S;
	memset(a->said, 0, sizeof(a->said));
	memcpy(a->mark, m->name, sizeof(a->mark));
}

void app_run(struct marks *m, uint64_t now)
{
	const struct ask *a = marks_coordinates(m) ? app_ask(m) : NULL;
	const struct marks_member *p = a && a->at != ASK_MARKED ? marks_in_the_way(m) : NULL;
	char host[ASR_NAME_BYTES], why[160];

	if (p) {	/* there can be no mark: nobody is to wait for it */
		memcpy(host, p->host, sizeof(host));
		memcpy(why, p->why, sizeof(why));
		app_over(m, "host %s: %s", host, why);
		a = NULL;
	}
	if (a && now >= a->until && !(m->state != IDLE && m->asked_for && a == m->asks))
		app_expire(m, a);
	app_next(m, now);
}
