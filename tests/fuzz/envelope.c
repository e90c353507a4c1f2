// SPDX-License-Identifier: Apache-2.0
/* Any bytes as an unsealed segment: scanned to some end, and its footer parses again. */
#include <string.h>
#include <sys/mman.h>

#include "vault.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

/* Checksums that fit, so that the fuzzer gets behind them */
static void make_fit(uint8_t *p, size_t bytes)
{
	struct seg_hdr h;
	struct seg_env e;

	if (bytes < sizeof(h) + sizeof(e))
		return;
	memcpy(&h, p, sizeof(h));
	h.check = seg_check(&h, offsetof(struct seg_hdr, check));
	memcpy(p, &h, sizeof(h));
	for (size_t at = sizeof(h); at + sizeof(e) < bytes;) {
		memcpy(&e, p + at, sizeof(e));
		if (e.magic != SEG_ENV_MAGIC || e.bytes > bytes - at - sizeof(e))
			return;
		seg_env_make(&e, p + at + sizeof(e), e.bytes, e.frame_no, e.durable_no, e.arrival_ns);
		memcpy(p + at, &e, sizeof(e));
		at += sizeof(e) + ((e.bytes + 7UL) & ~7UL);
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
	struct seg_state *st = malloc(sizeof(*st));
	struct seg_table t = { 0 }, again;
	struct seg_hdr h;
	struct why why;
	uint8_t *copy, *foot;
	uint64_t end;
	size_t n, head;
	bool torn;
	int fd;

	copy = malloc(bytes + 1);
	memcpy(copy, data, bytes);
	make_fit(copy, bytes);
	fd = memfd_create("segment", MFD_CLOEXEC);
	if (bytes >= sizeof(h) && fd >= 0 && write(fd, copy, bytes) == (ssize_t)bytes) {
		memcpy(&h, copy, sizeof(h));
		seg_hdr_check(&h, &why);
		seg_state_init(st);
		if (!seg_scan(fd, bytes, &h, &t, st, &end, &torn, &why) && t.foot.frames &&
		    !seg_foot_make(&t, end, &foot, &n)) {
			n -= sizeof(struct seg_trailer);
			if (seg_head_bytes(&t.foot, n, &head, &why) || seg_foot_parse(foot, head, &again, &why) ||
			    seg_recs_parse(foot + head, n - head, &again, &why))
				abort();
			seg_table_free(&again);
			free(foot);
		}
		seg_table_free(&t);
	}
	close(fd);
	free(copy);
	free(st);
	return 0;
}
