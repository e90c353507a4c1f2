// SPDX-License-Identifier: Apache-2.0
/*
 * Recovery points: which moments there are, and where in the stream one is.
 *
 * Design: a stream is consistent in intervals; the events in the footers say
 * where one begins (RESYNC_END) and ends (RESYNC_BEGIN, STATE to TRACK, a disk
 * that came or grew). Every position inside an interval is a point. A place
 * in a stream is (frame number, records of it that are in), so that records
 * which share a sequence number, as resync's do, are told apart.
 *
 *   seq:N   the last place of sequence N or less, in the newest interval that
 *           holds N
 *   time:T  behind the last record with a time at or before T; clocks may step
 *           back, and then the later of two moments of one name is meant
 *   name:X  behind the newest mark X
 *   latest  the end of the newest interval
 *
 * Invariants: no place outside an interval is ever returned.
 *
 * Context: reads at most one segment's tables and one frame per resolve.
 */
#include "vault.h"

#include <errno.h>
#include <string.h>

/* A place: all frames before frame_no, and records of that one. Ordered. */
struct place {
	uint64_t frame_no;
	uint32_t records;
};

struct span {
	struct place from, to;		/* first and last place of the interval */
	struct point_interval i;
};

struct spans {
	struct span *span;
	size_t count;
	const char *lost;		/* why the stream was inconsistent, newest */
};

static int place_cmp(struct place a, struct place b)
{
	if (a.frame_no != b.frame_no)
		return a.frame_no < b.frame_no ? -1 : 1;
	return a.records < b.records ? -1 : a.records > b.records;
}

static const char *loss_text(const struct seg_event *e)
{
	switch (e->kind) {
	case ASR_KIND_RESYNC_BEGIN:
		return "a resync was under way";
	case ASR_KIND_STATE:
		if (e->flags == ASR_WHY_START)
			return "capture had begun anew and the disks were not copied yet";
		return e->flags == ASR_WHY_RING_FULL ? "the ring was full and writes were only tracked" :
		       "writes were only tracked, not captured";
	default:
		return "a disk had been added or had grown and was not copied yet";
	}
}

static struct span *span_add(struct spans *s)
{
	struct span *more = reallocarray(s->span, s->count + 1, sizeof(*more));

	if (!more)
		return NULL;
	s->span = more;
	memset(&more[s->count], 0, sizeof(*more));
	return &more[s->count++];
}

/* One event: does it begin or end an interval? writes: content records before the segment */
static int span_event(struct spans *s, const struct index_seg *seg, const struct seg_event *e, uint64_t writes)
{
	struct span *last = s->count ? &s->span[s->count - 1] : NULL;
	uint64_t frame_no = seg->hdr.first_frame_no + e->frame;
	bool open = last && last->i.open;

	if (e->consistency == CONSISTENCY_REACHED && !open) {
		last = span_add(s);
		if (!last)
			return -ENOMEM;
		last->from = (struct place){ frame_no, e->record + 1u };
		last->i = (struct point_interval){ .from_seq = e->seq, .from_time_ns = e->time_ns, .open = true,
						   .writes = writes + e->writes };
	} else if (e->consistency == CONSISTENCY_LOST) {
		s->lost = loss_text(e);
		if (!open)
			return 0;
		last->to = (struct place){ frame_no, e->record };
		last->i.to_seq = e->prev_seq;
		last->i.to_time_ns = e->prev_time_ns;
		last->i.writes = writes + e->writes - last->i.writes;
		last->i.end_reason = s->lost;
		last->i.open = false;
		if (!e->prev_seq)
			s->count--;	/* before the first ring record: consistent, but of nothing */
	}
	return 0;
}

/* All consistent intervals of a stream, oldest first */
static int spans_make(const struct index_stream *st, struct spans *s)
{
	uint64_t writes = 0;
	struct span *last;

	memset(s, 0, sizeof(*s));
	s->lost = "the first copy was not complete";
	if (st->count && st->segs[0].table.foot.begin_consistent) {
		const struct seg_foot *f = &st->segs[0].table.foot;

		last = span_add(s);
		if (!last)
			return -ENOMEM;
		last->from = (struct place){ st->segs[0].hdr.first_frame_no, 1 };
		last->i = (struct point_interval){ .from_seq = f->first_seq, .open = true,
						   .from_time_ns = f->least_time_ns };
	}
	for (size_t i = 0; i < st->count; i++) {
		const struct index_seg *seg = &st->segs[i];

		for (uint32_t k = 0; k < seg->table.foot.events; k++)
			if (span_event(s, seg, &seg->table.events[k], writes))
				return -ENOMEM;
		writes += seg->table.foot.writes;
	}
	last = s->count ? &s->span[s->count - 1] : NULL;
	if (last && last->i.open && !st->state.last_seq) {
		s->count--;		/* no disk yet: consistent, but of nothing */
	} else if (last && last->i.open) {
		last->to = (struct place){ st->state.next_frame_no, 0 };
		last->i.to_seq = st->state.last_seq;
		last->i.to_time_ns = st->state.last_time_ns;
		last->i.writes = writes - last->i.writes;
	}
	return 0;
}

/* Why a place in no interval is in none */
static const char *lost_at(const struct index_stream *st, struct place p)
{
	const char *text = "the first copy was not complete";

	for (size_t i = 0; i < st->count; i++) {
		const struct index_seg *seg = &st->segs[i];

		for (uint32_t k = 0; k < seg->table.foot.events; k++) {
			const struct seg_event *e = &seg->table.events[k];
			struct place at = { seg->hdr.first_frame_no + e->frame, e->record + 1u };

			if (place_cmp(at, p) > 0)
				return text;
			if (e->consistency == CONSISTENCY_LOST)
				text = loss_text(e);
		}
	}
	return text;
}

/* ----------------------------------------------------------------- resolving */

struct resolver {
	struct index *ix;
	struct index_stream *st;
	struct spans spans;
	struct why *why;
};

static char *moment(uint64_t seq, uint64_t ns, char out[80])
{
	char when[40];

	snprintf(out, 80, "seq %llu (%s)", (unsigned long long)seq, time_format(ns, when));
	return out;
}

static int no_point_yet(struct resolver *r)
{
	return why_set(r->why, ESTALE, "group %s has no consistent point yet: %s", r->ix->name, r->spans.lost);
}

static int before_window(struct resolver *r)
{
	char a[80], b[80];
	const struct point_interval *i = &r->spans.span[0].i, *n = &r->spans.span[r->spans.count - 1].i;

	return why_set(r->why, ENOENT, "that is before the window: points reach from %s to %s",
		       moment(i->from_seq, i->from_time_ns, a), moment(n->to_seq, n->to_time_ns, b));
}

static int inconsistent(struct resolver *r, struct place p)
{
	const struct span *before = NULL, *after = NULL;
	char a[80], b[80];

	for (size_t i = 0; i < r->spans.count; i++) {
		const struct span *s = &r->spans.span[i];

		if (place_cmp(s->to, p) <= 0)
			before = s;
		else if (!after && place_cmp(s->from, p) > 0)
			after = s;
	}
	return why_set(r->why, ESTALE, "the group was not consistent then: %s. Nearest points: before, %s; "
		       "after, %s", lost_at(r->st, p),
		       before ? moment(before->i.to_seq, before->i.to_time_ns, a) : "none",
		       after ? moment(after->i.from_seq, after->i.from_time_ns, b) : "none");
}

static struct index_seg *seg_of(struct index_stream *st, uint64_t frame_no)
{
	for (size_t i = st->count; i > 0; i--)
		if (st->segs[i - 1].hdr.first_frame_no <= frame_no)
			return &st->segs[i - 1];
	return NULL;
}

/* Reads a frame of the stream; the view lives as long as *buf */
static int frame_at(struct resolver *r, uint64_t frame_no, uint8_t **buf, struct frame_view *v)
{
	struct index_seg *seg = seg_of(r->st, frame_no);
	int ret;

	if (!seg)
		return why_set(r->why, EBADMSG, "frame %llu is missing", (unsigned long long)frame_no);
	ret = index_seg_load(r->ix, seg, r->why);
	if (ret)
		return ret;
	if (frame_no - seg->hdr.first_frame_no >= seg->table.foot.frames)	/* it has changed since */
		return why_set(r->why, EBADMSG, "segment %s: frame %llu is missing", seg->file,
			       (unsigned long long)frame_no);
	*buf = aligned_alloc(8, (INDEX_FRAME_ROOM + 7) & ~(size_t)7);
	if (!*buf)
		return why_set(r->why, ENOMEM, "out of memory");
	return index_frame_read(r->ix, seg, &seg->table.frames[frame_no - seg->hdr.first_frame_no], frame_no,
				index_prev_tag(seg, (uint32_t)(frame_no - seg->hdr.first_frame_no)), *buf, v, r->why);
}

/* The point at a place that is in an interval. A place before a frame's first record is behind
   the last of the frame before it. */
static int point_at(struct resolver *r, struct place p, struct point *out)
{
	cleanup_free uint8_t *buf = NULL;
	struct frame_view v;
	int ret;

	if (!p.records)
		p.frame_no--;
	ret = frame_at(r, p.frame_no, &buf, &v);
	if (ret)
		return ret;
	if (!p.records)
		p.records = v.hdr.records;
	out->stream = (size_t)(r->st - r->ix->streams);
	out->frame_no = p.frame_no;
	out->records = p.records;
	out->seq = v.recs[p.records - 1].seq;
	out->time_ns = v.recs[p.records - 1].time_ns;
	return 0;
}

/* Is p in an interval? Then its point, else the reason. */
static int point_in(struct resolver *r, struct place p, struct point *out)
{
	for (size_t i = r->spans.count; i > 0; i--) {
		const struct span *s = &r->spans.span[i - 1];

		if (place_cmp(s->from, p) <= 0 && place_cmp(p, s->to) <= 0)
			return point_at(r, p, out);
	}
	if (r->spans.count && place_cmp(p, r->spans.span[0].from) < 0)
		return before_window(r);
	return inconsistent(r, p);
}

/*
 * The last frame whose least (seq or time) is at or below limit, and in it the
 * place behind the last record at or below. by_time: else by seq. frame_no 0:
 * none. Within a stream least times may fall, seq does not.
 */
static int place_find(struct resolver *r, uint64_t limit, bool by_time, struct place *p)
{
	for (size_t i = r->st->count; i > 0; i--) {
		struct index_seg *seg = &r->st->segs[i - 1];
		const struct seg_foot *f = &seg->table.foot;
		cleanup_free uint8_t *buf = NULL;
		struct frame_view v;
		uint32_t n;
		int ret;

		if ((by_time ? f->least_time_ns : f->first_seq) > limit)
			continue;
		ret = index_seg_load(r->ix, seg, r->why);
		if (ret)
			return ret;
		for (n = f->frames; n > 1; n--)
			if ((by_time ? seg->table.frames[n - 1].least_time_ns :
			     seg->table.frames[n - 1].first_seq) <= limit)
				break;
		p->frame_no = seg->hdr.first_frame_no + n - 1;
		ret = frame_at(r, p->frame_no, &buf, &v);
		if (ret)
			return ret;
		p->records = v.hdr.records;
		while (p->records && (by_time ? v.recs[p->records - 1].time_ns :
				      v.recs[p->records - 1].seq) > limit)
			p->records--;
		return 0;
	}
	p->frame_no = 0;
	return 0;
}

static int resolve_latest(struct resolver *r, struct point *p)
{
	return point_at(r, r->spans.span[r->spans.count - 1].to, p);
}

static int resolve_seq(struct resolver *r, const char *text, struct point *p)
{
	struct place at;
	uint64_t seq;
	char *end, a[80];
	int ret;

	errno = 0;
	seq = strtoull(text, &end, 10);
	if (errno || *end || *text < '0' || *text > '9')
		return why_set(r->why, EINVAL, "bad point \"seq:%.40s\": seq:N wants a number", text);
	if (seq > r->st->state.last_seq)
		return why_set(r->why, ERANGE, "that is in the future: the vault's newest record is %s",
			       moment(r->st->state.last_seq, r->st->state.last_time_ns, a));
	ret = place_find(r, seq, false, &at);
	if (ret)
		return ret;
	if (!at.frame_no || seq < r->spans.span[0].i.from_seq)
		return before_window(r);
	/* the interval that holds seq may end before the last place of seq */
	for (size_t i = r->spans.count; i > 0; i--) {
		const struct span *s = &r->spans.span[i - 1];

		if (s->i.from_seq <= seq && seq <= s->i.to_seq)
			return point_at(r, place_cmp(at, s->to) > 0 ? s->to : at, p);
	}
	return inconsistent(r, at);
}

static int resolve_time(struct resolver *r, const char *text, struct point *p)
{
	uint64_t ns, now = now_real_ns();
	struct place at;
	char a[80];
	int ret;

	if (time_parse(text, &ns))
		return why_set(r->why, EINVAL, "bad point \"time:%.60s\": time: wants RFC 3339, for example "
			       "time:2026-01-02T03:04:05Z", text);
	if (ns > now && ns > r->st->state.last_time_ns)
		return why_set(r->why, ERANGE, "that is in the future: the vault's newest record is %s",
			       moment(r->st->state.last_seq, r->st->state.last_time_ns, a));
	ret = place_find(r, ns, true, &at);
	if (ret)
		return ret;
	return at.frame_no ? point_in(r, at, p) : before_window(r);
}

static int resolve_name(struct resolver *r, const char *name, struct point *p)
{
	char known[300] = "";
	size_t n = 0;

	for (size_t i = r->st->count; i > 0; i--) {
		const struct index_seg *seg = &r->st->segs[i - 1];

		for (uint32_t k = seg->table.foot.events; k > 0; k--) {
			const struct seg_event *e = &seg->table.events[k - 1];

			if (e->kind != ASR_KIND_MARK || e->flags & ASR_MARK_DECLARE)
				continue;
			if (!strcmp(e->name, name)) {
				snprintf(p->name, sizeof(p->name), "%s", name);
				return point_in(r, (struct place){ seg->hdr.first_frame_no + e->frame,
								   e->record + 1u }, p);
			}
			if (n + strlen(e->name) + 3 < sizeof(known))
				n += (size_t)snprintf(known + n, sizeof(known) - n, "%s%s", n ? ", " : "",
						      e->name);
		}
	}
	return why_set(r->why, ENOENT, "no mark \"%.64s\" in group %s; newest marks: %s", name, r->ix->name,
		       n ? known : "none");
}

static int no_stream(const struct index *ix, struct why *why)
{
	return why_set(why, ESTALE, "nothing has arrived for group %s yet", ix->name);
}

static int resolver_begin(struct index *ix, size_t stream, struct resolver *r, struct why *why)
{
	*r = (struct resolver){ .ix = ix, .why = why };
	if (stream >= ix->count || !ix->streams[stream].count)
		return no_stream(ix, why);
	r->st = &ix->streams[stream];
	return spans_make(r->st, &r->spans) ? why_set(why, ENOMEM, "out of memory") : 0;
}

int point_in_stream(struct index *ix, size_t stream, const char *text, struct point *p, struct why *why)
{
	struct resolver r;
	int ret = resolver_begin(ix, stream, &r, why);

	memset(p, 0, sizeof(*p));
	if (ret)
		;
	else if (strcmp(text, "latest") && strncmp(text, "seq:", 4) && strncmp(text, "time:", 5) &&
		 strncmp(text, "name:", 5))
		ret = why_set(why, EINVAL, "bad point \"%.60s\": use latest, seq:N, time:RFC3339 or name:X", text);
	else if (!r.spans.count)
		ret = no_point_yet(&r);
	else if (!strcmp(text, "latest"))
		ret = resolve_latest(&r, p);
	else if (*text == 's')
		ret = resolve_seq(&r, text + 4, p);
	else if (*text == 't')
		ret = resolve_time(&r, text + 5, p);
	else
		ret = resolve_name(&r, text + 5, p);
	free(r.spans.span);
	return ret;
}

int point_behind(struct index *ix, size_t stream, size_t seg, uint32_t event, struct point *p, struct why *why)
{
	const struct index_seg *s = &ix->streams[stream].segs[seg];
	const struct seg_event *e = &s->table.events[event];
	struct resolver r;
	int ret = resolver_begin(ix, stream, &r, why);

	memset(p, 0, sizeof(*p));
	if (!ret)
		ret = point_in(&r, (struct place){ s->hdr.first_frame_no + e->frame, e->record + 1u }, p);
	snprintf(p->name, sizeof(p->name), "%s", e->name);
	free(r.spans.span);
	return ret;
}

int point_resolve(struct index *ix, const char *text, const char *disk, struct point *p, struct why *why)
{
	if (cut_wanted(ix))
		return cut_resolve(ix, text, disk, p, why);
	return point_in_stream(ix, 0, strncmp(text, "host:", 5) ? text : text + 5, p, why);
}

const char *point_disk_name(const char *disk)
{
	const char *slash = strchr(disk, '/');

	return slash ? slash + 1 : disk;
}

/* ------------------------------------------------------------------- listing */

#define DECLARED_WITHIN	1024u	/* marks: a declaration is not about an older one */

/* Of the newest mark of that id: a group that was made anew counts from 1 again */
static void declare(struct point_list *list, const struct seg_event *e)
{
	for (size_t i = list->mark_count; i > 0 && list->mark_count - i < DECLARED_WITHIN; i--) {
		struct point_mark *m = &list->marks[i - 1];

		if (m->id != e->value)
			continue;
		if (!strcmp(m->name, e->name)) {
			m->app |= e->flags & ASR_MARK_APP;
			m->group |= e->flags & ASR_MARK_GROUP;
		}
		return;
	}
}

static int marks_make(const struct index_stream *st, struct point_list *list)
{
	for (size_t i = 0; i < st->count; i++) {
		const struct seg_table *t = &st->segs[i].table;

		for (uint32_t k = 0; k < t->foot.events; k++) {
			const struct seg_event *e = &t->events[k];
			struct point_mark *m;

			if (e->kind != ASR_KIND_MARK)
				continue;
			if (e->flags & ASR_MARK_DECLARE) {
				declare(list, e);
				continue;
			}
			m = reallocarray(list->marks, list->mark_count + 1, sizeof(*m));
			if (!m)
				return -ENOMEM;
			list->marks = m;
			m += list->mark_count++;
			*m = (struct point_mark){ .id = e->value, .seq = e->seq, .time_ns = e->time_ns,
						  .consistent = e->consistent,
						  .held = e->flags & ASR_MARK_HOLD };
			memcpy(m->name, e->name, sizeof(m->name));
		}
	}
	return 0;
}

int point_list_make(struct index *ix, struct point_list *list, struct why *why)
{
	struct index_stream *st = ix->streams;
	struct spans s = { 0 };

	memset(list, 0, sizeof(*list));
	if (!ix->count)
		return 0;
	if (!st->count)
		return no_stream(ix, why);
	list->intervals = spans_make(st, &s) ? NULL : calloc(s.count + 1, sizeof(*list->intervals));
	if (!list->intervals || marks_make(st, list)) {
		free(s.span);
		point_list_free(list);
		return why_set(why, ENOMEM, "out of memory");
	}
	for (size_t i = 0; i < s.count; i++)
		list->intervals[i] = s.span[i].i;
	list->interval_count = s.count;
	free(s.span);
	return 0;
}

void point_list_free(struct point_list *list)
{
	free(list->intervals);
	free(list->marks);
	memset(list, 0, sizeof(*list));
}

/* Disks in use behind a place: those the segment began with, then its events */
int point_disks(struct index *ix, const struct point *p, struct point_disk **out, size_t *count,
		struct why *why)
{
	struct index_stream *st = &ix->streams[p->stream];
	struct index_seg *seg = seg_of(st, p->frame_no);
	struct seg_state *state = calloc(1, sizeof(*state));
	struct point_disk *d;

	if (!seg || !state) {
		free(state);
		return why_set(why, ENOMEM, "out of memory");
	}
	for (uint32_t i = 0; i < seg->table.foot.disks; i++)
		seg_state_disk(state, seg->table.disks[i].disk, seg->table.disks[i].sectors,
			       seg->table.disks[i].name);
	for (uint32_t k = 0; k < seg->table.foot.events; k++) {
		const struct seg_event *e = &seg->table.events[k];
		struct place at = { seg->hdr.first_frame_no + e->frame, e->record + 1u };

		if (place_cmp(at, (struct place){ p->frame_no, p->records }) > 0)
			break;
		seg_state_event(state, e);
	}
	d = calloc(state->disks + 1, sizeof(*d));
	for (uint32_t i = 0; d && i < state->disks; i++) {
		d[i] = (struct point_disk){ .slot = state->disk[i].disk, .sectors = state->disk[i].sectors };
		memcpy(d[i].name, state->disk[i].name, sizeof(d[i].name));
	}
	*out = d;
	*count = state->disks;
	free(state);
	return d ? 0 : why_set(why, ENOMEM, "out of memory");
}

static json_t *time_json(uint64_t ns)
{
	char when[40];

	return json_string(time_format(ns, when));
}

static json_t *streams_json(const struct index *ix)
{
	json_t *list = json_array();
	char hex[33];

	for (size_t i = 0; i < ix->count; i++) {
		const struct index_stream *s = &ix->streams[i];

		hex_encode(s->uuid, ASR_UUID_BYTES, hex);
		json_array_append_new(list, json_pack("{s:s,s:s,s:b,s:I,s:I,s:o,s:b,s:b}", "stream", hex, "host",
			index_host(ix, i), "member", index_is_member(ix, i), "frames",
			(json_int_t)s->state.next_frame_no - 1, "last_seq", (json_int_t)s->state.last_seq,
			"last_time", time_json(s->state.last_time_ns), "consistent", s->state.consistent,
			"torn", s->torn));
	}
	return list;
}

static json_t *disks_json(const struct index *ix)
{
	json_t *list = json_array();

	for (size_t i = 0; i < ix->count; i++)
		for (uint32_t k = 0; k < ix->streams[i].state.disks; k++) {
			const struct seg_disk *d = &ix->streams[i].state.disk[k];

			json_array_append_new(list, json_pack("{s:s,s:I,s:s}", "name", d->name, "bytes",
							      (json_int_t)d->sectors * 512, "host",
							      index_host(ix, i)));
		}
	return list;
}

json_t *point_list_json(struct index *ix, struct why *why)
{
	json_t *intervals = json_array(), *marks = json_array();
	cleanup_json cuts = NULL;
	struct point_list list = { .marks = NULL };
	char hex[33];

	if (cut_wanted(ix) ? !(cuts = cut_list_json(ix, why)) : point_list_make(ix, &list, why) != 0) {
		json_decref(intervals);
		json_decref(marks);
		return NULL;
	}
	for (size_t n = 0; n < list.interval_count; n++) {
		const struct point_interval *i = &list.intervals[n];

		json_array_append_new(intervals, json_pack("{s:I,s:I,s:o,s:o,s:I,s:b,s:s?}", "from_seq",
			(json_int_t)i->from_seq, "to_seq", (json_int_t)i->to_seq, "from_time",
			time_json(i->from_time_ns), "to_time", time_json(i->to_time_ns), "writes",
			(json_int_t)i->writes, "open", i->open, "end_reason", i->end_reason));
	}
	for (size_t n = 0; n < list.mark_count; n++) {
		const struct point_mark *m = &list.marks[n];

		json_array_append_new(marks, json_pack("{s:s,s:I,s:I,s:o,s:b,s:b,s:s}", "name", m->name, "id",
			(json_int_t)m->id, "seq", (json_int_t)m->seq, "time", time_json(m->time_ns),
			"consistent", m->consistent, "held", m->held, "consistency",
			!m->consistent ? "none" : m->app ? "app" : "crash"));
	}
	point_list_free(&list);
	hex_encode(ix->uuid, ASR_UUID_BYTES, hex);
	json_array_extend(marks, json_object_get(cuts, "marks"));
	return json_pack("{s:s,s:s,s:o,s:o,s:o,s:o,s:O*}", "group", ix->name, "uuid", hex, "streams",
			 streams_json(ix), "disks", disks_json(ix), "intervals", intervals, "marks", marks, "points",
			 json_object_get(cuts, "points"));
}
