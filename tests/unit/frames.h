/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Builds sealed frames and whole streams for tests, straight from wire.h and
 * independent of the source's own code.
 */
#ifndef TESTS_UNIT_FRAMES_H
#define TESTS_UNIT_FRAMES_H

#include <assert.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <sys/stat.h>

#include <cmocka.h>
#include <xxhash.h>
#include <zstd.h>

#include "vault.h"

struct maker {
	uint8_t group[16], stream[16], session[16], key[32], tag[16];
	uint64_t frame_no, generation, seq, time_ns;
	bool zstd;
	struct frame_hdr hdr;
	struct frame_rec rec[ASR_FRAME_RECORDS_MAX];
	uint8_t meta[ASR_FRAME_META_MAX], payload[ASR_FRAME_PAYLOAD_MAX];
	uint8_t frame[ASR_FRAME_MAX] __attribute__((aligned(64)));
	size_t bytes;
};

static inline struct maker *maker_new(void)
{
	struct maker *m = calloc(1, sizeof(*m));

	memset(m->group, 0x11, 16);
	memset(m->stream, 0x22, 16);
	memset(m->session, 0x33, 16);
	memset(m->key, 0x44, 32);
	m->generation = 1;
	m->time_ns = 1700000000ULL * 1000000000ULL;
	return m;
}

static inline struct frame_rec *make_rec(struct maker *m, uint8_t kind, uint16_t disk, uint64_t sector,
					 uint32_t sectors)
{
	struct frame_rec *r = &m->rec[m->hdr.records++];

	memset(r, 0, sizeof(*r));
	if (kind < 32)
		m->seq++;
	m->time_ns += 1000;
	r->seq = m->seq;
	r->time_ns = m->time_ns;
	r->kind = kind;
	r->disk = disk;
	r->sector = sector;
	r->sectors = sectors;
	return r;
}

/* A WRITE or SYNC whose every sector says fill */
static inline void make_data(struct maker *m, uint8_t kind, uint16_t disk, uint64_t sector, uint32_t sectors,
			     uint8_t fill)
{
	struct frame_rec *r = make_rec(m, kind, disk, sector, sectors);

	r->offset = m->hdr.plain_bytes;
	r->bytes = sectors * 512;
	memset(m->payload + r->offset, fill, r->bytes);
	m->hdr.plain_bytes += r->bytes;
}

static inline void *make_meta(struct maker *m, uint8_t kind, uint16_t disk, size_t bytes)
{
	struct frame_rec *r = make_rec(m, kind, disk, 0, 0);

	r->offset = m->hdr.meta_bytes;
	r->bytes = (uint32_t)bytes;
	memset(m->meta + r->offset, 0, bytes);
	m->hdr.meta_bytes += (uint32_t)bytes;
	return m->meta + r->offset;
}

static inline void make_disk(struct maker *m, uint16_t disk, const char *name, uint64_t sectors, uint32_t flags)
{
	struct asr_rec_disk *d = make_meta(m, ASR_KIND_DISK, disk, sizeof(*d));

	d->sectors = sectors;
	d->flags = flags;
	snprintf(d->name, sizeof(d->name), "%s", name);
}

static inline void make_mark(struct maker *m, const char *name, uint64_t id)
{
	struct asr_rec_mark *k = make_meta(m, ASR_KIND_MARK, ASR_DISK_NONE, sizeof(*k));

	k->id = id;
	snprintf(k->name, sizeof(k->name), "%s", name);
}

/* What is said of a mark that was made before */
static inline void make_declaration(struct maker *m, const char *name, uint64_t id, uint32_t says)
{
	struct asr_rec_mark *k = make_meta(m, ASR_KIND_MARK, ASR_DISK_NONE, sizeof(*k));

	k->id = id;
	k->flags = ASR_MARK_DECLARE | says;
	snprintf(k->name, sizeof(k->name), "%s", name);
}

static inline void make_state(struct maker *m, uint32_t from, uint32_t to, uint32_t reason)
{
	struct asr_rec_state *s = make_meta(m, ASR_KIND_STATE, ASR_DISK_NONE, sizeof(*s));

	s->from = from;
	s->to = to;
	s->reason = reason;
}

static inline size_t make_digests(struct maker *m, uint8_t *out)
{
	size_t n = 0;

	for (uint32_t i = 0; i < m->hdr.records; i++) {
		const struct frame_rec *r = &m->rec[i];

		if (!wire_kind_has_payload(r->kind))
			continue;
		for (uint64_t s = (r->sector + 7) / 8 * 8; s + 8 <= r->sector + r->sectors; s += 8) {
			XXH128_canonical_t c;

			XXH128_canonicalFromHash(&c, XXH3_128bits(m->payload + r->offset + (s - r->sector) * 512,
								  4096));
			memcpy(out + n, &c, 16);
			n += 16;
		}
	}
	return n;
}

/* Seals what was gathered into m->frame, m->bytes; the next frame begins empty */
static inline void make_frame(struct maker *m)
{
	struct frame_hdr *h = &m->hdr;
	static uint8_t digests[ASR_FRAME_PAYLOAD_MAX / 256], packed[ASR_FRAME_PAYLOAD_MAX];
	uint8_t *stored = m->payload, *p = m->frame;
	struct seal *s = NULL;
	size_t n;

	h->magic = ASR_FRAME_MAGIC;
	h->version = ASR_FRAME_VERSION;
	h->hdr_bytes = sizeof(*h);
	memcpy(h->group, m->group, 16);
	memcpy(h->stream, m->stream, 16);
	memcpy(h->session, m->session, 16);
	memcpy(h->prev_tag, m->tag, 16);
	h->generation = m->generation;
	h->frame_no = ++m->frame_no;
	h->first_seq = m->rec[0].seq;
	h->last_seq = m->rec[h->records - 1].seq;
	h->first_time_ns = UINT64_MAX;
	for (uint32_t i = 0; i < h->records; i++) {
		if (m->rec[i].time_ns < h->first_time_ns)
			h->first_time_ns = m->rec[i].time_ns;
		if (m->rec[i].time_ns > h->last_time_ns)
			h->last_time_ns = m->rec[i].time_ns;
	}
	h->stored_bytes = h->plain_bytes;
	if (m->zstd && h->plain_bytes) {
		n = ZSTD_compress(packed, sizeof(packed), m->payload, h->plain_bytes, 1);
		assert(!ZSTD_isError(n) && n < h->plain_bytes);
		h->stored_bytes = (uint32_t)n;
		h->flags = ASR_FRAMEF_ZSTD;
		stored = packed;
	}
	h->digest_bytes = (uint32_t)make_digests(m, digests);
	h->total_bytes = (uint32_t)(sizeof(*h) + h->records * sizeof(struct frame_rec) + h->meta_bytes +
				    h->digest_bytes + 16 + h->stored_bytes + 16);
	memcpy(p, h, sizeof(*h));
	p += sizeof(*h);
	memcpy(p, m->rec, h->records * sizeof(struct frame_rec));
	p += h->records * sizeof(struct frame_rec);
	memcpy(p, m->meta, h->meta_bytes);
	p += h->meta_bytes;
	assert(!seal_create(m->key, m->session, &s));
	assert(!seal_section(s, h->frame_no, 1, m->frame, sizeof(*h),
			     &(struct iovec){ digests, h->digest_bytes }, 1, p));
	p += h->digest_bytes + 16;
	assert(!seal_section(s, h->frame_no, 2, m->frame, (size_t)(p - m->frame),
			     &(struct iovec){ stored, h->stored_bytes }, 1, p));
	seal_destroy(s);
	m->bytes = h->total_bytes;
	memcpy(m->tag, p + h->stored_bytes, 16);
	memset(h, 0, sizeof(*h));
}

/* ------------------------------------------------------------------ folders */

static inline char *temp_dir(void)
{
	/* in memory where there is such a file system: these tests flush a lot */
	char *dir = strdup(access("/dev/shm", W_OK) ? "/tmp/asr-test-XXXXXX" : "/dev/shm/asr-test-XXXXXX");

	assert(mkdtemp(dir));
	return dir;
}

static inline void remove_dir(char *dir)
{
	char cmd[200];

	snprintf(cmd, sizeof(cmd), "rm -rf %s", dir);
	assert(!system(cmd));
	free(dir);
}

static inline char *run_output(const char *cmd)
{
	char *text = calloc(1, 65536);
	FILE *f = popen(cmd, "r");

	assert(f);
	assert(fread(text, 1, 65535, f));
	assert(!pclose(f));
	return text;
}

/* A certificate and its private key: kind is "rsa:2048" or "ec" */
static inline void make_cert(const char *kind, char **cert, char **key)
{
	char *dir = temp_dir(), cmd[600];

	snprintf(cmd, sizeof(cmd), "openssl req -x509 -newkey %s -nodes -keyout %s/k -out %s/c -days 9 -subj /CN=test "
		 "2>/dev/null", strcmp(kind, "ec") ? kind : "ec -pkeyopt ec_paramgen_curve:P-256", dir, dir);
	assert(!system(cmd));
	snprintf(cmd, sizeof(cmd), "cat %s/c", dir);
	*cert = run_output(cmd);
	snprintf(cmd, sizeof(cmd), "cat %s/k", dir);
	*key = run_output(cmd);
	remove_dir(dir);
}

/* --------------------------------------------------------- a vault by ingest */

struct feeder {
	struct loop *loop;
	struct store *store;
	struct ingest *in;
	struct ingest_stream *s;
	uint64_t durable, wanted;
};

static inline void feeder_durable(struct ingest_stream *s, uint64_t frame_no, uint64_t last_seq, void *arg)
{
	struct feeder *f = arg;

	f->durable = frame_no;
	if (frame_no >= f->wanted)
		loop_stop(f->loop);
}

static inline void feeder_room(struct ingest_stream *s, void *arg)
{
}

static const struct ingest_ops feeder_ops = { feeder_durable, feeder_room };

static inline int feeder_open(struct feeder *f, const char *dir, const struct maker *m, uint64_t seg_bytes,
			      struct why *why)
{
	memset(f, 0, sizeof(*f));
	assert(!store_open(dir, &f->store, NULL));
	assert(!loop_create(&f->loop, 64));
	assert(!ingest_create(f->loop, f->store, seg_bytes, &f->in));
	return ingest_open(f->in, m->group, m->stream, &feeder_ops, f, &f->s, why);
}

static inline void feeder_wait(struct feeder *f, uint64_t frame_no)
{
	f->wanted = frame_no;
	if (f->durable < frame_no)
		assert(!loop_run(f->loop));
}

struct feeder_idle {
	struct loop_idle idle;
	struct feeder *f;
};

static inline void feeder_on_idle(void *arg)
{
	struct feeder *f = arg;

	if (ingest_idle(f->in))
		loop_stop(f->loop);
}

static inline void feeder_close(struct feeder *f, bool drain)
{
	struct loop_idle idle = { .fn = feeder_on_idle, .arg = f };

	if (drain) {
		loop_idle_add(f->loop, &idle);
		f->wanted = UINT64_MAX;
		assert(!loop_run(f->loop));
		loop_idle_remove(f->loop, &idle);
	}
	ingest_destroy(f->in);
	loop_destroy(f->loop);
	store_close(f->store);
}

/* group.json and the wrapped key, so that dir is a vault with the maker's group "g" */
static inline void make_group(const char *dir, struct maker *m, char *const *certs, size_t count)
{
	struct catalog_group g = { .name = "g", .host_id = "h", .generation = 1, .created_ns = 1, .epoch = 1 };
	json_t *members;
	char stream[33];
	uint8_t *der;
	size_t bytes;

	memcpy(g.uuid, m->group, 16);
	memcpy(g.stream, m->stream, 16);
	assert(!seal_key_wrap(m->key, certs, count, &der, &bytes, NULL));
	assert(!folder_key(dir, g.uuid, g.stream, der, bytes, NULL));
	hex_encode(g.stream, 16, stream);
	members = json_pack("[{s:s, s:s, s:[s], s:n}]", "host", "h", "stream", stream, "recipients", "test", "left");
	assert(!folder_make(dir, &g, members, NULL));
	json_decref(members);
	free(der);
}

#endif
