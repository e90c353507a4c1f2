// SPDX-License-Identifier: Apache-2.0
/*
 * Brings one disk back as it was at a point, into a new sparse raw file.
 *
 * Design: the disk's history is walked (view.c) twice: dry, over the footers
 * alone, to know how many bytes it will write before anything is written; then
 * for real, reading each frame that contributes once. Zeroes and discards leave
 * holes.
 *
 * Invariants: the image gets its name when it is whole and durable; before, it
 * has none (O_TMPFILE), or a temporary one that is removed on the way out.
 *
 * Context: blocks on the file system. Memory: a view, one frame.
 */
#include "vault.h"

#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>

struct restore {
	const struct restore_args *a;
	struct restore_result *r;
	struct why *why;
	struct index *ix;
	struct view *view;
	struct view_reader *reader;
	uint64_t want_bytes;		/* that will be written */
	uint8_t *plain;
	int fd;
};

/* --------------------------------------------------------------------- walks */

static int count_pieces(const struct view_frame *f, void *arg)
{
	struct restore *w = arg;

	for (size_t i = 0; i < f->count; i++)
		if (wire_kind_has_payload(f->pieces[i].kind))
			w->want_bytes += (uint64_t)f->pieces[i].sectors * 512;
	return 0;
}

static int write_at(struct restore *w, const uint8_t *p, size_t bytes, uint64_t offset)
{
	while (bytes) {
		ssize_t n = pwrite(w->fd, p, bytes, (off_t)offset);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return why_set(w->why, errno, "cannot write to %s: %s", w->a->to, strerror(errno));
		p += n;
		offset += (uint64_t)n;
		bytes -= (size_t)n;
	}
	return 0;
}

static int progress(struct restore *w)
{
	uint64_t bytes = view_sectors(w->view) * 512, done = bytes - view_uncovered(w->view) * 512;

	if (!w->a->progress || !w->a->progress(done, bytes, w->a->arg))
		return 0;
	return why_set(w->why, ECANCELED, "stopped; nothing was left behind");
}

static int write_pieces(const struct view_frame *f, void *arg)
{
	struct restore *w = arg;
	struct frame_view v;
	int ret = view_frame_read(w->reader, f, w->plain, &v, w->why);

	if (ret)
		return ret;
	w->r->frames_read++;
	w->r->frames_bytes += f->at.bytes;
	for (size_t i = 0; i < f->count && !ret; i++) {
		const struct view_piece *p = &f->pieces[i];
		const struct frame_rec *r = &v.recs[p->record];
		size_t bytes = (size_t)p->sectors * 512;

		if (!wire_kind_has_payload(p->kind))
			continue;
		ret = write_at(w, w->plain + r->offset + (p->sector - r->sector) * 512, bytes, p->sector * 512);
		w->r->written_bytes += bytes;
	}
	return ret ? ret : progress(w);
}

/* --------------------------------------------------------------- destination */

static int room_check(struct restore *w, const char *dir)
{
	struct statvfs fs;
	uint64_t room;

	if (statvfs(dir, &fs) < 0)
		return why_set(w->why, errno, "cannot look at %s: %s", dir, strerror(errno));
	room = (uint64_t)fs.f_bavail * fs.f_frsize;
	if (room >= w->want_bytes)
		return 0;
	return why_set(w->why, ENOSPC, "%s has %llu bytes free, the image of %s takes %llu (sparse, of %llu)",
		       dir, (unsigned long long)room, w->a->disk, (unsigned long long)w->want_bytes,
		       (unsigned long long)view_sectors(w->view) * 512);
}

static int dest_check(const struct restore_args *a, const char *dir, struct why *why)
{
	struct stat st;

	if (lstat(a->to, &st) == 0)
		return why_set(why, EEXIST, "%s exists: give a name that does not", a->to);
	if (errno != ENOENT)
		return why_set(why, errno, "cannot write to %s: %s", a->to, strerror(errno));
	if (access(dir, W_OK | X_OK) < 0)
		return why_set(why, errno, "cannot write into %s: %s", dir, strerror(errno));
	return 0;
}

/* Without a name where the file system can; else *tmp is set */
static int dest_open(struct restore *w, const char *dir, char **tmp)
{
	w->fd = open(dir, O_RDWR | O_TMPFILE | O_CLOEXEC, 0600);
	if (w->fd < 0) {
		if (asprintf(tmp, "%s.%d.part", w->a->to, (int)getpid()) < 0) {
			*tmp = NULL;
			return why_set(w->why, ENOMEM, "out of memory");
		}
		w->fd = open(*tmp, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
		if (w->fd < 0) {	/* what has this name is not ours to remove */
			int err = errno;

			free(*tmp);
			*tmp = NULL;
			return why_set(w->why, err, "cannot make %s: %s", w->a->to, strerror(err));
		}
	}
	if (w->fd < 0 || ftruncate(w->fd, (off_t)(view_sectors(w->view) * 512)) < 0)
		return why_set(w->why, errno, "cannot make %s: %s%s", w->a->to, strerror(errno),
			       errno == EFBIG ? " (the file system takes no file of the disk's size)" : "");
	return 0;
}

static int dest_name(struct restore *w, const char *dir, const char *tmp)
{
	cleanup_fd int d = -1;
	char self[40];
	int ret;

	if (fsync(w->fd) < 0)
		return why_set(w->why, errno, "cannot write to %s: %s", w->a->to, strerror(errno));
	snprintf(self, sizeof(self), "/proc/self/fd/%d", w->fd);
	ret = linkat(AT_FDCWD, tmp ? tmp : self, AT_FDCWD, w->a->to, tmp ? 0 : AT_SYMLINK_FOLLOW);
	if (ret < 0)
		return why_set(w->why, errno, "cannot make %s: %s", w->a->to, strerror(errno));
	d = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (d >= 0)
		fsync(d);
	return 0;
}

static int image_make(struct restore *w, const char *dir)
{
	char *tmp = NULL;
	int ret = dest_open(w, dir, &tmp);

	if (!ret)
		ret = view_walk(w->view, write_pieces, w, w->why);
	if (!ret)
		ret = dest_name(w, dir, tmp);
	if (tmp)
		unlink(tmp);
	free(tmp);
	return ret;
}

static void restore_free(struct restore *w)
{
	view_reader_destroy(w->reader);
	view_close(w->view);
	secret_free(w->plain);
	index_close(w->ix);
	if (w->fd >= 0)
		close(w->fd);
}

int restore_disk(const struct restore_args *a, struct restore_result *r, struct why *why)
{
	struct restore w = { .a = a, .r = r, .why = why, .fd = -1 };
	cleanup_free char *to = strdup(a->to);
	const char *dir = to ? dirname(to) : "";
	uint64_t began = now_ns();
	int ret;

	memset(r, 0, sizeof(*r));
	ret = dest_check(a, dir, why);
	if (!ret)
		ret = index_open(a->vault_dir, a->group, &w.ix, why);
	if (!ret)
		ret = view_open(w.ix, &(struct view_args){ a->disk, a->point, a->key_pem, a->cert_pem, a->passphrase },
				&w.view, why);
	if (ret)
		goto out_free;
	r->point = *view_point(w.view);
	w.plain = secret_alloc(ASR_FRAME_PAYLOAD_MAX);
	ret = w.plain && !view_reader_create(w.view, &w.reader) ? view_walk(w.view, count_pieces, &w, why) :
	      why_set(why, ENOMEM, "out of memory");
	if (!ret)
		ret = room_check(&w, dir);
	if (!ret)
		ret = image_make(&w, dir);
	if (ret)
		goto out_free;
	r->disk_bytes = view_sectors(w.view) * 512;
	r->unwritten_bytes = view_uncovered(w.view) * 512;
	r->elapsed_ns = now_ns() - began;
	if (a->progress)
		a->progress(r->disk_bytes, r->disk_bytes, a->arg);
out_free:
	restore_free(&w);
	return ret;
}

json_t *restore_json(const struct restore_args *a, const struct restore_result *r)
{
	char when[40];

	return json_pack("{s:s,s:s,s:I,s:s,s:s,s:I,s:I,s:I,s:I,s:I,s:f}", "disk", a->disk, "to", a->to,
			 "seq", (json_int_t)r->point.seq, "time", time_format(r->point.time_ns, when),
			 "name", r->point.name, "disk_bytes", (json_int_t)r->disk_bytes,
			 "written_bytes", (json_int_t)r->written_bytes,
			 "unwritten_bytes", (json_int_t)r->unwritten_bytes,
			 "frames", (json_int_t)r->frames_read, "frames_bytes", (json_int_t)r->frames_bytes,
			 "seconds", (double)r->elapsed_ns / 1e9);
}
