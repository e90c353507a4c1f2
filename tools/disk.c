// SPDX-License-Identifier: Apache-2.0
/*
 * asrctl disk: a block device goes under protection, and out of it, live.
 *
 * Design. protect.c has the steps; here are the words and the answers. What is
 * shown of a disk is what asrd says, what is remembered, and its dm device.
 */
#include "asrctl.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <time.h>

static int name_device(const struct dm_device *d, const struct dm_asr *asr, void *arg)
{
	json_t *row;
	size_t i;

	json_array_foreach((json_t *)arg, i, row) {
		const char *group = json_string_value(json_object_get(row, "group"));
		const char *disk = json_string_value(json_object_get(row, "name"));
		cleanup_free char *path = NULL;

		if (group && disk && !strcmp(group, asr->group) && !strcmp(disk, asr->disk) &&
		    asprintf(&path, "/dev/mapper/%s", d->name) >= 0)
			json_object_set_new(row, "device", json_string(path));
	}
	return 0;
}

/* What asrd knows of the disks, with their dm devices */
static int ask_disks(const struct args *a, json_t **answer, struct why *why)
{
	json_t *row;
	size_t i;
	int err = daemon_call(a, "io.asr.Disk.List", NULL, answer, why);

	if (err)
		return err;
	dm_each_asr(name_device, json_object_get(*answer, "disks"), NULL);
	json_array_foreach(json_object_get(*answer, "disks"), i, row) {
		json_int_t sectors = json_integer_value(json_object_get(row, "sectors"));
		json_int_t chunks = json_integer_value(json_object_get(row, "dirty_chunks"));

		json_object_set_new(row, "bytes", json_integer(sectors * 512));
		json_object_set_new(row, "dirty_bytes", json_integer(chunks * ASR_CHUNK_SECTORS * 512));
	}
	return 0;
}

int disk_list(const struct args *a, struct why *why)
{
	static const struct col cols[] = {
		{ "GROUP", "group", COL_TEXT }, { "DISK", "name", COL_TEXT }, { "SIZE", "bytes", COL_BYTES },
		{ "TO COPY", "dirty_bytes", COL_BYTES }, { "ERRORS", "errors", COL_INT },
		{ "DEVICE", "device", COL_TEXT },
	};
	cleanup_json answer = NULL;
	int err = ask_disks(a, &answer, why);

	if (err)
		return err;
	if (a->json)
		out_json(answer);
	else
		out_table(json_object_get(answer, "disks"), cols, sizeof(cols) / sizeof(cols[0]), "no protected disks");
	return 0;
}

/* The one disk of that name, in --group if that is given */
static json_t *pick(json_t *rows, const char *disk, const char *group, unsigned int *found)
{
	json_t *row, *one = NULL;
	size_t i;

	*found = 0;
	json_array_foreach(rows, i, row) {
		const char *n = json_string_value(json_object_get(row, "name"));
		const char *g = json_string_value(json_object_get(row, "group"));

		if (n && g && !strcmp(n, disk) && (!group || !strcmp(g, group))) {
			one = row;
			++*found;
		}
	}
	return one;
}

/* All that is remembered, each with its group */
static json_t *remembered(const char *state_dir)
{
	cleanup_json groups = NULL;
	json_t *all = json_array(), *g;
	size_t i;

	remember_groups(state_dir, &groups, NULL);
	json_array_foreach(groups, i, g) {
		cleanup_json disks = NULL;
		json_t *disk;
		size_t j;

		if (remember_list(state_dir, json_string_value(g), &disks, NULL))
			continue;
		json_array_foreach(disks, j, disk) {
			json_object_set(disk, "group", g);
			json_array_append(all, disk);
		}
	}
	return all;
}

int disk_show(const struct args *a, struct why *why)
{
	const char *name = a->words[0], *group = arg_value(a, "group", NULL);
	cleanup_json answer = NULL;
	cleanup_json kept = remembered(boot_state_dir(a));
	cleanup_json out = json_object();
	struct why asrd = {0};
	unsigned int n = 0, m;
	json_t *row, *known;

	if (!ask_disks(a, &answer, &asrd) && (row = pick(json_object_get(answer, "disks"), name, group, &n)))
		json_object_update(out, row);
	known = pick(kept, name, group, &m);
	if (n > 1 || m > 1)
		return why_set(why, EINVAL, "several groups have a disk %s: say which with --group", name);
	if (!n && !m)
		return why_set(why, ENOENT, "there is no disk %s on this host%s%s", name, *asrd.text ? ", as far as "
			       "files say: " : "; "
			       "`asrctl disk list` shows what is", asrd.text);
	if (!n)
		json_object_set_new(out, "state", json_string(*asrd.text ? asrd.text : "missing: it is not up"));
	json_object_set(out, "remembered", known ? known : json_null());
	if (known)
		json_object_del(known, "group");
	if (a->json)
		out_json(out);
	else
		out_tree(out);
	return 0;
}

/* ---------------------------------------------------------------- protect */

static void say_protected(const struct protect *p)
{
	if (*p->dm)
		printf("%s is protected as disk %s of group %s\n", p->path, p->disk, p->group);
	else
		printf("%s is protected as disk %s of group %s.\nUse %s from now on: writes to %s itself "
		       "are not seen.\n", p->device, p->disk, p->group, p->path, p->device);
	if (boot_is_root(p->group, p->record))
		printf("The root file system is on it: `update-initramfs -u` has it protected at boot before it is "
		       "mounted%s\n", *p->log.path ? "." : "; that needs a log, too (--meta).");
	fflush(stdout);
}

int disk_protect(const struct args *a, struct why *why)
{
	struct protect p = {
		.device = a->words[0], .group = arg_value(a, "group", ""), .name = arg_value(a, "name", NULL),
	};
	const char *copy = "running";
	cleanup_json answer = NULL;
	int lock, err;

	err = protect_find(&p, why);
	if (err)
		return err;
	lock = boot_lock();
	err = protect_group(a, p.group, why);
	if (!err)
		err = protect_look(&p, why);
	if (!err)
		err = protect_insert(a, &p, why);
	if (lock >= 0)
		close(lock);
	if (!err && !a->json)
		say_protected(&p);
	if (!err && !arg_given(a, "no-wait"))
		copy = protect_wait(a, &p, 1);
	answer = err ? NULL : json_pack("{s:s, s:s, s:s, s:s, s:s*, s:s, s:O*}", "device", p.device, "path", p.path,
					"group", p.group, "disk", p.disk, "origin", *p.dm ? p.origin : NULL, "copy",
					copy,
					"log", json_object_get(p.record, "log"));
	protect_drop(&p);
	if (err)
		return err;
	if (a->json)
		out_json(answer);
	else
		protect_say_copy(copy);
	return 0;
}

/* -------------------------------------------------------------- unprotect */

/* DEVICE or DISK: the dm device that has the asr target */
static int find_protected(const char *word, struct dm_device *x, struct dm_asr *asr, struct why *why)
{
	struct dm_search s = { .disk = word };
	char name[DM_NAME_BYTES];
	struct stat st;
	int err;

	if (!stat(word, &st) && S_ISBLK(st.st_mode)) {
		if (dm_name_of(major(st.st_rdev), minor(st.st_rdev), name, sizeof(name)))
			return why_set(why, ENOENT, "%s is not protected; `asrctl disk list` shows what is", word);
	} else {
		err = dm_find_asr(&s, why);
		if (err)
			return err;
		if (s.found > 1)
			return why_set(why, EINVAL, "several groups have a disk %s: name its device", word);
		if (!s.found && strchr(word, '/'))
			return why_set(why, ENOENT, "%s is not there", word);
		snprintf(name, sizeof(name), "%.127s", s.found ? s.name : word);
	}
	err = dm_read(name, x, NULL);
	if (!err && dm_asr_parse(x, asr))
		return 0;
	if (!err)
		dm_forget(x);
	return why_set(why, ENOENT, "%s is not protected; `asrctl disk list` shows what is", word);
}

static int forget_gone(const struct args *a, const char *state_dir, struct why *why)
{
	struct dm_search s = { .disk = a->words[0], .group = arg_value(a, "group", NULL) };
	cleanup_json kept = remembered(state_dir);
	unsigned int n;
	json_t *row = pick(kept, s.disk, s.group, &n);
	const char *group = json_string_value(json_object_get(row, "group"));
	int err;

	if (n != 1)
		return why_set(why, n ? EINVAL : ENOENT, n ? "several groups have a disk %s: say which with --group" :
			       "no disk %s is remembered: nothing to forget", s.disk);
	if (!dm_find_asr(&s, NULL) && s.found)
		return why_set(why, EBUSY, "disk %s is up, as /dev/mapper/%s: take it out without --forget", s.disk,
			       s.name);
	err = remember_forget(state_dir, group, s.disk, why);
	if (err)
		return err;
	boot_mirror(state_dir);
	boot_release(row, false);
	protect_end_log(json_object_get(row, "log"));
	if (a->json)
		out_json(row);
	else
		printf("disk %s of group %s is forgotten on this host; what the vault has of it stays there\n", s.disk,
		       group);
	return 0;
}

static int take_out(const struct args *a, const char *state_dir, const struct dm_device *x, const struct dm_asr *asr,
		    struct why *why)
{
	cleanup_json answer = NULL;
	bool root;
	int err;

	err = protect_take_out(state_dir, x, asr, &root, why);
	if (err)
		return err;
	answer = json_pack("{s:s, s:s, s:s}", "device", x->name, "group", asr->group, "disk", asr->disk);
	if (a->json)
		out_json(answer);
	else
		printf("/dev/mapper/%s is no longer protected; what the vault has of disk %s of group %s stays "
		       "there%s\n", x->name, asr->disk, asr->group, root ? ". The root file system is on it: "
		       "`update-initramfs -u` has the next boot know it" : "");
	return 0;
}

int disk_unprotect(const struct args *a, struct why *why)
{
	cleanup_fd int lock = boot_lock();
	char state_dir[256];
	struct dm_device x;
	struct dm_asr asr;
	int err;

	protect_state_dir(a, state_dir, sizeof(state_dir));
	if (arg_given(a, "forget"))
		return forget_gone(a, state_dir, why);
	err = find_protected(a->words[0], &x, &asr, why);
	if (err)
		return err;
	err = take_out(a, state_dir, &x, &asr, why);
	dm_forget(&x);
	return err;
}
