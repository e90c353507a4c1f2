// SPDX-License-Identifier: Apache-2.0
/*
 * asrctl status: how far behind is the vault, and why.
 */
#include "asrctl.h"

#include <errno.h>
#include <math.h>
#include <string.h>
#include <time.h>

/* How much of the spool is used, if it is; whatever keeps it from being used is shown below the table */
static void spool_complete(json_t *g)
{
	json_t *spool = json_object_get(g, "spool");
	const char *state = json_string_value(json_object_get(spool, "state"));
	double bytes = json_number_value(json_object_get(spool, "bytes"));
	double max = json_number_value(json_object_get(spool, "max"));
	char text[64];

	if (!state || !strcmp(state, "empty") || (!strcmp(state, "off") && !bytes))
		snprintf(text, sizeof(text), "-");
	else
		snprintf(text, sizeof(text), "%.20s %.1f%%", state, max > 0 ? bytes / max * 100 : 100);
	json_object_set_new(g, "spool_text", json_string(text));
}

/* What the table shows beyond asrd's own words: made here, shown only. */
static void row_complete(json_t *g)
{
	double used = json_number_value(json_object_get(json_object_get(g, "ring"), "used"));
	double size = json_number_value(json_object_get(json_object_get(g, "ring"), "bytes"));
	json_t *resync = json_object_get(g, "resync");
	double done = json_number_value(json_object_get(resync, "done_bytes"));
	double total = json_number_value(json_object_get(resync, "total_bytes"));
	const char *phase = json_string_value(json_object_get(g, "phase"));
	char text[80];

	snprintf(text, sizeof(text), "%.1f%%", size > 0 ? used / size * 100 : 0);
	json_object_set_new(g, "ring_percent", json_string(text));
	if (!phase || !strcmp(phase, "idle"))
		snprintf(text, sizeof(text), "-");
	else if (json_is_true(json_object_get(resync, "paused")))
		snprintf(text, sizeof(text), "%.40s %.1f%%, paused", phase, total > 0 ? done / total * 100 : 0);
	else
		snprintf(text, sizeof(text), "%.40s %.1f%%, %.0f s left", phase,
			 total > 0 ? done / total * 100 : 0,
			 json_number_value(json_object_get(resync, "eta_s")));
	json_object_set_new(g, "copy", json_string(text));
	spool_complete(g);
}

static void put_vault(json_t *vault)
{
	const char *address = json_string_value(json_object_get(vault, "address"));
	const char *error = json_string_value(json_object_get(vault, "last_error"));
	bool connected = json_is_true(json_object_get(vault, "connected"));

	if (!address || !*address)
		puts("vault: none; register this host: `asrctl register --key FILE`");
	else
		printf("vault: %s, %s%s%s\n", address, connected ? "connected" : "not connected",
		       !connected && error && *error ? ": " : "", !connected && error ? error : "");
}

static void put_missing(const char *group, json_t *disk)
{
	time_t since = (time_t)(json_integer_value(json_object_get(disk, "since_ns")) / 1000000000);
	char when[32] = "?";
	struct tm tm;

	if (localtime_r(&since, &tm))
		strftime(when, sizeof(when), "%F %T", &tm);
	printf("%s: disk %s IS NOT PROTECTED since %s: %s; `asrctl boot` brings it back, or says why not\n", group,
	       json_string_value(json_object_get(disk, "name")), when,
	       json_string_value(json_object_get(disk, "reason")));
}

/* Why the spool is not used, and since when something waits in it */
static void put_spool(const json_t *g)
{
	const char *name = json_string_value(json_object_get(g, "name"));
	json_t *spool = json_object_get(g, "spool");
	const char *state = json_string_value(json_object_get(spool, "state"));
	const char *reason = json_string_value(json_object_get(spool, "reason"));
	json_int_t oldest = json_integer_value(json_object_get(spool, "oldest_ns"));
	double mib = json_number_value(json_object_get(spool, "bytes")) / 1048576;
	char when[40];

	if (!state)
		return;
	if (oldest)
		printf("%s: spool: %s, %.1f MiB since %s\n", name, state, mib, time_format((uint64_t)oldest, when));
	if (reason && *reason && strcmp(state, "off"))
		printf("%s: spool: %s: %s%s%s%s%s\n", name, state, reason, strcmp(state, "refused") ? "" :
		       "; if it is not wanted: asrctl spool discard ", strcmp(state, "refused") ? "" : name,
		       strcmp(state, "refused") ? "" : " --yes ", strcmp(state, "refused") ? "" : name);
}

static void put_table(json_t *answer)
{
	static const struct col cols[] = {
		{ "GROUP", "name", COL_TEXT }, { "STATE", "state", COL_TEXT },
		{ "CONSISTENT", "consistent", COL_YESNO }, { "RPO s", "rpo_s", COL_SECONDS },
		{ "RPO", "rpo_bytes", COL_BYTES }, { "RING", "ring_percent", COL_TEXT },
		{ "WRITTEN MB/s", "rate.write_bytes_per_s", COL_RATE },
		{ "SHIPPED MB/s", "rate.ship_bytes_per_s", COL_RATE },
		{ "RATIO", "compression_ratio", COL_RATIO }, { "SPOOL", "spool_text", COL_TEXT },
		{ "COPY", "copy", COL_TEXT },
	};
	const char *module = json_string_value(json_object_get(json_object_get(answer, "module"), "error"));
	json_t *groups = json_object_get(answer, "groups"), *g;
	size_t i;

	put_vault(json_object_get(answer, "vault"));
	json_array_foreach(groups, i, g)
		row_complete(g);
	out_table(groups, cols, sizeof(cols) / sizeof(cols[0]), "no groups");
	json_array_foreach(groups, i, g) {
		const char *trouble = json_string_value(json_object_get(g, "trouble"));
		const char *waits = json_string_value(json_object_get(json_object_get(g, "resync"), "waits_for"));
		json_t *disk;
		size_t j;

		json_array_foreach(json_object_get(g, "missing"), j, disk)
			put_missing(json_string_value(json_object_get(g, "name")), disk);
		if (trouble && *trouble)
			printf("%s: %s\n", json_string_value(json_object_get(g, "name")), trouble);
		if (waits)
			printf("%s: resync %s\n", json_string_value(json_object_get(g, "name")), waits);
		put_spool(g);
	}
	if (module)
		printf("module: %s\n", module);
	fflush(stdout);
}

static int show_once(const struct args *a, bool watch, struct why *why)
{
	cleanup_json answer = NULL;
	int err;

	err = daemon_call(a, "io.asr.Status", NULL, &answer, why);
	if (err)
		return err;
	if (a->json && watch)
		out_json_line(answer);
	else if (a->json)
		out_json(answer);
	else
		put_table(answer);
	return 0;
}

static int number(const struct args *a, const char *name, double fallback, double least, double *out,
		  struct why *why)
{
	const char *text = arg_value(a, name, NULL);
	char *end;

	*out = fallback;
	if (!text)
		return 0;
	*out = strtod(text, &end);
	if (*end || !isfinite(*out) || *out < least || *out > 1e6)
		return why_set(why, EINVAL, "bad --%s \"%.40s\": a number from %g to 1000000 is wanted",
			       name, text, least);
	return 0;
}

int status_show(const struct args *a, struct why *why)
{
	bool watch = arg_given(a, "watch"), tty = isatty(STDOUT_FILENO) && !a->json;
	double interval, count;
	struct timespec pause;
	int err;

	err = number(a, "interval", 1, 0.1, &interval, why);
	if (!err)
		err = number(a, "count", watch ? INFINITY : 1, 1, &count, why);
	if (err)
		return err;
	watch |= count > 1;
	pause = (struct timespec){ (time_t)interval, (long)((interval - (double)(time_t)interval) * 1e9) };
	interrupt_catch();
	for (double i = 0; i < count && !interrupted(); i++) {
		if (i > 0)
			nanosleep(&pause, NULL);
		if (interrupted())
			break;
		if (watch && tty)
			fputs("\033[H\033[J", stdout);
		else if (i > 0 && !a->json)
			putchar('\n');
		err = show_once(a, watch, why);
		if (err)
			return err;
	}
	return 0;
}
