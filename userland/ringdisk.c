// SPDX-License-Identifier: Apache-2.0
/*
 * For benchmarks and tests: the disk of a ring file, and its dirty map, without a kernel.
 *
 * Design. The disk is a file, in slot 0, under the name that asr-ringgen gives it. Its
 * dirty map is FILE.dirty, a byte for each chunk, shared, so that it outlives asrd as
 * the kernel's does; made with every chunk dirty. What the calls do is what
 * dm-asr/dirty.c does.
 *
 * Context. The loop's thread. Not for a disk that matters.
 */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "source.h"

#define NAME	"bench"
#define DIRTY	1
#define TAKEN	2

struct ringdisk {
	char *file;
	uint8_t *map;
	uint64_t sectors, chunks, marked;
};

static void dirty_return(struct ringdisk *d)
{
	d->marked = 0;
	for (uint64_t i = 0; i < d->chunks; i++) {
		d->map[i] = d->map[i] ? DIRTY : 0;
		d->marked += d->map[i] != 0;
	}
}

int ringdisk_open(const char *file, struct ringdisk **out, struct why *why)
{
	struct ringdisk *d = calloc(1, sizeof(*d));
	cleanup_free char *map = NULL;
	cleanup_fd int fd = -1;
	struct stat st, have;
	void *p;

	if (!d || !(d->file = strdup(file)) || asprintf(&map, "%s.dirty", file) < 0 || stat(file, &st)) {
		ringdisk_close(d);
		return why_set(why, errno, "cannot open the disk file %s: %s", file, strerror(errno));
	}
	d->sectors = (uint64_t)st.st_size / 512;
	d->chunks = (d->sectors + ASR_CHUNK_SECTORS - 1) / ASR_CHUNK_SECTORS;
	fd = open(map, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	if (fd < 0 || fstat(fd, &have) || ftruncate(fd, (off_t)d->chunks)) {
		ringdisk_close(d);
		return why_set(why, errno, "cannot make %s: %s", map, strerror(errno));
	}
	p = mmap(NULL, d->chunks + 1, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (p == MAP_FAILED) {
		ringdisk_close(d);
		return why_set(why, errno, "cannot map %s: %s", map, strerror(errno));
	}
	d->map = p;
	if (have.st_size != (off_t)d->chunks)
		memset(d->map, DIRTY, d->chunks);
	dirty_return(d);
	*out = d;
	return 0;
}

void ringdisk_close(struct ringdisk *d)
{
	if (!d)
		return;
	if (d->map)
		munmap(d->map, d->chunks + 1);
	free(d->file);
	free(d);
}

const char *ringdisk_file(const struct ringdisk *d)
{
	return d->file;
}

static int fetch(struct ringdisk *d, struct asr_dirty *a)
{
	uint64_t n = 0;

	for (; a->chunk < d->chunks && !(d->map[a->chunk] & DIRTY); a->chunk++)
		;
	if (a->chunk >= d->chunks)
		return -ENODATA;
	for (; n < a->count && a->chunk + n < d->chunks && d->map[a->chunk + n] & DIRTY; n++)
		d->map[a->chunk + n] = TAKEN;
	a->count = n;
	return 0;
}

static int change(struct ringdisk *d, const struct asr_dirty *a, uint8_t set, uint8_t clear)
{
	if (a->chunk > d->chunks || a->count > d->chunks - a->chunk)
		return -EINVAL;
	for (uint64_t i = a->chunk; i < a->chunk + a->count; i++) {
		uint8_t now = (uint8_t)((d->map[i] | set) & ~clear);

		d->marked += (now != 0) - (d->map[i] != 0);
		d->map[i] = now;
	}
	return 0;
}

static int info(const struct ringdisk *d, struct asr_disk_info *i)
{
	if (i->slot)
		return -ENOENT;
	i->active = 1;
	i->sectors = d->sectors;
	i->dirty_chunks = d->marked;
	snprintf(i->name, sizeof(i->name), NAME);
	return 0;
}

int ringdisk_ioctl(struct ringdisk *d, unsigned long request, void *arg)
{
	const struct asr_dirty *a = arg;

	switch (request) {
	case ASR_IOC_GROUP_INFO: {
		struct asr_group_info *i = arg;

		i->disks = 1;
		i->dirty_chunks = d->marked;
		return 0;
	}
	case ASR_IOC_DISK_INFO:
		return info(d, arg);
	case ASR_IOC_DIRTY_FETCH:
		return a->slot ? -ENOENT : fetch(d, arg);
	case ASR_IOC_DIRTY_ACK:
		return a->slot ? -ENOENT : change(d, a, 0, TAKEN);
	case ASR_IOC_DIRTY_SET:
		return a->slot ? -ENOENT : change(d, a, DIRTY, 0);
	case ASR_IOC_DIRTY_RETURN:
		dirty_return(d);
		return 0;
	}
	return -EOPNOTSUPP;
}
