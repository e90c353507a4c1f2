// SPDX-License-Identifier: Apache-2.0
/*
 * What a spool's files look like, and whether bytes are that.
 *
 * Design. A group's folder in the spool holds one header file and any number
 * of frame files, NNNNNNNNNNNNNNNN.frames (the number of the first frame in it,
 * hex): frames as wire.h draws them, one behind the other, each padded with
 * zeroes to 8 bytes. Frames are numbered over the whole spool and repeat the
 * tag of the frame before them, so that nothing can be missing in between
 * without being noticed. Each file is a session of its own.
 *
 * The header says whose it is. Its tag is a section without content, sealed
 * under the group data key with the header as AAD: a spool of a group with
 * the same names and another key is told from a damaged one.
 *
 * Invariants: no read outside the bytes given; every refusal says what is wrong.
 *
 * Context: pure, any thread; fuzzed.
 */
#include <errno.h>
#include <string.h>
#include <xxhash.h>

#include "source.h"

_Static_assert(sizeof(struct spool_header) == 312, "spool_header is part of the format");

#define SECTION_HEADER	3	/* beside 1 digests, 2 payload of a frame */

static uint64_t checksum(const struct spool_header *h)
{
	return XXH64(h, offsetof(struct spool_header, checksum), 0);
}

static int header_tag(const struct spool_header *h, const uint8_t *key, bool make, uint8_t tag[ASR_TAG_BYTES])
{
	uint8_t none[1];
	struct seal *s;
	int r = seal_create(key, h->session, &s);

	if (r)
		return r;
	r = make ? seal_section(s, 0, SECTION_HEADER, h, offsetof(struct spool_header, tag), NULL, 0, tag) :
		   seal_open(s, 0, SECTION_HEADER, h, offsetof(struct spool_header, tag), none, 0, tag, none);
	seal_destroy(s);
	return r;
}

int spool_header_make(struct spool_header *h, const struct spool_owner *o)
{
	int r;

	memset(h, 0, sizeof(*h));
	memcpy(h->magic, SPOOL_MAGIC, sizeof(h->magic));
	h->version = SPOOL_VERSION;
	h->bytes = sizeof(*h);
	memcpy(h->group, o->group, ASR_UUID_BYTES);
	memcpy(h->stream, o->stream, ASR_UUID_BYTES);
	snprintf(h->host_id, sizeof(h->host_id), "%s", o->host_id);
	snprintf(h->host, sizeof(h->host), "%s", o->host);
	snprintf(h->name, sizeof(h->name), "%s", o->name);
	r = seal_random(h->session, ASR_UUID_BYTES);
	if (!r)
		r = header_tag(h, o->key, true, h->tag);
	h->checksum = checksum(h);
	return r;
}

static bool text_ok(const char *text)
{
	return memchr(text, 0, ASR_NAME_BYTES);
}

int spool_header_check(const uint8_t *data, size_t bytes, const struct spool_owner *o, struct why *why)
{
	struct spool_header h;

	if (bytes < offsetof(struct spool_header, group) || memcmp(data, SPOOL_MAGIC, sizeof(h.magic)))
		return why_set(why, EBADMSG, "its header file is no spool's header");
	memset(&h, 0, sizeof(h));
	memcpy(&h, data, bytes < sizeof(h) ? bytes : sizeof(h));
	if (h.version > SPOOL_VERSION)
		return why_set(why, EPROTONOSUPPORT, "it has version %u, this asrd knows version %d: run the newer "
			       "asrd until it is shipped", h.version, SPOOL_VERSION);
	if (h.version != SPOOL_VERSION || bytes != sizeof(h) || h.bytes != sizeof(h) || h.checksum != checksum(&h) ||
	    !text_ok(h.host_id) || !text_ok(h.host) || !text_ok(h.name))
		return why_set(why, EBADMSG, "its header file is damaged");
	if (memcmp(h.group, o->group, ASR_UUID_BYTES) || memcmp(h.stream, o->stream, ASR_UUID_BYTES))
		return why_set(why, EPERM, "it belongs to another group (%s of host %s)", h.name, h.host);
	if (strcmp(h.host_id, o->host_id))
		return why_set(why, EPERM, "it belongs to another host (%s, id %s)", h.host, h.host_id);
	if (header_tag(&h, o->key, false, h.tag))
		return why_set(why, EKEYREJECTED, "it was sealed with another data key");
	return 0;
}

int spool_frame_next(const uint8_t *data, size_t bytes, const struct spool_owner *o,
		     const struct spool_chain *c, struct frame_view *v, struct why *why)
{
	struct frame_hdr h;
	size_t padded;
	int r;

	if (bytes < sizeof(h))
		return -EAGAIN;
	r = wire_frame_peek(data, bytes, &h, why);
	if (r)
		return r;
	if (h.records > BATCH_RECORDS || h.meta_bytes > BATCH_META || h.plain_bytes > ASR_FRAME_PAYLOAD)
		return why_set(why, EBADMSG, "frame %llu is larger than asrd makes them",
			       (unsigned long long)h.frame_no);
	if (memcmp(h.group, o->group, ASR_UUID_BYTES) || memcmp(h.stream, o->stream, ASR_UUID_BYTES))
		return why_set(why, EBADMSG, "frame %llu belongs to another group", (unsigned long long)h.frame_no);
	if (h.frame_no != c->frame_no + 1)
		return why_set(why, EBADMSG, "frame %llu stands where %llu should be", (unsigned long long)h.frame_no,
			       (unsigned long long)c->frame_no + 1);
	if (c->tagged && memcmp(h.prev_tag, c->tag, ASR_TAG_BYTES))
		return why_set(why, EBADMSG, "frame %llu does not continue the one before it",
			       (unsigned long long)h.frame_no);
	padded = SPOOL_PADDED(h.total_bytes);
	if (bytes < padded)
		return -EAGAIN;
	for (size_t i = h.total_bytes; i < padded; i++)
		if (data[i])
			return why_set(why, EBADMSG, "frame %llu is not followed by zeroes",
				       (unsigned long long)h.frame_no);
	r = wire_frame_parse(data, h.total_bytes, v, why);
	return r ? r : (int)padded;
}

void spool_chain_pass(struct spool_chain *c, const struct frame_view *v)
{
	c->frame_no = v->hdr.frame_no;
	c->tagged = true;
	memcpy(c->tag, v->tag, ASR_TAG_BYTES);
}
