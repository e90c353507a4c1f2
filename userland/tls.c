// SPDX-License-Identifier: Apache-2.0
/*
 * The TLS contexts of both ends of door 2, and of hosts among each other.
 *
 * Design. TLS 1.3 alone, no tickets and no session cache: every connection
 * proves the certificate anew, so nothing survives a revoked or expired one.
 * Hosts and vault trust one CA, the vault's own, and nothing else. Who a peer
 * is stands in its certificate as a URI: "asr:vault:ID" or "asr:host:ID", and
 * the role is checked during the handshake, so that one host cannot pose as
 * the vault towards another. The name or address by which the vault was
 * reached proves nothing beyond that and is not compared: a vault may move.
 *
 * Invariants. A context without a CA trusts nobody: the handshake fails until
 * the caller (enrolment) installs its own check of the pinned key. A host
 * certificate that is shown is verified; whether one must be shown is the
 * protocol's affair (ALPN), hence conn_peer().
 *
 * Context. Called at start and when files change; blocks on files only.
 *
 * Not done. Revocation lists; kernel TLS.
 */
#include "asr.h"

#include <errno.h>
#include <string.h>

#include <openssl/err.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>

static const unsigned char alpn_data[] = "\x08" "dm-asr/1";
static const unsigned char alpn_enrol[] = "\x0e" "dm-asr-enrol/1";
static const unsigned char alpn_peer[] = "\x0d" "dm-asr-peer/1";
static const unsigned char alpn_both[] = "\x08" "dm-asr/1" "\x0e" "dm-asr-enrol/1";

/* What went wrong first, in words; the library's queue is empty afterwards. */
static const char *reason(void)
{
	unsigned long e = ERR_peek_error();
	const char *text = ERR_SYSTEM_ERROR(e) ? strerror(ERR_GET_REASON(e)) : ERR_reason_error_string(e);

	ERR_clear_error();
	return text ? text : "no reason given";
}

int tls_cert_uri(const X509 *cert, char *out, size_t bytes)
{
	GENERAL_NAMES *names = X509_get_ext_d2i(cert, NID_subject_alt_name, NULL, NULL);
	int err = -ENOENT;

	for (int i = 0; i < sk_GENERAL_NAME_num(names); i++) {
		const GENERAL_NAME *n = sk_GENERAL_NAME_value(names, i);
		const unsigned char *s;
		size_t len;

		if (n->type != GEN_URI)
			continue;
		s = ASN1_STRING_get0_data(n->d.uniformResourceIdentifier);
		len = ASN1_STRING_length(n->d.uniformResourceIdentifier);
		if (len < 4 || memcmp(s, "asr:", 4))
			continue;
		if (len >= bytes || memchr(s, 0, len)) {
			err = -EBADMSG;
			break;
		}
		memcpy(out, s, len);
		out[len] = 0;
		err = 0;
		break;
	}
	GENERAL_NAMES_free(names);
	return err;
}

int tls_cert_serial(const X509 *cert, char *out, size_t bytes)
{
	BIGNUM *serial = cert ? ASN1_INTEGER_to_BN(X509_get0_serialNumber(cert), NULL) : NULL;
	char *hex = serial ? BN_bn2hex(serial) : NULL;
	int err = hex && strlen(hex) < bytes ? 0 : -EBADMSG;

	if (!err)
		strcpy(out, hex);
	OPENSSL_free(hex);
	BN_free(serial);
	return err;
}

/* After the chain has been found good: does the leaf have the peer's role? */
static int leaf_role(int ok, X509_STORE_CTX *store, const char *role)
{
	char uri[128];

	if (!ok || X509_STORE_CTX_get_error_depth(store) > 0)
		return ok;
	if (!tls_cert_uri(X509_STORE_CTX_get_current_cert(store), uri, sizeof(uri)) &&
	    !strncmp(uri, role, strlen(role)))
		return 1;
	X509_STORE_CTX_set_error(store, X509_V_ERR_APPLICATION_VERIFICATION);
	return 0;
}

static int check_role(int ok, X509_STORE_CTX *store)
{
	SSL *ssl = X509_STORE_CTX_get_ex_data(store, SSL_get_ex_data_X509_STORE_CTX_idx());

	return leaf_role(ok, store, SSL_is_server(ssl) ? "asr:host:" : "asr:vault:");
}

static int check_host(int ok, X509_STORE_CTX *store)
{
	return leaf_role(ok, store, "asr:host:");
}

static int pick_alpn(SSL *ssl, const unsigned char **out, unsigned char *len,
		     const unsigned char *in, unsigned int in_len, void *arg)
{
	const unsigned char *mine = arg ? arg : alpn_both;
	unsigned char *chosen;

	if (SSL_select_next_proto(&chosen, len, mine, (unsigned int)strlen((const char *)mine), in, in_len) !=
	    OPENSSL_NPN_NEGOTIATED)
		return SSL_TLSEXT_ERR_ALERT_FATAL;
	*out = chosen;
	return SSL_TLSEXT_ERR_OK;
}

/* A daemon cannot be asked: an encrypted key is an error, not a prompt. */
static int no_passphrase(char *buf, int size, int rwflag, void *arg)
{
	return -1;
}

static int load_files(SSL_CTX *ctx, const struct tls_files *f, struct why *why)
{
	if (f->ca && SSL_CTX_load_verify_locations(ctx, f->ca, NULL) != 1)
		return why_set(why, ENOENT, "%s: not a readable CA certificate (%s)", f->ca, reason());
	if (!f->cert)
		return 0;
	if (SSL_CTX_use_certificate_chain_file(ctx, f->cert) != 1)
		return why_set(why, ENOENT, "%s: not a readable certificate (%s)", f->cert, reason());
	if (SSL_CTX_use_PrivateKey_file(ctx, f->key, SSL_FILETYPE_PEM) != 1)
		return why_set(why, ENOENT, "%s: not a readable private key for %s (%s)",
			       f->key, f->cert, reason());
	return 0;
}

static int make(const SSL_METHOD *method, const struct tls_files *f, SSL_CTX **out, struct why *why)
{
	SSL_CTX *ctx = SSL_CTX_new(method);
	int err;

	*out = NULL;
	if (!ctx)
		return why_set(why, ENOMEM, "cannot make a TLS context (%s)", reason());
	SSL_CTX_set_default_passwd_cb(ctx, no_passphrase);
	SSL_CTX_set_session_cache_mode(ctx, SSL_SESS_CACHE_OFF);
	SSL_CTX_set_options(ctx, SSL_OP_NO_TICKET);
	SSL_CTX_set_mode(ctx, SSL_MODE_AUTO_RETRY | SSL_MODE_ENABLE_PARTIAL_WRITE |
			      SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
	SSL_CTX_set_verify(ctx, SSL_VERIFY_PEER, check_role);
	/* leaf and CA: the house has no intermediate ones */
	SSL_CTX_set_verify_depth(ctx, 1);
	if (SSL_CTX_set_min_proto_version(ctx, TLS1_3_VERSION) != 1 ||
	    SSL_CTX_set_max_proto_version(ctx, TLS1_3_VERSION) != 1 ||
	    SSL_CTX_set_num_tickets(ctx, 0) != 1 || SSL_CTX_set1_groups_list(ctx, "X25519:P-256:P-384:P-521") != 1 ||
	    SSL_CTX_set_ciphersuites(ctx, "TLS_AES_256_GCM_SHA384:"
					  "TLS_CHACHA20_POLY1305_SHA256") != 1)
		err = why_set(why, EPROTO, "the TLS library refuses TLS 1.3 (%s)", reason());
	else
		err = load_files(ctx, f, why);
	if (err) {
		SSL_CTX_free(ctx);
		return err;
	}
	*out = ctx;
	return 0;
}

int tls_client(const struct tls_files *f, bool enrol, SSL_CTX **ctx, struct why *why)
{
	const unsigned char *alpn = enrol ? alpn_enrol : alpn_data;
	int err;

	err = make(TLS_client_method(), f, ctx, why);
	if (err)
		return err;
	/* this one returns 0 when all is well */
	if (!SSL_CTX_set_alpn_protos(*ctx, alpn, 1 + alpn[0]))
		return 0;
	SSL_CTX_free(*ctx);
	*ctx = NULL;
	return why_set(why, ENOMEM, "cannot set the TLS protocol name (%s)", reason());
}

int tls_server(const struct tls_files *f, SSL_CTX **ctx, struct why *why)
{
	int err;

	err = make(TLS_server_method(), f, ctx, why);
	if (err)
		return err;
	SSL_CTX_set_alpn_select_cb(*ctx, pick_alpn, NULL);
	return 0;
}

int tls_peer(const struct tls_files *f, bool server, SSL_CTX **ctx, struct why *why)
{
	int err = make(server ? TLS_server_method() : TLS_client_method(), f, ctx, why);

	if (err)
		return err;
	SSL_CTX_set_verify(*ctx, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, check_host);
	/* both ends are hosts, and what a host's certificate is for is to be a client */
	SSL_CTX_set_purpose(*ctx, X509_PURPOSE_SSL_CLIENT);
	if (server)
		SSL_CTX_set_alpn_select_cb(*ctx, pick_alpn, (void *)(uintptr_t)alpn_peer);
	else if (SSL_CTX_set_alpn_protos(*ctx, alpn_peer, 1 + alpn_peer[0])) {
		SSL_CTX_free(*ctx);
		*ctx = NULL;
		return why_set(why, ENOMEM, "cannot set the TLS protocol name (%s)", reason());
	}
	return 0;
}

void tls_free(SSL_CTX *ctx)
{
	SSL_CTX_free(ctx);
}
