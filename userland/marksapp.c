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
	struct marks_msg msg = { .kind = kind };

	m->quiet.at = kind == MARKS_IS_QUIET && !why ? QUIET : LOUD;
	memcpy(msg.name, m->quiet.name, sizeof(msg.name));
	snprintf(msg.text, sizeof(msg.text), "%s", why ? why : "");
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
		marks_send(m, from, MARKS_IS_QUIET, msg->name, why);
		return;
	}
	app_stop_quiet(m, "another mark has come");
	memcpy(m->quiet.name, msg->name, sizeof(m->quiet.name));
	snprintf(m->quiet.from, sizeof(m->quiet.from), "%s", from);
	m->quiet.limit_ns = msg->hold_ns;
	m->quiet.until = m->now + QUIET_LIMITS * msg->hold_ns;
	m->quiet.at = ASKED;
	m->quiet.mark[0] = 0;
	why = why ? why : m->ops.quiet(m->arg, msg->name, msg->hold_ns);
	if (why)
		say_app(m, MARKS_IS_QUIET, why);
}

/* One of the same name may have been placed before they were quiet, and be declared now */
void app_placed(struct marks *m, const char *name)
{
	char plain[ASR_NAME_BYTES];
	uint64_t epoch;

	if (m->quiet.at == QUIET && wire_group_mark_parse(name, plain, &epoch) && !strcmp(plain, m->quiet.name))
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

int marks_quiet(struct marks *m, const char *name, const char *why, uint64_t now)
{
	m->now = now;
	if ((m->quiet.at != ASKED && (!why || m->quiet.at != QUIET)) || (name && strcmp(name, m->quiet.name)))
		return -ESTALE;
	m->quiet.until = now + m->quiet.limit_ns;
	say_app(m, MARKS_IS_QUIET, why);
	return 0;
}

int marks_loud(struct marks *m, const char *name, const char *why, uint64_t now)
{
	m->now = now;
	if (m->quiet.at != MARKED || (name && strcmp(name, m->quiet.name)))
		return -ESTALE;
	say_app(m, MARKS_IS_LOUD, why);
	return 0;
}

/* ------------------------------------------------------------- coordinator */

/* The one whose applications are being made quiet, are, or were; NULL: none */
static struct ask *app_ask(struct marks *m)
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
	char why[200];
	va_list ap;

	if (!a || !marks_coordinates(m))
		return;
	va_start(ap, fmt);
	vsnprintf(why, sizeof(why), fmt, ap);
	va_end(ap);
	for (unsigned int i = 1; i < m->count && a->at != ASK_MARKED; i++)
		marks_send(m, m->member[i].host_id, MARKS_LOUD, a->name, why);
	if (a->at != ASK_MARKED && !*m->quiet.from)
		app_stop_quiet(m, why);
	marks_ask_ended(m, (unsigned int)(a - m->asks), *why ? NULL : a->mark, why);
}

static void app_begin(struct marks *m, struct ask *a, uint64_t now)
{
	struct marks_msg msg = { .kind = MARKS_QUIET, .hold_ns = a->limit_ns };

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

	if (!a || strcmp(a->name, msg->name) || (msg->kind == MARKS_IS_LOUD) != (a->at == ASK_MARKED))
		return;		/* of an earlier one */
	memcpy(name, m->member[host].host, sizeof(name));
	if (*msg->text && a->at != ASK_MARKED) {
		app_over(m, "host %s: %s", name, msg->text);
		return;
	}
	if (*msg->text && !*a->failure)
		snprintf(a->failure, sizeof(a->failure), "it is there, but not application-consistent: host %s: %.80s", name,
			 msg->text);
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

	if (a && now >= a->until && !(m->state != IDLE && m->asked_for && a == m->asks))
		app_expire(m, a);
	app_next(m, now);
}
