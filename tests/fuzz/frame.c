// SPDX-License-Identifier: Apache-2.0
/* Any bytes as a frame: refused or walked through, and opened with a wrong key, without a bad access. */
#include <string.h>

#include "vault.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
	static const uint8_t key[ASR_KEY_BYTES];
	static uint8_t out[ASR_FRAME_PAYLOAD_MAX];
	uint8_t *copy = aligned_alloc(8, (bytes + 8) & ~(size_t)7);
	struct seal *s = NULL;
	struct seg_table t = { 0 };
	struct seg_state *st = malloc(sizeof(*st));
	struct frame_view v;
	struct why why;

	memcpy(copy, data, bytes);
	seg_state_init(st);
	if (!wire_frame_parse(copy, bytes, &v, &why)) {
		st->next_frame_no = v.hdr.frame_no;
		if (!seg_table_begin(&t, st) && !seg_table_add(&t, st, &v, 112, 0) && t.foot.records > 4096)
			abort();
		if (!seal_create(key, v.hdr.session, &s) && !seal_frame_open(s, &v, out, &why))
			abort();
		seal_destroy(s);
		seg_table_free(&t);
	}
	free(st);
	free(copy);
	return 0;
}
