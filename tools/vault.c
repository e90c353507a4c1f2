// SPDX-License-Identifier: Apache-2.0
/*
 * asrctl vault: the recovery site's folder, its registration keys, its state.
 *
 * Design. Works on the folder itself, beside a running daemon or without one:
 * the catalogue is a database that both may have open. Only the status of the
 * daemon is asked of the daemon.
 */
#include "asrctl.h"
#include "../userland/vault.h"

#include <ctype.h>
#include <errno.h>
#include <string.h>
#include <sys/stat.h>

#define KEY_TEXT_MAX	1024

static int open_catalog(const struct args *a, const char **dir, struct catalog **cat, struct why *why)
{
	*dir = arg_value(a, "vault-dir", ASR_VAULT_DIR);
	return catalog_open(*dir, cat, why);
}

/* Who works on the vault's folder itself */
static void audit(struct catalog *cat, const char *what, const char *detail)
{
	char who[40];

	snprintf(who, sizeof(who), "local uid %u", (unsigned int)getuid());
	catalog_audit(cat, who, what, detail);
}

static json_t *time_json(uint64_t ns)
{
	char text[40];

	return ns ? json_string(time_format(ns, text)) : json_null();
}

int vault_init(const struct args *a, struct why *why)
{
	const char *dir = a->words[0], *address = arg_value(a, "address", "");
	const char *port = arg_value(a, "port", "20003");
	cleanup_json answer = NULL;
	int err;

	/* the CA comes first: it refuses a vault that exists, and bad addresses */
	err = ident_ca_create(dir, address, port, why);
	if (!err)
		err = catalog_create(dir, why);
	if (err)
		return err;
	if (a->json) {
		answer = json_pack("{s:s, s:s, s:s}", "vault_dir", dir, "address", address, "port", port);
		out_json(answer);
	} else {
		printf("vault made in %s, for hosts to reach at %s port %s\n"
		       "next: start asr-vaultd, then `asrctl vault key create --vault-dir %s`\n",
		       dir, address, port, dir);
	}
	return 0;
}

/* "90m", "12h", "5d", "30s": nanoseconds */
static int duration_parse(const char *text, uint64_t *ns, struct why *why)
{
	static const struct { char unit; uint64_t seconds; } units[] = {
		{ 's', 1 }, { 'm', 60 }, { 'h', 3600 }, { 'd', 86400 },
	};
	unsigned long v;
	char *end;

	v = isdigit((unsigned char)*text) ? strtoul(text, &end, 10) : 0;
	for (size_t i = 0; v && i < sizeof(units) / sizeof(units[0]); i++) {
		if (*end != units[i].unit || end[1])
			continue;
		if (v > 3650 * 86400ULL / units[i].seconds)
			break;
		*ns = v * units[i].seconds * 1000000000ULL;
		return 0;
	}
	return why_set(why, EINVAL, "bad time \"%.40s\": a number and s, m, h or d is wanted, "
		       "up to 3650d: 12h, say", text);
}

static int key_out(const struct args *a, const struct reg_key *k, const char *text, struct why *why)
{
	const char *out = arg_value(a, "out", NULL);
	cleanup_json answer = NULL;
	char when[40];
	int err;

	if (out) {
		cleanup_free char *line = NULL;

		if (asprintf(&line, "%s\n", text) < 0)
			return -ENOMEM;
		err = file_write(out, 0600, line, strlen(line), why);
		if (err)
			return err;
	}
	time_format(k->expires_ns, when);
	if (a->json) {
		answer = json_pack("{s:s, s:s, s:s}", "id", k->id, "expires", when,
				   out ? "file" : "key", out ? out : text);
		out_json(answer);
		return 0;
	}
	if (out)
		printf("registration key %s written to %s\n", k->id, out);
	else
		puts(text);
	fprintf(stderr, "serves one host, until %s: `asrctl register --key FILE` on that host\n", when);
	return 0;
}

int vault_key_create(const struct args *a, struct why *why)
{
	const char *out = arg_value(a, "out", NULL), *of = arg_value(a, "host", NULL), *dir;
	struct catalog_host host = { .id = "" };
	char text[KEY_TEXT_MAX];
	struct catalog *cat;
	struct reg_key k = { .id = "" };
	uint64_t life = 0;
	int err;

	err = duration_parse(arg_value(a, "expires", "5d"), &life, why);
	if (err)
		return err;
	if (out && !access(out, F_OK))
		return why_set(why, EEXIST, "%s exists; a key is written to a new file only", out);
	err = open_catalog(a, &dir, &cat, why);
	if (err)
		return err;
	err = of ? catalog_host_find(cat, of, &host, why) : 0;
	if (err) {
		catalog_close(cat);
		return err;
	}
	err = ident_key_create(cat, dir, host.id, now_real_ns() + life, &k, why);
	if (!err)
		err = ident_key_format(&k, text, sizeof(text));
	if (!err)
		err = key_out(a, &k, text, why);
	if (err)
		catalog_key_revoke(cat, k.id, NULL);
	else
		audit(cat, of ? "key create --host" : "key create", k.id);
	catalog_close(cat);
	explicit_bzero(&k, sizeof(k));
	explicit_bzero(text, sizeof(text));
	return err;
}

static int key_row(const struct catalog_key *k, void *arg)
{
	const char *state = k->revoked_ns ? "revoked" : k->used_ns ? "used" :
			    k->expires_ns <= now_real_ns() ? "expired" : "valid";

	json_array_append_new(arg, json_pack("{s:s, s:s, s:o, s:o, s:o, s:s, s:s}", "id", k->id,
					     "state", state, "created", time_json(k->created_ns),
					     "expires", time_json(k->expires_ns),
					     "used", time_json(k->used_ns), "host_id", k->host_id,
					     "for_host_id", k->for_host));
	return 0;
}

int vault_key_list(const struct args *a, struct why *why)
{
	static const struct col cols[] = {
		{ "ID", "id", COL_TEXT }, { "STATE", "state", COL_TEXT },
		{ "EXPIRES", "expires", COL_TEXT }, { "USED", "used", COL_TEXT },
		{ "HOST", "host_id", COL_TEXT }, { "FOR", "for_host_id", COL_TEXT },
	};
	cleanup_json rows = json_array(), *answer = NULL;
	struct catalog *cat;
	const char *dir;
	int err;

	err = open_catalog(a, &dir, &cat, why);
	if (err)
		return err;
	err = catalog_keys(cat, key_row, rows, why);
	catalog_close(cat);
	if (err)
		return err;
	if (a->json) {
		answer = json_pack("{s:O}", "keys", rows);
		out_json(answer);
	} else {
		out_table(rows, cols, sizeof(cols) / sizeof(cols[0]), "no registration keys");
	}
	return 0;
}

int vault_key_revoke(const struct args *a, struct why *why)
{
	cleanup_json answer = NULL;
	struct catalog *cat;
	const char *dir;
	int err;

	err = open_catalog(a, &dir, &cat, why);
	if (err)
		return err;
	err = catalog_key_revoke(cat, a->words[0], why);
	if (!err)
		audit(cat, "key revoke", a->words[0]);
	catalog_close(cat);
	if (err)
		return err;
	answer = json_pack("{s:s}", "revoked", a->words[0]);
	if (a->json)
		out_json(answer);
	else
		printf("registration key %s is worthless now\n", a->words[0]);
	return 0;
}

static int host_row(const struct catalog_host *h, void *arg)
{
	const char *state = h->revoked_ns ? "revoked" : h->expires_ns <= now_real_ns() ? "expired" : "valid";

	json_array_append_new(arg, json_pack("{s:s, s:s, s:o, s:s, s:o, s:o}", "name", h->name, "id", h->id,
					     "enrolled", time_json(h->enrolled_ns), "certificate", state,
					     "certificate_expires", time_json(h->expires_ns),
					     "revoked", time_json(h->revoked_ns)));
	return 0;
}

static const struct col host_cols[] = {
	{ "HOST", "name", COL_TEXT }, { "ID", "id", COL_TEXT }, { "ENROLLED", "enrolled", COL_TEXT },
	{ "CERTIFICATE", "certificate", COL_TEXT }, { "UNTIL", "certificate_expires", COL_TEXT },
};

int vault_host_list(const struct args *a, struct why *why)
{
	cleanup_json rows = json_array(), *answer = NULL;
	struct catalog *cat;
	const char *dir;
	int err = open_catalog(a, &dir, &cat, why);

	if (err)
		return err;
	err = catalog_hosts(cat, host_row, rows, why);
	catalog_close(cat);
	if (err)
		return err;
	if (a->json) {
		answer = json_pack("{s:O}", "hosts", rows);
		out_json(answer);
	} else {
		out_table(rows, host_cols, sizeof(host_cols) / sizeof(host_cols[0]), "no hosts");
	}
	return 0;
}

int vault_host_revoke(const struct args *a, struct why *why)
{
	cleanup_json answer = NULL;
	struct catalog_host h;
	struct catalog *cat;
	const char *dir;
	int err = open_catalog(a, &dir, &cat, why);

	if (err)
		return err;
	err = catalog_host_find(cat, a->words[0], &h, why);
	if (!err)
		err = catalog_host_revoke(cat, h.id, why);
	if (err == -EALREADY)
		why_set(why, EALREADY, "host %s has no certificate that counts: there is nothing left to revoke",
			h.name);
	if (!err)
		audit(cat, "host revoke", h.id);
	catalog_close(cat);
	if (err)
		return err;
	answer = json_pack("{s:s, s:s}", "revoked", h.name, "host_id", h.id);
	if (a->json)
		out_json(answer);
	else
		printf("host %s is cut off: its certificates are worthless now. Its history stays\n"
		       "back in: `asrctl vault key create --host %s`, and asrctl register on the host\n", h.name,
		       h.name);
	return 0;
}

static int group_row(const struct catalog_group *g, void *arg)
{
	char uuid[2 * ASR_UUID_BYTES + 1];

	hex_encode(g->uuid, sizeof(g->uuid), uuid);
	json_array_append_new(arg, json_pack("{s:s, s:s, s:s, s:I, s:o, s:b}", "name", g->name,
					     "uuid", uuid, "host_id", g->host_id,
					     "generation", (json_int_t)g->generation,
					     "created", time_json(g->created_ns),
					     "has_source", !g->deleted_ns));
	return 0;
}

static int keep(json_t *reply, void *arg)
{
	*(json_t **)arg = json_incref(reply);
	return 0;
}

static void put_daemon(const json_t *daemon, const char *reason)
{
	const char *key;
	json_t *v;

	if (!daemon) {
		printf("daemon: %s\n", reason);
		return;
	}
	puts("daemon: running");
	json_object_foreach((json_t *)daemon, key, v) {
		cleanup_free char *text = json_is_string(v) ? NULL : json_dumps(v, JSON_ENCODE_ANY | JSON_COMPACT);

		printf("  %s: %s\n", key, text ? text : json_string_value(v));
	}
}

int vault_status(const struct args *a, struct why *why)
{
	static const struct col group_cols[] = {
		{ "GROUP", "name", COL_TEXT }, { "UUID", "uuid", COL_TEXT }, { "HOST ID", "host_id", COL_TEXT },
		{ "GENERATION", "generation", COL_INT }, { "HAS SOURCE", "has_source", COL_YESNO },
	};
	cleanup_json hosts = json_array(), *groups = json_array(), *daemon = NULL, *answer = NULL;
	struct why reason = {0};
	struct catalog *cat;
	const char *dir;
	int err;

	control_call(arg_value(a, "vault-control", ASR_VAULT_SOCKET), "io.asr.vault.Status", NULL, false,
		     keep, &daemon, &reason);
	err = open_catalog(a, &dir, &cat, why);
	if (!err) {
		err = catalog_hosts(cat, host_row, hosts, why);
		if (!err)
			err = catalog_groups(cat, group_row, groups, why);
		catalog_close(cat);
	}
	if (err)
		return err;
	if (a->json) {
		answer = json_pack("{s:s, s:O*, s:s*, s:O, s:O}", "vault_dir", dir, "daemon", daemon,
				   "daemon_error", daemon ? NULL : reason.text, "hosts", hosts,
				   "groups", groups);
		out_json(answer);
		return 0;
	}
	printf("vault:  %s\n", dir);
	put_daemon(daemon, reason.text);
	putchar('\n');
	out_table(hosts, host_cols, sizeof(host_cols) / sizeof(host_cols[0]), "no hosts");
	putchar('\n');
	out_table(groups, group_cols, sizeof(group_cols) / sizeof(group_cols[0]), "no groups");
	return 0;
}
