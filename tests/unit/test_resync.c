// SPDX-License-Identifier: Apache-2.0
/* The loop over the dirty map, with a kernel of one disk and one dirty chunk, played here. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>
#include <cmocka.h>

#include "source.h"

/* What resync.c wants of source.c */
static struct {
	uint64_t pos, head;
	bool dirty;
	int fetched, returned;
} k;

uint64_t source_pos(const struct source *s) { return k.pos; }
uint64_t source_head(const struct source *s) { return k.head; }
uint64_t source_tail(const struct source *s) { return k.pos; }
uint64_t source_bytes(const struct source *s) { return ASR_RING_MIN; }
uint32_t source_state(const struct source *s) { return ASR_STATE_CAPTURE; }
bool source_is_file(const struct source *s) { return false; }

int source_ioctl(struct source *s, unsigned long request, void *arg)
{
	switch (request) {
	case ASR_IOC_GROUP_INFO: {
		struct asr_group_info *i = arg;

		i->disks = 1;
		i->dirty_chunks = k.dirty;
		return 0;
	}
	case ASR_IOC_DISK_INFO: {
		struct asr_disk_info *i = arg;

		i->active = 1;
		i->sectors = ASR_CHUNK_SECTORS;
		strcpy(i->name, "data");
		return 0;
	}
	case ASR_IOC_DIRTY_FETCH: {
		struct asr_dirty *d = arg;

		if (d->slot || d->chunk || !k.dirty)
			return d->slot ? -ENOENT : -ENODATA;
		d->count = 1;
		k.dirty = false;
		k.fetched++;
		return 0;
	}
	case ASR_IOC_DIRTY_SET:
		k.dirty = true;
		k.returned++;
		return 0;
	}
	return 0;
}

static int emitted[64];
static uint64_t frames;

static int emit(void *arg, const struct asr_rec *rec, const uint8_t *payload, uint64_t *frame_no)
{
	if (rec)
		emitted[rec->kind]++;
	*frame_no = ++frames;
	return 0;
}

static void kick(void *arg)
{
}

static void step(struct resync *r)
{
	while (resync_step(r, k.pos < k.head) == RESYNC_AGAIN)
		;
}

/* What stands before a disk's record is, at the vault, the disk's that had the slot before. */
static void waits_for_the_disks_record(void **state)
{
	struct resync *r;

	memset(&k, 0, sizeof(k));
	k.head = 4096;			/* its DISK record is in there, not yet consumed */
	k.dirty = true;
	assert_int_equal(resync_create(NULL, NULL, "g", emit, kick, NULL, &r), 0);
	resync_open(r, false);
	step(r);
	assert_int_equal(emitted[ASR_KIND_RESYNC_BEGIN], 1);
	assert_int_equal(k.fetched, 1);
	assert_int_equal(k.returned, 1);
	assert_true(k.dirty);
	/* soon again, not after the pause that an unreadable device gets */
	assert_true(resync_due(r) && resync_due(r) < now_ns() + 100000000);
	assert_int_equal(emitted[ASR_KIND_SYNC] + emitted[ASR_KIND_SYNC_ZEROES], 0);
	assert_int_equal(emitted[ASR_KIND_RESYNC_END], 0);
	resync_destroy(r);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(waits_for_the_disks_record),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
