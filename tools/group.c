// SPDX-License-Identifier: Apache-2.0
/*
 * asrctl group: the consistency groups of this host.
 */
#include "asrctl.h"

#include <errno.h>
#include <string.h>

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

int group_create(const struct args *a, struct why *why)
{
	const char *ring = arg_value(a, "ring-size", NULL), *level = arg_value(a, "compression", NULL);
	cleanup_json recipients = json_array(), *answer = NULL;
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
	err = daemon_call(a, "io.asr.Group.Create", parameters, &answer, why);
	if (err)
		return err;
	if (a->json)
		out_json(answer);
	else
		printf("group %s made; put disks into it: `asrctl disk protect DEVICE --group %s`\n",
		       a->words[0], a->words[0]);
	return 0;
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

int group_mark(const struct args *a, struct why *why)
{
	const char *name = arg_value(a, "name", "");
	cleanup_json answer = NULL;
	uint64_t time;
	char when[40];
	int err;

	err = name_check("mark", name, why);
	if (err)
		return err;
	err = daemon_call(a, "io.asr.Group.Mark", json_pack("{s:s, s:s}", "group", a->words[0],
							    "name", name), &answer, why);
	if (err)
		return err;
	time = (uint64_t)json_integer_value(json_object_get(answer, "time_ns"));
	if (a->json)
		out_json(answer);
	else
		printf("mark %s of group %s: seq %lld, %s; restore it with --point name:%s\n", name, a->words[0],
		       (long long)json_integer_value(json_object_get(answer, "seq")),
		       time_format(time, when), name);
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
