// SPDX-License-Identifier: Apache-2.0
/*
 * What another process left in the spool.
 *
 * Design. The header says whether it is ours. Of each file the first frame's
 * head is read; the last two, which a crash of the host may have torn, are
 * opened frame by frame, cut off where they end to be whole, and synced. What
 * is wrong in an older one is found when it is read.
 *
 * Context. Blocks; at start only.
 */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

#include "spool.h"

#define HEADER_MAX	65536
#define FILE_BYTES_MAX	(64ull << 20)
#define FILE_BYTES_MIN	(1ull << 20)

/* Reads the file at hand frame by frame, blocking: where it ends to be whole */
static int check_file(struct spool *s, struct spool_file *f, struct why *why)
{
	uint64_t whole = 0;
	ssize_t n;
	int r;

	while ((r = spool_look(s, why)) == 1 || r == -EAGAIN) {
		if (r == 1) {
			if (!whole) {
				f->first_seq = s->view.hdr.first_seq;
				f->first_time_ns = s->view.hdr.first_time_ns;
			}
			f->last_seq = s->view.hdr.last_seq;
			whole += s->frame;
			spool_pass(s);
			continue;
		}
		n = (ssize_t)spool_shift(s);
		n = pread(s->in_fd, s->in_buf + s->have, (size_t)n, (off_t)s->in_off);
		if (n <= 0)
			return n < 0 ? -errno : -EIO;
		s->have += (uint32_t)n;
		s->in_off += (uint64_t)n;
	}
	if (r && r != -EBADMSG)
		return r;
	s->total -= f->bytes - whole;
	f->bytes = whole;
	return 0;
}

/* The first frame's head alone */
static int peek_file(struct spool *s, struct spool_file *f, struct why *why)
{
	struct frame_hdr h;
	int r;

	if (pread(s->in_fd, &h, sizeof(h), 0) != sizeof(h))
		return -EBADMSG;
	r = wire_frame_peek((const uint8_t *)&h, sizeof(h), &h, why);
	f->first_seq = h.first_seq;
	f->first_time_ns = h.first_time_ns;
	return r;
}

/* The file ends to be whole before its end */
static void cut(struct spool *s, struct spool_file *f, uint64_t size, const struct why *why)
{
	cleanup_free char *path = spool_path(s, f->no);

	log_warn("group %s: the spool is torn at frame %llu (%s): %llu bytes are cut off; what they held is in the "
		 "ring, or marked dirty by the kernel", s->owner.name, (unsigned long long)s->in_chain.frame_no + 1,
		 why->text, (unsigned long long)(size - f->bytes));
	if (path && truncate(path, (off_t)f->bytes))
		log_warn("group %s: cannot truncate %s: %s", s->owner.name, path, strerror(errno));
}

/* A file that the last process left; check: it may be torn */
static int scan_file(struct spool *s, struct spool_file *f, bool check, struct why *why)
{
	uint64_t size = f->bytes;
	int r = spool_enter(s, f, why);

	if (!r)
		r = check ? check_file(s, f, why) : peek_file(s, f, why);
	if (r || !check)
		return r;
	if (f->bytes < size)
		cut(s, f, size, why);
	if (f->bytes) {
		s->good = s->in_chain;
		s->last_seq = f->last_seq;
	}
	/* from here on it is as durable as a file that this process has ended */
	return fdatasync(s->in_fd) ? why_set(why, errno, "fdatasync in %s: %s", s->dir, strerror(errno)) : 0;
}

static int append_all(struct spool *s, const uint64_t *list, int n, struct why *why)
{
	for (int i = 0; i < n; i++) {
		cleanup_free char *path = spool_path(s, list[i]);
		struct spool_file *f = spool_append(s, list[i]);
		struct stat st;

		if (!f || !path)
			return -ENOMEM;
		if (stat(path, &st))
			return why_set(why, errno, "cannot read %s: %s", path, strerror(errno));
		f->ended = true;
		f->bytes = f->synced = (uint64_t)st.st_size;
		s->total += f->bytes;
	}
	return 0;
}

static int scan_all(struct spool *s, const uint64_t *list, int n, struct why *why)
{
	int r = append_all(s, list, n, why), i = 0;

	if (!r)
		r = spool_need_reader(s);
	for (struct spool_file *f = s->files, *next, *before = NULL; f && !r; f = next, i++) {
		next = f->next;
		why->text[0] = 0;
		if (i != n - 1 || !s->in || !s->in_chain.tagged)
			s->in = NULL;	/* what stands before it was not read */
		r = scan_file(s, f, i >= n - 2, why);
		if (before && !before->last_seq && f->first_seq)
			before->last_seq = f->first_seq - 1;
		if (r == -EBADMSG && i && !next)
			log_warn("group %s: the spool's last file is deleted: %s", s->owner.name, why->text);
		if ((r == -EBADMSG && i && !next) || (!r && !f->bytes)) {
			s->in = NULL;
			spool_unlink(s, f);	/* it continues nothing, or holds nothing */
			r = 0;
		} else {
			before = f;
		}
		if (!next && before && !before->last_seq && !r) {
			s->in = NULL;	/* nothing behind it was of use: now it is the last one */
			r = scan_file(s, before, true, why);
		}
	}
	return r;
}

static int read_header(struct spool *s, bool files, struct why *why)
{
	cleanup_free char *path = NULL, *data = NULL;
	size_t bytes;
	int r;

	if (asprintf(&path, "%s/header", s->dir) < 0)
		return -ENOMEM;
	r = file_read(path, HEADER_MAX, &data, &bytes, why);
	if (r == -ENOENT)
		return files ? why_set(why, EBADMSG, "it has no header file") : 0;
	return r ? r : spool_header_check((const uint8_t *)data, bytes, &s->owner, why);
}

static void scan(struct spool *s)
{
	cleanup_free uint64_t *list = NULL;
	struct why why = { "" };
	int n = spool_list(s, &list), r;

	if (n == -ENOENT)
		return;
	r = n < 0 ? n : read_header(s, n > 0, &why);
	if (!r && n)
		r = scan_all(s, list, n, &why);
	if (r) {
		while (s->files)
			spool_remove(s, s->files);
		s->total = s->last_seq = 0;
		spool_set_state(s, SPOOL_REFUSED, "%s: %s", s->dir, why.text[0] ? why.text : strerror(-r));
	} else if (s->files) {
		log_info("group %s: the spool holds %llu MiB up to sequence %llu", s->owner.name,
			 (unsigned long long)(s->total >> 20), (unsigned long long)s->last_seq);
	}
	spool_rewind(s);
	s->pack.frame_no = s->good.frame_no;
	memcpy(s->pack.prev_tag, s->good.tag, ASR_TAG_BYTES);
}

int spool_open(struct loop *l, const char *dir, uint64_t max, const struct spool_owner *owner,
	       const struct pack *like, const struct spool_ops *ops, void *arg, struct spool **out)
{
	struct spool *s = calloc(1, sizeof(*s));

	if (!s || asprintf(&s->dir, "%s/%s", dir, owner->name) < 0) {
		free(s);
		return -ENOMEM;
	}
	s->loop = l;
	s->max = max;
	s->file_bytes = max / 8 < FILE_BYTES_MIN ? FILE_BYTES_MIN : max / 8 > FILE_BYTES_MAX ? FILE_BYTES_MAX : max / 8;
	s->owner = *owner;
	s->ops = *ops;
	s->arg = arg;
	s->in_fd = -1;
	s->pack = (struct pack){ .generation = like->generation, .level = like->level, .room = like->room };
	memcpy(s->pack.group, owner->group, ASR_UUID_BYTES);
	memcpy(s->pack.stream, owner->stream, ASR_UUID_BYTES);
	scan(s);
	if (s->state == SPOOL_WELL && !max) {
		s->state = SPOOL_OFF;
		snprintf(s->reason, sizeof(s->reason), "[spool] max is 0");
	}
	*out = s;
	return 0;
}
