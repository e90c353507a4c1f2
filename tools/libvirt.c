// SPDX-License-Identifier: Apache-2.0
/*
 * libvirt, if it is there.
 *
 * Design. Most hosts that asr protects run no virtual machines, and asrctl goes into the initramfs with all that it is
 * linked with. So libvirt is not linked: it is loaded by the commands that are about virtual machines, and its own
 * header says what the functions are like. XML is read by the library that libvirt itself needs (domxml.c).
 *
 * Invariants. Nothing of libvirt is used before virt_load() has said 0. A URI that names another host is refused: its
 * paths would be taken for this host's.
 *
 * Context. libvirt's connections do not outlive a fork: who forks opens its own in the child. A call may take as long
 * as libvirtd likes; who cannot wait calls in a child.
 */
#include "virt.h"

#include <dlfcn.h>
#include <errno.h>
#include <string.h>

#define LIBRARY		"libvirt.so.0"
#define URI_DEFAULT	"qemu:///system"

struct virt virt;

static void be_silent(void *arg, virErrorPtr error)
{
	/* errors are told by who gets them */
}

int virt_load(struct why *why)
{
	void *library;

	if (virt.library)
		return 0;
	library = dlopen(LIBRARY, RTLD_NOW | RTLD_LOCAL);
	if (!library)
		return why_set(why, ENOENT, "libvirt is not installed here (" LIBRARY "; in Debian the package "
			       "libvirt0): there are no virtual machines that asrctl could see");
#define F(name) \
	virt.name = (typeof(&name))dlsym(library, #name); \
	if (!virt.name) { \
		dlclose(library); \
		return why_set(why, EOPNOTSUPP, "the libvirt of this host is too old: it has no " #name); \
	}
	VIRT_FUNCTIONS(F)
#undef F
	virt.library = library;
	virt.virSetErrorFunc(NULL, be_silent);
	return 0;
}

const char *virt_uri(const struct args *a)
{
	return arg_value(a, "connect", URI_DEFAULT);
}

int virt_error(struct why *why, const char *what, const char *of)
{
	return why_set(why, EIO, "cannot %s %.100s: %.300s", what, of, virt.virGetLastErrorMessage());
}

/* DRIVER[+TRANSPORT]://HOST/...: without host it is this one */
static bool is_local(const char *uri)
{
	const char *host = strstr(uri, "://");

	return !host || host[3] == '/' || !host[3];
}

int virt_open(const char *uri, virConnectPtr *conn, struct why *why)
{
	int err = virt_load(why);

	if (err)
		return err;
	if (!is_local(uri))
		return why_set(why, EINVAL, "%.200s is another host's libvirt: asrctl works on the host whose disks "
			       "they are; qemu:///system is right", uri);
	*conn = virt.virConnectOpen(uri);
	if (*conn)
		return 0;
	return why_set(why, ECONNREFUSED, "libvirt does not answer at %.100s: %.300s", uri,
		       virt.virGetLastErrorMessage());
}
