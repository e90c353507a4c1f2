// SPDX-License-Identifier: Apache-2.0
/*
 * The copy of what a boot needs, where a boot can read it.
 *
 * Design. BOOT_DIR (/etc/asr/boot) has the layout of the state folder, with less in
 * it: of each group its name and ring size and how far its numbers have got, and
 * what is remembered of its disks. No key, no certificate. An initramfs gets the
 * same, for the root disk alone. Beside it, hold/KEY: devices that udev is to hold
 * back until asrctl boot is through with them; never the one that is the root.
 *
 * It is made anew as a whole from the state folder after each change, so it cannot
 * drift for long; it is only ever read where the state folder is not there.
 *
 * Context. asrctl, as root; blocks on small files.
 */
#include "asrctl.h"

#include <dirent.h>
#include <errno.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

/* Those keys of a file, and what is newer */
static int copy_json(const char *from, const char *to, const char *file, const char *const *keys, json_t *newer,
		     struct why *why)
{
	cleanup_free char *in = NULL, *out = NULL, *path = NULL, *target = NULL;
	cleanup_json all = NULL;
	cleanup_json some = json_object();

	if (asprintf(&path, "%s/%s", from, file) < 0 || asprintf(&target, "%s/%s", to, file) < 0)
		return -ENOMEM;
	if (file_read(path, 1 << 20, &in, NULL, why))
		return -EIO;
	all = json_loads(in, 0, NULL);
	for (; *keys; keys++)
		if (json_object_get(all, *keys))
			json_object_set(some, *keys, json_object_get(all, *keys));
	json_object_update(some, newer);
	out = json_dumps(some, JSON_INDENT(1));
	return out ? file_write(target, 0600, out, strlen(out), why) : -ENOMEM;
}

/* Is / on this disk, now? */
bool boot_is_root(const char *group, json_t *disk)
{
	struct dm_search s = { .group = group, .disk = json_string_value(json_object_get(disk, "name")) };
	const char *device = json_string_value(json_object_get(disk, "device"));
	char path[DM_NAME_BYTES + 16];
	char use[256];
	struct stat st;

	if (s.disk && !dm_find_asr(&s, NULL) && s.found) {
		snprintf(path, sizeof(path), "/dev/mapper/%s", s.name);
		device = path;
	}
	return device && !stat(device, &st) && S_ISBLK(st.st_mode) &&
	       use_mounted_on(major(st.st_rdev), minor(st.st_rdev), "/", use, sizeof(use));
}

/* Removes what is not wanted: files and folders by their path from the top, "groups/g" */
static void prune(const char *top, const char *dir, const json_t *wanted)
{
	cleanup_free char *path = NULL;
	struct dirent *e;
	DIR *d;

	if (asprintf(&path, "%s/%s", top, dir) < 0)
		return;
	d = opendir(path);
	while (d && (e = readdir(d))) {
		cleanup_free char *key = NULL, *at = NULL;
		struct stat st;

		if (!strcmp(e->d_name, ".") || !strcmp(e->d_name, "..") ||
		    asprintf(&key, "%s/%s", dir, e->d_name) < 0 || asprintf(&at, "%s/%s", top, key) < 0 ||
		    lstat(at, &st))
			continue;
		if (S_ISDIR(st.st_mode)) {
			prune(top, key, wanted);
			rmdir(at);	/* if it is empty */
		} else if (!json_object_get(wanted, key)) {
			unlink(at);
		}
	}
	if (d)
		closedir(d);
}

static int want(json_t *wanted, const char *fmt, ...)
{
	char key[512];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(key, sizeof(key), fmt, ap);
	va_end(ap);
	return json_object_set_new(wanted, key, json_true()) ? -ENOMEM : 0;
}

static int save_group(const char *from, const char *to, const char *group, json_t *disks, json_t *wanted,
		      struct why *why)
{
	static const char *const of_group[] = { "name", "ring_bytes", NULL };
	static const char *const of_state[] = { "first_seq", "last_seq", NULL };
	cleanup_free char *in = NULL, *out = NULL, *conf = NULL;
	cleanup_json numbers = json_pack("{s:I}", "first_seq", (json_int_t)boot_seq(from, group));
	json_t *disk;
	size_t i;
	int err;

	if (asprintf(&in, "%s/groups/%s", from, group) < 0 || asprintf(&out, "%s/groups/%s", to, group) < 0)
		return -ENOMEM;
	if (asprintf(&conf, "%s/group.json", in) < 0 || access(conf, F_OK))
		return 0;	/* not whole: asrd does not know it either */
	err = dir_make(out, 0700, why);
	if (!err)
		err = copy_json(in, out, "group.json", of_group, NULL, why);
	if (!err)
		err = copy_json(in, out, "state.json", of_state, numbers, why);
	if (!err)
		err = want(wanted, "groups/%s/group.json", group);
	if (!err)
		err = want(wanted, "groups/%s/state.json", group);
	json_array_foreach(disks, i, disk) {
		if (!err)
			err = want(wanted, "groups/%s/disks/%s.json", group,
				   json_string_value(json_object_get(disk, "name")));
		json_object_del(disk, "checking");	/* a copy would go on saying so */
		if (!err)
			err = remember_put(to, group, disk, why);
	}
	return err;
}

static int hold(const char *to, const char *group, json_t *disks, json_t *wanted, struct why *why)
{
	char path[512], key[256];
	json_t *disk;
	size_t i;
	int err;

	snprintf(path, sizeof(path), "%.200s/hold", to);
	err = dir_make(path, 0755, why);
	json_array_foreach(disks, i, disk) {
		if (json_object_get(disk, "error") || boot_is_root(group, disk) || !boot_key(disk, key))
			continue;
		if (!err)
			err = want(wanted, "hold/%.250s", key);
		snprintf(path, sizeof(path), "%.200s/hold/%.250s", to, key);
		if (!err && access(path, F_OK))
			err = file_write(path, 0644, "", 0, why);
	}
	return err;
}

/* What is wanted is written first, and only then what is not goes: a device that is held back is so at every moment */
int boot_save(const char *from, const char *to, bool root_only, struct why *why)
{
	cleanup_json wanted = json_object();
	cleanup_json groups = NULL;
	json_t *g, *disk;
	size_t i, j;
	int err, one;

	err = remember_groups(from, &groups, why);
	json_array_foreach(groups, i, g) {
		const char *group = json_string_value(g);
		cleanup_json disks = NULL;

		one = remember_list(from, group, &disks, why);
		for (j = json_array_size(disks); j-- > 0;) {
			disk = json_array_get(disks, j);
			if (json_object_get(disk, "error") || (root_only && !boot_is_root(group, disk)))
				json_array_remove(disks, j);
		}
		if (!one && !root_only)
			one = hold(to, group, disks, wanted, why);
		if (!one && json_array_size(disks))
			one = save_group(from, to, group, disks, wanted, why);
		err = err ? err : one;
	}
	if (!err) {
		prune(to, "groups", wanted);
		prune(to, "hold", wanted);
	}
	return err;
}

void boot_mirror(const char *state_dir)
{
	struct why why = {0};
	int err;

	if (strcmp(state_dir, ASR_STATE_DIR))
		return;	/* not this host's own */
	err = boot_save(state_dir, BOOT_DIR, false, &why);
	if (err)
		fprintf(stderr, "asrctl: %s is not up to date: %s\n", BOOT_DIR, *why.text ? why.text : strerror(-err));
}
