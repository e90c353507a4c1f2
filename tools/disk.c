// SPDX-License-Identifier: Apache-2.0
/*
 * asrctl disk: a block device goes under protection, and out of it, live.
 *
 * Design. A dm device X keeps its number and its users; what lies under it
 * changes:
 *
 *	X: its table		->	X: asr -> X-asr-origin: its table
 *
 * X-asr-origin is created with a copy of X's table, asr over it is loaded
 * into X, and one ioctl swaps it in: suspend, swap and resume in the kernel,
 * so there is no moment at which a killed asrctl leaves X suspended. This
 * maps X's old table twice for that moment, so only targets that keep no
 * state of their own are taken (STATELESS). A device that is not a dm device
 * cannot change under its users: it is wrapped in a new dm device, and only
 * while nobody has it open.
 *
 * Invariants. Whatever fails, what was done is undone in reverse order, and X
 * has its old table. Nothing reads or writes X or pages from it between:
 * memory is locked and signals wait. An origin's UUID begins with "ASR-", so
 * that LVM leaves it alone and we know it again.
 *
 * Not done. Targets with state (thin, cache, mirror, snapshot).
 */
#include "asrctl.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <signal.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <time.h>

#define ORIGIN_SUFFIX	"-asr-origin"
#define UUID_PREFIX	"ASR-"

static const char *const stateless[] = {
	"linear", "striped", "crypt", "multipath", "error", "zero", "delay", "flakey",
};

/* ------------------------------------------------------------ who uses it */

/* "mounted on /x" for a device number, from the mount table */
static bool mounted_on(uint32_t major, uint32_t minor, char *out, size_t bytes)
{
	cleanup_file FILE *f = fopen("/proc/self/mountinfo", "re");
	char line[4096], place[2048];
	unsigned int ma, mi;

	while (f && fgets(line, sizeof(line), f)) {
		if (sscanf(line, "%*d %*d %u:%u %*s %2047s", &ma, &mi, place) == 3 &&
		    ma == major && mi == minor) {
			snprintf(out, bytes, "mounted on %.200s", place);
			return true;
		}
	}
	return false;
}

static bool is_swap(uint32_t major, uint32_t minor)
{
	cleanup_file FILE *f = fopen("/proc/swaps", "re");
	char line[4096], path[2048];
	struct stat st;

	while (f && fgets(line, sizeof(line), f))
		if (sscanf(line, "%2047s", path) == 1 && !stat(path, &st) && S_ISBLK(st.st_mode) &&
		    st.st_rdev == makedev(major, minor))
			return true;
	return false;
}

/* A device that is built on this one */
static bool held_by(uint32_t major, uint32_t minor, char *out, size_t bytes)
{
	char path[64], text[DM_NAME_BYTES];
	unsigned int ma, mi;
	struct dirent *e;
	DIR *dir;

	snprintf(path, sizeof(path), "/sys/dev/block/%u:%u/holders", major, minor);
	dir = opendir(path);
	while (dir && (e = readdir(dir))) {
		cleanup_free char *dev = NULL, *file = NULL;

		if (*e->d_name == '.')
			continue;
		if (asprintf(&file, "/sys/block/%s/dev", e->d_name) >= 0 &&
		    !file_read(file, 8192, &dev, NULL, NULL) && sscanf(dev, "%u:%u", &ma, &mi) == 2 &&
		    !dm_name_of(ma, mi, text, sizeof(text)))
			snprintf(out, bytes, "part of /dev/mapper/%s; protect that one", text);
		else
			snprintf(out, bytes, "part of /dev/%.64s", e->d_name);
		closedir(dir);
		return true;
	}
	if (dir)
		closedir(dir);
	return false;
}

static bool user_of(uint32_t major, uint32_t minor, char *out, size_t bytes)
{
	if (mounted_on(major, minor, out, bytes) || held_by(major, minor, out, bytes))
		return true;
	if (!is_swap(major, minor))
		return false;
	snprintf(out, bytes, "swap");
	return true;
}

/* The device, or a partition of it */
static void in_use_by(uint32_t major, uint32_t minor, char *out, size_t bytes)
{
	char path[64], inner[256];
	unsigned int ma, mi;
	struct dirent *e;
	DIR *dir;

	if (user_of(major, minor, out, bytes))
		return;
	snprintf(out, bytes, "opened by another program");
	snprintf(path, sizeof(path), "/sys/dev/block/%u:%u", major, minor);
	dir = opendir(path);
	while (dir && (e = readdir(dir))) {
		cleanup_free char *dev = NULL, *file = NULL;

		if (*e->d_name == '.' || asprintf(&file, "%s/%s/dev", path, e->d_name) < 0 ||
		    file_read(file, 8192, &dev, NULL, NULL) || sscanf(dev, "%u:%u", &ma, &mi) != 2)
			continue;
		if (user_of(ma, mi, inner, sizeof(inner))) {
			snprintf(out, bytes, "its partition %.64s is %s", e->d_name, inner);
			break;
		}
	}
	if (dir)
		closedir(dir);
}

/* ------------------------------------------------------- what is protected */

/* All asr devices, each to fn; non-zero ends the walk and is returned. */
static int each_asr(int (*fn)(const struct dm_device *d, const struct dm_asr *asr, void *arg),
		    void *arg, struct why *why)
{
	struct dm_device d;
	struct dm_asr asr;
	char **names;
	size_t count;
	int err;

	err = dm_names(&names, &count, why);
	for (size_t i = 0; i < count; i++) {
		if (!err && !dm_read(names[i], &d, NULL)) {
			if (dm_asr_parse(&d, &asr))
				err = fn(&d, &asr, arg);
			dm_forget(&d);
		}
		free(names[i]);
	}
	free(names);
	return err;
}

struct search {
	const char *group;		/* NULL: any */
	const char *disk;
	char name[DM_NAME_BYTES];	/* found */
	char in_group[ASR_NAME_BYTES];
	unsigned int found;
};

static int search_one(const struct dm_device *d, const struct dm_asr *asr, void *arg)
{
	struct search *s = arg;

	if (strcmp(asr->disk, s->disk) || (s->group && strcmp(asr->group, s->group)))
		return 0;
	s->found++;
	strcpy(s->name, d->name);
	strcpy(s->in_group, asr->group);
	return 0;
}

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

int disk_list(const struct args *a, struct why *why)
{
	static const struct col cols[] = {
		{ "GROUP", "group", COL_TEXT }, { "DISK", "name", COL_TEXT }, { "SIZE", "bytes", COL_BYTES },
		{ "TO COPY", "dirty_bytes", COL_BYTES }, { "ERRORS", "errors", COL_INT },
		{ "DEVICE", "device", COL_TEXT },
	};
	cleanup_json answer = NULL;
	json_t *disks, *row;
	size_t i;
	int err;

	err = daemon_call(a, "io.asr.Disk.List", NULL, &answer, why);
	if (err)
		return err;
	disks = json_object_get(answer, "disks");
	each_asr(name_device, disks, NULL);
	json_array_foreach(disks, i, row) {
		json_int_t sectors = json_integer_value(json_object_get(row, "sectors"));
		json_int_t chunks = json_integer_value(json_object_get(row, "dirty_chunks"));

		json_object_set_new(row, "bytes", json_integer(sectors * 512));
		json_object_set_new(row, "dirty_bytes", json_integer(chunks * ASR_CHUNK_SECTORS * 512));
	}
	if (a->json)
		out_json(answer);
	else
		out_table(disks, cols, sizeof(cols) / sizeof(cols[0]), "no protected disks");
	return 0;
}

/* ------------------------------------------------------ swapping the table */

static void wait_signals(sigset_t *before)
{
	sigset_t all;

	sigfillset(&all);
	sigprocmask(SIG_BLOCK, &all, before);
	/* best effort: the program itself may lie on the volume */
	mlockall(MCL_CURRENT | MCL_FUTURE);
}

static void allow_signals(const sigset_t *before)
{
	munlockall();
	sigprocmask(SIG_SETMASK, before, NULL);
}

/* A failed swap can leave the device suspended: the wanted table goes in, or is tried twice. */
static void put_back(const char *name, const struct dm_device *table, struct why *why)
{
	struct why again = {0};
	size_t used = strlen(why->text);

	if (!dm_load(name, table, &again) && !dm_resume(name, &again))
		return;
	if (!dm_resume(name, &again))
		return;
	snprintf(why->text + used, sizeof(why->text) - used, "; and %s could not be put back: %.160s",
		 name, again.text);
}

/* One asr target over a lower device */
static int asr_table(struct dm_device *t, uint64_t sectors, uint32_t major, uint32_t minor, bool read_only,
		     const char *group, const char *disk)
{
	*t = (struct dm_device){ .count = 1, .sectors = sectors, .read_only = read_only };
	t->targets = calloc(1, sizeof(*t->targets));
	if (!t->targets)
		return -ENOMEM;
	t->targets->length = sectors;
	t->targets->type = strdup("asr");
	if (!t->targets->type || asprintf(&t->targets->params, "%u:%u 0 %s %s", major, minor, group, disk) < 0)
		return -ENOMEM;
	return 0;
}

/* Has X still the table that was read and copied? An LVM command may have changed it since. */
static int still_same(const struct dm_device *x, struct why *why)
{
	struct dm_device now;
	int err = dm_read(x->name, &now, why);
	bool same = !err && !now.suspended && !now.inactive && now.count == x->count;

	for (size_t i = 0; same && i < x->count; i++) {
		const struct dm_target *a = &x->targets[i], *b = &now.targets[i];

		same = a->start == b->start && a->length == b->length && !strcmp(a->type, b->type) &&
		       !strcmp(a->params, b->params);
	}
	if (!err)
		dm_forget(&now);
	return err || same ? err : why_set(why, EBUSY, "%s: its table has just been changed by somebody else; "
					   "try again when they are done", x->name);
}

static int insert(const struct dm_device *x, const char *origin, const char *uuid, const char *group,
		  const char *disk, struct why *why)
{
	struct dm_device made = {0}, table = {0};
	int err;

	err = dm_create(origin, uuid, x, &made, why);
	if (err)
		return err;
	err = still_same(x, why);
	if (err) {
		dm_remove(origin, NULL);
		dm_forget(&made);
		return err;
	}
	err = asr_table(&table, x->sectors, made.major, made.minor, x->read_only, group, disk);
	if (!err)
		err = dm_load(x->name, &table, why);
	if (err) {
		dm_clear(x->name, NULL);
	} else {
		err = dm_resume(x->name, why);
		if (err)
			put_back(x->name, x, why);
	}
	if (err)
		dm_remove(origin, NULL);
	dm_forget(&made);
	dm_forget(&table);
	return err;
}

/* ---------------------------------------------------------------- protect */

struct protect {
	const char *device;		/* as given */
	const char *group;
	char disk[ASR_NAME_BYTES];
	char path[DM_NAME_BYTES + 16];	/* where the protected disk is, afterwards */
	char origin[DM_NAME_BYTES + 16];
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
static int check_group(const struct args *a, const struct protect *p, struct why *why)
{
	cleanup_json answer = NULL;
	struct search s = { .group = p->group, .disk = p->disk };
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
	err = each_asr(search_one, &s, why);
	if (!err && s.found)
		return why_set(why, EEXIST, "disk %s of group %s is /dev/mapper/%s already: "
			       "give another --name", p->disk, p->group, s.name);
	return err < 0 ? err : 0;
}

static int check_table(const struct dm_device *x, struct why *why)
{
	for (size_t i = 0; i < x->count; i++) {
		bool known = false;

		for (size_t j = 0; j < sizeof(stateless) / sizeof(stateless[0]); j++)
			known |= !strcmp(x->targets[i].type, stateless[j]);
		if (!strcmp(x->targets[i].type, "asr"))
			return why_set(why, EALREADY, "%s is protected already", x->name);
		if (!known)
			return why_set(why, EOPNOTSUPP, "%s has a %s target, which keeps state and cannot be "
				       "mapped twice; linear, striped, crypt, multipath, error, zero, "
				       "delay and flakey can", x->name, x->targets[i].type);
	}
	if (!x->count)
		return why_set(why, ENODATA, "%s has no table", x->name);
	if (x->suspended)
		return why_set(why, EBUSY, "%s is suspended: somebody is changing it; resume it first", x->name);
	if (x->inactive)
		return why_set(why, EBUSY, "%s has a second table waiting: somebody is changing it, or was "
			       "killed while doing so: then `dmsetup clear %s` drops it", x->name, x->name);
	return 0;
}

/* An origin that a killed asrctl left behind, and nobody uses, is dropped. */
static int check_origin(const char *origin, struct why *why)
{
	struct dm_device old;
	int err = dm_read(origin, &old, NULL);
	bool ours;

	if (err)
		return 0;
	ours = !strncmp(old.uuid, UUID_PREFIX, strlen(UUID_PREFIX)) && !old.open_count;
	dm_forget(&old);
	if (!ours)
		return why_set(why, EEXIST, "a device %s exists and is in use", origin);
	return dm_remove(origin, why);
}

static int protect_dm(const struct args *a, struct protect *p, const char *name, struct why *why)
{
	char uuid[DM_NAME_BYTES + 8];
	struct dm_device x;
	sigset_t before;
	int err;

	if (strlen(name) + strlen(ORIGIN_SUFFIX) >= DM_NAME_BYTES)
		return why_set(why, ENAMETOOLONG, "%s: its name leaves no room for %s", name, ORIGIN_SUFFIX);
	err = dm_read(name, &x, why);
	if (err)
		return err;
	snprintf(p->path, sizeof(p->path), "/dev/mapper/%s", name);
	snprintf(p->origin, sizeof(p->origin), "%s%s", name, ORIGIN_SUFFIX);
	snprintf(uuid, sizeof(uuid), "%s%.120s", UUID_PREFIX, *x.uuid ? x.uuid : name);
	err = check_table(&x, why);
	if (!err)
		err = disk_name(p, arg_value(a, "name", NULL), name, why);
	if (!err)
		err = check_group(a, p, why);
	if (!err)
		err = check_origin(p->origin, why);
	if (!err) {
		wait_signals(&before);
		err = insert(&x, p->origin, uuid, p->group, p->disk, why);
		allow_signals(&before);
	}
	dm_forget(&x);
	return err;
}

static int protect_plain(const struct args *a, struct protect *p, const struct stat *st, struct why *why)
{
	uint32_t major = major(st->st_rdev), minor = minor(st->st_rdev);
	const char *base = strrchr(p->device, '/');
	struct dm_device table = {0};
	char use[512], name[ASR_NAME_BYTES + 8];
	uint64_t bytes = 0;
	int fd, err, read_only = 0;

	err = disk_name(p, arg_value(a, "name", NULL), base ? base + 1 : p->device, why);
	if (err)
		return err;
	fd = open(p->device, O_RDONLY | O_EXCL | O_CLOEXEC);
	if (fd < 0 && errno == EBUSY) {
		in_use_by(major, minor, use, sizeof(use));
		return why_set(why, EBUSY, "%s is in use (%s) and is not a device-mapper device, so asr cannot "
			       "slide under its users: stop using it and protect it then, put it under LVM, "
			       "or protect it at boot", p->device, use);
	}
	if (fd < 0)
		return why_set(why, errno, "%s: %s", p->device, strerror(errno));
	err = ioctl(fd, BLKGETSIZE64, &bytes) || ioctl(fd, BLKROGET, &read_only) ? -errno : 0;
	close(fd);
	if (err || bytes < 512)
		return why_set(why, err ? -err : ENODATA, "%s: its size cannot be read, or is zero", p->device);
	err = check_group(a, p, why);
	if (err)
		return err;
	snprintf(name, sizeof(name), "asr-%s", p->disk);
	snprintf(p->path, sizeof(p->path), "/dev/mapper/%s", name);
	err = asr_table(&table, bytes / 512, major, minor, read_only, p->group, p->disk);
	if (!err)
		err = dm_create(name, "", &table, NULL, why);
	dm_forget(&table);
	return err;
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

int disk_protect(const struct args *a, struct why *why)
{
	struct protect p = { .device = a->words[0], .group = arg_value(a, "group", "") };
	const char *copy = "running";
	cleanup_json answer = NULL;
	char name[DM_NAME_BYTES];
	struct stat st;
	int err;

	if (stat(p.device, &st))
		return why_set(why, errno, "%s: %s", p.device, strerror(errno));
	if (!S_ISBLK(st.st_mode))
		return why_set(why, ENOTBLK, "%s is not a block device", p.device);
	if (!dm_name_of(major(st.st_rdev), minor(st.st_rdev), name, sizeof(name)))
		err = protect_dm(a, &p, name, why);
	else
		err = protect_plain(a, &p, &st, why);
	if (err)
		return err;
	if (!a->json && *p.origin)
		printf("%s is protected as disk %s of group %s\n", p.path, p.disk, p.group);
	else if (!a->json)
		printf("%s is protected as disk %s of group %s.\nUse %s from now on: writes to %s itself "
		       "are not seen.\n", p.device, p.disk, p.group, p.path, p.device);
	fflush(stdout);
	if (!arg_given(a, "no-wait"))
		copy = copy_wait(a, &p);
	answer = json_pack("{s:s, s:s, s:s, s:s, s:s*, s:s}", "device", p.device, "path", p.path, "group", p.group,
			   "disk", p.disk, "origin", *p.origin ? p.origin : NULL, "copy", copy);
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
	struct search s = { .disk = word };
	char name[DM_NAME_BYTES];
	struct stat st;
	int err;

	if (!stat(word, &st) && S_ISBLK(st.st_mode)) {
		if (dm_name_of(major(st.st_rdev), minor(st.st_rdev), name, sizeof(name)))
			return why_set(why, ENOENT, "%s is not protected; `asrctl disk list` shows what is", word);
	} else {
		err = each_asr(search_one, &s, why);
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

/* asr leaves; what was below it is the device's table again. */
static int take_out(const struct dm_device *x, const struct dm_device *origin, struct why *why)
{
	sigset_t before;
	int err;

	wait_signals(&before);
	err = dm_load(x->name, origin, why);
	if (err) {
		dm_clear(x->name, NULL);
	} else {
		err = dm_resume(x->name, why);
		if (err)
			put_back(x->name, x, why);
	}
	allow_signals(&before);
	return err;
}

static int remove_wrapper(const struct dm_device *x, struct why *why)
{
	char use[512];

	if (!x->open_count)
		return dm_remove(x->name, why);
	in_use_by(x->major, x->minor, use, sizeof(use));
	return why_set(why, EBUSY, "/dev/mapper/%s is in use (%s): it wraps a device that is not a device-mapper "
		       "device and would vanish under its users; stop using it first", x->name, use);
}

int disk_unprotect(const struct args *a, struct why *why)
{
	char lower[DM_NAME_BYTES];
	struct dm_device x, origin = {0};
	cleanup_json answer = NULL;
	struct dm_asr asr;
	int err;

	err = find_protected(a->words[0], &x, &asr, why);
	if (err)
		return err;
	if (x.suspended || x.inactive)
		err = why_set(why, EBUSY, "%s is suspended or has a second table waiting: somebody is changing it, or "
			      "was killed while doing so: then `dmsetup clear %s` drops that table", x.name, x.name);
	else if (dm_name_of(asr.major, asr.minor, lower, sizeof(lower)) || dm_read(lower, &origin, NULL) ||
		 strncmp(origin.uuid, UUID_PREFIX, strlen(UUID_PREFIX)))
		err = remove_wrapper(&x, why);
	else
		err = take_out(&x, &origin, why);
	if (!err && *origin.name && !strncmp(origin.uuid, UUID_PREFIX, strlen(UUID_PREFIX)))
		err = dm_remove(origin.name, why);
	if (!err && a->json) {
		answer = json_pack("{s:s, s:s, s:s}", "device", x.name, "group", asr.group, "disk", asr.disk);
		out_json(answer);
	} else if (!err) {
		printf("/dev/mapper/%s is no longer protected; what the vault has of disk %s of group %s "
		       "stays there\n", x.name, asr.disk, asr.group);
	}
	dm_forget(&x);
	dm_forget(&origin);
	return err;
}
