// SPDX-License-Identifier: Apache-2.0
/*
 * A group's folder in the vault: what a bare copy of it must carry along.
 *
 * Design: wrapped.key is written before group.json, for a folder without
 * group.json is no group: so a crash leaves a whole group or none.
 *
 * Invariants: once something has arrived, no source changes the key it was
 * sealed with: it could make its own history unreadable.
 *
 * Context: blocks on the file system; when a group comes or goes.
 */
#include "vault.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>

#define GROUP_JSON_MAX	(1u << 20)

static char *folder_path(const char *dir, const uint8_t *uuid, const char *file)
{
	char hex[33], *path;

	hex_encode(uuid, ASR_UUID_BYTES, hex);
	return asprintf(&path, "%s/groups/%s%s%s", dir, hex, *file ? "/" : "", file) < 0 ? NULL : path;
}

static int json_write(const char *path, const json_t *root, struct why *why)
{
	cleanup_free char *text = json_dumps(root, JSON_INDENT(2));

	if (!text)
		return why_set(why, ENOMEM, "out of memory");
	return file_write(path, 0600, text, strlen(text), why);
}

/* Something has arrived for the group */
static bool has_history(const char *segments)
{
	DIR *dir = opendir(segments);
	struct dirent *d = NULL;

	while (dir && (d = readdir(dir)) != NULL && d->d_name[0] == '.')
		;
	if (dir)
		closedir(dir);
	return d;
}

/* The entries of the folders above a group's own */
static int entries_sync(const char *dir, struct why *why)
{
	cleanup_free char *groups = NULL;
	const char *path[2] = { dir };

	if (asprintf(&groups, "%s/groups", dir) < 0)
		return why_set(why, ENOMEM, "out of memory");
	path[1] = groups;
	for (int i = 0; i < 2; i++) {
		cleanup_fd int fd = open(path[i], O_RDONLY | O_DIRECTORY | O_CLOEXEC);

		if (fd < 0 || fsync(fd) < 0)
			return why_set(why, errno, "cannot flush the folder %s: %s", path[i], strerror(errno));
	}
	return 0;
}

int folder_make(const char *dir, const struct catalog_group *g, const uint8_t *wrapped, size_t wrapped_bytes,
		json_t *recipients, struct why *why)
{
	cleanup_free char *segments = folder_path(dir, g->uuid, "segments");
	cleanup_free char *key = folder_path(dir, g->uuid, "wrapped.key");
	cleanup_free char *meta = folder_path(dir, g->uuid, "group.json");
	cleanup_json root = NULL;
	char uuid[33], stream[33], when[40];
	int ret;

	if (!segments || !key || !meta)
		return why_set(why, ENOMEM, "out of memory");
	hex_encode(g->uuid, ASR_UUID_BYTES, uuid);
	hex_encode(g->stream, ASR_UUID_BYTES, stream);
	root = json_pack("{s:i, s:s, s:s, s:s, s:I, s:[s], s:O, s:s, s:b}", "version", 1, "name", g->name,
			 "uuid", uuid, "host", g->host_id, "generation", (json_int_t)g->generation,
			 "streams", stream, "recipients", recipients, "created",
			 time_format(g->created_ns, when), "deleted", 0);
	if (!root)
		return why_set(why, ENOMEM, "out of memory");
	ret = dir_make(segments, 0700, why);
	if (!ret)
		ret = entries_sync(dir, why);
	if (!ret && !(access(key, F_OK) == 0 && has_history(segments)))
		ret = file_write(key, 0600, wrapped, wrapped_bytes, why);
	if (!ret && !(access(meta, F_OK) == 0 && has_history(segments)))
		ret = json_write(meta, root, why);
	return ret;
}

int folder_delete(const char *dir, const uint8_t uuid[ASR_UUID_BYTES], struct why *why)
{
	cleanup_free char *path = folder_path(dir, uuid, "group.json"), *text = NULL;
	cleanup_json root = NULL;
	int ret;

	if (!path)
		return why_set(why, ENOMEM, "out of memory");
	ret = file_read(path, GROUP_JSON_MAX, &text, NULL, why);
	if (ret)
		return ret;
	root = json_loads(text, 0, NULL);
	if (!root)
		return why_set(why, EBADMSG, "%s is damaged", path);
	json_object_set_new(root, "deleted", json_true());
	return json_write(path, root, why);
}
