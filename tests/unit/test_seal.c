// SPDX-License-Identifier: Apache-2.0
/* A group key opens for its recipients and nobody else; a frame opens whole or not at all. */
#include "frames.h"

static void wrap_kinds(void **state)
{
	static const char *const kinds[] = { "rsa:2048", "rsa:3072", "ec" };
	char *cert[3], *key[3], line[400];
	uint8_t data[32], got[32], *der;
	struct why why;
	size_t bytes;

	seal_random(data, sizeof(data));
	for (int i = 0; i < 3; i++) {
		make_cert(kinds[i], &cert[i], &key[i]);
		assert_int_equal(seal_cert_describe(cert[i], line, sizeof(line), &why), 0);
		assert_non_null(strstr(line, "CN=test, "));
	}
	/* to RSA and EC together, opened by each, with and without its certificate */
	assert_int_equal(seal_key_wrap(data, (char *const[]){ cert[0], cert[2] }, 2, &der, &bytes, &why), 0);
	/* not the library's defaults: OAEP, its hash, and the SHA-256 KDF are named in it */
	assert_non_null(memmem(der, bytes, "\x2a\x86\x48\x86\xf7\x0d\x01\x01\x07", 9));
	assert_non_null(memmem(der, bytes, "\x2b\x81\x04\x01\x0b\x01", 6));
	assert_null(memmem(der, bytes, "\x2a\x86\x48\x86\xf7\x0d\x01\x01\x01", 9));
	for (int i = 0; i < 3; i++) {
		int want = i == 1 ? -EKEYREJECTED : 0;

		assert_int_equal(seal_key_unwrap(der, bytes, key[i], NULL, NULL, got, &why), want);
		assert_int_equal(seal_key_unwrap(der, bytes, key[i], cert[i], NULL, got, &why), want);
		if (!want)
			assert_memory_equal(got, data, 32);
	}
	assert_int_equal(seal_key_unwrap(der, bytes, key[0], cert[2], NULL, got, &why), -EKEYREJECTED);
	assert_non_null(strstr(why.text, "does not belong"));
	/* a flipped byte anywhere gives no key */
	for (size_t i = 0; i < bytes; i += 3) {
		der[i] ^= 1;
		if (!seal_key_unwrap(der, bytes, key[2], NULL, NULL, got, &why))
			assert_memory_equal(got, data, 32);	/* hit the other recipient's part */
		der[i] ^= 1;
	}
	assert_int_not_equal(seal_key_unwrap(der, bytes / 2, key[2], NULL, NULL, got, &why), 0);
	for (int i = 0; i < 3; i++) {
		free(cert[i]);
		free(key[i]);
	}
	free(der);
}

static void weak_recipient(void **state)
{
	char *cert, *key, line[400];
	uint8_t data[32] = { 0 }, *der;
	struct why why;
	size_t bytes;

	make_cert("rsa:1024", &cert, &key);
	assert_int_equal(seal_cert_describe(cert, line, sizeof(line), &why), -EINVAL);
	assert_non_null(strstr(why.text, "1024"));
	assert_int_equal(seal_key_wrap(data, &cert, 1, &der, &bytes, &why), -EINVAL);
	assert_int_equal(seal_key_wrap(data, &key, 1, &der, &bytes, &why), -EINVAL);
	assert_int_equal(seal_key_wrap(data, NULL, 0, &der, &bytes, &why), -EINVAL);
	free(cert);
	free(key);
}

static void encrypted_key(void **state)
{
	char *cert, *key, *locked, *dir = temp_dir(), cmd[300];
	uint8_t data[32] = { 7 }, got[32], *der;
	struct why why;
	size_t bytes;

	make_cert("ec", &cert, &key);
	snprintf(cmd, sizeof(cmd), "%s/k", dir);
	assert_int_equal(file_write(cmd, 0600, key, strlen(key), NULL), 0);
	snprintf(cmd, sizeof(cmd), "openssl pkey -in %s/k -aes256 -passout pass:secret", dir);
	locked = run_output(cmd);
	assert_int_equal(seal_key_wrap(data, &cert, 1, &der, &bytes, &why), 0);
	assert_int_equal(seal_key_unwrap(der, bytes, locked, NULL, "secret", got, &why), 0);
	assert_memory_equal(got, data, 32);
	assert_int_equal(seal_key_unwrap(der, bytes, locked, NULL, "wrong", got, &why), -EKEYREJECTED);
	assert_int_equal(seal_key_unwrap(der, bytes, locked, NULL, NULL, got, &why), -EKEYREJECTED);
	assert_non_null(strstr(why.text, "give its passphrase"));
	remove_dir(dir);
	free(cert);
	free(key);
	free(locked);
	free(der);
}

static void open_frame(bool zstd)
{
	struct maker *m = maker_new();
	static uint8_t out[ASR_FRAME_PAYLOAD_MAX];
	struct frame_view v;
	struct seal *s, *other;
	struct why why;

	m->zstd = zstd;
	make_data(m, ASR_KIND_WRITE, 0, 3, 21, 0xaa);
	make_data(m, ASR_KIND_WRITE, 0, 64, 16, 0xbb);
	make_frame(m);
	assert_int_equal(seal_create(m->key, m->session, &s), 0);
	assert_int_equal(wire_frame_parse(m->frame, m->bytes, &v, &why), 0);
	assert_int_equal(seal_frame_open(s, &v, out, &why), 0);
	assert_int_equal(out[21 * 512 - 1], 0xaa);
	assert_int_equal(out[21 * 512], 0xbb);
	/* every byte, flipped: not a frame any more, or it does not open; never data */
	for (size_t i = 0; i < m->bytes; i++) {
		m->frame[i] ^= 0x40;
		if (!wire_frame_parse(m->frame, m->bytes, &v, &why) &&
		    memcmp(v.hdr.session, m->session, 16) == 0)
			assert_int_equal(seal_frame_open(s, &v, out, &why), -EBADMSG);
		m->frame[i] ^= 0x40;
	}
	assert_int_equal(wire_frame_parse(m->frame, m->bytes, &v, &why), 0);
	m->key[0] ^= 1;
	assert_int_equal(seal_create(m->key, m->session, &other), 0);
	assert_int_equal(seal_frame_open(other, &v, out, &why), -EBADMSG);
	seal_destroy(other);
	seal_destroy(s);
	free(m);
}

static void open_raw(void **state)
{
	open_frame(false);
}

static void open_packed(void **state)
{
	open_frame(true);
}

static void no_payload(void **state)
{
	struct maker *m = maker_new();
	struct frame_view v;
	struct seal *s;
	struct why why;

	make_mark(m, "only", 1);
	make_frame(m);
	assert_int_equal(seal_create(m->key, m->session, &s), 0);
	assert_int_equal(wire_frame_parse(m->frame, m->bytes, &v, &why), 0);
	assert_int_equal(seal_frame_open(s, &v, m->payload, &why), 0);
	seal_destroy(s);
	free(m);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(wrap_kinds), cmocka_unit_test(weak_recipient), cmocka_unit_test(encrypted_key),
		cmocka_unit_test(open_raw), cmocka_unit_test(open_packed), cmocka_unit_test(no_payload),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
