/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The plan of the vault: how frames are kept, found and brought back.
 *
 *   vaultd -> ingest -> segment -> store      (receiving)
 *   store -> segment -> index -> point -> restore   (reading; no daemon needed)
 *
 * A group's folder alone, with a private key, is enough to read; the
 * catalogue only says who may write. docs/vault-format.md has the drawings.
 */
#ifndef ASR_VAULT_H
#define ASR_VAULT_H

#include "asr.h"

/* ------------------------------------------------------------ catalog.c */

/* DIR/vault.db, SQLite; daemon and asrctl may have it open together. */
struct catalog;
#define CATALOG_ID_BYTES	33	/* 32 hex digits and the NUL */

struct catalog_key {			/* a registration key */
	char id[17];
	uint8_t secret_hash[32];	/* SHA-256(secret) */
	uint64_t created_ns, expires_ns;
	uint64_t used_ns;		/* 0: not yet */
	uint64_t revoked_ns;		/* 0: not */
	char host_id[CATALOG_ID_BYTES];	/* who used it, or "" */
	char for_host[CATALOG_ID_BYTES];	/* it gives this host, which is known, a new certificate; or "" */
};

struct catalog_host {
	char id[CATALOG_ID_BYTES];	/* of "asr:host:ID" */
	char name[ASR_NAME_BYTES];
	char serial[TLS_SERIAL_BYTES];	/* of its newest certificate, hex (tls_cert_serial) */
	uint64_t enrolled_ns, expires_ns;
	uint64_t revoked_ns;		/* 0: it has a certificate that counts */
};

struct catalog_group {
	uint8_t uuid[ASR_UUID_BYTES];
	char name[ASR_NAME_BYTES];
	char host_id[CATALOG_ID_BYTES];
	uint8_t stream[ASR_UUID_BYTES];
	uint64_t generation, created_ns;
	uint64_t deleted_ns;		/* 0: has a source. Else history only */
	uint64_t epoch;			/* +1 with each change of its members, 1 to GROUP_EPOCHS */
	uint64_t mark_ms, hold_ms;	/* marks over several hosts: how often, how long one may hold */
};
#define GROUP_EPOCHS	65535u
#define GROUP_MARK_MS	1000u		/* unless set otherwise; 100 ms to 1 h, or 0: none */
#define GROUP_HOLD_MS	50u		/* 1 to 1000 */

/* A host in a group, with a stream of its own. joined_ns 0: it may join; gone_ns: it has left */
struct catalog_member {
	char host_id[CATALOG_ID_BYTES];
	char host[ASR_NAME_BYTES];
	uint8_t stream[ASR_UUID_BYTES];
	uint64_t joined_ns, gone_ns;
};

/* create: makes DIR (0700) when missing; -EEXIST when it has a catalogue.
   open: -ENOENT with why when DIR is no vault. */
int catalog_create(const char *dir, struct why *why);
int catalog_open(const char *dir, struct catalog **out, struct why *why);
void catalog_close(struct catalog *cat);	/* NULL is fine */

int catalog_key_add(struct catalog *cat, const struct catalog_key *k, struct why *why);
int catalog_key_get(struct catalog *cat, const char *id, struct catalog_key *k, struct why *why);
/* each: non-zero ends the walk and is returned */
int catalog_keys(struct catalog *cat, int (*each)(const struct catalog_key *k, void *arg),
		 void *arg, struct why *why);
int catalog_key_revoke(struct catalog *cat, const char *id, struct why *why);
/*
 * One transaction: the key is burnt and the host with its certificate is
 * recorded, or nothing. -ENOENT unknown key, -EKEYREVOKED, -EALREADY used,
 * -EKEYEXPIRED (against now_ns), each with why. shown: the serial of the
 * certificate that h->id has shown, or ""; -EKEYREJECTED: it does not count, and
 * the key is not one that is made for this host.
 */
int catalog_enrol(struct catalog *cat, const char *key_id, uint64_t now,
		  const struct catalog_host *h, const char *shown, struct why *why);
int catalog_host_find(struct catalog *cat, const char *name, struct catalog_host *h, struct why *why);	/* or id */
int catalog_host_get(struct catalog *cat, const char *id, struct catalog_host *h, struct why *why);
int catalog_hosts(struct catalog *cat, int (*each)(const struct catalog_host *h, void *arg),
		  void *arg, struct why *why);
/* All its certificates, and the registration keys made for it that are not used. -EALREADY: it had neither */
int catalog_host_revoke(struct catalog *cat, const char *id, struct why *why);
/* Does it count? -ENOENT: no such host; -EKEYREJECTED: not this host's; -EKEYREVOKED */
int catalog_cert_check(struct catalog *cat, const char *host_id, const char *serial, struct why *why);
/* Serials of those that count: [text]; NULL: the catalogue cannot be read */
json_t *catalog_certs(struct catalog *cat, const char *host_id);
/* How calls take another's lock: they wait for it, or fail at once with -EBUSY */
void catalog_patience(struct catalog *cat, bool patient);
/* Has another process changed it since the last call? True when that is not known */
bool catalog_changed(struct catalog *cat);
/* -EEXIST: the name is taken by a group that has a source, or the uuid is */
int catalog_group_add(struct catalog *cat, const struct catalog_group *g, struct why *why);
int catalog_group_get(struct catalog *cat, const uint8_t uuid[ASR_UUID_BYTES],
		      struct catalog_group *g, struct why *why);
int catalog_groups(struct catalog *cat, int (*each)(const struct catalog_group *g, void *arg),
		   void *arg, struct why *why);
int catalog_group_delete(struct catalog *cat, const uint8_t uuid[ASR_UUID_BYTES], struct why *why);
/* By its name, one that is not deleted */
int catalog_group_find(struct catalog *cat, const char *name, struct catalog_group *g, struct why *why);
int catalog_group_marks(struct catalog *cat, const uint8_t uuid[ASR_UUID_BYTES], uint64_t mark_ms, uint64_t hold_ms,
			struct why *why);
/* All there ever were, by host id */
int catalog_members(struct catalog *cat, const uint8_t group[ASR_UUID_BYTES],
		    int (*each)(const struct catalog_member *m, void *arg), void *arg, struct why *why);
int catalog_member_admit(struct catalog *cat, const uint8_t group[ASR_UUID_BYTES], const char *host_id,
			 struct why *why);
/* g->epoch: what it is from now on. -EACCES: not admitted */
int catalog_member_join(struct catalog *cat, const struct catalog_group *g, const struct catalog_member *m,
			struct why *why);
/* g->deleted_ns not 0: with it the group ends */
int catalog_member_leave(struct catalog *cat, const struct catalog_group *g, const char *host_id, struct why *why);
int catalog_member_refuse(struct catalog *cat, const uint8_t group[ASR_UUID_BYTES], const char *host_id,
			  struct why *why);	/* admitted no longer; -ENOENT: it was not */
/* Who made a group is in it: of one that an older daemon has made since the upgrade */
int catalog_member_first(struct catalog *cat, const struct catalog_group *g, struct why *why);
/* Does SQLite find its file whole? -EBADMSG: what it says */
int catalog_sound(struct catalog *cat, struct why *why);
/* Who did what; never fails its caller: a failure is logged. */
void catalog_audit(struct catalog *cat, const char *who, const char *what, const char *detail);

/* -------------------------------------------------------------- store.c */

/*
 * Write-once objects under names, by put-if-absent, get-range, head, list and
 * delete: what an object store can do as well as a folder. Names are relative
 * ("groups/<uuid>/segments/<x>.seg"), without "..".
 */
struct store;
int store_open(const char *dir, struct store **out, struct why *why);
void store_close(struct store *s);		/* NULL is fine */
int store_put(struct store *s, const char *name, const void *data, size_t bytes);	/* -EEXIST */
/* exactly bytes, or -ENODATA when the object ends before */
int store_get(struct store *s, const char *name, uint64_t offset, void *buf, size_t bytes);
/* A hint: these bytes will be asked for soon; reading them begins, nobody waits */
void store_ahead(struct store *s, const char *name, uint64_t offset, size_t bytes);
int store_head(struct store *s, const char *name, uint64_t *bytes);
/* Names directly under folder, sorted; each: without the folder, non-zero ends */
int store_list(struct store *s, const char *folder, int (*each)(const char *name, void *arg), void *arg);
int store_delete(struct store *s, const char *name);
/*
 * The active segment is a local file that grows: name.open until it is
 * sealed, then name.seg. open: O_CREAT | O_EXCL; the folder is synced.
 */
int store_tail_create(struct store *s, const char *name);		/* fd or -errno */
int store_tail_open(struct store *s, const char *name);			/* fd or -errno */
/* .open -> .seg; the content must be durable. -EEXIST */
int store_tail_seal(struct store *s, const char *name);
/* Path of a name, for messages */
const char *store_path(const struct store *s);

/* ------------------------------------------------------------ segment.c */

#define SEG_MAGIC		0x47455341u	/* "ASEG" */
#define SEG_ENV_MAGIC		0x56455341u	/* "ASEV" */
#define SEG_FOOT_MAGIC		0x4f465341u	/* "ASFO" */
#define SEG_TRAILER_MAGIC	0x52545341u	/* "ASTR" */
#define SEG_VERSION		1
#define SEG_BYTES_DEFAULT	(64u << 20)
#define SEG_FOOT_MAX		(512u << 20)

struct seg_hdr {			/* offset 0 */
	uint32_t magic;
	uint32_t version;
	uint8_t group[ASR_UUID_BYTES];
	uint8_t stream[ASR_UUID_BYTES];
	uint64_t number;		/* of the segment in its stream, from 1 */
	uint64_t first_frame_no;
	uint64_t created_ns;
	uint64_t check;			/* XXH3-64 of all before */
};

struct seg_env {			/* before each frame, at a multiple of 8 */
	uint32_t magic;
	uint32_t bytes;			/* of the frame; padded with zeroes to 8 */
	uint64_t frame_no;
	uint64_t durable_no;		/* frames up to here were durable when this was made */
	uint64_t arrival_ns;
	uint64_t check;			/* XXH3-64 of the frame, seeded with that
					   of the fields before this one */
};

/*
 * The footer: seg_foot, frames, events, disks (the head), then the records;
 * then seg_trailer. All of it follows from the frames and from the segment
 * before: it can be made again, to the same bytes.
 */
struct seg_foot {
	uint32_t magic;
	uint32_t version;
	uint32_t frames, records, events, disks;
	uint32_t begin_consistent;	/* the stream was consistent before the first frame */
	uint32_t end_consistent;
	uint64_t writes;		/* WRITE, ZEROES and DISCARD records */
	uint64_t first_seq, last_seq;
	uint64_t least_time_ns, greatest_time_ns;
	uint64_t last_time_ns;		/* of the last record */
	uint64_t begin_seq;		/* of the last record before; 0: there is none */
	uint64_t begin_time_ns;
	uint8_t prev_tag[ASR_TAG_BYTES];	/* of the frame before the first */
	uint8_t last_tag[ASR_TAG_BYTES];
};

struct seg_frame {			/* in order; frame_no = first + index */
	uint64_t offset;		/* of the frame itself, behind its envelope */
	uint32_t bytes;
	uint32_t records;
	uint64_t first_seq, last_seq;
	uint64_t least_time_ns, greatest_time_ns;
	uint64_t arrival_ns;
	uint8_t tag[ASR_TAG_BYTES];
};

struct seg_rec {			/* records with content, by disk, sector, frame, record */
	uint64_t seq;
	uint64_t sector;
	uint32_t sectors;
	uint32_t frame;			/* index in the frame table */
	uint16_t record;		/* in that frame */
	uint16_t disk;
	uint8_t kind;
	uint8_t reserved[3];
};

struct seg_event {			/* MARK, STATE, DISK, RESYNC_*, in order */
	uint64_t seq;
	uint64_t time_ns;
	uint64_t prev_seq;		/* of the record before it; 0: it is the first */
	uint64_t prev_time_ns;
	uint64_t value;			/* MARK: id, also of the one declared; STATE: from << 32 | to; DISK: sectors */
	uint64_t writes;		/* foot.writes before it */
	uint32_t frame;
	uint16_t record;
	uint16_t disk;
	uint32_t flags;			/* MARK, DISK: theirs; STATE: reason */
	uint8_t kind;
	uint8_t consistency;		/* enum consistency */
	uint8_t consistent;		/* 1: it is, after this record */
	uint8_t reserved;
	char name[ASR_NAME_BYTES];	/* MARK, DISK */
};

struct seg_disk {			/* disks of the stream when the segment begins */
	uint64_t sectors;
	uint16_t disk;
	uint16_t reserved[3];
	char name[ASR_NAME_BYTES];
};

struct seg_trailer {
	uint64_t foot_offset;
	uint64_t foot_bytes;		/* without the trailer */
	uint64_t head_check;		/* XXH3-64 of the footer's head */
	uint64_t recs_check;		/* ... and of its records */
	uint32_t reserved;
	uint32_t magic;
	uint64_t check;			/* XXH3-64 of all before */
};

/* What a stream carries from one segment to the next. */
struct seg_state {
	uint64_t next_frame_no;
	uint64_t next_number;		/* of segments */
	uint64_t last_seq, last_time_ns;
	uint8_t last_tag[ASR_TAG_BYTES];
	bool consistent;
	uint32_t disks;			/* in use below, by slot */
	struct seg_disk disk[ASR_DISKS_MAX];
};

/* The derived part of a segment in memory: gathered frame by frame, or loaded. */
struct seg_table {
	struct seg_foot foot;
	struct seg_frame *frames;	/* NULL when left unloaded; so recs */
	struct seg_rec *recs;
	struct seg_event *events;
	struct seg_disk *disks;
	uint32_t frames_room, recs_room, events_room;
};

void seg_hdr_make(struct seg_hdr *h, const uint8_t *group, const uint8_t *stream,
		  uint64_t number, uint64_t first_frame_no);
int seg_hdr_check(const struct seg_hdr *h, struct why *why);	/* pure */
void seg_env_make(struct seg_env *e, const uint8_t *frame, size_t bytes, uint64_t frame_no,
		  uint64_t durable_no, uint64_t arrival_ns);
/* Envelope, frame and padding, bytes to the end. pure. Returns the bytes they
   take together, or -EBADMSG. */
int64_t seg_env_check(const uint8_t *data, size_t bytes, struct why *why);

void seg_state_init(struct seg_state *st);
/* Frame number, chain and sequence of the next frame: -EBADMSG with why */
int seg_frame_fits(const struct seg_state *st, const struct frame_view *v, struct why *why);
int seg_table_begin(struct seg_table *t, const struct seg_state *st);
/* Adds a parsed frame that fits and stands at offset; moves st on. 0 or -ENOMEM */
int seg_table_add(struct seg_table *t, struct seg_state *st, const struct frame_view *v,
		  uint64_t offset, uint64_t arrival_ns);
/* Sorts the records; footer and trailer as they stand at foot_offset */
int seg_foot_make(struct seg_table *t, uint64_t foot_offset, uint8_t **out, size_t *bytes);
/* pure; strict: every count, place and order. The table owns copies. head: how
   many bytes seg_foot_parse wants, by the fixed part; recs come behind it. */
int seg_trailer_check(const struct seg_trailer *tr, uint64_t file_bytes, struct why *why);
int seg_head_bytes(const struct seg_foot *foot, uint64_t foot_bytes, size_t *head, struct why *why);
int seg_foot_parse(const uint8_t *head, size_t bytes, struct seg_table *t, struct why *why);
int seg_recs_parse(const uint8_t *recs, size_t bytes, struct seg_table *t, struct why *why);
uint64_t seg_check(const void *data, size_t bytes);
/* The state after a segment whose header is h */
void seg_state_after(struct seg_state *st, const struct seg_hdr *h, const struct seg_table *t);
/* One DISK event's effect on the disks in use */
/* What an event does to the disks in use. A capture that begins anew (the host was
   booted) knows none: a disk is in use again from its DISK record on. */
void seg_state_event(struct seg_state *st, const struct seg_event *e);
void seg_state_disk(struct seg_state *st, uint16_t disk, uint64_t sectors, const char *name);
void seg_table_free(struct seg_table *t);
/*
 * Reads the frames of an unsealed segment into t and st, from behind its
 * header up to the first thing that is no whole frame: *end is its offset.
 * *torn: what stands there is neither nothing, zeroes nor a footer. -EBADMSG:
 * what is broken there was durable once, a later envelope says so.
 */
int seg_scan(int fd, uint64_t file_bytes, const struct seg_hdr *h, struct seg_table *t,
	     struct seg_state *st, uint64_t *end, bool *torn, struct why *why);
/* "groups/<uuid>/segments/<stream>-<frame no>", without .open or .seg */
#define SEG_NAME_BYTES	256
void seg_name(const uint8_t *group, const uint8_t *stream, uint64_t first_frame_no,
	      char out[SEG_NAME_BYTES]);

/* -------------------------------------------------------------- index.c */

/* A group folder, opened for reading. */
struct index_seg {
	char file[80];			/* name in segments/, with .seg or .open */
	struct seg_hdr hdr;
	struct seg_table table;		/* records are loaded by index_seg_load */
	uint64_t bytes;			/* of the frames and what precedes them */
	bool sealed;
};

struct index_stream {
	uint8_t uuid[ASR_UUID_BYTES];
	struct index_seg *segs;		/* in order */
	size_t count;
	struct seg_state state;		/* at the end */
	bool torn;			/* bytes behind the last whole frame were ignored */
};

struct index {
	char *dir;			/* the group's folder */
	struct store *store;		/* on it */
	json_t *group;			/* group.json */
	char name[ASR_NAME_BYTES];
	uint8_t uuid[ASR_UUID_BYTES];
	struct index_stream *streams;
	size_t count;
};

/*
 * dir is a vault (then group is a name or 32 hex digits) or a group's folder
 * itself (then group may be NULL, or must match). -ENOENT: no such vault, no
 * such group (why lists those there are); -EBADMSG: damaged, named by place.
 */
int index_open(const char *dir, const char *group, struct index **out, struct why *why);
void index_close(struct index *ix);
/* group.json of a group's folder, as far as it has a name and a uuid */
int index_group_read(const char *dir, json_t **out, struct why *why);
/* Is it a segment's file name; of which stream, from which frame on, sealed? pure */
bool index_seg_name(const char *name, uint8_t stream[ASR_UUID_BYTES], uint64_t *first, bool *sealed);
/* Names of the groups in a vault: [{"name","uuid","host"}] */
json_t *index_groups(const char *dir, struct why *why);
/* Header must be loaded. Trailer and head of the sealed segment folder/seg->file into seg->table */
int index_head_read(struct store *store, const char *folder, struct index_seg *seg,
		    struct seg_trailer *tr, struct why *why);
/* Frame and record table of a sealed segment, read and checked now */
int index_seg_load(struct index *ix, struct index_seg *seg, struct why *why);
void index_seg_unload(struct index_seg *seg);
/*
 * One whole frame, as the footer has it (f, frame_no, the tag before it): its
 * envelope, padding, structure and place checked. buf holds INDEX_FRAME_ROOM,
 * aligned to 8; v points into it. -EBADMSG: why names file, offset and frame.
 * May be called by several threads.
 */
int index_frame_read(struct index *ix, const struct index_seg *seg, const struct seg_frame *f, uint64_t frame_no,
		     const uint8_t *prev_tag, uint8_t *buf, struct frame_view *v, struct why *why);
/* The tag of the frame before one of a loaded segment */
const uint8_t *index_prev_tag(const struct index_seg *seg, uint32_t frame);
#define INDEX_FRAME_ROOM	(sizeof(struct seg_env) + ASR_FRAME_MAX + 8)
/* The wrapped data key of a stream (CMS DER) */
int index_wrapped_key(struct index *ix, size_t stream, uint8_t **der, size_t *bytes, struct why *why);
/* The host whose stream it is, "" when group.json does not say; is it still in the group? */
const char *index_host(const struct index *ix, size_t stream);
const char *index_host_id(const struct index *ix, size_t stream);
bool index_is_member(const struct index *ix, size_t stream);
/* Which streams were the group's in that epoch, and how many; 0: not known, or one is not here. in: of ix->count */
size_t index_epoch(const struct index *ix, uint64_t epoch, bool *in);
/* The newest that had begun by then, by the vault's clock; of a folder that knows none: 1 */
uint64_t index_epoch_at(const struct index *ix, uint64_t time_ns);

/* -------------------------------------------------------------- point.c */

struct point {
	size_t stream;			/* in index.streams */
	uint64_t frame_no;		/* all frames before it wholly, and of it ... */
	uint32_t records;		/* ... so many records, at least 1 */
	uint64_t seq;
	uint64_t time_ns;		/* of the last record that is in */
	char name[ASR_NAME_BYTES];	/* of the mark, or "" */
};

/* From the first to the last point seq, each seq between is a point too. */
struct point_interval {
	uint64_t from_seq, to_seq;
	uint64_t from_time_ns, to_time_ns;
	uint64_t writes;
	bool open;			/* goes on: the stream is consistent now */
	const char *end_reason;		/* why it ended: text, NULL when open */
};

struct point_mark {
	char name[ASR_NAME_BYTES];
	uint64_t id, seq, time_ns;
	bool consistent, held;
	bool app, group;		/* declared so, behind it (ASR_MARK_*) */
};

struct point_disk {
	char name[ASR_NAME_BYTES];
	uint16_t slot;
	uint64_t sectors;
};

struct point_list {
	struct point_interval *intervals;
	struct point_mark *marks;
	size_t interval_count, mark_count;
};

/*
 * text: latest | seq:N | time:RFC3339 | name:X. -EINVAL: not of that form;
 * -ENOENT: unknown name, before the window; -ERANGE: in the future;
 * -ESTALE: not consistent there. why says it, with the window or the nearest
 * consistent points before and after.
 *
 * A group that is spread over hosts has points where a mark has cut all of
 * their streams (cut.c); disk, DISK or HOST/DISK, says whose stream p is to be
 * in. "host:" and one of the forms above: of that disk's host alone. disk NULL:
 * of a group with one stream.
 */
int point_resolve(struct index *ix, const char *text, const char *disk, struct point *p, struct why *why);
/* The same in one stream */
int point_in_stream(struct index *ix, size_t stream, const char *text, struct point *p, struct why *why);
/* Behind an event of a segment; -ESTALE: not consistent there */
int point_behind(struct index *ix, size_t stream, size_t seg, uint32_t event, struct point *p, struct why *why);
const char *point_disk_name(const char *disk);	/* HOST/DISK: DISK */
int point_list_make(struct index *ix, struct point_list *list, struct why *why);
void point_list_free(struct point_list *list);
/* {"group","uuid","streams":[{"stream","frames","last_seq","last_time","consistent"}],
   "disks":[{"name","bytes"}],
   "intervals":[{"from_seq","to_seq","from_time","to_time","writes","open","end_reason"}],
   "marks":[{"name","id","seq","time","consistent","held"}]} */
json_t *point_list_json(struct index *ix, struct why *why);
/* Disks of the group at a point; *out is the caller's to free */
int point_disks(struct index *ix, const struct point *p, struct point_disk **out, size_t *count,
		struct why *why);

/* ---------------------------------------------------------------- cut.c */

/* A mark that cuts the streams of all hosts of a group at one moment */
struct cut {
	char name[ASR_NAME_BYTES];	/* whole: wire_group_mark's */
	uint64_t time_ns;		/* by the clock of the first stream ... */
	size_t first;			/* ... which is that of the host with the lowest id */
	uint64_t epoch;
	bool app;			/* on all hosts */
	size_t hosts;
	struct cut_at {
		size_t seg;
		uint32_t event;		/* the mark's */
	} *at;				/* by stream; of one that is not in it event is UINT32_MAX */
};
struct cuts {
	struct cut *cut;
	struct cut_at *at;
	size_t count;
	size_t broken;			/* marks that not all hosts have, or have held for */
};
int cuts_make(struct index *ix, struct cuts *c, struct why *why);	/* oldest first */
void cuts_free(struct cuts *c);
/* Has the group been spread over hosts at any time? */
bool cut_wanted(const struct index *ix);
int cut_resolve(struct index *ix, const char *text, const char *disk, struct point *p, struct why *why);
/* {"points":{"count","first_time","last_time","longest_gap_s","broken"},"marks":[as point_list_json]} */
json_t *cut_list_json(struct index *ix, struct why *why);

/* --------------------------------------------------------------- view.c */

/* A disk of a group at a point */
struct view;
struct view_args {
	const char *disk;		/* or HOST/DISK */
	const char *point;		/* as for point_resolve */
	const char *key_pem;		/* private key, PEM text */
	const char *cert_pem;		/* recipient's certificate, or NULL: try all */
	const char *passphrase;		/* of the key, or NULL */
};
/* Names of all disks that the group has ever had, as keys; HOST/DISK where it is on several hosts. NULL: no memory */
json_t *view_names(const struct index *ix);
/* The index stays the caller's, and outlives it. -ENOENT, -ESTALE, -EKEYREJECTED, ...: why says it */
int view_open(struct index *ix, const struct view_args *a, struct view **out, struct why *why);
void view_close(struct view *v);		/* NULL is fine */
const struct point *view_point(const struct view *v);
uint64_t view_sectors(const struct view *v);	/* of the disk */
uint16_t view_slot(const struct view *v);	/* ... in its stream */
bool view_is_content(uint8_t kind);		/* of a record: it says what a range of a disk holds */

/* Sectors of which this record of a frame is the last that wrote them */
struct view_piece {
	uint64_t sector;
	uint32_t sectors;
	uint16_t record;
	uint8_t kind;
};
struct view_frame {
	const struct index_seg *seg;
	struct seg_frame at;
	uint64_t frame_no;
	uint8_t prev_tag[ASR_TAG_BYTES];
	const struct seg_rec *const *recs;	/* of the disk in it, by the footer; NULL: only their number is known */
	size_t rec_count;
	const struct view_piece *pieces;	/* newest first */
	size_t count;
};
typedef int view_fn(const struct view_frame *f, void *arg);
/*
 * Each frame that has written something last, newest first. What fn returns
 * ends the walk, unless 0, and is returned. -EBADMSG: damaged, or the beginning
 * of the disk's history is missing.
 */
int view_walk(struct view *v, view_fn *fn, void *arg, struct why *why);
uint64_t view_uncovered(const struct view *v);	/* sectors not met yet by the walk; at its end: never written */

/* What one thread needs to open frames */
struct view_reader;
int view_reader_create(struct view *v, struct view_reader **out);
void view_reader_destroy(struct view_reader *r);	/* NULL is fine */
/* Its payload into plain (ASR_FRAME_PAYLOAD_MAX), checked; fv is good until the reader's next frame */
int view_frame_read(struct view_reader *r, const struct view_frame *f, uint8_t *plain, struct frame_view *fv,
		    struct why *why);

/* -------------------------------------------------------------- image.c */

/* A disk at a point that can be read anywhere. Opening walks its history; then many threads may read. */
struct image;
/* The view stays the caller's, and outlives it. cache_bytes: of opened payloads to keep */
int image_open(struct view *v, size_t cache_bytes, struct image **out, struct why *why);
void image_close(struct image *im);		/* NULL is fine; nobody reads */
/* -EINVAL: beyond the end; -EBADMSG: damaged, why has the place; buf is worth nothing then */
int image_read(struct image *im, void *buf, size_t bytes, uint64_t offset, struct why *why);
/* Has the disk data there, or is it a hole that reads as zeroes; and for how many bytes, limit at least if it goes on
   so long. offset: before the disk's end */
bool image_extent(const struct image *im, uint64_t offset, uint64_t limit, uint64_t *bytes);

/* ------------------------------------------------------------ restore.c */

struct restore_args {
	const char *vault_dir;		/* vault, or a bare copy of a group's folder */
	const char *group;		/* name or uuid; NULL with a group's folder */
	const char *disk;
	const char *point;		/* as for point_resolve */
	const char *key_pem;		/* private key, PEM text */
	const char *cert_pem;		/* recipient's certificate, or NULL: try all */
	const char *passphrase;		/* of the key, or NULL */
	const char *to;			/* must not exist */
	/* done and total in bytes of the disk; non-zero ends with -ECANCELED */
	int (*progress)(uint64_t done, uint64_t total, void *arg);
	void *arg;
};

struct restore_result {
	struct point point;
	uint64_t disk_bytes;
	uint64_t written_bytes;		/* data; the rest is a hole */
	uint64_t unwritten_bytes;	/* no record ever covered it: zeroes */
	uint64_t frames_read, frames_bytes;
	uint64_t elapsed_ns;
};

/*
 * Writes the disk's image to a new sparse raw file; beside it under a
 * temporary name until it is whole and durable. -EEXIST, -ENOSPC, -EACCES,
 * -EBADMSG (damage: file, offset, frame, section), -EKEYREJECTED, ...: why
 * says it, and nothing is left behind.
 */
int restore_disk(const struct restore_args *a, struct restore_result *r, struct why *why);
json_t *restore_json(const struct restore_args *a, const struct restore_result *r);

/* --------------------------------------------------------- vaultcheck.c */

struct vaultcheck_finding {
	const char *group, *host;	/* names; host "" when it is not known */
	const char *file;		/* in the group's segments/, or vault.db, or "" */
	uint64_t seq;			/* points from it on may need what is damaged; 0: not known */
	const char *text;
};
struct vaultcheck_args {
	const char *vault_dir;		/* vault, or a bare copy of a group's folder */
	const char *group;		/* name or uuid; NULL: all, and the catalogue */
	const char *key_pem, *cert_pem, *passphrase;	/* as for view_open; key_pem NULL: no look at content */
	const char *journal;		/* file: what was found sound before is not read again; NULL: none */
	uint64_t rate;			/* bytes to be read in a second; 0: no limit */
	/* in bytes of the folder; non-zero ends with -ECANCELED. NULL is fine */
	int (*progress)(uint64_t done, uint64_t total, void *arg);
	void (*found)(const struct vaultcheck_finding *f, void *arg);
	void *arg;
};
struct vaultcheck_result {
	uint64_t groups, streams, segments, frames, records, blocks, bytes, total;
	uint64_t skipped;		/* segments that the journal knows to be sound */
	uint64_t locked;		/* streams that the key does not open */
	uint64_t findings;
	uint64_t elapsed_ns;
};
/* 0: it came to its end, whatever it found. -ENOENT: no such vault or group; -ECANCELED; ...: why says it */
int vaultcheck_run(const struct vaultcheck_args *a, struct vaultcheck_result *r, struct why *why);
json_t *vaultcheck_json(const struct vaultcheck_result *r);

/* ------------------------------------------------------------- ingest.c */

/* The receiving side of the vault: streams, their active segments, acks. */
struct ingest;
struct ingest_stream;
struct ingest_ops {
	/* after an fdatasync: everything up to frame_no is durable */
	void (*durable)(struct ingest_stream *s, uint64_t frame_no, uint64_t last_seq, void *arg);
	/* no longer full: a paused source may go on */
	void (*room)(struct ingest_stream *s, void *arg);
};

struct ingest_stat {
	uint64_t frames, bytes, syncs, segments, errors;
	int error;			/* -errno that stops writing now, or 0 */
};
/* store is on the vault's folder */
int ingest_create(struct loop *l, struct store *store, uint64_t seg_bytes, struct ingest **out);
void ingest_destroy(struct ingest *in);
/*
 * Recovers the stream from its folder at the first call. -EBUSY: it has a
 * source; -EAGAIN: what an earlier source sent is not durable yet, ask again;
 * -EBADMSG: the tail is damaged.
 */
int ingest_open(struct ingest *in, const uint8_t *group, const uint8_t *stream,
		const struct ingest_ops *ops, void *arg, struct ingest_stream **out, struct why *why);
/* The source has gone; what was accepted still becomes durable. */
void ingest_close(struct ingest_stream *s);
/* All that is accepted; right after ingest_open, all that is durable. */
const struct seg_state *ingest_state(const struct ingest_stream *s);
const uint8_t *ingest_uuid(const struct ingest_stream *s);
/* -EBADMSG with why: it is not the next frame. Not when full. */
int ingest_frame(struct ingest_stream *s, const uint8_t *frame, size_t bytes, struct why *why);
/* No room for another frame now: pause the source until room */
bool ingest_full(const struct ingest_stream *s);
/*
 * For map.c. Segments that are not sealed yet, newest first: how many there are,
 * of which room were stored. What is in them, as bytes: from memory, or from the file.
 */
struct ingest_part {
	const struct seg_table *table;	/* records in order of arrival, or as in a footer */
	uint64_t first_frame_no;
};
size_t ingest_parts(const struct ingest_stream *s, struct ingest_part *out, size_t room);
int ingest_read(const struct ingest_stream *s, uint64_t first_frame_no, uint64_t offset, void *buf, size_t bytes);
struct store *ingest_store(const struct ingest_stream *s);
const uint8_t *ingest_group(const struct ingest_stream *s);
struct map_cache **ingest_map_cache(struct ingest_stream *s);
/* Nothing in flight and nothing waiting */
bool ingest_idle(const struct ingest *in);
void ingest_stat_get(const struct ingest *in, struct ingest_stat *st);

/* ---------------------------------------------------------------- map.c */

/* Where the newest versions of a range of a disk stand: the answer to digest.map. */
struct map;
/* What is remembered of a stream's sealed segments from one map to the next */
struct map_cache;
void map_cache_free(struct map_cache *c);	/* NULL is fine */
/* As of all that the stream has accepted by now. -ENOENT: the slot is not that disk's */
int map_begin(struct ingest_stream *s, const struct map_ask *ask, struct map **out, struct why *why);
/* Some milliseconds of work: 1: more is to be done, 0: *data is a MSG_MAP, the map's own; -errno with why */
int map_step(struct map *m, const uint8_t **data, size_t *bytes, struct why *why);
void map_end(struct map *m);			/* NULL is fine */

/* ------------------------------------------------------------ service.c */

/* Hosts, their connections, and what they may ask for. */
struct service;
struct service_args {
	const char *dir;		/* the vault's folder; outlives the service */
	struct loop *loop;
	struct catalog *cat;
	struct ingest *ingest;
	SSL_CTX *ctx;
};
int service_create(const struct service_args *a, struct service **out);
void service_destroy(struct service *s);
/* The catalogue has changed: who has a certificate that counts no longer is let go. Not 0: it could not be read */
int service_recheck(struct service *s, struct why *why);
/* A socket that was accepted: the service's from here on */
void service_accept(struct service *s, int fd);
/* Cuts off every host; their streams' frames still become durable */
void service_stop(struct service *s);
/* For io.asr.vault.Status: [{host, address, since, streams: [...]}] */
json_t *service_json(const struct service *s);

/* ------------------------------------------------------------- folder.c */

/* The wrapped key of a stream, durable. One with history keeps the key that it has. */
int folder_key(const char *dir, const uint8_t group[ASR_UUID_BYTES], const uint8_t stream[ASR_UUID_BYTES],
	       const uint8_t *wrapped, size_t bytes, struct why *why);
/*
 * group.json, durable, as of g and of these members; the members of g->epoch are those who
 * have not left. members: [{host, name, stream, recipients: [text], joined, left: time or null}]
 */
int folder_make(const char *dir, const struct catalog_group *g, json_t *members, struct why *why);
/* *epoch: the newest that the file knows; 0: none */
json_t *folder_members(const char *dir, const uint8_t group[ASR_UUID_BYTES], uint64_t *epoch, struct why *why);

/* ---------------------------------------------------------- groupcall.c */

/* What a host may ask about groups. NULL: *code (wire.h) and why. Blocks on the file system. */
struct groupcall {
	struct catalog *cat;
	const char *dir, *host_id;
};
json_t *groupcall(const struct groupcall *c, const char *method, json_t *parameters, const char **code,
		  struct why *why);
/* Group, stream and generation of a stream.open, if they are this host's: 0, or -errno with *code and why */
int groupcall_stream(const struct groupcall *c, json_t *parameters, struct catalog_group *g,
		     uint8_t stream[ASR_UUID_BYTES], const char **code, struct why *why);

/* ------------------------------------------------------------ recover.c */

/* The unsealed segment that a stream goes on with. */
struct recovered {
	int fd;				/* -1: there is none, the next frame begins one */
	char name[SEG_NAME_BYTES];
	struct seg_hdr hdr;
	struct seg_table table;
	uint64_t end;			/* the next envelope goes here */
};
/*
 * After whatever crash: finds the end of a stream, cuts off a torn tail, seals
 * unsealed segments that have successors. Reads the newest sealed segment's
 * footer and what is unsealed, nothing else.
 */
int recover_stream(struct store *store, const uint8_t *group, const uint8_t *stream, struct seg_state *st,
		   struct recovered *r, struct why *why);
/* Footer and trailer at end, flushed, .open -> .seg. Blocks. */
int recover_seal(struct store *store, struct recovered *r, struct why *why);

#endif /* ASR_VAULT_H */
