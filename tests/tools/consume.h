/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The simplest consumer of door 1 that is right: for tests of the module.
 */
#ifndef CONSUME_H
#define CONSUME_H

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "../../dm-asr/uapi/dm-asr.h"

struct ring {
	int fd;
	uint64_t bytes;
	volatile struct asr_ring_consumer *cons;
	const volatile struct asr_ring_producer *prod;
	const unsigned char *data;	/* mapped twice, back to back */
};

#define die(...) do { \
	fprintf(stderr, "%s:%d: ", __FILE__, __LINE__); \
	fprintf(stderr, __VA_ARGS__); \
	fprintf(stderr, " (errno: %s)\n", strerror(errno)); \
	exit(1); \
} while (0)

static inline int ctl_open(void)
{
	int fd = open("/dev/" ASR_DEVICE_NAME, O_RDWR | O_CLOEXEC);

	if (fd < 0)
		die("cannot open /dev/" ASR_DEVICE_NAME);
	return fd;
}

/* 0 or -errno */
static inline int call(int fd, unsigned long cmd, void *arg)
{
	return ioctl(fd, cmd, arg) ? -errno : 0;
}

static inline void set_name(char *to, const char *from)
{
	snprintf(to, ASR_NAME_BYTES, "%s", from);
}

static inline struct asr_group_info group_info(int fd, const char *group)
{
	struct asr_group_info i = { .index = 0 };
	int r;

	set_name(i.name, group);
	r = call(fd, ASR_IOC_GROUP_INFO, &i);
	if (r)
		die("info of group %s: %d", group, r);
	return i;
}

static inline int ring_attach(struct ring *r, const char *group)
{
	struct asr_attach a = { .flags = 0 };
	unsigned char *twice;
	int err;

	r->fd = ctl_open();
	set_name(a.name, group);
	err = call(r->fd, ASR_IOC_ATTACH, &a);
	if (err) {
		close(r->fd);
		return err;
	}
	r->bytes = a.ring_bytes;
	r->cons = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, r->fd, ASR_MMAP_CONSUMER);
	r->prod = mmap(NULL, 4096, PROT_READ, MAP_SHARED, r->fd, ASR_MMAP_PRODUCER);
	twice = mmap(NULL, 2 * r->bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (r->cons == MAP_FAILED || r->prod == MAP_FAILED || twice == MAP_FAILED)
		die("mmap");
	for (int i = 0; i < 2; i++)
		if (mmap(twice + i * r->bytes, r->bytes, PROT_READ, MAP_SHARED | MAP_FIXED, r->fd,
			 ASR_MMAP_DATA) == MAP_FAILED)
			die("mmap of the data area");
	r->data = twice;
	return 0;
}

static inline const struct asr_rec *ring_at(const struct ring *r, uint64_t pos)
{
	return (const void *)(r->data + (pos & (r->bytes - 1)));
}

/* The record at tail, or NULL: none, or in flight. Barriers B and D. */
static inline const struct asr_rec *ring_next(const struct ring *r, uint64_t tail)
{
	const struct asr_rec *rec = ring_at(r, tail);

	if (__atomic_load_n(&r->prod->head, __ATOMIC_ACQUIRE) == tail)
		return NULL;
	if (rec->pos != tail)
		die("record at %llu says it is at %llu", (unsigned long long)tail,
		    (unsigned long long)rec->pos);
	return __atomic_load_n(&rec->state, __ATOMIC_ACQUIRE) == ASR_REC_BUSY ? NULL : rec;
}

static inline void ring_advance(struct ring *r, uint64_t tail)
{
	__atomic_store_n(&r->cons->tail, tail, __ATOMIC_RELEASE);
}

/* Sleeps until the record at tail is committed or ms are over. Barrier E. */
static inline void ring_wait(struct ring *r, uint64_t tail, int ms)
{
	struct pollfd p = { .fd = r->fd, .events = POLLIN };

	__atomic_store_n(&r->cons->wake, tail + 1, __ATOMIC_RELAXED);
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	if (!ring_next(r, tail))
		poll(&p, 1, ms);
	__atomic_store_n(&r->cons->wake, ~0ULL, __ATOMIC_RELAXED);
}

#endif
