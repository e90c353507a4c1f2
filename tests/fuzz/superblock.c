// SPDX-License-Identifier: Apache-2.0
/* Fuzz target: superblocks and one bitmap sector of a write-intent log, as bytes from a device. */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include <xxhash.h>

#include "asr.h"

/* Random bytes never have a right checksum: half of the inputs get one. */
static void put_sums(uint8_t *data)
{
	for (int i = 0; i < 2; i++) {
		struct asr_log_super *s = (struct asr_log_super *)(data + i * ASR_LOG_BLOCK);

		s->checksum = XXH64(s, offsetof(struct asr_log_super, checksum), 0);
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	const size_t bytes = 2 * ASR_LOG_BLOCK + ASR_LOG_SECTOR, half = sizeof(struct asr_log_super);
	uint8_t *copy = calloc(1, bytes);
	struct logdev l;
	int bits;

	if (!copy || !size)
		goto out;
	memcpy(copy, data + 1, size - 1 < half ? size - 1 : half);
	if (size - 1 > half)
		memcpy(copy + ASR_LOG_BLOCK, data + 1 + half, size - 1 - half < half ? size - 1 - half : half);
	if (data[0] & 1)
		put_sums(copy);
	if (!logdev_parse(copy, 2 * ASR_LOG_BLOCK, &l, NULL)) {
		assert(!name_check("", l.group, NULL) && !name_check("", l.disk, NULL));
		assert(l.sectors && l.regions && l.regions <= ASR_LOG_REGIONS_MAX);
		assert((l.regions - 1) * l.region_sectors < l.sectors);
		assert(logdev_bytes(l.sectors, l.region_sectors) > ASR_LOG_BITMAP_OFFSET);
	}
	assert(logdev_parse(copy, size < ASR_LOG_BLOCK ? size : ASR_LOG_BLOCK, &l, NULL));
	memcpy(copy + 2 * ASR_LOG_BLOCK, data, size < ASR_LOG_SECTOR ? size : ASR_LOG_SECTOR);
	bits = logdev_bits(copy + 2 * ASR_LOG_BLOCK, data[0], 5000);
	assert(bits == -EBADMSG || (bits >= 0 && bits <= ASR_LOG_SECTOR_BITS));
out:
	free(copy);
	return 0;
}
