/* SPDX-License-Identifier: Apache-2.0 */
/*
 * stamp.h - what asr-stamp writes and asr-oracle believes: sectors and log.
 *
 * Every sector written says who it is (struct stamp), so an image can be judged
 * without knowing how it came about. The log says when each write was issued and
 * when it completed, in one order over all threads and all targets, so "w had
 * completed before v was issued" is decidable: the one relation a replica owes.
 *
 * The issue event is in the log before the write is submitted: after a power cut
 * an image holds no stamp that the log does not know. A completion may be missing
 * from the end of a log; that only makes the judgement milder, never wrong.
 *
 * All integers little endian (host order; the tests run on one architecture).
 */
#ifndef ASR_TESTS_STAMP_H
#define ASR_TESTS_STAMP_H

#include <stdint.h>
#include <string.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#define STAMP_MAGIC	0x31504d5453525341ull	/* "ASRSTMP1" */
#define STAMP_LOG_MAGIC	0x31474f4c53525341ull	/* "ASRSLOG1" */
#define STAMP_SECTOR	512u
#define STAMP_MAX_TARGETS 16u

/* One sector on disk. `sum` is last: a torn sector never has a good one. */
struct stamp {
	uint64_t magic;
	uint64_t workload;	/* random, one per run */
	uint64_t seq;		/* from 1, over all threads and targets */
	uint64_t sector;	/* of this sector, on its target */
	uint64_t time_ns;	/* CLOCK_REALTIME at issue */
	uint32_t sectors;	/* length of the whole write */
	uint16_t target;
	uint16_t thread;
	uint8_t fill[STAMP_SECTOR - 7 * 8];
	uint64_t sum;		/* XXH3-64 of all bytes before */
};

_Static_assert(sizeof(struct stamp) == STAMP_SECTOR, "a stamp is one sector");

enum stamp_op { STAMP_WRITE = 1, STAMP_FUA, STAMP_DISCARD, STAMP_ZERO, STAMP_FLUSH };

enum stamp_event {
	STAMP_ISSUE = 1,
	STAMP_COMPLETE,
	STAMP_FAILED,		/* an error: the range holds old or new */
	STAMP_CANCEL,		/* not supported there: nothing happened */
};

struct stamp_log_head {
	uint64_t magic;
	uint64_t workload;
	uint64_t start_ns;	/* CLOCK_REALTIME */
	uint32_t targets;
	uint32_t entry_bytes;	/* sizeof(struct stamp_log_entry) */
	uint64_t target_sectors[STAMP_MAX_TARGETS];
};

struct stamp_log_entry {
	uint64_t order;		/* from 1, one counter for all events */
	uint64_t seq;
	uint64_t sector;
	uint64_t time_ns;
	uint32_t sectors;
	uint8_t target;
	uint8_t op;
	uint8_t event;
	uint8_t thread;
};

_Static_assert(sizeof(struct stamp_log_entry) == 40, "log entries have one size");

static inline uint64_t stamp_sum(const struct stamp *s)
{
	return XXH3_64bits(s, sizeof(*s) - sizeof(s->sum));
}

/*
 * Half of the filling is noise, half is text-like: the data compresses about
 * two to one, as a file system's does.
 */
static inline void stamp_make(struct stamp *s, uint64_t workload, uint64_t seq, uint64_t sector,
			      uint64_t time_ns, uint32_t sectors, uint16_t target, uint16_t thread)
{
	uint64_t x = (seq * 0x9e3779b97f4a7c15ull) ^ (sector + 1) * 0xbf58476d1ce4e5b9ull;
	size_t i;

	s->magic = STAMP_MAGIC;
	s->workload = workload;
	s->seq = seq;
	s->sector = sector;
	s->time_ns = time_ns;
	s->sectors = sectors;
	s->target = target;
	s->thread = thread;
	for (i = 0; i + 8 <= sizeof(s->fill) / 2; i += 8) {
		x ^= x << 13;
		x ^= x >> 7;
		x ^= x << 17;
		memcpy(s->fill + i, &x, 8);
	}
	memset(s->fill + i, 'a' + (int)(seq % 26), sizeof(s->fill) - i);
	s->sum = stamp_sum(s);
}

#endif
