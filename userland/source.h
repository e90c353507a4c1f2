/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The plan of asrd, the source side: every stage in the order data flows.
 *
 *   ring =DOOR 1= source -> batch -> pack (-> seal) -> ship =DOOR 2= vault
 *                  resync, spool --^                     |
 *   tail <- source <- group <---------- ack -------------+
 *
 * Memory: a record's payload stays in the ring from capture to the seal; the
 * sealed frame is the first and only copy, and the connection encrypts it at
 * once. What is not acknowledged is not kept here: it is still in the ring
 * (or in the dirty map), and is read again after a reconnect.
 */
#ifndef ASR_SOURCE_H
#define ASR_SOURCE_H

#include "asr.h"
#include "marks.h"

/* ------------------------------------------------------------- source.c */

/* One ring and its reader. Kicked when there may be something to read. */
struct source;
typedef void kick_fn(void *arg);

/*
 * Attaches to the kernel's group. device: NULL for /dev/dm-asr. Errors with
 * why: -ENOENT (module not loaded, or no such group), -EBUSY (has a consumer).
 */
int source_open(struct loop *l, const char *device, const char *group, uint64_t poll_ns,
		kick_fn *kick, void *arg, struct source **out, struct why *why);
/*
 * For benchmarks and tests: a ring in a file, [consumer page][producer page]
 * [data], written by another process. No kernel, no poll: timeouts only. disk: the
 * file that it is written to; NULL: the ring has none.
 */
int source_open_file(struct loop *l, const char *path, const char *disk, uint64_t poll_ns,
		     kick_fn *kick, void *arg, struct source **out, struct why *why);
/* closed (may be NULL) runs from the loop when the device has been let go */
void source_close(struct source *s, void (*closed)(void *arg), void *arg);

/*
 * The next committed record: 1 and *rec, *payload (into the ring: good until
 * the position behind it is released); 0: none readable now; -EBADMSG: the
 * ring is nonsense. discarded counts the writes that were stepped over.
 */
int source_next(struct source *s, struct asr_rec *rec, const uint8_t **payload);
/* Is the next record committed or discarded, so that source_next moves on? */
bool source_readable(const struct source *s);
/* Back to where a record begins that is not released */
void source_back(struct source *s, uint64_t pos);
/* Number of the record at the reader's position, whatever its state, and whether it says that the
   group was made anew; 0: there is none */
uint64_t source_first(const struct source *s, bool *is_new);
/* Back to the tail, then forward over all records with seq <= this one. */
int source_seek(struct source *s, uint64_t seq);
/* Everything before pos is durable at the vault: the ring may reuse it. */
void source_release(struct source *s, uint64_t pos);
/* While awake the producer makes no wake-up call. */
void source_awake(struct source *s);
/*
 * Nothing more to do: kick at due_ns (now_ns clock) at the latest, earlier
 * when a quarter of the ring has filled. due_ns 0: only when a record comes.
 * True: something came meanwhile, go on instead of sleeping.
 */
bool source_sleep(struct source *s, uint64_t due_ns);

/* Capture time of the next record, whatever its state; 0: none */
uint64_t source_peek_ns(const struct source *s);

uint64_t source_pos(const struct source *s);		/* the reader's */
uint64_t source_head(const struct source *s);
uint64_t source_tail(const struct source *s);
uint64_t source_bytes(const struct source *s);		/* of the ring */
uint64_t source_discarded(const struct source *s);	/* writes stepped over */
uint64_t source_seen_seq(const struct source *s);	/* of the last record read or stepped over */
uint32_t source_state(const struct source *s);		/* ASR_STATE_*, the hint */
bool source_poisoned(const struct source *s);
bool source_is_file(const struct source *s);
/* A ring file's disk is a file; NULL: the kernel's are devices */
const char *source_disk_file(const struct source *s, uint32_t slot);
/* An ASR_IOC_* of the attached file: 0 or -errno. A ring file has no disks and nothing dirty. */
int source_ioctl(struct source *s, unsigned long request, void *arg);
/* Without being attached. device as in source_open; -ENOENT with why: load the module */
int source_control(const char *device, unsigned long request, void *arg, struct why *why);

/* ----------------------------------------------------------- ringdisk.c */

struct ringdisk;
int ringdisk_open(const char *file, struct ringdisk **out, struct why *why);
void ringdisk_close(struct ringdisk *d);		/* NULL is fine */
const char *ringdisk_file(const struct ringdisk *d);
int ringdisk_ioctl(struct ringdisk *d, unsigned long request, void *arg);

/* -------------------------------------------------------------- batch.c */

#define BATCH_RECORDS	1024
#define BATCH_META	16384

/* Records of the frame that is being filled. No payload is copied. */
struct batch {
	uint32_t records, pieces, meta_bytes, plain_bytes, digests;
	uint64_t first_seq, last_seq, first_time_ns, last_time_ns;
	uint64_t ring_end;		/* ring position behind its last ring record */
	uint64_t ring_time_ns;		/* of its first ring record; 0: has none */
	uint64_t ring_payload;		/* bytes of payload as captured */
	uint64_t due_ns;		/* now_ns clock: ship it then, full or not */
	struct frame_rec recs[BATCH_RECORDS];
	struct iovec iov[BATCH_RECORDS];
	uint8_t meta[BATCH_META];
};
void batch_reset(struct batch *b);
/* -ENOSPC: it does not fit any more, ship first. A record fits into an empty batch. */
int batch_add(struct batch *b, const struct asr_rec *rec, const uint8_t *payload);
/* Is all of it zero? */
bool batch_is_zero(const uint8_t *data, size_t bytes);
/* What a record of the ring does to the copy: does it need a resync from here on? */
bool batch_loses_consistency(const struct asr_rec *rec, const uint8_t *payload);

/* --------------------------------------------------------------- pack.c */

/* Buffers that every group's frames go through, one after the other: small, so
   that they stay in the cache. */
struct pack_room;
#define PACK_BYTES_MAX	(sizeof(struct frame_hdr) + BATCH_RECORDS * sizeof(struct frame_rec) + BATCH_META + \
			 ASR_FRAME_PAYLOAD / 4096 * ASR_DIGEST_BYTES + ASR_FRAME_PAYLOAD + 2 * ASR_TAG_BYTES)
int pack_room_create(struct pack_room **room);
void pack_room_destroy(struct pack_room *room);

struct pack {
	uint8_t group[ASR_UUID_BYTES], stream[ASR_UUID_BYTES], session[ASR_UUID_BYTES];
	uint64_t generation;
	uint64_t frame_no;		/* of the last frame made */
	uint8_t prev_tag[ASR_TAG_BYTES];
	int level;			/* zstd; 0: off */
	bool shrinks;			/* the last frame was worth compressing */
	struct seal *seal;
	struct pack_room *room;
	uint64_t plain_bytes, stored_bytes;	/* totals */
};
/* A new session: fresh key, position from the vault's answer to stream.open. */
int pack_session(struct pack *p, const uint8_t key[ASR_KEY_BYTES], uint64_t frame_no,
		 const uint8_t prev_tag[ASR_TAG_BYTES]);
void pack_end(struct pack *p);
/* The frame lies in the room until the next call. */
int pack_frame(struct pack *p, const struct batch *b, const uint8_t **frame, size_t *bytes);

/* --------------------------------------------------------------- ship.c */

/* The connection to the vault: one for all groups, redialled for ever. */
struct ship;
struct ship_ops {
	void (*up)(void *arg);			/* HELLO exchanged: open the streams */
	void (*down)(void *arg);		/* what is not acknowledged goes again later */
	void (*ack)(const struct msg_ack *ack, void *arg);
	void (*room)(void *arg);
	/* a MSG_MAP, before the reply to its call; valid until it returns. Non-zero: it is none */
	int (*map)(const uint8_t *body, size_t bytes, void *arg);
};
/* state_dir holds host.key, host.crt, ca.crt, vault.json; they may come later. */
int ship_create(struct loop *l, const char *state_dir, const struct ship_ops *ops, void *arg,
		struct ship **out);
void ship_destroy(struct ship *s);
/* The identity has changed: read it anew and dial at once. */
int ship_reload(struct ship *s, struct why *why);
bool ship_is_up(const struct ship *s);
bool ship_has_room(const struct ship *s);
int ship_frame(struct ship *s, const uint8_t *frame, size_t bytes);
/*
 * done runs once: err 0 and parameters (borrowed); -EREMOTEIO, parameters
 * NULL, why->text "code: text" of the vault; -EPIPE when the connection went.
 */
typedef void ship_done(int err, json_t *parameters, const struct why *why, void *arg);
int ship_call(struct ship *s, const char *method, json_t *parameters, ship_done *done, void *arg);
/* Gives the connection up; it is dialled anew */
void ship_break(struct ship *s, const char *why);
/* Calls of this arg get no answer any more. */
void ship_forget(struct ship *s, void *arg);
json_t *ship_status(const struct ship *s);	/* {address, connected, since, last_error} */
uint64_t ship_bytes(const struct ship *s);
int ship_local_address(const struct ship *s, char out[64]);	/* this end, as a number; -ENOTCONN */

/* ------------------------------------------------------------ compare.c */

/* What the vault has of the disks of a group, as digests. One per group. */
struct compare;
#define WINDOW_CHUNKS	(MAP_SECTORS_MAX / ASR_CHUNK_SECTORS)
#define WINDOW_BLOCKS	(MAP_SECTORS_MAX / ASR_BLOCK_SECTORS)
enum window_state { WINDOW_FREE, WINDOW_ASKED, WINDOW_READY };
/* A range of a disk that is compared. Its owner fills in slot, name, sector (of a
   chunk) and end, while it is FREE; the rest is compare.c's, state may be looked at. */
struct window {
	uint32_t slot;
	char name[ASR_NAME_BYTES];
	uint64_t sector, end;
	enum window_state state;
	bool known;			/* READY: the vault has answered */
	uint64_t frame_no;		/* of the answer: what is the same is durable with this frame */
	uint64_t asked, answered;
	struct compare *compare;
	struct window *next;
	uint64_t spoiled[WINDOW_CHUNKS / 64];
	uint8_t how[WINDOW_BLOCKS];
	uint8_t digest[WINDOW_BLOCKS][ASR_DIGEST_BYTES];
};
/* ABSENT, EXTRA: the vault never had anything there, and the block is of zeroes, or is not */
enum compare_result { COMPARE_UNKNOWN, COMPARE_SAME, COMPARE_DIFFERS, COMPARE_ABSENT, COMPARE_EXTRA };

int compare_create(struct ship *ship, const char *group, const uint8_t stream[ASR_UUID_BYTES],
		   const uint8_t key[ASR_KEY_BYTES], kick_fn *kick, void *arg, struct compare **out);
void compare_destroy(struct compare *c);		/* NULL is fine */
/* All records up to now are in frames that were sent, the last is sent_frame. Kicks when READY. */
void compare_ask(struct compare *c, struct window *w, uint64_t sent_frame);
void compare_forget(struct window *w);			/* FREE again */
/* A MSG_MAP came. -EPROTO: it is none */
int compare_map(struct compare *c, const uint8_t *body, size_t bytes);
/* A record for this range was put into the stream: what windows (but this one) know of it is old */
void compare_saw(struct compare *c, const struct window *except, uint16_t disk, uint64_t sector, uint64_t sectors);
bool compare_spoiled(const struct window *w, uint64_t sector);
/* The aligned 4 KiB block at sector, as read from the disk */
enum compare_result compare_block(const struct window *w, uint64_t sector, const uint8_t *data);
void compare_lost(struct compare *c);			/* the connection is gone: all windows are FREE */

/* -------------------------------------------------------------- lower.c */

/* The devices below the disks of a group, read with O_DIRECT. */
struct lower {
	int fd;				/* -1: not open */
	dev_t dev;
	uint64_t start, sectors;
	char name[ASR_NAME_BYTES];	/* the disk that has the slot ... */
	uint64_t pos;			/* ... and the ring position behind its DISK record, at the latest */
};
struct lowers {
	struct source *source;
	struct lower disk[ASR_DISKS_MAX];
};
void lower_init(struct lowers *l, struct source *source);
/* -ENODEV: no table has it now; -EAGAIN: its DISK record was not consumed yet */
int lower_open(struct lowers *l, uint32_t slot);
void lower_close(struct lowers *l);
/* Is the slot's device still open here, and its disk no longer in the kernel? */
bool lower_is_gone(struct lowers *l, uint32_t slot);
void lower_let_go(struct lowers *l, uint32_t slot);
void lower_forget(struct lowers *l);	/* the ring is read again from what is durable */

/* --------------------------------------------------------- spoolfile.c */

#define SPOOL_MAGIC	"ASRSPOOL"	/* 8 bytes, no NUL */
#define SPOOL_VERSION	1
#define SPOOL_PADDED(n)	(((size_t)(n) + 7) & ~(size_t)7)

/* The file "header" of a group's folder in the spool; little-endian */
struct spool_header {
	uint8_t  magic[8];
	uint32_t version;
	uint32_t bytes;			/* sizeof(struct spool_header) */
	uint8_t  group[ASR_UUID_BYTES], stream[ASR_UUID_BYTES];
	uint8_t  session[ASR_UUID_BYTES];	/* random: of the tag below */
	char     host_id[ASR_NAME_BYTES];	/* as the vault gave it */
	char     host[ASR_NAME_BYTES], name[ASR_NAME_BYTES];	/* of host and group, for people */
	uint8_t  reserved[24];
	uint8_t  tag[ASR_TAG_BYTES];	/* of nothing, with all before it as AAD */
	uint64_t checksum;		/* XXH64 of all before it */
	uint64_t reserved2;
};

/* Whose spool it must be */
struct spool_owner {
	uint8_t group[ASR_UUID_BYTES], stream[ASR_UUID_BYTES];
	char host_id[ASR_NAME_BYTES], host[ASR_NAME_BYTES], name[ASR_NAME_BYTES];
	const uint8_t *key;
};

/* How far a walk over frames has come */
struct spool_chain {
	uint64_t frame_no;		/* of the last frame */
	bool tagged;			/* its tag is known */
	uint8_t tag[ASR_TAG_BYTES];
};
int spool_header_make(struct spool_header *h, const struct spool_owner *o);
/* -EBADMSG damaged, -EPROTONOSUPPORT newer, -EPERM somebody else's, -EKEYREJECTED: with why */
int spool_header_check(const uint8_t *data, size_t bytes, const struct spool_owner *o, struct why *why);
/* The frame at data, which is aligned to 8: its bytes with padding; -EAGAIN: not all of it is
   here; -EBADMSG with why. It is not opened. */
int spool_frame_next(const uint8_t *data, size_t bytes, const struct spool_owner *o,
		     const struct spool_chain *c, struct frame_view *v, struct why *why);
void spool_chain_pass(struct spool_chain *c, const struct frame_view *v);

/* ------------------------------------------------------------- spool.c */

/*
 * A group's second queue, on disk, between the ring and the vault: sealed
 * frames in files, taken at the end and read from the front. One per group.
 */
struct spool;
struct spool_ops {
	/* All records before ring_end (of this attachment to the ring) are in the spool's files: they
	   survive this process, not the host. */
	void (*written)(uint64_t ring_end, unsigned int attachment, void *arg);
	/* A write failed: what was added and not reported as written is not there; add it again. */
	void (*failed)(void *arg);
	/* Something was read, or there is room again */
	void (*kick)(void *arg);
	/* May the folder be used? 0, or -errno with why. Asked before each new file. */
	int (*check)(const char *dir, void *arg, struct why *why);
};
/*
 * Scans what is there; blocks on that: the last two files are read and opened
 * whole. Does not fail but for -ENOMEM: a spool that cannot be used says so in
 * its status. pack: group, stream, generation, level and room. max 0: nothing
 * is added, what is there is read.
 */
int spool_open(struct loop *l, const char *dir, uint64_t max, const struct spool_owner *owner,
	       const struct pack *like, const struct spool_ops *ops, void *arg, struct spool **out);
void spool_close(struct spool *s);		/* freed when its last operation has ended */

/* May frames be added? Tries again after a failure or when there is space, but not at once. */
bool spool_usable(struct spool *s);
/* Makes ready for the first frame, so that a spool that takes none is known before */
int spool_begin(struct spool *s);
/* Is there room for a frame in memory? If not, kick comes. */
bool spool_has_room(const struct spool *s);
/* -EAGAIN: no room in memory; others: the spool takes nothing now, spool_status says why */
int spool_add(struct spool *s, const struct batch *b, unsigned int attachment);
void spool_flush(struct spool *s);		/* what was added goes down now */

bool spool_has_content(const struct spool *s);	/* not yet forgotten, or being written */
uint64_t spool_first_seq(const struct spool *s);	/* of its first record; 0: no content */
uint64_t spool_last_seq(const struct spool *s);	/* of the last record written; 0: no content */
uint64_t spool_oldest_ns(const struct spool *s);	/* capture time of what is not read yet; 0: all is */
uint64_t spool_unread(const struct spool *s);	/* bytes written or being written, and not read */

/*
 * The next frame: 1, and its view and opened payload (good until spool_pass); 0:
 * none; -EAGAIN: being read, kick comes; -EBADMSG with why: damaged from here on; others,
 * with why or not: not to be had now, to be tried again after a rewind.
 */
int spool_read(struct spool *s, struct frame_view *v, const uint8_t **plain, struct why *why);
void spool_pass(struct spool *s);		/* behind that frame */
void spool_rewind(struct spool *s);		/* to the first frame that is not forgotten */
/* All records up to seq are durable at the vault: files with nothing newer are deleted. */
void spool_forget(struct spool *s, uint64_t seq);
/* Deletes everything, somebody else's too. */
int spool_discard(struct spool *s, struct why *why);
void spool_second(struct spool *s);		/* once a second: fdatasync */
bool spool_refused(const struct spool *s, struct why *why);	/* what is there cannot be read */
json_t *spool_status(const struct spool *s);	/* {state, reason, dir, bytes, max, oldest, files} */

/* ---------------------------------------------------------- devstack.c */

/* Does the file system of path lie on a device that match says yes to, however many layers
   below? 1; 0: no, or it cannot be found out. Reads sysfs. */
int devstack_find(const char *path, bool (*match)(dev_t dev, void *arg), void *arg);

/* ------------------------------------------------------------- resync.c */

/* Brings the copy in line with the disks, from the dirty map. One per group. */
struct resync;
/* Puts a record at the reader's position into the stream. -EAGAIN: no room now.
   NULL record: ship what is gathered. *frame_no: the frame that will hold it. */
typedef int resync_emit(void *arg, const struct asr_rec *rec, const uint8_t *payload,
			uint64_t *frame_no);
enum resync_go {
	RESYNC_FREE,		/* consume the ring */
	RESYNC_HOLD,		/* do not: come again when kicked */
	RESYNC_AGAIN,		/* call again at once */
};
struct resync_args {
	struct loop *loop;
	struct source *source;
	struct compare *compare;
	const char *group;
	resync_emit *emit;
	kick_fn *kick;
	const char *(*missing)(void *arg);	/* a disk of the group that is not there; NULL: none */
	void *arg;
};
int resync_create(const struct resync_args *a, struct resync **out);
void resync_destroy(struct resync *r);		/* freed when its last read has ended */
/* The copy is not what the disks are, or may not be. */
void resync_want(struct resync *r);
/* The stream was opened, durable up to this frame, which is consistent or not. */
void resync_open(struct resync *r, bool consistent, uint64_t frame_no);
/* Disks that have left: what was below them is closed. */
void resync_let_go(struct resync *r);
/* The connection is gone: what was taken and is not durable becomes dirty. */
void resync_lost(struct resync *r);
enum resync_go resync_step(struct resync *r, bool readable);
/* All frames up to this one are durable. */
void resync_acked(struct resync *r, uint64_t frame_no);
bool resync_consistent(const struct resync *r);	/* durable at the vault, and nothing amiss since */
bool resync_active(const struct resync *r);
uint64_t resync_due(const struct resync *r);	/* now_ns clock: step again then; 0: no need */
/* Bytes to read in a second, 0: as many as can be; and whether to read at all */
void resync_limit(struct resync *r, uint64_t bytes_per_s, bool paused);
/* Why it does not end, in words; NULL: nothing is in its way */
const char *resync_waits(const struct resync *r);
/* {done_bytes, total_bytes, bytes_per_s, eta_s, compared_bytes, differing_bytes, shipped_bytes,
   limit_bytes_per_s, paused, waits_for} */
json_t *resync_status(struct resync *r);

/* ------------------------------------------------------------- verify.c */

/* Compares disks with the vault's copy, ships nothing. */
struct verify;
struct verify_args {
	struct loop *loop;
	struct source *source;
	struct compare *compare;
	const char *group;		/* outlives it */
	char disk[ASR_NAME_BYTES];	/* "": all of the group */
	uint64_t rate;			/* bytes to read in a second, 0: as many as can be */
	uint64_t settle_ns;		/* a difference that lasts so long is one */
	resync_emit *emit;		/* to ship what is gathered, nothing else */
	kick_fn *kick;
	void *kick_arg;			/* of both */
	/*
	 * {difference: {disk, sector, sectors}}, {progress: {...}}; at the end, with end
	 * not NULL, the progress and "result": equal, different or busy. *end: why it
	 * could not be done, else "". The last report may destroy the verify.
	 */
	void (*report)(void *arg, json_t *what, const char *end);
	void *arg;
};
/* -ENODEV: there is no such disk */
int verify_create(const struct verify_args *a, struct verify **out);
void verify_destroy(struct verify *v);		/* freed when its last read has ended */
void verify_step(struct verify *v);
uint64_t verify_due(const struct verify *v);	/* now_ns clock */

/* --------------------------------------------------------------- flow.c */

/* What all groups share. */
struct asrd {
	struct loop *loop;
	struct ship *ship;
	struct pack_room *room;
	struct peers *peers;
	struct control_call *app;	/* io.asr.App.Serve; NULL: nobody serves */
	const char *state_dir;
	const char *device;		/* NULL: /dev/dm-asr */
	const char *ring_file;		/* instead of the kernel */
	const char *ring_disk;		/* its disk, a file; or NULL */
	const char *spool_dir;
	uint64_t spool_max;		/* bytes of each group's; 0: none */
	uint64_t batch_delay_ns;
	int compression;		/* of new groups, unless they say */
	struct group *groups;
	struct loop_idle idle;
	struct loop_op again;
};

/* A frame sent and not yet acknowledged */
struct flight {
	uint64_t frame_no, last_seq;
	uint64_t ring_end;		/* ring position behind it; 0: no ring record in it */
	uint64_t time_ns;		/* of its oldest ring record; 0: none */
	uint64_t payload;		/* captured bytes in it */
};
#define FLIGHTS		4096		/* a power of two */

struct group {
	struct group *next;
	struct asrd *d;

	/* what group.json and data.key hold */
	char name[ASR_NAME_BYTES];
	uint64_t ring_bytes;
	json_t *recipients;		/* PEM texts */
	uint64_t resync_limit;		/* bytes a second, 0: none */
	bool paused;			/* its resync */
	bool pending;			/* the vault has not confirmed it yet */
	bool joined;			/* it was made on another host */
	json_t *members;		/* group.members, as it was answered last; NULL: never */
	struct marks *marks;
	struct marks_timer *timer;	/* peers.c */
	uint64_t members_ns;		/* now_ns clock: ask the vault again then */
	bool members_asked;
	bool members_void;		/* the vault tells this host nothing of the group: who is in it is not known */
	struct wait {			/* calls for marks that are under way */
		struct wait *next;
		struct control_call *call;	/* NULL: who called has gone */
		char name[ASR_NAME_BYTES];
	} *waits;
	struct control_call *quiet;	/* io.asr.App.Quiet: waits for the mark; NULL: none does */
	bool asked;			/* Create or Delete waits for the vault's answer */
	uint8_t *key;			/* secret_alloc */
	struct pack pack;		/* group, stream, generation, level, and the session */

	/* state.json */
	uint64_t first_seq;		/* of the kernel's group; 0: none was made yet */
	uint64_t saved_seq;
	bool was_consistent;		/* ever */
	bool spooling;			/* there may be records in the spool */
	uint64_t spool_from;		/* nothing stands between this number and its first record's */
	bool over;			/* the stream must begin anew, and the vault may not have that yet */

	char holders[ASR_DISKS_MAX][ASR_NAME_BYTES];	/* of the slots, in the stream as far as it was emitted */
	struct source *source;		/* NULL: not attached */
	struct compare *compare;	/* both live and die with source */
	struct resync *resync;
	struct check *check;		/* a verify under way, method's */
	struct batch batch;
	bool open, opening, runnable;
	unsigned int idle_rounds;
	uint64_t last_seq;		/* last ring record taken in, or durable */
	uint64_t discarded;		/* as source_discarded said last */
	struct flight flights[FLIGHTS];
	uint32_t flight_first, flight_count;
	uint64_t durable_seq, durable_frame, durable_time_ns;
	uint64_t saved_ns, retry_ns;	/* now_ns clock */
	uint64_t told_seq, told_ns;	/* the kernel, of durable_seq */
	char trouble[512];		/* why it stands still; empty: it does not */
	char missing[256];		/* group_missing's */
	json_t *half;			/* disk: remember_half() that was settled by this asrd; watch.c */
	uint64_t busy_ns;		/* since then asrctl has the records, whenever asked; 0: not */
	json_t *lost;			/* watch.c: disks on file that are not in the kernel */
	uint64_t watch_ns;		/* now_ns clock: look again then */
	struct spool *spool;
	bool detour;			/* ring -> spool -> vault, not ring -> vault */
	bool closing;			/* the ring waits until the spool is empty */
	bool held_consistent;		/* the stream where the spool has been shipped to */
	uint64_t over_frame;		/* the frame where it does; 0: none was made on this connection */
	struct batch spooled;		/* what goes into the spool next */
	unsigned int attachment;	/* counts those to the ring */
	uint64_t ring_seq;		/* of its first record when that was, and did it say that */
	bool ring_is_new;		/* it is new */
	bool spool_judged;		/* nothing is missing before, in and behind the spool */
	uint64_t away_ns, spool_retry_ns;	/* now_ns clock: no vault since; not again before */
	uint64_t spool_read_ns;		/* the same for the spool's reader, after so many failures in a row */
	unsigned int spool_read_tries;

	uint64_t in_bytes, out_bytes, frames;	/* captured, sent */
	uint64_t seen_in, seen_out, seen_ns;
	double in_rate, out_rate;
};

/* The record flow of a group: ring -> frames -> vault, and acknowledgements back. */
void flow_kick(void *group);
/* Attaches to the ring; makes the kernel's group when it has none. */
int flow_attach(struct group *g, struct why *why);
void flow_detach(struct group *g, void (*closed)(void *arg), void *arg);
/* Asks the vault where the stream stands, when ring and vault are both there. */
void flow_open(struct group *g);
void flow_close(struct group *g);		/* the connection is gone */
void flow_ack(struct group *g, const struct msg_ack *ack);
void flow_all_dirty(struct group *g);		/* every chunk of every disk */
/* For detour.c: a record into the batch, which goes when full; the batch; may they? */
int flow_add(struct group *g, const struct asr_rec *rec, const uint8_t *payload);
int flow_send(struct group *g);
void flow_saw(struct group *g, const struct asr_rec *rec, const uint8_t *payload);	/* it is in the stream */
bool flow_has_room(struct group *g);
bool flow_write_failed(struct group *g);	/* is one among what was stepped over since the last call? */
void flow_check(struct group *g);		/* has something become dirty by itself? */
/* All of the disk, by decree. flags: of ASR_IOC_DIRTY_SET; a module that does not know them leaves a moment in
   which a power cut forgets it */
int flow_disk_dirty(struct group *g, uint32_t slot, uint32_t flags);
resync_emit flow_emit;			/* resync's and verify's records; arg: the group */
void flow_run_all(void *asrd);			/* idle hook: runs what is runnable */
uint64_t flow_oldest_ns(const struct group *g);	/* capture time of what is not durable; 0: all is */
uint64_t flow_waiting_bytes(const struct group *g);
__attribute__((format(printf, 2, 3)))
void flow_trouble(struct group *g, const char *fmt, ...);	/* logs a change; "" ends it */

/* ------------------------------------------------------------- detour.c */

/* The way through the spool, when the vault does not keep up: ring -> spool -> vault */
int detour_open(struct group *g);		/* opens the spool, blocking; -ENOMEM */
void detour_attached(struct group *g);		/* to the ring: places the reader behind what is spooled */
void detour_detached(struct group *g);
bool detour_wanted(struct group *g);		/* is it on, or is it time: then it is begun */
int detour_run(struct group *g);		/* instead of reading for the vault; returns as that does */
uint64_t detour_due(const struct group *g);	/* now_ns clock: run again then; 0: no need */
uint64_t detour_seq(const struct group *g);	/* all records up to it are at the vault or in the spool */
/* The vault has said where it stands: may the stream go on? -EPERM with why: what it lacks is in a
   spool that cannot be used */
int detour_opening(struct group *g, struct why *why);
/* It goes on. True: not with the ring's next record, or has a resync already. vault_lost: why what the
   ring and the spool have does not follow on what the vault has; NULL: nothing speaks against it */
bool detour_opened(struct group *g, bool consistent, const char *vault_lost);
void detour_closed(struct group *g);		/* the connection is gone */
void detour_acked(struct group *g);		/* durable_seq has moved */
/* From here on the copy is not consistent, whatever the records say */
struct asr_rec detour_lost_rec(uint64_t seq);
/* The stream begins anew, without the spool, all dirty */
__attribute__((format(printf, 2, 3)))
void detour_start_over(struct group *g, const char *why, ...);
int detour_discard(struct group *g, struct why *why);		/* the same by command */
json_t *detour_status(const struct group *g);

/* -------------------------------------------------------------- group.c */

int group_load_all(struct asrd *d, struct why *why);
void group_stop_all(struct asrd *d);		/* state files, then away */
struct group *group_find(struct asrd *d, const char *name);
/* A new group with a new key, on file and in the kernel, pending at the vault. */
struct group_new {
	const char *name;
	uint64_t ring_bytes, generation;
	json_t *recipients;
	int compression;
	const uint8_t *uuid;		/* of a group to be joined; NULL: a new one */
};
int group_make(struct asrd *d, const struct group_new *n, struct group **out, struct why *why);
/* Tells the vault of a pending group. done as in ship_call. */
int group_register(struct group *g, ship_done *done, void *arg, struct why *why);
int group_confirm(struct group *g, struct why *why);	/* no longer pending */
/* Away with it here: kernel, files, table. Frees g. */
void group_drop(struct group *g);
int group_save_state(struct group *g, struct why *why);
int group_save(struct group *g, struct why *why);	/* group.json */
bool group_find_disk(const struct group *g, const struct asr_group_info *info, const char *name,
		     struct asr_disk_info *disk);
/* A text that names a disk which is remembered and not there; NULL: none. The group's own, until the next call */
const char *group_missing(void *group);
extern const struct ship_ops group_ship_ops;	/* arg: struct asrd */
void group_second(struct asrd *d);		/* once a second: attach, rates, state files */

/* -------------------------------------------------------------- peers.c */

/* The hosts that this one shares groups with: connections, and what marks.c needs of the world. */
struct peers;
/* listen: ADDR:PORT; address: where others reach this host, NULL: as the vault sees it */
int peers_create(struct asrd *d, const char *listen, const char *address, struct peers **out);
void peers_second(struct peers *p);
void peers_reload(struct peers *p);		/* the identity has changed */
int peers_group_begin(struct group *g);		/* -ENOMEM */
void peers_group_end(struct group *g);
void peers_group_reads(struct group *g);	/* its ring, or no longer */
/* The call is answered when the mark is made, or is not */
/* limit_ns: as marks_ask; who wants more hears that it goes on */
void peers_mark(struct group *g, const char *name, uint64_t limit_ns, struct control_call *call);
void peers_run(struct group *g);		/* something has happened to its marks */
json_t *peers_status(const struct group *g);	/* marks_json, or null: the group is on this host alone */

/* -------------------------------------------------------------- quiet.c */

/* io.asr.App.Serve, Wanted, Quiet, Loud: who makes this host's applications quiet for marks of several hosts. */
void quiet_serve(struct control_call *call, json_t *parameters, struct asrd *d);
void quiet_wanted(struct control_call *call, json_t *parameters, struct asrd *d);
void quiet_is(struct control_call *call, json_t *parameters, struct asrd *d);
void quiet_was(struct control_call *call, json_t *parameters, struct asrd *d);
void quiet_second(struct asrd *d);
void quiet_group_end(struct group *g);
/* struct marks_ops' quiet and loud; arg: the group */
const char *quiet_begin(void *arg, const char *name, uint64_t number, uint64_t limit_ns);
void quiet_end(void *arg, const char *name, const char *mark, uint64_t id, const char *why);

/* ------------------------------------------------------------- member.c */

/* io.asr.Group.Create, Join, Delete, Admit, Evict, Marks: what the vault has a say in. */
void member_create(struct control_call *call, json_t *parameters, struct asrd *d);
void member_join(struct control_call *call, json_t *parameters, struct asrd *d);
void member_delete(struct control_call *call, json_t *parameters, struct asrd *d);
void member_admit(struct control_call *call, json_t *parameters, struct asrd *d);
void member_evict(struct control_call *call, json_t *parameters, struct asrd *d);
void member_marks(struct control_call *call, json_t *parameters, struct asrd *d);

/* -------------------------------------------------------------- check.c */

/* io.asr.Group.Verify: a verify and who asked for it. */
void check_call(struct control_call *call, json_t *parameters, struct group *g);
void check_run(struct group *g);			/* a step, if one is under way */
uint64_t check_due(const struct group *g);		/* now_ns clock; 0: none is */
void check_end(struct group *g, const char *why);	/* it cannot go on */

/* -------------------------------------------------------------- watch.c */

/* Now and then: is what is on file protected? Tells what is not, and what is again. */
void watch_group(struct group *g, uint64_t now);
/* [{name, since_ns, reason}]: disks that are to be protected and are not */
json_t *watch_missing(const struct group *g);
/* Is it not known yet what was written to the disk while asr was put on it? */
bool watch_half(const struct group *g, json_t *disk);

/* ------------------------------------------------------------- method.c */

/* The control methods: io.asr.Group.*, io.asr.Disk.List, io.asr.Status, io.asr.Reload. */
void method_call(struct control_call *call, const char *method, json_t *parameters, void *asrd);
/* The group that a parameter names; NULL: the error has been sent */
struct group *method_group(struct control_call *call, json_t *parameters, const char *key, struct asrd *d);
unsigned int method_active_disks(struct group *g);

#endif /* ASR_SOURCE_H */
