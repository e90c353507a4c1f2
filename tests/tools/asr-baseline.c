// SPDX-License-Identifier: Apache-2.0
/*
 * The yardsticks of the pipeline bench: each thing that the pipeline does,
 * alone, over the same bytes.
 *
 *   asr-baseline tls|seal|zstd|append --mb N [--content FILE] [--dir D]
 *
 * tls     a plain TLS 1.3 copy over loopback between two processes: SSL_write
 *         of 64 KiB on one side, SSL_read on the other; the cipher is the one
 *         that the product negotiates (AES-256-GCM)
 * seal    AES-256-GCM (EVP) of 128 KiB pieces, one key schedule
 * zstd    level 1, independent 128 KiB blocks
 * append  write() of 1 MiB, then fdatasync, to a file in D
 *
 * Content: FILE over and over, or pseudo-random bytes (incompressible) from a
 * buffer of 64 MiB, larger than the caches. Prints one JSON object: mb_per_s,
 * cpu_s_per_gb of the source side (for tls: the sender) and of the other side.
 * MB and GB are 10^6 and 10^9 bytes.
 */
#include "asr.h"

#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include <openssl/evp.h>
#include <openssl/ssl.h>
#include <openssl/x509.h>
#include <zstd.h>

#define CONTENT_BYTES	(64u << 20)
#define PIECE		131072u
#define TLS_PIECE	65536u
#define APPEND_PIECE	(1u << 20)

static uint8_t *content;
static size_t content_bytes;

static void die(const char *what)
{
	fprintf(stderr, "asr-baseline: %s: %s\n", what, strerror(errno));
	exit(1);
}

static void content_load(const char *path)
{
	uint64_t x = 88172645463325252ULL;
	struct stat st;
	int fd;

	if (path) {
		fd = open(path, O_RDONLY | O_CLOEXEC);
		if (fd < 0 || fstat(fd, &st) < 0)
			die(path);
		content_bytes = (size_t)st.st_size / APPEND_PIECE * APPEND_PIECE;
		content = mmap(NULL, content_bytes, PROT_READ, MAP_PRIVATE | MAP_POPULATE, fd, 0);
		if (!content_bytes || content == MAP_FAILED)
			die(path);
		close(fd);
		return;
	}
	content_bytes = CONTENT_BYTES;
	content = aligned_alloc(4096, content_bytes);
	if (!content)
		die("content");
	for (size_t i = 0; i < content_bytes / 8; i++) {
		x ^= x << 13, x ^= x >> 7, x ^= x << 17;
		memcpy(content + 8 * i, &x, 8);
	}
}

static const uint8_t *piece(uint64_t n, size_t bytes)
{
	return content + n * bytes % content_bytes;
}

static double cpu_s(int who)
{
	struct rusage r;

	getrusage(who, &r);
	return (double)(r.ru_utime.tv_sec + r.ru_stime.tv_sec) +
	       (double)(r.ru_utime.tv_usec + r.ru_stime.tv_usec) / 1e6;
}

static void report(const char *what, uint64_t bytes, uint64_t ns, double cpu_source, double cpu_other, double ratio)
{
	printf("{\"what\":\"%s\",\"bytes\":%llu,\"mb_per_s\":%.1f,\"cpu_s_per_gb_source\":%.3f,"
	       "\"cpu_s_per_gb_vault\":%.3f,\"compression_ratio\":%.3f}\n", what, (unsigned long long)bytes,
	       (double)bytes * 1e3 / (double)ns, cpu_source * 1e9 / (double)bytes,
	       cpu_other * 1e9 / (double)bytes, ratio);
}

static void run_seal(uint64_t bytes)
{
	EVP_CIPHER_CTX *ctx = EVP_CIPHER_CTX_new();
	uint8_t key[32] = { 1 }, iv[12] = { 0 }, tag[16];
	uint8_t *out = aligned_alloc(64, PIECE);
	uint64_t start = now_ns();
	int n;

	EVP_EncryptInit_ex(ctx, EVP_aes_256_gcm(), NULL, key, NULL);
	for (uint64_t i = 0; i < bytes / PIECE; i++) {
		memcpy(iv, &i, 8);
		if (EVP_EncryptInit_ex(ctx, NULL, NULL, NULL, iv) != 1 ||
		    EVP_EncryptUpdate(ctx, out, &n, piece(i, PIECE), (int)PIECE) != 1 ||
		    EVP_EncryptFinal_ex(ctx, out, &n) != 1 ||
		    EVP_CIPHER_CTX_ctrl(ctx, EVP_CTRL_GCM_GET_TAG, 16, tag) != 1)
			die("seal");
	}
	report("seal", bytes / PIECE * PIECE, now_ns() - start, cpu_s(RUSAGE_SELF), 0, 1);
}

static void run_zstd(uint64_t bytes)
{
	ZSTD_CCtx *ctx = ZSTD_createCCtx();
	size_t room = ZSTD_compressBound(PIECE), n;
	uint8_t *out = malloc(room);
	uint64_t start = now_ns(), stored = 0;

	for (uint64_t i = 0; i < bytes / PIECE; i++) {
		n = ZSTD_compressCCtx(ctx, out, room, piece(i, PIECE), PIECE, 1);
		if (ZSTD_isError(n))
			die("zstd");
		stored += n;
	}
	report("zstd", bytes / PIECE * PIECE, now_ns() - start, cpu_s(RUSAGE_SELF), 0,
	       (double)(bytes / PIECE * PIECE) / (double)stored);
}

static void run_append(uint64_t bytes, const char *dir)
{
	cleanup_free char *path = NULL;
	uint64_t start;
	int fd;

	if (asprintf(&path, "%s/asr-baseline.%d", dir, (int)getpid()) < 0)
		die("path");
	fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	if (fd < 0)
		die(path);
	start = now_ns();
	for (uint64_t i = 0; i < bytes / APPEND_PIECE; i++)
		if (write(fd, piece(i, APPEND_PIECE), APPEND_PIECE) != (ssize_t)APPEND_PIECE || fdatasync(fd) < 0)
			die(path);
	report("append", bytes / APPEND_PIECE * APPEND_PIECE, now_ns() - start, 0, cpu_s(RUSAGE_SELF), 1);
	close(fd);
	unlink(path);
}

/* A self-signed certificate for the one connection of this bench */
static void identity(SSL_CTX *ctx)
{
	EVP_PKEY *key = EVP_EC_gen("P-256");
	X509 *x = X509_new();

	ASN1_INTEGER_set(X509_get_serialNumber(x), 1);
	X509_gmtime_adj(X509_getm_notBefore(x), 0);
	X509_gmtime_adj(X509_getm_notAfter(x), 3600);
	X509_set_pubkey(x, key);
	if (!X509_sign(x, key, EVP_sha256()) || SSL_CTX_use_certificate(ctx, x) != 1 ||
	    SSL_CTX_use_PrivateKey(ctx, key) != 1)
		die("certificate");
}

static SSL *tls_on(int fd, bool server)
{
	SSL_CTX *ctx = SSL_CTX_new(TLS_method());
	int one = 1;
	SSL *ssl;

	SSL_CTX_set_min_proto_version(ctx, TLS1_3_VERSION);
	SSL_CTX_set_ciphersuites(ctx, "TLS_AES_256_GCM_SHA384");
	if (server)
		identity(ctx);
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	ssl = SSL_new(ctx);
	SSL_set_fd(ssl, fd);
	if ((server ? SSL_accept(ssl) : SSL_connect(ssl)) != 1)
		die("handshake");
	return ssl;
}

static void tls_receive(int listener, uint64_t bytes)
{
	uint8_t *buf = malloc(TLS_PIECE);
	SSL *ssl = tls_on(accept(listener, NULL, NULL), true);
	size_t n;

	while (bytes) {
		if (SSL_read_ex(ssl, buf, TLS_PIECE, &n) != 1)
			die("receive");
		bytes -= n;
	}
	if (SSL_write(ssl, "done", 4) != 4)
		die("receive");
	exit(0);
}

static void run_tls(uint64_t bytes)
{
	struct sockaddr_in sa = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	socklen_t len = sizeof(sa);
	int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), fd;
	uint64_t start;
	double cpu;
	char done[4];
	pid_t pid;
	SSL *ssl;

	bytes = bytes / TLS_PIECE * TLS_PIECE;
	if (bind(listener, (struct sockaddr *)&sa, len) < 0 || listen(listener, 1) < 0 ||
	    getsockname(listener, (struct sockaddr *)&sa, &len) < 0)
		die("listen");
	pid = fork();
	if (pid < 0)
		die("fork");
	if (pid == 0)
		tls_receive(listener, bytes);
	fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (connect(fd, (struct sockaddr *)&sa, sizeof(sa)) < 0)
		die("connect");
	ssl = tls_on(fd, false);
	cpu = cpu_s(RUSAGE_SELF);
	start = now_ns();
	for (uint64_t i = 0; i < bytes / TLS_PIECE; i++)
		if (SSL_write(ssl, piece(i, TLS_PIECE), (int)TLS_PIECE) != (int)TLS_PIECE)
			die("send");
	if (SSL_read(ssl, done, 4) != 4)	/* the receiver has it all */
		die("send");
	start = now_ns() - start;
	if (waitpid(pid, NULL, 0) < 0)
		die("wait");
	report("tls", bytes, start, cpu_s(RUSAGE_SELF) - cpu, cpu_s(RUSAGE_CHILDREN), 1);
}

static int usage(void)
{
	fprintf(stderr, "usage: asr-baseline tls|seal|zstd|append --mb N [--content FILE] [--dir D]\n");
	return 2;
}

int main(int argc, char **argv)
{
	static const struct option options[] = {
		{ "mb", required_argument, NULL, 'm' },
		{ "content", required_argument, NULL, 'c' },
		{ "dir", required_argument, NULL, 'd' },
		{ 0 }
	};
	const char *file = NULL, *dir = ".";
	uint64_t mb = 1000;
	int c;

	while ((c = getopt_long(argc, argv, "", options, NULL)) != -1) {
		if (c == 'm' && (mb = strtoull(optarg, NULL, 10)) > 0)
			continue;
		else if (c == 'c')
			file = optarg;
		else if (c == 'd')
			dir = optarg;
		else
			return usage();
	}
	if (optind != argc - 1)
		return usage();
	content_load(file);
	if (!strcmp(argv[optind], "tls"))
		run_tls(mb * 1000000);
	else if (!strcmp(argv[optind], "seal"))
		run_seal(mb * 1000000);
	else if (!strcmp(argv[optind], "zstd"))
		run_zstd(mb * 1000000);
	else if (!strcmp(argv[optind], "append"))
		run_append(mb * 1000000, dir);
	else
		return usage();
	return 0;
}
