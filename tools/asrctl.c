// SPDX-License-Identifier: Apache-2.0
/*
 * asrctl: the one tool that drives dm-asr.
 *
 * Design. Everything a person can type stands in commands[]: words, options,
 * their help. Parsing, --help, the answer to a mistyped word, and completion
 * all read that table, so they cannot disagree; a test compares it with the
 * man page. A command is "noun", "noun verb", or "noun verb verb" (vault key
 * create), each with its own options; options may stand anywhere after it.
 *
 * Invariants. Exit status 0: done; 1: failed, with one line on stderr that
 * says why (and {"error"} on stdout with -o json); 2: wrong usage, nothing
 * was tried. Of `group verify` 1 means: they differ, of `vault check`: there is damage; 2: it could not be done.
 */
#include "asrctl.h"

#include <errno.h>
#include <signal.h>
#include <string.h>

#define OPT(n, a, h, ...) { .name = n, .arg = a, .help = h, ##__VA_ARGS__ }
#define OPT_CONTROL	OPT("control", "PATH", "control socket of asrd [" ASR_SOCKET "]")
#define OPT_VAULT_DIR	OPT("vault-dir", "DIR", "the vault's folder [" ASR_VAULT_DIR "]")
#define OPT_STATE_DIR	OPT("state-dir", "DIR", "where asrd keeps its state [" ASR_STATE_DIR "]")
#define OPT_CONNECT	OPT("connect", "URI", "libvirt of this host [qemu:///system]")
#define OPTS(...)	(const struct opt[]){ __VA_ARGS__, { .name = NULL } }

const struct opt common_opts[] = {
	OPT("output", "FORMAT", "table (the default) or json; short: -o"),
	OPT("help", NULL, "this text; short: -h"),
	{ .name = NULL }
};

const struct command commands[] = {
	{ "vault", "init", "DIR", "make a vault: its folder, catalogue and CA", 1, 1, vault_init,
	  OPTS(OPT("address", "HOST", "name or IP address by which hosts reach it", .required = true),
	       OPT("port", "PORT", "port on which it listens [20003]")) },
	{ "vault", "key create", "", "make a registration key, with which one host can enrol",
	  0, 0, vault_key_create,
	  OPTS(OPT("host", "HOST", "a new certificate for this known host, by its name or id [a new host]"),
	       OPT("expires", "TIME", "how long it may be used: 90m, 12h, 5d [5d]"),
	       OPT("out", "FILE", "write it to a new file instead of showing it"), OPT_VAULT_DIR) },
	{ "vault", "key list", "", "registration keys, and what became of them", 0, 0, vault_key_list,
	  OPTS(OPT_VAULT_DIR) },
	{ "vault", "key revoke", "ID", "make an unused registration key worthless", 1, 1,
	  vault_key_revoke, OPTS(OPT_VAULT_DIR) },
	{ "vault", "host list", "", "the hosts that enrolled, and their certificates", 0, 0, vault_host_list,
	  OPTS(OPT_VAULT_DIR) },
	{ "vault", "host revoke", "HOST", "make a host's certificates worthless, and cut it off", 1, 1,
	  vault_host_revoke, OPTS(OPT_VAULT_DIR) },
	{ "vault", "status", "", "the vault daemon, its hosts and groups", 0, 0, vault_status,
	  OPTS(OPT("vault-control", "PATH", "control socket of asr-vaultd [" ASR_VAULT_SOCKET "]"),
	       OPT_VAULT_DIR) },
	{ "vault", "check", "[GROUP]", "prove that what the vault holds is whole", 0, 1, vault_check,
	  OPTS(OPT("key", "KEY.pem", "private key of a recipient: blocks are compared with their digests, too"),
	       OPT("cert", "CERT.pem", "that recipient's certificate [tries all]"),
	       OPT("passphrase-file", "FILE", "file with the passphrase of the private key"),
	       OPT("journal", "FILE", "remember there what is sound, and do not read it again"),
	       OPT("rate", "SIZE", "bytes to read in a second, as 50M [no limit]"), OPT_VAULT_DIR) },
	{ "register", NULL, "", "enrol this host with a vault", 0, 0, register_host,
	  OPTS(OPT("key", "FILE", "registration key made by the vault; - reads it from stdin",
		 .required = true),
	       OPT("host", "NAME", "name of this host [the machine's own]"),
	       OPT_STATE_DIR, OPT_CONTROL) },
	{ "group", "create", "NAME", "make a consistency group", 1, 1, group_create,
	  OPTS(OPT("recipient", "CERT.pem", "certificate whose private key can restore; may be repeated",
		 .repeat = true, .required = true),
	       OPT("ring-size", "SIZE", "memory for writes not yet shipped, 1M to 4G [64M]"),
	       OPT("compression", "LEVEL", "zstd level, 0 (off) to 19 [asrd's own]"), OPT_CONTROL) },
	{ "group", "join", "NAME", "put this host into a group of others that admits it", 1, 1, group_join,
	  OPTS(OPT("recipient", "CERT.pem", "certificate whose private key can restore; may be repeated",
		 .repeat = true, .required = true),
	       OPT("ring-size", "SIZE", "memory for writes not yet shipped, 1M to 4G [64M]"),
	       OPT("compression", "LEVEL", "zstd level, 0 (off) to 19 [asrd's own]"), OPT_CONTROL) },
	{ "group", "admit", "NAME", "let another host join", 1, 1, group_admit,
	  OPTS(OPT("host", "HOST", "its name at the vault, or its id", .required = true), OPT_CONTROL) },
	{ "group", "evict", "NAME", "take another host out", 1, 1, group_evict,
	  OPTS(OPT("host", "HOST", "its name at the vault, or its id", .required = true), OPT_CONTROL) },
	{ "group", "interval", "NAME TIME", "how often all hosts make a point: 100ms to 1h, or 0: never", 2, 2,
	  group_interval,
	  OPTS(OPT("hold", "TIME", "how long one may withhold completions: 1ms to 1s [as it is; at first 50ms]"),
	       OPT_CONTROL) },
	{ "group", "list", "", "the groups of this host", 0, 0, group_list, OPTS(OPT_CONTROL) },
	{ "group", "show", "NAME", "one group, all of it", 1, 1, group_show, OPTS(OPT_CONTROL) },
	{ "group", "mark", "NAME", "name this moment, to be restored by that name", 1, 1, group_mark,
	  OPTS(OPT("name", "MARK", "name of the moment [its kind and the time]"),
	       OPT("consistency", "KIND", "crash, or app: applications and file systems are made quiet [crash]"),
	       OPT("freeze", "PLACE", "with app: only the file system mounted there; may be repeated [all]",
		   .repeat = true),
	       OPT("no-freeze", NULL, "with app: scripts only"),
	       OPT("script", "FILE", "with app: called with freeze, then thaw; may be repeated", .repeat = true),
	       OPT("timeout", "SECONDS", "with app: of each script, and of all that is frozen [10]"), OPT_CONNECT,
	       OPT_CONTROL) },
	{ "group", "resync", "NAME", "compare with the vault again, or set how fast", 1, 1, group_resync,
	  OPTS(OPT("rate", "SIZE", "bytes to read in a second, as 50M; 0: no limit; kept"),
	       OPT("all", NULL, "all of its disks, not only what may differ"), OPT_CONTROL) },
	{ "group", "pause", "NAME", "stop resync; capture and shipping go on", 1, 1, group_pause,
	  OPTS(OPT_CONTROL) },
	{ "group", "resume", "NAME", "go on with resync", 1, 1, group_resume, OPTS(OPT_CONTROL) },
	{ "group", "verify", "NAME", "compare the disks in use with the vault's copy", 1, 1, group_verify,
	  OPTS(OPT("disk", "DISK", "this disk only"),
	       OPT("rate", "SIZE", "bytes to read in a second, as 50M [no limit]"),
	       OPT("settle", "SECONDS", "how long a difference must last to be one [35]"), OPT_CONTROL) },
	{ "group", "delete", "NAME", "take this host out of a group in which it protects no disk", 1, 1, group_delete,
	  OPTS(OPT_CONTROL) },
	{ "app", "serve", "", "make applications quiet when a mark of several hosts wants it", 0, 0, app_serve,
	  OPTS(OPT("longest", "SECONDS", "refuse marks whose --timeout is longer [60]"), OPT_CONTROL) },
	{ "disk", "protect", "DEVICE", "put a block device under protection, live", 1, 1, disk_protect,
	  OPTS(OPT("group", "NAME", "the group it joins", .required = true),
	       OPT("name", "DISK", "name of the disk in the group [the device's own]"),
	       OPT("meta", "DEVICE|FILE", "its write-intent log: a device of its own, or a file to be made"),
	       OPT("meta-size", "SIZE", "size of that file [1M]"),
	       OPT("yes", "NAME", "name of the log device: what it holds may be lost"),
	       OPT("no-wait", NULL, "do not wait for the initial copy"), OPT_STATE_DIR, OPT_CONTROL) },
	{ "disk", "unprotect", "DEVICE|DISK", "take a device out of protection, live", 1, 1,
	  disk_unprotect,
	  OPTS(OPT("forget", NULL, "a disk that is gone: only forget it"),
	       OPT("group", "NAME", "its group, with --forget"),
	       OPT_STATE_DIR, OPT_CONTROL) },
	{ "disk", "show", "DISK", "one disk, all of it: state, memory, log, what is remembered", 1, 1, disk_show,
	  OPTS(OPT("group", "NAME", "its group, if several have a disk of that name"), OPT_STATE_DIR, OPT_CONTROL) },
	{ "disk", "log show", "DEVICE", "a write-intent log, decoded", 1, 1, log_show, NULL },
	{ "disk", "log check", "DEVICE", "is it whole, and the one this host knows?", 1, 1, log_check,
	  OPTS(OPT_STATE_DIR) },
	{ "disk", "log format", "DEVICE", "make a disk's log anew: all of the disk is compared", 1, 1, log_format,
	  OPTS(OPT("group", "NAME", "group of the disk [as the log says]"),
	       OPT("disk", "DISK", "the disk [as the log says]"),
	       OPT("yes", "NAME", "name of the device: what it holds may be lost"), OPT_STATE_DIR) },
	{ "disk", "list", "", "the protected disks of this host", 0, 0, disk_list, OPTS(OPT_CONTROL) },
	{ "discover", NULL, "", "the virtual machines of this host, their disks, and what asr protects", 0, 0,
	  discover_run, OPTS(OPT_CONNECT) },
	{ "vm", "protect", "NAME", "put the disks of a virtual machine under protection, live", 1, 1, vm_protect,
	  OPTS(OPT("group", "NAME", "the group they join", .required = true),
	       OPT("exclude", "TARGET", "leave this disk out, as vdb; may be repeated", .repeat = true),
	       OPT("no-wait", NULL, "do not wait for the initial copy"), OPT_CONNECT, OPT_STATE_DIR, OPT_CONTROL) },
	{ "vm", "unprotect", "NAME", "take them out of protection, live", 1, 1, vm_unprotect,
	  OPTS(OPT_CONNECT, OPT_STATE_DIR, OPT_CONTROL) },
	{ "spool", "discard", "GROUP", "give up what is on disk and has not reached the vault", 1, 1,
	  spool_discard_run,
	  OPTS(OPT("yes", "GROUP", "the group's name again: it is meant"), OPT_CONTROL) },
	{ "status", NULL, "", "state, recovery point objective, ring, rates", 0, 0, status_show,
	  OPTS(OPT("watch", NULL, "go on showing it"),
	       OPT("interval", "SECONDS", "time between two showings [1]"),
	       OPT("count", "N", "end after so many showings"), OPT_CONTROL) },
	{ "point", "list", "GROUP", "the moments that can be restored", 1, 1, point_show,
	  OPTS(OPT_VAULT_DIR) },
	{ "point", "export", "GROUP", "the disks, as they were at a moment, over NBD, until it is ended", 1, 1,
	  point_export,
	  OPTS(OPT("point", "POINT", "latest, seq:N, time:RFC3339 or name:MARK; host: before it", .required = true),
	       OPT("key", "KEY.pem", "private key of a recipient of the group", .required = true),
	       OPT("disk", "[HOST/]DISK", "only this disk [all]"),
	       OPT("cert", "CERT.pem", "that recipient's certificate [tries all]"),
	       OPT("passphrase-file", "FILE", "file with the passphrase of the private key"),
	       OPT("writable", NULL, "takes writes, too, and forgets them at its end"),
	       OPT("socket", "PATH", "Unix socket to make [one in a folder of its own]"),
	       OPT("cache", "SIZE", "memory for opened frames of each disk [64M]"), OPT_VAULT_DIR) },
	{ "restore", NULL, "GROUP", "write a disk, as it was at a moment, to a file", 1, 1, restore_run,
	  OPTS(OPT("disk", "[HOST/]DISK", "which disk of the group", .required = true),
	       OPT("point", "POINT", "latest, seq:N, time:RFC3339 or name:MARK; host: before it", .required = true),
	       OPT("key", "KEY.pem", "private key of a recipient of the group", .required = true),
	       OPT("cert", "CERT.pem", "that recipient's certificate [tries all]"),
	       OPT("passphrase-file", "FILE", "file with the passphrase of the private key"),
	       OPT("to", "FILE", "the image: a new, sparse, raw file", .required = true),
	       OPT_VAULT_DIR) },
	{ "boot", NULL, "", "protect again what was protected before", 0, 0, boot_run,
	  OPTS(OPT("wait", "SECONDS", "how long devices may be in coming [0]"),
	       OPT("root", NULL, "only the root disk; state cannot be written: in the initramfs"),
	       OPT("save", "DIR", "only copy to a folder what a boot needs to know"), OPT_STATE_DIR) },
	{ "completion", NULL, "bash", "a completion script for that shell", 1, 1, complete_bash, NULL },
	{ .noun = NULL }
};

/* --------------------------------------------------------------- arguments */

const char *arg_nth(const struct args *a, const char *name, unsigned int n)
{
	for (unsigned int i = 0; i < a->given_count; i++)
		if (!strcmp(a->given[i].opt->name, name) && !n--)
			return a->given[i].value;
	return NULL;
}

const char *arg_value(const struct args *a, const char *name, const char *fallback)
{
	const char *value = arg_nth(a, name, 0);

	return value ? value : fallback;
}

bool arg_given(const struct args *a, const char *name)
{
	return arg_nth(a, name, 0);
}

/* ------------------------------------------------------------------- help */

static void help_opts(const struct opt *opts)
{
	char left[64];

	for (const struct opt *o = opts; o && o->name; o++) {
		snprintf(left, sizeof(left), "--%s%s%s", o->name, o->arg ? " " : "", o->arg ? o->arg : "");
		printf("  %-28s %s%s\n", left, o->help, o->required ? " (required)" : "");
	}
}

static char *command_words(const struct command *c, char *buf, size_t bytes)
{
	snprintf(buf, bytes, "%s%s%s", c->noun, c->verb ? " " : "", c->verb ? c->verb : "");
	return buf;
}

static void help_command(const struct command *c)
{
	char words[64];

	printf("usage: asrctl %s%s%s [options]\n\n%s\n\noptions:\n", command_words(c, words, sizeof(words)),
	       *c->usage ? " " : "", c->usage, c->help);
	help_opts(c->opts);
	help_opts(common_opts);
}

/* All commands, or those that begin with the words of prefix */
static void help_list(const char *prefix)
{
	char words[64], left[96];

	printf("usage: asrctl %sCOMMAND [options]\n\ncommands:\n", prefix);
	for (const struct command *c = commands; c->noun; c++) {
		command_words(c, words, sizeof(words));
		if (strncmp(words, prefix, strlen(prefix)))
			continue;
		snprintf(left, sizeof(left), "%s %s", words, c->usage);
		printf("  %-28s %s\n", left, c->help);
	}
	printf("\n`asrctl COMMAND --help` lists the options of a command; "
	       "`asrctl --version` shows the version.\n");
}

/* -------------------------------------------------- mistyped, and the like */

static size_t distance(const char *a, const char *b)
{
	size_t n = strlen(b), row[64], diagonal, above;

	if (strlen(a) >= 64 || n >= 64)
		return 64;
	for (size_t j = 0; j <= n; j++)
		row[j] = j;
	for (size_t i = 1; a[i - 1]; i++) {
		diagonal = row[0];
		row[0] = i;
		for (size_t j = 1; j <= n; j++) {
			size_t best = diagonal + (a[i - 1] != b[j - 1]);

			above = row[j];
			if (above + 1 < best)
				best = above + 1;
			if (row[j - 1] + 1 < best)
				best = row[j - 1] + 1;
			diagonal = above;
			row[j] = best;
		}
	}
	return row[n];
}

struct nearest {
	const char *word;
	char best[64];
	size_t distance;
};

static void nearest_try(struct nearest *n, const char *candidate)
{
	size_t d = distance(n->word, candidate);

	if (d >= n->distance || d > 1 + strlen(candidate) / 3)
		return;
	n->distance = d;
	snprintf(n->best, sizeof(n->best), "%s", candidate);
}

static int usage(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
static int usage(const char *fmt, ...)
{
	va_list ap;

	fputs("asrctl: ", stderr);
	va_start(ap, fmt);
	vfprintf(stderr, fmt, ap);
	va_end(ap);
	fputc('\n', stderr);
	return EXIT_USAGE;
}

/* given: what of words was understood; the next word was not */
static int unknown_command(const char *given, const char *word)
{
	struct nearest n = { .word = word, .distance = 64 };
	size_t len = strlen(given);
	char words[64], next[64];

	for (const struct command *c = commands; c->noun; c++) {
		command_words(c, words, sizeof(words));
		if (strncmp(words, given, len))
			continue;
		snprintf(next, sizeof(next), "%.*s", (int)strcspn(words + len, " "), words + len);
		nearest_try(&n, next);
	}
	if (n.distance < 64)
		return usage("there is no command \"%s%s\"; did you mean \"%s%s\"?", given, word, given, n.best);
	return usage("there is no command \"%s%s\"; `asrctl --help` lists them", given, word);
}

static int unknown_option(const struct command *c, const char *name)
{
	struct nearest n = { .word = name, .distance = 64 };
	char words[64];

	for (const struct opt *o = c->opts; o && o->name; o++)
		nearest_try(&n, o->name);
	for (const struct opt *o = common_opts; o->name; o++)
		nearest_try(&n, o->name);
	command_words(c, words, sizeof(words));
	if (n.distance < 64)
		return usage("%s has no option --%s; did you mean --%s?", words, name, n.best);
	return usage("%s has no option --%s; `asrctl %s --help` lists them", words, name, words);
}

/* ---------------------------------------------------------------- parsing */

static const struct opt *find_opt(const struct opt *opts, const char *name, size_t len)
{
	for (const struct opt *o = opts; o && o->name; o++)
		if (strlen(o->name) == len && !memcmp(o->name, name, len))
			return o;
	return NULL;
}

static int take_option(struct args *a, const struct opt *o, const char *value, bool has_value)
{
	if (!o->arg && has_value)
		return usage("--%s takes no value", o->name);
	if (o->arg && (!value || !*value))
		return usage("--%s wants a value: %s", o->name, o->arg);
	if (!o->repeat && arg_given(a, o->name))
		return usage("--%s is given twice", o->name);
	if (a->given_count == ARGS_MAX)
		return usage("too many options");
	if (!strcmp(o->name, "output")) {
		a->json = !strcmp(value, "json");
		if (!a->json && strcmp(value, "table"))
			return usage("--output is table or json, not \"%s\"", value);
	}
	a->given[a->given_count].opt = o;
	a->given[a->given_count++].value = o->arg ? value : "";
	return 0;
}

/* One option that begins at argv[*i]; moves *i over its value. */
static int parse_option(struct args *a, int argc, char **argv, int *i)
{
	const char *word = argv[*i], *name = word + 2, *value;
	const struct opt *o;
	size_t len;

	if (word[1] != '-') {
		name = word[1] == 'o' ? "output" : word[1] == 'h' ? "help" : NULL;
		if (!name || (word[1] == 'h' && word[2]))
			return usage("there is no option %s; `asrctl --help` tells more", word);
		value = word[2] ? word + 2 : NULL;
	} else {
		value = strchr(word, '=');
	}
	len = word[1] == '-' && value ? (size_t)(value - name) : strlen(name);
	if (word[1] == '-' && value)
		value++;
	o = find_opt(a->command->opts, name, len);
	if (!o)
		o = find_opt(common_opts, name, len);
	if (!o) {
		char text[64];

		snprintf(text, sizeof(text), "%.*s", (int)len, name);
		return unknown_option(a->command, text);
	}
	if (o->arg && !value && *i + 1 < argc)
		return take_option(a, o, argv[++*i], true);
	return take_option(a, o, value, value);
}

static int parse_rest(struct args *a, int argc, char **argv)
{
	const struct command *c = a->command;
	char words[64];
	bool plain = false;
	int err;

	command_words(c, words, sizeof(words));
	for (int i = 0; i < argc; i++) {
		if (!plain && !strcmp(argv[i], "--")) {
			plain = true;
		} else if (!plain && argv[i][0] == '-' && argv[i][1]) {
			err = parse_option(a, argc, argv, &i);
			if (err)
				return err;
		} else if (a->word_count == c->words_max) {
			return usage("%s: \"%s\" is one word too many; usage: asrctl %s %s [options]",
				     words, argv[i], words, c->usage);
		} else {
			a->words[a->word_count++] = argv[i];
		}
	}
	if (arg_given(a, "help"))
		return 0;
	if (a->word_count < c->words_min)
		return usage("%s: %s is missing; usage: asrctl %s %s [options]",
			     words, c->usage, words, c->usage);
	for (const struct opt *o = c->opts; o && o->name; o++)
		if (o->required && !arg_given(a, o->name))
			return usage("%s: --%s %s is missing (%s)", words, o->name, o->arg, o->help);
	return 0;
}

/* The command whose words argv begins with; *used: how many those are */
static const struct command *find_command(int argc, char **argv, int *used)
{
	char words[64], given[64] = "";
	size_t n = 0;

	for (*used = 1; *used <= argc && *used <= 3; ++*used) {
		n += snprintf(given + n, sizeof(given) - n, "%s%s", n ? " " : "", argv[*used - 1]);
		if (n >= sizeof(given))
			return NULL;
		for (const struct command *c = commands; c->noun; c++)
			if (!strcmp(command_words(c, words, sizeof(words)), given))
				return c;
	}
	return NULL;
}

/* No command has these words: help when asked for, else what is wrong. */
static int no_command(int argc, char **argv)
{
	char given[64] = "", words[64];

	for (int i = 0; i < argc; i++) {
		size_t n = strlen(given);
		bool known = false;

		if (!strcmp(argv[i], "--help") || !strcmp(argv[i], "-h") || (!i && !strcmp(argv[i], "help"))) {
			help_list(given);
			return 0;
		}
		if (argv[i][0] == '-')
			return usage("\"%s\" stands before the command is complete; "
				     "`asrctl %s--help` lists what there is", argv[i], given);
		snprintf(given + n, sizeof(given) - n, "%s ", argv[i]);
		for (const struct command *c = commands; c->noun && !known; c++)
			known = !strncmp(command_words(c, words, sizeof(words)), given, strlen(given));
		if (!known) {
			given[n] = 0;
			return unknown_command(given, argv[i]);
		}
	}
	return usage("%sis not yet a command; `asrctl %s--help` lists what there is",
		     *given ? given : "nothing ", given);
}

static int fail(const struct args *a, int err, const struct why *why)
{
	const char *text = *why->text ? why->text : strerror(-err);
	cleanup_json message = NULL;

	if (a->json) {
		message = json_pack("{s:s}", "error", text);
		out_json(message);
	}
	fflush(stdout);
	fprintf(stderr, "asrctl: %s\n", text);
	return EXIT_FAILED;
}

int main(int argc, char **argv)
{
	struct args a = {0};
	struct why why = {0};
	int used, err;

	log_init("asrctl", LOG_LVL_WARN);
	/* a peer that goes away is an error to be told, not a death */
	signal(SIGPIPE, SIG_IGN);
	argc--;
	argv++;
	if (argc == 1 && !strcmp(argv[0], "--version")) {
		printf("asrctl %s\n", ASR_VERSION);
		return 0;
	}
	a.command = find_command(argc, argv, &used);
	if (!a.command)
		return no_command(argc, argv);
	err = parse_rest(&a, argc - used, argv + used);
	if (err)
		return err;
	if (arg_given(&a, "help")) {
		help_command(a.command);
		return 0;
	}
	err = a.command->run(&a, &why);
	if (err < 0)
		return fail(&a, err, &why) + (a.command->run == group_verify || a.command->run == vault_check);
	if (err > 0)
		return err;
	if (fflush(stdout) || ferror(stdout))
		return usage("cannot write the output: %s", strerror(errno)) ? EXIT_FAILED : 0;
	return 0;
}
