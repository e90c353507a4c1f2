// SPDX-License-Identifier: Apache-2.0
/*
 * The host's side of identity: a registration key becomes a certificate.
 *
 * Design. One blocking exchange over "dm-asr-enrol/1": connect, handshake,
 * HELLO, the enrol call, its reply (ident.c has the scheme). During the
 * handshake, before a byte of ours is sent, the chain that the vault shows
 * must contain a CA whose public key has the pin of the registration key, and
 * the vault's certificate must be signed by that CA. A host that is
 * registered with the same vault already shows its certificate too, and keeps
 * its identity, and so its groups.
 *
 * Invariants. Nothing is written to dir before the vault has answered and the
 * answer has been checked; vault.json is written last and makes the identity
 * complete. The secret itself never leaves the host.
 *
 * Context. asrctl. Blocks, with a limit on each step.
 */
#include "asr.h"

#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>

#include <openssl/crypto.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/sha.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>

#define CONNECT_MS	10000		/* per address */
#define STEP_S		15		/* silence after which the vault is given up */
#define PEM_MAX		16384
#define MESSAGE_MAX	65536

struct enrolment {
	struct reg_key key;
	const char *dir;
	char host[ASR_NAME_BYTES];
	bool known;			/* dir has a certificate of the same vault */
	bool pin_wrong;			/* the peer has another CA */
	EVP_PKEY *pkey;
	X509_REQ *csr;
};

static int dir_path(const struct enrolment *e, const char *name, char **path)
{
	return asprintf(path, "%s/%s", e->dir, name) < 0 ? -ENOMEM : 0;
}

static X509 *cert_read(const char *text)
{
	BIO *bio = BIO_new_mem_buf(text, -1);
	X509 *cert = bio ? PEM_read_bio_X509(bio, NULL, NULL, NULL) : NULL;

	BIO_free(bio);
	ERR_clear_error();
	return cert;
}

/* ------------------------------------------------------------ the socket */

static int connect_one(const struct addrinfo *a)
{
	cleanup_fd int fd = socket(a->ai_family, a->ai_socktype | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	struct timeval limit = { .tv_sec = STEP_S };
	struct pollfd p = { .fd = fd, .events = POLLOUT };
	socklen_t len = sizeof(int);
	int err = 0;

	if (fd < 0)
		return -errno;
	if (connect(fd, a->ai_addr, a->ai_addrlen) && errno != EINPROGRESS)
		return -errno;
	if (poll(&p, 1, CONNECT_MS) != 1)
		return -ETIMEDOUT;
	if (getsockopt(fd, SOL_SOCKET, SO_ERROR, &err, &len) || err)
		return err ? -err : -errno;
	if (fcntl(fd, F_SETFL, 0))
		return -errno;
	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
	setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit));
	return steal_fd(fd);
}

static int connect_vault(const struct reg_key *k, struct why *why)
{
	struct addrinfo hints = { .ai_socktype = SOCK_STREAM, .ai_flags = AI_ADDRCONFIG }, *list;
	int fd = -ENOENT, err;

	err = getaddrinfo(k->address, k->port, &hints, &list);
	if (err)
		return why_set(why, EHOSTUNREACH, "the vault's address %s cannot be resolved: %s",
			       k->address, gai_strerror(err));
	for (struct addrinfo *a = list; a && fd < 0; a = a->ai_next)
		fd = connect_one(a);
	freeaddrinfo(list);
	if (fd < 0)
		return why_set(why, -fd, "the vault at %s port %s cannot be reached: %s",
			       k->address, k->port, strerror(-fd));
	return fd;
}

/* --------------------------------------------------------- the handshake */

/* The CA in the chain that has the pin, or NULL */
static X509 *find_ca(STACK_OF(X509) *chain, const uint8_t pin[16])
{
	uint8_t have[16];

	for (int i = 0; i < sk_X509_num(chain); i++) {
		X509 *cert = sk_X509_value(chain, i);

		if (!ident_ca_pin(cert, have) && !CRYPTO_memcmp(have, pin, 16) &&
		    X509_check_ca(cert) == 1)
			return cert;
	}
	return NULL;
}

/* Instead of OpenSSL's own: the pinned CA is the only anchor. */
static int check_pin(X509_STORE_CTX *given, void *arg)
{
	struct enrolment *e = arg;
	STACK_OF(X509) *chain = X509_STORE_CTX_get0_untrusted(given);
	X509 *leaf = X509_STORE_CTX_get0_cert(given), *ca = find_ca(chain, e->key.pin);
	X509_STORE *anchors = X509_STORE_new();
	X509_STORE_CTX *ctx = X509_STORE_CTX_new();
	char uri[128];
	int ok;

	e->pin_wrong = !ca;
	ok = ca && anchors && ctx && X509_STORE_add_cert(anchors, ca) == 1 &&
	     X509_STORE_CTX_init(ctx, anchors, leaf, NULL) == 1 &&
	     X509_STORE_CTX_set_purpose(ctx, X509_PURPOSE_SSL_SERVER) == 1 &&
	     X509_verify_cert(ctx) == 1 &&
	     !tls_cert_uri(leaf, uri, sizeof(uri)) && !strncmp(uri, "asr:vault:", 10);
	if (!ok)
		X509_STORE_CTX_set_error(given, ctx && X509_STORE_CTX_get_error(ctx) ?
					 X509_STORE_CTX_get_error(ctx) : X509_V_ERR_CERT_UNTRUSTED);
	X509_STORE_CTX_free(ctx);
	X509_STORE_free(anchors);
	return ok;
}

static int handshake(struct enrolment *e, int fd, SSL_CTX *ctx, SSL **out, struct why *why)
{
	const struct reg_key *k = &e->key;
	SSL *ssl;
	long verify;

	SSL_CTX_set_cert_verify_callback(ctx, check_pin, e);
	ssl = SSL_new(ctx);
	*out = ssl;
	if (!ssl || SSL_set_fd(ssl, fd) != 1)
		return -ENOMEM;
	if (SSL_connect(ssl) == 1)
		return 0;
	verify = SSL_get_verify_result(ssl);
	if (e->pin_wrong)
		return why_set(why, EACCES, "the vault at %s port %s is not the one that made this key: "
			       "its CA has another public key than the key's pin. Nothing was sent to it",
			       k->address, k->port);
	if (verify != X509_V_OK)
		return why_set(why, EACCES, "the vault at %s port %s shows a bad certificate: %s",
			       k->address, k->port, X509_verify_cert_error_string(verify));
	return why_set(why, EPROTO, "%s port %s does not answer as a vault: TLS handshake failed (%s)",
		       k->address, k->port, ERR_peek_error() ?
		       ERR_reason_error_string(ERR_peek_last_error()) : strerror(errno ? errno : ECONNRESET));
}

/* ------------------------------------------------------------ the messages */

static int send_json(SSL *ssl, uint32_t type, json_t *body, struct why *why)
{
	cleanup_json owned = body;
	cleanup_free char *text = json_dumps(body, JSON_COMPACT);
	cleanup_free uint8_t *message = NULL;
	struct msg_hdr hdr = { .type = type };

	if (text)
		message = malloc(sizeof(hdr) + strlen(text));
	if (!message)
		return -ENOMEM;
	hdr.bytes = (uint32_t)strlen(text);
	memcpy(message, &hdr, sizeof(hdr));
	memcpy(message + sizeof(hdr), text, hdr.bytes);
	if (SSL_write(ssl, message, (int)(sizeof(hdr) + hdr.bytes)) != (int)(sizeof(hdr) + hdr.bytes))
		return why_set(why, EPIPE, "the connection to the vault broke while sending");
	return 0;
}

static int read_all(SSL *ssl, void *to, size_t bytes, struct why *why)
{
	uint8_t *p = to;

	while (bytes) {
		int n = SSL_read(ssl, p, (int)bytes);

		if (n <= 0)
			return why_set(why, ECONNRESET, "the vault closed the connection, or was silent "
				       "for %d seconds, before it had answered", STEP_S);
		p += n;
		bytes -= n;
	}
	return 0;
}

/* The next message that says something; *body is the caller's */
static int receive_json(SSL *ssl, uint32_t *type, json_t **body, struct why *why)
{
	cleanup_free char *text = NULL;
	struct msg_hdr hdr;
	int err;

	do {
		err = read_all(ssl, &hdr, sizeof(hdr), why);
		if (err)
			return err;
	} while (hdr.type == MSG_PING && !hdr.bytes);
	if (hdr.bytes > MESSAGE_MAX)
		return why_set(why, EPROTO, "the vault's answer is longer than %d bytes", MESSAGE_MAX);
	text = malloc(hdr.bytes + 1);
	if (!text)
		return -ENOMEM;
	err = read_all(ssl, text, hdr.bytes, why);
	if (err)
		return err;
	*type = hdr.type;
	*body = json_loadb(text, hdr.bytes, JSON_REJECT_DUPLICATES, NULL);
	if (!json_is_object(*body)) {
		json_decref(*body);
		*body = NULL;
		return why_set(why, EPROTO, "the vault's answer is not a JSON object");
	}
	return 0;
}

static int enrol_call(struct enrolment *e, SSL *ssl, json_t **answer, struct why *why)
{
	cleanup_free char *csr = ident_pem(e->csr, IDENT_PEM_CSR);
	uint8_t hash[SHA256_DIGEST_LENGTH], proof[32];
	char proof_hex[65];
	const char *text;
	uint32_t type = 0;
	int err;

	SHA256(e->key.secret, sizeof(e->key.secret), hash);
	err = csr ? ident_proof(ssl, hash, e->csr, proof) : -ENOMEM;
	OPENSSL_cleanse(hash, sizeof(hash));
	if (err)
		return why_set(why, -err, "cannot compute the proof of the registration key");
	hex_encode(proof, sizeof(proof), proof_hex);
	err = send_json(ssl, MSG_HELLO, json_pack("{s:i, s:s, s:s}", "protocol", 1, "software",
						  "dm-asr " ASR_VERSION, "host", e->host), why);
	if (!err)
		err = send_json(ssl, MSG_CALL, json_pack("{s:i, s:s, s:{s:s, s:s, s:s, s:s}}", "id", 1,
							 "method", "enrol", "parameters", "id", e->key.id,
							 "csr", csr, "proof", proof_hex, "host", e->host), why);
	while (!err && type != MSG_REPLY && type != MSG_ERROR) {
		json_decref(*answer);
		*answer = NULL;
		err = receive_json(ssl, &type, answer, why);
	}
	if (err)
		return err;
	if (json_object_get(*answer, "error")) {
		text = json_string_value(json_object_get(*answer, "text"));
		return why_set(why, EACCES, "the vault refuses: %s", text ? text :
			       json_string_value(json_object_get(*answer, "error")) ?: "no reason given");
	}
	return 0;
}

/* ---------------------------------------------------------- what is kept */

/* Our key, the vault's signature on it, and the CA of the pin: or it is refused. */
static int answer_check(const struct enrolment *e, const char *cert_pem, const char *ca_pem, struct why *why)
{
	X509 *cert = cert_read(cert_pem), *ca = cert ? cert_read(ca_pem) : NULL;
	uint8_t pin[16];
	int ok;

	ok = ca && !ident_ca_pin(ca, pin) && !CRYPTO_memcmp(pin, e->key.pin, 16) &&
	     X509_check_private_key(cert, e->pkey) == 1 &&
	     X509_verify(cert, X509_get0_pubkey(ca)) == 1;
	X509_free(cert);
	X509_free(ca);
	ERR_clear_error();
	return ok ? 0 : why_set(why, EPROTO, "the vault's answer holds no certificate for this host's key");
}

static int keep(const struct enrolment *e, json_t *answer, struct why *why)
{
	cleanup_free char *key_pem = ident_pem(e->pkey, IDENT_PEM_KEY), *vault_text = NULL;
	const char *cert_pem, *ca_pem, *host_id;
	cleanup_json vault = NULL;
	int err;

	if (json_unpack(answer, "{s:{s:s, s:s, s:s}}", "parameters", "certificate", &cert_pem,
			"ca", &ca_pem, "host_id", &host_id))
		return why_set(why, EPROTO, "the vault's answer lacks the certificate");
	err = answer_check(e, cert_pem, ca_pem, why);
	if (err)
		return err;
	vault = json_pack("{s:s, s:s, s:s, s:s}", "address", e->key.address, "port", e->key.port,
			  "host", e->host, "host_id", host_id);
	vault_text = json_dumps(vault, JSON_INDENT(1) | JSON_PRESERVE_ORDER);
	if (!key_pem || !vault_text)
		return -ENOMEM;
	struct { const char *name, *text; mode_t mode; } files[] = {
		{ "ca.crt", ca_pem, 0644 },
		{ "host.key", key_pem, 0600 },
		{ "host.crt", cert_pem, 0644 },
		{ "vault.json", vault_text, 0644 },
	};
	for (size_t i = 0; !err && i < sizeof(files) / sizeof(files[0]); i++) {
		cleanup_free char *path = NULL;

		err = dir_path(e, files[i].name, &path);
		if (!err)
			err = file_write(path, files[i].mode, files[i].text, strlen(files[i].text), why);
	}
	OPENSSL_cleanse(key_pem, strlen(key_pem));
	return err;
}

/* ------------------------------------------------------------ the whole */

/* Is there an identity already, and of which vault? */
static int known_check(struct enrolment *e, struct why *why)
{
	cleanup_free char *ca_path = NULL, *cert_path = NULL, *ca_pem = NULL, *cert_pem = NULL;
	X509 *ca, *cert;
	uint8_t pin[16];
	bool same;

	if (dir_path(e, "ca.crt", &ca_path) || dir_path(e, "host.crt", &cert_path))
		return -ENOMEM;
	if (file_read(cert_path, PEM_MAX, &cert_pem, NULL, NULL) ||
	    file_read(ca_path, PEM_MAX, &ca_pem, NULL, NULL))
		return 0;
	ca = cert_read(ca_pem);
	cert = cert_read(cert_pem);
	same = ca && !ident_ca_pin(ca, pin) && !CRYPTO_memcmp(pin, e->key.pin, 16);
	/* an expired one would only break the handshake */
	e->known = same && cert && X509_cmp_current_time(X509_get0_notAfter(cert)) > 0;
	X509_free(cert);
	X509_free(ca);
	if (!same)
		return why_set(why, EEXIST, "this host is registered with another vault (%s): "
			       "its groups belong there. To leave it, move %s away first", ca_path, e->dir);
	return 0;
}

static int csr_make(struct enrolment *e)
{
	X509_NAME *name;

	e->pkey = EVP_EC_gen("P-256");
	e->csr = X509_REQ_new();
	if (!e->pkey || !e->csr)
		return -ENOMEM;
	name = X509_REQ_get_subject_name(e->csr);
	if (!X509_NAME_add_entry_by_txt(name, "CN", MBSTRING_UTF8, (const void *)e->host, -1, -1, 0) ||
	    !X509_REQ_set_pubkey(e->csr, e->pkey) || !X509_REQ_sign(e->csr, e->pkey, EVP_sha256()))
		return -EIO;
	return 0;
}

static int exchange(struct enrolment *e, struct why *why)
{
	cleanup_free char *cert = NULL, *key = NULL;
	struct tls_files files = {0};
	SSL_CTX *ctx = NULL;
	json_t *answer = NULL;
	SSL *ssl = NULL;
	int fd, err;

	if (e->known) {
		if (dir_path(e, "host.crt", &cert) || dir_path(e, "host.key", &key))
			return -ENOMEM;
		files.cert = cert;
		files.key = key;
	}
	err = tls_client(&files, true, &ctx, why);
	if (err)
		return err;
	fd = connect_vault(&e->key, why);
	err = fd < 0 ? fd : handshake(e, fd, ctx, &ssl, why);
	if (!err)
		err = enrol_call(e, ssl, &answer, why);
	if (!err)
		err = keep(e, answer, why);
	if (ssl && !err)
		SSL_shutdown(ssl);
	json_decref(answer);
	SSL_free(ssl);
	SSL_CTX_free(ctx);
	if (fd >= 0)
		close(fd);
	ERR_clear_error();
	return err;
}

int ident_register(const char *key_text, const char *dir, const char *host, struct why *why)
{
	struct enrolment e = { .dir = dir };
	char when[40], *dot;
	int err;

	err = ident_key_parse(key_text, &e.key, why);
	if (err)
		return err;
	if (e.key.expires_ns <= now_real_ns())
		return why_set(why, EKEYEXPIRED, "registration key %s expired at %s: ask for a new one "
			       "(`asrctl vault key create` at the vault)", e.key.id,
			       time_format(e.key.expires_ns, when));
	if (host) {
		err = name_check("host", host, why);
		if (err)
			return err;
		strcpy(e.host, host);
	} else {
		if (gethostname(e.host, sizeof(e.host) - 1))
			return why_set(why, errno, "this machine has no name: give --host NAME");
		dot = strchr(e.host, '.');
		if (dot && dot != e.host)
			*dot = 0;
		err = name_check("host", e.host, why);
		if (err)
			return err;
	}
	err = known_check(&e, why);
	if (!err)
		err = dir_make(dir, 0700, why);
	if (!err)
		err = csr_make(&e);
	if (!err)
		err = exchange(&e, why);
	EVP_PKEY_free(e.pkey);
	X509_REQ_free(e.csr);
	OPENSSL_cleanse(&e.key, sizeof(e.key));
	return err;
}
