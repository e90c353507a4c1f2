#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# kernel.sh - build the debug kernel from Debian's linux-source, once.
#
# Design: it becomes one more series, build/kernels/debug, of the shape that
# setup.sh gives to a stock kernel (root/, vmlinuz, headers, version), so the VM
# harness and the module's build know nothing of it. `key` says of what it was
# made: the source's version, the compiler, tests/debug/config. When one of these
# changes, it is made anew; else nothing is done. It takes a quarter of an hour
# on two busy cores: `nice`.

set -euo pipefail
cd "$(dirname "$0")/../.."
top=$PWD
dir=$top/build/kernels/debug
series=${DEBUG_SERIES:-6.12}
config=$top/tests/debug/config

die() { echo "debug kernel: $*" >&2; exit 1; }
say() { echo "debug kernel: $*"; }

source_version() {
	apt-cache show --no-all-versions "linux-source-$series" 2>/dev/null | sed -n 's/^Version: //p' | head -n 1
}

# The whole source is 1.4 GB unpacked; documentation and other machines are left out.
unpack() { # VERSION
	rm -rf "$dir/src" "$dir/debs"
	mkdir -p "$dir/src" "$dir/debs/x"
	(cd "$dir/debs" && apt-get -qq -o APT::Sandbox::User=root -o Acquire::Retries=3 \
		download "linux-source-$series=$1") || die "cannot download linux-source-$series $1"
	dpkg -x "$dir"/debs/*.deb "$dir/debs/x"
	tar -xf "$dir"/debs/x/usr/src/linux-source-*.tar.xz -C "$dir/src" --strip-components=1 \
		--exclude='*/Documentation/*/*.rst' --exclude='*/drivers/gpu/drm/amd/*.[ch]'
	rm -rf "$dir/debs"
}

# kconfig drops what it does not know or what depends on something missing: say so.
configure() {
	local line bad=0
	make -s -C "$dir/src" O="$dir/obj" CC=gcc-12 tinyconfig >/dev/null
	(cd "$dir/src" && KCONFIG_CONFIG=$dir/obj/.config scripts/kconfig/merge_config.sh -m -O "$dir/obj" \
		"$dir/obj/.config" "$config") >/dev/null
	make -s -C "$dir/src" O="$dir/obj" CC=gcc-12 olddefconfig >/dev/null
	while IFS= read -r line; do
		case $line in
		CONFIG_*) grep -qxF -- "$line" "$dir/obj/.config" ;;
		'# CONFIG_'*' is not set')
			line=${line#'# '}
			! grep -q "^${line%% *}=[ym]" "$dir/obj/.config" ;;
		esac || { say "not in the configuration: $line"; bad=1; }
	done <"$config"
	[ $bad = 0 ] || die "tests/debug/config asks for what linux $series does not have"
}

build() { # KEY
	local v log=$dir/build.log
	rm -f "$dir/version" "$dir/key"
	say "building (the log: ${log#"$top/"})"
	if ! nice -n "${DEBUG_NICE:-10}" make -s -j"${DEBUG_JOBS:-$(nproc)}" -C "$dir/src" O="$dir/obj" CC=gcc-12 \
		bzImage modules >"$log" 2>&1; then
		tail -n 30 "$log" >&2
		die "the kernel does not build"
	fi
	v=$(make -s -C "$dir/src" O="$dir/obj" kernelrelease)
	rm -rf "$dir/root"
	mkdir -p "$dir/root/boot"
	make -s -C "$dir/src" O="$dir/obj" INSTALL_MOD_PATH="$dir/root" DEPMOD=/sbin/depmod modules_install >>"$log" 2>&1
	cp "$dir/obj/arch/x86/boot/bzImage" "$dir/root/boot/vmlinuz-$v"
	ln -sfn "root/boot/vmlinuz-$v" "$dir/vmlinuz"
	ln -sfn obj "$dir/headers"
	find "$dir/obj" -name '*.o' ! -path '*/scripts/*' ! -path '*/tools/*' ! -name module.lds -delete
	echo "$1" >"$dir/key"
	echo "$v" >"$dir/version.new"
	mv "$dir/version.new" "$dir/version"
	say "$v is ready"
}

main() {
	local src key
	src=$(source_version)
	[ -n "$src" ] || die "no linux-source-$series in the configured suites"
	key="$series $src $(gcc-12 -dumpfullversion) $(sha256sum <"$config" | cut -d' ' -f1)"
	if [ -e "$dir/version" ] && [ "$(cat "$dir/key" 2>/dev/null)" = "$key" ]; then
		say "$(cat "$dir/version") is there"
		return 0
	fi
	if [ "$(cat "$dir/src.version" 2>/dev/null)" != "$src" ]; then
		rm -f "$dir/src.version"
		unpack "$src"
		echo "$src" >"$dir/src.version"
	fi
	configure
	build "$key"
}

mkdir -p "$dir"
exec 9>"$dir/.lock"
flock 9
main
