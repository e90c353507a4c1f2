/* SPDX-License-Identifier: GPL-2.0 WITH Linux-syscall-note */
/*
 * Door 1: the capture contract between the dm-asr module and its consumer.
 *
 * One ring per consistency group, in memory that kernel and consumer share.
 * Every disk of the group on this host writes into it, so its order is one
 * total order over the disks and every position is a crash-consistent cut.
 *
 * The control device is /dev/dm-asr (a misc device, mode 0600). An open file
 * may become the one consumer of one group by ASR_IOC_ATTACH; closing it
 * detaches. Everything not attached can still use the calls marked [any].
 *
 * mmap of an attached file, three areas, each mapped on its own:
 *
 *   ASR_MMAP_CONSUMER  one page, read-write: struct asr_ring_consumer
 *   ASR_MMAP_PRODUCER  one page, read-only:  struct asr_ring_producer
 *   ASR_MMAP_DATA      ring_bytes, read-only. All areas are MAP_SHARED. Map it twice, back to back, and
 *                      a record that runs over the end reads contiguous.
 *
 * Positions (head, tail, wake) are byte counts that only grow; the place in
 * the data area is position & (ring_bytes - 1). ring_bytes is a power of two.
 *
 * Barriers. A: the producer writes a record's header with state BUSY, then
 * stores head with release. B: the consumer loads head with acquire, so it
 * sees at least BUSY up to there. C: at completion the producer stores the
 * record's state with release; D: the consumer loads state with acquire, so a
 * COMMITTED record's payload is whole. E: before it sleeps the consumer stores
 * wake, then a full barrier, then loads the state of the record it waits for;
 * F: after C the producer has a full barrier, then loads wake. One of the two
 * sees the other: no wake-up is lost.
 *
 * All integers are in the byte order of the host. No pointers, no bit-fields;
 * layouts are equal for 32-bit and 64-bit callers. Reserved fields are zero;
 * unknown flag bits are refused with EINVAL.
 */
#ifndef _UAPI_DM_ASR_H
#define _UAPI_DM_ASR_H

#include <linux/types.h>
#include <linux/ioctl.h>

#define ASR_ABI_VERSION		1
#define ASR_DEVICE_NAME		"dm-asr"	/* /dev/dm-asr */

#define ASR_NAME_BYTES		64	/* group, disk, mark names, with the NUL:
					   [A-Za-z0-9][A-Za-z0-9._+-]{0,62} */
#define ASR_DISKS_MAX		256	/* disks of one group on one host */
#define ASR_CHUNK_SECTORS	128	/* one bit of the dirty map: 64 KiB */
#define ASR_PAYLOAD_MAX		131072	/* bytes of one record: writes are split
					   at multiples of this on the disk */
#define ASR_REC_ALIGN		64	/* of records, in the ring */
#define ASR_RING_MIN		(1ULL << 20)
#define ASR_RING_DEFAULT	(64ULL << 20)
#define ASR_RING_MAX		(4ULL << 30)
#define ASR_HOLD_DEFAULT_NS	50000000ULL	/* hold timer, 50 ms */
#define ASR_HOLD_MAX_NS		1000000000ULL

#define ASR_MMAP_CONSUMER	0x000000000ULL
#define ASR_MMAP_PRODUCER	0x100000000ULL
#define ASR_MMAP_DATA		0x200000000ULL

/* ------------------------------------------------------------ the records */

/* asr_rec.state: the one field that changes after head has passed the record */
#define ASR_REC_BUSY		0	/* reserved; the lower write is in flight */
#define ASR_REC_COMMITTED	1	/* the lower device has completed it */
#define ASR_REC_DISCARDED	2	/* failed, or padding (kind 0): skip it */

/* asr_rec.kind */
#define ASR_KIND_WRITE		1	/* payload: the sectors written */
#define ASR_KIND_ZEROES		2	/* write-zeroes, no payload */
#define ASR_KIND_DISCARD	3	/* content undefined from here on, no payload */
#define ASR_KIND_FLUSH		4	/* empty flush: all that completed before it
					   is durable on the source disk */
#define ASR_KIND_MARK		5	/* payload: struct asr_rec_mark */
#define ASR_KIND_STATE		6	/* payload: struct asr_rec_state */
#define ASR_KIND_DISK		7	/* payload: struct asr_rec_disk: a disk came,
					   went, or changed its size */
/* 32 and above are made by userland and never stand in a ring (wire.h) */

/* asr_rec.flags */
#define ASR_RECF_FUA		0x1	/* the write asked for FUA */
#define ASR_RECF_FLUSH		0x2	/* ... or for PREFLUSH */

/*
 * A record: this header, then payload_bytes, padded to ASR_REC_ALIGN. A
 * record's disk, sector, sectors: what was written, in 512-byte units, counted
 * on the asr device. seq grows by one per record over the life of the group; it
 * leaps by ASR_LOG_SEQ_GAP when a disk comes with a log that knew greater ones.
 */
struct asr_rec {
	__u32 state;		/* ASR_REC_*; load with acquire */
	__u32 bytes;		/* header, payload and padding */
	__u64 pos;		/* its own position: a check against stale data */
	__u64 seq;
	__u64 time_ns;		/* CLOCK_REALTIME when it was reserved */
	__u64 sector;
	__u32 sectors;
	__u32 payload_bytes;
	__u16 kind;		/* ASR_KIND_* */
	__u16 disk;		/* slot in the group; 0xffff: concerns no disk */
	__u32 flags;		/* ASR_RECF_* */
	__u64 reserved;
};

#define ASR_DISK_NONE		0xffff

struct asr_rec_mark {
	__u64 id;		/* counts marks of the group from 1; DECLARE: of the mark it is about */
	__u32 flags;		/* ASR_MARK_* */
	__u32 reserved;
	char  name[ASR_NAME_BYTES];
};

struct asr_rec_state {
	__u32 from;		/* ASR_STATE_* */
	__u32 to;
	__u32 reason;		/* ASR_WHY_* */
	__u32 reserved;
};

struct asr_rec_disk {
	__u64 sectors;		/* size from here on; 0: the disk has left */
	__u32 flags;		/* ASR_DISKF_* */
	__u32 reserved;
	char  name[ASR_NAME_BYTES];
};
#define ASR_DISKF_DIRTY		0x1	/* it came back: what may differ is in the dirty map,
					   without a log all of it; the copy is not
					   consistent until a resync ended */

/* ------------------------------------------------------- the shared pages */

/* Written by the consumer only; the kernel reads each word once and checks. */
struct asr_ring_consumer {
	__u64 tail;		/* records before it may be overwritten. Only
				   forward, to the end of a record, never beyond
				   the oldest BUSY record: else the consumer is
				   poisoned and the group goes to TRACK */
	__u64 wake;		/* wake me at the commit after which all records
				   before wake are committed; ~0ULL while awake.
				   To wait for the record at tail: tail + 1; for
				   64 KiB more: tail + 65536 (and a timeout of
				   your own). One wake-up per value stored; poll
				   says POLLIN for as long as it holds */
};

/* Written by the kernel only. */
struct asr_ring_producer {
	__u64 head;		/* load with acquire */
	__u64 wakeups;		/* wake-ups given, for statistics */
	__u32 state;		/* ASR_STATE_*; a hint, the STATE records are the truth */
	__u32 poisoned;		/* 1: a bad tail was seen; detach and attach again */
};

/* asr_group_info.state */
#define ASR_STATE_CAPTURE	1	/* every write goes into the ring */
#define ASR_STATE_TRACK		2	/* the ring was full: writes set dirty bits only */

/* reasons in STATE records and status */
#define ASR_WHY_START		1	/* the group was created */
#define ASR_WHY_RING_FULL	2
#define ASR_WHY_POISONED	3	/* the consumer wrote nonsense */
#define ASR_WHY_REQUEST		4	/* asked for: ASR_IOC_CAPTURE, ASR_IOC_TRACK */

/* --------------------------------------- the write-intent log, on its device */

/*
 * A disk may have a log device of its own (K8 of the architecture): a partition, a
 * volume, a loop device; never a part of what is protected. All of it is little-endian.
 *
 *   byte 0       struct asr_log_super, copy 0, in a block of ASR_LOG_BLOCK
 *   byte 4096    copy 1. Write write_no goes to copy write_no & 1: a torn write
 *                leaves the other one. The valid copy with the greater write_no counts
 *   bitmap_offset  the bitmap: ASR_LOG_SECTOR bytes each, ASR_LOG_SECTOR_BITS bits
 *                (bit n of the sector: byte n / 8, bit n % 8) and the XXH64 of those
 *                504 bytes, seed: the number of the sector in the bitmap, from 0
 *
 * Bit r is region r: sectors r * region_sectors and on. Set: what the disk holds there
 * may differ from the vault's copy. A region's bit is durable before the first write to
 * it goes down, and is cleared some time after all writes to it are durable at the vault.
 * A fresh log has every bit set. A bitmap sector whose hash is wrong counts as all set.
 * Written by userland when it is made, from then on by the module alone.
 */
#define ASR_LOG_MAGIC		"ASRINTNT"	/* 8 bytes, no NUL */
#define ASR_LOG_VERSION		1
#define ASR_LOG_BLOCK		4096	/* unit of all writes to the device */
#define ASR_LOG_SECTOR		512
#define ASR_LOG_SECTOR_BITS	4032
#define ASR_LOG_BITMAP_OFFSET	8192
#define ASR_LOG_REGION_MIN	ASR_CHUNK_SECTORS	/* 64 KiB */
#define ASR_LOG_REGION_MAX	65536			/* 32 MiB */
#define ASR_LOG_REGIONS_MAX	(1ULL << 26)
#define ASR_LOG_SEQ_GAP		(1ULL << 32)	/* sequence numbers go on this far above seq_high */

struct asr_log_super {
	__u8  magic[8];
	__le32 version;
	__le32 super_bytes;	/* sizeof(struct asr_log_super) */
	__u8  uuid[16];		/* of this log, random, made with it */
	char  group[ASR_NAME_BYTES];
	char  disk[ASR_NAME_BYTES];
	__le64 sectors;		/* of the disk */
	__le64 regions;		/* (sectors + region_sectors - 1) / region_sectors */
	__le32 region_sectors;	/* power of two, ASR_LOG_REGION_MIN .. _MAX */
	__le32 flags;		/* ASR_LOGF_* */
	__le64 bitmap_offset;	/* bytes, ASR_LOG_BITMAP_OFFSET */
	__le64 write_no;	/* +1 at each write of a superblock, from 1 */
	__le64 generation;	/* +1 each time the disk is brought up with this log */
	__le64 durable_seq;	/* every record of the group up to it is durable at the vault */
	__le64 seq_high;	/* no record of the group had a greater number when this was written */
	__le64 slot;		/* that the disk had in the group, + 1; 0: none yet. In another
				   one its history at the vault is not found: all is set then */
	__le64 reserved[7];
	__le64 checksum;	/* XXH64 of all before it, seed 0 */
};
#define ASR_LOGF_OPEN		0x1	/* in use; still set at the next start: no clean end */
#define ASR_LOGF_BROKEN		0x2	/* a write to the log has failed: the bits prove nothing */

/* --------------------------------------------------------------- the calls */

struct asr_info {
	__u32 abi_version;	/* ASR_ABI_VERSION */
	__u32 flags;		/* features, none yet */
	__u32 groups;
	__u32 reserved;
	__u64 ring_bytes_cap;	/* all rings together, module parameter ring_cap_mb */
	__u64 ring_bytes_used;
};

struct asr_group_create {
	char  name[ASR_NAME_BYTES];
	__u64 ring_bytes;	/* power of two, ASR_RING_MIN .. ASR_RING_MAX; 0: default */
	__u64 first_seq;	/* of the first record; 0 means 1 */
	__u32 flags;		/* none yet */
	__u32 reserved;
};

struct asr_group_name {
	char  name[ASR_NAME_BYTES];
};

/* in: name, or name empty and index; out: all. ENOENT beyond the last. */
struct asr_group_info {
	char  name[ASR_NAME_BYTES];
	__u32 index;
	__u32 state;		/* ASR_STATE_* */
	__u32 reason;		/* ASR_WHY_*: of the last change of state */
	__u32 disks;		/* highest slot in use + 1 */
	__u32 attached;		/* 1: has a consumer */
	__u32 holding;		/* 1: a hold is on */
	__u64 ring_bytes;
	__u64 head;
	__u64 tail;
	__u64 next_seq;
	__u64 dirty_chunks;	/* over all disks, fetched but unacknowledged ones included */
	__u64 uncaptured;	/* writes in flight that no record holds */
	__u64 overflows;	/* times the group went to TRACK because the ring was full */
	__u64 overlaps;		/* writes that waited for an overlapping one */
	__u64 wakeups;
	__u64 holds_broken;
	__u64 writes;		/* captured WRITE records */
	__u64 write_bytes;
	__u64 memory_bytes;	/* ring, maps and tables of this group */
	__u64 reserved[4];
};

struct asr_attach {
	char  name[ASR_NAME_BYTES];
	__u32 flags;		/* none yet */
	__u32 reserved;
	__u64 ring_bytes;	/* out */
};

/* in: slot; out: the rest. ENOENT: slot not in use, EINVAL: beyond ASR_DISKS_MAX */
struct asr_disk_info {
	__u32 slot;
	__u32 active;		/* number of targets that use it; 0: no table maps it now */
	__u64 sectors;
	__u64 start_sector;	/* where the disk begins on the lower device */
	__u32 lower_major;
	__u32 lower_minor;
	__u64 dirty_chunks;
	__u64 errors;		/* writes, and flushes for the log, the lower device failed */
	char  name[ASR_NAME_BYTES];
	__u64 memory_bytes;	/* of the kernel, for this disk: maps, log, tables */
	__u32 log_region_sectors;	/* 0: it has no write-intent log */
	__u32 log_flags;	/* ASR_LOGF_* */
	__u64 log_regions_set;
	__u64 log_writes;	/* blocks written to the log device */
};

/*
 * FETCH: the first run of dirty chunks at or after chunk, at most count of
 * them, is moved from dirty to taken and returned. ENODATA: no such run.
 * EAGAIN: writes that no record holds are still in flight, ask again soon.
 * EBUSY: the group is in TRACK. ACK: count chunks from chunk leave taken, for
 * they are durable at the vault. SET: they become dirty; with ASR_DIRTY_DURABLE it
 * returns when no power cut forgets that, if the disk has a write-intent log that
 * is not broken and is not suspended; it waits for the log as long as writes do.
 * EINTR: set, and killed meanwhile. All of taken returns to dirty at
 * ASR_IOC_DIRTY_RETURN and whenever a consumer attaches.
 */
struct asr_dirty {
	__u32 slot;
	__u32 flags;		/* SET: ASR_DIRTY_DURABLE; else none */
	__u64 chunk;		/* chunk n: sectors n * ASR_CHUNK_SECTORS and on */
	__u64 count;
};
#define ASR_DIRTY_DURABLE	0x1	/* EINVAL: a module that does not know it */

struct asr_mark {
	char  name[ASR_NAME_BYTES];
	__u32 flags;		/* ASR_MARK_* */
	__u32 reserved;
	__u64 hold_ns;		/* with HOLD: timer; 0: default, at most ASR_HOLD_MAX_NS */
	__u64 id;		/* out; with DECLARE in: the mark that it is about */
	__u64 seq;		/* out: of the mark's record */
	__u64 time_ns;		/* out */
};
#define ASR_MARK_HOLD		0x1	/* completions of what is written after it are withheld until RELEASE */
/* No moment of its own: says of the mark `id`, which stands before it, what the other flags say, and only they
   with it. ESTALE: GROUP, and that mark's hold is not the last one, or is on, or was broken. */
#define ASR_MARK_DECLARE	0x2
#define ASR_MARK_APP		0x4	/* what writes to the disks was quiet, from before the mark to after it */
#define ASR_MARK_GROUP		0x8	/* all hosts of the group had placed it before any of them released it */

/* All records up to seq are durable at the vault, and the log of each disk may forget
   them. Only ever grows; EINVAL: beyond the last record that was consumed. */
struct asr_durable {
	__u64 seq;
	__u64 reserved;
};

/* RELEASE of a mark: ENOENT when its hold is not the one that is on. The last
   hold, when it was broken, is reported once: 0 with broken = 1. */
struct asr_release {
	__u64 id;		/* in */
	__u64 held_ns;		/* out: how long completions were withheld */
	__u32 broken;		/* out: 1 when the timer, a suspend or the death of
				   the consumer released first */
	__u32 held;		/* out: completions that were withheld */
};

#define ASR_IOC_MAGIC		0xA5

/* [any] */
#define ASR_IOC_GET_INFO	_IOR(ASR_IOC_MAGIC, 0x01, struct asr_info)
/* EEXIST, EINVAL (name, size), EDQUOT (ring_cap_mb), ENOMEM. The group starts
   in CAPTURE, with no disk, and holds the module until it is deleted. */
#define ASR_IOC_GROUP_CREATE	_IOW(ASR_IOC_MAGIC, 0x02, struct asr_group_create)
/* EBUSY while a disk or a consumer uses it */
#define ASR_IOC_GROUP_DELETE	_IOW(ASR_IOC_MAGIC, 0x03, struct asr_group_name)
#define ASR_IOC_GROUP_INFO	_IOWR(ASR_IOC_MAGIC, 0x04, struct asr_group_info)
/* EBUSY: has a consumer already; EALREADY: this file is attached already */
#define ASR_IOC_ATTACH		_IOWR(ASR_IOC_MAGIC, 0x05, struct asr_attach)

/* [attached], else ENOTCONN */
#define ASR_IOC_DISK_INFO	_IOWR(ASR_IOC_MAGIC, 0x10, struct asr_disk_info)
#define ASR_IOC_DIRTY_FETCH	_IOWR(ASR_IOC_MAGIC, 0x11, struct asr_dirty)
#define ASR_IOC_DIRTY_ACK	_IOW(ASR_IOC_MAGIC, 0x12, struct asr_dirty)
#define ASR_IOC_DIRTY_SET	_IOW(ASR_IOC_MAGIC, 0x13, struct asr_dirty)
#define ASR_IOC_DIRTY_RETURN	_IO(ASR_IOC_MAGIC, 0x14)
/* TRACK -> CAPTURE. ENOSPC: less than half of the ring is free. EPROTO: the
   consumer is poisoned. 0 when in CAPTURE. */
#define ASR_IOC_CAPTURE		_IO(ASR_IOC_MAGIC, 0x15)
/* CAPTURE -> TRACK. 0 when in TRACK. */
#define ASR_IOC_TRACK		_IO(ASR_IOC_MAGIC, 0x16)
/* ENOSPC: no room in the ring, or in TRACK; EBUSY: a hold is on and HOLD asked; ESTALE: see DECLARE */
#define ASR_IOC_MARK		_IOWR(ASR_IOC_MAGIC, 0x17, struct asr_mark)
#define ASR_IOC_RELEASE		_IOWR(ASR_IOC_MAGIC, 0x18, struct asr_release)
#define ASR_IOC_DURABLE		_IOW(ASR_IOC_MAGIC, 0x19, struct asr_durable)

#endif /* _UAPI_DM_ASR_H */
