/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Cleanup attributes: a variable that owns something gives it back when its
 * scope ends. steal() hands it on instead.
 */
#ifndef ASR_CLEANUP_H
#define ASR_CLEANUP_H

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static inline void cleanup_free_(void *p) { free(*(void **)p); }
static inline void cleanup_fd_(int *fd) { if (*fd >= 0) close(*fd); }
static inline void cleanup_file_(FILE **f) { if (*f) fclose(*f); }

#define cleanup_free	__attribute__((cleanup(cleanup_free_)))
#define cleanup_fd	__attribute__((cleanup(cleanup_fd_)))
#define cleanup_file	__attribute__((cleanup(cleanup_file_)))
#define cleanup_json	json_auto_t *

#define steal_ptr(p)	({ __typeof__(p) steal_ = (p); (p) = NULL; steal_; })
#define steal_fd(fd)	({ int steal_ = (fd); (fd) = -1; steal_; })

#endif /* ASR_CLEANUP_H */
