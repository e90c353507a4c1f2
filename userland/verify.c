// SPDX-License-Identifier: Apache-2.0
/*
 * Compares the disks of a group with the vault's copy, while they are in use, by
 * digests alone; ships nothing.
 *
 * Design. Windows of each disk are asked for ahead and read from the lower device,
 * beside the ring's consumption. A block whose digest is the vault's, and for which
 * no record came into the stream since the question, is equal: there is nothing else
 * it could be. One that differs is a suspect: a write to it may be on the disk and
 * still in the ring. A suspect is looked at again
 *
 *   when the ring was consumed up to its head after the read: whatever a captured
 *   write had put on the disk then is in the vault now, or newer is
 *
 * and counts as different when it differs, unchanged, for settle_ns: a page that
 * changed between capture and disk (K3) is written again by its file system some time
 * later. One that keeps changing is given up, and counted as busy.
 *
 * Blocks that the vault has no digest for (discarded, or written in pieces) cannot be
 * compared, and are counted.
 *
 * Invariants. A difference is reported once, and never for what the copy has by now.
 *
 * Context. The loop's thread; reads are asynchronous. Memory: windows, PARTS reads,
 * SUSPECTS_MAX suspects of at most 1 KiB.
 */
#include <errno.h>
#include <string.h>
#include <xxhash.h>

#include "source.h"

#define WINDOWS		3
#define PARTS		12
#define PART_BLOCKS	128u		/* 512 KiB: one read */
#define PART_SECTORS	(PART_BLOCKS * ASR_BLOCK_SECTORS)
#define SUSPECTS_MAX	4096
#define TRIES_MAX	60
#define AGAIN_NS	200000000ull	/* between two looks, growing */
#define TELL_NS		500000000ull
#define SLEEP_NS	50000000ull
#define NS_PER_S	1000000000ull

/* Blocks that differed when they were read last */
struct suspect {
	struct suspect *next;
	uint32_t slot, blocks, tries;
	uint64_t sector;
	uint64_t head;			/* of the ring, after the read */
	uint64_t since_ns, due_ns;	/* unchanged since; to be looked at then */
	uint64_t hash[];		/* of each block */
};

struct part {
	struct verify *v;
	bool busy, done;
	int res;
	struct window *w;		/* NULL: nobody wants it any more */
	struct suspect *suspect;	/* it is looked at again; NULL: a first look */
	uint64_t sector;
	uint32_t sectors;
	uint8_t *buf;
	struct loop_op op;
};

/* A window and what is read in it */
struct range {
	struct window w;
	uint64_t at;			/* first look: the next sector to be read */
	struct suspect *suspect;	/* another look: at this */
	uint32_t parts;			/* under way */
};

struct verify {
	struct verify_args a;
	struct lowers lowers;
	struct range ranges[WINDOWS];
	struct part parts[PARTS];
	uint8_t *buffers;
	uint32_t slot;			/* where the first look stands */
	uint64_t sector;
	struct suspect *suspects;
	uint32_t suspect_count;
	uint64_t tokens, tokens_ns, told_ns, began_ns, due_ns;
	uint64_t total, compared, unknown, busy, differing, differences;
	bool dying;
};

/* ----------------------------------------------------------------- disks */

static bool wanted(const struct verify *v, const struct asr_disk_info *d)
{
	return d->active && (!v->a.disk[0] || !strcmp(d->name, v->a.disk));
}

/* The first wanted disk from slot on; false: there is none */
static bool next_disk(struct verify *v, uint32_t slot, struct asr_disk_info *d)
{
	for (; slot < ASR_DISKS_MAX; slot++) {
		*d = (struct asr_disk_info){ .slot = slot };
		if (!source_ioctl(v->a.source, ASR_IOC_DISK_INFO, d) && wanted(v, d))
			return true;
	}
	return false;
}

static void count_total(struct verify *v)
{
	struct asr_disk_info d;

	for (uint32_t slot = 0; next_disk(v, slot, &d); slot = d.slot + 1)
		v->total += d.sectors * 512;
}

/* -------------------------------------------------------------- reporting */

static json_t *progress(const struct verify *v)
{
	double seconds = (double)(now_ns() - v->began_ns) / 1e9;
	uint64_t done = v->compared + v->unknown + v->busy + v->differing;
	double rate = seconds > 0 ? (double)done / seconds : 0;

	return json_pack("{s:I, s:I, s:I, s:I, s:I, s:I, s:f, s:f}", "done_bytes", (json_int_t)done, "total_bytes",
			 (json_int_t)v->total, "differing_bytes", (json_int_t)v->differing, "uncomparable_bytes",
			 (json_int_t)v->unknown, "busy_bytes", (json_int_t)v->busy, "differences",
			 (json_int_t)v->differences, "bytes_per_s", rate, "eta_s",
			 rate > 0 && v->total > done ? (double)(v->total - done) / rate : 0.0);
}

static void tell(struct verify *v, uint32_t slot, uint64_t sector, uint64_t sectors)
{
	v->differing += sectors * 512;
	v->differences++;
	log_warn("group %s: verify: disk %s differs from the vault's copy: sector %llu, %llu sectors", v->a.group,
		 v->lowers.disk[slot].name, (unsigned long long)sector, (unsigned long long)sectors);
	v->a.report(v->a.arg, json_pack("{s:{s:s, s:I, s:I}}", "difference", "disk", v->lowers.disk[slot].name,
					"sector", (json_int_t)sector, "sectors", (json_int_t)sectors), NULL);
}

/* --------------------------------------------------------------- suspects */

static void suspect_add(struct verify *v, const struct part *p, uint32_t first, uint32_t blocks, const uint64_t *hash,
			uint64_t since)
{
	struct suspect *s = malloc(sizeof(*s) + blocks * sizeof(*hash));
	uint32_t tries = p->suspect ? p->suspect->tries + 1 : 0;
	uint64_t now = now_ns();

	if (!s) {
		v->busy += blocks * 4096ull;
		return;
	}
	*s = (struct suspect){ .next = v->suspects, .slot = p->w->slot, .blocks = blocks, .tries = tries,
			       .sector = p->sector + (uint64_t)first * ASR_BLOCK_SECTORS,
			       .head = source_head(v->a.source), .since_ns = since,
			       .due_ns = now + AGAIN_NS * (1 + (tries < 10 ? tries : 10)) };
	if (now - since < v->a.settle_ns && s->due_ns > since + v->a.settle_ns && tries > 1)
		s->due_ns = since + v->a.settle_ns;
	memcpy(s->hash, hash, blocks * sizeof(*hash));
	v->suspects = s;
	v->suspect_count++;
}

/* How a differing block stands to what was known of it: 0: it is new, 1: unchanged, 2: so for long enough */
static int age_of(const struct verify *v, const struct part *p, uint32_t block, uint64_t hash, bool spoiled)
{
	const struct suspect *s = p->suspect;

	if (!s || spoiled || s->hash[block] != hash)
		return 0;
	return now_ns() - s->since_ns >= v->a.settle_ns ? 2 : 1;
}

/* A run of blocks that differ, all of one age */
static void run_end(struct verify *v, const struct part *p, uint32_t first, uint32_t blocks, const uint64_t *hash,
		    int age)
{
	if (!blocks)
		return;
	if (age == 2)
		tell(v, p->w->slot, p->sector + (uint64_t)first * ASR_BLOCK_SECTORS, blocks * ASR_BLOCK_SECTORS);
	else if (p->suspect && p->suspect->tries >= TRIES_MAX)
		v->busy += blocks * 4096ull;
	else
		suspect_add(v, p, first, blocks, hash, age ? p->suspect->since_ns : now_ns());
}

static void compare_part(struct verify *v, const struct part *p)
{
	uint32_t blocks = p->sectors / ASR_BLOCK_SECTORS, first = 0, run = 0;
	uint64_t hash[PART_BLOCKS];
	int age = 0;

	for (uint32_t i = 0; i < blocks; i++) {
		uint64_t sector = p->sector + (uint64_t)i * ASR_BLOCK_SECTORS;
		bool spoiled = compare_spoiled(p->w, sector);
		enum compare_result r = compare_block(p->w, sector, p->buf + i * 4096ul);
		int now = -1;

		if (r == COMPARE_SAME || r == COMPARE_ABSENT)
			v->compared += 4096;
		else if (r == COMPARE_UNKNOWN && !spoiled)
			v->unknown += 4096;
		else {
			hash[i] = XXH3_64bits(p->buf + i * 4096ul, 4096);
			now = age_of(v, p, i, hash[i], spoiled);
		}
		if (run && now != age) {
			run_end(v, p, first, run, hash + first, age);
			run = 0;
		}
		if (now < 0)
			continue;
		first = run ? first : i;
		age = now;
		run++;
	}
	run_end(v, p, first, run, hash + first, age);
	v->unknown += p->sectors % ASR_BLOCK_SECTORS * 512;
}

/* ---------------------------------------------------------------- reading */

static void free_all(struct verify *v)
{
	struct suspect *s;

	for (int i = 0; i < PARTS; i++)
		if (v->parts[i].busy)
			return;
	while ((s = v->suspects)) {
		v->suspects = s->next;
		free(s);
	}
	lower_close(&v->lowers);
	free(v->buffers);
	free(v);
}

static void read_done(struct loop_op *op, int res, unsigned int flags)
{
	struct part *p = op->arg;

	p->busy = false;
	p->done = true;
	p->res = res;
	if (p->v->dying)
		free_all(p->v);
	else
		p->v->a.kick(p->v->a.kick_arg);
}

static struct part *free_part(struct verify *v)
{
	for (int i = 0; i < PARTS; i++)
		if (!v->parts[i].busy && !v->parts[i].done)
			return &v->parts[i];
	return NULL;
}

static int start_read(struct verify *v, struct part *p, struct range *g, uint64_t sector, uint64_t sectors,
		      struct suspect *s)
{
	int ret = lower_open(&v->lowers, g->w.slot);

	if (ret)
		return ret;
	p->w = &g->w;
	p->suspect = s;
	p->sector = sector;
	p->sectors = (uint32_t)sectors;
	p->busy = true;
	p->op = (struct loop_op){ .done = read_done, .arg = p };
	g->parts++;
	v->tokens -= v->tokens < sectors * 512 ? v->tokens : sectors * 512;
	loop_read(v->a.loop, &p->op, v->lowers.disk[g->w.slot].fd, p->buf, sectors * 512,
		  (v->lowers.disk[g->w.slot].start + sector) * 512);
	return 0;
}

/* What was read is compared: 0, or -errno when it could not be read */
static int take_parts(struct verify *v)
{
	for (int i = 0; i < PARTS; i++) {
		struct part *p = &v->parts[i];
		struct range *g = (struct range *)p->w;

		if (!p->done)
			continue;
		p->done = false;
		if (p->res != (int)(p->sectors * 512))
			return p->res < 0 ? p->res : -EIO;
		compare_part(v, p);
		free(p->suspect);
		p->suspect = NULL;
		if (!--g->parts && (g->suspect || g->at >= g->w.end))
			compare_forget(&g->w);
		g->suspect = NULL;
	}
	return 0;
}

/* ------------------------------------------------------------ what is next */

/* A suspect that may be looked at again; taken off the list */
static struct suspect *suspect_due(struct verify *v, uint64_t now)
{
	for (struct suspect **p = &v->suspects, *s; (s = *p); p = &s->next)
		if (s->due_ns <= now && source_pos(v->a.source) >= s->head) {
			*p = s->next;
			v->suspect_count--;
			return s;
		}
	return NULL;
}

/* The next window of a first look: false: there is none, or too many suspects wait */
static bool window_next(struct verify *v, struct range *g)
{
	struct asr_disk_info d;
	uint64_t end;

	if (v->suspect_count > SUSPECTS_MAX || !next_disk(v, v->slot, &d))
		return false;
	if (d.slot != v->slot || v->sector >= d.sectors) {
		v->sector = 0;
		if (d.slot == v->slot && !next_disk(v, v->slot + 1, &d)) {
			v->slot = ASR_DISKS_MAX;
			return false;
		}
		v->slot = d.slot;
	}
	end = v->sector + MAP_SECTORS_MAX;
	g->w.slot = d.slot;
	snprintf(g->w.name, sizeof(g->w.name), "%s", d.name);
	g->w.sector = g->at = v->sector;
	g->w.end = end < d.sectors ? end : d.sectors;
	g->suspect = NULL;
	v->sector = g->w.end;
	return true;
}

static void suspect_window(struct verify *v, struct range *g, struct suspect *s)
{
	g->w.slot = s->slot;
	memcpy(g->w.name, v->lowers.disk[s->slot].name, sizeof(g->w.name));
	g->w.sector = s->sector / ASR_CHUNK_SECTORS * ASR_CHUNK_SECTORS;
	g->w.end = s->sector + (uint64_t)s->blocks * ASR_BLOCK_SECTORS;
	g->suspect = s;
}

/* Windows for what is to be looked at: 0, or -EAGAIN: no room to flush what was gathered */
static int ask_more(struct verify *v)
{
	uint64_t sent;

	for (int i = 0; i < WINDOWS; i++) {
		struct range *g = &v->ranges[i];
		struct suspect *s;

		if (g->w.state != WINDOW_FREE)
			continue;
		if (v->a.emit(v->a.kick_arg, NULL, NULL, &sent))
			return -EAGAIN;
		s = suspect_due(v, now_ns());
		if (s)
			suspect_window(v, g, s);
		else if (!window_next(v, g))
			return 0;
		g->parts = 0;
		compare_ask(v->a.compare, &g->w, sent);
	}
	return 0;
}

static bool may_read(struct verify *v)
{
	uint64_t now = now_ns(), most = v->a.rate / 4 > PART_SECTORS * 512 ? v->a.rate / 4 : PART_SECTORS * 512;

	if (!v->a.rate)
		return true;
	v->tokens += (uint64_t)((double)(now - v->tokens_ns) * (double)v->a.rate / 1e9);
	v->tokens = v->tokens < most ? v->tokens : most;
	v->tokens_ns = now;
	return v->tokens >= PART_SECTORS * 512;
}

static int read_more(struct verify *v)
{
	int ret = 0;

	for (int i = 0; i < WINDOWS && !ret; i++) {
		struct range *g = &v->ranges[i];
		struct part *p;

		if (g->w.state == WINDOW_READY && !g->w.known)
			return -ENOTSUP;
		if (g->w.state == WINDOW_READY && g->suspect && !g->parts && (p = free_part(v)))
			ret = start_read(v, p, g, g->suspect->sector, (uint64_t)g->suspect->blocks * ASR_BLOCK_SECTORS,
					 g->suspect);
		while (!ret && g->w.state == WINDOW_READY && !g->suspect && g->at < g->w.end && may_read(v) &&
		       (p = free_part(v))) {
			uint64_t n = g->w.end - g->at < PART_SECTORS ? g->w.end - g->at : PART_SECTORS;

			ret = start_read(v, p, g, g->at, n, NULL);
			g->at += ret ? 0 : n;
		}
	}
	return ret == -EAGAIN ? 0 : ret;
}

static bool idle(const struct verify *v)
{
	struct asr_disk_info d;

	for (int i = 0; i < WINDOWS; i++)
		if (v->ranges[i].w.state != WINDOW_FREE)
			return false;
	return !v->suspects && (!next_disk((struct verify *)(uintptr_t)v, v->slot, &d) ||
				(d.slot == v->slot && v->sector >= d.sectors &&
				 !next_disk((struct verify *)(uintptr_t)v, v->slot + 1, &d)));
}

/* -------------------------------------------------------------- life */

static void finish(struct verify *v, const char *error)
{
	json_t *p = progress(v);

	json_object_set_new(p, "result", json_string(v->differences ? "different" : v->busy ? "busy" : "equal"));
	v->a.report(v->a.arg, p, error ? error : "");
}

void verify_step(struct verify *v)
{
	uint64_t now = now_ns();
	int ret = take_parts(v);

	if (!ret)
		ret = ask_more(v);
	if (!ret || ret == -EAGAIN)
		ret = read_more(v);
	if (ret) {
		finish(v, ret == -ENOTSUP ? "the vault has not told what it has: see asrd's log" : strerror(-ret));
		return;
	}
	if (idle(v)) {
		finish(v, NULL);
		return;
	}
	v->due_ns = now + SLEEP_NS;
	if (now - v->told_ns >= TELL_NS) {
		v->told_ns = now;
		v->a.report(v->a.arg, json_pack("{s:o}", "progress", progress(v)), NULL);
	}
}

uint64_t verify_due(const struct verify *v)
{
	return v->due_ns;
}

int verify_create(const struct verify_args *a, struct verify **out)
{
	struct verify *v = calloc(1, sizeof(*v));
	struct asr_disk_info d;

	if (!v || !(v->buffers = aligned_alloc(4096, (size_t)PARTS * PART_SECTORS * 512))) {
		free(v);
		return -ENOMEM;
	}
	v->a = *a;
	lower_init(&v->lowers, a->source);
	for (int i = 0; i < PARTS; i++) {
		v->parts[i].v = v;
		v->parts[i].buf = v->buffers + (size_t)i * PART_SECTORS * 512;
	}
	v->began_ns = v->tokens_ns = now_ns();
	count_total(v);
	if (!next_disk(v, 0, &d)) {
		free_all(v);
		return -ENODEV;
	}
	*out = v;
	return 0;
}

void verify_destroy(struct verify *v)
{
	if (!v)
		return;
	v->dying = true;
	for (int i = 0; i < WINDOWS; i++) {
		compare_forget(&v->ranges[i].w);
		free(v->ranges[i].suspect);
	}
	free_all(v);
}
