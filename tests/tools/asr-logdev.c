// SPDX-License-Identifier: Apache-2.0
/*
 * asr-logdev - makes, shows and spoils write-intent logs, and says whether one holds.
 *
 *   asr-logdev format LOG GROUP DISK SECTORS [REGION_SECTORS [clear]]   all bits set, or clear
 *   asr-logdev dump LOG                   key=value, of the newest valid copy and the bitmap
 *   asr-logdev bits LOG                   the numbers of the regions set, one a line
 *   asr-logdev set LOG FIELD VALUE        in both copies, their checksums right again
 *   asr-logdev covers LOG BEFORE AFTER    does every 4 KiB block that differs lie in a set region?
 *
 * Design: written from the layout in uapi/dm-asr.h, not from the module. A bitmap
 * sector that does not hash counts as all set, as there.
 * Context: tests, on a block device (O_DIRECT: its page cache may be old) or a file.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <sys/random.h>
#include <sys/stat.h>
#include <xxhash.h>

#include "consume.h"

struct log {
	int fd;
	unsigned char *mem;		/* two superblocks and the bitmap */
	uint64_t bytes;
	struct asr_log_super *super;	/* the copy that counts */
};

static unsigned char *aligned(uint64_t bytes)
{
	void *p;

	if (posix_memalign(&p, 4096, bytes))
		die("memory");
	memset(p, 0, bytes);
	return p;
}

static int open_raw(const char *path, int flags)
{
	struct stat st;
	int fd;

	if (stat(path, &st) || (fd = open(path, flags | (S_ISBLK(st.st_mode) ? O_DIRECT : 0))) < 0)
		die("cannot open %s", path);
	return fd;
}

static uint64_t bitmap_bytes(uint64_t regions)
{
	uint64_t sectors = (regions + ASR_LOG_SECTOR_BITS - 1) / ASR_LOG_SECTOR_BITS;

	return (sectors * ASR_LOG_SECTOR + ASR_LOG_BLOCK - 1) / ASR_LOG_BLOCK * ASR_LOG_BLOCK;
}

static uint64_t checksum(const struct asr_log_super *s)
{
	return XXH64(s, offsetof(struct asr_log_super, checksum), 0);
}

static void put(struct log *l)
{
	if (pwrite(l->fd, l->mem, l->bytes, 0) != (ssize_t)l->bytes || fsync(l->fd))
		die("cannot write the log");
}

static void format(char **argv, int argc)
{
	uint32_t region = argc > 4 ? strtoul(argv[4], NULL, 0) : 8192;
	uint64_t sectors = strtoull(argv[3], NULL, 0), regions = (sectors + region - 1) / region;
	struct log l = { .fd = open_raw(argv[0], O_RDWR) };
	struct asr_log_super *s;

	l.bytes = ASR_LOG_BITMAP_OFFSET + bitmap_bytes(regions);
	l.mem = aligned(l.bytes);
	s = (void *)l.mem;
	*s = (struct asr_log_super){ .version = ASR_LOG_VERSION, .super_bytes = sizeof(*s), .sectors = sectors,
		.regions = regions, .region_sectors = region, .bitmap_offset = ASR_LOG_BITMAP_OFFSET, .write_no = 1 };
	memcpy(s->magic, ASR_LOG_MAGIC, 8);
	set_name(s->group, argv[1]);
	set_name(s->disk, argv[2]);
	if (getrandom(s->uuid, sizeof(s->uuid), 0) != sizeof(s->uuid))
		die("getrandom");
	s->checksum = checksum(s);
	memcpy(l.mem + ASR_LOG_BLOCK, s, sizeof(*s));
	for (uint64_t n = 0; n < bitmap_bytes(regions) / ASR_LOG_SECTOR; n++) {
		unsigned char *at = l.mem + ASR_LOG_BITMAP_OFFSET + n * ASR_LOG_SECTOR;
		uint64_t h;

		memset(at, argc > 5 ? 0 : 0xff, ASR_LOG_SECTOR_BITS / 8);
		h = XXH64(at, ASR_LOG_SECTOR_BITS / 8, n);
		memcpy(at + ASR_LOG_SECTOR_BITS / 8, &h, 8);
	}
	put(&l);
}

static struct log load(const char *path, int flags)
{
	struct log l = { .fd = open_raw(path, flags) };
	unsigned char *head = aligned(ASR_LOG_BITMAP_OFFSET);

	if (pread(l.fd, head, ASR_LOG_BITMAP_OFFSET, 0) != ASR_LOG_BITMAP_OFFSET)
		die("cannot read %s", path);
	for (int i = 0; i < 2; i++) {
		struct asr_log_super *s = (void *)(head + i * ASR_LOG_BLOCK);

		if (memcmp(s->magic, ASR_LOG_MAGIC, 8) || s->checksum != checksum(s))
			continue;
		if (!l.super || s->write_no > l.super->write_no)
			l.super = s;
	}
	if (!l.super)
		die("%s: no valid superblock", path);
	l.bytes = ASR_LOG_BITMAP_OFFSET + bitmap_bytes(l.super->regions);
	l.mem = aligned(l.bytes);
	if (pread(l.fd, l.mem, l.bytes, 0) != (ssize_t)l.bytes)
		die("%s: too short", path);
	l.super = (void *)(l.mem + ((unsigned char *)l.super - head));
	free(head);
	return l;
}

static bool is_set(const struct log *l, uint64_t region)
{
	uint64_t n = region / ASR_LOG_SECTOR_BITS, bit = region % ASR_LOG_SECTOR_BITS, h;
	const unsigned char *at = l->mem + ASR_LOG_BITMAP_OFFSET + n * ASR_LOG_SECTOR;

	memcpy(&h, at + ASR_LOG_SECTOR_BITS / 8, 8);
	return h != XXH64(at, ASR_LOG_SECTOR_BITS / 8, n) || at[bit / 8] >> bit % 8 & 1;
}

static uint64_t count(const struct log *l)
{
	uint64_t n = 0;

	for (uint64_t r = 0; r < l->super->regions; r++)
		n += is_set(l, r);
	return n;
}

static void dump(const char *path)
{
	struct log l = load(path, O_RDONLY);
	const struct asr_log_super *s = l.super;

#define P(f) printf(#f "=%llu\n", (unsigned long long)s->f)
	printf("group=%s\ndisk=%s\n", s->group, s->disk);
	P(version); P(sectors); P(regions); P(region_sectors); P(flags); P(write_no); P(generation);
	P(durable_seq); P(seq_high);
	printf("set=%llu\n", (unsigned long long)count(&l));
}

static void set(char **argv)
{
	struct log l = load(argv[0], O_RDWR);
	uint64_t v = strtoull(argv[2], NULL, 0);
	struct asr_log_super s = *l.super;

	if (!strcmp(argv[1], "version"))
		s.version = v;
	else if (!strcmp(argv[1], "flags"))
		s.flags = v;
	else if (!strcmp(argv[1], "region_sectors"))
		s.region_sectors = v;
	else if (!strcmp(argv[1], "sectors"))
		s.sectors = v;
	else if (!strcmp(argv[1], "write_no"))
		s.write_no = v;
	else if (!strcmp(argv[1], "seq_high"))
		s.seq_high = v;
	else if (!strcmp(argv[1], "group"))
		set_name(s.group, argv[2]);
	else if (!strcmp(argv[1], "disk"))
		set_name(s.disk, argv[2]);
	else
		die("unknown field %s", argv[1]);
	s.checksum = checksum(&s);
	memcpy(l.mem, &s, sizeof(s));
	memcpy(l.mem + ASR_LOG_BLOCK, &s, sizeof(s));
	put(&l);
}

/* Exit status 1 when a block differs outside of the regions set. */
static int covers(char **argv)
{
	struct log l = load(argv[0], O_RDONLY);
	uint64_t region = l.super->region_sectors * 512ULL, differ = 0, bad = 0;
	unsigned char *a = aligned(1 << 20), *b = aligned(1 << 20);
	int before = open_raw(argv[1], O_RDONLY), after = open_raw(argv[2], O_RDONLY);

	for (uint64_t at = 0; at < l.super->sectors * 512; at += 1 << 20) {
		ssize_t n = pread(before, a, 1 << 20, at), m = pread(after, b, 1 << 20, at);

		if (n < 0 || n != m)
			die("cannot read at %llu", (unsigned long long)at);
		for (ssize_t i = 0; i < n; i += 4096) {
			if (!memcmp(a + i, b + i, 4096))
				continue;
			differ++;
			if (!is_set(&l, (at + i) / region) && bad++ < 5)
				printf("block at %llu differs, its region is clear\n", (unsigned long long)at + i);
		}
	}
	printf("%s: %llu blocks differ, %llu in clear regions; %llu of %llu regions set\n", bad ? "LOST" : "covered",
	       (unsigned long long)differ, (unsigned long long)bad, (unsigned long long)count(&l),
	       (unsigned long long)l.super->regions);
	return bad != 0;
}

int main(int argc, char **argv)
{
	const char *cmd = argc > 2 ? argv[1] : "";

	if (!strcmp(cmd, "format") && argc >= 6) {
		format(argv + 2, argc - 2);
	} else if (!strcmp(cmd, "dump")) {
		dump(argv[2]);
	} else if (!strcmp(cmd, "bits")) {
		struct log l = load(argv[2], O_RDONLY);

		for (uint64_t r = 0; r < l.super->regions; r++)
			if (is_set(&l, r))
				printf("%llu\n", (unsigned long long)r);
	} else if (!strcmp(cmd, "set") && argc == 5) {
		set(argv + 2);
	} else if (!strcmp(cmd, "covers") && argc == 5) {
		return covers(argv + 2);
	} else {
		fprintf(stderr, "usage: see the head of asr-logdev.c\n");
		return 2;
	}
	return 0;
}
