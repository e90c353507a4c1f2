// SPDX-License-Identifier: Apache-2.0
/*
 * asrctl group: the consistency groups of this host.
 */
#include "asrctl.h"

#include <errno.h>
#include <string.h>
#include <time.h>

#define CERT_MAX	65536

/* Reads and judges each certificate here, where the file's name is known. */
static int recipients_read(const struct args *a, json_t *list, struct why *why)
{
	const char *path;

	for (unsigned int i = 0; (path = arg_nth(a, "recipient", i)); i++) {
		cleanup_free char *pem = NULL;
		struct why reason = {0};
		char line[512];
		int err;

		err = file_read(path, CERT_MAX, &pem, NULL, why);
		if (err)
			return err;
		if (seal_cert_describe(pem, line, sizeof(line), &reason))
			return why_set(why, EINVAL, "%.200s: %.280s", path, reason.text);
		json_array_append_new(list, json_string(pem));
	}
	return 0;
}

/* create and join: answer is the caller's to drop */
static int group_new(const struct args *a, const char *method, json_t **answer, struct why *why)
{
	const char *ring = arg_value(a, "ring-size", NULL), *level = arg_value(a, "compression", NULL);
	cleanup_json recipients = json_array();
	json_t *parameters;
	uint64_t bytes = 0;
	long compression = 0;
	char *end;
	int err;

	err = name_check("group", a->words[0], why);
	if (err)
		return err;
	if (ring && (size_parse(ring, &bytes) || bytes < ASR_RING_MIN || bytes > ASR_RING_MAX ||
		     (bytes & (bytes - 1))))
		return why_set(why, EINVAL, "bad ring size \"%.40s\": a power of two from 1M to 4G is wanted", ring);
	if (level) {
		compression = strtol(level, &end, 10);
		if (*end || compression < 0 || compression > 19)
			return why_set(why, EINVAL, "bad compression level \"%.40s\": 0 (off) to 19 is wanted", level);
	}
	err = recipients_read(a, recipients, why);
	if (err)
		return err;
	parameters = json_pack("{s:s, s:O}", "name", a->words[0], "recipients", recipients);
	if (ring)
		json_object_set_new(parameters, "ring_bytes", json_integer((json_int_t)bytes));
	if (level)
		json_object_set_new(parameters, "compression", json_integer(compression));
	return daemon_call(a, method, parameters, answer, why);
}

int group_create(const struct args *a, struct why *why)
{
	cleanup_json answer = NULL;
	int err = group_new(a, "io.asr.Group.Create", &answer, why);

	if (err)
		return err;
	if (a->json)
		out_json(answer);
	else
		printf("group %s made; put disks into it: `asrctl disk protect DEVICE --group %s`\n",
		       a->words[0], a->words[0]);
	return 0;
}

int group_join(const struct args *a, struct why *why)
{
	cleanup_json answer = NULL;
	int err = group_new(a, "io.asr.Group.Join", &answer, why);

	if (err)
		return err;
	if (a->json)
		out_json(answer);
	else
		printf("group %s joined; put disks of this host into it: `asrctl disk protect DEVICE --group %s`. From "
		       "now on a point of the group is one of all its hosts: `asrctl group show %s`\n", a->words[0],
		       a->words[0], a->words[0]);
	return 0;
}

static int of_host(const struct args *a, const char *method, const char *done, struct why *why)
{
	cleanup_json answer = NULL;
	int err = daemon_call(a, method, json_pack("{s:s, s:s}", "name", a->words[0], "host",
						   arg_value(a, "host", "")), &answer, why);

	if (err)
		return err;
	if (a->json)
		out_json(answer);
	else
		printf(done, json_string_value(json_object_get(answer, "host")), a->words[0]);
	return 0;
}

int group_admit(const struct args *a, struct why *why)
{
	return of_host(a, "io.asr.Group.Admit", "host %s may join group %s: on that host, `asrctl group join`\n", why);
}

int group_evict(const struct args *a, struct why *why)
{
	return of_host(a, "io.asr.Group.Evict", "host %s is no longer in group %s; its history stays in the vault\n",
		       why);
}

/* "100ms", "5s", "2m", "1h"; a number alone: seconds */
static int milliseconds(const char *text, uint64_t *ms)
{
	static const struct { const char *unit; uint64_t ms; } units[] = {
		{ "ms", 1 }, { "", 1000 }, { "s", 1000 }, { "m", 60000 }, { "h", 3600000 },
	};
	char *end;
	double n = strtod(text, &end);

	if (end == text || *text == '-' || !(n >= 0 && n <= 3600000))
		return -EINVAL;
	for (size_t i = 0; i < sizeof(units) / sizeof(units[0]); i++)
		if (!strcmp(end, units[i].unit)) {
			*ms = (uint64_t)(n * (double)units[i].ms + 0.5);
			return 0;
		}
	return -EINVAL;
}

int group_interval(const struct args *a, struct why *why)
{
	const char *hold = arg_value(a, "hold", NULL);
	json_t *parameters;
	cleanup_json answer = NULL;
	uint64_t ms, hold_ms = 0;
	int err;

	if (milliseconds(a->words[1], &ms) || (ms && (ms < 100 || ms > 3600000)))
		return why_set(why, EINVAL, "bad interval \"%.40s\": 100ms to 1h is right, or 0: no points of all "
			       "hosts but those that are asked for", a->words[1]);
	if (hold && (milliseconds(hold, &hold_ms) || !hold_ms || hold_ms > 1000))
		return why_set(why, EINVAL, "bad hold \"%.40s\": 1ms to 1s is right", hold);
	parameters = json_pack("{s:s, s:I}", "name", a->words[0], "mark_ms", (json_int_t)ms);
	if (hold)
		json_object_set_new(parameters, "hold_ms", json_integer((json_int_t)hold_ms));
	err = daemon_call(a, "io.asr.Group.Marks", parameters, &answer, why);
	if (!err && a->json)
		out_json(answer);
	return err;
}

int group_list(const struct args *a, struct why *why)
{
	static const struct col cols[] = {
		{ "NAME", "name", COL_TEXT }, { "UUID", "uuid", COL_TEXT }, { "STATE", "status.state", COL_TEXT },
		{ "RING", "ring_bytes", COL_BYTES }, { "DISKS", "status.disks", COL_INT },
	};
	cleanup_json answer = NULL;
	int err;

	err = daemon_call(a, "io.asr.Group.List", NULL, &answer, why);
	if (err)
		return err;
	if (a->json)
		out_json(answer);
	else
		out_table(json_object_get(answer, "groups"), cols, sizeof(cols) / sizeof(cols[0]), "no groups");
	return 0;
}

int group_show(const struct args *a, struct why *why)
{
	cleanup_json answer = NULL;
	int err;

	err = daemon_call(a, "io.asr.Group.Show", json_pack("{s:s}", "name", a->words[0]), &answer, why);
	if (err)
		return err;
	if (a->json)
		out_json(answer);
	else
		out_tree(answer);
	return 0;
}

/* KIND-20260102T030405Z */
static void mark_name(const char *kind, char out[ASR_NAME_BYTES])
{
	time_t now = time(NULL);
	struct tm utc;
	char when[24];

	gmtime_r(&now, &utc);
	strftime(when, sizeof(when), "%Y%m%dT%H%M%SZ", &utc);
	snprintf(out, ASR_NAME_BYTES, "%s-%s", kind, when);
}

/* asrd knows; where it does not run, nobody makes points of several hosts */
static bool on_several_hosts(const struct args *a)
{
	cleanup_json group = NULL;
	int err = daemon_call(a, "io.asr.Group.Show", json_pack("{s:s}", "name", a->words[0]), &group, NULL);

	/* a group that asrd does not know may be in the kernel all the same: the mark says so */
	return !err && !json_is_null(json_object_get(group, "marks"));
}

static int app_mark(const struct args *a, const char *name, json_t **answer, struct why *why)
{
	struct quiet_for f = { .group = a->words[0], .name = name, .args = a };
	int err = quiet_seconds(arg_value(a, "timeout", QUIET_SECONDS), &f.seconds, why);

	if (err)
		return err;
	if (!on_several_hosts(a))
		return quiet_run(a, &f, answer, why);
	if (arg_given(a, "freeze") || arg_given(a, "no-freeze") || arg_given(a, "script"))
		return why_set(why, EINVAL, "group %s is on several hosts: --freeze, --no-freeze and --script are of "
			       "one, and scripts in /etc/asr/app/%s are right, on each", f.group, f.group);
	return daemon_call_long(a, "io.asr.Group.Mark", json_pack("{s:s, s:s, s:i}", "group", f.group, "name", name,
				"app_timeout_s", (int)f.seconds), answer, why);
}

int group_mark(const struct args *a, struct why *why)
{
	const char *kind = arg_value(a, "consistency", "crash"), *given = arg_value(a, "name", NULL);
	bool app = !strcmp(kind, "app");
	char when[40], name[ASR_NAME_BYTES];
	cleanup_json answer = NULL;
	int err;

	if (!app && strcmp(kind, "crash"))
		return why_set(why, EINVAL, "bad consistency \"%.40s\": crash and app are right", kind);
	if (!app && (arg_given(a, "freeze") || arg_given(a, "no-freeze") || arg_given(a, "script") ||
		     arg_given(a, "timeout")))
		return why_set(why, EINVAL, "--freeze, --no-freeze, --script and --timeout want --consistency app");
	mark_name(kind, name);
	err = name_check("group", a->words[0], why);
	if (!err && given)
		err = name_check("mark", given, why);
	if (!err && given)
		snprintf(name, sizeof(name), "%s", given);
	if (!err)
		err = app ? app_mark(a, name, &answer, why) :
			    daemon_call(a, "io.asr.Group.Mark", json_pack("{s:s, s:s}", "group", a->words[0],
					"name", name), &answer, why);
	if (err)
		return err;
	json_object_set_new(answer, "name", json_string(name));
	if (a->json) {
		out_json(answer);
		return 0;
	}
	if (json_object_get(answer, "mark")) {
		printf("mark %s of group %s, on all of its hosts%s; restore it with --point name:%s\n", name,
		       a->words[0], app ? ", application-consistent" : "", name);
		return 0;
	}
	printf("mark %s of group %s: seq %lld, %s", name, a->words[0],
	       (long long)json_integer_value(json_object_get(answer, "seq")),
	       time_format((uint64_t)json_integer_value(json_object_get(answer, "time_ns")), when));
	if (app)
		printf(", application-consistent, %zu file systems and %zu virtual machines frozen for %lld ms",
		       json_array_size(json_object_get(answer, "frozen")),
		       json_array_size(json_object_get(answer, "domains")),
		       (long long)json_integer_value(json_object_get(answer, "frozen_ns")) / 1000000);
	printf("; restore it with --point name:%s\n", name);
	return 0;
}

int group_delete(const struct args *a, struct why *why)
{
	cleanup_fd int lock = boot_lock();
	cleanup_json answer = NULL;
	int err;

	err = daemon_call(a, "io.asr.Group.Delete", json_pack("{s:s}", "name", a->words[0]), &answer, why);
	if (err)
		return err;
	boot_mirror(boot_state_dir(a));	/* no device of its disks is held back any more */
	if (a->json)
		out_json(answer);
	else
		printf("group %s is gone from this host; its history stays in the vault\n", a->words[0]);
	return 0;
}
