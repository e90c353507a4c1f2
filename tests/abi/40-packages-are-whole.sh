#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# What `make install` lays out is what the Debian packages share out, units start what is
# there, the settings' files are accepted, and maintainer scripts refuse and keep what they must.
# The packages themselves are built and tried by `make check-deb`.
set -u
cd "$(dirname "$0")/../.." || exit 1
top=$PWD
D=$top/packaging/debian
W=${TEST_OUT:-$top/build/test-out/packages.d}
bad=0
say() { echo "packages: $*"; bad=1; }
rm -rf "$W/root"
mkdir -p "$W/root/etc/asr" "$W/bin"

# one version
version=$(sed -n 's/^PACKAGE_VERSION="\(.*\)"/\1/p' dkms.conf)
grep -q "ASR_VERSION[[:space:]]*\"$version\"" userland/asr.h || say "asr.h has another version than dkms.conf ($version)"
grep -m 1 '^## ' NEWS.md | grep -qw -- "$version" || say "NEWS.md does not begin with dkms.conf's version ($version)"

# an administrator's file is left as it is
echo "mine" > "$W/root/etc/asr/vaultd.conf"
make --no-print-directory install "DESTDIR=$W/root" UNITDIR=/lib/systemd/system > "$W/install.log" 2>&1 ||
	{ tail -n 5 "$W/install.log"; say "make install fails"; }
[ "$(cat "$W/root/etc/asr/vaultd.conf")" = mine ] || say "make install writes over /etc/asr/vaultd.conf"

# every word of the lists finds a file (a page there is without .gz), and asr-agent's are what is left
cd "$W/root" || exit 1
shopt -s nullglob
taken=()
for list in "$D"/*.install; do
	while read -r pattern; do
		# shellcheck disable=SC2206
		found=($pattern)
		[ -e "${found[0]:-/none}" ] || say "$(basename "$list") names $pattern, which make install does not make"
		taken+=("${found[@]}")
	done < "$list"
done
left=$(find . ! -type d -printf '%P\n' | grep -vxFf <(printf '%s\n' "${taken[@]}"))
for f in usr/sbin/asrd usr/share/man/man8/asrd.8 etc/asr/asrd.conf lib/systemd/system/asrd.service; do
	grep -qx "$f" <<< "$left" || say "asr-agent has no $f"
done
grep -E 'vault|asrctl' <<< "$left" && say "asr-agent must not have these"
for u in lib/systemd/system/*.service; do
	while read -r program; do
		case $program in
		/sbin/* | /bin/* | /usr/bin/*) ;;
		*) [ -x ".$program" ] || say "$(basename "$u") starts $program, which is not installed" ;;
		esac
	done < <(sed -n 's/^Exec[A-Za-z]*=[-+!@:]*\([^ ]*\).*/\1/p' "$u")
done
cd "$top" || exit 1

# each library that the Makefile wants is among the build dependencies
for p in $(sed -n 's/^PKGS[[:space:]]*:= //p' Makefile); do
	dir=$(pkg-config --variable=pcfiledir "$p")
	package=$(dpkg -S "$dir/$p.pc" | cut -d: -f1)
	grep -Eq "^ *(Build-Depends: .*)?$package,?\$" $D/control || say "control does not name $package, which has $p.pc"
done

# every setting that the files show is one, with its default
for d in asrd vaultd; do
	sed 's/^#\([a-z_]* = \)/\1/' packaging/$d.conf > "$W/$d.conf"
	echo "the_end = 1" >> "$W/$d.conf"
	case $d in asrd) program=build/asrd ;; *) program=build/asr-vaultd ;; esac
	page=docs/$(basename $program).8.scd
	# settings are read in order: all is well when only the last line is unknown
	timeout 60 $program --config "$W/$d.conf" > "$W/$d.log" 2>&1 < /dev/null && say "$d takes an unknown setting"
	grep -q "the_end" "$W/$d.log" || say "$d does not take its settings' file: $(tail -n 1 "$W/$d.log")"
	for key in $(sed -n 's/^#\([a-z_]*\) = .*/\1/p' packaging/$d.conf); do
		grep -q "$key" "$page" || say "$page does not describe $key"
	done
done

# maintainer scripts, with a dmsetup of ours
dmsetup_says() { printf '#!/bin/sh\ncat <<-E\n%s\nE\n' "$1" > "$W/bin/dmsetup"; chmod +x "$W/bin/dmsetup"; }
run() { PATH=$W/bin:$PATH sh "$W/script" "$1" > "$W/said" 2>&1; }
for p in asr-agent dm-asr-dkms; do
	sed '/sys.module.dm_asr/,$d' $D/$p.prerm > "$W/script"
	dmsetup_says $'vg0-data\t(254:3)\nvm disk\t(254:10)'
	run remove && say "$p is removed while disks are protected"
	grep -qx '  vg0-data' "$W/said" && grep -q 'asrctl disk unprotect' "$W/said" ||
		say "$p refuses without the reason: $(cat "$W/said")"
	run upgrade || say "$p cannot be upgraded while disks are protected: $(cat "$W/said")"
	dmsetup_says "No devices found"
	run remove || say "$p cannot be removed without a protected disk: $(cat "$W/said")"
done
for p in asr-agent asr-vault; do
	sh -n $D/$p.postrm || say "$p.postrm"
	grep -Eq '^[^#"]*\brm\b' $D/$p.postrm && say "$p.postrm deletes"
done
exit $bad
