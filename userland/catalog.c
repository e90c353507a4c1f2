// SPDX-License-Identifier: Apache-2.0
/*
 * The vault's catalogue: who may write. Registration keys, hosts, groups and
 * the audit trail, in SQLite.
 *
 * Design: only what cannot be derived from the groups' folders is in here; a
 * restore never opens it. The daemon and asrctl may have it open at once, so
 * every change is one transaction and waits for the other's lock. What was
 * answered is durable.
 *
 * Invariants: a secret is stored as its SHA-256 only. A registration key is
 * burnt in the transaction that records the certificate it was burnt for.
 *
 * Context: blocks on the file system, and up to BUSY_MS on another process;
 * called on set-up and enrolment, never per frame.
 */
#include "vault.h"

#include <errno.h>
#include <stdarg.h>
#include <string.h>
#include <sys/stat.h>

#include <sqlite3.h>

#define BUSY_MS		5000
#define SCHEMA_VERSION	3

struct catalog {
	sqlite3 *db;
	char *path;
	uint64_t version;	/* of the data, as others change it */
};

static const char schema[] =
	"BEGIN IMMEDIATE;"
	"CREATE TABLE reg_key(id TEXT PRIMARY KEY, secret_hash BLOB NOT NULL, created INTEGER NOT NULL,"
	" expires INTEGER NOT NULL, used INTEGER NOT NULL, revoked INTEGER NOT NULL, host_id TEXT NOT NULL);"
	"CREATE TABLE host(id TEXT PRIMARY KEY, name TEXT NOT NULL, serial TEXT NOT NULL,"
	" enrolled INTEGER NOT NULL, expires INTEGER NOT NULL);"
	"CREATE TABLE grp(uuid BLOB PRIMARY KEY, name TEXT NOT NULL, host_id TEXT NOT NULL,"
	" stream BLOB NOT NULL, generation INTEGER NOT NULL, created INTEGER NOT NULL, deleted INTEGER NOT NULL);"
	"CREATE UNIQUE INDEX grp_name ON grp(name) WHERE deleted = 0;"
	"CREATE TABLE audit(time INTEGER NOT NULL, who TEXT NOT NULL, what TEXT NOT NULL, detail TEXT NOT NULL);"
	"PRAGMA user_version = 1;"
	"COMMIT;";

/* Groups over several hosts. A member without a stream is one that may join. */
static const char schema_2[] =
	"BEGIN IMMEDIATE;"
	"ALTER TABLE grp ADD COLUMN epoch INTEGER NOT NULL DEFAULT 1;"
	"ALTER TABLE grp ADD COLUMN mark_ms INTEGER NOT NULL DEFAULT 1000;"
	"ALTER TABLE grp ADD COLUMN hold_ms INTEGER NOT NULL DEFAULT 50;"
	"CREATE TABLE member(grp BLOB NOT NULL, host_id TEXT NOT NULL, stream BLOB NOT NULL, joined INTEGER NOT NULL,"
	" gone INTEGER NOT NULL, PRIMARY KEY(grp, host_id, stream));"
	"INSERT INTO member SELECT uuid, host_id, stream, created, deleted FROM grp;"
	"PRAGMA user_version = 2;"
	"COMMIT;";

/* Certificates, each with its end; registration keys for one host only */
static const char schema_3[] =
	"BEGIN IMMEDIATE;"
	"ALTER TABLE reg_key ADD COLUMN for_host TEXT NOT NULL DEFAULT '';"
	"CREATE TABLE cert(serial TEXT PRIMARY KEY, host_id TEXT NOT NULL, issued INTEGER NOT NULL,"
	" expires INTEGER NOT NULL, revoked INTEGER NOT NULL);"
	"CREATE INDEX cert_host ON cert(host_id);"
	"INSERT OR IGNORE INTO cert SELECT serial, id, enrolled, expires, 0 FROM host;"
	"PRAGMA user_version = 3;"
	"COMMIT;";

static const char *const schemas[] = { NULL, schema, schema_2, schema_3 };

static int db_err(struct catalog *cat, struct why *why)
{
	int code = sqlite3_errcode(cat->db) & 0xff;
	int err = code == SQLITE_FULL ? ENOSPC : code == SQLITE_BUSY ? EBUSY :
		  code == SQLITE_READONLY || code == SQLITE_PERM ? EACCES : EIO;

	return why_set(why, err, "%s: %s", cat->path, sqlite3_errmsg(cat->db));
}

static int open_db(const char *dir, int flags, struct catalog **out, struct why *why)
{
	struct catalog *cat = calloc(1, sizeof(*cat));
	int ret;

	if (!cat || asprintf(&cat->path, "%s/vault.db", dir) < 0) {
		free(cat);
		return why_set(why, ENOMEM, "out of memory");
	}
	if (sqlite3_open_v2(cat->path, &cat->db, flags, NULL) != SQLITE_OK) {
		ret = db_err(cat, why);
		catalog_close(cat);
		return ret;
	}
	sqlite3_busy_timeout(cat->db, BUSY_MS);
	/* with less, a power cut may take back the last transaction: the journal comes back */
	if (sqlite3_exec(cat->db, "PRAGMA synchronous = EXTRA", NULL, NULL, NULL) != SQLITE_OK) {
		ret = db_err(cat, why);
		catalog_close(cat);
		return ret;
	}
	*out = cat;
	return 0;
}

int catalog_create(const char *dir, struct why *why)
{
	cleanup_free char *path = NULL;
	struct catalog *cat = NULL;
	struct stat st;
	mode_t mask;
	int ret;

	ret = dir_make(dir, 0700, why);
	if (ret)
		return ret;
	if (asprintf(&path, "%s/vault.db", dir) < 0)
		return why_set(why, ENOMEM, "out of memory");
	if (stat(path, &st) == 0)
		return why_set(why, EEXIST, "%s is a vault already", dir);
	mask = umask(077);
	ret = open_db(dir, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE, &cat, why);
	for (int v = 1; v <= SCHEMA_VERSION && !ret; v++)
		if (sqlite3_exec(cat->db, schemas[v], NULL, NULL, NULL) != SQLITE_OK)
			ret = db_err(cat, why);
	umask(mask);
	catalog_close(cat);
	if (ret)
		unlink(path);
	return ret;
}

static int version_of(struct catalog *cat, int *version, struct why *why)
{
	sqlite3_stmt *st = NULL;
	int ret = 0;

	if (sqlite3_prepare_v2(cat->db, "PRAGMA user_version", -1, &st, NULL) != SQLITE_OK ||
	    sqlite3_step(st) != SQLITE_ROW)
		ret = db_err(cat, why);
	else
		*version = sqlite3_column_int(st, 0);
	sqlite3_finalize(st);
	return ret;
}

/* By one version. Whoever opens it at the same time may be first */
static int upgrade(struct catalog *cat, int *version, struct why *why)
{
	int ret, to = *version + 1;

	if (sqlite3_exec(cat->db, schemas[to], NULL, NULL, NULL) == SQLITE_OK) {
		*version = to;
		return 0;
	}
	ret = db_err(cat, why);
	sqlite3_exec(cat->db, "ROLLBACK", NULL, NULL, NULL);
	return version_of(cat, version, NULL) || *version < to ? ret : 0;
}

int catalog_open(const char *dir, struct catalog **out, struct why *why)
{
	cleanup_free char *path = NULL;
	struct catalog *cat;
	int ret, version = 0;

	if (asprintf(&path, "%s/vault.db", dir) < 0)
		return why_set(why, ENOMEM, "out of memory");
	if (access(path, F_OK) < 0 && (errno == ENOENT || errno == ENOTDIR))
		return why_set(why, ENOENT, "%s is no vault (it has no vault.db): make one with "
			       "\"asrctl vault init %s\"", dir, dir);
	ret = open_db(dir, SQLITE_OPEN_READWRITE, &cat, why);
	if (ret)
		return ret;
	ret = version_of(cat, &version, why);
	while (!ret && version >= 1 && version < SCHEMA_VERSION)
		ret = upgrade(cat, &version, why);
	if (!ret && version != SCHEMA_VERSION)
		ret = why_set(why, EINVAL, "%s has version %d, this program knows %d", path, version,
			      SCHEMA_VERSION);
	if (ret)
		catalog_close(cat);
	else
		*out = cat;
	return ret;
}

void catalog_close(struct catalog *cat)
{
	if (!cat)
		return;
	sqlite3_close(cat->db);
	free(cat->path);
	free(cat);
}

/* ---------------------------------------------------------------- statements */

/* fmt, a letter per parameter: s text, i uint64_t, b bytes of 16, h bytes of 32 */
static int run(struct catalog *cat, struct why *why, sqlite3_stmt **out, const char *sql,
	       const char *fmt, ...)
{
	sqlite3_stmt *st;
	va_list ap;
	int ret;

	if (sqlite3_prepare_v2(cat->db, sql, -1, &st, NULL) != SQLITE_OK)
		return db_err(cat, why);
	va_start(ap, fmt);
	for (int i = 1; *fmt; fmt++, i++) {
		if (*fmt == 's')
			sqlite3_bind_text(st, i, va_arg(ap, const char *), -1, SQLITE_TRANSIENT);
		else if (*fmt == 'i')
			sqlite3_bind_int64(st, i, (sqlite3_int64)va_arg(ap, uint64_t));
		else
			sqlite3_bind_blob(st, i, va_arg(ap, const uint8_t *), *fmt == 'h' ? 32 : 16,
					  SQLITE_TRANSIENT);
	}
	va_end(ap);
	if (out) {
		*out = st;
		return 0;
	}
	ret = sqlite3_step(st);
	if ((ret & 0xff) == SQLITE_CONSTRAINT)
		ret = -EEXIST;
	else
		ret = ret == SQLITE_DONE || ret == SQLITE_ROW ? 0 : db_err(cat, why);
	sqlite3_finalize(st);
	return ret;
}

/* The end of what BEGIN began: all of it, or with an error nothing */
static int commit(struct catalog *cat, int ret, struct why *why)
{
	if (!ret)
		ret = run(cat, why, NULL, "COMMIT", "");
	if (ret)
		run(cat, NULL, NULL, "ROLLBACK", "");
	return ret;
}

/* 1: a row, 0: none left */
static int step(struct catalog *cat, sqlite3_stmt *st, struct why *why)
{
	int ret = sqlite3_step(st);

	return ret == SQLITE_ROW ? 1 : ret == SQLITE_DONE ? 0 : db_err(cat, why);
}

static void text(sqlite3_stmt *st, int col, char *out, size_t bytes)
{
	const char *t = (const char *)sqlite3_column_text(st, col);

	snprintf(out, bytes, "%s", t ? t : "");
}

static void blob(sqlite3_stmt *st, int col, uint8_t *out, size_t bytes)
{
	const void *p = sqlite3_column_blob(st, col);

	memset(out, 0, bytes);
	if (p && (size_t)sqlite3_column_bytes(st, col) == bytes)
		memcpy(out, p, bytes);
}

static uint64_t number(sqlite3_stmt *st, int col)
{
	return (uint64_t)sqlite3_column_int64(st, col);
}

/* --------------------------------------------------------- registration keys */

#define KEY_COLUMNS	"id, secret_hash, created, expires, used, revoked, host_id, for_host"

static void key_row(sqlite3_stmt *st, struct catalog_key *k)
{
	text(st, 0, k->id, sizeof(k->id));
	blob(st, 1, k->secret_hash, sizeof(k->secret_hash));
	k->created_ns = number(st, 2);
	k->expires_ns = number(st, 3);
	k->used_ns = number(st, 4);
	k->revoked_ns = number(st, 5);
	text(st, 6, k->host_id, sizeof(k->host_id));
	text(st, 7, k->for_host, sizeof(k->for_host));
}

int catalog_key_add(struct catalog *cat, const struct catalog_key *k, struct why *why)
{
	int ret = run(cat, why, NULL, "INSERT INTO reg_key(" KEY_COLUMNS ") VALUES(?,?,?,?,0,0,'',?)",
		      "shiis", k->id, k->secret_hash, k->created_ns, k->expires_ns, k->for_host);

	return ret == -EEXIST ? why_set(why, EEXIST, "there is a registration key %s already", k->id) : ret;
}

int catalog_key_get(struct catalog *cat, const char *id, struct catalog_key *k, struct why *why)
{
	sqlite3_stmt *st;
	int ret = run(cat, why, &st, "SELECT " KEY_COLUMNS " FROM reg_key WHERE id = ?", "s", id);

	if (ret)
		return ret;
	ret = step(cat, st, why);
	if (ret > 0)
		key_row(st, k);
	sqlite3_finalize(st);
	return ret > 0 ? 0 : ret ? ret : why_set(why, ENOENT, "this vault knows no registration key %.40s", id);
}

int catalog_keys(struct catalog *cat, int (*each)(const struct catalog_key *k, void *arg),
		 void *arg, struct why *why)
{
	struct catalog_key k;
	sqlite3_stmt *st;
	int ret = run(cat, why, &st, "SELECT " KEY_COLUMNS " FROM reg_key ORDER BY created", "");

	if (ret)
		return ret;
	while ((ret = step(cat, st, why)) > 0) {
		key_row(st, &k);
		ret = each(&k, arg);
		if (ret)
			break;
	}
	sqlite3_finalize(st);
	return ret;
}

int catalog_key_revoke(struct catalog *cat, const char *id, struct why *why)
{
	struct catalog_key k;
	int ret = catalog_key_get(cat, id, &k, why);

	if (ret)
		return ret;
	if (k.used_ns)
		return why_set(why, EALREADY, "registration key %s has been used by host %s: there is "
			       "nothing left to revoke", k.id, k.host_id);
	return run(cat, why, NULL, "UPDATE reg_key SET revoked = ? WHERE id = ? AND revoked = 0", "is",
		   now_real_ns(), id);
}

static int key_usable(const struct catalog_key *k, uint64_t now, struct why *why)
{
	char when[40];

	if (k->revoked_ns)
		return why_set(why, EKEYREVOKED, "registration key %s was revoked at %s", k->id,
			       time_format(k->revoked_ns, when));
	if (k->used_ns)
		return why_set(why, EALREADY, "registration key %s was used at %s; a key enrols one host, "
			       "make another", k->id, time_format(k->used_ns, when));
	if (k->expires_ns <= now)
		return why_set(why, EKEYEXPIRED, "registration key %s expired at %s; make another", k->id,
			       time_format(k->expires_ns, when));
	return 0;
}

int catalog_enrol(struct catalog *cat, const char *key_id, uint64_t now,
		  const struct catalog_host *h, const char *shown, struct why *why)
{
	struct catalog_key k;
	int ret = run(cat, why, NULL, "BEGIN IMMEDIATE", "");

	if (ret)
		return ret;
	ret = catalog_key_get(cat, key_id, &k, why);
	if (!ret)
		ret = key_usable(&k, now, why);
	if (!ret && !*k.for_host && *shown) {
		ret = catalog_cert_check(cat, h->id, shown, why);
		/* the catalogue was lost: its CA vouches for it */
		ret = ret == -ENOENT ? 0 : ret == -EKEYREVOKED ? -EKEYREJECTED : ret;
	}
	if (!ret)
		ret = run(cat, why, NULL, "UPDATE reg_key SET used = ?, host_id = ? WHERE id = ?", "iss",
			  now, h->id, key_id);
	if (!ret)
		ret = run(cat, why, NULL, "INSERT OR REPLACE INTO host(id, name, serial, enrolled, expires) "
			  "VALUES(?,?,?,?,?)", "sssii", h->id, h->name, h->serial, h->enrolled_ns, h->expires_ns);
	if (!ret)
		ret = run(cat, why, NULL, "INSERT INTO cert VALUES(?,?,?,?,0)", "ssii", h->serial, h->id,
			  h->enrolled_ns, h->expires_ns);
	return commit(cat, ret, why);
}

/* --------------------------------------------------------------------- hosts */

#define HOST_COLUMNS	"id, name, serial, enrolled, expires, coalesce((SELECT CASE WHEN min(revoked) " \
			"THEN max(revoked) END FROM cert WHERE host_id = host.id), 0)"

static void host_row(sqlite3_stmt *st, struct catalog_host *h)
{
	text(st, 0, h->id, sizeof(h->id));
	text(st, 1, h->name, sizeof(h->name));
	text(st, 2, h->serial, sizeof(h->serial));
	h->enrolled_ns = number(st, 3);
	h->expires_ns = number(st, 4);
	h->revoked_ns = number(st, 5);
}

int catalog_host_find(struct catalog *cat, const char *name, struct catalog_host *h, struct why *why)
{
	sqlite3_stmt *st;
	int ret = run(cat, why, &st, "SELECT " HOST_COLUMNS " FROM host WHERE id = ? OR name = ? "
		      "ORDER BY id = ? DESC", "sss", name, name, name);

	if (ret)
		return ret;
	ret = step(cat, st, why);
	if (ret > 0) {
		host_row(st, h);
		ret = strcmp(h->id, name) ? step(cat, st, why) : 0;
		ret = !ret ? 1 : ret < 0 ? ret :
		      why_set(why, EINVAL, "this vault knows several hosts %.64s: give the id", name);
	}
	sqlite3_finalize(st);
	return ret > 0 ? 0 : ret ? ret : why_set(why, ENOENT, "this vault knows no host %.64s", name);
}

int catalog_host_get(struct catalog *cat, const char *id, struct catalog_host *h, struct why *why)
{
	sqlite3_stmt *st;
	int ret = run(cat, why, &st, "SELECT " HOST_COLUMNS " FROM host WHERE id = ?", "s", id);

	if (ret)
		return ret;
	ret = step(cat, st, why);
	if (ret > 0)
		host_row(st, h);
	sqlite3_finalize(st);
	return ret > 0 ? 0 : ret ? ret : why_set(why, ENOENT, "this vault knows no host %.40s", id);
}

int catalog_hosts(struct catalog *cat, int (*each)(const struct catalog_host *h, void *arg),
		  void *arg, struct why *why)
{
	struct catalog_host h;
	sqlite3_stmt *st;
	int ret = run(cat, why, &st, "SELECT " HOST_COLUMNS " FROM host ORDER BY name", "");

	if (ret)
		return ret;
	while ((ret = step(cat, st, why)) > 0) {
		host_row(st, &h);
		ret = each(&h, arg);
		if (ret)
			break;
	}
	sqlite3_finalize(st);
	return ret;
}

int catalog_host_revoke(struct catalog *cat, const char *id, struct why *why)
{
	uint64_t now = now_real_ns();
	int ret = run(cat, why, NULL, "BEGIN IMMEDIATE", ""), certs;

	if (ret)
		return ret;
	/* an older daemon may have issued it since the upgrade */
	ret = run(cat, why, NULL, "INSERT OR IGNORE INTO cert SELECT serial, id, enrolled, expires, 0 FROM host "
		  "WHERE id = ?", "s", id);
	if (!ret)
		ret = run(cat, why, NULL, "UPDATE cert SET revoked = ? WHERE host_id = ? AND revoked = 0", "is",
			  now, id);
	certs = ret ? 0 : sqlite3_changes(cat->db);
	if (!ret)
		ret = run(cat, why, NULL, "UPDATE reg_key SET revoked = ? WHERE for_host = ? AND used = 0 "
			  "AND revoked = 0", "is", now, id);
	certs += ret ? 0 : sqlite3_changes(cat->db);
	ret = commit(cat, ret, why);
	return ret || certs ? ret : -EALREADY;
}

int catalog_cert_check(struct catalog *cat, const char *host_id, const char *serial, struct why *why)
{
	char name[ASR_NAME_BYTES], newest[sizeof(((struct catalog_host *)0)->serial)], of[CATALOG_ID_BYTES], when[40];
	sqlite3_stmt *st;
	uint64_t revoked;
	int ret = run(cat, why, &st, "SELECT host.name, host.serial, cert.host_id, cert.revoked FROM host "
		      "LEFT JOIN cert ON cert.serial = ? WHERE host.id = ?", "ss", serial, host_id);

	if (ret)
		return ret;
	ret = step(cat, st, why);
	if (ret > 0) {
		text(st, 0, name, sizeof(name));
		text(st, 1, newest, sizeof(newest));
		text(st, 2, of, sizeof(of));
		revoked = number(st, 3);
	}
	sqlite3_finalize(st);
	if (ret <= 0)
		return ret ? ret : why_set(why, ENOENT, "this vault knows no host %.40s", host_id);
	if (*of ? strcmp(of, host_id) : strcmp(newest, serial))
		return why_set(why, EKEYREJECTED, "this vault knows no such certificate of host %s: asrctl register "
			       "with a key that is made with `asrctl vault key create --host %s`", name, name);
	if (revoked)
		return why_set(why, EKEYREVOKED, "the certificate of host %s was revoked at %s: asrctl register with a "
			       "key that is made with `asrctl vault key create --host %s`", name,
			       time_format(revoked, when), name);
	return 0;
}

json_t *catalog_certs(struct catalog *cat, const char *host_id)
{
	json_t *list = json_array();
	char serial[sizeof(((struct catalog_host *)0)->serial)];
	sqlite3_stmt *st;
	int ret = run(cat, NULL, &st, "SELECT serial FROM cert WHERE host_id = ?1 AND revoked = 0 "
		      "AND expires > ?2 UNION SELECT serial FROM host WHERE id = ?1 AND serial NOT IN "
		      "(SELECT serial FROM cert)", "si", host_id, now_real_ns());

	if (ret) {
		json_decref(list);
		return NULL;
	}
	while ((ret = step(cat, st, NULL)) > 0) {
		text(st, 0, serial, sizeof(serial));
		json_array_append_new(list, json_string(serial));
	}
	sqlite3_finalize(st);
	if (!ret)
		return list;
	json_decref(list);
	return NULL;
}

void catalog_patience(struct catalog *cat, bool patient)
{
	sqlite3_busy_timeout(cat->db, patient ? BUSY_MS : 0);
}

bool catalog_changed(struct catalog *cat)
{
	sqlite3_stmt *st;
	uint64_t version = 0;

	if (run(cat, NULL, &st, "PRAGMA data_version", ""))
		return true;
	if (step(cat, st, NULL) > 0)
		version = number(st, 0);
	sqlite3_finalize(st);
	if (version == cat->version)
		return false;
	cat->version = version;
	return true;
}

/* -------------------------------------------------------------------- groups */

#define GROUP_COLUMNS	"uuid, name, host_id, stream, generation, created, deleted, epoch, mark_ms, hold_ms"

static void group_row(sqlite3_stmt *st, struct catalog_group *g)
{
	blob(st, 0, g->uuid, sizeof(g->uuid));
	text(st, 1, g->name, sizeof(g->name));
	text(st, 2, g->host_id, sizeof(g->host_id));
	blob(st, 3, g->stream, sizeof(g->stream));
	g->generation = number(st, 4);
	g->created_ns = number(st, 5);
	g->deleted_ns = number(st, 6);
	g->epoch = number(st, 7);
	g->mark_ms = number(st, 8);
	g->hold_ms = number(st, 9);
}

int catalog_group_add(struct catalog *cat, const struct catalog_group *g, struct why *why)
{
	int ret = run(cat, why, NULL, "BEGIN IMMEDIATE", "");

	if (ret)
		return ret;
	ret = run(cat, why, NULL, "INSERT INTO grp(" GROUP_COLUMNS ") VALUES(?,?,?,?,?,?,0,?,?,?)", "bssbiiiii",
		  g->uuid, g->name, g->host_id, g->stream, g->generation, g->created_ns, g->epoch, g->mark_ms,
		  g->hold_ms);
	if (!ret)
		ret = run(cat, why, NULL, "INSERT INTO member VALUES(?,?,?,?,0)", "bsbi", g->uuid, g->host_id,
			  g->stream, g->created_ns);
	ret = commit(cat, ret, why);
	return ret == -EEXIST ? why_set(why, EEXIST, "the vault has another group \"%s\"", g->name) : ret;
}

int catalog_group_find(struct catalog *cat, const char *name, struct catalog_group *g, struct why *why)
{
	sqlite3_stmt *st;
	int ret = run(cat, why, &st, "SELECT " GROUP_COLUMNS " FROM grp WHERE name = ? AND deleted = 0", "s", name);

	if (ret)
		return ret;
	ret = step(cat, st, why);
	if (ret > 0)
		group_row(st, g);
	sqlite3_finalize(st);
	return ret > 0 ? 0 : ret ? ret : why_set(why, ENOENT, "this vault has no group %.64s", name);
}

int catalog_group_get(struct catalog *cat, const uint8_t uuid[ASR_UUID_BYTES],
		      struct catalog_group *g, struct why *why)
{
	sqlite3_stmt *st;
	int ret = run(cat, why, &st, "SELECT " GROUP_COLUMNS " FROM grp WHERE uuid = ?", "b", uuid);

	if (ret)
		return ret;
	ret = step(cat, st, why);
	if (ret > 0)
		group_row(st, g);
	sqlite3_finalize(st);
	return ret > 0 ? 0 : ret ? ret : why_set(why, ENOENT, "this vault has no such group");
}

int catalog_groups(struct catalog *cat, int (*each)(const struct catalog_group *g, void *arg),
		   void *arg, struct why *why)
{
	struct catalog_group g;
	sqlite3_stmt *st;
	int ret = run(cat, why, &st, "SELECT " GROUP_COLUMNS " FROM grp ORDER BY name, created", "");

	if (ret)
		return ret;
	while ((ret = step(cat, st, why)) > 0) {
		group_row(st, &g);
		ret = each(&g, arg);
		if (ret)
			break;
	}
	sqlite3_finalize(st);
	return ret;
}

int catalog_sound(struct catalog *cat, struct why *why)
{
	sqlite3_stmt *st;
	int ret = run(cat, why, &st, "PRAGMA integrity_check(1)", "");

	if (ret)
		return ret;
	ret = step(cat, st, why);
	if (ret > 0)
		ret = strcmp((const char *)sqlite3_column_text(st, 0), "ok") ?
		      why_set(why, EBADMSG, "%s is damaged: %.300s", cat->path, sqlite3_column_text(st, 0)) : 0;
	sqlite3_finalize(st);
	return ret;
}

int catalog_group_delete(struct catalog *cat, const uint8_t uuid[ASR_UUID_BYTES], struct why *why)
{
	return run(cat, why, NULL, "UPDATE grp SET deleted = ? WHERE uuid = ? AND deleted = 0", "ib",
		   now_real_ns(), uuid);
}

int catalog_group_marks(struct catalog *cat, const uint8_t uuid[ASR_UUID_BYTES], uint64_t mark_ms, uint64_t hold_ms,
			struct why *why)
{
	return run(cat, why, NULL, "UPDATE grp SET mark_ms = ?, hold_ms = ? WHERE uuid = ?", "iib", mark_ms, hold_ms,
		   uuid);
}

/* ------------------------------------------------------------------- members */

int catalog_members(struct catalog *cat, const uint8_t group[ASR_UUID_BYTES],
		    int (*each)(const struct catalog_member *m, void *arg), void *arg, struct why *why)
{
	struct catalog_member m;
	sqlite3_stmt *st;
	int ret = run(cat, why, &st, "SELECT host_id, host.name, stream, joined, gone FROM member "
		      "LEFT JOIN host ON host.id = host_id WHERE grp = ? ORDER BY host_id, joined", "b", group);

	if (ret)
		return ret;
	while ((ret = step(cat, st, why)) > 0) {
		text(st, 0, m.host_id, sizeof(m.host_id));
		text(st, 1, m.host, sizeof(m.host));
		blob(st, 2, m.stream, sizeof(m.stream));
		m.joined_ns = number(st, 3);
		m.gone_ns = number(st, 4);
		ret = each(&m, arg);
		if (ret)
			break;
	}
	sqlite3_finalize(st);
	return ret;
}

int catalog_member_admit(struct catalog *cat, const uint8_t group[ASR_UUID_BYTES], const char *host_id, struct why *why)
{
	static const uint8_t none[ASR_UUID_BYTES];

	return run(cat, why, NULL, "INSERT OR REPLACE INTO member VALUES(?,?,?,0,0)", "bsb", group, host_id, none);
}

int catalog_member_join(struct catalog *cat, const struct catalog_group *g, const struct catalog_member *m,
			struct why *why)
{
	static const uint8_t none[ASR_UUID_BYTES];
	int ret = run(cat, why, NULL, "BEGIN IMMEDIATE", "");

	if (ret)
		return ret;
	ret = run(cat, why, NULL, "DELETE FROM member WHERE grp = ? AND host_id = ? AND stream = ?", "bsb", g->uuid,
		  m->host_id, none);
	if (!ret && !sqlite3_changes(cat->db))
		ret = why_set(why, EACCES, "group %s does not admit this host (any more)", g->name);
	if (!ret)
		ret = run(cat, why, NULL, "INSERT INTO member VALUES(?,?,?,?,0)", "bsbi", g->uuid, m->host_id,
			  m->stream, m->joined_ns);
	if (!ret)
		ret = run(cat, why, NULL, "UPDATE grp SET epoch = ? WHERE uuid = ?", "ib", g->epoch, g->uuid);
	return commit(cat, ret, why);
}

int catalog_member_leave(struct catalog *cat, const struct catalog_group *g, const char *host_id, struct why *why)
{
	int ret = run(cat, why, NULL, "BEGIN IMMEDIATE", "");

	if (ret)
		return ret;
	ret = run(cat, why, NULL, "UPDATE member SET gone = ? WHERE grp = ? AND host_id = ? AND gone = 0", "ibs",
		  now_real_ns(), g->uuid, host_id);
	if (!ret)
		ret = run(cat, why, NULL, "UPDATE grp SET epoch = ?, deleted = ? WHERE uuid = ?", "iib", g->epoch,
			  g->deleted_ns, g->uuid);
	return commit(cat, ret, why);
}

int catalog_member_refuse(struct catalog *cat, const uint8_t group[ASR_UUID_BYTES], const char *host_id,
			  struct why *why)
{
	static const uint8_t none[ASR_UUID_BYTES];
	int ret = run(cat, why, NULL, "DELETE FROM member WHERE grp = ? AND host_id = ? AND stream = ?", "bsb", group,
		      host_id, none);

	return ret || sqlite3_changes(cat->db) ? ret : -ENOENT;
}

int catalog_member_first(struct catalog *cat, const struct catalog_group *g, struct why *why)
{
	return run(cat, why, NULL, "INSERT OR IGNORE INTO member VALUES(?,?,?,?,0)", "bsbi", g->uuid, g->host_id,
		   g->stream, g->created_ns);
}

void catalog_audit(struct catalog *cat, const char *who, const char *what, const char *detail)
{
	struct why why;

	if (run(cat, &why, NULL, "INSERT INTO audit(time, who, what, detail) VALUES(?,?,?,?)", "isss",
		now_real_ns(), who, what, detail))
		log_err("audit: %s %s %s: %s", who, what, detail, why.text);
}
