// SPDX-License-Identifier: Apache-2.0
/*
 * asr-stamp - a workload that signs every sector it writes and logs every write.
 *
 * Design: threads doing plain O_DIRECT writes, each write in flight alone in its
 *   thread, so the number of threads is the queue depth. One atomic counter gives
 *   the write its number, another one orders the events. An issue event is on
 *   its way out of this process before its write is submitted (see stamp.h); the
 *   threads share the cost of the log's write() by group commit.
 * Invariants: complete.order is taken after the write returned, issue.order
 *   before it is submitted: if complete(w).order < issue(v).order then w really
 *   had completed when v was issued.
 * Context: runs in test guests and on hosts; stops cleanly on SIGTERM, SIGINT.
 * Not done: queue depth within a thread (io_uring); reading back; buffered writes,
 *   whose order on the disk is the page cache's and not the program's.
 */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "stamp.h"

#define MAX_THREADS	64
#define LOG_BUF_ENTRIES	4096
#define HOT_SECTORS	2048u	/* 1 MiB that is written over and over */

struct target {
	const char *path;
	int fd;
	bool is_block;
	uint64_t sectors;
	_Atomic bool no_discard, no_zero;
};

static struct {
	struct target target[STAMP_MAX_TARGETS];
	unsigned targets;
	unsigned threads;
	unsigned seconds;
	uint64_t count;
	uint64_t rate;		/* writes per second over all threads, 0: free */
	uint32_t max_sectors;
	uint32_t align;		/* sectors */
	uint64_t span;		/* sectors, 0: the whole target */
	uint64_t seed;
	unsigned pct_fua, pct_flush, pct_discard, pct_zero;
	bool dependent, keep_going;
} opt = {
	.threads = 4, .seconds = 10, .max_sectors = 2048, .align = 1, .pct_fua = 2, .pct_flush = 2,
};

static uint64_t workload;
static atomic_uint_fast64_t next_seq = 1, next_order = 1;
static atomic_uint_fast64_t done_writes, done_bytes, failed;
static _Atomic bool stop;
static uint64_t start_mono_ns;

static uint64_t now_ns(clockid_t clock)
{
	struct timespec ts;

	clock_gettime(clock, &ts);
	return (uint64_t)ts.tv_sec * 1000000000ull + (uint64_t)ts.tv_nsec;
}

/* ---- log: group commit of fixed-size entries ---- */

static struct {
	pthread_mutex_t lock;
	pthread_cond_t done;
	int fd;
	bool writing;
	uint64_t put, flushed;		/* entries */
	unsigned fill, which;
	struct stamp_log_entry buf[2][LOG_BUF_ENTRIES];
} lg = { .lock = PTHREAD_MUTEX_INITIALIZER, .done = PTHREAD_COND_INITIALIZER, .fd = -1 };

static int write_all(int fd, const void *buf, size_t len)
{
	const char *p = buf;

	while (len) {
		ssize_t n = write(fd, p, len);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return n ? -errno : -EIO;
		p += n;
		len -= (size_t)n;
	}
	return 0;
}

/* Caller holds lg.lock; it is dropped around the write. */
static void log_flush_locked(void)
{
	unsigned n = lg.fill, which = lg.which;
	uint64_t upto = lg.put;
	int err;

	lg.writing = true;
	lg.fill = 0;
	lg.which ^= 1;
	pthread_mutex_unlock(&lg.lock);
	err = write_all(lg.fd, lg.buf[which], n * sizeof(lg.buf[0][0]));
	if (err) {
		fprintf(stderr, "asr-stamp: log: %s\n", strerror(-err));
		_exit(1);
	}
	pthread_mutex_lock(&lg.lock);
	lg.flushed = upto;
	lg.writing = false;
	pthread_cond_broadcast(&lg.done);
}

/* The order number is taken under the lock, so the file is sorted by it. */
static void log_put(const struct stamp_log_entry *tmpl, enum stamp_event event, bool sync)
{
	struct stamp_log_entry *e;
	uint64_t pos;

	if (lg.fd < 0)
		return;
	pthread_mutex_lock(&lg.lock);
	while (lg.fill == LOG_BUF_ENTRIES) {
		if (lg.writing)
			pthread_cond_wait(&lg.done, &lg.lock);
		else
			log_flush_locked();
	}
	e = &lg.buf[lg.which][lg.fill++];
	*e = *tmpl;
	e->event = (uint8_t)event;
	e->time_ns = now_ns(CLOCK_REALTIME);
	e->order = atomic_fetch_add(&next_order, 1);
	pos = ++lg.put;
	while (sync && lg.flushed < pos) {
		if (lg.writing)
			pthread_cond_wait(&lg.done, &lg.lock);
		else
			log_flush_locked();
	}
	pthread_mutex_unlock(&lg.lock);
}

static void log_close(void)
{
	if (lg.fd < 0)
		return;
	pthread_mutex_lock(&lg.lock);
	if (lg.fill)
		log_flush_locked();
	pthread_mutex_unlock(&lg.lock);
	close(lg.fd);
}

/* ---- choice of the next write ---- */

struct worker {
	pthread_t tid;
	unsigned id;
	uint64_t rng, cursor[STAMP_MAX_TARGETS];
	unsigned last_target;
	void *buf;
};

static uint64_t rnd(struct worker *w)
{
	w->rng ^= w->rng << 13;
	w->rng ^= w->rng >> 7;
	w->rng ^= w->rng << 17;
	return w->rng;
}

/* Half 4 KiB, a quarter smaller, the rest up to the maximum. */
static uint32_t pick_sectors(struct worker *w)
{
	static const uint32_t small[] = { 1, 1, 2, 3, 7, 9 };
	uint64_t r = rnd(w) % 100;
	uint32_t n;

	if (r < 50)
		n = 8;
	else if (r < 75)
		n = small[rnd(w) % (sizeof(small) / sizeof(small[0]))];
	else if (r < 90)
		n = 16 + (uint32_t)(rnd(w) % 113);
	else if (r < 97)
		n = 128 + (uint32_t)(rnd(w) % 385);
	else
		n = 1 + (uint32_t)(rnd(w) % opt.max_sectors);
	if (n > opt.max_sectors)
		n = opt.max_sectors;
	n = (n + opt.align - 1) / opt.align * opt.align;
	return n;
}

static uint64_t pick_sector(struct worker *w, unsigned t, uint32_t n)
{
	uint64_t size = opt.target[t].sectors, r = rnd(w) % 100, s;
	uint64_t hot = size < HOT_SECTORS ? size : HOT_SECTORS;

	if (r < 25) {				/* hot spot, in the middle */
		s = size / 2 + rnd(w) % hot;
	} else if (r < 55) {			/* sequential, per thread */
		s = w->cursor[t];
		w->cursor[t] += n;
		if (w->cursor[t] + n > size)
			w->cursor[t] = rnd(w) % size;
	} else {
		s = rnd(w) % size;
		if (rnd(w) % 2)
			s &= ~7ull;
	}
	if (s + n > size)
		s = size - n;
	return s / opt.align * opt.align;
}

static enum stamp_op pick_op(struct worker *w, struct target *t)
{
	uint64_t r = rnd(w) % 100;

	if (r < opt.pct_discard)
		return t->no_discard ? STAMP_WRITE : STAMP_DISCARD;
	r -= opt.pct_discard;
	if (r < opt.pct_zero)
		return t->no_zero ? STAMP_WRITE : STAMP_ZERO;
	r -= opt.pct_zero;
	return r < opt.pct_fua ? STAMP_FUA : STAMP_WRITE;
}

/* ---- doing it ---- */

static int do_write(struct worker *w, struct target *t, const struct stamp_log_entry *e)
{
	size_t len = (size_t)e->sectors * STAMP_SECTOR, done = 0;
	struct stamp *s = w->buf;
	uint64_t now = now_ns(CLOCK_REALTIME);
	uint32_t i;

	for (i = 0; i < e->sectors; i++)
		stamp_make(&s[i], workload, e->seq, e->sector + i, now, e->sectors, e->target,
			   e->thread);
	while (done < len) {
		struct iovec iov = { (char *)w->buf + done, len - done };
		ssize_t n = pwritev2(t->fd, &iov, 1, (off_t)(e->sector * STAMP_SECTOR + done),
				     e->op == STAMP_FUA ? RWF_DSYNC : 0);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return n ? -errno : -EIO;
		done += (size_t)n;
	}
	return 0;
}

static int do_range(struct target *t, const struct stamp_log_entry *e)
{
	uint64_t range[2] = { e->sector * STAMP_SECTOR, (uint64_t)e->sectors * STAMP_SECTOR };
	int mode;

	if (t->is_block)
		return ioctl(t->fd, e->op == STAMP_ZERO ? BLKZEROOUT : BLKDISCARD, range) ?
			-errno : 0;
	mode = e->op == STAMP_ZERO ? FALLOC_FL_ZERO_RANGE : FALLOC_FL_PUNCH_HOLE;
	return fallocate(t->fd, mode | FALLOC_FL_KEEP_SIZE, (off_t)range[0], (off_t)range[1]) ?
		-errno : 0;
}

static void step(struct worker *w, unsigned ti)
{
	struct target *t = &opt.target[ti];
	struct stamp_log_entry e = {
		.seq = atomic_fetch_add(&next_seq, 1),
		.target = (uint8_t)ti,
		.thread = (uint8_t)w->id,
		.op = (uint8_t)pick_op(w, t),
		.sectors = pick_sectors(w),
	};
	bool range = e.op == STAMP_DISCARD || e.op == STAMP_ZERO;
	int err;

	if (opt.count && e.seq > opt.count) {
		stop = true;
		return;
	}
	if (e.sectors > t->sectors)
		e.sectors = (uint32_t)t->sectors;
	e.sector = pick_sector(w, ti, e.sectors);
	log_put(&e, STAMP_ISSUE, true);
	err = range ? do_range(t, &e) : do_write(w, t, &e);
	if (range && (err == -EOPNOTSUPP || err == -ENOTTY)) {
		*(e.op == STAMP_ZERO ? &t->no_zero : &t->no_discard) = true;
		log_put(&e, STAMP_CANCEL, false);
		return;
	}
	log_put(&e, err ? STAMP_FAILED : STAMP_COMPLETE, false);
	if (err) {
		if (!atomic_fetch_add(&failed, 1) || !opt.keep_going)
			fprintf(stderr, "asr-stamp: %s: sector %" PRIu64 " + %u: %s\n", t->path,
				e.sector, e.sectors, strerror(-err));
		if (!opt.keep_going)
			stop = true;
		return;
	}
	atomic_fetch_add(&done_writes, 1);
	atomic_fetch_add(&done_bytes, (uint64_t)e.sectors * STAMP_SECTOR);
	if (rnd(w) % 100 < opt.pct_flush)
		fdatasync(t->fd);
}

static void pace(void)
{
	uint64_t due, now;
	struct timespec ts;

	if (!opt.rate)
		return;
	due = start_mono_ns + atomic_load(&next_seq) * 1000000000ull / opt.rate;
	while (!stop && (now = now_ns(CLOCK_MONOTONIC)) < due) {
		uint64_t d = due - now > 50000000 ? 50000000 : due - now;

		ts.tv_sec = 0;
		ts.tv_nsec = (long)d;
		nanosleep(&ts, NULL);
	}
}

static void *work(void *arg)
{
	struct worker *w = arg;
	uint64_t end = start_mono_ns + opt.seconds * 1000000000ull;

	while (!stop) {
		if (opt.seconds && now_ns(CLOCK_MONOTONIC) >= end)
			break;
		pace();
		if (stop)
			break;
		w->last_target = opt.dependent ? (w->last_target + 1) % opt.targets :
			(unsigned)(rnd(w) % opt.targets);
		step(w, w->last_target);
	}
	return NULL;
}

/* ---- set-up ---- */

static void on_signal(int sig)
{
	(void)sig;
	stop = true;
}

static int open_target(struct target *t)
{
	struct stat st;
	uint64_t bytes;

	t->fd = open(t->path, O_RDWR | O_CLOEXEC | O_DIRECT);
	if (t->fd < 0 || fstat(t->fd, &st))
		return -errno;
	t->is_block = S_ISBLK(st.st_mode);
	bytes = (uint64_t)st.st_size;
	if (t->is_block && ioctl(t->fd, BLKGETSIZE64, &bytes))
		return -errno;
	t->sectors = bytes / STAMP_SECTOR;
	if (opt.span && t->sectors > opt.span)
		t->sectors = opt.span;
	t->sectors = t->sectors / opt.align * opt.align;
	return t->sectors >= opt.align && t->sectors ? 0 : -ENOSPC;
}

static int open_log(const char *path)
{
	struct stamp_log_head h = {
		.magic = STAMP_LOG_MAGIC, .workload = workload, .start_ns = now_ns(CLOCK_REALTIME),
		.targets = opt.targets, .entry_bytes = sizeof(struct stamp_log_entry),
	};
	unsigned i;

	for (i = 0; i < opt.targets; i++)
		h.target_sectors[i] = opt.target[i].sectors;
	lg.fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
	if (lg.fd < 0)
		return -errno;
	return write_all(lg.fd, &h, sizeof(h));
}

static const char usage[] =
	"usage: asr-stamp [OPTION...] --log FILE TARGET...\n"
	"Write stamped sectors to block devices or files, log every write.\n"
	"  --log FILE         event log (a file or a virtio-serial port)\n"
	"  --threads N        writes in flight (4)\n"
	"  --seconds N        end after N seconds (10; 0: until --count or SIGTERM)\n"
	"  --count N          end after N writes\n"
	"  --rate N           at most N writes per second\n"
	"  --max-bytes N      longest write (1048576)\n"
	"  --align N          align writes to N bytes (512)\n"
	"  --span N           use only the first N bytes of each target\n"
	"  --fua P --flush P --discard P --zero P\n"
	"                     per cent of writes that are, or are followed by (2 2 0 0)\n"
	"  --dependent        a thread writes to the next target only after its write\n"
	"                     to the one before has completed\n"
	"  --keep-going       go on after a write error (logged as failed)\n"
	"  --seed N           of the random choices\n"
	"Prints one line: writes, bytes, seconds, last sequence number.\n";

enum { O_LOG = 256, O_THREADS, O_SECONDS, O_COUNT, O_RATE, O_MAX, O_ALIGN, O_SPAN, O_FUA, O_FLUSH,
	O_DISCARD, O_ZERO, O_DEP, O_KEEP, O_SEED, O_HELP };

static const struct option options[] = {
	{ "log", 1, NULL, O_LOG }, { "threads", 1, NULL, O_THREADS },
	{ "seconds", 1, NULL, O_SECONDS }, { "count", 1, NULL, O_COUNT },
	{ "rate", 1, NULL, O_RATE }, { "max-bytes", 1, NULL, O_MAX },
	{ "align", 1, NULL, O_ALIGN }, { "span", 1, NULL, O_SPAN },
	{ "fua", 1, NULL, O_FUA }, { "flush", 1, NULL, O_FLUSH },
	{ "discard", 1, NULL, O_DISCARD }, { "zero", 1, NULL, O_ZERO },
	{ "dependent", 0, NULL, O_DEP }, { "keep-going", 0, NULL, O_KEEP },
	{ "seed", 1, NULL, O_SEED },
	{ "help", 0, NULL, O_HELP }, { NULL, 0, NULL, 0 },
};

static void bad(const char *fmt, const char *what)
{
	fprintf(stderr, "asr-stamp: ");
	fprintf(stderr, fmt, what);
	fprintf(stderr, "\n");
	exit(2);
}

static uint64_t number(const char *s, uint64_t lo, uint64_t hi)
{
	char *end;
	uint64_t v;

	errno = 0;
	v = strtoull(s, &end, 0);
	if (errno || end == s || *end || v < lo || v > hi)
		bad("bad number '%s' (see --help)", s);
	return v;
}

static const char *parse(int argc, char **argv)
{
	const char *log_path = NULL;
	int c;

	while ((c = getopt_long(argc, argv, "", options, NULL)) != -1) {
		switch (c) {
		case O_LOG: log_path = optarg; break;
		case O_THREADS: opt.threads = (unsigned)number(optarg, 1, MAX_THREADS); break;
		case O_SECONDS: opt.seconds = (unsigned)number(optarg, 0, 1000000); break;
		case O_COUNT: opt.count = number(optarg, 0, UINT64_MAX); break;
		case O_RATE: opt.rate = number(optarg, 0, 10000000); break;
		case O_MAX: opt.max_sectors = (uint32_t)(number(optarg, 512, 64 << 20) / 512); break;
		case O_ALIGN: opt.align = (uint32_t)(number(optarg, 512, 1 << 20) / 512); break;
		case O_SPAN: opt.span = number(optarg, 512, UINT64_MAX) / 512; break;
		case O_FUA: opt.pct_fua = (unsigned)number(optarg, 0, 100); break;
		case O_FLUSH: opt.pct_flush = (unsigned)number(optarg, 0, 100); break;
		case O_DISCARD: opt.pct_discard = (unsigned)number(optarg, 0, 100); break;
		case O_ZERO: opt.pct_zero = (unsigned)number(optarg, 0, 100); break;
		case O_DEP: opt.dependent = true; break;
		case O_KEEP: opt.keep_going = true; break;
		case O_SEED: opt.seed = number(optarg, 0, UINT64_MAX); break;
		case O_HELP: fputs(usage, stdout); exit(0);
		default: exit(2);
		}
	}
	if (optind == argc)
		bad("no %s given (see --help)", "TARGET");
	for (; optind < argc; optind++) {
		if (opt.targets == STAMP_MAX_TARGETS)
			bad("too many targets at '%s'", argv[optind]);
		opt.target[opt.targets++].path = argv[optind];
	}
	if (opt.dependent && opt.targets < 2)
		bad("--dependent needs two targets or more, got only '%s'", opt.target[0].path);
	if (opt.max_sectors < opt.align)
		opt.max_sectors = opt.align;
	opt.max_sectors = opt.max_sectors / opt.align * opt.align;
	return log_path;
}

static void open_all(const char *log_path)
{
	unsigned i;
	int err;

	if (getrandom(&workload, sizeof(workload), 0) != sizeof(workload))
		bad("%s failed", "getrandom");
	for (i = 0; i < opt.targets; i++) {
		err = open_target(&opt.target[i]);
		if (err) {
			fprintf(stderr, "asr-stamp: %s: %s\n", opt.target[i].path, strerror(-err));
			exit(1);
		}
	}
	err = log_path ? open_log(log_path) : 0;
	if (err) {
		fprintf(stderr, "asr-stamp: %s: %s\n", log_path, strerror(-err));
		exit(1);
	}
}

int main(int argc, char **argv)
{
	static struct worker w[MAX_THREADS];
	struct sigaction sa = { .sa_handler = on_signal };
	uint64_t last;
	unsigned i;

	open_all(parse(argc, argv));
	sigaction(SIGTERM, &sa, NULL);
	sigaction(SIGINT, &sa, NULL);
	start_mono_ns = now_ns(CLOCK_MONOTONIC);
	for (i = 0; i < opt.threads; i++) {
		w[i].id = i;
		w[i].rng = ((opt.seed ? opt.seed : workload) + i + 1) * 0x9e3779b97f4a7c15ull | 1;
		w[i].buf = aligned_alloc(4096, (size_t)(opt.max_sectors + 7) / 8 * 4096);
		if (!w[i].buf || pthread_create(&w[i].tid, NULL, work, &w[i]))
			bad("no memory for %s", "threads");
	}
	for (i = 0; i < opt.threads; i++)
		pthread_join(w[i].tid, NULL);
	log_close();
	last = atomic_load(&next_seq) - 1;
	if (opt.count && last > opt.count)
		last = opt.count;
	printf("%" PRIu64 " writes, %" PRIu64 " bytes, %.3f s, %" PRIu64 " failed, last-seq %" PRIu64
	       "\n", atomic_load(&done_writes), atomic_load(&done_bytes),
	       (double)(now_ns(CLOCK_MONOTONIC) - start_mono_ns) / 1e9, atomic_load(&failed), last);
	return failed && !opt.keep_going;
}
