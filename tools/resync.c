// SPDX-License-Identifier: Apache-2.0
/*
 * asrctl group resync, pause, resume, verify: the disks of a group and their copy.
 */
#include "asrctl.h"

#include <errno.h>
#include <string.h>

int rate_read(const struct args *a, uint64_t *bytes, struct why *why)
{
	const char *rate = arg_value(a, "rate", "0");

	*bytes = 0;
	if (strcmp(rate, "0") && (size_parse(rate, bytes) || *bytes < 65536 || *bytes > 1ull << 50))
		return why_set(why, EINVAL, "bad rate \"%.40s\": bytes a second, as 50M, or 0 for no limit; at least "
			       "64K", rate);
	return 0;
}

static int rate_of(const struct args *a, json_t *parameters, struct why *why)
{
	uint64_t bytes;
	int err = rate_read(a, &bytes, why);

	if (!err && arg_given(a, "rate"))
		json_object_set_new(parameters, "rate", json_integer((json_int_t)bytes));
	return err;
}

static const char *flag(const json_t *o, const char *key, const char *yes, const char *no)
{
	return json_is_true(json_object_get(o, key)) ? yes : no;
}

/* What asrd says of the group now, in a line */
static void put_resync(const json_t *group)
{
	const json_t *r = json_object_get(group, "resync");
	const char *phase = json_string_value(json_object_get(group, "phase"));
	uint64_t limit = (uint64_t)json_integer_value(json_object_get(r, "limit_bytes_per_s"));
	char text[24];

	printf("group %s: %s, resync %s%s", json_string_value(json_object_get(group, "name")),
	       flag(group, "consistent", "consistent", "not consistent"), flag(r, "paused", "paused, ", ""), phase);
	if (limit)
		printf(", at most %s/s", out_bytes(limit, text));
	printf("; `asrctl status --watch` shows how it goes\n");
}

static int call_and_put(const struct args *a, const char *method, json_t *parameters, struct why *why)
{
	cleanup_json answer = NULL;
	int err = daemon_call(a, method, parameters, &answer, why);

	if (err)
		return err;
	if (a->json)
		out_json(answer);
	else
		put_resync(answer);
	return 0;
}

int group_resync(const struct args *a, struct why *why)
{
	json_t *p = json_pack("{s:s, s:b}", "name", a->words[0], "all", arg_given(a, "all"));
	int err = rate_of(a, p, why);

	if (!err)
		return call_and_put(a, "io.asr.Group.Resync", p, why);
	json_decref(p);
	return err;
}

int group_pause(const struct args *a, struct why *why)
{
	return call_and_put(a, "io.asr.Group.Pause", json_pack("{s:s}", "name", a->words[0]), why);
}

int group_resume(const struct args *a, struct why *why)
{
	return call_and_put(a, "io.asr.Group.Resume", json_pack("{s:s}", "name", a->words[0]), why);
}

/* ------------------------------------------------------------------ verify */

struct report {
	const struct args *a;
	struct progress bar;
	json_t *differences, *result;
};

static uint64_t number(const json_t *o, const char *key)
{
	return (uint64_t)json_integer_value(json_object_get(o, key));
}

static int on_reply(json_t *reply, void *arg)
{
	struct report *r = arg;
	json_t *d = json_object_get(reply, "difference"), *p = json_object_get(reply, "progress");

	if (d) {
		json_array_append(r->differences, d);
		if (!r->a->json) {
			progress_end(&r->bar);
			printf("disk %s differs: sector %llu, %llu sectors\n",
			       json_string_value(json_object_get(d, "disk")), (unsigned long long)number(d, "sector"),
			       (unsigned long long)number(d, "sectors"));
			fflush(stdout);
		}
	} else if (p) {
		progress_show(&r->bar, number(p, "done_bytes"), number(p, "total_bytes"),
			      (uint64_t)json_number_value(json_object_get(p, "bytes_per_s")));
	} else {
		r->result = json_incref(reply);
	}
	return interrupted() ? -EINTR : 0;
}

static void put_result(const json_t *result)
{
	char compared[24], unknown[24], differing[24];
	uint64_t done = number(result, "done_bytes"), other = number(result, "uncomparable_bytes");

	printf("%s compared: %llu differences, %s\n",
	       out_bytes(done - other - number(result, "busy_bytes"), compared),
	       (unsigned long long)number(result, "differences"),
	       out_bytes(number(result, "differing_bytes"), differing));
	if (other)
		printf("%s could not be compared: discarded, or written in pieces smaller than 4 KiB\n",
		       out_bytes(other, unknown));
}

int group_verify(const struct args *a, struct why *why)
{
	const char *disk = arg_value(a, "disk", NULL), *settle = arg_value(a, "settle", NULL), *text;
	struct report r = { .a = a, .differences = json_array() };
	cleanup_json list = r.differences;
	json_t *p = json_pack("{s:s}", "name", a->words[0]);
	char *end;
	int err = rate_of(a, p, why);

	if (disk)
		json_object_set_new(p, "disk", json_string(disk));
	if (!err && settle) {
		long seconds = strtol(settle, &end, 10);

		if (*end || end == settle || seconds < 0 || seconds > 86400)
			err = why_set(why, EINVAL, "bad --settle \"%.40s\": seconds from 0 to 86400 are wanted",
				      settle);
		json_object_set_new(p, "settle_s", json_integer(seconds));
	}
	if (err) {
		json_decref(p);
		return err;
	}
	interrupt_catch();
	progress_begin(&r.bar, a->words[0], a->json);
	err = control_call(arg_value(a, "control", ASR_SOCKET), "io.asr.Group.Verify", p, true, on_reply, &r, why);
	progress_end(&r.bar);
	if (interrupted())
		err = why_set(why, EINTR, "interrupted; %zu differences were found until then",
			      json_array_size(r.differences));
	if (!err && !r.result)
		err = why_set(why, EPROTO, "asrd ended without a result");
	if (err) {
		json_decref(r.result);
		return err;
	}
	json_object_set(r.result, "found", r.differences);
	text = json_string_value(json_object_get(r.result, "result"));
	if (a->json)
		out_json(r.result);
	else
		put_result(r.result);
	err = text && !strcmp(text, "equal") ? 0 : text && !strcmp(text, "different") ? 1 :
	      why_set(why, EBUSY, "some blocks were being written all the time and could not be compared: try again, "
		      "or when the host is less busy");
	json_decref(r.result);
	return err;
}
