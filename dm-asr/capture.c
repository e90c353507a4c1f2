// SPDX-License-Identifier: GPL-2.0
/*
 * Capture: from a write to a record.
 *
 * Every write to a disk of the group takes these steps:
 *
 *   map      lock: does it overlap one in flight? then wait (K11)
 *                  reserve: position, sequence, time; header BUSY; head moves
 *            unlock
 *            copy the payload into the ring, once; the write goes down
 *   end_io   state COMMITTED, or DISCARDED and dirty
 *            lock: leave the list of records in flight; is a wake-up due?
 *            unlock; a write that stands behind a held mark waits for RELEASE
 *
 * Why this order. An application that needs A before B waits for A's
 * completion before it issues B. A is reserved before it is issued to the
 * lower device (K1), so it is reserved before B is. Whatever the disks, A
 * stands before B in the one ring of their group:
 *
 *        disk 1   |--- A ---|
 *        disk 2                |--- B ---|
 *        disk 1      |------- C -------|
 *
 *        ring     A   C        B             <- positions, each a cut
 *
 * C ran beside both and could be anywhere. The consumer reads in the ring's
 * order and stops at the first BUSY record (K2): as long as C is in flight it
 * has A only. So all it has read is on the disks, and all it has read is a
 * state the disks could have shown after a power cut.
 *
 * Overlaps. Two writes to one sector, in flight together, may end on the disk
 * in any order, and in the ring in the other one. So the later waits until the
 * earlier has completed. All writes in flight, those waiting included, are in a
 * table of their disk: dm splits writes at multiples of 128 KiB, hence each is
 * in one span and one bucket; discards and write-zeroes are not split and stand
 * in a list of their own when they are wider. A ticket gives the order of
 * arrival: a write waits for every overlapping one with a smaller ticket, and
 * nobody overtakes.
 *
 * A disk with a write-intent log: a write to a region whose bit is not durable
 * yet waits for it (intent.c), before it has a place in the ring.
 *
 * No record. When the ring is full the write waits for room a while if the
 * table says so (throttle_ms), then the group goes to TRACK: a dirty bit, set
 * before the write goes down, takes the place of the record (K4).
 *
 * Invariants
 *   A record in flight is in group->busy, in order of position.
 *   A write with ASR_IO_WAITING overlaps one before it that is `contended`.
 *   Nothing here allocates or sleeps; work submits what had to wait. Each disk
 *   has a queue and a workqueue of its own, for a submission may sleep in the
 *   device below: it holds up its own disk only, and not the one it stands on.
 *
 * Context: asr_capture_map in process context, asr_capture_end in any, the
 * work on target->queue_wq.
 */
#include "dm-asr.h"

/* ------------------------------------------------------------- overlaps */

static unsigned int bucket_of(const struct asr_io *io)
{
	return (io->sector >> ASR_SPAN_SHIFT) % ASR_BUCKETS;
}

static bool overlap(const struct asr_io *a, const struct asr_io *b)
{
	return a->sector < b->sector + b->sectors && b->sector < a->sector + a->sectors;
}

typedef bool visitor(struct asr_io *io, struct asr_io *other);

/* Shows io every other write that overlaps it, until one is the right one. */
static __always_inline struct asr_io *visit(struct asr_disk *d, struct asr_io *io,
					    visitor *stop)
{
	unsigned int n = io->wide ? ASR_BUCKETS : 1;
	unsigned int b = bucket_of(io);
	struct asr_io *o;

	for (; n; n--, b = (b + 1) % ASR_BUCKETS)
		hlist_for_each_entry(o, &d->buckets[b], node)
			if (overlap(io, o) && o != io && stop(io, o))
				return o;
	hlist_for_each_entry(o, &d->wide, node)
		if (overlap(io, o) && o != io && stop(io, o))
			return o;
	return NULL;
}

static __always_inline bool is_earlier(struct asr_io *io, struct asr_io *other)
{
	return other->ticket < io->ticket;
}

void asr_capture_retry_locked(struct asr_io *io)
{
	lockdep_assert_held(&io->t->group->lock);
	io->place = ASR_IO_QUEUED;
	if (list_empty(&io->t->queue))	/* else the work is on its way, in a tick at the latest */
		mod_delayed_work(io->t->queue_wq, &io->t->queue_work, 0);
	list_add_tail(&io->link, &io->t->queue);
}

/* io is done: a write that waits may have waited for it. */
static bool requeue_waiter(struct asr_io *io, struct asr_io *other)
{
	if (other->place == ASR_IO_WAITING)
		asr_capture_retry_locked(other);
	return false;
}

static void link_locked(struct asr_disk *d, struct asr_io *io)
{
	if (!io->sectors)
		return;
	hlist_add_head(&io->node, io->wide ? &d->wide : &d->buckets[bucket_of(io)]);
}

static void unlink_locked(struct asr_disk *d, struct asr_io *io)
{
	if (!io->sectors)
		return;
	__hlist_del(&io->node);
	if (unlikely(io->contended))
		visit(d, io, requeue_waiter);
}

/* ----------------------------------------------------- record or dirty bit */

static bool reserve_locked(struct asr_group *g, struct asr_io *io)
{
	struct asr_target *t = io->t;
	u32 payload = io->kind == ASR_KIND_WRITE ? io->sectors << SECTOR_SHIFT : 0;
	/* of memory to be written: a lower dm-crypt fails what is not whole blocks of its own */
	u32 align = t->strict && payload ? bdev_logical_block_size(t->dev->bdev) : 1;
	struct asr_rec *rec;

	rec = asr_ring_reserve_locked(g, io->kind, t->disk->slot, payload,
				      ASR_KEEP_WRITE, align);
	if (unlikely(!rec))
		return false;
	rec->sector = io->sector;
	rec->sectors = io->sectors;
	if (unlikely(g->state != ASR_STATE_CAPTURE)) {
		/* a nonsensical tail, seen just now, has ended capture */
		smp_store_release(&rec->state, ASR_REC_DISCARDED);
		return false;
	}
	rec->flags = io->flags;
	io->rec = rec;
	io->pos = rec->pos;
	io->how = ASR_IO_CAPTURED;
	list_add_tail(&io->link, &g->busy);
	if (io->sectors)
		t->disk->last_seq = rec->seq;
	if (payload) {
		g->writes++;
		g->write_bytes += payload;
	}
	return true;
}

static void track_locked(struct asr_group *g, struct asr_io *io)
{
	if (io->sectors)
		asr_dirty_set_locked(io->t->disk, io->sector, io->sectors);
	g->uncaptured++;
	io->how = ASR_IO_TRACKED;
}

/* Is the write still to wait for room? The first time starts the clock. */
static bool throttle(struct asr_io *io)
{
	unsigned int ms = io->t->throttle_ms;

	if (!ms || READ_ONCE(io->t->suspending))	/* dm waits for all I/O */
		return false;
	if (!io->deadline)
		io->deadline = (jiffies + msecs_to_jiffies(ms)) | 1;
	return time_before(jiffies, io->deadline);
}

/*
 * Lets io in: ASR_IO_FLYING when it has its record or dirty bits and may be
 * submitted, ASR_IO_WAITING behind an overlapping one, ASR_IO_LOGGING until the
 * bit of its region is durable, ASR_IO_QUEUED when there is no room yet.
 */
static __always_inline int enter_locked(struct asr_group *g, struct asr_io *io)
{
	struct asr_io *o = NULL;

	lockdep_assert_held(&g->lock);
	if (io->sectors)
		o = visit(io->t->disk, io, is_earlier);
	if (unlikely(o)) {
		o->contended = true;
		return ASR_IO_WAITING;
	}
	if (io->sectors && !asr_intent_covers_locked(io->t->disk->intent, io->sector, io->sectors) &&
	    !asr_intent_enter_locked(io->t->disk->intent, io->sector, io->sectors))
		return ASR_IO_LOGGING;
	if (likely(g->state == ASR_STATE_CAPTURE) && unlikely(!reserve_locked(g, io))) {
		if (g->state == ASR_STATE_CAPTURE && throttle(io))
			return ASR_IO_QUEUED;
		asr_group_set_state_locked(g, ASR_STATE_TRACK, ASR_WHY_RING_FULL);
	}
	if (unlikely(io->how != ASR_IO_CAPTURED))
		track_locked(g, io);
	io->hold = g->hold.on;
	return ASR_IO_FLYING;
}

/* ----------------------------------------------------------- on its way */

static void copy_payload(struct asr_group *g, struct asr_io *io)
{
	u64 pos = io->pos + sizeof(struct asr_rec);
	struct bvec_iter it;
	struct bio_vec bv;

	bio_for_each_segment(bv, io->bio, it) {
		void *p = asr_compat_map(&bv);

		asr_ring_write(&g->ring, pos, p, bv.bv_len);
		asr_compat_unmap(p);
		pos += bv.bv_len;
	}
}

static void strict_done(struct bio *bio)
{
	struct asr_strict_io *s = container_of(bio, struct asr_strict_io, bio);
	struct bio *clone = s->io.bio;

	clone->bi_status = bio->bi_status;
	bio_uninit(bio);
	bio_endio(clone);
}

/* The lower write out of the ring's own bytes; no allocation: part of io. */
static struct bio *strict_bio(struct asr_group *g, struct asr_io *io)
{
	struct asr_strict_io *s = container_of(io, struct asr_strict_io, io);
	u64 pos = io->pos + sizeof(struct asr_rec);
	u32 left = io->sectors << SECTOR_SHIFT;

	asr_compat_bio_init(&s->bio, io->bio, s->vecs, ASR_STRICT_VECS);
	bio_clone_blkg_association(&s->bio, io->bio);
	s->bio.bi_iter.bi_sector = io->bio->bi_iter.bi_sector;
	s->bio.bi_ioprio = io->bio->bi_ioprio;
	s->bio.bi_end_io = strict_done;
	while (left) {
		void *p = g->ring.data + (pos & g->ring.mask);
		u32 n = min_t(u32, left, PAGE_SIZE - offset_in_page(p));

		__bio_add_page(&s->bio, vmalloc_to_page(p), n, offset_in_page(p));
		pos += n;
		left -= n;
	}
	return &s->bio;
}

/* Fills the record. Returns the bio to send in place of the caller's, or NULL. */
static struct bio *prepare(struct asr_group *g, struct asr_io *io)
{
	if (io->how != ASR_IO_CAPTURED)
		return NULL;
	/* EAGAIN from below would leave a hole in the ring and a dirty chunk */
	io->bio->bi_opf &= ~REQ_NOWAIT;
	if (io->kind != ASR_KIND_WRITE || io->t->nocopy)
		return NULL;
	copy_payload(g, io);
	return io->t->strict ? strict_bio(g, io) : NULL;
}

static int kind_of(struct bio *bio)
{
	switch (bio_op(bio)) {
	case REQ_OP_WRITE:
		return bio_sectors(bio) ? ASR_KIND_WRITE : ASR_KIND_FLUSH;
	case REQ_OP_FLUSH:
		return ASR_KIND_FLUSH;
	case REQ_OP_WRITE_ZEROES:
		return ASR_KIND_ZEROES;
	case REQ_OP_DISCARD:
		return ASR_KIND_DISCARD;
	default:
		return -EOPNOTSUPP;
	}
}

/* io from a bio that is remapped; false: something dm should not have sent. */
static bool describe(struct asr_target *t, struct bio *bio, struct asr_io *io)
{
	int kind = kind_of(bio);

	if (unlikely(kind < 0))
		return false;
	io->t = t;
	io->bio = bio;
	io->kind = kind;
	io->sectors = bio_sectors(bio);
	io->sector = io->sectors ? bio->bi_iter.bi_sector - t->start : 0;
	io->flags = (bio->bi_opf & REQ_FUA ? ASR_RECF_FUA : 0) |
		    (bio->bi_opf & REQ_PREFLUSH && io->sectors ? ASR_RECF_FLUSH : 0);
	io->wide = io->sectors > ASR_SPAN_SECTORS - (io->sector & (ASR_SPAN_SECTORS - 1));
	io->contended = false;
	io->deadline = 0;
	return kind != ASR_KIND_WRITE || !WARN_ON_ONCE(io->wide);
}

/* Left out of line: nearly no write comes here. */
static noinline int put_off_locked(struct asr_group *g, struct asr_io *io, int place)
{
	if (io->bio->bi_opf & REQ_NOWAIT)
		return -EAGAIN;
	io->place = place;
	link_locked(io->t->disk, io);
	if (place == ASR_IO_WAITING) {
		g->overlaps++;
	} else if (place == ASR_IO_LOGGING) {
		list_add_tail(&io->link, &io->t->disk->intent->waiting);
	} else {
		list_add_tail(&io->link, &io->t->queue);
		queue_delayed_work(io->t->queue_wq, &io->t->queue_work, 1);
	}
	return 0;
}

int asr_capture_map(struct asr_target *t, struct bio *bio, struct asr_io *io)
{
	struct asr_group *g = t->group;
	struct bio *lower;
	int place, r = 0;

	if (unlikely(!describe(t, bio, io)))
		return DM_MAPIO_KILL;

	spin_lock_irq(&g->lock);
	io->ticket = ++g->ticket;
	place = enter_locked(g, io);
	if (likely(place == ASR_IO_FLYING)) {
		io->place = place;
		link_locked(t->disk, io);
	} else {
		r = put_off_locked(g, io, place);
	}
	spin_unlock_irq(&g->lock);

	if (unlikely(r)) {
		bio_wouldblock_error(bio);
		return DM_MAPIO_SUBMITTED;
	}
	if (unlikely(place != ASR_IO_FLYING))
		return DM_MAPIO_SUBMITTED;
	lower = prepare(g, io);
	if (likely(!lower))
		return DM_MAPIO_REMAPPED;
	asr_compat_submit(bio, lower);
	return DM_MAPIO_SUBMITTED;
}

/*
 * Takes one write of the queue that may go now. Writes that have to wait for
 * an overlapping one or for the log leave the queue on the way; at the first
 * that waits for room it ends, and *again is set.
 */
static struct asr_io *next_locked(struct asr_target *t, bool *again)
{
	struct asr_io *io;

	while ((io = list_first_entry_or_null(&t->queue, struct asr_io, link))) {
		list_del(&io->link);
		io->place = enter_locked(t->group, io);
		if (io->place == ASR_IO_FLYING)
			return io;
		if (io->place == ASR_IO_QUEUED) {
			list_add(&io->link, &t->queue);
			*again = true;
			return NULL;
		}
		if (io->place == ASR_IO_LOGGING)
			list_add_tail(&io->link, &io->t->disk->intent->waiting);
	}
	return NULL;
}

void asr_capture_work(struct work_struct *work)
{
	struct asr_target *t = container_of(to_delayed_work(work), struct asr_target, queue_work);
	struct asr_group *g = t->group;
	bool again = false;
	struct asr_io *io;

	do {
		spin_lock_irq(&g->lock);
		io = next_locked(t, &again);
		spin_unlock_irq(&g->lock);
		if (io)
			asr_compat_submit(io->bio, prepare(g, io));
	} while (io);
	/* one tick: the consumer's tail moves without a word */
	if (again)
		queue_delayed_work(t->queue_wq, &t->queue_work, 1);
}

/* ------------------------------------------------------------ completion */

/* A write that failed: what is on the disk now is unknown, in the ring nothing. */
static void fail(struct asr_group *g, struct asr_io *io, blk_status_t status)
{
	/* a part of it may be done; of a discard that does not matter */
	bool untouched = status == BLK_STS_NOTSUPP && io->kind == ASR_KIND_DISCARD;
	/* no error of the device, and the caller tries something else */
	bool refused = status == BLK_STS_NOTSUPP || status == BLK_STS_AGAIN;
	struct asr_disk *d = io->t->disk;
	unsigned long irq;

	spin_lock_irqsave(&g->lock, irq);
	if (!refused)
		d->errors++;
	if (!untouched && io->sectors)
		asr_dirty_set_locked(d, io->sector, io->sectors);
	/* the disk may have dropped what it had, and not say so to the log's own flush; FUA is a flush on most */
	if (!refused && d->intent && (io->kind == ASR_KIND_FLUSH || io->flags & (ASR_RECF_FLUSH | ASR_RECF_FUA)))
		asr_intent_doubt_locked(d->intent);
	spin_unlock_irqrestore(&g->lock, irq);
}

int asr_capture_end(struct asr_target *t, struct asr_io *io, blk_status_t status)
{
	struct asr_group *g = t->group;
	bool captured = io->how == ASR_IO_CAPTURED, hold, wake;
	unsigned long irq;
	u32 state;

	if (io->how == ASR_IO_NONE)
		return DM_ENDIO_DONE;
	if (unlikely(status))
		fail(g, io, status);
	io->how = ASR_IO_NONE;
	if (captured) {
		state = status || t->nocopy ? ASR_REC_DISCARDED : ASR_REC_COMMITTED;
		smp_store_release(&io->rec->state, state);	/* C */
	}

	spin_lock_irqsave(&g->lock, irq);
	if (captured)	/* the bare one: no checks, no poison, as on each write */
		__list_del(io->link.prev, io->link.next);
	else
		g->uncaptured--;
	unlink_locked(t->disk, io);
	wake = asr_ring_wake_due_locked(g);
	hold = io->hold && g->hold.on;
	if (unlikely(hold)) {
		list_add_tail(&io->link, &g->held);
		g->hold.held++;
		if (wake)	/* now: once unlocked, the write may end and the group go */
			asr_ring_wake(g);
		wake = false;
	}
	spin_unlock_irqrestore(&g->lock, irq);

	if (wake)
		asr_ring_wake(g);
	return hold ? DM_ENDIO_INCOMPLETE : DM_ENDIO_DONE;
}
