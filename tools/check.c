// SPDX-License-Identifier: Apache-2.0
/*
 * asrctl vault check: is what the vault holds whole? Beside a running daemon, or on a bare copy.
 */
#include "asrctl.h"
#include "../userland/vault.h"

#include <errno.h>
#include <string.h>

struct check_show {
	struct progress progress;
	json_t *findings;
	bool json;
};

static int show(uint64_t done, uint64_t total, void *arg)
{
	struct check_show *s = arg;

	progress_show(&s->progress, done, total, 0);
	return interrupted();
}

static void found(const struct vaultcheck_finding *f, void *arg)
{
	struct check_show *s = arg;

	json_array_append_new(s->findings, json_pack("{s:s, s:s, s:s, s:o, s:s}", "group", f->group, "host", f->host,
			"file", f->file, "points_from_seq", f->seq ? json_integer((json_int_t)f->seq) : json_null(),
			"reason", f->text));
	if (s->json)
		return;
	progress_end(&s->progress);
	printf("damage: %s%s%s%s%s: %s", *f->group ? "group " : "", f->group, *f->host ? ", host " : "", f->host,
	       *f->group ? "" : f->file, f->text);
	/* what text names begins with the segment; else it is said here */
	if (*f->group && *f->file && !strstr(f->text, f->file))
		printf(" (%s)", f->file);
	if (f->seq)
		printf("; points from seq %llu on may need it", (unsigned long long)f->seq);
	putchar('\n');
	fflush(stdout);
}

static void put_result(const struct vaultcheck_result *r, bool content)
{
	char size[24];

	printf("%s: %llu groups, %llu segments, %llu frames, %llu records%s, %s in %.1f s\n",
	       r->findings ? "NOT sound" : "sound", (unsigned long long)r->groups, (unsigned long long)r->segments,
	       (unsigned long long)r->frames, (unsigned long long)r->records,
	       content ? ", and every block by its digest" : "", out_bytes(r->bytes, size),
	       (double)r->elapsed_ns / 1e9);
	if (r->skipped)
		printf("%llu segments were known to be sound by the journal, and not read\n",
		       (unsigned long long)r->skipped);
	if (!content)
		puts("contents were not looked at: that takes --key");
}

int vault_check(const struct args *a, struct why *why)
{
	struct check_show s = { .json = a->json, .findings = json_array() };
	cleanup_json findings = s.findings, *answer = NULL;
	struct recipient who = {0};
	struct vaultcheck_result r;
	struct vaultcheck_args va = {
		.vault_dir = arg_value(a, "vault-dir", ASR_VAULT_DIR), .group = a->word_count ? a->words[0] : NULL,
		.journal = arg_value(a, "journal", NULL), .progress = show, .found = found, .arg = &s,
	};
	int err = rate_read(a, &va.rate, why);

	if (!err)
		err = recipient_read(a, &who, why);
	if (!err) {
		va.key_pem = who.key;
		va.cert_pem = who.cert;
		va.passphrase = who.passphrase;
		progress_begin(&s.progress, "check", a->json);
		interrupt_catch();
		err = vaultcheck_run(&va, &r, why);
		progress_end(&s.progress);
		if (err == -ECANCELED)
			why_set(why, ECANCELED, "interrupted; %s", va.journal ? "with the same --journal it goes on "
				"where it was" : "nothing was changed");
	}
	recipient_free(&who);
	if (err)
		return err;
	if (a->json) {
		answer = vaultcheck_json(&r);
		json_object_set(answer, "findings", findings);
		out_json(answer);
	} else {
		put_result(&r, va.key_pem);
	}
	return r.findings ? 1 : 0;
}
