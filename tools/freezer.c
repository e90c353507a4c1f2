// SPDX-License-Identifier: Apache-2.0
/*
 * A child that freezes one thing, and thaws it whatever happens: a file system (quiet.c), a virtual machine (guest.c).
 *
 * Design. The child makes ready and says so; freezes when a byte comes, and says so; thaws when its socket to asrctl
 * ends: when asrctl says so, at asrctl's death, or at the time limit; and says how that went. A freeze that hangs hangs
 * that child only, which thaws as soon as it does not; asrctl has the thing thawed for a child that was killed. Only
 * who kills both at once leaves it frozen.
 *
 * Invariants. Between freeze and thaw a child waits for nothing but its socket and the clock. Its waiting has a limit,
 * and so has all of asrctl's.
 */
#include "asrctl.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

/* What a child says: that it is ready, of the freeze, of the thaw */
struct said {
	int32_t err;			/* errno, 0 */
	int32_t late;			/* thawed because the time was over */
	char text[256];
};

static void say(int to, int err, bool late, const struct why *why)
{
	struct said s = { .err = -err, .late = late };

	snprintf(s.text, sizeof(s.text), "%.255s", err ? *why->text ? why->text : strerror(-err) : "");
	/* asrctl may be dead: then nobody minds */
	if (send(to, &s, sizeof(s), MSG_NOSIGNAL) < 0)
		return;
}

/* Until asrctl says something, or is dead: 1; 0: the time is over */
static int await_word(int from, uint64_t end)
{
	struct pollfd p = { .fd = from, .events = POLLIN };
	uint64_t now;
	int n;

	do {
		now = now_ns();
		n = now < end ? poll(&p, 1, (int)((end - now) / 1000000) + 1) : 0;
	} while (n < 0 && errno == EINTR);
	return n != 0;
}

/* Whoever reads what asrctl says must not wait for a child that hangs */
static void let_go_of_output(void)
{
	int null = open("/dev/null", O_RDWR | O_CLOEXEC);

	for (int fd = 0; null >= 0 && fd < 3; fd++)
		dup2(null, fd);
}

/* What else asrctl has open, calls to asrd among it, ends with asrctl, not with a child that hangs */
static void keep_only(int a, int b)
{
	unsigned int low = (unsigned int)(a < b ? a : b), high = (unsigned int)(a < b ? b : a);

	if (a < 3)
		low = high;
	if (low > 3)
		close_range(3, low - 1, 0);
	if (high > low + 1)
		close_range(low + 1, high - 1, 0);
	close_range(high + 1, ~0u, 0);
}

static void child(struct freezer *f, int sock, uint64_t limit_ns)
{
	struct why why = {0};
	bool early;
	sigset_t all;
	char go;
	int err;

	sigfillset(&all);
	sigprocmask(SIG_BLOCK, &all, NULL);
	let_go_of_output();
	err = f->kind->ready(f, &why);
	say(sock, err, false, &why);
	if (err || recv(sock, &go, 1, 0) != 1)
		_exit(0);
	err = f->kind->freeze(f, &why);
	if (err) {
		say(sock, err, false, &why);
		if (f->kind->unsure)
			f->kind->unsure(f, limit_ns);
		_exit(0);
	}
	/* whatever happens from here on, it is thawed */
	say(sock, 0, false, NULL);
	early = await_word(sock, now_ns() + limit_ns);
	err = f->kind->thaw(f, &why);
	say(sock, err, !early, &why);
	_exit(0);
}

int freezer_start(struct freezer *f, uint64_t limit_ns, struct why *why)
{
	int pair[2];

	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair))
		return why_set(why, errno, "cannot make a socket pair: %s", strerror(errno));
	f->child = fork();
	if (!f->child) {
		keep_only(f->fd, pair[1]);
		child(f, pair[1], limit_ns);
	}
	close(pair[1]);
	f->sock = pair[0];
	return f->child < 0 ? why_set(why, errno, "cannot fork: %s", strerror(errno)) : 0;
}

/* What the child says next: 1; 0: it is dead; -ETIMEDOUT */
static int hear(const struct freezer *f, uint64_t end, struct said *s)
{
	if (!await_word(f->sock, end))
		return -ETIMEDOUT;
	return recv(f->sock, s, sizeof(*s), 0) == sizeof(*s);
}

/* It has done what it was to do: 0 */
static int heard(struct freezer *f, uint64_t end, const char *what, struct why *why)
{
	struct said s = {0};
	int got = hear(f, end, &s);

	if (got < 0)
		return why_set(why, ETIMEDOUT, "the %s of %.200s does not end%s", what, f->what,
			       *what == 'f' ? "; it will be thawed as soon as it does" : "");
	if (!got)
		return why_set(why, ECANCELED, "whoever was to %s %.200s was killed", what, f->what);
	return s.err ? why_set(why, s.err, "cannot %s %.200s: %s", what, f->what, s.text) : 0;
}

int freezer_ready(struct freezer *f, uint64_t end, struct why *why)
{
	return heard(f, end, f->kind->ready_word, why);
}

int freezer_begin(struct freezer *f, struct why *why)
{
	if (send(f->sock, "", 1, MSG_NOSIGNAL) == 1)
		return 0;
	return why_set(why, errno, "whoever was to freeze %.200s was killed", f->what);
}

int freezer_frozen(struct freezer *f, uint64_t end, struct why *why)
{
	int err = heard(f, end, "freeze", why);

	f->frozen = !err;
	return err;
}

void freezer_release(struct freezer *f)
{
	if (f->sock >= 0)
		shutdown(f->sock, SHUT_WR);
}

int freezer_thawed(struct freezer *f, uint64_t limit_ns, struct why *why)
{
	struct why other = {0};
	struct said s = {0};
	int got = hear(f, now_ns() + limit_ns, &s);

	if (got < 0)
		return why_set(why, ETIMEDOUT, "the thaw of %.200s does not end", f->what);
	if (!got) {	/* killed, while it was frozen */
		int err = f->kind->rescue(f, limit_ns, &other);

		return why_set(why, ECANCELED, "whoever had frozen %.200s was killed; %s%.200s", f->what,
			       err ? "it may still be frozen: " : "it is thawed", err ? other.text : "");
	}
	if (s.late)
		return why_set(why, ETIMEDOUT, "%.200s was thawed when the time was over", f->what);
	return s.err ? why_set(why, s.err, "%.200s was thawed by somebody else, or cannot be: %s", f->what, s.text) : 0;
}
