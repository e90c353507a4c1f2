// SPDX-License-Identifier: Apache-2.0
/*
 * asr-poke - presses every button of door 1, the wrong ones first.
 *
 *   asr-poke calls GROUP           each refusal of the control device, by errno
 *   asr-poke hostile GROUP         nonsense in the consumer's page
 *   asr-poke hold GROUP DEVICE     marks with hold: release, timer, death
 *   asr-poke hold-suspend GROUP DMNAME   a hold that is on ends when a suspend comes
 *   asr-poke splice FILE           writes what comes through the pipe at its stdin: in FILE's file system as long
 *                                  as that is nothing, so that it cannot be frozen
 *   asr-poke hammer DEVICE THREADS SECONDS SPAN   overlapping writes, random sizes
 *
 * Design: each check is one line that names what it wants; the first one that
 * does not hold ends the program with its line number.
 * Context: tests, in a guest, as root. GROUP has one disk and no consumer.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <pthread.h>
#include <sys/wait.h>
#include <time.h>

#include "consume.h"

#define must(x) do { if (!(x)) die("does not hold: %s", #x); } while (0)
#define must_be(x, want) do { \
	long long got_ = (long long)(x), want_ = (long long)(want); \
	if (got_ != want_) \
		die("%s is %lld, not %lld", #x, got_, want_); \
} while (0)

static uint64_t now_ms(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000ULL + t.tv_nsec / 1000000;
}

/* ------------------------------------------------------------------- calls */

static int create(int fd, const char *name, uint64_t bytes, uint32_t flags, uint32_t reserved)
{
	struct asr_group_create c = { .ring_bytes = bytes, .flags = flags, .reserved = reserved };

	set_name(c.name, name);
	return call(fd, ASR_IOC_GROUP_CREATE, &c);
}

static int delete(int fd, const char *name)
{
	struct asr_group_name n = { "" };

	set_name(n.name, name);
	return call(fd, ASR_IOC_GROUP_DELETE, &n);
}

static void refuse_groups(int fd, const char *group)
{
	struct asr_group_create c = { .ring_bytes = 1 << 20 };
	struct asr_group_info gi = { .index = 1000 };
	struct asr_info info;

	must_be(call(fd, ASR_IOC_GET_INFO, &info), 0);
	must_be(info.abi_version, ASR_ABI_VERSION);
	must(info.groups >= 1 && info.ring_bytes_used <= info.ring_bytes_cap);
	must_be(create(fd, group, 1 << 20, 0, 0), -EEXIST);
	must_be(create(fd, "", 1 << 20, 0, 0), -EINVAL);
	must_be(create(fd, ".x", 1 << 20, 0, 0), -EINVAL);
	must_be(create(fd, "a b", 1 << 20, 0, 0), -EINVAL);
	must_be(create(fd, "a/b", 1 << 20, 0, 0), -EINVAL);
	memset(c.name, 'x', sizeof(c.name));
	must_be(call(fd, ASR_IOC_GROUP_CREATE, &c), -EINVAL);	/* no NUL */
	must_be(create(fd, "g-new", 1 << 19, 0, 0), -EINVAL);	/* too small */
	must_be(create(fd, "g-new", 3 << 20, 0, 0), -EINVAL);	/* no power of two */
	must_be(create(fd, "g-new", 8ULL << 30, 0, 0), -EINVAL);	/* too large */
	must_be(create(fd, "g-new", 4ULL << 30, 0, 0), -EDQUOT);	/* over the cap */
	must_be(create(fd, "g-new", 1 << 20, 1, 0), -EINVAL);
	must_be(create(fd, "g-new", 1 << 20, 0, 1), -EINVAL);
	must_be(create(fd, "g-new", 1 << 20, 0, 0), 0);
	must_be(delete(fd, "g-new"), 0);
	must_be(delete(fd, "g-new"), -ENOENT);
	must_be(delete(fd, group), -EBUSY);
	must_be(call(fd, ASR_IOC_GROUP_INFO, &gi), -ENOENT);
	must_be(call(fd, _IO(ASR_IOC_MAGIC, 0x7f), NULL), -ENOTTY);
	must_be(call(fd, ASR_IOC_GET_INFO, (void *)8), -EFAULT);
}

static void refuse_unattached(int fd)
{
	struct asr_dirty d = { .count = 1 };
	struct asr_disk_info di = { .slot = 0 };
	struct asr_mark m = { .name = "m" };

	must_be(call(fd, ASR_IOC_DISK_INFO, &di), -ENOTCONN);
	must_be(call(fd, ASR_IOC_DIRTY_FETCH, &d), -ENOTCONN);
	must_be(call(fd, ASR_IOC_CAPTURE, NULL), -ENOTCONN);
	must_be(call(fd, ASR_IOC_MARK, &m), -ENOTCONN);
	must(mmap(NULL, 4096, PROT_READ, MAP_SHARED, fd, ASR_MMAP_PRODUCER) == MAP_FAILED);
	must_be(errno, ENOTCONN);
}

static void refuse_maps(struct ring *r)
{
	const int rw = PROT_READ | PROT_WRITE;
	void *p;

	must(mmap(NULL, 4096, rw, MAP_SHARED, r->fd, ASR_MMAP_PRODUCER) == MAP_FAILED);
	must(mmap(NULL, r->bytes, rw, MAP_SHARED, r->fd, ASR_MMAP_DATA) == MAP_FAILED);
	must(mmap(NULL, r->bytes * 2, PROT_READ, MAP_SHARED, r->fd, ASR_MMAP_DATA) == MAP_FAILED);
	must(mmap(NULL, 8192, rw, MAP_SHARED, r->fd, ASR_MMAP_CONSUMER) == MAP_FAILED);
	must(mmap(NULL, 4096, rw, MAP_PRIVATE, r->fd, ASR_MMAP_CONSUMER) == MAP_FAILED);
	must(mmap(NULL, 4096, PROT_READ, MAP_SHARED, r->fd, 4096) == MAP_FAILED);
	p = mmap(NULL, 4096, PROT_READ, MAP_SHARED, r->fd, ASR_MMAP_DATA);
	must(p != MAP_FAILED);
	must(mprotect(p, 4096, rw) < 0);
	munmap(p, 4096);
}

static void refuse_attached(struct ring *r, const char *group)
{
	struct asr_attach a = { .flags = 0 };
	struct asr_disk_info di = { .slot = ASR_DISKS_MAX };
	struct asr_mark m = { .name = "m" };
	struct asr_dirty d = { .count = 1 };
	struct asr_release rel = { .id = 12345 };
	int fd = ctl_open();

	set_name(a.name, group);
	must_be(call(fd, ASR_IOC_ATTACH, &a), -EBUSY);
	must_be(call(r->fd, ASR_IOC_ATTACH, &a), -EALREADY);
	set_name(a.name, "nobody");
	must_be(call(fd, ASR_IOC_ATTACH, &a), -ENOENT);
	a.flags = 1;
	must_be(call(fd, ASR_IOC_ATTACH, &a), -EINVAL);
	must_be(call(r->fd, ASR_IOC_DISK_INFO, &di), -EINVAL);
	di.slot = ASR_DISKS_MAX - 1;
	must_be(call(r->fd, ASR_IOC_DISK_INFO, &di), -ENOENT);
	di.slot = 0;
	must_be(call(r->fd, ASR_IOC_DISK_INFO, &di), 0);
	must(di.active == 1 && di.sectors && di.lower_major);
	d.chunk = 1ULL << 60;
	must_be(call(r->fd, ASR_IOC_DIRTY_FETCH, &d), -ENODATA);
	must_be(call(r->fd, ASR_IOC_DIRTY_SET, &d), -EINVAL);
	d.chunk = ~0ULL;
	must_be(call(r->fd, ASR_IOC_DIRTY_ACK, &d), -EINVAL);
	d.slot = 77;
	must_be(call(r->fd, ASR_IOC_DIRTY_FETCH, &d), -ENOENT);
	static const uint32_t nonsense[] = {	/* with an id that was never given, too */
		ASR_MARK_DECLARE, ASR_MARK_APP, ASR_MARK_GROUP, ASR_MARK_DECLARE | ASR_MARK_HOLD, 0x10,
		ASR_MARK_DECLARE | ASR_MARK_APP | ASR_MARK_HOLD, ASR_MARK_DECLARE | ASR_MARK_APP,
	};
	for (size_t i = 0; i < sizeof(nonsense) / sizeof(nonsense[0]); i++) {
		m.flags = nonsense[i];
		m.id = i % 2 ? 0 : 1000;
		must_be(call(r->fd, ASR_IOC_MARK, &m), -EINVAL);
	}
	m.flags = ASR_MARK_HOLD;
	m.hold_ns = ASR_HOLD_MAX_NS + 1;
	must_be(call(r->fd, ASR_IOC_MARK, &m), -EINVAL);
	must_be(call(r->fd, ASR_IOC_RELEASE, &rel), -ENOENT);
	rel.id = 0;
	must_be(call(r->fd, ASR_IOC_RELEASE, &rel), -ENOENT);
	close(fd);
}

/* Takes what is dirty and dies without an ACK: all of it is dirty again. */
static void check_dirty(const char *group)
{
	struct asr_group_info gi;
	struct asr_dirty d, all;
	uint64_t before, n = 0;
	struct ring r;

	must_be(ring_attach(&r, group), 0);
	gi = group_info(r.fd, group);
	before = gi.dirty_chunks;
	must(before > 8);
	for (;;) {
		d = (struct asr_dirty){ .count = 3 };
		if (call(r.fd, ASR_IOC_DIRTY_FETCH, &d))
			break;
		must(d.count >= 1 && d.count <= 3);
		n += d.count;
	}
	must_be(errno, ENODATA);
	must_be(n, before);
	must_be(group_info(r.fd, group).dirty_chunks, before);
	close(r.fd);		/* mappings keep the file: not detached yet */
	munmap((void *)r.cons, 4096);
	munmap((void *)r.prod, 4096);
	munmap((void *)r.data, 2 * r.bytes);
	must_be(ring_attach(&r, group), 0);
	d = (struct asr_dirty){ .count = 1 };
	must_be(call(r.fd, ASR_IOC_DIRTY_FETCH, &d), 0);
	all = d;
	must_be(call(r.fd, ASR_IOC_DIRTY_ACK, &d), 0);
	must_be(group_info(r.fd, group).dirty_chunks, before - 1);
	must_be(call(r.fd, ASR_IOC_DIRTY_SET, &all), 0);
	must_be(group_info(r.fd, group).dirty_chunks, before);
	must_be(call(r.fd, ASR_IOC_TRACK, NULL), 0);
	must_be(call(r.fd, ASR_IOC_DIRTY_FETCH, &d), -EBUSY);
	must_be(call(r.fd, ASR_IOC_CAPTURE, NULL), 0);
	must_be(call(r.fd, ASR_IOC_CAPTURE, NULL), 0);
}

static void calls(const char *group)
{
	int fd = ctl_open();
	struct ring r;
	pid_t child;
	int st;

	refuse_groups(fd, group);
	refuse_unattached(fd);
	child = fork();
	if (!child) {
		must_be(ring_attach(&r, group), 0);
		refuse_attached(&r, group);
		refuse_maps(&r);
		exit(0);
	}
	waitpid(child, &st, 0);
	must_be(st, 0);
	check_dirty(group);
}

/* ----------------------------------------------------------------- hostile */

static void one_nonsense(const char *group, uint64_t tail)
{
	struct asr_group_info gi;
	struct ring r;

	must_be(ring_attach(&r, group), 0);
	must_be(call(r.fd, ASR_IOC_CAPTURE, NULL), 0);
	gi = group_info(r.fd, group);
	must_be(gi.state, ASR_STATE_CAPTURE);
	ring_advance(&r, tail);
	gi = group_info(r.fd, group);
	must_be(gi.state, ASR_STATE_TRACK);
	must_be(gi.reason, ASR_WHY_POISONED);
	must_be(r.prod->poisoned, 1);
	must_be(call(r.fd, ASR_IOC_CAPTURE, NULL), -EPROTO);
	ring_advance(&r, gi.tail);	/* too late to be good */
	must_be(call(r.fd, ASR_IOC_CAPTURE, NULL), -EPROTO);
	exit(0);
}

static void hostile(const char *group)
{
	int fd = ctl_open(), st;
	struct asr_group_info gi = group_info(fd, group);
	uint64_t bad[] = { gi.head + (1 << 20), gi.tail + 1, gi.tail + 64, ~0ULL, 1ULL << 63, 0 };

	must(gi.tail > 0 && gi.head > gi.tail + 4096);
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		if (!fork())
			one_nonsense(group, bad[i]);
		wait(&st);
		must_be(st, 0);
		must_be(group_info(fd, group).tail, gi.tail);
	}
}

/* -------------------------------------------------------------------- hold */

struct writer {
	const char *path;
	uint64_t took_ms;
	pthread_t thread;
};

static void *write_once(void *arg)
{
	struct writer *w = arg;
	int fd = open(w->path, O_RDWR | O_DIRECT);
	uint64_t t = now_ms();
	void *buf;

	must(fd >= 0 && !posix_memalign(&buf, 4096, 4096));
	memset(buf, 7, 4096);
	must_be(pwrite(fd, buf, 4096, 65536), 4096);
	w->took_ms = now_ms() - t;
	close(fd);
	free(buf);
	return NULL;
}

static void start(struct writer *w, const char *path)
{
	w->path = path;
	must_be(pthread_create(&w->thread, NULL, write_once, w), 0);
}

static struct asr_mark hold(struct ring *r, unsigned int ms)
{
	struct asr_mark m = { .name = "held", .flags = ASR_MARK_HOLD,
			      .hold_ns = ms * 1000000ULL };

	must_be(call(r->fd, ASR_IOC_MARK, &m), 0);
	must(m.id && m.seq && m.time_ns);
	return m;
}

/*
 * On a busy machine a write comes too late for the hold that it is to meet, or the timer
 * is faster than this program: then once more. What is shown has to be seen once.
 */
#define HOLD_TRIES	20

static bool hold_and_release(struct ring *r, const char *dev, uint64_t *broken)
{
	struct asr_release rel = { .id = 0 };
	struct asr_mark m = hold(r, 1000);
	struct writer w;
	int again = call(r->fd, ASR_IOC_MARK, &(struct asr_mark){ .name = "x", .flags = ASR_MARK_HOLD });
	struct asr_mark said = { .name = "held", .id = m.id, .flags = ASR_MARK_DECLARE | ASR_MARK_GROUP };

	must_be(call(r->fd, ASR_IOC_MARK, &said), -ESTALE);

	start(&w, dev);
	usleep(300000);
	rel.id = m.id + 1;
	must_be(call(r->fd, ASR_IOC_RELEASE, &rel), -ENOENT);
	rel.id = m.id;
	must_be(call(r->fd, ASR_IOC_RELEASE, &rel), 0);
	pthread_join(w.thread, NULL);
	*broken += rel.broken;
	if (rel.broken || !rel.held || w.took_ms < 250 || w.took_ms >= 900)
		return false;
	must_be(again, -EBUSY);
	must_be(rel.held, 1);
	must(rel.held_ns >= 290000000);
	must_be(call(r->fd, ASR_IOC_RELEASE, &rel), -ENOENT);
	must_be(call(r->fd, ASR_IOC_MARK, &said), 0);
	must(said.id == m.id && said.seq > m.seq);
	return true;
}

static bool hold_and_forget(struct ring *r, const char *group, const char *dev, uint64_t *broken)
{
	struct asr_release rel = { .id = 0 };
	struct asr_mark m = hold(r, 200);
	struct writer w;

	start(&w, dev);
	pthread_join(w.thread, NULL);
	rel.id = m.id;
	while (group_info(r->fd, group).holding)
		usleep(1000);
	must_be(call(r->fd, ASR_IOC_RELEASE, &rel), 0);
	must_be(rel.broken, 1);
	m.flags = ASR_MARK_DECLARE | ASR_MARK_GROUP;
	must_be(call(r->fd, ASR_IOC_MARK, &m), -ESTALE);
	m.flags = ASR_MARK_DECLARE | ASR_MARK_APP;
	must_be(call(r->fd, ASR_IOC_MARK, &m), 0);
	*broken += 1;
	if (!rel.held || w.took_ms < 100 || w.took_ms >= 900)
		return false;
	must_be(rel.held, 1);
	return true;
}

static bool hold_and_die(const char *group, const char *dev, uint64_t *broken)
{
	struct writer w;
	struct ring r;
	int st;

	if (!fork()) {
		must_be(ring_attach(&r, group), 0);
		hold(&r, 1000);
		usleep(250000);
		_exit(0);
	}
	usleep(100000);
	start(&w, dev);
	pthread_join(w.thread, NULL);
	wait(&st);
	must_be(st, 0);
	*broken += 1;
	return w.took_ms < 700;
}

static uint64_t holds_broken(const char *group)
{
	return group_info(ctl_open(), group).holds_broken;
}

static void holds(const char *group, const char *dev)
{
	uint64_t broken = holds_broken(group);
	struct ring r;
	int st, n = 0;

	if (!fork()) {
		must_be(ring_attach(&r, group), 0);
		while (!hold_and_release(&r, dev, &broken))
			must(++n < HOLD_TRIES);
		while (!hold_and_forget(&r, group, dev, &broken))
			must(++n < HOLD_TRIES);
		must_be(holds_broken(group), broken);
		exit(0);
	}
	wait(&st);
	must_be(st, 0);
	broken = holds_broken(group);
	while (!hold_and_die(group, dev, &broken))
		must(++n < HOLD_TRIES);
	must_be(holds_broken(group), broken);
}

/* The hold must end because of the suspend, so before its timer: a slow machine is given more tries. */
static void hold_suspend(const char *group, const char *name)
{
	struct asr_release rel = { .id = 0 };
	char dev[128], suspend[128], resume[128];
	struct writer w;
	struct ring r;
	uint64_t head;

	snprintf(dev, sizeof(dev), "/dev/mapper/%s", name);
	snprintf(suspend, sizeof(suspend), "dmsetup suspend %s", name);
	snprintf(resume, sizeof(resume), "dmsetup resume %s", name);
	must_be(ring_attach(&r, group), 0);
	for (int tries = 0; tries < 20; tries++) {
		rel.id = hold(&r, 1000).id;
		head = group_info(r.fd, group).head;
		start(&w, dev);
		while (group_info(r.fd, group).head == head)
			usleep(1000);
		must_be(system(suspend), 0);
		must_be(call(r.fd, ASR_IOC_RELEASE, &rel), 0);
		must_be(rel.broken, 1);
		must_be(system(resume), 0);
		pthread_join(w.thread, NULL);
		if (rel.held_ns < 990000000)
			return;
	}
	die("no suspend came before the hold's timer");
}

/* ------------------------------------------------------------------ hammer */

static struct {
	const char *path;
	uint64_t end_ms, span;
} hammer_job;

static void *hammer_thread(void *arg)
{
	unsigned int seed = (uintptr_t)arg * 7919 + 1;
	int fd = open(hammer_job.path, O_RDWR | O_DIRECT);
	uint64_t n = 0;
	uint32_t *buf;

	must(fd >= 0 && !posix_memalign((void **)&buf, 4096, 256 << 10));
	while (now_ms() < hammer_job.end_ms) {
		uint64_t max = rand_r(&seed) % 8 ? 16 : 512;	/* sectors: some over 128 KiB */
		uint64_t from = rand_r(&seed) % hammer_job.span;
		uint64_t len = 1 + rand_r(&seed) % max;

		if (from + len > hammer_job.span)
			len = hammer_job.span - from;
		for (uint64_t i = 0; i < len * 128; i += 16)
			buf[i] = rand_r(&seed);
		must_be(pwrite(fd, buf, len * 512, from * 512), (long long)len * 512);
		n++;
	}
	return (void *)(uintptr_t)n;
}

static void hammer(char **argv)
{
	int threads = atoi(argv[1]);
	pthread_t t[128];
	uint64_t n = 0;
	void *ret;

	hammer_job.path = argv[0];
	hammer_job.end_ms = now_ms() + atoi(argv[2]) * 1000;
	hammer_job.span = strtoull(argv[3], NULL, 0);
	must(threads > 0 && threads <= 128);
	for (int i = 0; i < threads; i++)
		must_be(pthread_create(&t[i], NULL, hammer_thread, (void *)(uintptr_t)(i + 1)), 0);
	for (int i = 0; i < threads; i++) {
		pthread_join(t[i], &ret);
		n += (uintptr_t)ret;
	}
	printf("%llu writes\n", (unsigned long long)n);
}

int main(int argc, char **argv)
{
	if (argc == 3 && !strcmp(argv[1], "splice")) {
		int fd = open(argv[2], O_WRONLY | O_CREAT | O_TRUNC, 0600);

		must(fd >= 0);
		must(splice(0, NULL, fd, NULL, 65536, 0) >= 0);
	} else if (argc == 3 && !strcmp(argv[1], "calls")) {
		calls(argv[2]);
	} else if (argc == 3 && !strcmp(argv[1], "hostile")) {
		hostile(argv[2]);
	} else if (argc == 4 && !strcmp(argv[1], "hold")) {
		holds(argv[2], argv[3]);
	} else if (argc == 4 && !strcmp(argv[1], "hold-suspend")) {
		hold_suspend(argv[2], argv[3]);
	} else if (argc == 6 && !strcmp(argv[1], "hammer")) {
		hammer(argv + 2);
	} else {
		fprintf(stderr, "usage: see the head of asr-poke.c\n");
		return 2;
	}
	printf("ok\n");
	return 0;
}
