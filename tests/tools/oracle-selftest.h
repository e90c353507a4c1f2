/* SPDX-License-Identifier: Apache-2.0 */
/*
 * oracle-selftest.h - the oracle's own proof, included by asr-oracle.c alone.
 *
 * Design: simulate threads that write to two small targets, with an effect that
 *   falls somewhere between issue and completion; stop at a random moment: that
 *   image is legal by construction and must be accepted. Then break it in one
 *   known way and it must be refused. Only breakages that are illegal for sure
 *   are made, so every "accepted" is a fault of the oracle.
 */
#define ST_TARGETS	2u
#define ST_SECTORS	256u
#define ST_WRITES	300u
#define ST_THREADS	4u
#define ST_ROUNDS	200u

struct sim {
	struct stamp_log_entry log[2 * ST_WRITES];
	size_t entries;
	uint32_t effect[ST_WRITES + 1];	/* event index at which the write took effect */
	struct stamp_log_entry w[ST_WRITES + 1];
	uint64_t issue[ST_WRITES + 1], complete[ST_WRITES + 1];
	uint8_t img[ST_TARGETS][ST_SECTORS * STAMP_SECTOR];
	uint64_t rng;
};

static uint64_t st_rnd(struct sim *s, uint64_t n)
{
	s->rng ^= s->rng << 13;
	s->rng ^= s->rng >> 7;
	s->rng ^= s->rng << 17;
	return s->rng % n;
}

static void st_run(struct sim *s, bool zero, bool discard)
{
	uint32_t flying[ST_THREADS] = { 0 }, seq = 0;

	s->entries = 0;
	memset(s->w, 0, sizeof(s->w));
	memset(s->effect, 0xff, sizeof(s->effect));
	memset(s->complete, 0xff, sizeof(s->complete));
	while (s->entries < 2 * ST_WRITES - ST_THREADS && seq < ST_WRITES) {
		uint32_t t = (uint32_t)st_rnd(s, ST_THREADS), q = flying[t];
		struct stamp_log_entry *e = &s->log[s->entries];

		if (q) {
			*e = s->w[q];
			e->event = STAMP_COMPLETE;
			s->complete[q] = s->entries + 1;
			s->effect[q] = (uint32_t)(st_rnd(s, 2) ? s->issue[q] : s->complete[q]);
			flying[t] = 0;
		} else {
			q = flying[t] = ++seq;
			s->w[q] = (struct stamp_log_entry){ .seq = q, .target =
				(uint8_t)st_rnd(s, ST_TARGETS), .thread = (uint8_t)t,
				.op = STAMP_WRITE, .sectors = 1 + (uint32_t)st_rnd(s, 12) };
			s->w[q].sector = st_rnd(s, ST_SECTORS - s->w[q].sectors);
			if (zero && !st_rnd(s, 5))
				s->w[q].op = STAMP_ZERO;
			if (discard && !st_rnd(s, 5))
				s->w[q].op = STAMP_DISCARD;
			*e = s->w[q];
			e->event = STAMP_ISSUE;
			s->issue[q] = s->entries + 1;
		}
		e->order = ++s->entries;
	}
}

static void st_put(struct sim *s, uint32_t q, uint32_t i)
{
	const struct stamp_log_entry *w = &s->w[q];
	uint8_t *p = s->img[w->target] + (w->sector + i) * STAMP_SECTOR;

	if (w->op == STAMP_ZERO)
		memset(p, 0, STAMP_SECTOR);
	else if (w->op == STAMP_DISCARD)
		memset(p, (int)st_rnd(s, 256), STAMP_SECTOR);
	else
		stamp_make((struct stamp *)(void *)p, 1, q, w->sector + i, 0, w->sectors, w->target,
			   w->thread);
}

/* Images as of event `cut`, as if write `without` had never been. */
static void st_replay(struct sim *s, uint32_t cut, uint32_t without)
{
	uint32_t ev, q, i;

	memset(s->img, 0, sizeof(s->img));
	for (ev = 1; ev <= cut; ev++)
		for (q = 1; q <= ST_WRITES; q++)
			for (i = 0; s->effect[q] == ev && q != without && i < s->w[q].sectors; i++)
				st_put(s, q, i);
}

static uint64_t st_judge(struct sim *s, uint64_t min_seq, uint64_t max_seq, bool all)
{
	static struct judge j;
	uint64_t v;
	unsigned t;

	memset(&j, 0, sizeof(j));
	j.logs = 1;
	j.targets = ST_TARGETS;
	j.min_seq = min_seq;
	j.max_seq = max_seq;
	j.all = all;
	j.log[0].head.workload = 1;
	j.log[0].e = s->log;
	j.log[0].entries = s->entries;
	for (t = 0; t < ST_TARGETS; t++) {
		j.log[0].head.target_sectors[t] = ST_SECTORS;
		j.image[t].data = s->img[t];
		j.image[t].sectors = ST_SECTORS;
	}
	if (take_logs(&j)) {
		fprintf(stderr, "self-test: the simulated log is refused\n");
		exit(1);
	}
	judge_all(&j);
	v = j.violations;
	judge_free(&j);
	return v;
}

static uint64_t st_seq_at(const struct sim *s, unsigned t, uint32_t sector)
{
	struct stamp st;

	memcpy(&st, s->img[t] + (size_t)sector * STAMP_SECTOR, sizeof(st));
	return st.magic == STAMP_MAGIC ? st.seq : 0;
}

/* The latest issue of any write visible now. */
static uint64_t st_latest(const struct sim *s)
{
	uint64_t q, m = 0;
	uint32_t t, i;

	for (t = 0; t < ST_TARGETS; t++)
		for (i = 0; i < ST_SECTORS; i++) {
			q = st_seq_at(s, t, i);
			if (q && s->issue[q] > m)
				m = s->issue[q];
		}
	return m;
}

/* A visible write that must be there whatever else is dropped; 0 if none. */
static uint32_t st_victim(struct sim *s)
{
	uint64_t m = st_latest(s);
	uint32_t tries, q;

	for (tries = 0; tries < 1000; tries++) {
		q = (uint32_t)st_seq_at(s, (unsigned)st_rnd(s, ST_TARGETS),
					(uint32_t)st_rnd(s, ST_SECTORS));
		if (q && s->complete[q] < m)
			return q;
	}
	return 0;
}

static uint8_t *st_sector_of(struct sim *s, uint32_t q)
{
	uint32_t i;

	for (i = 0; i < s->w[q].sectors; i++)
		if (st_seq_at(s, s->w[q].target, (uint32_t)s->w[q].sector + i) == q)
			return s->img[s->w[q].target] + (s->w[q].sector + i) * STAMP_SECTOR;
	return NULL;
}

enum st_break { ST_DROP, ST_TEAR, ST_CORRUPT, ST_MISPLACE, ST_UNISSUED, ST_OLDER, ST_SPLIT, ST_KINDS };

static const char *const st_names[ST_KINDS] = {
	"a write dropped", "a write torn", "a byte flipped", "a sector in the wrong place",
	"a write never issued", "an older write over a newer one", "one target older than the other",
};

/* An older completed write of the same sector, ordered before q, or 0. */
static uint32_t st_older(const struct sim *s, uint32_t q, uint64_t sector)
{
	uint32_t o;

	for (o = 1; o < q; o++)
		if (s->w[o].target == s->w[q].target && sector >= s->w[o].sector &&
		    sector < s->w[o].sector + s->w[o].sectors && s->complete[o] < s->issue[q])
			return o;
	return 0;
}

static bool st_break_split(struct sim *s, uint32_t cut)
{
	static uint8_t keep[ST_SECTORS * STAMP_SECTOR];
	uint64_t m, i, q;

	/* Target 1 as of now, target 0 as of half the time: wrong if it then lacks
	 * a write that had completed before something visible was issued.
	 */
	memcpy(keep, s->img[1], sizeof(keep));
	m = st_latest(s);
	st_replay(s, cut / 2, 0);
	memcpy(s->img[1], keep, sizeof(keep));
	m = st_latest(s) < m ? st_latest(s) : m;
	for (q = 1; q <= ST_WRITES; q++) {
		if (s->w[q].target || s->effect[q] <= cut / 2 || s->complete[q] >= m)
			continue;
		for (i = 0; i < s->w[q].sectors; i++) {
			uint64_t at = st_seq_at(s, 0, (uint32_t)(s->w[q].sector + i));

			if (!at || s->complete[at] < s->issue[q])
				return true;
		}
	}
	return false;
}

/* False: nothing was broken that must be refused. */
static bool st_break(struct sim *s, enum st_break kind, uint32_t cut)
{
	uint32_t q = st_victim(s), o;
	uint8_t *p = q ? st_sector_of(s, q) : NULL;
	uint64_t m = st_latest(s), sector;
	struct stamp st;

	if (!q || !p)
		return false;
	memcpy(&st, p, sizeof(st));
	sector = st.sector;
	switch (kind) {
	case ST_DROP:
		st_replay(s, cut, q);
		/* Still required, and not covered by a write in flight with it? */
		m = st_latest(s);
		o = (uint32_t)st_seq_at(s, s->w[q].target, (uint32_t)sector);
		return s->complete[q] < m && (!o || s->complete[o] < s->issue[q]);
	case ST_TEAR:
		memcpy(p + 256, p, 128);
		return true;
	case ST_CORRUPT:
		p[st_rnd(s, STAMP_SECTOR)] ^= (uint8_t)(1 + st_rnd(s, 255));
		return true;
	case ST_MISPLACE:
		o = (uint32_t)((sector + 1 + st_rnd(s, ST_SECTORS - 1)) % ST_SECTORS);
		memcpy(s->img[s->w[q].target] + (size_t)o * STAMP_SECTOR, &st, sizeof(st));
		return true;
	case ST_UNISSUED:
		stamp_make(&st, 1, ST_WRITES + 1 + st_rnd(s, 5), sector, 0, 1, st.target, 0);
		memcpy(p, &st, sizeof(st));
		return true;
	case ST_OLDER:
		o = st_older(s, q, sector);
		if (!o)
			return false;
		st_put(s, o, (uint32_t)(sector - s->w[o].sector));
		return s->complete[q] < st_latest(s);
	case ST_SPLIT:
		return st_break_split(s, cut);
	default:
		return false;
	}
}

static int st_fault(const char *what, unsigned round)
{
	fprintf(stderr, "self-test: %s (round %u)\n", what, round);
	return 1;
}

static int self_test(void)
{
	static struct sim s;
	unsigned round, kind, refused[ST_KINDS] = { 0 };
	uint64_t high;
	uint32_t cut;

	for (round = 0; round < ST_ROUNDS; round++) {
		s.rng = (round + 1) * 0x9e3779b97f4a7c15ull;
		st_run(&s, round % 3 == 1, round % 3 == 2);
		cut = (uint32_t)st_rnd(&s, s.entries + 1);
		st_replay(&s, cut, 0);
		if (st_judge(&s, 0, 0, false))
			return st_fault("a legal prefix was refused", round);
		if (round % 3)
			continue;
		for (kind = 0; kind < ST_KINDS; kind++) {
			st_replay(&s, cut, 0);
			if (!st_break(&s, (enum st_break)kind, cut))
				continue;
			if (!st_judge(&s, 0, 0, false)) {
				fprintf(stderr, "self-test: accepted: %s (round %u)\n",
					st_names[kind], round);
				return 1;
			}
			refused[kind]++;
		}
		/* The ends: all of it is there, one more than there is is refused. */
		st_replay(&s, (uint32_t)s.entries, 0);
		if (st_judge(&s, 0, 0, true))
			return st_fault("the whole log was refused", round);
		for (high = ST_WRITES; high && s.complete[high] == NEVER; high--)
			;
		st_replay(&s, (uint32_t)s.entries / 2, 0);
		if (!st_judge(&s, high, 0, false) || !st_judge(&s, 0, 1, false) ||
		    !st_judge(&s, 0, 0, true))
			return st_fault("a cut outside the bounds was accepted", round);
	}
	for (kind = 0; kind < ST_KINDS; kind++) {
		if (refused[kind] < 5)
			return st_fault("a kind of breakage was hardly tried", kind);
		printf("refused %3u times: %s\n", refused[kind], st_names[kind]);
	}
	printf("self-test ok: %u legal prefixes accepted\n", round);
	return 0;
}
