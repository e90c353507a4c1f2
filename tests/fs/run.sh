#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# fs/run.sh - somebody else's file-system tests over asr with capture running, beside dm-linear in the same VM.
#
#   tests/fs/run.sh [SECONDS] [SERIES...]    SECONDS for each stressor (3)
#
# Debian packages neither xfstests nor ltp (fsx, fsstress), in no suite. What it does package and this runs:
# the file-system and I/O stressors of stress-ng with --verify, dbench, fio with verification; fsck of ext4
# and xfs; and in place of fsx the random file operations of tests/tools/asr-fsx.c. A test may fail on both:
# then it says something about itself or this kernel. None may fail on asr alone, and what was captured
# during all of it must be what is on the disk, byte for byte.
#
# Table on standard output and in build/check-fs/table.txt; build/check-fs/results.json for programs.

ASR_TOP=$(cd "$(dirname "$0")/../.." && pwd)
out=$ASR_TOP/build/check-fs
export VM_OUT=$out/vm
# shellcheck source=tests/vm/vm.sh
. "$ASR_TOP/tests/vm/vm.sh"

seconds=${1:-3}
shift
mkdir -p "$out" "$VM_OUT"
echo "$seconds" >"$out/seconds"
: >"$out/rows"
for series in "${@:-6.12}"; do
	opts=()
	for d in 0 1 2; do
		rm -f "$VM_OUT/$series-$d.img"
		truncate -s 512M "$VM_OUT/$series-$d.img"
		opts+=(--disk "$VM_OUT/$series-$d.img")
	done
	# what stressors do to themselves on purpose
	expect_klog 'stress-ng|segfault|traps:|blocked for more than'
	vm_start "$series" "$series" --script "$ASR_TOP/tests/fs/guest.sh" --mem 2048 "${opts[@]}" \
		--add "$ASR_TOP/tests/module/guest.sh" --add "$out/seconds" --add /usr/share/dbench/client.txt
	vm_wait "$series" $((3600 + seconds * 600)) || fail "the VM of $series failed; its words: $VM_OUT/$series/out"
	sed -n "s/^result /$series /p" "$VM_OUT/$series/out" >>"$out/rows"
	rm -f "$VM_OUT/$series"-*.img
done

# Columns: series fs target test status tenths. Exit statuses 3 and 4 of stress-ng: not on this system.
awk '
	function word(s) { return s == "" ? "-" : s == 0 ? "pass" : (s == 3 || s == 4) && test !~ /fsck/ ? "n/a" : "FAIL" }
	{ key = $1 " " $2 " " $4; status[key, $3] = $5; took[key, $3] = $6; if (!(key in seen)) { seen[key] = 1; keys[++n] = key } }
	END {
		printf "%-6s %-5s %-22s %-7s %-7s %s\n", "KERNEL", "FS", "TEST", "linear", "asr", ""
		for (i = 1; i <= n; i++) {
			split(keys[i], k, " "); test = k[3]
			l = word(status[keys[i], "linear"]); a = word(status[keys[i], "asr"])
			only = a == "FAIL" && l != "FAIL"
			bad += only; ran++; both += a == "FAIL" && l == "FAIL"; na += a == "n/a"
			printf "%-6s %-5s %-22s %-7s %-7s %s\n", k[1], k[2], k[3], l, a, only ? "<- only on asr" : ""
		}
		printf "%d tests, %d fail only on asr, %d on both, %d not on this system\n", ran, bad, both, na
		exit bad > 0
	}' "$out/rows" >"$out/table.txt"
status=$?
cat "$out/table.txt"
jq -R -s --arg seconds "$seconds" '{seconds: ($seconds | tonumber), results: [split("\n")[] | select(length > 0) | split(" ") |
	{kernel: .[0], fs: .[1], target: .[2], test: .[3], status: (.[4] | tonumber), seconds: ((.[5] | tonumber) / 10)}]}' \
	"$out/rows" >"$out/results.json" || fail "no JSON"
[ "$status" = 0 ] || fail "something fails only on asr: its words are in $VM_OUT"
[ "$(grep -c replay-equals-disk "$out/rows")" -gt 0 ] || fail "nothing was run"
