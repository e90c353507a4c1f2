// SPDX-License-Identifier: Apache-2.0
/*
 * The segment: frames in arrival order, and the footer that says where what is.
 *
 * Design: while a segment grows it is a header and enveloped frames, nothing
 * else; its table is gathered in memory frame by frame. Sealing appends the
 * table as a footer, then a trailer that finds it. The footer holds nothing
 * that the frames (and the state the segment before it ended with) do not
 * say, so gathering it from the frames again gives the same bytes.
 *
 *   seg_hdr | seg_env frame pad | seg_env frame pad | ... | footer | trailer
 *
 * Torn tails. A power cut may leave any part of what was not yet flushed, so
 * after a broken frame whole ones may follow, and none of them was ever
 * acknowledged. An envelope says which frames were durable when it was made:
 * a broken frame that a later envelope calls durable is damage, not a tear.
 *
 * Invariants: frame numbers, chain and sequence run on through a table; the
 * parse functions trust no count and no offset.
 *
 * Context: any thread; all but seg_scan do no I/O.
 */
#include "vault.h"

#include <errno.h>
#include <string.h>

#include <xxhash.h>

_Static_assert(sizeof(struct seg_hdr) == 72 && sizeof(struct seg_env) == 40, "format");
_Static_assert(sizeof(struct seg_foot) == 128 && sizeof(struct seg_frame) == 72, "format");
_Static_assert(sizeof(struct seg_rec) == 32 && sizeof(struct seg_event) == 128, "format");
_Static_assert(sizeof(struct seg_disk) == 80 && sizeof(struct seg_trailer) == 48, "format");

uint64_t seg_check(const void *data, size_t bytes)
{
	return XXH3_64bits(data, bytes);
}

void seg_name(const uint8_t *group, const uint8_t *stream, uint64_t first_frame_no,
	      char out[SEG_NAME_BYTES])
{
	char g[33], s[33];

	hex_encode(group, ASR_UUID_BYTES, g);
	hex_encode(stream, ASR_UUID_BYTES, s);
	snprintf(out, SEG_NAME_BYTES, "groups/%s/segments/%s-%016llx", g, s,
		 (unsigned long long)first_frame_no);
}

void seg_hdr_make(struct seg_hdr *h, const uint8_t *group, const uint8_t *stream,
		  uint64_t number, uint64_t first_frame_no)
{
	*h = (struct seg_hdr){ .magic = SEG_MAGIC, .version = SEG_VERSION, .number = number,
			       .first_frame_no = first_frame_no, .created_ns = now_real_ns() };
	memcpy(h->group, group, ASR_UUID_BYTES);
	memcpy(h->stream, stream, ASR_UUID_BYTES);
	h->check = seg_check(h, offsetof(struct seg_hdr, check));
}

int seg_hdr_check(const struct seg_hdr *h, struct why *why)
{
	if (h->magic != SEG_MAGIC || h->check != seg_check(h, offsetof(struct seg_hdr, check)))
		return why_set(why, EBADMSG, "the segment header does not fit its checksum");
	if (h->version != SEG_VERSION)
		return why_set(why, EBADMSG, "segment version %u: this program knows %d", h->version, SEG_VERSION);
	if (!h->number || !h->first_frame_no)
		return why_set(why, EBADMSG, "the segment header has no number");
	return 0;
}

/* ---------------------------------------------------------------- envelopes */

static uint64_t env_check(const struct seg_env *e, const uint8_t *frame)
{
	return XXH3_64bits_withSeed(frame, e->bytes, seg_check(e, offsetof(struct seg_env, check)));
}

void seg_env_make(struct seg_env *e, const uint8_t *frame, size_t bytes, uint64_t frame_no,
		  uint64_t durable_no, uint64_t arrival_ns)
{
	*e = (struct seg_env){ .magic = SEG_ENV_MAGIC, .bytes = (uint32_t)bytes, .frame_no = frame_no,
			       .durable_no = durable_no, .arrival_ns = arrival_ns };
	e->check = env_check(e, frame);
}

static uint64_t padded(uint64_t bytes)
{
	return (bytes + 7) & ~7ULL;
}

static bool all_zero(const uint8_t *p, size_t bytes)
{
	return !bytes || (!p[0] && !memcmp(p, p + 1, bytes - 1));
}

int64_t seg_env_check(const uint8_t *data, size_t bytes, struct why *why)
{
	struct seg_env e;
	uint64_t whole;

	if (bytes < sizeof(e))
		return why_set(why, EBADMSG, "the envelope is cut off");
	memcpy(&e, data, sizeof(e));
	if (e.magic != SEG_ENV_MAGIC || e.bytes < sizeof(struct frame_hdr) || e.bytes > ASR_FRAME_MAX)
		return why_set(why, EBADMSG, "there is no envelope");
	whole = sizeof(e) + padded(e.bytes);
	if (whole > bytes)
		return why_set(why, EBADMSG, "frame %llu is cut off", (unsigned long long)e.frame_no);
	if (e.check != env_check(&e, data + sizeof(e)))
		return why_set(why, EBADMSG, "envelope and frame %llu do not fit their checksum",
			       (unsigned long long)e.frame_no);
	if (!all_zero(data + sizeof(e) + e.bytes, padded(e.bytes) - e.bytes))
		return why_set(why, EBADMSG, "the padding behind frame %llu is not zero",
			       (unsigned long long)e.frame_no);
	return (int64_t)whole;
}

/* -------------------------------------------------------------------- state */

void seg_state_init(struct seg_state *st)
{
	memset(st, 0, sizeof(*st));
	st->next_frame_no = 1;
	st->next_number = 1;
}

static struct seg_disk *disk_find(struct seg_state *st, uint16_t disk)
{
	for (uint32_t i = 0; i < st->disks; i++)
		if (st->disk[i].disk == disk)
			return &st->disk[i];
	return NULL;
}

void seg_state_disk(struct seg_state *st, uint16_t disk, uint64_t sectors, const char *name)
{
	struct seg_disk *d = disk_find(st, disk);
	uint32_t i;

	if (d && !sectors) {
		i = (uint32_t)(d - st->disk);
		memmove(d, d + 1, (--st->disks - i) * sizeof(*d));
	}
	if (!sectors)
		return;
	if (!d) {
		for (i = st->disks++; i && st->disk[i - 1].disk > disk; i--)
			st->disk[i] = st->disk[i - 1];
		d = &st->disk[i];
	}
	memset(d, 0, sizeof(*d));
	d->disk = disk;
	d->sectors = sectors;
	snprintf(d->name, sizeof(d->name), "%s", name);
}

void seg_state_event(struct seg_state *st, const struct seg_event *e)
{
	if (e->kind == ASR_KIND_DISK)
		seg_state_disk(st, e->disk, e->value, e->name);
	else if (e->kind == ASR_KIND_STATE && e->flags == ASR_WHY_START)
		st->disks = 0;
}

/* A disk is as large as it was and the same one: then its copy is still good */
static bool disk_same(struct seg_state *st, uint16_t disk, const struct asr_rec_disk *body)
{
	struct seg_disk *d = disk_find(st, disk);

	return !body->sectors || (d && d->sectors >= body->sectors && !strcmp(d->name, body->name));
}

int seg_frame_fits(const struct seg_state *st, const struct frame_view *v, struct why *why)
{
	unsigned long long no = v->hdr.frame_no;

	if (no != st->next_frame_no)
		return why_set(why, EBADMSG, "frame %llu came where frame %llu is due", no,
			       (unsigned long long)st->next_frame_no);
	if (memcmp(v->hdr.prev_tag, st->last_tag, ASR_TAG_BYTES))
		return why_set(why, EBADMSG, "frame %llu does not continue the chain: its prev_tag is not "
			       "the tag of frame %llu", no, no - 1);
	if (v->hdr.first_seq < st->last_seq)
		return why_set(why, EBADMSG, "frame %llu: sequence falls from %llu to %llu", no,
			       (unsigned long long)st->last_seq, (unsigned long long)v->hdr.first_seq);
	return 0;
}

void seg_state_after(struct seg_state *st, const struct seg_hdr *h, const struct seg_table *t)
{
	memset(st, 0, sizeof(*st));
	st->next_frame_no = h->first_frame_no + t->foot.frames;
	st->next_number = h->number + 1;
	st->last_seq = t->foot.last_seq;
	st->last_time_ns = t->foot.last_time_ns;
	st->consistent = t->foot.end_consistent;
	memcpy(st->last_tag, t->foot.last_tag, ASR_TAG_BYTES);
	for (uint32_t i = 0; i < t->foot.disks; i++)
		seg_state_disk(st, t->disks[i].disk, t->disks[i].sectors, t->disks[i].name);
	for (uint32_t i = 0; i < t->foot.events; i++)
		seg_state_event(st, &t->events[i]);
}

/* -------------------------------------------------------------------- table */

int seg_table_begin(struct seg_table *t, const struct seg_state *st)
{
	struct seg_foot *f = &t->foot;

	memset(t, 0, sizeof(*t));
	f->magic = SEG_FOOT_MAGIC;
	f->version = SEG_VERSION;
	f->begin_consistent = f->end_consistent = st->consistent;
	f->begin_seq = st->last_seq;
	f->begin_time_ns = st->last_time_ns;
	f->least_time_ns = UINT64_MAX;
	f->disks = st->disks;
	memcpy(f->prev_tag, st->last_tag, ASR_TAG_BYTES);
	memcpy(f->last_tag, st->last_tag, ASR_TAG_BYTES);
	t->disks = calloc(st->disks + 1, sizeof(*t->disks));
	if (!t->disks)
		return -ENOMEM;
	memcpy(t->disks, st->disk, st->disks * sizeof(*t->disks));
	return 0;
}

void seg_table_free(struct seg_table *t)
{
	free(t->frames);
	free(t->recs);
	free(t->events);
	free(t->disks);
	memset(t, 0, sizeof(*t));
}

/* Room for more elements behind count */
static int grow(void **p, uint32_t *room, uint32_t count, uint32_t more, size_t size)
{
	uint32_t want = *room;
	void *bigger;

	if (count + more <= *room)
		return 0;
	while (want < count + more)
		want = want ? want + want / 2 + 16 : 1024;
	bigger = realloc(*p, want * size);
	if (!bigger)
		return -ENOMEM;
	*p = bigger;
	*room = want;
	return 0;
}

static bool is_content(uint8_t kind)
{
	return wire_kind_has_payload(kind) || kind == ASR_KIND_ZEROES || kind == ASR_KIND_DISCARD ||
	       kind == ASR_KIND_SYNC_ZEROES;
}

/* Room for all that a frame brings, before anything of it is counted */
static int table_reserve(struct seg_table *t, const struct frame_view *v)
{
	uint32_t records = 0, events = 0;

	for (uint32_t i = 0; i < v->hdr.records; i++)
		if (is_content(v->recs[i].kind))
			records++;
		else if (v->recs[i].kind != ASR_KIND_FLUSH)
			events++;
	if (grow((void **)&t->frames, &t->frames_room, t->foot.frames, 1, sizeof(*t->frames)) ||
	    grow((void **)&t->recs, &t->recs_room, t->foot.records, records, sizeof(*t->recs)) ||
	    grow((void **)&t->events, &t->events_room, t->foot.events, events, sizeof(*t->events)))
		return -ENOMEM;
	return 0;
}

static void event_body(struct seg_event *e, const struct frame_view *v, const struct frame_rec *r)
{
	const struct asr_rec_state *s = wire_state(v, r);
	const struct asr_rec_mark *m = wire_mark(v, r);
	const struct asr_rec_disk *d = wire_disk(v, r);

	if (m) {
		e->value = m->id;
		e->flags = m->flags;
		memcpy(e->name, m->name, sizeof(e->name));
	} else if (s) {
		e->value = (uint64_t)s->from << 32 | s->to;
		e->flags = s->reason;
	} else if (d) {
		e->value = d->sectors;
		e->flags = d->flags;
		memcpy(e->name, d->name, sizeof(e->name));
	}
}

static void event_add(struct seg_table *t, struct seg_state *st, const struct frame_view *v,
		      const struct frame_rec *r, uint32_t frame)
{
	enum consistency c = wire_consistency(v, r);
	struct seg_event *e = &t->events[t->foot.events++];

	*e = (struct seg_event){ .seq = r->seq, .time_ns = r->time_ns, .prev_seq = st->last_seq,
				 .prev_time_ns = st->last_time_ns, .writes = t->foot.writes, .frame = frame,
				 .record = (uint16_t)(r - v->recs), .disk = r->disk, .kind = r->kind };
	event_body(e, v, r);
	if (r->kind == ASR_KIND_DISK && !disk_same(st, r->disk, wire_disk(v, r)))
		c = CONSISTENCY_LOST;
	seg_state_event(st, e);
	if (c != CONSISTENCY_SAME)
		st->consistent = c == CONSISTENCY_REACHED;
	e->consistency = (uint8_t)c;
	e->consistent = st->consistent;
}

static void rec_add(struct seg_table *t, const struct frame_rec *r, uint32_t frame, uint16_t record)
{
	t->recs[t->foot.records++] = (struct seg_rec){
		.seq = r->seq, .sector = r->sector, .sectors = r->sectors, .frame = frame,
		.record = record, .disk = r->disk, .kind = r->kind };
	if (r->kind < ASR_KIND_SYNC)
		t->foot.writes++;
}

int seg_table_add(struct seg_table *t, struct seg_state *st, const struct frame_view *v,
		  uint64_t offset, uint64_t arrival_ns)
{
	const struct frame_hdr *h = &v->hdr;
	struct seg_foot *f = &t->foot;
	uint32_t frame = f->frames;

	if (table_reserve(t, v))
		return -ENOMEM;
	for (uint32_t i = 0; i < h->records; i++) {
		const struct frame_rec *r = &v->recs[i];

		if (is_content(r->kind))
			rec_add(t, r, frame, (uint16_t)i);
		else if (r->kind != ASR_KIND_FLUSH)
			event_add(t, st, v, r, frame);
		st->last_seq = r->seq;
		st->last_time_ns = r->time_ns;
	}
	t->frames[f->frames++] = (struct seg_frame){
		.offset = offset, .bytes = h->total_bytes, .records = h->records,
		.first_seq = h->first_seq, .last_seq = h->last_seq, .least_time_ns = h->first_time_ns,
		.greatest_time_ns = h->last_time_ns, .arrival_ns = arrival_ns };
	memcpy(t->frames[frame].tag, v->tag, ASR_TAG_BYTES);
	memcpy(f->last_tag, v->tag, ASR_TAG_BYTES);
	memcpy(st->last_tag, v->tag, ASR_TAG_BYTES);
	st->next_frame_no++;
	if (!frame)
		f->first_seq = h->first_seq;
	f->last_seq = h->last_seq;
	f->last_time_ns = st->last_time_ns;
	if (h->first_time_ns < f->least_time_ns)
		f->least_time_ns = h->first_time_ns;
	if (h->last_time_ns > f->greatest_time_ns)
		f->greatest_time_ns = h->last_time_ns;
	f->end_consistent = st->consistent;
	return 0;
}

/* ------------------------------------------------------------------- footer */

static int rec_order(const void *pa, const void *pb)
{
	const struct seg_rec *a = pa, *b = pb;

	if (a->disk != b->disk)
		return a->disk < b->disk ? -1 : 1;
	if (a->sector != b->sector)
		return a->sector < b->sector ? -1 : 1;
	if (a->frame != b->frame)
		return a->frame < b->frame ? -1 : 1;
	return a->record < b->record ? -1 : a->record > b->record;
}

static uint64_t head_size(const struct seg_foot *f)
{
	return sizeof(*f) + (uint64_t)f->frames * sizeof(struct seg_frame) +
	       (uint64_t)f->events * sizeof(struct seg_event) + (uint64_t)f->disks * sizeof(struct seg_disk);
}

static uint8_t *put(uint8_t *p, const void *data, size_t bytes)
{
	if (bytes)
		memcpy(p, data, bytes);
	return p + bytes;
}

int seg_foot_make(struct seg_table *t, uint64_t foot_offset, uint8_t **out, size_t *bytes)
{
	const struct seg_foot *f = &t->foot;
	size_t head = head_size(f), recs = (size_t)f->records * sizeof(struct seg_rec);
	struct seg_trailer tr = { .foot_offset = foot_offset, .foot_bytes = head + recs,
				  .magic = SEG_TRAILER_MAGIC };
	uint8_t *buf = malloc(head + recs + sizeof(tr)), *p = buf;

	if (!buf)
		return -ENOMEM;
	if (f->records)
		qsort(t->recs, f->records, sizeof(*t->recs), rec_order);
	p = put(p, f, sizeof(*f));
	p = put(p, t->frames, f->frames * sizeof(*t->frames));
	p = put(p, t->events, f->events * sizeof(*t->events));
	p = put(p, t->disks, f->disks * sizeof(*t->disks));
	p = put(p, t->recs, recs);
	tr.head_check = seg_check(buf, head);
	tr.recs_check = seg_check(buf + head, recs);
	tr.check = seg_check(&tr, offsetof(struct seg_trailer, check));
	put(p, &tr, sizeof(tr));
	*out = buf;
	*bytes = head + recs + sizeof(tr);
	return 0;
}

int seg_trailer_check(const struct seg_trailer *tr, uint64_t file_bytes, struct why *why)
{
	if (tr->magic != SEG_TRAILER_MAGIC || tr->check != seg_check(tr, offsetof(struct seg_trailer, check)))
		return why_set(why, EBADMSG, "the trailer does not fit its checksum");
	if (tr->reserved || tr->foot_offset < sizeof(struct seg_hdr) || tr->foot_offset % 8 ||
	    tr->foot_bytes < sizeof(struct seg_foot) || tr->foot_bytes > SEG_FOOT_MAX ||
	    tr->foot_offset > file_bytes || file_bytes - tr->foot_offset < sizeof(*tr) ||
	    tr->foot_bytes != file_bytes - tr->foot_offset - sizeof(*tr))
		return why_set(why, EBADMSG, "the trailer points to no footer: %llu bytes at %llu in a file "
			       "of %llu", (unsigned long long)tr->foot_bytes,
			       (unsigned long long)tr->foot_offset, (unsigned long long)file_bytes);
	return 0;
}

int seg_head_bytes(const struct seg_foot *f, uint64_t foot_bytes, size_t *head, struct why *why)
{
	if (f->magic != SEG_FOOT_MAGIC || f->version != SEG_VERSION || !f->frames ||
	    f->disks > ASR_DISKS_MAX || f->begin_consistent > 1 || f->end_consistent > 1 ||
	    head_size(f) + (uint64_t)f->records * sizeof(struct seg_rec) != foot_bytes)
		return why_set(why, EBADMSG, "the footer is not legal: %u frames, %u records, %u events, %u "
			       "disks in %llu bytes", f->frames, f->records, f->events, f->disks,
			       (unsigned long long)foot_bytes);
	*head = head_size(f);
	return 0;
}

static bool name_legal(const char *name)
{
	size_t n = strnlen(name, ASR_NAME_BYTES);

	return n && n < ASR_NAME_BYTES && all_zero((const uint8_t *)name + n, ASR_NAME_BYTES - n);
}

static bool frames_legal(const struct seg_table *t)
{
	uint64_t offset = sizeof(struct seg_hdr) + sizeof(struct seg_env), seq = t->foot.first_seq;

	for (uint32_t i = 0; i < t->foot.frames; i++) {
		const struct seg_frame *f = &t->frames[i];

		if (f->offset != offset || f->bytes < sizeof(struct frame_hdr) || f->bytes > ASR_FRAME_MAX ||
		    !f->records || f->records > ASR_FRAME_RECORDS_MAX || f->first_seq < seq ||
		    f->last_seq < f->first_seq || f->least_time_ns > f->greatest_time_ns)
			return false;
		seq = f->last_seq;
		offset += padded(f->bytes) + sizeof(struct seg_env);
	}
	return seq == t->foot.last_seq &&
	       !memcmp(t->frames[t->foot.frames - 1].tag, t->foot.last_tag, ASR_TAG_BYTES);
}

static bool event_legal(const struct seg_table *t, const struct seg_event *e)
{
	bool named = e->kind == ASR_KIND_MARK || e->kind == ASR_KIND_DISK;

	return e->frame < t->foot.frames && e->record < t->frames[e->frame].records && !e->reserved &&
	       e->consistent <= 1 && e->consistency <= CONSISTENCY_REACHED && e->writes <= t->foot.writes &&
	       (named ? name_legal(e->name) : all_zero((const uint8_t *)e->name, sizeof(e->name))) &&
	       (e->kind != ASR_KIND_DISK || (e->disk < ASR_DISKS_MAX && e->value <= ASR_DISK_SECTORS_MAX)) &&
	       (named || e->kind == ASR_KIND_STATE || e->kind == ASR_KIND_RESYNC_BEGIN ||
		e->kind == ASR_KIND_RESYNC_END);
}

static bool events_legal(const struct seg_table *t)
{
	uint32_t consistent = t->foot.begin_consistent;
	const struct seg_event *before = NULL;

	for (uint32_t i = 0; i < t->foot.events; before = &t->events[i++]) {
		const struct seg_event *e = &t->events[i];

		if (!event_legal(t, e) || (before && (e->frame < before->frame || e->writes < before->writes ||
		    (e->frame == before->frame && e->record <= before->record) || e->seq < before->seq)))
			return false;
		if (e->consistency != CONSISTENCY_SAME)
			consistent = e->consistency == CONSISTENCY_REACHED;
		if (e->consistent != consistent)
			return false;
	}
	return consistent == t->foot.end_consistent;
}

static bool disks_legal(const struct seg_table *t)
{
	for (uint32_t i = 0; i < t->foot.disks; i++) {
		const struct seg_disk *d = &t->disks[i];

		if (d->disk >= ASR_DISKS_MAX || !d->sectors || d->sectors > ASR_DISK_SECTORS_MAX ||
		    d->reserved[0] || d->reserved[1] || d->reserved[2] || !name_legal(d->name) ||
		    (i && d->disk <= d[-1].disk))
			return false;
	}
	return true;
}

/* n elements of size bytes, copied; one more than needed, so that none is no NULL */
static void *copy_of(const uint8_t **p, size_t n, size_t size)
{
	void *c = calloc(n + 1, size);

	if (c && n)
		memcpy(c, *p, n * size);
	*p += n * size;
	return c;
}

int seg_foot_parse(const uint8_t *head, size_t bytes, struct seg_table *t, struct why *why)
{
	const uint8_t *p = head + sizeof(t->foot);
	size_t want;
	int ret;

	memset(t, 0, sizeof(*t));
	if (bytes < sizeof(t->foot))
		return why_set(why, EBADMSG, "the footer is cut off");
	memcpy(&t->foot, head, sizeof(t->foot));
	ret = seg_head_bytes(&t->foot, bytes + (uint64_t)t->foot.records * sizeof(struct seg_rec), &want, why);
	if (ret)
		return ret;
	t->frames = copy_of(&p, t->foot.frames, sizeof(*t->frames));
	t->events = copy_of(&p, t->foot.events, sizeof(*t->events));
	t->disks = copy_of(&p, t->foot.disks, sizeof(*t->disks));
	if (!t->frames || !t->events || !t->disks)
		ret = why_set(why, ENOMEM, "out of memory");
	else if (!frames_legal(t))
		ret = why_set(why, EBADMSG, "the footer's frame table is not legal");
	else if (!events_legal(t))
		ret = why_set(why, EBADMSG, "the footer's event list is not legal");
	else if (!disks_legal(t))
		ret = why_set(why, EBADMSG, "the footer's disk list is not legal");
	if (ret)
		seg_table_free(t);
	return ret;
}

int seg_recs_parse(const uint8_t *recs, size_t bytes, struct seg_table *t, struct why *why)
{
	const struct seg_rec *r;

	if (bytes != (uint64_t)t->foot.records * sizeof(*r))
		return why_set(why, EBADMSG, "the footer's record table is cut off");
	free(t->recs);
	t->recs = copy_of(&recs, t->foot.records, sizeof(*r));
	if (!t->recs)
		return why_set(why, ENOMEM, "out of memory");
	for (uint32_t i = 0; i < t->foot.records; i++) {
		r = &t->recs[i];
		if (r->frame >= t->foot.frames || r->record >= t->frames[r->frame].records ||
		    r->disk >= ASR_DISKS_MAX || !is_content(r->kind) || !r->sectors ||
		    r->sector > (UINT64_MAX >> 9) - r->sectors || r->reserved[0] || r->reserved[1] ||
		    r->reserved[2] || (i && rec_order(r - 1, r) >= 0)) {
			free(t->recs);
			t->recs = NULL;
			return why_set(why, EBADMSG, "record %u of the footer is not legal", i);
		}
	}
	return 0;
}

/* --------------------------------------------------------------------- scan */

static int read_at(int fd, uint64_t offset, uint8_t *buf, size_t bytes)
{
	while (bytes) {
		ssize_t n = pread(fd, buf, bytes, (off_t)offset);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return n ? -errno : -ENODATA;
		buf += n;
		offset += (uint64_t)n;
		bytes -= (size_t)n;
	}
	return 0;
}

/* One envelope with its frame into buf; how many bytes could be read */
static int64_t read_env(int fd, uint64_t offset, uint64_t file_bytes, uint8_t *buf, size_t room)
{
	uint64_t left = file_bytes - offset, want = sizeof(struct seg_env);
	const struct seg_env *e = (const void *)buf;
	int ret;

	if (left < want)
		want = left;
	ret = read_at(fd, offset, buf, want);
	if (ret || left < sizeof(*e) || e->magic != SEG_ENV_MAGIC || e->bytes > ASR_FRAME_MAX)
		return ret ? ret : (int64_t)want;
	want = sizeof(*e) + padded(e->bytes);
	if (want > left)
		want = left;
	if (want > room)
		want = room;
	ret = read_at(fd, offset + sizeof(*e), buf + sizeof(*e), want - sizeof(*e));
	return ret ? ret : (int64_t)want;
}

/* What stands at end, and does anything behind it call it durable? */
static int judge_tail(int fd, uint64_t file_bytes, uint64_t end, const struct seg_state *st,
		      uint8_t *buf, size_t room, bool *torn, struct why *why)
{
	const struct seg_env *e = (const void *)buf;
	uint8_t word[4096];
	size_t n;
	int64_t got;

	*torn = false;
	for (uint64_t at = end; at < file_bytes; at += n) {
		n = file_bytes - at < sizeof(word) ? (size_t)(file_bytes - at) : sizeof(word);
		if (read_at(fd, at, word, n))
			return 0;
		if (at == end && n >= 4 && !memcmp(word, &(uint32_t){ SEG_FOOT_MAGIC }, 4))
			return 0;
		if (!all_zero(word, n))
			*torn = true;
		for (size_t i = 0; i + 8 <= n; i += 8) {
			if (memcmp(word + i, &(uint32_t){ SEG_ENV_MAGIC }, 4))
				continue;
			got = read_env(fd, at + i, file_bytes, buf, room);
			if (got > 0 && seg_env_check(buf, (size_t)got, NULL) > 0 &&
			    e->durable_no >= st->next_frame_no && e->frame_no > st->next_frame_no)
				return why_set(why, EBADMSG, "frame %llu, at offset %llu, is damaged: frame "
					       "%llu behind it says that it was durable",
					       (unsigned long long)st->next_frame_no,
					       (unsigned long long)end, (unsigned long long)e->frame_no);
		}
	}
	return 0;
}

static int scan_frame(const uint8_t *buf, uint64_t offset, const struct seg_hdr *h, struct seg_table *t,
		      struct seg_state *st, struct why *why)
{
	const struct seg_env *e = (const void *)buf;
	struct frame_view v;
	int ret = wire_frame_parse(buf + sizeof(*e), e->bytes, &v, why);

	if (!ret)
		ret = seg_frame_fits(st, &v, why);
	if (ret)
		return ret;
	if (memcmp(v.hdr.group, h->group, ASR_UUID_BYTES) || memcmp(v.hdr.stream, h->stream, ASR_UUID_BYTES) ||
	    e->frame_no != v.hdr.frame_no)
		return why_set(why, EBADMSG, "frame %llu belongs to another group or stream",
			       (unsigned long long)v.hdr.frame_no);
	return seg_table_add(t, st, &v, offset + sizeof(*e), e->arrival_ns);
}

int seg_scan(int fd, uint64_t file_bytes, const struct seg_hdr *h, struct seg_table *t,
	     struct seg_state *st, uint64_t *end, bool *torn, struct why *why)
{
	size_t room = sizeof(struct seg_env) + ASR_FRAME_MAX;
	cleanup_free uint8_t *buf = aligned_alloc(8, (room + 7) & ~(size_t)7);
	uint64_t offset = sizeof(*h);
	struct why inner;
	int64_t n;
	int ret;

	if (!buf || seg_table_begin(t, st))
		return why_set(why, ENOMEM, "out of memory");
	while (offset < file_bytes) {
		n = read_env(fd, offset, file_bytes, buf, room);
		if (n == -ENODATA)
			break;
		if (n < 0)
			return why_set(why, (int)-n, "cannot read at offset %llu: %s",
				       (unsigned long long)offset, strerror((int)-n));
		n = seg_env_check(buf, (size_t)n, NULL);
		if (n < 0)
			break;
		ret = scan_frame(buf, offset, h, t, st, &inner);
		if (ret)
			return why_set(why, -ret, "offset %llu: %.400s", (unsigned long long)offset,
				       ret == -ENOMEM ? "out of memory" : inner.text);
		offset += (uint64_t)n;
	}
	if (t->foot.frames)	/* without one it is removed, and its number is used again */
		st->next_number = h->number + 1;
	*end = offset;
	return judge_tail(fd, file_bytes, offset, st, buf, room, torn, why);
}
