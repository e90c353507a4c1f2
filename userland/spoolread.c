// SPDX-License-Identifier: Apache-2.0
/*
 * The spool's front: frames out of files, in order.
 *
 * Design. One buffer, one read at a time into it; frames are opened where they
 * lie. Files are read up to what was written well, the one being written too.
 *
 * Invariants. A frame that is handed out continues the one before it, and its
 * tags vouch for it. The descriptor of a read under way stays open.
 *
 * Context. The loop's thread.
 */
#include <errno.h>
#include <fcntl.h>
#include <string.h>

#include "spool.h"

/* -------------------------------------------------------------- reading */

int spool_need_reader(struct spool *s)
{
	if (!s->in_buf)
		s->in_buf = aligned_alloc(64, SPOOL_READ_BYTES);
	if (!s->plain)
		s->plain = secret_alloc(ASR_FRAME_PAYLOAD);
	return s->in_buf && s->plain ? 0 : -ENOMEM;
}

void spool_close_in(struct spool *s)
{
	if (s->in_fd >= 0)
		close(s->in_fd);
	s->in_fd = -1;
}

/* The frame at hand into s->plain; its tags vouch for it */
static int open_frame(struct spool *s, struct why *why)
{
	int r;

	if (!s->seal || memcmp(s->seal_session, s->view.hdr.session, ASR_UUID_BYTES)) {
		seal_destroy(s->seal);
		s->seal = NULL;
		r = seal_create(s->owner.key, s->view.hdr.session, &s->seal);
		if (r)
			return r;
		memcpy(s->seal_session, s->view.hdr.session, ASR_UUID_BYTES);
	}
	return seal_frame_open(s->seal, &s->view, s->plain, why);
}

int spool_enter(struct spool *s, struct spool_file *f, struct why *why)
{
	cleanup_free char *path = spool_path(s, f->no);

	if (s->in && f->no != s->in_chain.frame_no + 1)
		return why_set(why, EBADMSG, "frames %llu to %llu are missing",
			       (unsigned long long)s->in_chain.frame_no + 1, (unsigned long long)f->no - 1);
	if (!s->in)
		s->in_chain = (struct spool_chain){ .frame_no = f->no - 1 };
	if (s->in)	/* what is left of it, if anything, is of no use */
		s->in_passed += s->in->bytes - (s->in_off - s->have + s->pos);
	spool_close_in(s);
	s->in_fd = path ? open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW) : -1;
	if (s->in_fd < 0)
		return why_set(why, errno, "cannot open %s: %s", path, strerror(errno));
	s->in = f;
	s->in_off = 0;
	s->have = s->pos = 0;
	s->in_time_ns = f->first_time_ns;
	return 0;
}

static void read_done(struct loop_op *op, int res, unsigned int flags)
{
	struct spool *s = op->arg;

	if (s->closing) {
		spool_close(s);
		return;
	}
	if (s->stale) {
		spool_close_in(s);
	} else if (res > 0) {
		s->have += (uint32_t)res;
		s->in_off += (uint32_t)res;
	} else {
		s->in_error = res ? res : -EIO;
	}
	s->stale = false;
	s->ops.kick(s->arg);
}

/* More of the file into the buffer, behind what is not read yet: how many bytes are wanted */
size_t spool_shift(struct spool *s)
{
	uint64_t left = s->in->bytes - s->in_off;

	memmove(s->in_buf, s->in_buf + s->pos, s->have - s->pos);
	s->have -= s->pos;
	s->pos = 0;
	return left < SPOOL_READ_BYTES - s->have ? (size_t)left : SPOOL_READ_BYTES - s->have;
}

/* The frame at pos: 1; 0: this file has no more; -EAGAIN: more of it must be read */
int spool_look(struct spool *s, struct why *why)
{
	const struct spool_file *next = s->in->next;
	int n = spool_frame_next(s->in_buf + s->pos, s->have - s->pos, &s->owner, &s->in_chain, &s->view, why);

	if (next && s->in_chain.frame_no + 1 >= next->no)
		return 0;	/* what stands behind is left from a write that failed */
	if (n > 0) {
		int r = open_frame(s, why);

		s->frame = r ? 0 : (uint32_t)n;
		return r ? r : 1;
	}
	if (n != -EAGAIN || s->in_off < s->in->bytes)
		return n;
	return s->have == s->pos ? 0 : why_set(why, EBADMSG, "frame %llu is cut off",
					       (unsigned long long)s->in_chain.frame_no + 1);
}

int spool_read(struct spool *s, struct frame_view *v, const uint8_t **plain, struct why *why)
{
	int r = spool_need_reader(s);

	if (s->read.active)
		return -EAGAIN;
	if (!r && s->in_error)
		r = why_set(why, -s->in_error, "cannot read %s: %s", s->dir, strerror(-s->in_error));
	if (!r && s->state == SPOOL_REFUSED)
		return 0;
	while (!r && !s->frame) {
		struct spool_file *next = s->in ? s->in->next : spool_first(s);

		r = s->in ? spool_look(s, why) : 0;
		if (r == -EAGAIN) {
			size_t n = spool_shift(s);

			s->read = (struct loop_op){ .done = read_done, .arg = s };
			loop_read(s->loop, &s->read, s->in_fd, s->in_buf + s->have, n, s->in_off);
			return r;
		}
		if (r == 0 && !(next && next->bytes))
			return 0;
		if (r == 0)
			r = spool_enter(s, next, why);
		else if (r == 1)
			break;
	}
	if (r < 0)
		return r == -ENOENT || r == -EBADMSG ? -EBADMSG : r;
	*v = s->view;
	*plain = s->plain;
	return 1;
}

void spool_pass(struct spool *s)
{
	spool_chain_pass(&s->in_chain, &s->view);
	s->in_time_ns = s->view.hdr.last_time_ns;
	s->in_passed += s->frame;
	s->pos += s->frame;
	s->frame = 0;
}

void spool_rewind(struct spool *s)
{
	s->in = NULL;
	s->frame = s->have = s->pos = 0;
	s->in_passed = 0;
	s->in_error = 0;
	s->in_time_ns = 0;
	if (s->read.active)
		s->stale = true;	/* its descriptor is closed when it has ended */
	else
		spool_close_in(s);
}
