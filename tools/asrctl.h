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
	int (*run)(const struct args *a, struct why *why);	/* 0, exit status, or -errno with why */
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
void out_tree(const json_t *object);			/* name: value, deeper by two blanks */
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
int daemon_call_long(const struct args *a, const char *method, json_t *parameters, json_t **answer,
		     struct why *why);	/* it may take minutes: asrd says now and then that it goes on */
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
int dm_resume(const char *name, struct why *why);	/* swaps a loaded table in */
int dm_remove(const char *name, struct why *why);	/* deferred when somebody has it open */
int dm_message(const char *name, const char *text, struct why *why);	/* to its first target */
int dm_ask(const char *name, const char *text, char *answer, size_t bytes, struct why *why);
/* The parameters of an asr table line, in their places: device offset group disk [#opts ... log device] */
struct dm_asr {
	uint32_t major, minor;		/* of the lower device */
	char group[ASR_NAME_BYTES], disk[ASR_NAME_BYTES];
	uint32_t log_major, log_minor;	/* 0:0: it has no log */
};
bool dm_asr_parse(const struct dm_device *d, struct dm_asr *asr);
/* All asr devices, each to fn; non-zero ends the walk and is returned. */
int dm_each_asr(int (*fn)(const struct dm_device *d, const struct dm_asr *asr, void *arg), void *arg,
		struct why *why);
struct dm_search {
	const char *group;		/* NULL: any */
	const char *disk;
	unsigned int found;		/* so many; the last of them: */
	char name[DM_NAME_BYTES];
	struct dm_asr asr;
};
int dm_find_asr(struct dm_search *s, struct why *why);
int dm_find_uuid(const char *uuid, char name[DM_NAME_BYTES]);	/* -ENXIO: none */

/* ------------------------------------------------------------------ use.c */

/* "mounted on /x", "part of /dev/mapper/y", "swap": who has the device or a partition of it */
void use_of(uint32_t major, uint32_t minor, char *out, size_t bytes);
/* where: there only; NULL: anywhere */
bool use_mounted_on(uint32_t major, uint32_t minor, const char *where, char *out, size_t bytes);
/* The block device that it is, or that its file system is on; 0: none */
dev_t use_device_of(const char *path);
/* The device and all that it lies on, each to fn; non-zero ends the walk and is returned */
typedef int use_fn(uint32_t major, uint32_t minor, void *arg);
int use_below(uint32_t major, uint32_t minor, use_fn *fn, void *arg);
bool use_lies_on(uint32_t major, uint32_t minor, uint32_t on_major, uint32_t on_minor);
#define USE_UNKNOWN	UINT64_MAX
uint64_t use_written(const char *device, uint32_t major, uint32_t minor);	/* sectors, since the device is there */

/* --------------------------------------------------------------- insert.c */

/* What an asr table line says */
struct asr_line {
	const char *group, *disk;
	uint32_t log_major, log_minor;	/* 0:0: no log */
};
/* May asr slide under this dm device? *x is the caller's then; origin: DM_NAME_BYTES */
int insert_check(const char *name, struct dm_device *x, char *origin, struct why *why);
int insert_possible(const struct dm_device *x, struct why *why);	/* the same, by its table alone: only looks */
int insert_dm(const struct dm_device *x, const char *origin, const struct asr_line *line, struct why *why);
/* A device that is not dm becomes /dev/mapper/asr-DISK. line NULL: only looks whether it could */
int insert_plain(const char *device, uint32_t major, uint32_t minor, const struct asr_line *line, struct why *why);
int insert_undo(const struct dm_device *x, const struct dm_asr *asr, struct why *why);

/* ----------------------------------------------------------------- meta.c */

/* What a log is for, and what may be overwritten */
struct log_for {
	const char *group, *disk;
	const char *yes;		/* name of the device that may be overwritten; NULL: none */
	uint64_t sectors;		/* of the disk */
	uint32_t major, minor;		/* of the disk, if it is there */
	uint64_t generation, seq_high;	/* the new log goes on from there */
	const uint8_t *uuid;		/* the one it had; NULL: none */
};
/* Where a log is */
struct log_at {
	char path[512];			/* the device */
	char file[512];			/* behind the loop device; empty: no file */
	uint32_t major, minor;
	struct logdev l;
	bool made, attached;		/* the file, the loop device: by us, just now */
};
/* meta: a block device, or a file (which is made when it is not there); size: of the file, NULL: default */
int log_make(const char *meta, const char *size, const struct log_for *f, struct log_at *at, struct why *why);
void log_undo(const struct log_at *at);
void log_detach(const char *path);
/* What remember.c has of a log: wherever it is now. -ENOENT: nowhere */
int log_find(json_t *log, const char *group, const char *disk, struct log_at *at, struct why *why);
int log_open(const char *path, struct logdev *l, struct why *why);
int log_advice(struct why *why, const char *reason, const struct log_at *at, const char *group, const char *disk);
json_t *log_describe(const struct log_at *at);		/* for remember.c */
void log_stable(const char *path, char *out, size_t bytes);	/* a name that outlives a reboot */

/* --------------------------------------------------------- boot.c, mirror.c */

#define RUN_DIR		ASR_BOOT_DIR
#define BOOT_DIR	"/etc/asr/boot"		/* what a boot needs to know */
const char *boot_state_dir(const struct args *a);
/* Waits; whoever changes what is remembered or inserted has it. Its file is the caller's to close; -1: as without */
int boot_lock(void);
void boot_modprobe(const char *module);
bool boot_key(json_t *disk, char key[256]);	/* what the udev rule calls its device */
void boot_release(json_t *disk, bool protected);	/* udev may show it */
void boot_log_for(json_t *disk, struct log_for *f);	/* all but the names */
uint64_t boot_seq(const char *state_dir, const char *group);
/* After bring-up: the log's generation is noted */
void boot_note(const char *state_dir, const char *group, json_t *disk, const struct log_at *log);
int boot_save(const char *from, const char *to, bool root_only, struct why *why);
void boot_mirror(const char *state_dir);	/* BOOT_DIR is what the state folder says */
bool boot_is_root(const char *group, json_t *disk);

/* -------------------------------------------------------------- protect.c */

struct protect {
	const char *device;		/* as given */
	const char *group;
	const char *name;		/* of the disk; NULL: the device's own */
	json_t *vm;			/* whose disk it is, to be remembered; NULL: nobody's */
	char disk[ASR_NAME_BYTES];
	char dm[DM_NAME_BYTES];		/* its dm name; empty: it is none */
	char path[DM_NAME_BYTES + 16];	/* where the protected disk is, afterwards */
	char origin[DM_NAME_BYTES];
	struct dm_device x;
	uint32_t major, minor;
	uint64_t sectors;
	char state_dir[256];
	struct log_at log;		/* its path is empty: no log */
	json_t *record, *old;		/* what is remembered, and was before */
};
/* In this order; protect_drop() in the end. Where asrd knows the group, and the kernel the target: 0 */
int protect_group(const struct args *a, const char *group, struct why *why);
int protect_find(struct protect *p, struct why *why);	/* what device it is */
int protect_look(struct protect *p, struct why *why);	/* could it be? Nothing is changed */
int protect_insert(const struct args *a, struct protect *p, struct why *why);	/* undone if it fails */
void protect_drop(struct protect *p);
int protect_take_out(const char *state_dir, const struct dm_device *x, const struct dm_asr *asr, bool *was_root,
		     struct why *why);
void protect_end_log(json_t *log);
/* Until all of these, of one group, are copied: "done", "interrupted", "unknown": protection is on whichever it is */
const char *protect_wait(const struct args *a, const struct protect *p, unsigned int count);
void protect_say_copy(const char *copy);
void protect_state_dir(const struct args *a, char *out, size_t bytes);

/* -------------------------------------------------------------- freezer.c */

struct freezer;
/* What a thing takes to be frozen; each 0 or -errno with why. In the child, but for rescue */
struct freezer_kind {
	const char *ready_word;		/* what ready does, for messages */
	int (*ready)(struct freezer *f, struct why *why);	/* all that can be done before */
	int (*freeze)(struct freezer *f, struct why *why);
	int (*thaw)(struct freezer *f, struct why *why);	/* 0: it was frozen by us until now */
	void (*unsure)(struct freezer *f, uint64_t limit_ns);	/* freeze failed; NULL: then it is not frozen */
	int (*rescue)(struct freezer *f, uint64_t limit_ns, struct why *why);	/* the child was killed: thaws */
};
struct freezer {
	const struct freezer_kind *kind;
	char what[1024];		/* its name, for messages */
	void *of;			/* the kind's own */
	int fd;				/* likewise */
	int sock;			/* to the child; -1: none was started */
	pid_t child;
	bool frozen;
};
/* In this order; end: a time of now_ns() */
int freezer_start(struct freezer *f, uint64_t limit_ns, struct why *why);
int freezer_ready(struct freezer *f, uint64_t end, struct why *why);
int freezer_begin(struct freezer *f, struct why *why);
int freezer_frozen(struct freezer *f, uint64_t end, struct why *why);
void freezer_release(struct freezer *f);
int freezer_thawed(struct freezer *f, uint64_t limit_ns, struct why *why);	/* 0: it was frozen until now */

/* ---------------------------------------------------------------- guest.c */

/* The running virtual machines with a disk for which is_disk says so, into to[room]; in each, of is the caller's */
int guests_find(const struct args *a, uint64_t limit_ns, use_fn *is_disk, void *arg, struct freezer *to,
		unsigned int room, unsigned int *count, struct why *why);

/* ---------------------------------------------------------------- quiet.c */

#define QUIET_SECONDS	"10"		/* unless it is said */
int quiet_seconds(const char *text, unsigned int *seconds, struct why *why);
/* A mark while this host's applications are quiet */
struct quiet_for {
	const char *group, *name;
	uint64_t number;		/* asrd's, of one of several hosts */
	unsigned int seconds;		/* of each script, and of all that is frozen */
	/* The mark itself: its name in the stream, and its id as text. NULL: the kernel makes it, of this host */
	int (*mark)(const struct quiet_for *f, char whole[ASR_NAME_BYTES], char *id, size_t bytes, struct why *why);
	const struct args *args;
};
/* *answer, unless f->mark: {id, seq, time_ns, consistency, frozen, domains, frozen_ns} */
int quiet_run(const struct args *a, const struct quiet_for *f, json_t **answer, struct why *why);

/* ------------------------------------------------- one file for each noun */

int vault_init(const struct args *a, struct why *why);
int vault_key_create(const struct args *a, struct why *why);
int vault_key_list(const struct args *a, struct why *why);
int vault_key_revoke(const struct args *a, struct why *why);
int vault_host_list(const struct args *a, struct why *why);
int vault_host_revoke(const struct args *a, struct why *why);
int vault_status(const struct args *a, struct why *why);
int register_host(const struct args *a, struct why *why);
int group_create(const struct args *a, struct why *why);
int group_join(const struct args *a, struct why *why);
int group_admit(const struct args *a, struct why *why);
int group_evict(const struct args *a, struct why *why);
int group_interval(const struct args *a, struct why *why);
int group_list(const struct args *a, struct why *why);
int group_show(const struct args *a, struct why *why);
int group_mark(const struct args *a, struct why *why);
int group_delete(const struct args *a, struct why *why);
int group_resync(const struct args *a, struct why *why);
int group_pause(const struct args *a, struct why *why);
int group_resume(const struct args *a, struct why *why);
int group_verify(const struct args *a, struct why *why);	/* 1: they differ */
/* --rate: bytes a second; 0: none is wanted */
int rate_read(const struct args *a, uint64_t *bytes, struct why *why);
int app_serve(const struct args *a, struct why *why);
int disk_protect(const struct args *a, struct why *why);
int disk_unprotect(const struct args *a, struct why *why);
int disk_list(const struct args *a, struct why *why);
int disk_show(const struct args *a, struct why *why);
int discover_run(const struct args *a, struct why *why);
int vm_protect(const struct args *a, struct why *why);
int vm_unprotect(const struct args *a, struct why *why);
int log_show(const struct args *a, struct why *why);
int log_check(const struct args *a, struct why *why);
int log_format(const struct args *a, struct why *why);
int boot_run(const struct args *a, struct why *why);
int spool_discard_run(const struct args *a, struct why *why);
int status_show(const struct args *a, struct why *why);
int point_show(const struct args *a, struct why *why);
int point_export(const struct args *a, struct why *why);
/* What --key, --cert and --passphrase-file name, read into secret memory; NULL: not given */
struct recipient {
	char *key, *cert, *passphrase;
};
int recipient_read(const struct args *a, struct recipient *r, struct why *why);
void recipient_free(struct recipient *r);
int vault_check(const struct args *a, struct why *why);	/* 1: there is damage */
int restore_run(const struct args *a, struct why *why);

#endif /* ASRCTL_H */
