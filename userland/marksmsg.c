// SPDX-License-Identifier: Apache-2.0
/*
 * What hosts of one group say to each other, as JSON; and how long things took, as a histogram.
 *
 * Context. Pure. marks_msg_parse reads what other hosts have sent: it is fuzzed (tests/fuzz/peer.c).
 */
#include "marks.h"

#include <errno.h>
#include <string.h>

/* --------------------------------------------------------------- messages */

static const char *const kinds[] = {
	[MARKS_STATE] = "state", [MARKS_MARK] = "mark", [MARKS_PLACED] = "placed", [MARKS_REFUSED] = "refused",
	[MARKS_RELEASE] = "release", [MARKS_HELD] = "held", [MARKS_BROKEN] = "broken", [MARKS_DECLARE] = "declare",
	[MARKS_ASK] = "ask", [MARKS_DONE] = "done", [MARKS_FAILED] = "failed",
	[MARKS_QUIET] = "quiet", [MARKS_IS_QUIET] = "is-quiet", [MARKS_LOUD] = "loud", [MARKS_IS_LOUD] = "is-loud",
};
#define KINDS	(sizeof(kinds) / sizeof(kinds[0]))

/* It is shown to people, and in logs; and half a letter is no JSON */
void marks_clean(char *text)
{
	for (char *p = text; *p; p++)
		if ((unsigned char)*p < ' ' || (unsigned char)*p >= 0x7f)
			*p = '?';
}

json_t *marks_msg_json(const struct marks_msg *m, const uint8_t group[ASR_UUID_BYTES])
{
	char hex[2 * ASR_UUID_BYTES + 1];

	hex_encode(group, ASR_UUID_BYTES, hex);
	return json_pack("{s:s, s:s, s:s, s:b, s:I, s:I, s:I, s:I, s:I, s:s}", "group", hex, "kind", kinds[m->kind],
			 "name", m->name, "ready", m->ready, "epoch", (json_int_t)m->epoch, "incarnation",
			 (json_int_t)m->incarnation, "hold_ns", (json_int_t)m->hold_ns, "time_ns",
			 (json_int_t)m->time_ns, "number", (json_int_t)m->number, "text", m->text);
}

int marks_msg_parse(const json_t *j, struct marks_msg *m, uint8_t group[ASR_UUID_BYTES])
{
	const char *hex, *kind, *name, *text;
	json_int_t epoch, incarnation, hold, time, number;
	int ready;

	memset(m, 0, sizeof(*m));
	if (json_unpack((json_t *)(uintptr_t)j, "{s:s, s:s, s:s, s:b, s:I, s:I, s:I, s:I, s:I, s:s}", "group", &hex,
			"kind", &kind, "name", &name, "ready", &ready, "epoch", &epoch, "incarnation", &incarnation,
			"hold_ns", &hold, "time_ns", &time, "number", &number, "text", &text) ||
	    hex_decode(hex, group, ASR_UUID_BYTES) || (*name && name_check("mark", name, NULL)))
		return -EBADMSG;
	for (size_t i = 1; i < KINDS && !m->kind; i++)
		if (!strcmp(kind, kinds[i]))
			m->kind = (enum marks_kind)i;
	if (!m->kind || (m->kind != MARKS_STATE && !*name))
		return -EBADMSG;
	snprintf(m->name, sizeof(m->name), "%s", name);
	snprintf(m->text, sizeof(m->text), "%s", text);
	marks_clean(m->text);
	m->ready = ready;
	m->epoch = (uint64_t)epoch;
	m->incarnation = (uint64_t)incarnation;
	m->hold_ns = (uint64_t)hold;
	m->time_ns = (uint64_t)time;
	m->number = (uint64_t)number;
	return 0;
}

/* -------------------------------------------------------------- histogram */

static unsigned int bucket_of(uint64_t ns)
{
	uint64_t us = ns / 1000;
	unsigned int octave, i;

	if (us < 8)
		return (unsigned int)us;
	octave = 63 - (unsigned int)__builtin_clzll(us);	/* 3 and more */
	i = 8 * (octave - 2) + (unsigned int)(us >> (octave - 3) & 7);
	return i < HOLDS_BUCKETS ? i : HOLDS_BUCKETS - 1;
}

/* First value that is too great for it, in us */
static uint64_t bucket_end(unsigned int i)
{
	return i < 8 ? i + 1 : (uint64_t)(8 + i % 8 + 1) << (i / 8 - 1);
}

void holds_add(struct holds *h, uint64_t ns, uint64_t times)
{
	if (!times)
		return;
	h->count += times;
	h->bucket[bucket_of(ns)] += times;
	if (ns > h->max_ns)
		h->max_ns = ns;
}

uint64_t holds_quantile(const struct holds *h, double q)
{
	uint64_t below = 0, end;

	for (unsigned int i = 0; i < HOLDS_BUCKETS; i++) {
		below += h->bucket[i];
		if (h->count && (double)below >= q * (double)h->count) {
			end = bucket_end(i) * 1000;
			return end < h->max_ns ? end : h->max_ns;
		}
	}
	return h->max_ns;
}

json_t *holds_json(const struct holds *h)
{
	json_t *list = json_array();

	for (unsigned int i = 0; i < HOLDS_BUCKETS; i++)
		if (h->bucket[i])
			json_array_append_new(list, json_pack("{s:I, s:I}", "le_us", (json_int_t)bucket_end(i), "count",
							      (json_int_t)h->bucket[i]));
	return json_pack("{s:I, s:f, s:f, s:f, s:o}", "count", (json_int_t)h->count,
			 "p50_us", (double)holds_quantile(h, 0.5) / 1e3,
			 "p99_us", (double)holds_quantile(h, 0.99) / 1e3, "max_us", (double)h->max_ns / 1e3,
			 "buckets", list);
}
