// SPDX-License-Identifier: Apache-2.0
/*
 * asr-faults - every call of door 1 and of dm, with each of its allocations failing once.
 *
 *   asr-faults GROUP DM-NAME DEVICE SECTORS [OPTION...]
 *
 * Design
 *   The kernel fails the n-th allocation of a task that wrote n to its fail-nth
 *   (Documentation/fault-injection). So each step is done with n = 1, 2, 3, ...
 *   until it ends before its n-th allocation: then all of them have failed once,
 *   those of the rare branches included.
 *   A step that fails must say so with an errno that means memory, and leave all
 *   as it was: the same step then succeeds. A step that succeeds all the same is
 *   undone. OPTIONs are words of the table line.
 * Context: tests, in a guest with the debug kernel, as root; failslab and
 *   fail_page_alloc are set up by the caller; GROUP does not exist.
 * Not done: allocations of other tasks (work queues).
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <linux/dm-ioctl.h>
#include <linux/fs.h>
#include <sys/sysmacros.h>

#include "consume.h"

static const char *group, *name, *lower;
static uint64_t sectors;
static char options[1024];
static int ctl, dm, nth_fd;
static int member = -1;		/* the consumer's file, attached */
static uint64_t ring_used;	/* by others, before */
static int dev = -1;		/* the mapped device, O_DIRECT */
static void *page;

struct step {
	const char *name;
	int (*run)(void);	/* 0 or -errno */
	void (*undo)(void);	/* after a success that is not the last one; NULL: there is one only */
	void (*gone)(void);	/* after a failure: nothing of it is left */
};

/* ------------------------------------------------------------------- dm */

static struct dm_ioctl *request(uint32_t flags)
{
	static char buf[65536] __attribute__((aligned(8)));
	struct dm_ioctl *d = (void *)buf;

	memset(buf, 0, sizeof(buf));
	d->version[0] = DM_VERSION_MAJOR;
	d->data_size = sizeof(buf);
	d->data_start = sizeof(*d);
	d->flags = flags;
	snprintf(d->name, sizeof(d->name), "%s", name);
	return d;
}

static int simple(unsigned long cmd, uint32_t flags)
{
	return call(dm, cmd, request(flags));
}

static int load_sectors(uint64_t n)
{
	struct dm_ioctl *d = request(0);
	struct dm_target_spec *t = (void *)((char *)d + d->data_start);

	d->target_count = 1;
	t->length = n;
	strcpy(t->target_type, "asr");
	snprintf((char *)(t + 1), 2048, "%s 0 %s %s%s", lower, group, name, options);
	return call(dm, DM_TABLE_LOAD, d);
}

static int message(const char *text)
{
	struct dm_ioctl *d = request(0);
	struct dm_target_msg *m = (void *)((char *)d + d->data_start);

	strcpy(m->message, text);
	return call(dm, DM_TARGET_MSG, d);
}

/* ---------------------------------------------------------------- checks */

static struct asr_info totals(void)
{
	struct asr_info i;

	if (call(ctl, ASR_IOC_GET_INFO, &i))
		die("GET_INFO");
	return i;
}

static int group_exists(void)
{
	struct asr_group_info i = { .index = 0 };

	set_name(i.name, group);
	return !call(ctl, ASR_IOC_GROUP_INFO, &i);
}

static void no_group(void)
{
	if (group_exists() || totals().ring_bytes_used != ring_used)
		die("a group that could not be made is there all the same");
}

static void no_attachment(void)
{
	if (group_info(ctl, group).attached)
		die("attached, and refused");
}

static void no_device(void)
{
	if (!simple(DM_DEV_STATUS, 0))
		die("a device that could not be made is there all the same");
}

static void no_disk(void)
{
	if (group_info(ctl, group).disks)
		die("a disk of a table that was refused is there all the same");
}

/* ----------------------------------------------------------------- steps */

static int create_group(void)
{
	struct asr_group_create c = { .ring_bytes = 4 << 20 };

	set_name(c.name, group);
	return call(ctl, ASR_IOC_GROUP_CREATE, &c);
}

static int delete_group(void)
{
	struct asr_group_name n = { "" };

	set_name(n.name, group);
	return call(ctl, ASR_IOC_GROUP_DELETE, &n);
}

static void undo_group(void)
{
	if (delete_group())
		die("cannot delete the group");
	no_group();
}

static int open_ctl(void)
{
	member = open("/dev/" ASR_DEVICE_NAME, O_RDWR | O_CLOEXEC);
	return member < 0 ? -errno : 0;
}

static void undo_open(void)
{
	close(member);
	member = -1;
}

static int attach(void)
{
	struct asr_attach a = { .flags = 0 };

	set_name(a.name, group);
	return call(member, ASR_IOC_ATTACH, &a);
}

static void undo_attach(void)
{
	undo_open();
	if (open_ctl())
		die("open");
	no_attachment();
}

static void *mapped;
static int map_ring(void)
{
	mapped = mmap(NULL, 4 << 20, PROT_READ, MAP_SHARED, member, ASR_MMAP_DATA);
	return mapped == MAP_FAILED ? -errno : 0;
}

static void undo_map(void)
{
	munmap(mapped, 4 << 20);
}

/* What was captured is done with: a full ring would mean TRACK, and other answers */
static void consume(void)
{
	volatile struct asr_ring_consumer *cons = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, member,
						       ASR_MMAP_CONSUMER);
	const volatile struct asr_ring_producer *prod = mmap(NULL, 4096, PROT_READ, MAP_SHARED, member,
							      ASR_MMAP_PRODUCER);

	if (cons == MAP_FAILED || prod == MAP_FAILED)
		die("mmap");
	__atomic_store_n(&cons->tail, __atomic_load_n(&prod->head, __ATOMIC_ACQUIRE), __ATOMIC_RELEASE);
	munmap((void *)cons, 4096);
	munmap((void *)prod, 4096);
}

static int create_device(void) { return simple(DM_DEV_CREATE, 0); }
static int remove_device(void) { return simple(DM_DEV_REMOVE, 0); }
static int load(void) { return load_sectors(sectors / 2); }
static int grow(void) { return load_sectors(sectors); }
static int resume(void) { return simple(DM_DEV_SUSPEND, 0); }
static int suspend(void) { return simple(DM_DEV_SUSPEND, DM_SUSPEND_FLAG); }
static int status(void) { return simple(DM_TABLE_STATUS, 0); }
static int table(void) { return simple(DM_TABLE_STATUS, DM_STATUS_TABLE_FLAG); }
static int mark(void) { return message("mark here"); }
static int dirty(void) { return message("dirty 128 8"); }

static void undo_device(void)
{
	if (remove_device())
		die("cannot remove the device");
}

static void undo_load(void)
{
	if (simple(DM_TABLE_CLEAR, 0))
		die("cannot clear the table");
}

static void undo_resume(void)
{
	undo_device();
	if (create_device() || load())
		die("cannot make the device again");
}

static void undo_suspend(void)
{
	if (resume())
		die("cannot resume");
}

static int open_device(void)
{
	struct dm_ioctl *d = request(0);
	char path[64];
	int r = call(dm, DM_DEV_STATUS, d);

	if (r)
		return r;
	snprintf(path, sizeof(path), "/dev/dm-%u", minor(d->dev));	/* there is no udev */
	dev = open(path, O_RDWR | O_DIRECT | O_CLOEXEC);
	return dev < 0 ? -errno : 0;
}

static void undo_open_device(void)
{
	close(dev);
	dev = -1;
}

static int write_at(size_t bytes)
{
	static uint64_t n;
	ssize_t done;

	memset(page, (int)++n, bytes);
	done = pwrite(dev, page, bytes, (off_t)(n * 4096 % (sectors * 512 - bytes)) & ~4095);
	return done < 0 ? -errno : done == (ssize_t)bytes ? 0 : -EIO;
}

static int write_small(void) { return write_at(4096); }
static int write_large(void) { return write_at(1 << 20); }

static int zero_out(void)
{
	uint64_t range[2] = { 65536, 262144 };

	return ioctl(dev, BLKZEROOUT, range) ? -errno : 0;
}

static int discard(void)
{
	uint64_t range[2] = { 524288, 262144 };

	return ioctl(dev, BLKDISCARD, range) ? -errno : 0;
}

static int flush(void) { return fsync(dev) ? -errno : 0; }

static int fetch(void)
{
	struct asr_dirty d = { .count = 16 };
	int r = call(member, ASR_IOC_DIRTY_FETCH, &d);

	return r == -ENODATA ? 0 : r;
}

static int give_back(void) { return call(member, ASR_IOC_DIRTY_RETURN, NULL); }

static void nothing(void) { }

static const struct step steps[] = {
	{ "create group", create_group, undo_group, no_group },
	{ "open", open_ctl, undo_open, nothing },
	{ "attach", attach, undo_attach, no_attachment },
	{ "map the ring", map_ring, undo_map, nothing },
	{ "create device", create_device, undo_device, no_device },
	{ "load table", load, undo_load, no_disk },
	{ "resume", resume, undo_resume, nothing },
	{ "status", status, nothing, nothing },
	{ "table", table, nothing, nothing },
	{ "mark", mark, nothing, nothing },
	{ "message dirty", dirty, nothing, nothing },
	{ "open device", open_device, undo_open_device, nothing },
	{ "write 4 KiB", write_small, consume, consume },
	{ "write 1 MiB", write_large, consume, consume },
	{ "write zeroes", zero_out, consume, consume },
	{ "discard", discard, consume, consume },
	{ "flush", flush, consume, consume },
	{ "fetch dirty", fetch, nothing, nothing },
	{ "return dirty", give_back, nothing, nothing },
	{ "suspend", suspend, undo_suspend, nothing },
	{ "resume again", resume, nothing, nothing },
	{ "load a larger table", grow, undo_load, nothing },
	{ "resume with it", resume, nothing, nothing },
	{ "write 1 MiB into it", write_large, consume, consume },
};

static const struct step last_steps[] = {
	{ "remove device", remove_device, NULL, nothing },
	{ "delete group", delete_group, NULL, nothing },
};

/* ------------------------------------------------------------- injection */

static void arm(unsigned int n)
{
	char text[16];
	int len = snprintf(text, sizeof(text), "%u", n);

	if (pwrite(nth_fd, text, (size_t)len, 0) != len)
		die("fail-nth");
}

/* What is left of n: 0 when the fault was injected. */
static int disarm(void)
{
	char text[16] = "";

	if (pread(nth_fd, text, sizeof(text) - 1, 0) <= 0)
		die("fail-nth");
	arm(0);
	return atoi(text);
}

static int means_memory(const struct step *s, int r)
{
	/* dm itself says so of any device that it cannot make */
	return r == -ENOMEM || r == -EAGAIN || r == -ENOBUFS || (r == -ENXIO && s->run == create_device);
}

static void walk(const struct step *s)
{
	unsigned int n, refused = 0, survived = 0;
	int r, left;

	for (n = 1;; n++) {
		arm(n);
		r = s->run();
		left = disarm();
		if (left) {
			if (r)
				die("%s fails with nothing failing: %d", s->name, r);
			break;
		}
		if (!r) {
			survived++;
			if (!s->undo)
				break;	/* it is done, and cannot be done again */
			s->undo();
		} else {
			if (!means_memory(s, r))
				die("%s, allocation %u failed: errno %d", s->name, n, -r);
			refused++;
			s->gone();
		}
		if (n > 20000)
			die("%s has no end", s->name);
	}
	printf("%-20s %4u allocations failed: %4u refused, %4u went on\n", s->name, n - 1, refused, survived);
	fflush(stdout);
}

int main(int argc, char **argv)
{
	size_t i;

	if (argc < 5) {
		fprintf(stderr, "usage: asr-faults GROUP DM-NAME DEVICE SECTORS [OPTION...]\n");
		return 2;
	}
	group = argv[1];
	name = argv[2];
	lower = argv[3];
	sectors = strtoull(argv[4], NULL, 10);
	for (i = 5; i < (size_t)argc; i++)
		snprintf(options + strlen(options), sizeof(options) - strlen(options), " %s", argv[i]);
	if (posix_memalign(&page, 4096, 1 << 20))
		die("memory");
	memset(page, 1, 1 << 20);
	ctl = ctl_open();
	dm = open("/dev/mapper/control", O_RDWR | O_CLOEXEC);
	nth_fd = open("/proc/thread-self/fail-nth", O_RDWR | O_CLOEXEC);
	if (dm < 0 || nth_fd < 0)
		die("/dev/mapper/control, /proc/thread-self/fail-nth");
	ring_used = totals().ring_bytes_used;
	for (i = 0; i < sizeof(steps) / sizeof(steps[0]); i++)
		walk(&steps[i]);
	undo_open_device();
	walk(&last_steps[0]);
	undo_map();
	undo_open();
	walk(&last_steps[1]);
	no_group();
	return 0;
}
