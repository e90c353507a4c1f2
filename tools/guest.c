// SPDX-License-Identifier: Apache-2.0
/*
 * The virtual machines of an application-consistent mark: which they are, and how one is frozen.
 *
 * Design. A running domain with a disk that lies on a disk of the group, itself or as a file, is frozen through its
 * guest agent: the guest's own hooks make its applications quiet, then its file systems are frozen. Each has a child of
 * its own (freezer.c), with a connection of its own.
 *
 * The agent gets no time limit of libvirt's: a freeze that comes to an end after libvirt has given it up would leave
 * the guest frozen, and nobody to thaw it. asrctl gives up waiting; the child does not, and thaws. Nor does the child
 * give up thawing: until the agent has done it, or that run of the domain is over, through restarts of libvirtd.
 *
 * The agent counts the file systems that it froze and thawed. Fewer thawed than frozen: somebody else thawed the guest,
 * or it was reset, and it was not quiet until the end.
 *
 * Invariants. asrctl itself, which has file systems frozen, never waits for libvirt.
 */
#include "virt.h"

#include <errno.h>
#include <glob.h>
#include <string.h>
#include <sys/sysmacros.h>
#include <time.h>
#include <unistd.h>

#define RUNNING		"/run/libvirt/qemu/*.xml"	/* libvirtd's own notes of running domains; they outlive it */

/* ------------------------------------------------------------------------ in the child */

static int guest_open(struct guest *g, struct why *why)
{
	int err = virt_open(g->uri, &g->conn, why);

	if (err)
		return err;
	g->domain = virt.virDomainLookupByUUIDString(g->conn, g->uuid);
	if (g->domain && virt.virDomainGetID(g->domain) == g->id)
		return 0;
	/* of a connection that breaks nothing is known */
	err = g->domain || virt.virGetLastErrorCode() == VIR_ERR_NO_DOMAIN ? ESRCH : EIO;
	return why_set(why, err, err == ESRCH ? "it is no longer running" : "%.200s", virt.virGetLastErrorMessage());
}

static void guest_close(struct guest *g)
{
	if (g->domain)
		virt.virDomainFree(g->domain);
	if (g->conn)
		virt.virConnectClose(g->conn);
	g->domain = NULL;
	g->conn = NULL;
}

static int guest_ready(struct freezer *f, struct why *why)
{
	return guest_open(f->of, why);
}

static int guest_freeze(struct freezer *f, struct why *why)
{
	struct guest *g = f->of;

	g->frozen = virt.virDomainFSFreeze(g->domain, NULL, 0, 0);
	if (g->frozen < 0) {
		why_set(why, EIO, "%.240s", virt.virGetLastErrorMessage());
		/* an agent that says no has frozen nothing; of one that is gone, or a libvirtd, that is not known */
		g->unsure = virt.virGetLastErrorCode() == VIR_ERR_AGENT_UNRESPONSIVE ||
			virt.virConnectIsAlive(g->conn) != 1;
		return -EIO;
	}
	if (g->frozen)
		return 0;
	return why_set(why, ENOENT, "its agent found no file system that it could freeze");
}

/* Until it is done, or its run is over, or the time: file systems thawed, or -errno */
static int thaw_until(struct guest *g, uint64_t end, struct why *why)
{
	const struct timespec pause = { .tv_sec = 1 };
	int n = -1, err = 0;

	for (;;) {
		if (!err)
			n = virt.virDomainFSThaw(g->domain, NULL, 0, 0);
		if (n >= 0)
			return n;
		if (now_ns() >= end)
			return why_set(why, ETIMEDOUT, "%.240s", virt.virGetLastErrorMessage());
		nanosleep(&pause, NULL);
		guest_close(g);
		err = guest_open(g, why);
		if (err == -ESRCH)
			return err;
	}
}

static int guest_thaw(struct freezer *f, struct why *why)
{
	struct guest *g = f->of;
	int n = thaw_until(g, UINT64_MAX, why);

	if (n < 0 || n >= g->frozen)
		return n < 0 ? n : 0;
	return why_set(why, ECANCELED, "%d file systems were frozen, %d of them until now", g->frozen, n);
}

static void guest_unsure(struct freezer *f, uint64_t limit_ns)
{
	struct guest *g = f->of;

	if (g->unsure)
		thaw_until(g, now_ns() + limit_ns, NULL);
}

/* ---------------------------------------------------------------------------- in asrctl */

static int rescuer_ready(struct freezer *f, struct why *why)
{
	int err = guest_open(f->of, why);

	return err ? err : guest_thaw(f, why);
}

static const struct freezer_kind rescuer = { .ready_word = "thaw", .ready = rescuer_ready };

/* A new child for the one that was killed */
static int guest_rescue(struct freezer *f, uint64_t limit_ns, struct why *why)
{
	struct freezer rescue = *f;
	int err;

	rescue.kind = &rescuer;
	err = freezer_start(&rescue, limit_ns, why);
	if (!err) {
		err = freezer_ready(&rescue, now_ns() + limit_ns, why);
		close(rescue.sock);
	}
	return err;
}

static const struct freezer_kind guest_kind = {
	.ready_word = "look at", .ready = guest_ready, .freeze = guest_freeze, .thaw = guest_thaw,
	.unsure = guest_unsure, .rescue = guest_rescue,
};

static bool lies_in_group(json_t *domain, use_fn *is_disk, void *arg)
{
	json_t *disk;
	size_t i;

	json_array_foreach(json_object_get(domain, "disks"), i, disk) {
		const char *path = text_of(disk, "source");
		dev_t dev = *path == '/' ? use_device_of(path) : 0;

		if (domain_holds_data(disk) && major(dev) && use_below(major(dev), minor(dev), is_disk, arg))
			return true;
	}
	return false;
}

static int add_guest(struct freezer *f, const char *uri, json_t *domain, struct why *why)
{
	const char *name = text_of(domain, "name"), *state = text_of(domain, "state");
	struct guest *g;

	if (strcmp(state, "running") && strcmp(state, "blocked"))
		return why_set(why, EBUSY, "domain %.100s is %s, and its guest agent cannot answer: resume it, or "
			       "shut it off", name, state);
	g = calloc(1, sizeof(*g));
	if (!g)
		return -ENOMEM;
	g->uri = uri;
	g->id = (unsigned int)json_integer_value(json_object_get(domain, "id"));
	snprintf(g->uuid, sizeof(g->uuid), "%s", text_of(domain, "uuid"));
	*f = (struct freezer){ .kind = &guest_kind, .of = g, .sock = -1 };
	snprintf(f->what, sizeof(f->what), "domain %.200s", name);
	return 0;
}

/* No libvirt, or none that answers and no trace of a running domain: there is none */
static bool none_runs(const char *given, int err)
{
	glob_t found;
	bool none;

	if (given || (err != -ENOENT && err != -ECONNREFUSED))
		return false;
	none = err == -ENOENT || glob(RUNNING, 0, NULL, &found) == GLOB_NOMATCH;
	if (err != -ENOENT)
		globfree(&found);
	return none;
}

int guests_find(const struct args *a, uint64_t limit_ns, use_fn *is_disk, void *arg, struct freezer *to,
		unsigned int room, unsigned int *count, struct why *why)
{
	cleanup_json domains = NULL;
	json_t *domain;
	size_t i;
	int err;

	*count = 0;
	err = domain_list_within(virt_uri(a), limit_ns, &domains, why);
	if (err && none_runs(arg_value(a, "connect", NULL), err))
		return 0;
	json_array_foreach(domains, i, domain) {
		if (err || !domain_is_active(domain) || !lies_in_group(domain, is_disk, arg))
			continue;
		if (*count == room)
			return why_set(why, E2BIG, "more than %u virtual machines with disks in the group", room);
		err = add_guest(&to[*count], virt_uri(a), domain, why);
		*count += !err;
	}
	return err;
}
