/* SPDX-License-Identifier: GPL-2.0 */
/* before 6.11: QUEUE_FLAG_STABLE_WRITES set on the dm queue */
#include <linux/blkdev.h>
#include <linux/device-mapper.h>
void probe(struct dm_target *ti);
void probe(struct dm_target *ti)
{
	blk_queue_flag_set(QUEUE_FLAG_STABLE_WRITES,
			   dm_disk(dm_table_get_md(ti->table))->queue);
}
