/* SPDX-License-Identifier: GPL-2.0 */
/* 6.11: queue_limits.features with BLK_FEAT_STABLE_WRITES and BLK_FEAT_POLL */
#include <linux/blkdev.h>
void probe(struct queue_limits *lim);
void probe(struct queue_limits *lim)
{
	lim->features |= BLK_FEAT_STABLE_WRITES;
	lim->features &= ~BLK_FEAT_POLL;
}
