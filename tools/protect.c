// SPDX-License-Identifier: Apache-2.0
/*
 * A block device goes under protection, and out of it, live: for one disk (disk.c) or those of a machine (vm.c).
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
 * Invariants. Whatever fails, what was done is undone in reverse order. The caller
 * has the lock of boot.c from protect_look() to the last protect_insert() or protect_take_out().
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
#include <unistd.h>

static int disk_name(struct protect *p, const char *own, struct why *why)
{
	const char *name = p->name ? p->name : own;
	int err = name_check("disk", name, why);

	if (err && !p->name)
		return why_set(why, EINVAL, "%.100s is no name for a disk of a group: give one with --name", own);
	if (!err)
		strcpy(p->disk, name);
	return err;
}

int protect_group(const struct args *a, const char *group, struct why *why)
{
	cleanup_json answer = NULL;
	char known[256] = "";
	bool found = false;
	json_t *row;
	size_t i;
	int err;

	err = name_check("group", group, why);
	if (!err)
		err = daemon_call(a, "io.asr.Group.List", NULL, &answer, why);
	if (err)
		return err;
	json_array_foreach(json_object_get(answer, "groups"), i, row) {
		const char *name = json_string_value(json_object_get(row, "name"));
		size_t n = strlen(known);

		found |= name && !strcmp(name, group);
		if (name)
			snprintf(known + n, sizeof(known) - n, "%s%s", n ? ", " : "", name);
	}
	if (!found)
		return why_set(why, ENOENT, "there is no group %s; %s%s", group,
			       *known ? "there are: " : "make one with `asrctl group create`", known);
	err = dm_have_target("asr");
	if (!err)
		return why_set(why, ENODEV, "the kernel has no asr target: load the module (modprobe dm_asr)");
	return err < 0 ? err : 0;
}

static int name_is_free(const struct protect *p, struct why *why)
{
	struct dm_search s = { .group = p->group, .disk = p->disk };
	int err = dm_find_asr(&s, why);

	if (!err && s.found)
		return why_set(why, EEXIST, "disk %s of group %s is /dev/mapper/%s already: give another name "
			       "(`asrctl disk protect %s --group %s --name`)", p->disk, p->group, s.name, p->device,
			       p->group);
	return err;
}

/* Where asrd keeps its state: it says so itself */
void protect_state_dir(const struct args *a, char *out, size_t bytes)
{
	const char *given = arg_value(a, "state-dir", NULL), *told = NULL;
	cleanup_json answer = NULL;

	if (!given && !daemon_call(a, "io.asr.Status", NULL, &answer, NULL))
		told = json_string_value(json_object_get(answer, "state_dir"));
	snprintf(out, bytes, "%s", given ? given : told ? told : ASR_STATE_DIR);
}

static int look_dm(struct protect *p, struct why *why)
{
	int err;

	err = insert_check(p->dm, &p->x, p->origin, why);
	if (err)
		return err;
	snprintf(p->path, sizeof(p->path), "/dev/mapper/%s", p->dm);
	p->sectors = p->x.sectors;
	err = disk_name(p, p->dm, why);
	return err ? err : name_is_free(p, why);
}

static int look_plain(struct protect *p, struct why *why)
{
	const char *base = strrchr(p->device, '/');
	cleanup_fd int fd = -1;
	uint64_t bytes = 0;
	int err;

	err = disk_name(p, base ? base + 1 : p->device, why);
	if (!err)
		err = insert_plain(p->device, p->major, p->minor, NULL, why);
	if (!err)
		err = name_is_free(p, why);
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
			      stable, "sectors", (json_int_t)p->sectors);
	if (*p->dm) {
		json_object_set_new(p->record, "dm_name", json_string(p->dm));
		json_object_set_new(p->record, "dm_uuid", json_string(p->x.uuid));
	}
	if (p->vm)
		json_object_set(p->record, "vm", p->vm);
	if (*p->log.path)
		json_object_set_new(p->record, "log", log_describe(&p->log));
	/* before it is held back: a device that is in use must never be */
	boot_release(p->record, true);
	return remember_put(p->state_dir, p->group, p->record, why);
}

int protect_find(struct protect *p, struct why *why)
{
	struct stat st;

	if (stat(p->device, &st))
		return why_set(why, errno, "%s: %s", p->device, strerror(errno));
	if (!S_ISBLK(st.st_mode))
		return why_set(why, ENOTBLK, "%s is not a block device", p->device);
	p->major = major(st.st_rdev);
	p->minor = minor(st.st_rdev);
	if (dm_name_of(p->major, p->minor, p->dm, sizeof(p->dm)))
		*p->dm = 0;
	return 0;
}

int protect_look(struct protect *p, struct why *why)
{
	return *p->dm ? look_dm(p, why) : look_plain(p, why);
}

int protect_insert(const struct args *a, struct protect *p, struct why *why)
{
	struct asr_line line = { .group = p->group, .disk = p->disk };
	int err;

	protect_state_dir(a, p->state_dir, sizeof(p->state_dir));
	p->old = remember_find(p->state_dir, p->group, p->disk);
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
		if (!p->old || remember_put(p->state_dir, p->group, p->old, NULL))
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

void protect_drop(struct protect *p)
{
	dm_forget(&p->x);
	json_decref(p->record);
	json_decref(p->old);
	json_decref(p->vm);
	*p = (struct protect){0};
}

/* ------------------------------------------------------------------ out again */

/* A log that is needed no more: its file goes; a device of its own says that it proves nothing */
void protect_end_log(json_t *log)
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

int protect_take_out(const char *state_dir, const struct dm_device *x, const struct dm_asr *asr, bool *was_root,
		     struct why *why)
{
	cleanup_json record = remember_find(state_dir, asr->group, asr->disk);
	int err;

	*was_root = record && boot_is_root(asr->group, record);
	err = insert_undo(x, asr, why);	/* first: what is protected is remembered, at every moment */
	if (!err && record)
		err = remember_forget(state_dir, asr->group, asr->disk, why);
	if (err)
		return err;
	boot_mirror(state_dir);
	if (record)
		boot_release(record, false);
	protect_end_log(json_object_get(record, "log"));
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

static bool is_copied(json_t *disks, const struct protect *p)
{
	json_t *d = find_row(disks, "disks", "name", p->disk, "group", p->group);

	return d && !json_integer_value(json_object_get(d, "dirty_chunks"));
}

/* 1: copied, 0: not yet, -errno: asrd does not answer */
static int copy_poll(const struct args *a, const struct protect *p, unsigned int count, struct progress *show)
{
	cleanup_json status = NULL, *disks = NULL;
	json_t *g, *resync;
	const char *phase;
	uint64_t total;
	bool all = true;
	int err;

	err = daemon_call(a, "io.asr.Status", NULL, &status, NULL);
	if (!err)
		err = daemon_call(a, "io.asr.Disk.List", NULL, &disks, NULL);
	if (err)
		return err;
	g = find_row(status, "groups", "name", p->group, NULL, NULL);
	phase = json_string_value(json_object_get(g, "phase"));
	resync = json_object_get(g, "resync");
	total = (uint64_t)json_integer_value(json_object_get(resync, "total_bytes"));
	for (unsigned int i = 0; i < count; i++)
		all = all && is_copied(disks, &p[i]);
	if (all && phase && !strcmp(phase, "idle") && json_is_true(json_object_get(g, "consistent")))
		return 1;
	if (total)
		progress_show(show, (uint64_t)json_integer_value(json_object_get(resync, "done_bytes")), total,
			      (uint64_t)json_number_value(json_object_get(resync, "bytes_per_s")));
	return 0;
}

/* "done", "interrupted", "unknown": protection is on whichever it is */
const char *protect_wait(const struct args *a, const struct protect *p, unsigned int count)
{
	const struct timespec pause = { .tv_nsec = 250000000 };
	struct progress show;
	int missed = 0, ret = 0;

	interrupt_catch();
	progress_begin(&show, "initial copy", a->json);
	/* a restarting daemon is no reason to give up: 15 s */
	while (!interrupted() && ret != 1 && missed < 60) {
		ret = copy_poll(a, p, count, &show);
		missed = ret < 0 ? missed + 1 : 0;
		if (ret != 1)
			nanosleep(&pause, NULL);
	}
	progress_end(&show);
	return ret == 1 ? "done" : interrupted() ? "interrupted" : "unknown";
}

void protect_say_copy(const char *copy)
{
	if (!strcmp(copy, "done"))
		puts("the initial copy is complete: from here on every moment can be restored");
	else
		puts("protection is on; the initial copy goes on in the background: `asrctl status --watch`");
}
