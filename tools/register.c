// SPDX-License-Identifier: Apache-2.0
/*
 * asrctl register: this host becomes known to a vault.
 */
#include "asrctl.h"

#include <errno.h>
#include <string.h>
#include <time.h>

#define KEY_TEXT_MAX	4096

static int key_read(const char *path, char *text, struct why *why)
{
	cleanup_free char *data = NULL;
	size_t bytes;
	int err;

	if (!strcmp(path, "-")) {
		bytes = fread(text, 1, KEY_TEXT_MAX - 1, stdin);
		text[bytes] = 0;
		return 0;
	}
	err = file_read(path, KEY_TEXT_MAX - 1, &data, &bytes, why);
	if (err == -EFBIG)
		return why_set(why, EFBIG, "%s is no registration key file: one holds a single line", path);
	if (err)
		return err;
	if (strlen(data) != bytes)
		return why_set(why, EINVAL, "%s is no registration key file: it is not text", path);
	memcpy(text, data, bytes + 1);
	explicit_bzero(data, bytes);
	return 0;
}

/* The daemon has the identity; is it at the vault? What follows may need that. */
static bool wait_connected(const struct args *a)
{
	const struct timespec pause = { .tv_nsec = 100000000 };

	for (int i = 0; i < 100; i++) {
		cleanup_json status = NULL;

		if (daemon_call(a, "io.asr.Status", NULL, &status, NULL))
			return false;
		if (json_is_true(json_object_get(json_object_get(status, "vault"), "connected")))
			return true;
		nanosleep(&pause, NULL);
	}
	return false;
}

int register_host(const struct args *a, struct why *why)
{
	bool connected;

	const char *dir = arg_value(a, "state-dir", ASR_STATE_DIR);
	cleanup_json answer = NULL, *vault = NULL;
	cleanup_free char *path = NULL, *kept = NULL;
	char text[KEY_TEXT_MAX];
	struct why daemon = {0};
	int err;

	err = key_read(arg_value(a, "key", ""), text, why);
	if (!err)
		err = ident_register(text, dir, arg_value(a, "host", NULL), why);
	explicit_bzero(text, sizeof(text));
	if (err)
		return err;
	if (asprintf(&path, "%s/vault.json", dir) < 0)
		return -ENOMEM;
	err = file_read(path, KEY_TEXT_MAX, &kept, NULL, why);
	if (err)
		return err;
	vault = json_loads(kept, 0, NULL);
	/* a daemon that does not run reads its identity when it starts */
	err = daemon_call(a, "io.asr.Reload", NULL, &answer, &daemon);
	connected = !err && wait_connected(a);
	if (a->json) {
		json_object_set_new(vault, "state_dir", json_string(dir));
		json_object_set_new(vault, "asrd_reloaded", json_boolean(!err));
		json_object_set_new(vault, "connected", json_boolean(connected));
		out_json(vault);
		return 0;
	}
	printf("host %s is registered with the vault at %s port %s\n",
	       json_string_value(json_object_get(vault, "host")),
	       json_string_value(json_object_get(vault, "address")),
	       json_string_value(json_object_get(vault, "port")));
	if (err)
		printf("asrd was not told: %s\n", daemon.text);
	else
		puts(connected ? "asrd is connected to it" :
		     "asrd is not connected to it yet: `asrctl status` says why");
	return 0;
}
