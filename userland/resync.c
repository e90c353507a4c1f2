// SPDX-License-Identifier: Apache-2.0
/*
 * Brings the copy in line with the disks: the first copy, the return from
 * TRACK, and whatever else left the dirty map not empty.
 *
 * Design. One loop over the dirty map, beside the consumption of the ring:
 *
 *   WANTED   BEGIN goes into the stream: from here on it is not consistent
 *   SCAN     back to CAPTURE first, if the kernel tracks; then a round
 *   ROUND    some dirty chunks are taken and read from the lower device; the
 *            ring is not consumed until they stand in the stream, so they stand
 *            at C, the reader's position before they were read. All records
 *            before C are on the disk already, newer ones come after and win
 *   PASSING  nothing is dirty; E is the head after the last read: a chunk may
 *            have been read as new as that. The ring is consumed up to E
 *   ENDING   END is in the stream; once durable, the copy is consistent
 *
 * The ring comes first. Between two rounds what stood in it is consumed; a
 * round, and what was read and is not durable yet, is a quarter of the ring at
 * most, for the ring's acknowledgements queue up behind it; and while more
 * than a quarter of the ring is in use, only single chunks are read now and
 * then, so that a busy disk still becomes consistent some time.
 *
 * A chunk that was taken is given back to the kernel as clean when the frame
 * with its last piece is durable; a lost connection makes it dirty again. A
 * chunk taken twice at a time is given back with the later frame only.
 *
 * Slots are used again, and the vault takes a SYNC record for the disk that has
 * the slot there. So a disk is not read before its DISK record is in the stream.
 *
 * Invariants. END is not emitted when anything has called for a resync since
 * the scan that found nothing. The asr device itself is never touched: only
 * the device below it, read with O_DIRECT.
 *
 * Context. The loop's thread; reads are asynchronous, opening the device is not.
 *
 * Not done. Comparing digests with the vault's before shipping; a rate limit.
 */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include "source.h"

#define CHUNK_BYTES	(ASR_CHUNK_SECTORS * 512u)
#define PARTS		8
#define PART_CHUNKS	8		/* 512 KiB: one read */
#define PART_BYTES	(PART_CHUNKS * CHUNK_BYTES)
#define SYNC_SECTORS	(ASR_FRAME_PAYLOAD / 512)	/* of one record */
#define RUNS		1024		/* taken and not yet durable */
#define SHARE_BYTES	(4u << 20)	/* of the ring, between two rounds */
#define TRICKLE_NS	50000000ull	/* between single chunks while the ring is in use */
#define SOON_NS		2000000ull
#define RETRY_NS	1000000000ull

enum phase { OFF, IDLE, WANTED, SCAN, ROUND, PASSING, ENDING };
enum part_state { FREE, READING, READY, BAD, EARLY };

struct part {
	struct resync *r;
	enum part_state state;
	uint32_t slot;
	uint64_t chunk, count;
	uint32_t sectors, done;		/* to emit, emitted */
	uint64_t frame_no;
	uint8_t *buf;
	struct loop_op op;
};

struct run {
	uint64_t frame_no, chunk, count;
	uint32_t slot;
};

struct lower {
	int fd;				/* -1: not open */
	dev_t dev;
	uint64_t start, sectors;
};

/* The disk that has a slot, and the ring position behind its DISK record, at the latest */
struct owner {
	char name[ASR_NAME_BYTES];
	uint64_t pos;
};

struct resync {
	struct loop *loop;
	struct source *source;
	char *group;
	resync_emit *emit;
	kick_fn *kick;
	void *arg;
	bool dying, consistent, rescan, careful, said_error, found;
	enum phase phase;
	uint32_t slot;			/* where the scan stands */
	uint64_t chunk;
	uint64_t in_flight;		/* bytes taken and not yet durable */
	uint64_t last_round_ns;
	uint64_t turn_pos;		/* the ring is consumed up to here before the next round */
	uint64_t end_pos, end_frame, due;
	struct part parts[PARTS];
	int part, filled;		/* being emitted; of this round */
	struct { uint32_t slot, sectors; uint64_t sector; } zero;	/* gathered, not yet emitted */
	struct run runs[RUNS];
	uint32_t run_count;
	struct lower lowers[ASR_DISKS_MAX];
	struct owner owners[ASR_DISKS_MAX];
	uint8_t *buffers;
	uint64_t began_ns, done_bytes;
};

/* ---------------------------------------------------------- the device */

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

static void close_lower(struct lower *w)
{
	if (w->fd >= 0)
		close(w->fd);
	w->fd = -1;
}

/* Open, and still the device that the kernel names: a reload may have changed it */
static int open_lower(struct resync *r, uint32_t slot)
{
	struct lower *w = &r->lowers[slot];
	struct asr_disk_info info = { .slot = slot };
	int ret = source_ioctl(r->source, ASR_IOC_DISK_INFO, &info);
	dev_t dev = makedev(info.lower_major, info.lower_minor);

	if (ret)
		return ret;
	if (!info.active)
		return -ENODEV;
	if (w->fd >= 0 && w->dev != dev)
		close_lower(w);
	/* first seen now: its record stands somewhere before the head */
	if (strncmp(r->owners[slot].name, info.name, sizeof(info.name))) {
		memcpy(r->owners[slot].name, info.name, sizeof(info.name));
		r->owners[slot].pos = source_head(r->source);
	}
	if (source_pos(r->source) < r->owners[slot].pos)
		return -EAGAIN;
	w->dev = dev;
	w->start = info.start_sector;
	w->sectors = info.sectors;
	if (w->fd < 0)
		ret = open_block(dev);
	if (ret >= 0 && w->fd < 0)
		w->fd = ret;
	return ret < 0 ? ret : 0;
}

static void release(struct resync *r)
{
	for (int i = 0; i < PARTS; i++)
		if (r->parts[i].state == READING)
			return;
	for (int i = 0; i < ASR_DISKS_MAX; i++)
		close_lower(&r->lowers[i]);
	free(r->buffers);
	r->buffers = NULL;
}

static int need_buffers(struct resync *r)
{
	if (r->buffers)
		return 0;
	r->buffers = aligned_alloc(4096, (size_t)PARTS * PART_BYTES);
	if (!r->buffers)
		return -ENOMEM;
	for (int i = 0; i < PARTS; i++)
		r->parts[i].buf = r->buffers + (size_t)i * PART_BYTES;
	return 0;
}

/* ------------------------------------------------------- taken chunks */

static void tell(struct resync *r, unsigned long request, uint32_t slot, uint64_t chunk, uint64_t count)
{
	struct asr_dirty d = { .slot = slot, .chunk = chunk, .count = count };

	source_ioctl(r->source, request, &d);	/* the disk may have left: nothing to do then */
}

/* Taken again: what was given to the vault before may no longer be given back to the kernel as
   clean, until the end of this round says with which frame */
static void hold_runs(struct resync *r, const struct part *p)
{
	for (uint32_t i = 0; i < r->run_count; i++) {
		struct run *o = &r->runs[i];

		if (o->slot == p->slot && o->chunk < p->chunk + p->count && p->chunk < o->chunk + o->count)
			o->frame_no = UINT64_MAX;
	}
}

static void note_run(struct resync *r, const struct part *p)
{
	r->in_flight += p->count * CHUNK_BYTES;
	r->runs[r->run_count++] = (struct run){ p->frame_no, p->chunk, p->count, p->slot };
}

static void put_back(struct resync *r, struct part *p)
{
	tell(r, ASR_IOC_DIRTY_SET, p->slot, p->chunk, p->count);
	tell(r, ASR_IOC_DIRTY_ACK, p->slot, p->chunk, p->count);
	if (p->state == BAD)
		r->careful = true;
	r->due = now_ns() + (p->state == BAD ? RETRY_NS : SOON_NS);
	p->state = FREE;
}

static uint64_t dirty_chunks(struct resync *r, bool *disks)
{
	struct asr_group_info info = { .name = "" };

	snprintf(info.name, sizeof(info.name), "%s", r->group);
	if (source_ioctl(r->source, ASR_IOC_GROUP_INFO, &info))
		return 0;
	if (disks)
		*disks = info.disks || source_is_file(r->source);
	return info.dirty_chunks;
}

/* ------------------------------------------------------------- reading */

static void read_done(struct loop_op *op, int res, unsigned int flags)
{
	struct part *p = op->arg;
	struct resync *r = p->r;

	p->state = res == (int)(p->sectors * 512) ? READY : BAD;
	if (p->state == BAD && !r->said_error && !r->dying) {
		r->said_error = true;
		log_err("group %s: cannot read disk %u at sector %llu below asr: %s; it stays dirty and is tried again",
			r->group, p->slot, (unsigned long long)p->chunk * ASR_CHUNK_SECTORS,
			res < 0 ? strerror(-res) : "short read");
	}
	if (r->phase != ROUND)
		p->state = FREE;	/* the round was given up, the chunks given back */
	if (r->dying)
		resync_destroy(r);
	else
		r->kick(r->arg);
}

static void start_read(struct resync *r, struct part *p)
{
	struct lower *w = &r->lowers[p->slot];
	uint64_t sector = p->chunk * ASR_CHUNK_SECTORS, n = p->count * ASR_CHUNK_SECTORS;
	int ret = open_lower(r, p->slot);

	p->done = 0;
	p->sectors = 0;
	p->frame_no = 0;
	if (ret == -EAGAIN) {
		p->state = EARLY;
		return;
	}
	if (ret) {
		if (!r->said_error)
			log_err("group %s: cannot open the device below disk %u: %s", r->group, p->slot,
				strerror(-ret));
		r->said_error = true;
		p->state = BAD;
		return;
	}
	if (sector >= w->sectors)
		n = 0;			/* the disk has shrunk */
	else if (n > w->sectors - sector)
		n = w->sectors - sector;
	p->sectors = (uint32_t)n;
	p->state = n ? READING : READY;
	p->op = (struct loop_op){ .done = read_done, .arg = p };
	if (n)
		loop_read(r->loop, &p->op, w->fd, p->buf, n * 512, (w->start + sector) * 512);
}

/* The next dirty run: 1, 0: the scan is through, -errno */
static int fetch(struct resync *r, struct part *p, uint64_t most)
{
	struct asr_dirty d = { .slot = r->slot, .chunk = r->chunk };
	int ret;

	for (;;) {
		d.count = r->careful ? 1 : most < PART_CHUNKS ? most : PART_CHUNKS;
		ret = source_ioctl(r->source, ASR_IOC_DIRTY_FETCH, &d);
		if (!ret) {
			p->slot = r->slot;
			p->chunk = d.chunk;
			p->count = d.count;
			hold_runs(r, p);
			r->chunk = d.chunk + d.count;
			r->found = true;
			return 1;
		}
		if (ret != -ENODATA && ret != -ENOENT)
			return ret;
		r->chunk = d.chunk = 0;
		d.slot = ++r->slot;
		if (r->slot < ASR_DISKS_MAX)
			continue;
		r->slot = d.slot = 0;
		if (!r->found)
			return 0;
		r->found = r->careful = false;	/* once more from the start, until a whole scan finds nothing */
	}
}

static int start_round(struct resync *r, uint64_t chunks)
{
	int ret = need_buffers(r);

	r->part = r->filled = 0;
	while (!ret && chunks && r->filled < PARTS) {
		ret = fetch(r, &r->parts[r->filled], chunks);
		if (ret <= 0)
			break;
		chunks -= r->parts[r->filled].count;
		start_read(r, &r->parts[r->filled++]);
		ret = 0;
	}
	return r->filled ? 1 : ret;
}

/* ------------------------------------------------------------ emitting */

static int put(struct resync *r, uint16_t kind, uint32_t slot, uint64_t sector, uint32_t sectors,
	       const uint8_t *data, uint64_t *frame_no)
{
	struct asr_rec rec = {
		.kind = kind, .disk = (uint16_t)slot, .sector = sector, .sectors = sectors,
		.payload_bytes = data ? sectors * 512 : 0,
	};

	return r->emit(r->arg, &rec, data, frame_no);
}

static int flush_zero(struct resync *r)
{
	uint64_t frame_no;
	int ret = 0;

	if (r->zero.sectors)
		ret = put(r, ASR_KIND_SYNC_ZEROES, r->zero.slot, r->zero.sector, r->zero.sectors, NULL, &frame_no);
	if (ret)
		return ret;
	r->zero.sectors = 0;
	return 0;
}

static int add_zero(struct resync *r, uint32_t slot, uint64_t sector, uint32_t sectors)
{
	int ret = 0;

	if (r->zero.slot != slot || r->zero.sector + r->zero.sectors != sector)
		ret = flush_zero(r);
	if (ret)
		return ret;
	if (!r->zero.sectors) {
		r->zero.slot = slot;
		r->zero.sector = sector;
	}
	r->zero.sectors += sectors;
	return 0;
}

/* Sectors at p->done that go together: zero chunks one by one, data up to a record's size */
static uint32_t next_piece(const struct part *p, bool *zero)
{
	uint32_t at = p->done, n = 0, chunk;

	do {
		chunk = p->sectors - at < ASR_CHUNK_SECTORS ? p->sectors - at : ASR_CHUNK_SECTORS;
		*zero = batch_is_zero(p->buf + at * 512ull, chunk * 512ull);
		if (*zero) {
			*zero = !n;
			return n ? n : chunk;
		}
		n += chunk;
		at += chunk;
	} while (at < p->sectors && n + ASR_CHUNK_SECTORS <= SYNC_SECTORS);
	return n;
}

static int emit_part(struct resync *r, struct part *p)
{
	while (p->done < p->sectors) {
		uint64_t sector = p->chunk * ASR_CHUNK_SECTORS + p->done;
		bool zero;
		uint32_t n = next_piece(p, &zero);
		int ret;

		if (zero)
			ret = add_zero(r, p->slot, sector, n);
		else if (!(ret = flush_zero(r)))
			ret = put(r, ASR_KIND_SYNC, p->slot, sector, n, p->buf + p->done * 512ull, &p->frame_no);
		if (ret)
			return ret;
		p->done += n;
	}
	return 0;
}

static enum resync_go emit_round(struct resync *r)
{
	uint64_t frame_no = 0;
	int i;

	for (; r->part < r->filled; r->part++) {
		struct part *p = &r->parts[r->part];

		if (p->state == READING)
			return RESYNC_HOLD;
		if (p->state == BAD || p->state == EARLY)
			put_back(r, p);
		else if (p->state == READY && emit_part(r, p))
			return RESYNC_HOLD;
	}
	if (flush_zero(r) || r->emit(r->arg, NULL, NULL, &frame_no))
		return RESYNC_HOLD;
	for (uint32_t k = 0; k < r->run_count; k++)
		if (r->runs[k].frame_no == UINT64_MAX)
			r->runs[k].frame_no = frame_no;
	for (i = 0; i < r->filled; i++) {
		struct part *p = &r->parts[i];

		if (p->state == FREE)
			continue;
		p->frame_no = frame_no;	/* zeroes may have gone into a later frame than its data */
		note_run(r, p);
		r->done_bytes += p->sectors * 512ull;
		p->state = FREE;
	}
	r->turn_pos = source_pos(r->source) + SHARE_BYTES;
	if (r->turn_pos > source_head(r->source))
		r->turn_pos = source_head(r->source);
	r->phase = SCAN;
	return RESYNC_AGAIN;
}

/* --------------------------------------------------------- the machine */

static enum resync_go begin(struct resync *r)
{
	uint64_t frame_no;
	bool disks = false;

	dirty_chunks(r, &disks);
	if (!disks) {
		r->due = now_ns() + RETRY_NS;	/* nothing to be consistent with, yet */
		return RESYNC_FREE;
	}
	if (put(r, ASR_KIND_RESYNC_BEGIN, ASR_DISK_NONE, 0, 0, NULL, &frame_no))
		return RESYNC_FREE;
	r->phase = SCAN;
	r->slot = 0;
	r->chunk = 0;
	r->found = r->rescan = r->careful = false;
	r->began_ns = now_ns();
	r->done_bytes = 0;
	log_info("group %s: resync begins, %llu MiB dirty", r->group,
		 (unsigned long long)(dirty_chunks(r, NULL) * CHUNK_BYTES >> 20));
	return RESYNC_AGAIN;
}

/* In TRACK: back to CAPTURE, once all that the ring holds has been read */
static enum resync_go capture(struct resync *r)
{
	int ret;

	/* all of it durable, too: the ring begins empty then, and lasts longest */
	if (source_tail(r->source) != source_head(r->source))
		return RESYNC_FREE;
	ret = source_ioctl(r->source, ASR_IOC_CAPTURE, NULL);
	if (!ret)
		return RESYNC_AGAIN;
	r->due = now_ns() + (ret == -ENOSPC ? 5 * SOON_NS : RETRY_NS);
	return RESYNC_FREE;
}

/* Chunks that may be read now, without making the ring wait for them */
static uint64_t allowance(struct resync *r, bool readable)
{
	uint64_t pos = source_pos(r->source), quarter = source_bytes(r->source) / 4;
	uint64_t used = source_head(r->source) - source_tail(r->source);

	if ((readable && pos < r->turn_pos) || used > 3 * quarter || r->run_count + PARTS > RUNS)
		return 0;
	for (int i = 0; i < PARTS; i++)
		if (r->parts[i].state == READING)	/* of a round given up */
			return 0;
	if (used > quarter)
		return now_ns() - r->last_round_ns > TRICKLE_NS ? 1 : 0;
	return r->in_flight < quarter ? (quarter - r->in_flight + CHUNK_BYTES - 1) / CHUNK_BYTES : 0;
}

static enum resync_go scan(struct resync *r, bool readable)
{
	uint64_t chunks;
	int ret;

	if (source_state(r->source) == ASR_STATE_TRACK)
		return capture(r);
	chunks = allowance(r, readable);
	if (!chunks)
		return RESYNC_FREE;
	r->last_round_ns = now_ns();
	ret = start_round(r, chunks);
	if (ret > 0) {
		r->phase = ROUND;
		return RESYNC_AGAIN;
	}
	if (ret == 0 && r->rescan) {
		r->rescan = false;
		return RESYNC_AGAIN;
	}
	if (ret == 0) {
		r->phase = PASSING;
		r->end_pos = source_head(r->source);
		return RESYNC_AGAIN;
	}
	r->due = now_ns() + (ret == -EAGAIN || ret == -EBUSY ? SOON_NS : RETRY_NS);
	return RESYNC_FREE;
}

enum resync_go resync_step(struct resync *r, bool readable)
{
	if (r->phase == ROUND)
		return emit_round(r);
	if (r->due && r->due > now_ns())
		return RESYNC_FREE;
	r->due = 0;
	switch (r->phase) {
	case WANTED:
		return begin(r);
	case SCAN:
		return scan(r, readable);
	case PASSING:
		if (source_pos(r->source) < r->end_pos ||
		    put(r, ASR_KIND_RESYNC_END, ASR_DISK_NONE, 0, 0, NULL, &r->end_frame))
			return RESYNC_FREE;
		r->phase = ENDING;
		return RESYNC_FREE;
	default:
		return RESYNC_FREE;
	}
}

void resync_want(struct resync *r)
{
	r->consistent = false;
	r->rescan = true;
	r->due = 0;
	if (r->phase == IDLE || r->phase == ENDING)
		r->phase = WANTED;
	else if (r->phase == PASSING)
		r->phase = SCAN;
}

void resync_open(struct resync *r, bool consistent)
{
	r->phase = IDLE;
	r->consistent = consistent;
	r->run_count = 0;
	r->in_flight = 0;
	r->turn_pos = 0;
	r->due = 0;
	memset(r->owners, 0, sizeof(r->owners));	/* the ring is read again from what is durable */
	if (!consistent || dirty_chunks(r, NULL))
		resync_want(r);
}

void resync_lost(struct resync *r)
{
	source_ioctl(r->source, ASR_IOC_DIRTY_RETURN, NULL);
	r->run_count = 0;
	r->zero.sectors = 0;
	r->phase = OFF;
	for (int i = 0; i < PARTS; i++)
		if (r->parts[i].state != READING)
			r->parts[i].state = FREE;
}

static void ended(struct resync *r)
{
	r->phase = IDLE;
	r->consistent = true;
	r->said_error = false;
	release(r);
	log_info("group %s: consistent; %llu MiB were read in %.1f s", r->group,
		 (unsigned long long)(r->done_bytes >> 20), (double)(now_ns() - r->began_ns) / 1e9);
	if (dirty_chunks(r, NULL))
		resync_want(r);
}

void resync_acked(struct resync *r, uint64_t frame_no)
{
	uint32_t kept = 0;

	for (uint32_t i = 0; i < r->run_count; i++) {
		const struct run *o = &r->runs[i];

		if (o->frame_no > frame_no) {
			r->runs[kept++] = *o;
			continue;
		}
		tell(r, ASR_IOC_DIRTY_ACK, o->slot, o->chunk, o->count);
		r->in_flight -= o->count * CHUNK_BYTES;
	}
	r->run_count = kept;
	if (r->phase == ENDING && r->end_frame <= frame_no)
		ended(r);
}

/* -------------------------------------------------------- life, status */

int resync_create(struct loop *l, struct source *source, const char *group,
		  resync_emit *emit, kick_fn *kick, void *arg, struct resync **out)
{
	struct resync *r = calloc(1, sizeof(*r));

	if (!r || !(r->group = strdup(group))) {
		free(r);
		return -ENOMEM;
	}
	r->loop = l;
	r->source = source;
	r->emit = emit;
	r->kick = kick;
	r->arg = arg;
	for (int i = 0; i < ASR_DISKS_MAX; i++)
		r->lowers[i].fd = -1;
	for (int i = 0; i < PARTS; i++)
		r->parts[i].r = r;
	*out = r;
	return 0;
}

void resync_destroy(struct resync *r)
{
	if (!r)
		return;
	r->dying = true;
	r->phase = OFF;
	for (int i = 0; i < PARTS; i++)
		if (r->parts[i].state == READING)
			return;
	release(r);
	free(r->group);
	free(r);
}

bool resync_consistent(const struct resync *r)
{
	return r->consistent;
}

bool resync_active(const struct resync *r)
{
	return r->phase >= WANTED;
}

uint64_t resync_due(const struct resync *r)
{
	return r->phase >= WANTED ? r->due : 0;
}

json_t *resync_status(struct resync *r)
{
	uint64_t left = resync_active(r) ? dirty_chunks(r, NULL) * CHUNK_BYTES : 0;
	uint64_t done = r->done_bytes > r->in_flight ? r->done_bytes - r->in_flight : 0;
	double seconds = (double)(now_ns() - r->began_ns) / 1e9, rate;

	rate = r->began_ns && seconds > 0 && resync_active(r) ? (double)done / seconds : 0;
	return json_pack("{s:I, s:I, s:f, s:f}", "done_bytes", (json_int_t)done, "total_bytes",
			 (json_int_t)(done + left), "bytes_per_s", rate,
			 "eta_s", rate > 0 ? (double)left / rate : 0.0);
}
