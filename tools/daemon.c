// SPDX-License-Identifier: Apache-2.0
/*
 * asrctl's line to asrd, and what an interrupt does to it.
 */
#include "asrctl.h"

#include <errno.h>
#include <signal.h>

static volatile sig_atomic_t caught;

static void on_signal(int sig)
{
	caught = sig;
}

void interrupt_catch(void)
{
	struct sigaction sa = { .sa_handler = on_signal };

	sigaction(SIGINT, &sa, NULL);
	sigaction(SIGTERM, &sa, NULL);
	sigaction(SIGHUP, &sa, NULL);
}

bool interrupted(void)
{
	return caught;
}

static int keep(json_t *reply, void *arg)
{
	json_decref(*(json_t **)arg);
	*(json_t **)arg = json_incref(reply);
	return 0;
}

static int call(const struct args *a, const char *method, json_t *parameters, bool more, json_t **answer,
		struct why *why)
{
	const char *path = arg_value(a, "control", ASR_SOCKET);
	int err;

	*answer = NULL;
	err = control_call(path, method, parameters, more, keep, answer, why);
	if (err == -ENOENT || err == -ECONNREFUSED)
		return why_set(why, -err, "asrd does not answer at %s: start it (systemctl start asrd), "
			       "or name its socket with --control", path);
	if (!err && !json_is_object(*answer))
		err = why_set(why, EPROTO, "asrd at %s answered %s with nothing", path, method);
	return err;
}

int daemon_call(const struct args *a, const char *method, json_t *parameters, json_t **answer,
		struct why *why)
{
	return call(a, method, parameters, false, answer, why);
}

int daemon_call_long(const struct args *a, const char *method, json_t *parameters, json_t **answer,
		     struct why *why)
{
	return call(a, method, parameters, true, answer, why);
}
