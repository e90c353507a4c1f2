// SPDX-License-Identifier: Apache-2.0
/*
 * asrctl disk log: a write-intent log is shown, checked, and made anew.
 *
 * Design. meta.c finds and makes logs, logdev.c knows what lies on them. Showing
 * and checking only read. Formatting is how every refusal of a log ends: it says
 * "compare all", and so it is always right, and only costs a comparison.
 */
#include "asrctl.h"

#include <errno.h>
#include <string.h>

static json_t *describe(const char *path, const struct logdev *l, uint64_t bytes, uint64_t set, uint64_t broken)
{
	char hex[33];
	json_t *o;

	hex_encode(l->uuid, sizeof(l->uuid), hex);
	o = json_pack("{s:s, s:s, s:s, s:s, s:i, s:I, s:I}", "device", path, "group", l->group, "disk", l->disk, "uuid",
		      hex, "version", (int)l->version, "bytes", (json_int_t)bytes, "disk_bytes",
		      (json_int_t)(l->sectors * 512));
	json_object_update_new(o, json_pack("{s:I, s:I, s:I, s:I, s:I, s:I}", "region_bytes",
					    (json_int_t)l->region_sectors * 512, "regions", (json_int_t)l->regions,
					    "regions_set", (json_int_t)set, "generation", (json_int_t)l->generation,
					    "durable_seq", (json_int_t)l->durable_seq, "seq_high",
					    (json_int_t)l->seq_high));
	json_object_update_new(o, json_pack("{s:b, s:b, s:i, s:I}", "open", !!(l->flags & ASR_LOGF_OPEN), "broken",
					    !!(l->flags & ASR_LOGF_BROKEN), "superblocks", (int)l->copies,
					    "damaged_sectors",
					    (json_int_t)broken));
	return o;
}

static int examine(const char *path, json_t **out, struct logdev *l, struct why *why)
{
	uint64_t bytes, set, broken;
	cleanup_fd int fd = -1;
	struct why inner = {0};
	int err;

	err = logdev_open(path, false, &fd, &bytes, why);
	if (err)
		return err;
	err = logdev_read(fd, bytes, l, &inner);
	if (!err)
		err = logdev_count(fd, l, &set, &broken, &inner);
	if (err)
		return why_set(why, -err, "%.200s: %.300s", path, inner.text);
	*out = describe(path, l, bytes, set, broken);
	return *out ? 0 : -ENOMEM;
}

static void show(const json_t *o)
{
	static const char *const keys[] = {
		"group", "disk", "uuid", "version", "bytes", "disk_bytes", "region_bytes", "regions", "regions_set",
		"generation", "durable_seq", "seq_high", "open", "broken", "superblocks", "damaged_sectors",
		"remembered",
	};
	char text[24];

	for (size_t i = 0; i < sizeof(keys) / sizeof(keys[0]); i++) {
		const json_t *v = json_object_get(o, keys[i]);

		if (json_is_string(v))
			printf("%-16s %s\n", keys[i], json_string_value(v));
		else if (json_is_boolean(v))
			printf("%-16s %s\n", keys[i], json_is_true(v) ? "yes" : "no");
		else if (json_is_integer(v) && strstr(keys[i], "bytes"))
			printf("%-16s %s\n", keys[i], out_bytes((uint64_t)json_integer_value(v), text));
		else if (json_is_integer(v))
			printf("%-16s %lld\n", keys[i], (long long)json_integer_value(v));
	}
}

int log_show(const struct args *a, struct why *why)
{
	cleanup_json o = NULL;
	struct logdev l;
	int err = examine(a->words[0], &o, &l, why);

	if (err)
		return err;
	if (a->json)
		out_json(o);
	else
		show(o);
	return 0;
}

/* Would it be taken for the disk that this host remembers? */
static int check_remembered(const struct args *a, const struct logdev *l, json_t *o, struct why *why)
{
	cleanup_json disk = remember_find(boot_state_dir(a), l->group, l->disk);
	json_t *log = json_object_get(disk, "log");
	struct logdev_want w = { .group = l->group, .disk = l->disk };
	struct why inner = {0};
	uint8_t uuid[16];

	json_object_set_new(o, "remembered", json_boolean(log));
	if (!log)
		return 0;
	w.sectors = (uint64_t)json_integer_value(json_object_get(disk, "sectors"));
	w.generation = (uint64_t)json_integer_value(json_object_get(log, "generation"));
	if (!hex_decode(json_string_value(json_object_get(log, "uuid")) ?: "", uuid, sizeof(uuid)))
		w.uuid = uuid;
	if (logdev_match(l, &w, &inner))
		return why_set(why, EINVAL, "%.250s: %.200s", a->words[0], inner.text);
	return 0;
}

int log_check(const struct args *a, struct why *why)
{
	cleanup_json o = NULL;
	struct logdev l;
	long long damaged;
	int err = examine(a->words[0], &o, &l, why);

	if (!err)
		err = check_remembered(a, &l, o, why);
	if (err)
		return err;
	damaged = (long long)json_integer_value(json_object_get(o, "damaged_sectors"));
	if (damaged)
		err = why_set(why, EBADMSG, "%s: %lld sectors of its bitmap are damaged: what they stand for is "
			      "compared at the next start", a->words[0], damaged);
	else if (l.flags & ASR_LOGF_BROKEN)
		err = why_set(why, EBADMSG, "%s proves nothing: a write to it has failed, or its disk was up without "
			      "it; all of "
			      "the disk is compared at the next start", a->words[0]);
	if (err)
		return err;
	if (a->json)
		out_json(o);
	else
		printf("%s is a sound log of disk %s of group %s: %lld of %llu regions of %u KiB are set\n",
		       a->words[0],
		       l.disk, l.group, (long long)json_integer_value(json_object_get(o, "regions_set")),
		       (unsigned long long)l.regions, l.region_sectors / 2);
	return 0;
}

/* The disk that the log is for: as named, or as the log on the device says */
static int whose(const struct args *a, char group[ASR_NAME_BYTES], char disk[ASR_NAME_BYTES], struct why *why)
{
	const char *g = arg_value(a, "group", NULL), *d = arg_value(a, "disk", NULL);
	struct logdev l;

	if (!g != !d)
		return why_set(why, EINVAL, "--group and --disk belong together: name both");
	if (g && (name_check("group", g, why) || name_check("disk", d, why)))
		return -EINVAL;
	if (!g && log_open(a->words[0], &l, NULL))
		return why_set(why, EINVAL, "%s has no log that says whose it is: name the disk with --group and "
			       "--disk",
			       a->words[0]);
	strcpy(group, g ? g : l.group);
	strcpy(disk, d ? d : l.disk);
	return 0;
}

int log_format(const struct args *a, struct why *why)
{
	char group[ASR_NAME_BYTES], disk[ASR_NAME_BYTES];
	const char *state_dir = boot_state_dir(a);
	struct log_for f = { .group = group, .disk = disk, .yes = arg_value(a, "yes", NULL) };
	cleanup_fd int lock = boot_lock();
	cleanup_json record = NULL;
	struct log_at at;
	int err;

	err = whose(a, group, disk, why);
	if (err)
		return err;
	record = remember_find(state_dir, group, disk);
	if (!record || json_object_get(record, "error"))
		return why_set(why, ENOENT, "%s: this host protects no disk %s of group %s: `asrctl disk protect "
			       "DEVICE --group %s "
			       "--meta %s` makes a log for one", a->words[0], disk, group, group, a->words[0]);
	boot_log_for(record, &f);
	f.seq_high = boot_seq(state_dir, group);
	err = log_make(a->words[0], NULL, &f, &at, why);
	if (err)
		return err;
	if (at.attached)
		log_detach(at.path);
	json_object_set_new(record, "log", log_describe(&at));
	json_object_set_new(record, "sectors", json_integer((json_int_t)f.sectors));
	json_object_del(record, "distrust");
	err = remember_put(state_dir, group, record, why);
	if (!err)
		boot_mirror(state_dir);
	if (err)
		return err;
	if (a->json)
		out_json(json_object_get(record, "log"));
	else
		printf("%s is a new log of disk %s of group %s, in regions of %u KiB; all of the disk is compared "
		       "when it is "
		       "protected next: `asrctl boot`\n", a->words[0], disk, group, at.l.region_sectors / 2);
	return 0;
}
