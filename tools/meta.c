// SPDX-License-Identifier: Apache-2.0
/*
 * The device of a write-intent log: found, judged, made.
 *
 * Design. A log lies on a block device of its own, or in a file that asrctl
 * makes and attaches to a loop device. At the next boot it is found again by
 * its path, and else by the uuid in its superblock, whatever the device is
 * called then.
 *
 * Invariants. A device that holds anything is not written without --yes and its
 * name; one that is in use never. A log never lies on a protected disk: its
 * writes would wait for themselves. What a log says of its identity is compared
 * before it is used, and a mismatch is refused with the command that ends it.
 *
 * A log that is made anew for the same disk keeps its uuid and its generation,
 * so that an older copy of it is still known to be one.
 */
#include "asrctl.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/loop.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#define FILE_DEFAULT	(1ull << 20)	/* serves 31 TiB at regions of 4 MiB */
#define HEAD_BYTES	(128u << 10)	/* where signatures lie: the first, the last bytes */
#define TAIL_BYTES	(64u << 10)

/* ---------------------------------------------------------- loop devices */

static int loop_of(const char *file, struct log_at *at)
{
	struct stat want, st;
	struct dirent *e;
	DIR *dir = opendir("/sys/block");
	char path[512];
	int err = -ENOENT;

	if (stat(file, &want))
		err = -errno;
	while (dir && err == -ENOENT && (e = readdir(dir))) {
		cleanup_free char *back = NULL;

		snprintf(path, sizeof(path), "/sys/block/%.100s/loop/backing_file", e->d_name);
		if (strncmp(e->d_name, "loop", 4) || file_read(path, 8192, &back, NULL, NULL))
			continue;
		back[strcspn(back, "\n")] = 0;
		if (stat(back, &st) || st.st_dev != want.st_dev || st.st_ino != want.st_ino)
			continue;
		snprintf(at->path, sizeof(at->path), "/dev/%.100s", e->d_name);
		err = 0;
	}
	if (dir)
		closedir(dir);
	return err;
}

static int loop_configure(int loop, int fd, const char *file)
{
	struct loop_config c = { .fd = (uint32_t)fd, .block_size = 512, .info.lo_flags = LO_FLAGS_DIRECT_IO };

	snprintf((char *)c.info.lo_file_name, sizeof(c.info.lo_file_name), "%s", file);
	if (!ioctl(loop, LOOP_CONFIGURE, &c))
		return 0;
	if (errno == EBUSY)
		return -EBUSY;
	c.info.lo_flags = 0;	/* a file system without direct I/O */
	c.block_size = 0;
	return ioctl(loop, LOOP_CONFIGURE, &c) ? -errno : 0;
}

static int loop_attach(const char *file, struct log_at *at, struct why *why)
{
	cleanup_fd int control = -1, fd = open(file, O_RDWR | O_CLOEXEC);
	int n, err = -EBUSY;

	if (fd < 0)
		return why_set(why, errno, "%s: %s", file, strerror(errno));
	if (!loop_of(file, at))
		return 0;
	if (access("/dev/loop-control", F_OK))
		boot_modprobe("loop");
	control = open("/dev/loop-control", O_RDWR | O_CLOEXEC);
	if (control < 0)
		return why_set(why, errno, "no loop device for %s: /dev/loop-control: %s", file, strerror(errno));
	for (int i = 0; i < 16 && err == -EBUSY; i++) {	/* others take loop devices, too */
		cleanup_fd int loop = -1;

		n = ioctl(control, LOOP_CTL_GET_FREE);
		snprintf(at->path, sizeof(at->path), "/dev/loop%d", n);
		loop = n < 0 ? -1 : open(at->path, O_RDWR | O_CLOEXEC);
		err = loop < 0 ? -errno : loop_configure(loop, fd, file);
	}
	at->attached = !err;
	return err ? why_set(why, -err, "no loop device for %s: %s", file, strerror(-err)) : 0;
}

void log_detach(const char *path)
{
	cleanup_fd int loop = open(path, O_RDWR | O_CLOEXEC);

	if (loop >= 0)
		ioctl(loop, LOOP_CLR_FD);
}

void log_undo(const struct log_at *at)
{
	if (at->attached)
		log_detach(at->path);
	if (at->made)
		unlink(at->file);
}

/* -------------------------------------------------------- may it be a log? */

static int is_asr(uint32_t major, uint32_t minor, void *arg)
{
	char name[DM_NAME_BYTES];
	struct dm_device d;
	struct dm_asr asr;
	int ret = 0;

	if (dm_name_of(major, minor, name, sizeof(name)) || dm_read(name, &d, NULL))
		return 0;
	if (dm_asr_parse(&d, &asr)) {
		strcpy(arg, d.name);
		ret = 1;
	}
	dm_forget(&d);
	return ret;
}

/* Neither on a protected disk, nor on the one that it is for */
static int check_below(const char *what, uint32_t major, uint32_t minor, const struct log_for *f, struct why *why)
{
	char name[DM_NAME_BYTES];

	if (!major)
		return why_set(why, EXDEV, "%s does not lie on a block device, and would not outlive a reboot: "
			       "take a partition, a volume, or a file on ext4 or xfs", what);
	if (f->major && use_lies_on(major, minor, f->major, f->minor))
		return why_set(why, EXDEV, "%s lies on the disk that is to be protected: each write to the log would "
			       "wait for a write to the log; take another device", what);
	if (use_below(major, minor, is_asr, name))
		return why_set(why, EXDEV, "%s lies on /dev/mapper/%s, which is protected: the log's own writes would "
			       "be captured and logged; take another device", what, name);
	if (f->major && use_lies_on(f->major, f->minor, major, minor))
		return why_set(why, EXDEV, "the disk that is to be protected lies on %s", what);
	return 0;
}

static const struct {
	const char *what, *magic;
	unsigned int at;
} signatures[] = {
	{ "an ext file system", "\x53\xef", 1080 }, { "an XFS file system", "XFSB", 0 },
	{ "an LVM physical volume", "LABELONE", 512 }, { "a LUKS volume", "LUKS\xba\xbe", 0 },
	{ "swap", "SWAPSPACE2", 4086 }, { "a btrfs file system", "_BHRfS_M", 65600 },
	{ "a GPT partition table", "EFI PART", 512 }, { "a squashfs file system", "hsqs", 0 },
	{ "a partition table or boot sector", "\x55\xaa", 510 },
};

static const char *content_of(const uint8_t *head, bool blank)
{
	for (size_t i = 0; i < sizeof(signatures) / sizeof(signatures[0]); i++)
		if (!memcmp(head + signatures[i].at, signatures[i].magic, strlen(signatures[i].magic)))
			return signatures[i].what;
	return blank ? NULL : "data of some kind: its first or last bytes are not zero";
}

static bool read_ends(int fd, uint64_t bytes, uint8_t *buf, bool *blank)
{
	uint64_t head = bytes < HEAD_BYTES ? bytes : HEAD_BYTES, tail = bytes < TAIL_BYTES ? bytes : TAIL_BYTES;
	uint8_t *end = buf + HEAD_BYTES;

	memset(buf, 0, HEAD_BYTES + TAIL_BYTES);
	if (pread(fd, buf, head, 0) != (ssize_t)head ||
	    pread(fd, end, tail & ~4095ull, (off_t)((bytes - tail + 4095) & ~4095ull)) < 0)
		return false;
	*blank = !*buf && !memcmp(buf, buf + 1, HEAD_BYTES + TAIL_BYTES - 1);
	return true;
}

/*
 * May it be written? Blank, or the log of this very disk, or named by --yes. *old is
 * the log of this disk that it holds; version 0: none.
 */
static int check_content(const char *path, int fd, uint64_t bytes, const struct log_for *f, struct logdev *old,
			 struct why *why)
{
	cleanup_free uint8_t *buf = aligned_alloc(4096, HEAD_BYTES + TAIL_BYTES);
	const char *base = strrchr(path, '/') ? strrchr(path, '/') + 1 : path, *what;
	char text[256];
	bool blank;
	int err;

	if (!buf || !read_ends(fd, bytes, buf, &blank))
		return why_set(why, EIO, "%s cannot be read", path);
	err = logdev_parse(buf, HEAD_BYTES, old, NULL);
	if (!err && !strcmp(old->group, f->group) && !strcmp(old->disk, f->disk))
		return 0;
	snprintf(text, sizeof(text), "the log of disk %s of group %s", old->disk, old->group);
	what = !err ? text : err == -ENODATA ? content_of(buf, blank) :
	       err == -EPROTONOSUPPORT ? "a log made by a newer version of dm-asr" : "a damaged write-intent log";
	*old = (struct logdev){ .version = 0 };
	if (!what || (f->yes && !strcmp(f->yes, base)))
		return 0;
	if (f->yes)
		return why_set(why, EINVAL, "--yes %s: that is not the name of the device, which is %s and holds %s",
			       f->yes, base, what);
	return why_set(why, EEXIST, "%s holds %s. If all that is on it may be lost, say so with --yes %s", path, what,
		       base);
}

static int open_free(const char *path, int *fd, uint64_t *bytes, struct log_at *at, struct why *why)
{
	cleanup_fd int mine = -1;
	struct stat st;
	char use[512];

	if (stat(path, &st))
		return why_set(why, errno, "%s: %s", path, strerror(errno));
	if (!S_ISBLK(st.st_mode))
		return why_set(why, ENOTBLK, "%s is not a block device", path);
	at->major = major(st.st_rdev);
	at->minor = minor(st.st_rdev);
	mine = open(path, O_RDONLY | O_EXCL | O_CLOEXEC);
	if (mine < 0 && errno == EBUSY) {
		use_of(at->major, at->minor, use, sizeof(use));
		return why_set(why, EBUSY, "%s is in use (%s): a log needs a device of its own", path, use);
	}
	return logdev_open(path, true, fd, bytes, why);
}

/* Makes the log on at->path, which is a block device */
static int make_log(const struct log_for *f, struct log_at *at, struct why *why)
{
	struct logdev old = { .version = 0 };
	cleanup_fd int fd = -1;
	uint64_t bytes;
	struct why inner = {0};
	int err;

	err = open_free(at->path, &fd, &bytes, at, why);
	if (!err)
		err = check_below(at->path, at->major, at->minor, f, why);
	if (!err)
		err = check_content(at->path, fd, bytes, f, &old, why);
	if (err)
		return err;
	at->l = (struct logdev){ .sectors = f->sectors, .region_sectors = logdev_region_sectors(f->sectors),
				 .generation = old.generation > f->generation ? old.generation : f->generation,
				 .seq_high = old.seq_high > f->seq_high ? old.seq_high : f->seq_high };
	strcpy(at->l.group, f->group);
	strcpy(at->l.disk, f->disk);
	if (f->uuid)
		memcpy(at->l.uuid, f->uuid, sizeof(at->l.uuid));
	else if (old.version)
		memcpy(at->l.uuid, old.uuid, sizeof(at->l.uuid));
	err = logdev_format(fd, bytes, &at->l, &inner);
	return err ? why_set(why, -err, "%.200s: %.300s", at->path, inner.text) : 0;
}

static int make_file(const struct log_for *f, struct log_at *at, const char *size, struct why *why)
{
	uint64_t need = logdev_bytes(f->sectors, logdev_region_sectors(f->sectors)), bytes = FILE_DEFAULT;
	cleanup_free char *dir = strdup(at->file);
	cleanup_fd int fd = -1;
	struct stat st;
	int err;

	while (bytes < need)
		bytes += FILE_DEFAULT;
	if (size && (size_parse(size, &bytes) || bytes < need || bytes % ASR_LOG_BLOCK))
		return why_set(why, EINVAL, "bad log size \"%.40s\": for this disk a multiple of 4K from %lluK on is "
			       "right", size,
			       (unsigned long long)need >> 10);
	*strrchr(dir, '/') = 0;
	if (stat(*dir ? dir : "/", &st))
		return why_set(why, errno, "%s: %s", dir, strerror(errno));
	err = check_below(at->file, major(st.st_dev), minor(st.st_dev), f, why);
	if (err)
		return err;
	fd = open(at->file, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	at->made = fd >= 0;
	err = fd < 0 ? -errno : -posix_fallocate(fd, 0, (off_t)bytes);
	if (!err && fsync(fd))
		err = -errno;
	return err ? why_set(why, -err, "cannot make %s: %s", at->file, strerror(-err)) : 0;
}

int log_make(const char *meta, const char *size, const struct log_for *f, struct log_at *at, struct why *why)
{
	struct stat st;
	int err = 0;

	*at = (struct log_at){ .path = "" };
	if (!stat(meta, &st) && S_ISBLK(st.st_mode)) {
		if (size)
			return why_set(why, EINVAL, "--meta-size is for a file that is to be made; %s is a device",
				       meta);
		snprintf(at->path, sizeof(at->path), "%s", meta);
		return make_log(f, at, why);
	}
	if (*meta != '/' || strlen(meta) >= sizeof(at->file))
		return why_set(why, EINVAL, "--meta %s: a block device, or the full path of a file to be made, is "
			       "wanted", meta);
	snprintf(at->file, sizeof(at->file), "%s", meta);
	if (access(meta, F_OK))
		err = make_file(f, at, size, why);
	else if (!S_ISREG(st.st_mode))
		err = why_set(why, EINVAL, "%s is neither a block device nor a file", meta);
	else
		err = check_below(meta, major(st.st_dev), minor(st.st_dev), f, why);
	if (!err)
		err = loop_attach(meta, at, why);
	if (!err)
		err = make_log(f, at, why);
	if (err)
		log_undo(at);
	return err;
}

/* ------------------------------------------------------------ found again */

static int try_path(const char *path, const char *uuid, struct log_at *at)
{
	cleanup_fd int fd = -1;
	char hex[33];
	uint64_t bytes;
	struct stat st;

	if (stat(path, &st) || !S_ISBLK(st.st_mode) || logdev_open(path, false, &fd, &bytes, NULL) ||
	    logdev_read(fd, bytes, &at->l, NULL))
		return -ENOENT;
	hex_encode(at->l.uuid, sizeof(at->l.uuid), hex);
	if (strcmp(hex, uuid))
		return -ENOENT;
	at->major = major(st.st_rdev);
	at->minor = minor(st.st_rdev);
	if (path != at->path)	/* found under another name */
		snprintf(at->path, sizeof(at->path), "%s", path);
	return 0;
}

static int scan(const char *uuid, struct log_at *at)
{
	DIR *dir = opendir("/sys/class/block");
	struct dirent *e;
	char path[288];
	int err = -ENOENT;

	while (dir && err && (e = readdir(dir))) {
		if (*e->d_name == '.' || !strncmp(e->d_name, "fd", 2) || !strncmp(e->d_name, "sr", 2))
			continue;
		snprintf(path, sizeof(path), "/dev/%.255s", e->d_name);
		err = try_path(path, uuid, at);
	}
	if (dir)
		closedir(dir);
	return err;
}

/* "reason. `command` makes it anew" */
int log_advice(struct why *why, const char *reason, const struct log_at *at, const char *group, const char *disk)
{
	const char *name = *at->file ? at->file : at->path;

	return why_set(why, EINVAL, "%.260s. `asrctl disk log format %.80s --group %s --disk %s --yes %.40s` makes it "
		       "anew, and "
		       "all of the disk is compared", reason, name, group, disk, (strrchr(at->path, '/') ?: "/") + 1);
}

int log_find(json_t *log, const char *group, const char *disk, struct log_at *at, struct why *why)
{
	const char *uuid = json_string_value(json_object_get(log, "uuid"));
	const char *path = json_string_value(json_object_get(log, "path"));
	const char *file = json_string_value(json_object_get(log, "file"));
	struct why reason = {0};
	struct logdev seen;
	int err;

	*at = (struct log_at){ .path = "" };
	if (!uuid || (!path && !file))
		return why_set(why, EINVAL, "what is remembered of its log is not whole");
	if (file) {
		snprintf(at->file, sizeof(at->file), "%s", file);
		err = loop_attach(file, at, why);
		if (err)
			return err;
	} else {
		snprintf(at->path, sizeof(at->path), "%s", path);
	}
	if (!try_path(at->path, uuid, at) || (!file && !scan(uuid, at)))
		return 0;
	/* not there: say what is */
	err = log_open(at->path, &seen, &reason);
	if (!err)
		why_set(&reason, EXDEV, "%.100s has another log, that of disk %s of group %s", at->path, seen.disk,
			seen.group);
	if (err == -ENOENT || err == -ENXIO)
		err = why_set(why, ENOENT, "its log is not there, neither as %s nor as any other device", at->path);
	else
		err = log_advice(why, reason.text, at, group, disk);
	log_undo(at);
	return err;
}

int log_open(const char *path, struct logdev *l, struct why *why)
{
	cleanup_fd int fd = -1;
	struct why inner = {0};
	uint64_t bytes;
	int err = logdev_open(path, false, &fd, &bytes, &inner);

	if (!err)
		err = logdev_read(fd, bytes, l, &inner);
	return err ? why_set(why, -err, "%.200s: %.300s", path, inner.text) : 0;
}

/* The udev link that stays the same, or the path itself */
void log_stable(const char *path, char *out, size_t bytes)
{
	static const char *const folders[] = {
		"/dev/disk/by-partuuid", "/dev/disk/by-id", "/dev/disk/by-path",
	};
	struct stat want, st;
	struct dirent *e;

	snprintf(out, bytes, "%s", path);
	if (stat(path, &want) || !strncmp(path, "/dev/mapper/", 12))
		return;
	for (size_t i = 0; i < sizeof(folders) / sizeof(folders[0]); i++) {
		DIR *dir = opendir(folders[i]);
		char link[512];

		while (dir && (e = readdir(dir))) {
			snprintf(link, sizeof(link), "%s/%s", folders[i], e->d_name);
			if (*e->d_name != '.' && !stat(link, &st) && S_ISBLK(st.st_mode) &&
			    st.st_rdev == want.st_rdev &&
			    strlen(link) < bytes) {
				strcpy(out, link);
				closedir(dir);
				return;
			}
		}
		if (dir)
			closedir(dir);
	}
}

json_t *log_describe(const struct log_at *at)
{
	char hex[33], path[512];
	json_t *log;

	hex_encode(at->l.uuid, sizeof(at->l.uuid), hex);
	log = json_pack("{s:s, s:I}", "uuid", hex, "generation", (json_int_t)at->l.generation);
	if (*at->file) {
		json_object_set_new(log, "file", json_string(at->file));
	} else {
		log_stable(at->path, path, sizeof(path));
		json_object_set_new(log, "path", json_string(path));
	}
	return log;
}
