// SPDX-License-Identifier: Apache-2.0
/*
 * Registration keys as text: one line that a person can copy to a host.
 *
 * Design. "asr1-" and then base32 (RFC 4648, small letters, no padding) of
 *
 *   id 8 | secret 20 | pin 16 | expiry, seconds, 4 | port 2 | address n | check 4
 *
 * integers big-endian, check the first bytes of SHA-256 over all before it.
 * Base32 survives every font, mail program and case change; the checksum
 * tells a mistyped key from a wrong one without asking the vault. The secret
 * has 160 bits, so the vault keeps a plain SHA-256 of it.
 *
 * Invariants. Parsing is pure, takes any bytes, and accepts exactly what
 * formatting makes (but for case and white space around it).
 *
 * Context. Anywhere; no I/O.
 */
#include "asr.h"

#include <ctype.h>
#include <errno.h>
#include <string.h>

#include <openssl/crypto.h>
#include <openssl/sha.h>

#define PREFIX		"asr1-"
#define FIXED_BYTES	(8 + 20 + 16 + 4 + 2)
#define CHECK_BYTES	4
#define ADDRESS_MAX	255
#define RAW_MAX		(FIXED_BYTES + ADDRESS_MAX + CHECK_BYTES)

static const char letters[] = "abcdefghijklmnopqrstuvwxyz234567";

int ident_address_check(const char *address, struct why *why)
{
	size_t n = strlen(address);

	if (n && n <= ADDRESS_MAX && isalnum((unsigned char)address[n - 1]) &&
	    strspn(address, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789.:-") == n &&
	    *address != '-')
		return 0;
	return why_set(why, EINVAL, "bad address \"%.80s\": a host name or an IP address is wanted", address);
}

static uint32_t get_be(const uint8_t *p, int bytes)
{
	uint32_t v = 0;

	while (bytes--)
		v = v << 8 | *p++;
	return v;
}

static void put_be(uint8_t *p, int bytes, uint32_t v)
{
	while (bytes--) {
		p[bytes] = (uint8_t)v;
		v >>= 8;
	}
}

static void base32_encode(const uint8_t *in, size_t bytes, char *out)
{
	uint32_t acc = 0;
	int bits = 0;

	for (size_t i = 0; i < bytes; i++) {
		acc = acc << 8 | in[i];
		for (bits += 8; bits >= 5; bits -= 5)
			*out++ = letters[acc >> (bits - 5) & 31];
	}
	if (bits)
		*out++ = letters[acc << (5 - bits) & 31];
	*out = 0;
}

/* Bytes decoded; -EINVAL: not base32, *at says where; -EMSGSIZE: too long */
static int base32_decode(const char *in, size_t chars, uint8_t *out, size_t max, size_t *at)
{
	uint32_t acc = 0;
	size_t n = 0;
	int bits = 0;

	for (*at = 0; *at < chars; (*at)++) {
		const char *l = in[*at] ? strchr(letters, tolower((unsigned char)in[*at])) : NULL;

		if (!l)
			return -EINVAL;
		acc = acc << 5 | (uint32_t)(l - letters);
		bits += 5;
		if (bits < 8)
			continue;
		if (n == max)
			return -EMSGSIZE;
		bits -= 8;
		out[n++] = (uint8_t)(acc >> bits);
	}
	/* what is left over is less than a letter and zero, or letters are missing */
	if (bits >= 5 || (acc & ((1u << bits) - 1)))
		return -EMSGSIZE;
	return (int)n;
}

int ident_key_format(const struct reg_key *k, char *out, size_t bytes)
{
	size_t address = strlen(k->address), n = FIXED_BYTES + address;
	uint8_t raw[RAW_MAX], sum[SHA256_DIGEST_LENGTH];
	long port = strtol(k->port, NULL, 10);

	if (ident_address_check(k->address, NULL) || port < 1 || port > 65535 ||
	    hex_decode(k->id, raw, 8))
		return -EINVAL;
	if (bytes < sizeof(PREFIX) + ((n + CHECK_BYTES) * 8 + 4) / 5)
		return -ENOSPC;
	memcpy(raw + 8, k->secret, 20);
	memcpy(raw + 28, k->pin, 16);
	put_be(raw + 44, 4, (uint32_t)(k->expires_ns / 1000000000ULL));
	put_be(raw + 48, 2, (uint32_t)port);
	memcpy(raw + FIXED_BYTES, k->address, address);
	SHA256(raw, n, sum);
	memcpy(raw + n, sum, CHECK_BYTES);
	strcpy(out, PREFIX);
	base32_encode(raw, n + CHECK_BYTES, out + strlen(PREFIX));
	OPENSSL_cleanse(raw, sizeof(raw));
	return 0;
}

/* raw has been decoded and its checksum is right */
static int key_fill(const uint8_t *raw, size_t n, struct reg_key *k, struct why *why)
{
	size_t address = n - FIXED_BYTES;
	uint32_t port = get_be(raw + 48, 2);

	*k = (struct reg_key){0};
	memcpy(k->address, raw + FIXED_BYTES, address);
	if (strlen(k->address) != address || !port || ident_address_check(k->address, NULL))
		return why_set(why, EINVAL, "the registration key names no usable vault address: "
			       "make a new one with `asrctl vault key create`");
	hex_encode(raw, 8, k->id);
	memcpy(k->secret, raw + 8, 20);
	memcpy(k->pin, raw + 28, 16);
	k->expires_ns = get_be(raw + 44, 4) * 1000000000ULL;
	snprintf(k->port, sizeof(k->port), "%u", (unsigned int)port & 0xffff);
	return 0;
}

int ident_key_parse(const char *text, struct reg_key *k, struct why *why)
{
	static const char broken[] = "the registration key is truncated or mistyped (%s): "
				     "copy the whole line again, from \"" PREFIX "\" to its end";
	uint8_t raw[RAW_MAX], sum[SHA256_DIGEST_LENGTH];
	size_t chars, at;
	int n, err;

	while (isspace((unsigned char)*text))
		text++;
	if (strncasecmp(text, PREFIX, strlen(PREFIX)))
		return why_set(why, EINVAL, "this is not a registration key: one begins with \"" PREFIX
			       "\" and is made by `asrctl vault key create`");
	text += strlen(PREFIX);
	chars = strlen(text);
	while (chars && isspace((unsigned char)text[chars - 1]))
		chars--;
	n = base32_decode(text, chars, raw, sizeof(raw), &at);
	if (n == -EINVAL)
		return isprint((unsigned char)text[at]) ?
			why_set(why, EINVAL, "the registration key is mistyped: '%c' at character %zu "
				"is none of a-z and 2-7", text[at], at + strlen(PREFIX) + 1) :
			why_set(why, EINVAL, broken, "strange characters");
	if (n < 0 || n < FIXED_BYTES + CHECK_BYTES + 1) {
		err = why_set(why, EINVAL, broken, "its length is wrong");
	} else {
		SHA256(raw, n - CHECK_BYTES, sum);
		if (memcmp(raw + n - CHECK_BYTES, sum, CHECK_BYTES))
			err = why_set(why, EINVAL, broken, "its checksum is wrong");
		else
			err = key_fill(raw, n - CHECK_BYTES, k, why);
	}
	OPENSSL_cleanse(raw, sizeof(raw));
	return err;
}
