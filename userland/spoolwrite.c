// SPDX-License-Identifier: Apache-2.0
/*
 * The spool's end: frames into files, and these to the disk.
 *
 * Design. A frame is sealed and copied into the buffer that is filling; a
 * buffer goes down as one write, several can be on their way, and what they
 * hold counts as written in the order in which it was added. When a write
 * fails, the others are awaited; then the file ends where it was whole, and all
 * that was added since is added again by its owner, as other frames in another
 * file under another key.
 *
 * A file is synced once a second and when it has ended; the next one is begun
 * only then.
 *
 * Invariants and context: see spool.c.
 */
#include <errno.h>
#include <fcntl.h>
#include <string.h>

#include "spool.h"

#define LOOK_BYTES	(8ull << 20)	/* between two looks at the free space */

/* -------------------------------------------------------------- a file */

void spool_end_file(struct spool *s)
{
	if (s->out)
		s->out->ended = true;
	s->out = NULL;
	pack_end(&s->pack);
}

static int write_header(struct spool *s, struct why *why)
{
	cleanup_free char *path = NULL;
	struct spool_header h;
	int r = dir_make(s->dir, 0700, why);

	if (r)
		return r;
	if (asprintf(&path, "%s/header", s->dir) < 0)
		return -ENOMEM;
	if (!access(path, F_OK))
		return 0;
	r = spool_header_make(&h, &s->owner);
	return r ? r : file_write(path, 0600, &h, sizeof(h), why);
}

static int begin_file(struct spool *s, struct why *why)
{
	uint8_t tag[ASR_TAG_BYTES];
	uint64_t no = s->pack.frame_no + 1;
	cleanup_free char *path = spool_path(s, no);
	cleanup_fd int fd = -1;
	struct spool_file *f;
	int r = s->ops.check ? s->ops.check(s->dir, s->arg, why) : 0;

	if (!r)
		r = write_header(s, why);
	if (!r)
		r = spool_space(s, SPOOL_FRAME_MOST, why);
	if (r)
		return r;
	fd = path ? open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600) : -1;
	if (fd < 0)
		return why_set(why, errno, "cannot make %s: %s", path, strerror(errno));
	memcpy(tag, s->pack.prev_tag, sizeof(tag));
	r = pack_session(&s->pack, s->owner.key, s->pack.frame_no, tag);
	f = r ? NULL : spool_append(s, no);
	if (!f) {
		unlink(path);
		return r ? r : -ENOMEM;
	}
	f->fd = steal_fd(fd);
	s->out = f;
	s->out_off = s->looked_off = 0;
	return 0;
}
/* -------------------------------------------------------------- syncing */

static void sync_next(struct spool *s);

static void sync_done(struct loop_op *op, int res, unsigned int flags)
{
	struct spool *s = op->arg;
	struct spool_file *f = s->sync_file;

	f->syncing = false;
	s->sync_file = NULL;
	if (s->closing) {
		spool_close(s);
		return;
	}
	if (res >= 0) {
		f->synced = s->sync_bytes;
	} else {
		f->synced = f->bytes;	/* it will not get better by asking again */
		if (s->out == f)
			spool_end_file(s);
		spool_set_state(s, SPOOL_FAILED, "fdatasync in %s: %s", s->dir, strerror(-res));
	}
	if (f->gone && !f->bufs) {
		spool_remove(s, f);
	} else if (f->ended && !f->bufs && f->synced == f->bytes) {
		close(f->fd);
		f->fd = -1;
	}
	sync_next(s);
	s->ops.kick(s->arg);
}

/* The files that have ended; sync_second does the one being written */
static void sync_file(struct spool *s, struct spool_file *f)
{
	f->syncing = true;
	s->sync_file = f;
	s->sync_bytes = f->bytes;
	s->sync.done = sync_done;
	s->sync.arg = s;
	loop_fdatasync(s->loop, &s->sync, f->fd);
}

static void sync_next(struct spool *s)
{
	for (struct spool_file *f = s->files; f && !s->sync.active; f = f->next)
		if (f->ended && f->fd >= 0 && !f->bufs && !f->gone)
			sync_file(s, f);
}

void spool_second(struct spool *s)
{
	sync_next(s);
	if (!s->sync.active && s->out && s->out->bytes > s->out->synced)
		sync_file(s, s->out);
}
/* -------------------------------------------------------------- writing */

static struct spool_buf *nth(struct spool *s, unsigned int n)
{
	return &s->bufs[(s->first + n) % SPOOL_BUFS];
}

static void drop_buf(struct spool *s)
{
	struct spool_buf *b = nth(s, 0);
	struct spool_file *f = b->file;

	b->state = IDLE;
	s->first = (s->first + 1) % SPOOL_BUFS;
	s->count--;
	f->bufs--;
	if (f->gone && !f->bufs && !f->syncing)
		spool_remove(s, f);
}

/* After a failed write: back to where the last one ended well */
static void go_back(struct spool *s)
{
	struct spool_file *f = nth(s, 0)->file;
	const char *what = s->error == -ENOSPC || s->error == -EDQUOT ? "no space" : strerror(-s->error);
	int error = s->error;

	while (s->count) {
		struct spool_buf *b = nth(s, 0);

		s->total -= b->bytes;
		f = b->file;
		if (s->count == 1 || nth(s, 1)->file != f) {	/* the last one of its file */
			bool keep = f->gone || f->bytes;

			if (!f->gone && ftruncate(f->fd, (off_t)f->bytes))
				log_warn("group %s: cannot truncate a spool file: %s", s->owner.name, strerror(errno));
			drop_buf(s);
			if (!keep)
				spool_unlink(s, f);
			continue;
		}
		drop_buf(s);
	}
	spool_end_file(s);
	s->pack.frame_no = s->good.frame_no;
	memcpy(s->pack.prev_tag, s->good.tag, ASR_TAG_BYTES);
	s->failing = false;
	s->error = 0;
	spool_set_state(s, error == -ENOSPC || error == -EDQUOT ? SPOOL_FULL : SPOOL_FAILED, "writing to %s: %s",
			s->dir, what);
	s->ops.failed(s->arg);
}

bool spool_writing(const struct spool *s)
{
	for (int i = 0; i < SPOOL_BUFS; i++)
		if (s->bufs[i].state == WRITING)
			return true;
	return false;
}

static void settle(struct spool *s)
{
	while (!s->failing && s->count && nth(s, 0)->state == WRITTEN) {
		struct spool_buf *b = nth(s, 0);
		uint64_t end = b->ring_end;
		unsigned int attachment = b->attachment;

		if (!b->file->gone) {
			b->file->bytes += b->bytes;
			b->file->last_seq = b->last_seq;
			s->last_seq = b->last_seq;
		} else {
			s->total -= b->bytes;
		}
		s->good = b->chain;
		drop_buf(s);
		if (s->state == SPOOL_FAILED)
			spool_set_state(s, SPOOL_WELL, "%s", "");
		s->ops.written(end, attachment, s->arg);
	}
	if (s->failing && !spool_writing(s))
		go_back(s);
	sync_next(s);
}

static void put_down(struct spool *s, struct spool_buf *b);

static void write_done(struct loop_op *op, int res, unsigned int flags)
{
	struct spool_buf *b = op->arg;
	struct spool *s = b->s;

	if (s->closing) {
		b->state = IDLE;
		spool_close(s);
		return;
	}
	if (res > 0 && b->done + (uint32_t)res < b->bytes) {
		b->done += (uint32_t)res;
		put_down(s, b);
		return;
	}
	b->state = WRITTEN;
	if (res <= 0) {
		s->error = s->failing ? s->error : res ? res : -EIO;
		s->failing = true;
	}
	settle(s);
	s->ops.kick(s->arg);
}

static void put_down(struct spool *s, struct spool_buf *b)
{
	b->state = WRITING;
	b->op = (struct loop_op){ .done = write_done, .arg = b };
	loop_write(s->loop, &b->op, b->file->fd, b->data + b->done, b->bytes - b->done, b->off + b->done);
}

static struct spool_buf *filling(struct spool *s)
{
	struct spool_buf *b = s->count ? nth(s, s->count - 1) : NULL;

	return b && b->state == FILLING ? b : NULL;
}

void spool_drop_filling(struct spool *s)
{
	struct spool_buf *b = filling(s);
	struct spool_file *f = b ? b->file : NULL;

	if (!b)
		return;
	s->total -= b->bytes;
	b->state = IDLE;
	s->count--;
	f->bufs--;
	if (f->gone && !f->bufs && !f->syncing)
		spool_remove(s, f);
}

void spool_flush(struct spool *s)
{
	struct spool_buf *b = filling(s);

	if (!b)
		return;
	put_down(s, b);
	if (s->out && s->out_off >= s->file_bytes)
		spool_end_file(s);
}

bool spool_has_room(const struct spool *s)
{
	const struct spool_buf *b = s->count ? nth((struct spool *)(uintptr_t)s, s->count - 1) : NULL;

	if (s->failing)
		return false;
	if (b && b->state == FILLING)
		return true;	/* it goes down as soon as the next frame might not fit */
	if (!s->out)
		for (const struct spool_file *f = s->files; f; f = f->next)
			if (f->fd >= 0 && !f->gone)
				return false;	/* one file at most may be torn, beside the one being written */
	return s->count < SPOOL_BUFS;
}

static struct spool_buf *next_buf(struct spool *s)
{
	struct spool_buf *b = filling(s);

	if (b)
		return b;
	b = nth(s, s->count);
	if (!b->data)
		b->data = malloc(SPOOL_BUF_BYTES);
	if (!b->data)
		return NULL;
	b->s = s;
	b->state = FILLING;
	b->file = s->out;
	b->off = s->out_off;
	b->bytes = b->done = 0;
	s->out->bufs++;
	s->count++;
	return b;
}

static void refuse(struct spool *s, int err, const struct why *why)
{
	spool_set_state(s, err == -ENOSPC ? SPOOL_FULL : SPOOL_FAILED, "%s", why->text[0] ? why->text : strerror(-err));
}

/* 0: there is a file to write to, and room for a frame in it */
static int ready(struct spool *s, struct why *why)
{
	int r = 0;

	if (!s->out)
		r = begin_file(s, why);
	else if (s->total + SPOOL_FRAME_MOST > s->max || s->out_off - s->looked_off >= LOOK_BYTES)
		r = spool_space(s, SPOOL_FRAME_MOST, why);
	if (s->out && s->out_off - s->looked_off >= LOOK_BYTES)
		s->looked_off = s->out_off;
	return r;
}

int spool_begin(struct spool *s)
{
	struct why why = { "" };
	int r = !spool_usable(s) ? -ENOSPC : !spool_has_room(s) ? -EAGAIN : 0;

	if (r)
		return r;
	r = ready(s, &why);
	if (r)
		refuse(s, r, &why);
	return r;
}

int spool_add(struct spool *s, const struct batch *b, unsigned int attachment)
{
	struct why why = { "" };
	const uint8_t *frame;
	struct spool_buf *buf;
	size_t bytes;
	int r;

	if (!spool_usable(s))
		return -ENOSPC;
	if (!spool_has_room(s))
		return -EAGAIN;
	r = ready(s, &why);
	if (!r && !(buf = next_buf(s)))
		r = -ENOMEM;
	if (!r)
		r = pack_frame(&s->pack, b, &frame, &bytes);
	if (r) {
		if (filling(s) && !filling(s)->bytes)
			spool_drop_filling(s);
		spool_flush(s);
		refuse(s, r, &why);
		return r;
	}
	memcpy(buf->data + buf->bytes, frame, bytes);
	memset(buf->data + buf->bytes + bytes, 0, SPOOL_PADDED(bytes) - bytes);
	bytes = SPOOL_PADDED(bytes);
	if (!s->out->first_time_ns) {
		s->out->first_seq = b->first_seq;
		s->out->first_time_ns = b->first_time_ns;
	}
	buf->bytes += (uint32_t)bytes;
	buf->chain = (struct spool_chain){ .frame_no = s->pack.frame_no, .tagged = true };
	memcpy(buf->chain.tag, s->pack.prev_tag, ASR_TAG_BYTES);
	buf->last_seq = b->last_seq;
	buf->ring_end = b->ring_end;
	buf->attachment = attachment;
	s->out_off += bytes;
	s->total += bytes;
	if (buf->bytes + SPOOL_FRAME_MOST > SPOOL_BUF_BYTES || s->out_off >= s->file_bytes)
		spool_flush(s);
	return 0;
}
