// SPDX-License-Identifier: Apache-2.0
/*
 * asrctl app serve: makes this host's applications quiet when a mark of several hosts wants it.
 *
 * Design. Waits on io.asr.App.Serve of asrd; for each mark that comes it does what group mark --consistency app does
 * on one host (quiet.c), but for the mark itself, which it has from asrd. When asrd goes it waits for the next one.
 *
 * Invariants. As in quiet.c: what was begun is undone, whatever asrd, or a host that asks, does.
 *
 * Context. Root, as a service of its own: asrd may neither run programs nor touch file systems.
 */
#include "asrctl.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

static int mark_of_all(const struct quiet_for *f, char whole[ASR_NAME_BYTES], char *id, size_t bytes, struct why *why)
{
	cleanup_json answer = NULL;
	const char *mark = NULL;
	json_int_t number = 0;
	int err = daemon_call_long(f->args, "io.asr.App.Quiet", json_pack("{s:s, s:s}", "group", f->group, "name",
								       f->name), &answer, why);

	if (err)
		return err;
	if (json_unpack(answer, "{s:s, s:I}", "mark", &mark, "id", &number) || strlen(mark) >= ASR_NAME_BYTES)
		return why_set(why, EPROTO, "asrd's answer is not understood");
	snprintf(whole, ASR_NAME_BYTES, "%s", mark);
	snprintf(id, bytes, "%llu", (unsigned long long)number);
	return 0;
}

static void one_mark(const struct args *a, const struct quiet_for *f)
{
	struct why why = { "" }, other = { "" };
	cleanup_json none = NULL;
	cleanup_json answer = NULL;
	int err = quiet_run(a, f, &none, &why);

	if (err && !*why.text)
		why_set(&why, -err, "%s", strerror(-err));
	if (err)
		log_warn("group %s: mark %s is not application-consistent: %s", f->group, f->name, why.text);
	else
		log_info("group %s: mark %s is application-consistent on this host", f->group, f->name);
	if (daemon_call(a, "io.asr.App.Loud", json_pack("{s:s, s:s, s:s}", "group", f->group, "name", f->name,
			"trouble", err ? why.text : ""), &answer, &other))
		log_warn("group %s: mark %s: asrd was not told the end: %s", f->group, f->name, other.text);
}

static int asked(json_t *reply, void *arg)
{
	struct quiet_for f = { .mark = mark_of_all, .args = arg };
	json_int_t seconds = 0;

	if (interrupted())
		return 1;
	if (!json_object_get(reply, "name"))
		return 0;	/* somebody is there */
	if (json_unpack(reply, "{s:s, s:s, s:I}", "group", &f.group, "name", &f.name, "timeout_s", &seconds) ||
	    seconds < 1 || seconds > APP_TIMEOUT_MAX || name_check("group", f.group, NULL) ||
	    name_check("mark", f.name, NULL)) {
		log_warn("asrd asks for what is not understood");
		return 0;
	}
	f.seconds = (unsigned int)seconds;
	one_mark(arg, &f);
	return interrupted();
}

int app_serve(const struct args *a, struct why *why)
{
	const char *path = arg_value(a, "control", ASR_SOCKET);
	char told[sizeof(why->text)] = "";
	int err;

	interrupt_catch();
	while (!interrupted()) {
		err = control_call(path, "io.asr.App.Serve", json_object(), true, asked, (void *)(uintptr_t)a, why);
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
