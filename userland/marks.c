// SPDX-License-Identifier: Apache-2.0
/*
 * Marks that cut the streams of several hosts at one moment: coordinator and host.
 *
 * Design. The coordinator is the member with the lowest id. None other is ever
 * needed: a mark counts only with all members, so whenever one can be made the
 * lowest is there. That two believe it for a while, by different lists of
 * members, does no harm: lists have numbers (epochs), a host holds for one mark
 * at a time, and names are those of one moment.
 *
 *   coordinator   IDLE -> PLACING   MARK to all the others
 *                      -> RELEASING all have PLACED: its own mark, RELEASE to all
 *                      -> IDLE      all have HELD: declared, here and, told so, there
 *   host          MARK: places it, holds, PLACED; RELEASE: HELD or BROKEN
 *
 * The coordinator places its own mark last: it need hold for no longer than it
 * takes to say RELEASE.
 *
 *   with app      ASK_QUIET -> ASK_READY all are quiet: its mark is tried -> ASK_MARKED
 *                      -> over      all have declared that they were quiet until after it
 *
 * A host's hold ends by RELEASE, by the kernel's timer, or here when the
 * connection to who asked for it is lost.
 *
 * Invariants. A host holds for nobody but the coordinator that its own list names, and
 * no longer than the group's limit. HELD is said only of a hold that has lasted until RELEASE, of
 * this incarnation. Nothing is declared without all members' HELD, of the epoch
 * that the mark's name has.
 *
 * Context. Pure, one thread.
 */
#include "marksint.h"

#include <errno.h>
#include <string.h>

#define ANSWER_NS	(5 * NS_PER_S)	/* to say HELD or BROKEN; nobody holds any more by then */
#define ASK_NS		(10 * NS_PER_S)	/* a mark that was asked for is tried for so long */
#define RETRY_NS	(200 * NS_PER_MS)	/* between two tries */
#define LATE_NS		(100 * NS_PER_MS)	/* the kernel's timer is over for certain */
#define STATE_NS	NS_PER_S	/* each host says how it is */
#define AUTO		"auto"		/* name of marks that nobody asked for */

/* --------------------------------------------------------------- messages */

void marks_send(struct marks *m, const char *to, enum marks_kind kind, const char *name, const char *text)
{
	struct marks_msg msg = { .kind = kind };

	snprintf(msg.name, sizeof(msg.name), "%s", name);
	snprintf(msg.text, sizeof(msg.text), "%s", text ? text : "");
	marks_clean(msg.text);
	m->ops.send(m->arg, to, &msg);
}

static struct marks_member *member(struct marks *m, const char *host_id)
{
	for (unsigned int i = 0; i < m->count; i++)
		if (!strcmp(m->member[i].host_id, host_id))
			return &m->member[i];
	return NULL;
}

static void set_why(struct marks_member *p, const char *why, uint64_t now)
{
	if (!strcmp(p->why, why))
		return;
	/* whoever is there for a moment and then not again has not been back */
	if (!*p->why || !*why)
		p->since_ns = now;
	snprintf(p->why, sizeof(p->why), "%s", why);
	marks_clean(p->why);
}

/* ------------------------------------------------------------------- host */

/* Places the mark and holds: 0, or -errno */
static int place(struct marks *m, const char *name, const char *from, uint64_t hold_ns, uint64_t number)
{
	struct asr_mark mark = { .flags = ASR_MARK_HOLD, .hold_ns = hold_ns };
	int r;

	memcpy(mark.name, name, sizeof(mark.name));
	r = m->ops.mark(m->arg, &mark);
	if (r)
		return r;
	memcpy(m->hold.name, name, sizeof(m->hold.name));
	snprintf(m->hold.from, sizeof(m->hold.from), "%s", from);
	m->hold.id = mark.id;
	m->hold.until = m->now + hold_ns + LATE_NS;
	m->hold.on = true;
	m->hold.held = false;
	app_placed(m, name, number);
	return 0;
}

/* Ends the hold. True: it had lasted until now */
static bool let_go(struct marks *m)
{
	struct asr_release rel = { .id = m->hold.id };

	if (!m->hold.on)
		return false;
	m->hold.on = false;
	m->hold.held = !m->ops.release(m->arg, &rel) && !rel.broken;
	holds_add(&m->holds, rel.held_ns, 1);
	holds_add(&m->delays, rel.held_ns, rel.held);
	return m->hold.held;
}

/* All hosts held for it. The kernel looks at its own part once more */
static int declare(struct marks *m, const char *name)
{
	struct asr_mark mark = { .flags = ASR_MARK_DECLARE | ASR_MARK_GROUP, .id = m->hold.id };

	if (strcmp(m->hold.name, name) || m->hold.on || !m->hold.held)
		return -ESTALE;
	memcpy(mark.name, name, sizeof(mark.name));
	m->hold.held = false;		/* it is said once */
	return m->ops.mark(m->arg, &mark);
}

/* Who asked for it will not be told, or has gone on */
static void drop_hold(struct marks *m)
{
	let_go(m);
	m->hold.held = false;
}

static void drop_hold_of(struct marks *m, const char *from)
{
	if (!strcmp(m->hold.from, from))
		drop_hold(m);
}

static const char *refusal(int r)
{
	return r == -ENOSPC ? "its writes are tracked, not captured" : r == -EBUSY ? "it holds for another mark" :
	       strerror(-r);
}

static void on_mark(struct marks *m, const char *from, const struct marks_msg *msg)
{
	char plain[ASR_NAME_BYTES];
	uint64_t epoch;
	int r;

	if (!wire_group_mark_parse(msg->name, plain, &epoch) || epoch != m->epoch || msg->epoch != m->epoch) {
		marks_send(m, from, MARKS_REFUSED, msg->name, "it knows other members of the group");
	} else if (strcmp(from, m->member[0].host_id)) {
		marks_send(m, from, MARKS_REFUSED, msg->name, "it is not the one who makes the marks");
	} else if (*m->self_why || msg->incarnation != m->incarnation) {
		marks_send(m, from, MARKS_REFUSED, msg->name, *m->self_why ? m->self_why : "its asrd was started anew");
	} else {
		drop_hold_of(m, from);	/* it has given up the one before */
		r = m->hold.on ? -EBUSY : place(m, msg->name, from, msg->hold_ns && msg->hold_ns < m->hold_ns ?
						msg->hold_ns : m->hold_ns, msg->number);
		marks_send(m, from, r ? MARKS_REFUSED : MARKS_PLACED, msg->name, r ? refusal(r) : NULL);
	}
}

static void on_release(struct marks *m, const char *from, const struct marks_msg *msg)
{
	if (strcmp(m->hold.name, msg->name) || strcmp(m->hold.from, from) || !m->hold.on ||
	    msg->incarnation != m->incarnation)
		return;		/* refused, or known to be broken */
	marks_send(m, from, let_go(m) ? MARKS_HELD : MARKS_BROKEN, msg->name,
		   "writes were withheld for longer than may be");
}

/* ------------------------------------------------------------- coordinator */

bool marks_coordinates(const struct marks *m)
{
	return m->count > 1 && m->me == 0;
}

void marks_ask_ended(struct marks *m, unsigned int i, const char *mark, const char *why)
{
	struct ask a = m->asks[i];

	m->ask_count--;
	if (!i)
		m->asked_for = false;
	memmove(&m->asks[i], &m->asks[i + 1], (m->ask_count - i) * sizeof(m->asks[0]));
	if (*a.from)
		marks_send(m, a.from, mark ? MARKS_DONE : MARKS_FAILED, a.name, mark ? mark : why);
	else
		m->ops.asked(m->arg, a.name, mark, why);
}

static void send_release(struct marks *m)
{
	for (unsigned int i = 1; i < m->count; i++) {
		struct marks_msg msg = { .kind = MARKS_RELEASE, .incarnation = m->member[i].incarnation };

		memcpy(msg.name, m->name, sizeof(msg.name));
		m->ops.send(m->arg, m->member[i].host_id, &msg);
	}
}

/* Is there one to be tried? It comes to the front. */
static bool next_ask(struct marks *m)
{
	for (unsigned int i = 0; i < m->ask_count; i++) {
		struct ask a = m->asks[i];

		if (a.limit_ns && a.at != ASK_READY)
			continue;
		memmove(&m->asks[1], &m->asks[0], i * sizeof(m->asks[0]));
		m->asks[0] = a;
		return true;
	}
	return false;
}

__attribute__((format(printf, 2, 3)))
static void give_up(struct marks *m, const char *fmt, ...)
{
	va_list ap;

	if (m->state == PLACING)
		send_release(m);	/* nobody is to hold for longer than needed */
	if (!strcmp(m->hold.name, m->name))
		let_go(m);
	m->state = IDLE;
	m->failed++;
	m->not_before = m->now + RETRY_NS;
	va_start(ap, fmt);
	vsnprintf(m->last_failure, sizeof(m->last_failure), fmt, ap);
	va_end(ap);
	marks_clean(m->last_failure);
}

static void declared(struct marks *m, uint64_t now)
{
	bool app = m->asked_for && m->ask_count && m->asks[0].limit_ns;
	int r = declare(m, m->name);

	/* what was just read by one of them is true: each says it, if it can */
	for (unsigned int i = 1; i < m->count; i++)
		marks_send(m, m->member[i].host_id, MARKS_DECLARE, m->name, NULL);
	m->state = IDLE;
	m->declared++;
	m->last_failure[0] = 0;		/* it says why there is none now */
	m->last_declared_ns = now;
	if (app) {
		app_declared(m, &m->asks[0]);
		m->asked_for = false;
		app_marked(m, m->name, r);
	} else if (m->asked_for && m->ask_count) {
		if (r)
			marks_ask_ended(m, 0, NULL, "it was not written down here that all hosts had held");
		else
			marks_ask_ended(m, 0, m->name, NULL);
	}
}

static bool all(const struct marks *m, bool held)
{
	for (unsigned int i = 1; i < m->count; i++)
		if (held ? !m->member[i].held : !m->member[i].placed)
			return false;
	return true;
}

static void all_placed(struct marks *m, uint64_t now)
{
	int r = place(m, m->name, "", m->hold_ns, m->asked_for ? m->asks[0].number : 0);

	if (r) {
		give_up(m, "this host: %s", refusal(r));
		return;
	}
	m->state = RELEASING;
	m->deadline = now + ANSWER_NS;
	send_release(m);
	if (!let_go(m))
		give_up(m, "this host: writes were withheld for longer than may be");
}

/* Can a mark be tried? Else why not, of the first that stands in its way */
const struct marks_member *marks_in_the_way(const struct marks *m)
{
	for (unsigned int i = 0; i < m->count; i++)
		if (*m->member[i].why)
			return &m->member[i];
	return NULL;
}

static void begin(struct marks *m, uint64_t now)
{
	const struct marks_member *p = marks_in_the_way(m);

	m->asked_for = next_ask(m);
	if (p) {
		snprintf(m->last_failure, sizeof(m->last_failure), "host %s: %s", p->host, p->why);
		m->not_before = now + RETRY_NS;
		return;
	}
	if (wire_group_mark(m->asked_for ? m->asks[0].name : AUTO, m->epoch, m->ops.random(m->arg), m->name))
		return;		/* checked when it was asked for, and the epoch when it came */
	m->state = PLACING;
	m->deadline = now + m->hold_ns;
	for (unsigned int i = 1; i < m->count; i++) {
		struct marks_msg msg = { .kind = MARKS_MARK, .epoch = m->epoch, .hold_ns = m->hold_ns,
					 .incarnation = m->member[i].incarnation,
					 .number = m->asked_for ? m->asks[0].number : 0 };

		m->member[i].placed = m->member[i].held = false;
		memcpy(msg.name, m->name, sizeof(msg.name));
		m->ops.send(m->arg, m->member[i].host_id, &msg);
	}
}

static void coordinate(struct marks *m, struct marks_member *p, const struct marks_msg *msg, uint64_t now)
{
	if (m->state == IDLE || strcmp(msg->name, m->name))
		return;		/* of an earlier one */
	if (msg->kind == MARKS_REFUSED || msg->kind == MARKS_BROKEN) {
		give_up(m, "host %s: %s", p->host, msg->text);
	} else if (msg->kind == MARKS_PLACED && m->state == PLACING) {
		p->placed = true;
		if (all(m, false))
			all_placed(m, now);
	} else if (msg->kind == MARKS_HELD && m->state == RELEASING) {
		p->held = true;
		if (all(m, true))
			declared(m, now);
	}
}

static void expire(struct marks *m, uint64_t now)
{
	char late[ASR_NAME_BYTES] = "";

	if (m->state == IDLE || now < m->deadline)
		return;
	for (unsigned int i = 1; i < m->count && !*late; i++)
		if (m->state == PLACING ? !m->member[i].placed : !m->member[i].held)
			memcpy(late, m->member[i].host, sizeof(late));
	if (m->state == PLACING)
		give_up(m, "host %s: no answer within %llu ms", late, (unsigned long long)(m->hold_ns / NS_PER_MS));
	else
		give_up(m, "host %s: did not say that it has held", late);
}

/* Those that were sent to who makes the marks */
static void end_own_asks(struct marks *m, const char *why)
{
	while (!marks_coordinates(m) && m->ask_count)
		marks_ask_ended(m, 0, NULL, why);
}

/* ------------------------------------------------------------------ events */

static int push_ask(struct marks *m, const char *name, uint64_t limit_ns, const char *from, uint64_t now)
{
	struct ask *a = &m->asks[m->ask_count];
	char full[ASR_NAME_BYTES];

	if (wire_group_mark(name, 1, 0, full) || limit_ns > APP_LIMIT_MAX_NS)
		return -EINVAL;
	if (m->ask_count == ASKS_MAX)
		return -EBUSY;
	memset(a, 0, sizeof(*a));
	snprintf(a->name, sizeof(a->name), "%s", name);
	snprintf(a->from, sizeof(a->from), "%s", from);
	a->limit_ns = limit_ns;
	a->until = now + ASK_NS;
	m->ask_count++;
	return 0;
}

static void on_ask(struct marks *m, const char *from, const struct marks_msg *msg)
{
	int r = push_ask(m, msg->name, msg->hold_ns, from, m->now);

	if (r)
		marks_send(m, from, MARKS_FAILED, msg->name, r == -EINVAL ? "its name, or its limit, is none" :
			   "too many marks are being waited for");
}

static void on_state(struct marks *m, struct marks_member *p, const struct marks_msg *msg, uint64_t now,
		     uint64_t time_real)
{
	p->incarnation = msg->incarnation;
	p->epoch = msg->epoch;
	p->skew_ns = (int64_t)(msg->time_ns - time_real);
	if (!msg->ready)
		set_why(p, *msg->text ? msg->text : "it does not read its ring", now);
	else if (msg->epoch != m->epoch)
		set_why(p, "it knows other members of the group", now);
	else
		set_why(p, "", now);
}

void marks_message(struct marks *m, const char *host_id, const struct marks_msg *msg, uint64_t now,
		   uint64_t time_real)
{
	struct marks_member *p = member(m, host_id);

	m->now = now;
	if (!p || m->me == m->count || p == &m->member[m->me])
		return;
	switch (msg->kind) {
	case MARKS_STATE:
		on_state(m, p, msg, now, time_real);
		break;
	case MARKS_MARK:
		on_mark(m, host_id, msg);
		break;
	case MARKS_RELEASE:
		on_release(m, host_id, msg);
		break;
	case MARKS_DECLARE:
		if (!strcmp(m->hold.from, host_id))
			app_marked(m, msg->name, declare(m, msg->name));
		break;
	case MARKS_QUIET:
		app_on_quiet(m, host_id, msg);
		break;
	case MARKS_LOUD:
		if (!strcmp(m->quiet.from, host_id) && m->quiet.number == msg->number)
			app_stop_quiet(m, msg->text);
		break;
	case MARKS_IS_QUIET:
	case MARKS_IS_LOUD:
		app_heard(m, (unsigned int)(p - m->member), msg);
		break;
	case MARKS_ASK:
		if (!marks_coordinates(m))
			marks_send(m, host_id, MARKS_FAILED, msg->name, "it is not the one who makes the marks");
		else
			on_ask(m, host_id, msg);
		break;
	case MARKS_DONE:
	case MARKS_FAILED:
		for (unsigned int i = 0; i < m->ask_count && p == m->member; i++)
			if (!*m->asks[i].from && !strcmp(m->asks[i].name, msg->name)) {
				marks_ask_ended(m, i, msg->kind == MARKS_DONE ? msg->text : NULL, msg->text);
				break;
			}
		break;
	default:
		coordinate(m, p, msg, now);
	}
}

static void say_state(struct marks *m, const char *to, uint64_t time_real)
{
	struct marks_msg msg = { .kind = MARKS_STATE, .incarnation = m->incarnation, .epoch = m->epoch,
				 .ready = !*m->self_why, .time_ns = time_real };

	snprintf(msg.text, sizeof(msg.text), "%s", m->self_why);
	m->ops.send(m->arg, to, &msg);
}

void marks_peer(struct marks *m, const char *host_id, bool up, const char *why, uint64_t now)
{
	struct marks_member *p = member(m, host_id);

	m->now = now;
	if (!p || m->me == m->count || p == &m->member[m->me])
		return;
	drop_hold_of(m, host_id);	/* what it said last has been lost */
	if (!strcmp(m->quiet.from, host_id))
		app_stop_quiet(m, "the connection to who makes the marks broke");
	if (m->state != IDLE && (up || p->up))
		give_up(m, "host %s: %s", p->host, up ? "connected anew" : why);
	if (up || p->up)
		app_lost(m, p->host, up ? "connected anew" : why);
	if (p == m->member && (up || p->up))
		end_own_asks(m, up ? "the connection to who makes the marks is a new one" : why);
	p->up = up;
	set_why(p, up ? "connected, it has not said yet how it is" : why, now);
	m->state_due = 0;	/* tell it at once */
}

void marks_self(struct marks *m, uint64_t incarnation, const char *why, uint64_t now)
{
	m->now = now;
	if (m->incarnation == incarnation && !strcmp(m->self_why, why ? why : ""))
		return;
	if (m->incarnation != incarnation) {
		m->hold.on = m->hold.held = false;	/* the kernel ended it with the consumer that was */
		m->hold.name[0] = 0;
		if (m->state != IDLE)
			give_up(m, "this host: its asrd reads the ring anew");
		app_stop_quiet(m, "its asrd reads the ring anew");
		app_lost(m, m->member[0].host, "its asrd reads the ring anew");
	}
	m->incarnation = incarnation;
	snprintf(m->self_why, sizeof(m->self_why), "%s", why ? why : "");
	if (m->me < m->count)
		set_why(&m->member[m->me], m->self_why, now);
	m->state_due = 0;
}

void marks_set(struct marks *m, const char *me, uint64_t epoch, uint64_t mark_ms, uint64_t hold_ms,
	       const struct marks_member *list, unsigned int count, uint64_t now)
{
	struct marks_member old[MARKS_MEMBERS_MAX];
	unsigned int old_count = m->count;

	m->now = now;
	m->mark_ns = mark_ms * NS_PER_MS;
	m->hold_ns = hold_ms * NS_PER_MS;
	if (m->hold_ns > ASR_HOLD_MAX_NS)
		m->hold_ns = ASR_HOLD_MAX_NS;
	if (epoch == m->epoch && count == m->count)
		return;		/* within an epoch they are the same */
	if (m->state != IDLE)
		give_up(m, "the members of the group have changed");
	drop_hold(m);
	app_stop_quiet(m, "the members of the group have changed");
	app_lost(m, "the group", "its members have changed");
	while (m->ask_count && (count < 2 || m->me || strcmp(list[0].host_id, me)))
		marks_ask_ended(m, 0, NULL, count < 2 ? "the group is on one host now" :
				"the members of the group have changed");
	memcpy(old, m->member, sizeof(old));
	m->epoch = epoch;
	m->count = count < MARKS_MEMBERS_MAX ? count : MARKS_MEMBERS_MAX;
	m->me = m->count;
	for (unsigned int i = 0; i < m->count; i++) {
		m->member[i] = list[i];
		m->member[i].since_ns = now;
		snprintf(m->member[i].why, sizeof(m->member[i].why), "%s", "not connected yet");
		for (unsigned int k = 0; k < old_count; k++)
			if (!strcmp(old[k].host_id, list[i].host_id))
				m->member[i] = old[k];
		if (!strcmp(list[i].host_id, me)) {
			m->me = i;
			set_why(&m->member[i], m->self_why, now);
		} else if (m->member[i].up && m->member[i].epoch != epoch) {
			set_why(&m->member[i], "it knows other members of the group", now);
		}
	}
	m->state_due = 0;
}

/* Those that were asked for too long ago */
static void expire_asks(struct marks *m, uint64_t now)
{
	unsigned int i = m->state != IDLE && m->asked_for;

	while (i < m->ask_count) {
		struct ask *a = &m->asks[i];

		if (a->at == ASK_WAITS && a->limit_ns && app_ask(m))
			a->until = now + ASK_NS;	/* one at a time */
		if (a->at == ASK_WAITS && now >= a->until)
			marks_ask_ended(m, i, NULL, *m->last_failure ? m->last_failure : "no answer");
		else
			i++;
	}
}

uint64_t marks_tick(struct marks *m, uint64_t now, uint64_t time_real)
{
	uint64_t due;

	m->now = now;
	if (m->hold.on && now >= m->hold.until)
		drop_hold(m);
	if (m->count < 2 || m->me == m->count) {
		expire_asks(m, now);
		return 0;
	}
	expire(m, now);
	app_expire_quiet(m, now);
	expire_asks(m, now);
	app_run(m, now);
	if (now >= m->state_due) {
		for (unsigned int i = 0; i < m->count; i++)
			if (i != m->me && m->member[i].up)
				say_state(m, m->member[i].host_id, time_real);
		m->state_due = now + STATE_NS;
	}
	if (marks_coordinates(m) && m->state == IDLE &&
	    ((m->mark_ns && now >= m->due) || (now >= m->not_before && next_ask(m)))) {
		if (now >= m->due)
			m->due = now + m->mark_ns;
		begin(m, now);
	}
	due = m->state_due;
	if (m->state != IDLE && m->deadline < due)
		due = m->deadline;
	if (marks_coordinates(m) && m->state == IDLE && m->mark_ns && m->due < due)
		due = m->due;
	if (m->hold.on && m->hold.until < due)
		due = m->hold.until;
	if ((m->ask_count || m->quiet.at != LOUD) && now + 100 * NS_PER_MS < due)
		due = now + 100 * NS_PER_MS;
	return due;
}

int marks_ask(struct marks *m, const char *name, uint64_t limit_ns, uint64_t now)
{
	struct marks_msg msg = { .kind = MARKS_ASK, .hold_ns = limit_ns };
	int r;

	m->now = now;
	r = push_ask(m, name, limit_ns, "", now);
	if (r || marks_coordinates(m) || !m->count)
		return r;
	if (!m->member[0].up) {
		m->ask_count--;
		return -ENOTCONN;
	}
	/* the coordinator knows better why not */
	m->asks[m->ask_count - 1].until += 2 * NS_PER_S + (limit_ns ? ASK_NS + 2 * APP_LIMITS * limit_ns : 0);
	snprintf(msg.name, sizeof(msg.name), "%s", name);
	m->ops.send(m->arg, m->member[0].host_id, &msg);
	return 0;
}

/* -------------------------------------------------------------------- life */

int marks_create(const struct marks_ops *ops, void *arg, struct marks **out)
{
	struct marks *m = calloc(1, sizeof(*m));

	if (!m)
		return -ENOMEM;
	m->ops = *ops;
	m->arg = arg;
	snprintf(m->self_why, sizeof(m->self_why), "%s", "it does not read its ring");
	*out = m;
	return 0;
}

void marks_destroy(struct marks *m)
{
	free(m);
}

bool marks_wanted(const struct marks *m)
{
	return m->count > 1 && m->me < m->count;
}

uint64_t marks_epoch(const struct marks *m)
{
	return m->epoch;
}

const struct marks_member *marks_member(const struct marks *m, unsigned int i)
{
	return i < m->count ? &m->member[i] : NULL;
}

json_t *marks_json(const struct marks *m, uint64_t now, uint64_t time_real)
{
	const struct marks_member *p = marks_in_the_way(m);
	json_t *hosts = json_array();
	char when[40];

	for (unsigned int i = 0; i < m->count; i++) {
		const struct marks_member *h = &m->member[i];

		json_array_append_new(hosts, json_pack("{s:s, s:s, s:b, s:s, s:s, s:f}", "host", h->host, "host_id",
			h->host_id, "here", i == m->me, "since",
			time_format(time_real - (now - h->since_ns), when), "trouble", h->why, "skew_s",
			(double)h->skew_ns / 1e9));
	}
	return json_pack("{s:I, s:f, s:f, s:s?, s:I, s:I, s:o, s:s?, s:s, s:o, s:o, s:o}",
			 "epoch", (json_int_t)m->epoch, "interval_s", (double)m->mark_ns / 1e9,
			 "hold_limit_s", (double)m->hold_ns / 1e9, "coordinator", m->count ? m->member[0].host : NULL,
			 "declared", (json_int_t)m->declared, "failed", (json_int_t)m->failed,
			 "last_declared", m->last_declared_ns ?
			 json_string(time_format(time_real - (now - m->last_declared_ns), when)) : json_null(),
			 "waits_for", p ? p->host : NULL, "last_failure", m->last_failure,
			 "holds", holds_json(&m->holds), "delayed_at_most", holds_json(&m->delays), "hosts", hosts);
}
