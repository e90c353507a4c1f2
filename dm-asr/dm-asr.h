/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The plan of the module, in the order data flows.
 *
 *   bio -> target.c -> capture.c -> ring.c  =DOOR 1=  consumer (chardev.c)
 *                          |
 *                       dirty.c            what the ring does not hold
 *                       intent.c           what a crash must not forget, on the
 *                       bringup.c          log device: logdev.c
 *                       group.c            who belongs together, in which state
 *                       mark.c             moments with a name, holds
 *
 * Locks, outermost first. There are two.
 *
 *   name               kind      context   guards
 *   asr_groups_mutex   mutex     process   the list of groups, which disks and
 *                                          which consumer a group has, the ring
 *                                          budget. Never held over an allocation
 *                                          or a copy to or from user memory: a
 *                                          table being destroyed takes it while
 *                                          other I/O may be suspended
 *   group->lock        spinlock  any, irq  all else: the ring's positions, the
 *                      irqsave             state, records in flight, overlaps,
 *                                          dirty maps, logs, holds. Taken twice
 *                                          per write: in map and at completion
 *
 * group->disks[] is written under both, so either is enough to read it.
 */
#ifndef DM_ASR_H
#define DM_ASR_H

#include <linux/blkdev.h>
#include <linux/bio.h>
#include <linux/completion.h>
#include <linux/device-mapper.h>
#include <linux/fs.h>
#include <linux/hrtimer.h>
#include <linux/list.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/spinlock.h>
#include <linux/wait.h>
#include <linux/workqueue.h>

#include "uapi/dm-asr.h"
#include "compat.h"

#undef DM_MSG_PREFIX
#define DM_MSG_PREFIX "asr"

/* A write lies in one such span of its disk, and so in one bucket. */
#define ASR_SPAN_SECTORS	(ASR_PAYLOAD_MAX >> SECTOR_SHIFT)
#define ASR_SPAN_SHIFT		8
#define ASR_BUCKETS		256

/* A bit per 64 KiB; this many bits are 128 TiB. */
#define ASR_CHUNKS_MAX		(1ULL << 31)

struct asr_group;

/* One bit per chunk, twice. Guarded by group->lock once a disk owns it. */
struct asr_map {
	unsigned long *dirty;	/* no record holds what was written there */
	unsigned long *taken;	/* handed to the consumer, not yet acknowledged */
	u64 chunks;
	u64 marked;		/* chunks in dirty or taken or both */
	u64 taken_count;
};

/* A block of a log's bitmap. */
#define ASR_LOG_BLOCK_SECTORS	(ASR_LOG_BLOCK / ASR_LOG_SECTOR)
#define ASR_LOG_BLOCK_BITS	(ASR_LOG_BLOCK_SECTORS * ASR_LOG_SECTOR_BITS)

/* A bio that is waited for, but not for ever. */
struct asr_logio {
	struct bio bio;
	struct bio_vec vec;
	struct work_struct submit;
	struct completion done;
	struct block_device *bdev;
	void *held;		/* bdev, opened once more: its user may go before the bio ends */
	bool busy;
	bool failed;		/* one did, since it was last asked */
	unsigned int started;
	unsigned int returned;	/* so often is the submitter through; acquire, release */
};

/* The device of a log. One user at a time: no lock. */
struct asr_logdev {
	struct block_device *bdev;
	struct page *page;
	struct asr_logio *io;
	struct asr_logio *data;		/* flushes of the disk */
	struct asr_log_super super;	/* as it was last read or written */
	u64 writes;			/* of blocks; READ_ONCE by others */
};

/* A bit per region, several times; all of whole blocks. group->lock */
struct asr_regions {
	unsigned long *bits;	/* durable on the device: writes may go there */
	unsigned long *want;	/* to become so */
	unsigned long *sent;	/* what the worker writes just now; the worker's */
	unsigned long *recent;	/* part of bits: written in this epoch */
	unsigned long *blocks;	/* a bit per block that is due */
	unsigned long *flying;	/* ... that the worker has in hand; the worker's */
	u64 count;
	u64 nr_blocks;
};

/* The write-intent log of a disk. */
struct asr_intent {
	/* constant */
	u32 shift;		/* region = sector >> shift */

	/* the worker, or who has stopped it */
	struct asr_logdev dev;
	u64 sectors;
	bool told;		/* the device knows that it is broken, or is not to be touched */
	bool unsure;		/* it could not be read at bring-up: to be looked at before it is written */
	bool foreign;		/* it has changed under us: never written to */
	bool counted;		/* its generation and slot are those of this use */
	bool flushing;		/* data, at the end of an epoch */

	/* group->lock */
	struct asr_disk *disk;
	struct asr_target *owner;	/* last resumed with it */
	struct asr_regions map;
	u64 set;		/* of map.bits */
	struct list_head waiting;	/* writes */
	u64 epoch_seq;		/* last record of the disk when the epoch began */
	unsigned long epoch_end;	/* jiffies, the earliest */
	unsigned long super_due;	/* jiffies */
	u64 super_seq, super_durable;	/* as last written */
	bool doubt;		/* the disk may have dropped what it had: a flush failed */
	unsigned long doubt_due;	/* jiffies: not acted upon before */
	bool open;		/* its superblock says OPEN: writes may pass */
	bool broken;
	bool stopped;		/* the worker is to do nothing */

	struct delayed_work work;
};

/* A protected disk: outlives the tables that map it, by name and reference. */
struct asr_disk {
	struct asr_group *group;
	char name[ASR_NAME_BYTES];
	u16 slot;

	/* asr_groups_mutex */
	unsigned int targets;	/* tables that name it, loaded or live */
	struct mapped_device *md;

	/* group->lock */
	u64 sectors;
	u64 start;		/* on the lower device */
	dev_t lower;
	struct asr_map map;
	struct asr_intent *intent;
	u64 last_seq;		/* of the last record of a write to it */
	u64 errors;
	bool nocopy;		/* its records hold nothing: it stays dirty */
	bool live;		/* was resumed once: the stream knows it */
	struct asr_target *current_table; /* the last one resumed; it goes: the disk has left */
	bool announce;		/* its DISK record found no room yet */
	u32 announce_flags;
	struct hlist_head wide;	/* in flight or waiting, over several spans */
	struct hlist_head buckets[ASR_BUCKETS];	/* ... within one span */
};

struct asr_ring {
	/* constant */
	void *data;
	u64 bytes;
	u64 mask;
	struct asr_ring_producer *prod;
	struct asr_ring_consumer *cons;

	/* group->lock */
	u64 head;
	u64 tail;		/* the last one accepted */
	u64 next_seq;
	u64 woken;		/* the wake value that had its wake-up */
	u64 wakeups;
	bool poisoned;
};

struct asr_hold {
	u64 id;			/* of the mark; 0: never a hold */
	u64 since_ns;		/* CLOCK_MONOTONIC */
	u64 deadline_ns;
	u64 held_ns;		/* once it is over */
	u32 held;		/* completions withheld */
	bool on;
	bool broken;		/* ended by something else than its RELEASE */
	bool reported;		/* ... and somebody was told */
};

struct asr_change {
	u8 from, to, why;
};

struct asr_group {
	char name[ASR_NAME_BYTES];

	/* asr_groups_mutex */
	struct list_head link;
	struct file *consumer;

	/* group->lock */
	spinlock_t lock;
	u32 state;
	u32 why;
	struct asr_ring ring;
	struct list_head busy;		/* records in flight, by position */
	u64 uncaptured;			/* writes in flight without one */
	u64 ticket;			/* order of arrival of writes */
	struct asr_hold hold;
	struct list_head held;		/* completions of the hold that is on */
	struct list_head released;	/* ... of those that ended */
	struct list_head targets;	/* for events */
	struct asr_disk *disks[ASR_DISKS_MAX];
	struct asr_change changes[8];	/* not yet logged */
	unsigned int nr_changes;
	u64 marks, overflows, overlaps, holds_broken, writes, write_bytes;
	u64 durable_seq;		/* at the vault: all records up to it */
	u64 seq_logged;			/* the highest that a log of this group was told */

	struct hrtimer hold_timer;
	struct work_struct release_work;
	struct work_struct report_work;
	wait_queue_head_t poll;
	wait_queue_head_t settled;	/* a log has become durable, or broken */
};

/* One asr target in one table. */
struct asr_target {
	struct dm_target *ti;
	struct dm_dev *dev;
	struct dm_dev *logdev;		/* or NULL */
	struct asr_intent *intent;	/* read in ctr, until resume: then the disk's, or spare */
	struct asr_group *group;
	struct asr_disk *disk;
	sector_t start;
	sector_t sectors;
	struct asr_map spare;		/* maps for a new size, until resume */
	struct list_head link;		/* group->targets, group->lock */
	struct list_head queue;		/* writes to be tried (again) by work; group->lock */
	struct delayed_work queue_work;
	struct workqueue_struct *queue_wq;
	struct work_struct event_work;
	unsigned int throttle_ms;
	bool strict;
	bool nocopy;
	bool suspending;		/* no write waits for room any more */
};

/* asr_io.how */
enum { ASR_IO_NONE, ASR_IO_CAPTURED, ASR_IO_TRACKED };
/* asr_io.place */
enum { ASR_IO_FLYING, ASR_IO_WAITING, ASR_IO_QUEUED, ASR_IO_LOGGING };

/* A write on its way, in the bio's per-target data; group->lock. */
struct asr_io {
	struct hlist_node node;		/* in the disk's table of overlaps */
	struct list_head link;		/* target->queue, group->busy, ->held, ->released or
					   intent->waiting */
	struct asr_target *t;
	struct bio *bio;
	struct asr_rec *rec;
	u64 pos;
	u64 ticket;
	sector_t sector;
	u32 sectors;
	u32 flags;			/* ASR_RECF_* */
	unsigned long deadline;		/* jiffies; of the throttle, 0: none yet */
	u8 kind;
	u8 how;
	u8 place;
	bool wide;
	bool contended;			/* somebody waits for it */
	bool hold;
};

/* With `strict`: the write that goes down in place of the caller's. */
#define ASR_STRICT_VECS		(ASR_PAYLOAD_MAX / PAGE_SIZE + 1)
struct asr_strict_io {
	struct asr_io io;
	struct bio bio;
	struct bio_vec vecs[ASR_STRICT_VECS];
};

/* ------------------------------------------------------------- target.c */
extern struct workqueue_struct *asr_wq, *asr_intent_wq, *asr_logio_wq;

/* ------------------------------------------------------------ capture.c */
/* .map of a write whose bio is remapped already. Process context, never
   waits. A DM_MAPIO_* value. */
int asr_capture_map(struct asr_target *t, struct bio *bio, struct asr_io *io);
/* .end_io of anything. Hard irq. A DM_ENDIO_* value. */
int asr_capture_end(struct asr_target *t, struct asr_io *io, blk_status_t status);
/* One that is in no list is tried again by work. */
void asr_capture_retry_locked(struct asr_io *io);
/* target->queue_work */
void asr_capture_work(struct work_struct *work);

/* --------------------------------------------------------------- ring.c */
/* Room that writes and marks leave for DISK records, and those for a STATE. */
#define ASR_KEEP_WRITE		8192
#define ASR_KEEP_DISK		(2 * ASR_REC_ALIGN)
#define ASR_KEEP_STATE		0

/* bytes: a power of two. 0, -ENOMEM. May sleep. */
int asr_ring_init(struct asr_ring *r, u64 bytes, u64 first_seq);
void asr_ring_free(struct asr_ring *r);
/* A BUSY record, header filled but for sector and sectors, or NULL: keep bytes would not stay
   free behind it. align: the payload begins at a multiple of it. */
struct asr_rec *asr_ring_reserve_locked(struct asr_group *g, u16 kind, u16 disk,
					u32 payload_bytes, u32 keep, u32 align);
/* Copies into the data area; the place is inside a BUSY record. */
void asr_ring_write(struct asr_ring *r, u64 pos, const void *from, u32 bytes);
/* A whole COMMITTED record. 0, -ENOSPC. seq and time_ns may be NULL. */
int asr_ring_put_locked(struct asr_group *g, u16 kind, u16 disk,
			const void *payload, u32 bytes, u32 keep,
			u64 *seq, u64 *time_ns);
/* Reads the consumer's tail and takes it over when it is legal. */
void asr_ring_read_tail_locked(struct asr_group *g);
static inline u64 asr_ring_free_bytes(const struct asr_ring *r)
{
	return r->bytes - (r->head - r->tail);
}
/* Is a wake-up due? The caller calls asr_ring_wake after it has unlocked. */
bool asr_ring_wake_due_locked(struct asr_group *g);
void asr_ring_wake(struct asr_group *g);
/* Of the last record that the consumer has done with. */
u64 asr_ring_consumed_seq_locked(struct asr_group *g);
/* For poll: are all records before the wake position committed? */
bool asr_ring_ready(struct asr_group *g, bool *poisoned);
/* A new consumer: its page starts from what the kernel knows. */
void asr_ring_attach_locked(struct asr_group *g);

/* -------------------------------------------------------------- dirty.c */
/* 0, -ENOMEM, -EFBIG. May sleep. All bits at and after first are set. */
int asr_dirty_alloc(struct asr_map *m, u64 sectors, u64 first);
void asr_dirty_free(struct asr_map *m);
void asr_dirty_set_locked(struct asr_disk *d, u64 sector, u64 sectors);
void asr_dirty_set_all_locked(struct asr_disk *d);
void asr_dirty_clear_all_locked(struct asr_disk *d);
/* Dirty, too: the regions of 1 << shift sectors in bits. Up to some ms per TiB, at bring-up. */
void asr_dirty_set_regions_locked(struct asr_disk *d, const unsigned long *bits, u64 regions, u32 shift);
/* Keeps the bits of the part both have. Holds the lock for some 0.3 ms per TiB. */
void asr_dirty_resize_locked(struct asr_disk *d, struct asr_map *bigger);
int asr_dirty_fetch(struct asr_group *g, struct asr_dirty *arg);
int asr_dirty_ack(struct asr_group *g, const struct asr_dirty *arg);
/* With ASR_DIRTY_DURABLE it sleeps until the disk's log has it. -EINTR: set, and perhaps not on the log. */
int asr_dirty_set(struct asr_group *g, const struct asr_dirty *arg);
void asr_dirty_return(struct asr_group *g);

/* ------------------------------------------------------------- intent.c */
/* May a write go by what is known of this epoch? l may be NULL. The fast way in. */
static inline bool asr_intent_covers_locked(const struct asr_intent *l, u64 sector, u32 sectors)
{
	u64 region;

	if (!l)
		return true;
	region = sector >> l->shift;
	return likely(test_bit(region, l->map.recent)) && region == (sector + sectors - 1) >> l->shift;
}

/* The slow way in; false: it has to wait, the worker was told. */
bool asr_intent_enter_locked(struct asr_intent *l, u64 sector, u64 sectors);
/* Chunks have become dirty without a write. d->intent may be NULL, here and below. */
void asr_intent_want_locked(struct asr_disk *d, u64 sector, u64 sectors);
/* Until what was wanted of these sectors is durable, and not for the log of a suspended disk. 0, -EINTR: killed. */
int asr_intent_settle(struct asr_group *g, u32 slot, u64 sector, u64 sectors);
/* A flush of the disk failed. */
void asr_intent_doubt_locked(struct asr_intent *l);
/* Chunks were acknowledged. */
void asr_intent_touch_locked(struct asr_disk *d, u64 sector, u64 sectors);
int asr_intent_durable(struct asr_group *g, const struct asr_durable *arg);
u64 asr_intent_memory(const struct asr_intent *l);
/* The rest for bringup.c. */
int asr_intent_alloc_map(struct asr_regions *m, u64 regions);
void asr_intent_free_map(struct asr_regions *m);
u64 asr_intent_weight(const unsigned long *bits, u64 blocks);
void asr_intent_want(struct asr_intent *l, u64 first, u64 last);
void asr_intent_want_all(struct asr_intent *l);
void asr_intent_kick_locked(struct asr_intent *l);
int asr_intent_commit(struct asr_intent *l);
int asr_intent_write_super(struct asr_intent *l, u32 flags);
void asr_intent_break(struct asr_intent *l, int err);
void asr_intent_tell(struct asr_intent *l);
void asr_intent_work(struct work_struct *work);

/* ------------------------------------------------------------ bringup.c */
/* t is bound to its disk. 0, or -errno and ti->error. May sleep. */
int asr_intent_ctr(struct asr_target *t, const char *path);
/* .preresume: which log counts from here on. fresh: the disk was in no live
   table; doubt: what the device holds is unknown. Waits for the log device,
   allocates nothing. 0, -ESTALE or another -errno: the table cannot be used. */
int asr_intent_adopt(struct asr_target *t, bool fresh, bool doubt);
/* After adopt of a fresh disk: dirty is what the log names, or all. */
void asr_intent_dirty_locked(struct asr_disk *d);
/* .resume and .postsuspend: the worker may work, must not. */
void asr_intent_start(struct asr_target *t);
void asr_intent_stop(struct asr_target *t);
/* .dtr, before asr_disk_put. Ends the log if t was the last to use it. */
void asr_intent_dtr(struct asr_target *t);
const char *asr_intent_state(const struct asr_intent *l);

/* ------------------------------------------------------------- logdev.c */
/* data: of the disk, to be flushed. 0, -errno: to be freed even so. May sleep for long. */
int asr_logdev_init(struct asr_logdev *v, struct block_device *bdev, struct block_device *data);
/* All but v itself. false: I/O is under way, try later. Its devices stay open until then. */
bool asr_logdev_free(struct asr_logdev *v);
/* The text of what is wrong, or NULL. */
char *asr_logdev_open(struct asr_logdev *v, struct asr_target *t, const char *group, const char *disk);
bool asr_logdev_fits(struct asr_logdev *v, u64 regions);
/* 0, -ENODATA, -EBADMSG, or the error of a read */
int asr_logdev_read_super(struct asr_logdev *v);
/* Is it still as it was read? 0, -ESTALE, or the error of a read; v->super stays */
int asr_logdev_reread(struct asr_logdev *v);
int asr_logdev_write_super(struct asr_logdev *v);
int asr_logdev_read_bits(struct asr_logdev *v, u64 block, unsigned long *map, unsigned long *bad);
int asr_logdev_write_bits(struct asr_logdev *v, u64 block, const unsigned long *map, bool fua);
int asr_logdev_flush(struct asr_logdev *v);
/* Of the disk below. start: false while an earlier one goes on. over: it has ended. wait: the same, but not
   at once. flush_data: it started, and ended. How it went: data_failed, since it was last asked. */
bool asr_logdev_start_flush_data(struct asr_logdev *v);
bool asr_logdev_flush_data_over(struct asr_logdev *v);
bool asr_logdev_wait_flush_data(struct asr_logdev *v);
bool asr_logdev_flush_data(struct asr_logdev *v);
bool asr_logdev_data_failed(struct asr_logdev *v);

/* -------------------------------------------------------------- group.c */
extern struct mutex asr_groups_mutex;

bool asr_group_name_valid(const char *name);
int asr_group_create(const struct asr_group_create *arg);
int asr_group_delete(const char *name);
int asr_group_info(struct asr_group_info *arg);
void asr_group_totals(struct asr_info *arg);
/* 0, -ENOENT, -EBUSY */
int asr_group_attach(const char *name, struct file *file, struct asr_group **g);
void asr_group_detach(struct asr_group *g);
void asr_group_set_state_locked(struct asr_group *g, u32 to, u32 why);
int asr_group_capture(struct asr_group *g);
void asr_group_track(struct asr_group *g);
/* Binds t to a disk of a group, new or known. ti->error says what is wrong. */
int asr_disk_get(struct asr_target *t, const char *group, const char *name);
void asr_disk_put(struct asr_target *t);
bool asr_device_lives(struct mapped_device *md);
/* .preresume: from here on the table of t is the one that counts. No
   allocation. */
int asr_disk_resume(struct asr_target *t);
int asr_disk_info(struct asr_group *g, struct asr_disk_info *arg);
const char *asr_state_name(u32 state);
const char *asr_why_name(u32 why);

/* --------------------------------------------------------------- mark.c */
int asr_group_mark(struct asr_group *g, struct asr_mark *arg);
int asr_group_release(struct asr_group *g, struct asr_release *arg);
/* Ends a hold that is on, as broken. */
void asr_group_break_hold(struct asr_group *g);
/* group->hold_timer, ->release_work */
enum hrtimer_restart asr_hold_timer(struct hrtimer *timer);
void asr_release_work(struct work_struct *work);

/* ------------------------------------------------------------ chardev.c */
int asr_chardev_init(void);
void asr_chardev_exit(void);

#endif
