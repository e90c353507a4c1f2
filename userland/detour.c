// SPDX-License-Identifier: Apache-2.0
/*
 * The way through the spool: when the ring's records take it, and when they go
 * straight to the vault again.
 *
 * Design. Three steps of a ladder: ring, spool, TRACK. Straight is the ring to
 * the vault (flow.c). The detour begins when the vault has been away for some
 * seconds, or a quarter of the ring waits for it; and with a vault that is
 * there but slow, when half of the ring is in use and the connection takes no
 * more. Then all of the ring goes to the spool's end, and the spool's front to
 * the vault as long as it is there. When hardly anything is left in the spool,
 * the ring waits for a moment, the rest is shipped, and it is straight again.
 * A spool that takes nothing more (full, failed, refused) leaves the records
 * in the ring, and the kernel goes to TRACK when that is full: the third step.
 * Each step is one line in the log.
 *
 * The detour begins at the ring's tail, not at the reader: frames sent and not
 * acknowledged go into the spool, too, for the connection may break, and the
 * ring has one tail only. What the vault has already, by number, is left out
 * when the spool is read.
 *
 * There is no resync on the detour: its records have to stand behind all that
 * was captured before the read. What was taken from the dirty map is given
 * back, and the resync begins again when it is straight. Only that the copy is
 * not consistent is said at once (RESYNC_BEGIN): when the detour begins so, and
 * where a write was stepped over that the lower device failed.
 *
 * What is in the spool is not in the ring any more. That some may be there is
 * on file (state.json) before the first record is, and where it begins. So a
 * spool that is gone, lacks a file, or may not be read, is noticed by its numbers
 * and those of the ring's next records, and the stream is begun anew, with all disks dirty. That it must be is on file,
 * too, until the vault has the frame where it is: whatever comes in between, no
 * record behind a hole is shipped as if there were none.
 *
 * Invariants. Records reach the vault in the order of the ring, each once,
 * with their own numbers and times. The kernel is never told that a spooled
 * record is durable.
 *
 * Context. The loop's thread.
 */
#include <errno.h>
#include <stdarg.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include "source.h"

#define AWAY_NS		5000000000ull	/* a vault that comes back sooner costs no file */
#define RETRY_NS	10000000000ull
#define READ_RETRY_NS	1000000000ull
#define READ_TRIES	10
#define SPOOL_DELAY_NS	250000000ull	/* nobody waits for these: full frames, which drain fast */
#define SHARE_BYTES	(8u << 20)	/* of ring, in a turn */
#define REST_MIN	(256ull << 10)
#define REST_MAX	(8ull << 20)
#define FILE_MAX	65536

/* ------------------------------------------------------------ the folder */

struct below {
	const struct asrd *d;
	const char *group;		/* out: whose disk it is */
	char disk[ASR_NAME_BYTES];
};

/* Is it the device below a protected disk? */
static bool is_below(dev_t dev, void *arg)
{
	struct below *b = arg;

	for (struct group *g = b->d->groups; g; g = g->next) {
		struct asr_disk_info info = { .slot = 0 };

		for (; g->source && info.slot < ASR_DISKS_MAX; info.slot++) {
			if (source_ioctl(g->source, ASR_IOC_DISK_INFO, &info) || !info.active ||
			    makedev(info.lower_major, info.lower_minor) != dev)
				continue;
			b->group = g->name;
			memcpy(b->disk, info.name, sizeof(b->disk));
			return true;
		}
	}
	return false;
}

/* What is written there must not come back through a ring */
static int check_folder(const char *dir, void *arg, struct why *why)
{
	const struct group *g = arg;
	struct below b = { .d = g->d };
	cleanup_free char *path = strdup(dir);
	struct stat st;
	char *slash;

	while (path && stat(path, &st) && (slash = strrchr(path, '/')) && slash != path)
		*slash = 0;
	if (!path || !devstack_find(path, is_below, &b))
		return 0;
	return why_set(why, EPERM, "%s lies on disk %s of group %s: all that is written to the spool would be captured "
		       "again. Give it a file system that is not protected ([spool] dir)", dir, b.disk, b.group);
}

/* ------------------------------------------------------------- the whole */

uint64_t detour_seq(const struct group *g)
{
	uint64_t seq = g->spool ? spool_last_seq(g->spool) : 0;

	return seq > g->durable_seq ? seq : g->durable_seq;
}

/* The spool begins elsewhere: what was before is at the vault, as long as nothing was missing */
static void note_front(struct group *g)
{
	uint64_t first = spool_first_seq(g->spool);

	if (!g->spool_judged || !first || g->spool_from == first - 1)
		return;
	g->spool_from = first - 1;
	group_save_state(g, NULL);
}

static void written(uint64_t ring_end, unsigned int attachment, void *arg)
{
	struct group *g = arg;

	if (g->source && attachment == g->attachment)
		source_release(g->source, ring_end);
	note_front(g);
}

static void failed(void *arg)
{
	struct group *g = arg;

	batch_reset(&g->spooled);
	if (g->source && g->detour)
		source_seek(g->source, detour_seq(g));
}

static const struct spool_ops spool_ops = { written, failed, flow_kick, check_folder };

int detour_open(struct group *g)
{
	struct spool_owner o = { .key = g->key };
	cleanup_free char *text = NULL;
	cleanup_json vault = NULL;
	const char *id;
	char path[512];

	if (snprintf(path, sizeof(path), "%s/vault.json", g->d->state_dir) < (int)sizeof(path) &&
	    !file_read(path, FILE_MAX, &text, NULL, NULL))
		vault = json_loads(text, 0, NULL);
	id = json_string_value(json_object_get(vault, "host_id"));
	snprintf(o.host_id, sizeof(o.host_id), "%s", id ? id : "");
	if (gethostname(o.host, sizeof(o.host) - 1))
		strcpy(o.host, "?");
	memcpy(o.name, g->name, sizeof(o.name));
	memcpy(o.group, g->pack.group, ASR_UUID_BYTES);
	memcpy(o.stream, g->pack.stream, ASR_UUID_BYTES);
	g->away_ns = now_ns();
	return spool_open(g->d->loop, g->d->spool_dir, g->d->spool_max, &o, &g->pack, &spool_ops, g, &g->spool);
}

/* The number of the next record to be read, be it there or not; 0: it cannot be known */
static uint64_t next_in_ring(struct group *g, bool *is_new)
{
	struct asr_group_info info = { .index = 0 };
	uint64_t seq;

	memcpy(info.name, g->name, sizeof(info.name));
	if (source_ioctl(g->source, ASR_IOC_GROUP_INFO, &info))	/* first: a record that comes now has that number */
		info.next_seq = 0;
	seq = source_first(g->source, is_new);
	return seq ? seq : info.next_seq;
}

void detour_attached(struct group *g)
{
	g->attachment++;
	g->ring_seq = next_in_ring(g, &g->ring_is_new);
	g->spool_judged |= !g->spooling;
	batch_reset(&g->spooled);
	if (spool_has_content(g->spool))
		g->detour = true;
	if (g->detour)
		source_seek(g->source, detour_seq(g));
}

void detour_detached(struct group *g)
{
	batch_reset(&g->spooled);	/* its payload lies in the ring */
}

/* Records behind those that the vault and the spool have are not in the ring any more. As long as the vault
   has not said what it has, that may be so; then the spool takes nothing that would hide it. */
static bool is_torn(const struct group *g)
{
	return !g->spool_judged && g->ring_seq > detour_seq(g) + 1 && !g->ring_is_new;
}

/* ... or between the vault's last and the spool's first */
static bool is_torn_in_front(const struct group *g)
{
	uint64_t first = spool_first_seq(g->spool);

	return !g->spool_judged && first > g->durable_seq + 1 && first > g->spool_from + 1;
}

/* The kernel's group was made anew with numbers that the vault knows: how much of its ring is durable cannot
   be told by them. Or asrd died before it had released the ring's very first records; the price is the same. */
static bool is_reused(const struct group *g)
{
	return g->ring_is_new && g->ring_seq <= g->durable_seq;
}

/* -------------------------------------------------------- to and fro */

/* No resync, no verify: what they have begun is given back */
static void pause_engines(struct group *g, const char *why)
{
	check_end(g, why);
	resync_lost(g->resync);
	compare_lost(g->compare);
	batch_reset(&g->batch);
}

struct asr_rec detour_lost_rec(uint64_t seq)
{
	return (struct asr_rec){ .kind = ASR_KIND_RESYNC_BEGIN, .disk = ASR_DISK_NONE, .seq = seq,
				 .time_ns = now_real_ns() };
}

/* The stream as the vault has it, up to what was sent */
static void leave_stream(struct group *g)
{
	struct asr_rec lost;

	g->held_consistent = resync_consistent(g->resync);
	pause_engines(g, "the vault does not keep up, and the records go to the spool");
	g->last_seq = g->flight_count ?
		g->flights[(g->flight_first + g->flight_count - 1) % FLIGHTS].last_seq : g->durable_seq;
	lost = detour_lost_rec(g->last_seq);
	if (!g->held_consistent)	/* was that said? If it was in the batch, it has gone with that */
		flow_add(g, &lost, NULL);
}

static void begin(struct group *g, const char *why)
{
	uint64_t used = source_head(g->source) - source_tail(g->source);

	if (g->open && g->over_frame > g->pack.frame_no)
		return;		/* that the stream begins anew has not been sent yet */
	if (now_ns() < g->spool_retry_ns || is_torn(g) || spool_begin(g->spool))
		return;
	if (!g->spooling || (g->ring_is_new && !spool_has_content(g->spool))) {	/* a power cut may have taken it */
		bool before = g->spooling;
		struct why disk = { "" };

		g->spooling = true;
		g->spool_from = detour_seq(g);
		if (g->ring_is_new && g->ring_seq > g->spool_from)
			g->spool_from = g->ring_seq - 1;	/* what is missing before it, it says itself */
		if (group_save_state(g, &disk)) {
			log_err("group %s: no use of the spool, its state file cannot be written: %s", g->name,
				disk.text);
			g->spooling = before;
			g->spool_retry_ns = now_ns() + RETRY_NS;
			return;
		}
	}
	log_warn("group %s: ring -> spool: %s; %.0f%% of the ring are in use", g->name, why,
		 (double)used * 100 / (double)source_bytes(g->source));
	if (g->open)
		leave_stream(g);
	spool_rewind(g->spool);
	batch_reset(&g->spooled);
	source_seek(g->source, detour_seq(g));
	g->detour = true;
	g->closing = false;
}

static void end(struct group *g)
{
	log_info("group %s: spool -> ring: all that was in the spool is shipped, up to sequence %llu", g->name,
		 (unsigned long long)g->last_seq);
	g->detour = g->closing = false;
	batch_reset(&g->spooled);
	source_seek(g->source, g->last_seq);
	resync_open(g->resync, g->held_consistent, g->durable_frame);
	flow_kick(g);
}

bool detour_wanted(struct group *g)
{
	uint64_t bytes = source_bytes(g->source), head = source_head(g->source), away = now_ns() - g->away_ns;
	char text[80];

	if (g->detour || g->pending || !spool_usable(g->spool))
		return g->detour;
	if (g->open) {
		if (head - source_tail(g->source) > bytes / 2 && !flow_has_room(g))
			begin(g, "the vault is slower than the writers");
	} else if (head - source_pos(g->source) >= bytes / 4 || (away >= AWAY_NS && source_readable(g->source))) {
		snprintf(text, sizeof(text), "the vault has been away for %.1f s", (double)away / 1e9);
		begin(g, text);
	}
	return g->detour;
}

uint64_t detour_due(const struct group *g)
{
	if (g->detour)
		return g->spooled.records ? g->spooled.due_ns : 0;
	return !g->open && source_readable(g->source) ? g->away_ns + AWAY_NS : 0;
}

/* ------------------------------------------------------- ring -> spool */

static int put(struct group *g)
{
	int r = spool_add(g->spool, &g->spooled, g->attachment);

	if (!r)
		batch_reset(&g->spooled);
	return r;
}

static int gather(struct group *g, const struct asr_rec *rec, const uint8_t *payload, uint64_t ring_end)
{
	int r = batch_add(&g->spooled, rec, payload);

	if (r == -ENOSPC && !(r = put(g)))
		r = batch_add(&g->spooled, rec, payload);
	if (r)
		return -EAGAIN;
	if (g->spooled.records == 1)
		g->spooled.due_ns = now_ns() + SPOOL_DELAY_NS;
	g->spooled.ring_end = ring_end;
	return 0;
}

/* One record: 1; 0: none; -EAGAIN: the spool takes none now; -EBADMSG */
static int take(struct group *g)
{
	uint64_t before = source_pos(g->source), end;
	struct asr_rec rec, lost;
	const uint8_t *payload;
	int n = source_next(g->source, &rec, &payload), r = 0;

	end = source_pos(g->source);
	if (n < 0)
		return n;
	if (flow_write_failed(g)) {	/* under the number of a record that was stepped over */
		lost = detour_lost_rec(n ? rec.seq - 1 : source_seen_seq(g->source));
		r = gather(g, &lost, NULL, n ? before : end);
	}
	if (!r && n)
		r = gather(g, &rec, payload, end);
	if (r) {
		source_back(g->source, before);
		return r;
	}
	if (!n)
		return 0;
	g->spooled.ring_payload += rec.payload_bytes;
	g->in_bytes += rec.payload_bytes;
	if (rec.kind == ASR_KIND_DISK)
		g->watch_ns = 0;	/* it may have left */
	return 1;
}

static int fill(struct group *g)
{
	uint64_t share = source_pos(g->source) + SHARE_BYTES;
	int r = -EAGAIN;

	while (!g->closing && spool_usable(g->spool) && !is_torn(g)) {
		r = spool_has_room(g->spool) ? take(g) : -EAGAIN;
		if (r <= 0)
			break;
		g->idle_rounds = 0;
		if (source_pos(g->source) > share)
			break;
	}
	if (g->spooled.records && (g->closing || now_ns() >= g->spooled.due_ns) && spool_usable(g->spool))
		put(g);
	spool_flush(g->spool);
	return r;
}

/* ------------------------------------------------------ spool -> vault */

static int ship(struct group *g, const struct frame_view *v, const uint8_t *plain)
{
	int r = 0;

	for (uint32_t i = 0; i < v->hdr.records && !r; i++) {
		const struct frame_rec *f = &v->recs[i];
		const uint8_t *payload = wire_kind_has_payload(f->kind) ? plain + f->offset :
					 wire_kind_has_meta(f->kind) ? v->meta + f->offset : NULL;
		struct asr_rec rec = {
			.seq = f->seq, .time_ns = f->time_ns, .sector = f->sector, .sectors = f->sectors,
			.payload_bytes = f->bytes, .kind = f->kind, .disk = f->disk, .flags = f->flags,
		};

		if (f->seq <= g->last_seq)
			continue;
		r = flow_add(g, &rec, payload);
		if (r)
			break;
		g->last_seq = f->seq;
		if (!g->batch.ring_time_ns)
			g->batch.ring_time_ns = f->time_ns;
		g->batch.ring_payload += f->bytes;
		flow_saw(g, &rec, payload);
		if (f->kind >= ASR_KIND_STATE && batch_loses_consistency(&rec, payload))
			g->held_consistent = false;
	}
	return r || !g->batch.records ? r : flow_send(g);
}

/* Damage is for good. An error of the disk is tried some times; want of memory or descriptors passes */
static void unreadable(struct group *g, int err, const char *why)
{
	bool passes = err == -ENOMEM || err == -EMFILE || err == -ENFILE || err == -EINTR;

	if (err == -EBADMSG || (!passes && g->spool_read_tries >= READ_TRIES)) {
		detour_start_over(g, "the spool is damaged: %s", why);
		return;
	}
	if (!g->spool_read_tries++)
		log_warn("group %s: the spool cannot be read: %s; it is tried again each second", g->name, why);
	g->spool_read_ns = now_ns() + READ_RETRY_NS;
	spool_rewind(g->spool);
}

static void drain(struct group *g)
{
	struct frame_view v;
	const uint8_t *plain;
	struct why why = { "" };
	int r = -EAGAIN;

	if (now_ns() < g->spool_read_ns)
		return;
	while (g->open && flow_has_room(g) && (r = spool_read(g->spool, &v, &plain, &why)) == 1) {
		uint64_t before = g->last_seq;

		if (ship(g, &v, plain))
			return;	/* the connection is given up */
		spool_pass(g->spool);
		if (g->last_seq > before)
			g->spool_read_tries = 0;
	}
	if (r < 0 && r != -EAGAIN)
		unreadable(g, r, why.text[0] ? why.text : strerror(-r));
}

static uint64_t rest(const struct group *g)
{
	uint64_t bytes = source_bytes(g->source) / 8;

	return bytes < REST_MIN ? REST_MIN : bytes > REST_MAX ? REST_MAX : bytes;
}

/* Hardly anything is left: the ring waits for it */
static void finish(struct group *g)
{
	uint64_t unread = spool_unread(g->spool), used = source_head(g->source) - source_pos(g->source);

	if (!unread && (!g->spooled.records || !spool_usable(g->spool)))
		end(g);
	else if (g->closing && used > source_bytes(g->source) / 2)
		g->closing = false;
	else if (!g->closing && unread <= rest(g) && used <= source_bytes(g->source) / 4)
		g->closing = g->runnable = true;
}

int detour_run(struct group *g)
{
	int r = fill(g);

	if (r == -EBADMSG || !g->open)
		return r;
	drain(g);
	if (g->open && g->detour)
		finish(g);
	return r;
}

/* ----------------------------------------------------- the connection */

int detour_opening(struct group *g, struct why *why)
{
	struct why reason = { "" };

	if (!is_torn(g) || !spool_refused(g->spool, &reason))
		return 0;
	return why_set(why, EPERM, "records %llu to %llu are in the spool, and that cannot be used: %.250s. "
		       "asrctl spool discard %s --yes %s gives them up and copies all disks again",
		       (unsigned long long)g->durable_seq + 1, (unsigned long long)g->ring_seq - 1, reason.text,
		       g->name, g->name);
}

bool detour_opened(struct group *g, bool consistent, const char *vault_lost)
{
	bool torn = is_torn(g), torn_in_front = is_torn_in_front(g), reused = is_reused(g);

	g->spool_judged = true;
	g->ring_is_new = false;
	g->held_consistent = consistent;
	spool_forget(g->spool, g->durable_seq);
	spool_rewind(g->spool);
	if (vault_lost)
		detour_start_over(g, "%s", vault_lost);
	else if (g->over)
		detour_start_over(g, "the spool was given up, and the vault has nothing of that yet");
	else if (reused)
		detour_start_over(g, "the kernel gives out sequence numbers that the vault has seen, from %llu on",
				  (unsigned long long)g->ring_seq);
	else if (torn)
		detour_start_over(g, "the spool's end is missing");
	else if (torn_in_front)
		detour_start_over(g, "the spool's first records are missing");
	else
		return g->detour;
	return true;
}

void detour_closed(struct group *g)
{
	g->away_ns = now_ns();
	if (!g->detour && spool_has_content(g->spool) && spool_last_seq(g->spool) > g->durable_seq) {
		g->detour = true;	/* sent, but not acknowledged */
		source_seek(g->source, detour_seq(g));
	}
	g->closing = false;
	g->over_frame = 0;
	spool_rewind(g->spool);
	flow_kick(g);
}

void detour_acked(struct group *g)
{
	spool_forget(g->spool, g->durable_seq);
	note_front(g);
	if (g->over_frame && g->over_frame <= g->durable_frame) {
		g->over = false;
		g->over_frame = 0;
		group_save_state(g, NULL);
	}
	if (g->spooling && !g->detour && !spool_has_content(g->spool)) {
		g->spooling = false;
		group_save_state(g, NULL);
	}
}

/* STATE and DISK records: no disk is there until its record comes */
static int emit_start(struct group *g)
{
	struct asr_rec rec = { .kind = ASR_KIND_STATE, .disk = ASR_DISK_NONE, .seq = g->last_seq,
			       .time_ns = now_real_ns(), .payload_bytes = sizeof(struct asr_rec_state) };
	struct asr_rec_state state = { ASR_STATE_CAPTURE, source_state(g->source), ASR_WHY_START, 0 };
	int r = flow_add(g, &rec, (const uint8_t *)&state);

	rec.kind = ASR_KIND_DISK;
	rec.payload_bytes = sizeof(struct asr_rec_disk);
	for (rec.disk = 0; !r && rec.disk < ASR_DISKS_MAX; rec.disk++) {
		struct asr_disk_info info = { .slot = rec.disk };
		struct asr_rec_disk disk = { .flags = ASR_DISKF_DIRTY };

		if (source_ioctl(g->source, ASR_IOC_DISK_INFO, &info) || !info.active)
			continue;
		disk.sectors = info.sectors;
		memcpy(disk.name, info.name, sizeof(disk.name));
		r = flow_add(g, &rec, (const uint8_t *)&disk);
	}
	return r;
}

/* On file before anything is thrown away */
static int note_over(struct group *g, struct why *why)
{
	g->over = true;
	g->over_frame = 0;
	return group_save_state(g, why);
}

/*
 * It goes on under the number of the last record that was read, be it lost or not: one that had its turn already
 * would name two states of the disks, and the earlier of them could not be restored any more.
 */
void detour_start_over(struct group *g, const char *fmt, ...)
{
	struct why why = { "" };
	char text[256];
	uint64_t next;
	va_list ap;
	bool is_new;

	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	log_err("group %s: the stream begins anew: %s. All disks are copied again", g->name, text);
	if (note_over(g, &why))
		log_err("group %s: that is not on file: %s", g->name, why.text);
	next = next_in_ring(g, &is_new);
	g->last_seq = detour_seq(g) > g->last_seq ? detour_seq(g) : g->last_seq;
	if (next > g->last_seq)
		g->last_seq = next - 1;
	if (!spool_refused(g->spool, NULL))	/* somebody else's stays */
		spool_discard(g->spool, NULL);
	g->detour = g->closing = false;
	g->spool_read_tries = 0;
	batch_reset(&g->spooled);
	flow_all_dirty(g);
	source_seek(g->source, g->last_seq);
	next = next_in_ring(g, &is_new);
	if (g->open && next && next <= g->last_seq) {
		log_info("group %s: a write is under way whose number the vault has seen: its end is awaited", g->name);
		flow_close(g);
		g->retry_ns = now_ns() + READ_RETRY_NS;
		return;
	}
	if (!emit_start(g) && g->open) {
		g->over_frame = g->pack.frame_no + 1;
		resync_open(g->resync, false, g->durable_frame);
	}
	flow_kick(g);
}

int detour_discard(struct group *g, struct why *why)
{
	int r;

	if (!spool_has_content(g->spool) && !spool_refused(g->spool, NULL))
		return why_set(why, ENODATA, "the spool of group %s is empty", g->name);
	if (g->open && !flow_has_room(g))
		return why_set(why, EAGAIN, "the vault takes nothing at the moment: try again");
	r = note_over(g, why);
	if (r)
		return r;
	log_warn("group %s: the spool is discarded by command; all disks will be copied again", g->name);
	r = spool_discard(g->spool, why);
	if (g->open) {
		pause_engines(g, "the spool was discarded");
		detour_start_over(g, "the spool was discarded by command");
	} else if (g->source) {
		flow_all_dirty(g);
	}
	flow_kick(g);
	return r;
}

json_t *detour_status(const struct group *g)
{
	json_t *s = g->spool ? spool_status(g->spool) : json_object();
	const char *state = json_string_value(json_object_get(s, "state"));

	if (state && (!strcmp(state, "in use") || (!strcmp(state, "empty") && g->detour)))
		json_object_set_new(s, "state", json_string(g->open ? "draining" : "spooling"));
	return s;
}
