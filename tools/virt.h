/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The plan of what asrctl does with virtual machines; in the order in which data flows.
 *
 *	libvirt.c	the library, if it is there; a domain's guest agent
 *	domxml.c	a domain's disks, from its XML
 *	domain.c	all domains of the host with their disks: asrctl discover
 *	vm.c		asrctl vm: a domain's disks go under protection, and out of it
 *	guest.c		the domains that are frozen for a mark (quiet.c, freezer.c)
 */
#ifndef ASRCTL_VIRT_H
#define ASRCTL_VIRT_H

#include <libvirt/libvirt.h>
#include <libvirt/virterror.h>

#include "asrctl.h"

/* -------------------------------------------------------------- libvirt.c */

#define VIRT_FUNCTIONS(F) \
	F(virConnectOpen) F(virConnectClose) F(virConnectIsAlive) F(virConnectListAllDomains) F(virDomainFree) \
	F(virDomainFSFreeze) F(virDomainFSThaw) F(virDomainGetBlockInfo) F(virDomainGetID) F(virDomainGetName) \
	F(virDomainGetState) F(virDomainGetUUIDString) F(virDomainGetXMLDesc) F(virDomainLookupByUUIDString) \
	F(virGetLastErrorCode) F(virGetLastErrorMessage) F(virSetErrorFunc) F(virStoragePoolFree) \
	F(virStoragePoolLookupByName) F(virStorageVolFree) F(virStorageVolGetPath) F(virStorageVolLookupByName)

/* The functions of the library by their own names: virt.virConnectOpen(...) */
struct virt {
	void *library;
#define F(name) typeof(&name) name;
	VIRT_FUNCTIONS(F)
#undef F
};
extern struct virt virt;

/* All is in virt then. -ENOENT: libvirt is not installed */
int virt_load(struct why *why);
/* -ENOENT as above, -ECONNREFUSED: it does not answer, -EINVAL: the URI names another host; the caller's to close */
int virt_open(const char *uri, virConnectPtr *conn, struct why *why);
int virt_error(struct why *why, const char *what, const char *of);	/* "cannot WHAT OF: " and libvirt's words */
const char *virt_uri(const struct args *a);		/* --connect, or the host's own */

/* --------------------------------------------------------------- domxml.c */

/* A domain's XML to an array of {target, device, type, format, source, pool, volume}; what is not there is left out.
   Pure but for the library that reads XML, which comes with libvirt. */
int domxml_disks(const char *xml, json_t **disks, struct why *why);

/* --------------------------------------------------------------- domain.c */

/*
 * [{name, uuid, id, state, disks: [{target, device, type, format, source, bytes, protected, group, disk, reason}]}]
 * of all domains, or of that one (-ENOENT: none such). group and disk: where it is protected. reason: why it cannot be
 * protected, or not as it is.
 */
int domain_list(const char *uri, const char *name, json_t **domains, struct why *why);
bool domain_is_active(json_t *domain);
bool domain_holds_data(json_t *disk);	/* not a CD, not a floppy */
/* The same, in a child: for who forks, and within a time */
int domain_list_within(const char *uri, uint64_t limit_ns, json_t **domains, struct why *why);

/* ---------------------------------------------------------------- guest.c */

/* A running domain that is to be frozen; all but the first three are its child's */
struct guest {
	const char *uri;
	char uuid[VIR_UUID_STRING_BUFLEN];
	unsigned int id;		/* of this run of it */
	virConnectPtr conn;
	virDomainPtr domain;
	int frozen;			/* file systems */
	bool unsure;			/* its freeze failed, and may have been done */
};

#endif /* ASRCTL_VIRT_H */
