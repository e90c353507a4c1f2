// SPDX-License-Identifier: Apache-2.0
/*
 * What was frozen is thawed: whoever is killed, whatever hangs or fails; and nobody is told that it was frozen until
 * the end when it was not.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>

#include "../../tools/freezer.c"

#define S	1000000000ull

/* The thing that is frozen; children see it too */
static volatile struct {
	int frozen, thaws, unsure, rescued;
	int hang;		/* the freeze waits until it is 0 */
	int freeze_err, thaw_err, ready_err;
	pid_t child;
} *thing;

static void await(volatile int *value, int wanted)
{
	const struct timespec pause = { .tv_nsec = 1000000 };
	uint64_t end = now_ns() + 60 * S;

	while (*value != wanted && now_ns() < end)
		nanosleep(&pause, NULL);
	assert_int_equal(*value, wanted);
}

static int ready(struct freezer *f, struct why *why)
{
	thing->child = getpid();
	return thing->ready_err ? why_set(why, thing->ready_err, "not ready") : 0;
}

static int freeze(struct freezer *f, struct why *why)
{
	const struct timespec pause = { .tv_nsec = 1000000 };

	while (thing->hang)
		nanosleep(&pause, NULL);
	if (thing->freeze_err)
		return why_set(why, thing->freeze_err, "will not");
	thing->frozen = 1;
	return 0;
}

static int thaw(struct freezer *f, struct why *why)
{
	thing->frozen = 0;
	thing->thaws++;
	return thing->thaw_err ? why_set(why, thing->thaw_err, "it was somebody") : 0;
}

static void unsure(struct freezer *f, uint64_t limit_ns)
{
	thing->unsure++;
}

static int rescue(struct freezer *f, uint64_t limit_ns, struct why *why)
{
	thing->rescued++;
	return thaw(f, why);
}

static const struct freezer_kind kind = { "prepare", ready, freeze, thaw, unsure, rescue };

static int setup(void **st)
{
	memset((void *)thing, 0, sizeof(*thing));
	return 0;
}

static int start(struct freezer *f, uint64_t limit_ns)
{
	struct why why = {0};
	int err;

	*f = (struct freezer){ .kind = &kind, .what = "the thing", .sock = -1 };
	err = freezer_start(f, limit_ns, &why);
	if (!err)
		err = freezer_ready(f, now_ns() + 60 * S, &why);
	if (!err)
		err = freezer_begin(f, &why);
	return err;
}

static void end(struct freezer *f)
{
	close(f->sock);
	waitpid(f->child, NULL, 0);
}

static void in_order(void **st)
{
	struct why why = {0};
	struct freezer f;

	assert_int_equal(start(&f, 60 * S), 0);
	assert_int_equal(freezer_frozen(&f, now_ns() + 60 * S, &why), 0);
	assert_true(f.frozen);
	assert_int_equal(thing->frozen, 1);
	freezer_release(&f);
	assert_int_equal(freezer_thawed(&f, 60 * S, &why), 0);
	assert_int_equal(thing->frozen, 0);
	assert_int_equal(thing->thaws, 1);
	end(&f);
}

/* Who began it dies, at once or while the freeze hangs */
static void killed(void **st)
{
	for (int hang = 0; hang < 2; hang++) {
		pid_t asrctl;

		setup(st);
		thing->hang = hang;
		asrctl = fork();
		if (!asrctl) {
			struct freezer f;

			if (!start(&f, 600 * S) && !hang)
				freezer_frozen(&f, now_ns() + 60 * S, NULL);
			kill(getpid(), SIGKILL);
		}
		waitpid(asrctl, NULL, 0);
		if (hang)
			assert_int_equal(thing->thaws, 0);
		thing->hang = 0;
		await(&thing->thaws, 1);
		assert_int_equal(thing->frozen, 0);
	}
}

static void child_killed(void **st)
{
	struct why why = {0};
	struct freezer f;

	assert_int_equal(start(&f, 60 * S), 0);
	assert_int_equal(freezer_frozen(&f, now_ns() + 60 * S, &why), 0);
	kill(f.child, SIGKILL);
	freezer_release(&f);
	assert_int_equal(freezer_thawed(&f, 60 * S, &why), -ECANCELED);
	assert_int_equal(thing->rescued, 1);
	assert_int_equal(thing->frozen, 0);
	assert_non_null(strstr(why.text, "it is thawed"));
	end(&f);
}

static void time_over(void **st)
{
	struct why why = {0};
	struct freezer f;

	assert_int_equal(start(&f, S / 100), 0);
	assert_int_equal(freezer_frozen(&f, now_ns() + 60 * S, &why), 0);
	await(&thing->thaws, 1);	/* nobody has said that it should */
	freezer_release(&f);
	assert_int_equal(freezer_thawed(&f, 60 * S, &why), -ETIMEDOUT);
	assert_non_null(strstr(why.text, "when the time was over"));
	end(&f);
}

static void hangs(void **st)
{
	struct why why = {0};
	struct freezer f;

	thing->hang = 1;
	assert_int_equal(start(&f, 60 * S), 0);
	assert_int_equal(freezer_frozen(&f, now_ns() + S / 100, &why), -ETIMEDOUT);
	assert_false(f.frozen);
	freezer_release(&f);
	thing->hang = 0;
	await(&thing->thaws, 1);
	assert_int_equal(thing->frozen, 0);
	end(&f);
}

static void fails(void **st)
{
	struct why why = {0};
	struct freezer f;

	thing->ready_err = EIO;
	assert_int_equal(start(&f, 60 * S), -EIO);
	end(&f);
	thing->ready_err = 0;
	thing->freeze_err = EBUSY;
	assert_int_equal(start(&f, 60 * S), 0);
	assert_int_equal(freezer_frozen(&f, now_ns() + 60 * S, &why), -EBUSY);
	assert_string_equal(why.text, "cannot freeze the thing: will not");
	end(&f);
	assert_int_equal(thing->unsure, 1);
	assert_int_equal(thing->thaws, 0);
	thing->freeze_err = 0;
	thing->thaw_err = EINVAL;
	assert_int_equal(start(&f, 60 * S), 0);
	assert_int_equal(freezer_frozen(&f, now_ns() + 60 * S, &why), 0);
	freezer_release(&f);
	assert_int_equal(freezer_thawed(&f, 60 * S, &why), -EINVAL);
	assert_non_null(strstr(why.text, "it was somebody"));
	end(&f);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup(in_order, setup), cmocka_unit_test_setup(killed, setup),
		cmocka_unit_test_setup(child_killed, setup), cmocka_unit_test_setup(time_over, setup),
		cmocka_unit_test_setup(hangs, setup), cmocka_unit_test_setup(fails, setup),
	};

	thing = mmap(NULL, sizeof(*thing), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	return thing == MAP_FAILED ? 1 : cmocka_run_group_tests(tests, NULL, NULL);
}
