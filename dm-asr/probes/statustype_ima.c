/* SPDX-License-Identifier: GPL-2.0 */
/* 5.15: STATUSTYPE_IMA and DMEMIT_TARGET_NAME_VERSION */
#include <linux/device-mapper.h>
int probe(struct target_type *type, char *result, unsigned int maxlen);
int probe(struct target_type *type, char *result, unsigned int maxlen)
{
	unsigned int sz = 0;

	DMEMIT_TARGET_NAME_VERSION(type);
	return STATUSTYPE_IMA + sz;
}
