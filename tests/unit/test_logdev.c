// SPDX-License-Identifier: Apache-2.0
/* A write-intent log is made whole, read back, survives a torn superblock, and is never taken for another disk's. */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>
#include <xxhash.h>

#include "asr.h"

#define DISK	(300ull << 11)		/* sectors: 300 MiB, 4800 regions: two bitmap sectors */

struct file {
	int fd;
	uint64_t bytes;
	struct logdev l;
	struct why why;
};

static struct file *make(uint64_t bytes)
{
	static char path[] = "/tmp/test_logdev.XXXXXX";
	struct file *f = calloc(1, sizeof(*f));
	int fd;

	strcpy(path + strlen(path) - 6, "XXXXXX");
	fd = mkstemp(path);
	assert_true(fd >= 0);
	assert_int_equal(ftruncate(fd, (off_t)bytes), 0);
	close(fd);
	assert_int_equal(logdev_open(path, true, &f->fd, &f->bytes, &f->why), 0);
	unlink(path);
	assert_int_equal(f->bytes, bytes);
	f->l = (struct logdev){ .sectors = DISK, .region_sectors = logdev_region_sectors(DISK), .seq_high = 77 };
	strcpy(f->l.group, "g");
	strcpy(f->l.disk, "root");
	return f;
}

static struct file *made(void)
{
	struct file *f = make(1 << 20);

	assert_int_equal(logdev_format(f->fd, f->bytes, &f->l, &f->why), 0);
	return f;
}

static void done(struct file *f)
{
	close(f->fd);
	free(f);
}

/* through the page cache: tests poke single bytes */
static void poke(struct file *f, uint64_t at, uint8_t flip)
{
	char path[64];
	uint8_t b;
	int fd;

	snprintf(path, sizeof(path), "/proc/self/fd/%d", f->fd);
	fd = open(path, O_RDWR);
	assert_true(fd >= 0);
	assert_int_equal(pread(fd, &b, 1, (off_t)at), 1);
	b ^= flip;
	assert_int_equal(pwrite(fd, &b, 1, (off_t)at), 1);
	assert_int_equal(fsync(fd), 0);
	close(fd);
}

static void sizes(void **state)
{
	/* 64 KiB at least, 4 MiB at most, 16384 regions in between */
	assert_int_equal(logdev_region_sectors(1), 128);
	assert_int_equal(logdev_region_sectors(1ull << 21), 128);
	assert_int_equal(logdev_region_sectors(16ull << 21), 2048);
	assert_int_equal(logdev_region_sectors(64ull << 21), 8192);
	assert_int_equal(logdev_region_sectors(128ull << 31), 8192);
	assert_int_equal(logdev_bytes(1, 128), 8192 + 4096);
	assert_int_equal(logdev_bytes(128ull * 4032 * 8, 128), 8192 + 4096);
	assert_int_equal(logdev_bytes(128ull * 4032 * 8 + 1, 128), 8192 + 8192);
	/* what the man page says: 1 MiB serves 31 TiB at 4 MiB regions */
	assert_true(logdev_bytes(31ull << 31, 8192) <= 1 << 20);
	assert_true(logdev_bytes(32ull << 31, 8192) > 1 << 20);
}

static void fresh(void **state)
{
	struct file *f = made();
	struct logdev l;
	uint64_t set, broken;

	assert_int_equal(logdev_read(f->fd, f->bytes, &l, &f->why), 0);
	assert_memory_equal(l.uuid, f->l.uuid, 16);
	assert_string_equal(l.group, "g");
	assert_string_equal(l.disk, "root");
	assert_int_equal(l.regions, 4800);
	assert_int_equal(l.flags, 0);
	assert_int_equal(l.generation, 0);
	assert_int_equal(l.seq_high, 77);
	assert_int_equal(l.copies, 2);
	assert_int_equal(l.write_no, 2);
	assert_int_equal(logdev_count(f->fd, &l, &set, &broken, &f->why), 0);
	assert_int_equal(set, 4800);
	assert_int_equal(broken, 0);
	done(f);
}

static void torn(void **state)
{
	struct file *f = made();
	struct logdev l;
	uint64_t set, broken;

	poke(f, 200, 1);		/* in copy 0, the newer */
	assert_int_equal(logdev_read(f->fd, f->bytes, &l, &f->why), 0);
	assert_int_equal(l.write_no, 1);
	assert_int_equal(l.copies, 1);
	poke(f, ASR_LOG_BLOCK + 100, 1);
	assert_int_equal(logdev_read(f->fd, f->bytes, &l, &f->why), -EBADMSG);
	assert_non_null(strstr(f->why.text, "checksum"));
	poke(f, 200, 1);
	assert_int_equal(logdev_read(f->fd, f->bytes, &l, &f->why), 0);
	assert_int_equal(l.write_no, 2);
	/* a damaged bitmap sector counts as all set, a clear bit does not */
	poke(f, ASR_LOG_BITMAP_OFFSET, 1);
	assert_int_equal(logdev_count(f->fd, &l, &set, &broken, &f->why), 0);
	assert_int_equal(set, 4800);
	assert_int_equal(broken, 1);
	done(f);
}

static void bits(void **state)
{
	uint8_t s[ASR_LOG_SECTOR] = { 0x81, 0x03 };
	uint64_t hash = XXH64(s, 504, 5);

	memcpy(s + 504, &hash, 8);
	assert_int_equal(logdev_bits(s, 5, 4032), 4);
	assert_int_equal(logdev_bits(s, 5, 9), 3);
	assert_int_equal(logdev_bits(s, 6, 4032), -EBADMSG);	/* a sector of another place */
}

static void judged(void **state)
{
	struct file *f = made();
	struct logdev_want w = { "g", "root", DISK, NULL, 0 }, bad;
	uint8_t other[16] = { 1 };
	struct why why;

	assert_int_equal(logdev_match(&f->l, &w, &why), 0);
	bad = w;
	bad.disk = "data";
	assert_int_equal(logdev_match(&f->l, &bad, &why), -EXDEV);
	assert_non_null(strstr(why.text, "that of disk root of group g"));
	bad = w;
	bad.group = "h";
	assert_int_equal(logdev_match(&f->l, &bad, &why), -EXDEV);
	bad = w;
	bad.uuid = other;
	assert_int_equal(logdev_match(&f->l, &bad, &why), -EXDEV);
	bad = w;
	bad.sectors++;
	assert_int_equal(logdev_match(&f->l, &bad, &why), -ERANGE);
	bad = w;
	bad.generation = 3;
	assert_int_equal(logdev_match(&f->l, &bad, &why), -ESTALE);
	f->l.generation = 4;
	assert_int_equal(logdev_match(&f->l, &bad, &why), 0);
	done(f);
}

static void refused(void **state)
{
	struct file *f = make(8192 + 4096);
	struct logdev l;

	assert_int_equal(logdev_read(f->fd, f->bytes, &l, &f->why), -ENODATA);
	f->l.sectors = 128ull * 4032 * 8 + 1;	/* one region more than there is room for */
	f->l.region_sectors = 128;
	assert_int_equal(logdev_format(f->fd, f->bytes, &f->l, &f->why), -ENOSPC);
	assert_int_equal(logdev_read(f->fd, f->bytes, &l, &f->why), -ENODATA);
	f->l.region_sectors = 100;
	assert_int_equal(logdev_format(f->fd, f->bytes, &f->l, &f->why), -EINVAL);
	f->l.region_sectors = 256;
	assert_int_equal(logdev_format(f->fd, f->bytes, &f->l, &f->why), 0);
	/* cut off after it was made */
	assert_int_equal(logdev_read(f->fd, 8192, &l, &f->why), -ENOSPC);
	poke(f, 8, 3);				/* version 1 becomes 2 */
	assert_int_equal(logdev_read(f->fd, f->bytes, &l, &f->why), -EPROTONOSUPPORT);
	assert_non_null(strstr(f->why.text, "newer version"));
	done(f);
}

static void distrusted(void **state)
{
	struct file *f = made();
	struct logdev l;

	assert_int_equal(logdev_distrust(f->fd, &f->l, &f->why), 0);
	assert_int_equal(logdev_read(f->fd, f->bytes, &l, &f->why), 0);
	assert_int_equal(l.flags, ASR_LOGF_BROKEN);
	assert_int_equal(l.copies, 2);
	assert_int_equal(l.write_no, 4);
	assert_memory_equal(l.uuid, f->l.uuid, 16);
	done(f);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(sizes), cmocka_unit_test(fresh), cmocka_unit_test(torn), cmocka_unit_test(bits),
		cmocka_unit_test(judged), cmocka_unit_test(refused), cmocka_unit_test(distrusted),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
