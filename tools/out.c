// SPDX-License-Identifier: Apache-2.0
/*
 * What asrctl shows: JSON, tables made from it, and progress.
 *
 * Design. Every command has its answer as JSON first; a table is a view of it
 * (columns name keys). So -o json can never show less than the table does.
 * Progress goes to stderr, so that stdout is the answer alone.
 */
#include "asrctl.h"

#include <string.h>
#include <unistd.h>

#define CELL	80
#define COLS	16

void out_json(const json_t *value)
{
	json_dumpf(value, stdout, JSON_INDENT(2) | JSON_PRESERVE_ORDER | JSON_REAL_PRECISION(9));
	putchar('\n');
}

void out_json_line(const json_t *value)
{
	json_dumpf(value, stdout, JSON_COMPACT | JSON_PRESERVE_ORDER | JSON_REAL_PRECISION(9));
	putchar('\n');
	fflush(stdout);
}

char *out_bytes(uint64_t bytes, char buf[24])
{
	static const char *const units[] = { "B", "KiB", "MiB", "GiB", "TiB", "PiB" };
	double v = (double)bytes;
	size_t u = 0;

	for (; v >= 1024 && u < 5; u++)
		v /= 1024;
	snprintf(buf, 24, u && v < 100 ? "%.1f %s" : "%.0f %s", v, units[u]);
	return buf;
}

static json_t *lookup(const json_t *row, const char *key)
{
	const char *dot = strchr(key, '.');
	char first[64];

	if (!dot)
		return json_object_get(row, key);
	snprintf(first, sizeof(first), "%.*s", (int)(dot - key), key);
	return lookup(json_object_get(row, first), dot + 1);
}

static void cell(const json_t *v, enum col_kind kind, char *out)
{
	char text[24];

	if (json_is_string(v))
		snprintf(out, CELL, "%s", *json_string_value(v) ? json_string_value(v) : "-");
	else if (json_is_boolean(v))
		snprintf(out, CELL, "%s", json_is_true(v) ? "yes" : "no");
	else if (!json_is_number(v))
		snprintf(out, CELL, "-");
	else if (kind == COL_BYTES)
		snprintf(out, CELL, "%s", out_bytes((uint64_t)json_number_value(v), text));
	else if (kind == COL_RATE)
		snprintf(out, CELL, "%.1f", json_number_value(v) / 1e6);
	else if (kind == COL_SECONDS)
		snprintf(out, CELL, "%.3f", json_number_value(v));
	else if (kind == COL_RATIO)
		snprintf(out, CELL, "%.2f", json_number_value(v));
	else
		snprintf(out, CELL, "%lld", (long long)json_number_value(v));
}

static void put_line(char (*cells)[CELL], const size_t *widths, const bool *right, size_t count)
{
	for (size_t i = 0; i < count; i++) {
		bool last = i + 1 == count;

		if (right[i])
			printf("%*s", (int)widths[i], cells[i]);
		else
			printf("%-*s", last ? 0 : (int)widths[i], cells[i]);
		fputs(last ? "\n" : "  ", stdout);
	}
}

void out_table(const json_t *rows, const struct col *cols, size_t count, const char *when_empty)
{
	size_t n = json_array_size(rows), widths[COLS];
	char (*cells)[COLS][CELL];
	bool right[COLS];

	if (!n) {
		puts(when_empty);
		return;
	}
	cells = calloc(n + 1, sizeof(*cells));
	if (!cells || count > COLS)
		abort();
	for (size_t c = 0; c < count; c++) {
		snprintf(cells[0][c], CELL, "%s", cols[c].title);
		widths[c] = strlen(cells[0][c]);
		right[c] = cols[c].kind != COL_TEXT && cols[c].kind != COL_YESNO;
		for (size_t r = 0; r < n; r++) {
			cell(lookup(json_array_get(rows, r), cols[c].key), cols[c].kind, cells[r + 1][c]);
			if (strlen(cells[r + 1][c]) > widths[c])
				widths[c] = strlen(cells[r + 1][c]);
		}
	}
	for (size_t r = 0; r <= n; r++)
		put_line(cells[r], widths, right, count);
	free(cells);
}

/* --------------------------------------------------------------- progress */

void progress_begin(struct progress *p, const char *label, bool quiet)
{
	*p = (struct progress){ .label = label, .quiet = quiet, .start_ns = now_ns() };
}

static void put_bar(const struct progress *p, uint64_t done, uint64_t total, const char *tail)
{
	enum { WIDTH = 30 };
	int filled = total ? (int)((double)done / (double)total * WIDTH) : 0;
	char bar[WIDTH + 1];

	for (int i = 0; i < WIDTH; i++)
		bar[i] = i < filled ? '#' : '.';
	bar[WIDTH] = 0;
	fprintf(stderr, "\r\033[K%s [%s] %s", p->label, bar, tail);
}

/* bytes_per_s 0: worked out from the start */
void progress_show(struct progress *p, uint64_t done, uint64_t total, uint64_t bytes_per_s)
{
	unsigned int percent = total ? (unsigned int)((double)done / (double)total * 100) : 0;
	uint64_t now = now_ns(), left = total > done ? total - done : 0;
	char tail[160], b1[24], b2[24], b3[24];
	bool tty = isatty(STDERR_FILENO);
	double seconds = (double)(now - p->start_ns) / 1e9;

	if (p->quiet || (tty && p->shown && left && now - p->shown_ns < 100000000) ||
	    (!tty && p->shown && percent / 10 == p->shown_tenth))
		return;
	if (!bytes_per_s && seconds > 0)
		bytes_per_s = (uint64_t)((double)done / seconds);
	snprintf(tail, sizeof(tail), "%3u %%  %s of %s  %s/s  %llu s left", percent, out_bytes(done, b1),
		 out_bytes(total, b2), out_bytes(bytes_per_s, b3),
		 bytes_per_s ? (unsigned long long)((left + bytes_per_s - 1) / bytes_per_s) : 0ULL);
	if (tty)
		put_bar(p, done, total, tail);
	else
		fprintf(stderr, "%s: %s\n", p->label, tail);
	p->shown = true;
	p->shown_ns = now;
	p->shown_tenth = percent / 10;
}

void progress_end(struct progress *p)
{
	if (p->shown && isatty(STDERR_FILENO))
		fputc('\n', stderr);
	p->shown = false;
}

/* name: value, and what is inside deeper by two blanks */
static void put_tree(const char *key, json_t *v, int depth)
{
	const char *k;
	json_t *e;
	size_t i;

	printf("%*s%s:", 2 * depth, "", key);
	if (json_is_object(v)) {
		putchar('\n');
		json_object_foreach(v, k, e)
			put_tree(k, e, depth + 1);
	} else if (json_is_array(v)) {
		putchar('\n');
		json_array_foreach(v, i, e)
			put_tree("-", e, depth + 1);
	} else if (json_is_string(v)) {
		printf(" %s\n", json_string_value(v));
	} else {
		cleanup_free char *text = json_dumps(v, JSON_ENCODE_ANY | JSON_REAL_PRECISION(6));

		printf(" %s\n", text);
	}
}

void out_tree(const json_t *object)
{
	const char *k;
	json_t *e;

	json_object_foreach((json_t *)(uintptr_t)object, k, e)
		put_tree(k, e, 0);
}
