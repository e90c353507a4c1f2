// SPDX-License-Identifier: Apache-2.0
/*
 * What a program says: log lines, reasons for people, its state to the
 * service manager, and points in time.
 *
 * Design: stderr is the one sink. Under systemd (JOURNAL_STREAM set) a line
 * begins with sd-daemon's <N>, else with the program's name. The service
 * manager's protocol is one datagram, documented as stable in sd_notify(3);
 * that is less than a dependency on libsystemd would bring along.
 *
 * Invariants: no secret is ever formatted here; a log line is one write, so
 * that lines of two processes do not mix.
 *
 * Context: any; nothing blocks but stderr itself.
 */
#include "asr.h"

#include <errno.h>
#include <stdarg.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>

static const char *program = "asr";
static enum log_level level_max = LOG_LVL_INFO;
static bool journal;

int why_set(struct why *why, int err, const char *fmt, ...)
{
	va_list ap;

	if (why) {
		va_start(ap, fmt);
		vsnprintf(why->text, sizeof(why->text), fmt, ap);
		va_end(ap);
	}
	return -err;
}

void log_init(const char *name, enum log_level max)
{
	program = name;
	level_max = max;
	journal = getenv("JOURNAL_STREAM") != NULL;
}

void log_msg(enum log_level level, const char *fmt, ...)
{
	char line[1200];
	va_list ap;
	size_t n;

	if (level > level_max)
		return;
	n = journal ? (size_t)snprintf(line, sizeof(line), "<%d>", level)
		    : (size_t)snprintf(line, sizeof(line), "%s: ", program);
	va_start(ap, fmt);
	vsnprintf(line + n, sizeof(line) - n - 1, fmt, ap);
	va_end(ap);
	n = strlen(line);
	line[n++] = '\n';
	if (write(STDERR_FILENO, line, n) < 0)
		return;	/* nowhere left to say it */
}

void log_notify(const char *state)
{
	const char *path = getenv("NOTIFY_SOCKET");
	struct sockaddr_un sa = { .sun_family = AF_UNIX };
	cleanup_fd int fd = -1;
	size_t n;

	if (!path || (*path != '/' && *path != '@'))
		return;
	n = strlen(path);
	if (n >= sizeof(sa.sun_path))
		return;
	memcpy(sa.sun_path, path, n);
	if (*path == '@')
		sa.sun_path[0] = 0;
	fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd >= 0)
		sendto(fd, state, strlen(state), MSG_NOSIGNAL, (struct sockaddr *)&sa,
		       offsetof(struct sockaddr_un, sun_path) + n);
}

static uint64_t clock_ns(clockid_t id)
{
	struct timespec ts;

	clock_gettime(id, &ts);
	return (uint64_t)ts.tv_sec * 1000000000ULL + (uint64_t)ts.tv_nsec;
}

uint64_t now_ns(void)
{
	return clock_ns(CLOCK_MONOTONIC);
}

uint64_t now_real_ns(void)
{
	return clock_ns(CLOCK_REALTIME);
}

char *time_format(uint64_t ns, char buf[40])
{
	time_t s = (time_t)(ns / 1000000000ULL);
	struct tm tm;
	size_t n;

	gmtime_r(&s, &tm);
	n = strftime(buf, 40, "%Y-%m-%dT%H:%M:%S", &tm);
	snprintf(buf + n, 40 - n, ".%09uZ", (unsigned int)(ns % 1000000000ULL));
	return buf;
}

/* ".678" -> 678000000; more than nine digits are cut */
static const char *fraction_parse(const char *p, uint64_t *ns)
{
	uint64_t unit = 100000000;

	*ns = 0;
	if (*p != '.')
		return p;
	for (p++; *p >= '0' && *p <= '9'; p++, unit /= 10)
		*ns += (uint64_t)(*p - '0') * unit;
	return p;
}

int time_parse(const char *text, uint64_t *ns)
{
	struct tm tm = { 0 };
	uint64_t fraction;
	int hours, minutes, n = 0;
	const char *p;
	time_t s;

	p = strptime(text, "%Y-%m-%d", &tm);
	if (!p || (*p != 'T' && *p != 't' && *p != ' '))
		return -EINVAL;
	p = strptime(p + 1, "%H:%M:%S", &tm);
	if (!p)
		return -EINVAL;
	p = fraction_parse(p, &fraction);
	s = timegm(&tm);
	if (*p == '+' || *p == '-') {
		if (sscanf(p + 1, "%2d:%2d%n", &hours, &minutes, &n) != 2 || n != 5 || p[6] ||
		    hours > 23 || minutes > 59)
			return -EINVAL;
		s += (*p == '+' ? -1 : 1) * (hours * 3600 + minutes * 60);
	} else if ((*p != 'Z' && *p != 'z') || p[1]) {
		return -EINVAL;
	}
	if (s < 0)
		return -EINVAL;
	*ns = (uint64_t)s * 1000000000ULL + fraction;
	return 0;
}
