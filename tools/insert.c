// SPDX-License-Identifier: Apache-2.0
/*
 * asr slides under a device and out again.
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
 * Context. asrctl, as root, in a running system and in an initramfs.
 *
 * Not done. Targets with state (thin, cache, mirror, snapshot).
 */
#include "asrctl.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <signal.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>

#define ORIGIN_SUFFIX	"-asr-origin"
#define UUID_PREFIX	"ASR-"
#define ORIGIN_TRIES	75		/* 15 s for whoever still reads the old origin */

static const char *const stateless[] = {
	"linear", "striped", "crypt", "multipath", "error", "zero", "delay", "flakey",
};

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
		     const struct asr_line *line)
{
	char log[48] = "";

	*t = (struct dm_device){ .count = 1, .sectors = sectors, .read_only = read_only };
	t->targets = calloc(1, sizeof(*t->targets));
	if (!t->targets)
		return -ENOMEM;
	if (line->log_major)
		snprintf(log, sizeof(log), " 2 log %u:%u", line->log_major, line->log_minor);
	t->targets->length = sectors;
	t->targets->type = strdup("asr");
	if (!t->targets->type || asprintf(&t->targets->params, "%u:%u 0 %s %s%s", major, minor, line->group,
					  line->disk, log) < 0)
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

int insert_possible(const struct dm_device *x, struct why *why)
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

static void origin_uuid(const struct dm_device *x, char uuid[DM_NAME_BYTES + 8])
{
	snprintf(uuid, DM_NAME_BYTES + 8, "%s%.120s", UUID_PREFIX, *x->uuid ? x->uuid : x->name);
}

/* An origin that a killed asrctl or LVM left behind, and nobody uses, is dropped. */
static int check_origin(const struct dm_device *x, const char *origin, struct why *why)
{
	char uuid[DM_NAME_BYTES + 8], name[DM_NAME_BYTES];
	const struct timespec pause = { .tv_nsec = 200000000 };
	bool ours, used;
	struct dm_device old;
	int err, tries = 0;

	/* x may have been renamed since: then it is named after the old name */
	origin_uuid(x, uuid);
	if (dm_find_uuid(uuid, name))
		snprintf(name, sizeof(name), "%.127s", origin);
	do {
		err = dm_read(name, &old, NULL);
		if (err)
			return 0;
		ours = !strncmp(old.uuid, UUID_PREFIX, strlen(UUID_PREFIX));
		used = old.open_count > 0;
		dm_forget(&old);
		if (ours && used)	/* asrd lets it go when it sees that the disk has left */
			nanosleep(&pause, NULL);
	} while (ours && used && ++tries < ORIGIN_TRIES);
	if (!ours || used)
		return why_set(why, EEXIST, "a device %s exists and is in use", name);
	return dm_remove(name, why);
}

int insert_check(const char *name, struct dm_device *x, char *origin, struct why *why)
{
	int err;

	if (strlen(name) + strlen(ORIGIN_SUFFIX) >= DM_NAME_BYTES)
		return why_set(why, ENAMETOOLONG, "%s: its name leaves no room for %s", name, ORIGIN_SUFFIX);
	err = dm_read(name, x, why);
	if (err)
		return err;
	snprintf(origin, DM_NAME_BYTES, "%s%s", name, ORIGIN_SUFFIX);
	err = insert_possible(x, why);
	if (!err)
		err = check_origin(x, origin, why);
	if (err)
		dm_forget(x);
	return err;
}

static int insert(const struct dm_device *x, const char *origin, const struct asr_line *line, struct why *why)
{
	struct dm_device made = {0}, table = {0};
	char uuid[DM_NAME_BYTES + 8];
	int err;

	origin_uuid(x, uuid);
	err = dm_create(origin, uuid, x, &made, why);
	if (err)
		return err;
	err = still_same(x, why);
	if (err) {
		dm_remove(origin, NULL);
		dm_forget(&made);
		return err;
	}
	err = asr_table(&table, x->sectors, made.major, made.minor, x->read_only, line);
	if (!err)
		err = dm_load(x->name, &table, why);
	if (!err) {	/* else nothing was loaded, and nothing is to be cleared */
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

int insert_dm(const struct dm_device *x, const char *origin, const struct asr_line *line, struct why *why)
{
	sigset_t before;
	int err;

	wait_signals(&before);
	err = insert(x, origin, line, why);
	allow_signals(&before);
	return err;
}

int insert_plain(const char *device, uint32_t major, uint32_t minor, const struct asr_line *line, struct why *why)
{
	cleanup_fd int fd = open(device, O_RDONLY | O_EXCL | O_CLOEXEC);
	char use[512], name[ASR_NAME_BYTES + 8];
	struct dm_device table = {0};
	int err, read_only = 0;
	uint64_t bytes = 0;

	if (fd < 0 && errno == EBUSY) {
		use_of(major, minor, use, sizeof(use));
		return why_set(why, EBUSY, "%s is in use (%s) and is not a device-mapper device, so asr cannot "
			       "slide under its users: stop using it and protect it then, put it under LVM, "
			       "or protect it at boot", device, use);
	}
	if (fd < 0)
		return why_set(why, errno, "%s: %s", device, strerror(errno));
	err = ioctl(fd, BLKGETSIZE64, &bytes) || ioctl(fd, BLKROGET, &read_only) ? -errno : 0;
	close(steal_fd(fd));	/* dm wants it for itself */
	if (err || bytes < 512)
		return why_set(why, err ? -err : ENODATA, "%s: its size cannot be read, or is zero", device);
	if (!line)
		return 0;
	snprintf(name, sizeof(name), "asr-%s", line->disk);
	err = asr_table(&table, bytes / 512, major, minor, read_only, line);
	if (!err)
		err = dm_create(name, "", &table, NULL, why);
	dm_forget(&table);
	return err;
}

/* ---------------------------------------------------------------- out again */

/* asr leaves; what was below it is the device's table again. */
static int take_out(const struct dm_device *x, const struct dm_device *origin, struct why *why)
{
	sigset_t before;
	int err;

	wait_signals(&before);
	err = dm_load(x->name, origin, why);
	if (!err) {	/* else nothing was loaded, and nothing is to be cleared */
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
	use_of(x->major, x->minor, use, sizeof(use));
	return why_set(why, EBUSY, "/dev/mapper/%s is in use (%s): it wraps a device that is not a device-mapper "
		       "device and would vanish under its users; stop using it first", x->name, use);
}

int insert_undo(const struct dm_device *x, const struct dm_asr *asr, struct why *why)
{
	struct dm_device origin = {0};
	char lower[DM_NAME_BYTES];
	bool live;
	int err;

	if (x->suspended || x->inactive)
		return why_set(why, EBUSY, "%s is suspended or has a second table waiting: somebody is changing it, or "
			       "was killed while doing so: then `dmsetup clear %s` drops that table", x->name, x->name);
	live = !dm_name_of(asr->major, asr->minor, lower, sizeof(lower)) && !dm_read(lower, &origin, NULL) &&
	       !strncmp(origin.uuid, UUID_PREFIX, strlen(UUID_PREFIX));
	err = live ? take_out(x, &origin, why) : remove_wrapper(x, why);
	if (!err && live)
		err = dm_remove(origin.name, why);
	dm_forget(&origin);
	return err;
}
