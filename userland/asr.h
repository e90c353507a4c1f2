/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The plan of the userland: every stage, in the order data flows.
 *
 *   source -> batch -> pack -> seal -> ship =DOOR 2= vaultd -> store -> index
 *                                                 -> point -> restore
 *   and back: ack -> ship -> source: ring space is free again
 *
 * Conventions. Functions return 0 or -errno (or a count). Where a person must
 * learn why, a function also fills a struct why. One thread per program owns
 * all data; nothing here locks. Below, a section per .c file.
 */
#ifndef ASR_ASR_H
#define ASR_ASR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/uio.h>

#include <jansson.h>
#include <openssl/types.h>

#include "../dm-asr/uapi/dm-asr.h"
#include "cleanup.h"
#include "wire.h"

#define ASR_VERSION		"0.1.0"
#define ASR_STATE_DIR		"/var/lib/asr"		/* source host */
#define ASR_VAULT_DIR		"/var/lib/asr-vault"	/* recovery site */
#define ASR_SOCKET		"/run/asr/asrd.sock"
#define APP_TIMEOUT_MAX		600	/* seconds, of what is quiet for an application-consistent mark */
#define ASR_VAULT_SOCKET	"/run/asr/vaultd.sock"

/* ---------------------------------------------------------------- log.c */

/* A reason for a person: what was wrong, which value, what would be right. */
struct why {
	char text[512];
};
/* Fills why (may be NULL) and returns -err: `return why_set(why, EINVAL, ...)` */
int why_set(struct why *why, int err, const char *fmt, ...) __attribute__((format(printf, 3, 4)));

enum log_level { LOG_LVL_ERR = 3, LOG_LVL_WARN = 4, LOG_LVL_INFO = 6, LOG_LVL_DEBUG = 7 };
/* To stderr, with sd-daemon's <N> prefixes when the journal reads it. */
void log_init(const char *program, enum log_level max);
void log_msg(enum log_level level, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
#define log_err(...)	log_msg(LOG_LVL_ERR, __VA_ARGS__)
#define log_warn(...)	log_msg(LOG_LVL_WARN, __VA_ARGS__)
#define log_info(...)	log_msg(LOG_LVL_INFO, __VA_ARGS__)
#define log_debug(...)	log_msg(LOG_LVL_DEBUG, __VA_ARGS__)
/* The service manager's datagram protocol: "READY=1", "STATUS=...", "WATCHDOG=1". No-op outside. */
void log_notify(const char *state);
uint64_t now_ns(void);		/* CLOCK_MONOTONIC */
uint64_t now_real_ns(void);	/* CLOCK_REALTIME */
/* RFC 3339, UTC, with nanoseconds; returns buf */
char *time_format(uint64_t ns, char buf[40]);
/* RFC 3339 ("2026-01-02T03:04:05.678Z" or with +hh:mm); -EINVAL */
int time_parse(const char *text, uint64_t *ns);

/* --------------------------------------------------------------- util.c */

void hex_encode(const uint8_t *data, size_t bytes, char *out);		/* 2n + 1 */
int hex_decode(const char *text, uint8_t *out, size_t bytes);		/* exactly bytes; -EINVAL */
const char *text_of(const json_t *object, const char *key);		/* "" when it has no such text */
/* ASR_NAME_BYTES rule of uapi/dm-asr.h; -EINVAL with the reason */
int name_check(const char *what, const char *name, struct why *why);
/* "64M", "1G", "4096": bytes */
int size_parse(const char *text, uint64_t *bytes);
/* Whole file, NUL added; *bytes may be NULL. -EFBIG over max. */
int file_read(const char *path, size_t max, char **data, size_t *bytes, struct why *why);
/* The same into secret_alloc memory; *text is the caller's to secret_free */
int file_read_secret(const char *path, size_t max, char **text, struct why *why);
/* Atomic and durable: temporary, fsync, rename, fsync of the folder. */
int file_write(const char *path, mode_t mode, const void *data, size_t bytes, struct why *why);
int dir_make(const char *path, mode_t mode, struct why *why);		/* with parents */

/* --------------------------------------------------------------- loop.c */

/* One io_uring per program: readiness, sockets, timers and files. */
struct loop;
struct loop_op;
typedef void loop_done(struct loop_op *op, int res, unsigned int flags);
/*
 * One operation. Embedded in its owner; must live until done has run for the
 * last time (multishot: until flags lacks IORING_CQE_F_MORE). active is true
 * meanwhile.
 */
struct loop_op {
	loop_done *done;
	void *arg;
	bool active;
	bool cancelled;
	int64_t ts[2];			/* timeouts only */
};
int loop_create(struct loop **loop, unsigned int entries);
void loop_destroy(struct loop *loop);
int loop_run(struct loop *loop);	/* until loop_stop; 0 or -errno */
void loop_stop(struct loop *loop);
/* Runs before the loop sleeps, every turn: for work that gathers over a turn. */
struct loop_idle {
	void (*fn)(void *arg);
	void *arg;
	struct loop_idle *next;
};
void loop_idle_add(struct loop *loop, struct loop_idle *idle);
void loop_idle_remove(struct loop *loop, struct loop_idle *idle);
/* Each submits; done gets what the system call would have returned. */
void loop_poll(struct loop *l, struct loop_op *op, int fd, unsigned int events, bool multishot);
void loop_accept(struct loop *l, struct loop_op *op, int fd, bool multishot);
void loop_connect(struct loop *l, struct loop_op *op, int fd, const void *addr, unsigned int len);
void loop_recv(struct loop *l, struct loop_op *op, int fd, void *buf, size_t n);
void loop_send(struct loop *l, struct loop_op *op, int fd, const void *buf, size_t n);
void loop_read(struct loop *l, struct loop_op *op, int fd, void *buf, size_t n, uint64_t off);
void loop_write(struct loop *l, struct loop_op *op, int fd, const void *buf, size_t n, uint64_t off);
void loop_fdatasync(struct loop *l, struct loop_op *op, int fd);
/* done gets -ETIME when due, -ECANCELED after loop_cancel */
void loop_timeout(struct loop *l, struct loop_op *op, uint64_t ns);
/* done still runs, later, usually with -ECANCELED */
void loop_cancel(struct loop *l, struct loop_op *op);
/* What was submitted goes down now, instead of at the end of the turn */
void loop_flush(struct loop *l);
/* SIGTERM, SIGINT: fn runs in the loop. Blocks the signals. */
int loop_signals(struct loop *l, void (*fn)(int sig, void *arg), void *arg);

/* --------------------------------------------------------------- conf.c */

/* INI with drop-ins: PATH, then PATH.d/ *.conf in order. Strict: fn says
   -ENOENT for an unknown key, -EINVAL with why for a bad value. */
typedef int conf_fn(const char *section, const char *key, const char *value, void *arg, struct why *why);
int conf_read(const char *path, bool must_exist, conf_fn *fn, void *arg, struct why *why);

/* ----------------------------------------------------------- control.c */

/*
 * The Varlink wire format on a Unix socket: NUL-terminated JSON. Methods are
 * "io.asr.Group.List" and so on; errors "io.asr.Error" with {"text":"..."}.
 */
struct control;
struct control_call;
typedef void control_fn(struct control_call *call, const char *method, json_t *parameters, void *arg);
int control_listen(struct loop *l, const char *path, control_fn *fn, void *arg,
		   struct control **out, struct why *why);
void control_close(struct control *c);
/* Steals parameters. more: further replies follow (the caller asked "more").
   Returns -EPIPE when the peer has gone: the call is freed after the last. */
int control_reply(struct control_call *call, json_t *parameters, bool more);
int control_error(struct control_call *call, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
bool control_wants_more(const struct control_call *call);
/* Runs when the peer of an unanswered call has gone, instead of replies. */
void control_on_gone(struct control_call *call, void (*fn)(void *arg), void *arg);
/* One call as it came, pure (fuzzed): the rest points into *message. -EBADMSG */
int control_parse(const char *text, size_t bytes, json_t **parameters, const char **method,
		  bool *more, bool *oneway, json_t **message);
/* Client, blocking. each: for every reply, non-zero ends it. Steals parameters. */
int control_call(const char *path, const char *method, json_t *parameters, bool more,
		 int (*each)(json_t *reply, void *arg), void *arg, struct why *why);

/* --------------------------------------------------------------- wire.c */

/* A frame whose every length has been checked against its buffer. Points
   into the caller's bytes. */
struct frame_view {
	const uint8_t *bytes;
	struct frame_hdr hdr;
	const struct frame_rec *recs;	/* hdr.records; aligned if bytes is to 8 */
	const uint8_t *meta;
	const uint8_t *digests;		/* sealed, tag behind */
	const uint8_t *payload;		/* sealed, tag behind */
	const uint8_t *tag;		/* the frame's own */
};
/*
 * Header alone: is this the beginning of a frame, how long is it. -EBADMSG
 * with why. bytes >= sizeof(struct frame_hdr). Whole frame: sizes, order of
 * seq, every record inside its section, bodies of the right size, names
 * terminated and legal, digest count. bytes must be hdr.total_bytes exactly,
 * and data aligned to 8.
 */
int wire_frame_peek(const uint8_t *data, size_t bytes, struct frame_hdr *hdr, struct why *why);
int wire_frame_parse(const uint8_t *data, size_t bytes, struct frame_view *view, struct why *why);
/* Number of whole aligned 4 KiB blocks a record covers */
uint32_t wire_rec_blocks(const struct frame_rec *rec);
bool wire_kind_has_payload(uint8_t kind);
bool wire_kind_has_meta(uint8_t kind);
/* Body of a MARK, STATE or DISK record of a parsed frame */
const struct asr_rec_mark *wire_mark(const struct frame_view *v, const struct frame_rec *r);
const struct asr_rec_state *wire_state(const struct frame_view *v, const struct frame_rec *r);
const struct asr_rec_disk *wire_disk(const struct frame_view *v, const struct frame_rec *r);

/* The parameters of a digest.map call. -EINVAL with why */
struct map_ask {
	uint8_t stream[ASR_UUID_BYTES];
	char name[ASR_NAME_BYTES];
	uint64_t sector;
	uint32_t sectors;
	uint16_t disk;
};
int wire_map_ask(const json_t *parameters, struct map_ask *ask, struct why *why);
/* A MSG_MAP whose every length, place and sum was checked; data aligned to 8. Large: not for the stack. */
struct map_view {
	struct msg_map hdr;
	const struct map_extent *extents;
	const struct frame_hdr *frame[MAP_FRAMES_MAX];	/* its digest section and tag behind it */
};
int wire_map_parse(const uint8_t *data, size_t bytes, struct map_view *v, struct why *why);
/* Whole aligned 4 KiB blocks in a range */
uint32_t wire_blocks(uint64_t sector, uint64_t sectors);

/*
 * The name of a mark that is to cut the streams of several hosts: NAME+EEEERRRRRRRRRRRRRRRR, with the
 * epoch of the group's members and 64 random bits in hex, so that it is that of one moment, and says
 * which streams it must be in. -EINVAL: name or epoch are not legal. Pure
 */
#define WIRE_GROUP_MARK_NAME	(ASR_NAME_BYTES - 22)	/* characters of NAME, at most */
int wire_group_mark(const char *name, uint64_t epoch, uint64_t random, char out[ASR_NAME_BYTES]);
/* name without the rest, and the epoch; false: it is no such mark. Pure */
bool wire_group_mark_parse(const char *full, char name[ASR_NAME_BYTES], uint64_t *epoch);

/* What a record does to the consistency of its stream. */
enum consistency { CONSISTENCY_SAME, CONSISTENCY_LOST, CONSISTENCY_REACHED };
enum consistency wire_consistency(const struct frame_view *v, const struct frame_rec *r);

/* --------------------------------------------------------------- seal.c */

/* The only file that includes OpenSSL's symmetric and CMS interfaces.
   Secrets live in secret_alloc memory: locked, not dumped, wiped when freed. */
void *secret_alloc(size_t bytes);
void secret_free(void *p);	/* NULL is fine */

int seal_random(void *buf, size_t bytes);
/* 32-byte group data key. unwrap: key_pem is the private key's PEM text,
   pass may be NULL. -EKEYREJECTED with why: not a recipient, wrong key, ... */
int seal_key_wrap(const uint8_t key[ASR_KEY_BYTES], char *const *cert_pems, size_t certs,
		  uint8_t **der, size_t *bytes, struct why *why);
int seal_key_unwrap(const uint8_t *der, size_t bytes, const char *key_pem, const char *cert_pem,
		    const char *pass, uint8_t *key, struct why *why);
/* One line that names a recipient: subject, key kind and size, fingerprint. -EINVAL: too weak */
int seal_cert_describe(const char *cert_pem, char *out, size_t bytes, struct why *why);

/* One session's key, for sealing or for opening. */
struct seal;
int seal_create(const uint8_t key[ASR_KEY_BYTES], const uint8_t session[ASR_UUID_BYTES], struct seal **s);
void seal_destroy(struct seal *s);
/* Those of the sessions that were asked for last, for who opens frames of many. The key stays the caller's. */
struct seals;
int seals_create(const uint8_t key[ASR_KEY_BYTES], struct seals **out);
void seals_destroy(struct seals *s);	/* NULL is fine */
struct seal *seals_get(struct seals *s, const uint8_t session[ASR_UUID_BYTES]);	/* NULL: no memory */
/*
 * Seals in one pass: in are the plaintext pieces of the section, out gets
 * ciphertext and tag. open: -EBADMSG when the tag does not fit; out is
 * then wiped. section: 1 digests, 2 payload.
 */
int seal_section(struct seal *s, uint64_t frame_no, uint32_t section, const void *aad, size_t aad_bytes,
		 const struct iovec *in, int pieces, uint8_t *out);
int seal_open(struct seal *s, uint64_t frame_no, uint32_t section, const void *aad, size_t aad_bytes,
	      const uint8_t *in, size_t bytes, const uint8_t *tag, uint8_t *out);
/* Whole payload of a parsed frame: opened, decompressed, digests verified.
   out holds hdr.plain_bytes. -EBADMSG with why names the frame and section. */
int seal_frame_open(struct seal *s, const struct frame_view *v, uint8_t *out, struct why *why);

/* ---------------------------------------------------------------- tls.c */

/* Contexts: TLS 1.3 only, tickets off, ALPN, mutual unless enrolling. */
struct tls_files {
	const char *ca, *cert, *key;	/* PEM paths; cert and key NULL: none (enrolment) */
};
int tls_client(const struct tls_files *f, bool enrol, SSL_CTX **ctx, struct why *why);
/* accepts both ALPNs; a client certificate is asked for, not required: see conn_peer */
int tls_server(const struct tls_files *f, SSL_CTX **ctx, struct why *why);
/* Either end of a connection between hosts: both must show a host's certificate */
int tls_peer(const struct tls_files *f, bool server, SSL_CTX **ctx, struct why *why);
void tls_free(SSL_CTX *ctx);	/* NULL is fine; connections keep their own reference */
/* The "asr:..." URI of a certificate; -ENOENT: it has none */
int tls_cert_uri(const X509 *cert, char *out, size_t bytes);
/* Its serial number, in upper-case hex; NULL, or a number too long: -EBADMSG */
int tls_cert_serial(const X509 *cert, char *out, size_t bytes);
#define TLS_SERIAL_BYTES	48	/* room for the 20 octets that RFC 5280 allows, in hex */

/* --------------------------------------------------------------- conn.c */

/* A TLS connection on the loop that carries messages; memory BIOs, sends
   batched to 256 KiB. Sends PING, and gives up on a silent peer, by itself. */
struct conn;
struct conn_ops {
	void (*up)(struct conn *c, void *arg);	/* handshake done, peer verified */
	/* body is contiguous, aligned to 8, and the callee's until it returns */
	void (*msg)(struct conn *c, uint32_t type, const uint8_t *body, size_t bytes, void *arg);
	void (*room)(struct conn *c, void *arg);	/* queue fell below half of its limit */
	/* the last call: c is freed after it returns. why->text says why */
	void (*down)(struct conn *c, int err, const struct why *why, void *arg);
};
int conn_dial(struct loop *l, SSL_CTX *ctx, const char *host, const char *port,
	      const struct conn_ops *ops, void *arg, struct conn **out, struct why *why);
int conn_accept(struct loop *l, SSL_CTX *ctx, int fd, const struct conn_ops *ops, void *arg, struct conn **out);
/* Encrypts now, copies nothing else: the pieces are free again on return.
   FRAME messages: -EAGAIN while conn_has_room is false. -EPIPE when down. */
int conn_send(struct conn *c, uint32_t type, const struct iovec *pieces, int n);
int conn_send_json(struct conn *c, uint32_t type, json_t *body);	/* steals body */
bool conn_has_room(const struct conn *c);		/* less than 1 MiB is queued */
/* Stops reading, or goes on; no message is delivered in between. */
void conn_pause(struct conn *c, bool paused);
void conn_close(struct conn *c, int err, const char *why);		/* down runs from the loop */
/* URI SAN of the peer's verified certificate ("asr:host:ID"), NULL: none given */
const char *conn_peer(const struct conn *c);
bool conn_enrolling(const struct conn *c);		/* ALPN */
SSL *conn_ssl(struct conn *c);				/* for the exporter */
int conn_serial(const struct conn *c, char *out, size_t bytes);	/* of the peer's certificate: tls_cert_serial */
uint64_t conn_bytes_sent(const struct conn *c);
/* A peer that is silent for so long is gone; a ping goes after a quarter of it. Else 30 s and 5 s */
void conn_silence(struct conn *c, uint64_t ns);
int conn_local_address(const struct conn *c, char out[64]);	/* as a number; -ENOTCONN */

/* ------------------------------------------------------------- listen.c */

/* "ADDR:PORT", ADDR may be empty, or in brackets. -EINVAL with why. Pure */
int address_split(const char *text, char host[256], char port[8], struct why *why);
struct listener;
/* accepted: the socket is its own. patient: waits two seconds for a port that is in use */
int listen_open(struct loop *l, const char *text, bool patient, void (*accepted)(int fd, void *arg), void *arg,
		struct listener **out, struct why *why);
void listen_tick(struct listener *l);	/* now and then: after descriptors ran out. NULL is fine */
void listen_close(struct listener *l);	/* NULL is fine */

/* -------------------------------------------------------------- ident.c */

/* CA, registration keys, certificates (docs/architecture.md, Identity). */
int ident_ca_create(const char *dir, const char *address, const char *port, struct why *why);
/* One registration key, as the text that is handed to the host's administrator. */
struct reg_key {
	char id[17];			/* 8 random bytes, hex */
	uint8_t secret[20];
	uint8_t pin[16];		/* SHA-256 of the CA's public key, truncated */
	char address[256], port[8];
	uint64_t expires_ns;		/* real time; told to the host for a better message */
};
int ident_key_format(const struct reg_key *k, char *out, size_t bytes);
int ident_key_parse(const char *text, struct reg_key *k, struct why *why);	/* pure; fuzzed */
int ident_address_check(const char *address, struct why *why);	/* name or IP, no port */
/* Host (enrol.c): enrols with the vault and writes host.key, host.crt, ca.crt,
   vault.json to dir; host: its name, NULL for the machine's own. */
int ident_register(const char *key_text, const char *dir, const char *host, struct why *why);
struct catalog;
/* Vault: a new key in the catalogue of dir; *k is what ident_key_format wants */
int ident_key_create(struct catalog *cat, const char *dir, const char *for_host, uint64_t expires_ns, struct reg_key *k,
		     struct why *why);
/* Vault: checks proof and key, signs. Called by vaultd with an enrol call's
   parameters; NULL: *error is the code of wire.h, why the text. */
json_t *ident_enrol(struct catalog *cat, const char *dir, SSL *ssl, json_t *parameters,
		    const char **error, struct why *why);
/* What both ends of an enrolment compute; see ident.c */
int ident_ca_pin(const X509 *ca, uint8_t pin[16]);
struct X509_req_st;
int ident_proof(SSL *ssl, const uint8_t secret_hash[32], const struct X509_req_st *csr,
		uint8_t proof[32]);
enum ident_pem_kind { IDENT_PEM_KEY, IDENT_PEM_CERT, IDENT_PEM_CSR };
char *ident_pem(const void *object, enum ident_pem_kind kind);	/* PEM text, the caller's */

/* ------------------------------------------------------------- logdev.c */

/* The write-intent log of a disk, decoded: uapi/dm-asr.h has the layout. */
struct logdev {
	uint8_t uuid[16];
	char group[ASR_NAME_BYTES], disk[ASR_NAME_BYTES];
	uint64_t sectors, regions;
	uint32_t region_sectors;
	uint32_t flags;			/* ASR_LOGF_* */
	uint32_t version, copies;	/* copies: superblocks that are whole */
	uint64_t write_no, generation, durable_seq, seq_high;
};
/* Size of a region for a disk of so many sectors; bytes that its log takes */
uint32_t logdev_region_sectors(uint64_t sectors);
uint64_t logdev_bytes(uint64_t sectors, uint32_t region_sectors);
/*
 * Pure, fuzzed. The first 8192 bytes of a device: -ENODATA: no log, -EBADMSG: damaged,
 * -EPROTONOSUPPORT: newer. One sector of the bitmap, the numberth: bits set, or -EBADMSG.
 */
int logdev_parse(const uint8_t *data, size_t bytes, struct logdev *l, struct why *why);
int logdev_bits(const uint8_t sector[ASR_LOG_SECTOR], uint64_t number, uint32_t bits);
/* A device or file; *bytes is its size. The rest take what this opened. */
int logdev_open(const char *path, bool write, int *fd, uint64_t *bytes, struct why *why);
int logdev_read(int fd, uint64_t bytes, struct logdev *l, struct why *why);
int logdev_count(int fd, const struct logdev *l, uint64_t *set, uint64_t *broken, struct why *why);
/* In: names, sectors, region_sectors, seq_high, generation, uuid (zero: a new one);
   every region is set. */
int logdev_format(int fd, uint64_t bytes, struct logdev *l, struct why *why);
/* No kernel has it open: from now on it proves nothing, and all is compared. */
int logdev_distrust(int fd, struct logdev *l, struct why *why);
struct logdev_want {
	const char *group, *disk;
	uint64_t sectors;
	const uint8_t *uuid;		/* NULL: any */
	uint64_t generation;		/* at least; 0: any */
};
/* Is it that disk's, of that size, as new as was seen? -EXDEV, -ERANGE, -ESTALE with why */
int logdev_match(const struct logdev *l, const struct logdev_want *w, struct why *why);

/* ----------------------------------------------------------- remember.c */

/* What this host protects, on file, for the next boot: remember.c has the keys. Objects
   have "name", and "error" when the file cannot be used. */
int remember_groups(const char *state_dir, json_t **names, struct why *why);
int remember_list(const char *state_dir, const char *group, json_t **disks, struct why *why);
json_t *remember_find(const char *state_dir, const char *group, const char *disk);	/* NULL: not known */
int remember_put(const char *state_dir, const char *group, json_t *disk, struct why *why);
int remember_forget(const char *state_dir, const char *group, const char *disk, struct why *why);
void remember_forget_all(const char *state_dir, const char *group);
#define ASR_BOOT_DIR	"/run/asr-boot"			/* of this boot: what asrctl has been through with */
/* Not known yet: what was written to the disk while asr was put on it. Said from before to after in its record
   ("checking") or, where that cannot be written, by a file in ASR_BOOT_DIR. A number for this time, 0: it is known */
uint64_t remember_half(const char *group, json_t *disk);
int remember_half_begin(const char *state_dir, const char *group, json_t *disk);	/* state_dir NULL: by a file */
int remember_half_end(const char *state_dir, const char *group, json_t *disk);
#define ASR_BOOT_LOCK	ASR_BOOT_DIR "/lock"		/* who changes a record has it (flock) */

/* -------------------------------------------------------------- batch.c */
/* source.c, batch.c, pack.c, ship.c, resync.c, group.c: see source.h */

/* ------------------------------------------------------ catalog.c, store.c,
   index.c, point.c, restore.c: see vault.h */

#endif /* ASR_ASR_H */
