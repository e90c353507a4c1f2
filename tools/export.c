// SPDX-License-Identifier: Apache-2.0
/*
 * asrctl point export: the disks of a group as they were at a point, over NBD.
 *
 * Design. nbdkit does the work, with the asr plugin (userland/nbd/asr.c); this
 * starts it, waits until it is ready, says where the disks are, and ends it when
 * it is told to. With --writable its cow filter keeps what is written, until the
 * end: the vault is never written to.
 *
 * The plugin beside asrctl is taken, else the one that is installed. Keys are
 * handed over by their files' names only.
 *
 * Context. Ends with nbdkit, and nbdkit with it; when it is killed, as soon as its clients are gone.
 */
#include "asrctl.h"

#include <errno.h>
#include <libgen.h>
#include <signal.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>

#define REPORT_MAX	(1u << 20)
#define STOP_MS		3000

struct export {
	char dir[64];			/* of ours, with what follows in it */
	char report[80], pid[80];
	char socket[108];
	char *words[32];
	int count;
	pid_t child;
};

static int word(struct export *e, const char *format, ...) __attribute__((format(printf, 2, 3)));
static int word(struct export *e, const char *format, ...)
{
	va_list ap;
	int n;

	va_start(ap, format);
	n = vasprintf(&e->words[e->count], format, ap);
	va_end(ap);
	if (n < 0) {
		e->words[e->count] = NULL;
		return -ENOMEM;
	}
	e->count++;
	return 0;
}

static int plugin_word(struct export *e)
{
	cleanup_free char *beside = NULL;
	char self[4096];
	ssize_t n = readlink("/proc/self/exe", self, sizeof(self) - 1);

	self[n > 0 ? n : 0] = 0;
	if (asprintf(&beside, "%s/nbdkit-asr-plugin.so", dirname(self)) < 0) {
		beside = NULL;
		return -ENOMEM;
	}
	return word(e, "%s", access(beside, R_OK) ? "asr" : beside);
}

static int words_make(struct export *e, const struct args *a)
{
	static const struct { const char *option, *parameter; } of[] = {
		{ "point", "point" }, { "disk", "disk" }, { "key", "key" }, { "cert", "cert" }, { "cache", "cache" },
	};
	int err = word(e, "nbdkit");

	if (!err)
		err = word(e, "--foreground");
	if (!err)
		err = word(e, "--exit-with-parent");
	if (!err)
		err = word(e, "--unix=%s", e->socket);
	if (!err)
		err = word(e, "--pidfile=%s", e->pid);
	if (!err && arg_given(a, "writable"))
		err = word(e, "--filter=cow");
	if (!err)
		err = plugin_word(e);
	if (!err)
		err = word(e, "vault=%s", arg_value(a, "vault-dir", ASR_VAULT_DIR));
	if (!err)
		err = word(e, "group=%s", a->words[0]);
	if (!err)
		err = word(e, "report=%s", e->report);
	for (size_t i = 0; i < sizeof(of) / sizeof(of[0]) && !err; i++)
		if (arg_given(a, of[i].option))
			err = word(e, "%s=%s", of[i].parameter, arg_value(a, of[i].option, ""));
	if (!err && arg_given(a, "passphrase-file"))
		err = word(e, "passphrase=+%s", arg_value(a, "passphrase-file", ""));
	return err;
}

static int places_make(struct export *e, const struct args *a, struct why *why)
{
	const char *given = arg_value(a, "socket", NULL);
	cleanup_free char *cwd = given && *given != '/' ? getcwd(NULL, 0) : NULL, *whole = NULL;
	struct stat st;

	if (given && asprintf(&whole, "%s%s%s", cwd ? cwd : "", cwd ? "/" : "", given) < 0) {
		whole = NULL;
		return -ENOMEM;
	}
	given = whole;
	if (given && strlen(given) >= sizeof(e->socket))
		return why_set(why, ENAMETOOLONG, "socket %.60s...: its path is longer than %zu letters", given,
			       sizeof(e->socket) - 1);
	if (given && !lstat(given, &st))
		return why_set(why, EEXIST, "%s exists: give a name that does not", given);
	snprintf(e->dir, sizeof(e->dir), "/tmp/asr-export.XXXXXX");
	if (!mkdtemp(e->dir)) {
		*e->dir = 0;
		return why_set(why, errno, "cannot make a folder in /tmp: %s", strerror(errno));
	}
	snprintf(e->report, sizeof(e->report), "%s/report", e->dir);
	snprintf(e->pid, sizeof(e->pid), "%s/pid", e->dir);
	if (given)
		snprintf(e->socket, sizeof(e->socket), "%s", given);
	else
		snprintf(e->socket, sizeof(e->socket), "%s/nbd", e->dir);
	return 0;
}

static void places_end(struct export *e, bool started)
{
	while (e->count)
		free(e->words[--e->count]);
	if (!*e->dir)
		return;
	if (started || !strncmp(e->socket, e->dir, strlen(e->dir)))
		unlink(e->socket);
	unlink(e->report);
	unlink(e->pid);
	rmdir(e->dir);
}

/* -ECHILD: nbdkit has ended, with status */
static int ended(struct export *e, int *status)
{
	pid_t p = waitpid(e->child, status, WNOHANG);

	if (p != e->child)
		return 0;
	e->child = 0;
	return -ECHILD;
}

static void pause_ms(long ms)
{
	struct timespec t = { .tv_nsec = ms * 1000000 };

	nanosleep(&t, NULL);
}

static int nbdkit_start(struct export *e, struct why *why)
{
	int status;

	signal(SIGCHLD, SIG_DFL);
	e->child = fork();
	if (e->child < 0)
		return why_set(why, errno, "cannot fork: %s", strerror(errno));
	if (!e->child) {
		umask(077);	/* who may connect may read */
		execvp(e->words[0], e->words);
		fprintf(stderr, "asrctl: nbdkit: %s%s\n", strerror(errno),
			errno == ENOENT ? ": install the package nbdkit" : "");
		_exit(127);
	}
	/* it is ready when it has written its number; what is wrong it has said itself */
	while (access(e->pid, F_OK)) {
		if (interrupted())
			return why_set(why, EINTR, "interrupted");
		if (ended(e, &status))
			return why_set(why, EIO, "nbdkit did not start");
		pause_ms(10);
	}
	return 0;
}

/* It waits for its clients to go; they have some seconds */
static void nbdkit_stop(struct export *e)
{
	int status;

	if (e->child <= 0)
		return;
	kill(e->child, SIGTERM);
	for (int n = 0; n < STOP_MS / 10; n++) {
		if (ended(e, &status))
			return;
		pause_ms(10);
	}
	kill(e->child, SIGKILL);
	while (waitpid(e->child, &status, 0) < 0 && errno == EINTR)
		;
}

/* A URI's query and path have few letters of their own */
static char *escape(const char *text)
{
	char *out = malloc(3 * strlen(text) + 1), *to = out;

	for (; out && *text; text++) {
		if (strchr("/-._~", *text) || (*text >= '0' && *text <= '9') || (*text >= 'A' && *text <= 'Z') ||
		    (*text >= 'a' && *text <= 'z'))
			*to++ = *text;
		else
			to += sprintf(to, "%%%02X", (unsigned char)*text);
	}
	if (out)
		*to = 0;
	return out;
}

static int put(const struct export *e, const struct args *a, struct why *why)
{
	static const struct col cols[] = {
		{ "DISK", "disk", COL_TEXT }, { "SIZE", "bytes", COL_BYTES }, { "SEQ", "seq", COL_INT },
		{ "TIME", "time", COL_TEXT }, { "URI", "uri", COL_TEXT },
	};
	cleanup_free char *text = NULL, *place = escape(e->socket);
	cleanup_json all = NULL;
	json_t *d;
	size_t i;
	int err = file_read(e->report, REPORT_MAX, &text, NULL, why);

	if (err)
		return err;
	all = json_loads(text, 0, NULL);
	json_array_foreach(json_object_get(all, "disks"), i, d) {
		cleanup_free char *disk = escape(json_string_value(json_object_get(d, "disk")) ?: "");

		json_object_set_new(d, "uri", json_sprintf("nbd+unix:///%s?socket=%s", disk ? disk : "",
							   place ? place : ""));
	}
	/* cow has one overlay for all exports: what is written to one disk would be read from the others */
	if (arg_given(a, "writable") && json_array_size(json_object_get(all, "disks")) != 1)
		return why_set(why, EINVAL, "--writable is for one disk at a time, and there are %zu: say --disk, and "
			       "for the others start it again, with the same point (not latest)",
			       json_array_size(json_object_get(all, "disks")));
	json_object_set_new(all, "socket", json_string(e->socket));
	json_object_set_new(all, "writable", json_boolean(arg_given(a, "writable")));
	if (a->json) {
		out_json(all);
	} else {
		out_table(json_object_get(all, "disks"), cols, sizeof(cols) / sizeof(cols[0]), "no disks");
		printf("%s; Ctrl-C ends it\n", arg_given(a, "writable") ?
		       "what is written is kept until then, and nowhere else" : "read-only");
	}
	fflush(stdout);
	return 0;
}

int point_export(const struct args *a, struct why *why)
{
	struct export e = { .dir = "" };
	int status = 0, err = places_make(&e, a, why);
	bool started = false;

	interrupt_catch();
	if (!err)
		err = words_make(&e, a);
	if (!err) {
		err = nbdkit_start(&e, why);
		started = !err;
	}
	if (!err)
		err = put(&e, a, why);
	while (!err && !interrupted()) {
		if (!ended(&e, &status))
			pause_ms(100);
		else if (!interrupted())	/* Ctrl-C goes to both */
			err = why_set(why, EIO, "nbdkit has ended by itself");
	}
	nbdkit_stop(&e);
	places_end(&e, started);
	return err;
}
