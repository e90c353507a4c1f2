// SPDX-License-Identifier: Apache-2.0
/*
 * vmsh - run a shell command in a test VM, give back its output and exit status.
 *
 * Design: one request line over the UNIX socket of the VM's agent port, one
 *   answer. Each request has an id, so the late answer to somebody who gave up
 *   is skipped and not taken for ours.
 * Context: host side; the other end is tests/vm/guest-agent.
 * Not done: streaming output, standard input.
 */
#include <errno.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

static int sock;
static time_t deadline;

static void die(const char *what)
{
	fprintf(stderr, "vmsh: %s: %s\n", what, strerror(errno));
	exit(125);
}

static size_t get(void *buf, size_t len)
{
	struct pollfd p = { .fd = sock, .events = POLLIN };
	time_t left = deadline - time(NULL);
	ssize_t n;

	if (left <= 0 || poll(&p, 1, (int)left * 1000) <= 0) {
		errno = ETIMEDOUT;
		die("no answer");
	}
	n = read(sock, buf, len);
	if (n <= 0) {
		errno = n ? errno : ECONNRESET;
		die("the VM is gone");
	}
	return (size_t)n;
}

static void put_base64(FILE *f, const unsigned char *s, size_t n)
{
	static const char abc[] =
		"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
	size_t i;

	for (i = 0; i < n; i += 3) {
		uint32_t v = (uint32_t)s[i] << 16 | (i + 1 < n ? (uint32_t)s[i + 1] << 8 : 0) |
			(i + 2 < n ? s[i + 2] : 0);

		fputc(abc[v >> 18], f);
		fputc(abc[v >> 12 & 63], f);
		fputc(i + 1 < n ? abc[v >> 6 & 63] : '=', f);
		fputc(i + 2 < n ? abc[v & 63] : '=', f);
	}
}

static void send_request(const char *id, int argc, char **argv)
{
	char cmd[65536] = "", *text = NULL;
	size_t len, done = 0;
	FILE *f;
	int i;

	for (i = 0; i < argc; i++) {
		if (strlen(cmd) + strlen(argv[i]) + 2 > sizeof(cmd)) {
			errno = E2BIG;
			die("command");
		}
		strcat(cmd, argv[i]);
		strcat(cmd, " ");
	}
	f = open_memstream(&text, &len);
	if (!f)
		die("memory");
	fprintf(f, "%s ", id);
	put_base64(f, (unsigned char *)cmd, strlen(cmd));
	fputc('\n', f);
	fclose(f);
	while (done < len) {
		ssize_t n = write(sock, text + done, len - done);

		if (n < 0)
			die("send");
		done += (size_t)n;
	}
	free(text);
}

/* One answer's head; the body follows. */
static void get_head(char *id, int *status, size_t *len)
{
	char line[256];
	size_t n = 0;

	do {
		get(line + n, 1);
	} while (line[n++] != '\n' && n < sizeof(line) - 1);
	line[n] = 0;
	if (sscanf(line, "%63s %d %zu", id, status, len) != 3) {
		errno = EPROTO;
		die(line);
	}
}

int main(int argc, char **argv)
{
	struct sockaddr_un sa = { .sun_family = AF_UNIX };
	char mine[64], id[64], buf[65536];
	int status;
	size_t len;

	if (argc < 4 || strlen(argv[1]) >= sizeof(sa.sun_path)) {
		fprintf(stderr, "usage: vmsh SOCKET TIMEOUT-SECONDS COMMAND...\n");
		return 125;
	}
	deadline = time(NULL) + atoi(argv[2]);
	strcpy(sa.sun_path, argv[1]);
	sock = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (sock < 0 || connect(sock, (struct sockaddr *)&sa, sizeof(sa)))
		die(argv[1]);
	snprintf(mine, sizeof(mine), "%ld.%ld", (long)getpid(), (long)time(NULL));
	send_request(mine, argc - 3, argv + 3);
	for (;;) {
		get_head(id, &status, &len);
		while (len) {
			size_t n = get(buf, len < sizeof(buf) ? len : sizeof(buf));

			if (!strcmp(id, mine))
				fwrite(buf, 1, n, stdout);
			len -= n;
		}
		if (!strcmp(id, mine))
			return status;
	}
}
