// SPDX-License-Identifier: Apache-2.0
/*
 * Counts what one write costs, in a guest under `qemu -icount shift=0`.
 *
 *   asr-kbench --dev D --job w4q1|w4q16|s64|fs4|m4 [--count N]
 *              [--control SOCKET --group G --exclude PID]
 *
 * There the clock advances by 1 ns per instruction, so that the time stamp
 * counter counts instructions and medians repeat exactly. Jobs: 4 KiB random
 * O_DIRECT writes at queue depth 1 or 16, 64 KiB sequential ones, and 4 KiB
 * random ones each followed by fdatasync; m4: 4 KiB, in turn random and sequential. Prints a JSON object:
 *
 * instructions_p50, _p99  per write, from submission to completion as one
 *                         thread sees it (at depth 16: of a batch of 16, / 16)
 * all_tasks               CPU time of every task of the guest, kernel threads
 *                         included, divided by the writes; interrupts are
 *                         charged to the task they interrupt. With --control,
 *                         it runs until the group's last write is durable at
 *                         the vault; the process --exclude (the vault) and
 *                         this program's own polling are taken out.
 * wakeups                 with --control: wake-ups of the daemon, for all writes
 */
#include "asr.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <linux/aio_abi.h>
#include <linux/fs.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <x86intrin.h>

#define DEPTH_MAX 16

struct job {
	const char *name;
	unsigned int bytes, depth;
	bool sequential, sync, mixed;
};

static const struct job jobs[] = {
	{ "w4q1", 4096, 1, false, false, false },
	{ "w4q16", 4096, 16, false, false, false },
	{ "s64", 65536, 1, true, false, false },
	{ "fs4", 4096, 1, false, true, false },
	{ "m4", 4096, 1, false, false, true },
};

struct bench {
	const struct job *job;
	int fd;
	uint64_t blocks, next;		/* of the device, in units of the job */
	uint64_t seed, turn;
	uint8_t *buffer;
	aio_context_t aio;
};

static void die(const char *what)
{
	fprintf(stderr, "asr-kbench: %s: %s\n", what, strerror(errno));
	exit(1);
}

static uint64_t place(struct bench *b)
{
	if (b->job->sequential || (b->job->mixed && (b->turn++ & 1)))
		return b->next++ % b->blocks * b->job->bytes;
	b->seed = b->seed * 6364136223846793005ULL + 1442695040888963407ULL;
	return (b->seed >> 33) % b->blocks * b->job->bytes;
}

static void write_batch(struct bench *b)
{
	struct iocb cbs[DEPTH_MAX], *p[DEPTH_MAX];
	struct io_event events[DEPTH_MAX];
	long n = b->job->depth;

	memset(cbs, 0, sizeof(cbs));
	for (long i = 0; i < n; i++) {
		cbs[i].aio_lio_opcode = IOCB_CMD_PWRITE;
		cbs[i].aio_fildes = (uint32_t)b->fd;
		cbs[i].aio_buf = (uint64_t)(uintptr_t)(b->buffer + i * b->job->bytes);
		cbs[i].aio_nbytes = b->job->bytes;
		cbs[i].aio_offset = (int64_t)place(b);
		p[i] = &cbs[i];
	}
	if (syscall(SYS_io_submit, b->aio, n, p) != n)
		die("io_submit");
	if (syscall(SYS_io_getevents, b->aio, n, n, events, NULL) != n)
		die("io_getevents");
	for (long i = 0; i < n; i++)
		if (events[i].res != (int64_t)b->job->bytes)
			die("write");
}

static void write_one(struct bench *b)
{
	if (pwrite(b->fd, b->buffer, b->job->bytes, (off_t)place(b)) != (ssize_t)b->job->bytes)
		die("write");
	if (b->job->sync && fdatasync(b->fd) < 0)
		die("fdatasync");
}

static int compare(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return (x > y) - (x < y);
}

/* CPU time of every task but one process and the idle task, ns */
static uint64_t all_tasks_ns(long exclude)
{
	DIR *d = opendir("/proc"), *t;
	struct dirent *e, *te;
	uint64_t sum = 0, ns;
	char path[600];
	FILE *f;

	while (d && (e = readdir(d))) {
		long pid = strtol(e->d_name, NULL, 10);

		if (pid <= 0 || pid == exclude)
			continue;
		snprintf(path, sizeof(path), "/proc/%ld/task", pid);
		t = opendir(path);
		while (t && (te = readdir(t))) {
			snprintf(path, sizeof(path), "/proc/%ld/task/%s/schedstat", pid, te->d_name);
			f = te->d_name[0] == '.' ? NULL : fopen(path, "r");
			if (f && fscanf(f, "%lu", &ns) == 1)
				sum += ns;
			if (f)
				fclose(f);
		}
		if (t)
			closedir(t);
	}
	if (d)
		closedir(d);
	return sum;
}

static uint64_t own_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &ts);
	return (uint64_t)ts.tv_sec * 1000000000ULL + (uint64_t)ts.tv_nsec;
}

struct durable {
	const char *group;
	bool done;
};

static int on_status(json_t *reply, void *arg)
{
	struct durable *d = arg;
	json_t *g;
	size_t i;

	json_array_foreach(json_object_get(reply, "groups"), i, g) {
		const char *name = json_string_value(json_object_get(g, "name"));

		if (name && !strcmp(name, d->group))
			d->done = json_integer_value(json_object_get(g, "rpo_bytes")) == 0 &&
				  json_number_value(json_object_get(g, "rpo_s")) == 0;
	}
	return 0;
}

static void wait_durable(const char *socket, const char *group)
{
	struct durable d = { .group = group };
	struct timespec ts = { .tv_nsec = 20000000 };
	struct why why;

	while (!d.done) {
		nanosleep(&ts, NULL);
		if (control_call(socket, "io.asr.Status", json_object(), false, on_status, &d, &why)) {
			fprintf(stderr, "asr-kbench: %s\n", why.text);
			exit(1);
		}
	}
}

static uint64_t wakeups(const char *group)
{
	struct asr_group_info info = { 0 };
	int fd = open("/dev/" ASR_DEVICE_NAME, O_RDWR | O_CLOEXEC);

	snprintf(info.name, sizeof(info.name), "%s", group);
	if (fd < 0 || ioctl(fd, ASR_IOC_GROUP_INFO, &info) < 0)
		die("group info");
	close(fd);
	return info.wakeups;
}

static void run(struct bench *b, unsigned int count, const char *socket, const char *group, long exclude)
{
	unsigned int rounds = count / b->job->depth;
	uint64_t *samples = calloc(rounds, sizeof(*samples));
	uint64_t tasks, woken = group ? wakeups(group) : 0, own, start;

	for (int i = 0; i < 64; i++)		/* warm up */
		b->job->depth > 1 ? write_batch(b) : write_one(b);
	if (socket)
		wait_durable(socket, group);
	tasks = all_tasks_ns(exclude);
	for (unsigned int i = 0; i < rounds; i++) {
		start = __rdtsc();
		b->job->depth > 1 ? write_batch(b) : write_one(b);
		samples[i] = (__rdtsc() - start) / b->job->depth;
	}
	own = own_ns();
	if (socket)
		wait_durable(socket, group);
	own = own_ns() - own;
	tasks = all_tasks_ns(exclude) - tasks - own;
	qsort(samples, rounds, sizeof(*samples), compare);
	printf("{\"job\":\"%s\",\"writes\":%u,\"instructions_p50\":%lu,\"instructions_p99\":%lu,\"all_tasks\":%lu",
	       b->job->name, rounds * b->job->depth, samples[rounds / 2], samples[rounds * 99UL / 100],
	       tasks / (rounds * b->job->depth));
	if (group)
		printf(",\"wakeups\":%lu", wakeups(group) - woken);
	printf("}\n");
}

int main(int argc, char **argv)
{
	static const struct option options[] = {
		{ "dev", required_argument, NULL, 'd' },	{ "job", required_argument, NULL, 'j' },
		{ "count", required_argument, NULL, 'n' },	{ "control", required_argument, NULL, 'c' },
		{ "group", required_argument, NULL, 'g' },	{ "exclude", required_argument, NULL, 'x' },
		{ 0 }
	};
	const char *dev = NULL, *job = "w4q1", *control = NULL, *group = NULL;
	struct bench b = { .seed = 1 };
	unsigned int count = 4096;
	long exclude = -1;
	uint64_t bytes;
	int c;

	while ((c = getopt_long(argc, argv, "", options, NULL)) != -1) {
		switch (c) {
		case 'd': dev = optarg; break;
		case 'j': job = optarg; break;
		case 'n': count = (unsigned int)strtoul(optarg, NULL, 10); break;
		case 'c': control = optarg; break;
		case 'g': group = optarg; break;
		case 'x': exclude = strtol(optarg, NULL, 10); break;
		default: return 2;
		}
	}
	for (size_t i = 0; i < sizeof(jobs) / sizeof(*jobs); i++)
		if (!strcmp(jobs[i].name, job))
			b.job = &jobs[i];
	if (!dev || !b.job || count < 64) {
		fprintf(stderr, "usage: asr-kbench --dev D --job w4q1|w4q16|s64|fs4|m4 [--count N >= 64]\n"
			"       [--control SOCKET --group G --exclude PID]\n");
		return 2;
	}
	b.fd = open(dev, O_RDWR | O_DIRECT | O_CLOEXEC);
	if (b.fd < 0 || ioctl(b.fd, BLKGETSIZE64, &bytes) < 0)
		die(dev);
	b.blocks = bytes / b.job->bytes;
	b.buffer = aligned_alloc(4096, DEPTH_MAX * b.job->bytes);
	if (!b.buffer || syscall(SYS_io_setup, DEPTH_MAX, &b.aio) < 0)
		die("set-up");
	for (size_t i = 0; i < DEPTH_MAX * b.job->bytes; i++) {	/* incompressible */
		b.seed = b.seed * 6364136223846793005ULL + 1442695040888963407ULL;
		b.buffer[i] = (uint8_t)(b.seed >> 56);
	}
	run(&b, count, control, group, exclude);
	return 0;
}
