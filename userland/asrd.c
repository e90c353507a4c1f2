// SPDX-License-Identifier: Apache-2.0
/*
 * asrd, the replicator: drains the rings of this host's groups into the vault.
 *
 * Design. One thread, one io_uring. This file only puts the stages together;
 * source.h is their plan.
 *
 * asrd may serve the volume that its own host runs on. So it must never wait
 * for a write that waits for it: all memory is locked, its allocations do not
 * start I/O (PR_SET_IO_FLUSHER), it logs to stderr alone, and writes to its
 * state folder once a minute at most.
 *
 * It ends at once on SIGTERM: what is not durable stays in the ring and in the
 * dirty map, and the next asrd goes on from there.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <libgen.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>

#include "source.h"

#ifndef PR_SET_IO_FLUSHER
#define PR_SET_IO_FLUSHER	57
#endif
#define NS_PER_S		1000000000ull
#define PEERS_LISTEN		":20004"
#define DELAY_DEFAULT_MS	4
#define DELAY_MAX_MS		1000
#define SPOOL_MAX_LEAST		(8ull << 20)	/* eight files of the least size */
#define SPOOL_MAX_DEFAULT	(4ull << 30)	/* ten minutes at 20 MB/s, compressed by a third; small beside
						   the disk of a host that has data to protect */

struct options {
	const char *config;
	bool config_given;
	char *state_dir, *control, *spool_dir, *peers_listen, *peers_address;
	uint64_t spool_max;
	const char *ring_file, *ring_disk, *device;
	int compression, log_level;
	uint64_t delay_ms;
};

static const char usage[] =
	"usage: asrd [options]\n"
	"Ships the writes that dm-asr captures to the vault.\n"
	"\n"
	"  --config FILE      configuration (/etc/asr/asrd.conf)\n"
	"  --state-dir DIR    identity, groups, keys (" ASR_STATE_DIR ")\n"
	"  --control PATH     control socket (" ASR_SOCKET ")\n"
	"  --device PATH      control device of the module (/dev/dm-asr)\n"
	"  --ring-file FILE   for benchmarks: a ring in a file instead of the module\n"
	"  --ring-disk FILE   for benchmarks: the disk of the ring file, dirty where FILE.dirty says\n"
	"  --help             this text\n"
	"  --version          the version\n";

static int parse_uint(const char *key, const char *value, uint64_t max, uint64_t *out, struct why *why)
{
	char *end;

	errno = 0;
	*out = strtoull(value, &end, 10);
	if (errno || end == value || *end || value[0] == '-' || *out > max)
		return why_set(why, EINVAL, "%s = %s: a number from 0 to %llu is right", key, value,
			       (unsigned long long)max);
	return 0;
}

static int set_string(char **field, const char *value)
{
	char *copy = *field ? *field : strdup(value);	/* the command line came first */

	if (!copy)
		return -ENOMEM;
	*field = copy;
	return 0;
}

static int set_log_level(int *level, const char *value, struct why *why)
{
	static const struct { const char *name; int level; } names[] = {
		{ "error", LOG_LVL_ERR }, { "warning", LOG_LVL_WARN },
		{ "info", LOG_LVL_INFO }, { "debug", LOG_LVL_DEBUG },
	};

	for (int i = 0; i < 4; i++) {
		if (!strcmp(value, names[i].name)) {
			*level = names[i].level;
			return 0;
		}
	}
	return why_set(why, EINVAL, "log_level = %s: error, warning, info or debug is right", value);
}

static int configure_spool(const char *key, const char *value, struct options *o, struct why *why)
{
	if (!strcmp(key, "dir"))
		return value[0] == '/' ? set_string(&o->spool_dir, value) :
		       why_set(why, EINVAL, "dir = %s: an absolute path is right", value);
	if (strcmp(key, "max"))
		return -ENOENT;
	if (size_parse(value, &o->spool_max) || (o->spool_max && o->spool_max < SPOOL_MAX_LEAST))
		return why_set(why, EINVAL, "max = %s: 0 (no spool), or a size of at least 8M is right", value);
	return 0;
}

static int configure_peers(const char *key, const char *value, struct options *o, struct why *why)
{
	char host[256], port[8];
	uint8_t number[16];
	struct why bad;

	if (strcmp(key, "listen") && strcmp(key, "address"))
		return -ENOENT;
	if (address_split(value, host, port, &bad) || (!strcmp(key, "address") &&
	    inet_pton(AF_INET, host, number) != 1 && inet_pton(AF_INET6, host, number) != 1))
		return why_set(why, EINVAL, "%s = %s: %s is right", key, value, strcmp(key, "listen") ?
			       "ADDR:PORT, as other hosts reach this one, ADDR as a number," : "ADDR:PORT or :PORT");
	return set_string(strcmp(key, "listen") ? &o->peers_address : &o->peers_listen, value);
}

static int configure(const char *section, const char *key, const char *value, void *arg, struct why *why)
{
	struct options *o = arg;
	uint64_t n;
	int r;

	if (!strcmp(section, "spool"))
		return configure_spool(key, value, o, why);
	if (!strcmp(section, "peers"))
		return configure_peers(key, value, o, why);
	if (strcmp(section, "asrd"))
		return -ENOENT;
	if (!strcmp(key, "state_dir"))
		return set_string(&o->state_dir, value);
	if (!strcmp(key, "control"))
		return set_string(&o->control, value);
	if (!strcmp(key, "log_level"))
		return set_log_level(&o->log_level, value, why);
	if (!strcmp(key, "batch_delay_ms")) {
		r = parse_uint(key, value, DELAY_MAX_MS, &o->delay_ms, why);
		return !r && !o->delay_ms ? why_set(why, EINVAL, "batch_delay_ms = 0: at least 1 is right") : r;
	}
	if (!strcmp(key, "compression")) {
		r = parse_uint(key, value, 19, &n, why);
		o->compression = r ? 0 : (int)n;
		return r;
	}
	return -ENOENT;
}

/* 0: go on; 1: done, exit 0; 2: wrong usage */
static int parse_options(int argc, char **argv, struct options *o)
{
	static const struct option longs[] = {
		{ "config", required_argument, NULL, 'c' }, { "state-dir", required_argument, NULL, 's' },
		{ "control", required_argument, NULL, 'C' }, { "device", required_argument, NULL, 'd' },
		{ "ring-file", required_argument, NULL, 'r' },
		{ "ring-disk", required_argument, NULL, 'R' }, { "help", no_argument, NULL, 'h' },
		{ "version", no_argument, NULL, 'V' }, { NULL, 0, NULL, 0 },
	};
	int c;

	while ((c = getopt_long(argc, argv, "", longs, NULL)) != -1) {
		switch (c) {
		case 'c': o->config = optarg; o->config_given = true; break;
		case 's': free(o->state_dir); o->state_dir = strdup(optarg); break;
		case 'C': free(o->control); o->control = strdup(optarg); break;
		case 'd': o->device = optarg; break;
		case 'r': o->ring_file = optarg; break;
		case 'R': o->ring_disk = optarg; break;
		case 'h': fputs(usage, stdout); return 1;
		case 'V': puts("asrd " ASR_VERSION); return 1;
		default: fputs("asrd --help lists the options\n", stderr); return 2;
		}
	}
	if (optind < argc) {
		fprintf(stderr, "asrd: %s is not an option; asrd --help lists them\n", argv[optind]);
		return 2;
	}
	return 0;
}

/* Never swapped, never killed first, never waiting for its own writes */
static void harden(void)
{
	cleanup_fd int fd = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);

	umask(077);
	if (fd < 0 || write(fd, "-1000", 5) != 5)
		log_warn("cannot protect myself from the out-of-memory killer: %s", strerror(errno));
	if (prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0))
		log_warn("cannot become an I/O flusher: %s", strerror(errno));
	prctl(PR_SET_DUMPABLE, 0);
	if (mlockall(MCL_CURRENT | MCL_FUTURE))
		log_warn("cannot lock my memory: %s", strerror(errno));
}

static void on_signal(int sig, void *arg)
{
	struct asrd *d = arg;

	log_notify("STOPPING=1");
	log_info("ending on signal %d", sig);
	loop_stop(d->loop);
}

struct ticker {
	struct asrd *d;
	struct loop_op op;
};

static void tick(struct loop_op *op, int res, unsigned int flags)
{
	struct ticker *t = op->arg;

	group_second(t->d);
	peers_second(t->d->peers);
	quiet_second(t->d);
	log_notify("WATCHDOG=1");
	loop_timeout(t->d->loop, op, NS_PER_S);
}

static int listen_control(struct asrd *d, const char *path, struct control **control, struct why *why)
{
	cleanup_free char *copy = strdup(path);
	int r = copy ? dir_make(dirname(copy), 0755, why) : -ENOMEM;

	return r ? r : control_listen(d->loop, path, method_call, d, control, why);
}

static int start(struct asrd *d, const struct options *o, struct control **control, struct why *why)
{
	int r = loop_create(&d->loop, 256);

	if (r)
		return why_set(why, -r, "no io_uring: %s", strerror(-r));
	r = loop_signals(d->loop, on_signal, d);
	if (!r)
		r = pack_room_create(&d->room);
	if (!r)
		r = dir_make(o->state_dir, 0700, why);
	if (!r)
		r = listen_control(d, o->control, control, why);
	if (!r)
		r = ship_create(d->loop, o->state_dir, &group_ship_ops, d, &d->ship);
	if (!r)
		r = peers_create(d, o->peers_listen, o->peers_address, &d->peers);
	return r ? r : group_load_all(d, why);
}

/* The packaged unit lets asrd write in its state folder only */
static void check_spool_dir(const char *spool_dir)
{
	cleanup_free char *dir = strdup(spool_dir);
	int r = dir ? access(dir, W_OK) : 0;

	while (r && errno == ENOENT && strrchr(dir, '/') > dir) {	/* what is there of it decides */
		*strrchr(dir, '/') = 0;
		r = access(dir, W_OK);
	}
	if (r && errno == EROFS)
		log_warn("[spool] dir = %s: asrd cannot write there (%s). If systemd keeps it from it: make the "
			 "folder, and `systemctl edit asrd`, with the lines [Service] and ReadWritePaths=%s",
			 spool_dir, strerror(EROFS), spool_dir);
}

int main(int argc, char **argv)
{
	struct options o = {
		.config = "/etc/asr/asrd.conf", .compression = 1, .log_level = LOG_LVL_INFO,
		.delay_ms = DELAY_DEFAULT_MS, .spool_max = SPOOL_MAX_DEFAULT,
	};
	struct asrd d = { .groups = NULL };
	struct ticker ticker = { .d = &d, .op = { .done = tick, .arg = &ticker } };
	struct control *control = NULL;
	struct why why = { "" };
	int r = parse_options(argc, argv, &o);

	if (r)
		return r == 1 ? 0 : 2;
	r = conf_read(o.config, o.config_given, configure, &o, &why);
	if (r || set_string(&o.state_dir, ASR_STATE_DIR) || set_string(&o.control, ASR_SOCKET) ||
	    set_string(&o.peers_listen, PEERS_LISTEN)) {
		fprintf(stderr, "asrd: %s\n", why.text[0] ? why.text : strerror(-r));
		return 2;
	}
	if (!o.spool_dir && asprintf(&o.spool_dir, "%s/spool", o.state_dir) < 0)
		return 1;
	log_init("asrd", o.log_level);
	harden();
	if (o.spool_max)
		check_spool_dir(o.spool_dir);
	d.state_dir = o.state_dir;
	d.device = o.device;
	d.ring_file = o.ring_file;
	d.ring_disk = o.ring_disk;
	d.compression = o.compression;
	d.spool_dir = o.spool_dir;
	d.spool_max = o.spool_max;
	d.batch_delay_ns = o.delay_ms * 1000000;
	d.idle = (struct loop_idle){ .fn = flow_run_all, .arg = &d };
	r = start(&d, &o, &control, &why);
	if (r) {
		log_err("cannot start: %s", why.text[0] ? why.text : strerror(-r));
		return 1;
	}
	loop_idle_add(d.loop, &d.idle);
	loop_timeout(d.loop, &ticker.op, NS_PER_S);
	log_notify("READY=1");
	r = loop_run(d.loop);
	if (r)
		log_err("the loop failed: %s", strerror(-r));
	group_stop_all(&d);
	control_close(control);
	return r ? 1 : 0;	/* the process's end closes the rest, the ring first of all */
}
