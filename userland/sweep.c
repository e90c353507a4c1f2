// SPDX-License-Identifier: Apache-2.0
/*
 * What resync has taken from the dirty map: fetched, asked for at the vault, and
 * given back when its copy is durable.
 *
 * Design. FETCH moves a chunk from dirty to taken; ACK ends that. Between the two it
 * is in a range, to be read; in a part, being read and emitted; then in a run, until
 * a frame is durable. A range is a window of one disk that the vault is asked for
 * as soon as its chunks are taken, some windows ahead of the reads.
 *
 * Invariants. A chunk that is taken again while it is somewhere here belongs to the
 * later place: only from there it is given back, for only that has read it since.
 *
 * Context. The loop's thread; opening a device blocks.
 */
#include <errno.h>
#include <string.h>

#include "resync.h"

/* ------------------------------------------------------- taken chunks */

static void tell(struct resync *r, unsigned long request, uint32_t slot, uint64_t chunk, uint64_t count)
{
	struct asr_dirty d = { .slot = slot, .chunk = chunk, .count = count };

	source_ioctl(r->a.source, request, &d);	/* the disk may have left: nothing to do then */
}

/* The end of a run becomes one of its own, or, without room for that, is read again */
static void split(struct resync *r, const struct run *o, uint64_t chunk, uint64_t count)
{
	if (r->run_count + PARTS < RUNS) {	/* the line's parts have theirs */
		r->runs[r->run_count++] = (struct run){ o->frame_no, chunk, count, o->slot, 0, o->pending };
		return;
	}
	tell(r, ASR_IOC_DIRTY_SET, o->slot, chunk, count);
	r->rescan = true;
}

/* Taken again: what was emitted before, or is being, no longer gives these chunks back */
static void disown(struct resync *r, uint32_t slot, uint64_t chunk, uint64_t count)
{
	uint64_t end = chunk + count;

	for (uint32_t i = 0; i < r->run_count; i++) {
		struct run *o = &r->runs[i];
		uint64_t o_end = o->chunk + o->count;

		if (o->slot != slot || o->chunk >= end || chunk >= o_end)
			continue;
		if (o->chunk < chunk && end < o_end)
			split(r, o, end, o_end - end);
		if (o->chunk < chunk) {
			o->count = chunk - o->chunk;
		} else {
			o->chunk = end < o_end ? end : o_end;
			o->count = o_end - o->chunk;
		}
	}
	for (uint32_t i = 0; i < r->in_line; i++) {
		struct part *p = r->line[i];

		p->retaken |= p->slot == slot && p->chunk < end && chunk < p->chunk + p->count;
	}
	for (uint32_t i = 0; i < WINDOWS; i++) {	/* and it is read once only */
		struct range *g = &r->ranges[i];
		uint64_t first = g->w.sector / ASR_CHUNK_SECTORS;

		for (uint64_t c = chunk; g->w.slot == slot && c < end; c++)
			if (c >= first && c < first + g->chunks)
				sweep_bit(g->want, c - first, false);
	}
}

/* A part was emitted: its chunks are clean when frame_no is durable */
void sweep_note(struct resync *r, const struct part *p)
{
	uint64_t frame_no = p->frame_no, count = p->retaken ? 0 : p->count;

	if (p->retaken) {
		tell(r, ASR_IOC_DIRTY_SET, p->slot, p->chunk, p->count);
		r->rescan = true;
	}
	if (p->same && p->range->w.frame_no > frame_no)
		frame_no = p->range->w.frame_no;
	if (!p->zero && frame_no <= r->acked_frame) {
		if (count)
			tell(r, ASR_IOC_DIRTY_ACK, p->slot, p->chunk, count);
		return;
	}
	r->in_flight += p->emitted;
	r->runs[r->run_count++] = (struct run){ frame_no, p->chunk, count, p->slot, (uint32_t)p->emitted, p->zero };
}

void sweep_zeroes(struct resync *r, uint64_t frame_no)
{
	for (uint32_t i = 0; i < r->run_count; i++) {
		struct run *o = &r->runs[i];

		if (o->pending && o->frame_no < frame_no)
			o->frame_no = frame_no;
		o->pending = false;
	}
}

void sweep_acked(struct resync *r, uint64_t frame_no)
{
	uint32_t kept = 0;

	r->acked_frame = frame_no;
	for (uint32_t i = 0; i < r->run_count; i++) {
		const struct run *o = &r->runs[i];

		if (o->pending || o->frame_no > frame_no) {
			r->runs[kept++] = *o;
			continue;
		}
		if (o->count)
			tell(r, ASR_IOC_DIRTY_ACK, o->slot, o->chunk, o->count);
		r->in_flight -= o->bytes;
	}
	r->run_count = kept;
}

void sweep_put_back(struct resync *r, const struct part *p)
{
	tell(r, ASR_IOC_DIRTY_SET, p->slot, p->chunk, p->count);
	tell(r, ASR_IOC_DIRTY_ACK, p->slot, p->chunk, p->count);
	r->careful |= p->state == BAD;
	r->rescan = true;
	r->due = now_ns() + (p->state == EARLY ? SOON_NS : RETRY_NS);
}

uint64_t sweep_dirty(struct resync *r, bool *disks)
{
	struct asr_group_info info = { .name = "" };

	snprintf(info.name, sizeof(info.name), "%s", r->group);
	if (source_ioctl(r->a.source, ASR_IOC_GROUP_INFO, &info))
		return 0;
	if (disks)
		*disks = info.disks || source_is_file(r->a.source);
	return info.dirty_chunks;
}

/* ----------------------------------------------------------- windows ahead */

/* The next dirty run, of at most so many chunks: 1, 0: the scan is through, -errno */
static int fetch(struct resync *r, struct asr_dirty *d, uint64_t most)
{
	int ret;

	if (r->ahead.count) {
		*d = r->ahead;
		r->ahead.count = 0;
		return 1;
	}
	for (;;) {
		*d = (struct asr_dirty){ .slot = r->slot, .chunk = r->chunk, .count = most };
		ret = r->hung[r->slot] ? -ENODATA : source_ioctl(r->a.source, ASR_IOC_DIRTY_FETCH, d);
		if (!ret) {
			disown(r, d->slot, d->chunk, d->count);
			r->chunk = d->chunk + d->count;
			r->found = true;
			return 1;
		}
		if (ret != -ENODATA && ret != -ENOENT)
			return ret;
		r->chunk = 0;
		if (++r->slot < ASR_DISKS_MAX)
			continue;
		r->slot = 0;
		if (!r->found)
			return 0;
		r->found = r->careful = false;	/* once more from the start, until a whole scan finds nothing */
	}
}

bool sweep_open(struct resync *r, uint32_t slot, int *ret)
{
	*ret = lower_open(&r->lowers, slot);
	if (!*ret || *ret == -EAGAIN)
		return !*ret;
	if (!r->said_error)
		log_err("group %s: cannot open the device below disk %u: %s", r->group, slot, strerror(-*ret));
	r->said_error = true;
	return false;
}

/* A run that cannot be read now */
void sweep_give_back(struct resync *r, const struct asr_dirty *d, int ret)
{
	struct part p = { .state = ret == -EAGAIN ? EARLY : BAD, .slot = d->slot, .chunk = d->chunk,
			  .count = d->count };
	bool careful = r->careful;

	sweep_put_back(r, &p);
	r->careful = careful;
}

/* Takes dirty chunks for one more window and asks for it: 1, 0: there are none, -errno */
static int fill_range(struct resync *r)
{
	struct range *g = &r->ranges[(r->first + r->ranges_used) % WINDOWS];
	const struct lower *disk;
	uint64_t sent, base = 0, end;
	struct asr_dirty d;
	int ret = r->a.emit(r->a.arg, NULL, NULL, &sent);

	if (ret)
		return ret;
	ret = fetch(r, &d, WINDOW_CHUNKS);
	if (ret <= 0)
		return ret;
	if (!sweep_open(r, d.slot, &ret)) {
		sweep_give_back(r, &d, ret);
		if (r->slot == d.slot && ret != -EAGAIN)
			r->chunk = UINT64_MAX >> 1;	/* nothing more of this disk in this scan */
		return -EBUSY;
	}
	disk = &r->lowers.disk[d.slot];
	base = d.chunk;
	end = base;
	memset(g->want, 0, sizeof(g->want));
	for (;;) {
		uint64_t stop = d.chunk + d.count < base + WINDOW_CHUNKS ? d.chunk + d.count : base + WINDOW_CHUNKS;

		for (uint64_t c = d.chunk; c < stop; c++)
			sweep_bit(g->want, c - base, true);
		end = stop > end ? stop : end;
		if (stop < d.chunk + d.count)
			r->ahead = (struct asr_dirty){ .slot = d.slot, .chunk = stop,
						       .count = d.chunk + d.count - stop };
		if (r->ahead.count || end == base + WINDOW_CHUNKS || r->slot != d.slot ||
		    fetch(r, &d, base + WINDOW_CHUNKS - end) <= 0)
			break;
		if (d.slot != (uint32_t)(disk - r->lowers.disk) || d.chunk < end || d.chunk >= base + WINDOW_CHUNKS) {
			r->ahead = d;	/* another disk, farther on, or from the start again */
			break;
		}
	}
	g->chunks = (uint32_t)(end - base);
	g->parts = 0;
	g->w.slot = (uint32_t)(disk - r->lowers.disk);
	memcpy(g->w.name, disk->name, sizeof(g->w.name));
	g->w.sector = base * ASR_CHUNK_SECTORS;
	g->w.end = end * ASR_CHUNK_SECTORS < disk->sectors ? end * ASR_CHUNK_SECTORS : disk->sectors;
	if (g->w.end <= g->w.sector)
		g->w.end = g->w.sector + ASR_CHUNK_SECTORS;	/* the disk has shrunk: nothing will be read */
	r->ranges_used++;
	r->last_look = false;
	compare_ask(r->a.compare, &g->w, sent);
	return 1;
}

/* 0, or why there is nothing more to fetch now */
int sweep_gather(struct resync *r)
{
	int ret = 1;

	while (ret > 0 && !r->through && r->ranges_used < WINDOWS && r->run_count + RUNS_SLACK < RUNS)
		ret = fill_range(r);
	r->through |= !ret;
	return ret < 0 ? ret : 0;
}

void sweep_drop(struct resync *r)
{
	struct range *g = &r->ranges[r->first];

	compare_forget(&g->w);
	g->chunks = 0;
	r->first = (r->first + 1) % WINDOWS;
	r->ranges_used--;
	r->at = 0;
}
