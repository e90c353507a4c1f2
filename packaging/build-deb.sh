#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# build-deb.sh - Debian packages of this tree: packaging/build-deb.sh [VERSION [DIR]]
#
# Design: the tree is copied to DIR/src (DIR is build/deb if not given), packaging/debian becomes its debian/, the
# changelog is made from NEWS.md, and dpkg-buildpackage does the rest; so nothing is ever
# made in the tree itself. One version rules: NEWS.md, dkms.conf and asr.h must agree.
# VERSION overrides the packages' version only (a rebuild: 0.1.0+1), never the module's.
set -euo pipefail
cd "$(dirname "$0")/.."
out=$(mkdir -p "${2:-build/deb}" && cd "${2:-build/deb}" && pwd)
src=$out/src

die() { echo "build-deb: $*" >&2; exit 1; }

version=$(sed -n 's/^PACKAGE_VERSION="\(.*\)"/\1/p' dkms.conf)
grep -q "ASR_VERSION[[:space:]]*\"$version\"" userland/asr.h || die "asr.h has another version than dkms.conf, $version"
grep -m 1 '^## ' NEWS.md | grep -qw -- "$version" || die "NEWS.md does not begin with dkms.conf's version, $version"
deb_version=${1:-$version}
case $deb_version in
"$version"*) ;;
*) die "VERSION is '$deb_version': it must begin with the module's version, $version" ;;
esac

# The day NEWS.md was last changed, for builds of one commit to be alike.
when=$(git log -1 --format=%ct -- NEWS.md 2>/dev/null) || when=
[ -n "$when" ] || when=$(stat -c %Y NEWS.md)

changelog() {
	local maintainer
	maintainer=$(sed -n 's/^Maintainer: //p' packaging/debian/control)
	awk -v top="$deb_version" -v who="$maintainer" -v date="$(LC_ALL=C date -u -R -d "@$when")" '
		function item(  i, n, w, l) {
			n = split(text, w, " ")
			for (i = 1; i <= n; i++) {
				if (length(l) + length(w[i]) > 75) { print "  " l; l = " " }
				l = l (l == "" ? "" : " ") w[i]
			}
			if (n) print "  " l
			text = ""
		}
		function entry() { item(); if (seen) printf "\n -- %s  %s\n\n", who, date }
		/^## / { entry(); v = seen++ ? $2 : top
			 printf "dm-asr (%s) unstable; urgency=medium\n\n", v; next }
		/^\* / { item(); text = $0; next }
		/^  / && text != "" { text = text " " $0 }
		END { entry() }' NEWS.md
}

rm -rf "$src" "$out"/*.deb "$out"/*.changes "$out"/*.buildinfo
mkdir -p "$src"
tar -c --exclude=./build --exclude=./.git . | tar -x -C "$src"
cp -r packaging/debian "$src/debian"
changelog >"$src/debian/changelog"
cd "$src"
DEB_BUILD_OPTIONS="noautodbgsym parallel=$(nproc) ${DEB_BUILD_OPTIONS:-}" \
	dpkg-buildpackage -b -us -uc -tc >"$out/build.log" 2>&1 || { tail -n 30 "$out/build.log" >&2; die "see $out/build.log"; }
cd "$out"
rm -rf "$src"
# What is wrong by Debian's rules ends the build, what is doubtful is shown.
lintian --allow-root --tag-display-limit 0 --fail-on error ./*.changes || die "lintian found errors"
ls -l ./*.deb
