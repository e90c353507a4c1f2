// SPDX-License-Identifier: Apache-2.0
/*
 * A verify of a group for a caller on the control socket: begun, stepped, ended.
 *
 * Design. One for each group at a time. The caller gets a reply for each difference
 * as it is found, for progress now and then, and a last one. A caller that goes away
 * ends it; so does the connection to the vault, and what makes the group inconsistent.
 *
 * Context. The loop's thread.
 */
#include <errno.h>
#include <string.h>

#include "source.h"

#define SETTLE_NS	35000000000ull	/* longer than a page stays dirty (vm.dirty_expire) */
#define NS_PER_S	1000000000ull

struct check {
	struct group *g;
	struct control_call *call;	/* NULL: the caller has gone */
	struct verify *verify;
};

static void drop(struct check *c)
{
	c->g->check = NULL;
	verify_destroy(c->verify);
	free(c);
}

static void gone(void *arg)
{
	struct check *c = arg;

	/* perhaps from inside a report: it is dropped at the next step */
	log_info("group %s: verify: who asked for it has gone", c->g->name);
	c->call = NULL;
	flow_kick(c->g);
}

static void report(void *arg, json_t *what, const char *end)
{
	struct check *c = arg;

	if (!c->call) {
		json_decref(what);
	} else if (end && *end) {
		json_decref(what);
		check_end(c->g, end);
	} else if (end) {
		log_info("group %s: verify: %s", c->g->name, json_string_value(json_object_get(what, "result")));
		control_on_gone(c->call, NULL, NULL);
		control_reply(c->call, what, false);
		drop(c);
	} else {
		control_reply(c->call, what, true);
	}
}

void check_end(struct group *g, const char *why)
{
	struct check *c = g->check;

	if (!c)
		return;
	if (c->call) {
		control_on_gone(c->call, NULL, NULL);
		control_error(c->call, "group %s could not be verified: %s", g->name, why);
	}
	drop(c);
}

void check_run(struct group *g)
{
	if (!g->check)
		return;
	if (!g->check->call)
		drop(g->check);
	else if (resync_consistent(g->resync))
		verify_step(g->check->verify);
	else
		check_end(g, "it is not consistent any more, a resync is under way: wait for its end (asrctl status)");
}

uint64_t check_due(const struct group *g)
{
	return g->check ? verify_due(g->check->verify) : 0;
}

/* NULL: it may begin */
static const char *refusal(const struct group *g)
{
	if (g->check)
		return "a verify of it is under way";
	if (!g->open)
		return "the vault is not connected, or does not take its stream: see asrctl status";
	if (g->detour)
		return "the records go through the spool, for the vault does not keep up: wait for the end of that "
		       "(asrctl status)";
	if (!resync_consistent(g->resync))
		return "it is not consistent: a resync is under way or due. Wait for its end (asrctl status)";
	return NULL;
}

void check_call(struct control_call *call, json_t *parameters, struct group *g)
{
	struct verify_args a = { .loop = g->d->loop, .source = g->source, .compare = g->compare, .group = g->name,
				 .emit = flow_emit, .kick = flow_kick, .kick_arg = g, .report = report };
	json_int_t rate = 0, settle = SETTLE_NS / NS_PER_S;
	const char *disk = "", *why = refusal(g);
	struct check *c;
	int r;

	if (json_unpack(parameters, "{s?s, s?I, s?I}", "disk", &disk, "rate", &rate, "settle_s", &settle) || rate < 0 ||
	    settle < 0 || settle > 86400 || strlen(disk) >= sizeof(a.disk) || !control_wants_more(call)) {
		control_error(call, "wrong parameters: name, and if wanted disk, rate (bytes a second), settle_s; "
			      "it answers more than once");
		return;
	}
	if (why) {
		control_error(call, "group %s cannot be verified: %s", g->name, why);
		return;
	}
	snprintf(a.disk, sizeof(a.disk), "%s", disk);
	a.rate = (uint64_t)rate;
	a.settle_ns = (uint64_t)settle * NS_PER_S;
	c = calloc(1, sizeof(*c));
	a.arg = c;
	r = c ? verify_create(&a, &c->verify) : -ENOMEM;
	if (r) {
		free(c);
		control_error(call, r == -ENODEV ? "group %s has no disk %s that is there now: asrctl disk list names "
			      "them" : "group %s: disk %s: out of memory", g->name, *disk ? disk : "at all");
		return;
	}
	c->g = g;
	c->call = call;
	g->check = c;
	control_on_gone(call, gone, c);
	log_info("group %s: verify begins", g->name);
	flow_kick(g);
}
