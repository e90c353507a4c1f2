/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Door 2: frames, and the messages that carry them to the vault.
 *
 * Everything is little-endian and naturally aligned; decoders are the pure
 * functions of wire.c and trust no length. docs/wire.md has the drawings.
 *
 * A frame is immutable from the moment it is sealed: the same bytes travel,
 * are stored, relocated and read back.
 *
 *   +--------------------+  0
 *   | struct frame_hdr   |  clear, authenticated (AAD of both sections)
 *   +--------------------+  sizeof(struct frame_hdr)
 *   | records x          |  clear, authenticated (AAD of the payload section)
 *   | struct frame_rec   |
 *   +--------------------+
 *   | meta               |  clear, authenticated: bodies of MARK, STATE and
 *   |                    |  DISK records as in uapi/dm-asr.h, each at an
 *   |                    |  offset that is a multiple of 8; padded to 8
 *   +--------------------+
 *   | digest section     |  AES-256-GCM of digest_bytes, then the 16-byte tag
 *   +--------------------+
 *   | payload section    |  AES-256-GCM of stored_bytes, then the 16-byte tag,
 *   |                    |  the frame's own tag: the next frame repeats it
 *   +--------------------+  total_bytes
 *
 * Keys: a session key per session = HKDF-SHA256(group data key, salt =
 * session, info = "dm-asr frame 1"), 32 bytes. Nonce, 12 bytes: frame_no (8,
 * little-endian), then the section (4): 1 digests, 2 payload. A session seals
 * a frame number once, so no nonce is used twice under one key. AAD of the
 * digest section: the frame_hdr. AAD of the payload section: everything that
 * stands before the payload section, the sealed digests and their tag
 * included. A frame without payload has an empty section: the tag alone.
 *
 * Digests: one XXH3-128 (canonical form, 16 bytes) for each aligned 4 KiB
 * block of the disk that one WRITE or SYNC record covers wholly, in record
 * order and then block order. Which blocks these are follows from the table.
 */
#ifndef ASR_WIRE_H
#define ASR_WIRE_H

#include <stdint.h>

#define ASR_FRAME_MAGIC		0x46525341u	/* "ASRF" */
#define ASR_FRAME_VERSION	1
#define ASR_FRAME_PAYLOAD	131072		/* default fill, and what one record may need */
#define ASR_FRAME_PAYLOAD_MAX	1048576		/* the most a decoder accepts, plain */
#define ASR_FRAME_RECORDS_MAX	4096
#define ASR_FRAME_META_MAX	65536
#define ASR_FRAME_MAX		2097152		/* total_bytes, at most */
#define ASR_UUID_BYTES		16
#define ASR_TAG_BYTES		16
#define ASR_KEY_BYTES		32
#define ASR_NONCE_BYTES		12
#define ASR_DIGEST_BYTES	16
#define ASR_BLOCK_SECTORS	8		/* 4 KiB */
#define ASR_DISK_SECTORS_MAX	((uint64_t)INT64_MAX >> 9)	/* what a file can hold */

#define ASR_FRAMEF_ZSTD		0x1	/* the payload is one zstd frame (no dictionary) */

/* kinds made by userland, beside ASR_KIND_* of uapi/dm-asr.h */
#define ASR_KIND_SYNC		32	/* payload: sectors read from the disk by resync */
#define ASR_KIND_SYNC_ZEROES	33	/* resync: these sectors read as zeroes */
#define ASR_KIND_RESYNC_BEGIN	34	/* from here on the copy is not consistent ... */
#define ASR_KIND_RESYNC_END	35	/* ... and here it is */

struct frame_hdr {
	uint32_t magic;
	uint16_t version;
	uint16_t hdr_bytes;		/* sizeof(struct frame_hdr) */
	uint32_t total_bytes;
	uint32_t flags;			/* ASR_FRAMEF_* */
	uint8_t  group[ASR_UUID_BYTES];
	uint8_t  stream[ASR_UUID_BYTES];	/* the records of one group on one host */
	uint8_t  session[ASR_UUID_BYTES];	/* random, the salt of the session key */
	uint64_t generation;		/* fence: +1 at each failover */
	uint64_t frame_no;		/* +1 per frame over the life of the stream, from 1 */
	uint64_t first_seq;		/* of the first and the last record */
	uint64_t last_seq;
	uint64_t first_time_ns;		/* least and greatest time of its records */
	uint64_t last_time_ns;
	uint32_t records;
	uint32_t meta_bytes;		/* multiple of 8 */
	uint32_t digest_bytes;		/* without the tag; multiple of 16 */
	uint32_t stored_bytes;		/* payload as sealed, without the tag */
	uint32_t plain_bytes;		/* payload before compression */
	uint32_t reserved;
	uint8_t  prev_tag[ASR_TAG_BYTES];	/* payload tag of frame_no - 1 of this
					   stream; zeroes in the first */
};

/*
 * seq never falls along a stream. SYNC, SYNC_ZEROES and RESYNC_* records
 * carry the seq of the last ring record before them. A stream is consistent
 * from each RESYNC_END to the next RESYNC_BEGIN, STATE to TRACK, STATE with
 * ASR_WHY_START, or DISK record with ASR_DISKF_DIRTY or a grown size; it begins
 * inconsistent. ASR_WHY_START (capture began anew, as after a boot) also means
 * that no disk is there until its DISK record comes. Point seq N is the state
 * after the last consistent position of seq N.
 */
struct frame_rec {
	uint64_t seq;
	uint64_t time_ns;
	uint64_t sector;
	uint32_t sectors;
	uint32_t offset;		/* WRITE, SYNC: into the plain payload; MARK,
					   STATE, DISK: into meta; else 0 */
	uint32_t bytes;			/* WRITE, SYNC: sectors * 512; MARK, STATE,
					   DISK: of the body; else 0 */
	uint16_t disk;
	uint8_t  kind;
	uint8_t  flags;			/* ASR_RECF_* */
};

/* ------------------------------------------------------------- messages */

/*
 * Inside TLS 1.3 (ALPN "dm-asr/1"; enrolment "dm-asr-enrol/1", the only one
 * that needs no client certificate) both sides send messages: this header,
 * then bytes bytes of body. HELLO is the first from both sides.
 */
struct msg_hdr {
	uint32_t type;			/* MSG_* */
	uint32_t bytes;			/* of the body, at most MSG_MAX */
};

#define MSG_MAX		(ASR_FRAME_MAX)
#define MSG_HELLO	1	/* JSON: {"protocol":1,"software":"dm-asr X.Y","host":"..."} */
#define MSG_CALL	2	/* JSON: {"id":n,"method":"...","parameters":{}} */
#define MSG_REPLY	3	/* JSON: {"id":n,"parameters":{}} or {"id":n,"error":"code","text":"..."} */
#define MSG_FRAME	4	/* a frame, of a stream opened on this connection */
#define MSG_ACK		5	/* struct msg_ack */
#define MSG_PING	6	/* empty; after 5 s of silence. 30 s of silence: the peer is gone */
#define MSG_ERROR	7	/* JSON: {"error":"code","text":"..."}; the sender closes */
#define MSG_PEER	9	/* JSON, between hosts: marks.h */
#define MSG_MAP		8	/* struct msg_map and what follows it: part of the answer to digest.map */

/* vault -> host: all frames of the stream up to frame_no are durable */
struct msg_ack {
	uint8_t  stream[ASR_UUID_BYTES];
	uint64_t frame_no;
	uint64_t last_seq;
};

/*
 * vault -> host, before the MSG_REPLY to a digest.map call: where the newest
 * version of each sector of a range stands, among the frames of the stream up
 * to frame_no, and what of those frames a holder of the key needs to compare.
 *
 *   struct msg_map
 *   struct map_extent x extents   in order of sector, without a gap, adding up to sectors
 *   frames x                      struct frame_hdr, then the sealed digest section and
 *                                 its tag, as they stand in the frame
 *
 * Frames are numbered from 0 as extents name them first. The digest section's AAD
 * is the header alone, so the record table need not travel: an extent says which
 * digest of the section is that of its first whole aligned block.
 */
struct msg_map {
	uint8_t  stream[ASR_UUID_BYTES];
	uint64_t frame_no;		/* all frames up to this one were looked at */
	uint64_t sector;		/* as asked ... */
	uint32_t sectors;		/* ... but perhaps less: ask again for the rest */
	uint16_t disk;
	uint16_t reserved;
	uint32_t extents;
	uint32_t frames;
};

struct map_extent {
	uint32_t sectors;
	uint32_t frame;			/* MAP_DATA: which of the frames that follow; else 0 */
	uint32_t digest;		/* MAP_DATA: which of its digests; else 0 */
	uint32_t kind;			/* MAP_* */
};
#define MAP_UNKNOWN	0	/* discarded, without a whole block, or no longer kept */
#define MAP_ZEROES	1
#define MAP_DATA	2	/* holds at least one whole aligned 4 KiB block */
#define MAP_NEVER	3	/* no record of the disk ever: a restore gives zeroes */
#define MAP_SECTORS_MAX	65536u	/* of one call: 32 MiB */
#define MAP_BYTES_MAX	1048576u	/* of one MSG_MAP */
#define MAP_FRAMES_MAX	(MAP_BYTES_MAX / sizeof(struct frame_hdr))

/*
 * Methods of MSG_CALL, host to vault. UUIDs are 32 hex digits in JSON.
 *
 * group.create  {group, name, stream, wrapped_key (base64 CMS), recipients: [text]}
 *               -> {}. Same group and name again by the same host: {}.
 *               Errors: name-taken, not-allowed, bad-parameter.
 * group.delete  {group} -> {}. This host leaves; with the last one the group has no
 *               source any more. History stays.
 * group.admit   {group, host (name or id)} -> {host_id, host}: it may join, once.
 * group.find    {name} -> {group, generation}: for a host that may join.
 * group.join    {group, name, stream, wrapped_key, recipients} -> {}. The same stream
 *               again: {}. Errors: not-allowed (not admitted), bad-parameter.
 * group.evict   {group, host} -> {host_id, host}: another host is taken out.
 * group.marks   {group, mark_ms, hold_ms} -> {}: how often marks are made over all
 *               hosts (100 to 3600000, 0: not), how long one may hold (1 to 1000).
 * group.members {group, address ("ADDR:PORT": where other hosts reach this one)}
 *               -> {you, epoch, mark_ms, hold_ms, members: [{host_id, host, stream,
 *                   joined, connected, address (if known)}]}, by host_id. epoch: +1
 *               with each change of the members.
 * stream.open   {group, stream, generation}
 *               -> {frame_no, last_seq, last_tag (hex), consistent (bool),
 *                   generation, disks: [{slot, name}]}: what is durable. Frames go on
 *                   at frame_no + 1.
 *               Errors: unknown-group, not-allowed, fenced (generation too old).
 * digest.map    {stream, disk (slot), name, sector, sectors (1 to MAP_SECTORS_MAX)}
 *               -> MSG_MAP, then {}: as of all frames of the stream that were sent
 *               before the call on this connection, or of later ones. A range that
 *               goes beyond the answer is asked for again. Calls are answered in order.
 *               Errors: not-allowed (not a stream opened here), unknown-disk (the
 *               slot is not that disk's at the vault), busy (too many at a time),
 *               bad-parameter, vault-failed.
 *
 * and over "dm-asr-enrol/1":
 * enrol         {id, csr (PEM), proof (hex HMAC-SHA256(SHA-256(secret),
 *                TLS exporter || CSR DER)), host}
 *               -> {certificate (PEM), ca (PEM), host_id}
 *               Errors: key-unknown, key-expired, key-used, key-revoked, proof-wrong.
 */

#define ASR_PORT	20003	/* the vault's, unless configured */
#define ASR_PEER_PORT	20004	/* hosts', for each other */

#endif /* ASR_WIRE_H */
