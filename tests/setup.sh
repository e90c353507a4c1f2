#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# setup.sh - fetch what the build and the tests need.
#
#   tests/setup.sh deps                  install the Debian packages
#   tests/setup.sh packaging             install what building and trying Debian packages takes
#   tests/setup.sh kernels [--newest] [SERIES...]
#                                        unpack stock kernels under build/kernels/SERIES;
#                                        status 3: one of them is not served today
#   tests/setup.sh series                print the series that Debian serves
#   tests/setup.sh module [SERIES...]    build dm-asr.ko into build/module/SERIES
#
# Design: kernels and headers are unpacked with dpkg -x, never installed, so the
# host's /boot and /lib/modules stay as they are. A series is a folder:
#   root/     the unpacked packages     version  the kernel's release string
#   vmlinuz   the image                 headers  the folder for `make -C`
# and is complete once its `version` file exists; that file is made last.
# Modules are built in a copy of the sources: no object ever lies in the tree.

set -euo pipefail
cd "$(dirname "$0")/.."
top=$PWD
mkdir -p build/kernels
kernels=$(realpath build/kernels)	# headers name it in their Makefile, so by its one true name

packages=(
	build-essential pkg-config git bc libelf-dev
	libssl-dev liburing-dev libzstd-dev libxxhash-dev libjansson-dev
	libsqlite3-dev libdevmapper-dev libcmocka-dev libinih-dev libvirt-dev libxml2-dev lz4
	qemu-system-x86 qemu-utils fio sqlite3 e2fsprogs dmsetup busybox-static
	clang libclang-rt-14-dev jq scdoc openssl iproute2 kmod cpio xz-utils zstd strace
	shellcheck xfsprogs mmdebstrap flex bison
	lvm2 cryptsetup-bin stress-ng dbench spin socat nbdkit nbdkit-plugin-dev libnbd-bin
)
packaging=(dpkg-dev debhelper dh-dkms lintian fakeroot mmdebstrap)
default_series=(6.1 6.12)

die() { echo "setup: $*" >&2; exit 1; }
say() { echo "setup: $*"; }
# shellcheck source=tests/suites.sh
. tests/suites.sh

as_root() {
	if [ "$(id -u)" = 0 ]; then
		"$@"
	elif command -v sudo >/dev/null; then
		sudo "$@"
	else
		die "root or sudo is needed for: $*"
	fi
}

# apt_get ARG...: with patience for another apt's lock and for a lame mirror.
apt_get() {
	local try
	for try in 1 2 3; do
		as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq \
			-o DPkg::Lock::Timeout=300 -o Acquire::Retries=3 "$@" && return 0
		say "apt-get $1 failed (try $try of 3)" >&2
		sleep $((try * 3))
	done
	return 1
}

# The lists are read again when a package is not known or they are a day old.
lists_fresh() {
	[ -n "$(find /var/lib/apt/lists -maxdepth 1 -name '*Packages*' -mtime -1 -print -quit 2>/dev/null)" ]
}

installed() {
	[ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]
}

cmd_deps() { want_packages "${packages[@]}"; }
cmd_packaging() { want_packages "${packages[@]}" "${packaging[@]}"; }

want_packages() {
	local p missing=()
	for p; do
		installed "$p" || missing+=("$p")
	done
	[ ${#missing[@]} -gt 0 ] || return 0
	say "installing ${missing[*]}"
	lists_fresh || apt_get update || say "package lists not renewed; trying all the same"
	apt_get install --no-install-recommends "${missing[@]}" >/dev/null ||
		{ apt_get update && apt_get install --no-install-recommends "${missing[@]}" >/dev/null; } ||
		die "cannot install: ${missing[*]}"
}

# newest SERIES: the release string of the newest cloud kernel of a series.
newest() {
	suite_apt "$1" apt-cache search --names-only "^linux-image-$(pattern_of "$1")\\.[0-9].*-cloud-amd64\$" |
		awk '{ print substr($1, length("linux-image-") + 1) }' | sort -rV |
		while read -r v; do
			if suite_apt "$1" apt-cache show --no-all-versions "linux-image-$v" "linux-headers-$v" \
				>/dev/null 2>&1; then
				echo "$v"
				break
			fi
		done
}

# package_names SERIES VERSION: image and headers, and what of the same source they depend on:
# from 7.1 on an image is in three parts, and headers have always been.
package_names() {
	suite_apt "$1" apt-cache depends --recurse --no-recommends --no-suggests --no-breaks --no-conflicts \
		--no-replaces --no-enhances --no-pre-depends "linux-image-$2" "linux-headers-$2" |
		awk -v v="$2" '/^[a-z]/ && (/^linux-(headers|kbuild)-/ || index($1, v)) && !/unsigned|-dbg/ { print $1 }' |
		sort -u
}

# No such kernel today is status 3, so that a caller can tell it from a failure.
not_served() {
	say "kernel $1: NOT SERVED: $2"
	return 3
}

# Wanted is what is there, or with `--newest` what the suite has today.
fetch_series() {
	local series=$1 dir=$kernels/$1 v='' deb have='' names=()
	have=$(cat "$dir/version" 2>/dev/null) || true
	if [ -n "$have" ] && [ -z "$want_newest" ]; then
		say "kernel $series: $have is there"
		return 0
	fi
	if suite_update "$series"; then
		v=$(newest "$series")
		[ -n "$v" ] || [ -n "$(suite_of "$series")" ] || { apt_get update; v=$(newest "$series"); }
	fi
	if [ -n "$have" ] && { [ -z "$v" ] || [ "$v" = "$have" ]; }; then
		[ -n "$v" ] || say "kernel $series: $have is there; what is served now cannot be told"
		return 0
	fi
	[ -n "$v" ] || { not_served "$series" "no linux-image $series for cloud-amd64 with headers"; return; }
	say "kernel $series: fetching $v"
	rm -rf "$dir"
	mkdir -p "$dir/debs" "$dir/root"
	mapfile -t names < <(package_names "$series" "$v")
	(cd "$dir/debs" && suite_apt "$series" \
		apt-get -qq -o APT::Sandbox::User=root -o Acquire::Retries=3 download "${names[@]}") ||
		die "cannot download ${names[*]}"
	for deb in "$dir"/debs/*.deb; do
		dpkg -x "$deb" "$dir/root"
	done
	rm -rf "$dir/debs"
	settle "$dir" "$v"
	echo "$v" >"$dir/version.new"
	mv "$dir/version.new" "$dir/version"
}

# settle FOLDER VERSION: what is unpacked there works without being installed.
settle() {
	local dir=$1 v=$2 hdr l
	# Only the Makefiles of headers name absolute paths.
	hdr=$dir/root/usr/src/linux-headers-$v
	[ -d "$(readlink -f "$hdr")" ] || die "headers of $v have no $hdr"
	sed -i -E "s#(^|[ =])(/usr/(src|lib)/linux-)#\\1$dir/root\\2#g" "$hdr/Makefile"
	# Links into /usr/lib/linux-kbuild-* are relative or absolute by release.
	find "$hdr" "$dir/root/usr/src" -maxdepth 1 -type l | while read -r l; do
		case $(readlink "$l") in
		/usr/*) ln -sfn "$dir/root$(readlink "$l")" "$l" ;;
		esac
	done
	ln -sfn "root/usr/src/linux-headers-$v" "$dir/headers"
	# Debian 13 and later keep the modules under usr/lib, from 7.2 on the image is beside them.
	[ -d "$dir/root/lib/modules/$v" ] || ln -sfn usr/lib "$dir/root/lib"
	ln -sfn "root/boot/vmlinuz-$v" "$dir/vmlinuz"
	[ -e "$dir/vmlinuz" ] || ln -sfn "root/lib/modules/$v/vmlinuz" "$dir/vmlinuz"
	[ -e "$dir/vmlinuz" ] || die "$v has no kernel image in its packages"
	/sbin/depmod -b "$dir/root" "$v"
}

cmd_kernels() {
	local s want_newest=''
	if [ "${1:-}" = --newest ]; then
		want_newest=y
		shift
	fi
	[ $# -gt 0 ] || set -- "${default_series[@]}"
	for s; do
		(flock 9; fetch_series "$s") 9>"$kernels/.$s.lock"
	done
}

# build_module SERIES: copy what changed, run Kbuild there, keep the .ko.
# ASR_MODULE_SRC names another source folder (tests of this script use it).
build_module() {
	local series=$1 out=$top/build/module/$1
	local src=${ASR_MODULE_SRC:-$top} obj
	if [ ! -e "$kernels/$series/version" ]; then
		case $series in
		debug) tests/debug/kernel.sh ;;
		*) cmd_kernels "$series" ;;
		esac
	fi
	[ -e "$src/Kbuild" ] || die "$src has no Kbuild file"
	obj=$out/src
	mkdir -p "$obj"
	# A file that left the tree must leave the copy too; objects stay, for speed.
	if [ -d "$obj/dm-asr" ]; then
		(cd "$obj" && find dm-asr -name '*.[chS]' ! -name '*.mod.c') | while read -r f; do
			[ -e "$src/$f" ] || rm -f "$obj/$f"
		done
	fi
	cp -pu "$src/Kbuild" "$obj/"
	[ ! -d "$src/dm-asr" ] || cp -rpu "$src/dm-asr" "$obj/"
	# No BTF: the test kernels do without, and pahole is not needed then.
	kernel_make "$series" M="$obj" modules ||
		die "module does not build for $series"
	cp "$obj"/*.ko "$out/"
	say "module for $series: $(cd "$out" && echo *.ko)"
}

cmd_series() {
	echo "${all_series[*]}"
}

cmd_module() {
	local s
	[ $# -gt 0 ] || set -- "${default_series[@]}"
	for s; do
		mkdir -p "build/module/$s"
		(flock 9; build_module "$s") 9>"build/module/$s/.lock"
	done
}

[ $# -gt 0 ] || die "usage: tests/setup.sh deps | packaging | kernels [SERIES...] | series | module [SERIES...]"
cmd=$1
shift
case $cmd in
deps | packaging | kernels | series | module) "cmd_$cmd" "$@" ;;
*) die "unknown command '$cmd'; known: deps, packaging, kernels, series, module" ;;
esac
