// SPDX-License-Identifier: Apache-2.0
/*
 * asr-fsx - random operations on one file, each read checked against a model in memory.
 *
 *   asr-fsx [OPTION...] FILE
 *       --ops N      operations (2000)      --size BYTES  the file's greatest size (1 MiB)
 *       --seed N     (1)                    --jobs N      so many files FILE.0 ..., a process each (1)
 *
 * Design: buffered, direct and mapped writes and reads, truncation both ways, fallocate in
 * all its modes, copy_file_range, fsync, and dropping the page cache, so that what is read
 * comes from the block device. What a file system does not do (EOPNOTSUPP) is left out and
 * counted. A difference prints the operation, the offset, and both bytes, and ends with 1.
 * Invariants: a file has the size of the model after each operation.
 * Context: tests, in a guest; one thread a file.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define BLOCK	4096u

#define die(...) do { \
	fprintf(stderr, "asr-fsx: %s: operation %lu: ", path, done); \
	fprintf(stderr, __VA_ARGS__); \
	fprintf(stderr, " (errno: %s)\n", strerror(errno)); \
	exit(1); \
} while (0)

static unsigned long ops = 2000, done;
static uint64_t max_size = 1 << 20, state = 1;
static const char *path;
static int fd, direct;
static uint64_t size;
static uint8_t *model, *buf;	/* max_size bytes each, buf aligned */

static uint64_t rnd(uint64_t below)
{
	state ^= state << 13;
	state ^= state >> 7;
	state ^= state << 17;
	return below ? (state * 0x2545f4914f6cdd1dull >> 16) % below : 0;
}

/* An offset and a length within max_size, both multiples of unit, length not 0 */
static void place(uint32_t unit, uint64_t *at, uint64_t *n)
{
	uint64_t most = rnd(8) ? 65536 : max_size / 2;

	*at = rnd(max_size / unit) * unit;
	*n = (1 + rnd(most / unit)) * unit;
	if (*n > max_size - *at)
		*n = max_size - *at;
}

static void fill(uint64_t at, uint64_t n)
{
	uint8_t seed = (uint8_t)(1 + done % 255);

	for (uint64_t i = 0; i < n; i++)
		model[at + i] = (uint8_t)(seed + (i >> 9) + (i & 1));
	if (at + n > size)
		size = at + n;
}

static void grow_model(uint64_t to)
{
	if (to > size)
		memset(model + size, 0, to - size);
}

static void do_write(bool is_direct)
{
	uint64_t at, n;

	place(is_direct ? BLOCK : 1, &at, &n);
	grow_model(at);
	fill(at, n);
	memcpy(buf, model + at, n);
	if (pwrite(is_direct ? direct : fd, buf, n, (off_t)at) != (ssize_t)n)
		die("write of %llu at %llu", (unsigned long long)n, (unsigned long long)at);
}

static void check(const uint8_t *got, uint64_t at, uint64_t n, const char *how)
{
	for (uint64_t i = 0; i < n; i++)
		if (got[i] != model[at + i])
			die("%s: byte %llu of %llu is %02x, not %02x", how, (unsigned long long)(at + i),
			    (unsigned long long)size, got[i], model[at + i]);
}

static void do_read(bool is_direct)
{
	uint64_t at, n;
	ssize_t got;

	place(is_direct ? BLOCK : 1, &at, &n);
	if (at >= size)
		return;
	got = pread(is_direct ? direct : fd, buf, n, (off_t)at);
	if (n > size - at)
		n = size - at;
	if (got != (ssize_t)n)
		die("read of %llu at %llu: %lld", (unsigned long long)n, (unsigned long long)at, (long long)got);
	check(buf, at, n, is_direct ? "direct read" : "read");
}

static void do_map(bool write)
{
	uint64_t at, n;
	uint8_t *p;

	place(1, &at, &n);
	if (at >= size)
		return;
	if (n > size - at)
		n = size - at;
	p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (p == MAP_FAILED)
		die("mmap");
	check(p + at, at, n, "mapped read");
	if (write) {
		fill(at, n);
		memcpy(p + at, model + at, n);
		if (rnd(2) && msync(p, size, MS_SYNC))
			die("msync");
	}
	munmap(p, size);
}

static void do_truncate(void)
{
	uint64_t to = rnd(4) ? rnd(max_size) : size + rnd(max_size - size + 1);

	if (ftruncate(fd, (off_t)to))
		die("truncate to %llu", (unsigned long long)to);
	grow_model(to);
	size = to;
}

/* 1: done, 0: this file system does not do it */
static int falloc(int mode, uint64_t at, uint64_t n)
{
	if (!fallocate(fd, mode, (off_t)at, (off_t)n))
		return 1;
	if (errno != EOPNOTSUPP)
		die("fallocate mode %x of %llu at %llu", mode, (unsigned long long)n, (unsigned long long)at);
	return 0;
}

static void do_zero(int mode)
{
	uint64_t at, n, end;

	place(rnd(2) ? BLOCK : 1, &at, &n);
	if (!falloc(mode, at, n))
		return;
	end = at + n;
	if (mode & FALLOC_FL_KEEP_SIZE && end > size)
		end = size;
	grow_model(end);
	if (end > at && mode & (FALLOC_FL_ZERO_RANGE | FALLOC_FL_PUNCH_HOLE))
		memset(model + at, 0, end - at);
	if (end > size)
		size = end;
}

static void do_shift(bool insert)
{
	uint64_t at, n;

	place(BLOCK, &at, &n);
	if (at + (insert ? 0 : n) >= size || (insert && size + n > max_size) ||
	    !falloc(insert ? FALLOC_FL_INSERT_RANGE : FALLOC_FL_COLLAPSE_RANGE, at, n))
		return;
	if (insert) {
		memmove(model + at + n, model + at, size - at);
		memset(model + at, 0, n);
		size += n;
	} else {
		memmove(model + at, model + at + n, size - at - n);
		size -= n;
	}
}

static void do_copy(void)
{
	uint64_t from, to, n, other;
	loff_t in, out;
	ssize_t got;

	place(1, &from, &n);
	place(1, &to, &other);
	if (n > other)
		n = other;
	if (from >= size || n > size - from || (from < to + n && to < from + n))
		return;
	for (uint64_t moved = 0; moved < n; moved += (uint64_t)got) {
		in = (loff_t)(from + moved);
		out = (loff_t)(to + moved);
		got = copy_file_range(fd, &in, fd, &out, n - moved, 0);
		if (got <= 0)
			die("copy_file_range");
	}
	grow_model(to);
	memmove(model + to, model + from, n);
	if (to + n > size)
		size = to + n;
}

/* What is read next comes from the device */
static void do_sync(bool drop)
{
	if (drop ? fsync(fd) : fdatasync(fd))
		die("fsync");
	if (drop && posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED))
		die("fadvise");
}

static void step(void)
{
	struct stat st;

	switch (rnd(20)) {
	case 0: case 1: case 2: do_write(false); break;
	case 3: case 4: do_write(true); break;
	case 5: case 6: do_read(false); break;
	case 7: do_read(true); break;
	case 8: case 9: do_map(true); break;
	case 10: do_map(false); break;
	case 11: do_truncate(); break;
	case 12: do_zero(FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE); break;
	case 13: do_zero(FALLOC_FL_ZERO_RANGE | (rnd(2) ? FALLOC_FL_KEEP_SIZE : 0)); break;
	case 14: do_zero(rnd(2) ? FALLOC_FL_KEEP_SIZE : 0); break;
	case 15: do_shift(false); break;
	case 16: do_shift(true); break;
	case 17: do_copy(); break;
	case 18: do_sync(false); break;
	case 19: do_sync(true); break;
	}
	if (fstat(fd, &st) || (uint64_t)st.st_size != size)
		die("the file has %lld bytes, not %llu", (long long)st.st_size, (unsigned long long)size);
}

static int one_file(void)
{
	ssize_t got;

	fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0644);
	direct = open(path, O_RDWR | O_DIRECT);
	model = calloc(1, max_size);
	if (fd < 0 || direct < 0 || !model || posix_memalign((void **)&buf, BLOCK, max_size))
		die("cannot begin");
	for (done = 1; done <= ops; done++)
		step();
	do_sync(true);
	got = pread(fd, buf, size, 0);
	if (got != (ssize_t)size)
		die("the last read: %lld of %llu", (long long)got, (unsigned long long)size);
	check(buf, 0, size, "at the end");
	return 0;
}

/* --jobs: each its own file and seed */
static int many(unsigned int jobs)
{
	char name[4096];
	int status, bad = 0;

	for (unsigned int i = 0; i < jobs; i++) {
		if (fork())
			continue;
		snprintf(name, sizeof(name), "%s.%u", path, i);
		path = name;
		state += i * 7919ull;
		exit(one_file());
	}
	while (wait(&status) > 0)
		bad |= status;
	return bad ? 1 : 0;
}

int main(int argc, char **argv)
{
	unsigned int jobs = 1;
	int i;

	for (i = 1; i + 1 < argc && argv[i][0] == '-'; i += 2) {
		uint64_t v = strtoull(argv[i + 1], NULL, 0);

		if (!strcmp(argv[i], "--ops"))
			ops = v;
		else if (!strcmp(argv[i], "--size") && v >= 16 * BLOCK)
			max_size = v;
		else if (!strcmp(argv[i], "--seed") && v)
			state = v * 0x9e3779b97f4a7c15ull | 1;
		else if (!strcmp(argv[i], "--jobs"))
			jobs = (unsigned int)v;
		else
			break;
	}
	if (i != argc - 1) {
		fprintf(stderr, "usage: see the head of asr-fsx.c\n");
		return 2;
	}
	path = argv[i];
	return jobs > 1 ? many(jobs) : one_file();
}
