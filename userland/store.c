// SPDX-License-Identifier: Apache-2.0
/*
 * Where segments lie: write-once objects in a local folder.
 *
 * Design: the calls are what an object store offers (put-if-absent, get-range,
 * head, list, delete), so that one can take the folder's place; only the tail
 * of a stream, which still grows, is a plain local file beside them. put is a
 * temporary file, fsync, link (which fails when the name exists), fsync of the
 * folder: a name is there with its whole content or not at all.
 *
 * Invariants: an object never changes after its name appeared. No name leads
 * out of the folder.
 *
 * Context: blocks on the file system.
 */
#include "vault.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

struct store {
	int fd;
	char *path;
};

int store_open(const char *dir, struct store **out, struct why *why)
{
	struct store *s = calloc(1, sizeof(*s));

	if (!s)
		return why_set(why, ENOMEM, "out of memory");
	s->fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	s->path = strdup(dir);
	if (s->fd < 0 || !s->path) {
		int err = s->fd < 0 ? errno : ENOMEM;

		store_close(s);
		return why_set(why, err, "cannot open the folder %s: %s", dir, strerror(err));
	}
	*out = s;
	return 0;
}

void store_close(struct store *s)
{
	if (!s)
		return;
	if (s->fd >= 0)
		close(s->fd);
	free(s->path);
	free(s);
}

const char *store_path(const struct store *s)
{
	return s->path;
}

static bool name_legal(const char *name)
{
	return *name && *name != '/' && !strstr(name, "..") && strlen(name) < 200;
}

/* The new folder's own entry becomes durable */
static int entry_sync(struct store *s, const char *folder)
{
	cleanup_fd int fd = openat(s->fd, folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	cleanup_fd int parent = fd < 0 ? -1 : openat(fd, "..", O_RDONLY | O_DIRECTORY | O_CLOEXEC);

	return parent < 0 || fsync(parent) < 0 ? -errno : 0;
}

/* The folder that holds name, made when missing; fd or -errno */
static int folder_of(struct store *s, const char *name, bool make)
{
	char part[200];
	char *slash;
	int fd;

	if (!name_legal(name))
		return -EINVAL;
	snprintf(part, sizeof(part), "%s", name);
	for (slash = strchr(part, '/'); make && slash; slash = strchr(slash + 1, '/')) {
		*slash = 0;
		if (mkdirat(s->fd, part, 0700) < 0) {
			if (errno != EEXIST)
				return -errno;
		} else if (entry_sync(s, part)) {
			return -EIO;
		}
		*slash = '/';
	}
	slash = strrchr(part, '/');
	if (slash)
		*slash = 0;
	fd = openat(s->fd, slash ? part : ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	return fd < 0 ? -errno : fd;
}

static const char *base_of(const char *name)
{
	const char *slash = strrchr(name, '/');

	return slash ? slash + 1 : name;
}

static int write_all(int fd, const uint8_t *p, size_t bytes)
{
	while (bytes) {
		ssize_t n = write(fd, p, bytes);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		p += n;
		bytes -= (size_t)n;
	}
	return fsync(fd) < 0 ? -errno : 0;
}

int store_put(struct store *s, const char *name, const void *data, size_t bytes)
{
	cleanup_fd int dir = folder_of(s, name, true);
	cleanup_fd int fd = -1;
	char tmp[260];
	int ret;

	if (dir < 0)
		return dir;
	snprintf(tmp, sizeof(tmp), ".%s.%d.tmp", base_of(name), (int)getpid());
	fd = openat(dir, tmp, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
	if (fd < 0)
		return -errno;
	ret = write_all(fd, data, bytes);
	if (!ret && linkat(dir, tmp, dir, base_of(name), 0) < 0)
		ret = -errno;
	unlinkat(dir, tmp, 0);
	if (!ret && fsync(dir) < 0)
		ret = -errno;
	return ret;
}

int store_get(struct store *s, const char *name, uint64_t offset, void *buf, size_t bytes)
{
	cleanup_fd int fd = -1;
	uint8_t *p = buf;

	if (!name_legal(name))
		return -EINVAL;
	fd = openat(s->fd, name, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	while (bytes) {
		ssize_t n = pread(fd, p, bytes, (off_t)offset);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return n ? -errno : -ENODATA;
		p += n;
		offset += (uint64_t)n;
		bytes -= (size_t)n;
	}
	return 0;
}

void store_ahead(struct store *s, const char *name, uint64_t offset, size_t bytes)
{
	cleanup_fd int fd = name_legal(name) ? openat(s->fd, name, O_RDONLY | O_CLOEXEC) : -1;

	if (fd >= 0)
		posix_fadvise(fd, (off_t)offset, (off_t)bytes, POSIX_FADV_WILLNEED);
}

int store_head(struct store *s, const char *name, uint64_t *bytes)
{
	struct stat st;

	if (!name_legal(name))
		return -EINVAL;
	if (fstatat(s->fd, name, &st, 0) < 0)
		return -errno;
	*bytes = (uint64_t)st.st_size;
	return 0;
}

static int wanted(const struct dirent *d)
{
	return d->d_name[0] != '.';
}

int store_list(struct store *s, const char *folder, int (*each)(const char *name, void *arg), void *arg)
{
	struct dirent **names;
	int n, ret = 0;

	n = scandirat(s->fd, folder, &names, wanted, alphasort);
	if (n < 0)
		return -errno;
	for (int i = 0; i < n; i++) {
		if (!ret)
			ret = each(names[i]->d_name, arg);
		free(names[i]);
	}
	free(names);
	return ret;
}

int store_delete(struct store *s, const char *name)
{
	cleanup_fd int dir = folder_of(s, name, false);

	if (dir < 0)
		return dir;
	if (unlinkat(dir, base_of(name), 0) < 0)
		return -errno;
	return fsync(dir) < 0 ? -errno : 0;
}

int store_tail_create(struct store *s, const char *name)
{
	cleanup_fd int dir = folder_of(s, name, true);
	char file[220];
	int fd;

	if (dir < 0)
		return dir;
	snprintf(file, sizeof(file), "%s.open", base_of(name));
	fd = openat(dir, file, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
	if (fd < 0)
		return -errno;
	if (fsync(dir) < 0) {
		int err = errno;

		close(fd);
		unlinkat(dir, file, 0);
		return -err;
	}
	return fd;
}

int store_tail_open(struct store *s, const char *name)
{
	char file[220];
	int fd;

	if (!name_legal(name))
		return -EINVAL;
	snprintf(file, sizeof(file), "%s.open", name);
	fd = openat(s->fd, file, O_RDWR | O_CLOEXEC | O_NOFOLLOW);
	return fd < 0 ? -errno : fd;
}

int store_tail_seal(struct store *s, const char *name)
{
	cleanup_fd int dir = folder_of(s, name, false);
	char from[220], to[220];

	if (dir < 0)
		return dir;
	snprintf(from, sizeof(from), "%s.open", base_of(name));
	snprintf(to, sizeof(to), "%s.seg", base_of(name));
	/* tried again, after the flush failed: it has the new name */
	if (renameat2(dir, from, dir, to, RENAME_NOREPLACE) < 0 &&
	    (errno != ENOENT || faccessat(dir, to, F_OK, 0) < 0))
		return -errno;
	return fsync(dir) < 0 ? -errno : 0;
}
