#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# kernel.sh - what a write costs, in instructions: build/bench/kernel.json and a table.
#
# QEMU's -icount makes one instruction one nanosecond, on one CPU, with brd below:
# medians repeat exactly. The emulator counts each byte of a `rep movsb` as an
# instruction, so the CPU is one on which both halves copy by eights (no ERMS, no
# FSRM). "fixed" is asr without its copy over dm-linear. Rows of
# asr_drain count every task of the guest but the vault until the writes are
# durable; p50 and p99 are over repeated runs there. The second table is about the
# write-intent log: the same writes without and with it, and what it wrote itself.
# The third: writes to one disk, and to 64 disks of one group.
set -eu
cd "$(dirname "$0")/../.."
VM_OUT=$PWD/build/bench/kernel.d
# shellcheck source=tests/vm/vm.sh
. tests/vm/vm.sh
mkdir -p build/bench
rows=build/bench/kernel.rows
: > $rows
for series in ${SERIES:-6.1 6.12}; do
	echo "kernel $series: booting under -icount (minutes)"
	VM_TIMEOUT=1500 vm_run "k$series" "$series" --icount --mem 2048 \
		--qemu -cpu --qemu max,-erms,-fsrm --script tests/bench/kernel-guest.sh ||
		fail "the bench failed on $series"
	VM_TIMEOUT=1500 vm_run "l$series" "$series" --icount --mem 2048 \
		--qemu -cpu --qemu max,-erms,-fsrm --script tests/bench/kernel-log-guest.sh ||
		fail "the bench of the log failed on $series"
	cat "$VM_OUT/k$series/out" "$VM_OUT/l$series/out" | sed -n 's/^row //p' | sed "s/^/$series /" >> $rows
done
jq -Rn '[inputs | capture("^(?<kernel>[^ ]+) (?<target>[^ ]+) (?<j>.*)$") | . + (.j | fromjson) | del(.j)]
	| group_by([.kernel, .job, .target]) | map(
	  (map(.all_tasks) | sort) as $all | .[0] as $r
	  | {kernel: $r.kernel, job: $r.job, target: $r.target}
	  + (if $r.target == "asr_drain"
	     then {instructions_p50: $all[length / 2 | floor], instructions_p99: $all[-1]}
	     else {instructions_p50: $r.instructions_p50, instructions_p99: $r.instructions_p99} end)
	  + {all_tasks: $all[length / 2 | floor], writes: (map(.writes) | add)}
	  + (if $r.wakeups == null then {} else {wakeups: (map(.wakeups) | add)} end)
	  + (if $r.log_writes == null then {} else {log_writes: (map(.log_writes) | add)} end))' $rows > build/bench/kernel.json
jq -r '
	def row($k; $j; $t): map(select(.kernel == $k and .job == $j and .target == $t))[0];
	. as $all | (map(.kernel) | unique)[] as $k | ("w4q1", "w4q16", "s64", "fs4") as $j
	| [$k, $j] + [("raw", "linear", "logwrites", "asr_nocopy", "asr") as $t | $all | row($k; $j; $t).instructions_p50]
	  + [($all | row($k; $j; "asr_nocopy").instructions_p50 - row($k; $j; "linear").instructions_p50),
	     ($all | row($k; $j; "asr_drain").all_tasks - row($k; $j; "raw").all_tasks),
	     ($all | row($k; $j; "asr_drain") | .wakeups / .writes * 64 * 100 | round / 100)]
	| @tsv' build/bench/kernel.json |
	awk 'BEGIN { printf "%-7s%-7s%9s%9s%10s%11s%9s%8s%13s%14s\n", "kernel", "job", "raw", "linear", "logwrites",
		"asr_nocopy", "asr", "fixed", "drain - raw", "wakeups / 64" }
	{ printf "%-7s%-7s%9s%9s%10s%11s%9s%8s%13s%14s\n", $1, $2, $3, $4, $5, $6, $7, $8, $9, $10 }'
jq -r '
	def row($k; $j; $t): map(select(.kernel == $k and .job == $j and .target == $t))[0];
	def per1000: .log_writes / .writes * 100000 | round / 100;
	. as $all | (map(.kernel) | unique)[] as $k | ("w4q1", "s64", "m4") as $j
	| ($all | row($k; $j; "null_asr")) as $without | ($all | row($k; $j; "null_asr_log")) as $with
	| [$k, $j, $without.instructions_p50, $with.instructions_p50,
	   (($with.instructions_p50 / $without.instructions_p50 - 1) * 10000 | round / 100),
	   ($all | row($k; $j; "null_asr_log_cold") | per1000), ($with | per1000)]
	| @tsv' build/bench/kernel.json |
	awk 'BEGIN { print ""; printf "%-7s%-7s%12s%10s%6s%26s%10s\n", "kernel", "job", "without log", "with log", "+%",
		"log writes / 1000: cold", "steady" }
	{ printf "%-7s%-7s%12s%10s%6s%26s%10s\n", $1, $2, $3, $4, $5, $6, $7 }'
jq -r '
	def row($k; $t): map(select(.kernel == $k and .target == $t))[0].instructions_p50;
	. as $all | (map(.kernel) | unique)[] as $k | ($all | row($k; "null_asr_1_disk")) as $one
	| ($all | row($k; "null_asr_64_disks")) as $many
	| [$k, $one, $many, (($many / $one - 1) * 10000 | round / 100)] | @tsv' build/bench/kernel.json |
	awk 'BEGIN { print ""; printf "%-7s%22s%12s%6s\n", "kernel", "w4q1: 1 disk a group", "64 disks", "+%" }
	{ printf "%-7s%22s%12s%6s\n", $1, $2, $3, $4 }'
