// SPDX-License-Identifier: Apache-2.0
/*
 * The control socket: calls are answered in order, whole, and what breaks a
 * bound or the format is cut off without harm to the others.
 */
#include "asr.h"

#include <setjmp.h>
#include <stdarg.h>
#include <string.h>
#include <cmocka.h>

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/un.h>

static char path[64];
static struct loop *loop;
static struct control *control;
static pthread_t thread;
static struct control_call *parked;	/* an unanswered call of method "Park" */
static volatile int gone;

static void on_gone(void *arg)
{
	parked = NULL;
	gone++;
}

static void stopped(struct loop_op *op, int res, unsigned int flags)
{
	loop_stop(loop);
}

static struct loop_op stop_op = { .done = stopped };

static void on_call(struct control_call *call, const char *method, json_t *parameters, void *arg)
{
	if (!strcmp(method, "Echo")) {
		control_reply(call, json_incref(parameters), false);
	} else if (!strcmp(method, "Count")) {
		bool more = control_wants_more(call);

		for (int i = 0; more && i < 3; i++)
			control_reply(call, json_pack("{s:i}", "i", i), true);
		control_reply(call, json_pack("{s:i}", "i", 3), false);
	} else if (!strcmp(method, "Park")) {
		parked = call;
		control_on_gone(call, on_gone, NULL);
	} else if (!strcmp(method, "Unpark")) {
		struct control_call *p = parked;

		parked = NULL;
		control_reply(call, NULL, false);
		if (p)
			control_reply(p, json_pack("{s:b}", "late", 1), false);
	} else if (!strcmp(method, "Big")) {
		size_t n = (size_t)json_integer_value(json_object_get(parameters, "n"));
		char *text = malloc(n + 1);

		memset(text, 'x', n);
		text[n] = 0;
		control_reply(call, json_pack("{s:s}", "text", text), false);
		free(text);
	} else if (!strcmp(method, "Stop")) {
		control_reply(call, NULL, false);
		control_close(control);
		control = NULL;
		/* one more turn, so that everything in flight comes back */
		loop_timeout(loop, &stop_op, 50000000);
	} else {
		control_error(call, "there is no method %s", method);
	}
}

static void *run(void *arg)
{
	loop_run(loop);
	return NULL;
}

static int keep(json_t *reply, void *arg)
{
	json_array_append((json_t *)arg, reply);
	return 0;
}

static json_t *call(const char *method, json_t *parameters, bool more, int want, struct why *why)
{
	json_t *got = json_array();

	*why->text = 0;
	assert_int_equal(control_call(path, method, parameters, more, keep, got, why), want);
	return got;
}

static int raw_connect(void)
{
	struct sockaddr_un a = { .sun_family = AF_UNIX };
	struct timeval limit = { .tv_sec = 5 };
	int fd = socket(AF_UNIX, SOCK_STREAM, 0);

	strcpy(a.sun_path, path);
	assert_int_equal(connect(fd, (void *)&a, sizeof(a)), 0);
	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
	return fd;
}

/*
 * A ring that was destroyed a moment ago still has the kernel work for it in
 * this thread, and a receive with a time limit is interrupted by that.
 */
static ssize_t raw_recv(int fd, char *buf, size_t bytes)
{
	ssize_t n;

	do {
		n = recv(fd, buf, bytes, 0);
	} while (n < 0 && errno == EINTR);
	return n;
}

/* The server closes: no byte comes. */
static void expect_cut(int fd)
{
	char c;

	assert_true(raw_recv(fd, &c, 1) <= 0 && errno != EAGAIN);
	close(fd);
}

static void answers(void **state)
{
	struct why why;
	json_t *got = call("Echo", json_pack("{s:s}", "a", "b"), false, 0, &why);

	assert_int_equal(json_array_size(got), 1);
	assert_string_equal(json_string_value(json_object_get(json_array_get(got, 0), "a")), "b");
	json_decref(got);
	got = call("Count", NULL, true, 0, &why);
	assert_int_equal(json_array_size(got), 4);
	json_decref(got);
	got = call("Count", NULL, false, 0, &why);
	assert_int_equal(json_array_size(got), 1);
	json_decref(got);
	json_decref(call("Nonsense", NULL, false, -EREMOTEIO, &why));
	assert_string_equal(why.text, "there is no method Nonsense");
	got = call("Big", json_pack("{s:i}", "n", 9000000), false, 0, &why);
	assert_int_equal(json_string_length(json_object_get(json_array_get(got, 0), "text")), 9000000);
	json_decref(got);
}

static void is_private(void **state)
{
	struct control *second;
	struct loop *l;
	struct stat st;
	struct why why;

	assert_int_equal(stat(path, &st), 0);
	assert_int_equal(st.st_mode & 0777, 0600);
	assert_int_equal(loop_create(&l, 8), 0);
	assert_int_equal(control_listen(l, path, on_call, NULL, &second, &why), -EADDRINUSE);
	loop_destroy(l);
}

/* Calls of one connection, sent at once, split anywhere, are answered in order. */
static void pipelined(void **state)
{
	static const char calls[] = "{\"method\":\"Echo\",\"parameters\":{\"n\":1}}\0"
				    "{\"method\":\"Echo\",\"parameters\":{\"n\":2}}\0"
				    "{\"method\":\"Echo\",\"parameters\":{\"n\":3}}";
	static const char want[] = "{\"parameters\":{\"n\":1}}\0{\"parameters\":{\"n\":2}}\0{\"parameters\":{\"n\":3}}";

	for (size_t cut = 1; cut < sizeof(calls); cut += 7) {
		char buf[256];
		size_t n = 0;
		int fd = raw_connect();

		assert_int_equal(send(fd, calls, cut, 0), cut);
		usleep(500);
		assert_int_equal(send(fd, calls + cut, sizeof(calls) - cut, 0), sizeof(calls) - cut);
		while (n < sizeof(want)) {
			ssize_t r = raw_recv(fd, buf + n, sizeof(buf) - n);

			assert_true(r > 0);
			n += r;
		}
		assert_int_equal(n, sizeof(want));
		assert_memory_equal(buf, want, n);
		close(fd);
	}
}

static void hostile(void **state)
{
	static const char *const bad[] = {
		"", "x", "[]", "{}", "{\"method\":1}", "{\"method\":\"Echo\",\"parameters\":[]}",
		"{\"method\":\"Echo\",\"more\":1}", "{\"method\":\"Echo\",\"method\":\"Echo\"}",
		"{\"method\":\"Echo\"", "\xff\xfe",
	};
	char *big = malloc(2 << 20);
	struct why why;
	int fd;

	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		fd = raw_connect();
		send(fd, bad[i], strlen(bad[i]) + 1, 0);
		expect_cut(fd);
	}
	/* never a NUL: cut at 1 MiB */
	memset(big, 'a', 2 << 20);
	fd = raw_connect();
	for (size_t n = 0; n < 2 << 20; n += 65536)
		if (send(fd, big + n, 65536, MSG_NOSIGNAL) < 0)
			break;
	expect_cut(fd);
	free(big);
	json_decref(call("Echo", NULL, false, 0, &why));
}

/* 70 peers: those over the limit are turned away, the others live on. */
static void too_many(void **state)
{
	struct why why;
	int fds[70];

	for (int i = 0; i < 70; i++)
		fds[i] = raw_connect();
	expect_cut(fds[69]);
	for (int i = 0; i < 69; i++)
		close(fds[i]);
	usleep(100000);
	json_decref(call("Echo", NULL, false, 0, &why));
}

static void late_and_gone(void **state)
{
	static const char park[] = "{\"method\":\"Park\"}\0{\"method\":\"Echo\"}";
	static const char want[] = "{\"parameters\":{\"late\":true}}\0{\"parameters\":{}}";
	struct why why;
	char buf[256];
	size_t n = 0;
	int fd = raw_connect();

	send(fd, park, sizeof(park), 0);
	usleep(50000);
	json_decref(call("Unpark", NULL, false, 0, &why));
	while (n < sizeof(want)) {
		ssize_t r = raw_recv(fd, buf + n, sizeof(buf) - n);

		assert_true(r > 0);
		n += r;
	}
	assert_memory_equal(buf, want, sizeof(want));
	send(fd, park, 18, 0);
	usleep(50000);
	close(fd);
	for (int i = 0; i < 100 && !gone; i++)
		usleep(10000);
	assert_int_equal(gone, 1);
}

static void nobody_there(void **state)
{
	struct why why = {0};

	assert_int_equal(control_call("/tmp/asr-none.sock", "Echo", NULL, false, NULL, NULL, &why), -ENOENT);
	assert_non_null(strstr(why.text, "nobody answers"));
}

static int setup(void **state)
{
	struct why why;

	snprintf(path, sizeof(path), "/tmp/asr-control-%d.sock", getpid());
	if (loop_create(&loop, 64) || control_listen(loop, path, on_call, NULL, &control, &why))
		return -1;
	return pthread_create(&thread, NULL, run, NULL);
}

/* Closing while peers are connected leaves nothing behind (leak checker). */
static int teardown(void **state)
{
	int fd = raw_connect();
	struct why why;

	/* the answer is lost with the connection */
	json_decref(call("Stop", NULL, false, -ECONNRESET, &why));
	pthread_join(thread, NULL);
	close(fd);
	loop_destroy(loop);
	return access(path, F_OK) ? 0 : -1;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(answers),
		cmocka_unit_test(is_private),
		cmocka_unit_test(pipelined),
		cmocka_unit_test(hostile),
		cmocka_unit_test(too_many),
		cmocka_unit_test(late_and_gone),
		cmocka_unit_test(nobody_there),
	};

	signal(SIGPIPE, SIG_IGN);
	return cmocka_run_group_tests(tests, setup, teardown);
}
