#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# A [spool] dir that asrd may not write, as under its packaged unit, is told at its start, with what resolves it.
set -eu
# shellcheck source=tests/lib.sh
. "$(dirname "$0")/../lib.sh"
d=$(mktemp -d "$ASR_TOP/build/spool_dir.XXXXXX")
trap 'rm -rf "$d"' EXIT
mkdir -p "$d/other" "$d/state"
run() { # SPOOL DIR: what asrd says of it
	printf '[spool]\ndir = %s\n' "$1" >"$d/asrd.conf"
	unshare -r -m sh -euc '
		mount --bind "$1/other" "$1/other" && mount -o remount,bind,ro "$1/other"
		exec timeout 20 "$2" --config "$1/asrd.conf" --state-dir "$1/state" --control "$1/asrd.sock"
	' sh "$d" "$ASR_TOP/build/asrd" >"$d/log" 2>&1 &
	retry_until 15 test -S "$d/asrd.sock" || fail "asrd does not start: $(cat "$d/log")"
	kill $!
	wait $! || true
	rm -f "$d/asrd.sock"
}
run "$d/other/spool/here"
grep -q "\[spool\] dir = $d/other/spool/here: asrd cannot write there .*systemctl edit asrd.*ReadWritePaths=$d/other/spool/here" "$d/log" ||
	fail "asrd said: $(cat "$d/log")"
run "$d/state/spool"
! grep -q 'cannot write' "$d/log" || fail "asrd said: $(cat "$d/log")"
