/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Marks over several hosts: the protocol of docs/architecture.md, whose model is
 * tests/model/group-mark.pml. What is here has that model's names.
 *
 * marks.c is pure: no clock, no network, no kernel, but what it is given.
 */
#ifndef ASR_MARKS_H
#define ASR_MARKS_H

#include "asr.h"

#define MARKS_MEMBERS_MAX	64

enum marks_kind {
	MARKS_STATE = 1,	/* incarnation, epoch, ready or why not; time_ns: of the sender's clock */
	MARKS_MARK,		/* coordinator -> host: name, epoch, hold_ns, the host's incarnation; number, or 0 */
	MARKS_PLACED,		/* host -> coordinator: name */
	MARKS_REFUSED,		/* host -> coordinator: name, text */
	MARKS_RELEASE,		/* coordinator -> host: name, the host's incarnation */
	MARKS_HELD,		/* host -> coordinator: name */
	MARKS_BROKEN,		/* host -> coordinator: name, text */
	MARKS_DECLARE,		/* coordinator -> host: name */
	MARKS_ASK,		/* host -> coordinator: name, as a user gave it; hold_ns: see marks_ask's limit_ns */
	MARKS_DONE,		/* coordinator -> who asked: name, as given; text: the mark's whole name */
	MARKS_FAILED,		/* coordinator -> who asked: name, as given; text: why */
	/* with a number, which stands for this try to make applications quiet, and the name as given */
	MARKS_QUIET,		/* coordinator -> host: hold_ns: limit, the host's incarnation */
	MARKS_IS_QUIET,		/* host -> coordinator: text: why they are not, or no longer; "": they are */
	MARKS_LOUD,		/* coordinator -> host: text: there is no mark, why */
	MARKS_IS_LOUD,		/* host -> coordinator: text: why the mark is not declared there; "": it is */
};

struct marks_msg {
	enum marks_kind kind;
	bool ready;			/* STATE */
	char name[ASR_NAME_BYTES];
	uint64_t epoch, incarnation, hold_ns, time_ns, number;
	char text[160];
};

/* As JSON, with the group; and back: -EBADMSG. Pure, fuzzed */
json_t *marks_msg_json(const struct marks_msg *m, const uint8_t group[ASR_UUID_BYTES]);
int marks_msg_parse(const json_t *j, struct marks_msg *m, uint8_t group[ASR_UUID_BYTES]);

void marks_clean(char *text);	/* what is no printable ASCII becomes ? */

/* Durations, in steps of an eighth of a power of two: 1 us to 1 s and more */
#define HOLDS_BUCKETS	176
struct holds {
	uint64_t count, max_ns, bucket[HOLDS_BUCKETS];
};
void holds_add(struct holds *h, uint64_t ns, uint64_t times);
uint64_t holds_quantile(const struct holds *h, double q);	/* upper bound of its bucket, at most max_ns */
json_t *holds_json(const struct holds *h);		/* {count, p50_us, p99_us, max_us, buckets: [{le_us, count}]} */

struct marks_ops {
	int (*mark)(void *arg, struct asr_mark *m);		/* ASR_IOC_MARK */
	int (*release)(void *arg, struct asr_release *r);	/* ASR_IOC_RELEASE */
	void (*send)(void *arg, const char *host_id, const struct marks_msg *m);
	/* The end of a mark that marks_ask was called for here: mark's whole name, or why not */
	void (*asked)(void *arg, const char *name, const char *mark, const char *why);
	uint64_t (*random)(void *arg);
	/* Makes this host's applications quiet; marks_quiet has the end. NULL, or why it cannot be tried */
	const char *(*quiet)(void *arg, const char *name, uint64_t number, uint64_t limit_ns);
	/* They may go on. mark: its whole name, to be declared app; marks_loud has the end. NULL: why there is none */
	void (*loud)(void *arg, const char *name, const char *mark, uint64_t id, const char *why);
};

struct marks_member {
	char host_id[33], host[ASR_NAME_BYTES];
	bool up;			/* connected, or this host */
	bool placed, held;
	uint64_t incarnation, epoch;
	uint64_t since_ns;		/* of the state below */
	char why[160];			/* it cannot take part; "": it can */
	int64_t skew_ns;		/* its clock less ours, as far as messages tell */
};

struct marks;
int marks_create(const struct marks_ops *ops, void *arg, struct marks **out);
void marks_destroy(struct marks *m);			/* NULL is fine */
/* Who is in the group. me: its own id. mark_ms 0: none but those that are asked for. Host ids in order */
void marks_set(struct marks *m, const char *me, uint64_t epoch, uint64_t mark_ms, uint64_t hold_ms,
	       const struct marks_member *list, unsigned int count, uint64_t now);
/* This host reads its ring (why NULL), or not; another incarnation each time it begins to */
void marks_self(struct marks *m, uint64_t incarnation, const char *why, uint64_t now);
void marks_peer(struct marks *m, const char *host_id, bool up, const char *why, uint64_t now);
/* time_real: now, by the wall clock */
void marks_message(struct marks *m, const char *host_id, const struct marks_msg *msg, uint64_t now,
		   uint64_t time_real);
/* Does what is due. Returns when to come again (now's clock); 0: when something has happened */
uint64_t marks_tick(struct marks *m, uint64_t now, uint64_t time_real);
/*
 * A mark of that name, as soon as can be: ops->asked has the end. -EINVAL, -EBUSY: too many wait, -ENOTCONN: who makes
 * the marks is away. limit_ns not 0: with the applications of all hosts quiet, for so long at most
 */
int marks_ask(struct marks *m, const char *name, uint64_t limit_ns, uint64_t now);
/* Is it still wanted that they become quiet? number: as ops->quiet had it */
bool marks_wants_quiet(const struct marks *m, uint64_t number);
/* This host's applications are quiet, or (why) are not, or no longer. -ESTALE: nobody waits for that. number 0: any */
int marks_quiet(struct marks *m, uint64_t number, const char *why, uint64_t now);
/* They go on; the mark is declared app, or (why) is not. -ESTALE */
int marks_loud(struct marks *m, uint64_t number, const char *why, uint64_t now);
bool marks_wanted(const struct marks *m);		/* the group is on several hosts */
uint64_t marks_epoch(const struct marks *m);
const struct marks_member *marks_member(const struct marks *m, unsigned int i);	/* NULL: no more */
json_t *marks_json(const struct marks *m, uint64_t now, uint64_t time_real);

#endif /* ASR_MARKS_H */
