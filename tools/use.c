// SPDX-License-Identifier: Apache-2.0
/*
 * Who uses a block device, in words, and what it lies on.
 *
 * Design. Mounts, swap and holders are looked up for the device and for its
 * partitions. Downwards, sysfs has the slaves of a stacked device, the disk of
 * a partition, and the file behind a loop device.
 *
 * Context. asrctl. Reads /proc and /sys only.
 */
#include "asrctl.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

/* Is this line of the mount table about the device? btrfs has numbers of its own: the source tells. */
static bool is_mount_of(const char *line, uint32_t major, uint32_t minor)
{
	const char *rest = strstr(line, " - ");
	unsigned int ma, mi;
	char source[2048];
	struct stat st;

	if (sscanf(line, "%*d %*d %u:%u", &ma, &mi) == 2 && ma == major && mi == minor)
		return true;
	return rest && sscanf(rest, " - %*s %2047s", source) == 1 && *source == '/' && !stat(source, &st) &&
	       S_ISBLK(st.st_mode) && st.st_rdev == makedev(major, minor);
}

bool use_mounted_on(uint32_t major, uint32_t minor, const char *where, char *out, size_t bytes)
{
	cleanup_file FILE *f = fopen("/proc/self/mountinfo", "re");
	char line[4096], place[2048];

	while (f && fgets(line, sizeof(line), f)) {
		if (sscanf(line, "%*d %*d %*s %*s %2047s", place) != 1 || (where && strcmp(place, where)) ||
		    !is_mount_of(line, major, minor))
			continue;
		snprintf(out, bytes, "mounted on %.200s", place);
		return true;
	}
	return false;
}

/* btrfs has numbers that are no device's: the mount's source is */
static dev_t mount_source(uint64_t id)
{
	cleanup_file FILE *f = fopen("/proc/self/mountinfo", "re");
	unsigned long long mount;
	char line[4096], source[2048];
	const char *rest;
	struct stat st;

	while (f && fgets(line, sizeof(line), f))
		if (sscanf(line, "%llu", &mount) == 1 && mount == id && (rest = strstr(line, " - ")) &&
		    sscanf(rest, " - %*s %2047s", source) == 1 && *source == '/' && !stat(source, &st) &&
		    S_ISBLK(st.st_mode))
			return st.st_rdev;
	return 0;
}

dev_t use_device_of(const char *path)
{
	struct statx x;
	struct stat st;

	if (stat(path, &st))
		return 0;
	if (S_ISBLK(st.st_mode))
		return st.st_rdev;
	if (major(st.st_dev) || statx(AT_FDCWD, path, 0, STATX_MNT_ID, &x) || !(x.stx_mask & STATX_MNT_ID))
		return st.st_dev;
	return mount_source(x.stx_mnt_id);
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
	if (use_mounted_on(major, minor, NULL, out, bytes) || held_by(major, minor, out, bytes))
		return true;
	if (!is_swap(major, minor))
		return false;
	snprintf(out, bytes, "swap");
	return true;
}

/* The device, or a partition of it */
void use_of(uint32_t major, uint32_t minor, char *out, size_t bytes)
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

/* ------------------------------------------------------------- downwards */

#define DEPTH_MAX	16

static bool read_dev(const char *path, uint32_t *major, uint32_t *minor)
{
	cleanup_free char *text = NULL;

	return !file_read(path, 8192, &text, NULL, NULL) && sscanf(text, "%u:%u", major, minor) == 2;
}

static int below(uint32_t major, uint32_t minor, use_fn *fn, void *arg, int depth);

static int slaves(const char *base, use_fn *fn, void *arg, int depth)
{
	char path[512];
	uint32_t ma, mi;
	struct dirent *e;
	DIR *dir;
	int ret = 0;

	snprintf(path, sizeof(path), "%s/slaves", base);
	dir = opendir(path);
	while (dir && !ret && (e = readdir(dir))) {
		if (*e->d_name == '.')
			continue;
		snprintf(path, sizeof(path), "/sys/class/block/%.200s/dev", e->d_name);
		if (read_dev(path, &ma, &mi))
			ret = below(ma, mi, fn, arg, depth + 1);
	}
	if (dir)
		closedir(dir);
	return ret;
}

/* A loop device lies on what its file's file system lies on */
static int behind_loop(const char *base, use_fn *fn, void *arg, int depth)
{
	cleanup_free char *file = NULL;
	char path[512];
	struct stat st;

	snprintf(path, sizeof(path), "%s/loop/backing_file", base);
	if (file_read(path, 8192, &file, NULL, NULL))
		return 0;
	file[strcspn(file, "\n")] = 0;
	if (stat(file, &st))
		return 0;
	return S_ISBLK(st.st_mode) ? below(major(st.st_rdev), minor(st.st_rdev), fn, arg, depth + 1) :
				     below(major(st.st_dev), minor(st.st_dev), fn, arg, depth + 1);
}

static int below(uint32_t major, uint32_t minor, use_fn *fn, void *arg, int depth)
{
	char base[64], path[128];
	uint32_t ma, mi;
	int ret;

	ret = fn(major, minor, arg);
	if (ret || depth > DEPTH_MAX)
		return ret;
	snprintf(base, sizeof(base), "/sys/dev/block/%u:%u", major, minor);
	ret = slaves(base, fn, arg, depth);
	snprintf(path, sizeof(path), "%s/partition", base);
	if (!ret && !access(path, F_OK)) {
		snprintf(path, sizeof(path), "%s/../dev", base);
		if (read_dev(path, &ma, &mi))
			ret = below(ma, mi, fn, arg, depth + 1);
	}
	return ret ? ret : behind_loop(base, fn, arg, depth);
}

int use_below(uint32_t major, uint32_t minor, use_fn *fn, void *arg)
{
	return below(major, minor, fn, arg, 0);
}

static int same_device(uint32_t major, uint32_t minor, void *arg)
{
	const uint32_t *other = arg;

	return major == other[0] && minor == other[1];
}

bool use_lies_on(uint32_t major, uint32_t minor, uint32_t on_major, uint32_t on_minor)
{
	uint32_t on[2] = { on_major, on_minor };

	return use_below(major, minor, same_device, on);
}

enum { READ, WRITTEN, DISCARDED, COUNTERS };

static int counters(uint32_t major, uint32_t minor, unsigned long long c[COUNTERS])
{
	cleanup_free char *text = NULL;
	char path[64];

	snprintf(path, sizeof(path), "/sys/dev/block/%u:%u/stat", major, minor);
	if (file_read(path, 8192, &text, NULL, NULL) ||
	    sscanf(text, "%*u %*u %llu %*u %*u %*u %llu %*u %*u %*u %*u %*u %*u %llu", &c[READ], &c[WRITTEN],
		   &c[DISCARDED]) != COUNTERS)
		return -ENODATA;
	return 0;
}

static bool sysfs_says(const char *attribute, uint32_t major, uint32_t minor)
{
	cleanup_free char *text = NULL;
	char path[80];

	snprintf(path, sizeof(path), "/sys/dev/block/%u:%u/%s", major, minor, attribute);
	return !file_read(path, 8192, &text, NULL, NULL) && *text == '1';
}

/*
 * Counting can be switched off. A partition counts if its disk does; dm counted whatever the
 * switch says before it minded it, and is believed if it has counted a read: udev's, or ours.
 */
static int counted(const char *device, uint32_t major, uint32_t minor, unsigned long long c[COUNTERS])
{
	cleanup_free void *buf = NULL;
	char name[DM_NAME_BYTES];
	cleanup_fd int fd = -1;
	int err = counters(major, minor, c);

	if (err || sysfs_says("queue/iostats", major, minor) || sysfs_says("../queue/iostats", major, minor))
		return err;
	if (dm_name_of(major, minor, name, sizeof(name)))
		return -ENODATA;
	if (!c[READ] && !posix_memalign(&buf, 4096, 4096)) {
		fd = open(device, O_RDONLY | O_DIRECT | O_CLOEXEC);
		if (fd >= 0 && pread(fd, buf, 4096, 0) > 0)
			err = counters(major, minor, c);
	}
	return c[READ] ? err : -ENODATA;
}

/* Sectors written and discarded since the device is there; USE_UNKNOWN: nobody counts them */
uint64_t use_written(const char *device, uint32_t major, uint32_t minor)
{
	unsigned long long c[COUNTERS];

	return counted(device, major, minor, c) ? USE_UNKNOWN : c[WRITTEN] + c[DISCARDED];
}
