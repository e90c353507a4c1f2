// SPDX-License-Identifier: Apache-2.0
/*
 * asrctl boot: what was protected is protected again, before its first writer.
 *
 * Design. Each disk that remember.c has on file is looked for; when it and its
 * log are there, the kernel's group is made if need be and asr is inserted.
 * Nothing is done twice, so it may run any number of times and in parallel: in
 * the initramfs for the root disk, from a udev rule for each device that comes,
 * and once as a service for what is left.
 *
 * udev holds a remembered device back (SYSTEMD_READY=0: no mount sees it) until
 * this has been through with it. RUN_DIR/KEY says so, and a change event makes
 * udev look again. It says so also when the disk could not be protected: a boot
 * is never stopped by us, it is told, loudly.
 *
 * BOOT_DIR is a copy of what a boot needs (mirror.c), for the initramfs and for hosts
 * whose /var is not there yet; BOOT_DIR/hold/KEY is what the udev rule looks at.
 *
 * Invariants. A log is believed only if the disk cannot have been written
 * without it: its identity and generation fit, and the device has seen no write
 * since it came. Else it is told to prove nothing, and all of the disk is
 * compared. A log that is another's is never written.
 *
 * Numbers of records go on above all that was ever used: what the state file
 * says plus 2^32. Where that file cannot be written, the time since it was counts, too.
 *
 * Context. Root; the initramfs included, where nothing but /run can be written.
 */
#include "asrctl.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <spawn.h>
#include <string.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <time.h>

#include "../userland/source.h"

#define PAUSE_NS	200000000
#define WAIT_DEFAULT	"0"
#define SEQ_STEP	(1ull << 32)
#define SEQ_CLOCK	(1ull << 20)	/* no host makes as many records a second for years */

enum outcome { BOOT_DONE, BOOT_ALREADY, BOOT_WAITS, BOOT_FAILED };
static const char *const outcomes[] = { "protected", "already", "absent", "failed" };

struct boot {
	const char *state_dir;
	bool root;			/* in the initramfs: state cannot be written */
	bool last;			/* nobody waits any more: what is not there now is missing */
	bool json;
	char boot_id[40];
	json_t *rows;			/* "GROUP/DISK": what became of it; none is tried again in one run */
	unsigned int waits, failed;
};

/* Where a remembered disk is now */
struct place {
	char path[512];			/* the device that is to be protected */
	char dm[DM_NAME_BYTES];		/* its dm name; empty: not dm */
	uint32_t major, minor;
	uint64_t sectors;
};

/* To stdout, which is the journal's, and in the initramfs to the kernel's log as well */
__attribute__((format(printf, 3, 4)))
static void tell(const struct boot *b, bool bad, const char *fmt, ...)
{
	char text[1024];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	if (b->root) {
		cleanup_file FILE *kmsg = fopen("/dev/kmsg", "we");

		if (kmsg)
			fprintf(kmsg, "<%d>asr-boot: %s\n", bad ? 3 : 5, text);
	}
	if (bad)
		fprintf(stderr, "asrctl: %s\n", text);
	else if (!b->json)
		puts(text);
	fflush(stdout);
}

void boot_modprobe(const char *module)
{
	char *argv[] = { "modprobe", "-q", (char *)(uintptr_t)module, NULL };
	int status;
	pid_t pid;

	if (!posix_spawnp(&pid, "modprobe", NULL, NULL, argv, environ))
		waitpid(pid, &status, 0);
}

const char *boot_state_dir(const struct args *a)
{
	const char *given = arg_value(a, "state-dir", NULL);

	if (given)
		return given;
	return access(ASR_STATE_DIR "/groups", F_OK) && !access(BOOT_DIR "/groups", F_OK) ? BOOT_DIR : ASR_STATE_DIR;
}

/* ------------------------------------------------------------ finding a disk */

static int size_of(const char *path, uint64_t *sectors)
{
	cleanup_fd int fd = open(path, O_RDONLY | O_CLOEXEC);
	uint64_t bytes;

	if (fd < 0 || ioctl(fd, BLKGETSIZE64, &bytes))
		return -errno;
	*sectors = bytes / 512;
	return *sectors ? 0 : -ENODATA;
}

/* -ENODEV: not there (yet) */
static int find_dm(json_t *disk, struct place *p, struct why *why)
{
	const char *uuid = text_of(disk, "dm_uuid"), *name = text_of(disk, "dm_name");
	struct dm_device d;

	if (*uuid ? dm_find_uuid(uuid, p->dm) : 0)
		return -ENODEV;
	if (!*uuid)
		snprintf(p->dm, sizeof(p->dm), "%.127s", name);
	if (dm_read(p->dm, &d, NULL))
		return -ENODEV;
	p->major = d.major;
	p->minor = d.minor;
	p->sectors = d.sectors;
	dm_forget(&d);
	snprintf(p->path, sizeof(p->path), "/dev/mapper/%s", p->dm);
	return p->sectors ? 0 : -ENODEV;
}

static int find_place(json_t *disk, struct place *p, struct why *why)
{
	struct stat st;

	*p = (struct place){ .path = "" };
	if (!strcmp(text_of(disk, "kind"), "dm"))
		return find_dm(disk, p, why);
	snprintf(p->path, sizeof(p->path), "%.500s", text_of(disk, "device"));
	if (stat(p->path, &st) || !S_ISBLK(st.st_mode) || size_of(p->path, &p->sectors))
		return -ENODEV;
	p->major = major(st.st_rdev);
	p->minor = minor(st.st_rdev);
	return 0;
}

void boot_log_for(json_t *disk, struct log_for *f)
{
	json_t *log = json_object_get(disk, "log");
	static uint8_t uuid[16];
	struct place p;

	f->sectors = (uint64_t)json_integer_value(json_object_get(disk, "sectors"));
	if (!find_place(disk, &p, NULL)) {
		f->sectors = p.sectors;
		f->major = p.major;
		f->minor = p.minor;
	}
	f->generation = (uint64_t)json_integer_value(json_object_get(log, "generation"));
	if (log && !hex_decode(text_of(log, "uuid"), uuid, sizeof(uuid)))
		f->uuid = uuid;
}

/* ------------------------------------------------------------ holding back */

/* What the udev rule calls the device; false: it has no such name */
bool boot_key(json_t *disk, char key[256])
{
	static const char by[] = "/dev/disk/by-partuuid/";
	const char *device = text_of(disk, "device");

	if (!strcmp(text_of(disk, "kind"), "dm"))
		return snprintf(key, 256, "dm-%.200s", text_of(disk, "dm_name")) > 3;
	if (strncmp(device, by, sizeof(by) - 1))
		return false;
	return snprintf(key, 256, "part-%.200s", device + sizeof(by) - 1) > 5;
}

static void touch(const char *dir, const char *key, const char *suffix)
{
	char path[512];
	int fd;

	snprintf(path, sizeof(path), "%s/%.240s%s", dir, key, suffix);
	fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0644);
	if (fd >= 0)
		close(fd);
}

static void change_event(uint32_t major, uint32_t minor)
{
	char path[64];
	int fd;

	snprintf(path, sizeof(path), "/sys/dev/block/%u:%u/uevent", major, minor);
	fd = open(path, O_WRONLY | O_CLOEXEC);
	if (fd >= 0) {
		if (write(fd, "change", 6) != 6)
			log_debug("no change event for %u:%u", major, minor);
		close(fd);
	}
}

/* For the initramfs: which device is which wrapper's now */
static void note_wrapped(const struct place *p, const char *disk)
{
	cleanup_file FILE *f = fopen(RUN_DIR "/wrapped", "ae");
	cleanup_free char *real = realpath(p->path, NULL);

	if (f && real)
		fprintf(f, "%s /dev/mapper/asr-%s\n", real, disk);
}

/* The disk is through: udev may show it. A wrapped device stays hidden behind its wrapper, as long as it has one. */
void boot_release(json_t *disk, bool protected)
{
	bool plain = strcmp(text_of(disk, "kind"), "dm") != 0, had = true, hidden = false;
	char key[256], path[512];
	struct place p;

	dir_make(RUN_DIR, 0755, NULL);
	if (!boot_key(disk, key))
		return;
	snprintf(path, sizeof(path), "%s/%s", RUN_DIR, key);
	if (plain && protected) {
		touch(RUN_DIR, key, ".wrapped");
	} else if (plain) {
		char wrapped[600];

		snprintf(wrapped, sizeof(wrapped), "%s.wrapped", path);
		hidden = !unlink(wrapped);
	}
	had = !access(path, F_OK);
	touch(RUN_DIR, key, "");
	if ((!had || hidden) && !find_place(disk, &p, NULL))
		change_event(p.major, p.minor);
}

/* ----------------------------------------------------- the kernel's group */

static int read_json(const char *path, json_t **out, struct why *why)
{
	cleanup_free char *text = NULL;
	json_error_t e;
	int err = file_read(path, 1 << 20, &text, NULL, why);

	if (err)
		return err;
	*out = json_loads(text, 0, &e);
	return *out ? 0 : why_set(why, EINVAL, "%.300s, line %d: %.100s", path, e.line, e.text);
}

static int read_state(const char *state_dir, const char *group, json_t **state, uint64_t *used, char path[512],
		      struct why *why)
{
	uint64_t first, last;
	int err;

	snprintf(path, 512, "%.300s/groups/%s/state.json", state_dir, group);
	err = read_json(path, state, why);
	if (err)
		return err;
	first = (uint64_t)json_integer_value(json_object_get(*state, "first_seq"));
	last = (uint64_t)json_integer_value(json_object_get(*state, "last_seq"));
	*used = first > last ? first : last;
	return 0;
}

/* The greatest number that the group has used, as far as this host knows now */
uint64_t boot_seq(const char *state_dir, const char *group)
{
	struct asr_group_info info = { .index = 0 };
	cleanup_json state = NULL;
	uint64_t used = 0;
	char path[512];

	snprintf(info.name, sizeof(info.name), "%s", group);
	if (!source_control(NULL, ASR_IOC_GROUP_INFO, &info, NULL))
		return info.next_seq;
	read_state(state_dir, group, &state, &used, path, NULL);
	return used;
}

/*
 * Above all numbers that were ever used; and noted, so that the next boot goes above
 * this one. Where that cannot be noted, each second since it could counts SEQ_CLOCK.
 */
static int first_seq(const struct boot *b, const char *group, __u64 *first, struct why *why)
{
	cleanup_free char *text = NULL;
	cleanup_json state = NULL;
	uint64_t used, now = now_real_ns() / 1000000000ull;
	struct stat st;
	char path[512];
	int err;

	err = read_state(b->state_dir, group, &state, &used, path, why);
	if (err)
		return err;
	*first = used + SEQ_STEP;
	json_object_set_new(state, "first_seq", json_integer((json_int_t)*first));
	text = json_dumps(state, JSON_INDENT(1));
	if (!b->root && strcmp(b->state_dir, BOOT_DIR) && text && !file_write(path, 0600, text, strlen(text), NULL))
		return 0;
	if (!stat(path, &st) && now > (uint64_t)st.st_mtime)
		*first += (now - (uint64_t)st.st_mtime) * SEQ_CLOCK;
	return 0;
}

static int make_group(const struct boot *b, const char *group, struct why *why)
{
	struct asr_group_info info = { .index = 0 };
	struct asr_group_create c = { .flags = 0 };
	cleanup_json conf = NULL;
	char path[512];
	int err;

	snprintf(info.name, sizeof(info.name), "%s", group);
	if (!source_control(NULL, ASR_IOC_GROUP_INFO, &info, NULL))
		return 0;
	snprintf(path, sizeof(path), "%.300s/groups/%s/group.json", b->state_dir, group);
	err = read_json(path, &conf, why);
	if (!err)
		err = first_seq(b, group, &c.first_seq, why);
	if (err)
		return err;
	snprintf(c.name, sizeof(c.name), "%s", group);
	c.ring_bytes = (uint64_t)json_integer_value(json_object_get(conf, "ring_bytes"));
	err = source_control(NULL, ASR_IOC_GROUP_CREATE, &c, why);
	if (err == -EEXIST)
		return 0;
	if (err && !*why->text)
		return why_set(why, -err, "cannot make group %s in the kernel, with a ring of %llu MiB: %s", group,
			       (unsigned long long)c.ring_bytes >> 20, strerror(-err));
	if (!err)
		tell(b, false, "group %s: made in the kernel, ring of %llu MiB", group,
		     (unsigned long long)c.ring_bytes >> 20);
	return err;
}

/* ------------------------------------------------------------- remembering */

/* Where records can be written; NULL: nowhere yet */
static const char *writable(const struct boot *b)
{
	return b->root || !strcmp(b->state_dir, BOOT_DIR) ? NULL : b->state_dir;
}

static void save_record(const struct boot *b, const char *group, json_t *disk)
{
	struct why why = {0};

	if (writable(b) && remember_put(b->state_dir, group, disk, &why))
		log_debug("%s", why.text);	/* a root that is not writable yet: the service comes again */
}

/* It was up without us: what its log says is not believed, next time either */
static void distrust(const struct boot *b, const char *group, json_t *disk, const char *reason)
{
	if (!json_object_get(disk, "log") || json_object_get(disk, "distrust"))
		return;
	json_object_set_new(disk, "distrust", json_string(reason));
	save_record(b, group, disk);
}

/* The module counts the generation at bring-up, and writes it a moment later: 3 s at most */
static int read_newer(const char *log, uint64_t than, struct logdev *l)
{
	const struct timespec pause = { .tv_nsec = PAUSE_NS };
	int err = log_open(log, l, NULL);

	for (int i = 0; !err && l->generation <= than && i < 15; i++) {
		nanosleep(&pause, NULL);
		err = log_open(log, l, NULL);
	}
	return err;
}

static void note_generation(const struct boot *b, const char *group, json_t *disk, const char *log, uint64_t than)
{
	struct logdev l;

	if (!*log || read_newer(log, than, &l))
		return;
	json_object_set_new(json_object_get(disk, "log"), "generation", json_integer((json_int_t)l.generation));
	json_object_set_new(disk, "boot_id", json_string(b->boot_id));
	json_object_del(disk, "distrust");
	save_record(b, group, disk);
}

void boot_note(const char *state_dir, const char *group, json_t *disk, const struct log_at *log)
{
	struct boot b = { .state_dir = state_dir };
	cleanup_free char *id = NULL;

	if (!file_read("/proc/sys/kernel/random/boot_id", 64, &id, NULL, NULL))
		snprintf(b.boot_id, sizeof(b.boot_id), "%.36s", id);
	note_generation(&b, group, disk, log->path, log->l.generation);
}

/* ------------------------------------------------------- one disk, already up */

/*
 * remember_half: from before asr is put on a disk until it is known what was written meanwhile. asrd
 * ends no resync then (group_missing). Whoever finds it is not the one who wrote it: he has been stopped.
 */
#define HALF	"whoever put asr on it was stopped before he knew what was written meanwhile"

static void checked(const struct boot *b, const char *group, json_t *disk)
{
	if (remember_half_end(writable(b), group, disk))
		log_debug("group %s, disk %s: still to be looked at", group, text_of(disk, "name"));
}

/* Else it is noted, and the next run tries again: a log that is known to be wrong is never believed */
static int dirty_all(const struct boot *b, const char *group, json_t *disk, const char *dm, const char *reason)
{
	const char *name = text_of(disk, "name");
	struct why why = {0};
	struct dm_device d;
	char text[64];
	int err = dm_read(dm, &d, &why);

	if (!err) {
		snprintf(text, sizeof(text), "dirty 0 %llu", (unsigned long long)d.sectors);
		err = dm_message(dm, text, &why);
		dm_forget(&d);
	}
	if (!err) {
		tell(b, true, "group %s, disk %s: %s: all of it is compared", group, name, reason);
		return 0;
	}
	tell(b, true, "group %s, disk %s: %s: all of it IS TO BE COMPARED, and %s; `asrctl boot` tries again", group,
	     name, reason, why.text);
	json_object_del(disk, "boot_id");
	distrust(b, group, disk, reason);
	return err;
}

/*
 * Somebody else, most often the initramfs, which knows an old copy of our files, has
 * brought it up. With an older log than was seen, or after it was up without us, its
 * clean regions mean nothing: all of it is to be compared.
 */
static void check_generation(const struct boot *b, const char *group, json_t *disk, const struct dm_search *s)
{
	uint64_t seen = (uint64_t)json_integer_value(json_object_get(json_object_get(disk, "log"), "generation"));
	const char *reason = text_of(disk, "distrust");
	char path[64], text[160];
	struct logdev l;
	int err;

	if (!strcmp(text_of(disk, "boot_id"), b->boot_id))
		return;
	snprintf(path, sizeof(path), "/dev/block/%u:%u", s->asr.log_major, s->asr.log_minor);
	err = read_newer(path, seen, &l);
	if (!*reason && err) {
		snprintf(text, sizeof(text), "its log, %s, cannot be read: %s", path, strerror(-err));
		reason = text;
	} else if (!*reason && l.generation <= seen) {
		snprintf(text, sizeof(text), "its log is of generation %llu, and %llu was seen before this boot",
			 (unsigned long long)l.generation, (unsigned long long)seen);
		reason = text;
	}
	if (!*reason || !dirty_all(b, group, disk, s->name, reason))
		note_generation(b, group, disk, path, 0);
}

static enum outcome already(const struct boot *b, const char *group, json_t *disk, const struct dm_search *s)
{
	bool has = json_object_get(disk, "log");

	if (!b->root && remember_half(group, disk) && !dirty_all(b, group, disk, s->name, HALF))
		checked(b, group, disk);
	if (has && !s->asr.log_major)
		distrust(b, group, disk, "it was up without its log");
	else if (has && !b->root)
		check_generation(b, group, disk, s);
	boot_release(disk, true);
	return BOOT_ALREADY;
}

/* ------------------------------------------------------------ one disk, to do */

/* Has somebody written to it since the machine has it? Then its log does not know. */
static void check_untouched(const struct boot *b, const char *group, json_t *disk, const struct place *p)
{
	uint64_t written = use_written(p->path, p->major, p->minor);
	char text[160];

	if (written == USE_UNKNOWN)
		snprintf(text, sizeof(text), "nobody counts what is written to %.80s", p->path);
	else
		snprintf(text, sizeof(text), "%llu sectors of %.80s were written before asr was there",
			 (unsigned long long)written, p->path);
	if (written)
		distrust(b, group, disk, text);
}

/* What is not to be believed is told so */
static int mark_log(const struct boot *b, const char *group, json_t *disk, struct log_at *log, struct why *why)
{
	const char *reason = text_of(disk, "distrust");
	cleanup_fd int fd = -1;
	uint64_t bytes;
	int err;

	if (!*reason)
		return 0;
	err = logdev_open(log->path, true, &fd, &bytes, why);
	if (!err)
		err = logdev_read(fd, bytes, &log->l, why);
	if (!err && log->l.flags & ASR_LOGF_BROKEN)
		return 0;
	if (!err)
		err = logdev_distrust(fd, &log->l, why);
	if (!err)
		tell(b, true, "group %s, disk %s: %s: all of it is compared", group, text_of(disk, "name"), reason);
	return err;
}

static int match_log(const char *group, json_t *disk, const struct place *p, const struct log_at *log, struct why *why)
{
	struct logdev_want w = { .group = group, .disk = text_of(disk, "name"), .sectors = p->sectors };

	w.generation = (uint64_t)json_integer_value(json_object_get(json_object_get(disk, "log"), "generation"));
	return logdev_match(&log->l, &w, why);
}

static int check_log(const struct boot *b, const char *group, json_t *disk, const struct place *p, struct log_at *log,
		     struct why *why)
{
	struct why inner = {0};

	if (!match_log(group, disk, p, log, &inner))
		return mark_log(b, group, disk, log, why);
	return log_advice(why, inner.text, log, group, text_of(disk, "name"));
}

static int insert_one(const char *group, json_t *disk, const struct place *p, const struct log_at *log, struct why *why)
{
	struct asr_line line = { .group = group, .disk = text_of(disk, "name"), .log_major = log->major,
				 .log_minor = log->minor };
	char origin[DM_NAME_BYTES];
	struct dm_device x;
	int err;

	if (!*p->dm) {
		err = insert_plain(p->path, p->major, p->minor, &line, why);
		if (!err)
			note_wrapped(p, line.disk);
		return err;
	}
	err = insert_check(p->dm, &x, origin, why);
	if (err)
		return err;
	err = insert_dm(&x, origin, &line, why);
	dm_forget(&x);
	return err;
}

static int bring_up(const struct boot *b, const char *group, json_t *disk, const struct place *p, struct log_at *log,
		    struct why *why)
{
	char dm[DM_NAME_BYTES];
	int err;

	if (!dm_have_target("asr"))
		boot_modprobe("dm_asr");
	if (!dm_have_target("asr"))
		return why_set(why, ENODEV, "the kernel has no asr target: the module dm_asr cannot be loaded into "
			       "this kernel");
	err = make_group(b, group, why);
	if (!err && json_object_get(disk, "log"))
		err = check_log(b, group, disk, p, log, why);
	if (err)
		return err;
	if (json_object_get(disk, "log") && !*text_of(disk, "distrust"))
		remember_half_begin(writable(b), group, disk);
	err = insert_one(group, disk, p, log, why);
	if (err) {
		checked(b, group, disk);
		return err;
	}
	/* the swap has waited for writes in flight; the first look could not see them, nor what came since */
	snprintf(dm, sizeof(dm), *p->dm ? "%s" : "asr-%.64s", *p->dm ? p->dm : text_of(disk, "name"));
	if (json_object_get(disk, "checking") && use_written(p->path, p->major, p->minor))
		err = dirty_all(b, group, disk, dm, "it was written while asr was put on it");
	if (!err)
		checked(b, group, disk);
	boot_release(disk, true);
	if (!err && json_object_get(disk, "log") && !b->root)
		note_generation(b, group, disk, log->path, log->l.generation);
	tell(b, false, "group %s, disk %s: %s is protected again%s%s", group, text_of(disk, "name"), p->path,
	     *log->path ? ", log on " : ", without a log: all of it is compared", log->path);
	return 0;
}

static enum outcome give_up(const struct boot *b, const char *group, json_t *disk, const struct why *why, int err)
{
	const char *reason = *why->text ? why->text : strerror(-err);

	tell(b, true, "group %s, disk %s IS NOT PROTECTED: %s", group, text_of(disk, "name"), reason);
	distrust(b, group, disk, "it was up without protection");
	boot_release(disk, false);
	return BOOT_FAILED;
}

static enum outcome one(const struct boot *b, const char *group, json_t *disk, struct why *why)
{
	struct dm_search s = { .group = group, .disk = text_of(disk, "name") };
	struct log_at log = { .path = "" };
	json_t *known = json_object_get(disk, "log");
	struct why inner = {0};
	enum outcome o;
	struct place p;
	int err = 0;

	if (json_object_get(disk, "error")) {
		why_set(why, EINVAL, "%.400s", text_of(disk, "error"));
		return give_up(b, group, disk, why, -EINVAL);
	}
	if (!dm_find_asr(&s, NULL) && s.found)
		return already(b, group, disk, &s);
	if (find_place(disk, &p, why)) {
		why_set(why, ENODEV, "%.200s is not there", text_of(disk, "device"));
		if (b->last)
			tell(b, true, "group %s, disk %s is missing: %s", group, text_of(disk, "name"), why->text);
		return BOOT_WAITS;
	}
	if (remember_half(group, disk))
		distrust(b, group, disk, HALF);
	check_untouched(b, group, disk, &p);
	if (known && log_find(known, group, s.disk, &log, why)) {
		if (!b->last)
			return BOOT_WAITS;
		return give_up(b, group, disk, why, -ENODEV);
	}
	err = bring_up(b, group, disk, &p, &log, why);
	if (!err)
		return BOOT_DONE;
	o = give_up(b, group, disk, why, err);
	/* at once: files may not be writable yet, and the next boot may come before they are */
	if (known && !match_log(group, disk, &p, &log, NULL) && mark_log(b, group, disk, &log, &inner))
		tell(b, true, "group %s, disk %s: its log does not know of that: %s", group, s.disk, inner.text);
	log_undo(&log);
	return o;
}

/* ------------------------------------------------------------------- all disks */

static void one_group(struct boot *b, const char *group)
{
	cleanup_json disks = NULL;
	struct why why = {0};
	json_t *disk;
	size_t i;

	if (remember_list(b->state_dir, group, &disks, &why)) {
		tell(b, true, "group %s: %s", group, why.text);
		b->failed++;
		return;
	}
	json_array_foreach(disks, i, disk) {
		char key[2 * ASR_NAME_BYTES];
		struct why reason = {0};
		enum outcome o;

		snprintf(key, sizeof(key), "%s/%s", group, text_of(disk, "name"));
		if (json_object_get(b->rows, key) &&
		    strcmp(text_of(json_object_get(b->rows, key), "outcome"), outcomes[BOOT_WAITS]))
			continue;
		o = one(b, group, disk, &reason);
		b->waits += o == BOOT_WAITS;
		b->failed += o == BOOT_FAILED;
		json_object_set_new(b->rows, key, json_pack("{s:s, s:s, s:s, s:s}", "group", group, "disk",
				    text_of(disk, "name"), "outcome", outcomes[o], "reason", reason.text));
	}
}

int boot_lock(void)
{
	int lock;

	dir_make(RUN_DIR, 0755, NULL);
	lock = open(ASR_BOOT_LOCK, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	if (lock >= 0)
		flock(lock, LOCK_EX);
	return lock;
}

static void pass(struct boot *b)
{
	cleanup_fd int lock = boot_lock();
	cleanup_json groups = NULL;
	json_t *g;
	size_t i;

	b->waits = 0;
	remember_groups(b->state_dir, &groups, NULL);
	json_array_foreach(groups, i, g)
		one_group(b, json_string_value(g));
}

static int wait_all(struct boot *b, uint64_t wait_ns)
{
	const struct timespec pause = { .tv_nsec = PAUSE_NS };
	uint64_t end = now_ns() + wait_ns;

	do {
		b->last = now_ns() >= end;
		pass(b);
		if (!b->waits || b->last)
			break;
		nanosleep(&pause, NULL);
	} while (true);
	return b->waits || b->failed ? -EIO : 0;
}

int boot_run(const struct args *a, struct why *why)
{
	struct boot b = { .state_dir = boot_state_dir(a), .root = arg_given(a, "root"), .json = a->json };
	const char *save = arg_value(a, "save", NULL), *wait = arg_value(a, "wait", WAIT_DEFAULT);
	cleanup_free char *id = NULL;
	cleanup_json answer = NULL;
	char *end;
	long s;
	int err;

	s = strtol(wait, &end, 10);
	if (*end || s < 0 || s > 3600)
		return why_set(why, EINVAL, "bad time \"%.40s\": 0 to 3600 seconds are right", wait);
	if (save)
		return boot_save(b.state_dir, save, b.root, why);
	if (!file_read("/proc/sys/kernel/random/boot_id", 64, &id, NULL, NULL))
		snprintf(b.boot_id, sizeof(b.boot_id), "%.36s", id);
	b.rows = json_object();
	answer = json_pack("{s:o}", "disks", b.rows);
	err = wait_all(&b, (uint64_t)s * 1000000000ull);
	if (!b.root) {
		cleanup_fd int lock = boot_lock();

		boot_mirror(b.state_dir);
	}
	if (a->json)
		out_json(answer);
	else if (!json_object_size(b.rows))
		puts("no disk is remembered");
	return err ? why_set(why, -err, "%u of %zu remembered disks are not protected, %u of them because they are "
			     "missing",
			     b.failed + b.waits, json_object_size(b.rows), b.waits) : 0;
}
