// SPDX-License-Identifier: Apache-2.0
/*
 * asrctl app serve: makes this host's applications quiet when a mark of several hosts wants it.
 *
 * Design. Waits on io.asr.App.Serve of asrd; for each mark that comes it does what group mark --consistency app does
 * on one host (quiet.c), but for the mark itself, which it has from asrd. When asrd goes it waits for the next one.
 *
 * Invariants. As in quiet.c: what was begun is undone, whatever asrd, or a host that asks, does. How long it may last
 * this host decides.
 *
 * Context. Root, as a service of its own: asrd may neither run programs nor touch file systems.
 */
#include "asrctl.h"

#include "../userland/marks.h"

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define LONGEST_DEFAULT	"60"

static json_t *number_of(const struct quiet_for *f)
{
	return json_pack("{s:s, s:I}", "group", f->group, "number", (json_int_t)f->number);
}

/* The last answer. Each second one comes: who is told to end meanwhile, does */
static int keep(json_t *reply, void *arg)
{
	sigset_t set;

	sigpending(&set);
	if (sigismember(&set, SIGTERM) || sigismember(&set, SIGINT) || interrupted())
		return -EINTR;
	json_decref(*(json_t **)arg);
	*(json_t **)arg = json_incref(reply);
	return 0;
}

static int mark_of_all(const struct quiet_for *f, char whole[ASR_NAME_BYTES], char *id, size_t bytes, struct why *why)
{
	cleanup_json answer = NULL;
	const char *mark = NULL;
	json_int_t number = 0;
	int err = control_call(arg_value(f->args, "control", ASR_SOCKET), "io.asr.App.Quiet", number_of(f), true, keep,
			       &answer, why);

	if (err == -EINTR)
		return why_set(why, EINTR, "told to end before there was a mark");
	if (err)
		return err;
	if (json_unpack(answer, "{s:s, s:I}", "mark", &mark, "id", &number) || strlen(mark) >= ASR_NAME_BYTES)
		return why_set(why, EPROTO, "asrd's answer is not understood");
	snprintf(whole, ASR_NAME_BYTES, "%s", mark);
	snprintf(id, bytes, "%llu", (unsigned long long)number);
	return 0;
}

/* It may have waited for long, behind another one */
static bool is_wanted(const struct quiet_for *f)
{
	cleanup_json answer = NULL;

	return !daemon_call(f->args, "io.asr.App.Wanted", number_of(f), &answer, NULL) &&
	       json_is_true(json_object_get(answer, "wanted"));
}

static void say_end(const struct quiet_for *f, struct why *why)
{
	struct why other = { "" };
	cleanup_json answer = NULL;
	json_t *p = number_of(f);

	marks_clean(why->text);
	json_object_set_new(p, "trouble", json_string(why->text));
	if (*why->text)
		log_warn("group %s: mark %s is not application-consistent: %s", f->group, f->name, why->text);
	else
		log_info("group %s: mark %s is application-consistent on this host", f->group, f->name);
	if (daemon_call(f->args, "io.asr.App.Loud", p, &answer, &other))
		log_warn("group %s: mark %s: asrd was not told the end: %s", f->group, f->name, other.text);
}

static void one_mark(const struct quiet_for *f, unsigned int longest)
{
	struct why why = { "" };
	cleanup_json none = NULL;
	int err = 0;

	if (!is_wanted(f))
		return;
	if (f->seconds > longest)
		err = why_set(&why, EPERM, "quiet for %u s, and asrctl app serve --longest is %u there", f->seconds,
			      longest);
	else
		err = quiet_run(f->args, f, &none, &why);
	if (!err)
		why.text[0] = 0;	/* what was passed over on the way */
	else if (!*why.text)
		why_set(&why, -err, "%s", strerror(-err));
	say_end(f, &why);
	while (waitpid(-1, NULL, WNOHANG) > 0)
		;	/* whose freeze had hung, and has ended */
}

struct serve {
	const struct args *args;
	unsigned int longest;
};

static int asked(json_t *reply, void *arg)
{
	const struct serve *s = arg;
	struct quiet_for f = { .mark = mark_of_all, .args = s->args };
	json_int_t seconds = 0, number = 0;

	if (interrupted())
		return 1;
	if (!json_object_get(reply, "name"))
		return 0;	/* somebody is there */
	if (json_unpack(reply, "{s:s, s:s, s:I, s:I}", "group", &f.group, "name", &f.name, "number", &number,
			"timeout_s", &seconds) || seconds < 1 || seconds > APP_TIMEOUT_MAX ||
	    name_check("group", f.group, NULL) || name_check("mark", f.name, NULL)) {
		log_warn("asrd asks for what is not understood");
		return 0;
	}
	f.seconds = (unsigned int)seconds;
	f.number = (uint64_t)number;
	one_mark(&f, s->longest);
	return interrupted();
}

int app_serve(const struct args *a, struct why *why)
{
	const char *path = arg_value(a, "control", ASR_SOCKET);
	char told[sizeof(why->text)] = "";
	struct serve s = { .args = a };
	int err = quiet_seconds(arg_value(a, "longest", LONGEST_DEFAULT), &s.longest, why);

	if (err)
		return err;
	interrupt_catch();
	while (!interrupted()) {
		err = control_call(path, "io.asr.App.Serve", json_object(), true, asked, &s, why);
		if (err == -EREMOTEIO)
			return err;	/* it will not have us */
		if (err && strcmp(told, why->text))
			log_warn("%s: waiting for asrd", why->text);
		memcpy(told, why->text, sizeof(told));
		if (!interrupted())
			sleep(1);
	}
	return 0;
}
