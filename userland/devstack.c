// SPDX-License-Identifier: Apache-2.0
/*
 * What a file system lies on: the devices below it, layer by layer.
 *
 * Design. sysfs knows: a device-mapper or md device lists its slaves, a
 * partition lies in its disk's folder, a loop device names its file, whose file
 * system is looked at in turn. A file system without a device number of its own
 * (btrfs) is found by the source of its mount.
 *
 * Context: blocks on sysfs and /proc.
 *
 * Not done. Devices on the other side of a network; overlays; all but the first
 * device of a btrfs on several.
 */
#include <dirent.h>
#include <errno.h>
#include <limits.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include "source.h"

#define DEPTH	16

struct search {
	bool (*match)(dev_t dev, void *arg);
	void *arg;
};

static int look_path(const struct search *s, const char *path, int depth);

static bool read_line(const char *path, char *out, size_t bytes)
{
	cleanup_file FILE *f = fopen(path, "re");

	if (!f || !fgets(out, (int)bytes, f))
		return false;
	out[strcspn(out, "\n")] = 0;
	return true;
}

static bool read_dev(const char *path, dev_t *dev)
{
	unsigned int ma, mi;
	char line[64];

	if (!read_line(path, line, sizeof(line)) || sscanf(line, "%u:%u", &ma, &mi) != 2)
		return false;
	*dev = makedev(ma, mi);
	return true;
}

static int look_dev(const struct search *s, dev_t dev, int depth)
{
	char base[64], path[PATH_MAX], line[PATH_MAX];
	struct dirent *e;
	int found = 0;
	dev_t below;
	DIR *dir;

	if (depth > DEPTH)
		return 0;
	if (s->match(dev, s->arg))
		return 1;
	snprintf(base, sizeof(base), "/sys/dev/block/%u:%u", major(dev), minor(dev));
	snprintf(path, sizeof(path), "%s/slaves", base);
	dir = opendir(path);
	while (dir && !found && (e = readdir(dir))) {
		snprintf(path, sizeof(path), "%s/slaves/%s/dev", base, e->d_name);
		if (e->d_name[0] != '.' && read_dev(path, &below))
			found = look_dev(s, below, depth + 1);
	}
	if (dir)
		closedir(dir);
	snprintf(path, sizeof(path), "%s/partition", base);
	if (!found && read_line(path, line, sizeof(line))) {
		snprintf(path, sizeof(path), "%s/../dev", base);
		if (read_dev(path, &below))
			found = look_dev(s, below, depth + 1);
	}
	snprintf(path, sizeof(path), "%s/loop/backing_file", base);
	if (!found && read_line(path, line, sizeof(line)))
		found = look_path(s, line, depth + 1);
	return found;
}

/* The device that the mount table names as the source of a file system */
static bool mount_source(dev_t dev, dev_t *out)
{
	cleanup_file FILE *f = fopen("/proc/self/mountinfo", "re");
	char line[2 * PATH_MAX], source[PATH_MAX];
	unsigned int ma, mi;
	struct stat st;

	while (f && fgets(line, sizeof(line), f)) {
		const char *dash = strstr(line, " - ");

		if (sscanf(line, "%*u %*u %u:%u", &ma, &mi) != 2 || makedev(ma, mi) != dev || !dash ||
		    sscanf(dash, " - %*s %4095s", source) != 1 || stat(source, &st) || !S_ISBLK(st.st_mode))
			continue;
		*out = st.st_rdev;
		return true;
	}
	return false;
}

static int look_path(const struct search *s, const char *path, int depth)
{
	struct stat st;
	dev_t dev;

	if (stat(path, &st))
		return 0;
	dev = S_ISBLK(st.st_mode) ? st.st_rdev : st.st_dev;
	if (!major(dev) && !mount_source(dev, &dev))
		return 0;
	return look_dev(s, dev, depth);
}

int devstack_find(const char *path, bool (*match)(dev_t dev, void *arg), void *arg)
{
	return look_path(&(struct search){ match, arg }, path, 0);
}
