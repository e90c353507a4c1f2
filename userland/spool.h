/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the files of a group's spool share; source.h is their contract.
 *
 *   spool.c       the whole: its state, its files, its life
 *   spoolwrite.c  frames into files, and these to the disk
 *   spoolread.c   frames out of files
 *   spoolscan.c   what another process left there
 *   spoolfile.c   the formats; pure, and not of this company
 */
#ifndef ASR_SPOOL_H
#define ASR_SPOOL_H

#include "source.h"

#define SPOOL_BUFS		4
#define SPOOL_BUF_BYTES	(512u << 10)
#define SPOOL_READ_BYTES	(512u << 10)
#define SPOOL_FRAME_MOST	SPOOL_PADDED(PACK_BYTES_MAX)

_Static_assert(SPOOL_FRAME_MOST < SPOOL_BUF_BYTES && SPOOL_FRAME_MOST < SPOOL_READ_BYTES, "a frame fits");

enum spool_state { SPOOL_WELL, SPOOL_FULL, SPOOL_FAILED, SPOOL_REFUSED, SPOOL_OFF };

struct spool_file {
	struct spool_file *next;
	uint64_t no;			/* of its first frame; its name */
	uint64_t bytes, synced;		/* written well; of that, durable */
	uint64_t first_seq, last_seq, first_time_ns;
	int fd;				/* for writing; -1 */
	unsigned int bufs;		/* that are not written yet */
	bool ended, syncing, gone;
};

enum spool_buf_state { IDLE, FILLING, WRITING, WRITTEN };

struct spool_buf {
	struct spool *s;
	enum spool_buf_state state;
	struct loop_op op;
	struct spool_file *file;
	uint8_t *data;
	uint64_t off;
	uint32_t bytes, done;
	struct spool_chain chain;	/* behind it */
	uint64_t last_seq, ring_end;
	unsigned int attachment;
};

struct spool {
	struct loop *loop;
	char *dir;			/* the group's own folder */
	uint64_t max, file_bytes;
	struct spool_owner owner;
	struct spool_ops ops;
	void *arg;
	bool closing, trying, failing;
	enum spool_state state;
	char reason[400];
	uint64_t retry_ns;
	struct spool_file *files;		/* oldest first */
	uint64_t total;			/* bytes in files, and on their way there */
	uint64_t last_seq;		/* of the last record written */
	struct spool_chain good;	/* behind the last frame written */

	struct pack pack;		/* of the file being written */
	struct spool_file *out;		/* NULL: the next frame begins a file */
	uint64_t out_off, looked_off;
	struct spool_buf bufs[SPOOL_BUFS];		/* first .. first + count: in order */
	unsigned int first, count;
	int error;			/* of the first write that failed */
	struct loop_op sync;
	struct spool_file *sync_file;
	uint64_t sync_bytes;

	struct spool_file *in;		/* being read; NULL: from the first one on */
	int in_fd;
	uint64_t in_off;		/* loaded up to here */
	uint64_t in_passed;		/* bytes in files that are behind the reader */
	uint64_t in_time_ns;
	uint32_t have, pos, frame;	/* in the buffer: loaded, read, bytes of the frame at pos or 0 */
	bool stale;			/* the read under way is of no use any more */
	int in_error;
	struct loop_op read;
	struct spool_chain in_chain;
	struct frame_view view;
	uint8_t *in_buf, *plain;
	struct seal *seal;
	uint8_t seal_session[ASR_UUID_BYTES];
};

/* spool.c */
__attribute__((format(printf, 3, 4)))
void spool_set_state(struct spool *s, enum spool_state state, const char *fmt, ...);
int spool_space(struct spool *s, uint64_t more, struct why *why);	/* -ENOSPC with why */
char *spool_path(const struct spool *s, uint64_t no);
struct spool_file *spool_first(const struct spool *s);
struct spool_file *spool_append(struct spool *s, uint64_t no);
void spool_remove(struct spool *s, struct spool_file *f);	/* from the list, not from the disk */
void spool_unlink(struct spool *s, struct spool_file *f);
/* The numbers of all files, in order: how many, or -errno. -ENOENT: there is no folder */
int spool_list(const struct spool *s, uint64_t **out);

/* spoolwrite.c */
bool spool_writing(const struct spool *s);
void spool_end_file(struct spool *s);
void spool_drop_filling(struct spool *s);	/* what has not gone down yet */

/* spoolread.c */
int spool_need_reader(struct spool *s);
int spool_enter(struct spool *s, struct spool_file *f, struct why *why);
/* The frame at the reader, opened: 1; 0: this file has no more; -EAGAIN: more of it must be read */
int spool_look(struct spool *s, struct why *why);
void spool_close_in(struct spool *s);
size_t spool_shift(struct spool *s);	/* makes room to read: how many bytes are wanted */

#endif /* ASR_SPOOL_H */
