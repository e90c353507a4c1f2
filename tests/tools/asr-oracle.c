// SPDX-License-Identifier: Apache-2.0
/*
 * asr-oracle - do these images together hold a legal prefix of this write log?
 *
 * Design: call w -> v when w completed before v was issued. A cut is legal when
 *   it is closed under -> : with v it holds every w -> v. So what is visible in
 *   the images forces what else must be there: with M the latest issue of a
 *   visible write, every write that completed before M is required, no other.
 *   A sector is right when what it shows is not older (->) than a required
 *   write to it. Two writes in flight together may stand in either order.
 *   Zeroed ranges carry no stamp: a sector that shows zeroes is explained by the
 *   earliest zeroing that is not older than what is required there; taking it
 *   into the cut may raise M, so this is repeated until M stands still.
 *   A discard leaves its range undefined: it explains any content, likewise.
 * Invariants: M only grows and every sector's duty only grows with it, so a
 *   violation found is one for every legal cut: no false alarm, and by the
 *   minimality of M no excuse is missed either.
 * Context: reads whole images by mmap; memory is 4 bytes per (write, sector).
 *   Several logs are runs one after the other on the same targets: a write left
 *   in flight by an earlier run was decided before the next one began.
 * Not done: lost writes of a volatile cache (the test VM's disks have none);
 *   atomicity of whole writes: the block layer may split one, sectors are whole.
 */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "stamp.h"

#define NEVER		UINT64_MAX
#define MAX_LOGS	64
#define MAX_PRINTED	20

/* One write as the log tells it; orders count through all logs. */
struct write {
	uint64_t seq, sector, issue, complete;
	uint32_t sectors;
	uint8_t target, op, log;
	bool done;	/* it did complete: it can be required */
	bool visible;
};

struct log {
	struct stamp_log_head head;
	const struct stamp_log_entry *e;
	size_t entries;
	uint32_t *by_seq;	/* seq -> index in writes + 1 */
	uint64_t max_seq;
};

struct image {
	const uint8_t *data, *base;	/* base NULL: zeroes */
	uint64_t sectors, base_sectors;
	uint64_t *first;	/* sector -> its first place in list */
	uint32_t *list;		/* indices of the writes that cover it */
	uint32_t *state;	/* what the sector shows, see below */
};

/* state: index + 1 of the write it shows, or: */
#define S_ZERO	0u
#define S_BASE	(UINT32_MAX)		/* as before the workload */
#define S_BAD	(UINT32_MAX - 1)	/* anything else */

struct judge {
	struct log log[MAX_LOGS];
	unsigned logs, targets;
	struct image image[STAMP_MAX_TARGETS];
	struct write *w;
	size_t writes;
	bool base_any, all, silent;
	uint64_t min_seq, max_seq;	/* of the last log; 0: none */
	/* result */
	uint64_t m, violations, visible, low, high, time_ns;
	char place[MAX_PRINTED][200];
};

static void *xcalloc(size_t n, size_t size)
{
	void *p = calloc(n ? n : 1, size);

	if (!p) {
		fprintf(stderr, "asr-oracle: out of memory\n");
		exit(2);
	}
	return p;
}

__attribute__((format(printf, 2, 3)))
static void violation(struct judge *j, const char *fmt, ...)
{
	va_list ap;

	if (j->violations < MAX_PRINTED) {
		va_start(ap, fmt);
		vsnprintf(j->place[j->violations], sizeof(j->place[0]), fmt, ap);
		va_end(ap);
	}
	j->violations++;
}

/* ---- the log ---- */

static size_t count_issues(const struct log *l)
{
	size_t i, n = 0;

	for (i = 0; i < l->entries; i++)
		n += l->e[i].event == STAMP_ISSUE;
	return n;
}

static int add_issue(struct judge *j, unsigned li, const struct stamp_log_entry *e, uint64_t order)
{
	struct log *l = &j->log[li];
	struct write *w = &j->w[j->writes];

	if (e->target >= j->targets || e->seq > l->max_seq || !e->seq || l->by_seq[e->seq] ||
	    e->sector + e->sectors > l->head.target_sectors[e->target])
		return -EINVAL;
	*w = (struct write){ .seq = e->seq, .sector = e->sector, .sectors = e->sectors,
			     .target = e->target, .op = e->op, .log = (uint8_t)li,
			     .issue = order, .complete = NEVER };
	l->by_seq[e->seq] = (uint32_t)++j->writes;
	return 0;
}

static int add_end(struct judge *j, struct log *l, const struct stamp_log_entry *e, uint64_t order)
{
	struct write *w;

	if (!e->seq || e->seq > l->max_seq || !l->by_seq[e->seq])
		return -EINVAL;
	w = &j->w[l->by_seq[e->seq] - 1];
	if (e->event == STAMP_COMPLETE) {
		w->complete = order;
		w->done = true;
	} else if (e->event == STAMP_CANCEL) {
		w->sectors = 0;
	} else if (e->event != STAMP_FAILED) {
		return -EINVAL;
	}
	return 0;
}

/* Orders of log li begin after `base`; returns the last one, 0 if it makes no sense. */
static uint64_t take_log(struct judge *j, unsigned li, uint64_t base)
{
	struct log *l = &j->log[li];
	size_t i, first = j->writes;
	uint64_t last = base;

	for (i = 0; i < l->entries; i++)
		if (l->e[i].seq > l->max_seq)
			l->max_seq = l->e[i].seq;
	if (l->max_seq > l->entries + 1024)
		return 0;
	l->by_seq = xcalloc(l->max_seq + 1, sizeof(*l->by_seq));
	for (i = 0; i < l->entries; i++) {
		const struct stamp_log_entry *e = &l->e[i];
		uint64_t order = base + e->order;

		if (order <= last)
			return 0;
		last = order;
		if (e->event == STAMP_ISSUE ? add_issue(j, li, e, order) : add_end(j, l, e, order))
			return 0;
	}
	/* Whatever this run left in flight was over before the next run. */
	last++;
	if (li + 1 < j->logs)
		for (i = first; i < j->writes; i++)
			if (j->w[i].complete == NEVER)
				j->w[i].complete = last;
	return last;
}

static int take_logs(struct judge *j)
{
	uint64_t last = 0;
	size_t n = 0;
	unsigned i;

	for (i = 0; i < j->logs; i++)
		n += count_issues(&j->log[i]);
	if (n >= S_BAD - 1)
		return -EFBIG;
	j->w = xcalloc(n, sizeof(*j->w));
	for (i = 0; i < j->logs; i++) {
		last = take_log(j, i, last);
		if (!last)
			return -EINVAL;
	}
	return 0;
}

/* ---- the images ---- */

static void index_target(struct judge *j, unsigned t)
{
	struct image *im = &j->image[t];
	uint64_t s, *fill;
	size_t i;

	im->first = xcalloc(im->sectors + 2, sizeof(*im->first));
	for (i = 0; i < j->writes; i++)
		for (s = 0; j->w[i].target == t && s < j->w[i].sectors; s++)
			im->first[j->w[i].sector + s + 1]++;
	for (s = 0; s < im->sectors; s++)
		im->first[s + 1] += im->first[s];
	im->list = xcalloc(im->first[im->sectors], sizeof(*im->list));
	fill = xcalloc(im->sectors, sizeof(*fill));
	for (i = 0; i < j->writes; i++)
		for (s = 0; j->w[i].target == t && s < j->w[i].sectors; s++) {
			uint64_t at = j->w[i].sector + s;

			im->list[im->first[at] + fill[at]++] = (uint32_t)i;
		}
	free(fill);
}

static bool is_zero(const uint8_t *p)
{
	static const uint8_t zero[STAMP_SECTOR];

	return !memcmp(p, zero, STAMP_SECTOR);
}

static bool is_base(const struct judge *j, const struct image *im, uint64_t s, const uint8_t *p)
{
	if (j->base_any)
		return true;
	return im->base && s < im->base_sectors &&
		!memcmp(p, im->base + s * STAMP_SECTOR, STAMP_SECTOR);
}

static struct log *log_of(struct judge *j, uint64_t workload)
{
	unsigned i;

	for (i = 0; i < j->logs; i++)
		if (j->log[i].head.workload == workload)
			return &j->log[i];
	return NULL;
}

/* The write that this sector's stamp names, or why it cannot be. */
static uint32_t name_stamp(struct judge *j, unsigned t, uint64_t sector, const struct stamp *st,
			   const char **why)
{
	struct log *l = log_of(j, st->workload);
	const struct write *w;

	*why = NULL;
	if (st->sum != stamp_sum(st))
		*why = "its checksum is wrong (torn or corrupt)";
	else if (!l)
		*why = "it is of a run without a log";
	else if (st->target != t || st->sector != sector)
		*why = "it was written for another place";
	else if (!st->seq || st->seq > l->max_seq || !l->by_seq[st->seq])
		*why = "it was never issued";
	if (*why)
		return S_BAD;
	w = &j->w[l->by_seq[st->seq] - 1];
	if (w->target != t || sector < w->sector || sector >= w->sector + w->sectors) {
		*why = "its write does not cover this sector";
		return S_BAD;
	}
	return l->by_seq[st->seq];
}

static uint32_t read_sector(struct judge *j, unsigned t, uint64_t s, const char **why)
{
	struct image *im = &j->image[t];
	const uint8_t *p = im->data + s * STAMP_SECTOR;
	struct stamp st;
	uint32_t state;

	*why = "it holds neither a stamp nor zeroes";
	if (is_zero(p))
		return S_ZERO;
	memcpy(&st, p, sizeof(st));
	if (st.magic == STAMP_MAGIC) {
		state = name_stamp(j, t, s, &st, why);
		if (state != S_BAD) {
			if (st.time_ns > j->time_ns)
				j->time_ns = st.time_ns;
			return state;
		}
	}
	return is_base(j, im, s, p) ? S_BASE : S_BAD;
}

static void read_target(struct judge *j, unsigned t)
{
	struct image *im = &j->image[t];
	const char *why;
	uint64_t s;

	im->state = xcalloc(im->sectors, sizeof(*im->state));
	for (s = 0; s < im->sectors; s++) {
		uint32_t st = im->state[s] = read_sector(j, t, s, &why);

		if (st == S_ZERO && im->first[s] == im->first[s + 1] && im->base &&
		    !is_base(j, im, s, im->data + s * STAMP_SECTOR))
			violation(j, "target %u sector %" PRIu64 ": zeroed, and never written", t, s);
		if (st == S_BAD && im->first[s] == im->first[s + 1])
			violation(j, "target %u sector %" PRIu64 ": %s", t, s, why);
		if (st == S_ZERO || st >= S_BAD)
			continue;
		j->w[st - 1].visible = true;
		if (j->w[st - 1].issue > j->m)
			j->m = j->w[st - 1].issue;
	}
}

/* ---- the judgement ---- */

static bool required(const struct judge *j, const struct write *w)
{
	if (!w->done)
		return false;
	return w->complete < j->m || (j->min_seq && w->seq == j->min_seq && w->log == j->logs - 1);
}

/* The latest issue among the required writes to this sector; who, in *by. */
static uint64_t duty(const struct judge *j, const struct image *im, uint64_t s, const struct write **by)
{
	uint64_t k, need = 0;

	for (k = im->first[s]; k < im->first[s + 1]; k++) {
		const struct write *w = &j->w[im->list[k]];

		if (w->op != STAMP_DISCARD && w->issue > need && required(j, w)) {
			need = w->issue;
			*by = w;
		}
	}
	return need;
}

/* The earliest write without a stamp that explains what is seen; NEVER if none. */
static uint64_t excuse(const struct judge *j, const struct image *im, uint64_t s, uint64_t need)
{
	uint64_t k, best = NEVER;

	for (k = im->first[s]; k < im->first[s + 1]; k++) {
		const struct write *w = &j->w[im->list[k]];
		bool fits = w->op == STAMP_DISCARD ||
			(w->op == STAMP_ZERO && im->state[s] == S_ZERO);

		if (fits && w->complete >= need && w->issue < best)
			best = w->issue;
	}
	return best;
}

/* 0: legal as it is; NEVER: cannot be; else M must rise to the value returned. */
static uint64_t weigh(const struct judge *j, const struct image *im, uint64_t s,
		      const struct write **by)
{
	uint32_t st = im->state[s];
	uint64_t need, best;

	*by = NULL;
	need = duty(j, im, s, by);
	if (st != S_ZERO && st < S_BAD && j->w[st - 1].complete >= need)
		return 0;
	if (!need && (st == S_BASE || (st == S_ZERO && (!im->base || is_base(j, im, s,
			im->data + s * STAMP_SECTOR)))))
		return 0;
	best = excuse(j, im, s, need);
	return best <= j->m ? 0 : best;
}

static void settle(struct judge *j)
{
	const struct write *by;
	uint64_t s, r;
	bool again;
	unsigned t;

	do {
		again = false;
		for (t = 0; t < j->targets; t++) {
			struct image *im = &j->image[t];

			for (s = 0; s < im->sectors; s++) {
				if (im->first[s] == im->first[s + 1])
					continue;
				r = weigh(j, im, s, &by);
				if (r && r != NEVER) {
					j->m = r;
					again = true;
				}
			}
		}
	} while (again);
}

static void accuse(struct judge *j, unsigned t, uint64_t s, const struct write *by)
{
	uint32_t st = j->image[t].state[s];
	char shows[64];
	const char *why;

	if (st == S_BAD) {
		read_sector(j, t, s, &why);
		violation(j, "target %u sector %" PRIu64 ": %s", t, s, why);
		return;
	}
	if (st == S_ZERO)
		snprintf(shows, sizeof(shows), "zeroes");
	else if (st == S_BASE)
		snprintf(shows, sizeof(shows), "what was there at first");
	else
		snprintf(shows, sizeof(shows), "write %" PRIu64, j->w[st - 1].seq);
	if (by)
		violation(j, "target %u sector %" PRIu64 ": shows %s, must show write %" PRIu64
			  " or later", t, s, shows, by->seq);
	else
		violation(j, "target %u sector %" PRIu64 ": shows %s, which nothing wrote", t, s, shows);
}

/* low: every write up to it is in the cut; high: none after it is. */
static void bounds(struct judge *j)
{
	bool gap = false;
	size_t i;

	for (i = 0; i < j->writes; i++) {
		const struct write *w = &j->w[i];

		j->visible += w->visible;
		if (w->log != j->logs - 1 || !w->sectors)
			continue;
		if (!w->visible && !required(j, w))
			gap = true;
		else
			j->high = w->seq > j->high ? w->seq : j->high;
		if (!gap)
			j->low = w->seq;
		if (w->visible && j->max_seq && w->seq > j->max_seq)
			violation(j, "write %" PRIu64 " is visible, after %" PRIu64
				  " nothing may be", w->seq, j->max_seq);
	}
}

static void judge_all(struct judge *j)
{
	struct log *l = &j->log[j->logs - 1];
	const struct write *by;
	unsigned t;
	uint64_t s;

	for (t = 0; t < j->targets; t++) {
		index_target(j, t);
		read_target(j, t);
	}
	if (j->min_seq && (j->min_seq > l->max_seq || !l->by_seq[j->min_seq]))
		violation(j, "write %" PRIu64 " must be in the cut, and the log has none", j->min_seq);
	else if (j->min_seq && j->w[l->by_seq[j->min_seq] - 1].issue > j->m)
		j->m = j->w[l->by_seq[j->min_seq] - 1].issue;
	if (j->all)
		j->m = NEVER - 1;
	settle(j);
	for (t = 0; t < j->targets; t++)
		for (s = 0; s < j->image[t].sectors; s++)
			if (j->image[t].first[s] != j->image[t].first[s + 1] &&
			    weigh(j, &j->image[t], s, &by) == NEVER)
				accuse(j, t, s, by);
	bounds(j);
}

static void judge_free(struct judge *j)
{
	unsigned i;

	for (i = 0; i < j->logs; i++)
		free(j->log[i].by_seq);
	for (i = 0; i < j->targets; i++) {
		free(j->image[i].first);
		free(j->image[i].list);
		free(j->image[i].state);
	}
	free(j->w);
}

#include "oracle-selftest.h"

/* ---- files and options ---- */

static const void *map_file(const char *path, size_t *len)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	void *p = NULL;
	off_t n;

	n = fd < 0 ? -1 : lseek(fd, 0, SEEK_END);	/* block devices too */
	if (n > 0)
		p = mmap(NULL, (size_t)n, PROT_READ, MAP_SHARED, fd, 0);
	if (n <= 0 || p == MAP_FAILED) {
		fprintf(stderr, "asr-oracle: %s: %s\n", path, n ? strerror(errno) : "is empty");
		exit(2);
	}
	close(fd);
	*len = (size_t)n;
	return p;
}

static void open_log(struct judge *j, const char *path)
{
	size_t len;
	const uint8_t *p = map_file(path, &len);
	struct log *l = &j->log[j->logs];

	if (j->logs == MAX_LOGS) {
		fprintf(stderr, "asr-oracle: %s: more than %d logs\n", path, MAX_LOGS);
		exit(2);
	}
	if (len >= sizeof(l->head))
		memcpy(&l->head, p, sizeof(l->head));
	if (len < sizeof(l->head) || l->head.magic != STAMP_LOG_MAGIC ||
	    l->head.entry_bytes != sizeof(struct stamp_log_entry) ||
	    !l->head.targets || l->head.targets > STAMP_MAX_TARGETS) {
		fprintf(stderr, "asr-oracle: %s: not a log of asr-stamp\n", path);
		exit(2);
	}
	if (j->logs && l->head.targets != j->targets) {
		fprintf(stderr, "asr-oracle: %s: has %u targets, the log before it %u\n", path,
			l->head.targets, j->targets);
		exit(2);
	}
	j->targets = l->head.targets;
	l->e = (const struct stamp_log_entry *)(p + sizeof(l->head));
	l->entries = (len - sizeof(l->head)) / sizeof(*l->e);	/* a cut tail is no entry */
	j->logs++;
}

static void open_image(struct judge *j, unsigned t, const char *path, const char *base,
		       uint64_t offset)
{
	struct image *im = &j->image[t];
	size_t len;
	unsigned i;

	for (i = 0; i < j->logs; i++)
		if (j->log[i].head.target_sectors[t] > im->sectors)
			im->sectors = j->log[i].head.target_sectors[t];
	im->data = map_file(path, &len);
	if (len < offset || (len - offset) / STAMP_SECTOR < im->sectors) {
		fprintf(stderr, "asr-oracle: %s: %zu bytes from offset %" PRIu64 ", target %u has %"
			PRIu64 "\n", path, len, offset, t, im->sectors * STAMP_SECTOR);
		exit(2);
	}
	im->data += offset;
	if (base) {
		im->base = map_file(base, &len);
		im->base += len < offset ? len : offset;
		im->base_sectors = len < offset ? 0 : (len - offset) / STAMP_SECTOR;
	}
}

static int report(const struct judge *j, bool json)
{
	uint64_t i, shown = j->violations < MAX_PRINTED ? j->violations : MAX_PRINTED;

	if (json) {
		printf("{\"ok\": %s, \"logged\": %zu, \"visible\": %" PRIu64 ", \"low\": %" PRIu64
		       ", \"high\": %" PRIu64 ", \"last_time_ns\": %" PRIu64 ", \"violations\": %"
		       PRIu64 ", \"places\": [", j->violations ? "false" : "true", j->writes,
		       j->visible, j->low, j->high, j->time_ns, j->violations);
		for (i = 0; i < shown; i++)
			printf("%s\"%s\"", i ? ", " : "", j->place[i]);
		printf("]}\n");
		return j->violations ? 1 : 0;
	}
	for (i = 0; i < shown; i++)
		printf("%s\n", j->place[i]);
	if (j->violations)
		printf("NOT A PREFIX: %" PRIu64 " violations, %" PRIu64 " writes visible, %zu logged\n",
		       j->violations, j->visible, j->writes);
	else
		printf("prefix ok: %" PRIu64 " writes visible, cut between seq %" PRIu64 " and %" PRIu64
		       ", %zu logged\n", j->visible, j->low, j->high, j->writes);
	return j->violations ? 1 : 0;
}

static const char usage[] =
	"usage: asr-oracle [OPTION...] --log FILE [--log FILE...] IMAGE...\n"
	"Judge one image per target of the log, in the order asr-stamp was given them.\n"
	"Several logs: runs one after the other on the same targets.\n"
	"  --file-offset N    the target begins N bytes into each image\n"
	"  --base FILE|any    what the targets held before (once per target; default\n"
	"                     zeroes); any: whatever is not a stamp of this log\n"
	"  --min-seq N        write N of the last log must be in the cut\n"
	"  --max-seq N        no write after N may be visible\n"
	"  --all              every completed write must be in the cut\n"
	"  -o json            print one JSON object\n"
	"  --self-test        prove on simulated replays that it refuses what is wrong\n"
	"Exit status: 0 a legal prefix, 1 not, 2 wrong use or unreadable file.\n";

enum { O_LOG = 256, O_OFFSET, O_BASE, O_MIN, O_MAX, O_ALL, O_SELF, O_HELP };

static const struct option options[] = {
	{ "log", 1, NULL, O_LOG }, { "file-offset", 1, NULL, O_OFFSET },
	{ "base", 1, NULL, O_BASE }, { "min-seq", 1, NULL, O_MIN },
	{ "max-seq", 1, NULL, O_MAX }, { "all", 0, NULL, O_ALL },
	{ "self-test", 0, NULL, O_SELF }, { "help", 0, NULL, O_HELP }, { NULL, 0, NULL, 0 },
};

static uint64_t number(const char *s)
{
	char *end;
	uint64_t v;

	errno = 0;
	v = strtoull(s, &end, 0);
	if (errno || end == s || *end) {
		fprintf(stderr, "asr-oracle: bad number '%s'\n", s);
		exit(2);
	}
	return v;
}

int main(int argc, char **argv)
{
	static struct judge j;
	const char *base[STAMP_MAX_TARGETS] = { NULL };
	unsigned bases = 0, t;
	uint64_t offset = 0;
	bool json = false;
	int c;

	while ((c = getopt_long(argc, argv, "o:", options, NULL)) != -1) {
		switch (c) {
		case O_LOG: open_log(&j, optarg); break;
		case O_OFFSET: offset = number(optarg); break;
		case O_BASE:
			if (!strcmp(optarg, "any"))
				j.base_any = true;
			else if (bases < STAMP_MAX_TARGETS)
				base[bases++] = optarg;
			break;
		case O_MIN: j.min_seq = number(optarg); break;
		case O_MAX: j.max_seq = number(optarg); break;
		case O_ALL: j.all = true; break;
		case O_SELF: return self_test();
		case O_HELP: fputs(usage, stdout); return 0;
		case 'o':
			json = !strcmp(optarg, "json");
			if (json)
				break;
			/* fall through */
		default: fputs(usage, stderr); return 2;
		}
	}
	if (!j.logs || (unsigned)(argc - optind) != j.targets) {
		fprintf(stderr, "asr-oracle: %u logs with %u targets, %d images given (see --help)\n",
			j.logs, j.targets, argc - optind);
		return 2;
	}
	for (t = 0; t < j.targets; t++)
		open_image(&j, t, argv[optind + (int)t], base[t], offset);
	if (take_logs(&j)) {
		fprintf(stderr, "asr-oracle: the log contradicts itself\n");
		return 2;
	}
	judge_all(&j);
	return report(&j, json);
}
