// SPDX-License-Identifier: Apache-2.0
/*
 * asrctl restore: a disk of the past, from the vault's folder and a private
 * key. No daemon is needed, none is disturbed. The key is read once, kept in
 * locked memory, and written nowhere.
 */
#include "asrctl.h"
#include "../userland/vault.h"

#include <errno.h>
#include <string.h>

#define PEM_MAX		262144

static int show(uint64_t done, uint64_t total, void *arg)
{
	progress_show(arg, done, total, 0);
	return interrupted();
}

static int text_read(const char *path, char **text, struct why *why)
{
	*text = NULL;
	return path ? file_read_secret(path, PEM_MAX, text, why) : 0;
}

int recipient_read(const struct args *a, struct recipient *r, struct why *why)
{
	int err = text_read(arg_value(a, "key", NULL), &r->key, why);

	if (!err)
		err = text_read(arg_value(a, "cert", NULL), &r->cert, why);
	if (!err)
		err = text_read(arg_value(a, "passphrase-file", NULL), &r->passphrase, why);
	if (!err && r->passphrase)
		r->passphrase[strcspn(r->passphrase, "\r\n")] = 0;
	return err;
}

void recipient_free(struct recipient *r)
{
	secret_free(r->key);
	secret_free(r->cert);
	secret_free(r->passphrase);
}

static void put_result(const struct args *a, const struct restore_args *ra, const struct restore_result *r)
{
	cleanup_json json = NULL;
	char size[24], data[24], when[40];

	if (a->json) {
		json = restore_json(ra, r);
		out_json(json);
		return;
	}
	printf("%s: disk %s of %s at seq %llu (%s), %s, %s of it data, in %.1f s\n", ra->to, ra->disk,
	       ra->group, (unsigned long long)r->point.seq, time_format(r->point.time_ns, when),
	       out_bytes(r->disk_bytes, size), out_bytes(r->written_bytes, data), (double)r->elapsed_ns / 1e9);
}

int restore_run(const struct args *a, struct why *why)
{
	struct recipient who = {0};
	struct restore_result result = {0};
	struct progress progress;
	struct restore_args ra = {
		.vault_dir = arg_value(a, "vault-dir", ASR_VAULT_DIR), .group = a->words[0],
		.disk = arg_value(a, "disk", NULL), .point = arg_value(a, "point", NULL),
		.to = arg_value(a, "to", NULL), .progress = show, .arg = &progress,
	};
	int err;

	err = recipient_read(a, &who, why);
	if (!err) {
		ra.key_pem = who.key;
		ra.cert_pem = who.cert;
		ra.passphrase = who.passphrase;
		progress_begin(&progress, ra.disk, a->json);
		interrupt_catch();
		err = restore_disk(&ra, &result, why);
		progress_end(&progress);
		if (err == -ECANCELED && interrupted())
			why_set(why, ECANCELED, "interrupted; nothing was left behind");
	}
	if (!err)
		put_result(a, &ra, &result);
	recipient_free(&who);
	return err;
}
