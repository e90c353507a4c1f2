// SPDX-License-Identifier: Apache-2.0
/*
 * Small things that every program here needs: hex, names, sizes, whole files.
 *
 * Design: file_write is the one way a small file changes on disk: written to
 * a temporary beside it, flushed, renamed, and the folder flushed, so that any
 * crash leaves the old content or the new.
 *
 * Context: may block on the file system; never on the network.
 */
#include "asr.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

void hex_encode(const uint8_t *data, size_t bytes, char *out)
{
	static const char digits[] = "0123456789abcdef";

	for (size_t i = 0; i < bytes; i++) {
		*out++ = digits[data[i] >> 4];
		*out++ = digits[data[i] & 15];
	}
	*out = 0;
}

static int hex_digit(char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	if (c >= 'a' && c <= 'f')
		return c - 'a' + 10;
	if (c >= 'A' && c <= 'F')
		return c - 'A' + 10;
	return -1;
}

int hex_decode(const char *text, uint8_t *out, size_t bytes)
{
	for (size_t i = 0; i < bytes; i++) {
		int hi = hex_digit(text[2 * i]);
		int lo = hi < 0 ? -1 : hex_digit(text[2 * i + 1]);

		if (lo < 0)
			return -EINVAL;
		out[i] = (uint8_t)(hi << 4 | lo);
	}
	return text[2 * bytes] ? -EINVAL : 0;
}

const char *text_of(const json_t *object, const char *key)
{
	const char *text = json_string_value(json_object_get(object, key));

	return text ? text : "";
}

int name_check(const char *what, const char *name, struct why *why)
{
	size_t n = strlen(name);

	if (n && n < ASR_NAME_BYTES && isalnum((unsigned char)*name) &&
	    strspn(name, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._+-") == n)
		return 0;
	return why_set(why, EINVAL, "bad %s name \"%.80s\": 1 to %d of A-Z a-z 0-9 . _ + -, "
		       "beginning with a letter or digit", what, name, ASR_NAME_BYTES - 1);
}

int size_parse(const char *text, uint64_t *bytes)
{
	static const char units[] = "KMGT";
	unsigned long long v;
	const char *unit;
	char *end;

	if (!isdigit((unsigned char)*text))
		return -EINVAL;
	errno = 0;
	v = strtoull(text, &end, 10);
	if (errno)
		return -ERANGE;
	if (*end) {
		unit = strchr(units, toupper((unsigned char)*end));
		if (!unit || (end[1] && strcmp(end + 1, "iB") != 0))
			return -EINVAL;
		for (const char *u = units; u <= unit; u++)
			if (__builtin_mul_overflow(v, 1024ULL, &v))
				return -ERANGE;
	}
	*bytes = v;
	return 0;
}

int file_read(const char *path, size_t max, char **data, size_t *bytes, struct why *why)
{
	cleanup_fd int fd = open(path, O_RDONLY | O_CLOEXEC);
	cleanup_free char *buf = NULL;
	struct stat st;
	size_t have = 0, room;
	ssize_t n;

	if (fd < 0 || fstat(fd, &st) < 0)
		return why_set(why, errno, "cannot read %s: %s", path, strerror(errno));
	if (S_ISDIR(st.st_mode))
		return why_set(why, EISDIR, "cannot read %s: it is a folder", path);
	if (st.st_size > 0 && (uint64_t)st.st_size > max)
		return why_set(why, EFBIG, "cannot read %s: larger than %zu bytes", path, max);
	room = st.st_size > 0 ? (size_t)st.st_size + 1 : max + 1;
	buf = malloc(room + 1);
	if (!buf)
		return why_set(why, ENOMEM, "cannot read %s: out of memory", path);
	while (have < room && (n = read(fd, buf + have, room - have)) != 0) {
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return why_set(why, errno, "cannot read %s: %s", path, strerror(errno));
		have += (size_t)n;
	}
	if (have > max)
		return why_set(why, EFBIG, "cannot read %s: larger than %zu bytes", path, max);
	buf[have] = 0;
	if (bytes)
		*bytes = have;
	*data = steal_ptr(buf);
	return 0;
}

/* Makes the folder's entry of path durable */
static int dir_sync(const char *path)
{
	cleanup_free char *dir = strdup(path);
	cleanup_fd int fd = -1;
	char *slash;

	if (!dir)
		return -ENOMEM;
	slash = strrchr(dir, '/');
	if (slash == dir)
		slash[1] = 0;
	else if (slash)
		*slash = 0;
	fd = open(slash ? dir : ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	return fd < 0 || fsync(fd) < 0 ? -errno : 0;
}

static int write_whole(int fd, const char *p, size_t bytes)
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

int file_read_secret(const char *path, size_t max, char **text, struct why *why)
{
	cleanup_free char *data = NULL;
	size_t bytes;
	int ret = file_read(path, max, &data, &bytes, why);

	if (ret)
		return ret;
	*text = secret_alloc(bytes + 1);
	if (*text)
		memcpy(*text, data, bytes + 1);
	explicit_bzero(data, bytes);
	return *text ? 0 : why_set(why, ENOMEM, "cannot read %s: out of memory", path);
}

int file_write(const char *path, mode_t mode, const void *data, size_t bytes, struct why *why)
{
	cleanup_free char *tmp = NULL;
	cleanup_fd int fd = -1;
	int ret;

	if (asprintf(&tmp, "%s.%d.tmp", path, (int)getpid()) < 0) {
		tmp = NULL;
		return why_set(why, ENOMEM, "cannot write %s: out of memory", path);
	}
	fd = open(tmp, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, mode);
	if (fd < 0)
		return why_set(why, errno, "cannot write %s: %s", tmp, strerror(errno));
	ret = fchmod(fd, mode) < 0 ? -errno : write_whole(fd, data, bytes);
	if (!ret && rename(tmp, path) < 0)
		ret = -errno;
	if (!ret)
		ret = dir_sync(path);
	if (ret) {
		unlink(tmp);
		return why_set(why, -ret, "cannot write %s: %s", path, strerror(-ret));
	}
	return 0;
}

int dir_make(const char *path, mode_t mode, struct why *why)
{
	cleanup_free char *p = strdup(path);
	struct stat st;

	if (!p)
		return why_set(why, ENOMEM, "cannot make %s: out of memory", path);
	for (char *s = p + 1; *s; s++) {
		if (*s != '/')
			continue;
		*s = 0;
		if (mkdir(p, 0755) < 0 && errno != EEXIST)
			return why_set(why, errno, "cannot make folder %s: %s", p, strerror(errno));
		*s = '/';
	}
	if (mkdir(p, mode) == 0)
		return 0;
	if (errno != EEXIST)
		return why_set(why, errno, "cannot make folder %s: %s", p, strerror(errno));
	if (stat(p, &st) < 0 || !S_ISDIR(st.st_mode))
		return why_set(why, ENOTDIR, "cannot make folder %s: something else has this name", p);
	return 0;
}
