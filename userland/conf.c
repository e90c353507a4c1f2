// SPDX-License-Identifier: Apache-2.0
/*
 * Configuration files: INI with drop-ins, strict.
 *
 * Design: inih reads the lines; what is unknown or wrong is an error that
 * names file and line, for a setting that is silently ignored is worse than a
 * daemon that does not start. PATH is read first, then PATH.d/ *.conf in the
 * order of their names; later values win.
 *
 * Context: at start only.
 */
#include "asr.h"

#include <errno.h>
#include <fcntl.h>
#include <glob.h>
#include <string.h>

#include <ini.h>

struct reader {
	conf_fn *fn;
	void *arg;
	struct why why;
	int err;
};

static int on_line(void *user, const char *section, const char *key, const char *value)
{
	struct reader *r = user;

	if (r->err)	/* inih reads on after an error: the first one is told, with its line */
		return 0;
	r->err = r->fn(section, key, value, r->arg, &r->why);
	if (r->err == -ENOENT)
		why_set(&r->why, ENOENT, "unknown setting \"%s\" in section [%s]", key, section);
	return r->err == 0;
}

static int read_one(const char *path, bool must_exist, struct reader *r, struct why *why)
{
	cleanup_file FILE *f = fopen(path, "re");
	int line;

	if (!f && errno == ENOENT && !must_exist)
		return 0;
	if (!f)
		return why_set(why, errno, "cannot read %s: %s", path, strerror(errno));
	r->err = 0;
	snprintf(r->why.text, sizeof(r->why.text), "not a line of the form \"key = value\"");
	line = ini_parse_file(f, on_line, r);
	if (line)
		return why_set(why, EINVAL, "%s:%d: %.400s", path, line, r->why.text);
	return 0;
}

int conf_read(const char *path, bool must_exist, conf_fn *fn, void *arg, struct why *why)
{
	struct reader r = { .fn = fn, .arg = arg };
	cleanup_free char *pattern = NULL;
	glob_t g;
	int ret;

	ret = read_one(path, must_exist, &r, why);
	if (ret)
		return ret;
	if (asprintf(&pattern, "%s.d/*.conf", path) < 0) {
		pattern = NULL;
		return why_set(why, ENOMEM, "out of memory");
	}
	if (glob(pattern, 0, NULL, &g) != 0)
		return 0;
	for (size_t i = 0; i < g.gl_pathc && !ret; i++)
		ret = read_one(g.gl_pathv[i], true, &r, why);
	globfree(&g);
	return ret;
}
