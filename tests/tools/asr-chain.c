// SPDX-License-Identifier: Apache-2.0
/*
 * asr-chain - writes that depend on each other across hosts, and the check that a point of all is a prefix.
 *
 *   asr-chain --node K --of N --disk DEV --listen PORT --next HOST:PORT [--chains C]
 *   asr-chain --check IMAGE...          the disks of nodes 0 to N-1 at one point
 *
 * Design: a chain is a token that goes round the N nodes. Who gets it writes its number to the
 *   chain's block and, when that write has completed, hands on the number plus one. So write n+1,
 *   on the next node, is issued after write n completed on this one: of each chain a consistent
 *   moment has exactly the writes 1 to L for some L, and node k then holds the newest of them that
 *   is its own. One thread and one connection a chain.
 * Context: runs in guests. Ends on SIGTERM, and when a neighbour ends; status 1 if a write fails.
 */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define BLOCK		4096
#define CHAINS_MAX	64
#define NODES_MAX	16
#define MAGIC		0x6e69616863727361ull

static struct {
	unsigned int node, of, chains;
	int disk, prev[CHAINS_MAX], next[CHAINS_MAX];
} s = { .chains = 8 };

static void die(const char *what)
{
	fprintf(stderr, "asr-chain: %s: %s\n", what, strerror(errno));
	exit(1);
}

static bool move(int fd, void *data, size_t bytes, bool out)
{
	for (size_t n = 0; n < bytes; ) {
		ssize_t r = out ? send(fd, (char *)data + n, bytes - n, MSG_NOSIGNAL) :
			    recv(fd, (char *)data + n, bytes - n, 0);

		if (r < 0 && errno == EINTR)
			continue;
		if (r <= 0)
			return false;
		n += (size_t)r;
	}
	return true;
}

/* All of the block says the same, so that half a write shows */
static void block_fill(uint64_t *b, unsigned int chain, uint64_t n)
{
	for (unsigned int i = 0; i < BLOCK / sizeof(*b); i += 2) {
		b[i] = MAGIC + chain;
		b[i + 1] = n;
	}
}

static void *chain_run(void *arg)
{
	unsigned int c = (unsigned int)(uintptr_t)arg;
	uint64_t *b = aligned_alloc(BLOCK, BLOCK), n = 1;
	bool first = s.node == 0;

	for (;; first = false) {
		if (!first && !move(s.prev[c], &n, sizeof(n), false))
			break;
		block_fill(b, c, n);
		if (pwrite(s.disk, b, BLOCK, (off_t)c * BLOCK) != BLOCK)
			die("write");
		n++;
		if (!move(s.next[c], &n, sizeof(n), true))
			break;
	}
	exit(0);	/* a neighbour has ended */
}

static int dial(const char *next)
{
	struct addrinfo hints = { .ai_socktype = SOCK_STREAM }, *a;
	char host[128], *port;
	int fd = -1, one = 1;

	snprintf(host, sizeof(host), "%s", next);
	port = strrchr(host, ':');
	if (!port)
		die("--next wants HOST:PORT");
	*port++ = 0;
	if (getaddrinfo(host, port, &hints, &a))
		die("--next");
	for (int tries = 0; tries < 600; tries++) {
		fd = socket(a->ai_family, SOCK_STREAM, 0);
		if (!connect(fd, a->ai_addr, a->ai_addrlen))
			break;
		close(fd);
		fd = -1;
		usleep(100000);		/* the neighbour comes when it comes */
	}
	if (fd < 0)
		die(next);
	freeaddrinfo(a);
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	return fd;
}

/*
 * A connection through a forwarder that has nobody to forward to is made, and ends at once: so each is
 * answered before it counts.
 */
static void *dial_all(void *next)
{
	for (uint32_t c = 0; c < s.chains; ) {
		uint32_t answer = UINT32_MAX;

		s.next[c] = dial(next);
		if (move(s.next[c], &c, sizeof(c), true) && move(s.next[c], &answer, sizeof(answer), false) &&
		    answer == c) {
			c++;
			continue;
		}
		close(s.next[c]);
		usleep(100000);
	}
	return NULL;
}

static void accept_all(unsigned int port)
{
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_port = htons((uint16_t)port) };
	int fd = socket(AF_INET, SOCK_STREAM, 0), one = 1;

	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	if (bind(fd, (struct sockaddr *)&a, sizeof(a)) || listen(fd, CHAINS_MAX))
		die("listen");
	for (unsigned int n = 0; n < s.chains; ) {
		int peer = accept(fd, NULL, NULL);
		uint32_t c;

		if (peer < 0)
			die("accept");
		if (!move(peer, &c, sizeof(c), false) || c >= s.chains || !move(peer, &c, sizeof(c), true)) {
			close(peer);
			continue;
		}
		setsockopt(peer, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
		s.prev[c] = peer;
		n++;
	}
}

static void run(const char *disk, unsigned int port, const char *next)
{
	pthread_t dialer, t[CHAINS_MAX];

	s.disk = open(disk, O_RDWR | O_DIRECT | O_DSYNC);
	if (s.disk < 0)
		die(disk);
	if (pthread_create(&dialer, NULL, dial_all, (void *)(uintptr_t)next))
		die("thread");
	accept_all(port);
	pthread_join(dialer, NULL);
	for (unsigned int c = 0; c < s.chains; c++)
		if (pthread_create(&t[c], NULL, chain_run, (void *)(uintptr_t)c))
			die("thread");
	puts("running");
	fflush(stdout);
	for (;;)
		pause();
}

/* The number in a chain's block; 0: never written */
static uint64_t number(int fd, unsigned int chain, const char *image)
{
	static uint64_t b[BLOCK / sizeof(uint64_t)], want[BLOCK / sizeof(uint64_t)], none[BLOCK / sizeof(uint64_t)];

	if (pread(fd, b, BLOCK, (off_t)chain * BLOCK) != BLOCK)
		die(image);
	if (!memcmp(b, none, BLOCK))
		return 0;
	block_fill(want, chain, b[1]);
	if (!b[1] || memcmp(b, want, BLOCK)) {
		printf("chain %u: half a write in %s\n", chain, image);
		exit(1);
	}
	return b[1];
}

static int check(char **image, unsigned int n)
{
	uint64_t v[NODES_MAX], total = 0;
	int fd[NODES_MAX], bad = 0;

	for (unsigned int k = 0; k < n; k++)
		if ((fd[k] = open(image[k], O_RDONLY)) < 0)
			die(image[k]);
	for (unsigned int c = 0; c < s.chains; c++) {
		uint64_t last = 0;

		for (unsigned int k = 0; k < n; k++) {
			v[k] = number(fd[k], c, image[k]);
			last = v[k] > last ? v[k] : last;
		}
		total += last;
		for (unsigned int k = 0; k < n; k++) {
			/* node k writes the numbers that leave k + 1 less one behind: the newest up to last */
			uint64_t want = last > k ? last - (last - 1 - k) % n : 0;

			if (v[k] == want)
				continue;
			printf("chain %u: write %" PRIu64 " is there, but node %u has %" PRIu64 " where %" PRIu64
			       " is due\n", c, last, k, v[k], want);
			bad = 1;
		}
	}
	printf("writes %" PRIu64 "\n", total);
	return bad;
}

int main(int argc, char **argv)
{
	static const struct option longs[] = {
		{ "node", 1, NULL, 'k' }, { "of", 1, NULL, 'n' }, { "disk", 1, NULL, 'd' }, { "listen", 1, NULL, 'l' },
		{ "next", 1, NULL, 'x' }, { "chains", 1, NULL, 'c' }, { "check", 0, NULL, 'C' }, { NULL, 0, NULL, 0 },
	};
	const char *disk = NULL, *next = NULL;
	unsigned int port = 0;
	bool checking = false;
	int o;

	while ((o = getopt_long(argc, argv, "", longs, NULL)) != -1)
		switch (o) {
		case 'k': s.node = (unsigned int)atoi(optarg); break;
		case 'n': s.of = (unsigned int)atoi(optarg); break;
		case 'd': disk = optarg; break;
		case 'l': port = (unsigned int)atoi(optarg); break;
		case 'x': next = optarg; break;
		case 'c': s.chains = (unsigned int)atoi(optarg); break;
		case 'C': checking = true; break;
		default: return 2;
		}
	if (!s.chains || s.chains > CHAINS_MAX || (checking ? argc - optind < 2 || argc - optind > NODES_MAX :
	    !disk || !next || !port || s.node >= s.of)) {
		fputs("asr-chain: wrong usage, see its source\n", stderr);
		return 2;
	}
	if (checking)
		return check(argv + optind, (unsigned int)(argc - optind));
	run(disk, port, next);
	return 1;
}
