// SPDX-License-Identifier: Apache-2.0
/*
 * The one io_uring of a program: readiness, sockets, timers and files.
 *
 * Design: an operation is a struct loop_op embedded in its owner; its address
 * is the completion's user data. Submissions gather over a turn and go down
 * with the wait, one system call a turn. Completions are handled in a batch;
 * then the idle hooks run, for work that gathers over a turn (framing, group
 * commit, sending).
 *
 * Invariants: an op is active from submission until its last completion has
 * been handled; its owner keeps it, and any buffer it names, alive until then.
 * loop_cancel only asks: done still runs once.
 *
 * Context: one thread. done and idle functions may submit and cancel, and may
 * free the op they were called for.
 */
#include "asr.h"

#include <errno.h>
#include <liburing.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/signalfd.h>

struct loop {
	struct io_uring ring;
	struct loop_idle *idles;
	bool stop;
	int signal_fd;
	struct loop_op signal_op;
	void (*signal_fn)(int sig, void *arg);
	void *signal_arg;
};

int loop_create(struct loop **out, unsigned int entries)
{
	struct loop *l = calloc(1, sizeof(*l));
	int ret;

	if (!l)
		return -ENOMEM;
	l->signal_fd = -1;
	ret = io_uring_queue_init(entries, &l->ring, IORING_SETUP_CLAMP);
	if (ret < 0) {
		free(l);
		return ret;
	}
	*out = l;
	return 0;
}

void loop_destroy(struct loop *l)
{
	if (!l)
		return;
	io_uring_queue_exit(&l->ring);
	if (l->signal_fd >= 0)
		close(l->signal_fd);
	free(l);
}

void loop_stop(struct loop *l)
{
	l->stop = true;
}

void loop_idle_add(struct loop *l, struct loop_idle *idle)
{
	idle->next = l->idles;
	l->idles = idle;
}

void loop_idle_remove(struct loop *l, struct loop_idle *idle)
{
	for (struct loop_idle **p = &l->idles; *p; p = &(*p)->next) {
		if (*p == idle) {
			*p = idle->next;
			return;
		}
	}
}

static void complete(struct io_uring_cqe *cqe)
{
	struct loop_op *op = io_uring_cqe_get_data(cqe);
	int res = cqe->res;
	unsigned int flags = cqe->flags;

	if (!op)
		return;	/* a cancel request's own */
	if (!(flags & IORING_CQE_F_MORE))
		op->active = false;
	op->done(op, res, flags);
}

/* Handles what has completed, in batches, so that the ring's slots are free again soon */
static void complete_all(struct loop *l)
{
	struct io_uring_cqe *batch[64], copy[64];
	unsigned int n;

	do {
		n = io_uring_peek_batch_cqe(&l->ring, batch, 64);
		for (unsigned int i = 0; i < n; i++)
			memcpy(&copy[i], batch[i], sizeof(copy[i]));
		io_uring_cq_advance(&l->ring, n);
		for (unsigned int i = 0; i < n; i++)
			complete(&copy[i]);
	} while (n == 64);
}

int loop_run(struct loop *l)
{
	int ret;

	l->stop = false;
	while (!l->stop) {
		for (struct loop_idle *i = l->idles, *next; i; i = next) {
			next = i->next;
			i->fn(i->arg);
		}
		if (l->stop)
			break;
		ret = io_uring_submit_and_wait(&l->ring, 1);
		if (ret < 0 && ret != -EINTR && ret != -EAGAIN && ret != -EBUSY)
			return ret;
		complete_all(l);
	}
	return 0;
}

/* A submission slot; when the queue is full what stands in it goes down first */
static struct io_uring_sqe *slot(struct loop *l, struct loop_op *op)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(&l->ring);

	while (!sqe) {
		io_uring_submit(&l->ring);
		sqe = io_uring_get_sqe(&l->ring);
	}
	if (op) {
		op->active = true;
		op->cancelled = false;
	}
	return sqe;
}

void loop_flush(struct loop *l)
{
	io_uring_submit(&l->ring);
}

void loop_poll(struct loop *l, struct loop_op *op, int fd, unsigned int events, bool multishot)
{
	struct io_uring_sqe *sqe = slot(l, op);

	if (multishot)
		io_uring_prep_poll_multishot(sqe, fd, events);
	else
		io_uring_prep_poll_add(sqe, fd, events);
	io_uring_sqe_set_data(sqe, op);
}

void loop_accept(struct loop *l, struct loop_op *op, int fd, bool multishot)
{
	struct io_uring_sqe *sqe = slot(l, op);

	if (multishot)
		io_uring_prep_multishot_accept(sqe, fd, NULL, NULL, SOCK_CLOEXEC);
	else
		io_uring_prep_accept(sqe, fd, NULL, NULL, SOCK_CLOEXEC);
	io_uring_sqe_set_data(sqe, op);
}

void loop_connect(struct loop *l, struct loop_op *op, int fd, const void *addr, unsigned int len)
{
	struct io_uring_sqe *sqe = slot(l, op);

	io_uring_prep_connect(sqe, fd, addr, len);
	io_uring_sqe_set_data(sqe, op);
}

void loop_recv(struct loop *l, struct loop_op *op, int fd, void *buf, size_t n)
{
	struct io_uring_sqe *sqe = slot(l, op);

	io_uring_prep_recv(sqe, fd, buf, n, 0);
	io_uring_sqe_set_data(sqe, op);
}

void loop_send(struct loop *l, struct loop_op *op, int fd, const void *buf, size_t n)
{
	struct io_uring_sqe *sqe = slot(l, op);

	io_uring_prep_send(sqe, fd, buf, n, MSG_NOSIGNAL);
	io_uring_sqe_set_data(sqe, op);
}

void loop_read(struct loop *l, struct loop_op *op, int fd, void *buf, size_t n, uint64_t off)
{
	struct io_uring_sqe *sqe = slot(l, op);

	io_uring_prep_read(sqe, fd, buf, (unsigned int)n, off);
	io_uring_sqe_set_data(sqe, op);
}

void loop_write(struct loop *l, struct loop_op *op, int fd, const void *buf, size_t n, uint64_t off)
{
	struct io_uring_sqe *sqe = slot(l, op);

	io_uring_prep_write(sqe, fd, buf, (unsigned int)n, off);
	io_uring_sqe_set_data(sqe, op);
}

void loop_fdatasync(struct loop *l, struct loop_op *op, int fd)
{
	struct io_uring_sqe *sqe = slot(l, op);

	io_uring_prep_fsync(sqe, fd, IORING_FSYNC_DATASYNC);
	io_uring_sqe_set_data(sqe, op);
}

void loop_timeout(struct loop *l, struct loop_op *op, uint64_t ns)
{
	struct io_uring_sqe *sqe = slot(l, op);

	op->ts[0] = (int64_t)(ns / 1000000000ULL);
	op->ts[1] = (int64_t)(ns % 1000000000ULL);
	_Static_assert(sizeof(struct __kernel_timespec) == sizeof(op->ts), "ts is a timespec");
	io_uring_prep_timeout(sqe, (struct __kernel_timespec *)op->ts, 0, 0);
	io_uring_sqe_set_data(sqe, op);
}

void loop_cancel(struct loop *l, struct loop_op *op)
{
	struct io_uring_sqe *sqe;

	if (!op->active || op->cancelled)
		return;
	sqe = slot(l, NULL);
	io_uring_prep_cancel(sqe, op, 0);
	io_uring_sqe_set_data(sqe, NULL);
	op->cancelled = true;
}

static void on_signal(struct loop_op *op, int res, unsigned int flags)
{
	struct loop *l = op->arg;
	struct signalfd_siginfo si;

	if (res == -ECANCELED)
		return;
	while (read(l->signal_fd, &si, sizeof(si)) == sizeof(si))
		l->signal_fn((int)si.ssi_signo, l->signal_arg);
	loop_poll(l, op, l->signal_fd, POLLIN, false);
}

int loop_signals(struct loop *l, void (*fn)(int sig, void *arg), void *arg)
{
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGINT);
	signal(SIGPIPE, SIG_IGN);
	if (sigprocmask(SIG_BLOCK, &set, NULL) < 0)
		return -errno;
	l->signal_fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
	if (l->signal_fd < 0)
		return -errno;
	l->signal_fn = fn;
	l->signal_arg = arg;
	l->signal_op = (struct loop_op){ .done = on_signal, .arg = l };
	loop_poll(l, &l->signal_op, l->signal_fd, POLLIN, false);
	return 0;
}
