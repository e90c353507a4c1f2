// SPDX-License-Identifier: Apache-2.0
/*
 * asrctl point: what can be restored, read from the vault's folder alone.
 */
#include "asrctl.h"
#include "../userland/vault.h"

#include <errno.h>
#include <string.h>

/* A group that is spread over hosts */
static void points_of_all(const json_t *points, json_t *marks)
{
	static const struct col cols[] = {
		{ "MARK", "name", COL_TEXT }, { "TIME", "time", COL_TEXT }, { "HOSTS", "hosts", COL_INT },
		{ "CONSISTENCY", "consistency", COL_TEXT },
	};
	json_int_t count = json_integer_value(json_object_get(points, "count"));
	cleanup_json named = json_array();
	json_t *m;
	size_t i;

	printf("\n%lld points of all hosts", (long long)count);
	if (count)
		printf(", from %s to %s, at most %.1f s apart",
		       json_string_value(json_object_get(points, "first_time")),
		       json_string_value(json_object_get(points, "last_time")),
		       json_real_value(json_object_get(points, "longest_gap_s")));
	printf(": time:T is the last one before T; host:time:T is of the disk's own host.\n");
	json_array_foreach(marks, i, m)
		if (strcmp(json_string_value(json_object_get(m, "name")), "auto"))
			json_array_append(named, m);
	if (json_array_size(named)) {
		putchar('\n');
		out_table(named, cols, sizeof(cols) / sizeof(cols[0]), "");
	}
}

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
	static const struct col disks[] = {
		{ "DISK", "name", COL_TEXT }, { "SIZE", "bytes", COL_BYTES }, { "HOST", "host", COL_TEXT },
	};
	cleanup_json list = NULL;
	json_t *points;
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
	points = json_object_get(list, "points");
	if (points) {
		points_of_all(points, json_object_get(list, "marks"));
		return 0;
	}
	puts("\nEvery seq and every time within these can be restored:");
	out_table(json_object_get(list, "intervals"), intervals, sizeof(intervals) / sizeof(intervals[0]),
		  "nothing yet: the initial copy is not complete");
	if (json_array_size(json_object_get(list, "marks"))) {
		putchar('\n');
		out_table(json_object_get(list, "marks"), marks, sizeof(marks) / sizeof(marks[0]), "");
	}
	return 0;
}
