// SPDX-License-Identifier: Apache-2.0
/*
 * A domain's disks, from its XML.
 *
 * Design. Of libvirt's description of a domain, what stands at /domain/devices/disk/ is read: the source, not those of
 * its backing chain or of a copy that is under way, which lie deeper. The XML library is the one that libvirt itself
 * needs, found through it: a lookup in a loaded library goes on to those it depends on, whatever their version is
 * called. Only its reader's functions are used, and none of its structures, which change.
 *
 * Context. The XML is made by libvirtd: well-formed, and as trusted as who may define domains.
 */
#include "virt.h"

#include <dlfcn.h>
#include <errno.h>
#include <libxml/xmlreader.h>
#include <string.h>

#define XML_FUNCTIONS(F) \
	F(xmlFreeTextReader) F(xmlReaderForMemory) F(xmlTextReaderConstLocalName) F(xmlTextReaderConstValue) \
	F(xmlTextReaderDepth) F(xmlTextReaderMoveToAttribute) F(xmlTextReaderMoveToElement) F(xmlTextReaderNodeType) \
	F(xmlTextReaderRead)

static struct {
#define F(name) typeof(&name) name;
	XML_FUNCTIONS(F)
#undef F
} xml;

static int load(struct why *why)
{
	int err = virt_load(why);

	if (err)
		return err;
#define F(name) \
	xml.name = (typeof(&name))dlsym(virt.library, #name); \
	if (!xml.name) \
		return why_set(why, EOPNOTSUPP, "the libvirt of this host brings no " #name ": its XML cannot be read");
	XML_FUNCTIONS(F)
#undef F
	return 0;
}

/* The attribute of the element, as a member of the disk */
static void take(json_t *disk, xmlTextReaderPtr r, const char *attribute, const char *key)
{
	if (xml.xmlTextReaderMoveToAttribute(r, (const xmlChar *)attribute) == 1)
		json_object_set_new(disk, key, json_string((const char *)xml.xmlTextReaderConstValue(r)));
	xml.xmlTextReaderMoveToElement(r);
}

static void take_source(json_t *disk, xmlTextReaderPtr r)
{
	static const char *const paths[] = { "file", "dev", "dir", "path", "name" };

	for (size_t i = 0; i < sizeof(paths) / sizeof(paths[0]); i++)
		if (!json_object_get(disk, "source"))
			take(disk, r, paths[i], "source");
	take(disk, r, "pool", "pool");
	take(disk, r, "volume", "volume");
	take(disk, r, "protocol", "protocol");
}

static void take_child(json_t *disk, xmlTextReaderPtr r, const char *name)
{
	if (!strcmp(name, "driver")) {
		take(disk, r, "type", "format");
	} else if (!strcmp(name, "source")) {
		take_source(disk, r);
	} else if (!strcmp(name, "target")) {
		take(disk, r, "dev", "target");
		take(disk, r, "bus", "bus");
	}
}

/* An element; path: names of those it lies in */
static void element(json_t *disks, xmlTextReaderPtr r, int depth, const char *name, bool *in_devices, bool *in_disk)
{
	json_t *disk = json_array_get(disks, json_array_size(disks) - 1);

	if (depth <= 1)
		*in_devices = depth == 1 && !strcmp(name, "devices");
	if (depth <= 2)
		*in_disk = depth == 2 && *in_devices && !strcmp(name, "disk");
	if (depth == 2 && *in_disk) {
		disk = json_object();
		take(disk, r, "type", "type");
		take(disk, r, "device", "device");
		if (!json_object_get(disk, "device"))
			json_object_set_new(disk, "device", json_string("disk"));
		json_array_append_new(disks, disk);
	} else if (depth == 3 && *in_disk) {
		take_child(disk, r, name);
	}
}

int domxml_disks(const char *text, json_t **disks, struct why *why)
{
	bool in_devices = false, in_disk = false;
	xmlTextReaderPtr r;
	int err = load(why), more;

	if (err)
		return err;
	*disks = json_array();
	r = *disks ? xml.xmlReaderForMemory(text, (int)strlen(text), NULL, NULL,
					    XML_PARSE_NONET | XML_PARSE_NOERROR | XML_PARSE_NOWARNING) : NULL;
	if (!r) {
		json_decref(*disks);
		return -ENOMEM;
	}
	while ((more = xml.xmlTextReaderRead(r)) == 1)
		if (xml.xmlTextReaderNodeType(r) == XML_READER_TYPE_ELEMENT)
			element(*disks, r, xml.xmlTextReaderDepth(r), (const char *)xml.xmlTextReaderConstLocalName(r),
				&in_devices, &in_disk);
	xml.xmlFreeTextReader(r);
	if (!more)
		return 0;
	json_decref(*disks);
	*disks = NULL;
	return why_set(why, EPROTO, "libvirt's description of the domain is no whole XML");
}
