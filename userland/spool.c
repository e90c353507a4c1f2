// SPDX-License-Identifier: Apache-2.0
/*
 * A group's second queue, on disk: what the ring cannot hold while the vault is
 * slow or away.
 *
 * Design. DIR/GROUP/ holds a header that says whose it is, and files of sealed
 * frames (spoolfile.c) that are only ever appended to, about 64 MiB each, and
 * deleted when the vault has all of them. Frames are gathered in a few buffers
 * that go down as single writes; a buffer's records count as written when it
 * and all before it are. fdatasync follows once a second and at the end of a
 * file: a crash of this process costs nothing, a crash of the host the last
 * moments, which the kernel then has in its dirty map or write-intent log. The
 * next file is begun when the one before is synced, so that only the last two
 * can be torn; these are opened frame by frame at the next start, and cut off
 * where they end to be whole.
 *
 * Each file is a session of its own, with a fresh key, and no file is
 * appended to that this process did not begin or whose write failed: no frame
 * number is sealed twice under one key.
 *
 * The spool takes nothing beyond max bytes, and leaves a twentieth of its file
 * system free (1 GiB at most). After a failed write it goes back to the last
 * byte that was written well, ends that file, and is tried again later.
 *
 * Invariants. Frames are read in the order in which they were added, each tag
 * checked. bytes of a file is what was written well; nothing behind it is
 * read. A spool that is somebody else's, of a newer version, or has a damaged
 * header is neither read nor changed, unless discarded by name.
 *
 * Context. The loop's thread. Blocks at open (scan), on making, truncating and
 * deleting files; not on writes and reads.
 */
#include <dirent.h>
#include <errno.h>
#include <stdarg.h>
#include <string.h>
#include <sys/statvfs.h>

#include "spool.h"
#define RESERVE_MAX	(1ull << 30)
#define RETRY_NS	10000000000ull
#define LOOK_NS		1000000000ull

/* ---------------------------------------------------------------- state */

__attribute__((format(printf, 3, 4)))
void spool_set_state(struct spool *s, enum spool_state state, const char *fmt, ...)
{
	char text[sizeof(s->reason)];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	s->retry_ns = now_ns() + (state == SPOOL_FULL ? LOOK_NS : RETRY_NS);
	s->trying = false;
	if (state == s->state && (state == SPOOL_FULL || !strcmp(text, s->reason)))
		return;
	if (state == SPOOL_WELL)
		log_info("group %s: the spool takes records again", s->owner.name);
	else
		log_warn("group %s: the spool is %s: %s", s->owner.name,
			 state == SPOOL_FULL ? "full" : state == SPOOL_REFUSED ? "refused" : "out of use", text);
	s->state = state;
	memcpy(s->reason, text, sizeof(text));
}

/* Is there room for more bytes, on the file system and below the cap? */
int spool_space(struct spool *s, uint64_t more, struct why *why)
{
	struct statvfs v;
	uint64_t bytes, reserve, left;

	if (s->total + more > s->max)
		return why_set(why, ENOSPC, "it has reached its size of %llu MiB ([spool] max)",
			       (unsigned long long)(s->max >> 20));
	if (statvfs(s->dir, &v) || !v.f_blocks)
		return 0;	/* a file system that does not say */
	bytes = (uint64_t)v.f_blocks * v.f_frsize;
	left = (uint64_t)v.f_bavail * v.f_frsize;
	reserve = bytes / 20 < RESERVE_MAX ? bytes / 20 : RESERVE_MAX;
	if (left < reserve + more)
		return why_set(why, ENOSPC, "%llu MiB are left on the file system of %s, of which %llu stay free",
			       (unsigned long long)(left >> 20), s->dir, (unsigned long long)(reserve >> 20));
	return 0;
}

bool spool_usable(struct spool *s)
{
	struct why why;

	if (s->state == SPOOL_WELL || s->trying)
		return !s->failing;
	if (s->state == SPOOL_REFUSED || s->state == SPOOL_OFF || s->failing || now_ns() < s->retry_ns)
		return false;
	s->retry_ns = now_ns() + LOOK_NS;
	if (s->state == SPOOL_FULL && spool_space(s, s->file_bytes, &why))
		return false;
	if (s->state == SPOOL_FULL)
		spool_set_state(s, SPOOL_WELL, "%s", "");
	else
		s->trying = true;
	return true;
}
/* ---------------------------------------------------------------- files */

char *spool_path(const struct spool *s, uint64_t no)
{
	char *path;

	return asprintf(&path, "%s/%016llx.frames", s->dir, (unsigned long long)no) < 0 ? NULL : path;
}

void spool_remove(struct spool *s, struct spool_file *f)
{
	struct spool_file **p = &s->files;

	while (*p != f)
		p = &(*p)->next;
	*p = f->next;
	if (f->fd >= 0)
		close(f->fd);
	free(f);
}

void spool_unlink(struct spool *s, struct spool_file *f)
{
	cleanup_free char *path = spool_path(s, f->no);

	if (!f->gone && path)
		unlink(path);
	if (!f->gone)
		s->total -= f->bytes;
	f->gone = true;
	if (s->out == f)
		spool_end_file(s);
	if (!f->bufs && !f->syncing)
		spool_remove(s, f);
}

struct spool_file *spool_first(const struct spool *s)
{
	struct spool_file *f = s->files;

	while (f && f->gone)
		f = f->next;
	return f;
}

struct spool_file *spool_append(struct spool *s, uint64_t no)
{
	struct spool_file *f = calloc(1, sizeof(*f)), **p = &s->files;

	if (!f)
		return NULL;
	f->no = no;
	f->fd = -1;
	while (*p)
		p = &(*p)->next;
	*p = f;
	return f;
}

static bool name_is_frames(const char *name, uint64_t *no)
{
	char *end;

	*no = strtoull(name, &end, 16);
	return end == name + 16 && !strcmp(end, ".frames") && *no;
}

static int by_number(const void *a, const void *b)
{
	return *(const uint64_t *)a < *(const uint64_t *)b ? -1 : *(const uint64_t *)a > *(const uint64_t *)b;
}

/* The numbers of all files, in order: how many, or -errno. -ENOENT: there is no folder */
int spool_list(const struct spool *s, uint64_t **out)
{
	cleanup_free uint64_t *list = NULL;
	DIR *dir = opendir(s->dir);
	struct dirent *e;
	int n = 0, r = 0;
	uint64_t no;

	if (!dir)
		return -errno;
	while (!r && (e = readdir(dir))) {
		uint64_t *more;

		if (!name_is_frames(e->d_name, &no))
			continue;
		more = realloc(list, sizeof(*list) * (size_t)(n + 1));
		if (!more) {
			r = -ENOMEM;
			break;
		}
		list = more;
		list[n++] = no;
	}
	closedir(dir);
	if (r)
		return r;
	if (n)
		qsort(list, (size_t)n, sizeof(*list), by_number);
	*out = steal_ptr(list);
	return n;
}


/* ------------------------------------------------------------ forgetting */

static void free_buffers(struct spool *s)
{
	for (int i = 0; i < SPOOL_BUFS; i++) {
		free(s->bufs[i].data);
		s->bufs[i].data = NULL;
	}
	free(s->in_buf);
	secret_free(s->plain);
	s->in_buf = s->plain = NULL;
	seal_destroy(s->seal);
	s->seal = NULL;
}

void spool_forget(struct spool *s, uint64_t seq)
{
	struct spool_file *f;

	while ((f = spool_first(s)) && !f->bufs && f->last_seq <= seq) {
		if (s->in == f)
			spool_rewind(s);
		else if (s->in)
			s->in_passed -= f->bytes;
		spool_unlink(s, f);
	}
	if (!s->files && !s->count && !s->read.active)
		free_buffers(s);	/* they are locked into memory */
}

bool spool_has_content(const struct spool *s)
{
	const struct spool_file *f = spool_first(s);

	return s->count || (f && (f->bytes || f->next));
}

uint64_t spool_first_seq(const struct spool *s)
{
	const struct spool_file *f = spool_first(s);

	return f ? f->first_seq : 0;
}

uint64_t spool_last_seq(const struct spool *s)
{
	return s->last_seq;
}

uint64_t spool_unread(const struct spool *s)
{
	return s->state == SPOOL_REFUSED ? 0 : s->total - s->in_passed;
}

uint64_t spool_oldest_ns(const struct spool *s)
{
	const struct spool_file *f = spool_first(s);

	if (!spool_unread(s) || !f)
		return 0;
	return s->in && s->in_time_ns ? s->in_time_ns : f->first_time_ns;
}

/* ----------------------------------------------------------------- life */

void spool_close(struct spool *s)
{
	if (!s)
		return;
	s->closing = true;
	if (s->read.active || s->sync.active || spool_writing(s))
		return;
	spool_close_in(s);
	for (struct spool_file *f = s->files, *next; f; f = next) {
		next = f->next;
		if (f->fd >= 0)
			close(f->fd);
		free(f);
	}
	pack_end(&s->pack);
	free_buffers(s);
	free(s->dir);
	free(s);
}

/* All that the folder holds of a spool: the first error, when all else is gone */
static int delete_all(struct spool *s, struct why *why)
{
	cleanup_free char *header = NULL;
	cleanup_free uint64_t *list = NULL;
	int n = spool_list(s, &list), r = 0;

	for (int i = 0; i < n; i++) {
		cleanup_free char *path = spool_path(s, list[i]);

		if (path && unlink(path) && errno != ENOENT && !r)
			r = why_set(why, errno, "cannot delete %s: %s", path, strerror(errno));
	}
	if (r)
		return r;	/* what is left says whose it is */
	if (asprintf(&header, "%s/header", s->dir) < 0)
		return -ENOMEM;
	if (unlink(header) && errno != ENOENT)
		return why_set(why, errno, "cannot delete %s: %s", header, strerror(errno));
	rmdir(s->dir);
	return 0;
}

int spool_discard(struct spool *s, struct why *why)
{
	int r;

	spool_drop_filling(s);
	spool_end_file(s);
	s->pack.frame_no = s->good.frame_no;	/* nothing needs to continue anything */
	while (spool_first(s))
		spool_unlink(s, spool_first(s));
	r = delete_all(s, why);
	spool_rewind(s);
	s->last_seq = 0;
	if (r)
		return r;
	if (s->state != SPOOL_OFF)
		s->state = SPOOL_WELL;
	if (s->state == SPOOL_WELL)
		s->reason[0] = 0;
	return 0;
}

bool spool_refused(const struct spool *s, struct why *why)
{
	if (s->state == SPOOL_REFUSED)
		why_set(why, EPERM, "%s", s->reason);
	return s->state == SPOOL_REFUSED;
}

json_t *spool_status(const struct spool *s)
{
	static const char *const names[] = { "", "full", "failed", "refused", "off" };
	const struct spool_file *f = spool_first(s);
	json_t *j;

	j = json_pack("{s:s, s:s, s:s, s:I, s:I}", "state",
		      s->state != SPOOL_WELL ? names[s->state] : f ? "in use" : "empty", "reason", s->reason,
		      "dir", s->dir, "bytes", (json_int_t)s->total, "max", (json_int_t)s->max);
	json_object_set_new(j, "oldest_ns", json_integer(f ? (json_int_t)f->first_time_ns : 0));
	return j;
}
