// SPDX-License-Identifier: Apache-2.0
/* Any bytes as a spool's header and as its frames: refused or walked through without a bad access. */
#include <errno.h>
#include <string.h>

#include "source.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
	static const uint8_t key[ASR_KEY_BYTES];
	static uint8_t out[ASR_FRAME_PAYLOAD];
	struct spool_owner o = { .key = key };
	struct spool_chain c = { .frame_no = 0 };
	uint8_t *copy = aligned_alloc(8, (bytes + 8) & ~(size_t)7);
	struct frame_view v;
	struct frame_hdr h;
	struct seal *s = NULL;
	struct why why;
	size_t at = 0;
	int n;

	memcpy(copy, data, bytes);
	/* whoever it says it belongs to is the owner: so that more than that check is reached */
	if (bytes >= sizeof(struct spool_header)) {
		memcpy(o.group, copy + offsetof(struct spool_header, group), 2 * ASR_UUID_BYTES);
		snprintf(o.host_id, sizeof(o.host_id), "%.63s", copy + offsetof(struct spool_header, host_id));
	}
	spool_header_check(copy, bytes, &o, &why);
	if (bytes >= sizeof(h)) {
		memcpy(&h, copy, sizeof(h));
		memcpy(o.group, h.group, ASR_UUID_BYTES);
		memcpy(o.stream, h.stream, ASR_UUID_BYTES);
		c.frame_no = h.frame_no - 1;
	}
	while ((n = spool_frame_next(copy + at, bytes - at, &o, &c, &v, &why)) > 0) {
		if (n % 8 || (size_t)n > bytes - at || v.hdr.plain_bytes > sizeof(out))
			abort();
		if (!seal_create(key, v.hdr.session, &s) && !seal_frame_open(s, &v, out, &why) && c.frame_no == 0)
			abort();
		seal_destroy(s);
		s = NULL;
		spool_chain_pass(&c, &v);
		at += (size_t)n;
	}
	if (n == 0)
		abort();
	free(copy);
	return 0;
}
