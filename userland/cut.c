// SPDX-License-Identifier: Apache-2.0
/*
 * Points of a group that is spread over hosts: the marks that cut all of its streams at one moment.
 *
 * Design: a mark's name says which epoch of the members it was made for, and
 * group.json which streams these are. It is a point if each of those streams
 * has it, held and consistent there, and one of them has what was said of it
 * later: that all hosts held (a record that the kernel takes only if its own
 * hold lasted). One such record is enough, for a host may have died before it
 * wrote its own.
 *
 * While a group has been on one host alone, every moment is a point; which
 * epoch that was is known by the vault's clock. Host by host, every moment is one
 * always: "host:".
 *
 * Invariants: a mark that one of its streams lacks is never a point, whoever
 * declares it.
 *
 * Context: reads what index_open has read; a point reads a frame for each stream.
 */
#include "vault.h"

#include <errno.h>
#include <string.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

/* A mark, or what is said of one */
struct entry {
	uint64_t hash;			/* of the name */
	uint32_t stream, seg, event;
};

static const struct seg_event *event_of(const struct index *ix, const struct entry *e)
{
	return &ix->streams[e->stream].segs[e->seg].table.events[e->event];
}

static int entry_cmp(const void *a, const void *b)
{
	const struct entry *x = a, *y = b;

	if (x->hash != y->hash)
		return x->hash < y->hash ? -1 : 1;
	if (x->stream != y->stream)
		return x->stream < y->stream ? -1 : 1;
	if (x->seg != y->seg)
		return x->seg < y->seg ? -1 : 1;
	return x->event < y->event ? -1 : x->event > y->event;
}

static bool is_group_mark(const struct seg_event *e)
{
	char name[ASR_NAME_BYTES];
	uint64_t epoch;

	return e->kind == ASR_KIND_MARK && wire_group_mark_parse(e->name, name, &epoch);
}

/* All marks of all streams that are to cut them, by name */
static int entries_make(const struct index *ix, struct entry **out, size_t *count)
{
	struct entry *list = NULL, *more;
	size_t n = 0, room = 0;

	for (uint32_t s = 0; s < ix->count; s++)
		for (uint32_t k = 0; k < ix->streams[s].count; k++) {
			const struct seg_table *t = &ix->streams[s].segs[k].table;

			for (uint32_t e = 0; e < t->foot.events; e++) {
				if (!is_group_mark(&t->events[e]))
					continue;
				if (n == room) {
					room = room ? 2 * room : 1024;
					more = reallocarray(list, room, sizeof(*list));
					if (!more) {
						free(list);
						return -ENOMEM;
					}
					list = more;
				}
				list[n++] = (struct entry){ XXH3_64bits(t->events[e].name,
							    strnlen(t->events[e].name, ASR_NAME_BYTES)), s, k, e };
			}
		}
	if (n)
		qsort(list, n, sizeof(*list), entry_cmp);
	*out = list;
	*count = n;
	return 0;
}

/* What one stream has of one name: its mark, and what is said of it behind */
struct part {
	const struct entry *mark;	/* NULL: none that is whole */
	unsigned int marks;
	bool group, app;
};

static void part_add(const struct index *ix, struct part *p, const struct entry *e)
{
	const struct seg_event *event = event_of(ix, e);

	if (!(event->flags & ASR_MARK_DECLARE)) {
		p->marks++;
		p->mark = p->marks == 1 && event->flags & ASR_MARK_HOLD && event->consistent ? e : NULL;
	} else if (p->mark && event_of(ix, p->mark)->value == event->value) {
		p->group |= event->flags & ASR_MARK_GROUP;
		p->app |= event->flags & ASR_MARK_APP;
	}
}

/* Entries of one name: are they a point of all streams of their epoch? */
static bool cut_of(const struct index *ix, const struct entry *e, size_t n, struct part *parts, bool *in,
		   struct cut *c)
{
	const struct seg_event *first = event_of(ix, e);
	bool declared = false, any = false;

	memset(parts, 0, ix->count * sizeof(*parts));
	for (size_t i = 0; i < n; i++) {
		if (strcmp(event_of(ix, &e[i])->name, first->name))
			return false;	/* two names of one hash: neither is offered */
		part_add(ix, &parts[e[i].stream], &e[i]);
	}
	memcpy(c->name, first->name, sizeof(c->name));
	wire_group_mark_parse(first->name, (char[ASR_NAME_BYTES]){ 0 }, &c->epoch);
	c->hosts = index_epoch(ix, c->epoch, in);
	c->app = true;
	for (size_t s = 0; s < ix->count; s++) {
		c->at[s] = (struct cut_at){ 0, UINT32_MAX };
		if (!in[s])
			continue;
		if (!parts[s].mark)
			return false;
		c->at[s] = (struct cut_at){ parts[s].mark->seg, parts[s].mark->event };
		declared |= parts[s].group;
		c->app &= parts[s].app;
		if (!any || strcmp(index_host_id(ix, s), index_host_id(ix, c->first)) < 0)
			c->first = s;
		any = true;
	}
	if (any)
		c->time_ns = event_of(ix, parts[c->first].mark)->time_ns;
	return c->hosts > 1 && declared;	/* alone, a host makes no such mark */
}

static int cut_cmp(const void *a, const void *b)
{
	const struct cut *x = a, *y = b;

	/* as they stand in the stream, for a clock may step back; those of one epoch have one first stream */
	if (x->epoch != y->epoch)
		return x->epoch < y->epoch ? -1 : 1;
	if (x->at[x->first].seg != y->at[y->first].seg)
		return x->at[x->first].seg < y->at[y->first].seg ? -1 : 1;
	return x->at[x->first].event < y->at[y->first].event ? -1 : 1;
}

int cuts_make(struct index *ix, struct cuts *c, struct why *why)
{
	cleanup_free struct entry *list = NULL;
	cleanup_free struct part *parts = calloc(ix->count + 1, sizeof(*parts));
	cleanup_free bool *in = calloc(ix->count + 1, sizeof(*in));
	size_t n = 0, names = 0, to;

	memset(c, 0, sizeof(*c));
	if (!parts || !in || entries_make(ix, &list, &n))
		return why_set(why, ENOMEM, "out of memory");
	for (size_t i = 0; i < n; i++)
		names += !i || list[i].hash != list[i - 1].hash;
	c->cut = calloc(names + 1, sizeof(*c->cut));
	c->at = calloc(names * ix->count + 1, sizeof(*c->at));
	if (!c->cut || !c->at) {
		cuts_free(c);
		return why_set(why, ENOMEM, "out of memory");
	}
	for (size_t i = 0; i < n; i = to) {
		for (to = i + 1; to < n && list[to].hash == list[i].hash; to++)
			;
		c->cut[c->count].at = &c->at[c->count * ix->count];
		if (cut_of(ix, &list[i], to - i, parts, in, &c->cut[c->count]))
			c->count++;
		else
			c->broken++;
	}
	qsort(c->cut, c->count, sizeof(*c->cut), cut_cmp);
	return 0;
}

void cuts_free(struct cuts *c)
{
	free(c->cut);
	free(c->at);
	memset(c, 0, sizeof(*c));
}

bool cut_wanted(const struct index *ix)
{
	return ix->count > 1 || json_array_size(json_object_get(ix->group, "members")) > 1;
}

/* ----------------------------------------------------------------- resolving */

struct wish {
	struct index *ix;
	const char *disk;		/* DISK or HOST/DISK */
	struct point *p;
	struct why *why;
	size_t found;
	bool member;			/* whose stream p is in */
};

static bool of_host(const struct wish *w, size_t stream)
{
	const char *slash = strchr(w->disk, '/'), *host = index_host(w->ix, stream);

	return !slash || (strlen(host) == (size_t)(slash - w->disk) && !strncmp(host, w->disk, strlen(host)));
}

/*
 * Is the disk in the stream at that point? Then it is the one, if it is the only one. The stream of a host that is
 * in the group goes before one that was left, of a host that came back, say.
 */
static int consider(struct wish *w, const struct point *p)
{
	cleanup_free struct point_disk *disks = NULL;
	bool member = index_is_member(w->ix, p->stream);
	size_t count, i = 0;
	int ret = point_disks(w->ix, p, &disks, &count, w->why);

	while (!ret && i < count && strcmp(disks[i].name, point_disk_name(w->disk)))
		i++;
	if (ret || i == count || (w->found && w->member && !member))
		return ret;
	w->found = w->found && w->member == member ? w->found + 1 : 1;
	w->member = member;
	*w->p = *p;
	return 0;
}

static int chosen(const struct wish *w)
{
	if (w->found == 1)
		return 0;
	if (w->found)
		return why_set(w->why, EINVAL, "%zu hosts of group %s have a disk %.64s: say HOST/%.64s", w->found,
			       w->ix->name, point_disk_name(w->disk), point_disk_name(w->disk));
	return why_set(w->why, ENOENT, "group %s had no disk \"%.129s\" at that point", w->ix->name, w->disk);
}

static int of_cut(struct wish *w, const struct cut *c)
{
	struct point p;
	int ret;

	for (size_t s = 0; s < w->ix->count; s++) {
		if (c->at[s].event == UINT32_MAX || !of_host(w, s))
			continue;
		ret = point_behind(w->ix, s, c->at[s].seg, c->at[s].event, &p, w->why);
		if (!ret)
			ret = consider(w, &p);
		if (ret)
			return ret;
	}
	return chosen(w);
}

/* in: of which streams; NULL: of all */
static int of_streams(struct wish *w, const char *text, const bool *in)
{
	struct why first = { "" }, why = { "" };
	struct point p;
	int ret = 0, err;

	for (size_t s = 0; s < w->ix->count; s++) {
		if ((in && !in[s]) || !of_host(w, s))
			continue;
		err = point_in_stream(w->ix, s, text, &p, &why);
		if (!err)
			err = consider(w, &p);
		if (err && !ret) {
			ret = err;
			first = why;
		}
	}
	if (!w->found && ret)
		return why_set(w->why, -ret, "%s", first.text);
	return chosen(w);
}

static int none_yet(const struct wish *w, const struct cuts *c)
{
	return why_set(w->why, ESTALE, "group %s has no point of all its hosts%s; a disk's own host has points of its "
		       "own: host:latest, host:time:..., host:name:...", w->ix->name,
		       c->broken ? " (marks were made, but not by all of them)" : " yet");
}

static int by_time(struct wish *w, const struct cuts *c, uint64_t ns)
{
	char a[40], b[40];
	size_t i = c->count;

	if (!i)
		return none_yet(w, c);
	while (i && c->cut[i - 1].time_ns > ns)
		i--;
	if (i)
		return of_cut(w, &c->cut[i - 1]);
	return why_set(w->why, ENOENT, "that is before the window: points of all hosts reach from %s to %s",
		       time_format(c->cut[0].time_ns, a), time_format(c->cut[c->count - 1].time_ns, b));
}

/* Was the group on this stream's host alone when its mark was made? */
static bool made_alone(const struct index *ix, size_t stream, const struct seg_event *e, bool *in)
{
	return e->kind == ASR_KIND_MARK && !(e->flags & ASR_MARK_DECLARE) && !is_group_mark(e) &&
	       index_epoch(ix, index_epoch_at(ix, e->time_ns), in) == 1 && in[stream];
}

static int by_name(struct wish *w, const struct cuts *c, const char *name, bool *in)
{
	char plain[ASR_NAME_BYTES];
	struct point p;
	uint64_t epoch;
	int ret;

	for (size_t i = c->count; i > 0; i--) {
		wire_group_mark_parse(c->cut[i - 1].name, plain, &epoch);
		if (!strcmp(c->cut[i - 1].name, name) || !strcmp(plain, name))
			return of_cut(w, &c->cut[i - 1]);
	}
	for (size_t s = 0; s < w->ix->count; s++)
		for (size_t k = w->ix->streams[s].count; k > 0; k--) {
			const struct seg_table *t = &w->ix->streams[s].segs[k - 1].table;

			for (uint32_t e = t->foot.events; e > 0; e--)
				if (!strcmp(t->events[e - 1].name, name) &&
				    made_alone(w->ix, s, &t->events[e - 1], in)) {
					if (!of_host(w, s))	/* not of another moment, then */
						return chosen(w);
					ret = point_behind(w->ix, s, k - 1, e - 1, &p, w->why);
					if (!ret)
						ret = consider(w, &p);
					return ret ? ret : chosen(w);
				}
		}
	return why_set(w->why, ENOENT, "no mark \"%.64s\" that all hosts of group %s have had and held for; "
		       "`asrctl point list` has those there are, host:name:... is of one host alone", name,
		       w->ix->name);
}

/* While the group was on one host, every moment of that one is a point */
static bool alone(const struct wish *w, uint64_t ns, bool *in)
{
	return index_epoch(w->ix, index_epoch_at(w->ix, ns), in) == 1;
}

static int resolve(struct wish *w, const char *text, const struct cuts *c, bool *in)
{
	uint64_t ns;

	if (!strcmp(text, "latest")) {
		if (alone(w, UINT64_MAX, in))
			return of_streams(w, text, in);
		return c->count ? of_cut(w, &c->cut[c->count - 1]) : none_yet(w, c);
	}
	if (!strncmp(text, "time:", 5)) {
		if (time_parse(text + 5, &ns))
			return why_set(w->why, EINVAL, "bad point \"%.60s\": time: wants RFC 3339, for example "
				       "time:2026-01-02T03:04:05Z", text);
		return alone(w, ns, in) ? of_streams(w, text, in) : by_time(w, c, ns);
	}
	if (!strncmp(text, "name:", 5))
		return by_name(w, c, text + 5, in);
	if (!strncmp(text, "seq:", 4) && alone(w, UINT64_MAX, in))
		return of_streams(w, text, in);
	if (!strncmp(text, "seq:", 4))
		return why_set(w->why, EINVAL, "bad point \"%.60s\": each host of group %s counts for itself; latest, "
			       "time: or name: are of all, host:seq:N of the disk's own host", text, w->ix->name);
	return why_set(w->why, EINVAL, "bad point \"%.60s\": use latest, time:RFC3339 or name:X, or host: and latest, "
		       "seq:N, time:RFC3339 or name:X", text);
}

int cut_resolve(struct index *ix, const char *text, const char *disk, struct point *p, struct why *why)
{
	struct wish w = { .ix = ix, .disk = disk, .p = p, .why = why };
	cleanup_free bool *in = calloc(ix->count + 1, sizeof(*in));
	struct cuts c;
	int ret;

	if (!disk)
		return why_set(why, EINVAL, "group %s is on several hosts: say which disk", ix->name);
	if (!in)
		return why_set(why, ENOMEM, "out of memory");
	if (!strncmp(text, "host:", 5))
		return of_streams(&w, text + 5, NULL);
	ret = cuts_make(ix, &c, why);
	if (ret)
		return ret;
	ret = resolve(&w, text, &c, in);
	cuts_free(&c);
	return ret;
}

/* ------------------------------------------------------------------- listing */

static json_t *time_json(const struct cuts *c, size_t i)
{
	char when[40];

	return i < c->count ? json_string(time_format(c->cut[i].time_ns, when)) : json_null();
}

/* Those of the times when the group was on one host; what was said of them is not looked for */
static int list_alone(const struct index *ix, json_t *marks)
{
	cleanup_free bool *in = calloc(ix->count + 1, sizeof(*in));
	char when[40];

	for (size_t s = 0; in && s < ix->count; s++)
		for (size_t k = 0; k < ix->streams[s].count; k++) {
			const struct seg_table *t = &ix->streams[s].segs[k].table;

			for (uint32_t i = 0; i < t->foot.events; i++) {
				const struct seg_event *e = &t->events[i];

				if (!made_alone(ix, s, e, in))
					continue;
				json_array_append_new(marks, json_pack("{s:s,s:s,s:s,s:i,s:s,s:b}", "name", e->name,
					"mark", e->name, "time", time_format(e->time_ns, when), "hosts", 1,
					"consistency", e->consistent ? "crash" : "none", "consistent",
					e->consistent));
			}
		}
	return in ? 0 : -ENOMEM;
}

json_t *cut_list_json(struct index *ix, struct why *why)
{
	json_t *marks = json_array();
	uint64_t gap = 0, epoch;
	char plain[ASR_NAME_BYTES];
	struct cuts c;

	if (list_alone(ix, marks) || cuts_make(ix, &c, why)) {
		json_decref(marks);
		return NULL;
	}
	for (size_t i = 0; i < c.count; i++) {
		if (i && c.cut[i].time_ns > c.cut[i - 1].time_ns && c.cut[i].time_ns - c.cut[i - 1].time_ns > gap)
			gap = c.cut[i].time_ns - c.cut[i - 1].time_ns;
		wire_group_mark_parse(c.cut[i].name, plain, &epoch);
		json_array_append_new(marks, json_pack("{s:s,s:s,s:o,s:I,s:s,s:b}", "name", plain, "mark",
			c.cut[i].name, "time", time_json(&c, i), "hosts", (json_int_t)c.cut[i].hosts, "consistency",
			c.cut[i].app ? "app" : "crash", "consistent", true));
	}
	marks = json_pack("{s:o,s:{s:I,s:o,s:o,s:f,s:I}}", "marks", marks, "points", "count", (json_int_t)c.count,
			  "first_time", time_json(&c, 0), "last_time", time_json(&c, c.count - 1), "longest_gap_s",
			  (double)gap / 1e9, "broken", (json_int_t)c.broken);
	cuts_free(&c);
	return marks;
}
