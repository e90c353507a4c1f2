// SPDX-License-Identifier: Apache-2.0
/*
 * A domain's disks, from its XML: each disk of the domain and its own source, whatever else the description has.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "../../tools/libvirt.c"
#include "../../tools/domxml.c"

const char *arg_value(const struct args *a, const char *name, const char *fallback)
{
	return fallback;
}

static json_t *disks_of(const char *xml_text)
{
	struct why why = {0};
	json_t *disks = NULL;
	int err = domxml_disks(xml_text, &disks, &why);

	if (err)
		fail_msg("%s", why.text);
	return disks;
}

static void is(json_t *disks, size_t n, const char *key, const char *value)
{
	const char *text = json_string_value(json_object_get(json_array_get(disks, n), key));

	if (!value && text)
		fail_msg("disk %zu has the %s %s", n, key, text);
	if (value && (!text || strcmp(text, value)))
		fail_msg("disk %zu: %s is %s, and not %s", n, key, text ? text : "absent", value);
}

static void kinds(void **st)
{
	cleanup_json d = disks_of(
		"<domain type='kvm' id='3'><name>a</name><disk type='block'><source dev='/not/in/devices'/></disk>"
		"<devices><emulator>/usr/bin/q</emulator>"
		"<disk type='block' device='disk'><driver name='qemu' type='raw'/><source dev='/dev/vg/a' index='1'/>"
		"<backingStore/><target dev='vda' bus='virtio'/><alias name='virtio-disk0'/></disk>"
		"<disk type='file'><driver type='qcow2'/><source file='/a b&amp;c.qcow2'/><target dev='vdb'/></disk>"
		"<disk type='network' device='disk'><source protocol='rbd' name='p/i'><host name='h'/></source>"
		"<target dev='vdc'/></disk>"
		"<disk type='file' device='cdrom'><target dev='sda'/><readonly/></disk>"
		"<disk type='volume' device='lun'><source pool='p' volume='v'/><target dev='vdd'/></disk>"
		"<filesystem><source dir='/srv'/><target dir='x'/></filesystem>"
		"</devices></domain>");

	assert_int_equal(json_array_size(d), 5);
	is(d, 0, "type", "block");
	is(d, 0, "device", "disk");
	is(d, 0, "format", "raw");
	is(d, 0, "source", "/dev/vg/a");
	is(d, 0, "target", "vda");
	is(d, 1, "source", "/a b&c.qcow2");
	is(d, 1, "format", "qcow2");
	is(d, 1, "device", "disk");		/* what libvirt means when it is not said */
	is(d, 2, "source", "p/i");
	is(d, 2, "protocol", "rbd");
	is(d, 3, "device", "cdrom");
	is(d, 3, "source", NULL);
	is(d, 4, "pool", "p");
	is(d, 4, "volume", "v");
	is(d, 4, "device", "lun");
	is(d, 4, "source", NULL);
}

/* What lies deeper is another image: the one below a snapshot, the copy that is being made */
static void deeper(void **st)
{
	cleanup_json d = disks_of(
		"<domain><devices>"
		"<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='/top'/>"
		"<backingStore type='block'><format type='raw'/><source dev='/dev/base'/><driver type='x'/>"
		"<backingStore/></backingStore>"
		"<mirror type='block' job='copy'><format type='raw'/><source dev='/dev/copy'/></mirror>"
		"<target dev='vda' bus='virtio'/></disk>"
		"<disk type='block'><mirror><source dev='/dev/copy'/></mirror><target dev='vdb'/></disk>"
		"</devices><metadata><disk type='block'><target dev='no'/></disk>"
		"<devices><disk type='block'><target dev='no'/></disk></devices></metadata></domain>");

	assert_int_equal(json_array_size(d), 2);
	is(d, 0, "source", "/top");
	is(d, 0, "format", "qcow2");
	is(d, 1, "source", NULL);
	is(d, 1, "target", "vdb");
}

static void not_whole(void **st)
{
	static const char *const texts[] = { "", "<domain>", "<domain><devices></domain>", "no" };

	for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
		struct why why = {0};
		json_t *disks = (json_t *)&why;

		assert_int_equal(domxml_disks(texts[i], &disks, &why), -EPROTO);
		assert_null(disks);
		assert_string_not_equal(why.text, "");
	}
	json_decref(disks_of("<domain/>"));
}

static void hosts(void **st)
{
	assert_true(is_local("qemu:///system"));
	assert_true(is_local("qemu+unix:///system?socket=/run/x"));
	assert_true(is_local("test:///default"));
	assert_false(is_local("qemu+ssh://root@other/system"));
	assert_false(is_local("qemu://other/system"));
	assert_false(is_local("qemu+tls://[::1]:16514/system"));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(kinds), cmocka_unit_test(deeper), cmocka_unit_test(not_whole), cmocka_unit_test(hosts),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
