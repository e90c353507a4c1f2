// SPDX-License-Identifier: GPL-2.0
/*
 * The device of a write-intent log: its layout, and one block of I/O at a time.
 *
 * Design
 *   Two copies of the superblock, written in turn, so that a torn write leaves
 *   the other; then the bitmap, each sector of it with its own hash, so that a
 *   torn block loses no more than what it was about: a sector that does not
 *   hash counts as all set (uapi/dm-asr.h draws it).
 *
 *   All I/O goes through one bio and one page that were made with the log, and
 *   waits: no allocation can recurse into the memory that a write is to free.
 *   It waits for some seconds only: a device that hangs, for it is suspended,
 *   say, by someone who is about to suspend the disk as well, shall not hang
 *   the disk. Until that bio ends nothing else is done with the device. As
 *   the submission itself may sleep (no tag is free, the queue is frozen), a
 *   work item does that. Log and disk are held open from the constructor on,
 *   for the table that named them may go before a bio ends; opening them then
 *   could hang as well.
 *
 *   Flushes of the disk are not waited for while the log is in use. That one
 *   failed is kept until somebody asks.
 *   What is read is checked once, in full, before anything is believed.
 *
 * Invariants
 *   One user at a time: the constructor, then whoever brings the disk up, then
 *   the log's worker or, when that is stopped, who ends it.
 *   A device whose superblock was not found valid is never written to.
 *
 * Context: process, may sleep.
 *
 * Not done: blocks of more than 4096 bytes. A log that was left with I/O under
 * way is held open, but not exclusively: whoever formats it before that ends
 * may have it written over. When there is no memory for a worker, one submission
 * that sleeps holds up those of other logs, too: they count as failed after
 * 10 s, and their disks are compared.
 */
#include "dm-asr.h"

#include <linux/delay.h>
#include <linux/slab.h>
#include <linux/workqueue.h>
#include <linux/xxhash.h>

#define IO_TIMEOUT	(10 * HZ)	/* more than a device that works ever takes */

#define BAD_SUPER	"log: the superblock makes no sense; format the log anew (all is compared then)"

/* ---------------------------------------------------------------- one block */

static void io_done(struct bio *bio)
{
	complete(bio->bi_private);
}

static void io_submit(struct work_struct *work)
{
	struct asr_logio *io = container_of(work, struct asr_logio, submit);

	submit_bio(&io->bio);
	/* now it may be freed: pairs with io_unmake. One that starts meanwhile is submitted by the next run. */
	smp_store_release(&io->returned, io->returned + 1);
}

static int io_result(struct asr_logio *io)
{
	int r = blk_status_to_errno(io->bio.bi_status);

	bio_uninit(&io->bio);
	io->busy = false;
	io->failed |= r != 0;
	return r;
}

/* Is the one before over, at last? */
static bool io_free(struct asr_logio *io)
{
	if (io->busy && try_wait_for_completion(&io->done))
		io_result(io);
	return !io->busy;
}

static void io_start(struct asr_logio *io, unsigned int op, u64 byte, struct page *page)
{
	/* IDLE: not slowed down for the sake of reads (wbt) */
	asr_compat_bio_init_own(&io->bio, io->bdev, page ? &io->vec : NULL, !!page, op | REQ_SYNC | REQ_IDLE);
	io->bio.bi_iter.bi_sector = byte >> SECTOR_SHIFT;
	if (page)
		__bio_add_page(&io->bio, page, ASR_LOG_BLOCK, 0);
	init_completion(&io->done);
	io->bio.bi_private = &io->done;
	io->bio.bi_end_io = io_done;
	io->busy = true;
	io->started++;
	queue_work(asr_logio_wq, &io->submit);
}

static int io_wait(struct asr_logio *io)
{
	return wait_for_completion_io_timeout(&io->done, IO_TIMEOUT) ? io_result(io) : -ETIMEDOUT;
}

/* page: a block of it, or NULL. One that takes too long stays busy until it ends. */
static int io_run(struct asr_logio *io, unsigned int op, u64 byte, struct page *page)
{
	if (!io_free(io))
		return -ETIMEDOUT;
	io_start(io, op, byte, page);
	return io_wait(io);
}

static struct asr_logio *io_make(struct block_device *bdev)
{
	struct asr_logio *io = kzalloc(sizeof(*io), GFP_KERNEL);

	if (!io)
		return NULL;
	io->bdev = bdev;
	INIT_WORK(&io->submit, io_submit);
	io->held = asr_compat_bdev_hold(bdev);
	if (io->held)
		return io;
	kfree(io);
	return NULL;
}

/* The bio has ended: its submitter is on the way back, most often. 1 s at most */
static bool io_returned(const struct asr_logio *io)
{
	int i;

	for (i = 0; i < 1000; i++) {
		if (smp_load_acquire(&io->returned) == io->started)
			return true;
		fsleep(1000);
	}
	return false;
}

/* false: not now */
static bool io_unmake(struct asr_logio **io)
{
	if (!*io)
		return true;
	if (!io_free(*io) || !io_returned(*io))
		return false;
	asr_compat_bdev_release((*io)->held);
	kfree(*io);
	*io = NULL;
	return true;
}

/* The page to or from the log device; op: REQ_OP_* and flags. Before the page is filled: io_free. */
static int block_io(struct asr_logdev *v, unsigned int op, u64 byte)
{
	int r = io_run(v->io, op, byte, v->page);

	if (!r && op_is_write(op))
		WRITE_ONCE(v->writes, v->writes + 1);
	return r;
}

/* What the log device, or the disk, has completed is to be durable. */
int asr_logdev_flush(struct asr_logdev *v)
{
	return io_run(v->io, REQ_OP_WRITE | REQ_PREFLUSH, 0, NULL);
}

bool asr_logdev_start_flush_data(struct asr_logdev *v)
{
	if (!io_free(v->data))
		return false;
	io_start(v->data, REQ_OP_WRITE | REQ_PREFLUSH, 0, NULL);
	return true;
}

bool asr_logdev_flush_data_over(struct asr_logdev *v)
{
	return io_free(v->data);
}

bool asr_logdev_wait_flush_data(struct asr_logdev *v)
{
	io_wait(v->data);
	return !v->data->busy;
}

bool asr_logdev_flush_data(struct asr_logdev *v)
{
	return asr_logdev_start_flush_data(v) && asr_logdev_wait_flush_data(v);
}

bool asr_logdev_data_failed(struct asr_logdev *v)
{
	bool failed = v->data->failed;

	v->data->failed = false;
	return failed;
}

int asr_logdev_init(struct asr_logdev *v, struct block_device *bdev, struct block_device *data)
{
	v->bdev = bdev;
	v->page = alloc_page(GFP_KERNEL);
	v->io = io_make(bdev);
	v->data = io_make(data);
	return v->page && v->io && v->data ? 0 : -ENOMEM;
}

bool asr_logdev_free(struct asr_logdev *v)
{
	if (!io_unmake(&v->io) || !io_unmake(&v->data))
		return false;
	if (v->page)
		__free_page(v->page);
	return true;
}

/* ------------------------------------------------------------- the superblock */

/* One that is whole, of whatever version. */
static bool super_valid(const void *block)
{
	const struct asr_log_super *s = block;
	u32 bytes = le32_to_cpu(s->super_bytes);
	__le64 sum;

	if (memcmp(s->magic, ASR_LOG_MAGIC, sizeof(s->magic)) || bytes < sizeof(*s) ||
	    bytes > ASR_LOG_BLOCK || bytes % 8)
		return false;
	memcpy(&sum, block + bytes - sizeof(sum), sizeof(sum));
	return le64_to_cpu(sum) == xxh64(block, bytes - sizeof(sum), 0);
}

/* The newer valid copy into v->super. -ENODATA: nothing there, -EBADMSG: both copies damaged. */
int asr_logdev_read_super(struct asr_logdev *v)
{
	struct asr_log_super *s = page_address(v->page);
	bool found = false, magic = false;
	int copy, r;

	for (copy = 0; copy < 2; copy++) {
		r = block_io(v, REQ_OP_READ, copy * ASR_LOG_BLOCK);
		if (r)
			return r;
		magic |= !memcmp(s->magic, ASR_LOG_MAGIC, sizeof(s->magic));
		if (!super_valid(s) || (found && le64_to_cpu(s->write_no) <= le64_to_cpu(v->super.write_no)))
			continue;
		v->super = *s;
		found = true;
	}
	return found ? 0 : magic ? -EBADMSG : -ENODATA;
}

/* Has it been the same since? No allocation. 0, -ESTALE, or the error of a read. */
int asr_logdev_reread(struct asr_logdev *v)
{
	struct asr_log_super was = v->super;
	int r = asr_logdev_read_super(v);

	if (r == -ENODATA || r == -EBADMSG || (!r && memcmp(&was, &v->super, sizeof(was))))
		r = -ESTALE;
	v->super = was;
	return r;
}

/* The next write of v->super, behind all that the device has completed. */
int asr_logdev_write_super(struct asr_logdev *v)
{
	struct asr_log_super *s = &v->super;
	u64 no = le64_to_cpu(s->write_no) + 1;

	if (!io_free(v->io))
		return -ETIMEDOUT;
	s->write_no = cpu_to_le64(no);
	s->checksum = cpu_to_le64(xxh64(s, offsetof(struct asr_log_super, checksum), 0));
	memset(page_address(v->page), 0, ASR_LOG_BLOCK);
	memcpy(page_address(v->page), s, sizeof(*s));
	return block_io(v, REQ_OP_WRITE | REQ_SYNC | REQ_PREFLUSH | REQ_FUA, (no & 1) * ASR_LOG_BLOCK);
}

/* ------------------------------------------------------------------ the bitmap */

static u64 block_byte(u64 block)
{
	return ASR_LOG_BITMAP_OFFSET + block * ASR_LOG_BLOCK;
}

/* map: from bit 0 on, all of its blocks allocated. fua: durable by itself. */
int asr_logdev_write_bits(struct asr_logdev *v, u64 block, const unsigned long *map, bool fua)
{
	u64 sector = block * ASR_LOG_BLOCK_SECTORS;
	__le32 *out = page_address(v->page);
	int i, w;

	if (!io_free(v->io))
		return -ETIMEDOUT;
	for (i = 0; i < ASR_LOG_BLOCK_SECTORS; i++, sector++) {
		u32 *words = (u32 *)out;
		__le64 sum;

		bitmap_to_arr32(words, map + BIT_WORD(sector * ASR_LOG_SECTOR_BITS), ASR_LOG_SECTOR_BITS);
		for (w = 0; w < ASR_LOG_SECTOR_BITS / 32; w++)
			out[w] = cpu_to_le32(words[w]);
		sum = cpu_to_le64(xxh64(out, ASR_LOG_SECTOR_BITS / 8, sector));
		memcpy(out + ASR_LOG_SECTOR_BITS / 32, &sum, sizeof(sum));
		out += ASR_LOG_SECTOR / sizeof(*out);
	}
	return block_io(v, REQ_OP_WRITE | REQ_SYNC | (fua ? REQ_FUA : 0), block_byte(block));
}

/* Bits of a block into map; those of a sector that does not hash are set in bad instead. */
int asr_logdev_read_bits(struct asr_logdev *v, u64 block, unsigned long *map, unsigned long *bad)
{
	u64 sector = block * ASR_LOG_BLOCK_SECTORS;
	__le32 *in = page_address(v->page);
	int i, w, r;

	r = block_io(v, REQ_OP_READ, block_byte(block));
	if (r)
		return r;
	for (i = 0; i < ASR_LOG_BLOCK_SECTORS; i++, sector++) {
		u64 at = sector * ASR_LOG_SECTOR_BITS;
		u32 *words = (u32 *)in;
		__le64 sum;

		memcpy(&sum, in + ASR_LOG_SECTOR_BITS / 32, sizeof(sum));
		if (le64_to_cpu(sum) == xxh64(in, ASR_LOG_SECTOR_BITS / 8, sector)) {
			for (w = 0; w < ASR_LOG_SECTOR_BITS / 32; w++)
				words[w] = le32_to_cpu(in[w]);
			bitmap_from_arr32(map + BIT_WORD(at), words, ASR_LOG_SECTOR_BITS);
		} else {
			bitmap_fill(bad + BIT_WORD(at), ASR_LOG_SECTOR_BITS);
		}
		in += ASR_LOG_SECTOR / sizeof(*in);
	}
	return 0;
}

/* ------------------------------------------------------------------ is it ours */

static bool name_is(const char *stored, const char *name)
{
	return !strncmp(stored, name, ASR_NAME_BYTES);
}

/* What is wrong with the device itself, or NULL. */
static char *device_wrong(struct asr_logdev *v, struct asr_target *t)
{
	struct block_device *data = t->dev->bdev;

	if (v->bdev->bd_dev == data->bd_dev ||
	    (v->bdev->bd_disk == data->bd_disk && !(bdev_is_partition(v->bdev) && bdev_is_partition(data))) ||
	    v->bdev->bd_disk == dm_disk(dm_table_get_md(t->ti->table)))
		return "log: the log device is the disk itself or a part of it; use another device";
	if (bdev_read_only(v->bdev))
		return "log: the log device is read-only";
	if (bdev_logical_block_size(v->bdev) > ASR_LOG_BLOCK)
		return "log: a device with blocks of more than 4096 bytes cannot hold a log";
	if (asr_compat_bdev_bytes(v->bdev) < ASR_LOG_BITMAP_OFFSET + ASR_LOG_BLOCK)
		return "log: the log device is too small for a superblock";
	return NULL;
}

/* The fields in themselves. */
static char *super_wrong(const struct asr_log_super *s)
{
	u64 sectors = le64_to_cpu(s->sectors);
	u32 region = le32_to_cpu(s->region_sectors);

	if (le32_to_cpu(s->version) != ASR_LOG_VERSION)
		return "log: written by a newer version of dm-asr; load that version of the module";
	if (le32_to_cpu(s->super_bytes) != sizeof(*s) || !is_power_of_2(region) || region < ASR_LOG_REGION_MIN ||
	    region > ASR_LOG_REGION_MAX || le64_to_cpu(s->bitmap_offset) != ASR_LOG_BITMAP_OFFSET ||
	    le64_to_cpu(s->regions) != DIV_ROUND_UP_ULL(sectors, region) ||
	    le32_to_cpu(s->flags) & ~(ASR_LOGF_OPEN | ASR_LOGF_BROKEN))
		return BAD_SUPER;
	return NULL;
}

static char *identity_wrong(const struct asr_log_super *s, const char *group, const char *disk)
{
	if (!name_is(s->group, group)) {
		DMERR("log of group %.63s disk %.63s, the table says group %s", s->group, s->disk, group);
		return "log: it belongs to a disk of another group; name the right log, or format this one anew";
	}
	if (!name_is(s->disk, disk)) {
		DMERR("log of group %.63s disk %.63s, the table says disk %s", s->group, s->disk, disk);
		return "log: it belongs to another disk; name the right log, or format this one anew";
	}
	return NULL;
}

/* Reads and judges all but the bitmap. The text of what is wrong, or NULL. */
char *asr_logdev_open(struct asr_logdev *v, struct asr_target *t, const char *group, const char *disk)
{
	char *wrong = device_wrong(v, t);
	int r;

	if (wrong)
		return wrong;
	r = asr_logdev_read_super(v);
	if (r == -ENODATA)
		return "log: there is no log on the device; format it first";
	if (r == -EBADMSG)
		return "log: both copies of the superblock are damaged; format the log anew (all is compared then)";
	if (r)
		return "log: the log device cannot be read";
	wrong = super_wrong(&v->super);
	return wrong ?: identity_wrong(&v->super, group, disk);
}

bool asr_logdev_fits(struct asr_logdev *v, u64 regions)
{
	u64 blocks = DIV_ROUND_UP_ULL(regions, ASR_LOG_BLOCK_BITS);

	return regions <= ASR_LOG_REGIONS_MAX && block_byte(blocks) <= asr_compat_bdev_bytes(v->bdev);
}
