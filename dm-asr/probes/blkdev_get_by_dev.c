/* SPDX-License-Identifier: GPL-2.0 */
/* until 6.4: a block device is opened by its number, with an fmode_t */
#include <linux/blkdev.h>
#include <linux/fs.h>
struct block_device *probe(dev_t dev);
struct block_device *probe(dev_t dev) { return blkdev_get_by_dev(dev, FMODE_READ, NULL); }
