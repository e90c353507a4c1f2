// SPDX-License-Identifier: Apache-2.0
/*
 * asrctl group mark --consistency app: a mark at which the applications are quiet.
 *
 * Design. Scripts make the applications ready (each is called with "freeze"), the virtual machines with a disk
 * in the group and the file systems on its disks are frozen, the mark is made, all is undone in reverse (scripts
 * with "thaw"), and only when each of them was still frozen by us at its thaw is the mark declared
 * application-consistent. Mark and declaration go to the kernel directly: asrd may wait for a frozen file system
 * itself. Each is frozen by a child of its own (freezer.c): it is thawed, whatever becomes of asrctl.
 *
 * Invariants. What was begun is undone, whatever fails. Nothing is written to a file, nor a program started,
 * while something is frozen. No declaration when any step failed, or took longer than the limit.
 *
 * Context. Root.
 */
#include "asrctl.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define APP_DIR		"/etc/asr/app"		/* GROUP/: scripts that are always called */
#define MOUNTS		64
#define SCRIPTS		32
#define DISKS		256
#define GUESTS		64
#define NS		1000000000ull


struct quiet {
	const char *group, *mark;
	const struct quiet_for *all;	/* the mark is one of several hosts; NULL: of this one */
	uint64_t limit_ns;		/* of each script, and of all that is frozen */
	struct freezer parts[MOUNTS + GUESTS];	/* file systems, each with its mount point opened, then machines */
	dev_t devs[MOUNTS];			/* of the file systems */
	unsigned int mount_count, guest_count;
	dev_t hidden;			/* a file system whose mount point shows another; 0: none */
	char hidden_place[1024];
	char scripts[SCRIPTS][512];
	unsigned int script_count, called;
	char device[DM_NAME_BYTES];	/* one of the group's */
	dev_t disks[DISKS];
	unsigned int disk_count;
	char answer[128];		/* id, and of one host: seq, time */
	char whole[ASR_NAME_BYTES];	/* the mark's name in the stream */
	uint64_t begin_ns, frozen_ns;
};

/* ----------------------------------------------------------- a file system, in its child */

static int mount_ready(struct freezer *f, struct why *why)
{
	return syncfs(f->fd) ? -errno : 0;
}

static int mount_freeze(struct freezer *f, struct why *why)
{
	if (!ioctl(f->fd, FIFREEZE, 0))
		return 0;
	return errno == EBUSY ? why_set(why, EBUSY, "somebody else has frozen it") : -errno;
}

static int mount_thaw(struct freezer *f, struct why *why)
{
	return ioctl(f->fd, FITHAW, 0) ? -errno : 0;
}

static int mount_rescue(struct freezer *f, uint64_t limit_ns, struct why *why)
{
	return mount_thaw(f, why);
}

static const struct freezer_kind mount_kind = {
	.ready_word = "sync", .ready = mount_ready, .freeze = mount_freeze, .thaw = mount_thaw, .rescue = mount_rescue,
};

/* ---------------------------------------------------------------- what there is */

static int add_disk(const struct dm_device *d, const struct dm_asr *asr, void *arg)
{
	struct quiet *q = arg;

	if (strcmp(asr->group, q->group) || q->disk_count == DISKS)
		return 0;
	memcpy(q->device, d->name, sizeof(q->device));
	q->disks[q->disk_count++] = makedev(d->major, d->minor);
	return 0;
}

static int is_disk(uint32_t major, uint32_t minor, void *arg)
{
	const struct quiet *q = arg;

	for (unsigned int i = 0; i < q->disk_count; i++)
		if (q->disks[i] == makedev(major, minor))
			return 1;
	return 0;
}

/* \040 and the like, as the mount table writes them */
static void unescape(char *text)
{
	char *out = text;

	for (const char *p = text; *p; p++) {
		unsigned int c;

		if (*p == '\\' && sscanf(p + 1, "%3o", &c) == 1 && c) {
			*out++ = (char)c;
			p += 3;
		} else {
			*out++ = *p;
		}
	}
	*out = 0;
}

static int open_mount(struct quiet *q, const char *place, dev_t dev, struct why *why)
{
	struct freezer *m = &q->parts[q->mount_count];

	if (q->mount_count == MOUNTS)
		return why_set(why, E2BIG, "more than %d file systems on the disks of group %s", MOUNTS, q->group);
	*m = (struct freezer){ .kind = &mount_kind, .sock = -1 };
	snprintf(m->what, sizeof(m->what), "%s", place);
	m->fd = open(place, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (m->fd < 0)
		return why_set(why, errno, "cannot open %.200s: %s", place, strerror(errno));
	q->devs[q->mount_count++] = dev;
	return 0;
}

/* Another file system may be mounted over it: then it would be frozen in its place */
static bool is_hidden(struct quiet *q, dev_t dev)
{
	struct freezer *m = &q->parts[q->mount_count - 1];
	struct stat st;

	if (!fstat(m->fd, &st) && st.st_dev == dev)
		return false;
	close(m->fd);
	q->hidden = q->devs[--q->mount_count];
	memcpy(q->hidden_place, m->what, sizeof(q->hidden_place));
	return true;
}

static bool have_mount(const struct quiet *q, dev_t dev)
{
	for (unsigned int i = 0; i < q->mount_count; i++)
		if (q->devs[i] == dev)
			return true;
	return false;
}

static int hidden_error(const struct quiet *q, struct why *why)
{
	return why_set(why, EBUSY, "another file system is mounted over %.200s, so that it cannot be frozen; say with "
		       "--freeze which are to be", q->hidden_place);
}

/* A line of the mount table: a file system that is writable, on a disk of the group, and not yet known */
static int add_mount(struct quiet *q, const char *line, struct why *why)
{
	char place[1024], options[256], source[1024];
	const char *rest = strstr(line, " - ");
	unsigned int ma, mi;
	struct stat st;
	dev_t dev;
	int err;

	if (!rest || sscanf(line, "%*d %*d %u:%u %*s %1023s %255s", &ma, &mi, place, options) != 4 ||
	    sscanf(rest, " - %*s %1023s", source) != 1)
		return 0;
	dev = makedev(ma, mi);
	unescape(source);
	unescape(place);
	if (!ma && *source == '/' && !stat(source, &st) && S_ISBLK(st.st_mode))	/* btrfs */
		dev = st.st_rdev;
	if (!major(dev) || !strncmp(options, "ro", 2) || have_mount(q, dev) ||
	    !use_below(major(dev), minor(dev), is_disk, q))
		return 0;
	if (q->hidden && q->hidden != dev && !have_mount(q, q->hidden))
		return hidden_error(q, why);
	err = open_mount(q, place, dev, why);
	if (!err && ma)		/* a subvolume of btrfs has yet another number */
		is_hidden(q, dev);
	return err;
}

static int find_mounts(struct quiet *q, struct why *why)
{
	cleanup_file FILE *f = fopen("/proc/self/mountinfo", "re");
	char line[4096];
	int err = f ? 0 : why_set(why, errno, "cannot read /proc/self/mountinfo: %s", strerror(errno));

	while (!err && fgets(line, sizeof(line), f))
		err = add_mount(q, line, why);
	return err || !q->hidden || have_mount(q, q->hidden) ? err : hidden_error(q, why);
}

static int named_mounts(struct quiet *q, const struct args *a, struct why *why)
{
	const char *place;
	struct stat st;
	int err = 0;

	for (unsigned int i = 0; !err && (place = arg_nth(a, "freeze", i)); i++) {
		if (stat(place, &st))
			return why_set(why, errno, "cannot look at %.200s: %s", place, strerror(errno));
		if (!have_mount(q, st.st_dev))
			err = open_mount(q, place, st.st_dev, why);
	}
	return err;
}

static int add_script(struct quiet *q, const char *path, struct why *why)
{
	if (q->script_count == SCRIPTS)
		return why_set(why, E2BIG, "more than %d scripts", SCRIPTS);
	if (access(path, X_OK))
		return why_set(why, errno, "cannot run %.300s: %s", path, strerror(errno));
	snprintf(q->scripts[q->script_count++], sizeof(q->scripts[0]), "%.500s", path);
	return 0;
}

static int find_scripts(struct quiet *q, const struct args *a, struct why *why)
{
	struct dirent **names;
	char dir[512], path[800];
	const char *given;
	int err = 0, n;

	snprintf(dir, sizeof(dir), APP_DIR "/%s", q->group);
	n = scandir(dir, &names, NULL, alphasort);
	for (int i = 0; i < n; i++) {
		snprintf(path, sizeof(path), "%s/%s", dir, names[i]->d_name);
		if (!err && names[i]->d_name[0] != '.')
			err = add_script(q, path, why);
		free(names[i]);
	}
	if (n >= 0)
		free(names);
	for (unsigned int i = 0; !err && (given = arg_nth(a, "script", i)); i++)
		err = add_script(q, given, why);
	return err;
}

/* ----------------------------------------------------------------------- scripts */

static int wait_script(pid_t pid, uint64_t end, int *status)
{
	const struct timespec pause = { .tv_nsec = 10000000 };

	while (!waitpid(pid, status, WNOHANG)) {
		if (now_ns() >= end)
			return -ETIMEDOUT;
		nanosleep(&pause, NULL);
	}
	return 0;
}

static int run_script(const struct quiet *q, const char *script, const char *verb, struct why *why)
{
	char seconds[16];
	sigset_t none;
	int status = 0;
	pid_t pid;

	snprintf(seconds, sizeof(seconds), "%llu", (unsigned long long)(q->limit_ns / NS));
	pid = fork();
	if (pid < 0)
		return why_set(why, errno, "cannot start %.300s: %s", script, strerror(errno));
	if (!pid) {
		setsid();
		sigemptyset(&none);
		sigprocmask(SIG_SETMASK, &none, NULL);
		setenv("ASR_TIMEOUT", seconds, 1);
		dup2(open("/dev/null", O_RDONLY), STDIN_FILENO);
		dup2(STDERR_FILENO, STDOUT_FILENO);
		execl(script, script, verb, q->group, q->mark, (char *)NULL);
		_exit(127);
	}
	if (wait_script(pid, now_ns() + q->limit_ns, &status)) {
		kill(-pid, SIGKILL);
		waitpid(pid, &status, 0);
		return why_set(why, ETIMEDOUT, "%.300s %s did not end within %s s: killed", script, verb, seconds);
	}
	if (WIFEXITED(status) && !WEXITSTATUS(status))
		return 0;
	return why_set(why, ECANCELED, "%.300s %s failed: %s %d", script, verb, WIFEXITED(status) ? "status" : "signal",
		       WIFEXITED(status) ? WEXITSTATUS(status) : WTERMSIG(status));
}

static int scripts_freeze(struct quiet *q, struct why *why)
{
	int err = 0;

	while (!err && q->called < q->script_count)
		err = run_script(q, q->scripts[q->called++], "freeze", why);
	return err;
}

/* All that were called, also the one that failed. The first error is kept. */
static int scripts_thaw(struct quiet *q, struct why *why)
{
	struct why other = {0};
	int err = 0;

	while (q->called > 0) {
		int e = run_script(q, q->scripts[--q->called], "thaw", err ? &other : why);

		err = err ? err : e;
	}
	return err;
}

/* ------------------------------------------------------------------ freeze and thaw */

/* All virtual machines at once; what one has written then goes through the file systems of this host */
static int freeze_guests(struct quiet *q, uint64_t end, struct why *why)
{
	unsigned int i, all = q->mount_count + q->guest_count;
	int err = 0;

	for (i = q->mount_count; !err && i < all; i++)
		err = freezer_begin(&q->parts[i], why);
	for (i = q->mount_count; !err && i < all; i++)
		err = freezer_frozen(&q->parts[i], end, why);
	return err;
}

/* First all that is to be written is, then each is frozen, what was mounted later first: it may lie on the others */
static int freeze_all(struct quiet *q, struct why *why)
{
	unsigned int i, all = q->mount_count + q->guest_count;
	uint64_t end = now_ns() + q->limit_ns;
	int err = 0;

	for (i = 0; !err && i < all; i++)
		err = freezer_start(&q->parts[i], q->limit_ns, why);
	for (i = 0; !err && i < all; i++)
		err = freezer_ready(&q->parts[i], end, why);
	q->begin_ns = now_ns();
	end = q->begin_ns + q->limit_ns;
	if (!err)
		err = freeze_guests(q, end, why);
	for (i = q->mount_count; !err && i > 0; i--) {
		err = freezer_begin(&q->parts[i - 1], why);
		if (!err)
			err = freezer_frozen(&q->parts[i - 1], end, why);
	}
	return err;
}

static int thaw_all(struct quiet *q, struct why *why)
{
	unsigned int i, all = q->mount_count + q->guest_count;
	struct why other = {0};
	int err = 0, e;

	for (i = 0; i < all; i++)
		freezer_release(&q->parts[i]);
	for (i = 0; i < all; i++) {
		if (!q->parts[i].frozen)
			continue;
		e = freezer_thawed(&q->parts[i], q->limit_ns, err ? &other : why);
		err = err ? err : e;
	}
	return err;
}

/* ------------------------------------------------------------------------ the mark */

static int make_mark(struct quiet *q, struct why *why)
{
	char text[128];

	if (q->all)
		return q->all->mark(q->all, q->whole, q->answer, sizeof(q->answer), why);
	snprintf(q->whole, sizeof(q->whole), "%s", q->mark);
	snprintf(text, sizeof(text), "mark %s", q->mark);
	return dm_ask(q->device, text, q->answer, sizeof(q->answer), why);
}

static int frozen_mark(struct quiet *q, struct why *why)
{
	struct why other = {0};
	int err, e;

	mlockall(MCL_CURRENT | MCL_FUTURE);
	err = freeze_all(q, why);
	if (!err)
		err = make_mark(q, why);
	e = thaw_all(q, err ? &other : why);
	q->frozen_ns = now_ns() - q->begin_ns;
	munlockall();
	return err ? err : e;
}

/* Signals wait: whoever is asked to end undoes it first, and it does not take long */
static int quiet_mark(struct quiet *q, struct why *why)
{
	sigset_t all, before;
	struct why other = {0};
	char text[256];
	int err, e;

	sigfillset(&all);
	sigprocmask(SIG_BLOCK, &all, &before);
	err = scripts_freeze(q, why);
	if (!err)
		err = frozen_mark(q, why);
	e = scripts_thaw(q, err ? &other : why);
	err = err ? err : e;
	if (!err) {
		snprintf(text, sizeof(text), "declare %.*s %s app", (int)strcspn(q->answer, " "), q->answer, q->whole);
		err = dm_message(q->device, text, why);
	}
	sigprocmask(SIG_SETMASK, &before, NULL);
	return err;
}

static int look(struct quiet *q, const struct args *a, struct why *why)
{
	int err;

	if (arg_given(a, "freeze") && arg_given(a, "no-freeze"))
		return why_set(why, EINVAL, "--freeze and --no-freeze exclude each other");
	err = dm_each_asr(add_disk, q, why);
	if (!err && !q->disk_count)
		err = why_set(why, ENOENT, "group %s protects no disk on this host", q->group);
	if (!err)
		err = find_scripts(q, a, why);
	if (!err && arg_given(a, "freeze"))
		err = named_mounts(q, a, why);
	else if (!err && !arg_given(a, "no-freeze"))
		err = find_mounts(q, why);
	if (!err && !arg_given(a, "no-freeze"))
		err = guests_find(a, q->limit_ns, is_disk, q, &q->parts[q->mount_count], GUESTS, &q->guest_count, why);
	if (!err && !q->mount_count && !q->guest_count && !q->script_count)
		err = why_set(why, ENOENT, "nothing is to be made quiet: no file system is mounted from the disks of "
			      "group %s, no virtual machine runs from them, and there is no script in " APP_DIR "/%s",
			      q->group, q->group);
	return err;
}

int quiet_seconds(const char *limit, unsigned int *seconds, struct why *why)
{
	char *end;
	long s = strtol(limit, &end, 10);

	if (*end || s < 1 || s > APP_TIMEOUT_MAX)
		return why_set(why, EINVAL, "bad time \"%.40s\": 1 to %d seconds are right", limit, APP_TIMEOUT_MAX);
	*seconds = (unsigned int)s;
	return 0;
}

/* Those of the parts */
static json_t *names_of(const struct quiet *q, unsigned int from, unsigned int count, size_t skip)
{
	json_t *names = json_array();

	for (unsigned int i = from; i < from + count; i++)
		json_array_append_new(names, json_string(q->parts[i].what + skip));
	return names;
}

static void drop(struct quiet *q)
{
	for (unsigned int i = 0; i < q->mount_count + q->guest_count; i++) {
		if (i < q->mount_count)
			close(q->parts[i].fd);
		if (q->parts[i].sock >= 0)
			close(q->parts[i].sock);
		if (q->parts[i].child > 0)	/* one whose freeze hangs is not waited for */
			waitpid(q->parts[i].child, NULL, WNOHANG);
		free(q->parts[i].of);
	}
	free(q);
}

int quiet_run(const struct args *a, const struct quiet_for *f, json_t **answer, struct why *why)
{
	struct quiet *q;
	unsigned long long id, seq, time;
	int err;

	q = calloc(1, sizeof(*q));
	if (!q)
		return -ENOMEM;
	q->group = f->group;
	q->mark = f->name;
	q->all = f->mark ? f : NULL;
	q->limit_ns = f->seconds * NS;
	err = look(q, a, why);
	if (!err)
		err = quiet_mark(q, why);
	if (!err && !q->all && sscanf(q->answer, "%llu %llu %llu", &id, &seq, &time) != 3)
		err = why_set(why, EPROTO, "the kernel's answer is not understood: %s", q->answer);
	if (!err && !q->all)
		*answer = json_pack("{s:I, s:I, s:I, s:s, s:o, s:o, s:I}", "id", (json_int_t)id, "seq", (json_int_t)seq,
				    "time_ns", (json_int_t)time, "consistency", "app",
				    "frozen", names_of(q, 0, q->mount_count, 0),
				    "domains", names_of(q, q->mount_count, q->guest_count, strlen("domain ")),
				    "frozen_ns", q->mount_count || q->guest_count ? (json_int_t)q->frozen_ns : 0);
	drop(q);
	return err;
}
