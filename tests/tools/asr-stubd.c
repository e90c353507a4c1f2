// SPDX-License-Identifier: Apache-2.0
/*
 * asr-stubd - answers for asrd what `asrctl disk` and `group delete` ask it, and nothing else.
 *
 *   asr-stubd SOCKET GROUP...     until SIGTERM
 *
 * Design: the groups exist because the command line says so; whether the
 * kernel has them is the test's affair. So a swap of tables is tested without
 * a vault, and its failure by a group that the kernel has not.
 * Context: tests; one thread.
 */
#include "asr.h"

#include <string.h>

static char **groups;

static void on_call(struct control_call *call, const char *method, json_t *parameters, void *arg)
{
	json_t *rows = json_array();

	if (!strcmp(method, "io.asr.Group.List")) {
		for (char **g = groups; *g; g++)
			json_array_append_new(rows, json_pack("{s:s}", "name", *g));
		control_reply(call, json_pack("{s:o}", "groups", rows), false);
	} else if (!strcmp(method, "io.asr.Disk.List")) {
		control_reply(call, json_pack("{s:o}", "disks", rows), false);
	} else if (!strcmp(method, "io.asr.Group.Delete")) {
		json_decref(rows);
		control_reply(call, json_object(), false);
	} else {
		json_decref(rows);
		control_error(call, "a stub does not know %s", method);
	}
}

static void on_signal(int sig, void *arg)
{
	loop_stop(arg);
}

int main(int argc, char **argv)
{
	struct control *control;
	struct why why = {0};
	struct loop *loop;

	log_init("asr-stubd", LOG_LVL_INFO);
	if (argc < 3) {
		fputs("usage: asr-stubd SOCKET GROUP...\n", stderr);
		return 2;
	}
	groups = argv + 2;
	if (loop_create(&loop, 64) || loop_signals(loop, on_signal, loop) ||
	    control_listen(loop, argv[1], on_call, NULL, &control, &why)) {
		fprintf(stderr, "asr-stubd: %s\n", why.text);
		return 1;
	}
	return loop_run(loop) ? 1 : 0;
}
