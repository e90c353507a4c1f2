// SPDX-License-Identifier: Apache-2.0
/*
 * Device-mapper, as far as asrctl needs it.
 *
 * Design. One function for each thing done to a device, over libdevmapper,
 * which takes care of udev (and of its absence). The library's own messages
 * are kept and become part of the reason, instead of going to stderr.
 *
 * Invariants. Tables are copied with what they hold, keys of dm-crypt too, so
 * they are wiped when they are forgotten. No function suspends a device and
 * leaves it so on success: a table is swapped in by one ioctl, which suspends,
 * swaps and resumes.
 *
 * Context. asrctl, as root. Blocks on udev.
 */
#include "asrctl.h"

#include <errno.h>
#include <stdarg.h>
#include <string.h>

#include <libdevmapper.h>

static char dm_says[256];

static void keep_message(int level, const char *file, int line, int code, const char *fmt, ...)
{
	va_list ap;

	if ((level & 7) > 4)		/* less than a warning */
		return;
	va_start(ap, fmt);
	vsnprintf(dm_says, sizeof(dm_says), fmt, ap);
	va_end(ap);
}

static struct dm_task *task(int type, const char *name)
{
	struct dm_task *t;

	dm_log_with_errno_init(keep_message);
	dm_says[0] = 0;
	t = dm_task_create(type);
	if (t && name && !dm_task_set_name(t, name)) {
		dm_task_destroy(t);
		t = NULL;
	}
	return t;
}

/* Runs and destroys nothing. what: for the reason */
static int run(struct dm_task *t, const char *what, const char *name, struct why *why)
{
	int err;

	if (dm_task_run(t))
		return 0;
	err = dm_task_get_errno(t);
	if (!err)
		err = EIO;
	if (err == EACCES || err == EPERM || geteuid())
		return why_set(why, EPERM, "device-mapper wants root: cannot %s %s", what, name);
	return why_set(why, err, "cannot %s %s: %s%s%s%s", what, name, strerror(err),
		       *dm_says ? " (" : "", dm_says, *dm_says ? "); the kernel log may say more" : "");
}

static int no_task(const char *what, const char *name, struct why *why)
{
	return why_set(why, ENOMEM, "cannot %s %s: %s", what, name, *dm_says ? dm_says : "no memory");
}

/* ----------------------------------------------------------------- looking */

void dm_forget(struct dm_device *d)
{
	for (size_t i = 0; i < d->count; i++) {
		if (d->targets[i].params)
			explicit_bzero(d->targets[i].params, strlen(d->targets[i].params));
		free(d->targets[i].params);
		free(d->targets[i].type);
	}
	free(d->targets);
	*d = (struct dm_device){0};
}

static int add_target(struct dm_device *d, uint64_t start, uint64_t length, const char *type, const char *params)
{
	struct dm_target *t = reallocarray(d->targets, d->count + 1, sizeof(*t));

	if (!t)
		return -ENOMEM;
	d->targets = t;
	t = &d->targets[d->count++];
	*t = (struct dm_target){ start, length, strdup(type), strdup(params) };
	d->sectors = start + length;
	return t->type && t->params ? 0 : -ENOMEM;
}

static void put_info(struct dm_device *d, struct dm_task *t, const struct dm_info *info)
{
	const char *name = dm_task_get_name(t), *uuid = dm_task_get_uuid(t);

	snprintf(d->name, sizeof(d->name), "%s", name ? name : "");
	snprintf(d->uuid, sizeof(d->uuid), "%s", uuid ? uuid : "");
	d->major = info->major;
	d->minor = info->minor;
	d->open_count = info->open_count;
	d->suspended = info->suspended;
	d->read_only = info->read_only;
	d->inactive = info->inactive_table;
}

int dm_read(const char *name, struct dm_device *d, struct why *why)
{
	struct dm_task *t = task(DM_DEVICE_TABLE, name);
	char *type, *params;
	struct dm_info info;
	uint64_t start, length;
	void *next = NULL;
	int err;

	*d = (struct dm_device){0};
	if (!t)
		return no_task("read the table of", name, why);
	dm_task_secure_data(t);
	err = run(t, "read the table of", name, why);
	if (!err && (!dm_task_get_info(t, &info) || !info.exists))
		err = why_set(why, ENXIO, "there is no device-mapper device %s", name);
	if (!err)
		put_info(d, t, &info);
	while (!err && info.live_table) {
		next = dm_get_next_target(t, next, &start, &length, &type, &params);
		if (!type)
			break;
		err = add_target(d, start, length, type, params);
		if (!next)
			break;
	}
	dm_task_destroy(t);
	if (err)
		dm_forget(d);
	return err;
}

int dm_name_of(uint32_t major, uint32_t minor, char *name, size_t bytes)
{
	cleanup_free char *text = NULL;
	char path[64];

	snprintf(path, sizeof(path), "/sys/dev/block/%u:%u/dm/name", major, minor);
	if (file_read(path, 4096, &text, NULL, NULL))
		return -ENXIO;
	text[strcspn(text, "\n")] = 0;
	if (!*text || strlen(text) >= bytes)
		return -ENXIO;
	strcpy(name, text);
	return 0;
}

int dm_names(char ***names, size_t *count, struct why *why)
{
	struct dm_task *t = task(DM_DEVICE_LIST, NULL);
	struct dm_names *n;
	int err;

	*names = NULL;
	*count = 0;
	if (!t)
		return no_task("list", "devices", why);
	err = run(t, "list", "device-mapper devices", why);
	n = err ? NULL : dm_task_get_names(t);
	while (n && n->dev) {
		char **more = reallocarray(*names, *count + 1, sizeof(**names));

		if (!more) {
			err = -ENOMEM;
			break;
		}
		*names = more;
		(*names)[*count] = strdup(n->name);
		if ((*names)[*count])
			++*count;
		n = n->next ? (struct dm_names *)((char *)n + n->next) : NULL;
	}
	dm_task_destroy(t);
	return err;
}

int dm_have_target(const char *type)
{
	struct dm_task *t = task(DM_DEVICE_LIST_VERSIONS, NULL);
	struct dm_versions *v, *last;
	int found;

	if (!t)
		return -ENOMEM;
	found = run(t, "list", "targets", NULL);
	if (!found) {
		v = dm_task_get_versions(t);
		do {
			last = v;
			found |= !strcmp(v->name, type);
			v = (struct dm_versions *)((char *)v + v->next);
		} while (last != v);
	}
	dm_task_destroy(t);
	return found;
}

bool dm_asr_parse(const struct dm_device *d, struct dm_asr *asr)
{
	const char *log;

	*asr = (struct dm_asr){0};
	if (d->count != 1 || strcmp(d->targets[0].type, "asr") ||
	    sscanf(d->targets[0].params, "%u:%u %*u %63s %63s", &asr->major, &asr->minor, asr->group, asr->disk) != 4)
		return false;
	log = strstr(d->targets[0].params, " log ");
	if (log && sscanf(log, " log %u:%u", &asr->log_major, &asr->log_minor) != 2)
		asr->log_major = asr->log_minor = 0;
	return true;
}

int dm_each_asr(int (*fn)(const struct dm_device *d, const struct dm_asr *asr, void *arg), void *arg,
		struct why *why)
{
	struct dm_device d;
	struct dm_asr asr;
	char **names;
	size_t count;
	int err;

	err = dm_names(&names, &count, why);
	for (size_t i = 0; i < count; i++) {
		if (!err && !dm_read(names[i], &d, NULL)) {
			if (dm_asr_parse(&d, &asr))
				err = fn(&d, &asr, arg);
			dm_forget(&d);
		}
		free(names[i]);
	}
	free(names);
	return err;
}

static int search_one(const struct dm_device *d, const struct dm_asr *asr, void *arg)
{
	struct dm_search *s = arg;

	if (strcmp(asr->disk, s->disk) || (s->group && strcmp(asr->group, s->group)))
		return 0;
	s->found++;
	strcpy(s->name, d->name);
	s->asr = *asr;
	return 0;
}

int dm_find_asr(struct dm_search *s, struct why *why)
{
	s->found = 0;
	return dm_each_asr(search_one, s, why);
}

int dm_find_uuid(const char *uuid, char name[DM_NAME_BYTES])
{
	struct dm_device d;
	char **names;
	size_t count;
	int err = dm_names(&names, &count, NULL);

	*name = 0;
	for (size_t i = 0; i < count; i++) {
		if (!err && !*name && !dm_read(names[i], &d, NULL)) {
			if (!strcmp(d.uuid, uuid))
				strcpy(name, d.name);
			dm_forget(&d);
		}
		free(names[i]);
	}
	free(names);
	return err ? err : *name ? 0 : -ENXIO;
}

/* ---------------------------------------------------------------- changing */

static int put_table(struct dm_task *t, const struct dm_device *table)
{
	dm_task_secure_data(t);
	if (table->read_only && !dm_task_set_ro(t))
		return -ENOMEM;
	for (size_t i = 0; i < table->count; i++)
		if (!dm_task_add_target(t, table->targets[i].start, table->targets[i].length,
					table->targets[i].type, table->targets[i].params))
			return -ENOMEM;
	return 0;
}

/* Runs, and waits until udev has done its part. */
static int run_udev(struct dm_task *t, uint16_t flags, const char *what, const char *name, struct why *why)
{
	uint32_t cookie = 0;
	int err;

	if (!dm_task_set_cookie(t, &cookie, flags))
		return why_set(why, EIO, "cannot %s %s: no udev cookie (%s)", what, name, dm_says);
	err = run(t, what, name, why);
	dm_udev_wait(cookie);
	return err;
}

int dm_create(const char *name, const char *uuid, const struct dm_device *table, struct dm_device *made,
	      struct why *why)
{
	/* nobody should look for file systems or volume groups on it */
	uint16_t flags = *uuid ? DM_UDEV_DISABLE_SUBSYSTEM_RULES_FLAG | DM_UDEV_DISABLE_DISK_RULES_FLAG |
				 DM_UDEV_DISABLE_OTHER_RULES_FLAG : 0;
	struct dm_task *t = task(DM_DEVICE_CREATE, name);
	int err = 0;

	if (!t || !dm_task_set_uuid(t, uuid) || put_table(t, table))
		err = no_task("create", name, why);
	if (!err)
		err = run_udev(t, flags, "create", name, why);
	if (t)
		dm_task_destroy(t);
	return err || !made ? err : dm_read(name, made, why);
}

int dm_load(const char *name, const struct dm_device *table, struct why *why)
{
	struct dm_task *t = task(DM_DEVICE_RELOAD, name);
	int err = 0;

	if (!t || put_table(t, table))
		err = no_task("load a table into", name, why);
	if (!err)
		err = run(t, "load a table into", name, why);
	if (t)
		dm_task_destroy(t);
	return err;
}

int dm_resume(const char *name, struct why *why)
{
	struct dm_task *t = task(DM_DEVICE_RESUME, name);
	int err;

	if (!t)
		return no_task("resume", name, why);
	err = run_udev(t, 0, "swap the table of", name, why);
	dm_task_destroy(t);
	return err;
}

static int remove_one(const char *name, bool deferred, struct why *why)
{
	struct dm_task *t = task(DM_DEVICE_REMOVE, name);
	int err;

	if (!t)
		return no_task("remove", name, why);
	if (deferred)
		dm_task_deferred_remove(t);
	else
		dm_task_retry_remove(t);
	err = run_udev(t, 0, "remove", name, why);
	dm_task_destroy(t);
	return err;
}

int dm_remove(const char *name, struct why *why)
{
	int err = remove_one(name, false, why);

	return err == -EBUSY ? remove_one(name, true, why) : err;
}

int dm_ask(const char *name, const char *text, char *answer, size_t bytes, struct why *why)
{
	struct dm_task *t = task(DM_DEVICE_TARGET_MSG, name);
	const char *said;
	int err = 0;

	if (!t || !dm_task_set_sector(t, 0) || !dm_task_set_message(t, text))
		err = no_task("tell", name, why);
	if (!err)
		err = run(t, "tell", name, why);
	if (!err && answer) {
		said = dm_task_get_message_response(t);
		snprintf(answer, bytes, "%s", said ? said : "");
	}
	if (t)
		dm_task_destroy(t);
	return err;
}

int dm_message(const char *name, const char *text, struct why *why)
{
	return dm_ask(name, text, NULL, 0, why);
}
