// SPDX-License-Identifier: Apache-2.0
/*
 * Between marks of several hosts (marks.h) and who makes this host's applications quiet for them: asrctl app serve.
 *
 * Design. Scripts and file systems are not asrd's business, which has no right to either. asrctl calls
 * io.asr.App.Serve and gets a reply for each mark that wants quiet applications: {group, name, number, timeout_s};
 * the number stands for it in all that follows. It may have waited: io.asr.App.Wanted {group, number} says whether it
 * still is. When applications are quiet, io.asr.App.Quiet {group, number} is answered by the mark, {mark, id}, or the
 * error why there is none: then they go on. In the end it calls io.asr.App.Loud {group, number, trouble}: empty, the
 * mark is declared app.
 *
 * Invariants. Each Quiet is answered, also when its mark is given up; marks.c has a limit for each step. When who
 * serves is gone, or the Quiet call is, the mark is told so.
 *
 * Context. The loop's thread.
 */
#include <stdarg.h>

#include "source.h"

/* Whatever they are at, they are not any more */
static void gone(struct group *g, const char *why)
{
	uint64_t now = now_ns();

	if (!marks_quiet(g->marks, 0, why, now) || !marks_loud(g->marks, 0, why, now))
		peers_run(g);
}

static void serve_gone(void *arg)
{
	struct asrd *d = arg;

	d->app = NULL;
	/* who waits for a mark has another call, which is gone then, too */
	for (struct group *g = d->groups; g; g = g->next)
		if (!g->quiet)
			gone(g, "who makes its applications quiet is gone");
}

void quiet_serve(struct control_call *call, json_t *parameters, struct asrd *d)
{
	if (d->app) {
		control_error(call, "asrctl app serve runs already on this host");
		return;
	}
	if (!control_wants_more(call)) {
		control_error(call, "io.asr.App.Serve has many replies: call it with \"more\"");
		return;
	}
	d->app = call;
	control_on_gone(call, serve_gone, d);
	control_reply(call, json_object(), true);
}

const char *quiet_begin(void *arg, const char *name, uint64_t number, uint64_t limit_ns)
{
	struct group *g = arg;

	if (!g->d->app)
		return "nobody makes its applications quiet: systemctl start asr-app";
	if (control_reply(g->d->app, json_pack("{s:s, s:s, s:I, s:I}", "group", g->name, "name", name, "number",
					       (json_int_t)number, "timeout_s",
					       (json_int_t)((limit_ns + 999999999) / 1000000000)), true))
		return "who is to make its applications quiet is gone";
	return NULL;
}

/* Whoever waits for a mark gets none */
__attribute__((format(printf, 2, 3)))
static void answer_none(struct group *g, const char *fmt, ...)
{
	struct control_call *call = g->quiet;
	char why[512];
	va_list ap;

	g->quiet = NULL;
	va_start(ap, fmt);
	vsnprintf(why, sizeof(why), fmt, ap);
	va_end(ap);
	if (call)
		control_error(call, "%s", why);
}

void quiet_end(void *arg, const char *name, const char *mark, uint64_t id, const char *why)
{
	struct group *g = arg;
	struct control_call *call = g->quiet;

	/* no call: they are being made quiet, and it is told when they are */
	if (!mark) {
		answer_none(g, "no mark %s of group %s: %s", name, g->name, why);
	} else if (call) {
		g->quiet = NULL;
		control_reply(call, json_pack("{s:s, s:I}", "mark", mark, "id", (json_int_t)id), false);
	}
}

static void quiet_gone(void *arg)
{
	struct group *g = arg;

	g->quiet = NULL;
	gone(g, "who had made its applications quiet is gone");
}

/* The group of a call, and the number it names; NULL: the error has been sent */
static struct group *named(struct control_call *call, json_t *parameters, struct asrd *d, uint64_t *number)
{
	const char *group = json_string_value(json_object_get(parameters, "group"));
	struct group *g = group ? group_find(d, group) : NULL;

	*number = (uint64_t)json_integer_value(json_object_get(parameters, "number"));
	if (!group || !*number)
		control_error(call, "wrong parameters: group, and number as Serve had it");
	else if (!g)
		control_error(call, "there is no group %s on this host", group);
	return *number ? g : NULL;
}

void quiet_wanted(struct control_call *call, json_t *parameters, struct asrd *d)
{
	uint64_t number;
	struct group *g = named(call, parameters, d, &number);

	if (g)
		control_reply(call, json_pack("{s:b}", "wanted", marks_wants_quiet(g->marks, number)), false);
}

void quiet_is(struct control_call *call, json_t *parameters, struct asrd *d)
{
	uint64_t number;
	struct group *g = named(call, parameters, d, &number);

	if (!g)
		return;
	if (g->quiet) {
		control_error(call, "somebody else has made the applications of group %s quiet", g->name);
		return;
	}
	g->quiet = call;
	control_on_gone(call, quiet_gone, g);
	if (marks_quiet(g->marks, number, NULL, now_ns())) {
		g->quiet = NULL;
		control_error(call, "that mark of group %s is not waited for any more", g->name);
		return;
	}
	peers_run(g);
}

void quiet_was(struct control_call *call, json_t *parameters, struct asrd *d)
{
	const char *why = json_string_value(json_object_get(parameters, "trouble"));
	uint64_t number, now = now_ns();
	struct group *g = named(call, parameters, d, &number);

	if (!g)
		return;
	if (why && !*why)
		why = NULL;
	if (!marks_loud(g->marks, number, why, now)) {
		peers_run(g);
	} else if (why && !marks_quiet(g->marks, number, why, now)) {
		answer_none(g, "no mark of group %s: %s", g->name, why);
		peers_run(g);
	}
	control_reply(call, json_object(), false);
}

/* Who waits sees that somebody is there */
void quiet_second(struct asrd *d)
{
	if (d->app)
		control_reply(d->app, json_object(), true);
	for (struct group *g = d->groups; g; g = g->next)
		if (g->quiet && control_wants_more(g->quiet))
			control_reply(g->quiet, json_object(), true);
}

void quiet_group_end(struct group *g)
{
	answer_none(g, "group %s goes", g->name);
}
