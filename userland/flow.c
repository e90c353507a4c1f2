// SPDX-License-Identifier: Apache-2.0
/*
 * The record flow of a group: ring -> batch -> frame -> vault, and what is
 * durable there gives ring space back.
 *
 * Design. A group runs when something kicked it (its timer or poll, room on
 * the connection, an acknowledgement, a resync read) and until there is
 * nothing to read, no room, or it had its share of the turn. While there is no
 * room it just stops reading: the ring is the queue.
 *
 * When the vault does not keep up, the records take another way, through the
 * spool (detour.c); they come back here to be batched and sent.
 *
 * Nothing is kept for sending again. After a reconnect the vault says what is
 * durable; reading goes on behind that record in the ring, in a new session
 * (fresh key) with the next frame number.
 *
 * A frame waits for company until batch_delay after the capture, not after the
 * reading, of its first record: that bounds the age of what is not yet sent.
 *
 * Invariants. The tail is moved only for durable frames, or when nothing at
 * all is under way. flights are in order of frame number and ring position.
 * Every record that ends consistency calls for a resync when it is taken in.
 *
 * Context. The loop's thread.
 */
#include <errno.h>
#include <stdarg.h>
#include <string.h>

#include "source.h"

#define SHARE_BYTES	(1u << 20)	/* of ring, that one group may take in a turn: others' marks wait for its end */
#define IDLE_ROUNDS	2		/* timer rounds with nothing to read before the long sleep */
#define NS_PER_S	1000000000ull
#define SEQ_BEHIND	"%s has later sequence numbers than the kernel's group: delete that group " \
			"(dmsetup remove its disks), asrd makes it anew"

void flow_trouble(struct group *g, const char *fmt, ...)
{
	char text[sizeof(g->trouble)];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	if (!strcmp(text, g->trouble))
		return;
	memcpy(g->trouble, text, sizeof(text));
	if (text[0])
		log_err("group %s: %s", g->name, text);
}

void flow_kick(void *group)
{
	struct group *g = group;

	g->runnable = true;
}

/* ----------------------------------------------------------------- sending */

bool flow_has_room(struct group *g)
{
	return g->flight_count < FLIGHTS && ship_has_room(g->d->ship);
}

int flow_send(struct group *g)
{
	struct batch *b = &g->batch;
	struct flight *f = &g->flights[(g->flight_first + g->flight_count) % FLIGHTS];
	const uint8_t *frame;
	size_t bytes;
	int r;

	r = pack_frame(&g->pack, b, &frame, &bytes);
	if (!r)
		r = ship_frame(g->d->ship, frame, bytes);
	if (r) {
		if (r != -EPIPE)
			ship_break(g->d->ship, "cannot make or send a frame");
		g->open = false;	/* all is read again after the reconnect */
		g->away_ns = now_ns();
		return r;
	}
	*f = (struct flight){ g->pack.frame_no, b->last_seq, b->ring_end, b->ring_time_ns, b->ring_payload };
	g->flight_count++;
	g->frames++;
	g->out_bytes += bytes;
	batch_reset(b);
	return 0;
}

int flow_disk_dirty(struct group *g, uint32_t slot, uint32_t flags)
{
	int r = -EINVAL;

	for (int tries = 0; r == -EINVAL && tries < 4; tries++) {	/* its size may change just now */
		struct asr_disk_info info = { .slot = slot };
		struct asr_dirty d = { .slot = slot, .flags = tries < 2 ? flags : 0 };

		r = source_ioctl(g->source, ASR_IOC_DISK_INFO, &info);
		d.count = (info.sectors + ASR_CHUNK_SECTORS - 1) / ASR_CHUNK_SECTORS;
		if (!r)
			r = source_ioctl(g->source, ASR_IOC_DIRTY_SET, &d);
	}
	return r;
}

/*
 * A disk comes into a slot that was another's, or nobody's as far as we know: a restore looks
 * no further back than to here, so all of it is compared, whatever its write-intent log says.
 */
static void check_holder(struct group *g, const struct asr_rec *rec, const uint8_t *payload)
{
	struct asr_disk_info info = { .slot = rec->disk };
	struct asr_rec_disk body;
	int r = -ENOENT;

	memcpy(&body, payload, sizeof(body));
	if (!body.sectors || !strncmp(g->holders[rec->disk], body.name, sizeof(body.name)))
		return;
	if (!source_ioctl(g->source, ASR_IOC_DISK_INFO, &info) && !strncmp(info.name, body.name, sizeof(body.name)))
		r = flow_disk_dirty(g, rec->disk, ASR_DIRTY_DURABLE);
	if (!r || r == -ENOENT)		/* it has left again: who comes next is another than this one */
		memcpy(g->holders[rec->disk], body.name, sizeof(body.name));
}

int flow_add(struct group *g, const struct asr_rec *rec, const uint8_t *payload)
{
	uint64_t now, delay = g->d->batch_delay_ns;
	int r;

	if (rec->kind == ASR_KIND_DISK)
		check_holder(g, rec, payload);
	r = batch_add(&g->batch, rec, payload);
	if (r == -ENOSPC && !(r = flow_send(g)))
		r = batch_add(&g->batch, rec, payload);
	if (r || g->batch.records > 1)
		return r;
	now = now_real_ns();
	if (now > rec->time_ns)
		delay -= now - rec->time_ns < delay ? now - rec->time_ns : delay;
	g->batch.due_ns = now_ns() + delay;
	return 0;
}

int flow_emit(void *arg, const struct asr_rec *rec, const uint8_t *payload, uint64_t *frame_no)
{
	struct group *g = arg;
	struct asr_rec r;
	int ret = 0;

	if (!g->open || g->detour || !flow_has_room(g))
		return -EAGAIN;	/* on the detour it would stand before what was captured before it */
	if (rec) {
		r = *rec;
		r.seq = g->last_seq;
		r.time_ns = now_real_ns();
		ret = flow_add(g, &r, payload);
		*frame_no = g->pack.frame_no + 1;
	} else {
		if (g->batch.records)
			ret = flow_send(g);
		*frame_no = g->pack.frame_no;
	}
	return ret ? -EAGAIN : 0;
}

/* ----------------------------------------------------------------- reading */

static bool is_dirty(struct group *g)
{
	struct asr_group_info info = { .index = 0 };

	memcpy(info.name, g->name, sizeof(info.name));
	return !source_ioctl(g->source, ASR_IOC_GROUP_INFO, &info) && info.dirty_chunks;
}

/* A discarded record may be a write that the lower device failed: it is in the map then */
bool flow_write_failed(struct group *g)
{
	if (source_discarded(g->source) == g->discarded)
		return false;
	g->discarded = source_discarded(g->source);
	return is_dirty(g);
}

void flow_saw(struct group *g, const struct asr_rec *rec, const uint8_t *payload)
{
	if (rec->sectors)
		compare_saw(g->compare, NULL, rec->disk, rec->sector, rec->sectors);
	if (rec->kind == ASR_KIND_DISK) {
		struct asr_rec_disk body;

		memcpy(&body, payload, sizeof(body));
		if (!body.sectors)
			check_end(g, "a disk has left");	/* and is not to be held any longer */
		g->watch_ns = 0;	/* it may have left */
		compare_saw(g->compare, NULL, rec->disk, 0, ASR_DISK_SECTORS_MAX);	/* another's, perhaps */
	}
	if (rec->kind >= ASR_KIND_STATE && batch_loses_consistency(rec, payload))
		resync_want(g->resync);
}

/* One record from the ring into the batch: 1, 0: none, -errno */
static int take(struct group *g)
{
	struct asr_rec rec;
	const uint8_t *payload;
	int r = source_next(g->source, &rec, &payload);

	if (flow_write_failed(g)) {	/* under its number, which no record has */
		uint64_t seq = r > 0 ? rec.seq - 1 : source_seen_seq(g->source);
		struct asr_rec lost = detour_lost_rec(seq > g->last_seq ? seq : g->last_seq);
		int err = resync_active(g->resync) || r < 0 ? 0 : flow_add(g, &lost, NULL);

		resync_want(g->resync);
		if (err)
			return err;
		g->last_seq = lost.seq;
	}
	if (r <= 0)
		return r;
	r = flow_add(g, &rec, payload);
	if (r)
		return r;
	g->batch.ring_end = source_pos(g->source);
	if (!g->batch.ring_time_ns)
		g->batch.ring_time_ns = rec.time_ns;
	g->batch.ring_payload += rec.payload_bytes;
	g->in_bytes += rec.payload_bytes;
	g->last_seq = rec.seq;
	flow_saw(g, &rec, payload);
	return 1;
}

void flow_check(struct group *g)
{
	if (!g->open)
		return;
	if (!resync_active(g->resync) && is_dirty(g))
		resync_want(g->resync);
	if (resync_active(g->resync) || g->check)
		flow_kick(g);	/* perhaps a read does not end */
}

/* Until nothing is readable: 0; no room, or a resync read is awaited: -EAGAIN; share used: 1 */
static int drain(struct group *g)
{
	uint64_t share = source_pos(g->source) + SHARE_BYTES;
	int r;

	while (g->open) {
		if (!flow_has_room(g))
			return -EAGAIN;
		if (resync_active(g->resync)) {
			enum resync_go go = resync_step(g->resync, source_readable(g->source));

			if (go == RESYNC_HOLD)
				return -EAGAIN;
			if (go == RESYNC_AGAIN)
				continue;
		}
		r = take(g);
		if (r <= 0)
			return r;
		g->idle_rounds = 0;
		if (source_pos(g->source) > share)
			return 1;
	}
	return -EAGAIN;
}

static uint64_t next_due(struct group *g, uint64_t now)
{
	uint64_t due = detour_due(g), other = resync_due(g->resync), check = check_due(g);

	if (g->batch.records)
		due = g->batch.due_ns;
	else if (!due && g->idle_rounds < IDLE_ROUNDS)
		due = now + g->d->batch_delay_ns;
	if (resync_active(g->resync) && !other)
		other = now + g->d->batch_delay_ns;
	if (check && (!other || check < other))
		other = check;
	return other && (!due || other < due) ? other : due;
}

/*
 * The disks' write-intent logs may forget what the vault has: once a second, and when nothing is
 * under way; then what was stepped over counts, too. A module without logs knows no such call.
 */
static void tell_durable(struct group *g, bool idle)
{
	struct asr_durable d = { .seq = idle ? source_seen_seq(g->source) : g->durable_seq };
	uint64_t now = now_ns();
	int r;

	if (d.seq <= g->told_seq || source_is_file(g->source) || (!idle && now < g->told_ns + NS_PER_S))
		return;
	r = source_ioctl(g->source, ASR_IOC_DURABLE, &d);
	if (!r || r == -ENOTTY)
		g->told_seq = d.seq;
	g->told_ns = now;
}

static void run(struct group *g)
{
	uint64_t now;
	int r;

	source_awake(g->source);
	g->idle_rounds++;
	if (!g->detour)
		check_run(g);
	if (detour_wanted(g))
		r = detour_run(g);
	else
		r = g->open ? drain(g) : 0;
	if (r == -EBADMSG || source_poisoned(g->source)) {
		flow_trouble(g, r ? "the ring holds nonsense at position %llu: attaching anew" :
			     "the kernel does not trust this reader any more (position %llu): attaching anew",
			     (unsigned long long)source_pos(g->source));
		flow_detach(g, NULL, NULL);
		return;
	}
	if (!g->open && (g->pending || !(g->detour || spool_usable(g->spool))))
		return;	/* awake: no wake-ups */
	now = now_ns();
	if (g->batch.records && now >= g->batch.due_ns && flow_has_room(g) && flow_send(g))
		return;
	if (g->open && !g->detour && !g->flight_count && !g->batch.records) {
		source_release(g->source, source_pos(g->source));
		tell_durable(g, true);
	}
	if (r == 1)
		g->runnable = true;
	else if (r == 0 && !g->runnable)
		g->runnable = source_sleep(g->source, next_due(g, now));
}

static void nothing(struct loop_op *op, int res, unsigned int flags)
{
}

void flow_run_all(void *asrd)
{
	struct asrd *d = asrd;
	bool more = false;

	for (struct group *g = d->groups; g; g = g->next) {
		if (!g->runnable)
			continue;
		g->runnable = false;
		if (g->source)
			run(g);
		more |= g->runnable;
	}
	d->again.done = nothing;
	if (more && !d->again.active)
		loop_timeout(d->loop, &d->again, 1);	/* see what else happened, then go on */
}

void flow_ack(struct group *g, const struct msg_ack *ack)
{
	uint64_t end = 0;

	if (!g->open || ack->frame_no > g->pack.frame_no)
		return;
	while (g->flight_count) {
		const struct flight *f = &g->flights[g->flight_first];

		if (f->frame_no > ack->frame_no)
			break;
		if (f->ring_end)
			end = f->ring_end;
		if (f->time_ns)
			g->durable_time_ns = f->time_ns;
		g->durable_seq = f->last_seq;
		g->flight_first = (g->flight_first + 1) % FLIGHTS;
		g->flight_count--;
	}
	g->durable_frame = ack->frame_no;
	source_release(g->source, end);
	tell_durable(g, false);
	resync_acked(g->resync, ack->frame_no);
	detour_acked(g);
	flow_kick(g);
}

/* ----------------------------------------------------------- opening, closing */

static int make_kernel_group(struct group *g, struct why *why)
{
	struct asr_group_create c = { .ring_bytes = g->ring_bytes };
	struct asr_group_name old;
	uint64_t used = g->first_seq > g->saved_seq ? g->first_seq : g->saved_seq;
	int r;

	if (used < detour_seq(g))
		used = detour_seq(g);	/* the spool goes first */

	/* above all that was ever used, known or not: a state file is never 2^32 records old */
	g->first_seq = g->first_seq ? used + (1ull << 32) : 1;
	r = group_save_state(g, why);
	if (r)
		return r;
	memcpy(c.name, g->name, sizeof(c.name));
	memcpy(old.name, g->name, sizeof(old.name));
	c.first_seq = g->first_seq;
	r = source_control(g->d->device, ASR_IOC_GROUP_CREATE, &c, why);
	if (r == -EEXIST && !source_control(g->d->device, ASR_IOC_GROUP_DELETE, &old, why))
		r = source_control(g->d->device, ASR_IOC_GROUP_CREATE, &c, why);	/* left behind */
	if (r == -EEXIST)
		return why_set(why, EEXIST, "the kernel has a group %s in use that is not of this asrd: "
			       "see dmsetup table --target asr", g->name);
	if (r == -EDQUOT || r == -ENOMEM)
		return why_set(why, -r, "no memory for a ring of %llu MiB: all rings together may take what the "
			       "module parameter ring_cap_mb says", (unsigned long long)g->ring_bytes >> 20);
	if (r == -EINVAL)
		return why_set(why, EINVAL, "the kernel refused a ring of %llu bytes: a power of two from "
			       "1 MiB to 4 GiB is right", (unsigned long long)g->ring_bytes);
	if (r && (!why || !why->text[0]))
		return why_set(why, -r, "cannot make group %s in the kernel: %s", g->name, strerror(-r));
	return r;
}

/* What works beside the ring's reader, and with it */
static int engines(struct group *g)
{
	const struct resync_args a = { .loop = g->d->loop, .source = g->source, .group = g->name, .emit = flow_emit,
				       .kick = flow_kick, .missing = group_missing, .arg = g };
	struct resync_args with = a;
	int r = compare_create(g->d->ship, g->name, g->pack.stream, g->key, flow_kick, g, &g->compare);

	with.compare = g->compare;
	if (!r)
		r = resync_create(&with, &g->resync);
	if (!r) {
		resync_limit(g->resync, g->resync_limit, g->paused);
		return 0;
	}
	compare_destroy(g->compare);
	g->compare = NULL;
	source_close(g->source, NULL, NULL);
	g->source = NULL;
	return r;
}

/* The numbers that the kernel gives out next must lie beyond what the vault has */
static bool seq_behind(struct group *g)
{
	struct asr_group_info info = { .index = 0 };

	memcpy(info.name, g->name, sizeof(info.name));
	return !source_is_file(g->source) && !source_ioctl(g->source, ASR_IOC_GROUP_INFO, &info) &&
	       info.next_seq <= detour_seq(g);
}

/* On file now, not in a minute: a boot that follows soon begins above these numbers */
static void note_seq(struct group *g)
{
	struct asr_group_info info = { .index = 0 };
	struct why why = { "" };

	memcpy(info.name, g->name, sizeof(info.name));
	if (source_ioctl(g->source, ASR_IOC_GROUP_INFO, &info) || info.next_seq <= g->saved_seq)
		return;
	g->saved_seq = info.next_seq;
	if (group_save_state(g, &why))
		log_warn("group %s: its state file cannot be written: %s", g->name, why.text);
}

int flow_attach(struct group *g, struct why *why)
{
	const struct asrd *d = g->d;
	struct why first = { "" };
	int r;

	if (d->ring_file) {
		r = source_open_file(d->loop, d->ring_file, d->ring_disk, d->batch_delay_ns, flow_kick, g,
				     &g->source, why);
	} else {
		struct asr_group_info info = { .index = 0 };

		memcpy(info.name, g->name, sizeof(info.name));
		r = source_control(d->device, ASR_IOC_GROUP_INFO, &info, &first);
		if (first.text[0])
			return why_set(why, -r, "%s", first.text);
		if (r == -ENOENT || (!r && g->pending && !g->first_seq))
			r = make_kernel_group(g, why);
		if (!r)
			r = source_open(d->loop, d->device, g->name, d->batch_delay_ns, flow_kick, g, &g->source, why);
	}
	if (!r && seq_behind(g)) {
		source_close(g->source, NULL, NULL);
		g->source = NULL;
		return why_set(why, ESTALE, SEQ_BEHIND, "the spool");
	}
	if (!r)
		r = engines(g);
	if (r)
		return r;
	note_seq(g);
	detour_attached(g);
	peers_group_reads(g);
	flow_kick(g);
	return 0;
}

void flow_detach(struct group *g, void (*closed)(void *arg), void *arg)
{
	struct source *s = g->source;

	flow_close(g);
	detour_detached(g);
	resync_destroy(g->resync);
	compare_destroy(g->compare);
	g->resync = NULL;
	g->compare = NULL;
	g->source = NULL;
	g->told_seq = 0;
	peers_group_reads(g);
	g->retry_ns = now_ns() + NS_PER_S;
	if (s)
		source_close(s, closed, arg);
	else if (closed)
		closed(arg);
}

void flow_close(struct group *g)
{
	check_end(g, "the connection to the vault was lost");
	if (g->resync)
		resync_lost(g->resync);
	if (g->compare)
		compare_lost(g->compare);
	g->open = g->opening = false;
	g->flight_count = 0;
	batch_reset(&g->batch);
	pack_end(&g->pack);
	if (!g->source)
		return;
	source_awake(g->source);	/* nothing is read now: no wake-ups */
	if (!g->detour)
		source_seek(g->source, g->durable_seq);
	detour_closed(g);
}

static int parse_open(struct group *g, json_t *p, uint8_t tag[ASR_TAG_BYTES], uint64_t *frame_no, bool *consistent)
{
	json_int_t no, seq, generation;
	const char *hex;
	int c;

	if (json_unpack(p, "{s:I, s:I, s:s, s:b, s:I}", "frame_no", &no, "last_seq", &seq, "last_tag", &hex,
			"consistent", &c, "generation", &generation) || no < 0 || seq < 0)
		return -EPROTO;
	if (!no)
		memset(tag, 0, ASR_TAG_BYTES);
	else if (strlen(hex) != 2 * ASR_TAG_BYTES || hex_decode(hex, tag, ASR_TAG_BYTES))
		return -EPROTO;
	*frame_no = (uint64_t)no;
	*consistent = c;
	g->durable_seq = g->last_seq = (uint64_t)seq;
	g->durable_frame = (uint64_t)no;
	return 0;
}

void flow_all_dirty(struct group *g)
{
	for (uint32_t slot = 0; slot < ASR_DISKS_MAX; slot++)
		flow_disk_dirty(g, slot, 0);
}

/* Whose history the vault has in which slot, as of the stream's end */
static void read_holders(struct group *g, const json_t *p)
{
	json_t *disk;
	size_t i;

	memset(g->holders, 0, sizeof(g->holders));
	json_array_foreach(json_object_get(p, "disks"), i, disk) {
		json_int_t slot = json_integer_value(json_object_get(disk, "slot"));
		const char *name = json_string_value(json_object_get(disk, "name"));

		if (name && slot >= 0 && slot < ASR_DISKS_MAX)
			snprintf(g->holders[slot], sizeof(g->holders[slot]), "%s", name);
	}
}

static void opened(int err, json_t *p, const struct why *why, void *arg)
{
	struct group *g = arg;
	uint8_t tag[ASR_TAG_BYTES];
	uint64_t frame_no, had = g->durable_frame;
	struct why text = { "" }, lost = { "" };
	bool consistent;
	int r;

	g->opening = false;
	if (err == -EPIPE || !g->source)
		return;
	if (err) {
		flow_trouble(g, "the vault refuses the stream: %s", why->text);
		g->retry_ns = now_ns() + 10 * NS_PER_S;
		return;
	}
	r = parse_open(g, p, tag, &frame_no, &consistent);
	if (!r && seq_behind(g))
		r = why_set(&text, ESTALE, SEQ_BEHIND, "the vault");
	if (!r)
		r = detour_opening(g, &text);
	if (!r)
		r = pack_session(&g->pack, g->key, frame_no, tag);
	if (!r && !g->detour)
		r = source_seek(g->source, g->durable_seq);
	if (r) {
		flow_trouble(g, "cannot go on with the stream: %s", text.text[0] ? text.text : strerror(-r));
		if (g->durable_frame < had)
			g->durable_frame = had;	/* to be noticed the next time */
		g->retry_ns = now_ns() + 10 * NS_PER_S;
		return;
	}
	flow_trouble(g, "%s", "");
	read_holders(g, p);
	g->open = true;
	g->flight_first = g->flight_count = 0;
	g->idle_rounds = 0;
	g->discarded = source_discarded(g->source);
	batch_reset(&g->batch);
	log_info("group %s: shipping from sequence %llu, frame %llu", g->name,
		 (unsigned long long)g->durable_seq + 1, (unsigned long long)frame_no + 1);
	if (g->durable_frame < had)	/* it was itself restored: what it has lost is not in the ring any more */
		why_set(&lost, ESTALE, "the vault had acknowledged frame %llu and has %llu now",
			(unsigned long long)had, (unsigned long long)g->durable_frame);
	if (!detour_opened(g, consistent, lost.text[0] ? lost.text : NULL))
		resync_open(g->resync, consistent, frame_no);
	flow_kick(g);
}

void flow_open(struct group *g)
{
	char group[2 * ASR_UUID_BYTES + 1], stream[2 * ASR_UUID_BYTES + 1];

	if (g->open || g->opening || g->pending || !g->source || !ship_is_up(g->d->ship))
		return;
	hex_encode(g->pack.group, ASR_UUID_BYTES, group);
	hex_encode(g->pack.stream, ASR_UUID_BYTES, stream);
	g->opening = !ship_call(g->d->ship, "stream.open",
				json_pack("{s:s, s:s, s:I}", "group", group, "stream", stream, "generation",
					  (json_int_t)g->pack.generation), opened, g);
}

/* ----------------------------------------------------------------- figures */

uint64_t flow_oldest_ns(const struct group *g)
{
	for (uint32_t i = 0; i < g->flight_count; i++) {
		const struct flight *f = &g->flights[(g->flight_first + i) % FLIGHTS];

		if (f->time_ns)
			return f->time_ns;
	}
	if (g->detour && spool_oldest_ns(g->spool))
		return spool_oldest_ns(g->spool);
	if (g->spooled.records)
		return g->spooled.first_time_ns;
	if (g->batch.ring_time_ns)
		return g->batch.ring_time_ns;
	return g->source ? source_peek_ns(g->source) : 0;
}

uint64_t flow_waiting_bytes(const struct group *g)
{
	uint64_t bytes = g->batch.ring_payload + g->spooled.ring_payload + (g->spool ? spool_unread(g->spool) : 0);

	for (uint32_t i = 0; i < g->flight_count; i++)
		bytes += g->flights[(g->flight_first + i) % FLIGHTS].payload;
	if (g->source)	/* not read yet: headers count, they are one part in sixty-five */
		bytes += source_head(g->source) - source_pos(g->source);
	return bytes;
}
