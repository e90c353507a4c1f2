// SPDX-License-Identifier: GPL-2.0
/*
 * How a disk comes by its write-intent log, changes it, and ends with it.
 *
 * Design
 *   The constructor reads the log and refuses what is not right; .preresume
 *   decides which log counts, without an allocation. Between the two the log
 *   may have been in use, or have been made anew: so its superblock is read
 *   again, and must be the same. (Who uses a log writes its superblock first.)
 *
 *   A disk that was in no live table begins with what its log names dirty, all
 *   else clean. Nobody but the module knows what was written while a disk was
 *   live without its log, so a log that a table leaves behind is told that it
 *   is BROKEN, and one that a live disk gains begins with all bits set, to be
 *   cleared by and by; the dirty map in memory goes on being right. A reload
 *   with the log that the disk has keeps all as it is, or follows a new size;
 *   if the log was broken, it begins anew. Before anything makes the bits
 *   wrong for a moment (another lower device) the superblock says BROKEN.
 *
 *   Sequence numbers go on above all that were ever given: the first log of
 *   another life of the group raises them.
 *
 *   The same when another target's table takes the place of ours: writes go by
 *   unseen from then on. (LVM does that.)
 *
 *   The end: with nothing dirty and all durable, the disk is flushed, all bits
 *   are cleared and the superblock is closed. Else the bits stay, and OPEN.
 *
 * Invariants
 *   The worker is stopped while anything here runs, but for ctr.
 *   A log that is not the one that was read is never written to.
 *
 * Context: process, may sleep; asr_intent_dirty_locked under group->lock.
 *
 * Not done: a power cut between the resume of another target's table and the
 * end of ours, a moment later in the same call, finds a log that looks right.
 */
#include "dm-asr.h"

#include <linux/log2.h>
#include <linux/slab.h>
#include <linux/vmalloc.h>

#define REAP_EVERY	HZ

static bool free_idle(struct asr_intent *l)
{
	if (!asr_logdev_free(&l->dev))
		return false;
	kfree(l);
	return true;
}

static void reap_work(struct work_struct *work)
{
	struct asr_intent *l = container_of(to_delayed_work(work), struct asr_intent, work);

	if (free_idle(l)) {
		module_put(THIS_MODULE);	/* its exit waits for this work */
	} else {
		queue_delayed_work(asr_intent_wq, &l->work, REAP_EVERY);
	}
}

static void free_later(struct asr_intent *l, unsigned long delay)
{
	__module_get(THIS_MODULE);
	INIT_DELAYED_WORK(&l->work, reap_work);
	queue_delayed_work(asr_intent_wq, &l->work, delay);
}

/* The worker is stopped. */
static void destroy(struct asr_intent *l)
{
	if (!l)
		return;
	asr_intent_free_map(&l->map);
	if (free_idle(l))
		return;
	free_later(l, REAP_EVERY);
	DMERR("I/O of a write-intent log has not ended: until it does its memory, its device and this module stay");
}

static struct asr_intent *create(struct block_device *bdev, struct block_device *data)
{
	struct asr_intent *l = kzalloc(sizeof(*l), GFP_KERNEL);

	if (!l)
		return NULL;
	l->stopped = true;
	l->doubt_due = jiffies;
	INIT_LIST_HEAD(&l->waiting);
	INIT_DELAYED_WORK(&l->work, asr_intent_work);
	if (asr_logdev_init(&l->dev, bdev, data)) {
		destroy(l);
		return NULL;
	}
	return l;
}

static bool same(const struct asr_intent *a, const struct asr_intent *b)
{
	return a->dev.bdev->bd_dev == b->dev.bdev->bd_dev &&
	       !memcmp(a->dev.super.uuid, b->dev.super.uuid, sizeof(a->dev.super.uuid));
}

/* ---------------------------------------------------------------- constructor */

/* The size of the disk, and room for the bits. */
static char *size_wrong(struct asr_intent *l, struct asr_target *t)
{
	u64 was = le64_to_cpu(l->dev.super.sectors);
	struct asr_group *g = t->group;
	bool live;

	l->sectors = t->sectors;
	l->shift = ilog2(le32_to_cpu(l->dev.super.region_sectors));
	if (!asr_logdev_fits(&l->dev, ((max_t(u64, was, t->sectors) - 1) >> l->shift) + 1))
		return "log: the log device is too small for the bitmap of this disk; use a larger one";
	spin_lock_irq(&g->lock);
	live = t->disk->live && t->disk->intent && same(t->disk->intent, l);
	spin_unlock_irq(&g->lock);
	if (was == t->sectors || live)
		return NULL;
	DMERR("log of a disk of %llu sectors, the table says %llu", was, (u64)t->sectors);
	return "log: made for a disk of another size, which was changed while dm-asr was away; format the log anew";
}

/* Reads the bitmap; what is damaged there counts as set, and is to be written. */
static int read_bitmap(struct asr_intent *l)
{
	struct asr_regions *m = &l->map;
	u64 tail = m->nr_blocks * ASR_LOG_BLOCK_BITS - m->count, b;
	int r;

	for (b = 0; b < m->nr_blocks; b++) {
		r = asr_logdev_read_bits(&l->dev, b, m->bits, m->want);
		if (r)
			return r;
	}
	bitmap_clear(m->bits, m->count, tail);
	bitmap_clear(m->want, m->count, tail);
	for (b = 0; b < m->nr_blocks; b++)
		if (!bitmap_empty(m->want + BIT_WORD(b * ASR_LOG_BLOCK_BITS), ASR_LOG_BLOCK_BITS))
			__set_bit(b, m->blocks);
	return 0;
}

static char no_memory[] = "out of memory";

static char *load(struct asr_intent *l, struct asr_target *t)
{
	char *wrong = asr_logdev_open(&l->dev, t, t->group->name, t->disk->name);

	wrong = wrong ?: size_wrong(l, t);
	if (wrong)
		return wrong;
	if (asr_intent_alloc_map(&l->map, ((l->sectors - 1) >> l->shift) + 1))
		return no_memory;
	if (le64_to_cpu(l->dev.super.sectors) == l->sectors && read_bitmap(l))
		return "log: the log device cannot be read";
	return NULL;
}

/*
 * The history of a disk is found by its slot: it gets back the one that its log names, if
 * nobody has that and nobody has seen it in the one it was given first.
 */
static void take_slot(struct asr_target *t, u64 slot)
{
	struct asr_group *g = t->group;
	struct asr_disk *d = t->disk;

	if (!slot || slot > ASR_DISKS_MAX)
		return;
	slot--;
	mutex_lock(&asr_groups_mutex);
	spin_lock_irq(&g->lock);
	if (!d->live && !d->announce && d->targets == 1 && !g->disks[slot]) {
		g->disks[d->slot] = NULL;
		g->disks[slot] = d;
		d->slot = slot;
	}
	spin_unlock_irq(&g->lock);
	mutex_unlock(&asr_groups_mutex);
}

int asr_intent_ctr(struct asr_target *t, const char *path)
{
	struct dm_target *ti = t->ti;
	int r = dm_get_device(ti, path, dm_table_get_mode(ti->table), &t->logdev);

	if (r) {
		t->logdev = NULL;
		ti->error = "log: cannot open the log device";
		return r;
	}
	t->intent = create(t->logdev->bdev, t->dev->bdev);
	ti->error = t->intent ? load(t->intent, t) : no_memory;
	if (!ti->error) {
		take_slot(t, le64_to_cpu(t->intent->dev.super.slot));
		return 0;
	}
	destroy(t->intent);
	dm_put_device(ti, t->logdev);
	return ti->error == no_memory ? -ENOMEM : -EINVAL;
}

/* ------------------------------------------------------------------ bring-up */

/* The disk is in use with this log once more, in this slot. */
static void count(struct asr_intent *l)
{
	struct asr_log_super *s = &l->dev.super;

	le64_add_cpu(&s->generation, 1);
	s->slot = cpu_to_le64(l->disk->slot + 1ULL);
	l->counted = true;
}

/* Nothing is known: BROKEN on the device until all bits are set there. */
static void restart(struct asr_intent *l)
{
	struct asr_group *g = l->disk->group;

	l->told = false;
	asr_intent_tell(l);	/* if it fails the worker fails, too */
	if (l->foreign || l->unsure)
		return;		/* not ours to write, or nobody knows yet */
	if (!l->counted)
		count(l);
	spin_lock_irq(&g->lock);
	asr_intent_want_all(l);
	l->epoch_seq = l->disk->last_seq;	/* what passed while it was broken is in no epoch */
	l->open = false;
	l->broken = false;
	l->told = false;
	spin_unlock_irq(&g->lock);
}

/* The table that comes names no log, or another one, or is not ours at all. */
static void leave_behind(struct asr_intent *l, const struct asr_intent *next)
{
	dev_t dev = l->dev.bdev->bd_dev;

	if (l->foreign)
		return;
	if (next && next->dev.bdev->bd_dev == dev) {
		DMWARN("group %s disk %s: log %u:%u was formatted anew while in use", l->disk->group->name,
		       l->disk->name, MAJOR(dev), MINOR(dev));
		return;
	}
	l->told = false;
	asr_intent_tell(l);
	DMWARN("group %s disk %s: the table does without write-intent log %u:%u: it %s", l->disk->group->name,
	       l->disk->name, MAJOR(dev), MINOR(dev),
	       l->told ? "is marked as broken" : "CANNOT BE MARKED AS BROKEN, format it before it is used again");
}

/* The maps of the new size, with what is known of the old one. */
static void resize_locked(struct asr_intent *l, struct asr_intent *n)
{
	struct asr_regions *to = &n->map, *from = &l->map;
	u64 was = from->count;
	size_t bytes = min(to->nr_blocks, from->nr_blocks) * (ASR_LOG_BLOCK_BITS / 8);
	u64 tail = to->nr_blocks * ASR_LOG_BLOCK_BITS - to->count;

	memcpy(to->bits, from->bits, bytes);
	memcpy(to->want, from->want, bytes);
	memcpy(to->recent, from->recent, bytes);
	bitmap_clear(to->bits, to->count, tail);
	bitmap_clear(to->want, to->count, tail);
	bitmap_clear(to->recent, to->count, tail);
	swap(*to, *from);
	bitmap_set(l->map.blocks, 0, l->map.nr_blocks);
	/* the last region may have been a short one, and its last chunk is dirty now */
	asr_intent_want(l, min(was, l->map.count) - 1, l->map.count - 1);
	l->sectors = n->sectors;
	l->set = asr_intent_weight(l->map.bits, l->map.nr_blocks);
	l->open = false;	/* not before the superblock says so */
}

/* ... or may yet: nobody will hear how one ends that goes on still */
static bool flush_failed(struct asr_intent *l)
{
	return asr_logdev_data_failed(&l->dev) || l->dev.data->busy;
}

/* A reload with the log that the disk has. */
static void go_on(struct asr_target *t, struct asr_intent *l, struct asr_intent *n, bool doubt)
{
	struct asr_group *g = t->group;
	bool failed = flush_failed(l);

	spin_lock_irq(&g->lock);
	l->owner = t;
	if (l->sectors != n->sectors)
		resize_locked(l, n);
	l->doubt |= failed;
	swap(l->dev.data, n->dev.data);
	spin_unlock_irq(&g->lock);
	if (doubt || l->broken)
		restart(l);
}

static void raise_seq_locked(struct asr_group *g, u64 high)
{
	if (high <= g->seq_logged)
		return;		/* of this life, or known to be lower */
	g->ring.next_seq = max(g->ring.next_seq, high + ASR_LOG_SEQ_GAP);
	g->seq_logged = g->ring.next_seq - 1;
}

/* Is it still the log that the constructor read? A live disk goes on without one that is not. */
static int look_again(struct asr_target *t, struct asr_intent *n, bool fresh)
{
	int r = asr_logdev_reread(&n->dev);

	if (r == -ESTALE)
		DMERR("group %s disk %s: write-intent log %s has changed since the table was loaded; load it again",
		      t->group->name, t->disk->name, t->logdev->name);
	else if (r)	/* no reason to leave a disk suspended */
		DMERR("group %s disk %s: write-intent log %s cannot be read (error %d): writes go on, all is compared",
		      t->group->name, t->disk->name, t->logdev->name, r);
	n->broken = r;
	n->foreign = n->told = r == -ESTALE;
	n->unsure = r && !n->foreign;
	return fresh && n->foreign ? r : 0;
}

/* It was read, and is ours. */
static void take(struct asr_intent *n, bool fresh, bool doubt)
{
	struct asr_log_super *s = &n->dev.super;
	struct asr_disk *d = n->disk;
	bool moved = s->slot && le64_to_cpu(s->slot) != d->slot + 1ULL;

	if (moved)
		DMWARN("group %s disk %s: slot %llu of the group is taken, it has %u now: all is compared",
		       d->group->name, d->name, le64_to_cpu(s->slot) - 1, d->slot);
	count(n);
	if (!fresh || doubt || moved)
		restart(n);
	else if (le32_to_cpu(s->flags) & ASR_LOGF_BROKEN)
		asr_intent_want_all(n);
	n->set = asr_intent_weight(n->map.bits, n->map.nr_blocks);
}

static int begin(struct asr_target *t, struct asr_intent *n, bool fresh, bool doubt)
{
	struct asr_group *g = t->group;
	int r = look_again(t, n, fresh);

	if (r)
		return r;
	n->disk = t->disk;
	n->owner = t;
	if (!n->foreign) {
		spin_lock_irq(&g->lock);
		raise_seq_locked(g, le64_to_cpu(n->dev.super.seq_high));
		spin_unlock_irq(&g->lock);
	}
	if (!n->broken)
		take(n, fresh, doubt);
	n->epoch_seq = t->disk->last_seq;
	return 0;
}

int asr_intent_adopt(struct asr_target *t, bool fresh, bool doubt)
{
	struct asr_intent *l = t->disk->intent, *n = t->intent;
	int r;

	if (l && l->owner == t)
		return 0;
	if (l && n && !l->foreign && same(l, n)) {
		go_on(t, l, n, doubt);
		return 0;
	}
	if (l) {
		l->doubt |= flush_failed(l);
		leave_behind(l, n);
	}
	r = n ? begin(t, n, fresh, doubt) : 0;
	if (r)
		return r;
	spin_lock_irq(&t->group->lock);
	if (l && l->doubt)	/* what it names may not be on the disk, and nobody knows it any more */
		asr_dirty_set_all_locked(t->disk);
	t->disk->intent = n;
	spin_unlock_irq(&t->group->lock);
	t->intent = l;
	return 0;
}

void asr_intent_dirty_locked(struct asr_disk *d)
{
	struct asr_intent *l = d->intent;

	lockdep_assert_held(&d->group->lock);
	if (l->broken) {
		asr_dirty_set_all_locked(d);
		return;
	}
	asr_dirty_clear_all_locked(d);
	asr_dirty_set_regions_locked(d, l->map.bits, l->map.count, l->shift);
	asr_dirty_set_regions_locked(d, l->map.want, l->map.count, l->shift);
}

/* ------------------------------------------------------------ start, stop, end */

/* Once it is t's, only t, or the table that follows it, changes that. */
static struct asr_intent *owned(struct asr_target *t)
{
	struct asr_intent *l;

	spin_lock_irq(&t->group->lock);
	l = t->disk->intent;
	if (l && l->owner != t)
		l = NULL;
	spin_unlock_irq(&t->group->lock);
	return l;
}

void asr_intent_start(struct asr_target *t)
{
	struct asr_intent *l = owned(t);

	/* what was left behind, or not needed; to close a device that is broken may take long */
	if (t->intent && t->intent->broken) {
		asr_intent_free_map(&t->intent->map);
		free_later(t->intent, 0);
	} else {
		destroy(t->intent);
	}
	t->intent = NULL;
	if (!l)
		return;
	spin_lock_irq(&t->group->lock);
	l->stopped = false;
	asr_intent_kick_locked(l);
	spin_unlock_irq(&t->group->lock);
}

void asr_intent_stop(struct asr_target *t)
{
	struct asr_intent *l = owned(t);

	if (!l)
		return;
	spin_lock_irq(&t->group->lock);
	l->stopped = true;
	WARN_ON_ONCE(!list_empty(&l->waiting));
	spin_unlock_irq(&t->group->lock);
	cancel_delayed_work_sync(&l->work);
	if (l->flushing)	/* the device below may be another one next */
		asr_logdev_wait_flush_data(&l->dev);
	l->flushing = false;
}

static int clear_all(struct asr_intent *l)
{
	struct asr_regions *m = &l->map;
	size_t bytes = m->nr_blocks * (ASR_LOG_BLOCK_BITS / 8);
	struct asr_group *g = l->disk->group;
	u64 b;

	spin_lock_irq(&g->lock);
	for (b = 0; b < m->nr_blocks; b++)
		if (!bitmap_empty(m->bits + BIT_WORD(b * ASR_LOG_BLOCK_BITS), ASR_LOG_BLOCK_BITS))
			__set_bit(b, m->blocks);
	memset(m->bits, 0, bytes);
	memset(m->want, 0, bytes);
	memset(m->recent, 0, bytes);
	l->set = 0;
	spin_unlock_irq(&g->lock);
	return asr_intent_commit(l);
}

/* No write will come. */
static void end(struct asr_intent *l)
{
	struct asr_disk *d = l->disk;
	struct asr_group *g = d->group;
	bool clean;
	int r;

	if (l->broken) {
		asr_intent_tell(l);
		return;
	}
	r = asr_intent_commit(l);	/* what was made dirty by decree */
	spin_lock_irq(&g->lock);
	clean = l->open && !l->doubt && !d->map.marked && g->durable_seq >= d->last_seq;
	spin_unlock_irq(&g->lock);
	if (!r && clean)		/* else who knows what the disk has */
		clean = asr_logdev_flush_data(&l->dev) && !asr_logdev_data_failed(&l->dev);
	if (!r && clean)
		r = clear_all(l);
	if (!r && l->open)
		r = asr_intent_write_super(l, clean ? 0 : ASR_LOGF_OPEN);
	if (r)
		asr_intent_break(l, r);
	else
		DMINFO("group %s disk %s: write-intent log left %s, %llu of %llu regions set", g->name, d->name,
		       clean ? "clean" : "open", l->set, l->map.count);
}

void asr_intent_dtr(struct asr_target *t)
{
	struct asr_intent *l = owned(t);

	if (l) {
		asr_intent_stop(t);
		if (asr_device_lives(t->disk->md))
			leave_behind(l, NULL);	/* another target has its table now */
		else
			end(l);
		spin_lock_irq(&t->group->lock);
		t->disk->intent = NULL;
		spin_unlock_irq(&t->group->lock);
		destroy(l);
	}
	destroy(t->intent);
	if (t->logdev)
		dm_put_device(t->ti, t->logdev);
}

const char *asr_intent_state(const struct asr_intent *l)
{
	if (!l)
		return "-";
	return l->broken ? "broken" : l->open ? "ok" : "opening";
}
