/* SPDX-License-Identifier: GPL-2.0 */
/* 5.18: dm_submit_bio_remap() and dm_target.accounts_remapped_io */
#include <linux/device-mapper.h>
void probe(struct dm_target *ti, struct bio *a, struct bio *b);
void probe(struct dm_target *ti, struct bio *a, struct bio *b)
{
	ti->accounts_remapped_io = true;
	dm_submit_bio_remap(a, b);
}
