// SPDX-License-Identifier: Apache-2.0
/* Messages of every size arrive whole and in order; nobody without an identity gets in. */
#include "asr.h"

#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <string.h>
#include <sys/socket.h>

#include <cmocka.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>

static char dir[] = "/tmp/asr-test-conn.XXXXXX";

/* ------------------------------------------------- a CA and two leaves */

static char *in_dir(const char *name)
{
	static char path[8][128];
	static int n;

	n = (n + 1) % 8;
	snprintf(path[n], sizeof(path[n]), "%s/%s", dir, name);
	return path[n];
}

static void save(const char *name, X509 *x, EVP_PKEY *key)
{
	FILE *f = fopen(in_dir(name), "w");

	assert_non_null(f);
	if (x)
		PEM_write_X509(f, x);
	if (key)
		PEM_write_PrivateKey(f, key, NULL, NULL, 0, NULL, NULL);
	fclose(f);
}

static X509 *certify(EVP_PKEY *key, const char *cn, const char *uri, X509 *ca, EVP_PKEY *ca_key)
{
	X509 *x = X509_new();
	X509V3_CTX ctx;
	X509_EXTENSION *ext;
	static int serial = 1;

	X509_set_version(x, 2);
	ASN1_INTEGER_set(X509_get_serialNumber(x), serial++);
	X509_gmtime_adj(X509_getm_notBefore(x), -60);
	X509_gmtime_adj(X509_getm_notAfter(x), 3600);
	X509_set_pubkey(x, key);
	X509_NAME_add_entry_by_txt(X509_get_subject_name(x), "CN", MBSTRING_ASC, (const uint8_t *)cn, -1, -1, 0);
	X509_set_issuer_name(x, X509_get_subject_name(ca ? ca : x));
	X509V3_set_ctx(&ctx, ca ? ca : x, x, NULL, NULL, 0);
	ext = X509V3_EXT_nconf_nid(NULL, &ctx, uri ? NID_subject_alt_name : NID_basic_constraints,
				   uri ? uri : "critical,CA:TRUE");
	X509_add_ext(x, ext, -1);
	X509_EXTENSION_free(ext);
	assert_true(X509_sign(x, ca_key ? ca_key : key, EVP_sha256()) > 0);
	return x;
}

static void make_identities(void)
{
	EVP_PKEY *ca_key = EVP_EC_gen("P-256"), *key;
	X509 *ca = certify(ca_key, "ca", NULL, NULL, NULL), *x;

	save("ca.crt", ca, NULL);
	key = EVP_EC_gen("P-256");
	x = certify(key, "vault", "URI:asr:vault:v1", ca, ca_key);
	save("vault.crt", x, NULL);
	save("vault.key", NULL, key);
	X509_free(x);
	EVP_PKEY_free(key);
	key = EVP_EC_gen("P-256");
	x = certify(key, "host", "URI:asr:host:h1", ca, ca_key);
	save("host.crt", x, NULL);
	save("host.key", NULL, key);
	X509_free(x);
	EVP_PKEY_free(key);
	X509_free(ca);
	EVP_PKEY_free(ca_key);
}

/* ------------------------------------------------------------- two ends */

struct end {
	struct conn *c;
	bool up, down, pause_after_each;
	int err;
	struct why why;
	size_t messages, bytes, rooms;
	uint64_t sum;		/* order-dependent */
	char peer[64];
};

static struct loop *loop;
static struct end host, vault;

static void on_up(struct conn *c, void *arg)
{
	struct end *e = arg;

	e->up = true;
	snprintf(e->peer, sizeof(e->peer), "%s", conn_peer(c) ? conn_peer(c) : "");
}

static void on_msg(struct conn *c, uint32_t type, const uint8_t *body, size_t bytes, void *arg)
{
	struct end *e = arg;

	assert_int_equal((uintptr_t)body % 8, 0);
	e->messages++;
	e->bytes += bytes;
	e->sum = e->sum * 31 + bytes + type;
	for (size_t i = 0; i < bytes; i += 997)
		e->sum = e->sum * 31 + body[i];
	if (e->pause_after_each)
		conn_pause(c, true);
}

static void on_room(struct conn *c, void *arg)
{
	((struct end *)arg)->rooms++;
}

static void on_down(struct conn *c, int err, const struct why *why, void *arg)
{
	struct end *e = arg;

	e->down = true;
	e->err = err;
	e->why = *why;
	e->c = NULL;
}

static const struct conn_ops ops = { .up = on_up, .msg = on_msg, .room = on_room, .down = on_down };

/* Turns the loop until the condition holds, or 20 s have passed */
static bool (*awaited)(void);
static uint64_t deadline;
static void check(void *arg)
{
	if (awaited() || now_ns() > deadline)
		loop_stop(loop);
}
static bool run_until(bool (*fn)(void))
{
	struct loop_idle idle = { .fn = check };

	awaited = fn;
	deadline = now_ns() + 20000000000ULL;
	loop_idle_add(loop, &idle);
	loop_run(loop);
	loop_idle_remove(loop, &idle);
	return fn();
}

static bool both_up(void) { return host.up && vault.up; }
static bool both_down(void) { return host.down && (vault.down || !vault.c); }

static void connect_ends(const char *cert, const char *key, bool enrol)
{
	struct tls_files hf = { in_dir("ca.crt"), cert ? in_dir(cert) : NULL, key ? in_dir(key) : NULL };
	struct tls_files vf = { in_dir("ca.crt"), in_dir("vault.crt"), in_dir("vault.key") };
	struct sockaddr_storage sa;
	socklen_t len = sizeof(sa);
	int listener, fd;
	SSL_CTX *hc, *vc;
	struct why why = { "" };
	char port[8];

	memset(&host, 0, sizeof(host));
	memset(&vault, 0, sizeof(vault));
	assert_int_equal(tls_client(&hf, enrol, &hc, &why), 0);
	assert_int_equal(tls_server(&vf, &vc, &why), 0);
	listener = socket(AF_INET, SOCK_STREAM, 0);
	assert_int_equal(listen(listener, 1), 0);	/* binds to a free port */
	assert_int_equal(getsockname(listener, (struct sockaddr *)&sa, &len), 0);
	snprintf(port, sizeof(port), "%d", (((uint8_t *)&sa)[2] << 8) | ((uint8_t *)&sa)[3]);
	assert_int_equal(conn_dial(loop, hc, "127.0.0.1", port, &ops, &host, &host.c, &why), 0);
	loop_flush(loop);
	fd = accept(listener, NULL, NULL);
	assert_true(fd >= 0);
	assert_int_equal(conn_accept(loop, vc, fd, &ops, &vault, &vault.c), 0);
	close(listener);
	SSL_CTX_free(hc);
	SSL_CTX_free(vc);
}

static void close_ends(void)
{
	if (host.c)
		conn_close(host.c, 0, "test is over");
	assert_true(run_until(both_down));
}

/* ------------------------------------------------------------- the tests */

static uint64_t expect_sum;
static size_t expect_messages;
static bool all_there(void) { return vault.messages == expect_messages || vault.down; }

static void send_one(uint32_t type, const uint8_t *data, size_t bytes, int pieces)
{
	struct iovec v[3];
	int n = 0, ret;

	for (int i = 0; i < pieces; i++) {
		size_t from = bytes * i / pieces, to = bytes * (i + 1) / pieces;

		v[n++] = (struct iovec){ (uint8_t *)data + from, to - from };
	}
	ret = conn_send(host.c, type, v, n);
	assert_int_equal(ret, 0);
	expect_messages++;
	expect_sum = expect_sum * 31 + bytes + type;
	for (size_t i = 0; i < bytes; i += 997)
		expect_sum = expect_sum * 31 + data[i];
}

static void messages_of_every_size_arrive_whole_and_in_order(void **state)
{
	static const size_t sizes[] = { 0, 1, 7, 8, 9, 16375, 16376, 16377, 65536, 131072 + 400, MSG_MAX };
	uint8_t *data = malloc(MSG_MAX);

	connect_ends("host.crt", "host.key", false);
	assert_true(run_until(both_up));
	assert_string_equal(host.peer, "asr:vault:v1");
	assert_string_equal(vault.peer, "asr:host:h1");
	for (size_t i = 0; i < MSG_MAX; i++)
		data[i] = (uint8_t)(i * 7 + (i >> 11));
	expect_sum = expect_messages = 0;
	for (size_t i = 0; i < sizeof(sizes) / sizeof(*sizes); i++)
		for (int pieces = 1; pieces <= 3; pieces++)
			send_one(MSG_CALL, data, sizes[i], pieces);
	assert_true(run_until(all_there));
	assert_int_equal(vault.messages, expect_messages);
	assert_true(vault.sum == expect_sum);
	assert_int_equal(conn_send(host.c, MSG_CALL, &(struct iovec){ data, MSG_MAX + 1 }, 1), -EMSGSIZE);
	close_ends();
	free(data);
}

static bool some_more(void) { return vault.messages >= expect_messages || vault.down; }
static bool host_has_room_again(void) { return host.rooms > 0; }

static void a_paused_reader_gets_nothing_and_loses_nothing(void **state)
{
	uint8_t data[5000] = { 1 };

	connect_ends("host.crt", "host.key", false);
	assert_true(run_until(both_up));
	expect_sum = expect_messages = 0;
	vault.pause_after_each = true;
	for (int i = 0; i < 10; i++)
		send_one(MSG_CALL, data, sizeof(data), 1);
	for (size_t i = 1; i <= 10; i++) {
		expect_messages = i;
		assert_true(run_until(some_more));
		assert_int_equal(vault.messages, i);
		conn_pause(vault.c, false);
	}
	assert_true(vault.sum == expect_sum);
	close_ends();
}

static void frames_are_held_back_when_the_queue_is_full(void **state)
{
	uint8_t *data = calloc(1, 131072);
	struct iovec v = { data, 131072 };
	int ret = 0, sent = 0;

	connect_ends("host.crt", "host.key", false);
	assert_true(run_until(both_up));
	vault.pause_after_each = true;
	for (; sent < 1000 && !ret; sent += !ret)
		ret = conn_send(host.c, MSG_FRAME, &v, 1);
	assert_int_equal(ret, -EAGAIN);
	assert_false(conn_has_room(host.c));
	vault.pause_after_each = false;
	conn_pause(vault.c, false);
	assert_true(run_until(host_has_room_again));
	close_ends();
	free(data);
}

static void a_stranger_is_refused(void **state)
{
	connect_ends(NULL, NULL, false);
	assert_true(run_until(both_down));
	assert_false(vault.up);
	assert_non_null(strstr(vault.why.text, "certificate"));
}

static void a_vault_may_not_pose_as_a_host(void **state)
{
	connect_ends("vault.crt", "vault.key", false);
	assert_true(run_until(both_down));
	assert_false(vault.up);
}

static bool vault_down(void) { return vault.down; }

static void an_announced_giant_is_refused_before_it_comes(void **state)
{
	struct msg_hdr h = { MSG_FRAME, MSG_MAX + 1 };
	size_t done;

	connect_ends("host.crt", "host.key", false);
	assert_true(run_until(both_up));
	assert_int_equal(SSL_write_ex(conn_ssl(host.c), &h, sizeof(h), &done), 1);
	conn_send(host.c, MSG_PING, NULL, 0);
	assert_true(run_until(vault_down));
	assert_int_equal(vault.err, -EMSGSIZE);
	close_ends();
}

static bool host_down(void) { return host.down; }

static void who_cannot_connect_learns_why(void **state)
{
	struct tls_files hf = { in_dir("ca.crt"), in_dir("host.crt"), in_dir("host.key") };
	struct why why = { "" };
	SSL_CTX *ctx;

	memset(&host, 0, sizeof(host));
	assert_int_equal(tls_client(&hf, false, &ctx, &why), 0);
	assert_int_equal(conn_dial(loop, ctx, "127.0.0.1", "1", &ops, &host, &host.c, &why), 0);
	assert_true(run_until(host_down));
	assert_int_equal(host.err, -ECONNREFUSED);
	assert_non_null(strstr(host.why.text, "refused"));
	assert_int_equal(conn_dial(loop, ctx, "no.such.host.invalid", "1", &ops, &host, &host.c, &why), -EHOSTUNREACH);
	SSL_CTX_free(ctx);
}

static int set_up(void **state)
{
	signal(SIGPIPE, SIG_IGN);
	if (!mkdtemp(dir) || loop_create(&loop, 64))
		return -1;
	make_identities();
	return 0;
}

static int tear_down(void **state)
{
	static const char *const names[] = { "ca.crt", "vault.crt", "vault.key", "host.crt", "host.key" };

	for (size_t i = 0; i < 5; i++)
		unlink(in_dir(names[i]));
	rmdir(dir);
	loop_destroy(loop);
	return 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(messages_of_every_size_arrive_whole_and_in_order),
		cmocka_unit_test(a_paused_reader_gets_nothing_and_loses_nothing),
		cmocka_unit_test(frames_are_held_back_when_the_queue_is_full),
		cmocka_unit_test(a_stranger_is_refused),
		cmocka_unit_test(a_vault_may_not_pose_as_a_host),
		cmocka_unit_test(an_announced_giant_is_refused_before_it_comes),
		cmocka_unit_test(who_cannot_connect_learns_why),
	};

	return cmocka_run_group_tests(tests, set_up, tear_down);
}
