/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What marks.c and marksapp.c share: the state of a group's marks.
 */
#ifndef ASR_MARKSINT_H
#define ASR_MARKSINT_H

#include "marks.h"

#define NS_PER_MS	1000000ull
#define NS_PER_S	1000000000ull
#define ASKS_MAX	16
#define APP_LIMIT_MAX_NS (APP_TIMEOUT_MAX * NS_PER_S)
#define APP_LIMITS	10		/* of the user's: all that an application-consistent mark takes */

enum marks_state { IDLE, PLACING, RELEASING };

struct marks {
	struct marks_ops ops;
	void *arg;
	struct marks_member member[MARKS_MEMBERS_MAX];	/* in order of their ids; [0] is the coordinator */
	unsigned int count, me;		/* me: count when this host is not among them */
	uint64_t epoch, mark_ns, hold_ns, incarnation;
	char self_why[160];		/* "": it reads its ring */

	/* as a host */
	struct {
		char name[ASR_NAME_BYTES];	/* "": none yet */
		char from[33];			/* who asked for it; "": this host */
		uint64_t id, until;	/* until: the kernel has ended it by then */
		bool on, held;
	} hold;
	struct {			/* applications, for the mark that a user gave this name */
		enum { LOUD, ASKED, QUIET, MARKED } at;
		char name[ASR_NAME_BYTES], from[33];
		char mark[ASR_NAME_BYTES];	/* placed while they were quiet */
		uint64_t number, limit_ns, until;
	} quiet;
	uint64_t state_due, now;	/* now: of the call under way */

	/* as the coordinator */
	enum marks_state state;
	char name[ASR_NAME_BYTES];	/* of the mark that is tried */
	uint64_t due, deadline;		/* of the next; of this one's state */
	uint64_t not_before;		/* one that is asked for, after one that failed */
	bool asked_for;			/* the mark that is tried is asks[0]'s */
	struct ask {
		char name[ASR_NAME_BYTES];
		char from[33];		/* "": this host */
		uint64_t until;
		uint64_t limit_ns;	/* not 0: with quiet applications */
		/* of one at a time: */
		uint64_t number;
		enum { ASK_WAITS, ASK_QUIET, ASK_READY, ASK_MARKED } at;
		char mark[ASR_NAME_BYTES], failure[200];
		bool said[MARKS_MEMBERS_MAX];
	} asks[ASKS_MAX];
	unsigned int ask_count;

	uint64_t declared, failed, last_declared_ns;
	char last_failure[200];
	struct holds holds, delays;
};

bool marks_coordinates(const struct marks *m);		/* is this host the one who makes the marks? */
void marks_send(struct marks *m, const char *to, enum marks_kind kind, const char *name, const char *text);
const struct marks_member *marks_in_the_way(const struct marks *m);	/* of a mark of all; NULL: nobody */
/* The end of the ith mark that was asked for: mark's whole name, or NULL and why */
void marks_ask_ended(struct marks *m, unsigned int i, const char *mark, const char *why);

/* ---------------------------------------------------------- marksapp.c */

/* As a host: a message; a mark was placed; it was declared, or (r) was not; there will be none; what is due */
void app_on_quiet(struct marks *m, const char *from, const struct marks_msg *msg);
void app_placed(struct marks *m, const char *name, uint64_t number);
void app_marked(struct marks *m, const char *name, int r);
void app_stop_quiet(struct marks *m, const char *why);
void app_expire_quiet(struct marks *m, uint64_t now);
/* As the coordinator: what a host says; begin the next, end what has taken too long; a host is not what it was */
void app_heard(struct marks *m, unsigned int host, const struct marks_msg *msg);
void app_declared(struct marks *m, struct ask *a);	/* the mark that asks for quiet applications is there */
struct ask *app_ask(struct marks *m);	/* whose applications are being made quiet, are, or were; NULL: none */
void app_run(struct marks *m, uint64_t now);
void app_lost(struct marks *m, const char *host, const char *why);

#endif /* ASR_MARKSINT_H */
