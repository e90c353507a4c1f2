// SPDX-License-Identifier: Apache-2.0
/*
 * A group's folder in the vault: what a bare copy of it must carry along.
 *
 * Design: a stream's key, wrapped-<stream>.key, is written before group.json
 * names the stream, and a folder without group.json is no group: so a crash
 * leaves a whole group or none.
 *
 * Invariants: once something has arrived, no source changes the key it was
 * sealed with: it could make its own history unreadable.
 *
 * Context: blocks on the file system; when a group or a member comes or goes.
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
	if (strlen(text) >= GROUP_JSON_MAX)
		return why_set(why, EFBIG, "%s would have more than 1 MiB: the group has had too many members", path);
	return file_write(path, 0600, text, strlen(text), why);
}

/* Something has arrived for the stream */
static bool has_history(const char *segments, const char *stream)
{
	DIR *dir = opendir(segments);
	struct dirent *d = NULL;

	while (dir && (d = readdir(dir)) != NULL && strncmp(d->d_name, stream, 2 * ASR_UUID_BYTES))
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

int folder_key(const char *dir, const uint8_t group[ASR_UUID_BYTES], const uint8_t stream[ASR_UUID_BYTES],
	       const uint8_t *wrapped, size_t bytes, struct why *why)
{
	cleanup_free char *segments = folder_path(dir, group, "segments"), *key = NULL;
	cleanup_free char *old = folder_path(dir, group, "wrapped.key");
	char name[SEG_NAME_BYTES], hex[2 * ASR_UUID_BYTES + 1];
	int ret;

	hex_encode(stream, ASR_UUID_BYTES, hex);
	snprintf(name, sizeof(name), "wrapped-%s.key", hex);
	key = folder_path(dir, group, name);
	if (!segments || !key || !old)
		return why_set(why, ENOMEM, "out of memory");
	ret = dir_make(segments, 0700, why);
	if (!ret)
		ret = entries_sync(dir, why);
	/* of a first version's group, in its place: wrapped.key */
	if (!ret && !((!access(key, F_OK) || !access(old, F_OK)) && has_history(segments, hex)))
		ret = file_write(key, 0600, wrapped, bytes, why);
	return ret;
}

/* The streams of those who are in it */
static json_t *streams_now(json_t *members, bool left_too)
{
	json_t *list = json_array(), *m;
	size_t i;

	json_array_foreach(members, i, m)
		if (left_too || json_is_null(json_object_get(m, "left")))
			json_array_append(list, json_object_get(m, "stream"));
	return list;
}

/* An epoch that a crash has left half made is made anew */
static void epoch_set(json_t *root, const struct catalog_group *g, json_t *members)
{
	json_t *epochs = json_object_get(root, "epochs"), *e, *now = streams_now(members, false);
	char when[40];
	size_t i = 0;

	if (!json_is_array(epochs)) {
		epochs = json_array();
		if (g->epoch > 1)	/* before groups had members it was on its first host */
			json_array_append_new(epochs, json_pack("{s:i, s:s, s:[O*]}", "epoch", 1, "begun",
				time_format(g->created_ns, when), "streams",
				json_object_get(json_array_get(members, 0), "stream")));
		json_object_set_new(root, "epochs", epochs);
	}
	while (i < json_array_size(epochs)) {
		uint64_t epoch = (uint64_t)json_integer_value(json_object_get(json_array_get(epochs, i), "epoch"));

		e = json_array_get(epochs, i);
		if (epoch == g->epoch && json_equal(json_object_get(e, "streams"), now)) {
			json_decref(now);	/* only what came behind it is undone */
			now = NULL;
			i++;
		} else if (epoch >= g->epoch) {
			json_array_remove(epochs, i);
		} else {
			i++;
		}
	}
	if (!now)
		return;
	json_array_append_new(epochs, json_pack("{s:I, s:s, s:o}", "epoch", (json_int_t)g->epoch, "begun",
						time_format(g->epoch > 1 ? now_real_ns() : g->created_ns, when),
						"streams", now));
}

int folder_make(const char *dir, const struct catalog_group *g, json_t *members, struct why *why)
{
	cleanup_free char *meta = folder_path(dir, g->uuid, "group.json"), *text = NULL;
	cleanup_json root = NULL;
	char uuid[33], when[40];
	int ret;

	if (!meta)
		return why_set(why, ENOMEM, "out of memory");
	ret = file_read(meta, GROUP_JSON_MAX, &text, NULL, NULL);
	if (ret && ret != -ENOENT)
		return why_set(why, -ret, "%s: %s", meta, strerror(-ret));
	root = ret ? json_object() : json_loads(text, 0, NULL);
	if (!root)
		return why_set(why, EBADMSG, "%s is damaged", meta);
	hex_encode(g->uuid, ASR_UUID_BYTES, uuid);
	json_object_set_new(root, "version", json_integer(2));
	json_object_set_new(root, "name", json_string(g->name));
	json_object_set_new(root, "uuid", json_string(uuid));
	json_object_set_new(root, "generation", json_integer((json_int_t)g->generation));
	json_object_set_new(root, "created", json_string(time_format(g->created_ns, when)));
	json_object_set_new(root, "deleted", json_boolean(g->deleted_ns));
	json_object_set(root, "members", members);
	json_object_set_new(root, "streams", streams_now(members, true));
	epoch_set(root, g, members);
	return json_write(meta, root, why);
}

json_t *folder_members(const char *dir, const uint8_t group[ASR_UUID_BYTES], uint64_t *epoch, struct why *why)
{
	cleanup_free char *path = folder_path(dir, group, "group.json"), *text = NULL;
	cleanup_json root = NULL;
	const json_t *e;
	size_t i;
	int ret = path ? file_read(path, GROUP_JSON_MAX, &text, NULL, NULL) : -ENOMEM;

	*epoch = 0;
	if (ret == -ENOENT)
		return json_array();
	root = ret ? NULL : json_loads(text, 0, NULL);
	if (!root) {
		why_set(why, ret ? -ret : EBADMSG, "%s: %s", path, ret ? strerror(-ret) : "damaged");
		return NULL;
	}
	json_array_foreach(json_object_get(root, "epochs"), i, e)
		*epoch = (uint64_t)json_integer_value(json_object_get(e, "epoch"));
	if (!json_is_array(json_object_get(root, "members")))	/* before groups had members */
		return json_pack("[{s:O, s:O, s:O, s:O, s:n}]", "host", json_object_get(root, "host"), "stream",
				 json_array_get(json_object_get(root, "streams"), 0), "recipients",
				 json_object_get(root, "recipients"), "joined", json_object_get(root, "created"),
				 "left");
	return json_incref(json_object_get(root, "members"));
}
