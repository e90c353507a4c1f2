#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# setup.sh - fetch what the build and the tests need.
#
#   tests/setup.sh deps                  install the Debian packages
#   tests/setup.sh packaging             install what building and trying Debian packages takes
#   tests/setup.sh kernels [SERIES...]   unpack stock kernels under build/kernels/SERIES
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

packages=(
	build-essential pkg-config git bc libelf-dev
	libssl-dev liburing-dev libzstd-dev libxxhash-dev libjansson-dev
	libsqlite3-dev libdevmapper-dev libcmocka-dev libinih-dev
	qemu-system-x86 qemu-utils fio sqlite3 e2fsprogs dmsetup busybox-static
	clang libclang-rt-14-dev jq scdoc openssl iproute2 kmod cpio xz-utils zstd strace
	shellcheck xfsprogs
)
packaging=(dpkg-dev debhelper dh-dkms lintian fakeroot mmdebstrap)
default_series=(6.1 6.12)

die() { echo "setup: $*" >&2; exit 1; }
say() { echo "setup: $*"; }

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
	apt-cache search --names-only "^linux-image-${1//./\\.}\\.[0-9].*-cloud-amd64\$" |
		awk '{ print substr($1, length("linux-image-") + 1) }' | sort -rV |
		while read -r v; do
			if apt-cache show --no-all-versions "linux-image-$v" "linux-headers-$v" \
				>/dev/null 2>&1; then
				echo "$v"
				break
			fi
		done
}

# header_packages VERSION: the headers and what they depend on of the same source.
header_packages() {
	echo "linux-headers-$1"
	apt-cache depends --no-recommends --no-suggests "linux-headers-$1" |
		awk '$1 == "Depends:" && $2 ~ /^linux-(headers|kbuild)-/ { print $2 }'
}

fetch_series() {
	local series=$1 dir=$top/build/kernels/$1 v deb hdr old
	if [ -e "$dir/version" ]; then
		say "kernel $series: $(cat "$dir/version") is there"
		return 0
	fi
	lists_fresh || apt_get update || true
	v=$(newest "$series")
	[ -n "$v" ] || { apt_get update; v=$(newest "$series"); }
	[ -n "$v" ] || die "no linux-image-$series.*-cloud-amd64 in the configured suites"
	say "kernel $series: fetching $v"
	rm -rf "$dir"
	mkdir -p "$dir/debs" "$dir/root"
	local names=("linux-image-$v")
	mapfile -t -O 1 names < <(header_packages "$v")
	(cd "$dir/debs" &&
		apt-get -qq -o APT::Sandbox::User=root -o Acquire::Retries=3 download "${names[@]}") ||
		die "cannot download ${names[*]}"
	for deb in "$dir"/debs/*.deb; do
		dpkg -x "$deb" "$dir/root"
	done
	rm -rf "$dir/debs"

	# Only this one Makefile names absolute paths.
	hdr=$dir/root/usr/src/linux-headers-$v
	old=$(readlink -f "$hdr" 2>/dev/null || true)
	[ -d "$old" ] || die "headers of $v have no $hdr"
	sed -i -E "s#(^|[ =])(/usr/(src|lib)/linux-)#\\1$dir/root\\2#g" "$hdr/Makefile"
	# Links into /usr/lib/linux-kbuild-* are relative or absolute by release.
	find "$hdr" "$dir/root/usr/src" -maxdepth 1 -type l | while read -r l; do
		case $(readlink "$l") in
		/usr/*) ln -sfn "$dir/root$(readlink "$l")" "$l" ;;
		esac
	done
	ln -sfn "root/boot/vmlinuz-$v" "$dir/vmlinuz"
	ln -sfn "root/usr/src/linux-headers-$v" "$dir/headers"
	[ -e "$dir/vmlinuz" ] || die "$v has no kernel image in its package"
	# Debian 13 and later keep the modules under usr/lib.
	[ -d "$dir/root/lib/modules/$v" ] || ln -sfn usr/lib "$dir/root/lib"
	/sbin/depmod -b "$dir/root" "$v"
	echo "$v" >"$dir/version.new"
	mv "$dir/version.new" "$dir/version"
}

cmd_kernels() {
	local s
	[ $# -gt 0 ] || set -- "${default_series[@]}"
	mkdir -p build/kernels
	for s; do
		(flock 9; fetch_series "$s") 9>"build/kernels/.$s.lock"
	done
}

# build_module SERIES: copy what changed, run Kbuild there, keep the .ko.
# ASR_MODULE_SRC names another source folder (tests of this script use it).
build_module() {
	local series=$1 kdir=$top/build/kernels/$1 out=$top/build/module/$1
	local src=${ASR_MODULE_SRC:-$top} obj
	[ -e "$kdir/version" ] || cmd_kernels "$series"
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
	make -s -C "$kdir/headers" M="$obj" CC=gcc-12 CONFIG_DEBUG_INFO_BTF_MODULES= modules ||
		die "module does not build for $series"
	cp "$obj"/*.ko "$out/"
	say "module for $series: $(cd "$out" && echo *.ko)"
}

cmd_module() {
	local s
	[ $# -gt 0 ] || set -- "${default_series[@]}"
	for s; do
		mkdir -p "build/module/$s"
		(flock 9; build_module "$s") 9>"build/module/$s/.lock"
	done
}

[ $# -gt 0 ] || die "usage: tests/setup.sh deps | packaging | kernels [SERIES...] | module [SERIES...]"
cmd=$1
shift
case $cmd in
deps | packaging | kernels | module) "cmd_$cmd" "$@" ;;
*) die "unknown command '$cmd'; known: deps, packaging, kernels, module" ;;
esac
