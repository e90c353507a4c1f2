// SPDX-License-Identifier: Apache-2.0
/*
 * The devices below the disks of a group: opened to be read, past every cache.
 *
 * Design. The kernel says which device lies below a slot; it is opened by its
 * number, and anew when a table was reloaded onto another. The asr device itself
 * is never touched.
 *
 * Slots are used again, and the vault takes a SYNC record for the disk that has
 * the slot there. So a disk is not read before its DISK record was consumed.
 *
 * Context. The loop's thread; opening blocks.
 */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include "source.h"

static int open_block(dev_t dev)
{
	char path[64];
	int fd;

	snprintf(path, sizeof(path), "/dev/block/%u:%u", major(dev), minor(dev));
	fd = open(path, O_RDONLY | O_DIRECT | O_CLOEXEC);
	if (fd >= 0 || errno != ENOENT)
		return fd < 0 ? -errno : fd;
	/* no udev: a node of our own, in /dev because /run is usually mounted nodev */
	snprintf(path, sizeof(path), "/dev/.asr-lower-%u:%u-%d", major(dev), minor(dev), (int)getpid());
	if (mknod(path, S_IFBLK | 0600, dev))
		return -errno;
	fd = open(path, O_RDONLY | O_DIRECT | O_CLOEXEC);
	if (fd < 0)
		fd = -errno;
	unlink(path);
	return fd;
}

static void close_one(struct lower *w)
{
	if (w->fd >= 0)
		close(w->fd);
	w->fd = -1;
}

void lower_init(struct lowers *l, struct source *source)
{
	memset(l, 0, sizeof(*l));
	l->source = source;
	for (int i = 0; i < ASR_DISKS_MAX; i++)
		l->disk[i].fd = -1;
}

int lower_open(struct lowers *l, uint32_t slot)
{
	struct lower *w = &l->disk[slot];
	struct asr_disk_info info = { .slot = slot };
	int ret = source_ioctl(l->source, ASR_IOC_DISK_INFO, &info);
	dev_t dev = makedev(info.lower_major, info.lower_minor);

	if (ret)
		return ret;
	if (!info.active)
		return -ENODEV;
	if (w->fd >= 0 && w->dev != dev)
		close_one(w);
	/* first seen now, or with another size: its record stands somewhere before the head */
	if (strncmp(w->name, info.name, sizeof(info.name)) || w->sectors != info.sectors) {
		memcpy(w->name, info.name, sizeof(info.name));
		w->sectors = info.sectors;
		w->pos = source_head(l->source);
	}
	if (source_pos(l->source) < w->pos)
		return -EAGAIN;
	w->dev = dev;
	w->start = info.start_sector;
	if (w->fd < 0) {
		const char *file = source_disk_file(l->source, slot);

		ret = file ? open(file, O_RDONLY | O_DIRECT | O_CLOEXEC) : open_block(dev);
		ret = file && ret < 0 ? -errno : ret;
	}
	if (ret >= 0 && w->fd < 0)
		w->fd = ret;
	return ret < 0 ? ret : 0;
}

void lower_close(struct lowers *l)
{
	for (int i = 0; i < ASR_DISKS_MAX; i++)
		close_one(&l->disk[i]);
}

bool lower_is_gone(struct lowers *l, uint32_t slot)
{
	struct asr_disk_info info = { .slot = slot };

	return l->disk[slot].fd >= 0 && (source_ioctl(l->source, ASR_IOC_DISK_INFO, &info) || !info.active);
}

void lower_let_go(struct lowers *l, uint32_t slot)
{
	close_one(&l->disk[slot]);
}

void lower_forget(struct lowers *l)
{
	for (int i = 0; i < ASR_DISKS_MAX; i++)
		l->disk[i].name[0] = 0;
}
