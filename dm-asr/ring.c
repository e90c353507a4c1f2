// SPDX-License-Identifier: GPL-2.0
/*
 * The ring: one producer side under the group's lock, one consumer in
 * userland, memory shared between them.
 *
 * Design
 *   Positions only grow and are masked at access. The kernel keeps its own
 *   head and tail and publishes head; it never reads back anything from a page
 *   that the consumer could have written, except tail and wake, each once. A
 *   header is 64 bytes and aligned to 64, so it never runs over the end of the
 *   ring; a payload may, and is then written in two pieces: the consumer has
 *   the area mapped twice and reads it in one.
 *
 *   tail is read only when the cached one leaves no room: a consumer that
 *   keeps up costs the write path nothing.
 *
 * Barriers (letters as in uapi/dm-asr.h)
 *   A  reserve: header, then head with release     pairs with B, load of head
 *   C  commit:  payload, then state with release   pairs with D, load of state
 *   F  wake_due: full barrier between C and the load of wake; pairs with E,
 *      the consumer's full barrier between its store of wake and its load of
 *      state
 *   T  read_tail: load of tail with acquire, so that what is written over the
 *      freed room is written after the consumer has read it; pairs with the
 *      consumer's store of tail with release
 *
 * Invariants
 *   tail <= oldest BUSY record <= head <= tail + bytes.
 *   A write leaves ASR_KEEP_WRITE free, a DISK record ASR_KEEP_DISK: so the
 *   STATE record that says "no longer captured" always finds room.
 *
 * Context: see each function in dm-asr.h; none sleeps but init and free.
 */
#include "dm-asr.h"

#include <linux/poll.h>
#include <linux/vmalloc.h>

int asr_ring_init(struct asr_ring *r, u64 bytes, u64 first_seq)
{
	r->bytes = bytes;
	r->mask = bytes - 1;
	r->next_seq = first_seq;
	r->data = vmalloc_user(bytes);
	r->prod = vmalloc_user(PAGE_SIZE);
	r->cons = vmalloc_user(PAGE_SIZE);
	if (!r->data || !r->prod || !r->cons) {
		asr_ring_free(r);
		return -ENOMEM;
	}
	r->cons->wake = ~0ULL;
	return 0;
}

void asr_ring_free(struct asr_ring *r)
{
	vfree(r->cons);
	vfree(r->prod);
	vfree(r->data);
}

/* Where the first record in flight begins: all before it is committed. */
static u64 frontier(struct asr_group *g)
{
	struct asr_io *io = list_first_entry_or_null(&g->busy, struct asr_io, link);

	return io ? io->pos : g->ring.head;
}

/*
 * The same, as far as the consumer may have got. A completion commits its
 * record first and leaves the list a moment later, under the lock: in between
 * the consumer may have gone past it. So the record's own state counts; one
 * before tail is committed, and its room may hold another by now.
 * Not for wake-ups: who is woken must find its record committed.
 */
static u64 frontier_of_consumer(struct asr_group *g)
{
	struct asr_io *io;

	list_for_each_entry(io, &g->busy, link)
		if (io->pos >= g->ring.tail && READ_ONCE(io->rec->state) == ASR_REC_BUSY)
			return io->pos;
	return g->ring.head;
}

/* Only forward, to the beginning of a record, not beyond one in flight. */
static bool tail_legal(struct asr_group *g, u64 tail)
{
	struct asr_ring *r = &g->ring;
	struct asr_rec *rec;

	if (tail < r->tail || tail > frontier_of_consumer(g) || tail % ASR_REC_ALIGN)
		return false;
	rec = r->data + (tail & r->mask);
	return tail == r->head || rec->pos == tail;
}

void asr_ring_read_tail_locked(struct asr_group *g)
{
	struct asr_ring *r = &g->ring;
	u64 tail;

	lockdep_assert_held(&g->lock);
	if (!g->consumer || r->poisoned)
		return;
	tail = smp_load_acquire(&r->cons->tail);	/* T */
	if (tail_legal(g, tail)) {
		r->tail = tail;
		return;
	}
	r->poisoned = true;
	WRITE_ONCE(r->prod->poisoned, 1);
	if (g->state == ASR_STATE_TRACK)	/* no change of state that would say so */
		DMWARN("group %s: the consumer wrote a tail that cannot be, while in TRACK", g->name);
	asr_group_set_state_locked(g, ASR_STATE_TRACK, ASR_WHY_POISONED);
	queue_work(asr_wq, &g->report_work);
}

u64 asr_ring_consumed_seq_locked(struct asr_group *g)
{
	struct asr_ring *r = &g->ring;
	struct asr_rec *rec = r->data + (r->tail & r->mask);

	lockdep_assert_held(&g->lock);
	return (r->tail == r->head ? r->next_seq : rec->seq) - 1;
}

/* All of the header but sector and sectors. */
static struct asr_rec *fill(struct asr_ring *r, u16 kind, u16 disk, u32 payload)
{
	struct asr_rec *rec = r->data + (r->head & r->mask);

	rec->state = ASR_REC_BUSY;
	rec->bytes = ALIGN(sizeof(*rec) + payload, ASR_REC_ALIGN);
	rec->pos = r->head;
	rec->seq = r->next_seq++;
	rec->time_ns = ktime_get_real_ns();
	rec->payload_bytes = payload;
	rec->kind = kind;
	rec->disk = disk;
	rec->flags = 0;
	rec->reserved = 0;
	return rec;
}

static void publish(struct asr_ring *r, u32 bytes)
{
	r->head += bytes;
	smp_store_release(&r->prod->head, r->head);	/* A */
}

/* A skipped record, so that the payload of the next one is aligned. */
static void pad_locked(struct asr_group *g, u32 bytes)
{
	struct asr_rec *rec = fill(&g->ring, 0, ASR_DISK_NONE, bytes - sizeof(*rec));

	rec->state = ASR_REC_DISCARDED;
	rec->sector = 0;
	rec->sectors = 0;
	publish(&g->ring, bytes);
}

struct asr_rec *asr_ring_reserve_locked(struct asr_group *g, u16 kind, u16 disk,
					u32 payload_bytes, u32 keep, u32 align)
{
	struct asr_ring *r = &g->ring;
	u32 need = ALIGN(sizeof(struct asr_rec) + payload_bytes, ASR_REC_ALIGN);
	u32 pad = -(u32)(r->head + sizeof(struct asr_rec)) & (align - 1);
	struct asr_rec *rec;

	lockdep_assert_held(&g->lock);
	if (unlikely(need + pad + keep > asr_ring_free_bytes(r))) {
		asr_ring_read_tail_locked(g);
		/* a poisoned consumer's STATE record has moved head */
		pad = -(u32)(r->head + sizeof(struct asr_rec)) & (align - 1);
		if (need + pad + keep > asr_ring_free_bytes(r))
			return NULL;
	}
	if (pad)
		pad_locked(g, pad);
	rec = fill(r, kind, disk, payload_bytes);
	publish(r, need);
	return rec;
}

void asr_ring_write(struct asr_ring *r, u64 pos, const void *from, u32 bytes)
{
	u64 at = pos & r->mask;
	u32 first = min_t(u64, bytes, r->bytes - at);

	memcpy(r->data + at, from, first);
	if (unlikely(first < bytes))
		memcpy(r->data, from + first, bytes - first);
}

int asr_ring_put_locked(struct asr_group *g, u16 kind, u16 disk,
			const void *payload, u32 bytes, u32 keep,
			u64 *seq, u64 *time_ns)
{
	struct asr_rec *rec;

	rec = asr_ring_reserve_locked(g, kind, disk, bytes, keep, 1);
	if (!rec)
		return -ENOSPC;
	rec->sector = 0;
	rec->sectors = 0;
	asr_ring_write(&g->ring, rec->pos + sizeof(*rec), payload, bytes);
	if (seq)
		*seq = rec->seq;
	if (time_ns)
		*time_ns = rec->time_ns;
	smp_store_release(&rec->state, ASR_REC_COMMITTED);	/* C */
	return 0;
}

bool asr_ring_wake_due_locked(struct asr_group *g)
{
	struct asr_ring *r = &g->ring;
	u64 wake;

	lockdep_assert_held(&g->lock);
	smp_mb();					/* F */
	wake = READ_ONCE(r->cons->wake);
	if (wake == r->woken || wake > frontier(g))
		return false;
	r->woken = wake;
	WRITE_ONCE(r->prod->wakeups, ++r->wakeups);
	return true;
}

void asr_ring_wake(struct asr_group *g)
{
	wake_up_interruptible_poll(&g->poll, EPOLLIN | EPOLLRDNORM);
}

bool asr_ring_ready(struct asr_group *g, bool *poisoned)
{
	unsigned long irq;
	bool ready;

	spin_lock_irqsave(&g->lock, irq);
	ready = READ_ONCE(g->ring.cons->wake) <= frontier(g);
	*poisoned = g->ring.poisoned;
	spin_unlock_irqrestore(&g->lock, irq);
	return ready;
}

void asr_ring_attach_locked(struct asr_group *g)
{
	struct asr_ring *r = &g->ring;

	lockdep_assert_held(&g->lock);
	r->poisoned = false;
	r->woken = ~0ULL;
	WRITE_ONCE(r->prod->poisoned, 0);
	WRITE_ONCE(r->cons->wake, ~0ULL);
	WRITE_ONCE(r->cons->tail, r->tail);
}
