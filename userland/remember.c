// SPDX-License-Identifier: Apache-2.0
/*
 * What this host protects, on file: so that it is protected again after a boot.
 *
 * Design. STATE_DIR/groups/GROUP/disks/DISK.json, one object for each disk:
 *
 *	name		of the disk in its group
 *	kind		"dm": slides under a device-mapper device; "plain": wraps another
 *	device		a path that outlives a reboot; dm_name, dm_uuid for kind dm
 *	sectors		when it was seen last
 *	log		{uuid, path or file, generation}: its write-intent log, if it has one
 *	boot_id		the boot in which generation was seen
 *	checking	when asr was put on it: what was written meanwhile is not known yet
 *	distrust	text: it was up without us, or its log failed: the log proves nothing
 *
 * asrctl writes these, asrd only distrust; asrd and asrctl boot read them. A file that cannot be
 * read becomes an object with "error", so that it is reported, not left out.
 *
 * Invariants. Written before a disk is inserted and taken away before it is
 * taken out: whatever dies in between, the next boot errs to protection.
 *
 * Context. Blocks on small files.
 */
#include <dirent.h>
#include <errno.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "asr.h"

#define FILE_MAX	1048576

static int path_of(const char *state_dir, const char *group, const char *disk, char out[512])
{
	int n = snprintf(out, 512, "%s/groups/%s/disks%s%s%s", state_dir, group, disk ? "/" : "",
			 disk ? disk : "", disk ? ".json" : "");

	return n < 512 ? 0 : -ENAMETOOLONG;
}

static json_t *broken(const char *name, const char *text)
{
	return json_pack("{s:s, s:s}", "name", name, "error", text);
}

static json_t *load(const char *path, const char *name)
{
	cleanup_free char *text = NULL;
	struct why why = { "" };
	const char *kind, *device;
	json_int_t sectors;
	json_error_t e;
	json_t *disk;

	if (file_read(path, FILE_MAX, &text, NULL, &why))
		return broken(name, why.text);
	disk = json_loads(text, 0, &e);
	if (disk && !json_unpack(disk, "{s:s, s:s, s:I}", "kind", &kind, "device", &device, "sectors", &sectors) &&
	    (!strcmp(kind, "dm") || !strcmp(kind, "plain")) && !json_object_set_new(disk, "name", json_string(name)))
		return disk;
	why_set(&why, EINVAL, "%.300s is not whole%s%.100s", path, disk ? "" : ": ", disk ? "" : e.text);
	json_decref(disk);
	return broken(name, why.text);
}

int remember_list(const char *state_dir, const char *group, json_t **disks, struct why *why)
{
	char path[512], name[ASR_NAME_BYTES + 8];
	struct dirent *e;
	DIR *dir;
	size_t n;

	*disks = json_array();
	if (!*disks || path_of(state_dir, group, NULL, path))
		return -ENOMEM;
	dir = opendir(path);
	if (!dir)
		return errno == ENOENT ? 0 : why_set(why, errno, "cannot read %s: %s", path, strerror(errno));
	while ((e = readdir(dir))) {
		n = strlen(e->d_name);
		if (n < 6 || n >= sizeof(name) || strcmp(e->d_name + n - 5, ".json"))
			continue;
		snprintf(name, sizeof(name), "%.*s", (int)n - 5, e->d_name);
		if (!name_check("disk", name, NULL) && !path_of(state_dir, group, name, path))
			json_array_append_new(*disks, load(path, name));
	}
	closedir(dir);
	return 0;
}

int remember_groups(const char *state_dir, json_t **names, struct why *why)
{
	struct dirent *e;
	char path[512];
	DIR *dir;

	*names = json_array();
	snprintf(path, sizeof(path), "%.480s/groups", state_dir);
	dir = opendir(path);
	if (!dir)
		return errno == ENOENT ? 0 : why_set(why, errno, "cannot read %s: %s", path, strerror(errno));
	while ((e = readdir(dir)))
		if (!name_check("group", e->d_name, NULL))
			json_array_append_new(*names, json_string(e->d_name));
	closedir(dir);
	return 0;
}

json_t *remember_find(const char *state_dir, const char *group, const char *disk)
{
	char path[512];

	if (path_of(state_dir, group, disk, path) || access(path, F_OK))
		return NULL;
	return load(path, disk);
}

int remember_put(const char *state_dir, const char *group, json_t *disk, struct why *why)
{
	cleanup_free char *text = json_dumps(disk, JSON_INDENT(1) | JSON_PRESERVE_ORDER);
	const char *name = json_string_value(json_object_get(disk, "name"));
	char path[512];
	int err;

	if (!text || !name)
		return -ENOMEM;
	err = path_of(state_dir, group, NULL, path);
	if (!err)
		err = dir_make(path, 0700, why);
	if (!err)
		err = path_of(state_dir, group, name, path);
	return err ? err : file_write(path, 0600, text, strlen(text), why);
}

int remember_forget(const char *state_dir, const char *group, const char *disk, struct why *why)
{
	char path[512];
	int err = path_of(state_dir, group, disk, path);

	if (!err && unlink(path))
		err = errno == ENOENT ? -ENOENT : why_set(why, errno, "cannot remove %s: %s", path, strerror(errno));
	return err;
}

void remember_forget_all(const char *state_dir, const char *group)
{
	cleanup_json disks = NULL;
	char path[512];
	json_t *disk;
	size_t i;

	if (remember_list(state_dir, group, &disks, NULL))
		return;
	json_array_foreach(disks, i, disk)
		remember_forget(state_dir, group, json_string_value(json_object_get(disk, "name")), NULL);
	if (!path_of(state_dir, group, NULL, path))
		rmdir(path);
}

/* ------------------------------------------------------------ half put on */

/* No name has an @ */
static void half_path(const char *group, json_t *disk, char path[256])
{
	snprintf(path, 256, "%s/%.64s@%.64s.checking", ASR_BOOT_DIR, group,
		 json_string_value(json_object_get(disk, "name")));
}

uint64_t remember_half(const char *group, json_t *disk)
{
	uint64_t since = (uint64_t)json_integer_value(json_object_get(disk, "checking"));
	char path[256];
	struct stat st;

	if (since)
		return since;
	half_path(group, disk, path);
	return stat(path, &st) ? 0 : (uint64_t)st.st_mtim.tv_sec * 1000000000ull + (uint64_t)st.st_mtim.tv_nsec;
}

int remember_half_begin(const char *state_dir, const char *group, json_t *disk)
{
	char path[256];

	json_object_set_new(disk, "checking", json_integer((json_int_t)now_real_ns()));
	if (state_dir && !remember_put(state_dir, group, disk, NULL))
		return 0;
	half_path(group, disk, path);
	return dir_make(ASR_BOOT_DIR, 0755, NULL) ?: file_write(path, 0644, "", 0, NULL);
}

int remember_half_end(const char *state_dir, const char *group, json_t *disk)
{
	bool on_file = !json_object_del(disk, "checking");
	int err = on_file && state_dir ? remember_put(state_dir, group, disk, NULL) : 0;
	char path[256];

	half_path(group, disk, path);
	return err || access(path, F_OK) || !unlink(path) ? err : -errno;
}
