// SPDX-License-Identifier: Apache-2.0
/*
 * nbdkit-asr-plugin: the disks of a group at a point, over NBD.
 *
 *   nbdkit asr vault=DIR group=G point=P key=KEY.pem [disk=D] [cert=CERT.pem]
 *              [passphrase=PASS|-|+FILE] [cache=64M] [report=FILE]
 *
 * Design: read-only; `--filter=cow` gives a writable view. Works on a vault's
 * folder, or a bare copy of a group's, with no daemon. The folder's index is
 * read once, and the point is looked up in it for each disk, so all disks are
 * of one moment, however the vault goes on. An export's name is that of a disk;
 * with disk=, or when there is one only, the empty name is that disk, too.
 * Group, point, key and disks are checked before nbdkit says that it is ready;
 * a disk's history is walked when it is first connected to.
 *
 * Invariants: a damaged frame is an I/O error, and its place is in the log.
 *
 * Locks: lock, over images being opened; walks change the index, so there is
 * one at a time, and image_open is the only thing done under it.
 */
#include "../vault.h"

#include <errno.h>
#include <pthread.h>
#include <string.h>

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#define PEM_MAX		262144
#define PASSPHRASE_MAX	4096
#define THREAD_MODEL	NBDKIT_THREAD_MODEL_PARALLEL

static struct {
	char *vault, *group, *point, *disk, *report, *key, *cert, *passphrase;
	uint64_t cache;
} set = { .cache = 64 << 20 };

struct export {
	char name[2 * ASR_NAME_BYTES];
	struct view *view;
	struct image *image;		/* NULL: nobody was here yet */
};

static struct index *ix;
static struct export *exports;
static size_t count;
static bool broken;			/* a walk failed, and may have left half an index */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

/* ------------------------------------------------------------------ settings */

static int secret_read(const char *path, char **text)
{
	struct why why;

	secret_free(*text);
	*text = NULL;
	if (!file_read_secret(path, PEM_MAX, text, &why))
		return 0;
	nbdkit_error("%s", why.text);
	return -1;
}

static int passphrase_read(const char *value)
{
	char *pass = NULL;
	size_t bytes;

	if (nbdkit_read_password(value, &pass) < 0)
		return -1;
	bytes = strlen(pass);
	if (bytes < PASSPHRASE_MAX) {
		secret_free(set.passphrase);
		set.passphrase = secret_alloc(bytes + 1);
		if (set.passphrase)
			memcpy(set.passphrase, pass, bytes + 1);
	}
	explicit_bzero(pass, bytes);
	free(pass);
	if (!set.passphrase)
		nbdkit_error("the passphrase is too long, or memory is out");
	return set.passphrase ? 0 : -1;
}

static int config(const char *key, const char *value)
{
	const struct { const char *key; char **to; } texts[] = {
		{ "vault", &set.vault }, { "report", &set.report }, { "group", &set.group }, { "point", &set.point },
		{ "disk", &set.disk },
	};
	int64_t bytes;

	if (!strcmp(key, "key"))
		return secret_read(value, &set.key);
	if (!strcmp(key, "cert"))
		return secret_read(value, &set.cert);
	if (!strcmp(key, "passphrase"))
		return passphrase_read(value);
	if (!strcmp(key, "cache")) {
		bytes = nbdkit_parse_size(value);
		if (bytes < 0)
			return -1;
		set.cache = (uint64_t)bytes;
		return 0;
	}
	for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
		if (strcmp(key, texts[i].key))
			continue;
		free(*texts[i].to);
		*texts[i].to = i > 1 ? strdup(value) : nbdkit_absolute_path(value);
		return *texts[i].to ? 0 : -1;
	}
	nbdkit_error("unknown parameter \"%s\": vault, group, point, disk, key, cert, passphrase, cache and report are "
		     "known", key);
	return -1;
}

static int config_complete(void)
{
	if (set.point && !strncmp(set.point, "host:", 5) && !set.disk) {
		nbdkit_error("point=%s: host: is of one host alone, so say which disk=", set.point);
		return -1;
	}
	if (set.vault && set.point && set.key)
		return 0;
	nbdkit_error("vault=DIR, point=POINT and key=KEY.pem are needed, and group=GROUP unless the folder is a "
		     "group's");
	return -1;
}

/* ------------------------------------------------------------------- exports */

/* -ENOENT: it was not there at the point */
static int export_add(const char *name, struct why *why)
{
	const struct view_args a = { name, set.point, set.key, set.cert, set.passphrase };
	struct export *more = reallocarray(exports, count + 1, sizeof(*more));
	int ret;

	if (!more)
		return why_set(why, ENOMEM, "out of memory");
	exports = more;
	more[count] = (struct export){ .view = NULL };
	snprintf(more[count].name, sizeof(more[count].name), "%s", name);
	ret = view_open(ix, &a, &more[count].view, why);
	count += !ret;
	return ret;
}

/* All that there were at the point */
static int exports_all(struct why *why)
{
	cleanup_json names = view_names(ix);
	struct why none = { "" };
	const char *name;
	json_t *v;
	int ret = names ? 0 : why_set(why, ENOMEM, "out of memory"), last = 0;

	if (names && !json_object_size(names))
		return why_set(why, ENOENT, "group %s has had no disk yet", ix->name);
	json_object_foreach(names, name, v) {
		ret = export_add(name, why);
		if (ret && ret != -ENOENT)
			return ret;
		if (ret) {
			none = *why;
			last = ret;
		}
	}
	if (count || !last)
		return count ? 0 : ret;
	*why = none;
	return last;
}

/* For who has started nbdkit: which disks, of which moment */
static int report(struct why *why)
{
	cleanup_json list = json_array(), *all = NULL;
	cleanup_free char *text = NULL;
	char when[40];

	if (!set.report)
		return 0;
	for (size_t i = 0; i < count; i++) {
		const struct point *p = view_point(exports[i].view);

		json_array_append_new(list, json_pack("{s:s, s:I, s:I, s:s, s:s}", "disk", exports[i].name, "bytes",
			(json_int_t)view_sectors(exports[i].view) * 512, "seq", (json_int_t)p->seq, "time",
			time_format(p->time_ns, when), "mark", p->name));
	}
	all = json_pack("{s:s, s:O}", "group", ix->name, "disks", list);
	text = json_dumps(all, JSON_COMPACT);
	return text ? file_write(set.report, 0600, text, strlen(text), why) : -ENOMEM;
}

static int get_ready(void)
{
	struct why why = { "" };
	int ret;

	log_init("nbdkit-asr", LOG_LVL_WARN);
	ret = index_open(set.vault, set.group, &ix, &why);
	if (!ret)
		ret = set.disk ? export_add(set.disk, &why) : exports_all(&why);
	if (!ret)
		ret = report(&why);
	secret_free(set.key);	/* the views have what they need of it */
	secret_free(set.passphrase);
	set.key = set.passphrase = NULL;
	if (!ret)
		return 0;
	nbdkit_error("%s", why.text[0] ? why.text : strerror(-ret));
	return -1;
}

static void unload(void)
{
	for (size_t i = 0; i < count; i++) {
		image_close(exports[i].image);
		view_close(exports[i].view);
	}
	free(exports);
	index_close(ix);
	secret_free(set.key);
	secret_free(set.cert);
	secret_free(set.passphrase);
	free(set.vault);
	free(set.group);
	free(set.point);
	free(set.disk);
	free(set.report);
}

static int list_exports(int readonly, int is_tls, struct nbdkit_exports *list)
{
	char text[120], when[40];

	for (size_t i = 0; i < count; i++) {
		const struct point *p = view_point(exports[i].view);

		snprintf(text, sizeof(text), "at %s, seq %llu", time_format(p->time_ns, when),
			 (unsigned long long)p->seq);
		if (nbdkit_add_export(list, exports[i].name, text) < 0)
			return -1;
	}
	return 0;
}

static const char *default_export(int readonly, int is_tls)
{
	return count == 1 ? exports[0].name : NULL;
}

static void *open_export(int readonly)
{
	const char *name = nbdkit_export_name();
	struct export *e = count == 1 && (!name || !*name) ? exports : NULL;
	struct why why = { "" };
	int ret = 0;

	for (size_t i = 0; i < count && !e && name; i++)
		if (!strcmp(exports[i].name, name))
			e = &exports[i];
	if (!e) {
		nbdkit_error("no disk \"%s\" here: nbdinfo --list has those there are", name ? name : "");
		return NULL;
	}
	pthread_mutex_lock(&lock);
	if (!e->image && broken)
		ret = why_set(&why, EIO, "a walk has failed before: what is in memory is not to be believed any more");
	else if (!e->image)
		ret = image_open(e->view, set.cache, &e->image, &why);
	broken |= ret != 0;
	pthread_mutex_unlock(&lock);
	if (!ret)
		return e;
	nbdkit_error("%s: %s", e->name, why.text[0] ? why.text : strerror(-ret));
	return NULL;
}

/* ------------------------------------------------------------------- requests */

static int64_t get_size(void *handle)
{
	const struct export *e = handle;

	return (int64_t)(view_sectors(e->view) * 512);
}

static int always(void *handle)
{
	return 1;
}

static int block_size(void *handle, uint32_t *least, uint32_t *best, uint32_t *most)
{
	*least = 1;
	*best = 4096;
	*most = UINT32_MAX;
	return 0;
}

static int pread_(void *handle, void *buf, uint32_t bytes, uint64_t offset, uint32_t flags)
{
	struct export *e = handle;
	struct why why = { "" };
	int ret = image_read(e->image, buf, bytes, offset, &why);

	if (!ret)
		return 0;
	nbdkit_error("%s: %s", e->name, why.text[0] ? why.text : strerror(-ret));
	nbdkit_set_error(ret == -ENOMEM ? ENOMEM : EIO);
	return -1;
}

static int extents(void *handle, uint32_t bytes, uint64_t offset, uint32_t flags, struct nbdkit_extents *list)
{
	const struct export *e = handle;
	uint64_t end = offset + bytes, run;

	for (; offset < end; offset += run) {
		bool data = image_extent(e->image, offset, end - offset, &run);

		if (nbdkit_add_extent(list, offset, run, data ? 0 : NBDKIT_EXTENT_HOLE | NBDKIT_EXTENT_ZERO) < 0)
			return -1;
		if (flags & NBDKIT_FLAG_REQ_ONE)
			break;
	}
	return 0;
}

static struct nbdkit_plugin plugin = {
	.name = "asr",
	.longname = "dm-asr: disks of a group at a recovery point",
	.version = ASR_VERSION,
	.config = config,
	.config_complete = config_complete,
	.config_help = "vault=DIR        the vault's folder, or a copy of a group's\n"
		       "group=GROUP      its name or uuid; not needed with a group's folder\n"
		       "point=POINT      latest, seq:N, time:RFC3339 or name:MARK; host: before it\n"
		       "key=KEY.pem      private key of a recipient of the group\n"
		       "cert=CERT.pem    that recipient's certificate [tries all]\n"
		       "passphrase=PASS  of the key; - asks, +FILE reads a file\n"
		       "disk=[HOST/]DISK only this one [all: their names are those of the exports]\n"
		       "cache=SIZE       memory for opened frames of each disk [64M]\n"
		       "report=FILE      written when all is well: its disks and their points, as JSON",
	.magic_config_key = "vault",
	.get_ready = get_ready,
	.unload = unload,
	.list_exports = list_exports,
	.default_export = default_export,
	.open = open_export,
	.get_size = get_size,
	.block_size = block_size,
	.can_multi_conn = always,
	.can_extents = always,
	.pread = pread_,
	.extents = extents,
};

NBDKIT_REGISTER_PLUGIN(plugin)
