// SPDX-License-Identifier: Apache-2.0
/*
 * Does a block of the disk equal the vault's copy? Told by digests, for windows
 * of a disk that are asked for ahead.
 *
 * Design. A window is asked for (digest.map) when all that was gathered has been
 * sent, so the answer holds at P, the place in the stream at the call. The vault
 * sends sealed digests; they are opened here, one for each 4 KiB block whose
 * newest version one record covers wholly. From the call on, every record that is
 * put into the stream spoils the chunks it touches: of those nothing is known.
 * A map names no call: it is kept until the reply behind it says whose it is, for
 * a window may have been given up and asked for anew meanwhile.
 *
 * So a block that was read while the stream stood at C, and has the digest, is what
 * the copy holds at C: no record for it stands between P and C. The copy has it for
 * good when all frames up to window.frame_no are durable.
 *
 * A vault that does not know the call, or cannot answer it, and digests that do not
 * open leave blocks unknown: they travel. That is said once for each connection.
 *
 * Invariants. Blocks are the same only by a digest that a tag vouches for, or by
 * zeroes that the vault's record table says. A window that is not READY answers
 * nothing.
 *
 * Context. The loop's thread. Memory: COMPARE_BYTES for each window in use.
 */
#include <errno.h>
#include <string.h>
#include <xxhash.h>
#if defined(__x86_64__)
#include <xxh_x86dispatch.h>
#endif

#include "source.h"

#define BLOCKS_PER_CHUNK	(ASR_CHUNK_SECTORS / ASR_BLOCK_SECTORS)

enum how { UNKNOWN, ZERO, DIGEST, NEVER };

struct compare {
	struct ship *ship;
	char *group;
	uint8_t stream[ASR_UUID_BYTES];
	kick_fn *kick;
	void *arg;
	struct window *windows;
	uint8_t *map;			/* MAP_BYTES_MAX: the last that came; digests are opened where they lie */
	struct map_view view;		/* of it */
	bool has_map;			/* and its reply has not come yet */
	bool opened[MAP_FRAMES_MAX];
	bool silent;			/* the vault cannot: on this connection nobody asks again */
	bool said;
	struct seals *seals;
};

/* --------------------------------------------------------- opening digests */

static void say(struct compare *c, const char *what, const char *why)
{
	if (!c->said)
		log_warn("group %s: %s: %s; what is dirty travels without being compared", c->group, what, why);
	c->said = true;
}

static void open_frames(struct compare *c)
{
	for (uint32_t i = 0; i < c->view.hdr.frames; i++) {
		const struct frame_hdr *h = c->view.frame[i];
		uint8_t *sealed = c->map + ((const uint8_t *)(h + 1) - c->map);
		struct seal *s = seals_get(c->seals, h->session);

		c->opened[i] = s && !seal_open(s, h->frame_no, 1, h, sizeof(*h), sealed, h->digest_bytes,
					       sealed + h->digest_bytes, sealed);
		if (!c->opened[i])
			say(c, "the vault's digests cannot be opened", "another key sealed them, or they are damaged");
	}
}

/* ---------------------------------------------------------------- windows */

static void ask(struct window *w);

/* Whole blocks of one extent; a window begins at a block */
static void take_extent(struct window *w, uint64_t sector, const struct map_extent *e, const uint8_t *digests)
{
	uint64_t block = (sector + ASR_BLOCK_SECTORS - 1) / ASR_BLOCK_SECTORS - w->sector / ASR_BLOCK_SECTORS;
	uint32_t n = wire_blocks(sector, e->sectors);

	if (e->kind == MAP_ZEROES || e->kind == MAP_NEVER)
		memset(w->how + block, e->kind == MAP_ZEROES ? ZERO : NEVER, n);
	if (e->kind != MAP_DATA || !digests)
		return;
	memset(w->how + block, DIGEST, n);
	memcpy(w->digest[block], digests + e->digest * ASR_DIGEST_BYTES, n * ASR_DIGEST_BYTES);
}

static void take_map(struct compare *c, struct window *w)
{
	const struct map_view *v = &c->view;
	uint64_t sector = v->hdr.sector;

	open_frames(c);
	for (uint32_t i = 0; i < v->hdr.extents; i++) {
		const struct map_extent *e = &v->extents[i];
		take_extent(w, sector, e, e->kind == MAP_DATA && c->opened[e->frame] ?
			    (const uint8_t *)(v->frame[e->frame] + 1) : NULL);
		sector += e->sectors;
	}
	w->answered = sector;
	if (v->hdr.frame_no > w->frame_no)
		w->frame_no = v->hdr.frame_no;
}

int compare_map(struct compare *c, const uint8_t *body, size_t bytes)
{
	struct why why;

	c->has_map = false;
	if (bytes <= MAP_BYTES_MAX)
		memcpy(c->map, body, bytes);
	if (wire_map_parse(c->map, bytes, &c->view, &why)) {
		log_err("group %s: the vault sent %s", c->group, why.text);
		return -EPROTO;
	}
	c->has_map = true;
	return 0;
}

static bool map_fits(const struct compare *c, const struct window *w)
{
	const struct msg_map *h = &c->view.hdr;

	return c->has_map && w->slot == h->disk && w->answered == h->sector && h->sectors <= w->end - w->answered;
}

static void replied(int err, json_t *p, const struct why *why, void *arg)
{
	struct window *w = arg;
	struct compare *c = w->compare;

	if (w->state != WINDOW_ASKED)
		return;
	if (!err && map_fits(c, w))
		take_map(c, w);
	c->has_map &= err != 0;
	if (err == -EREMOTEIO) {
		c->silent |= !strncmp(why->text, "unknown-method", 14);
		say(c, "the vault does not compare", c->silent ? "its software is older" : why->text);
	} else if (!err && w->answered > w->asked && w->answered < w->end) {
		ask(w);		/* the answer did not fit in one message */
		c->kick(c->arg);
		return;
	}
	w->state = WINDOW_READY;
	w->known = w->answered > w->sector;
	c->kick(c->arg);
}

static void ask(struct window *w)
{
	struct compare *c = w->compare;
	char stream[2 * ASR_UUID_BYTES + 1];
	int r = -EOPNOTSUPP;

	hex_encode(c->stream, ASR_UUID_BYTES, stream);
	w->asked = w->answered;
	w->state = WINDOW_ASKED;
	if (!c->silent)
		r = ship_call(c->ship, "digest.map", json_pack("{s:s, s:I, s:s, s:I, s:I}", "stream", stream,
			      "disk", (json_int_t)w->slot, "name", w->name, "sector", (json_int_t)w->answered,
			      "sectors", (json_int_t)(w->end - w->answered)), replied, w);
	if (!r)
		return;
	w->state = WINDOW_READY;
	w->known = w->answered > w->sector;
}

void compare_ask(struct compare *c, struct window *w, uint64_t sent_frame)
{
	w->compare = c;
	w->answered = w->sector;
	w->frame_no = sent_frame;
	memset(w->spoiled, 0, sizeof(w->spoiled));
	memset(w->how, UNKNOWN, sizeof(w->how));
	w->next = c->windows;
	c->windows = w;
	ask(w);
}

void compare_forget(struct window *w)
{
	struct window **p;

	if (w->state == WINDOW_FREE)
		return;
	for (p = &w->compare->windows; *p != w; p = &(*p)->next)
		;
	*p = w->next;
	if (w->state == WINDOW_ASKED)
		ship_forget(w->compare->ship, w);
	w->state = WINDOW_FREE;
}

void compare_saw(struct compare *c, const struct window *except, uint16_t disk, uint64_t sector, uint64_t sectors)
{
	for (struct window *w = c->windows; w; w = w->next) {
		uint64_t end = sector + sectors < w->end ? sector + sectors : w->end, from;

		if (w == except || w->slot != disk || sector >= w->end || end <= w->sector)
			continue;
		from = sector > w->sector ? sector - w->sector : 0;
		for (uint64_t i = from / ASR_CHUNK_SECTORS; i * ASR_CHUNK_SECTORS < end - w->sector; i++)
			w->spoiled[i / 64] |= 1ull << i % 64;
	}
}

bool compare_spoiled(const struct window *w, uint64_t sector)
{
	uint64_t i = (sector - w->sector) / ASR_CHUNK_SECTORS;

	return w->spoiled[i / 64] >> i % 64 & 1;
}

enum compare_result compare_block(const struct window *w, uint64_t sector, const uint8_t *data)
{
	uint64_t block = (sector - w->sector) / ASR_BLOCK_SECTORS;
	XXH128_canonical_t d;

	if (!w->known || w->how[block] == UNKNOWN || compare_spoiled(w, sector))
		return COMPARE_UNKNOWN;
	if (w->how[block] == NEVER)
		return batch_is_zero(data, 4096) ? COMPARE_ABSENT : COMPARE_EXTRA;
	if (w->how[block] == ZERO)
		return batch_is_zero(data, 4096) ? COMPARE_SAME : COMPARE_DIFFERS;
	XXH128_canonicalFromHash(&d, XXH3_128bits(data, 4096));
	return memcmp(&d, w->digest[block], ASR_DIGEST_BYTES) ? COMPARE_DIFFERS : COMPARE_SAME;
}

/* ------------------------------------------------------------------- life */

int compare_create(struct ship *ship, const char *group, const uint8_t stream[ASR_UUID_BYTES],
		   const uint8_t key[ASR_KEY_BYTES], kick_fn *kick, void *arg, struct compare **out)
{
	struct compare *c = calloc(1, sizeof(*c));

	if (!c || !(c->group = strdup(group)) || !(c->map = malloc(MAP_BYTES_MAX)) ||
	    seals_create(key, &c->seals)) {
		compare_destroy(c);
		return -ENOMEM;
	}
	c->ship = ship;
	memcpy(c->stream, stream, ASR_UUID_BYTES);
	c->kick = kick;
	c->arg = arg;
	*out = c;
	return 0;
}

void compare_lost(struct compare *c)
{
	while (c->windows)
		compare_forget(c->windows);
	c->silent = c->said = c->has_map = false;
}

void compare_destroy(struct compare *c)
{
	if (!c)
		return;
	compare_lost(c);
	seals_destroy(c->seals);
	free(c->map);
	free(c->group);
	free(c);
}
