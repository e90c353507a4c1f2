// SPDX-License-Identifier: Apache-2.0
/*
 * asr-vaultd: the vault's daemon, the conductor of the receiving side.
 *
 *   accept -> service -> ingest -> segment -> store
 *
 * Design: one thread, one loop. A file lock keeps a second daemon off the
 * folder. It holds no key that opens a payload, so all it needs is its folder,
 * a port and its TLS identity. Readers (point list, restore) never ask it.
 *
 * Invariants: any instant is a good one to be killed at. On SIGTERM hosts are
 * cut off and what was accepted is flushed first, for they would only have to
 * send it again.
 *
 * Context: blocks at start; later on small flushes only (ingest.c).
 */
#include "vault.h"

#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <signal.h>
#include <string.h>
#include <sys/file.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statvfs.h>

#define CONFIG_PATH	"/etc/asr/vaultd.conf"
#define TICK_NS		1000000000ULL
#define STOP_NS		5000000000ULL
#define SEG_MIN		(1u << 20)
#define SEG_MAX		(1u << 30)

struct settings {
	char config[4096], dir[4096], listen[300], control[108];
	uint64_t seg_bytes;
	bool config_given, verbose;
};

struct vaultd {
	struct settings set;
	struct loop *loop;
	struct catalog *cat;
	struct store *store;
	struct ingest *ingest;
	struct service *service;
	struct control *control;
	SSL_CTX *ctx;
	int lock_fd;
	struct listener *listener;
	struct loop_op tick;
	struct loop_idle idle;
	uint64_t since_ns, stop_ns;
	bool recheck, recheck_failed;	/* of the hosts' certificates */
};

/* ------------------------------------------------------------------ settings */

static int set_one(const char *section, const char *key, const char *value, void *arg, struct why *why)
{
	struct settings *s = arg;

	if (strcmp(section, "vaultd"))
		return -ENOENT;
	if (!strcmp(key, "listen")) {
		snprintf(s->listen, sizeof(s->listen), "%s", value);
	} else if (!strcmp(key, "vault_dir")) {
		snprintf(s->dir, sizeof(s->dir), "%s", value);
	} else if (!strcmp(key, "control")) {
		snprintf(s->control, sizeof(s->control), "%s", value);
	} else if (!strcmp(key, "segment_size")) {
		if (size_parse(value, &s->seg_bytes) || s->seg_bytes < SEG_MIN || s->seg_bytes > SEG_MAX)
			return why_set(why, EINVAL, "segment_size = %.40s: 1M to 1G is wanted", value);
	} else {
		return -ENOENT;
	}
	return 0;
}

static const char help[] =
	"asr-vaultd: receives what asrd ships, and keeps it\n"
	"\n"
	"usage: asr-vaultd [options]\n"
	"  --config PATH       settings [" CONFIG_PATH "]\n"
	"  --vault-dir DIR     the vault's folder, made by `asrctl vault init` [" ASR_VAULT_DIR "]\n"
	"  --listen ADDR:PORT  where hosts connect; ADDR may be empty, [::] or a name [:20003]\n"
	"  --control PATH      control socket [" ASR_VAULT_SOCKET "]\n"
	"  --segment-size N    bytes of a segment before it is sealed [64M]\n"
	"  --verbose           say more\n"
	"  --help              this text\n"
	"  --version           the version\n";

static const struct option options[] = {
	{ "config", required_argument, NULL, 'c' },
	{ "vault-dir", required_argument, NULL, 'd' },
	{ "listen", required_argument, NULL, 'l' },
	{ "control", required_argument, NULL, 's' },
	{ "segment-size", required_argument, NULL, 'z' },
	{ "verbose", no_argument, NULL, 'v' },
	{ "help", no_argument, NULL, 'h' },
	{ "version", no_argument, NULL, 'V' },
	{ NULL, 0, NULL, 0 },
};

/* -1: go on; else the exit status. first: only --config, --help, --version count */
static int options_read(int argc, char **argv, struct settings *s, bool first)
{
	static const char *const keys[] = { ['d'] = "vault_dir", ['l'] = "listen", ['s'] = "control",
					    ['z'] = "segment_size" };
	struct why why;
	int c;

	optind = 1;
	while ((c = getopt_long(argc, argv, "", options, NULL)) != -1) {
		if (c == 'h' || c == 'V') {
			fputs(c == 'h' ? help : "asr-vaultd " ASR_VERSION "\n", stdout);
			return 0;
		}
		if (c == '?') {
			fputs("try asr-vaultd --help\n", stderr);
			return 2;
		}
		if (c == 'c' && first) {
			snprintf(s->config, sizeof(s->config), "%s", optarg);
			s->config_given = true;
		} else if (c == 'v') {
			s->verbose = true;
		} else if (c != 'c' && !first && set_one("vaultd", keys[c], optarg, s, &why)) {
			log_err("%s", why.text);
			return 2;
		}
	}
	if (optind < argc) {
		fprintf(stderr, "asr-vaultd takes no \"%s\"; try --help\n", argv[optind]);
		return 2;
	}
	return -1;
}

/* ----------------------------------------------------------------- listening */

static void on_accept(int fd, void *arg)
{
	struct vaultd *d = arg;

	service_accept(d->service, fd);
}

/* -------------------------------------------------------------------- status */

static json_t *status_json(const struct vaultd *d)
{
	struct ingest_stat st;
	struct statvfs fs;
	char when[40];

	ingest_stat_get(d->ingest, &st);
	if (statvfs(d->set.dir, &fs) < 0)
		memset(&fs, 0, sizeof(fs));
	return json_pack("{s:s, s:s, s:s, s:s, s:s?, s:I, s:I, s:I, s:I, s:I, s:I, s:o}", "version", ASR_VERSION,
			 "vault_dir", d->set.dir, "listen", d->set.listen, "since",
			 time_format(d->since_ns, when), "error", st.error ? strerror(-st.error) : NULL,
			 "frames", (json_int_t)st.frames, "bytes", (json_int_t)st.bytes,
			 "flushes", (json_int_t)st.syncs, "segments_sealed", (json_int_t)st.segments,
			 "free_bytes", (json_int_t)(fs.f_bavail * fs.f_frsize),
			 "size_bytes", (json_int_t)(fs.f_blocks * fs.f_frsize),
			 "hosts", service_json(d->service));
}

static void on_control(struct control_call *call, const char *method, json_t *parameters, void *arg)
{
	if (!strcmp(method, "io.asr.vault.Status"))
		control_reply(call, status_json(arg), false);
	else
		control_error(call, "asr-vaultd knows no method \"%.100s\"; it knows io.asr.vault.Status", method);
}

static void notify_status(struct vaultd *d)
{
	struct ingest_stat st;
	char text[200];

	ingest_stat_get(d->ingest, &st);
	snprintf(text, sizeof(text), "WATCHDOG=1\nSTATUS=%llu frames, %llu MiB received%s%s",
		 (unsigned long long)st.frames, (unsigned long long)st.bytes >> 20,
		 st.error ? "; cannot write: " : "", st.error ? strerror(-st.error) : "");
	log_notify(text);
}

/* --------------------------------------------------------------- start, stop */

/* Has somebody revoked a certificate? Never waits: what is locked now is looked at again in a second */
static void recheck(struct vaultd *d)
{
	struct why why = { "" };
	int ret = 0;

	catalog_patience(d->cat, false);
	d->recheck |= catalog_changed(d->cat);
	if (d->recheck)
		ret = service_recheck(d->service, &why);
	catalog_patience(d->cat, true);
	d->recheck = ret;
	if (ret && ret != -EBUSY && !d->recheck_failed)
		log_err("who was revoked is not let go, for the catalogue cannot be read: %s", why.text);
	d->recheck_failed = ret && ret != -EBUSY;
}

static void on_tick(struct loop_op *op, int res, unsigned int flags)
{
	struct vaultd *d = op->arg;

	notify_status(d);
	recheck(d);
	listen_tick(d->listener);
	if (d->stop_ns && now_ns() > d->stop_ns + STOP_NS) {
		log_warn("stopping with frames that are not durable: their hosts will send them again");
		loop_stop(d->loop);
	}
	loop_timeout(d->loop, op, TICK_NS);
}

static void on_signal(int sig, void *arg)
{
	struct vaultd *d = arg;

	if (d->stop_ns)
		return;
	log_info("stopping");
	log_notify("STOPPING=1");
	d->stop_ns = now_ns();
	listen_close(d->listener);
	d->listener = NULL;
	service_stop(d->service);
}

static void on_idle(void *arg)
{
	struct vaultd *d = arg;

	if (d->stop_ns && ingest_idle(d->ingest))
		loop_stop(d->loop);
}

static int lock(struct vaultd *d, struct why *why)
{
	cleanup_free char *path = NULL;

	if (asprintf(&path, "%s/lock", d->set.dir) < 0)
		return why_set(why, ENOMEM, "out of memory");
	d->lock_fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	if (d->lock_fd < 0)
		return why_set(why, errno, "cannot open %s: %s", path, strerror(errno));
	if (flock(d->lock_fd, LOCK_EX | LOCK_NB) < 0)
		return why_set(why, EBUSY, "another asr-vaultd serves %s", d->set.dir);
	return 0;
}

static int open_tls(struct vaultd *d, struct why *why)
{
	cleanup_free char *ca = NULL, *cert = NULL, *key = NULL;

	if (asprintf(&ca, "%s/ca/ca.crt", d->set.dir) < 0 || asprintf(&cert, "%s/ca/server.crt", d->set.dir) < 0 ||
	    asprintf(&key, "%s/ca/server.key", d->set.dir) < 0)
		return why_set(why, ENOMEM, "out of memory");
	return tls_server(&(struct tls_files){ ca, cert, key }, &d->ctx, why);
}

/* The control socket's folder, when it is the usual one under /run */
static int open_control(struct vaultd *d, struct why *why)
{
	char dir[108];
	char *slash;

	snprintf(dir, sizeof(dir), "%s", d->set.control);
	slash = strrchr(dir, '/');
	if (slash && slash != dir) {
		*slash = 0;
		if (access(dir, F_OK) < 0 && dir_make(dir, 0755, why))
			return -EACCES;
	}
	return control_listen(d->loop, d->set.control, on_control, d, &d->control, why);
}

static int start(struct vaultd *d, struct why *why)
{
	int ret = catalog_open(d->set.dir, &d->cat, why);

	if (!ret)
		ret = lock(d, why);
	if (!ret)
		ret = open_tls(d, why);
	if (!ret)
		ret = store_open(d->set.dir, &d->store, why);
	if (ret)
		return ret;
	ret = loop_create(&d->loop, 256);
	if (!ret)
		ret = ingest_create(d->loop, d->store, d->set.seg_bytes, &d->ingest);
	if (!ret)
		ret = service_create(&(struct service_args){ d->set.dir, d->loop, d->cat, d->ingest, d->ctx },
				     &d->service);
	if (!ret)
		ret = loop_signals(d->loop, on_signal, d);
	if (ret)
		return why_set(why, -ret, "cannot start: %s", strerror(-ret));
	ret = listen_open(d->loop, d->set.listen, true, on_accept, d, &d->listener, why);
	if (!ret)
		ret = open_control(d, why);
	return ret;
}

static void stop(struct vaultd *d)
{
	if (d->control)
		control_close(d->control);
	service_destroy(d->service);
	ingest_destroy(d->ingest);
	loop_destroy(d->loop);
	store_close(d->store);
	tls_free(d->ctx);
	catalog_close(d->cat);
}

/* What a crash or a stranger could make use of */
static void harden(void)
{
	struct rlimit files;

	umask(077);
	prctl(PR_SET_DUMPABLE, 0, 0, 0, 0);
	prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
	/* as many files as are granted: one per host and per stream */
	if (getrlimit(RLIMIT_NOFILE, &files) == 0 && files.rlim_cur < files.rlim_max) {
		files.rlim_cur = files.rlim_max;
		setrlimit(RLIMIT_NOFILE, &files);
	}
}

static int serve(struct vaultd *d)
{
	int ret;

	d->since_ns = now_real_ns();
	d->tick = (struct loop_op){ .done = on_tick, .arg = d };
	d->idle = (struct loop_idle){ .fn = on_idle, .arg = d };
	loop_idle_add(d->loop, &d->idle);
	loop_timeout(d->loop, &d->tick, TICK_NS);
	log_info("serving %s on %s", d->set.dir, d->set.listen);
	log_notify("READY=1");
	ret = loop_run(d->loop);
	if (ret)
		log_err("the loop failed: %s", strerror(-ret));
	return ret ? 1 : 0;
}

int main(int argc, char **argv)
{
	static struct vaultd d = {
		.set = { .config = CONFIG_PATH, .dir = ASR_VAULT_DIR, .listen = ":20003",
			 .control = ASR_VAULT_SOCKET, .seg_bytes = SEG_BYTES_DEFAULT },
		.lock_fd = -1,
	};
	struct why why;
	int status = options_read(argc, argv, &d.set, true);

	log_init("asr-vaultd", d.set.verbose ? LOG_LVL_DEBUG : LOG_LVL_INFO);
	if (status >= 0)
		return status;
	if (conf_read(d.set.config, d.set.config_given, set_one, &d.set, &why)) {
		log_err("%s", why.text);
		return 1;
	}
	status = options_read(argc, argv, &d.set, false);
	if (status >= 0)
		return status;
	harden();
	if (start(&d, &why)) {
		log_err("%s", why.text);
		status = 1;
	} else {
		status = serve(&d);
	}
	stop(&d);
	return status;
}
