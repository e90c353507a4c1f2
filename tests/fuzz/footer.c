// SPDX-License-Identifier: Apache-2.0
/* Any bytes as the end of a sealed segment: trailer, footer, records. */
#include <string.h>

#include "vault.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
	struct seg_state *st = malloc(sizeof(*st));
	struct seg_hdr h = { .first_frame_no = 1, .number = 1 };
	struct seg_table t;
	struct seg_foot foot;
	struct seg_trailer tr;
	struct why why;
	size_t head;

	if (bytes >= sizeof(tr)) {
		memcpy(&tr, data + bytes - sizeof(tr), sizeof(tr));
		tr.check = seg_check(&tr, offsetof(struct seg_trailer, check));
		seg_trailer_check(&tr, bytes, &why);
	}
	if (bytes >= sizeof(foot)) {
		memcpy(&foot, data, sizeof(foot));
		if (!seg_head_bytes(&foot, bytes, &head, &why) && !seg_foot_parse(data, head, &t, &why)) {
			seg_recs_parse(data + head, bytes - head, &t, &why);
			seg_state_after(st, &h, &t);
			seg_table_free(&t);
		}
	}
	free(st);
	return 0;
}
