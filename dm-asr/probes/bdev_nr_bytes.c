/* SPDX-License-Identifier: GPL-2.0 */
/* 5.16: bdev_nr_bytes(), and bd_inode is to be left alone */
#include <linux/blkdev.h>
loff_t probe(struct block_device *bdev);
loff_t probe(struct block_device *bdev) { return bdev_nr_bytes(bdev); }
