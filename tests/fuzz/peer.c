// SPDX-License-Identifier: Apache-2.0
/* What one host says to another (MSG_PEER): marks_msg_parse, and a host and a coordinator that act on it. */
#include "../../userland/marks.h"

#include <assert.h>
#include <errno.h>
#include <string.h>

static int mark(void *arg, struct asr_mark *m)
{
	m->id = 1;
	return m->flags & ASR_MARK_DECLARE ? -ESTALE : 0;
}

static int release(void *arg, struct asr_release *r)
{
	return 0;
}

static void send(void *arg, const char *host_id, const struct marks_msg *m)
{
	uint8_t group[ASR_UUID_BYTES] = { 1 }, back[ASR_UUID_BYTES];
	json_t *j = marks_msg_json(m, group);
	struct marks_msg again;

	assert(!marks_msg_parse(j, &again, back));	/* what we say, we understand */
	assert(again.kind == m->kind && !strcmp(again.name, m->name));
	json_decref(j);
}

static void asked(void *arg, const char *name, const char *whole, const char *why)
{
}

static uint64_t number(void *arg)
{
	return 7;
}

/* Five bytes make a message that could come, in any order */
static void invent(const uint8_t *d, struct marks_msg *m)
{
	static const char *const names[] = {
		"auto+00010000000000000007", "auto+00020000000000000007", "x", "auto+0001",
	};

	*m = (struct marks_msg){ .kind = (enum marks_kind)(1 + d[0] % MARKS_FAILED), .ready = d[0] >> 7,
				 .epoch = d[1] % 3, .incarnation = 4 + d[2] % 4, .hold_ns = d[3], .time_ns = d[4] };
	strcpy(m->name, names[d[3] % 4]);
	snprintf(m->text, sizeof(m->text), "text %u", d[4]);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
	static const struct marks_ops ops = { mark, release, send, asked, number };
	struct marks_member list[2] = { { .host_id = "a", .host = "A" }, { .host_id = "b", .host = "B" } };
	json_t *j = json_loadb((const char *)data, bytes, JSON_REJECT_DUPLICATES, NULL);
	uint8_t group[ASR_UUID_BYTES];
	struct marks_msg m = { .kind = MARKS_STATE };
	struct marks *host, *coordinator;
	uint64_t now = 1;

	if (j && !marks_msg_parse(j, &m, group))
		assert(memchr(m.name, 0, sizeof(m.name)) && memchr(m.text, 0, sizeof(m.text)));
	json_decref(j);
	if (marks_create(&ops, NULL, &host) || marks_create(&ops, NULL, &coordinator))
		return 0;
	marks_set(host, "b", 1, 1000, 50, list, 2, 1);
	marks_set(coordinator, "a", 1, 1000, 50, list, 2, 1);
	marks_self(host, 5, NULL, 1);
	marks_self(coordinator, 6, NULL, 1);
	marks_peer(host, "a", true, "", 1);
	marks_peer(coordinator, "b", true, "", 1);
	for (;;) {
		now += data && bytes ? data[0] * 10000000ull : 1;
		marks_message(host, "a", &m, now, now);
		marks_message(coordinator, "b", &m, now, now);
		marks_tick(host, now, now);
		marks_tick(coordinator, now, now);
		if (bytes < 5)
			break;
		invent(data, &m);
		data += 5;
		bytes -= 5;
	}
	json_decref(marks_json(coordinator, now, now));
	marks_destroy(host);
	marks_destroy(coordinator);
	return 0;
}
