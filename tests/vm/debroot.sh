#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# debroot.sh - whole Debian systems for tests: a root with systemd, packages and kernels.
#
#   debroot.sh build NAME PACKAGE...   make build/debroot/NAME.tar of this release of Debian
#                                      with these packages; kept until the list changes
#   debroot.sh unpack NAME DIR         the tar as a folder, to change and to run things in
#   debroot.sh run DIR CMD...          a command in that folder, as the root of its own
#                                      mount and process namespace; no service is started
#   debroot.sh pack DIR FILE SIZE      that folder as an ext4 image (SIZE as for truncate)
#   debroot.sh image NAME FILE SIZE    unpack and pack in one
#
# A test boots the image by vm_start_root of vm.sh, which takes kernel and initrd out of
# it, so `build` wants linux-image-cloud-amd64 (or one with a version) among the packages.
# systemd, udev and what the harness needs are there without being named.
#
# Design: mmdebstrap makes a tar from the suites and the mirror that the host's own apt
# is configured for. A pack adds the harness's agent as a service (vm_exec talks to it), a
# static address for vm.sh's --net, and an empty fstab: the kernel's command line names the
# root, so that a test may put the root on any device. Files appear by rename.
# Context: root is needed (chroots, device nodes); others are asked for sudo.

set -euo pipefail
[ "$(id -u)" = 0 ] || exec sudo -E "$0" "$@"
cd "$(dirname "$0")/../.."
top=$PWD
cache=$top/build/debroot
always=(systemd-sysv udev dbus kmod iproute2 dmsetup e2fsprogs initramfs-tools busybox zstd)

die() { echo "debroot: $*" >&2; exit 1; }

sources() {
	apt-get indextargets --format 'deb $(SITE) $(RELEASE) $(COMPONENT)' "Created-By: Packages" "Origin: Debian" |
		sort -u
}

cmd_build() {
	local name=$1 tar=$cache/$1.tar key s
	shift
	mkdir -p "$cache"
	command -v mmdebstrap >/dev/null || "$top/tests/setup.sh" packaging
	s=$(sources)
	[ -n "$s" ] || die "apt knows no Debian suite: apt-get update"
	key=$(printf '%s\n' "$s" "${always[@]}" "$@" | sha256sum | cut -d' ' -f1)
	(
		flock 9
		[ ! -e "$tar" ] || [ "$(cat "$cache/$name.key" 2>/dev/null)" != "$key" ] || exit 0
		echo "debroot: making $name" >&2
		printf '%s\n' "$s" >"$cache/$name.list"
		mmdebstrap --mode=root --format=tar --variant=minbase \
			--include="$(IFS=,; echo "${always[*]},$*")" --aptopt='Acquire::Retries "3"' \
			--aptopt='Acquire::Languages "none"' --aptopt='APT::Install-Recommends "false"' \
			--dpkgopt=force-unsafe-io "$(. /etc/os-release; echo "$VERSION_CODENAME")" \
			"$tar.new" "$cache/$name.list" >"$cache/$name.log" 2>&1 ||
			{ tail -n 20 "$cache/$name.log" >&2; die "cannot make $name"; }
		mv "$tar.new" "$tar"
		echo "$key" >"$cache/$name.key"
	) 9>"$cache/.$name.lock"
}

cmd_unpack() {
	[ -e "$cache/$1.tar" ] || die "no root '$1': debroot.sh build first"
	rm -rf "$2"
	mkdir -p "$2"
	tar -xf "$cache/$1.tar" --numeric-owner --xattrs -C "$2"
	: >"$2/etc/fstab"
	od -An -N16 -tx4 /dev/urandom | tr -d ' ' >"$2/etc/machine-id"
	echo asr-test >"$2/etc/hostname"
	printf '127.0.0.1 localhost asr-test\n' >"$2/etc/hosts"
}

cmd_run() {
	local dir=$1
	shift
	unshare --mount --pid --fork --kill-child bash -euc '
		d=$1; shift
		mount -t proc proc "$d/proc"
		mount -t sysfs -o ro sys "$d/sys"
		mount -t tmpfs tmpfs "$d/run"
		mkdir -p "$d/dev/pts"
		mount -t devpts devpts "$d/dev/pts"
		[ ! -e /etc/resolv.conf ] || { : >>"$d/etc/resolv.conf"; mount --bind /etc/resolv.conf "$d/etc/resolv.conf"; }
		[ ! -e /etc/hosts ] || { : >>"$d/etc/hosts"; mount --bind /etc/hosts "$d/etc/hosts"; }
		exec chroot "$d" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 \
			DEBIAN_FRONTEND=noninteractive "$@"' run "$dir" "$@" </dev/null
}

add_agent() {
	local d=$1 u=$1/etc/systemd/system
	install -D -m 755 tests/vm/guest-agent "$d/usr/local/lib/asr-test/guest-agent"
	install -m 755 tests/vm/debroot-agent "$d/usr/local/lib/asr-test/agent"
	mkdir -p "$u/multi-user.target.wants" "$d/etc/systemd/network"
	cat >"$u/asr-test-agent.service" <<-'UNIT'
		[Unit]
		Description=the test's hand in this machine
		[Service]
		ExecStart=/usr/local/lib/asr-test/agent
		Restart=always
		OOMScoreAdjust=-1000
		[Install]
		WantedBy=multi-user.target
	UNIT
	ln -sfn ../asr-test-agent.service "$u/multi-user.target.wants/asr-test-agent.service"
	ln -sfn /lib/systemd/system/systemd-networkd.service "$u/multi-user.target.wants/systemd-networkd.service"
	printf '[Match]\nType=ether\n[Network]\nAddress=10.0.2.15/24\nGateway=10.0.2.2\n' \
		>"$d/etc/systemd/network/10-asr-test.network"
}

cmd_pack() {
	local dir=$1 img=$2 size=$3
	add_agent "$dir"
	rm -f "$img.new"
	truncate -s "$size" "$img.new"
	mke2fs -q -t ext4 -E lazy_itable_init=1 -L asr-root -d "$dir" "$img.new" >/dev/null || die "cannot pack $dir into $size"
	mv "$img.new" "$img"
}

cmd_image() {
	local d
	mkdir -p "$cache"
	d=$(mktemp -d "$cache/$1.XXXXXX")
	cmd_unpack "$1" "$d"
	cmd_pack "$d" "$2" "$3"
	rm -rf "$d"
}

usage="usage: debroot.sh build NAME PACKAGE... | unpack NAME DIR | run DIR CMD... | pack DIR FILE SIZE | image NAME FILE SIZE"
case ${1:-}/$# in
build/[3-9] | build/[1-9][0-9] | unpack/3 | pack/4 | image/4 | run/[3-9] | run/[1-9][0-9])
	cmd=$1
	shift
	"cmd_$cmd" "$@"
	;;
*) die "$usage" ;;
esac
