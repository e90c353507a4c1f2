// SPDX-License-Identifier: Apache-2.0
/*
 * After a crash of the vault: where does a stream end?
 *
 * Design: the newest sealed segment's footer says where the unsealed tail
 * begins; only that tail is read. What stands behind its last whole frame was
 * never acknowledged and is cut off. A segment that was being sealed when the
 * vault died has a successor, or not; either way its footer is made again from
 * its frames.
 *
 * Invariants: nothing that was acknowledged is cut off: a broken frame that a
 * later envelope, or a successor, calls durable stops the recovery instead.
 * What is recovered is durable.
 *
 * Context: blocks on the file system; once per stream, at its first opening.
 */
#include "vault.h"

#include <errno.h>
#include <string.h>
#include <sys/stat.h>

struct names {
	char prefix[34];		/* "<stream>-" */
	char sealed[80];		/* newest, or "" */
	char (*open)[80];		/* those behind it, in order */
	size_t count;
};

static int on_name(const char *name, void *arg)
{
	struct names *n = arg;
	const char *end = strrchr(name, '.');
	void *more;

	if (strncmp(name, n->prefix, 33) || strlen(name) >= 80 || !end)
		return 0;
	if (!strcmp(end, ".seg")) {
		snprintf(n->sealed, sizeof(n->sealed), "%.79s", name);
		return n->count ? -EBADMSG : 0;
	}
	if (strcmp(end, ".open"))
		return 0;
	more = reallocarray(n->open, n->count + 1, 80);
	if (!more)
		return -ENOMEM;
	n->open = more;
	snprintf(n->open[n->count++], 80, "%.*s", (int)(end - name), name);
	return 0;
}

static int after_sealed(struct store *store, const char *folder, const char file[80], struct seg_state *st,
			struct why *why)
{
	struct index_seg seg = { .sealed = true };
	struct seg_trailer tr;
	char name[SEG_NAME_BYTES + 80];
	struct why w;
	int ret;

	snprintf(seg.file, sizeof(seg.file), "%.79s", file);
	snprintf(name, sizeof(name), "%s/%.79s", folder, file);
	ret = store_get(store, name, 0, &seg.hdr, sizeof(seg.hdr));
	if (ret || seg_hdr_check(&seg.hdr, &w))
		return why_set(why, ret ? -ret : EBADMSG, "segment %s, offset 0: %.400s", file,
			       ret ? strerror(-ret) : w.text);
	ret = index_head_read(store, folder, &seg, &tr, why);
	if (!ret)
		seg_state_after(st, &seg.hdr, &seg.table);
	seg_table_free(&seg.table);
	return ret;
}

static int cut(struct recovered *r, uint64_t bytes, bool torn, struct why *why)
{
	if (torn)
		log_warn("segment %s: %llu bytes behind frame %llu are no whole frame, and were never "
			 "acknowledged: cut off", strrchr(r->name, '/') + 1,
			 (unsigned long long)(bytes - r->end),
			 (unsigned long long)(r->hdr.first_frame_no + r->table.foot.frames - 1));
	if (bytes != r->end && ftruncate(r->fd, (off_t)r->end) < 0)
		return why_set(why, errno, "segment %s: cannot cut off its torn tail: %s", r->name, strerror(errno));
	/* a vault that was killed had perhaps written these frames, not flushed them */
	if (fdatasync(r->fd) < 0)
		return why_set(why, errno, "segment %s: cannot flush it: %s", r->name, strerror(errno));
	return 0;
}

/* A segment gets a successor when all of it is durable: that one's name says where it ends */
static int successor_fits(const struct recovered *r, const struct seg_state *st, const char *next, struct why *why)
{
	uint64_t first = next ? strtoull(next + 33, NULL, 16) : st->next_frame_no;

	if (first == st->next_frame_no)
		return 0;
	return why_set(why, EBADMSG, "segment %s.open: frame %llu, at offset %llu, is damaged: segment %s.open "
		       "says that it was durable", r->name, (unsigned long long)st->next_frame_no,
		       (unsigned long long)r->end, next);
}

/* next: the segment behind it, or NULL. 1: it holds no frame, and was removed */
static int tail_scan(struct store *store, struct recovered *r, struct seg_state *st, const char *next,
		     struct why *why)
{
	struct why w = { "it cannot be read" };
	char file[SEG_NAME_BYTES + 8];
	struct stat sb;
	bool torn;
	int ret;

	r->fd = store_tail_open(store, r->name);
	if (r->fd < 0 || fstat(r->fd, &sb) < 0)
		return why_set(why, r->fd < 0 ? -r->fd : errno, "cannot open segment %s.open", r->name);
	if (pread(r->fd, &r->hdr, sizeof(r->hdr), 0) == sizeof(r->hdr) && !seg_hdr_check(&r->hdr, &w)) {
		if (r->hdr.first_frame_no != st->next_frame_no || r->hdr.number != st->next_number)
			return why_set(why, EBADMSG, "segment %s.open does not follow the segment before it", r->name);
		ret = seg_scan(r->fd, (uint64_t)sb.st_size, &r->hdr, &r->table, st, &r->end, &torn, &w);
		if (ret)
			return why_set(why, -ret, "segment %s.open: %.400s", r->name, w.text);
		ret = successor_fits(r, st, next, why);
		if (ret)
			return ret;
		if (r->table.foot.frames)
			return cut(r, (uint64_t)sb.st_size, torn, why);
	} else if (sb.st_size > (off_t)sizeof(r->hdr)) {
		/* the header is durable before the first frame is written */
		return why_set(why, EBADMSG, "segment %s.open, offset 0: %.400s", r->name, w.text);
	}
	seg_table_free(&r->table);
	close(r->fd);
	r->fd = -1;
	snprintf(file, sizeof(file), "%s.open", r->name);
	ret = store_delete(store, file);
	return ret ? why_set(why, -ret, "cannot remove %s: %s", file, strerror(-ret)) : 1;
}

int recover_seal(struct store *store, struct recovered *r, struct why *why)
{
	cleanup_free uint8_t *foot = NULL;
	size_t bytes, done = 0;
	int ret = seg_foot_make(&r->table, r->end, &foot, &bytes);

	while (!ret && done < bytes) {
		ssize_t n = pwrite(r->fd, foot + done, bytes - done, (off_t)(r->end + done));

		if (n < 0 && errno != EINTR)
			ret = -errno;
		done += n > 0 ? (size_t)n : 0;
	}
	if (!ret && (ftruncate(r->fd, (off_t)(r->end + bytes)) < 0 || fsync(r->fd) < 0))
		ret = -errno;
	if (!ret)
		ret = store_tail_seal(store, r->name);
	if (ret)
		return why_set(why, -ret, "cannot seal segment %s: %s", r->name, strerror(-ret));
	seg_table_free(&r->table);
	close(r->fd);
	r->fd = -1;
	return 0;
}

int recover_stream(struct store *store, const uint8_t *group, const uint8_t *stream, struct seg_state *st,
		   struct recovered *r, struct why *why)
{
	struct names n = { .count = 0 };
	char folder[SEG_NAME_BYTES];
	int ret;

	memset(r, 0, sizeof(*r));
	r->fd = -1;
	seg_state_init(st);
	seg_name(group, stream, 0, folder);
	*strrchr(folder, '/') = 0;
	hex_encode(stream, ASR_UUID_BYTES, n.prefix);
	strcat(n.prefix, "-");
	ret = store_list(store, folder, on_name, &n);
	if (ret && ret != -ENOENT)
		why_set(why, -ret, "%s: %s", folder, ret == -EBADMSG ?
			"a sealed segment stands behind an unsealed one" : strerror(-ret));
	else
		ret = *n.sealed ? after_sealed(store, folder, n.sealed, st, why) : 0;
	for (size_t i = 0; i < n.count && !ret; i++) {
		snprintf(r->name, sizeof(r->name), "%.80s/%.79s", folder, n.open[i]);
		ret = tail_scan(store, r, st, i + 1 < n.count ? n.open[i + 1] : NULL, why);
		if (ret == 1)
			ret = 0;
		else if (!ret && i + 1 < n.count)
			ret = recover_seal(store, r, why);
	}
	if (ret) {
		seg_table_free(&r->table);
		if (r->fd >= 0)
			close(r->fd);
		r->fd = -1;
	}
	free(n.open);
	return ret;
}
