// SPDX-License-Identifier: Apache-2.0
/*
 * asrctl discover: the virtual machines of this host, their disks, and whether asr protects them or could.
 *
 * Design. libvirt says which domains there are and what their disks are, of a running one by its live XML, which knows
 * of disks that were plugged in; the kernel's dm tables say which of those devices asr is on. What cannot be protected
 * gets a reason, and what would be right; asrctl vm protect goes by the same judgement.
 *
 * Invariants. Nothing is changed. A domain that vanishes meanwhile is left out.
 */
#include "virt.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <unistd.h>

static const char *const states[] = {
	"no state", "running", "blocked", "paused", "shutting down", "shut off", "crashed", "suspended",
};

bool domain_is_active(json_t *domain)
{
	return !json_is_null(json_object_get(domain, "id"));
}

bool domain_holds_data(json_t *disk)
{
	return strcmp(text_of(disk, "device"), "cdrom") && strcmp(text_of(disk, "device"), "floppy");
}

/* ---------------------------------------------------------------- why it cannot be protected */

static void refuse(json_t *disk, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static void refuse(json_t *disk, const char *fmt, ...)
{
	char text[1024];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	json_object_set_new(disk, "reason", json_string(text));
}

struct above {
	uint32_t major, minor;
	char name[DM_NAME_BYTES];
	struct dm_asr asr;
};

static int is_above(const struct dm_device *d, const struct dm_asr *asr, void *arg)
{
	struct above *above = arg;

	if (asr->major != above->major || asr->minor != above->minor)
		return 0;
	memcpy(above->name, d->name, sizeof(above->name));
	above->asr = *asr;
	return 1;
}

/* A device that is not dm: asr makes a new one beside it */
static void judge_plain(json_t *disk, const char *path, dev_t dev, bool active)
{
	struct above above = { .major = major(dev), .minor = minor(dev) };

	if (dm_each_asr(is_above, &above, NULL) == 1) {
		json_object_set_new(disk, "mapper", json_string(above.name));
		refuse(disk, "disk %s of group %s is /dev/mapper/%s, and the domain uses the device below it, where "
		       "no write is seen: with the domain shut off, let its XML have <source dev='/dev/mapper/%s'/>",
		       above.asr.disk, above.asr.group, above.name, above.name);
	} else if (active) {
		refuse(disk, "%s is not a device-mapper device: asr would make a new device beside it, which the "
		       "running domain does not use; shut it off, protect it, and let its XML have that device, or put "
		       "the disk on a logical volume", path);
	}
}

static void judge_block(json_t *disk, const char *path, dev_t dev, bool active)
{
	char name[DM_NAME_BYTES];
	struct why why = {0};
	struct dm_device x;
	struct dm_asr asr;

	if (!strcmp(text_of(disk, "device"), "lun")) {
		refuse(disk, "the domain sends SCSI commands of its own to a LUN, which asr cannot see: device='disk' "
		       "would be right");
		return;
	}
	if (dm_name_of(major(dev), minor(dev), name, sizeof(name))) {
		judge_plain(disk, path, dev, active);
		return;
	}
	if (dm_read(name, &x, &why)) {
		refuse(disk, "%s", why.text);
		return;
	}
	if (dm_asr_parse(&x, &asr)) {
		json_object_set_new(disk, "mapper", json_string(name));
		json_object_set_new(disk, "group", json_string(asr.group));
		json_object_set_new(disk, "disk", json_string(asr.disk));
		json_object_set(disk, "protected", json_true());
	} else if (insert_possible(&x, &why)) {
		refuse(disk, "%s", why.text);
	}
	dm_forget(&x);
}

static void judge(json_t *disk, bool active)
{
	const char *type = text_of(disk, "type"), *path = text_of(disk, "source"), *format = text_of(disk, "format");
	struct stat st;

	json_object_set(disk, "protected", json_false());
	if (!domain_holds_data(disk))
		refuse(disk, "a %s has nothing that is to be recovered", text_of(disk, "device"));
	else if (!strcmp(type, "network"))
		refuse(disk, "a network disk (%s): asr protects block devices of this host; protect it where it is "
		       "stored", text_of(disk, "protocol"));
	else if (*path != '/')
		refuse(disk, "a disk of type %s has no device on this host: a block device would be right", type);
	else if (stat(path, &st))
		refuse(disk, "%s: %s", path, strerror(errno));
	else if (S_ISBLK(st.st_mode))
		judge_block(disk, path, st.st_rdev, active);
	else
		refuse(disk, "%s is a file (%s), and asr protects block devices: move it to a logical volume (virsh "
		       "blockcopy), or protect the device that its file system is on", path, *format ? format : "raw");
}

/* ---------------------------------------------------------------------- what libvirt says */

/* A volume of a pool has its path there */
static void resolve_volume(virConnectPtr conn, json_t *disk)
{
	virStoragePoolPtr pool = virt.virStoragePoolLookupByName(conn, text_of(disk, "pool"));
	virStorageVolPtr volume = pool ? virt.virStorageVolLookupByName(pool, text_of(disk, "volume")) : NULL;
	char *path = volume ? virt.virStorageVolGetPath(volume) : NULL;

	if (path)
		json_object_set_new(disk, "source", json_string(path));
	free(path);
	if (volume)
		virt.virStorageVolFree(volume);
	if (pool)
		virt.virStoragePoolFree(pool);
}

static uint64_t device_bytes(const char *path)
{
	cleanup_fd int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	struct stat st;
	uint64_t bytes;

	return fd >= 0 && !fstat(fd, &st) && S_ISBLK(st.st_mode) && !ioctl(fd, BLKGETSIZE64, &bytes) ? bytes : 0;
}

/* What the domain sees: libvirt knows of formats */
static void add_size(virDomainPtr domain, json_t *disk)
{
	virDomainBlockInfo info = {0};
	uint64_t bytes = 0;

	if (!virt.virDomainGetBlockInfo(domain, text_of(disk, "target"), &info, 0))
		bytes = info.capacity;
	if (!bytes && *text_of(disk, "source") == '/')
		bytes = device_bytes(text_of(disk, "source"));
	json_object_set_new(disk, "bytes", bytes ? json_integer((json_int_t)bytes) : json_null());
}

static int add_disks(virConnectPtr conn, virDomainPtr domain, json_t *row, struct why *why)
{
	cleanup_free char *text = virt.virDomainGetXMLDesc(domain, 0);
	json_t *disks, *disk;
	size_t i;
	int err;

	if (!text)
		return virt.virGetLastErrorCode() == VIR_ERR_NO_DOMAIN ? -ENOENT :
			virt_error(why, "read the XML of", text_of(row, "name"));
	err = domxml_disks(text, &disks, why);
	if (err)
		return err;
	json_array_foreach(disks, i, disk) {
		if (json_object_get(disk, "volume"))
			resolve_volume(conn, disk);
		add_size(domain, disk);
		judge(disk, domain_is_active(row));
	}
	json_object_set_new(row, "disks", disks);
	return 0;
}

static int add_domain(virConnectPtr conn, virDomainPtr domain, json_t *domains, struct why *why)
{
	unsigned int id = virt.virDomainGetID(domain);
	char uuid[VIR_UUID_STRING_BUFLEN] = "";
	int state = 0, err;
	json_t *row;

	virt.virDomainGetUUIDString(domain, uuid);
	if (virt.virDomainGetState(domain, &state, NULL, 0) || state < 0 ||
	    (size_t)state >= sizeof(states) / sizeof(*states))
		state = 0;
	row = json_pack("{s:s, s:s, s:o, s:s}", "name", virt.virDomainGetName(domain), "uuid", uuid, "id",
			id == (unsigned int)-1 ? json_null() : json_integer(id), "state", states[state]);
	err = row ? add_disks(conn, domain, row, why) : -ENOMEM;
	if (err == -ENOENT && !*why->text)
		err = 0;
	else if (!err)
		json_array_append(domains, row);
	json_decref(row);
	return err;
}

/* All, or none: the names there are, for the error's text */
static int no_such(virDomainPtr *list, int count, const char *name, struct why *why)
{
	char known[256] = "";

	for (int i = 0; i < count; i++) {
		size_t n = strlen(known);

		snprintf(known + n, sizeof(known) - n, "%s%s", n ? ", " : "", virt.virDomainGetName(list[i]));
	}
	return why_set(why, ENOENT, "there is no domain %.100s; %s%s", name,
		       *known ? "there are: " : "there is none at all", known);
}

int domain_list(const char *uri, const char *name, json_t **domains, struct why *why)
{
	virDomainPtr *list = NULL;
	virConnectPtr conn;
	int err, count;

	err = virt_open(uri, &conn, why);
	if (err)
		return err;
	*domains = json_array();
	count = virt.virConnectListAllDomains(conn, &list, 0);
	if (count < 0)
		err = virt_error(why, "list the domains of", uri);
	for (int i = 0; !err && i < count; i++)
		if (!name || !strcmp(virt.virDomainGetName(list[i]), name))
			err = add_domain(conn, list[i], *domains, why);
	if (!err && name && !json_array_size(*domains))
		err = no_such(list, count, name, why);
	for (int i = 0; i < count; i++)
		virt.virDomainFree(list[i]);
	free(list);
	virt.virConnectClose(conn);
	if (err) {
		json_decref(*domains);
		*domains = NULL;
	}
	return err;
}

/* --------------------------------------------------------------------------- in a child */

static void list_to(int fd, const char *uri)
{
	struct why why = {0};
	json_t *domains = NULL;
	int err = domain_list(uri, NULL, &domains, &why);

	if (err)
		domains = json_pack("{s:i, s:s}", "errno", -err, "error", why.text);
	_exit(json_dumpfd(domains, fd, JSON_COMPACT) ? 1 : 0);
}

/* All that comes until the end of the stream; NULL: not within the time */
static char *read_all(int fd, uint64_t end)
{
	size_t used = 0, room = 65536;
	char *text = malloc(room);

	while (text) {
		uint64_t now = now_ns();
		struct pollfd p = { .fd = fd, .events = POLLIN };
		ssize_t n;

		if (now >= end || (poll(&p, 1, (int)((end - now) / 1000000) + 1) <= 0 && errno != EINTR)) {
			free(text);
			return NULL;
		}
		n = read(fd, text + used, room - used - 1);
		if (n <= 0)
			break;
		used += (size_t)n;
		if (room - used < 4096) {
			char *more = realloc(text, room *= 2);

			if (!more)
				free(text);
			text = more;
		}
	}
	if (text)
		text[used] = 0;
	return text;
}

int domain_list_within(const char *uri, uint64_t limit_ns, json_t **domains, struct why *why)
{
	cleanup_free char *text = NULL;
	int ends[2], err;
	pid_t child;

	*domains = NULL;
	if (pipe2(ends, O_CLOEXEC))
		return why_set(why, errno, "cannot make a pipe: %s", strerror(errno));
	child = fork();
	if (!child) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);	/* it has asrctl's calls to asrd open, and may hang */
		list_to(ends[1], uri);
	}
	close(ends[1]);
	if (child > 0) {
		text = read_all(ends[0], now_ns() + limit_ns);
		kill(child, SIGKILL);
		waitpid(child, NULL, 0);
	}
	close(ends[0]);
	if (child < 0)
		return why_set(why, errno, "cannot fork: %s", strerror(errno));
	*domains = text ? json_loads(text, 0, NULL) : NULL;
	if (json_is_array(*domains))
		return 0;
	err = (int)json_integer_value(json_object_get(*domains, "errno"));
	why_set(why, err ? err : ETIMEDOUT, "%s", err ? text_of(*domains, "error") : "libvirt does not answer within "
		"the time");
	json_decref(*domains);
	*domains = NULL;
	return err ? -err : -ETIMEDOUT;
}

/* ------------------------------------------------------------------------------ discover */

static json_t *flat(json_t *domains)
{
	json_t *rows = json_array(), *domain, *disk;
	size_t i, j;

	json_array_foreach(domains, i, domain) {
		json_array_foreach(json_object_get(domain, "disks"), j, disk) {
			cleanup_free char *where = NULL;
			json_t *row = json_copy(disk);

			json_object_set(row, "domain", json_object_get(domain, "name"));
			json_object_set(row, "state", json_object_get(domain, "state"));
			if (asprintf(&where, "%s/%s", text_of(disk, "group"), text_of(disk, "disk")) >= 0)
				json_object_set_new(row, "where", json_is_true(json_object_get(disk, "protected")) ?
						    json_string(where) : json_string("no"));
			json_array_append_new(rows, row);
		}
		if (!json_array_size(json_object_get(domain, "disks")))
			json_array_append_new(rows, json_pack("{s:O, s:O}", "domain", json_object_get(domain, "name"),
							      "state", json_object_get(domain, "state")));
	}
	return rows;
}

int discover_run(const struct args *a, struct why *why)
{
	static const struct col cols[] = {
		{ "DOMAIN", "domain", COL_TEXT }, { "STATE", "state", COL_TEXT }, { "TARGET", "target", COL_TEXT },
		{ "FORMAT", "format", COL_TEXT }, { "SIZE", "bytes", COL_BYTES }, { "PROTECTED", "where", COL_TEXT },
		{ "SOURCE", "source", COL_TEXT },
	};
	cleanup_json domains = NULL, *answer = NULL, *rows = NULL;
	json_t *row;
	size_t i;
	int err = domain_list(virt_uri(a), NULL, &domains, why);

	if (err)
		return err;
	answer = json_pack("{s:O}", "domains", domains);
	if (a->json) {
		out_json(answer);
		return 0;
	}
	rows = flat(domains);
	out_table(rows, cols, sizeof(cols) / sizeof(cols[0]), "no virtual machines");
	json_array_foreach(rows, i, row)
		if (*text_of(row, "reason"))
			printf("%s %s: %s\n", text_of(row, "domain"), text_of(row, "target"), text_of(row, "reason"));
	return 0;
}
