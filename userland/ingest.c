// SPDX-License-Identifier: Apache-2.0
/*
 * The receiving side of the vault: from accepted frames to durable ones.
 *
 * Design: a stream has two buffers. Accepted frames are copied, once, into the
 * one that fills; when the loop's turn ends and nothing of the stream is in
 * flight, that buffer is written in one piece, then fdatasync, then everything
 * in it is acknowledged; meanwhile the other fills. So the group commit grows
 * by itself with the load, and a lone frame waits for nothing.
 *
 *   frame -> fills -> write -> fdatasync -> durable()
 *            other buffer fills meanwhile
 *
 * Writes go past the page cache (O_DIRECT) where the file system can: that costs
 * a quarter of the CPU of buffered writes and their write-back. A write is whole
 * blocks: it begins with the block that the one before left unfinished, the same
 * bytes once more, and is padded with zeroes behind its last frame.
 *
 * A buffer belongs to one segment. A segment that has reached its size gets no
 * further buffer; its footer is written and flushed beside the next segment's
 * frames, one sealing at a time and in order.
 *
 * When writing fails (disk full, I/O error) nothing is acknowledged any more;
 * the same buffer is tried again each second, data and flush both, for after a
 * failed flush nothing is known about pages written before it.
 *
 * Invariants: durable() is said only after an fdatasync that covers the frame.
 * A segment's header is durable before its first frame is written. While not
 * full, a frame of any legal size fits.
 *
 * Context: the loop's thread. Creating a segment blocks for one small flush,
 * sealing for a rename. Memory: 2 * BUF_BYTES per stream that has a source,
 * and the table of its segment.
 */
#include "vault.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>

#define BUF_BYTES	(6u << 20)
#define BLOCK		4096u		/* of direct I/O: offsets, lengths and memory */
#define FRAME_ROOM	(sizeof(struct seg_env) + ASR_FRAME_MAX + 8 + 2 * BLOCK)
#define RETRY_NS	1000000000ULL

/* A segment that is being written, or sealed */
struct tail {
	struct recovered r;		/* r.end: where the next buffer goes */
	uint8_t *foot;
	size_t foot_bytes, foot_done;
	struct tail *next;		/* in the queue to be sealed */
	bool direct;
	uint8_t last[BLOCK];		/* what stands in its last, unfinished block */
};

struct buffer {
	uint8_t *data;
	uint64_t offset;		/* of data in the segment, a multiple of BLOCK */
	size_t used, written;		/* used: the unfinished block it begins with included */
	struct tail *tail;
	uint64_t last_frame_no, last_seq;
};

struct ingest_stream {
	struct ingest *in;
	uint8_t group[ASR_UUID_BYTES], uuid[ASR_UUID_BYTES];
	struct seg_state state;
	uint64_t durable_no;
	const struct ingest_ops *ops;	/* NULL: no source */
	void *arg;
	struct tail *tail;		/* that frames go to; NULL: the next begins one */
	struct buffer buf[2];
	int fills;			/* index in buf; the other may be in flight */
	bool in_flight;
	struct loop_op op;		/* write, fdatasync, or the wait to try again */
	struct tail *sealing;		/* queue; the first is in flight */
	struct loop_op seal_op;
	struct map_cache *map;		/* map.c's */
	struct ingest_stream *next;
};

struct ingest {
	struct loop *loop;
	struct store *store;
	uint64_t seg_bytes;
	struct ingest_stream *streams;
	struct loop_idle idle;
	struct ingest_stat stat;
};

static void flush(struct ingest_stream *s);
static void seal_next(struct ingest_stream *s);

/* ------------------------------------------------------------------- errors */

static void failed(struct ingest *in, const struct tail *t, int err)
{
	in->stat.errors++;
	if (in->stat.error != err)
		log_err("cannot write segment %s: %s; nothing is acknowledged until it works, trying each "
			"second", t->r.name, strerror(-err));
	in->stat.error = err;
}

static void worked(struct ingest *in)
{
	if (in->stat.error)
		log_info("segments can be written again");
	in->stat.error = 0;
}

/* ------------------------------------------------------------------ segments */

static struct tail *tail_new(struct ingest_stream *s)
{
	struct tail *t = calloc(1, sizeof(*t));

	if (!t)
		return NULL;
	t->r.fd = -1;
	t->r.end = sizeof(struct seg_hdr);
	seg_hdr_make(&t->r.hdr, s->group, s->uuid, s->state.next_number, s->state.next_frame_no);
	seg_name(s->group, s->uuid, s->state.next_frame_no, t->r.name);
	if (seg_table_begin(&t->r.table, &s->state)) {
		free(t);
		return NULL;
	}
	memcpy(t->last, &t->r.hdr, sizeof(t->r.hdr));
	s->state.next_number++;
	return t;
}

/* Best effort: not every file system has it; some say so here, some at the first write */
static void direct(struct tail *t, bool on)
{
	int flags = fcntl(t->r.fd, F_GETFL);

	if (flags >= 0 && fcntl(t->r.fd, F_SETFL, on ? flags | O_DIRECT : flags & ~O_DIRECT) == 0)
		t->direct = on;
}

static void tail_free(struct tail *t)
{
	if (!t)
		return;
	if (t->r.fd >= 0)
		close(t->r.fd);
	seg_table_free(&t->r.table);
	free(t->foot);
	free(t);
}

/* Its file, with a durable header */
static int tail_create(struct ingest *in, struct tail *t)
{
	char file[SEG_NAME_BYTES + 8];
	int fd = store_tail_create(in->store, t->r.name), err;

	if (fd < 0)
		return fd;
	/* best effort: keeps the file in one piece, and finds out early that the disk is full */
	if (fallocate(fd, FALLOC_FL_KEEP_SIZE, 0, (off_t)in->seg_bytes) < 0)
		errno = 0;
	if (pwrite(fd, &t->r.hdr, sizeof(t->r.hdr), 0) == sizeof(t->r.hdr) && fdatasync(fd) == 0) {
		t->r.fd = fd;
		direct(t, true);
		return 0;
	}
	err = errno ? errno : ENOSPC;
	close(fd);
	snprintf(file, sizeof(file), "%s.open", t->r.name);
	store_delete(in->store, file);
	return -err;
}

/* ------------------------------------------------------------------- sealing */

static void seal_retry(struct loop_op *op, int res, unsigned int flags)
{
	seal_next(op->arg);
}

static void seal_failed(struct ingest_stream *s, int err)
{
	failed(s->in, s->sealing, err);
	s->sealing->foot_done = 0;
	s->seal_op.done = seal_retry;
	loop_timeout(s->in->loop, &s->seal_op, RETRY_NS);
}

static void seal_synced(struct loop_op *op, int res, unsigned int flags)
{
	struct ingest_stream *s = op->arg;
	struct tail *t = s->sealing;

	if (!res)
		res = store_tail_seal(s->in->store, t->r.name);
	if (res) {
		seal_failed(s, res);
		return;
	}
	s->in->stat.segments++;
	s->sealing = t->next;
	tail_free(t);
	seal_next(s);
}

static void seal_written(struct loop_op *op, int res, unsigned int flags)
{
	struct ingest_stream *s = op->arg;
	struct tail *t = s->sealing;

	if (res <= 0) {
		seal_failed(s, res ? res : -ENOSPC);
		return;
	}
	t->foot_done += (size_t)res;
	if (t->foot_done < t->foot_bytes) {
		seal_next(s);
		return;
	}
	if (ftruncate(t->r.fd, (off_t)(t->r.end + t->foot_bytes)) < 0) {
		seal_failed(s, -errno);
		return;
	}
	op->done = seal_synced;
	loop_fdatasync(s->in->loop, op, t->r.fd);
}

/* Goes on with the first segment in the queue: makes and writes its footer */
static void seal_next(struct ingest_stream *s)
{
	struct tail *t = s->sealing;

	if (!t)
		return;
	if (!t->foot && seg_foot_make(&t->r.table, t->r.end, &t->foot, &t->foot_bytes)) {
		seal_failed(s, -ENOMEM);
		return;
	}
	s->seal_op.done = seal_written;
	direct(t, false);
	loop_write(s->in->loop, &s->seal_op, t->r.fd, t->foot + t->foot_done, t->foot_bytes - t->foot_done,
		   t->r.end + t->foot_done);
}

static void seal_begin(struct ingest_stream *s, struct tail *t)
{
	struct tail **end = &s->sealing;
	bool first = !*end;

	while (*end)
		end = &(*end)->next;
	*end = t;
	if (first)
		seal_next(s);
}

/* ------------------------------------------------------------------ flushing */

static void write_retry(struct loop_op *op, int res, unsigned int flags)
{
	struct ingest_stream *s = op->arg;

	s->in_flight = false;
	s->fills ^= 1;		/* back to the buffer that failed; what filled meanwhile waits */
	flush(s);
}

static void write_failed(struct ingest_stream *s, struct buffer *b, int err)
{
	failed(s->in, b->tail, err);
	b->written = 0;
	s->op.done = write_retry;
	loop_timeout(s->in->loop, &s->op, RETRY_NS);
}

static void synced(struct loop_op *op, int res, unsigned int flags)
{
	struct ingest_stream *s = op->arg;
	struct buffer *b = &s->buf[s->fills ^ 1];
	struct tail *t = b->tail;

	if (res) {
		write_failed(s, b, res);
		return;
	}
	worked(s->in);
	s->in->stat.syncs++;
	t->r.end = b->offset + b->used;
	s->durable_no = b->last_frame_no;
	s->in_flight = false;
	b->used = b->written = 0;
	b->tail = NULL;
	if (t != s->tail)
		seal_begin(s, t);
	if (s->ops) {
		s->ops->durable(s, b->last_frame_no, b->last_seq, s->arg);
		if (s->ops)
			s->ops->room(s, s->arg);
	}
}

static size_t padded(const struct buffer *b)
{
	return (b->used + BLOCK - 1) & ~(size_t)(BLOCK - 1);
}

static void written(struct loop_op *op, int res, unsigned int flags)
{
	struct ingest_stream *s = op->arg;
	struct buffer *b = &s->buf[s->fills ^ 1];

	if (res == -EINVAL && b->tail->direct) {
		direct(b->tail, false);
		res = 0;		/* from where it stands, through the page cache */
	} else if (res <= 0) {
		write_failed(s, b, res ? res : -ENOSPC);
		return;
	}
	b->written += (size_t)res;
	if (b->written < padded(b)) {
		b->written &= ~(size_t)(BLOCK - 1);
		loop_write(s->in->loop, op, b->tail->r.fd, b->data + b->written, padded(b) - b->written,
			   b->offset + b->written);
		return;
	}
	op->done = synced;
	loop_fdatasync(s->in->loop, op, b->tail->r.fd);
}

/* Sends the buffer that fills on its way, and swaps */
static void flush(struct ingest_stream *s)
{
	struct buffer *b = &s->buf[s->fills];
	struct tail *t = b->tail;
	int ret;

	s->in_flight = true;
	s->fills ^= 1;
	s->op.arg = s;
	if (t == s->tail && b->offset + b->used >= s->in->seg_bytes)
		s->tail = NULL;		/* full: it is sealed once this buffer is durable */
	/* first of all: when this fails, the other buffer still begins with the block that ends here */
	memset(b->data + b->used, 0, padded(b) - b->used);
	memcpy(t->last, b->data + (b->used & ~(size_t)(BLOCK - 1)), b->used & (BLOCK - 1));
	ret = t->r.fd < 0 ? tail_create(s->in, t) : 0;
	if (ret) {
		write_failed(s, b, ret);
		return;
	}
	s->op.done = written;
	loop_write(s->in->loop, &s->op, t->r.fd, b->data, padded(b), b->offset);
}

static void on_idle(void *arg)
{
	struct ingest *in = arg;

	for (struct ingest_stream *s = in->streams; s; s = s->next)
		if (!s->in_flight && s->buf[s->fills].used)
			flush(s);
}

/* ----------------------------------------------------------------- accepting */

bool ingest_full(const struct ingest_stream *s)
{
	return s->in_flight && s->buf[s->fills].used + FRAME_ROOM > BUF_BYTES;
}

static int buffer_ready(struct ingest_stream *s)
{
	if (!s->in_flight && s->buf[s->fills].used + FRAME_ROOM > BUF_BYTES)
		flush(s);
	/* a buffer belongs to one segment: a new one begins with an empty buffer */
	if (!s->tail)
		s->tail = tail_new(s);
	return s->tail ? 0 : -ENOMEM;
}

/* An empty buffer goes on where the one before it ends, in the middle of a block */
static void buffer_begin(struct ingest_stream *s, struct buffer *b)
{
	const struct buffer *before = &s->buf[s->fills ^ 1];
	uint64_t end = s->in_flight && before->tail == s->tail ? before->offset + before->used : s->tail->r.end;

	b->tail = s->tail;
	b->offset = end & ~(uint64_t)(BLOCK - 1);
	b->used = (size_t)(end - b->offset);
	memcpy(b->data, s->tail->last, b->used);
}

int ingest_frame(struct ingest_stream *s, const uint8_t *frame, size_t bytes, struct why *why)
{
	struct frame_view v;
	struct seg_env env;
	struct buffer *b;
	size_t pad = -bytes & 7;
	uint64_t now = now_real_ns();
	bool empty;
	int ret = wire_frame_parse(frame, bytes, &v, why);

	if (ret)
		return ret;
	if (memcmp(v.hdr.group, s->group, ASR_UUID_BYTES) || memcmp(v.hdr.stream, s->uuid, ASR_UUID_BYTES))
		return why_set(why, EBADMSG, "frame %llu belongs to another group or stream",
			       (unsigned long long)v.hdr.frame_no);
	ret = seg_frame_fits(&s->state, &v, why);
	if (ret)
		return ret;
	if (ingest_full(s))
		return why_set(why, ENOBUFS, "frame %llu came while there was no room",
			       (unsigned long long)v.hdr.frame_no);
	if (buffer_ready(s))
		return why_set(why, ENOMEM, "out of memory");
	b = &s->buf[s->fills];
	empty = !b->used;
	if (empty)
		buffer_begin(s, b);
	ret = seg_table_add(&s->tail->r.table, &s->state, &v, b->offset + b->used + sizeof(env), now);
	if (ret) {
		if (empty)
			b->used = 0;	/* no frame: nothing to flush, nothing to acknowledge */
		return why_set(why, ENOMEM, "out of memory");
	}
	seg_env_make(&env, frame, bytes, v.hdr.frame_no, s->durable_no, now);
	memcpy(b->data + b->used, &env, sizeof(env));
	memcpy(b->data + b->used + sizeof(env), frame, bytes);
	memset(b->data + b->used + sizeof(env) + bytes, 0, pad);
	b->used += sizeof(env) + bytes + pad;
	b->last_frame_no = v.hdr.frame_no;
	b->last_seq = v.hdr.last_seq;
	s->in->stat.frames++;
	s->in->stat.bytes += bytes;
	return 0;
}

/* ------------------------------------------------------------ coming and going */

static int buffers_map(struct ingest_stream *s)
{
	for (int i = 0; i < 2; i++) {
		if (s->buf[i].data)
			continue;
		s->buf[i].data = mmap(NULL, BUF_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		if (s->buf[i].data == MAP_FAILED) {
			s->buf[i].data = NULL;
			return -ENOMEM;
		}
	}
	return 0;
}

static bool stream_idle(const struct ingest_stream *s)
{
	return !s->in_flight && !s->buf[s->fills].used;
}

/* What a recovered segment's unfinished block holds */
static int tail_last(struct tail *t)
{
	size_t n = t->r.end & (BLOCK - 1);

	if (pread(t->r.fd, t->last, n, (off_t)(t->r.end - n)) != (ssize_t)n)
		return -EIO;
	direct(t, true);
	return 0;
}

static struct ingest_stream *stream_recover(struct ingest *in, const uint8_t *group, const uint8_t *uuid,
					    struct why *why)
{
	struct ingest_stream *s = calloc(1, sizeof(*s));
	struct tail *t = calloc(1, sizeof(*t));

	if (!s || !t)
		why_set(why, ENOMEM, "out of memory");
	if (!s || !t || recover_stream(in->store, group, uuid, &s->state, &t->r, why)) {
		free(s);
		free(t);
		return NULL;
	}
	if (t->r.fd >= 0 && tail_last(t)) {
		why_set(why, EIO, "segment %s.open cannot be read", t->r.name);
		tail_free(t);
		free(s);
		return NULL;
	}
	s->in = in;
	s->op.arg = s->seal_op.arg = s;
	memcpy(s->group, group, ASR_UUID_BYTES);
	memcpy(s->uuid, uuid, ASR_UUID_BYTES);
	s->durable_no = s->state.next_frame_no - 1;
	if (t->r.fd >= 0)
		s->tail = t;
	else
		tail_free(t);
	s->next = in->streams;
	in->streams = s;
	return s;
}

int ingest_open(struct ingest *in, const uint8_t *group, const uint8_t *stream,
		const struct ingest_ops *ops, void *arg, struct ingest_stream **out, struct why *why)
{
	struct ingest_stream *s;

	for (s = in->streams; s; s = s->next)
		if (!memcmp(s->uuid, stream, ASR_UUID_BYTES) && !memcmp(s->group, group, ASR_UUID_BYTES))
			break;
	if (s && s->ops)
		return why_set(why, EBUSY, "the stream has a source already");
	if (s && !stream_idle(s))
		return why_set(why, EAGAIN, "what an earlier connection sent is not durable yet");
	if (!s)
		s = stream_recover(in, group, stream, why);
	if (!s)
		return -EBADMSG;
	if (buffers_map(s))
		return why_set(why, ENOMEM, "out of memory");
	s->ops = ops;
	s->arg = arg;
	*out = s;
	return 0;
}

void ingest_close(struct ingest_stream *s)
{
	s->ops = NULL;
	s->arg = NULL;
	for (int i = 0; i < 2 && stream_idle(s); i++) {
		munmap(s->buf[i].data, BUF_BYTES);
		s->buf[i].data = NULL;
	}
}

const struct seg_state *ingest_state(const struct ingest_stream *s)
{
	return &s->state;
}

const uint8_t *ingest_uuid(const struct ingest_stream *s)
{
	return s->uuid;
}

/* --------------------------------------------------------------- for map.c */

size_t ingest_parts(const struct ingest_stream *s, struct ingest_part *out, size_t room)
{
	const struct buffer *b = &s->buf[s->fills ^ 1];
	size_t n = 0, sealing = 0, k = 0;

	if (s->tail && n++ < room)
		out[n - 1] = (struct ingest_part){ &s->tail->r.table, s->tail->r.hdr.first_frame_no };
	if (s->in_flight && b->tail && b->tail != s->tail && n++ < room)
		out[n - 1] = (struct ingest_part){ &b->tail->r.table, b->tail->r.hdr.first_frame_no };
	for (const struct tail *t = s->sealing; t; t = t->next)
		sealing++;
	n += sealing;
	for (const struct tail *t = s->sealing; t; t = t->next)		/* this queue is oldest first */
		if (n - ++k < room)
			out[n - k] = (struct ingest_part){ &t->r.table, t->r.hdr.first_frame_no };
	return n;
}

int ingest_read(const struct ingest_stream *s, uint64_t first_frame_no, uint64_t offset, void *buf, size_t bytes)
{
	char name[SEG_NAME_BYTES], file[SEG_NAME_BYTES + 8];
	int ret;

	for (int i = 0; i < 2; i++) {
		const struct buffer *b = &s->buf[i];

		if (!b->tail || b->tail->r.hdr.first_frame_no != first_frame_no || offset < b->offset ||
		    offset + bytes > b->offset + b->used)
			continue;
		memcpy(buf, b->data + (offset - b->offset), bytes);
		return 0;
	}
	seg_name(s->group, s->uuid, first_frame_no, name);
	snprintf(file, sizeof(file), "%s.open", name);
	ret = store_get(s->in->store, file, offset, buf, bytes);
	if (ret != -ENOENT)
		return ret;
	snprintf(file, sizeof(file), "%s.seg", name);
	return store_get(s->in->store, file, offset, buf, bytes);
}

struct store *ingest_store(const struct ingest_stream *s)
{
	return s->in->store;
}

const uint8_t *ingest_group(const struct ingest_stream *s)
{
	return s->group;
}

struct map_cache **ingest_map_cache(struct ingest_stream *s)
{
	return &s->map;
}

bool ingest_idle(const struct ingest *in)
{
	for (const struct ingest_stream *s = in->streams; s; s = s->next)
		if (!stream_idle(s) || s->sealing)
			return false;
	return true;
}

void ingest_stat_get(const struct ingest *in, struct ingest_stat *st)
{
	*st = in->stat;
}

int ingest_create(struct loop *l, struct store *store, uint64_t seg_bytes, struct ingest **out)
{
	struct ingest *in = calloc(1, sizeof(*in));

	if (!in)
		return -ENOMEM;
	in->loop = l;
	in->store = store;
	in->seg_bytes = seg_bytes;
	in->idle = (struct loop_idle){ .fn = on_idle, .arg = in };
	loop_idle_add(l, &in->idle);
	*out = in;
	return 0;
}

/* The loop has ended: nothing is in flight any more */
void ingest_destroy(struct ingest *in)
{
	struct ingest_stream *s;

	while (in && (s = in->streams) != NULL) {
		in->streams = s->next;
		for (int i = 0; i < 2; i++) {
			if (s->buf[i].tail && s->buf[i].tail != s->tail)
				tail_free(s->buf[i].tail);
			if (s->buf[i].data)
				munmap(s->buf[i].data, BUF_BYTES);
		}
		tail_free(s->tail);
		map_cache_free(s->map);
		while (s->sealing) {
			struct tail *t = s->sealing;

			s->sealing = t->next;
			tail_free(t);
		}
		free(s);
	}
	if (in)
		loop_idle_remove(in->loop, &in->idle);
	free(in);
}
