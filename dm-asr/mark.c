// SPDX-License-Identifier: GPL-2.0
/*
 * Marks: moments of a group that have a name; and holds, that cut the streams of several hosts at one moment.
 *
 * Design
 *   A mark is a record in the ring. What is known of it only later - that the
 *   applications were quiet until then, that all hosts of the group had it and
 *   held - is another record, a declaration.
 *
 *   A hold withholds completions of writes that stand after its mark, so that
 *   marks of several hosts make one cut. It ends by RELEASE, else broken: by
 *   its timer, a suspend, or the consumer's end. The timer is an hrtimer: with
 *   ticks of 4 ms and more a hold of 50 ms would be one of 57. The model of it:
 *   tests/model/group-mark.pml.
 *
 * Invariants
 *   A completion is withheld at most for as long as the mark said, ASR_HOLD_MAX_NS
 *   at most, and what a worker needs to be awake.
 *   A mark whose hold was broken is never declared one of all hosts.
 *
 * Context: process, but for *_locked, and the timer: softirq.
 */
#include "dm-asr.h"

static void end_hold_locked(struct asr_group *g, bool broken)
{
	lockdep_assert_held(&g->lock);
	g->hold.on = false;
	g->hold.broken = broken;
	g->hold.held_ns = ktime_get_ns() - g->hold.since_ns;
	g->holds_broken += broken;
	list_splice_tail_init(&g->held, &g->released);
	queue_work(asr_wq, &g->release_work);
}

void asr_release_work(struct work_struct *work)
{
	struct asr_group *g = container_of(work, struct asr_group, release_work);
	struct asr_io *io, *next;
	LIST_HEAD(list);

	spin_lock_irq(&g->lock);
	list_splice_init(&g->released, &list);
	spin_unlock_irq(&g->lock);
	/* dm calls .end_io again, which finds nothing left to do */
	list_for_each_entry_safe(io, next, &list, link)
		bio_endio(io->bio);
}

/* Of this hold, or of one that ended before its time: then the deadline is another's, whose timer is set */
enum hrtimer_restart asr_hold_timer(struct hrtimer *timer)
{
	struct asr_group *g = container_of(timer, struct asr_group, hold_timer);
	unsigned long flags;

	spin_lock_irqsave(&g->lock, flags);
	if (g->hold.on && ktime_get_ns() >= g->hold.deadline_ns)
		end_hold_locked(g, true);
	spin_unlock_irqrestore(&g->lock, flags);
	return HRTIMER_NORESTART;
}

void asr_group_break_hold(struct asr_group *g)
{
	spin_lock_irq(&g->lock);
	if (g->hold.on)
		end_hold_locked(g, true);
	spin_unlock_irq(&g->lock);
}

static void begin_hold_locked(struct asr_group *g, u64 id, u64 hold_ns)
{
	u64 now = ktime_get_ns();

	g->hold = (struct asr_hold){ .id = id, .on = true, .since_ns = now,
				     .deadline_ns = now + hold_ns };
	hrtimer_start(&g->hold_timer, ns_to_ktime(now + hold_ns), HRTIMER_MODE_ABS_SOFT);
}

/* A mark, with a hold or without; or what is said of one */
static bool mark_flags_valid(u32 flags)
{
	if (flags & (ASR_MARK_APP | ASR_MARK_GROUP))
		return flags & ASR_MARK_DECLARE && !(flags & ~(ASR_MARK_DECLARE | ASR_MARK_APP | ASR_MARK_GROUP));
	return !(flags & ~ASR_MARK_HOLD);
}

int asr_group_mark(struct asr_group *g, struct asr_mark *arg)
{
	struct asr_rec_mark p = { .flags = arg->flags };
	bool hold = arg->flags & ASR_MARK_HOLD, declare = arg->flags & ASR_MARK_DECLARE, wake;
	int r;

	if (!mark_flags_valid(arg->flags) || arg->reserved || !asr_group_name_valid(arg->name) ||
	    arg->hold_ns > ASR_HOLD_MAX_NS)
		return -EINVAL;
	strscpy(p.name, arg->name, sizeof(p.name));

	spin_lock_irq(&g->lock);
	p.id = declare ? arg->id : g->marks + 1;
	if (!p.id || p.id > g->marks + !declare)
		r = -EINVAL;
	else if (hold && g->hold.on)
		r = -EBUSY;
	else if (arg->flags & ASR_MARK_GROUP && (g->hold.id != p.id || g->hold.on || g->hold.broken))
		r = -ESTALE;
	else if (g->state != ASR_STATE_CAPTURE)
		r = -ENOSPC;
	else
		r = asr_ring_put_locked(g, ASR_KIND_MARK, ASR_DISK_NONE, &p, sizeof(p),
					ASR_KEEP_WRITE, &arg->seq, &arg->time_ns);
	if (!r) {
		arg->id = p.id;
		g->marks += !declare;
		if (hold)
			begin_hold_locked(g, p.id, arg->hold_ns ?: ASR_HOLD_DEFAULT_NS);
	}
	wake = asr_ring_wake_due_locked(g);
	spin_unlock_irq(&g->lock);
	if (wake)
		asr_ring_wake(g);
	return r;
}

int asr_group_release(struct asr_group *g, struct asr_release *arg)
{
	struct asr_hold *h = &g->hold;
	int r = -ENOENT;

	spin_lock_irq(&g->lock);
	if (arg->id && h->id == arg->id && (h->on || (h->broken && !h->reported))) {
		if (h->on)
			end_hold_locked(g, false);
		h->reported = true;
		arg->held_ns = h->held_ns;
		arg->broken = h->broken;
		arg->held = h->held;
		r = 0;
	}
	spin_unlock_irq(&g->lock);
	return r;
}
