# SPDX-License-Identifier: Apache-2.0
# dm-asr: `make help` lists what there is. Everything built goes under build/.

SHELL	:= /bin/bash
B	:= build
PREFIX	?= /usr
UNITDIR	?= $(PREFIX)/lib/systemd/system
NBDKITDIR ?= $(shell pkg-config --variable=plugindir nbdkit)
DESTDIR	?=
SERIES	?= 6.1 6.12

CC	?= gcc
CLANG	?= clang
PKGS	:= openssl liburing libzstd libxxhash jansson sqlite3 devmapper inih
# libvirt and its XML library: their headers only, they are loaded when they are needed (tools/libvirt.c);
# nbdkit: it loads us (userland/nbd/asr.c)
HEADERS	:= libvirt libxml-2.0 nbdkit
WARN	:= -Wall -Wextra -Werror -Wmissing-prototypes -Wstrict-prototypes -Wvla -Wno-unused-parameter
OPT	?= -O2 -g
CFLAGS	?=
LDFLAGS	?=
XCFLAGS	= -std=gnu11 -D_GNU_SOURCE $(OPT) $(WARN) -fno-strict-aliasing -fstack-protector-strong \
	  -D_FORTIFY_SOURCE=2 -fPIC -fno-semantic-interposition -MMD -MP $(PKG_CFLAGS) -Iuserland -Itests/tools $(CFLAGS)
PKG_CFLAGS = $(eval PKG_CFLAGS := $$(shell pkg-config --cflags $(PKGS) $(HEADERS)))$(PKG_CFLAGS)
LIBS	= $(eval LIBS := $$(shell pkg-config --libs $(PKGS)) -lpthread -lm)$(LIBS)

MAINS	:= userland/asrd.c userland/vaultd.c
LIBSRC	:= $(filter-out $(MAINS),$(wildcard userland/*.c))
LIBOBJ	:= $(LIBSRC:%.c=$(B)/%.o)
TOOLOBJ	:= $(patsubst %.c,$(B)/%.o,$(wildcard tools/*.c))
PROGS	:= $(B)/asrd $(B)/asr-vaultd $(B)/asrctl
NBDPLUGIN := $(B)/nbdkit-asr-plugin.so
TESTTOOLS := $(patsubst tests/tools/%.c,$(B)/tests/%,$(wildcard tests/tools/*.c))
UNITS	:= $(patsubst tests/unit/%.c,$(B)/tests/unit/%,$(wildcard tests/unit/*.c))
FUZZERS	:= $(patsubst tests/fuzz/%.c,$(B)/fuzz/%,$(wildcard tests/fuzz/*.c))
MAN	:= $(patsubst docs/%.scd,$(B)/man/%,$(wildcard docs/*.scd))

.PHONY: all help setup deps kernels modules userland tests units check check-fs check-kernels check-debug demo \
	bench bench-kernel bench-pipeline bench-resync bench-rpo bench-groups fuzz fuzz-build style man install dkms-install \
	deb check-deb check-boot check-more soak-cuts soak-outage soak-groups \
	soak-bank clean
.DEFAULT_GOAL := all

all: userland man		## build the daemons, asrctl and the man pages

help:				## this list
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-15s %s\n",$$1,$$2}' $(MAKEFILE_LIST)

setup: deps kernels		## install what is needed, unpack the kernels into build/

deps:				## install the Debian packages (needs root or sudo)
	@tests/setup.sh deps

kernels: deps			## Debian kernels and headers, unpacked into build/kernels/
	@tests/setup.sh kernels $(SERIES)

modules: kernels		## dm-asr.ko for each kernel of SERIES, in build/module/
	@set -e; for s in $(SERIES); do tests/setup.sh module $$s; done

userland: $(PROGS) $(NBDPLUGIN)

tests: $(TESTTOOLS) $(UNITS)

# What wants the packages goes through a second make, which can then see them.
demo: deps			## the main job, end to end, in about two minutes
	@$(MAKE) --no-print-directory SERIES=6.1 modules userland tests
	@tests/e2e/demo.sh

check: deps			## all tests
	@$(MAKE) --no-print-directory modules userland tests man style fuzz-build
	@tests/run

check-kernels: deps		## every kernel Debian serves: build, boot, module tests (KERNELS="..." picks)
	@$(MAKE) --no-print-directory userland tests
	@tests/kernels/check.sh

FS_SECONDS ?= 3
check-fs: deps			## file-system tests over asr and over dm-linear, ext4 and xfs; about half an hour
	@$(MAKE) --no-print-directory modules userland tests
	@tests/fs/run.sh $(FS_SECONDS)

check-debug: deps		## the module tests on a debug kernel (KASAN, lockdep, kmemleak, failing allocations)
	@$(MAKE) --no-print-directory userland tests
	@tests/debug/check.sh

bench: deps			## all figures: tables, and JSON under build/bench/
	@$(MAKE) --no-print-directory bench-kernel bench-pipeline bench-resync bench-rpo bench-groups

bench-kernel: deps		## instructions per write, in QEMU
	@$(MAKE) --no-print-directory modules userland tests
	@tests/bench/kernel.sh

bench-pipeline: deps		## throughput, native, beside TLS, sealing, zstd and append alone
	@$(MAKE) --no-print-directory userland tests
	@tests/bench/pipeline.sh

bench-resync: deps		## what a resync of 4 GiB ships and how fast it reads, native
	@$(MAKE) --no-print-directory userland tests
	@tests/bench/resync.sh

bench-rpo: deps			## time from completion to durable, native
	@$(MAKE) --no-print-directory userland tests
	@tests/bench/rpo.sh

bench-groups: deps		## what the marks of a group over two hosts cost, and how long they hold, in QEMU
	@$(MAKE) --no-print-directory SERIES=6.1 modules userland tests
	@tests/bench/groups.sh

FUZZ_SECONDS ?= 60
fuzz-build: $(FUZZERS)
fuzz: deps			## every decoder under libFuzzer, FUZZ_SECONDS each (default 60)
	@$(MAKE) --no-print-directory fuzz-build
	@tests/fuzz/run.sh $(FUZZ_SECONDS)

style:				## checks on the sources themselves
	@tests/style.sh

man: $(MAN)

install: all			## programs, man pages, units, settings and completion, under DESTDIR and PREFIX
	install -d $(DESTDIR)$(PREFIX)/sbin $(DESTDIR)$(UNITDIR) $(DESTDIR)/etc/asr \
		$(DESTDIR)$(PREFIX)/share/man/man8 $(DESTDIR)$(PREFIX)/share/bash-completion/completions
	install -m 755 $(PROGS) $(DESTDIR)$(PREFIX)/sbin/
	install -D -m 644 $(NBDPLUGIN) $(DESTDIR)$(NBDKITDIR)/nbdkit-asr-plugin.so
	install -m 644 packaging/*.service packaging/*.timer $(DESTDIR)$(UNITDIR)/
	for f in asrd vaultd; do [ -e $(DESTDIR)/etc/asr/$$f.conf ] || \
		install -m 644 packaging/$$f.conf $(DESTDIR)/etc/asr/ || exit 1; done
	install -D -m 644 packaging/udev/90-asr.rules $(DESTDIR)$(PREFIX)/lib/udev/rules.d/90-asr.rules
	install -D -m 755 packaging/initramfs/hook $(DESTDIR)$(PREFIX)/share/initramfs-tools/hooks/asr
	install -D -m 755 packaging/initramfs/local-premount \
		$(DESTDIR)$(PREFIX)/share/initramfs-tools/scripts/local-premount/asr
	install -d $(DESTDIR)$(PREFIX)/share/asr/app
	install -m 755 packaging/app/* $(DESTDIR)$(PREFIX)/share/asr/app/
	install -m 644 $(MAN) $(DESTDIR)$(PREFIX)/share/man/man8/
	$(B)/asrctl completion bash > $(DESTDIR)$(PREFIX)/share/bash-completion/completions/asrctl

DKMS_VERSION := $(shell sed -n 's/^PACKAGE_VERSION="\(.*\)"/\1/p' dkms.conf 2>/dev/null)
dkms-install:			## the module's source into /usr/src, built by dkms for the running kernel
	install -d $(DESTDIR)/usr/src/dm-asr-$(DKMS_VERSION)
	cp -r Kbuild dkms.conf dm-asr $(DESTDIR)/usr/src/dm-asr-$(DKMS_VERSION)/
	[ -n "$(DESTDIR)" ] || dkms install dm-asr/$(DKMS_VERSION)

deb: deps			## Debian packages of this tree, in build/deb/ (DEB_VERSION= for another version)
	@tests/setup.sh packaging
	@packaging/build-deb.sh $(DEB_VERSION)

check-deb: deps			## the packages in a fresh Debian: install, upgrade under load, remove
	@$(MAKE) --no-print-directory deb userland tests
	@tests/run deb/

check-boot: deps		## a Debian whose root disk is protected: power cuts, reboots, its replica
	@tests/setup.sh packaging
	@$(MAKE) --no-print-directory SERIES=6.1 modules userland tests man
	@tests/run boot/

check-more: deps		## make check with its longer tests, and those on all kernels it has
	@MORE=1 ASR_SERIES="$(SERIES)" $(MAKE) --no-print-directory check

CUTS ?= 200
soak-cuts: deps			## CUTS= power cuts of one host with log, spool and outages, each return judged
	@$(MAKE) --no-print-directory SERIES=6.1 modules userland tests
	@CUTS=$(CUTS) tests/run soak/10

soak-outage: deps		## the vault is away for ten minutes at 20 MB/s, all kinds of kills on the way: every write is a point
	@$(MAKE) --no-print-directory userland tests
	@OUTAGE=600 RATE=20 CHECKS=20 tests/run e2e/30-spool

soak-groups: POINTS ?= 1000
soak-groups: deps		## POINTS= points of a group over three hosts, with deaths and bad links on the way, each judged
	@$(MAKE) --no-print-directory SERIES=6.1 modules userland tests
	@POINTS=$(POINTS) tests/run soak/20

soak-bank: POINTS ?= 100
soak-bank: deps			## POINTS= points of money that moves between two PostgreSQL servers on two hosts, each judged
	@$(MAKE) --no-print-directory SERIES=6.1 modules userland tests
	@POINTS=$(POINTS) tests/run soak/21

clean:				## remove what was built, keep the unpacked kernels
	rm -rf $(B)/userland $(B)/tools $(B)/tests $(B)/fuzz $(B)/fuzzobj $(B)/man $(B)/module \
		$(PROGS) $(NBDPLUGIN) $(B)/libasr.a $(B)/test-out

# ------------------------------------------------------------------- rules

$(B)/%.o: %.c
	@mkdir -p $(@D)
	$(CC) $(XCFLAGS) -c -o $@ $<

$(B)/libasr.a: $(LIBOBJ)
	@rm -f $@
	$(AR) rcs $@ $^

$(B)/asrd: $(B)/userland/asrd.o $(B)/libasr.a
	$(CC) $(OPT) $(LDFLAGS) -o $@ $^ $(LIBS)

$(B)/asr-vaultd: $(B)/userland/vaultd.o $(B)/libasr.a
	$(CC) $(OPT) $(LDFLAGS) -o $@ $^ $(LIBS)

$(B)/asrctl: $(TOOLOBJ) $(B)/libasr.a
	$(CC) $(OPT) $(LDFLAGS) -o $@ $^ $(LIBS)

# nbdkit knows it by plugin_init alone
$(NBDPLUGIN): userland/nbd/asr.c $(B)/libasr.a
	$(CC) $(XCFLAGS) $(LDFLAGS) -shared -Wl,--exclude-libs,ALL -o $@ $< $(B)/libasr.a $(LIBS)

$(B)/tests/unit/%: tests/unit/%.c $(B)/libasr.a
	@mkdir -p $(@D)
	$(CC) $(XCFLAGS) -o $@ $< $(B)/libasr.a -lcmocka $(LIBS)

$(B)/tests/%: tests/tools/%.c $(B)/libasr.a
	@mkdir -p $(@D)
	$(CC) $(XCFLAGS) -o $@ $< $(B)/libasr.a $(LIBS)

# The fuzzed code is compiled once more, by clang, with its sanitizers.
FUZZFLAGS = -std=gnu11 -D_GNU_SOURCE -O1 -g -fsanitize=fuzzer-no-link,address,undefined \
	    -fno-sanitize-recover=undefined -Iuserland -MMD -MP $(PKG_CFLAGS) -Wno-unknown-attributes
FUZZOBJ	:= $(LIBSRC:%.c=$(B)/fuzzobj/%.o)
$(B)/fuzzobj/%.o: %.c
	@mkdir -p $(@D)
	$(CLANG) $(FUZZFLAGS) -c -o $@ $<

$(B)/fuzz/%: tests/fuzz/%.c $(FUZZOBJ)
	@mkdir -p $(@D)
	$(CLANG) $(FUZZFLAGS) -fsanitize=fuzzer -o $@ $< $(FUZZOBJ) $(LIBS)

$(B)/man/%: docs/%.scd
	@mkdir -p $(@D)
	scdoc < $< > $@

-include $(shell find $(B)/userland $(B)/tools $(B)/tests $(B)/fuzz $(B)/fuzzobj -name '*.d' -type f 2>/dev/null)
