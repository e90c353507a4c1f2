// SPDX-License-Identifier: Apache-2.0
/*
 * What hosts may ask the vault about groups (userland/groupcall.c): who may join, with what, who is told what; and
 * that catalogue and folder agree, whatever was interrupted between them.
 */
#include "vault.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>
#include <sys/stat.h>
#include <cmocka.h>

#include <sqlite3.h>

static char dir[64];
static struct catalog *cat;
static const char *code;
static struct why why;

static void enrol(const char *id, const char *name)
{
	struct catalog_key k = { .created_ns = 1, .expires_ns = UINT64_MAX / 4 };
	struct catalog_host h = { .enrolled_ns = 1, .expires_ns = UINT64_MAX / 4 };

	snprintf(k.id, sizeof(k.id), "key-%s", id);
	snprintf(h.id, sizeof(h.id), "%s", id);
	snprintf(h.name, sizeof(h.name), "%s", name);
	snprintf(h.serial, sizeof(h.serial), "5E-%s", id);
	assert_int_equal(catalog_key_add(cat, &k, &why), 0);
	assert_int_equal(catalog_enrol(cat, k.id, 2, &h, "", &why), 0);
}

static int setup(void **state)
{
	strcpy(dir, "/tmp/groupcall.XXXXXX");
	assert_non_null(mkdtemp(dir));
	assert_int_equal(rmdir(dir), 0);
	assert_int_equal(catalog_create(dir, &why), 0);
	assert_int_equal(catalog_open(dir, &cat, &why), 0);
	enrol("a", "host-a");
	enrol("b", "host-b");
	enrol("c", "host-c");
	return 0;
}

static int teardown(void **state)
{
	char cmd[100];

	catalog_close(cat);
	snprintf(cmd, sizeof(cmd), "rm -rf %s", dir);
	return system(cmd);
}

#define U	"11111111111111111111111111111111"
#define S(c)	c c c c c c c c c c c c c c c c c c c c c c c c c c c c c c c c

/* The answer, or NULL with code */
static json_t *ask(const char *host, const char *method, json_t *p)
{
	const struct groupcall c = { cat, dir, host };
	json_t *answer;

	code = "";
	why.text[0] = 0;
	answer = groupcall(&c, method, p, &code, &why);
	json_decref(p);
	return answer;
}

static bool done(const char *host, const char *method, json_t *p)
{
	json_t *answer = ask(host, method, p);

	json_decref(answer);
	return answer;
}

static bool create(const char *host, const char *stream)
{
	return done(host, "group.create", json_pack("{s:s, s:s, s:s, s:s, s:[s]}", "group", U, "name", "g", "stream",
						    stream, "wrapped_key", "AAAA", "recipients", "who"));
}

static bool join(const char *host, const char *stream)
{
	return done(host, "group.join", json_pack("{s:s, s:s, s:s, s:s, s:[s]}", "group", U, "name", "g", "stream",
						  stream, "wrapped_key", "BBBB", "recipients", "who"));
}

static bool of(const char *host, const char *method, const char *other)
{
	return done(host, method, json_pack("{s:s, s:s}", "group", U, "host", other));
}

static bool opens(const char *host, const char *stream)
{
	const struct groupcall c = { cat, dir, host };
	json_t *p = json_pack("{s:s, s:s, s:i}", "group", U, "stream", stream, "generation", 1);
	struct catalog_group g;
	uint8_t uuid[ASR_UUID_BYTES];
	bool ok;

	ok = !groupcall_stream(&c, p, &g, uuid, &code, &why);
	json_decref(p);
	return ok;
}

static json_t *folder(void)
{
	char path[128];
	json_t *root;

	snprintf(path, sizeof(path), "%s/groups/" U "/group.json", dir);
	root = json_load_file(path, 0, NULL);
	assert_non_null(root);
	return root;
}

/* Streams of the newest epoch in the folder, and its number */
static size_t newest(json_int_t *epoch)
{
	json_t *root = folder(), *epochs = json_object_get(root, "epochs");
	json_t *e = json_array_get(epochs, json_array_size(epochs) - 1);
	size_t n = json_array_size(json_object_get(e, "streams"));

	*epoch = json_integer_value(json_object_get(e, "epoch"));
	json_decref(root);
	return n;
}

static void spoil(const char *sql)
{
	char path[128];
	sqlite3 *db;

	snprintf(path, sizeof(path), "%s/vault.db", dir);
	assert_int_equal(sqlite3_open(path, &db), SQLITE_OK);
	assert_int_equal(sqlite3_exec(db, sql, NULL, NULL, NULL), SQLITE_OK);
	sqlite3_close(db);
}

static void joined(void **state)
{
	json_int_t epoch;
	json_t *m;

	assert_true(create("a", S("1")));
	assert_true(create("a", S("1")));	/* its answer was lost */
	assert_false(create("b", S("2")));
	assert_string_equal(code, "not-allowed");
	assert_false(done("b", "group.find", json_pack("{s:s}", "name", "g")));
	assert_string_equal(code, "not-allowed");
	assert_false(join("b", S("2")));
	assert_false(of("b", "group.admit", "host-b"));
	assert_false(of("a", "group.admit", "host-x"));
	assert_string_equal(code, "unknown-host");
	assert_false(of("a", "group.admit", "host-a"));
	assert_true(of("a", "group.admit", "host-b"));
	assert_true(done("b", "group.find", json_pack("{s:s}", "name", "g")));
	assert_false(join("b", S("1")));	/* another one's stream */
	assert_string_equal(code, "bad-parameter");
	assert_false(join("b", S("0")));
	assert_true(join("b", S("2")));
	assert_true(join("b", S("2")));
	assert_false(join("b", S("3")));
	assert_int_equal(newest(&epoch), 2);
	assert_int_equal(epoch, 2);
	assert_true(opens("a", S("1")));
	assert_true(opens("b", S("2")));
	assert_false(opens("b", S("1")));
	assert_false(opens("c", S("2")));
	m = ask("b", "group.members", json_pack("{s:s}", "group", U));
	assert_int_equal(json_integer_value(json_object_get(m, "epoch")), 2);
	assert_int_equal(json_array_size(json_object_get(m, "members")), 2);
	assert_string_equal(json_string_value(json_object_get(m, "you")), "b");
	json_decref(m);
	assert_false(done("c", "group.members", json_pack("{s:s}", "group", U)));
	/* V5: failed over meanwhile */
	spoil("UPDATE grp SET generation = 2");
	assert_false(opens("a", S("1")));
	assert_string_equal(code, "fenced");
	spoil("UPDATE grp SET generation = 1");
	assert_false(done("a", "group.marks", json_pack("{s:s, s:i}", "group", U, "mark_ms", 99)));
	assert_true(done("b", "group.marks", json_pack("{s:s, s:i, s:i}", "group", U, "mark_ms", 0, "hold_ms", 1000)));
}

static void left(void **state)
{
	json_int_t epoch;
	json_t *root;

	assert_true(create("a", S("1")) && of("a", "group.admit", "host-b") && join("b", S("2")));
	assert_false(of("a", "group.evict", "host-c"));
	assert_true(of("a", "group.admit", "host-c"));
	assert_true(of("a", "group.evict", "c"));	/* admitted, and no longer */
	assert_false(join("c", S("3")));
	assert_false(of("a", "group.evict", "host-a"));
	assert_true(of("a", "group.evict", "host-b"));
	assert_int_equal(newest(&epoch), 1);
	assert_int_equal(epoch, 3);
	assert_false(opens("b", S("2")));
	/* it may come back, with a new stream only */
	assert_true(of("a", "group.admit", "host-b"));
	assert_false(join("b", S("2")));
	assert_true(join("b", S("4")));
	assert_int_equal(newest(&epoch), 2);
	assert_true(done("a", "group.delete", json_pack("{s:s}", "group", U)));
	assert_false(done("a", "group.delete", json_pack("{s:s}", "group", U)));
	assert_string_equal(code, "unknown-group");	/* asrd takes that for done */
	assert_true(opens("b", S("4")));
	assert_true(done("b", "group.delete", json_pack("{s:s}", "group", U)));
	assert_false(opens("b", S("4")));
	root = folder();
	assert_true(json_is_true(json_object_get(root, "deleted")));
	json_decref(root);
	assert_false(done("c", "group.find", json_pack("{s:s}", "name", "g")));
}

/* The catalogue takes no join, or a crash comes before it does: the folder is put right */
static void interrupted(void **state)
{
	json_int_t epoch;

	assert_true(create("a", S("1")) && of("a", "group.admit", "host-b"));
	spoil("CREATE TRIGGER no BEFORE UPDATE OF epoch ON grp BEGIN SELECT RAISE(FAIL, 'no'); END");
	assert_false(join("b", S("2")));
	assert_string_equal(code, "vault-failed");
	assert_int_equal(newest(&epoch), 1);	/* undone at once */
	assert_int_equal(epoch, 1);
	spoil("DROP TRIGGER no");
	assert_true(join("b", S("3")));		/* the host has made itself a new one */
	assert_int_equal(newest(&epoch), 2);
	assert_int_equal(epoch, 2);
	/* the catalogue as if a crash had come between it and the folder, once each way */
	spoil("DELETE FROM member WHERE host_id = 'b'");
	spoil("UPDATE grp SET epoch = 1");
	assert_true(opens("a", S("1")));
	assert_int_equal(newest(&epoch), 1);
	assert_int_equal(epoch, 1);
	assert_true(of("a", "group.admit", "host-b") && join("b", S("4")));
	spoil("UPDATE member SET gone = 5 WHERE host_id = 'b'");
	spoil("UPDATE grp SET epoch = 3");
	assert_true(opens("a", S("1")));
	assert_int_equal(newest(&epoch), 1);
	assert_int_equal(epoch, 3);
}

/* A vault of a first version, with a group and its history */
static void upgraded(void **state)
{
	static const char old[] = "{\"version\": 1, \"name\": \"g\", \"uuid\": \"" U "\", \"host\": \"a\", "
		"\"generation\": 1, \"streams\": [\"" S("1") "\"], \"recipients\": [\"who\"], "
		"\"created\": \"2026-01-02T03:04:05Z\", \"deleted\": false}";
	char path[200];
	json_int_t epoch;
	json_t *root, *first;
	struct stat st;

	snprintf(path, sizeof(path), "mkdir -p %s/groups/" U "/segments", dir);
	assert_int_equal(system(path), 0);
	snprintf(path, sizeof(path), "%s/groups/" U "/group.json", dir);
	assert_int_equal(file_write(path, 0600, old, strlen(old), &why), 0);
	snprintf(path, sizeof(path), "%s/groups/" U "/wrapped.key", dir);
	assert_int_equal(file_write(path, 0600, "key", 3, &why), 0);
	snprintf(path, sizeof(path), "%s/groups/" U "/segments/" S("1") "-0000000000000001.seg", dir);
	assert_int_equal(file_write(path, 0600, "x", 1, &why), 0);
	catalog_close(cat);
	spoil("INSERT INTO grp(uuid, name, host_id, stream, generation, created, deleted) VALUES(x'" U "', 'g', 'a', "
	      "x'" S("1") "', 1, 1767323045000000000, 0); DROP TABLE member; DROP TABLE cert; "
	      "ALTER TABLE reg_key DROP COLUMN for_host; ALTER TABLE grp DROP COLUMN epoch;"
	      "ALTER TABLE grp DROP COLUMN mark_ms; ALTER TABLE grp DROP COLUMN hold_ms; PRAGMA user_version = 1");
	assert_int_equal(catalog_open(dir, &cat, &why), 0);
	assert_int_equal(catalog_cert_check(cat, "a", "5E-a", &why), 0);
	assert_true(opens("a", S("1")));
	assert_true(create("a", S("1")));	/* a pending one asks again: its history keeps its key */
	snprintf(path, sizeof(path), "%s/groups/" U "/wrapped-" S("1") ".key", dir);
	assert_int_equal(stat(path, &st), -1);
	assert_true(of("a", "group.admit", "host-b") && join("b", S("2")));
	assert_int_equal(newest(&epoch), 2);
	assert_int_equal(epoch, 2);
	root = folder();
	first = json_array_get(json_object_get(root, "epochs"), 0);
	assert_int_equal(json_integer_value(json_object_get(first, "epoch")), 1);
	assert_int_equal(json_array_size(json_object_get(first, "streams")), 1);
	first = json_array_get(json_object_get(root, "members"), 0);
	assert_string_equal(json_string_value(json_object_get(first, "name")), "host-a");
	json_decref(root);
	/* a group that an older daemon has made since */
	spoil("DELETE FROM member");
	assert_true(opens("a", S("1")));
	assert_false(opens("b", S("2")));
}

static void hostile(void **state)
{
	char longest[600];

	memset(longest, 'x', sizeof(longest) - 1);
	longest[sizeof(longest) - 1] = 0;
	assert_false(done("a", "group.create", json_pack("{s:s, s:s, s:s, s:s, s:[s]}", "group", U, "name", "g",
							 "stream", S("1"), "wrapped_key", "AAAA", "recipients",
							 longest)));
	assert_string_equal(code, "bad-parameter");
	assert_false(done("a", "group.create", json_pack("{s:s, s:s, s:s, s:s, s:[s]}", "group", U, "name", "../g",
							 "stream", S("1"), "wrapped_key", "AAAA", "recipients",
							 "who")));
	assert_false(done("a", "group.create", json_pack("{s:s}", "group", "../../etc")));
	assert_false(done("a", "group.find", json_object()));
	assert_false(done("a", "group.join", json_object()));
	assert_false(done("a", "group.members", NULL));
	assert_false(done("a", "group.nonsense", json_object()));
	assert_string_equal(code, "unknown-method");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(joined, setup, teardown),
		cmocka_unit_test_setup_teardown(left, setup, teardown),
		cmocka_unit_test_setup_teardown(interrupted, setup, teardown),
		cmocka_unit_test_setup_teardown(upgraded, setup, teardown),
		cmocka_unit_test_setup_teardown(hostile, setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
