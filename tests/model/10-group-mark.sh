#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The protocol of marks over several hosts (group-mark.pml): no state violates it, and every wrong variant is refuted.
set -u
# shellcheck source=tests/lib.sh
. "$(dirname "$0")/../lib.sh"
model=$ASR_TOP/tests/model/group-mark.pml

search() { # BREAK HOSTS MARKS: spin's words in $log
	local d=$TEST_OUT/$1-$2-$3
	mkdir -p "$d"
	cd "$d" || fail "no folder"
	spin -a -DBREAK="$1" -DHOSTS="$2" -DMARKS="$3" "$model" > spin.log || fail "spin: $(cat spin.log)"
	want gcc -O2 -w -DSAFETY -DNOFAIR -DCOLLAPSE -o pan pan.c
	log=$d/pan.log
	./pan -m1000000 > "$log" 2>&1 || fail "pan: $(cat "$log")"
	say "variant $1, $2 hosts, $3 marks: $(grep -o '[0-9]* states, stored' "$log"), $(grep -o 'errors: [0-9]*' "$log")"
}

holds() {
	search 0 "$@"
	! grep -Eq 'max search depth too small|out of memory|Search not completed' "$log" ||
		fail "not all states were looked at: $(cat "$log")"
	grep -q 'errors: 0$' "$log" || fail "a declared mark is no consistent cut: $(head -n 5 "$log")"
}

refuted() { # BREAK HOSTS MARKS ASSERTION
	search "$1" "$2" "$3"
	grep -qF "assertion violated $4" "$log" || fail "variant $1 is not refuted: $(cat "$log")"
}

holds 3 1
holds 2 2
for b in 1 2 3 4; do
	refuted $b 2 1 ' !(torn[m])'
done
refuted 5 2 2 ' !(torn[m])'
refuted 9 2 1 '(9!=9)'
