/* SPDX-License-Identifier: GPL-2.0 */
/* 5.18: bio_init() takes the device and the operation */
#include <linux/bio.h>
#include <linux/blkdev.h>
void probe(struct bio *bio, struct block_device *bdev, struct bio_vec *bv);
void probe(struct bio *bio, struct block_device *bdev, struct bio_vec *bv)
{
	bio_init(bio, bdev, bv, 1, REQ_OP_WRITE);
}
