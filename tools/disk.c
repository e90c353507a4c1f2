// SPDX-License-Identifier: Apache-2.0
/*
 * asrctl disk: a block device goes under protection, and out of it, live.
 *
 * Design. insert.c moves asr under the device and out again, meta.c makes its
 * write-intent log, remember.c keeps on file what the next boot needs. This file
 * asks asrd whether the group is there, and puts those steps in order:
 *
 *	log made -> remembered -> inserted -> BOOT_DIR (mirror.c) brought up to date
 *
 * and in the other order to take it out. So whatever dies in between, a disk that
 * is protected now is protected after the next boot, and one that is not is at
 * worst protected then, with all of it compared.
 *
 * Invariants. Whatever fails, what was done is undone in reverse order.
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

struct protect {
	const char *device;		/* as given */
	const char *group;
	char disk[ASR_NAME_BYTES];
	char dm[DM_NAME_BYTES];		/* its dm name; empty: it is none */
	char path[DM_NAME_BYTES + 16];	/* where the protected disk is, afterwards */
	char origin[DM_NAME_BYTES];
	struct dm_device x;
	uint32_t major, minor;
	uint64_t sectors;
	char state_dir[256];
	struct log_at log;		/* its path is empty: no log */
	json_t *record;			/* what is remembered */
};

static int disk_name(struct protect *p, const char *given, const char *own, struct why *why)
{
	const char *name = given ? given : own;
	int err = name_check("disk", name, why);

	if (err && !given)
		return why_set(why, EINVAL, "%.100s is no name for a disk of a group: give one with --name", own);
	if (!err)
		strcpy(p->disk, name);
	return err;
}

/* asrd runs, knows the group, and the name is free. */
static int check_group(const struct args *a, struct protect *p, struct why *why)
{
	cleanup_json answer = NULL;
	struct dm_search s = { .group = p->group, .disk = p->disk };
	char known[256] = "";
	bool found = false;
	json_t *row;
	size_t i;
	int err;

	err = name_check("group", p->group, why);
	if (!err)
		err = daemon_call(a, "io.asr.Group.List", NULL, &answer, why);
	if (err)
		return err;
	json_array_foreach(json_object_get(answer, "groups"), i, row) {
		const char *name = json_string_value(json_object_get(row, "name"));
		size_t n = strlen(known);

		found |= name && !strcmp(name, p->group);
		if (name)
			snprintf(known + n, sizeof(known) - n, "%s%s", n ? ", " : "", name);
	}
	if (!found)
		return why_set(why, ENOENT, "there is no group %s; %s%s", p->group,
			       *known ? "there are: " : "make one with `asrctl group create`", known);
	err = dm_have_target("asr");
	if (!err)
		return why_set(why, ENODEV, "the kernel has no asr target: load the module (modprobe dm_asr)");
	err = dm_find_asr(&s, why);
	if (!err && s.found)
		return why_set(why, EEXIST, "disk %s of group %s is /dev/mapper/%s already: "
			       "give another --name", p->disk, p->group, s.name);
	return err < 0 ? err : 0;
}

/* Where asrd keeps its state: it says so itself */
static void ask_state_dir(const struct args *a, char *out, size_t bytes)
{
	const char *given = arg_value(a, "state-dir", NULL), *told = NULL;
	cleanup_json answer = NULL;

	if (!given && !daemon_call(a, "io.asr.Status", NULL, &answer, NULL))
		told = json_string_value(json_object_get(answer, "state_dir"));
	snprintf(out, bytes, "%s", given ? given : told ? told : ASR_STATE_DIR);
}

static int look_dm(const struct args *a, struct protect *p, struct why *why)
{
	int err;

	err = insert_check(p->dm, &p->x, p->origin, why);
	if (err)
		return err;
	snprintf(p->path, sizeof(p->path), "/dev/mapper/%s", p->dm);
	p->sectors = p->x.sectors;
	err = disk_name(p, arg_value(a, "name", NULL), p->dm, why);
	return err ? err : check_group(a, p, why);
}

static int look_plain(const struct args *a, struct protect *p, struct why *why)
{
	const char *base = strrchr(p->device, '/');
	cleanup_fd int fd = -1;
	uint64_t bytes = 0;
	int err;

	err = disk_name(p, arg_value(a, "name", NULL), base ? base + 1 : p->device, why);
	if (!err)
		err = insert_plain(p->device, p->major, p->minor, NULL, why);
	if (!err)
		err = check_group(a, p, why);
	if (err)
		return err;
	snprintf(p->path, sizeof(p->path), "/dev/mapper/asr-%s", p->disk);
	fd = open(p->device, O_RDONLY | O_CLOEXEC);
	if (fd < 0 || ioctl(fd, BLKGETSIZE64, &bytes))
		return why_set(why, errno, "%s: its size cannot be read", p->device);
	p->sectors = bytes / 512;
	return 0;
}

static int make_meta(const struct args *a, struct protect *p, struct why *why)
{
	struct log_for f = { .group = p->group, .disk = p->disk, .yes = arg_value(a, "yes", NULL) };
	const char *meta = arg_value(a, "meta", NULL);
	cleanup_json old = NULL;
	int err;

	if (!meta) {
		const char *only = arg_given(a, "meta-size") ? "meta-size" : arg_given(a, "yes") ? "yes" : NULL;

		return only ? why_set(why, EINVAL, "--%s says something about a log: name it with --meta", only) : 0;
	}
	old = remember_find(p->state_dir, p->group, p->disk);
	if (old)
		boot_log_for(old, &f);
	f.sectors = p->sectors;
	f.major = p->major;
	f.minor = p->minor;
	/* seq_high stays 0: the module writes what the group has got to */
	err = log_make(meta, arg_value(a, "meta-size", NULL), &f, &p->log, why);
	if (!err && !a->json)
		printf("its log is %s, in regions of %u KiB\n", *p->log.file ? p->log.file : p->log.path,
		       p->log.l.region_sectors / 2);
	return err;
}

static int remember(struct protect *p, struct why *why)
{
	char stable[512];

	log_stable(*p->dm ? p->path : p->device, stable, sizeof(stable));
	p->record = json_pack("{s:s, s:s, s:s, s:I}", "name", p->disk, "kind", *p->dm ? "dm" : "plain", "device",
			      stable,
			      "sectors", (json_int_t)p->sectors);
	if (*p->dm) {
		json_object_set_new(p->record, "dm_name", json_string(p->dm));
		json_object_set_new(p->record, "dm_uuid", json_string(p->x.uuid));
	}
	if (*p->log.path)
		json_object_set_new(p->record, "log", log_describe(&p->log));
	/* before it is held back: a device that is in use must never be */
	boot_release(p->record, true);
	return remember_put(p->state_dir, p->group, p->record, why);
}

static int protect(const struct args *a, struct protect *p, struct why *why)
{
	struct asr_line line = { .group = p->group, .disk = p->disk };
	cleanup_fd int lock = boot_lock();
	cleanup_json old = NULL;
	int err;

	err = *p->dm ? look_dm(a, p, why) : look_plain(a, p, why);
	if (err)
		return err;
	ask_state_dir(a, p->state_dir, sizeof(p->state_dir));
	old = remember_find(p->state_dir, p->group, p->disk);
	err = make_meta(a, p, why);
	if (err)
		return err;
	err = remember(p, why);
	line.log_major = p->log.major;
	line.log_minor = p->log.minor;
	if (!err)
		err = *p->dm ? insert_dm(&p->x, p->origin, &line, why) :
			       insert_plain(p->device, p->major, p->minor, &line, why);
	if (err) {
		/* one that was remembered before is missed further on */
		if (!old || remember_put(p->state_dir, p->group, old, NULL))
			remember_forget(p->state_dir, p->group, p->disk, NULL);
		boot_release(p->record, false);
		log_undo(&p->log);
		return err;
	}
	if (*p->log.path)
		boot_note(p->state_dir, p->group, p->record, &p->log);
	boot_mirror(p->state_dir);
	return 0;
}

/* ---------------------------------------------------- the initial copy */

static json_t *find_row(json_t *answer, const char *list, const char *key, const char *value,
			const char *key2, const char *value2)
{
	json_t *row;
	size_t i;

	json_array_foreach(json_object_get(answer, list), i, row) {
		const char *v = json_string_value(json_object_get(row, key));
		const char *v2 = key2 ? json_string_value(json_object_get(row, key2)) : "";

		if (v && v2 && !strcmp(v, value) && (!key2 || !strcmp(v2, value2)))
			return row;
	}
	return NULL;
}

/* 1: copied, 0: not yet, -errno: asrd does not answer */
static int copy_poll(const struct args *a, const struct protect *p, struct progress *show)
{
	cleanup_json status = NULL, *disks = NULL;
	json_t *g, *d, *resync;
	const char *phase;
	uint64_t total;
	int err;

	err = daemon_call(a, "io.asr.Status", NULL, &status, NULL);
	if (!err)
		err = daemon_call(a, "io.asr.Disk.List", NULL, &disks, NULL);
	if (err)
		return err;
	g = find_row(status, "groups", "name", p->group, NULL, NULL);
	d = find_row(disks, "disks", "name", p->disk, "group", p->group);
	phase = json_string_value(json_object_get(g, "phase"));
	resync = json_object_get(g, "resync");
	total = (uint64_t)json_integer_value(json_object_get(resync, "total_bytes"));
	if (d && phase && !strcmp(phase, "idle") && json_is_true(json_object_get(g, "consistent")) &&
	    !json_integer_value(json_object_get(d, "dirty_chunks")))
		return 1;
	if (total)
		progress_show(show, (uint64_t)json_integer_value(json_object_get(resync, "done_bytes")), total,
			      (uint64_t)json_number_value(json_object_get(resync, "bytes_per_s")));
	return 0;
}

/* "done", "interrupted", "unknown": protection is on whichever it is */
static const char *copy_wait(const struct args *a, const struct protect *p)
{
	const struct timespec pause = { .tv_nsec = 250000000 };
	struct progress show;
	int missed = 0, ret = 0;

	interrupt_catch();
	progress_begin(&show, "initial copy", a->json);
	/* a restarting daemon is no reason to give up: 15 s */
	while (!interrupted() && ret != 1 && missed < 60) {
		ret = copy_poll(a, p, &show);
		missed = ret < 0 ? missed + 1 : 0;
		if (ret != 1)
			nanosleep(&pause, NULL);
	}
	progress_end(&show);
	return ret == 1 ? "done" : interrupted() ? "interrupted" : "unknown";
}

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
	struct protect p = { .device = a->words[0], .group = arg_value(a, "group", "") };
	const char *copy = "running";
	cleanup_json answer = NULL;
	struct stat st;
	int err;

	if (stat(p.device, &st))
		return why_set(why, errno, "%s: %s", p.device, strerror(errno));
	if (!S_ISBLK(st.st_mode))
		return why_set(why, ENOTBLK, "%s is not a block device", p.device);
	p.major = major(st.st_rdev);
	p.minor = minor(st.st_rdev);
	if (dm_name_of(p.major, p.minor, p.dm, sizeof(p.dm)))
		*p.dm = 0;
	err = protect(a, &p, why);
	dm_forget(&p.x);
	if (!err && !a->json)
		say_protected(&p);
	if (!err && !arg_given(a, "no-wait"))
		copy = copy_wait(a, &p);
	answer = err ? NULL : json_pack("{s:s, s:s, s:s, s:s, s:s*, s:s, s:O*}", "device", p.device, "path", p.path,
					"group",
					p.group, "disk", p.disk, "origin", *p.dm ? p.origin : NULL, "copy", copy, "log",
					json_object_get(p.record, "log"));
	json_decref(p.record);
	if (err)
		return err;
	if (a->json)
		out_json(answer);
	else if (!strcmp(copy, "done"))
		puts("the initial copy is complete: from here on every moment can be restored");
	else
		printf("protection is on; the initial copy goes on in the background: "
		       "`asrctl status --watch`\n");
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

/* A log that is needed no more: its file goes; a device of its own says that it proves nothing */
static void end_log(json_t *log)
{
	const char *file = json_string_value(json_object_get(log, "file"));
	struct log_at at;
	cleanup_fd int fd = -1;
	uint64_t bytes;

	if (!log || log_find(log, "", "", &at, NULL))
		return;
	if (file) {
		log_detach(at.path);
		unlink(file);
	} else if (!logdev_open(at.path, true, &fd, &bytes, NULL)) {
		logdev_distrust(fd, &at.l, NULL);
	}
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
	end_log(json_object_get(row, "log"));
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
	cleanup_json record = remember_find(state_dir, asr->group, asr->disk);
	cleanup_json answer = NULL;
	bool root = record && boot_is_root(asr->group, record);
	int err;

	err = insert_undo(x, asr, why);	/* first: what is protected is remembered, at every moment */
	if (!err && record)
		err = remember_forget(state_dir, asr->group, asr->disk, why);
	if (err)
		return err;
	boot_mirror(state_dir);
	if (record)
		boot_release(record, false);
	end_log(json_object_get(record, "log"));
	answer = json_pack("{s:s, s:s, s:s}", "device", x->name, "group", asr->group, "disk", asr->disk);
	if (a->json)
		out_json(answer);
	else
		printf("/dev/mapper/%s is no longer protected; what the vault has of disk %s of group %s stays "
		       "there%s\n", x->name,
		       asr->disk, asr->group, root ? ". The root file system is on it: `update-initramfs -u` has the "
		       "next "
		       "boot know it" : "");
	return 0;
}

int disk_unprotect(const struct args *a, struct why *why)
{
	cleanup_fd int lock = boot_lock();
	char state_dir[256];
	struct dm_device x;
	struct dm_asr asr;
	int err;

	ask_state_dir(a, state_dir, sizeof(state_dir));
	if (arg_given(a, "forget"))
		return forget_gone(a, state_dir, why);
	err = find_protected(a->words[0], &x, &asr, why);
	if (err)
		return err;
	err = take_out(a, state_dir, &x, &asr, why);
	dm_forget(&x);
	return err;
}
