// SPDX-License-Identifier: Apache-2.0
/*
 * asr-consume - drains a group's ring into a file and proves what is in it.
 *
 *   asr-consume create GROUP [RING_BYTES]      asr-consume delete GROUP
 *   asr-consume info GROUP                     key=value, one per line
 *   asr-consume drain GROUP LOG [OPTION...]    until SIGTERM and all is drained
 *       --sync NAME=DEVICE   resync this disk: read its dirty chunks from DEVICE
 *       --slow USEC          pause after each record
 *       --nap MSEC           sleep that long between looks at the ring
 *       --stop               attach and consume nothing until SIGTERM
 *       --durable            all that is in LOG counts as durable at the vault
 *   asr-consume mirror GROUP DISK DEVICE --sync DISK=LOWER [OPTION...]
 *       as drain; but the records go at once to DEVICE, which is compared with LOWER in the end
 *   asr-consume replay LOG DISK IMAGE          apply the log to IMAGE
 *   asr-consume verify LOG DISK DEVICE         replay in memory, compare with DEVICE
 *   asr-consume count LOG                      records by kind and state
 *
 * Design: the log is the ring's records as they are, one after another; what
 * resync reads is a record of kind SYNC among them, at the place where it was
 * read. So replaying the log in order is the whole of recovery. Discarded
 * sectors are undefined and not compared until they are written again.
 * Invariants: seq is checked to grow by one from record to record, or to leap when a
 * write-intent log was brought up that knew greater ones.
 * Context: tests; one thread.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <linux/fs.h>
#include <signal.h>
#include <sys/stat.h>

#include "consume.h"

#define KIND_SYNC	33
#define MAX_SYNC	16

static volatile sig_atomic_t stop;
static unsigned int slow_us, nap_ms;
static bool consume_nothing, durable;
static struct { char name[ASR_NAME_BYTES]; int fd; } sync_of[MAX_SYNC];
static int syncs;

static void on_signal(int sig)
{
	(void)sig;
	stop = 1;
}

/* ------------------------------------------------------- records applied */

struct disk_state {
	unsigned char *data;
	unsigned char *undefined;	/* one per sector */
	uint64_t sectors;	/* of data: the most it ever had */
	uint64_t size;		/* as its last DISK record says */
	int slot;
};

static void have_room(struct disk_state *d, uint64_t sectors)
{
	if (sectors <= d->sectors)
		return;
	d->data = realloc(d->data, sectors * 512);
	d->undefined = realloc(d->undefined, sectors);
	if (!d->data || !d->undefined)
		die("memory");
	memset(d->data + d->sectors * 512, 0, (sectors - d->sectors) * 512);
	memset(d->undefined + d->sectors, 0, sectors - d->sectors);
	d->sectors = sectors;
}

static void apply(struct disk_state *d, const struct asr_rec *rec, const unsigned char *payload)
{
	const struct asr_rec_disk *p = (const void *)payload;

	/* it came, changed its size, or went; what a larger size adds is not known yet */
	if (rec->kind == ASR_KIND_DISK && rec->disk == d->slot) {
		have_room(d, p->sectors);
		d->size = p->sectors;
		d->slot = p->sectors ? d->slot : -1;
	}
	if (rec->state != ASR_REC_COMMITTED || rec->disk != d->slot || !rec->sectors)
		return;
	/* this consumer may sync what a growth has added before it reads the record of the growth */
	if (rec->kind == KIND_SYNC)
		have_room(d, rec->sector + rec->sectors);
	else if (rec->sector + rec->sectors > d->size)
		die("record beyond the disk: sector %llu", (unsigned long long)rec->sector);
	memset(d->undefined + rec->sector, rec->kind == ASR_KIND_DISCARD, rec->sectors);
	if (rec->kind == ASR_KIND_ZEROES)
		memset(d->data + rec->sector * 512, 0, rec->sectors * 512ULL);
	else if (rec->kind != ASR_KIND_DISCARD)
		memcpy(d->data + rec->sector * 512, payload, rec->payload_bytes);
}

static struct disk_state mirror;
static const char *mirrored;

static void put(FILE *log, const struct asr_rec *rec, const void *payload)
{
	const struct asr_rec_disk *p = payload;

	if (mirrored && rec->kind == ASR_KIND_DISK && p->sectors && !strcmp(p->name, mirrored))
		mirror.slot = rec->disk;
	if (mirrored) {
		apply(&mirror, rec, payload);
		return;
	}
	if (fwrite(rec, sizeof(*rec), 1, log) != 1 ||
	    (rec->payload_bytes && fwrite(payload, rec->payload_bytes, 1, log) != 1))
		die("cannot write the log");
}

/* What the ring may forget is in the log, whatever kills this process. */
static void release(struct ring *r, uint64_t tail, uint64_t seq, FILE *log)
{
	struct asr_durable d = { .seq = seq };

	if (log && fflush(log))
		die("cannot write the log");
	ring_advance(r, tail);
	if (durable && call(r->fd, ASR_IOC_DURABLE, &d))
		die("durable up to %llu", (unsigned long long)seq);
}

/* All that is committed. Returns how many records. */
static unsigned long consume(struct ring *r, uint64_t *tail, uint64_t *seq, FILE *log)
{
	const struct asr_rec *rec;
	unsigned long n = 0;

	while ((rec = ring_next(r, *tail))) {
		if (*seq && rec->seq != *seq + 1 && rec->seq < *seq + ASR_LOG_SEQ_GAP / 2)
			die("sequence %llu after %llu", (unsigned long long)rec->seq,
			    (unsigned long long)*seq);
		if (rec->bytes < sizeof(*rec) + rec->payload_bytes || rec->bytes % ASR_REC_ALIGN)
			die("record of %u bytes with payload of %u", rec->bytes, rec->payload_bytes);
		*seq = rec->seq;
		put(log, rec, rec + 1);
		*tail += rec->bytes;
		n++;
		if (slow_us)
			usleep(slow_us);
		if (slow_us || n % 64 == 0)
			release(r, *tail, *seq, log);
	}
	if (n)
		release(r, *tail, *seq, log);
	return n;
}

/* One run of dirty chunks of one disk. 1: did something, 0: none, -EAGAIN. */
static int sync_some(struct ring *r, uint32_t slot, int fd, FILE *log)
{
	static unsigned char *buf;
	struct asr_disk_info disk = { .slot = slot };
	struct asr_dirty d = { .slot = slot, .count = 16 };
	struct asr_rec rec = { .state = ASR_REC_COMMITTED, .kind = KIND_SYNC, .disk = slot };
	uint64_t end;
	int err;

	if (!buf && posix_memalign((void **)&buf, 4096, 16 * ASR_CHUNK_SECTORS * 512))
		die("memory");
	err = call(r->fd, ASR_IOC_DIRTY_FETCH, &d);
	if (err == -ENODATA)
		return 0;
	if (err == -EAGAIN || err == -EBUSY)
		return -EAGAIN;
	if (err || call(r->fd, ASR_IOC_DISK_INFO, &disk))
		die("fetch of slot %u: %d", slot, err);
	end = (d.chunk + d.count) * ASR_CHUNK_SECTORS;
	if (end > disk.sectors)
		end = disk.sectors;
	rec.sector = d.chunk * ASR_CHUNK_SECTORS;
	rec.sectors = end - rec.sector;
	rec.payload_bytes = rec.sectors * 512;
	if (pread(fd, buf, rec.payload_bytes, rec.sector * 512) != (ssize_t)rec.payload_bytes)
		die("cannot read chunk %llu of slot %u", (unsigned long long)d.chunk, slot);
	put(log, &rec, buf);
	if (log && fflush(log))
		die("cannot write the log");
	if (call(r->fd, ASR_IOC_DIRTY_ACK, &d))
		die("ack");
	return 1;
}

/* 1: did something; 0: all is clean; -EAGAIN: something is left for later. */
static int resync(struct ring *r, const struct asr_group_info *gi, FILE *log)
{
	int did = 0, later = 0, k;

	for (uint32_t slot = 0; slot < gi->disks; slot++) {
		struct asr_disk_info d = { .slot = slot };

		if (call(r->fd, ASR_IOC_DISK_INFO, &d))
			continue;
		for (int i = 0; i < syncs; i++) {
			if (strcmp(sync_of[i].name, d.name))
				continue;
			k = sync_some(r, slot, sync_of[i].fd, log);
			did |= k > 0;
			later |= k < 0;
		}
	}
	return did ? 1 : later ? -EAGAIN : 0;
}

/* To append to; without the half record that a killed drain may have left. */
static FILE *open_log(const char *path)
{
	FILE *f = fopen(path, "a+");
	struct asr_rec rec;
	long end = 0;
	struct stat st;

	if (!f || fstat(fileno(f), &st))
		return NULL;
	rewind(f);
	while (fread(&rec, sizeof(rec), 1, f) == 1) {
		if (end + (long)sizeof(rec) + rec.payload_bytes > st.st_size)
			break;
		end += sizeof(rec) + rec.payload_bytes;
		fseek(f, end, SEEK_SET);
	}
	fseek(f, 0, SEEK_END);
	return ftruncate(fileno(f), end) ? NULL : f;
}

static void drain(const char *group, const char *path)
{
	FILE *log = mirrored ? NULL : open_log(path);
	uint64_t tail, seq = 0;
	struct asr_group_info gi;
	struct ring r;
	int k, err;

	if (!log && !mirrored)
		die("cannot open %s", path);
	err = ring_attach(&r, group);
	if (err)
		die("cannot attach to %s: %s", group, strerror(-err));
	tail = r.cons->tail;
	fprintf(stderr, "attached at %llu\n", (unsigned long long)tail);
	while (consume_nothing && !stop)
		usleep(10000);
	for (;;) {
		bool stopping = stop;
		unsigned long n = consume(&r, &tail, &seq, log);

		gi = group_info(r.fd, group);
		if (syncs && gi.state == ASR_STATE_TRACK && gi.head == tail)
			call(r.fd, ASR_IOC_CAPTURE, NULL);
		/* what was read before is in the log before the next SYNC record */
		k = syncs && gi.state == ASR_STATE_CAPTURE ? resync(&r, &gi, log) : 0;
		if (stopping && !n && k == 0 && tail == group_info(r.fd, group).head &&
		    !(syncs && (gi.state == ASR_STATE_TRACK || gi.dirty_chunks)))
			break;
		if (nap_ms)
			usleep(nap_ms * 1000);
		else if (!n && k <= 0)
			ring_wait(&r, tail, 50);
	}
	if (log && fclose(log))
		die("cannot write the log");
	fprintf(stderr, "drained to %llu, seq %llu, wakeups %llu\n", (unsigned long long)tail,
		(unsigned long long)seq, (unsigned long long)gi.wakeups);
}

/* ------------------------------------------------------------ the log read */

static const char *const kinds[] = { "pad", "write", "zeroes", "discard", "flush", "mark",
				     "state", "disk" };

/* disk NULL: only count. The disk's slot is the one its DISK record names. */
static void read_log(const char *path, const char *disk, struct disk_state *d, bool print)
{
	static unsigned char payload[4 << 20];
	unsigned long count[64][3] = { 0 };
	struct asr_rec rec;
	FILE *f = fopen(path, "r");

	if (!f)
		die("cannot open %s", path);
	while (fread(&rec, sizeof(rec), 1, f) == 1) {
		const struct asr_rec_disk *p = (const void *)payload;

		if (rec.payload_bytes > sizeof(payload) || rec.kind >= 64 || rec.state > 2 ||
		    fread(payload, 1, rec.payload_bytes, f) != rec.payload_bytes)
			die("%s is damaged", path);
		count[rec.kind][rec.state]++;
		if (disk && rec.kind == ASR_KIND_DISK && p->sectors && !strcmp(p->name, disk))
			d->slot = rec.disk;
		if (disk)
			apply(d, &rec, payload);
		if (print && rec.kind == ASR_KIND_STATE) {
			const struct asr_rec_state *s = (const void *)payload;

			printf("state seq=%llu from=%u to=%u reason=%u\n",
			       (unsigned long long)rec.seq, s->from, s->to, s->reason);
		} else if (print && rec.kind == ASR_KIND_DISK) {
			printf("disk seq=%llu slot=%u name=%s sectors=%llu flags=%u\n",
			       (unsigned long long)rec.seq, rec.disk, p->name,
			       (unsigned long long)p->sectors, p->flags);
		}
	}
	fclose(f);
	for (int k = 0; print && k < 64; k++)
		if (count[k][1] + count[k][2])
			printf("%s=%lu discarded-%s=%lu\n", k < 8 ? kinds[k] : "sync", count[k][1],
			       k < 8 ? kinds[k] : "sync", count[k][2]);
}

static struct disk_state replay(const char *path, const char *disk, uint64_t bytes)
{
	struct disk_state d = { .sectors = bytes / 512, .size = bytes / 512, .slot = -1 };

	d.data = calloc(1, bytes);
	d.undefined = calloc(1, d.sectors);
	if (!d.data || !d.undefined)
		die("memory");
	read_log(path, disk, &d, false);
	return d;
}

/* What is on fd against what the records say. The number of sectors that differ */
static uint64_t compare(const struct disk_state *d, int fd, uint64_t bytes)
{
	uint64_t bad = 0, skipped = 0;
	unsigned char *buf;

	if (d->slot >= 0 && d->size != bytes / 512)
		die("the log's disk has %llu sectors, the device %llu", (unsigned long long)d->size,
		    (unsigned long long)bytes / 512);
	if (posix_memalign((void **)&buf, 4096, 1 << 20))
		die("memory");
	for (uint64_t at = 0; at < bytes; at += 1 << 20) {
		ssize_t n = pread(fd, buf, bytes - at < 1 << 20 ? bytes - at : 1 << 20, at);

		if (n <= 0)
			die("cannot read the device at %llu", (unsigned long long)at);
		for (uint64_t s = 0; s < (uint64_t)n / 512; s++) {
			if (d->undefined[at / 512 + s])
				skipped++;
			else if (memcmp(buf + s * 512, d->data + at + s * 512, 512) && bad++ < 5)
				printf("sector %llu differs\n", (unsigned long long)(at / 512 + s));
		}
	}
	printf("%s: %llu sectors, %llu differ, %llu undefined\n", bad ? "DIFFERENT" : "equal",
	       (unsigned long long)bytes / 512, (unsigned long long)bad, (unsigned long long)skipped);
	free(buf);
	return bad;
}

static int verify(const char *path, const char *disk, const char *device)
{
	int fd = open(device, O_RDONLY | O_DIRECT);
	struct disk_state d;
	uint64_t bytes;

	if (fd < 0 || ioctl(fd, BLKGETSIZE64, &bytes))
		die("cannot open %s", device);
	d = replay(path, disk, bytes);
	return compare(&d, fd, bytes) != 0;
}

static int drain_to_device(const char *group, const char *disk, const char *device)
{
	int fd = open(device, O_RDWR);
	uint64_t bytes;

	if (fd < 0 || ioctl(fd, BLKGETSIZE64, &bytes) || syncs != 1)
		die("cannot open %s, or no --sync", device);
	mirror = (struct disk_state){ .sectors = bytes / 512, .size = bytes / 512, .slot = -1 };
	mirror.data = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	mirror.undefined = calloc(1, mirror.sectors);
	if (mirror.data == MAP_FAILED || !mirror.undefined)
		die("memory");
	mirrored = disk;
	drain(group, NULL);
	if (msync(mirror.data, bytes, MS_SYNC) || ioctl(sync_of[0].fd, BLKGETSIZE64, &bytes))
		die("cannot write %s", device);
	return compare(&mirror, sync_of[0].fd, bytes) != 0;
}

static void write_image(const char *path, const char *disk, const char *image)
{
	struct disk_state d;
	struct stat st;
	int fd = open(image, O_RDWR);

	if (fd < 0 || fstat(fd, &st))
		die("cannot open %s", image);
	d = replay(path, disk, st.st_size);
	if (pwrite(fd, d.data, st.st_size, 0) != st.st_size || close(fd))
		die("cannot write %s", image);
}

/* ----------------------------------------------------------------- commands */

static void drain_options(int argc, char **argv)
{
	for (int i = 0; i < argc; i++) {
		const char *v = i + 1 < argc ? argv[i + 1] : "";
		char *eq = strchr(v, '=');

		if (!strcmp(argv[i], "--stop")) {
			consume_nothing = true;
			continue;
		} else if (!strcmp(argv[i], "--durable")) {
			durable = true;
			continue;
		} else if (!strcmp(argv[i], "--slow")) {
			slow_us = atoi(v);
		} else if (!strcmp(argv[i], "--nap")) {
			nap_ms = atoi(v);
		} else if (!strcmp(argv[i], "--sync") && eq && syncs < MAX_SYNC) {
			*eq = 0;
			set_name(sync_of[syncs].name, v);
			sync_of[syncs].fd = open(eq + 1, O_RDONLY | O_DIRECT);
			if (sync_of[syncs++].fd < 0)
				die("cannot open %s", eq + 1);
		} else {
			die("unknown option %s", argv[i]);
		}
		i++;
	}
}

static void print_info(const char *group)
{
	struct asr_group_info i = group_info(ctl_open(), group);

#define P(f) printf(#f "=%llu\n", (unsigned long long)i.f)
	P(state); P(reason); P(disks); P(attached); P(holding); P(ring_bytes); P(head); P(tail);
	P(next_seq); P(dirty_chunks); P(uncaptured); P(overflows); P(overlaps); P(wakeups);
	P(holds_broken); P(writes); P(write_bytes); P(memory_bytes);
}

int main(int argc, char **argv)
{
	struct sigaction sa = { .sa_handler = on_signal };
	struct asr_group_create c = { .flags = 0 };
	struct asr_group_name n;
	const char *cmd = argc > 2 ? argv[1] : "";
	int r = 0;

	sigaction(SIGTERM, &sa, NULL);
	sigaction(SIGINT, &sa, NULL);
	if (!strcmp(cmd, "create")) {
		set_name(c.name, argv[2]);
		c.ring_bytes = argc > 3 ? strtoull(argv[3], NULL, 0) : 0;
		r = call(ctl_open(), ASR_IOC_GROUP_CREATE, &c);
	} else if (!strcmp(cmd, "delete")) {
		set_name(n.name, argv[2]);
		r = call(ctl_open(), ASR_IOC_GROUP_DELETE, &n);
	} else if (!strcmp(cmd, "info")) {
		print_info(argv[2]);
	} else if (!strcmp(cmd, "drain") && argc > 3) {
		drain_options(argc - 4, argv + 4);
		drain(argv[2], argv[3]);
	} else if (!strcmp(cmd, "mirror") && argc > 4) {
		drain_options(argc - 5, argv + 5);
		return drain_to_device(argv[2], argv[3], argv[4]);
	} else if (!strcmp(cmd, "replay") && argc == 5) {
		write_image(argv[2], argv[3], argv[4]);
	} else if (!strcmp(cmd, "verify") && argc == 5) {
		return verify(argv[2], argv[3], argv[4]);
	} else if (!strcmp(cmd, "count")) {
		read_log(argv[2], NULL, NULL, true);
	} else {
		fprintf(stderr, "usage: see the head of asr-consume.c\n");
		return 2;
	}
	if (r)
		fprintf(stderr, "%s %s: %s\n", cmd, argv[2], strerror(-r));
	return r != 0;
}
