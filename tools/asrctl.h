/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The plan of asrctl: one table of commands, from which parsing, --help,
 * errors for unknown words, and bash completion come.
 */
#ifndef ASRCTL_H
#define ASRCTL_H

#include "../userland/asr.h"

/* Exit status: 0 done, 1 failed, 2 wrong usage. */
#define EXIT_FAILED	1
#define EXIT_USAGE	2

struct opt {
	const char *name;		/* without the dashes */
	const char *arg;		/* what follows it, for the help; NULL: nothing */
	const char *help;
	bool repeat;			/* may be given several times */
	bool required;
};

struct args;
struct command {
	const char *noun;
	const char *verb;		/* NULL: the noun alone is the command */
	const char *usage;		/* positional words, for the help */
	const char *help;		/* one line */
	unsigned int words_min, words_max;
	int (*run)(const struct args *a, struct why *why);	/* 0 or -errno with why */
	const struct opt *opts;		/* ends with a NULL name; may be NULL */
};

#define ARGS_MAX	64
struct args {
	const struct command *command;
	bool json;
	const char *words[4];
	unsigned int word_count;
	struct { const struct opt *opt; const char *value; } given[ARGS_MAX];
	unsigned int given_count;
};

extern const struct command commands[];		/* ends with a NULL noun */
extern const struct opt common_opts[];

/* Value of an option, fallback when it was not given; "" for one without argument */
const char *arg_value(const struct args *a, const char *name, const char *fallback);
bool arg_given(const struct args *a, const char *name);
/* The nth value of a repeated option, NULL beyond the last */
const char *arg_nth(const struct args *a, const char *name, unsigned int n);

/* ------------------------------------------------------------- complete.c */

int complete_bash(const struct args *a, struct why *why);

/* ------------------------------------------------------------------ out.c */

enum col_kind { COL_TEXT, COL_INT, COL_BYTES, COL_RATE, COL_SECONDS, COL_RATIO, COL_YESNO };
struct col {
	const char *title;
	const char *key;		/* of the row; "a.b" looks inside a */
	enum col_kind kind;
};
void out_json(const json_t *value);				/* indented */
void out_json_line(const json_t *value);
void out_table(const json_t *rows, const struct col *cols, size_t count, const char *when_empty);
char *out_bytes(uint64_t bytes, char buf[24]);			/* "1.5 GiB" */
/* A bar that overwrites itself on a terminal, else a line each tenth. */
struct progress {
	const char *label;
	uint64_t start_ns, shown_ns;
	unsigned int shown_tenth;
	bool quiet, shown;
};
void progress_begin(struct progress *p, const char *label, bool quiet);
void progress_show(struct progress *p, uint64_t done, uint64_t total, uint64_t bytes_per_s);
void progress_end(struct progress *p);

/* --------------------------------------------------------------- daemon.c */

/* One call to asrd, one answer. Steals parameters; *answer is the caller's. */
int daemon_call(const struct args *a, const char *method, json_t *parameters, json_t **answer,
		struct why *why);
/* SIGINT and SIGTERM from now on only set what this returns. */
bool interrupted(void);
void interrupt_catch(void);

/* ------------------------------------------------------------------- dm.c */

struct dm_target {
	uint64_t start, length;		/* sectors */
	char *type;
	char *params;
};
#define DM_NAME_BYTES	128
struct dm_device {
	char name[DM_NAME_BYTES];
	char uuid[DM_NAME_BYTES + 8];
	uint32_t major, minor;
	int32_t open_count;
	bool suspended, read_only, inactive;	/* inactive: a second table waits */
	struct dm_target *targets;
	size_t count;
	uint64_t sectors;
};
/* Every dm call: 0 or -errno with why. name: without a path. */
int dm_read(const char *name, struct dm_device *d, struct why *why);	/* -ENXIO: none such */
void dm_forget(struct dm_device *d);		/* frees, and wipes: tables hold keys */
int dm_name_of(uint32_t major, uint32_t minor, char *name, size_t bytes);	/* -ENXIO: not dm */
int dm_names(char ***names, size_t *count, struct why *why);
int dm_have_target(const char *type);		/* 1, 0 or -errno */
int dm_create(const char *name, const char *uuid, const struct dm_device *table, struct dm_device *made,
	      struct why *why);
int dm_load(const char *name, const struct dm_device *table, struct why *why);
int dm_clear(const char *name, struct why *why);		/* drops a loaded table */
int dm_resume(const char *name, struct why *why);	/* swaps a loaded table in */
int dm_remove(const char *name, struct why *why);	/* deferred when somebody has it open */
/* The parameters of an asr table line, in their places: device offset group disk */
struct dm_asr {
	uint32_t major, minor;		/* of the lower device */
	char group[ASR_NAME_BYTES], disk[ASR_NAME_BYTES];
};
bool dm_asr_parse(const struct dm_device *d, struct dm_asr *asr);

/* ------------------------------------------------- one file for each noun */

int vault_init(const struct args *a, struct why *why);
int vault_key_create(const struct args *a, struct why *why);
int vault_key_list(const struct args *a, struct why *why);
int vault_key_revoke(const struct args *a, struct why *why);
int vault_status(const struct args *a, struct why *why);
int register_host(const struct args *a, struct why *why);
int group_create(const struct args *a, struct why *why);
int group_list(const struct args *a, struct why *why);
int group_show(const struct args *a, struct why *why);
int group_mark(const struct args *a, struct why *why);
int group_delete(const struct args *a, struct why *why);
int disk_protect(const struct args *a, struct why *why);
int disk_unprotect(const struct args *a, struct why *why);
int disk_list(const struct args *a, struct why *why);
int status_show(const struct args *a, struct why *why);
int point_show(const struct args *a, struct why *why);
int restore_run(const struct args *a, struct why *why);

#endif /* ASRCTL_H */
