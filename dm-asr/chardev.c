// SPDX-License-Identifier: GPL-2.0
/*
 * /dev/dm-asr: the control device, and the consumer's way to the ring.
 *
 * Design
 *   One table of calls: number, function, whether the file has to be attached.
 *   Arguments are copied in and out here, once, so no call touches user memory
 *   and none can read it twice. A result is copied out only when the call
 *   succeeded.
 *
 * Invariants
 *   A file's group is set once, by ATTACH, and holds until the file is closed:
 *   a mapping holds the file, the file is the group's consumer, and a group
 *   with a consumer is not deleted.
 *
 * Context: process.
 */
#include "dm-asr.h"

#include <linux/capability.h>
#include <linux/miscdevice.h>
#include <linux/poll.h>
#include <linux/slab.h>
#include <linux/uaccess.h>
#include <linux/vmalloc.h>

struct asr_file {
	struct asr_group *group;	/* set by ATTACH */
	struct file *file;
};

union asr_args {
	struct asr_info info;
	struct asr_group_create create;
	struct asr_group_name name;
	struct asr_group_info group_info;
	struct asr_attach attach;
	struct asr_disk_info disk_info;
	struct asr_dirty dirty;
	struct asr_mark mark;
	struct asr_release release;
	struct asr_durable durable;
};

static struct asr_group *group_of(struct asr_file *f)
{
	return smp_load_acquire(&f->group);	/* pairs with asr_group_attach */
}

static int do_info(struct asr_file *f, union asr_args *a)
{
	memset(a, 0, sizeof(a->info));
	a->info.abi_version = ASR_ABI_VERSION;
	asr_group_totals(&a->info);
	return 0;
}

static int do_create(struct asr_file *f, union asr_args *a)
{
	return asr_group_create(&a->create);
}

static int do_delete(struct asr_file *f, union asr_args *a)
{
	a->name.name[ASR_NAME_BYTES - 1] = 0;
	return asr_group_delete(a->name.name);
}

static int do_group_info(struct asr_file *f, union asr_args *a)
{
	return asr_group_info(&a->group_info);
}

static int do_attach(struct asr_file *f, union asr_args *a)
{
	int r;

	if (a->attach.flags || a->attach.reserved)
		return -EINVAL;
	a->attach.name[ASR_NAME_BYTES - 1] = 0;
	r = asr_group_attach(a->attach.name, f->file, &f->group);
	if (!r)
		a->attach.ring_bytes = group_of(f)->ring.bytes;
	return r;
}

static int do_disk_info(struct asr_file *f, union asr_args *a)
{
	return asr_disk_info(f->group, &a->disk_info);
}

static int do_fetch(struct asr_file *f, union asr_args *a)
{
	return a->dirty.flags ? -EINVAL : asr_dirty_fetch(f->group, &a->dirty);
}

static int do_ack(struct asr_file *f, union asr_args *a)
{
	return a->dirty.flags ? -EINVAL : asr_dirty_ack(f->group, &a->dirty);
}

static int do_set(struct asr_file *f, union asr_args *a)
{
	return a->dirty.flags & ~ASR_DIRTY_DURABLE ? -EINVAL : asr_dirty_set(f->group, &a->dirty);
}

static int do_return(struct asr_file *f, union asr_args *a)
{
	asr_dirty_return(f->group);
	return 0;
}

static int do_capture(struct asr_file *f, union asr_args *a)
{
	return asr_group_capture(f->group);
}

static int do_track(struct asr_file *f, union asr_args *a)
{
	asr_group_track(f->group);
	return 0;
}

static int do_mark(struct asr_file *f, union asr_args *a)
{
	return asr_group_mark(f->group, &a->mark);
}

static int do_release(struct asr_file *f, union asr_args *a)
{
	return asr_group_release(f->group, &a->release);
}

static int do_durable(struct asr_file *f, union asr_args *a)
{
	return asr_intent_durable(f->group, &a->durable);
}

static const struct {
	unsigned int cmd;
	int (*call)(struct asr_file *f, union asr_args *a);
	bool attached;
} calls[] = {
	{ ASR_IOC_GET_INFO, do_info },
	{ ASR_IOC_GROUP_CREATE, do_create },
	{ ASR_IOC_GROUP_DELETE, do_delete },
	{ ASR_IOC_GROUP_INFO, do_group_info },
	{ ASR_IOC_ATTACH, do_attach },
	{ ASR_IOC_DISK_INFO, do_disk_info, true },
	{ ASR_IOC_DIRTY_FETCH, do_fetch, true },
	{ ASR_IOC_DIRTY_ACK, do_ack, true },
	{ ASR_IOC_DIRTY_SET, do_set, true },
	{ ASR_IOC_DIRTY_RETURN, do_return, true },
	{ ASR_IOC_CAPTURE, do_capture, true },
	{ ASR_IOC_TRACK, do_track, true },
	{ ASR_IOC_MARK, do_mark, true },
	{ ASR_IOC_RELEASE, do_release, true },
	{ ASR_IOC_DURABLE, do_durable, true },
};

static long dev_ioctl(struct file *file, unsigned int cmd, unsigned long arg)
{
	struct asr_file *f = file->private_data;
	void __user *user = (void __user *)arg;
	union asr_args a;
	size_t i;
	int r;

	if (!capable(CAP_SYS_ADMIN))
		return -EPERM;
	for (i = 0; i < ARRAY_SIZE(calls) && calls[i].cmd != cmd; i++)
		;
	if (i == ARRAY_SIZE(calls))
		return -ENOTTY;
	if (calls[i].attached && !group_of(f))
		return -ENOTCONN;
	if (_IOC_DIR(cmd) & _IOC_WRITE && copy_from_user(&a, user, _IOC_SIZE(cmd)))
		return -EFAULT;
	r = calls[i].call(f, &a);
	if (!r && _IOC_DIR(cmd) & _IOC_READ && copy_to_user(user, &a, _IOC_SIZE(cmd)))
		return -EFAULT;
	return r;
}

static int map_readonly(struct vm_area_struct *vma)
{
	if (vma->vm_flags & VM_WRITE)
		return -EACCES;
	asr_compat_vma_forbid_write(vma);
	return 0;
}

static int dev_mmap(struct file *file, struct vm_area_struct *vma)
{
	struct asr_group *g = group_of(file->private_data);
	u64 area = (u64)vma->vm_pgoff << PAGE_SHIFT;
	void *mem;
	int r = 0;

	if (!g)
		return -ENOTCONN;
	if (!(vma->vm_flags & VM_SHARED))
		return -EINVAL;
	if (area == ASR_MMAP_CONSUMER) {
		mem = g->ring.cons;
	} else if (area == ASR_MMAP_PRODUCER) {
		mem = g->ring.prod;
		r = map_readonly(vma);
	} else if (area == ASR_MMAP_DATA) {
		mem = g->ring.data;
		r = map_readonly(vma);
	} else {
		return -EINVAL;
	}
	/* refuses what is longer than the memory */
	return r ?: remap_vmalloc_range(vma, mem, 0);
}

static __poll_t dev_poll(struct file *file, poll_table *wait)
{
	struct asr_group *g = group_of(file->private_data);
	__poll_t events = 0;
	bool poisoned;

	if (!g)
		return EPOLLERR;
	poll_wait(file, &g->poll, wait);
	if (asr_ring_ready(g, &poisoned))
		events |= EPOLLIN | EPOLLRDNORM;
	return poisoned ? events | EPOLLERR : events;
}

static int dev_open(struct inode *inode, struct file *file)
{
	struct asr_file *f;

	if (!capable(CAP_SYS_ADMIN))
		return -EPERM;
	f = kzalloc(sizeof(*f), GFP_KERNEL);
	if (!f)
		return -ENOMEM;
	f->file = file;
	file->private_data = f;
	return 0;
}

static int dev_release(struct inode *inode, struct file *file)
{
	struct asr_file *f = file->private_data;

	if (f->group)
		asr_group_detach(f->group);
	kfree(f);
	return 0;
}

static const struct file_operations fops = {
	.owner = THIS_MODULE,
	.open = dev_open,
	.release = dev_release,
	.unlocked_ioctl = dev_ioctl,
	.compat_ioctl = compat_ptr_ioctl,
	.mmap = dev_mmap,
	.poll = dev_poll,
};

static struct miscdevice dev = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = ASR_DEVICE_NAME,
	.fops = &fops,
	.mode = 0600,
};

int asr_chardev_init(void)
{
	return misc_register(&dev);
}

void asr_chardev_exit(void)
{
	misc_deregister(&dev);
}
