// SPDX-License-Identifier: Apache-2.0
/*
 * Brings the copy in line with the disks: the first copy, the return from
 * TRACK, and whatever else left the dirty map not empty.
 *
 * Design. One loop over the dirty map, beside the consumption of the ring:
 *
 *   WANTED   BEGIN goes into the stream: from here on it is not consistent
 *   SCAN     back to CAPTURE first, if the kernel tracks. Dirty chunks are taken,
 *            some windows ahead, and the vault is asked what it has there
 *   ROUND    chunks of answered windows are read from the lower device; the
 *            ring is not consumed meanwhile, so what is emitted stands at C, the
 *            reader's position before they were read. All records before C are
 *            on the disk already, newer ones come after and win
 *   PASSING  nothing is dirty; E is the head after the last read: a chunk may
 *            have been read as new as that. The ring is consumed up to E
 *   ENDING   END is in the stream; once durable, the copy is consistent
 *
 * Blocks of 4 KiB that equal the vault's copy (compare.c) are left out; what
 * differs or is not known travels, zeroes as a word only. Reads go on as long as
 * a round does, some at a time, at the speed of the device when nothing differs.
 *
 * The ring comes first. A round ends soon after something stands in the ring, and
 * that is consumed; what is being read, and what was emitted and is not durable yet,
 * is a quarter of the ring at most, for the ring waits for the one and its
 * acknowledgements queue up behind the other; and while more
 * than a quarter of the ring is in use, only single chunks are read now and
 * then, so that a busy disk still becomes consistent some time.
 *
 * A chunk that was taken is given back to the kernel as clean when what was emitted
 * of it is durable, and the frames up to the vault's answer are; a lost connection
 * makes it dirty again. A chunk that is taken a second time belongs to that time.
 *
 * A read that does not end for STUCK_NS is given up, with its disk, until it ends.
 *
 * Invariants. END is not emitted when anything has called for a resync since
 * the scan that found nothing, nor while a disk of the group is not there.
 *
 * Context. The loop's thread; reads are asynchronous, opening the device is not.
 */
#include <errno.h>
#include <string.h>

#include "resync.h"

static void release(struct resync *r)
{
	for (int i = 0; i < PARTS; i++)
		if (r->parts[i].state == READING || r->parts[i].state == STUCK)
			return;
	lower_close(&r->lowers);
	free(r->buffers);
	r->buffers = NULL;
}

/* Who puts a disk back in must find the device that was below it closed. Not under a read: its
   number might be another file's before it is submitted. */
void resync_let_go(struct resync *r)
{
	for (uint32_t slot = 0; slot < ASR_DISKS_MAX; slot++) {
		bool reads = false;

		for (int i = 0; i < PARTS; i++)
			reads |= (r->parts[i].state == READING || r->parts[i].state == STUCK) &&
				 r->parts[i].slot == slot;
		if (!reads && lower_is_gone(&r->lowers, slot))
			lower_let_go(&r->lowers, slot);
	}
}

static void free_all(struct resync *r)
{
	release(r);
	if (r->buffers)
		return;			/* a read is still under way */
	free(r->group);
	free(r);
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

/* ------------------------------------------------------------- reading */

static void read_done(struct loop_op *op, int res, unsigned int flags)
{
	struct part *p = op->arg;
	struct resync *r = p->r;

	if (p->state == STUCK) {
		r->hung[p->slot]--;
		r->rescan = true;	/* its disk was left out meanwhile */
		log_warn("group %s: the read of disk %u has ended", r->group, p->slot);
	}
	p->state = !p->range ? FREE : res == (int)(p->sectors * 512) ? READY : BAD;
	if (p->state == BAD && !r->said_error && !r->dying) {
		r->said_error = true;
		log_err("group %s: cannot read disk %u at sector %llu below asr: %s; it stays dirty and is tried again",
			r->group, p->slot, (unsigned long long)p->chunk * ASR_CHUNK_SECTORS,
			res < 0 ? strerror(-res) : "short read");
	}
	if (r->dying)
		free_all(r);
	else
		r->a.kick(r->a.arg);
}

static void start_read(struct resync *r, struct part *p)
{
	struct lower *w = &r->lowers.disk[p->slot];
	uint64_t sector = p->chunk * ASR_CHUNK_SECTORS, n = p->count * ASR_CHUNK_SECTORS;
	int ret = sweep_open(r, p->slot, &ret) ? 0 : ret;

	p->done = p->sectors = 0;
	p->frame_no = p->emitted = 0;
	p->zero = p->same = p->retaken = false;
	p->since_ns = now_ns();
	r->line[r->in_line++] = p;
	p->range->parts++;
	if (ret) {
		p->state = ret == -EAGAIN ? EARLY : BAD;
		return;
	}
	if (sector >= w->sectors)
		n = 0;			/* the disk has shrunk */
	else if (n > w->sectors - sector)
		n = w->sectors - sector;
	p->sectors = (uint32_t)n;
	p->state = n ? READING : READY;
	p->op = (struct loop_op){ .done = read_done, .arg = p };
	r->reading += n * 512;
	r->round_bytes += n * 512;
	r->tokens -= r->tokens < n * 512 ? r->tokens : n * 512;
	if (n)
		loop_read(r->a.loop, &p->op, w->fd, p->buf, n * 512, (w->start + sector) * 512);
}

static struct part *free_part(struct resync *r, uint32_t slot)
{
	struct part *p = NULL;
	int here = 0;

	for (int i = 0; i < PARTS; i++) {
		if (r->parts[i].state == FREE)
			p = &r->parts[i];
		else
			here += r->parts[i].slot == slot && r->parts[i].state != HELD;
	}
	return here < PARTS_A_DISK ? p : NULL;
}

/* The first range with something to read, its window answered; NULL: none */
static struct range *reading_range(struct resync *r)
{
	while (r->ranges_used) {
		struct range *g = &r->ranges[r->first];

		while (r->at < g->chunks && !sweep_bit_get(g->want, r->at))
			r->at++;
		if (r->at < g->chunks)
			return g->w.state == WINDOW_READY ? g : NULL;
		if (g->parts)
			return NULL;	/* its last parts want to be compared */
		sweep_drop(r);
	}
	return NULL;
}

static bool may_read(struct resync *r, bool readable)
{
	uint64_t quarter = source_bytes(r->a.source) / 4;

	if (!r->round_left || (r->limit && !r->tokens) || r->paused || r->run_count + RUNS_SLACK >= RUNS)
		return false;
	/* something waits in the ring: the round was long enough */
	if (readable && (r->round_bytes >= quarter || r->round_bytes >= SHARE_BYTES ||
			 now_ns() - r->last_round_ns > HOLD_NS))
		return false;
	return r->in_flight + r->reading < quarter;
}

static void refill(struct resync *r, bool readable)
{
	struct range *g;
	struct part *p;

	while (may_read(r, readable)) {
		/* may_read says that this is less than a quarter of the ring */
		uint64_t room = source_bytes(r->a.source) / 4 - r->in_flight - r->reading;
		uint64_t most = r->careful ? 1 : PART_CHUNKS;

		if (r->ranges_used < WINDOWS)
			sweep_gather(r);
		g = reading_range(r);
		p = g ? free_part(r, g->w.slot) : NULL;
		if (!p)
			return;
		if (r->hung[g->w.slot]) {	/* what was taken of it before goes back */
			struct asr_dirty d = { .slot = g->w.slot, .count = 1,
					       .chunk = g->w.sector / ASR_CHUNK_SECTORS + r->at };

			sweep_bit(g->want, r->at, false);
			sweep_give_back(r, &d, -EIO);
			continue;
		}
		most = most < r->round_left ? most : r->round_left;
		room = (room + CHUNK_BYTES - 1) / CHUNK_BYTES;
		most = most < room ? most : room;
		p->slot = g->w.slot;
		p->range = g;
		p->chunk = g->w.sector / ASR_CHUNK_SECTORS + r->at;
		for (p->count = 0; p->count < most && r->at < g->chunks && sweep_bit_get(g->want, r->at); p->count++)
			sweep_bit(g->want, r->at++, false);
		r->round_left -= p->count;
		start_read(r, p);
	}
}

/* ------------------------------------------------------------ emitting */

/* The stream only points at what was emitted, until its frame is sealed: then the buffers are free */
static void sealed(struct resync *r, uint64_t frame_no)
{
	for (int i = 0; i < PARTS; i++)
		if (r->parts[i].state == HELD && r->parts[i].frame_no <= frame_no)
			r->parts[i].state = FREE;
}

static int flush(struct resync *r)
{
	uint64_t frame_no;
	int ret = r->flushed ? 0 : r->a.emit(r->a.arg, NULL, NULL, &frame_no);

	if (ret)
		return ret;
	r->flushed = true;
	sealed(r, UINT64_MAX);
	return 0;
}

static int put(struct resync *r, const struct range *g, uint16_t kind, uint32_t slot, uint64_t sector,
	       uint32_t sectors, const uint8_t *data, uint64_t *frame_no)
{
	struct asr_rec rec = {
		.kind = kind, .disk = (uint16_t)slot, .sector = sector, .sectors = sectors,
		.payload_bytes = data ? sectors * 512 : 0,
	};
	int ret = r->a.emit(r->a.arg, &rec, data, frame_no);

	if (!ret && sectors)
		compare_saw(r->a.compare, g ? &g->w : NULL, rec.disk, sector, sectors);
	r->flushed &= ret != 0;
	if (!ret)
		sealed(r, *frame_no - 1);
	return ret;
}

/* Zeroes may be of several ranges, all of them read: none of their windows is asked again */
static int flush_zero(struct resync *r)
{
	const struct range *g = r->ranges_used ? &r->ranges[r->first] : NULL;
	uint64_t frame_no;
	int ret = 0;

	if (r->zero.sectors)
		ret = put(r, g, ASR_KIND_SYNC_ZEROES, r->zero.slot, r->zero.sector, r->zero.sectors, NULL, &frame_no);
	if (ret || !r->zero.sectors)
		return ret;
	r->zero.sectors = 0;
	sweep_zeroes(r, frame_no);
	for (uint32_t i = 0; i < r->in_line; i++)	/* the one that is being emitted */
		if (r->line[i]->zero) {
			r->line[i]->zero = false;
			r->line[i]->frame_no = frame_no;
		}
	return 0;
}

static int add_zero(struct resync *r, struct part *p, uint64_t sector, uint32_t sectors)
{
	int ret = 0;

	if (r->zero.slot != p->slot || r->zero.sector + r->zero.sectors != sector ||
	    r->zero.sectors + sectors > ZERO_SECTORS)
		ret = flush_zero(r);
	if (ret)
		return ret;
	if (!r->zero.sectors) {
		r->zero.slot = p->slot;
		r->zero.sector = sector;
	}
	r->zero.sectors += sectors;
	p->zero = true;
	return 0;
}

enum fate { SKIP, ZERO, DATA };

/* Zeroes that are to be emitted still: the vault's digest is not what it will have there */
static bool zero_pending(const struct resync *r, uint32_t slot, uint64_t sector, uint32_t sectors)
{
	return r->zero.slot == slot && sector < r->zero.sector + r->zero.sectors && r->zero.sector < sector + sectors;
}

/* What becomes of the block at p->done, and how many sectors it has */
static enum fate fate_of(const struct resync *r, const struct part *p, uint32_t at, uint32_t *sectors,
			 enum compare_result *result)
{
	uint64_t sector = p->chunk * ASR_CHUNK_SECTORS + at;
	const uint8_t *data = p->buf + at * 512ull;

	*sectors = p->sectors - at < ASR_BLOCK_SECTORS ? p->sectors - at : ASR_BLOCK_SECTORS;
	*result = *sectors < ASR_BLOCK_SECTORS || zero_pending(r, p->slot, sector, *sectors) ? COMPARE_UNKNOWN :
		  compare_block(&p->range->w, sector, data);
	if (*result == COMPARE_SAME)
		return SKIP;
	return batch_is_zero(data, *sectors * 512ull) ? ZERO : DATA;
}

/* Sectors at p->done that go together: up to a record's size of one fate */
static uint32_t next_piece(struct resync *r, const struct part *p, enum fate *fate)
{
	uint64_t compared = 0, differing = 0;
	uint32_t n = 0, sectors;
	enum compare_result result;

	do {
		enum fate f = fate_of(r, p, p->done + n, &sectors, &result);

		if (n && f != *fate)
			break;
		*fate = f;
		n += sectors;
		compared += result == COMPARE_SAME || result == COMPARE_DIFFERS ? sectors : 0;
		differing += result == COMPARE_DIFFERS ? sectors : 0;
	} while (p->done + n < p->sectors && n + ASR_BLOCK_SECTORS <= SYNC_SECTORS);
	r->compared_bytes += compared * 512;
	r->differing_bytes += differing * 512;
	return n;
}

static int emit_part(struct resync *r, struct part *p)
{
	while (p->done < p->sectors) {
		uint64_t sector = p->chunk * ASR_CHUNK_SECTORS + p->done;
		uint64_t compared = r->compared_bytes, differing = r->differing_bytes;
		enum fate fate = DATA;
		uint32_t n = next_piece(r, p, &fate);
		int ret = 0;

		if (fate == SKIP)
			p->same = true;
		else if (fate == ZERO)
			ret = add_zero(r, p, sector, n);
		else if (!(ret = flush_zero(r)))
			ret = put(r, p->range, ASR_KIND_SYNC, p->slot, sector, n, p->buf + p->done * 512ull,
				  &p->frame_no);
		if (ret) {
			r->compared_bytes = compared;
			r->differing_bytes = differing;
			return ret;
		}
		if (fate == DATA)
			p->emitted += n * 512ull;
		p->done += n;
	}
	return 0;
}

/* The first part of the line is done with */
static void part_end(struct resync *r, struct part *p)
{
	r->reading -= p->sectors * 512ull;
	p->range->parts--;
	memmove(r->line, r->line + 1, --r->in_line * sizeof(*r->line));
}

static bool give_up(struct resync *r, struct part *p)
{
	if (now_ns() - p->since_ns < STUCK_NS)
		return false;
	if (!r->hung[p->slot]++)
		log_err("group %s: a read of disk %u at sector %llu does not end: the disk is left alone until it does",
			r->group, p->slot, (unsigned long long)p->chunk * ASR_CHUNK_SECTORS);
	p->state = STUCK;
	sweep_put_back(r, p);
	part_end(r, p);
	p->range = NULL;
	return true;
}

static enum resync_go end_round(struct resync *r)
{
	if (flush_zero(r) || flush(r))
		return RESYNC_HOLD;
	r->turn_pos = source_pos(r->a.source) + SHARE_BYTES;
	if (r->turn_pos > source_head(r->a.source))
		r->turn_pos = source_head(r->a.source);
	r->phase = SCAN;
	return RESYNC_AGAIN;
}

static int held(const struct resync *r)
{
	int n = 0;

	for (int i = 0; i < PARTS; i++)
		n += r->parts[i].state == HELD;
	return n;
}

static enum resync_go run_round(struct resync *r, bool readable)
{
	struct part *p;

	refill(r, readable);
	if (!r->in_line)
		return end_round(r);
	p = r->line[0];
	if (p->state == READING)
		return give_up(r, p) ? RESYNC_AGAIN : RESYNC_HOLD;
	if (p->state == READY && emit_part(r, p))
		return RESYNC_HOLD;
	if (p->state == READY) {
		sweep_note(r, p);
		r->done_bytes += p->sectors * 512ull;
		r->shipped_bytes += p->emitted;
	} else {
		sweep_put_back(r, p);
	}
	part_end(r, p);
	p->state = p->state == READY && p->emitted && !r->flushed ? HELD : FREE;
	return held(r) > HELD_MAX && flush(r) ? RESYNC_HOLD : RESYNC_AGAIN;
}

/* --------------------------------------------------------- the machine */

static enum resync_go begin(struct resync *r)
{
	uint64_t frame_no;
	bool disks = false;

	sweep_dirty(r, &disks);
	if (!disks) {
		r->due = now_ns() + RETRY_NS;	/* nothing to be consistent with, yet */
		return RESYNC_FREE;
	}
	if (put(r, NULL, ASR_KIND_RESYNC_BEGIN, ASR_DISK_NONE, 0, 0, NULL, &frame_no))
		return RESYNC_FREE;
	r->phase = SCAN;
	r->slot = 0;
	r->chunk = 0;
	r->found = r->rescan = r->careful = r->through = r->last_look = false;
	r->began_ns = now_ns();
	r->done_bytes = r->compared_bytes = r->differing_bytes = r->shipped_bytes = 0;
	log_info("group %s: resync begins, %llu MiB dirty", r->group,
		 (unsigned long long)(sweep_dirty(r, NULL) * CHUNK_BYTES >> 20));
	return RESYNC_AGAIN;
}

/* In TRACK: back to CAPTURE, once all that the ring holds has been read */
static enum resync_go capture(struct resync *r)
{
	int ret;

	/* all of it durable, too: the ring begins empty then, and lasts longest */
	if (source_tail(r->a.source) != source_head(r->a.source))
		return RESYNC_FREE;
	ret = source_ioctl(r->a.source, ASR_IOC_CAPTURE, NULL);
	if (!ret)
		return RESYNC_AGAIN;
	r->due = now_ns() + (ret == -ENOSPC ? 5 * SOON_NS : RETRY_NS);
	return RESYNC_FREE;
}

static void tokens_add(struct resync *r)
{
	uint64_t now = now_ns(), passed = now - r->tokens_ns, most = r->limit / 4;

	if (most < PART_BYTES)
		most = PART_BYTES;
	r->tokens += passed < 4 * NS_PER_S ? (uint64_t)((double)passed * (double)r->limit / 1e9) : most;
	if (r->tokens > most)
		r->tokens = most;
	r->tokens_ns = now;
}

/* Chunks that may be read now, without making the ring wait for them */
static uint64_t allowance(struct resync *r, bool readable)
{
	uint64_t pos = source_pos(r->a.source), quarter = source_bytes(r->a.source) / 4;
	uint64_t used = source_head(r->a.source) - source_tail(r->a.source);

	if ((readable && pos < r->turn_pos) || used > 3 * quarter)
		return 0;
	if (used > quarter)
		return now_ns() - r->last_round_ns > TRICKLE_NS ? 1 : 0;
	return UINT64_MAX;
}

/*
 * Nothing is dirty and nothing is under way. It counts if the pass that found so began then, with
 * all disks there: what is missing, or waits for the vault, may have made dirty what was looked at.
 */
static enum resync_go scanned(struct resync *r)
{
	bool looked = r->last_look;

	r->through = r->last_look = false;
	if (r->rescan) {
		r->rescan = false;
		return RESYNC_AGAIN;
	}
	if (resync_waits(r)) {
		r->due = now_ns() + RETRY_NS;
		return RESYNC_FREE;
	}
	if (!looked) {
		r->last_look = true;
		return RESYNC_AGAIN;
	}
	r->phase = PASSING;
	r->end_pos = source_head(r->a.source);
	return RESYNC_AGAIN;
}

static enum resync_go scan(struct resync *r, bool readable)
{
	struct range *g;
	int ret;

	if (source_state(r->a.source) == ASR_STATE_TRACK)
		return capture(r);
	if (r->paused)
		return RESYNC_FREE;
	ret = need_buffers(r);
	if (!ret)
		ret = sweep_gather(r);
	g = ret == -ENOMEM ? NULL : reading_range(r);
	if (!r->ranges_used && r->through && !r->ahead.count)
		return scanned(r);
	if (!g) {
		if (ret < 0 && !r->due)
			r->due = now_ns() + (ret == -EAGAIN || ret == -EBUSY ? SOON_NS : RETRY_NS);
		return RESYNC_FREE;
	}
	if (r->limit) {
		tokens_add(r);
		if (r->tokens < PART_BYTES) {
			r->due = now_ns() + (uint64_t)((double)(PART_BYTES - r->tokens) * 1e9 / (double)r->limit) + 1;
			return RESYNC_FREE;
		}
	}
	r->round_left = allowance(r, readable);
	if (!may_read(r, false) || !free_part(r, g->w.slot))
		return RESYNC_FREE;
	r->last_round_ns = now_ns();
	r->round_bytes = 0;
	r->phase = ROUND;
	return RESYNC_AGAIN;
}

enum resync_go resync_step(struct resync *r, bool readable)
{
	if (r->phase == ROUND)
		return run_round(r, readable);
	if (r->due && r->due > now_ns())
		return RESYNC_FREE;
	r->due = 0;
	switch (r->phase) {
	case WANTED:
		return begin(r);
	case SCAN:
		return scan(r, readable);
	case PASSING:
		if (source_pos(r->a.source) < r->end_pos ||
		    put(r, NULL, ASR_KIND_RESYNC_END, ASR_DISK_NONE, 0, 0, NULL, &r->end_frame))
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

static void drop_all(struct resync *r)
{
	while (r->ranges_used)
		sweep_drop(r);
	r->ahead.count = 0;
	r->run_count = 0;
	r->zero.sectors = 0;
	r->in_flight = r->reading = 0;
	for (uint32_t i = 0; i < r->in_line; i++) {
		r->line[i]->range = NULL;
		if (r->line[i]->state != READING)
			r->line[i]->state = FREE;
	}
	r->in_line = 0;
	sealed(r, UINT64_MAX);
}

void resync_open(struct resync *r, bool consistent, uint64_t frame_no)
{
	drop_all(r);
	r->phase = IDLE;
	r->consistent = consistent;
	r->acked_frame = frame_no;
	r->turn_pos = 0;
	r->due = 0;
	lower_forget(&r->lowers);	/* the ring is read again from what is durable */
	if (!consistent || sweep_dirty(r, NULL))
		resync_want(r);
}

void resync_lost(struct resync *r)
{
	source_ioctl(r->a.source, ASR_IOC_DIRTY_RETURN, NULL);
	drop_all(r);
	r->phase = OFF;
}

static void ended(struct resync *r)
{
	r->phase = IDLE;
	r->consistent = true;
	r->said_error = false;
	release(r);
	log_info("group %s: consistent; %llu MiB were read in %.1f s, %llu MiB compared, %llu MiB shipped", r->group,
		 (unsigned long long)(r->done_bytes >> 20), (double)(now_ns() - r->began_ns) / 1e9,
		 (unsigned long long)(r->compared_bytes >> 20), (unsigned long long)(r->shipped_bytes >> 20));
	if (sweep_dirty(r, NULL))
		resync_want(r);
}

void resync_acked(struct resync *r, uint64_t frame_no)
{
	sweep_acked(r, frame_no);
	if (r->phase == ENDING && r->end_frame <= frame_no)
		ended(r);
}

/* -------------------------------------------------------- life, status */

int resync_create(const struct resync_args *a, struct resync **out)
{
	struct resync *r = calloc(1, sizeof(*r));

	if (!r || !(r->group = strdup(a->group))) {
		free(r);
		return -ENOMEM;
	}
	r->a = *a;
	lower_init(&r->lowers, a->source);
	for (int i = 0; i < PARTS; i++)
		r->parts[i].r = r;
	*out = r;
	return 0;
}

void resync_destroy(struct resync *r)
{
	if (!r)
		return;
	drop_all(r);
	r->dying = true;
	r->phase = OFF;
	free_all(r);
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

void resync_limit(struct resync *r, uint64_t bytes_per_s, bool paused)
{
	r->limit = bytes_per_s;
	r->paused = paused;
	r->due = 0;
	r->tokens = 0;
	r->tokens_ns = now_ns();
	r->a.kick(r->a.arg);
}

const char *resync_waits(const struct resync *r)
{
	for (int i = 0; i < ASR_DISKS_MAX; i++)
		if (r->hung[i])
			return "a read of a disk does not end";
	return r->a.missing ? r->a.missing(r->a.arg) : NULL;
}

json_t *resync_status(struct resync *r)
{
	uint64_t left = resync_active(r) ? sweep_dirty(r, NULL) * CHUNK_BYTES : 0;
	uint64_t done = r->done_bytes > r->in_flight ? r->done_bytes - r->in_flight : 0;
	double seconds = (double)(now_ns() - r->began_ns) / 1e9, rate;
	const char *waits = resync_active(r) ? resync_waits(r) : NULL;

	rate = r->began_ns && seconds > 0 && resync_active(r) ? (double)done / seconds : 0;
	return json_pack("{s:I, s:I, s:f, s:f, s:I, s:I, s:I, s:I, s:b, s:s?}", "done_bytes", (json_int_t)done,
			 "total_bytes", (json_int_t)(done + left), "bytes_per_s", rate, "eta_s",
			 rate > 0 ? (double)left / rate : 0.0, "compared_bytes", (json_int_t)r->compared_bytes,
			 "differing_bytes", (json_int_t)r->differing_bytes, "shipped_bytes",
			 (json_int_t)r->shipped_bytes, "limit_bytes_per_s", (json_int_t)r->limit,
			 "paused", r->paused, "waits_for", waits);
}
