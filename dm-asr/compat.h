/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Differences between kernels, each behind a probe. Kbuild compiles every file
 * of probes/ and defines ASR_HAS_<its name> as 0 or 1. Included by dm-asr.h
 * alone; a probe's result is used in this file and nowhere else.
 */
#ifndef DM_ASR_COMPAT_H
#define DM_ASR_COMPAT_H

#include <linux/bio.h>
#include <linux/blkdev.h>
#include <linux/device-mapper.h>
#include <linux/err.h>
#include <linux/file.h>
#include <linux/highmem.h>
#include <linux/hrtimer.h>
#include <linux/mm.h>

#if !ASR_HAS_SANITY_PASS || ASR_HAS_SANITY_FAIL
#error "the probes do not work with this compiler or these headers"
#endif

/* Submit a bio that map() kept. */
#if ASR_HAS_DM_SUBMIT_BIO_REMAP
static inline void asr_compat_submit(struct bio *clone, struct bio *lower)
{
	dm_submit_bio_remap(clone, lower);
}

static inline void asr_compat_submits_itself(struct dm_target *ti)
{
	ti->accounts_remapped_io = true;
}
#elif !ASR_HAS_DM_SUBMIT_BIO_REMAP
static inline void asr_compat_submit(struct bio *clone, struct bio *lower)
{
	submit_bio_noacct(lower ? lower : clone);
}

static inline void asr_compat_submits_itself(struct dm_target *ti)
{
}
#else
#error "submitting a kept bio: no known shape"
#endif

/* One page of a bio, mapped. */
#if ASR_HAS_BVEC_KMAP_LOCAL
static inline void *asr_compat_map(struct bio_vec *bv)
{
	return bvec_kmap_local(bv);
}

static inline void asr_compat_unmap(void *p)
{
	kunmap_local(p);
}
#elif !ASR_HAS_BVEC_KMAP_LOCAL
static inline void *asr_compat_map(struct bio_vec *bv)
{
	return kmap_atomic(bv->bv_page) + bv->bv_offset;
}

static inline void asr_compat_unmap(void *p)
{
	kunmap_atomic(p);
}
#else
#error "mapping a bio_vec: no known shape"
#endif

/*
 * bio_init of a bio of ours, for the device and with the flags of another. Not
 * polled: dm looks for completions of its own clone only. (Before 5.18 dm did
 * not poll, and the block layer cleared the flag.)
 */
#if ASR_HAS_BIO_INIT_BDEV
static inline void asr_compat_bio_init(struct bio *bio, struct bio *like,
				       struct bio_vec *vecs, unsigned short max)
{
	bio_init(bio, like->bi_bdev, vecs, max, like->bi_opf & ~REQ_POLLED);
}

static inline void asr_compat_bio_init_own(struct bio *bio, struct block_device *bdev,
					   struct bio_vec *vecs, unsigned short max, unsigned int opf)
{
	bio_init(bio, bdev, vecs, max, opf);
}
#elif !ASR_HAS_BIO_INIT_BDEV
static inline void asr_compat_bio_init(struct bio *bio, struct bio *like,
				       struct bio_vec *vecs, unsigned short max)
{
	bio_init(bio, vecs, max);
	bio_copy_dev(bio, like);
	bio->bi_opf = like->bi_opf;
}

static inline void asr_compat_bio_init_own(struct bio *bio, struct block_device *bdev,
					   struct bio_vec *vecs, unsigned short max, unsigned int opf)
{
	bio_init(bio, vecs, max);
	bio_set_dev(bio, bdev);
	bio->bi_opf = opf;
}
#else
#error "bio_init: no known shape"
#endif

/* A page must not change while it is being written: by io_hints or resume. */
#if ASR_HAS_STABLE_FEATURE
static inline void asr_compat_stable_ctr(struct dm_target *ti) { }
static inline void asr_compat_stable_limits(struct queue_limits *lim)
{
	lim->features |= BLK_FEAT_STABLE_WRITES;
	lim->features &= ~BLK_FEAT_POLL;
}
static inline void asr_compat_stable_resume(struct dm_target *ti) { }
#elif ASR_HAS_STABLE_TARGET
static inline void asr_compat_stable_ctr(struct dm_target *ti)
{
	ti->needs_stable_writes = true;
}
static inline void asr_compat_stable_limits(struct queue_limits *lim) { }
static inline void asr_compat_stable_resume(struct dm_target *ti) { }
#elif ASR_HAS_STABLE_QUEUE_FLAG
static inline void asr_compat_stable_ctr(struct dm_target *ti) { }
static inline void asr_compat_stable_limits(struct queue_limits *lim) { }
static inline void asr_compat_stable_resume(struct dm_target *ti)
{
	blk_queue_flag_set(QUEUE_FLAG_STABLE_WRITES,
			   dm_disk(dm_table_get_md(ti->table))->queue);
}
#else
#error "stable writes: no known shape"
#endif

/* WRITE SAME is refused where it still exists. */
#if ASR_HAS_WRITE_SAME
static inline void asr_compat_no_write_same(struct dm_target *ti)
{
	ti->num_write_same_bios = 0;
}
#elif !ASR_HAS_WRITE_SAME
static inline void asr_compat_no_write_same(struct dm_target *ti) { }
#else
#error "write same: no known shape"
#endif

/* The size of a device. */
#if ASR_HAS_BDEV_NR_BYTES
static inline u64 asr_compat_bdev_bytes(struct block_device *bdev)
{
	return bdev_nr_bytes(bdev);
}
#elif !ASR_HAS_BDEV_NR_BYTES
static inline u64 asr_compat_bdev_bytes(struct block_device *bdev)
{
	return i_size_read(bdev->bd_inode);
}
#else
#error "the size of a device: no known shape"
#endif

/* A device opened once more, so that it stays; NULL when it cannot be. */
#if ASR_HAS_BDEV_FILE_OPEN
static inline void *asr_compat_bdev_hold(struct block_device *bdev)
{
	struct file *file = bdev_file_open_by_dev(bdev->bd_dev, BLK_OPEN_READ, NULL, NULL);

	return IS_ERR(file) ? NULL : file;
}

static inline void asr_compat_bdev_release(void *held)
{
	fput(held);
}
#elif ASR_HAS_BLKDEV_GET_BY_DEV
static inline void *asr_compat_bdev_hold(struct block_device *bdev)
{
	struct block_device *held = blkdev_get_by_dev(bdev->bd_dev, FMODE_READ, NULL);

	return IS_ERR(held) ? NULL : held;
}

static inline void asr_compat_bdev_release(void *held)
{
	blkdev_put(held, FMODE_READ);
}
#else
#error "opening a device: no known shape"
#endif

/* A mapping that stays read-only. */
#if ASR_HAS_VM_FLAGS_CLEAR
static inline void asr_compat_vma_forbid_write(struct vm_area_struct *vma)
{
	vm_flags_clear(vma, VM_MAYWRITE);
}
#elif !ASR_HAS_VM_FLAGS_CLEAR
static inline void asr_compat_vma_forbid_write(struct vm_area_struct *vma)
{
	vma->vm_flags &= ~VM_MAYWRITE;
}
#else
#error "vm_flags: no known shape"
#endif

/* A timer of CLOCK_MONOTONIC, in softirq. */
#if ASR_HAS_HRTIMER_SETUP
static inline void asr_compat_hrtimer_init(struct hrtimer *t, enum hrtimer_restart (*fn)(struct hrtimer *))
{
	hrtimer_setup(t, fn, CLOCK_MONOTONIC, HRTIMER_MODE_ABS_SOFT);
}
#elif !ASR_HAS_HRTIMER_SETUP
static inline void asr_compat_hrtimer_init(struct hrtimer *t, enum hrtimer_restart (*fn)(struct hrtimer *))
{
	hrtimer_init(t, CLOCK_MONOTONIC, HRTIMER_MODE_ABS_SOFT);
	t->function = fn;
}
#else
#error "hrtimer: no known shape"
#endif

/* `case` label and first words of the measurement status, where it exists. */
#if ASR_HAS_STATUSTYPE_IMA
#define ASR_COMPAT_STATUS_IMA			STATUSTYPE_IMA
#define ASR_COMPAT_EMIT_NAME_VERSION(type)	DMEMIT_TARGET_NAME_VERSION(type)
#elif !ASR_HAS_STATUSTYPE_IMA
#define ASR_COMPAT_STATUS_IMA			2	/* never asked for */
#define ASR_COMPAT_EMIT_NAME_VERSION(type)	DMEMIT("target_name=%s", (type)->name)
#else
#error "STATUSTYPE_IMA: no known shape"
#endif

#endif
