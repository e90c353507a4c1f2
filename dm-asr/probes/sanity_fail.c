/* SPDX-License-Identifier: GPL-2.0 */
/* Must not compile. */
#include <linux/device-mapper.h>
int probe(struct dm_target *ti);
int probe(struct dm_target *ti) { return ti->no_such_member; }
