// SPDX-License-Identifier: Apache-2.0
/* What is protected is on file, is found again, and a file that is broken is reported, never left out. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

#include "asr.h"

static char dir[64];

static int setup(void **state)
{
	strcpy(dir, "/tmp/test_remember.XXXXXX");
	return mkdtemp(dir) ? 0 : -1;
}

static int teardown(void **state)
{
	char text[128];

	snprintf(text, sizeof(text), "rm -rf %s", dir);
	return system(text);
}

static const char *field(json_t *disks, size_t i, const char *key)
{
	return json_string_value(json_object_get(json_array_get(disks, i), key));
}

static void put(const char *group, const char *name)
{
	json_t *disk = json_pack("{s:s, s:s, s:s, s:I}", "name", name, "kind", "dm", "device", "/dev/mapper/x",
				 "sectors", (json_int_t)2048);

	assert_int_equal(remember_put(dir, group, disk, NULL), 0);
	json_decref(disk);
}

static void nothing(void **state)
{
	json_t *list;

	assert_int_equal(remember_groups(dir, &list, NULL), 0);
	assert_int_equal(json_array_size(list), 0);
	json_decref(list);
	assert_int_equal(remember_list(dir, "g", &list, NULL), 0);
	assert_int_equal(json_array_size(list), 0);
	json_decref(list);
	assert_null(remember_find(dir, "g", "root"));
	assert_int_equal(remember_forget(dir, "g", "root", NULL), -ENOENT);
}

static void again(void **state)
{
	json_t *list, *disk;

	put("g", "root");
	put("h", "data");
	assert_int_equal(remember_groups(dir, &list, NULL), 0);
	assert_int_equal(json_array_size(list), 2);
	json_decref(list);
	assert_int_equal(remember_list(dir, "g", &list, NULL), 0);
	assert_int_equal(json_array_size(list), 1);
	assert_string_equal(field(list, 0, "name"), "root");
	assert_null(field(list, 0, "error"));
	json_decref(list);
	disk = remember_find(dir, "h", "data");
	assert_string_equal(json_string_value(json_object_get(disk, "kind")), "dm");
	json_decref(disk);
	assert_int_equal(remember_forget(dir, "g", "root", NULL), 0);
	assert_null(remember_find(dir, "g", "root"));
	remember_forget_all(dir, "h");
	assert_null(remember_find(dir, "h", "data"));
}

/* Half a file, a word that is wrong, a name that none has: an error, with the disk's name */
static void broken(void **state)
{
	static const char *const texts[] = {
		"", "{\"kind\": \"dm\"", "[1]", "{\"kind\": \"dm\", \"device\": \"/dev/x\"}",
		"{\"kind\": \"tape\", \"device\": \"/dev/x\", \"sectors\": 1}",
	};
	char path[128];
	json_t *list;

	put("g", "root");
	snprintf(path, sizeof(path), "%s/groups/g/disks/root.json", dir);
	for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
		assert_int_equal(file_write(path, 0600, texts[i], strlen(texts[i]), NULL), 0);
		assert_int_equal(remember_list(dir, "g", &list, NULL), 0);
		assert_int_equal(json_array_size(list), 1);
		assert_string_equal(field(list, 0, "name"), "root");
		assert_non_null(strstr(field(list, 0, "error"), "root.json is not whole"));
		json_decref(list);
	}
	snprintf(path, sizeof(path), "%s/groups/g/disks/.hidden.json", dir);
	assert_int_equal(file_write(path, 0600, "", 0, NULL), 0);
	assert_int_equal(remember_list(dir, "g", &list, NULL), 0);
	assert_int_equal(json_array_size(list), 1);
	json_decref(list);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(nothing, setup, teardown),
		cmocka_unit_test_setup_teardown(again, setup, teardown),
		cmocka_unit_test_setup_teardown(broken, setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
