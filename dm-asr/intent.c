// SPDX-License-Identifier: GPL-2.0
/*
 * The write-intent log of a disk: which regions may differ from the vault's
 * copy, kept where a crash does not reach it.
 *
 * Design
 *   A region's bit is durable before the first write to it goes down. A write
 *   to a region without one waits in a list; the worker writes all blocks of
 *   the bitmap that somebody waits for, then lets all of them in: many writers
 *   per flush. Who writes on in order has the regions ahead of it set in time.
 *
 *   Clearing is lazy, by epochs of some seconds. An epoch ends when all that
 *   was written before it began is durable at the vault (ASR_IOC_DURABLE) and
 *   on the disk, too, for the worker flushes the disk first: what the vault
 *   has and the disk lost in a power cut would differ as well. Then all
 *   regions that were not written in the epoch and hold no dirty chunk are
 *   cleared, in one write per block. When the flush fails the disk may have
 *   dropped what it had, and a later flush would not say so: all regions set
 *   are dirty then, and compared.
 *
 *   The write path tests one bit: written in this epoch. Only the first write
 *   to a region in an epoch looks further.
 *
 *   When the log cannot be written, writes go on: it is BROKEN, which its
 *   superblock is told until it takes it, and the next start compares all.
 *   How a disk comes by its log and ends with it: bringup.c.
 *
 * Invariants
 *   recent is part of bits; bits is part of what is durable on the device.
 *   A dirty or taken chunk lies in a region whose bit is set or wanted.
 *   Only the worker, or who has stopped it, changes the device and takes bits
 *   away. It does nothing while the disk is suspended.
 *
 * Context: *_locked under group->lock, any; the rest process.
 *
 * Not done: a log device that hangs without an error, for less than it is waited
 * for, delays the first write to each region by as much.
 */
#include "dm-asr.h"

#include <linux/vmalloc.h>

#define EPOCH		(5 * HZ)	/* a bit stays 5 to 10 s after the last write */
#define FLUSH_LOOK	(HZ / 50)	/* is the disk flushed? */
#define SUPER_EVERY	(30 * HZ)	/* so that seq_high is never 2^32 records old */
#define AHEAD_SECTORS	(64u << 11)	/* 64 MiB: of a sequential writer */
#define STEP_REGIONS	4096u		/* looked at under one lock section: up to 0.1 ms */

/* ------------------------------------------------------------------ the maps */

void asr_intent_free_map(struct asr_regions *m)
{
	vfree(m->bits);
	vfree(m->blocks);
	memset(m, 0, sizeof(*m));
}

/* One allocation for the four maps, each of whole blocks. */
int asr_intent_alloc_map(struct asr_regions *m, u64 regions)
{
	size_t longs;

	m->count = regions;
	m->nr_blocks = DIV_ROUND_UP_ULL(regions, ASR_LOG_BLOCK_BITS);
	longs = m->nr_blocks * (ASR_LOG_BLOCK_BITS / BITS_PER_LONG);
	m->bits = vzalloc(4 * longs * sizeof(long));
	m->blocks = vzalloc(2 * BITS_TO_LONGS(m->nr_blocks) * sizeof(long));
	if (!m->bits || !m->blocks) {
		asr_intent_free_map(m);
		return -ENOMEM;
	}
	m->want = m->bits + longs;
	m->sent = m->want + longs;
	m->recent = m->sent + longs;
	m->flying = m->blocks + BITS_TO_LONGS(m->nr_blocks);
	return 0;
}

u64 asr_intent_memory(const struct asr_intent *l)
{
	return sizeof(*l) + 2 * sizeof(struct asr_logio) + PAGE_SIZE + l->map.nr_blocks * (4 * ASR_LOG_BLOCK_BITS / 8);
}

u64 asr_intent_weight(const unsigned long *bits, u64 blocks)
{
	u64 n = 0, b;

	for (b = 0; b < blocks; b++)
		n += bitmap_weight(bits + b * (ASR_LOG_BLOCK_BITS / BITS_PER_LONG), ASR_LOG_BLOCK_BITS);
	return n;
}

void asr_intent_want(struct asr_intent *l, u64 first, u64 last)
{
	u64 b = first / ASR_LOG_BLOCK_BITS;

	bitmap_set(l->map.want, first, last - first + 1);
	bitmap_set(l->map.blocks, b, last / ASR_LOG_BLOCK_BITS - b + 1);
}

/* No bit is known durable, all are wanted. */
void asr_intent_want_all(struct asr_intent *l)
{
	memset(l->map.bits, 0, (void *)l->map.want - (void *)l->map.bits);
	memset(l->map.recent, 0, (void *)l->map.want - (void *)l->map.bits);
	l->set = 0;
	asr_intent_want(l, 0, l->map.count - 1);
}

void asr_intent_kick_locked(struct asr_intent *l)
{
	if (!l->stopped)
		mod_delayed_work(asr_intent_wq, &l->work, 0);
}

/* ------------------------------------------------------------- the write path */

static bool may_pass(struct asr_intent *l, u64 first, u64 last)
{
	return l->broken || (l->open && find_next_zero_bit(l->map.bits, last + 1, first) > last);
}

static u64 last_of(struct asr_intent *l, u64 sector, u64 sectors)
{
	return min((sector + sectors - 1) >> l->shift, l->map.count - 1);
}

/*
 * Who comes to the beginning of a region from those before it will go on to the next: as many
 * regions ahead as were written behind, so that a random writer sets nearly none in vain.
 */
static void read_ahead(struct asr_intent *l, u64 sector, u64 first, u64 last)
{
	u64 most = min_t(u64, max(AHEAD_SECTORS >> l->shift, 2u), first), ahead = 0, half;

	if (sector - (first << l->shift) > (1u << l->shift) / 16)
		return;
	while (ahead < most && test_bit(first - ahead - 1, l->map.recent))
		ahead++;
	ahead = min(ahead, l->map.count - 1 - last);
	half = last + (ahead + 1) / 2;
	if (!ahead || find_next_zero_bit(l->map.bits, half + 1, last + 1) > half)
		return;
	asr_intent_want(l, last + 1, last + ahead);
	asr_intent_kick_locked(l);
}

bool asr_intent_enter_locked(struct asr_intent *l, u64 sector, u64 sectors)
{
	u64 first = sector >> l->shift, last = last_of(l, sector, sectors);
	bool pass;

	lockdep_assert_held(&l->disk->group->lock);
	if (l->broken)
		return true;
	read_ahead(l, sector, first, last);
	pass = may_pass(l, first, last);
	if (pass) {
		bitmap_set(l->map.recent, first, last - first + 1);
	} else {
		if (find_next_zero_bit(l->map.bits, last + 1, first) <= last)
			asr_intent_want(l, first, last);
		asr_intent_kick_locked(l);	/* or it is not open yet */
	}
	return pass;
}

/* Chunks became dirty by decree: nobody waits, but a crash shall not forget it. */
void asr_intent_want_locked(struct asr_disk *d, u64 sector, u64 sectors)
{
	struct asr_intent *l = d->intent;
	u64 first, last;

	lockdep_assert_held(&d->group->lock);
	if (!l || l->broken || !sectors)
		return;
	first = sector >> l->shift;
	last = last_of(l, sector, sectors);
	if (first > last)
		return;		/* the disk shrinks just now */
	if (find_next_zero_bit(l->map.bits, last + 1, first) > last) {
		bitmap_set(l->map.recent, first, last - first + 1);
		return;
	}
	asr_intent_want(l, first, last);
	asr_intent_kick_locked(l);
}

/* Is nothing wanted from *sector to end? What was found so once need not be looked at again. */
static bool settled(struct asr_group *g, u32 slot, u64 *sector, u64 end)
{
	struct asr_intent *l;
	bool yes = true;
	u64 first, last;

	while (yes && *sector < end) {
		spin_lock_irq(&g->lock);
		l = g->disks[slot] ? g->disks[slot]->intent : NULL;
		if (!l || l->broken || l->stopped) {
			*sector = end;
		} else {
			first = *sector >> l->shift;
			last = min(last_of(l, *sector, end - *sector), first + STEP_REGIONS - 1);
			yes = l->open && (first > last || find_next_bit(l->map.want, last + 1, first) > last);
			if (yes)
				*sector = (max(first, last) + 1) << l->shift;
		}
		spin_unlock_irq(&g->lock);
	}
	return yes;
}

/* By slot, as disk and log may go meanwhile. The log's I/O ends, or it is given up: so does this. */
int asr_intent_settle(struct asr_group *g, u32 slot, u64 sector, u64 sectors)
{
	u64 end = sector + sectors;
	long r;

	do	/* a log that goes, or stops, wakes nobody */
		r = wait_event_killable_timeout(g->settled, settled(g, slot, &sector, end), HZ / 4);
	while (!r);
	return r < 0 ? -EINTR : 0;
}

void asr_intent_doubt_locked(struct asr_intent *l)
{
	lockdep_assert_held(&l->disk->group->lock);
	if (!l->doubt)
		asr_intent_kick_locked(l);
	l->doubt = true;
}

/* Chunks were acknowledged: read from the disk, and perhaps not yet durable there. */
void asr_intent_touch_locked(struct asr_disk *d, u64 sector, u64 sectors)
{
	struct asr_intent *l = d->intent;
	u64 r, last;

	lockdep_assert_held(&d->group->lock);
	if (!l || l->broken || !sectors)
		return;
	last = last_of(l, sector, sectors);
	for (r = sector >> l->shift; r <= last; r++)
		if (test_bit(r, l->map.bits))
			__set_bit(r, l->map.recent);
}

static void release_locked(struct asr_intent *l)
{
	struct asr_io *io, *next;

	lockdep_assert_held(&l->disk->group->lock);
	list_for_each_entry_safe(io, next, &l->waiting, link) {
		if (!may_pass(l, io->sector >> l->shift, last_of(l, io->sector, io->sectors)))
			continue;
		list_del(&io->link);
		asr_capture_retry_locked(io);
	}
}

/* ----------------------------------------------------------------- superblock */

int asr_intent_write_super(struct asr_intent *l, u32 flags)
{
	struct asr_group *g = l->disk->group;
	struct asr_log_super *s = &l->dev.super;

	spin_lock_irq(&g->lock);
	s->durable_seq = cpu_to_le64(g->durable_seq);
	s->seq_high = cpu_to_le64(g->ring.next_seq - 1);
	g->seq_logged = max(g->seq_logged, g->ring.next_seq - 1);
	l->super_seq = g->ring.next_seq - 1;
	l->super_durable = g->durable_seq;
	l->super_due = jiffies + SUPER_EVERY;
	spin_unlock_irq(&g->lock);
	s->sectors = cpu_to_le64(l->sectors);
	s->regions = cpu_to_le64(l->map.count);
	s->flags = cpu_to_le32(flags);
	return asr_logdev_write_super(&l->dev);
}

/* One that could not be read at bring-up is written to only if it is still the one that was read before. */
static bool is_ours(struct asr_intent *l)
{
	int r = l->unsure ? asr_logdev_reread(&l->dev) : 0;

	l->unsure = r;
	if (r == -ESTALE)
		l->foreign = l->told = true;
	return !r && !l->foreign;
}

/* The device is to say that its bits prove nothing; again until it does. */
void asr_intent_tell(struct asr_intent *l)
{
	if (!l->told && is_ours(l))
		l->told = !asr_intent_write_super(l, ASR_LOGF_OPEN | ASR_LOGF_BROKEN);
}

void asr_intent_break(struct asr_intent *l, int err)
{
	struct asr_disk *d = l->disk;
	struct asr_group *g = d->group;
	struct asr_target *t;

	spin_lock_irq(&g->lock);
	l->broken = true;
	release_locked(l);
	list_for_each_entry(t, &g->targets, link)
		if (t->disk == d)
			queue_work(asr_wq, &t->event_work);
	spin_unlock_irq(&g->lock);
	wake_up_all(&g->settled);
	asr_intent_tell(l);
	DMERR("group %s disk %s: write-intent log %u:%u is broken (error %d): writes go on, %s",
	      g->name, d->name, MAJOR(l->dev.bdev->bd_dev), MINOR(l->dev.bdev->bd_dev), err,
	      l->told ? "all is compared next time" : "and IT CANNOT BE MARKED AS BROKEN yet");
}

/* ------------------------------------------------------------------ the worker */

static unsigned long *at(unsigned long *map, u64 block)
{
	return map + block * (ASR_LOG_BLOCK_BITS / BITS_PER_LONG);
}

/* The next block that is due, its content put into sent; or no block. */
static u64 next_block(struct asr_intent *l, u64 from)
{
	struct asr_group *g = l->disk->group;
	struct asr_regions *m = &l->map;
	u64 b;

	spin_lock_irq(&g->lock);
	b = find_next_bit(m->blocks, m->nr_blocks, from);
	if (b < m->nr_blocks) {
		__clear_bit(b, m->blocks);
		__set_bit(b, m->flying);
		bitmap_or(at(m->sent, b), at(m->bits, b), at(m->want, b), ASR_LOG_BLOCK_BITS);
	}
	spin_unlock_irq(&g->lock);
	return b;
}

/* What was sent is durable. */
static void accept_locked(struct asr_intent *l, u64 b)
{
	unsigned long *bits = at(l->map.bits, b), *sent = at(l->map.sent, b);
	unsigned long *wanted = at(l->map.want, b);
	unsigned int i;

	l->set += asr_intent_weight(sent, 1) - asr_intent_weight(bits, 1);
	for (i = 0; i < ASR_LOG_BLOCK_BITS / BITS_PER_LONG; i++) {
		bits[i] = sent[i];
		wanted[i] &= ~sent[i];
	}
}

/* Makes durable all that is wanted, and what is no longer. */
int asr_intent_commit(struct asr_intent *l)
{
	struct asr_group *g = l->disk->group;
	struct asr_regions *m = &l->map;
	u64 b = next_block(l, 0), next, n = 0;
	int r = 0;

	for (; b < m->nr_blocks && !r; b = next, n++) {
		next = next_block(l, b + 1);
		r = asr_logdev_write_bits(&l->dev, b, m->sent, !n && next >= m->nr_blocks);
	}
	if (n > 1 && !r)
		r = asr_logdev_flush(&l->dev);
	for (b = find_first_bit(m->flying, m->nr_blocks); b < m->nr_blocks && !r;
	     b = find_next_bit(m->flying, m->nr_blocks, b + 1)) {
		spin_lock_irq(&g->lock);
		accept_locked(l, b);
		spin_unlock_irq(&g->lock);
	}
	bitmap_clear(m->flying, 0, m->nr_blocks);
	spin_lock_irq(&g->lock);
	if (!r)
		release_locked(l);
	spin_unlock_irq(&g->lock);
	wake_up_all(&g->settled);
	return r;
}

/* From here on the log counts, and writes may go. */
static int open_log(struct asr_intent *l)
{
	struct asr_group *g = l->disk->group;
	int r = asr_intent_write_super(l, ASR_LOGF_OPEN);

	if (r)
		return r;
	spin_lock_irq(&g->lock);
	l->open = true;
	l->epoch_end = jiffies + EPOCH;
	release_locked(l);
	spin_unlock_irq(&g->lock);
	DMINFO("group %s disk %s: write-intent log %u:%u, %llu of %llu regions of %u KiB set, generation %llu",
	       g->name, l->disk->name, MAJOR(l->dev.bdev->bd_dev), MINOR(l->dev.bdev->bd_dev), l->set,
	       l->map.count, 1u << l->shift >> 1, le64_to_cpu(l->dev.super.generation));
	return 0;
}

static bool holds_dirty(struct asr_intent *l, u64 region)
{
	struct asr_map *m = &l->disk->map;
	u64 first = (region << l->shift) / ASR_CHUNK_SECTORS;
	u64 end = min(((region + 1) << l->shift) / ASR_CHUNK_SECTORS, m->chunks);

	return first < end && (find_next_bit(m->dirty, end, first) < end || find_next_bit(m->taken, end, first) < end);
}

static void doubt_locked(struct asr_intent *l, u64 region)
{
	u64 sector = region << l->shift;

	asr_dirty_set_locked(l->disk, sector, min_t(u64, 1u << l->shift, l->sectors - sector));
}

/* LOOK: would a region be cleared? CLEAR: the epoch ends. DOUBT: it ends badly, all is dirty that is set. */
enum turn { TURN_LOOK, TURN_CLEAR, TURN_DOUBT };

static bool turn_piece(struct asr_intent *l, u64 from, u64 step, enum turn how)
{
	u64 end = min_t(u64, from + step, l->map.nr_blocks * ASR_LOG_BLOCK_BITS), w, r;
	struct asr_regions *m = &l->map;
	unsigned long old, i;

	for (w = BIT_WORD(from); w < BIT_WORD(end); w++) {
		old = how == TURN_DOUBT ? m->bits[w] : m->bits[w] & ~m->recent[w] & ~m->want[w];
		for_each_set_bit(i, &old, BITS_PER_LONG) {
			r = w * BITS_PER_LONG + i;
			if (how == TURN_DOUBT)
				doubt_locked(l, r);
			if (holds_dirty(l, r))
				continue;
			if (how == TURN_LOOK)
				return true;
			__clear_bit(r, m->bits);
			__set_bit(r / ASR_LOG_BLOCK_BITS, m->blocks);
			l->set--;
		}
		if (how == TURN_CLEAR)
			m->recent[w] = 0;
	}
	return false;
}

static bool turn_pieces(struct asr_intent *l, enum turn how)
{
	/* DOUBT visits each chunk */
	u64 step = how == TURN_DOUBT ? max_t(u64, STEP_REGIONS * ASR_CHUNK_SECTORS >> l->shift, BITS_PER_LONG) :
		   STEP_REGIONS;
	struct asr_group *g = l->disk->group;
	bool found = false;
	u64 from;

	step = min_t(u64, step, STEP_REGIONS);
	for (from = 0; from < l->map.count && !found; from += step) {
		spin_lock_irq(&g->lock);
		found = turn_piece(l, from, step, how);
		spin_unlock_irq(&g->lock);
		cond_resched();
	}
	return found;
}

/* The disk is flushed, beside the log's own work: has it been, or need it not be? */
static bool flush_epoch(struct asr_intent *l)
{
	if (!l->flushing && !turn_pieces(l, TURN_LOOK))
		return true;
	if (!l->flushing) {
		l->flushing = asr_logdev_start_flush_data(&l->dev);
		return false;
	}
	l->flushing = !asr_logdev_flush_data_over(&l->dev);
	return !l->flushing;
}

/*
 * A flush failed, ours or another's: all is dirty that may not be on the disk. Says whether one did. Once in an
 * epoch: until then no bit goes, either.
 */
static bool doubted(struct asr_intent *l)
{
	struct asr_disk *d = l->disk;
	bool failed = asr_logdev_data_failed(&l->dev), doubt, due;

	spin_lock_irq(&d->group->lock);
	doubt = l->doubt || failed;
	due = doubt && time_after_eq(jiffies, l->doubt_due);
	l->doubt = doubt && !due;
	if (due)
		l->doubt_due = jiffies + EPOCH;
	d->errors += failed;
	spin_unlock_irq(&d->group->lock);
	if (due)
		turn_pieces(l, TURN_DOUBT);
	return doubt;
}

/* The end of an epoch. A write that comes while it is made is in the next one, in its piece. */
static void turn(struct asr_intent *l)
{
	struct asr_disk *d = l->disk;
	bool due, doubt = doubted(l);

	spin_lock_irq(&d->group->lock);
	due = time_after_eq(jiffies, l->epoch_end) && d->group->durable_seq >= l->epoch_seq;
	spin_unlock_irq(&d->group->lock);
	if (!due || !flush_epoch(l))
		return;
	doubt |= doubted(l);
	if (!doubt)
		turn_pieces(l, TURN_CLEAR);
	spin_lock_irq(&d->group->lock);
	if (!doubt)
		l->epoch_seq = d->last_seq;
	l->epoch_end = jiffies + EPOCH;		/* a flush that failed is not tried again at once */
	spin_unlock_irq(&d->group->lock);
}

/* When there is something to do next, unless a write calls before. */
static unsigned long next_look(struct asr_intent *l)
{
	return l->flushing ? FLUSH_LOOK : l->set || l->broken ? EPOCH : SUPER_EVERY;
}

static bool super_stale(struct asr_intent *l)
{
	struct asr_group *g = l->disk->group;
	bool stale;

	spin_lock_irq(&g->lock);
	stale = time_after_eq(jiffies, l->super_due) &&
		(l->super_seq != g->ring.next_seq - 1 || l->super_durable != g->durable_seq);
	spin_unlock_irq(&g->lock);
	return stale;
}

void asr_intent_work(struct work_struct *work)
{
	struct asr_intent *l = container_of(to_delayed_work(work), struct asr_intent, work);
	struct asr_group *g = l->disk->group;
	int r = 0;

	if (l->broken) {
		asr_intent_tell(l);
	} else {
		r = asr_intent_commit(l);
		if (!r && !l->open)
			r = open_log(l);
		if (!r) {
			turn(l);
			r = asr_intent_commit(l);
		}
		if (!r && super_stale(l))
			r = asr_intent_write_super(l, ASR_LOGF_OPEN);
		if (r)
			asr_intent_break(l, r);
	}
	spin_lock_irq(&g->lock);
	if (!l->stopped && !(l->broken && l->told))
		queue_delayed_work(asr_intent_wq, &l->work, next_look(l));
	spin_unlock_irq(&g->lock);
}

/* -------------------------------------------------------------------- the vault */

int asr_intent_durable(struct asr_group *g, const struct asr_durable *arg)
{
	int r = 0;

	if (arg->reserved)
		return -EINVAL;
	spin_lock_irq(&g->lock);
	asr_ring_read_tail_locked(g);
	if (arg->seq > asr_ring_consumed_seq_locked(g))
		r = -EINVAL;
	else
		g->durable_seq = max(g->durable_seq, arg->seq);
	spin_unlock_irq(&g->lock);
	return r;
}
