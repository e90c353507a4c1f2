# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
#
# suites.sh - kernels of Debian suites that the host does not follow, and what
# builds modules for them; sourced by setup.sh.
#
# Design: each suite has an apt state of its own under build/kernels/.apt, so the
# host's lists and its choice of packages stay as they are. The mirrors are those
# of the host's configuration; signatures are checked with Debian's keyring. A
# suite's index may have expired (a development suite on a slow mirror): allowed.
# Tools in the headers of later releases (objtool) want their glibc, and the
# kernel's own compiler wants theirs: those modules are built in a folder made by
# mmdebstrap, where packages are unpacked and nothing is run or started.

# What Debian serves (the kernels of `make check-kernels`).
# shellcheck disable=SC2034
all_series=(5.10 6.1 6.12 6.12-deb13 trixie-backports forky sid)

# setup.sh has set both.
: "${top:?}" "${kernels:?}"

# suite_of SERIES: nothing when the host's own suites have it.
suite_of() {
	case $1 in
	5.10) echo bullseye-security ;;
	6.12-deb13) echo trixie-security ;;
	trixie-backports | forky | sid) echo "$1" ;;
	esac
}

# toolroot_of SERIES: the suite whose compiler builds for it; nothing: the host's.
toolroot_of() {
	case $1 in
	6.12-deb13 | trixie-backports) echo trixie ;;
	forky | sid) echo sid ;;
	esac
}

# pattern_of SERIES: how its kernels' versions begin, as a regular expression.
pattern_of() {
	case $1 in
	debug) die "the debug kernel is built, not fetched: tests/debug/kernel.sh" ;;
	trixie-backports | forky | sid) echo '[0-9]+' ;;
	*) local s=${1%-*}; echo "${s//./\\.}" ;;
	esac
}

# mirror_of SUITE: the address that the host's apt uses for that archive.
mirror_of() {
	local want
	want=$(. /etc/os-release && echo "$VERSION_CODENAME")
	case $1 in *-security) want+=-security ;; esac
	apt-get indextargets --format '$(REPO_URI) $(CODENAME)' "Created-By: Packages" |
		awk -v c="$want" '$2 == c { print $1; exit }'
}

# suite_apt SERIES CMD ARG...: an apt command that sees that series' suite.
suite_apt() {
	local suite d
	suite=$(suite_of "$1")
	shift
	if [ -n "$suite" ]; then
		d=$kernels/.apt/$suite
		APT_CONFIG=$d/apt.conf "$@"
	else
		"$@"
	fi
}

# suite_update SERIES: reads its lists when they are more than a day old.
suite_update() {
	local suite d mirror
	suite=$(suite_of "$1")
	if [ -z "$suite" ]; then
		lists_fresh || apt_get update || true
		return 0
	fi
	d=$kernels/.apt/$suite
	mkdir -p "$d/state/lists/partial" "$d/cache/archives/partial"
	[ -z "$(find "$d/updated" -mtime -1 2>/dev/null)" ] || return 0
	mirror=$(mirror_of "$suite")
	[ -n "$mirror" ] || { say "no mirror for $suite in apt's configuration"; return 1; }
	: >"$d/status"
	echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $suite main" >"$d/sources.list"
	cat >"$d/apt.conf" <<-CONF
	Dir::State "$d/state";
	Dir::State::status "$d/status";
	Dir::Cache "$d/cache";
	Dir::Etc::sourcelist "$d/sources.list";
	Dir::Etc::sourceparts "-";
	Acquire::Check-Valid-Until "false";
	Acquire::Languages "none";
	Acquire::Retries "3";
	APT::Sandbox::User "root";
	APT::Update::Error-Mode "any";
	CONF
	if APT_CONFIG=$d/apt.conf apt-get -qq update; then
		touch "$d/updated"
		return 0
	fi
	say "cannot read the lists of $suite"
	return 1
}

# toolroot SUITE GCC: makes it once; prints the folder.
toolroot() {
	local suite=$1 gcc=$2 d=$kernels/.roots/$1 mirror p
	p=$gcc,make,dash,bash,coreutils,sed,grep,mawk,findutils,diffutils,perl-base,libelf1t64,base-files
	if [ "$(cat "$d/.made" 2>/dev/null)" != "$p" ]; then
		mirror=$(mirror_of "$suite")
		[ -n "$mirror" ] || die "no mirror for $suite in apt's configuration"
		say "unpacking $gcc of $suite" >&2
		mkdir -p "$kernels/.roots"
		as_root rm -rf "$d"
		as_root mmdebstrap --quiet --variant=extract --include="$p" \
			--aptopt='Acquire::Check-Valid-Until "false"' --aptopt='Acquire::Retries "3"' \
			"$suite" "$d" "$mirror" >&2 || die "cannot unpack $p of $suite"
		[ -e "$d/bin/sh" ] || as_root ln -s dash "$d/usr/bin/sh"
		as_root ln -sfn mawk "$d/usr/bin/awk"
		echo "$p" | as_root tee "$d/.made" >/dev/null
	fi
	echo "$d"
}

# compiler_of SERIES: the one its headers ask for, where a tool root has it; else the host's.
compiler_of() {
	local v
	if [ -z "$(toolroot_of "$1")" ]; then
		echo gcc-12
		return
	fi
	v=$(sed -n 's/^CONFIG_GCC_VERSION=\([0-9]*\)[0-9]\{4\}$/\1/p' "$kernels/$1/headers/.config")
	[ -n "$v" ] || die "the headers of $1 do not say which gcc built the kernel"
	echo "gcc-$v"
}

# kernel_make SERIES ARG...: make for an external module, with the right compiler, in the
# right root; $top and $kernels are found there under their own names.
kernel_make() {
	local series=$1 gcc suite root
	shift
	gcc=$(compiler_of "$series")
	suite=$(toolroot_of "$series")
	set -- -s -C "$kernels/$series/headers" CC="$gcc" CONFIG_DEBUG_INFO_BTF_MODULES= CONFIG_FRAME_WARN=2048 "$@"
	if [ -z "$suite" ]; then
		make "$@"
		return
	fi
	root=$( (flock 9; toolroot "$suite" "$gcc") 9>"$kernels/.roots.$suite.lock")
	[ -n "$root" ] || die "no compiler for $series"
	as_root unshare -m bash -c '
		set -e
		root=$1 top=$2 kernels=$3 user=$4
		shift 4
		for d in /dev /proc "$top" "$kernels"; do
			mkdir -p "$root$d"
			mount --rbind "$d" "$root$d"
		done
		exec chroot --userspec="$user" "$root" /usr/bin/env -i PATH=/usr/bin LC_ALL=C make "$@"
	' kernel_make "$root" "$top" "$kernels" "$(id -u):$(id -g)" "$@"
}
