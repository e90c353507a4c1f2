// SPDX-License-Identifier: Apache-2.0
/*
 * asrctl vm: the disks of a virtual machine go under protection, and out of it, live.
 *
 * Design. The domain's disks and what is to be said of each are domain.c's, the steps protect.c's. A disk is named
 * DOMAIN-TARGET. What is protected in that group already stays, so the command may be repeated when a disk was added.
 *
 * Invariants. All is checked before the first disk is touched. When one cannot be inserted, those inserted before it
 * are taken out again.
 */
#include "virt.h"

#include <errno.h>
#include <stdarg.h>
#include <string.h>
#include <unistd.h>

#define DISKS		64

struct vm {
	const char *name, *group;
	json_t *domain;
	json_t *kept, *left;		/* were protected already, were left out: targets */
	struct protect disks[DISKS];	/* to be protected */
	char names[DISKS][ASR_NAME_BYTES * 2];
	unsigned int count;
};

/* ---------------------------------------------------------------------- which disks */

static bool is_excluded(const struct args *a, const char *target)
{
	const char *given;

	for (unsigned int i = 0; (given = arg_nth(a, "exclude", i)); i++)
		if (!strcmp(given, target))
			return true;
	return false;
}

/* What is left out has to be there */
static int check_excludes(const struct args *a, const struct vm *vm, struct why *why)
{
	json_t *disks = json_object_get(vm->domain, "disks"), *disk;
	char known[256] = "";
	const char *given;
	size_t i;

	json_array_foreach(disks, i, disk) {
		size_t n = strlen(known);

		snprintf(known + n, sizeof(known) - n, "%s%s", n ? ", " : "", text_of(disk, "target"));
	}
	for (unsigned int n = 0; (given = arg_nth(a, "exclude", n)); n++) {
		bool found = false;

		json_array_foreach(disks, i, disk)
			found |= !strcmp(text_of(disk, "target"), given);
		if (!found)
			return why_set(why, ENOENT, "domain %s has no disk %.40s to be left out; it has: %s", vm->name,
				       given, *known ? known : "none");
	}
	return 0;
}

/* A domain's name may have what a disk's may not */
static void disk_name(const struct vm *vm, const char *target, char out[ASR_NAME_BYTES * 2])
{
	snprintf(out, ASR_NAME_BYTES * 2, "%.*s-%.*s", ASR_NAME_BYTES, vm->name, ASR_NAME_BYTES / 2, target);
	for (char *p = out; *p; p++)
		if (!strchr("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._+-", *p))
			*p = '-';
}

static int add_disk(struct vm *vm, json_t *disk, struct why *why)
{
	struct protect *p = &vm->disks[vm->count];
	const char *target = text_of(disk, "target");

	if (vm->count == DISKS)
		return why_set(why, E2BIG, "domain %s has more than %d disks", vm->name, DISKS);
	disk_name(vm, target, vm->names[vm->count]);
	*p = (struct protect){ .device = text_of(disk, "source"), .group = vm->group, .name = vm->names[vm->count] };
	p->vm = json_pack("{s:s, s:O, s:s}", "name", vm->name, "uuid", json_object_get(vm->domain, "uuid"), "target",
			  target);
	vm->count++;
	return 0;
}

static int look_disk(const struct args *a, struct vm *vm, json_t *disk, struct why *why)
{
	const char *target = text_of(disk, "target"), *group = text_of(disk, "group");
	const char *reason = text_of(disk, "reason");

	if (is_excluded(a, target) || !domain_holds_data(disk)) {
		json_array_append_new(vm->left, json_string(target));
		return 0;
	}
	if (*reason)
		return why_set(why, EOPNOTSUPP, "%s of domain %s: %s. `--exclude %s` leaves it out", target, vm->name,
			       reason, target);
	if (*group && strcmp(group, vm->group))
		return why_set(why, EEXIST, "%s of domain %s is disk %s of group %s already: its disks are to be in "
			       "one group; name that one, or take it out with `asrctl disk unprotect %s`, or "
			       "`--exclude %s`", target, vm->name, text_of(disk, "disk"), group,
			       text_of(disk, "source"), target);
	if (!*group)
		return add_disk(vm, disk, why);
	json_array_append_new(vm->kept, json_string(target));
	return 0;
}

static int look(const struct args *a, struct vm *vm, struct why *why)
{
	json_t *disk;
	size_t i;
	int err = check_excludes(a, vm, why);

	json_array_foreach(json_object_get(vm->domain, "disks"), i, disk)
		if (!err)
			err = look_disk(a, vm, disk, why);
	if (!err && !vm->count && !json_array_size(vm->kept))
		err = why_set(why, ENOENT, "domain %s has no disk to protect", vm->name);
	for (unsigned int n = 0; !err && n < vm->count; n++) {
		err = protect_find(&vm->disks[n], why);
		if (!err)
			err = protect_look(&vm->disks[n], why);
	}
	return err;
}

/* -------------------------------------------------------------------------- protect */

static void add_why(struct why *why, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static void add_why(struct why *why, const char *fmt, ...)
{
	size_t used = strlen(why->text);
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(why->text + used, sizeof(why->text) - used, fmt, ap);
	va_end(ap);
}

/* A disk that was just inserted; what was remembered before is again */
static int undo(struct protect *p, struct why *why)
{
	const char *name = strrchr(p->path, '/') + 1;
	struct dm_device x;
	struct dm_asr asr;
	bool root;
	int err = dm_read(name, &x, why);

	if (err)
		return err;
	err = dm_asr_parse(&x, &asr) ? protect_take_out(p->state_dir, &x, &asr, &root, why) :
		why_set(why, EBUSY, "somebody has taken asr off %s", name);
	dm_forget(&x);
	if (!err && p->old)
		remember_put(p->state_dir, p->group, p->old, NULL);
	return err;
}

static int insert_all(const struct args *a, struct vm *vm, struct why *why)
{
	struct why again = {0};
	unsigned int n;
	int err = 0;

	for (n = 0; n < vm->count; n++) {
		err = protect_insert(a, &vm->disks[n], why);
		if (err)
			break;
	}
	if (!err || !n)
		return err;
	add_why(why, "; of domain %s nothing is protected that was not before", vm->name);
	while (n-- > 0)
		if (undo(&vm->disks[n], &again))
			add_why(why, ", but for disk %s: %.160s", vm->disks[n].disk, again.text);
	return err;
}

static json_t *answer_of(const struct vm *vm, const char *copy)
{
	json_t *disks = json_array();

	for (unsigned int i = 0; i < vm->count; i++) {
		const struct protect *p = &vm->disks[i];

		json_array_append_new(disks, json_pack("{s:s, s:s, s:s, s:s}", "target", text_of(p->vm, "target"),
						       "disk", p->disk, "device", p->device, "path", p->path));
	}
	return json_pack("{s:s, s:O, s:s, s:o, s:O, s:O, s:s}", "domain", vm->name, "uuid",
			 json_object_get(vm->domain, "uuid"), "group", vm->group, "protected", disks, "already",
			 vm->kept, "left_out", vm->left, "copy", copy);
}

static void say(const struct vm *vm)
{
	json_t *target;
	size_t i;

	for (unsigned int n = 0; n < vm->count; n++) {
		const struct protect *p = &vm->disks[n];

		printf("%s is protected as disk %s of group %s\n", p->path, p->disk, p->group);
		if (!*p->dm)
			printf("Before domain %s is started, let its XML have <source dev='%s'/> for %s: writes to %s "
			       "itself are not seen.\n", vm->name, p->path, text_of(p->vm, "target"), p->device);
	}
	json_array_foreach(vm->kept, i, target)
		printf("%s was protected already\n", json_string_value(target));
	json_array_foreach(vm->left, i, target)
		printf("%s is left out\n", json_string_value(target));
	fflush(stdout);
}

static void drop(struct vm *vm)
{
	for (unsigned int i = 0; i < vm->count; i++)
		protect_drop(&vm->disks[i]);
	json_decref(vm->kept);
	json_decref(vm->left);
	free(vm);
}

static int protect(const struct args *a, struct vm *vm, struct why *why)
{
	const char *copy = "running";
	cleanup_json answer = NULL;
	int lock, err;

	err = protect_group(a, vm->group, why);
	if (err)
		return err;
	lock = boot_lock();
	err = look(a, vm, why);
	if (!err)
		err = insert_all(a, vm, why);
	if (lock >= 0)
		close(lock);
	if (err)
		return err;
	if (!a->json)
		say(vm);
	if (!vm->count)
		copy = NULL;
	else if (!arg_given(a, "no-wait"))
		copy = protect_wait(a, vm->disks, vm->count);
	answer = answer_of(vm, copy ? copy : "none");
	if (a->json)
		out_json(answer);
	else if (copy)
		protect_say_copy(copy);
	return 0;
}

int vm_protect(const struct args *a, struct why *why)
{
	cleanup_json domains = NULL;
	struct vm *vm;
	int err;

	err = domain_list(virt_uri(a), a->words[0], &domains, why);
	if (err)
		return err;
	vm = calloc(1, sizeof(*vm));
	if (!vm)
		return -ENOMEM;
	vm->name = a->words[0];
	vm->group = arg_value(a, "group", "");
	vm->domain = json_array_get(domains, 0);
	vm->kept = json_array();
	vm->left = json_array();
	err = protect(a, vm, why);
	drop(vm);
	return err;
}

/* ------------------------------------------------------------------------ unprotect */

static int take_out(const struct args *a, json_t *disk, json_t *done, struct why *why)
{
	struct dm_device x;
	char state_dir[256];
	struct dm_asr asr;
	bool root;
	int err = dm_read(text_of(disk, "mapper"), &x, why);

	if (err)
		return err;
	protect_state_dir(a, state_dir, sizeof(state_dir));
	if (!dm_asr_parse(&x, &asr))
		err = why_set(why, EBUSY, "somebody has taken asr off %s just now", x.name);
	else
		err = protect_take_out(state_dir, &x, &asr, &root, why);
	dm_forget(&x);
	if (err)
		return err;
	json_array_append_new(done, json_pack("{s:s, s:s, s:s}", "target", text_of(disk, "target"), "group", asr.group,
					      "disk", asr.disk));
	if (!a->json)
		printf("%s is no longer protected; what the vault has of disk %s of group %s stays there\n",
		       text_of(disk, "target"), asr.disk, asr.group);
	return 0;
}

int vm_unprotect(const struct args *a, struct why *why)
{
	cleanup_json domains = NULL, *answer = NULL;
	cleanup_fd int lock = boot_lock();
	json_t *disk, *done;
	size_t i;
	int err;

	err = domain_list(virt_uri(a), a->words[0], &domains, why);
	if (err)
		return err;
	done = json_array();
	answer = json_pack("{s:s, s:o}", "domain", a->words[0], "unprotected", done);
	json_array_foreach(json_object_get(json_array_get(domains, 0), "disks"), i, disk)
		if (!err && *text_of(disk, "mapper"))
			err = take_out(a, disk, done, why);
	if (!err && !json_array_size(done))
		err = why_set(why, ENOENT, "domain %s has no protected disk; `asrctl discover` shows what is",
			      a->words[0]);
	if (!err && a->json)
		out_json(answer);
	return err;
}
