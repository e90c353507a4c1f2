// SPDX-License-Identifier: GPL-2.0
/*
 * Groups and their disks: who belongs together, and in which state.
 *
 * Design
 *   A group is made and deleted by the control device and lives on its own:
 *   tables and consumers come and go. A disk is an object of its group, found
 *   by name, kept by the tables that map it: on a reload the new table is made
 *   before the old one dies, so the map of dirty chunks stays. When its last
 *   table is gone the disk has left; if it comes back it is wholly dirty.
 *
 *   CAPTURE: every write becomes a record. TRACK: writes set dirty bits only.
 *   All changes go through asr_group_set_state_locked: one record, one line in
 *   the log, one dm event each. The latter two are left to work, for the change
 *   is made on the write path.
 *
 * Invariants
 *   Room for the STATE record is always there (ring.c).
 *
 * Context: process, but for *_locked.
 */
#include "dm-asr.h"

#include <linux/ctype.h>
#include <linux/slab.h>
#include <linux/vmalloc.h>

DEFINE_MUTEX(asr_groups_mutex);

static LIST_HEAD(groups);		/* asr_groups_mutex */
static u64 ring_bytes_used;		/* asr_groups_mutex */

static unsigned int ring_cap_mb;
module_param(ring_cap_mb, uint, 0644);
MODULE_PARM_DESC(ring_cap_mb, "memory for all rings together, MiB (0: a quarter of RAM)");

static u64 ring_cap_bytes(void)
{
	unsigned int mb = READ_ONCE(ring_cap_mb);

	return mb ? (u64)mb << 20 : (u64)totalram_pages() << PAGE_SHIFT >> 2;
}

const char *asr_state_name(u32 state)
{
	return state == ASR_STATE_CAPTURE ? "capture" : "track";
}

const char *asr_why_name(u32 why)
{
	switch (why) {
	case ASR_WHY_START: return "start";
	case ASR_WHY_RING_FULL: return "ring-full";
	case ASR_WHY_POISONED: return "poisoned";
	case ASR_WHY_REQUEST: return "request";
	}
	return "?";
}

bool asr_group_name_valid(const char *name)
{
	size_t n = strnlen(name, ASR_NAME_BYTES), i;

	if (!n || n == ASR_NAME_BYTES || !isascii(name[0]) || !isalnum(name[0]))
		return false;
	for (i = 1; i < n; i++)
		if (!isascii(name[i]) || (!isalnum(name[i]) && !strchr("._+-", name[i])))
			return false;
	return true;
}

/* ---------------------------------------------------------------- state */

/* A disk's record, or TRACK and the promise of one at the return to CAPTURE. */
static void announce_locked(struct asr_disk *d, u32 flags)
{
	struct asr_rec_disk p = { .flags = flags };

	lockdep_assert_held(&d->group->lock);
	p.sectors = d->live ? d->sectors : 0;
	memcpy(p.name, d->name, sizeof(p.name));
	d->announce = asr_ring_put_locked(d->group, ASR_KIND_DISK, d->slot, &p, sizeof(p),
					  ASR_KEEP_DISK, NULL, NULL) != 0;
	d->announce_flags = d->announce ? flags : 0;
	/* no write of it may have a record before it has its own */
	if (d->announce)
		asr_group_set_state_locked(d->group, ASR_STATE_TRACK, ASR_WHY_RING_FULL);
}

/* With asr_groups_mutex, too: g->disks[] changes. */
static void announce_waiting_locked(struct asr_group *g)
{
	struct asr_disk *d;
	int i;

	lockdep_assert_held(&asr_groups_mutex);
	for (i = 0; i < ASR_DISKS_MAX; i++) {
		d = g->disks[i];
		if (!d || !d->announce)
			continue;
		announce_locked(d, d->announce_flags);
		if (!d->announce && !d->targets) {
			g->disks[i] = NULL;
			kfree(d);
		}
	}
}

void asr_group_set_state_locked(struct asr_group *g, u32 to, u32 why)
{
	struct asr_rec_state p = { .from = g->state, .to = to, .reason = why };
	struct asr_target *t;

	lockdep_assert_held(&g->lock);
	if (g->state == to)
		return;
	/* first the state: making room may want to change it, too */
	g->state = to;
	g->why = why;
	WRITE_ONCE(g->ring.prod->state, to);
	if (WARN_ON_ONCE(asr_ring_put_locked(g, ASR_KIND_STATE, ASR_DISK_NONE, &p, sizeof(p),
					     ASR_KEEP_STATE, NULL, NULL)))
		DMERR("group %s: no room for a STATE record", g->name);
	if (to == ASR_STATE_CAPTURE)
		announce_waiting_locked(g);
	if (why == ASR_WHY_RING_FULL)
		g->overflows++;
	if (g->nr_changes < ARRAY_SIZE(g->changes))
		g->changes[g->nr_changes++] = (struct asr_change){ p.from, to, why };
	queue_work(asr_wq, &g->report_work);
	list_for_each_entry(t, &g->targets, link)
		queue_work(asr_wq, &t->event_work);
}

/* Logs the changes of state, and wakes a consumer that they concern. */
static void report_work(struct work_struct *work)
{
	struct asr_group *g = container_of(work, struct asr_group, report_work);
	struct asr_change c[ARRAY_SIZE(g->changes)];
	unsigned int n, i;
	bool wake;

	spin_lock_irq(&g->lock);
	n = g->nr_changes;
	memcpy(c, g->changes, sizeof(c));
	g->nr_changes = 0;
	wake = asr_ring_wake_due_locked(g) || g->ring.poisoned;
	spin_unlock_irq(&g->lock);

	for (i = 0; i < n; i++)
		DMINFO("group %s: %s -> %s (%s)", g->name, asr_state_name(c[i].from),
		       asr_state_name(c[i].to), asr_why_name(c[i].why));
	if (wake)
		asr_ring_wake(g);
}

int asr_group_capture(struct asr_group *g)
{
	int r = 0;

	mutex_lock(&asr_groups_mutex);	/* a disk that has left may be freed now */
	spin_lock_irq(&g->lock);
	asr_ring_read_tail_locked(g);
	if (g->ring.poisoned)
		r = -EPROTO;
	else if (g->state == ASR_STATE_CAPTURE)
		r = 0;
	else if (asr_ring_free_bytes(&g->ring) < g->ring.bytes / 2)
		r = -ENOSPC;
	else
		asr_group_set_state_locked(g, ASR_STATE_CAPTURE, ASR_WHY_REQUEST);
	spin_unlock_irq(&g->lock);
	mutex_unlock(&asr_groups_mutex);
	return r;
}

void asr_group_track(struct asr_group *g)
{
	spin_lock_irq(&g->lock);
	asr_group_set_state_locked(g, ASR_STATE_TRACK, ASR_WHY_REQUEST);
	spin_unlock_irq(&g->lock);
}

/* --------------------------------------------------------------- groups */

static struct asr_group *find_group(const char *name)
{
	struct asr_group *g;

	lockdep_assert_held(&asr_groups_mutex);
	list_for_each_entry(g, &groups, link)
		if (!strcmp(g->name, name))
			return g;
	return NULL;
}

static struct asr_group *alloc_group(const char *name, u64 ring_bytes, u64 first_seq)
{
	struct asr_group *g = kvzalloc(sizeof(*g), GFP_KERNEL);

	if (!g)
		return NULL;
	if (asr_ring_init(&g->ring, ring_bytes, first_seq)) {
		kvfree(g);
		return NULL;
	}
	strscpy(g->name, name, sizeof(g->name));
	spin_lock_init(&g->lock);
	INIT_LIST_HEAD(&g->busy);
	INIT_LIST_HEAD(&g->held);
	INIT_LIST_HEAD(&g->released);
	INIT_LIST_HEAD(&g->targets);
	asr_compat_hrtimer_init(&g->hold_timer, asr_hold_timer);
	INIT_WORK(&g->release_work, asr_release_work);
	INIT_WORK(&g->report_work, report_work);
	init_waitqueue_head(&g->poll);
	init_waitqueue_head(&g->settled);
	return g;
}

static void free_group(struct asr_group *g)
{
	int i;

	hrtimer_cancel(&g->hold_timer);
	cancel_work_sync(&g->release_work);
	cancel_work_sync(&g->report_work);
	for (i = 0; i < ASR_DISKS_MAX; i++)
		kfree(g->disks[i]);	/* left, never announced; its maps are gone */
	asr_ring_free(&g->ring);
	kvfree(g);
}

/* Takes ring_bytes out of the budget. */
static int budget_take(const char *name, u64 ring_bytes)
{
	int r = 0;

	mutex_lock(&asr_groups_mutex);
	if (find_group(name))
		r = -EEXIST;
	else if (ring_bytes_used + ring_bytes > ring_cap_bytes())
		r = -EDQUOT;
	else
		ring_bytes_used += ring_bytes;
	mutex_unlock(&asr_groups_mutex);
	return r;
}

static int publish_group(struct asr_group *g)
{
	mutex_lock(&asr_groups_mutex);
	if (find_group(g->name)) {
		mutex_unlock(&asr_groups_mutex);
		return -EEXIST;
	}
	spin_lock_irq(&g->lock);
	asr_group_set_state_locked(g, ASR_STATE_CAPTURE, ASR_WHY_START);
	g->nr_changes = 0;	/* a beginning is not a change */
	spin_unlock_irq(&g->lock);
	list_add_tail(&g->link, &groups);
	__module_get(THIS_MODULE);
	mutex_unlock(&asr_groups_mutex);
	return 0;
}

int asr_group_create(const struct asr_group_create *arg)
{
	u64 ring_bytes = arg->ring_bytes ?: ASR_RING_DEFAULT;
	struct asr_group *g;
	int r;

	if (arg->flags || arg->reserved || !asr_group_name_valid(arg->name) ||
	    !is_power_of_2(ring_bytes) || ring_bytes < ASR_RING_MIN || ring_bytes > ASR_RING_MAX)
		return -EINVAL;
	r = budget_take(arg->name, ring_bytes);
	if (r)
		return r;
	g = alloc_group(arg->name, ring_bytes, arg->first_seq ?: 1);
	r = g ? publish_group(g) : -ENOMEM;
	if (!r) {
		/* not g->name: it may be deleted again by now */
		DMINFO("group %s: created, ring of %llu MiB", arg->name, ring_bytes >> 20);
		return 0;
	}
	if (g)
		free_group(g);
	mutex_lock(&asr_groups_mutex);
	ring_bytes_used -= ring_bytes;
	mutex_unlock(&asr_groups_mutex);
	return r;
}

static bool in_use(struct asr_group *g)
{
	int i;

	lockdep_assert_held(&asr_groups_mutex);
	for (i = 0; i < ASR_DISKS_MAX; i++)
		if (g->disks[i] && g->disks[i]->targets)
			return true;
	return g->consumer;
}

int asr_group_delete(const char *name)
{
	struct asr_group *g;
	int r = 0;

	mutex_lock(&asr_groups_mutex);
	g = find_group(name);
	if (!g)
		r = -ENOENT;
	else if (in_use(g))
		r = -EBUSY;
	else {
		list_del(&g->link);
		ring_bytes_used -= g->ring.bytes;
	}
	mutex_unlock(&asr_groups_mutex);
	if (r)
		return r;
	DMINFO("group %s: deleted", g->name);
	free_group(g);
	module_put(THIS_MODULE);
	return 0;
}

static u64 memory_of(const struct asr_disk *d)
{
	return sizeof(*d) + d->map.chunks / 4 + (d->intent ? asr_intent_memory(d->intent) : 0);
}

static void fill_info_locked(struct asr_group *g, struct asr_group_info *i)
{
	struct asr_disk *d;
	int n;

	asr_ring_read_tail_locked(g);
	i->state = g->state;
	i->reason = g->why;
	i->attached = !!g->consumer;
	i->holding = g->hold.on;
	i->ring_bytes = g->ring.bytes;
	i->head = g->ring.head;
	i->tail = g->ring.tail;
	i->next_seq = g->ring.next_seq;
	i->uncaptured = g->uncaptured;
	i->overflows = g->overflows;
	i->overlaps = g->overlaps;
	i->wakeups = g->ring.wakeups;
	i->holds_broken = g->holds_broken;
	i->writes = g->writes;
	i->write_bytes = g->write_bytes;
	i->memory_bytes = sizeof(*g) + g->ring.bytes + 2 * PAGE_SIZE;
	for (n = 0; n < ASR_DISKS_MAX; n++) {
		d = g->disks[n];
		if (!d || !d->live)
			continue;
		i->disks = n + 1;
		i->dirty_chunks += d->map.marked;
		i->memory_bytes += memory_of(d);
	}
}

int asr_group_info(struct asr_group_info *arg)
{
	struct asr_group_info out = { };
	struct asr_group *g = NULL, *it;

	arg->name[ASR_NAME_BYTES - 1] = 0;
	mutex_lock(&asr_groups_mutex);
	list_for_each_entry(it, &groups, link) {
		if (arg->name[0] ? !strcmp(it->name, arg->name) : out.index == arg->index) {
			g = it;
			break;
		}
		out.index++;
	}
	if (g) {
		strscpy(out.name, g->name, sizeof(out.name));
		spin_lock_irq(&g->lock);
		fill_info_locked(g, &out);
		spin_unlock_irq(&g->lock);
		*arg = out;
	}
	mutex_unlock(&asr_groups_mutex);
	return g ? 0 : -ENOENT;
}

void asr_group_totals(struct asr_info *arg)
{
	struct asr_group *g;

	mutex_lock(&asr_groups_mutex);
	list_for_each_entry(g, &groups, link)
		arg->groups++;
	arg->ring_bytes_used = ring_bytes_used;
	arg->ring_bytes_cap = ring_cap_bytes();
	mutex_unlock(&asr_groups_mutex);
}

int asr_group_attach(const char *name, struct file *file, struct asr_group **out)
{
	struct asr_group *g;
	int r = 0;

	mutex_lock(&asr_groups_mutex);
	g = find_group(name);
	if (*out)
		r = -EALREADY;
	else if (!g)
		r = -ENOENT;
	else if (g->consumer)
		r = -EBUSY;
	else {
		spin_lock_irq(&g->lock);
		g->consumer = file;
		asr_ring_attach_locked(g);
		spin_unlock_irq(&g->lock);
		smp_store_release(out, g);	/* pairs with the acquire of each ioctl */
	}
	mutex_unlock(&asr_groups_mutex);
	if (!r)
		asr_dirty_return(g);
	return r;
}

void asr_group_detach(struct asr_group *g)
{
	asr_group_break_hold(g);
	mutex_lock(&asr_groups_mutex);
	spin_lock_irq(&g->lock);
	asr_ring_read_tail_locked(g);	/* what it had consumed stays consumed */
	g->consumer = NULL;
	spin_unlock_irq(&g->lock);
	mutex_unlock(&asr_groups_mutex);
}

/* ---------------------------------------------------------------- disks */

static struct asr_disk *find_disk(struct asr_group *g, const char *name)
{
	int i;

	for (i = 0; i < ASR_DISKS_MAX; i++)
		if (g->disks[i] && !strcmp(g->disks[i]->name, name))
			return g->disks[i];
	return NULL;
}

static int free_slot(struct asr_group *g)
{
	int i;

	for (i = 0; i < ASR_DISKS_MAX; i++)
		if (!g->disks[i])
			return i;
	return -1;
}

static void join_locked(struct asr_target *t, struct asr_group *g, struct asr_disk *d)
{
	d->targets++;
	t->group = g;
	t->disk = d;
	list_add_tail(&t->link, &g->targets);
}

/*
 * Under the mutex. *fresh is a disk ready to be used when the name is new; t->
 * spare are maps that fit the new table: taken by a new disk, kept in t until
 * it is resumed, for by then the disk may have another size.
 */
static int bind(struct asr_target *t, struct asr_group *g, const char *name,
		struct asr_disk **fresh)
{
	struct mapped_device *md = dm_table_get_md(t->ti->table);
	struct asr_disk *d = find_disk(g, name);
	int slot, r = 0;

	if (d && d->targets && d->md != md) {
		t->ti->error = "this disk name is in use by another device; choose another <disk>";
		return -EBUSY;
	}
	spin_lock_irq(&g->lock);
	if (!d) {
		slot = free_slot(g);
		if (slot < 0) {
			t->ti->error = "the group is full: it has 256 disks already";
			r = -ENOSPC;
			goto out;
		}
		d = *fresh;
		*fresh = NULL;
		d->group = g;
		d->slot = slot;
		g->disks[slot] = d;
	}
	if (!d->targets) {	/* new, or left and not yet announced so */
		d->sectors = t->sectors;
		d->map = t->spare;
		d->md = md;
		memset(&t->spare, 0, sizeof(t->spare));
	}
	join_locked(t, g, d);
out:
	spin_unlock_irq(&g->lock);
	return r;
}

int asr_disk_get(struct asr_target *t, const char *group, const char *name)
{
	struct asr_disk *fresh = kzalloc(sizeof(*fresh), GFP_KERNEL);
	int r = asr_dirty_alloc(&t->spare, t->sectors, 0) ?: (fresh ? 0 : -ENOMEM);
	struct asr_group *g;

	if (r) {
		t->ti->error = r == -EFBIG ? "disk too large: at most 128 TiB" : "out of memory";
		goto out;
	}
	strscpy(fresh->name, name, sizeof(fresh->name));
	mutex_lock(&asr_groups_mutex);
	g = find_group(group);
	if (!g)
		t->ti->error = "no such group; create it on the control device first";
	r = g ? bind(t, g, name, &fresh) : -ENOENT;
	mutex_unlock(&asr_groups_mutex);
out:
	kfree(fresh);
	if (r)
		asr_dirty_free(&t->spare);
	return r;
}

/*
 * The table that counted is gone, or the last one. Returns true when the object can go, too;
 * not while a table waits to be resumed, which then brings the disk in anew, wholly dirty.
 */
static bool leave_locked(struct asr_group *g, struct asr_disk *d, struct asr_map *map)
{
	bool known = d->live || d->announce;

	d->live = false;
	if (known)
		announce_locked(d, 0);
	if (d->targets)
		return false;
	*map = d->map;
	memset(&d->map, 0, sizeof(d->map));
	d->md = NULL;
	if (d->announce)
		return false;
	g->disks[d->slot] = NULL;
	return true;
}

/*
 * Does the device outlive the table that dies? Then it has another one by now, and what is
 * written through that goes by uncaptured. A device that is being removed is not found.
 */
bool asr_device_lives(struct mapped_device *md)
{
	struct mapped_device *found = dm_get_md(disk_devt(dm_disk(md)));

	if (found)
		dm_put(found);
	return found == md;
}

void asr_disk_put(struct asr_target *t)
{
	struct asr_group *g = t->group;
	struct asr_disk *gone = NULL;
	struct asr_map map = { };
	struct asr_disk *d = t->disk;
	bool wake, left;

	mutex_lock(&asr_groups_mutex);
	left = d->live && d->current_table == t;
	if (left && asr_device_lives(d->md))
		DMWARN("group %s: disk %s has left: the table of %s was replaced, its writes are not captured any more",
		       g->name, d->name, dm_device_name(d->md));
	spin_lock_irq(&g->lock);
	list_del(&t->link);
	d->targets--;
	if ((left || !d->targets) && leave_locked(g, d, &map))
		gone = d;
	wake = asr_ring_wake_due_locked(g);
	if (wake)	/* under the lock: the group may go once we have unlocked */
		asr_ring_wake(g);
	spin_unlock_irq(&g->lock);
	mutex_unlock(&asr_groups_mutex);
	kfree(gone);
	asr_dirty_free(&map);
	asr_dirty_free(&t->spare);
}

/* Another lower device, or place on it: nobody knows what it holds. */
static bool moved(const struct asr_disk *d, const struct asr_target *t)
{
	return d->live && (d->lower != t->dev->bdev->bd_dev || d->start != t->start);
}

int asr_disk_resume(struct asr_target *t)
{
	struct asr_group *g = t->group;
	struct asr_disk *d = t->disk;
	bool wake, all, resized, fresh = !d->live;
	int r;

	r = asr_intent_adopt(t, fresh, t->nocopy || moved(d, t));
	if (r)
		return r;
	spin_lock_irq(&g->lock);
	resized = d->sectors != t->sectors;
	if (resized && WARN_ON_ONCE(!t->spare.dirty)) {
		r = -EINVAL;
		goto out;
	}
	all = !d->live || moved(d, t);
	if (resized) {
		asr_dirty_resize_locked(d, &t->spare);
		d->sectors = t->sectors;
	}
	if (fresh && d->intent && !t->nocopy)
		asr_intent_dirty_locked(d);
	else if (all || t->nocopy)	/* with nocopy no ACK is taken */
		asr_dirty_set_all_locked(d);
	d->live = true;
	d->current_table = t;
	if (all || resized)
		announce_locked(d, all ? ASR_DISKF_DIRTY : 0);
	d->nocopy = t->nocopy;
	d->start = t->start;
	d->lower = t->dev->bdev->bd_dev;
out:
	wake = asr_ring_wake_due_locked(g);
	spin_unlock_irq(&g->lock);
	if (wake)
		asr_ring_wake(g);
	return r;
}

static void fill_log_info_locked(const struct asr_intent *l, struct asr_disk_info *i)
{
	i->log_region_sectors = 1u << l->shift;
	i->log_flags = (l->open || l->broken ? ASR_LOGF_OPEN : 0) | (l->broken ? ASR_LOGF_BROKEN : 0);
	i->log_regions_set = l->set;
	i->log_writes = READ_ONCE(l->dev.writes);
}

int asr_disk_info(struct asr_group *g, struct asr_disk_info *arg)
{
	struct asr_disk_info out = { .slot = arg->slot };
	struct asr_disk *d;

	if (arg->slot >= ASR_DISKS_MAX)
		return -EINVAL;
	spin_lock_irq(&g->lock);
	d = g->disks[arg->slot];
	if (d && !d->live)
		d = NULL;	/* its first table waits to be resumed, or it has left */
	if (d) {
		out.active = d->targets;
		out.sectors = d->sectors;
		out.start_sector = d->start;
		out.lower_major = MAJOR(d->lower);
		out.lower_minor = MINOR(d->lower);
		out.dirty_chunks = d->map.marked;
		out.errors = d->errors;
		out.memory_bytes = memory_of(d);
		if (d->intent)
			fill_log_info_locked(d->intent, &out);
		memcpy(out.name, d->name, sizeof(out.name));
		*arg = out;
	}
	spin_unlock_irq(&g->lock);
	return d ? 0 : -ENOENT;
}
