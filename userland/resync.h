/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What resync.c (the loop, its reads and what it emits) and sweep.c (what was taken
 * from the dirty map, from the fetch to the acknowledgement) share. Nobody else's.
 */
#ifndef ASR_RESYNC_H
#define ASR_RESYNC_H

#include "source.h"

#define CHUNK_BYTES	(ASR_CHUNK_SECTORS * 512u)
#define PARTS		16
#define PARTS_A_DISK	12		/* the others are for disks that answer */
#define HELD_MAX	4		/* parts that wait for a frame to be filled up */
#define PART_CHUNKS	8		/* 512 KiB: one read */
#define PART_BYTES	(PART_CHUNKS * CHUNK_BYTES)
#define SYNC_SECTORS	(ASR_FRAME_PAYLOAD / 512)	/* of one record */
#define ZERO_SECTORS	8192		/* of one record of zeroes */
#define WINDOWS		8		/* asked for ahead */
#define RUNS		4096		/* taken and not yet durable */
#define RUNS_SLACK	(2 * PARTS + 64)
#define SHARE_BYTES	(4u << 20)	/* of the ring, between two rounds; of a round, while the ring waits */
#define HOLD_NS		20000000ull	/* that the ring may wait for a round */
#define TRICKLE_NS	50000000ull	/* between single chunks while the ring is in use */
#define SOON_NS		2000000ull
#define RETRY_NS	1000000000ull
#define STUCK_NS	5000000000ull
#define NS_PER_S	1000000000ull

enum phase { OFF, IDLE, WANTED, SCAN, ROUND, PASSING, ENDING };
enum part_state { FREE, READING, READY, BAD, EARLY, STUCK, HELD };

/* A window and which of its chunks were taken and are still to be read */
struct range {
	struct window w;
	uint64_t want[WINDOW_CHUNKS / 64];
	uint32_t chunks, parts;		/* of the window; of it under way */
};

struct part {
	struct resync *r;
	enum part_state state;
	uint32_t slot;
	struct range *range;		/* NULL: the round was given up */
	uint64_t chunk, count;
	uint32_t sectors, done;		/* to emit, emitted */
	uint64_t frame_no, emitted;	/* the last frame with something of it; bytes */
	bool zero, same;		/* some of it is in r->zero; some was left out */
	bool retaken;			/* ... since it was read: it is not given back */
	uint64_t since_ns;
	uint8_t *buf;
	struct loop_op op;
};

struct run {
	uint64_t frame_no, chunk, count;
	uint32_t slot, bytes;		/* emitted of it */
	bool pending;			/* waits for r->zero to be emitted, too */
};

struct resync {
	struct resync_args a;
	char *group;
	bool dying, consistent, rescan, careful, said_error, found, through, last_look, flushed, paused;
	enum phase phase;
	uint32_t slot;			/* where the scan stands */
	uint64_t chunk;
	struct asr_dirty ahead;		/* taken, beyond the last window; count 0: nothing */
	uint64_t in_flight;		/* bytes emitted and not yet durable */
	uint64_t reading;		/* bytes being read */
	uint64_t acked_frame;
	uint64_t last_round_ns, round_left, round_bytes;
	uint64_t turn_pos;		/* the ring is consumed up to here before the next round */
	uint64_t end_pos, end_frame, due;
	struct range ranges[WINDOWS];	/* a queue, from first */
	uint32_t first, ranges_used;
	uint32_t at;			/* chunk of the first range that is read next */
	struct part parts[PARTS];
	struct part *line[PARTS];	/* under way, in order */
	uint32_t in_line;
	uint8_t hung[ASR_DISKS_MAX];	/* reads of the disk that do not end */
	struct { uint32_t slot, sectors; uint64_t sector; } zero;	/* gathered, not yet emitted */
	struct run runs[RUNS];
	uint32_t run_count;
	struct lowers lowers;
	uint8_t *buffers;
	uint64_t limit, tokens, tokens_ns;
	uint64_t began_ns, done_bytes, compared_bytes, differing_bytes, shipped_bytes;
};

static inline void sweep_bit(uint64_t *bits, uint64_t n, bool on)
{
	bits[n / 64] = on ? bits[n / 64] | 1ull << n % 64 : bits[n / 64] & ~(1ull << n % 64);
}

static inline bool sweep_bit_get(const uint64_t *bits, uint64_t n)
{
	return bits[n / 64] >> n % 64 & 1;
}

/* -------------------------------------------------------------- sweep.c */

uint64_t sweep_dirty(struct resync *r, bool *disks);	/* chunks; disks: has the group any? */
/* 0, or why nothing more is fetched now; r->through: nothing is dirty */
int sweep_gather(struct resync *r);
void sweep_drop(struct resync *r);		/* the first range is done with */
/* The disk below a slot is open: else *ret says why not, and a line if it is new */
bool sweep_open(struct resync *r, uint32_t slot, int *ret);
/* A part was emitted: its chunks are clean when that is durable */
void sweep_note(struct resync *r, const struct part *p);
void sweep_zeroes(struct resync *r, uint64_t frame_no);	/* r->zero is in that frame */
void sweep_acked(struct resync *r, uint64_t frame_no);
void sweep_put_back(struct resync *r, const struct part *p);
void sweep_give_back(struct resync *r, const struct asr_dirty *d, int ret);

#endif /* ASR_RESYNC_H */
