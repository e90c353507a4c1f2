// SPDX-License-Identifier: GPL-2.0
/*
 * The dirty map of a disk: which chunks were written without a record.
 *
 * Design
 *   Two bits per 64 KiB. FETCH moves a chunk from `dirty` to `taken`, ACK takes
 *   it out of `taken` when the vault has it for good. A consumer that dies
 *   between the two has acknowledged nothing: all of `taken` becomes dirty
 *   again when the next one attaches. A write that fails, or goes by
 *   uncaptured, sets `dirty` whatever `taken` says.
 *
 *   Scans hold the lock over pieces only, for it is taken with interrupts off.
 *
 * Invariants
 *   marked == number of chunks in dirty or taken; taken_count == in taken.
 *   No chunk is handed out while a write without a record is in flight (K4).
 *
 * Context: *_locked under group->lock, any context. The others from ioctl.
 */
#include "dm-asr.h"

#include <linux/vmalloc.h>

#define SCAN_CHUNKS	(1UL << 18)	/* 32 KiB of map: some 5 us */
#define STEP_CHUNKS	4096UL		/* changed under one lock section */

/* The kernel's own count in int, and 128 TiB are more bits than that. */
static void fill(unsigned long *map, u64 from, u64 bits)
{
	u64 n;

	for (; bits; bits -= n, from += n) {
		n = min_t(u64, bits, 1U << 30);
		bitmap_set(map + BIT_WORD(from), from % BITS_PER_LONG, n);
	}
}

static u64 weight(const unsigned long *map, u64 bits)
{
	u64 sum = 0, from, n;

	for (from = 0; from < bits; from += n) {
		n = min_t(u64, bits - from, 1U << 30);
		sum += bitmap_weight(map + BIT_WORD(from), n);
	}
	return sum;
}

/* Words, not bits: those beyond the end are zero. */
static void or_words(unsigned long *to, const unsigned long *from, u64 bits)
{
	u64 i, n = BITS_TO_LONGS(bits);

	for (i = 0; i < n; i++)
		to[i] |= from[i];
}

int asr_dirty_alloc(struct asr_map *m, u64 sectors, u64 first)
{
	u64 chunks = DIV_ROUND_UP_ULL(sectors, ASR_CHUNK_SECTORS);
	u64 start = first / ASR_CHUNK_SECTORS;
	size_t bytes;

	memset(m, 0, sizeof(*m));
	if (chunks > ASR_CHUNKS_MAX)
		return -EFBIG;
	bytes = BITS_TO_LONGS(chunks) * sizeof(long);
	m->chunks = chunks;
	m->dirty = vzalloc(bytes);
	m->taken = vzalloc(bytes);
	if (!m->dirty || !m->taken) {
		asr_dirty_free(m);
		return -ENOMEM;
	}
	if (start < chunks) {
		fill(m->dirty, start, chunks - start);
		m->marked = chunks - start;
	}
	return 0;
}

void asr_dirty_free(struct asr_map *m)
{
	vfree(m->dirty);
	vfree(m->taken);
	memset(m, 0, sizeof(*m));
}

static void mark_chunk(struct asr_map *m, u64 chunk)
{
	if (!__test_and_set_bit(chunk, m->dirty) && !test_bit(chunk, m->taken))
		m->marked++;
}

void asr_dirty_set_locked(struct asr_disk *d, u64 sector, u64 sectors)
{
	u64 chunk = sector / ASR_CHUNK_SECTORS;
	u64 last = (sector + sectors - 1) / ASR_CHUNK_SECTORS;

	lockdep_assert_held(&d->group->lock);
	for (; chunk <= last && chunk < d->map.chunks; chunk++)
		mark_chunk(&d->map, chunk);
}

void asr_dirty_set_all_locked(struct asr_disk *d)
{
	lockdep_assert_held(&d->group->lock);
	fill(d->map.dirty, 0, d->map.chunks);
	d->map.marked = d->map.chunks;
}

void asr_dirty_clear_all_locked(struct asr_disk *d)
{
	size_t bytes = BITS_TO_LONGS(d->map.chunks) * sizeof(long);

	lockdep_assert_held(&d->group->lock);
	memset(d->map.dirty, 0, bytes);
	memset(d->map.taken, 0, bytes);
	d->map.marked = 0;
	d->map.taken_count = 0;
}

void asr_dirty_set_regions_locked(struct asr_disk *d, const unsigned long *bits, u64 regions, u32 shift)
{
	u64 per = (1ULL << shift) / ASR_CHUNK_SECTORS, r = 0, end;
	struct asr_map *m = &d->map;

	lockdep_assert_held(&d->group->lock);
	while ((r = find_next_bit(bits, regions, r)) < regions) {
		end = find_next_zero_bit(bits, regions, r);
		if (r * per < m->chunks)
			fill(m->dirty, r * per, min(end * per, m->chunks) - r * per);
		r = end;
	}
	m->marked = weight(m->dirty, m->chunks);
}

/* What was taken counts as dirty: the consumer works with the old size. */
void asr_dirty_resize_locked(struct asr_disk *d, struct asr_map *to)
{
	struct asr_map *from = &d->map;
	u64 common = min(from->chunks, to->chunks);

	lockdep_assert_held(&d->group->lock);
	or_words(from->dirty, from->taken, from->chunks);
	memset(to->dirty, 0, BITS_TO_LONGS(to->chunks) * sizeof(long));
	if (common) {
		or_words(to->dirty, from->dirty, common);
		/* the last chunk of the smaller one may have been a short one */
		__set_bit(common - 1, to->dirty);
	}
	if (to->chunks > common)
		fill(to->dirty, common, to->chunks - common);
	else if (to->chunks % BITS_PER_LONG)
		to->dirty[BIT_WORD(to->chunks)] &= BITMAP_LAST_WORD_MASK(to->chunks);
	to->marked = weight(to->dirty, to->chunks);
	swap(*from, *to);
}

static struct asr_disk *disk_of(struct asr_group *g, const struct asr_dirty *arg)
{
	struct asr_disk *d = arg->slot < ASR_DISKS_MAX ? g->disks[arg->slot] : NULL;

	return d && d->live ? d : NULL;
}

static u64 take_locked(struct asr_map *m, u64 chunk, u64 count)
{
	u64 n;

	for (n = 0; n < count && chunk + n < m->chunks; n++) {
		if (!__test_and_clear_bit(chunk + n, m->dirty))
			break;
		if (!__test_and_set_bit(chunk + n, m->taken))
			m->taken_count++;
	}
	return n;
}

/* One piece of the map: 0 when something was taken, 1 to go on at *from. */
static int fetch_piece(struct asr_group *g, struct asr_dirty *arg, u64 *from)
{
	struct asr_disk *d = disk_of(g, arg);
	u64 end, bit;

	if (!d)
		return -ENOENT;
	if (g->state != ASR_STATE_CAPTURE)
		return -EBUSY;
	if (g->uncaptured)
		return -EAGAIN;
	if (*from >= d->map.chunks)
		return -ENODATA;
	end = min(*from + SCAN_CHUNKS, d->map.chunks);
	bit = find_next_bit(d->map.dirty, end, *from);
	if (bit >= end) {
		*from = end;
		return 1;
	}
	arg->chunk = bit;
	arg->count = take_locked(&d->map, bit, min_t(u64, arg->count, STEP_CHUNKS));
	return 0;
}

int asr_dirty_fetch(struct asr_group *g, struct asr_dirty *arg)
{
	u64 from = arg->chunk;
	int r;

	if (!arg->count)
		return -EINVAL;
	do {
		spin_lock_irq(&g->lock);
		r = fetch_piece(g, arg, &from);
		spin_unlock_irq(&g->lock);
		cond_resched();
	} while (r > 0);
	return r;
}

static void ack_chunk(struct asr_map *m, u64 chunk)
{
	if (!__test_and_clear_bit(chunk, m->taken))
		return;
	m->taken_count--;
	if (!test_bit(chunk, m->dirty))
		m->marked--;
}

/* Applies one to each chunk of the range, in steps, and log to each step. */
static int for_range(struct asr_group *g, const struct asr_dirty *arg,
		     void (*one)(struct asr_map *, u64),
		     void (*log)(struct asr_disk *, u64 sector, u64 sectors))
{
	u64 n = 0, end, from;
	struct asr_disk *d;

	do {
		spin_lock_irq(&g->lock);
		d = disk_of(g, arg);
		if (!d || arg->chunk > d->map.chunks ||
		    arg->count > d->map.chunks - arg->chunk) {
			spin_unlock_irq(&g->lock);
			return d ? -EINVAL : -ENOENT;
		}
		if (d->nocopy && one == ack_chunk) {
			spin_unlock_irq(&g->lock);
			return -EPERM;
		}
		from = (arg->chunk + n) * ASR_CHUNK_SECTORS;
		for (end = min_t(u64, arg->count, n + STEP_CHUNKS); n < end; n++)
			one(&d->map, arg->chunk + n);
		log(d, from, (arg->chunk + n) * ASR_CHUNK_SECTORS - from);
		spin_unlock_irq(&g->lock);
		cond_resched();
	} while (n < arg->count);
	return 0;
}

int asr_dirty_ack(struct asr_group *g, const struct asr_dirty *arg)
{
	return for_range(g, arg, ack_chunk, asr_intent_touch_locked);
}

int asr_dirty_set(struct asr_group *g, const struct asr_dirty *arg)
{
	int r = for_range(g, arg, mark_chunk, asr_intent_want_locked);

	if (r || !arg->count || !(arg->flags & ASR_DIRTY_DURABLE))
		return r;
	return asr_intent_settle(g, arg->slot, arg->chunk * ASR_CHUNK_SECTORS, arg->count * ASR_CHUNK_SECTORS);
}

static void return_piece(struct asr_map *m, u64 from, u64 end)
{
	u64 bit = from;

	while ((bit = find_next_bit(m->taken, end, bit)) < end) {
		__clear_bit(bit, m->taken);
		__set_bit(bit, m->dirty);
		m->taken_count--;
	}
}

void asr_dirty_return(struct asr_group *g)
{
	u64 from, end;
	u32 slot;

	for (slot = 0; slot < ASR_DISKS_MAX; slot++) {
		for (from = 0;; from = end) {
			struct asr_disk *d;

			spin_lock_irq(&g->lock);
			d = g->disks[slot];
			if (!d || !d->map.taken_count || from >= d->map.chunks) {
				spin_unlock_irq(&g->lock);
				break;
			}
			end = min_t(u64, d->map.chunks, from + STEP_CHUNKS);
			return_piece(&d->map, from, end);
			spin_unlock_irq(&g->lock);
			cond_resched();
		}
	}
}
