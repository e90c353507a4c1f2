// SPDX-License-Identifier: Apache-2.0
/*
 * A write-intent log as userland meets it: made, read, judged.
 *
 * Design. The layout stands in uapi/dm-asr.h. Userland makes a log, with every
 * bit set, and from then on only reads it: the module writes it. One exception
 * is logdev_distrust(), for a log that no kernel has open: its disk may have
 * been written by a way that nobody saw, so the log is told to prove nothing.
 *
 * Making it is ordered so that a crash leaves no log or a whole one: both
 * superblocks go first, the bitmap is written and flushed, then the superblocks.
 *
 * Invariants. Whatever is read is hostile: logdev_parse() and logdev_bits()
 * are pure, trust no length, and are fuzzed. A log is never taken for another
 * disk's: identity is compared before anything else is believed.
 *
 * Context. Blocks on the device, which is read past the page cache: the module
 * writes below it. Files on a file system without direct I/O are read through it.
 *
 * Not done. Changing the size of a log: it is made anew, and compared in full.
 */
#include "asr.h"

#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <xxhash.h>

#define PIECE		65536u		/* bytes of bitmap read or written at once */
#define REGION_TARGET	16384ull	/* regions that a small disk is cut into */
#define REGION_DEFAULT	8192u		/* sectors, 4 MiB: the most that is chosen by itself */
#define HASHED		(ASR_LOG_SECTOR - 8)

_Static_assert(HASHED * 8 == ASR_LOG_SECTOR_BITS, "a bitmap sector is bits and their hash");
_Static_assert(sizeof(struct asr_log_super) <= ASR_LOG_SECTOR, "a superblock is never torn by itself");

/* ------------------------------------------------------------------ sizes */

uint32_t logdev_region_sectors(uint64_t sectors)
{
	uint32_t region = ASR_LOG_REGION_MIN;

	while (region < REGION_DEFAULT && region < sectors / REGION_TARGET)
		region *= 2;
	return region;
}

static uint64_t regions_of(uint64_t sectors, uint32_t region_sectors)
{
	return sectors / region_sectors + !!(sectors % region_sectors);
}

uint64_t logdev_bytes(uint64_t sectors, uint32_t region_sectors)
{
	uint64_t n = regions_of(sectors, region_sectors);
	uint64_t bytes = (n + ASR_LOG_SECTOR_BITS - 1) / ASR_LOG_SECTOR_BITS * ASR_LOG_SECTOR;

	return ASR_LOG_BITMAP_OFFSET + (bytes + ASR_LOG_BLOCK - 1) / ASR_LOG_BLOCK * ASR_LOG_BLOCK;
}

/* ---------------------------------------------------------------- decoding */

static uint64_t super_sum(const struct asr_log_super *s)
{
	return XXH64(s, offsetof(struct asr_log_super, checksum), 0);
}

static bool name_ends(const char *name)
{
	return memchr(name, 0, ASR_NAME_BYTES) && !name_check("", name, NULL);
}

/* The numbers of a superblock whose checksum is right: do they fit together? */
static bool is_sound(const struct logdev *l, uint64_t bitmap_offset)
{
	return name_ends(l->group) && name_ends(l->disk) && l->sectors &&
	       l->region_sectors >= ASR_LOG_REGION_MIN && l->region_sectors <= ASR_LOG_REGION_MAX &&
	       !(l->region_sectors & (l->region_sectors - 1)) &&
	       l->regions == regions_of(l->sectors, l->region_sectors) && l->regions <= ASR_LOG_REGIONS_MAX &&
	       bitmap_offset == ASR_LOG_BITMAP_OFFSET;
}

enum super_kind { SUPER_NONE, SUPER_BROKEN, SUPER_NEWER, SUPER_GOOD };

static enum super_kind parse_one(const uint8_t *block, struct logdev *l)
{
	struct asr_log_super s;

	memcpy(&s, block, sizeof(s));
	*l = (struct logdev){ .version = le32toh(s.version) };
	if (memcmp(s.magic, ASR_LOG_MAGIC, sizeof(s.magic)))
		return SUPER_NONE;
	if (l->version > ASR_LOG_VERSION)
		return SUPER_NEWER;
	if (l->version != ASR_LOG_VERSION || le32toh(s.super_bytes) != sizeof(s) ||
	    le64toh(s.checksum) != super_sum(&s))
		return SUPER_BROKEN;
	memcpy(l->uuid, s.uuid, sizeof(l->uuid));
	memcpy(l->group, s.group, sizeof(l->group));
	memcpy(l->disk, s.disk, sizeof(l->disk));
	l->sectors = le64toh(s.sectors);
	l->regions = le64toh(s.regions);
	l->region_sectors = le32toh(s.region_sectors);
	l->flags = le32toh(s.flags);
	l->write_no = le64toh(s.write_no);
	l->generation = le64toh(s.generation);
	l->durable_seq = le64toh(s.durable_seq);
	l->seq_high = le64toh(s.seq_high);
	return is_sound(l, le64toh(s.bitmap_offset)) ? SUPER_GOOD : SUPER_BROKEN;
}

int logdev_parse(const uint8_t *data, size_t bytes, struct logdev *l, struct why *why)
{
	enum super_kind kind[2];
	struct logdev copy[2];

	if (bytes < 2 * ASR_LOG_BLOCK)
		return why_set(why, ENOSPC, "%zu bytes are too few for a write-intent log", bytes);
	for (int i = 0; i < 2; i++)
		kind[i] = parse_one(data + i * ASR_LOG_BLOCK, &copy[i]);
	for (int i = 0; i < 2; i++)
		if (kind[i] == SUPER_NEWER)
			return why_set(why, EPROTONOSUPPORT, "the log was made by a newer version of dm-asr (format "
				       "%u; this one knows %u)", copy[i].version, ASR_LOG_VERSION);
	if (kind[0] == SUPER_NONE && kind[1] == SUPER_NONE)
		return why_set(why, ENODATA, "there is no write-intent log on it");
	if (kind[0] != SUPER_GOOD && kind[1] != SUPER_GOOD)
		return why_set(why, EBADMSG, "the log's superblock is damaged: no copy has a right checksum");
	*l = copy[kind[0] != SUPER_GOOD || (kind[1] == SUPER_GOOD && copy[1].write_no > copy[0].write_no)];
	l->copies = (kind[0] == SUPER_GOOD) + (kind[1] == SUPER_GOOD);
	return 0;
}

/* Bits set among the first `bits` of one bitmap sector; -EBADMSG: its hash is wrong */
int logdev_bits(const uint8_t sector[ASR_LOG_SECTOR], uint64_t number, uint32_t bits)
{
	uint64_t hash;
	int set = 0;

	memcpy(&hash, sector + HASHED, sizeof(hash));
	if (le64toh(hash) != XXH64(sector, HASHED, number))
		return -EBADMSG;
	for (uint32_t i = 0; i < bits && i < ASR_LOG_SECTOR_BITS; i++)
		set += sector[i / 8] >> i % 8 & 1;
	return set;
}

/* -------------------------------------------------------------- the device */

static int size_of(int fd, uint64_t *bytes)
{
	struct stat st;

	if (fstat(fd, &st))
		return -errno;
	*bytes = (uint64_t)st.st_size;
	return S_ISBLK(st.st_mode) && ioctl(fd, BLKGETSIZE64, bytes) ? -errno : 0;
}

int logdev_open(const char *path, bool write, int *fd, uint64_t *bytes, struct why *why)
{
	int flags = (write ? O_RDWR : O_RDONLY) | O_CLOEXEC, err;

	*fd = open(path, flags | O_DIRECT);
	if (*fd < 0 && errno == EINVAL)
		*fd = open(path, flags);	/* a file system without direct I/O */
	if (*fd < 0)
		return why_set(why, errno, "%s: %s", path, strerror(errno));
	err = size_of(*fd, bytes);
	if (!err)
		return 0;
	close(*fd);
	*fd = -1;
	return why_set(why, -err, "%s: its size cannot be read: %s", path, strerror(-err));
}

static void *buffer(void)
{
	return aligned_alloc(ASR_LOG_BLOCK, PIECE);
}

static int read_at(int fd, uint8_t *to, size_t bytes, uint64_t at)
{
	while (bytes) {
		ssize_t n = pread(fd, to, bytes, (off_t)at);

		if (n <= 0)
			return n ? -errno : -EIO;
		to += n;
		at += (uint64_t)n;
		bytes -= (size_t)n;
	}
	return 0;
}

static int write_at(int fd, const uint8_t *from, size_t bytes, uint64_t at)
{
	while (bytes) {
		ssize_t n = pwrite(fd, from, bytes, (off_t)at);

		if (n <= 0)
			return n ? -errno : -EIO;
		from += n;
		at += (uint64_t)n;
		bytes -= (size_t)n;
	}
	return 0;
}

int logdev_read(int fd, uint64_t bytes, struct logdev *l, struct why *why)
{
	cleanup_free uint8_t *buf = buffer();
	int err;

	if (!buf)
		return -ENOMEM;
	if (bytes < 2 * ASR_LOG_BLOCK)
		return why_set(why, ENODATA, "there is no write-intent log on it");
	err = read_at(fd, buf, 2 * ASR_LOG_BLOCK, 0);
	if (err)
		return why_set(why, -err, "cannot read it: %s", strerror(-err));
	err = logdev_parse(buf, 2 * ASR_LOG_BLOCK, l, why);
	if (!err && logdev_bytes(l->sectors, l->region_sectors) > bytes)
		err = why_set(why, ENOSPC, "it has %llu bytes, the log on it needs %llu", (unsigned long long)bytes,
			      (unsigned long long)logdev_bytes(l->sectors, l->region_sectors));
	return err;
}

int logdev_count(int fd, const struct logdev *l, uint64_t *set, uint64_t *broken, struct why *why)
{
	uint64_t number = 0, left = l->regions, end = logdev_bytes(l->sectors, l->region_sectors);
	cleanup_free uint8_t *buf = buffer();

	*set = *broken = 0;
	if (!buf)
		return -ENOMEM;
	for (uint64_t at = ASR_LOG_BITMAP_OFFSET; at < end; at += PIECE) {
		size_t n = end - at < PIECE ? (size_t)(end - at) : PIECE;
		int err = read_at(fd, buf, n, at);

		if (err)
			return why_set(why, -err, "cannot read the bitmap: %s", strerror(-err));
		for (size_t i = 0; i < n && left; i += ASR_LOG_SECTOR, number++) {
			uint32_t bits = left < ASR_LOG_SECTOR_BITS ? (uint32_t)left : ASR_LOG_SECTOR_BITS;
			int here = logdev_bits(buf + i, number, bits);

			*set += here < 0 ? bits : (uint64_t)here;	/* damaged: all of it counts */
			*broken += here < 0;
			left -= bits;
		}
	}
	return 0;
}

static int write_super(int fd, uint8_t *buf, const struct logdev *l)
{
	struct asr_log_super s = {
		.version = htole32(ASR_LOG_VERSION), .super_bytes = htole32(sizeof(s)),
		.sectors = htole64(l->sectors), .regions = htole64(l->regions),
		.region_sectors = htole32(l->region_sectors), .flags = htole32(l->flags),
		.bitmap_offset = htole64(ASR_LOG_BITMAP_OFFSET), .write_no = htole64(l->write_no),
		.generation = htole64(l->generation), .durable_seq = htole64(l->durable_seq),
		.seq_high = htole64(l->seq_high),
	};
	int err;

	memcpy(s.magic, ASR_LOG_MAGIC, sizeof(s.magic));
	memcpy(s.uuid, l->uuid, sizeof(s.uuid));
	memcpy(s.group, l->group, sizeof(s.group));
	memcpy(s.disk, l->disk, sizeof(s.disk));
	s.checksum = htole64(super_sum(&s));
	memset(buf, 0, ASR_LOG_BLOCK);
	memcpy(buf, &s, sizeof(s));
	err = write_at(fd, buf, ASR_LOG_BLOCK, (l->write_no & 1) * ASR_LOG_BLOCK);
	return !err && fsync(fd) ? -errno : err;
}

static int write_bitmap(int fd, uint8_t *buf, uint64_t end)
{
	uint64_t number = 0;
	int err = 0;

	for (uint64_t at = ASR_LOG_BITMAP_OFFSET; at < end && !err; at += PIECE) {
		size_t n = end - at < PIECE ? (size_t)(end - at) : PIECE;

		memset(buf, 0xff, n);
		for (size_t i = 0; i < n; i += ASR_LOG_SECTOR) {
			uint64_t hash = htole64(XXH64(buf + i, HASHED, number++));

			memcpy(buf + i + HASHED, &hash, sizeof(hash));
		}
		err = write_at(fd, buf, n, at);
	}
	return !err && fsync(fd) ? -errno : err;
}

int logdev_format(int fd, uint64_t bytes, struct logdev *l, struct why *why)
{
	static const uint8_t none[sizeof(l->uuid)];
	uint64_t need = logdev_bytes(l->sectors, l->region_sectors);
	cleanup_free uint8_t *buf = buffer();
	int err;

	if (!buf)
		return -ENOMEM;
	l->regions = regions_of(l->sectors, l->region_sectors);
	l->version = ASR_LOG_VERSION;
	l->copies = 2;
	if (!is_sound(l, ASR_LOG_BITMAP_OFFSET))
		return why_set(why, EINVAL, "no log can be made for a disk of %llu sectors in regions of %u",
			       (unsigned long long)l->sectors, l->region_sectors);
	if (need > bytes)
		return why_set(why, ENOSPC, "it has %llu bytes; a disk of %llu MiB in regions of %u KiB needs a log of "
			       "%llu bytes", (unsigned long long)bytes, (unsigned long long)l->sectors >> 11,
			       l->region_sectors / 2, (unsigned long long)need);
	err = !memcmp(l->uuid, none, sizeof(none)) ? seal_random(l->uuid, sizeof(l->uuid)) : 0;
	memset(buf, 0, 2 * ASR_LOG_BLOCK);
	if (!err)
		err = write_at(fd, buf, 2 * ASR_LOG_BLOCK, 0);
	if (!err && fsync(fd))
		err = -errno;
	if (!err)
		err = write_bitmap(fd, buf, need);
	for (l->write_no = 1; !err; l->write_no++) {
		err = write_super(fd, buf, l);
		if (l->write_no == 2)
			break;
	}
	return err ? why_set(why, -err, "cannot write it: %s", strerror(-err)) : 0;
}

int logdev_distrust(int fd, struct logdev *l, struct why *why)
{
	cleanup_free uint8_t *buf = buffer();
	int err = buf ? 0 : -ENOMEM;

	l->flags |= ASR_LOGF_BROKEN;
	for (int copy = 0; copy < 2 && !err; copy++) {
		l->write_no++;
		err = write_super(fd, buf, l);
	}
	return err ? why_set(why, -err, "cannot write it: %s", strerror(-err)) : 0;
}

/* ---------------------------------------------------------------- judging */

int logdev_match(const struct logdev *l, const struct logdev_want *w, struct why *why)
{
	if (strcmp(l->group, w->group) || strcmp(l->disk, w->disk))
		return why_set(why, EXDEV, "the log is that of disk %s of group %s, not of disk %s of group %s",
			       l->disk, l->group, w->disk, w->group);
	if (w->uuid && memcmp(l->uuid, w->uuid, sizeof(l->uuid)))
		return why_set(why, EXDEV, "the log is another one than disk %s of group %s had", w->disk, w->group);
	if (l->sectors != w->sectors)
		return why_set(why, ERANGE, "the log is for a disk of %llu sectors, and disk %s of group %s has %llu: "
			       "it was changed while dm-asr was away", (unsigned long long)l->sectors, w->disk,
			       w->group, (unsigned long long)w->sectors);
	if (l->generation < w->generation)
		return why_set(why, ESTALE, "the log is older than the one seen last (generation %llu, seen %llu): it "
			       "was restored from somewhere, and knows nothing of what was written since",
			       (unsigned long long)l->generation, (unsigned long long)w->generation);
	return 0;
}
