// SPDX-License-Identifier: Apache-2.0
/*
 * Door 1, the reader's side: records out of the ring in position order, tail
 * back into it.
 *
 * Design. The data area is mapped twice, back to back, so a record that runs
 * over the end of the ring reads contiguous and nobody copies it. The reader
 * is awake while it works (wake = ~0: the kernel makes no call at all), dozes
 * on its own short timer while there is traffic, with wake a quarter of the
 * ring ahead so that a burst is noticed in time, and sleeps on the multishot
 * poll when nothing has come for a while.
 *
 * One wake-up is given per value stored in `wake`, so the sleep without a
 * timer is entered only when all that was reserved has been read: then the
 * next value is always a new one.
 *
 * Invariants. A header is copied out once and checked before any field of it
 * is used; a payload lies inside its record, the record inside [tail, head].
 * tail is only ever stored for positions that were read as ends of records.
 *
 * Context. The loop's thread. The file stays open until the last operation on
 * it has ended, for a poll in flight holds the device open.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "source.h"

#define DEVICE		"/dev/" ASR_DEVICE_NAME
#define PAGE		4096u
#define DOZE_LONG_NS	20000000ull	/* beyond this a timer of its own, so that it never
					   delays a batch */

struct source {
	struct loop *loop;
	int fd;
	bool file, closing;
	struct ringdisk *disk;		/* of a ring file; NULL: it has none */
	bool single;			/* a kernel before 5.13: no multishot poll */
	volatile struct asr_ring_consumer *cons;
	const volatile struct asr_ring_producer *prod;
	const uint8_t *data;
	uint64_t bytes, pos, tail, discarded, seen_seq;
	uint64_t poll_ns;
	struct loop_op poll, doze, later;
	uint64_t later_due;
	kick_fn *kick;
	void *arg;
	void (*closed)(void *arg);
	void *closed_arg;
};

/* ------------------------------------------------------------- reading */

uint64_t source_head(const struct source *s)
{
	return __atomic_load_n(&s->prod->head, __ATOMIC_ACQUIRE);	/* barrier B */
}

static int check_payload(const struct asr_rec *r)
{
	switch (r->kind) {
	case ASR_KIND_WRITE:
		return r->sectors && r->sectors <= ASR_PAYLOAD_MAX / 512 &&
		       r->payload_bytes == r->sectors * 512 && r->disk < ASR_DISKS_MAX;
	case ASR_KIND_ZEROES:
	case ASR_KIND_DISCARD:
		return r->sectors && !r->payload_bytes && r->disk < ASR_DISKS_MAX;
	case ASR_KIND_FLUSH:
		return !r->payload_bytes;
	case ASR_KIND_MARK:
		return r->payload_bytes == sizeof(struct asr_rec_mark);
	case ASR_KIND_STATE:
		return r->payload_bytes == sizeof(struct asr_rec_state);
	case ASR_KIND_DISK:
		return r->payload_bytes == sizeof(struct asr_rec_disk) && r->disk < ASR_DISKS_MAX;
	}
	return 0;
}

/* The record at pos, whatever its state: 1, 0 (none, or BUSY), -EBADMSG */
static int peek(struct source *s, uint64_t head, struct asr_rec *rec)
{
	const uint8_t *at = s->data + (s->pos & (s->bytes - 1));
	uint32_t state;

	if (s->pos == head)
		return 0;
	if (head < s->pos || head - s->pos > s->bytes || head - s->tail > s->bytes ||
	    head - s->pos < sizeof(*rec))
		return -EBADMSG;
	state = __atomic_load_n(&((const struct asr_rec *)at)->state, __ATOMIC_ACQUIRE);	/* D */
	if (state == ASR_REC_BUSY)
		return 0;
	memcpy(rec, at, sizeof(*rec));
	rec->state = state;
	if (rec->pos != s->pos || rec->bytes < sizeof(*rec) || rec->bytes % ASR_REC_ALIGN ||
	    rec->bytes > head - s->pos || rec->payload_bytes > rec->bytes - sizeof(*rec))
		return -EBADMSG;
	if (state == ASR_REC_COMMITTED)
		return check_payload(rec) ? 1 : -EBADMSG;
	return state == ASR_REC_DISCARDED ? 1 : -EBADMSG;
}

int source_next(struct source *s, struct asr_rec *rec, const uint8_t **payload)
{
	uint64_t head = source_head(s);
	int r;

	while ((r = peek(s, head, rec)) > 0) {
		*payload = s->data + (s->pos & (s->bytes - 1)) + sizeof(*rec);
		s->pos += rec->bytes;
		s->seen_seq = rec->seq;
		if (rec->state == ASR_REC_COMMITTED)
			return 1;
		s->discarded += rec->sectors != 0;
	}
	return r;
}

void source_back(struct source *s, uint64_t pos)
{
	if (pos < s->tail || pos >= s->pos)
		return;
	s->pos = pos;
	s->seen_seq = 0;	/* until the next is read */
}

uint64_t source_first(const struct source *s, bool *is_new)
{
	const struct asr_rec *rec = (const void *)(s->data + (s->pos & (s->bytes - 1)));
	const struct asr_rec_state *state = (const void *)(rec + 1);
	uint64_t head = source_head(s);

	*is_new = false;
	if (s->pos == head || head - s->pos < sizeof(*rec))
		return 0;
	*is_new = rec->kind == ASR_KIND_STATE && head - s->pos >= sizeof(*rec) + sizeof(*state) &&
		  state->reason == ASR_WHY_START;
	return rec->seq;
}

int source_seek(struct source *s, uint64_t seq)
{
	struct asr_rec rec;
	uint64_t head = source_head(s);
	int r;

	s->pos = s->tail;
	s->seen_seq = 0;
	while ((r = peek(s, head, &rec)) > 0 && rec.seq <= seq) {
		s->pos += rec.bytes;
		s->seen_seq = rec.seq;
	}
	if (r >= 0)
		source_release(s, s->pos);
	return r < 0 ? r : 0;
}

void source_release(struct source *s, uint64_t pos)
{
	if (pos <= s->tail || pos > s->pos)
		return;
	s->tail = pos;
	__atomic_store_n(&s->cons->tail, pos, __ATOMIC_RELEASE);
}

uint64_t source_peek_ns(const struct source *s)
{
	const struct asr_rec *rec = (const void *)(s->data + (s->pos & (s->bytes - 1)));

	return s->pos == source_head(s) ? 0 : rec->time_ns;
}

uint64_t source_pos(const struct source *s) { return s->pos; }
uint64_t source_tail(const struct source *s) { return s->tail; }
uint64_t source_bytes(const struct source *s) { return s->bytes; }
uint64_t source_discarded(const struct source *s) { return s->discarded; }
uint64_t source_seen_seq(const struct source *s) { return s->seen_seq; }
uint32_t source_state(const struct source *s) { return s->prod->state; }
bool source_poisoned(const struct source *s) { return s->prod->poisoned; }
bool source_is_file(const struct source *s) { return s->file; }
const char *source_disk_file(const struct source *s, uint32_t slot)
{
	return s->disk && !slot ? ringdisk_file(s->disk) : NULL;
}

/* ------------------------------------------------------------ sleeping */

void source_awake(struct source *s)
{
	__atomic_store_n(&s->cons->wake, ~0ull, __ATOMIC_RELAXED);
}

bool source_readable(const struct source *s)
{
	const uint8_t *at = s->data + (s->pos & (s->bytes - 1));

	return s->pos != source_head(s) &&
	       __atomic_load_n(&((const struct asr_rec *)at)->state, __ATOMIC_ACQUIRE) != ASR_REC_BUSY;
}

bool source_sleep(struct source *s, uint64_t due_ns)
{
	uint64_t now = now_ns(), wait;
	bool deep = !due_ns;

	if (deep && (s->file || s->pos != source_head(s))) {
		deep = false;	/* no poll, or a record is BUSY: only a timer is sure to wake us */
		due_ns = now + s->poll_ns;
	}
	if (deep) {
		__atomic_store_n(&s->cons->wake, s->pos + 1, __ATOMIC_RELAXED);
		__atomic_thread_fence(__ATOMIC_SEQ_CST);	/* E, with the producer's F */
		if (s->pos == source_head(s))
			return false;
		source_awake(s);
		return source_readable(s) || source_sleep(s, now + s->poll_ns);
	}
	__atomic_store_n(&s->cons->wake, s->pos + s->bytes / 4, __ATOMIC_RELAXED);
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	if (due_ns <= now || (source_head(s) - s->pos >= s->bytes / 4 && source_readable(s))) {
		source_awake(s);
		return true;
	}
	wait = due_ns - now;
	if (wait > DOZE_LONG_NS) {
		if (!s->later.active)
			loop_timeout(s->loop, &s->later, wait);
		wait = s->poll_ns < DOZE_LONG_NS ? DOZE_LONG_NS : s->poll_ns;
		if (!s->file && s->pos == source_head(s))
			return source_sleep(s, 0);
	}
	if (!s->doze.active)
		loop_timeout(s->loop, &s->doze, wait);
	return false;
}

static void maybe_free(struct source *s)
{
	if (!s->closing || s->poll.active || s->doze.active || s->later.active)
		return;
	if (s->data)
		munmap((void *)(uintptr_t)s->data, 2 * s->bytes);
	if (s->cons)
		munmap((void *)(uintptr_t)s->cons, PAGE);
	if (s->prod)
		munmap((void *)(uintptr_t)s->prod, PAGE);
	if (s->fd >= 0)
		close(s->fd);
	ringdisk_close(s->disk);
	if (s->closed)
		s->closed(s->closed_arg);
	free(s);
}

static void timer_done(struct loop_op *op, int res, unsigned int flags)
{
	struct source *s = op->arg;

	if (s->closing)
		maybe_free(s);
	else
		s->kick(s->arg);
}

static void poll_done(struct loop_op *op, int res, unsigned int flags)
{
	struct source *s = op->arg;

	if (s->closing) {
		maybe_free(s);
		return;
	}
	s->single |= res == -EINVAL;
	if (!op->active)
		loop_poll(s->loop, &s->poll, s->fd, POLLIN, !s->single);
	s->kick(s->arg);
}

/* ------------------------------------------------------------- opening */

static int map_ring(struct source *s, uint64_t cons, uint64_t prod, uint64_t data, struct why *why)
{
	uint8_t *area;
	void *p;

	p = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, s->fd, cons);
	if (p == MAP_FAILED)
		return why_set(why, errno, "cannot map the ring's consumer page: %s", strerror(errno));
	s->cons = p;
	p = mmap(NULL, PAGE, PROT_READ, MAP_SHARED, s->fd, prod);
	if (p == MAP_FAILED)
		return why_set(why, errno, "cannot map the ring's producer page: %s", strerror(errno));
	s->prod = p;
	area = mmap(NULL, 2 * s->bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (area == MAP_FAILED)
		return why_set(why, errno, "no address space for a ring of %llu bytes",
			       (unsigned long long)s->bytes);
	s->data = area;
	for (int i = 0; i < 2; i++) {
		p = mmap(area + i * s->bytes, s->bytes, PROT_READ, MAP_SHARED | MAP_FIXED, s->fd, data);
		if (p == MAP_FAILED)
			return why_set(why, errno, "cannot map a ring of %llu bytes: %s",
				       (unsigned long long)s->bytes, strerror(errno));
	}
	return 0;
}

static struct source *new_source(struct loop *l, uint64_t poll_ns, kick_fn *kick, void *arg)
{
	struct source *s = calloc(1, sizeof(*s));

	if (!s)
		return NULL;
	s->loop = l;
	s->fd = -1;
	s->poll_ns = poll_ns;
	s->kick = kick;
	s->arg = arg;
	s->poll = (struct loop_op){ .done = poll_done, .arg = s };
	s->doze = (struct loop_op){ .done = timer_done, .arg = s };
	s->later = (struct loop_op){ .done = timer_done, .arg = s };
	return s;
}

/* Where the reader stands: the tail that the producer has accepted. */
static int start(struct source *s, struct source **out, struct why *why)
{
	uint64_t head = source_head(s);

	s->tail = s->pos = s->cons->tail;
	if (s->tail > head || head - s->tail > s->bytes) {
		why_set(why, EBADMSG, "the ring's positions are nonsense: tail %llu, head %llu, %llu bytes",
			(unsigned long long)s->tail, (unsigned long long)head,
			(unsigned long long)s->bytes);
		source_close(s, NULL, NULL);
		return -EBADMSG;
	}
	source_awake(s);
	if (!s->file)
		loop_poll(s->loop, &s->poll, s->fd, POLLIN, true);
	*out = s;
	return 0;
}

static int open_device(const char *device, struct why *why)
{
	int fd = open(device ? device : DEVICE, O_RDWR | O_CLOEXEC);

	if (fd >= 0)
		return fd;
	if (errno == ENOENT || errno == ENXIO || errno == ENODEV)
		return why_set(why, ENOENT, "%s is not there: load the module (modprobe dm_asr)",
			       device ? device : DEVICE);
	return why_set(why, errno, "cannot open %s: %s", device ? device : DEVICE, strerror(errno));
}

int source_open(struct loop *l, const char *device, const char *group, uint64_t poll_ns,
		kick_fn *kick, void *arg, struct source **out, struct why *why)
{
	struct source *s = new_source(l, poll_ns, kick, arg);
	struct asr_attach at = { .flags = 0 };
	int r;

	if (!s)
		return -ENOMEM;
	s->fd = open_device(device, why);
	r = s->fd < 0 ? s->fd : 0;
	snprintf(at.name, sizeof(at.name), "%s", group);
	if (!r && ioctl(s->fd, ASR_IOC_ATTACH, &at) < 0)
		r = why_set(why, errno, "cannot attach to group %s: %s", group,
			    errno == EBUSY ? "another program reads its ring already" :
			    errno == ENOENT ? "the kernel has no such group" : strerror(errno));
	if (!r) {
		s->bytes = at.ring_bytes;
		r = map_ring(s, ASR_MMAP_CONSUMER, ASR_MMAP_PRODUCER, ASR_MMAP_DATA, why);
	}
	if (r) {
		source_close(s, NULL, NULL);
		return r;
	}
	return start(s, out, why);
}

int source_open_file(struct loop *l, const char *path, const char *disk, uint64_t poll_ns,
		     kick_fn *kick, void *arg, struct source **out, struct why *why)
{
	struct source *s = new_source(l, poll_ns, kick, arg);
	struct stat st;
	int r = 0;

	if (!s)
		return -ENOMEM;
	s->file = true;
	s->fd = open(path, O_RDWR | O_CLOEXEC);
	if (s->fd < 0 || fstat(s->fd, &st))
		r = why_set(why, errno, "cannot open the ring file %s: %s", path, strerror(errno));
	if (!r) {
		s->bytes = (uint64_t)st.st_size - 2 * PAGE;
		if (st.st_size < (off_t)(ASR_RING_MIN + 2 * PAGE) || s->bytes > ASR_RING_MAX ||
		    (s->bytes & (s->bytes - 1)))
			r = why_set(why, EINVAL, "ring file %s has %lld bytes: it must be two pages and a "
				    "power of two from 1 MiB to 4 GiB", path, (long long)st.st_size);
	}
	if (!r)
		r = map_ring(s, 0, PAGE, 2 * PAGE, why);
	if (!r && disk)
		r = ringdisk_open(disk, &s->disk, why);
	if (r) {
		source_close(s, NULL, NULL);
		return r;
	}
	return start(s, out, why);
}

void source_close(struct source *s, void (*closed)(void *arg), void *arg)
{
	s->closing = true;
	s->closed = closed;
	s->closed_arg = arg;
	if (s->poll.active)
		loop_cancel(s->loop, &s->poll);
	if (s->doze.active)
		loop_cancel(s->loop, &s->doze);
	if (s->later.active)
		loop_cancel(s->loop, &s->later);
	maybe_free(s);
}

/* ------------------------------------------------------------ the calls */

/* A ring file captures; without a disk it has no disk table and nothing dirty. */
static int file_ioctl(struct source *s, unsigned long request, void *arg)
{
	if (s->disk && request != ASR_IOC_GROUP_INFO && request != ASR_IOC_CAPTURE)
		return ringdisk_ioctl(s->disk, request, arg);
	switch (request) {
	case ASR_IOC_DIRTY_FETCH:
		return -ENODATA;
	case ASR_IOC_DISK_INFO:
		return -ENOENT;
	case ASR_IOC_GROUP_INFO: {
		struct asr_group_info *i = arg;

		memset(i, 0, sizeof(*i));
		i->state = ASR_STATE_CAPTURE;
		i->attached = 1;
		i->ring_bytes = s->bytes;
		i->head = source_head(s);
		i->tail = s->tail;
		return s->disk ? ringdisk_ioctl(s->disk, request, arg) : 0;
	}
	case ASR_IOC_DIRTY_ACK:
	case ASR_IOC_DIRTY_RETURN:
	case ASR_IOC_CAPTURE:
		return 0;
	}
	return -EOPNOTSUPP;
}

int source_ioctl(struct source *s, unsigned long request, void *arg)
{
	if (s->file)
		return file_ioctl(s, request, arg);
	return ioctl(s->fd, request, arg) < 0 ? -errno : 0;
}

int source_control(const char *device, unsigned long request, void *arg, struct why *why)
{
	cleanup_fd int fd = open_device(device, why);

	if (fd < 0)
		return fd;
	return ioctl(fd, request, arg) < 0 ? -errno : 0;
}
