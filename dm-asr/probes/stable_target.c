/* SPDX-License-Identifier: GPL-2.0 */
/* 6.1.192 and others: dm_target.needs_stable_writes */
#include <linux/device-mapper.h>
void probe(struct dm_target *ti);
void probe(struct dm_target *ti) { ti->needs_stable_writes = true; }
