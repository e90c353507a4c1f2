#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# timeout: 900
# Application-consistent marks: two file systems and an application that writes to both; at each such mark both are
# clean and agree. A script that fails or never ends, a freeze that hangs, asrctl or its helper killed while frozen:
# an error, no such mark, nothing stays frozen.
set -eu
if [ -n "${ASR_GUEST:-}" ]; then
	# shellcheck source=tests/e2e/guest-lib.sh
	. /asr/in/guest-lib.sh
	source_up 2
	for i in 0 1; do
		want mkfs.ext4 -q /dev/mapper/v$i
		mkdir -p /m$i
		want mount /dev/mapper/v$i /m$i
	done
	pairs_start /m0/n /m1/n
	goes_on() {
		local n
		n=$(cat /m1/n 2>/dev/null || true)
		moved() { [ "$(cat /m1/n 2>/dev/null)" != "$n" ]; }
		retry_until 60 moved || fail "the application stands still"
	}
	mark() { asrctl group mark g --consistency app "$@"; }
	refused() { # TEXT OPTION...
		local text=$1
		shift
		not mark --name bad "$@" >/run/out 2>&1 || fail "it went well: $(cat /run/out)"
		grep -q "$text" /run/out || fail "it said: $(cat /run/out), and not: $text"
		goes_on
	}
	goes_on
	for i in 1 2 3; do
		want mark --name "quiet-$i"
		goes_on
	done
	[ "$(head -n 2 /run/calls)" = "freeze g quiet-1
thaw g quiet-1" ] || fail "called: $(cat /run/calls)"
	asrctl group mark g --consistency app -o json | grep -q '"name": *"app-2' || fail "no name of its own"
	want asrctl group mark g --name crash-1
	not asrctl group mark g --no-freeze >/run/out 2>&1 || fail "options of app, and it is not"
	grep -q 'want --consistency app' /run/out || fail "it said: $(cat /run/out)"
	refused 'bad time' --timeout 0
	refused 'cannot look at /nowhere' --freeze /nowhere
	refused 'exclude each other' --freeze /m0 --no-freeze
	want mount -t tmpfs none /m0
	refused 'mounted over /m0' --timeout 60
	retry_until 30 umount /m0 || fail "umount"	# the application has a file open there, for moments
	refused 'cannot freeze /proc' --freeze /proc
	refused 'cannot run /nowhere' --script /nowhere
	not asrctl group mark h --consistency app 2>/dev/null || fail "a group that is not there"

	say "a script that fails, and one that never ends"
	printf '#!/bin/sh\necho "fails $1" >> /run/calls\n[ "$1" = thaw ]\n' >/run/fails
	printf '#!/bin/sh\n[ "$1" = thaw ] || while :; do sleep 1; done\n' >/run/hangs
	chmod +x /run/fails /run/hangs
	refused '/run/fails freeze failed: status 1' --script /run/fails
	[ "$(tail -n 2 /run/calls)" = "fails thaw
thaw g bad" ] || fail "called: $(tail -n 3 /run/calls)"
	refused 'hangs freeze did not end within 5 s: killed' --script /run/hangs --timeout 5

	say "a freeze that hangs, while the other file system is frozen already"
	touch /run/stop
	wait "$PAIRS" || fail "the application failed"
	printf '#!/bin/sh\n' >/etc/asr/app/g/10-app
	try=
	frozen() { # /m1: whoever writes there waits for its thaw
		kill -0 "${try:-x}" 2>/dev/null || { echo x 7>&- >/m1/try & try=$!; }
		grep -q percpu_rwsem "/proc/$try/wchan" 2>/dev/null
	}
	writes() { timeout 60 sh -c "echo y >/m$1/n && sync -f /m$1/n"; }
	hang() { # OPTION...: a writer that is in /m0 hinders its freeze; /m1, mounted later, is frozen first
		exec 7> >(asr-poke splice /m0/spliced)
		writer=$!
		asrctl group mark g --consistency app --name bad "$@" 7>&- >/run/out 2>&1 & marker=$!
		retry_until 60 frozen || fail "never frozen: $(cat /run/out)"
	}
	let_go() {
		exec 7>&-
		wait $writer || fail "the writer"
		want writes 0
	}
	hang --timeout 5
	wait $marker && fail "it went well: $(cat /run/out)"
	grep -q 'the freeze of /m0 does not end' /run/out || fail "it said: $(cat /run/out)"
	want writes 1
	let_go
	say "asrctl is killed"
	hang --timeout 500
	kill -9 $marker
	want writes 1
	let_go
	say "who has frozen is killed"
	hang --timeout 10
	read -ra children <"/proc/$marker/task/$marker/children" || true	# no line end
	[ ${#children[@]} = 2 ] || fail "children: ${children[*]}"
	kill -9 "${children[1]}"
	wait $marker && fail "it went well: $(cat /run/out)"
	want writes 1
	let_go
	want umount /m0
	want umount /m1
	source_down
	exit 0
fi
# shellcheck source=tests/e2e/lib.sh
. "$(dirname "$0")/lib.sh"
site_up
source_start source "$0" "$VM_OUT/d0.img" "$VM_OUT/d1.img"
vm_wait source 600 || fail "the source host"
vaultd_stop
want "$B/asrctl" point list g --vault-dir "$W/vault" -o json >"$W/points.json"
[ "$(jq -c '[.marks[] | select(.consistency == "app") | .name] | (.[:3], (.[3:] | map(.[:6])))' "$W/points.json" | tr -d '\n')" = \
	'["quiet-1","quiet-2","quiet-3"]["app-20"]' ] || fail "marks: $(jq -c .marks "$W/points.json")"
jq -e '.marks[] | select(.name == "crash-1") | .consistency == "crash"' "$W/points.json" >/dev/null || fail "crash-1"
for mark in quiet-1 quiet-2 quiet-3 crash-1; do
	for d in d0 d1; do
		restore $d "name:$mark" "$W/$d.img"
	done
	recovery=$(for d in d0 d1; do want dumpe2fs -h "$W/$d.img" 2>/dev/null; done | grep -c needs_recovery || true)
	[ $mark != crash-1 ] || { [ "$recovery" != 0 ] || fail "a crash-consistent point is clean: the test shows nothing"; break; }
	[ "$recovery" = 0 ] || fail "$mark: a file system was in use"
	for d in d0 d1; do
		want e2fsck -fn "$W/$d.img"
		n=$(debugfs -R 'cat n' "$W/$d.img" 2>/dev/null)
		[ "${last:-$n}" = "$n" ] || fail "$mark: the application had written $last and $n"
		last=$n
	done
	say "$mark: both have $n"
	unset last
done
