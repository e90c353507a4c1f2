// SPDX-License-Identifier: Apache-2.0
/*
 * Keys and sealing: the group data key and its wrapping, a session's key, the
 * sealed sections of a frame.
 *
 * Design: a session key is HKDF-SHA256 of the group data key with the session
 * as salt; a section is one AES-256-GCM message whose nonce is the frame
 * number and the section. One cipher context per session and direction keeps
 * the key schedule; a section only sets its nonce. Pieces go from the caller's
 * memory straight into the frame.
 *
 * The group data key travels as CMS AuthEnvelopedData for one or more X.509
 * recipients. Two defaults of the library are overridden, for they are SHA-1
 * and PKCS#1 v1.5: RSA uses OAEP with SHA-256, EC uses the X9.63 KDF with
 * SHA-256. RSA below 2048 bits and EC below 256 are refused.
 *
 * Invariants: secrets live in secret_alloc memory, or inside the library's
 * own objects, and are wiped when they end. What a tag does not vouch for is
 * wiped before anyone can look at it.
 *
 * Context: one thread per struct seal. May allocate; no I/O.
 */
#include "asr.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#include <openssl/cms.h>
#include <openssl/core_names.h>
#include <openssl/crypto.h>
#include <openssl/ec.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/kdf.h>
#include <openssl/pem.h>
#include <openssl/rand.h>
#include <openssl/rsa.h>
#include <openssl/x509.h>
#include <xxhash.h>
#include <zstd.h>

#define SESSION_INFO	"dm-asr frame 1"
#define SECTION_DIGESTS	1
#define SECTION_PAYLOAD	2
#define RSA_BITS_MIN	2048
#define EC_BITS_MIN	256

/* ------------------------------------------------------------ secret memory */

/* Before the bytes handed out: how much was mapped. Keeps them aligned to 64. */
struct secret_hdr {
	size_t mapped;
	char pad[56];
};

void *secret_alloc(size_t bytes)
{
	size_t page = (size_t)sysconf(_SC_PAGESIZE);
	size_t total = (bytes + sizeof(struct secret_hdr) + page - 1) / page * page;
	struct secret_hdr *h = mmap(NULL, total, PROT_READ | PROT_WRITE,
				    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (h == MAP_FAILED)
		return NULL;
	/* both are best effort: a low RLIMIT_MEMLOCK must not stop a restore */
	if (mlock(h, total) < 0)
		errno = 0;
	madvise(h, total, MADV_DONTDUMP);
	h->mapped = total;
	return h + 1;
}

void secret_free(void *p)
{
	struct secret_hdr *h = p;
	size_t total;

	if (!h)
		return;
	h--;
	total = h->mapped;
	OPENSSL_cleanse(h, total);
	munmap(h, total);
}

int seal_random(void *buf, size_t bytes)
{
	return RAND_bytes(buf, (int)bytes) == 1 ? 0 : -EIO;
}

/* The library's newest reason, as text */
static const char *reason(void)
{
	unsigned long e = ERR_peek_last_error();
	const char *text = e ? ERR_reason_error_string(e) : NULL;

	ERR_clear_error();
	return text ? text : "no reason given";
}

/* --------------------------------------------------------------- recipients */

static X509 *cert_read(const char *pem, struct why *why)
{
	BIO *bio = BIO_new_mem_buf(pem, -1);
	X509 *cert = bio ? PEM_read_bio_X509(bio, NULL, NULL, NULL) : NULL;

	BIO_free(bio);
	if (!cert)
		why_set(why, EINVAL, "not a certificate in PEM: %s", reason());
	return cert;
}

/* Strong enough to wrap a key to? */
static int cert_key_check(X509 *cert, struct why *why)
{
	EVP_PKEY *key = X509_get0_pubkey(cert);
	int bits = key ? EVP_PKEY_get_bits(key) : 0;

	if (key && EVP_PKEY_is_a(key, "RSA") && bits >= RSA_BITS_MIN)
		return 0;
	if (key && EVP_PKEY_is_a(key, "EC") && bits >= EC_BITS_MIN)
		return 0;
	return why_set(why, EINVAL, "a recipient's key must be RSA of at least %d bits or EC of at "
		       "least %d, this one is %s of %d bits", RSA_BITS_MIN, EC_BITS_MIN,
		       key && EVP_PKEY_get0_type_name(key) ? EVP_PKEY_get0_type_name(key) : "unknown", bits);
}

int seal_cert_describe(const char *cert_pem, char *out, size_t bytes, struct why *why)
{
	X509 *cert = cert_read(cert_pem, why);
	BIO *text = BIO_new(BIO_s_mem());
	unsigned char md[32];
	unsigned int n = 0;
	char *p = NULL, hex[65];
	EVP_PKEY *key;
	int ret = -EINVAL, len;

	if (!cert || !text)
		goto out_free;
	ret = cert_key_check(cert, why);
	if (ret)
		goto out_free;
	X509_NAME_print_ex(text, X509_get_subject_name(cert), 0, XN_FLAG_RFC2253 & ~ASN1_STRFLGS_ESC_MSB);
	len = (int)BIO_get_mem_data(text, &p);
	if (!X509_digest(cert, EVP_sha256(), md, &n)) {
		ret = why_set(why, EIO, "cannot hash the certificate: %s", reason());
		goto out_free;
	}
	hex_encode(md, n, hex);
	key = X509_get0_pubkey(cert);
	snprintf(out, bytes, "%.*s, %s %d, SHA-256 %s", len > 200 ? 200 : len, p,
		 EVP_PKEY_get0_type_name(key), EVP_PKEY_get_bits(key), hex);
out_free:
	BIO_free(text);
	X509_free(cert);
	return ret;
}

static int recipient_add(CMS_ContentInfo *cms, X509 *cert)
{
	CMS_RecipientInfo *ri = CMS_add1_recipient_cert(cms, cert, CMS_KEY_PARAM);
	EVP_PKEY_CTX *ctx = ri ? CMS_RecipientInfo_get0_pkey_ctx(ri) : NULL;

	if (!ctx)
		return -EINVAL;
	if (EVP_PKEY_is_a(X509_get0_pubkey(cert), "RSA"))
		return EVP_PKEY_CTX_set_rsa_padding(ctx, RSA_PKCS1_OAEP_PADDING) == 1 &&
		       EVP_PKEY_CTX_set_rsa_oaep_md(ctx, EVP_sha256()) == 1 &&
		       EVP_PKEY_CTX_set_rsa_mgf1_md(ctx, EVP_sha256()) == 1 ? 0 : -EINVAL;
	/* the KDF itself is X9.63 by default; setting it here makes the library fail */
	return EVP_PKEY_CTX_set_ecdh_kdf_md(ctx, EVP_sha256()) == 1 ? 0 : -EINVAL;
}

int seal_key_wrap(const uint8_t key[ASR_KEY_BYTES], char *const *cert_pems, size_t certs,
		  uint8_t **der, size_t *bytes, struct why *why)
{
	CMS_ContentInfo *cms = CMS_AuthEnvelopedData_create(EVP_aes_256_gcm());
	BIO *in = BIO_new_mem_buf(key, ASR_KEY_BYTES);
	uint8_t *out = NULL, *copy;
	int ret = 0, n;

	if (!certs)
		ret = why_set(why, EINVAL, "a group needs at least one recipient");
	for (size_t i = 0; i < certs && !ret; i++) {
		X509 *cert = cert_read(cert_pems[i], why);

		ret = cert ? cert_key_check(cert, why) : -EINVAL;
		if (!ret && (!cms || recipient_add(cms, cert)))
			ret = why_set(why, EINVAL, "cannot wrap a key to recipient %zu: %s", i + 1, reason());
		X509_free(cert);
	}
	if (!ret && (!in || CMS_set_detached(cms, 0) != 1 || CMS_final(cms, in, NULL, CMS_BINARY) != 1))
		ret = why_set(why, EIO, "cannot wrap the key: %s", reason());
	n = ret ? 0 : i2d_CMS_ContentInfo(cms, &out);
	if (!ret && n <= 0)
		ret = why_set(why, EIO, "cannot encode the wrapped key: %s", reason());
	if (!ret) {
		copy = malloc((size_t)n);
		if (copy) {
			memcpy(copy, out, (size_t)n);
			*der = copy;
			*bytes = (size_t)n;
		} else {
			ret = -ENOMEM;
		}
	}
	OPENSSL_free(out);
	BIO_free(in);
	CMS_ContentInfo_free(cms);
	return ret;
}

static int password_cb(char *buf, int size, int rwflag, void *pass)
{
	size_t n = pass ? strlen(pass) : 0;

	if (!n || n > (size_t)size)
		return -1;
	memcpy(buf, pass, n);
	return (int)n;
}

static EVP_PKEY *private_key_read(const char *pem, const char *pass, struct why *why)
{
	BIO *bio = BIO_new_mem_buf(pem, -1);
	EVP_PKEY *key = bio ? PEM_read_bio_PrivateKey(bio, NULL, password_cb, (void *)pass) : NULL;

	BIO_free(bio);
	if (!key)
		why_set(why, EKEYREJECTED, "cannot read the private key: %s%s", reason(),
			strstr(pem, "ENCRYPTED") ? pass ? " (is the passphrase right?)" :
			" (it is encrypted: give its passphrase)" : "");
	return key;
}

int seal_key_unwrap(const uint8_t *der, size_t bytes, const char *key_pem, const char *cert_pem,
		    const char *pass, uint8_t *key, struct why *why)
{
	const unsigned char *p = der;
	CMS_ContentInfo *cms = d2i_CMS_ContentInfo(NULL, &p, (long)bytes);
	BIO *out = BIO_new(BIO_s_secmem());
	EVP_PKEY *pkey = NULL;
	X509 *cert = NULL;
	char *text = NULL;
	int ret = -EKEYREJECTED;

	if (!cms || !out || OBJ_obj2nid(CMS_get0_type(cms)) != NID_id_smime_ct_authEnvelopedData) {
		ret = why_set(why, EBADMSG, "the wrapped key is damaged: %s", reason());
		goto out_free;
	}
	pkey = private_key_read(key_pem, pass, why);
	if (!pkey)
		goto out_free;
	if (cert_pem) {
		cert = cert_read(cert_pem, why);
		if (!cert)
			goto out_free;
		if (X509_check_private_key(cert, pkey) != 1) {
			ERR_clear_error();
			why_set(why, EKEYREJECTED, "the private key does not belong to that certificate");
			goto out_free;
		}
	}
	if (CMS_decrypt(cms, pkey, cert, NULL, out, 0) != 1 ||
	    BIO_get_mem_data(out, &text) != ASR_KEY_BYTES) {
		why_set(why, EKEYREJECTED, "the private key opens no copy of the group's key: it "
			"belongs to none of its recipients, or the wrapped key is damaged (%s)", reason());
		goto out_free;
	}
	memcpy(key, text, ASR_KEY_BYTES);
	OPENSSL_cleanse(text, ASR_KEY_BYTES);
	ret = 0;
out_free:
	ERR_clear_error();
	X509_free(cert);
	EVP_PKEY_free(pkey);
	BIO_free(out);
	CMS_ContentInfo_free(cms);
	return ret;
}

/* ----------------------------------------------------------------- sessions */

struct seal {
	EVP_CIPHER_CTX *enc, *dec;
	uint8_t *plain;			/* room to open a section before it is unpacked */
	uint8_t *digests;
	ZSTD_DCtx *unpack;
};

static int session_key(const uint8_t *key, const uint8_t *session, uint8_t *out)
{
	EVP_KDF *kdf = EVP_KDF_fetch(NULL, "HKDF", NULL);
	EVP_KDF_CTX *ctx = kdf ? EVP_KDF_CTX_new(kdf) : NULL;
	OSSL_PARAM params[] = {
		OSSL_PARAM_construct_utf8_string(OSSL_KDF_PARAM_DIGEST, (char *)"SHA256", 0),
		OSSL_PARAM_construct_octet_string(OSSL_KDF_PARAM_KEY, (void *)key, ASR_KEY_BYTES),
		OSSL_PARAM_construct_octet_string(OSSL_KDF_PARAM_SALT, (void *)session, ASR_UUID_BYTES),
		OSSL_PARAM_construct_octet_string(OSSL_KDF_PARAM_INFO, (void *)SESSION_INFO,
						  sizeof(SESSION_INFO) - 1),
		OSSL_PARAM_construct_end(),
	};
	int ok = ctx && EVP_KDF_derive(ctx, out, ASR_KEY_BYTES, params) == 1;

	EVP_KDF_CTX_free(ctx);
	EVP_KDF_free(kdf);
	return ok ? 0 : -EIO;
}

int seal_create(const uint8_t key[ASR_KEY_BYTES], const uint8_t session[ASR_UUID_BYTES], struct seal **out)
{
	struct seal *s = calloc(1, sizeof(*s));
	uint8_t *k = secret_alloc(ASR_KEY_BYTES);
	int ret = -ENOMEM;

	if (!s || !k)
		goto out_free;
	ret = session_key(key, session, k);
	if (ret)
		goto out_free;
	s->enc = EVP_CIPHER_CTX_new();
	s->dec = EVP_CIPHER_CTX_new();
	ret = s->enc && s->dec && EVP_EncryptInit_ex(s->enc, EVP_aes_256_gcm(), NULL, k, NULL) == 1 &&
	      EVP_DecryptInit_ex(s->dec, EVP_aes_256_gcm(), NULL, k, NULL) == 1 ? 0 : -EIO;
out_free:
	secret_free(k);
	if (ret)
		seal_destroy(s);
	else
		*out = s;
	return ret;
}

void seal_destroy(struct seal *s)
{
	if (!s)
		return;
	EVP_CIPHER_CTX_free(s->enc);
	EVP_CIPHER_CTX_free(s->dec);
	ZSTD_freeDCtx(s->unpack);
	secret_free(s->plain);
	free(s->digests);
	free(s);
}

#define SEALS	8u

struct seals {
	const uint8_t *key;
	struct {
		uint8_t session[ASR_UUID_BYTES];
		struct seal *seal;
	} at[SEALS];
	unsigned int next;		/* the oldest */
};

int seals_create(const uint8_t key[ASR_KEY_BYTES], struct seals **out)
{
	struct seals *s = calloc(1, sizeof(*s));

	if (!s)
		return -ENOMEM;
	s->key = key;
	*out = s;
	return 0;
}

void seals_destroy(struct seals *s)
{
	for (unsigned int n = 0; s && n < SEALS; n++)
		seal_destroy(s->at[n].seal);
	free(s);
}

struct seal *seals_get(struct seals *s, const uint8_t session[ASR_UUID_BYTES])
{
	unsigned int n;

	for (n = 0; n < SEALS; n++)
		if (s->at[n].seal && !memcmp(s->at[n].session, session, ASR_UUID_BYTES))
			return s->at[n].seal;
	n = s->next++ % SEALS;
	seal_destroy(s->at[n].seal);
	s->at[n].seal = NULL;
	if (seal_create(s->key, session, &s->at[n].seal))
		return NULL;
	memcpy(s->at[n].session, session, ASR_UUID_BYTES);
	return s->at[n].seal;
}

static void nonce_make(uint8_t nonce[ASR_NONCE_BYTES], uint64_t frame_no, uint32_t section)
{
	memcpy(nonce, &frame_no, 8);
	memcpy(nonce + 8, &section, 4);
}

int seal_section(struct seal *s, uint64_t frame_no, uint32_t section, const void *aad, size_t aad_bytes,
		 const struct iovec *in, int pieces, uint8_t *out)
{
	uint8_t nonce[ASR_NONCE_BYTES];
	int n;

	nonce_make(nonce, frame_no, section);
	if (EVP_EncryptInit_ex(s->enc, NULL, NULL, NULL, nonce) != 1 ||
	    EVP_EncryptUpdate(s->enc, NULL, &n, aad, (int)aad_bytes) != 1)
		return -EIO;
	for (int i = 0; i < pieces; i++) {
		if (EVP_EncryptUpdate(s->enc, out, &n, in[i].iov_base, (int)in[i].iov_len) != 1)
			return -EIO;
		out += n;
	}
	if (EVP_EncryptFinal_ex(s->enc, out, &n) != 1 ||
	    EVP_CIPHER_CTX_ctrl(s->enc, EVP_CTRL_GCM_GET_TAG, ASR_TAG_BYTES, out) != 1)
		return -EIO;
	return 0;
}

int seal_open(struct seal *s, uint64_t frame_no, uint32_t section, const void *aad, size_t aad_bytes,
	      const uint8_t *in, size_t bytes, const uint8_t *tag, uint8_t *out)
{
	uint8_t nonce[ASR_NONCE_BYTES];
	int n, m;

	nonce_make(nonce, frame_no, section);
	if (EVP_DecryptInit_ex(s->dec, NULL, NULL, NULL, nonce) != 1 ||
	    EVP_DecryptUpdate(s->dec, NULL, &n, aad, (int)aad_bytes) != 1 ||
	    (bytes && EVP_DecryptUpdate(s->dec, out, &n, in, (int)bytes) != 1) ||
	    EVP_CIPHER_CTX_ctrl(s->dec, EVP_CTRL_GCM_SET_TAG, ASR_TAG_BYTES, (void *)tag) != 1)
		return -EIO;
	if (EVP_DecryptFinal_ex(s->dec, out + bytes, &m) == 1)
		return 0;
	if (bytes)
		OPENSSL_cleanse(out, bytes);
	ERR_clear_error();
	return -EBADMSG;
}

/* ------------------------------------------------------------- whole frames */

static int buffers_ready(struct seal *s)
{
	if (!s->plain)
		s->plain = secret_alloc(ASR_FRAME_PAYLOAD_MAX);
	if (!s->digests)
		s->digests = malloc(ASR_FRAME_PAYLOAD_MAX / 4096 * ASR_DIGEST_BYTES);
	if (!s->unpack)
		s->unpack = ZSTD_createDCtx();
	return s->plain && s->digests && s->unpack ? 0 : -ENOMEM;
}

/* Every aligned block that a record covers wholly must hash to its digest */
static int digests_check(const struct frame_view *v, const uint8_t *plain, const uint8_t *digest)
{
	for (uint32_t i = 0; i < v->hdr.records; i++) {
		const struct frame_rec *r = &v->recs[i];
		uint32_t blocks = wire_kind_has_payload(r->kind) ? wire_rec_blocks(r) : 0;
		uint64_t skip = (ASR_BLOCK_SECTORS - r->sector % ASR_BLOCK_SECTORS) % ASR_BLOCK_SECTORS;
		const uint8_t *p = plain + r->offset + skip * 512;

		for (; blocks; blocks--, p += 4096, digest += ASR_DIGEST_BYTES) {
			XXH128_canonical_t c;

			XXH128_canonicalFromHash(&c, XXH3_128bits(p, 4096));
			if (memcmp(&c, digest, ASR_DIGEST_BYTES))
				return -EBADMSG;
		}
	}
	return 0;
}

int seal_frame_open(struct seal *s, const struct frame_view *v, uint8_t *out, struct why *why)
{
	const struct frame_hdr *h = &v->hdr;
	bool packed = h->flags & ASR_FRAMEF_ZSTD;
	unsigned long long no = h->frame_no;
	size_t n;

	if (buffers_ready(s))
		return why_set(why, ENOMEM, "out of memory");
	if (seal_open(s, h->frame_no, SECTION_DIGESTS, v->bytes, sizeof(*h), v->digests, h->digest_bytes,
		      v->digests + h->digest_bytes, s->digests))
		return why_set(why, EBADMSG, "frame %llu: header or digest section does not fit its tag", no);
	if (seal_open(s, h->frame_no, SECTION_PAYLOAD, v->bytes, (size_t)(v->payload - v->bytes), v->payload,
		      h->stored_bytes, v->tag, packed ? s->plain : out))
		return why_set(why, EBADMSG, "frame %llu: record table or payload section does not fit "
			       "its tag", no);
	if (packed) {
		n = ZSTD_decompressDCtx(s->unpack, out, h->plain_bytes, s->plain, h->stored_bytes);
		if (ZSTD_isError(n) || n != h->plain_bytes)
			return why_set(why, EBADMSG, "frame %llu: payload section does not decompress to %u "
				       "bytes: %s", no, h->plain_bytes,
				       ZSTD_isError(n) ? ZSTD_getErrorName(n) : "it is shorter");
	}
	if (digests_check(v, out, s->digests))
		return why_set(why, EBADMSG, "frame %llu: payload section does not fit its digests", no);
	return 0;
}
