// SPDX-License-Identifier: Apache-2.0
/*
 * Registration keys and enrolment: a key serves once, in time, with the vault
 * that made it, and everything else is refused with its own reason.
 */
#include "asr.h"
#include "vault.h"

#include <setjmp.h>
#include <stdarg.h>
#include <string.h>
#include <cmocka.h>

#include <arpa/inet.h>
#include <errno.h>
#include <pthread.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include <openssl/pem.h>
#include <openssl/ssl.h>

#define HOUR_NS		3600000000000ULL

static char base[64];

static char *in_base(const char *name)
{
	char *path;

	assert_true(asprintf(&path, "%s/%s", base, name) > 0);
	return path;
}

/* --------------------------------------------------------------- the text */

static struct reg_key sample(void)
{
	struct reg_key k = { .id = "0123456789abcdef", .address = "vault.example.org", .port = "20003",
			     .expires_ns = 1900000000000000000ULL };

	for (int i = 0; i < 20; i++)
		k.secret[i] = (uint8_t)(i * 7);
	memset(k.pin, 0xa5, sizeof(k.pin));
	return k;
}

static void text_round_trip(void **state)
{
	struct reg_key k = sample(), got;
	struct why why;
	char text[512], spaced[600], *p;

	assert_int_equal(ident_key_format(&k, text, sizeof(text)), 0);
	assert_int_equal(ident_key_parse(text, &got, &why), 0);
	assert_memory_equal(&k, &got, sizeof(k));
	snprintf(spaced, sizeof(spaced), " \n\t%s\r\n", text);
	for (p = spaced; *p; p++)
		if (*p >= 'a' && *p <= 'z')
			*p = (char)(*p - 32);
	assert_int_equal(ident_key_parse(spaced, &got, &why), 0);
	assert_memory_equal(&k, &got, sizeof(k));
	strcpy(k.address, "");
	assert_int_equal(ident_key_format(&k, text, sizeof(text)), -EINVAL);
}

/* Cut anywhere, or with any letter changed, it is refused. */
static void text_damage(void **state)
{
	struct reg_key k = sample(), got;
	struct why why;
	char text[512], bad[512];

	assert_int_equal(ident_key_format(&k, text, sizeof(text)), 0);
	for (size_t n = 0; n < strlen(text); n++) {
		snprintf(bad, sizeof(bad), "%.*s", (int)n, text);
		assert_int_equal(ident_key_parse(bad, &got, &why), -EINVAL);
	}
	for (size_t i = 0; i < strlen(text); i++) {
		strcpy(bad, text);
		bad[i] = bad[i] == 'q' ? 'r' : 'q';
		assert_int_equal(ident_key_parse(bad, &got, &why), -EINVAL);
		assert_true(strlen(why.text) > 20);
	}
	snprintf(bad, sizeof(bad), "%.*s", (int)strlen(text) - 9, text);
	ident_key_parse(bad, &got, &why);
	assert_non_null(strstr(why.text, "truncated or mistyped"));
	assert_int_equal(ident_key_parse("hello", &got, &why), -EINVAL);
	assert_non_null(strstr(why.text, "not a registration key"));
}

/* --------------------------------------------------------------- a vault */

/* Answers one connection, as asr-vaultd does, on a thread. */
struct server {
	const char *dir;
	struct catalog *cat;
	const char *cert, *key;		/* other than the vault's own */
	int fd;
	pthread_t thread;
	SSL_CTX *ctx;
};

static void answer(struct server *s, SSL *ssl)
{
	uint8_t buf[65536];
	struct msg_hdr hdr = {0};
	cleanup_json call = NULL;
	const char *error = NULL;
	cleanup_free char *text = NULL;
	struct why why = {0};
	json_t *reply;

	while (hdr.type != MSG_CALL) {
		if (SSL_read(ssl, &hdr, sizeof(hdr)) != sizeof(hdr) || hdr.bytes > sizeof(buf) ||
		    SSL_read(ssl, buf, (int)hdr.bytes) != (int)hdr.bytes)
			return;
	}
	call = json_loadb((char *)buf, hdr.bytes, 0, NULL);
	reply = ident_enrol(s->cat, s->dir, ssl, json_object_get(call, "parameters"), &error, &why);
	reply = reply ? json_pack("{s:i, s:o}", "id", 1, "parameters", reply) :
			json_pack("{s:i, s:s, s:s}", "id", 1, "error", error, "text", why.text);
	text = json_dumps(reply, 0);
	json_decref(reply);
	hdr = (struct msg_hdr){ MSG_REPLY, (uint32_t)strlen(text) };
	SSL_write(ssl, &hdr, sizeof(hdr));
	SSL_write(ssl, text, (int)hdr.bytes);
}

static void *serve(void *arg)
{
	struct server *s = arg;
	SSL *ssl = SSL_new(s->ctx);
	int fd = accept(s->fd, NULL, NULL);

	SSL_set_fd(ssl, fd);
	if (SSL_accept(ssl) == 1)
		answer(s, ssl);
	SSL_shutdown(ssl);
	SSL_free(ssl);
	close(fd);
	return NULL;
}

static void server_start(struct server *s)
{
	cleanup_free char *ca = NULL, *cert = NULL, *key = NULL;
	struct tls_files files;
	struct why why;

	assert_true(asprintf(&ca, "%s/ca/ca.crt", s->dir) > 0);
	assert_true(asprintf(&cert, "%s/ca/server.crt", s->dir) > 0);
	assert_true(asprintf(&key, "%s/ca/server.key", s->dir) > 0);
	files = (struct tls_files){ ca, s->cert ? s->cert : cert, s->key ? s->key : key };
	assert_int_equal(tls_server(&files, &s->ctx, &why), 0);
	pthread_create(&s->thread, NULL, serve, s);
}

static void server_end(struct server *s)
{
	pthread_join(s->thread, NULL);
	SSL_CTX_free(s->ctx);
}

static struct server vault_make(const char *name)
{
	struct server s = { .dir = in_base(name) };
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	socklen_t len = sizeof(a);
	struct why why = {0};
	char port[8];

	s.fd = socket(AF_INET, SOCK_STREAM, 0);
	assert_int_equal(bind(s.fd, (void *)&a, sizeof(a)), 0);
	assert_int_equal(listen(s.fd, 4), 0);
	getsockname(s.fd, (void *)&a, &len);
	snprintf(port, sizeof(port), "%u", ntohs(a.sin_port));
	assert_int_equal(ident_ca_create(s.dir, "127.0.0.1", port, &why), 0);
	assert_int_equal(catalog_create(s.dir, &why), 0);
	assert_int_equal(catalog_open(s.dir, &s.cat, &why), 0);
	return s;
}

static struct reg_key key_for(struct server *s, const char *host_id, char *text)
{
	struct reg_key k;
	struct why why = {0};

	assert_int_equal(ident_key_create(s->cat, s->dir, host_id, now_real_ns() + HOUR_NS, &k, &why), 0);
	assert_int_equal(ident_key_format(&k, text, 512), 0);
	return k;
}

static struct reg_key key_make(struct server *s, char *text)
{
	return key_for(s, "", text);
}

static int enrol(struct server *s, const char *text, const char *dir, struct why *why)
{
	int err;

	*why->text = 0;
	server_start(s);
	err = ident_register(text, dir, "web-1", why);
	server_end(s);
	return err;
}

static char *host_id(const char *dir)
{
	cleanup_free char *path = NULL, *text = NULL;
	cleanup_json vault = NULL;
	struct why why;

	assert_true(asprintf(&path, "%s/vault.json", dir) > 0);
	assert_int_equal(file_read(path, 4096, &text, NULL, &why), 0);
	vault = json_loads(text, 0, NULL);
	return strdup(json_string_value(json_object_get(vault, "host_id")));
}

static struct server vault, other;

static int setup(void **state)
{
	strcpy(base, "/tmp/asr-ident-XXXXXX");
	if (!mkdtemp(base))
		return -1;
	vault = vault_make("vault");
	other = vault_make("other");
	return 0;
}

static int teardown(void **state)
{
	char command[128];

	catalog_close(vault.cat);
	catalog_close(other.cat);
	snprintf(command, sizeof(command), "rm -rf %s", base);
	return system(command);
}

static void vault_made_once(void **state)
{
	cleanup_free char *key = NULL;
	struct stat st;
	struct why why;

	assert_int_equal(ident_ca_create(vault.dir, "127.0.0.1", "1", &why), -EEXIST);
	assert_int_equal(ident_ca_create(base, "a b", "1", &why), -EINVAL);
	assert_int_equal(ident_ca_create(base, "a", "0", &why), -EINVAL);
	assert_int_equal(ident_ca_create(base, "a", "70000", &why), -EINVAL);
	assert_true(asprintf(&key, "%s/ca/ca.key", vault.dir) > 0);
	assert_int_equal(stat(key, &st), 0);
	assert_int_equal(st.st_mode & 0777, 0600);
}

/* One key, one host; the second time it is used up. */
static void key_serves_once(void **state)
{
	cleanup_free char *one = in_base("one"), *two = in_base("two"), *crt = NULL;
	struct why why;
	struct stat st;
	char text[512];

	key_make(&vault, text);
	assert_int_equal(enrol(&vault, text, one, &why), 0);
	assert_true(asprintf(&crt, "%s/host.key", one) > 0);
	assert_int_equal(stat(crt, &st), 0);
	assert_int_equal(st.st_mode & 0777, 0600);
	assert_int_equal(enrol(&vault, text, two, &why), -EACCES);
	assert_non_null(strstr(why.text, "was used at"));
	/* nothing is left behind in the folder of the refused one */
	free(crt);
	assert_true(asprintf(&crt, "%s/host.crt", two) > 0);
	assert_int_not_equal(access(crt, F_OK), 0);
}

static void host_keeps_identity(void **state)
{
	cleanup_free char *dir = in_base("again"), *first = NULL, *second = NULL;
	struct why why;
	char text[512];

	key_make(&vault, text);
	assert_int_equal(enrol(&vault, text, dir, &why), 0);
	first = host_id(dir);
	key_make(&vault, text);
	assert_int_equal(enrol(&vault, text, dir, &why), 0);
	second = host_id(dir);
	assert_string_equal(first, second);
}

static void key_expired(void **state)
{
	cleanup_free char *dir = in_base("late");
	struct reg_key k;
	struct why why;
	char text[512];

	/* the host sees it in the text */
	k = sample();
	k.expires_ns = 1600000000000000000ULL;
	assert_int_equal(ident_key_format(&k, text, sizeof(text)), 0);
	assert_int_equal(ident_register(text, dir, "web-1", &why), -EKEYEXPIRED);
	assert_non_null(strstr(why.text, "expired at 2020-09-13"));
	/* a text that lies: the vault knows better */
	assert_int_equal(ident_key_create(vault.cat, vault.dir, "", now_real_ns() - HOUR_NS, &k, &why), 0);
	k.expires_ns = now_real_ns() + HOUR_NS;
	assert_int_equal(ident_key_format(&k, text, sizeof(text)), 0);
	assert_int_equal(enrol(&vault, text, dir, &why), -EACCES);
	assert_non_null(strstr(why.text, "expired at"));
}

static void key_revoked(void **state)
{
	cleanup_free char *dir = in_base("revoked");
	struct reg_key k;
	struct why why;
	char text[512];

	k = key_make(&vault, text);
	assert_int_equal(catalog_key_revoke(vault.cat, k.id, &why), 0);
	assert_int_equal(enrol(&vault, text, dir, &why), -EACCES);
	assert_non_null(strstr(why.text, "was revoked at"));
}

static void serial_of(const char *dir, char serial[48])
{
	cleanup_free char *path = NULL, *text = NULL;
	struct why why;
	BIO *bio;
	X509 *cert;

	assert_true(asprintf(&path, "%s/host.crt", dir) > 0);
	assert_int_equal(file_read(path, 16384, &text, NULL, &why), 0);
	bio = BIO_new_mem_buf(text, -1);
	cert = PEM_read_bio_X509(bio, NULL, NULL, NULL);
	assert_int_equal(tls_cert_serial(cert, serial, 48), 0);
	{
		char few[5];

		assert_int_equal(tls_cert_serial(cert, few, sizeof(few)), -EBADMSG);
	}
	X509_free(cert);
	BIO_free(bio);
}

static bool counts(const char *id, const char *serial)
{
	json_t *list = catalog_certs(vault.cat, id), *v;
	bool found = false;
	size_t i;

	json_array_foreach(list, i, v)
		found |= !strcmp(json_string_value(v), serial);
	json_decref(list);
	return found;
}

static uint64_t revoked_at(const char *id)
{
	struct catalog_host h;

	assert_int_equal(catalog_host_get(vault.cat, id, &h, NULL), 0);
	return h.revoked_ns;
}

/* None of its certificates counts again; a key that is made for it gives it another, and no other key does. */
static void host_revoked(void **state)
{
	cleanup_free char *dir = in_base("cut-off"), *new = in_base("new-disk"), *id = NULL, *same = NULL;
	char first[48], second[48], third[48] = "none", text[512];
	struct catalog_host h = { .name = "web-1", .serial = "AB", .enrolled_ns = 1, .expires_ns = UINT64_MAX / 4 };
	struct catalog_key row;
	struct reg_key k;
	struct why why;

	key_make(&vault, text);
	assert_int_equal(enrol(&vault, text, dir, &why), 0);
	id = host_id(dir);
	serial_of(dir, first);
	key_make(&vault, text);
	assert_int_equal(enrol(&vault, text, dir, &why), 0);
	serial_of(dir, second);
	assert_int_equal(catalog_cert_check(vault.cat, id, first, &why), 0);
	assert_int_equal(catalog_cert_check(vault.cat, id, second, &why), 0);
	assert_true(counts(id, first) && counts(id, second) && !revoked_at(id));
	assert_int_equal(catalog_cert_check(vault.cat, "nobody", second, &why), -ENOENT);
	assert_int_equal(catalog_cert_check(vault.cat, id, "0123", &why), -EKEYREJECTED);
	catalog_changed(vault.cat);
	assert_false(catalog_changed(vault.cat));
	assert_int_equal(catalog_host_revoke(vault.cat, id, &why), 0);
	assert_int_equal(catalog_host_revoke(vault.cat, id, &why), -EALREADY);
	assert_int_equal(catalog_cert_check(vault.cat, id, first, &why), -EKEYREVOKED);
	assert_int_equal(catalog_cert_check(vault.cat, id, second, &why), -EKEYREVOKED);
	assert_true(!counts(id, first) && !counts(id, second) && revoked_at(id));
	/* nor one that was shown while it was being revoked: it is looked at where the key is burnt */
	k = key_make(&vault, text);
	snprintf(h.id, sizeof(h.id), "%s", id);
	assert_int_equal(catalog_enrol(vault.cat, k.id, now_real_ns(), &h, second, &why), -EKEYREJECTED);
	assert_int_equal(catalog_enrol(vault.cat, k.id, now_real_ns(), &h, third, &why), -EKEYREJECTED);
	assert_int_equal(catalog_key_get(vault.cat, k.id, &row, &why), 0);
	assert_int_equal(row.used_ns, 0);
	/* with a key for anybody it does not come back, nor become another in silence; the key is not burnt */
	key_make(&vault, text);
	assert_int_equal(enrol(&vault, text, dir, &why), -EACCES);
	assert_non_null(strstr(why.text, "was revoked at"));
	assert_int_equal(enrol(&vault, text, new, &why), 0);
	same = host_id(new);
	assert_string_not_equal(id, same);
	/* another's certificate is not this one's */
	serial_of(new, third);
	assert_int_equal(catalog_cert_check(vault.cat, id, third, &why), -EKEYREJECTED);
	/* a key that was made for it and not used goes with it */
	key_for(&vault, id, text);
	assert_int_equal(catalog_host_revoke(vault.cat, id, &why), 0);
	assert_int_equal(catalog_host_revoke(vault.cat, id, &why), -EALREADY);
	assert_int_equal(enrol(&vault, text, dir, &why), -EACCES);
	assert_non_null(strstr(why.text, "was revoked at"));
	key_for(&vault, id, text);
	assert_int_equal(enrol(&vault, text, new, &why), -EACCES);	/* a host that has another identity keeps it */
	assert_non_null(strstr(why.text, "is for another host"));
	assert_int_equal(enrol(&vault, text, dir, &why), 0);
	free(same);
	same = host_id(dir);
	assert_string_equal(id, same);
	serial_of(dir, third);
	assert_int_equal(catalog_cert_check(vault.cat, id, third, &why), 0);
	assert_int_equal(catalog_cert_check(vault.cat, id, second, &why), -EKEYREVOKED);
	assert_true(counts(id, third) && !counts(id, second) && !revoked_at(id));
}

/* What another process changes is seen, once */
static void change_seen(void **state)
{
	struct catalog *other_way;
	struct why why;

	catalog_changed(vault.cat);
	assert_int_equal(catalog_open(vault.dir, &other_way, &why), 0);
	assert_false(catalog_changed(vault.cat));
	catalog_audit(other_way, "me", "test", "");
	assert_true(catalog_changed(vault.cat));
	assert_false(catalog_changed(vault.cat));
	catalog_close(other_way);
}

/* The vault that answers is not the one of the pin: nothing is sent to it. */
static void key_other_vault(void **state)
{
	cleanup_free char *dir = in_base("other-host");
	struct reg_key k, o;
	struct why why;
	char text[512], other_text[512];

	k = key_make(&vault, text);
	o = key_make(&other, other_text);
	strcpy(k.port, o.port);
	assert_int_equal(ident_key_format(&k, text, sizeof(text)), 0);
	assert_int_equal(enrol(&other, text, dir, &why), -EACCES);
	assert_non_null(strstr(why.text, "is not the one that made this key"));
	/* right vault, but a key it never made */
	k = key_make(&vault, text);
	memset(k.id, 'f', 16);
	assert_int_equal(ident_key_format(&k, text, sizeof(text)), 0);
	assert_int_equal(enrol(&vault, text, dir, &why), -EACCES);
	assert_non_null(strstr(why.text, "knows no registration key"));
	/* a registered host does not move by accident */
	key_make(&vault, text);
	assert_int_equal(enrol(&vault, text, dir, &why), 0);
	assert_int_equal(ident_register(other_text, dir, "web-1", &why), -EEXIST);
}

static void secret_wrong(void **state)
{
	cleanup_free char *dir = in_base("wrong");
	struct reg_key k;
	struct why why;
	char text[512];

	k = key_make(&vault, text);
	k.secret[3] ^= 1;
	assert_int_equal(ident_key_format(&k, text, sizeof(text)), 0);
	assert_int_equal(enrol(&vault, text, dir, &why), -EACCES);
	assert_non_null(strstr(why.text, "its secret is wrong"));
	/* and the right one still works: nothing was burnt */
	k.secret[3] ^= 1;
	assert_int_equal(ident_key_format(&k, text, sizeof(text)), 0);
	assert_int_equal(enrol(&vault, text, dir, &why), 0);
}

static void vault_unreachable(void **state)
{
	cleanup_free char *dir = in_base("nowhere");
	struct reg_key k = sample();
	struct why why;
	char text[512];

	strcpy(k.address, "127.0.0.1");
	strcpy(k.port, "1");
	assert_int_equal(ident_key_format(&k, text, sizeof(text)), 0);
	assert_int_equal(ident_register(text, dir, "web-1", &why), -ECONNREFUSED);
	assert_non_null(strstr(why.text, "127.0.0.1 port 1 cannot be reached"));
	assert_int_equal(ident_register(text, dir, "web 1", &why), -EINVAL);
}

/* A host's certificate, of the same CA, does not make a vault. */
static void host_is_no_vault(void **state)
{
	cleanup_free char *dir = in_base("posing"), *victim = in_base("victim"), *cert = NULL, *key = NULL;
	struct why why;
	char text[512];
	int err;

	key_make(&vault, text);
	assert_int_equal(enrol(&vault, text, dir, &why), 0);
	assert_true(asprintf(&cert, "%s/host.crt", dir) > 0);
	assert_true(asprintf(&key, "%s/host.key", dir) > 0);
	key_make(&vault, text);
	vault.cert = cert;
	vault.key = key;
	err = enrol(&vault, text, victim, &why);
	vault.cert = vault.key = NULL;
	assert_int_equal(err, -EACCES);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(text_round_trip),
		cmocka_unit_test(text_damage),
		cmocka_unit_test(vault_made_once),
		cmocka_unit_test(key_serves_once),
		cmocka_unit_test(host_keeps_identity),
		cmocka_unit_test(key_expired),
		cmocka_unit_test(key_revoked),
		cmocka_unit_test(host_revoked),
		cmocka_unit_test(change_seen),
		cmocka_unit_test(key_other_vault),
		cmocka_unit_test(secret_wrong),
		cmocka_unit_test(vault_unreachable),
		cmocka_unit_test(host_is_no_vault),
	};

	return cmocka_run_group_tests(tests, setup, teardown);
}
