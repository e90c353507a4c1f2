// SPDX-License-Identifier: Apache-2.0
/*
 * asrctl point: what can be restored, read from the vault's folder alone.
 */
#include "asrctl.h"
#include "../userland/vault.h"

#include <errno.h>

int point_show(const struct args *a, struct why *why)
{
	static const struct col intervals[] = {
		{ "FROM SEQ", "from_seq", COL_INT }, { "TO SEQ", "to_seq", COL_INT },
		{ "FROM", "from_time", COL_TEXT }, { "TO", "to_time", COL_TEXT },
		{ "WRITES", "writes", COL_INT }, { "ENDED BY", "end_reason", COL_TEXT },
	};
	static const struct col marks[] = {
		{ "MARK", "name", COL_TEXT }, { "SEQ", "seq", COL_INT }, { "TIME", "time", COL_TEXT },
		{ "CONSISTENCY", "consistency", COL_TEXT },
	};
	static const struct col disks[] = { { "DISK", "name", COL_TEXT }, { "SIZE", "bytes", COL_BYTES } };
	cleanup_json list = NULL;
	struct index *ix;
	int err;

	err = index_open(arg_value(a, "vault-dir", ASR_VAULT_DIR), a->words[0], &ix, why);
	if (err)
		return err;
	list = point_list_json(ix, why);
	index_close(ix);
	if (!list)
		return -EIO;
	if (a->json) {
		out_json(list);
		return 0;
	}
	out_table(json_object_get(list, "disks"), disks, sizeof(disks) / sizeof(disks[0]), "no disks");
	puts("\nEvery seq and every time within these can be restored:");
	out_table(json_object_get(list, "intervals"), intervals, sizeof(intervals) / sizeof(intervals[0]),
		  "nothing yet: the initial copy is not complete");
	if (json_array_size(json_object_get(list, "marks"))) {
		putchar('\n');
		out_table(json_object_get(list, "marks"), marks, sizeof(marks) / sizeof(marks[0]), "");
	}
	return 0;
}
