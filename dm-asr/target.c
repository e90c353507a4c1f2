// SPDX-License-Identifier: GPL-2.0
/*
 * The dm target `asr`, and the module's beginning and end.
 *
 *   0 <sectors> asr <device> <offset> <group> <disk> [<#opts> <opt>...]
 *
 * Design
 *   The target is a linear mapping that shows every write to capture.c. What
 *   it does not set: integrity, inline crypto, DAX, atomic writes, zones,
 *   prepare_ioctl; each would be a way past capture. (Without prepare_ioctl dm
 *   answers an ioctl with ENOTTY, so SG_IO does not go around the ring.)
 *
 *   A new table becomes the one that counts in .preresume: between ctr and
 *   there another table may be live, and its I/O is that of the old size.
 *
 * Context: map in process context, end_io in any, the rest process.
 */
#include "dm-asr.h"

struct workqueue_struct *asr_wq, *asr_intent_wq, *asr_logio_wq;

static void event_work(struct work_struct *work)
{
	struct asr_target *t = container_of(work, struct asr_target, event_work);

	dm_table_event(t->ti->table);
}

/* ---------------------------------------------------------- constructor */

static int parse_throttle(struct asr_target *t, struct dm_arg_set *as)
{
	static const struct dm_arg arg = { 1, 60000, "throttle_ms must be 1 to 60000" };
	char *error;

	if (!as->argc) {
		t->ti->error = "throttle_ms needs a number of milliseconds, 1 to 60000";
		return -EINVAL;
	}
	if (dm_read_arg(&arg, as, &t->throttle_ms, &error)) {
		t->ti->error = error;
		return -EINVAL;
	}
	return 0;
}

static int parse_log(struct asr_target *t, struct dm_arg_set *as, const char **log)
{
	if (!as->argc) {
		t->ti->error = "log needs a device";
		return -EINVAL;
	}
	if (*log) {
		t->ti->error = "log stands twice; a disk has one log";
		return -EINVAL;
	}
	*log = dm_shift_arg(as);
	return 0;
}

static int parse_options(struct asr_target *t, struct dm_arg_set *as, const char **log)
{
	static const struct dm_arg arg = { 0, 6, "the number of options must be 0 to 6" };
	struct dm_target *ti = t->ti;
	unsigned int n;
	const char *opt;

	if (!as->argc)
		return 0;
	if (dm_read_arg_group(&arg, as, &n, &ti->error)) {
		ti->error = "the number of options must be 0 to 6, and that many must follow";
		return -EINVAL;
	}
	if (n != as->argc) {
		ti->error = "more arguments than the number of options says";
		return -EINVAL;
	}
	while (as->argc) {
		opt = dm_shift_arg(as);
		if (!strcmp(opt, "strict")) {
			t->strict = true;
		} else if (!strcmp(opt, "nocopy")) {
			t->nocopy = true;
		} else if (!strcmp(opt, "log")) {
			if (parse_log(t, as, log))
				return -EINVAL;
		} else if (!strcmp(opt, "throttle_ms")) {
			if (parse_throttle(t, as))
				return -EINVAL;
		} else {
			ti->error = "unknown option; known: strict, throttle_ms <n>, nocopy, log <device>";
			return -EINVAL;
		}
	}
	if (t->strict && t->nocopy) {
		ti->error = "strict and nocopy exclude each other";
		return -EINVAL;
	}
	return 0;
}

static int parse_device(struct asr_target *t, const char *path, const char *offset)
{
	unsigned long long start;
	int r;

	if (kstrtoull(offset, 10, &start) || start + t->sectors < start) {
		t->ti->error = "<offset> must be a number of sectors on the device";
		return -EINVAL;
	}
	t->start = start;
	r = dm_get_device(t->ti, path, dm_table_get_mode(t->ti->table), &t->dev);
	if (r)
		t->ti->error = "cannot open <device>";
	return r;
}

static void set_abilities(struct asr_target *t)
{
	struct dm_target *ti = t->ti;

	ti->private = t;
	ti->num_flush_bios = 1;
	ti->num_discard_bios = 1;
	ti->num_write_zeroes_bios = 1;
	ti->per_io_data_size = t->strict ? sizeof(struct asr_strict_io) : sizeof(struct asr_io);
	asr_compat_submits_itself(ti);
	asr_compat_no_write_same(ti);
	asr_compat_stable_ctr(ti);
}

static int asr_ctr(struct dm_target *ti, unsigned int argc, char **argv)
{
	struct dm_arg_set as = { .argc = argc - 4, .argv = argv + 4 };
	const char *log = NULL;
	struct asr_target *t;
	int r = -EINVAL;

	if (argc < 4) {
		ti->error = "needs <device> <offset> <group> <disk> [<#opts> <opt>...]";
		return -EINVAL;
	}
	if (ti->begin) {
		ti->error = "must begin at sector 0 of its table: a disk is a whole device";
		return -EINVAL;
	}
	if (!asr_group_name_valid(argv[2]) || !asr_group_name_valid(argv[3])) {
		ti->error = "names are 1 to 63 of [A-Za-z0-9._+-], a letter or digit first";
		return -EINVAL;
	}
	t = kzalloc(sizeof(*t), GFP_KERNEL);
	if (!t) {
		ti->error = "out of memory";
		return -ENOMEM;
	}
	t->ti = ti;
	t->sectors = ti->len;
	INIT_WORK(&t->event_work, event_work);
	INIT_LIST_HEAD(&t->queue);
	INIT_DELAYED_WORK(&t->queue_work, asr_capture_work);
	r = parse_options(t, &as, &log);
	if (r)
		goto out_free;
	t->queue_wq = alloc_workqueue("asr/%s", WQ_MEM_RECLAIM | WQ_UNBOUND, 1,
				      dm_device_name(dm_table_get_md(ti->table)));
	if (!t->queue_wq) {
		ti->error = "out of memory";
		r = -ENOMEM;
		goto out_free;
	}
	r = parse_device(t, argv[0], argv[1]);
	if (r)
		goto out_wq;
	r = dm_set_target_max_io_len(ti, ASR_SPAN_SECTORS);
	if (r)
		goto out_put_device;
	r = asr_disk_get(t, argv[2], argv[3]);
	if (r)
		goto out_put_device;
	r = log ? asr_intent_ctr(t, log) : 0;
	if (r)
		goto out_put_disk;
	set_abilities(t);
	if (t->nocopy)
		DMWARN("group %s disk %s: nocopy: NOTHING IS PROTECTED, for measurements only",
		       argv[2], argv[3]);
	return 0;

out_put_disk:
	asr_disk_put(t);
	cancel_work_sync(&t->event_work);	/* the group knew t, and may have had news */
out_put_device:
	dm_put_device(ti, t->dev);
out_wq:
	destroy_workqueue(t->queue_wq);
out_free:
	kfree(t);
	return r;
}

static void asr_dtr(struct dm_target *ti)
{
	struct asr_target *t = ti->private;

	cancel_delayed_work_sync(&t->queue_work);	/* no write is left, perhaps its tick */
	destroy_workqueue(t->queue_wq);
	asr_intent_dtr(t);
	asr_disk_put(t);
	cancel_work_sync(&t->event_work);
	dm_put_device(ti, t->dev);
	kfree(t);
}

/* ------------------------------------------------------------- data path */

static int asr_map(struct dm_target *ti, struct bio *bio)
{
	struct asr_target *t = ti->private;
	struct asr_io *io = dm_per_bio_data(bio, ti->per_io_data_size);

	bio_set_dev(bio, t->dev->bdev);
	bio->bi_iter.bi_sector = t->start + dm_target_offset(ti, bio->bi_iter.bi_sector);
	io->how = ASR_IO_NONE;
	if (!op_is_write(bio->bi_opf))
		return DM_MAPIO_REMAPPED;
	return asr_capture_map(t, bio, io);
}

static int asr_end_io(struct dm_target *ti, struct bio *bio, blk_status_t *error)
{
	struct asr_io *io = dm_per_bio_data(bio, ti->per_io_data_size);

	return asr_capture_end(ti->private, io, *error);
}

/* ------------------------------------------------------- suspend, resume */

static void asr_presuspend(struct dm_target *ti)
{
	struct asr_target *t = ti->private;

	/* dm waits for all I/O next: nothing may be withheld, nor wait for room in the ring */
	asr_group_break_hold(t->group);
	WRITE_ONCE(t->suspending, true);
}

static void asr_presuspend_undo(struct dm_target *ti)
{
	struct asr_target *t = ti->private;

	WRITE_ONCE(t->suspending, false);
}

static void asr_postsuspend(struct dm_target *ti)
{
	asr_intent_stop(ti->private);
}

static int asr_preresume(struct dm_target *ti)
{
	asr_presuspend_undo(ti);
	return asr_disk_resume(ti->private);
}

static void asr_resume(struct dm_target *ti)
{
	struct asr_target *t = ti->private;

	asr_dirty_free(&t->spare);	/* not needed, or those of the old size */
	asr_intent_start(t);
	asr_compat_stable_resume(ti);
}

/* --------------------------------------------------------- status, messages */

static void emit_table(struct asr_target *t, char *result, unsigned int maxlen)
{
	unsigned int sz = 0, n = t->strict + t->nocopy + (t->throttle_ms ? 2 : 0) +
		(t->logdev ? 2 : 0);

	DMEMIT("%s %llu %s %s", t->dev->name, (unsigned long long)t->start,
	       t->group->name, t->disk->name);
	if (n)
		DMEMIT(" %u", n);
	if (t->strict)
		DMEMIT(" strict");
	if (t->throttle_ms)
		DMEMIT(" throttle_ms %u", t->throttle_ms);
	if (t->nocopy)
		DMEMIT(" nocopy");
	if (t->logdev)
		DMEMIT(" log %s", t->logdev->name);
}

static void emit_ima(struct asr_target *t, char *result, unsigned int maxlen)
{
	struct dm_target *ti = t->ti;
	unsigned int sz = 0;

	ASR_COMPAT_EMIT_NAME_VERSION(ti->type);
	DMEMIT(",device_name=%s,start=%llu,group=%s,disk=%s,strict=%c,nocopy=%c,throttle_ms=%u,log=%s;",
	       t->dev->name, (unsigned long long)t->start, t->group->name, t->disk->name,
	       t->strict ? 'y' : 'n', t->nocopy ? 'y' : 'n', t->throttle_ms,
	       t->logdev ? t->logdev->name : "-");
}

static void emit_info(struct asr_target *t, char *result, unsigned int maxlen)
{
	struct asr_group *g = t->group;
	struct asr_disk *d = t->disk;
	struct asr_intent *l;
	unsigned int sz = 0;

	spin_lock_irq(&g->lock);
	l = d->intent;
	asr_ring_read_tail_locked(g);
	DMEMIT("%s %s %u %llu/%llu %llu/%llu %llu %llu %llu %llu %s %s %s %llu/%llu %llu%s",
	       asr_state_name(g->state), asr_why_name(g->why), d->slot,
	       g->ring.bytes - asr_ring_free_bytes(&g->ring), g->ring.bytes,
	       d->map.marked, d->map.chunks, g->uncaptured, g->overflows, g->overlaps,
	       d->errors, g->consumer ? "attached" : "detached",
	       g->hold.on ? "holding" : "-", asr_intent_state(l), l ? l->set : 0,
	       l ? l->map.count : 0, l ? READ_ONCE(l->dev.writes) : 0, t->nocopy ? " nocopy:NOT-PROTECTED" : "");
	spin_unlock_irq(&g->lock);
}

static void asr_status(struct dm_target *ti, status_type_t type, unsigned int flags,
		       char *result, unsigned int maxlen)
{
	struct asr_target *t = ti->private;

	switch ((int)type) {
	case STATUSTYPE_INFO:
		emit_info(t, result, maxlen);
		break;
	case STATUSTYPE_TABLE:
		emit_table(t, result, maxlen);
		break;
	case ASR_COMPAT_STATUS_IMA:
		emit_ima(t, result, maxlen);
		break;
	}
}

/* mark <name>; declare <id> <name> app: of the mark that has that id */
static int message_mark(struct asr_target *t, struct asr_mark *mark, const char *name, char *result,
			unsigned int maxlen)
{
	unsigned int sz = 0;
	int r;

	if (strscpy(mark->name, name, sizeof(mark->name)) < 0 || !asr_group_name_valid(name)) {
		DMERR("mark: names are 1 to 63 of [A-Za-z0-9._+-], a letter or digit first");
		return -EINVAL;
	}
	r = asr_group_mark(t->group, mark);
	if (r) {
		DMERR("mark %s: %s", name, r == -EINVAL ? "no mark has that id yet" :
		      "the group is in TRACK or its ring is full");
		return r;
	}
	DMEMIT("%llu %llu %llu", mark->id, mark->seq, mark->time_ns);
	return 1;
}

static int message_declare(struct asr_target *t, char **argv, char *result, unsigned int maxlen)
{
	struct asr_mark mark = { .flags = ASR_MARK_DECLARE | ASR_MARK_APP };

	if (kstrtou64(argv[1], 10, &mark.id) || strcmp(argv[3], "app")) {
		DMERR("declare: needs <id> <name> app");
		return -EINVAL;
	}
	return message_mark(t, &mark, argv[2], result, maxlen);
}

/* dirty <sector> <sectors> */
static int message_dirty(struct asr_target *t, const char *from, const char *len)
{
	u64 sector, sectors, first, last;
	struct asr_dirty arg;

	if (kstrtou64(from, 10, &sector) || kstrtou64(len, 10, &sectors) || !sectors ||
	    sector >= t->sectors || sectors > t->sectors - sector) {
		DMERR("dirty: needs <sector> <sectors> inside the disk of %llu sectors",
		      (unsigned long long)t->sectors);
		return -EINVAL;
	}
	first = sector / ASR_CHUNK_SECTORS;
	last = (sector + sectors - 1) / ASR_CHUNK_SECTORS;
	arg = (struct asr_dirty){ .slot = t->disk->slot, .chunk = first,
				  .count = last - first + 1, .flags = ASR_DIRTY_DURABLE };
	return asr_dirty_set(t->group, &arg);
}

static int asr_message(struct dm_target *ti, unsigned int argc, char **argv,
		       char *result, unsigned int maxlen)
{
	struct asr_target *t = ti->private;

	if (argc == 2 && !strcasecmp(argv[0], "mark"))
		return message_mark(t, &(struct asr_mark){ }, argv[1], result, maxlen);
	if (argc == 4 && !strcasecmp(argv[0], "declare"))
		return message_declare(t, argv, result, maxlen);
	if (argc == 3 && !strcasecmp(argv[0], "dirty"))
		return message_dirty(t, argv[1], argv[2]);
	DMERR("unknown message %s with %u arguments; known: mark <name>, declare <id> <name> app, "
	      "dirty <sector> <sectors>",
	      argv[0], argc - 1);
	return -EINVAL;
}

static int asr_iterate_devices(struct dm_target *ti, iterate_devices_callout_fn fn, void *data)
{
	struct asr_target *t = ti->private;

	return fn(ti, t->dev, t->start, ti->len, data);
}

static void asr_io_hints(struct dm_target *ti, struct queue_limits *limits)
{
	asr_compat_stable_limits(limits);
}

static struct target_type asr_type = {
	.name = "asr",
	.version = { 1, 0, 0 },
	.features = DM_TARGET_NOWAIT,
	.module = THIS_MODULE,
	.ctr = asr_ctr,
	.dtr = asr_dtr,
	.map = asr_map,
	.end_io = asr_end_io,
	.presuspend = asr_presuspend,
	.presuspend_undo = asr_presuspend_undo,
	.postsuspend = asr_postsuspend,
	.preresume = asr_preresume,
	.resume = asr_resume,
	.status = asr_status,
	.message = asr_message,
	.iterate_devices = asr_iterate_devices,
	.io_hints = asr_io_hints,
};

static void destroy_queues(void)
{
	if (asr_intent_wq)
		destroy_workqueue(asr_intent_wq);
	if (asr_logio_wq)
		destroy_workqueue(asr_logio_wq);
	if (asr_wq)
		destroy_workqueue(asr_wq);
}

static int __init asr_init(void)
{
	int r;

	/* three: a log's worker waits for its I/O, whose submission may sleep, and timers wait for neither */
	asr_wq = alloc_workqueue("dm-asr", WQ_MEM_RECLAIM | WQ_UNBOUND, 0);
	asr_intent_wq = alloc_workqueue("dm-asr-log", WQ_MEM_RECLAIM | WQ_UNBOUND, 0);
	asr_logio_wq = alloc_workqueue("dm-asr-log-io", WQ_MEM_RECLAIM | WQ_UNBOUND, 0);
	r = asr_wq && asr_intent_wq && asr_logio_wq ? asr_chardev_init() : -ENOMEM;
	if (r)
		goto out_wq;
	r = dm_register_target(&asr_type);
	if (r)
		goto out_chardev;
	return 0;

out_chardev:
	asr_chardev_exit();
out_wq:
	destroy_queues();
	return r;
}

static void __exit asr_exit(void)
{
	dm_unregister_target(&asr_type);
	asr_chardev_exit();
	destroy_queues();
}

module_init(asr_init);
module_exit(asr_exit);
MODULE_DESCRIPTION("device-mapper target that captures every write, in order, for replication");
MODULE_LICENSE("GPL");
MODULE_ALIAS("dm-asr");
