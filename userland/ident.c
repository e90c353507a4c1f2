// SPDX-License-Identifier: Apache-2.0
/*
 * The vault's side of identity: its CA, registration keys, signing of hosts.
 *
 * Design. DIR/ca/ (0700) holds the whole of it:
 *
 *   ca.key ca.crt          EC P-256, self-signed, signs hosts and the server
 *   server.key server.crt  what the vault shows, with the CA's behind it
 *   vault.json             {"id","address","port"}: what keys tell the hosts
 *
 * A registration key carries a one-time secret and a pin of the CA's public
 * key. A host connects, and sends nothing before the chain it is shown ends
 * in the pinned key. It then proves the secret by
 *
 *   HMAC-SHA256(SHA-256(secret), TLS exporter || CSR in DER)
 *
 * which is bound to this connection and this CSR: nobody in between can reuse
 * it or put another key under it. The vault stores SHA-256(secret), which is
 * all it needs to check that. The certificate and the burning of the key are
 * one transaction, so a key makes one certificate, also across a crash.
 *
 * Invariants. The folder ca/ appears whole, by rename, or not at all. Nothing
 * is said about a key to a peer that has not proved its secret.
 *
 * Context. asrctl (blocking is fine) and, for ident_enrol(), the vault's loop:
 * one signature and one small transaction.
 *
 * Not done. Renewal, revocation, a new server certificate.
 */
#include "asr.h"
#include "vault.h"

#include <arpa/inet.h>
#include <errno.h>
#include <string.h>
#include <sys/stat.h>

#include <openssl/crypto.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <openssl/pem.h>
#include <openssl/sha.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>

#define DAY_S		86400LL
#define CA_LIFE_S	(20 * 365 * DAY_S)
#define HOST_LIFE_S	(90 * DAY_S)
#define CLOCK_SKEW_S	DAY_S		/* certificates begin so much in the past: for hosts whose clocks are late */
#define PEM_MAX		16384

/* -------------------------------------------------- certificates, as PEM */

char *ident_pem(const void *object, enum ident_pem_kind kind)
{
	BIO *bio = BIO_new(BIO_s_mem());
	char *text = NULL, *data;
	int ok = 0;
	long n;

	if (!bio)
		return NULL;
	if (kind == IDENT_PEM_KEY)
		ok = PEM_write_bio_PrivateKey(bio, object, NULL, NULL, 0, NULL, NULL);
	else if (kind == IDENT_PEM_CERT)
		ok = PEM_write_bio_X509(bio, object);
	else
		ok = PEM_write_bio_X509_REQ(bio, object);
	n = BIO_get_mem_data(bio, &data);
	if (ok == 1 && n > 0)
		text = strndup(data, n);
	/* a memory BIO wipes what it held */
	BIO_free(bio);
	return text;
}

/* Writes the PEM of the object, and a second one behind it unless NULL. */
static int pem_write(const char *dir, const char *name, mode_t mode, const void *object,
		     enum ident_pem_kind kind, const X509 *behind, struct why *why)
{
	cleanup_free char *first = ident_pem(object, kind);
	cleanup_free char *second = behind ? ident_pem(behind, IDENT_PEM_CERT) : strdup("");
	cleanup_free char *path = NULL, *both = NULL;
	int err, n;

	if (!first || !second || asprintf(&path, "%s/%s", dir, name) < 0)
		return -ENOMEM;
	n = asprintf(&both, "%s%s", first, second);
	if (n < 0)
		return -ENOMEM;
	err = file_write(path, mode, both, n, why);
	OPENSSL_cleanse(both, n);
	OPENSSL_cleanse(first, strlen(first));
	return err;
}

static void *pem_read(const char *dir, const char *name, enum ident_pem_kind kind, struct why *why)
{
	cleanup_free char *path = NULL, *text = NULL;
	void *object = NULL;
	size_t bytes;
	BIO *bio;

	if (asprintf(&path, "%s/%s", dir, name) < 0 || file_read(path, PEM_MAX, &text, &bytes, why))
		return NULL;
	bio = BIO_new_mem_buf(text, (int)bytes);
	if (bio && kind == IDENT_PEM_KEY)
		object = PEM_read_bio_PrivateKey(bio, NULL, NULL, (void *)"");
	else if (bio)
		object = PEM_read_bio_X509(bio, NULL, NULL, NULL);
	BIO_free(bio);
	OPENSSL_cleanse(text, bytes);
	ERR_clear_error();
	if (!object)
		why_set(why, EINVAL, "%s: not a readable PEM %s", path,
			kind == IDENT_PEM_KEY ? "private key" : "certificate");
	return object;
}

struct cert_spec {
	const char *name;		/* common name */
	const char *san;		/* NULL: a CA, which has none */
	const char *purpose;		/* extended key usage; NULL: a CA */
	long long life_s;
};

static int add_extension(X509 *cert, X509 *issuer, int nid, const char *value)
{
	X509_EXTENSION *e;
	X509V3_CTX ctx;
	int ok;

	X509V3_set_ctx_nodb(&ctx);
	X509V3_set_ctx(&ctx, issuer, cert, NULL, NULL, 0);
	e = X509V3_EXT_conf_nid(NULL, &ctx, nid, value);
	ok = e && X509_add_ext(cert, e, -1);
	X509_EXTENSION_free(e);
	return ok;
}

static int add_extensions(X509 *cert, X509 *issuer, const struct cert_spec *s)
{
	if (!s->san)
		return add_extension(cert, cert, NID_basic_constraints, "critical,CA:TRUE,pathlen:0") &&
		       add_extension(cert, cert, NID_key_usage, "critical,keyCertSign,cRLSign") &&
		       add_extension(cert, cert, NID_subject_key_identifier, "hash");
	return add_extension(cert, issuer, NID_basic_constraints, "critical,CA:FALSE") &&
	       add_extension(cert, issuer, NID_key_usage, "critical,digitalSignature") &&
	       add_extension(cert, issuer, NID_ext_key_usage, s->purpose) &&
	       add_extension(cert, issuer, NID_subject_alt_name, s->san) &&
	       add_extension(cert, issuer, NID_subject_key_identifier, "hash") &&
	       add_extension(cert, issuer, NID_authority_key_identifier, "keyid:always");
}

/* issuer NULL: signed by itself */
static X509 *cert_make(const struct cert_spec *s, EVP_PKEY *key, X509 *issuer, EVP_PKEY *issuer_key)
{
	X509 *cert = X509_new();
	BIGNUM *serial = BN_new();
	X509_NAME *name;
	int ok;

	ok = cert && serial && X509_set_version(cert, X509_VERSION_3) &&
	     BN_rand(serial, 127, BN_RAND_TOP_ONE, BN_RAND_BOTTOM_ANY) &&
	     BN_to_ASN1_INTEGER(serial, X509_get_serialNumber(cert)) &&
	     X509_gmtime_adj(X509_getm_notBefore(cert), -CLOCK_SKEW_S) &&
	     X509_gmtime_adj(X509_getm_notAfter(cert), s->life_s) &&
	     X509_set_pubkey(cert, key);
	name = ok ? X509_get_subject_name(cert) : NULL;
	ok = ok && X509_NAME_add_entry_by_txt(name, "CN", MBSTRING_UTF8, (const void *)s->name, -1, -1, 0) &&
	     X509_set_issuer_name(cert, issuer ? X509_get_subject_name(issuer) : name) &&
	     add_extensions(cert, issuer, s) &&
	     X509_sign(cert, issuer_key, EVP_sha256());
	BN_free(serial);
	if (!ok) {
		X509_free(cert);
		cert = NULL;
	}
	ERR_clear_error();
	return cert;
}

/* ---------------------------------------------------------------- the CA */

int ident_ca_pin(const X509 *ca, uint8_t pin[16])
{
	uint8_t *der = NULL, sum[SHA256_DIGEST_LENGTH];
	int n = i2d_X509_PUBKEY(X509_get_X509_PUBKEY(ca), &der);

	if (n <= 0)
		return -EINVAL;
	SHA256(der, n, sum);
	memcpy(pin, sum, 16);
	OPENSSL_free(der);
	return 0;
}

static int ca_fill(const char *dir, const char *id, const char *address, struct why *why)
{
	bool ip = strchr(address, ':') || inet_addr(address) != INADDR_NONE;
	char ca_name[64], san[512];
	EVP_PKEY *ca_key = EVP_EC_gen("P-256"), *key = EVP_EC_gen("P-256");
	struct cert_spec ca_spec = { .name = ca_name, .life_s = CA_LIFE_S };
	struct cert_spec spec = { .name = "dm-asr vault", .san = san, .purpose = "serverAuth",
				  .life_s = CA_LIFE_S - DAY_S };
	X509 *ca = NULL, *cert = NULL;
	int err = -EIO;

	snprintf(ca_name, sizeof(ca_name), "dm-asr vault CA %s", id);
	snprintf(san, sizeof(san), "URI:asr:vault:%s, %s:%s", id, ip ? "IP" : "DNS", address);
	if (ca_key && key)
		ca = cert_make(&ca_spec, ca_key, NULL, ca_key);
	if (ca)
		cert = cert_make(&spec, key, ca, ca_key);
	if (cert) {
		err = pem_write(dir, "ca.key", 0600, ca_key, IDENT_PEM_KEY, NULL, why);
		if (!err)
			err = pem_write(dir, "ca.crt", 0644, ca, IDENT_PEM_CERT, NULL, why);
		if (!err)
			err = pem_write(dir, "server.key", 0600, key, IDENT_PEM_KEY, NULL, why);
		if (!err)
			err = pem_write(dir, "server.crt", 0644, cert, IDENT_PEM_CERT, ca, why);
	} else {
		why_set(why, EIO, "cannot make the CA's keys and certificates");
	}
	X509_free(cert);
	X509_free(ca);
	EVP_PKEY_free(key);
	EVP_PKEY_free(ca_key);
	return err;
}

static void ca_discard(const char *dir)
{
	static const char *const names[] = { "ca.key", "ca.crt", "server.key", "server.crt", "vault.json" };
	cleanup_free char *path = NULL;

	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
		free(path);
		if (asprintf(&path, "%s/%s", dir, names[i]) < 0)
			path = NULL;
		else
			unlink(path);
	}
	rmdir(dir);
}

int ident_ca_create(const char *dir, const char *address, const char *port, struct why *why)
{
	cleanup_free char *made = NULL, *final = NULL, *place = NULL, *text = NULL;
	cleanup_json vault = NULL;
	char id[17], *end;
	uint8_t raw[8];
	long number = strtol(port, &end, 10);
	int err;

	if (*end || number < 1 || number > 65535)
		return why_set(why, EINVAL, "bad port \"%.20s\": a number from 1 to 65535 is wanted", port);
	err = ident_address_check(address, why);
	if (err)
		return err;
	if (asprintf(&made, "%s/ca.new", dir) < 0 || asprintf(&final, "%s/ca", dir) < 0 ||
	    asprintf(&place, "%s/ca.new/vault.json", dir) < 0 || seal_random(raw, sizeof(raw)))
		return -ENOMEM;
	if (!access(final, F_OK))
		return why_set(why, EEXIST, "%s is a vault already: its CA is in %s", dir, final);
	hex_encode(raw, sizeof(raw), id);
	vault = json_pack("{s:s, s:s, s:s}", "id", id, "address", address, "port", port);
	text = json_dumps(vault, JSON_INDENT(1) | JSON_PRESERVE_ORDER);
	if (!text)
		return -ENOMEM;
	ca_discard(made);
	err = dir_make(dir, 0700, why);
	if (!err)
		err = dir_make(made, 0700, why);
	if (!err)
		err = ca_fill(made, id, address, why);
	if (!err)
		err = file_write(place, 0644, text, strlen(text), why);
	if (!err && rename(made, final))
		err = why_set(why, errno, "%s: %s", final, strerror(errno));
	if (err)
		ca_discard(made);
	return err;
}

int ident_key_create(struct catalog *cat, const char *dir, const char *for_host, uint64_t expires_ns,
		     struct reg_key *k, struct why *why)
{
	cleanup_free char *ca_dir = NULL, *path = NULL, *text = NULL;
	cleanup_json vault = NULL;
	const char *address, *port;
	struct catalog_key row;
	uint8_t id[8];
	X509 *ca;
	int err;

	if (asprintf(&ca_dir, "%s/ca", dir) < 0 || asprintf(&path, "%s/vault.json", ca_dir) < 0)
		return -ENOMEM;
	err = file_read(path, PEM_MAX, &text, NULL, why);
	if (err)
		return err;
	vault = json_loads(text, 0, NULL);
	if (json_unpack(vault, "{s:s, s:s}", "address", &address, "port", &port) ||
	    ident_address_check(address, NULL) || strlen(port) >= sizeof(k->port))
		return why_set(why, EINVAL, "%s: it must name \"address\" and \"port\"", path);
	ca = pem_read(ca_dir, "ca.crt", IDENT_PEM_CERT, why);
	if (!ca)
		return -EINVAL;
	/* the text of a key counts in seconds */
	expires_ns -= expires_ns % 1000000000ULL;
	*k = (struct reg_key){ .expires_ns = expires_ns };
	row = (struct catalog_key){ .created_ns = now_real_ns(), .expires_ns = expires_ns };
	strcpy(k->address, address);
	strcpy(k->port, port);
	err = ident_ca_pin(ca, k->pin);
	X509_free(ca);
	if (!err)
		err = seal_random(k->secret, sizeof(k->secret));
	if (!err)
		err = seal_random(id, sizeof(id));
	if (err)
		return err;
	hex_encode(id, sizeof(id), k->id);
	strcpy(row.id, k->id);
	snprintf(row.for_host, sizeof(row.for_host), "%s", for_host);
	SHA256(k->secret, sizeof(k->secret), row.secret_hash);
	return catalog_key_add(cat, &row, why);
}

/* ------------------------------------------------------- enrolling a host */

int ident_proof(SSL *ssl, const uint8_t secret_hash[32], const X509_REQ *csr, uint8_t proof[32])
{
	static const char label[] = "EXPORTER-dm-asr-enrol";
	uint8_t exported[32], *der = NULL, *both = NULL;
	int n = i2d_X509_REQ(csr, &der), err = -EIO;

	if (n > 0 && n <= PEM_MAX)
		both = malloc(sizeof(exported) + n);
	if (both && SSL_export_keying_material(ssl, exported, sizeof(exported), label,
					       sizeof(label) - 1, NULL, 0, 0) == 1) {
		memcpy(both, exported, sizeof(exported));
		memcpy(both + sizeof(exported), der, n);
		if (HMAC(EVP_sha256(), secret_hash, 32, both, sizeof(exported) + n, proof, NULL))
			err = 0;
	}
	free(both);
	OPENSSL_free(der);
	return err;
}

/* A CSR whose signature fits its key, and whose key is strong enough */
static X509_REQ *csr_read(const char *pem)
{
	size_t bytes = strlen(pem);
	BIO *bio = bytes <= PEM_MAX ? BIO_new_mem_buf(pem, (int)bytes) : NULL;
	X509_REQ *csr = bio ? PEM_read_bio_X509_REQ(bio, NULL, NULL, NULL) : NULL;
	EVP_PKEY *key = csr ? X509_REQ_get0_pubkey(csr) : NULL;

	BIO_free(bio);
	if (!key || EVP_PKEY_get_security_bits(key) < 112 || X509_REQ_verify(csr, key) != 1) {
		X509_REQ_free(csr);
		csr = NULL;
	}
	ERR_clear_error();
	return csr;
}

/* The key of the call is known, unused, in time, and its secret proved. */
static int key_check(struct catalog *cat, const char *id, SSL *ssl, const X509_REQ *csr,
		     const char *proof, const char **error, struct why *why)
{
	uint8_t given[32], right[32];
	struct catalog_key key;
	char when[40];

	*error = "proof-wrong";
	if (hex_decode(proof, given, sizeof(given)))
		return why_set(why, EINVAL, "the proof is not a SHA-256 in hex");
	if (strlen(id) != 16 || catalog_key_get(cat, id, &key, NULL)) {
		*error = "key-unknown";
		return why_set(why, ENOENT, "the vault knows no registration key %.16s: make one "
			       "with `asrctl vault key create`", id);
	}
	if (ident_proof(ssl, key.secret_hash, csr, right) ||
	    CRYPTO_memcmp(given, right, sizeof(right)))
		return why_set(why, EACCES, "the proof does not fit registration key %s: its secret is wrong", id);
	if (key.revoked_ns) {
		*error = "key-revoked";
		return why_set(why, EKEYREVOKED, "registration key %s was revoked at %s", id,
			       time_format(key.revoked_ns, when));
	}
	if (key.used_ns) {
		*error = "key-used";
		return why_set(why, EEXIST, "registration key %s was used at %s; each serves once: "
			       "make a new one with `asrctl vault key create`", id,
			       time_format(key.used_ns, when));
	}
	if (key.expires_ns <= now_real_ns()) {
		*error = "key-expired";
		return why_set(why, EKEYEXPIRED, "registration key %s expired at %s: make a new one "
			       "with `asrctl vault key create`", id, time_format(key.expires_ns, when));
	}
	return 0;
}

static X509 *host_sign(const char *ca_dir, const char *host, const char *host_id, X509_REQ *csr,
		       X509 *ca, struct why *why)
{
	EVP_PKEY *ca_key = pem_read(ca_dir, "ca.key", IDENT_PEM_KEY, why);
	char san[64];
	struct cert_spec spec = { .name = host, .san = san, .purpose = "clientAuth",
				  .life_s = HOST_LIFE_S };
	X509 *cert;

	if (!ca_key)
		return NULL;
	snprintf(san, sizeof(san), "URI:asr:host:%s", host_id);
	cert = cert_make(&spec, X509_REQ_get0_pubkey(csr), ca, ca_key);
	EVP_PKEY_free(ca_key);
	if (!cert)
		why_set(why, EIO, "cannot sign the certificate");
	return cert;
}

/* The host that the key is made for; who shows a certificate (serial) keeps its identity; else a new one */
static int host_id_choose(struct catalog *cat, const char *key_id, SSL *ssl, char id[33],
			  char serial[TLS_SERIAL_BYTES], struct why *why)
{
	X509 *cert = SSL_get0_peer_certificate(ssl);
	struct catalog_key key;
	uint8_t raw[16];
	char uri[128];
	bool shown = cert && SSL_get_verify_result(ssl) == X509_V_OK &&
		     !tls_cert_uri(cert, uri, sizeof(uri)) && !strncmp(uri, "asr:host:", 9) &&
		     strlen(uri + 9) == 32 && !hex_decode(uri + 9, raw, 16);
	int err = catalog_key_get(cat, key_id, &key, why);

	serial[0] = 0;
	if (!err && shown)
		err = tls_cert_serial(cert, serial, TLS_SERIAL_BYTES);
	if (err)
		return err;
	if (*key.for_host && shown && strcmp(uri + 9, key.for_host))
		return why_set(why, EKEYREJECTED, "that key is for another host: this one would lose its own groups");
	if (*key.for_host || shown) {
		strcpy(id, *key.for_host ? key.for_host : uri + 9);
		return 0;
	}
	if (seal_random(raw, sizeof(raw)))
		return -EIO;
	hex_encode(raw, sizeof(raw), id);
	return 0;
}

static int host_record(struct catalog *cat, const char *key_id, const char *host_id,
		       const char *host, const X509 *cert, const char *shown, struct why *why)
{
	struct catalog_host h = { .enrolled_ns = now_real_ns() };

	h.expires_ns = h.enrolled_ns + HOST_LIFE_S * 1000000000ULL;
	snprintf(h.id, sizeof(h.id), "%s", host_id);
	snprintf(h.name, sizeof(h.name), "%s", host);
	return tls_cert_serial(cert, h.serial, sizeof(h.serial)) ?:
	       catalog_enrol(cat, key_id, h.enrolled_ns, &h, shown, why);
}

static const char *record_error(int err)
{
	switch (err) {
	case -EALREADY:		return "key-used";
	case -EKEYEXPIRED:	return "key-expired";
	case -EKEYREVOKED:	return "key-revoked";
	case -EKEYREJECTED:	return "certificate-revoked";
	case -ENOENT:		return "key-unknown";
	default:		return "internal";
	}
}

/* Everything has been checked: certificate, transaction, answer. */
static json_t *enrol(struct catalog *cat, const char *dir, SSL *ssl, const char *key_id,
		     X509_REQ *csr, const char *host, const char **error, struct why *why)
{
	cleanup_free char *ca_dir = NULL, *cert_pem = NULL, *ca_pem = NULL;
	X509 *ca = NULL, *cert = NULL;
	json_t *answer = NULL;
	char host_id[33], shown[TLS_SERIAL_BYTES];
	int err = -ENOMEM;

	*error = "internal";
	if (asprintf(&ca_dir, "%s/ca", dir) < 0)
		return NULL;
	err = host_id_choose(cat, key_id, ssl, host_id, shown, why);
	if (err) {
		*error = record_error(err);
		return NULL;
	}
	err = -ENOMEM;
	ca = pem_read(ca_dir, "ca.crt", IDENT_PEM_CERT, why);
	if (ca)
		cert = host_sign(ca_dir, host, host_id, csr, ca, why);
	if (cert) {
		cert_pem = ident_pem(cert, IDENT_PEM_CERT);
		ca_pem = ident_pem(ca, IDENT_PEM_CERT);
	}
	if (cert_pem && ca_pem) {
		err = host_record(cat, key_id, host_id, host, cert, shown, why);
		*error = record_error(err);
	}
	if (!err)
		answer = json_pack("{s:s, s:s, s:s}", "certificate", cert_pem, "ca", ca_pem,
				   "host_id", host_id);
	X509_free(cert);
	X509_free(ca);
	return answer;
}

json_t *ident_enrol(struct catalog *cat, const char *dir, SSL *ssl, json_t *parameters,
		    const char **error, struct why *why)
{
	const char *id, *pem, *proof, *host;
	json_t *answer = NULL;
	X509_REQ *csr;

	*error = "bad-parameter";
	if (json_unpack(parameters, "{s:s, s:s, s:s, s:s}", "id", &id, "csr", &pem,
			"proof", &proof, "host", &host)) {
		why_set(why, EINVAL, "an enrol call has id, csr, proof and host");
		return NULL;
	}
	if (name_check("host", host, why))
		return NULL;
	csr = csr_read(pem);
	if (!csr) {
		why_set(why, EINVAL, "the CSR is not readable, not signed by its key, or its key is too weak");
		return NULL;
	}
	if (!key_check(cat, id, ssl, csr, proof, error, why))
		answer = enrol(cat, dir, ssl, id, csr, host, error, why);
	X509_REQ_free(csr);
	return answer;
}
