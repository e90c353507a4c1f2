// SPDX-License-Identifier: Apache-2.0
/*
 * asr-ringgen: plays the kernel's part of door 1 in a file, for benchmarks and
 * native tests of asrd (--ring-file).
 *
 * Design. The file is [consumer page][producer page][data], as the module's
 * areas stand one behind the other. Records are reserved, filled and committed
 * as the module does it, with the same barriers; when the ring is full the
 * generator waits, where the module would go to TRACK.
 *
 * The payload of the two synthetic jobs is random and written in the first lap
 * only; later laps write headers and leave the payload as it lies, so that the
 * generator takes no core away from what is measured. A replay copies always.
 *
 * RPO is measured here: a record is committed at t, and durable at the vault
 * when the tail has passed it.
 *
 * With --log every 4 KiB block written is noted (sequence, block, hash), and
 * --check replays such a log up to a sequence and compares an image with it: the
 * oracle for any point of a synthetic job.
 *
 * One line of JSON on stdout. Exit 0; 1 on a failure; 2 on wrong usage.
 */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <xxhash.h>

#include "asr.h"

#define PAGE		4096u
#define SAMPLES		(1u << 20)
#define PAUSE_NS	100000l
#define FULL_PAUSE_NS	1000000l	/* the ring is full: a megabyte drains meanwhile */
#define DURABLE_WAIT_S	120

/* A block of --log */
struct note {
	uint64_t seq, block, hash;
};

/* Behind the producer's words, in its page: the generator's own memory */
struct memo {
	uint64_t next_seq;
	uint64_t filled;	/* positions below this have been written once */
};

struct gen {
	struct asr_ring_consumer *cons;
	struct asr_ring_producer *prod;
	struct memo *memo;
	uint8_t *data;
	uint64_t bytes, head;
	uint64_t disk_sectors, rng;
	uint8_t *image;
	const char *job;
	char *const *files;
	uint64_t limit, seconds, rate;
	uint64_t made, records, next_sector, full_waits;
	uint8_t *content;	/* of the file being replayed */
	uint64_t content_bytes, content_at;
	int file;
	FILE *log;
	struct sample { uint64_t pos, t; } *queue;
	uint32_t first, count;
	uint32_t *lat_us, lats;
};

static volatile sig_atomic_t stop;

static void on_signal(int sig)
{
	stop = 1;
}

static uint64_t rnd(struct gen *g)
{
	g->rng ^= g->rng << 13;
	g->rng ^= g->rng >> 7;
	g->rng ^= g->rng << 17;
	return g->rng;
}

static uint64_t tail(struct gen *g)
{
	return __atomic_load_n(&g->cons->tail, __ATOMIC_ACQUIRE);
}

static void pause_ns(long ns)
{
	nanosleep(&(struct timespec){ 0, ns }, NULL);
}

static void settle(struct gen *g)
{
	uint64_t t = tail(g), now = now_ns();

	while (g->count && g->queue[g->first].pos <= t) {
		if (g->lats < SAMPLES)
			g->lat_us[g->lats++] = (uint32_t)((now - g->queue[g->first].t) / 1000);
		g->first = (g->first + 1) % SAMPLES;
		g->count--;
	}
}

static int map_file(struct gen *g, const char *path, uint64_t bytes, bool create)
{
	cleanup_fd int fd = open(path, O_RDWR | O_CLOEXEC | (create ? O_CREAT | O_TRUNC : 0), 0600);
	struct stat st;
	uint8_t *p;

	if (fd < 0 || (create && ftruncate(fd, (off_t)(bytes + 2 * PAGE))) || fstat(fd, &st))
		return -errno;
	g->bytes = (uint64_t)st.st_size - 2 * PAGE;
	if (g->bytes & (g->bytes - 1) || g->bytes < ASR_RING_MIN)
		return -EINVAL;
	p = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	g->data = mmap(NULL, 2 * g->bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (p == MAP_FAILED || g->data == MAP_FAILED)
		return -errno;
	for (int i = 0; i < 2; i++)
		if (mmap(g->data + i * g->bytes, g->bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd,
			 2 * PAGE) == MAP_FAILED)
			return -errno;
	g->cons = (void *)p;
	g->prod = (void *)(p + PAGE);
	g->memo = (void *)(p + PAGE + PAGE / 2);
	if (create) {
		g->cons->wake = ~0ull;
		g->prod->state = ASR_STATE_CAPTURE;
		g->memo->next_seq = 1;
	}
	g->head = g->prod->head;
	return 0;
}

/* Room for bytes at head; false: asked to stop */
static bool reserve(struct gen *g, uint64_t bytes)
{
	while (g->head + bytes - tail(g) > g->bytes) {
		if (stop)
			return false;
		g->full_waits++;
		settle(g);
		pause_ns(FULL_PAUSE_NS);
	}
	return true;
}

static void put(struct gen *g, const struct asr_rec *what, const void *payload)
{
	struct asr_rec *r = (void *)(g->data + (g->head & (g->bytes - 1)));
	uint8_t *to = (uint8_t *)(r + 1);

	memcpy(r, what, sizeof(*r));
	r->bytes = (uint32_t)(sizeof(*r) + what->payload_bytes + ASR_REC_ALIGN - 1) & ~(ASR_REC_ALIGN - 1);
	r->state = ASR_REC_BUSY;
	r->pos = g->head;
	r->seq = g->memo->next_seq++;
	r->time_ns = now_real_ns();
	g->head += r->bytes;
	__atomic_store_n(&g->prod->head, g->head, __ATOMIC_RELEASE);
	if (payload)
		memcpy(to, payload, what->payload_bytes);
	else if (g->memo->filled < g->head)
		for (uint32_t i = 0; i < what->payload_bytes; i += 8)
			*(uint64_t *)(to + i) = rnd(g);
	if (g->memo->filled < g->head)
		g->memo->filled = g->head > g->bytes ? ~0ull : g->head;
	if (g->image && what->kind == ASR_KIND_WRITE)
		memcpy(g->image + what->sector * 512, to, what->payload_bytes);
	for (uint32_t i = 0; g->log && what->kind == ASR_KIND_WRITE && i < what->payload_bytes; i += 4096) {
		struct note n = { r->seq, (what->sector * 512 + i) / 4096, XXH3_64bits(to + i, 4096) };

		if (fwrite(&n, sizeof(n), 1, g->log) != 1)
			abort();
	}
	__atomic_store_n(&r->state, ASR_REC_COMMITTED, __ATOMIC_RELEASE);
	if (g->queue && g->count < SAMPLES) {
		g->queue[(g->first + g->count) % SAMPLES] = (struct sample){ g->head, now_ns() };
		g->count++;
	}
}

static int next_file(struct gen *g)
{
	struct stat st;
	int fd;

	if (g->content)
		munmap(g->content, g->content_bytes);
	g->content = NULL;
	if (!g->files[g->file])
		return 1;
	fd = open(g->files[g->file++], O_RDONLY | O_CLOEXEC);
	if (fd < 0 || fstat(fd, &st))
		return -errno;
	g->content_bytes = (uint64_t)st.st_size & ~4095ull;
	g->content_at = 0;
	g->content = mmap(NULL, g->content_bytes, PROT_READ, MAP_PRIVATE | MAP_POPULATE, fd, 0);
	close(fd);
	return g->content == MAP_FAILED ? -errno : 0;
}

/* The next record of the job: 1 it was made, 0 the end, -errno */
static int step(struct gen *g)
{
	struct asr_rec r = { .kind = ASR_KIND_WRITE };
	const uint8_t *payload = NULL;
	int ret;

	if (!strcmp(g->job, "rand4k")) {
		r.payload_bytes = 4096;
		r.sector = rnd(g) % (g->disk_sectors / 8) * 8;
	} else {
		r.payload_bytes = 65536;
		r.sector = g->next_sector;
	}
	if (!strcmp(g->job, "replay")) {
		while (!g->content || g->content_at == g->content_bytes) {
			ret = next_file(g);
			if (ret)
				return ret < 0 ? ret : 0;
		}
		if (r.payload_bytes > g->content_bytes - g->content_at)
			r.payload_bytes = (uint32_t)(g->content_bytes - g->content_at);
		payload = g->content + g->content_at;
		g->content_at += r.payload_bytes;
	}
	r.sectors = r.payload_bytes / 512;
	if (r.sector + r.sectors > g->disk_sectors)
		r.sector = 0;
	g->next_sector = r.sector + r.sectors;
	if (!reserve(g, sizeof(r) + r.payload_bytes))
		return 0;
	put(g, &r, payload);
	g->made += r.payload_bytes;
	g->records++;
	return 1;
}

static int run(struct gen *g, uint64_t start)
{
	int r = 1;

	while (r > 0 && !stop && (!g->limit || g->made < g->limit)) {
		uint64_t elapsed = now_ns() - start;

		if (g->seconds && elapsed > g->seconds * 1000000000ull)
			break;
		if (g->rate && g->made > elapsed / 1000 * g->rate) {
			settle(g);
			pause_ns(PAUSE_NS);
			continue;
		}
		r = step(g);
		if (!(g->records & 15))
			settle(g);
	}
	return r < 0 ? r : 0;
}

/* All that was made is durable */
static bool drain(struct gen *g)
{
	uint64_t until = now_ns() + DURABLE_WAIT_S * 1000000000ull;

	while (tail(g) != g->head && now_ns() < until && !stop) {
		settle(g);
		pause_ns(PAUSE_NS);
	}
	settle(g);
	return tail(g) == g->head;
}

static int by_value(const void *a, const void *b)
{
	return *(const uint32_t *)a < *(const uint32_t *)b ? -1 : *(const uint32_t *)a > *(const uint32_t *)b;
}

static double quantile(const struct gen *g, double q)
{
	return g->lats ? g->lat_us[(uint32_t)(q * (g->lats - 1))] / 1000.0 : 0;
}

static void report(struct gen *g, uint64_t start, uint64_t end, bool durable)
{
	double s = (double)(end - start) / 1e9;

	qsort(g->lat_us, g->lats, sizeof(*g->lat_us), by_value);
	printf("{\"job\":\"%s\",\"bytes\":%llu,\"records\":%llu,\"seconds\":%.3f,\"mb_per_s\":%.1f,"
	       "\"durable\":%s,\"last_seq\":%llu,\"full_waits\":%llu,\"rpo\":{\"samples\":%u,\"p50_ms\":%.3f,"
	       "\"p99_ms\":%.3f,\"max_ms\":%.3f}}\n", g->job, (unsigned long long)g->made,
	       (unsigned long long)g->records, s, (double)g->made / 1e6 / s, durable ? "true" : "false",
	       (unsigned long long)g->memo->next_seq - 1, (unsigned long long)g->full_waits, g->lats,
	       quantile(g, 0.5), quantile(g, 0.99), quantile(g, 1));
}

static int first_record(struct gen *g)
{
	struct asr_rec r = { .kind = ASR_KIND_DISK, .payload_bytes = sizeof(struct asr_rec_disk) };
	struct asr_rec_disk d = { .sectors = g->disk_sectors, .flags = ASR_DISKF_DIRTY,
				   .name = "bench" };

	if (!g->head)
		put(g, &r, &d);
	return drain(g) ? 0 : -ETIMEDOUT;
}

static int open_image(struct gen *g, const char *path)
{
	cleanup_fd int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);

	if (fd < 0 || ftruncate(fd, (off_t)(g->disk_sectors * 512)))
		return -errno;
	g->image = mmap(NULL, g->disk_sectors * 512, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	return g->image == MAP_FAILED ? -errno : 0;
}

/* 0: image is what the log says it was after record seq */
static int check(const char *log, uint64_t seq, const char *image)
{
	static const uint8_t zero[4096];
	cleanup_file FILE *f = fopen(log, "re");
	cleanup_fd int fd = open(image, O_RDONLY | O_CLOEXEC);
	cleanup_free uint64_t *want = NULL;
	uint64_t none = XXH3_64bits(zero, sizeof(zero)), blocks, bad = 0, seen = 0;
	const uint8_t *data;
	struct stat st;
	struct note n;

	if (!f || fd < 0 || fstat(fd, &st))
		return -errno;
	blocks = (uint64_t)st.st_size / 4096;
	want = malloc(blocks * sizeof(*want));
	data = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
	if (!want || data == MAP_FAILED)
		return -ENOMEM;
	for (uint64_t i = 0; i < blocks; i++)
		want[i] = none;
	while (fread(&n, sizeof(n), 1, f) == 1 && n.seq <= seq && n.block < blocks) {
		want[n.block] = n.hash;
		seen++;
	}
	for (uint64_t i = 0; i < blocks; i++)
		bad += XXH3_64bits(data + i * 4096, 4096) != want[i];
	printf("{\"seq\":%llu,\"blocks_written\":%llu,\"blocks\":%llu,\"differ\":%llu}\n", (unsigned long long)seq,
	       (unsigned long long)seen, (unsigned long long)blocks, (unsigned long long)bad);
	return bad ? -EILSEQ : 0;
}

static const char usage[] =
	"usage: asr-ringgen --ring FILE --create [--ring-size 64M]\n"
	"       asr-ringgen --ring FILE --job rand4k|seq64k|replay [options] [FILE...]\n"
	"       asr-ringgen --check LOG --seq N --image FILE\n"
	"  --bytes N        end after so many bytes       --seconds N    or after this time\n"
	"  --rate N         MB/s (default: full speed)    --disk-size N  of the disk (1G)\n"
	"  --seed N         of the random numbers         --image FILE   keeps what the disk holds\n"
	"  --log FILE       notes every block written\n"
	"  --no-wait        do not wait until all is durable\n";

int main(int argc, char **argv)
{
	static const struct option longs[] = {
		{ "ring", 1, NULL, 'r' }, { "create", 0, NULL, 'c' }, { "ring-size", 1, NULL, 's' },
		{ "job", 1, NULL, 'j' }, { "bytes", 1, NULL, 'b' }, { "seconds", 1, NULL, 't' },
		{ "rate", 1, NULL, 'R' }, { "disk-size", 1, NULL, 'd' }, { "seed", 1, NULL, 'S' },
		{ "image", 1, NULL, 'i' }, { "no-wait", 0, NULL, 'n' }, { "log", 1, NULL, 'l' },
		{ "check", 1, NULL, 'k' }, { "seq", 1, NULL, 'q' }, { "help", 0, NULL, 'h' },
		{ NULL, 0, NULL, 0 },
	};
	struct gen g = { .disk_sectors = (1ull << 30) / 512, .rng = 88172645463325252ull };
	const char *ring = NULL, *image = NULL, *log = NULL, *verify = NULL;
	uint64_t size = ASR_RING_DEFAULT, n = 0, seq = 0, start;
	bool create = false, wait = true, durable = false;
	int c, r = 0;

	while (!r && (c = getopt_long(argc, argv, "", longs, NULL)) != -1) {
		switch (c) {
		case 'r': ring = optarg; break;
		case 'c': create = true; break;
		case 's': r = size_parse(optarg, &size); break;
		case 'j': g.job = optarg; break;
		case 'b': r = size_parse(optarg, &g.limit); break;
		case 't': r = size_parse(optarg, &g.seconds); break;
		case 'R': r = size_parse(optarg, &g.rate); break;
		case 'd': r = size_parse(optarg, &n); g.disk_sectors = n / 512 & ~7ull; break;
		case 'S': r = size_parse(optarg, &n); g.rng += n * 2654435761u; break;
		case 'i': image = optarg; break;
		case 'n': wait = false; break;
		case 'l': log = optarg; break;
		case 'k': verify = optarg; break;
		case 'q': r = size_parse(optarg, &seq); break;
		case 'h': fputs(usage, stdout); return 0;
		default: r = -EINVAL;
		}
	}
	g.files = argv + optind;
	if (!r && verify && image) {
		r = check(verify, seq, image);
		if (r)
			fprintf(stderr, "asr-ringgen: %s\n", r == -EILSEQ ? "the image is another" : strerror(-r));
		return r != 0;
	}
	if (r || !ring || (!create && !g.job) || (g.job && strcmp(g.job, "rand4k") && strcmp(g.job, "seq64k") &&
						  strcmp(g.job, "replay"))) {
		fputs(usage, stderr);
		return 2;
	}
	signal(SIGTERM, on_signal);
	signal(SIGINT, on_signal);
	r = map_file(&g, ring, size, create);
	if (!r && image)
		r = open_image(&g, image);
	if (!r && log && !(g.log = fopen(log, "ae")))
		r = -errno;
	if (!r && g.job)
		r = first_record(&g);
	g.queue = calloc(SAMPLES, sizeof(*g.queue));
	g.lat_us = calloc(SAMPLES, sizeof(*g.lat_us));
	start = now_ns();
	if (!r && g.job) {
		r = run(&g, start);
		durable = wait && drain(&g);
		report(&g, start, now_ns(), durable);
	}
	if (r)
		fprintf(stderr, "asr-ringgen: %s\n", r == -ETIMEDOUT ? "nobody drains the ring" : strerror(-r));
	return r || (g.job && wait && !durable && !stop);
}
