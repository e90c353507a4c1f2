// SPDX-License-Identifier: Apache-2.0
/*
 * Watches over the disks: is what is to be protected still protected?
 *
 * Design. asrctl remembers each protected disk on file (remember.c); the kernel knows which
 * disks a group has now. LVM gives a volume its own table back at nearly every command, and
 * so do people with dmsetup: asr is out then, writes go by uncaptured, and nothing fails. So
 * the two lists are compared every few seconds, and at once when the stream says that a disk
 * has left. A disk that is absent twice in a row is missing: one line in the log, with the
 * reason, and it stands in the status until it is back (`asrctl boot`) or is forgotten
 * (`asrctl disk unprotect`).
 *
 * It is only told. To put asr back is asrctl's work: it wants signals blocked, memory locked
 * and a look at the table, and LVM may be in the middle of something.
 *
 * The kernel marks a write-intent log that has failed, or whose disk went its own way, on the
 * log itself. A device that failed may not take even that, and come back with the next boot as
 * if nothing had been. So it is noted on file, too: such a log proves nothing then.
 *
 * Invariants. A disk is logged once when it goes missing and once when it is back.
 *
 * Context. The loop's thread, with group_second(); reads small files and sysfs.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "source.h"

#define LOOK_NS		3000000000ull	/* nobody notices sooner what went wrong by hand */
#define SYS_BLOCK	"/sys/block"

/* ------------------------------------------------------------- the reason */

static bool attribute_is(const char *block, const char *attribute, const char *wanted)
{
	cleanup_free char *text = NULL;
	char path[PATH_MAX];

	snprintf(path, sizeof(path), SYS_BLOCK "/%s/dm/%s", block, attribute);
	if (file_read(path, 4096, &text, NULL, NULL))
		return false;
	text[strcspn(text, "\n")] = 0;
	return !strcmp(text, wanted);
}

/* The kernel's name, dm-N, of a dm device */
static bool find_dm(const char *uuid, const char *name, char block[64])
{
	DIR *dir = opendir(SYS_BLOCK);
	struct dirent *e;
	bool found = false;

	while (dir && !found && (e = readdir(dir))) {
		if (strncmp(e->d_name, "dm-", 3) || strlen(e->d_name) >= 64)
			continue;
		found = *uuid ? attribute_is(e->d_name, "uuid", uuid) : attribute_is(e->d_name, "name", name);
		if (found)
			strcpy(block, e->d_name);
	}
	if (dir)
		closedir(dir);
	return found;
}

static void dm_name(const char *block, char *out, size_t bytes)
{
	cleanup_free char *text = NULL;
	char path[PATH_MAX];

	snprintf(path, sizeof(path), SYS_BLOCK "/%s/dm/name", block);
	snprintf(out, bytes, "%.64s", block);
	if (file_read(path, 4096, &text, NULL, NULL))
		return;
	text[strcspn(text, "\n")] = 0;
	snprintf(out, bytes, "%.130s", text);
}

/* "vda, vdb": what a device lies on */
static void list_slaves(const char *block, char *out, size_t bytes)
{
	char path[PATH_MAX];
	struct dirent *e;
	size_t n = 0;
	DIR *dir;

	snprintf(path, sizeof(path), SYS_BLOCK "/%s/slaves", block);
	dir = opendir(path);
	*out = 0;
	while (dir && (e = readdir(dir)) && n + 64 < bytes)
		if (e->d_name[0] != '.')
			n += (size_t)snprintf(out + n, bytes - n, "%s%.40s", n ? ", " : "", e->d_name);
	if (dir)
		closedir(dir);
}

static void reason_of(json_t *disk, char *out, size_t bytes)
{
	const char *name = text_of(disk, "dm_name"), *device = text_of(disk, "device");
	char block[64], now[140], slaves[200];
	struct stat st;

	if (json_object_get(disk, "error")) {
		snprintf(out, bytes, "%.400s", text_of(disk, "error"));
	} else if (!strcmp(text_of(disk, "kind"), "plain")) {
		snprintf(out, bytes, stat(device, &st) ? "%.300s is not there" :
			 "its wrapper is gone; what is written to %.300s is not captured", device);
	} else if (!find_dm(text_of(disk, "dm_uuid"), name, block)) {
		snprintf(out, bytes, "/dev/mapper/%.130s is not there: it was removed or deactivated", name);
	} else {
		dm_name(block, now, sizeof(now));
		list_slaves(block, slaves, sizeof(slaves));
		snprintf(out, bytes, "the table of /dev/mapper/%s was replaced, by LVM or by hand; it lies on %s now, "
			 "and what is written to it is not captured", now, *slaves ? slaves : "nothing");
	}
}

/* --------------------------------------------------------------- the lists */

/* 1, with info; 0: not there; -errno: nobody knows, so nothing is said */
static int find_up(const struct group *g, const char *name, struct asr_disk_info *disk)
{
	struct asr_group_info info = { .index = 0 };
	int r;

	memcpy(info.name, g->name, sizeof(info.name));
	r = source_ioctl(g->source, ASR_IOC_GROUP_INFO, &info);
	return r ? r : group_find_disk(g, &info, name, disk);
}

#define BUSY_NS		60000000000ull	/* asrctl hangs */

/* The record as it is now; asrctl waits as long as *lock is open. NULL: asrctl is at it, or it is gone */
static json_t *record_lock(struct group *g, const char *disk, int *lock)
{
	*lock = open(ASR_BOOT_LOCK, O_RDONLY | O_CLOEXEC);
	if (*lock < 0 || !flock(*lock, LOCK_EX | LOCK_NB))
		g->busy_ns = 0;
	else if (!g->busy_ns)
		g->busy_ns = now_ns();
	if (g->busy_ns && now_ns() - g->busy_ns < BUSY_NS)
		return NULL;
	return remember_find(g->d->state_dir, g->name, disk);
}

static bool record_put(const struct group *g, json_t *disk)
{
	struct why why = { "" };

	if (!remember_put(g->d->state_dir, g->name, disk, &why))
		return true;
	log_debug("%s", why.text);
	return false;
}

/* Its log is not to be believed at the next boot, whatever is in it then. What fails, the next look tries again */
static void distrust(struct group *g, json_t *seen, const char *reason)
{
	const char *name = text_of(seen, "name");
	cleanup_json disk = NULL;
	cleanup_fd int lock = -1;

	if (!json_object_get(seen, "log") || json_object_get(seen, "distrust"))
		return;
	disk = record_lock(g, name, &lock);
	if (!disk || json_object_get(disk, "error"))
		return;
	json_object_set_new(disk, "distrust", json_string(reason));
	if (record_put(g, disk))
		log_warn("group %s: disk %s: %s: all of it will be compared after the next boot", g->name, name,
			 reason);
}

bool watch_half(const struct group *g, json_t *disk)
{
	uint64_t since = remember_half(g->name, disk);

	return since && since != (uint64_t)json_integer_value(json_object_get(g->half, text_of(disk, "name")));
}

/* asrctl was stopped before it knew what was written while it put asr on the disk: anything. Made dirty once */
static void settle(struct group *g, json_t *seen, uint32_t slot)
{
	uint64_t since = remember_half(g->name, seen);
	const char *name = text_of(seen, "name");
	cleanup_json disk = NULL;
	cleanup_fd int lock = -1;

	if (!since)
		return;
	disk = record_lock(g, name, &lock);
	if (!disk || remember_half(g->name, disk) != since)
		return;
	if (watch_half(g, disk)) {
		if (flow_disk_dirty(g, slot, ASR_DIRTY_DURABLE))
			return;
		if (!g->half)
			g->half = json_object();
		json_object_set_new(g->half, name, json_integer((json_int_t)since));
		log_warn("group %s: disk %s: asrctl was stopped while it put asr on it: all of it is compared", g->name,
			 name);
	}
	remember_half_end(g->d->state_dir, g->name, disk);
}

static json_t *entry_of(json_t *rows, const char *name)
{
	json_t *row;
	size_t i;

	json_array_foreach(rows, i, row)
		if (!strcmp(text_of(row, "name"), name))
			return row;
	return NULL;
}

static void tell_lost(struct group *g, json_t *row, json_t *disk)
{
	char reason[640];

	reason_of(disk, reason, sizeof(reason));
	json_object_set_new(row, "reason", json_string(reason));
	json_object_set_new(row, "told", json_true());
	log_err("group %s: disk %s IS NOT PROTECTED any more: %s; `asrctl boot` brings it back", g->name,
		text_of(row, "name"), reason);
}

/* One disk that is on file. Its row for the new list, or NULL: it is there */
static json_t *look_at(struct group *g, json_t *disk)
{
	const char *name = text_of(disk, "name");
	json_t *row = entry_of(g->lost, name);
	struct asr_disk_info info;
	int up = find_up(g, name, &info);

	if (up) {
		if (up > 0 && json_is_true(json_object_get(row, "told")))
			log_info("group %s: disk %s is protected again", g->name, name);
		if (up > 0 && !info.log_region_sectors)
			distrust(g, disk, "it was up without its log");
		else if (up > 0 && info.log_flags & ASR_LOGF_BROKEN)
			distrust(g, disk, "its log has failed");
		if (up > 0)
			settle(g, disk, info.slot);
		return up > 0 ? NULL : json_incref(row);
	}
	if (!row)	/* it may just be on its way: tell it the next time */
		return json_pack("{s:s, s:I, s:s, s:b}", "name", name, "since_ns", (json_int_t)now_real_ns(), "reason",
				 "not looked into yet", "told", 0);
	if (!json_is_true(json_object_get(row, "told")))
		tell_lost(g, row, disk);
	distrust(g, disk, "it was up without protection");
	return json_incref(row);
}

void watch_group(struct group *g, uint64_t now)
{
	cleanup_json disks = NULL;
	json_t *rows, *row, *disk;
	size_t i;

	if (!g->source || source_is_file(g->source) || now < g->watch_ns)
		return;
	g->watch_ns = now + LOOK_NS;
	resync_let_go(g->resync);
	if (remember_list(g->d->state_dir, g->name, &disks, NULL))
		return;
	rows = json_array();
	json_array_foreach(disks, i, disk) {
		row = look_at(g, disk);
		if (row)
			json_array_append_new(rows, row);
	}
	json_decref(g->lost);
	g->lost = rows;
}

json_t *watch_missing(const struct group *g)
{
	json_t *rows = json_array(), *row, *copy;
	size_t i;

	json_array_foreach(g->lost, i, row) {
		if (!json_is_true(json_object_get(row, "told")))
			continue;
		copy = json_copy(row);
		json_object_del(copy, "told");
		json_array_append_new(rows, copy);
	}
	return rows;
}
