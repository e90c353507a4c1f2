#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# groups.sh - what the marks of a group over two hosts cost a write-heavy load, and how long they hold it:
# build/bench/groups.json and a table.
#
# Two guests, fio on the protected disk of each, DEPTH writes of 4 KiB in flight without a pause, and all alike, so that
# an emulated processor can ship them: marks need a load that is captured. A write takes DELAY ms (dm-delay), as on a
# disk that has platters: so it is the disk that says how many there are in a second, and what marks take from them
# shows; without it (DELAY=0) it is the emulated processor, whose own ups and downs are larger than what is looked for.
# The load runs on while marks are made each second and not at all, by turns: with, without, without, with; windows of
# WINDOW seconds. What the guests' disks took in a window is asked of QEMU, and the ratio is taken round by round. A
# second in which a guest's processor waits for one of a busy machine's says nothing about marks: the second ratio
# leaves those out. A hold ends by the coordinator's word, or at the cap (HOLD): how long they were, and for how long
# writes were delayed at the most, is what asrctl group show says.
set -eu
if [ -n "${ASR_GUEST:-}" ]; then
	# shellcheck source=tests/e2e/hosts-guest.sh
	. /asr/in/hosts-guest.sh
	# shellcheck source=/dev/null
	. /asr/in/load
	modprobe dm_mod
	modprobe dm_delay
	host_up
	protected
	fio --name=load --filename=/dev/mapper/v0 --rw=randwrite --bs=4k --ioengine=libaio --iodepth="$DEPTH" --direct=1 \
		--time_based --runtime=100000 --randrepeat=0 --norandommap --buffer_pattern=0x6d61726b > /run/fio.log 2>&1 &
	load=$!
	dm=$(dmsetup info -c --noheadings -o blkdevname v0)
	written() { awk '{ exit $5 < 100 }' "/sys/block/$dm/stat"; }
	retry_until 120 written || fail "fio: $(cat /run/fio.log)"
	say load
	until_told
	kill $load
	wait $load || [ $? = 128 ] || fail "fio: $(cat /run/fio.log)"
	cat /run/fio.log
	grep -q 'err= 0' /run/fio.log || fail "fio had errors"
	host_down
	exit 0
fi
cd "$(dirname "$0")/../.."
VM_OUT=$PWD/build/bench/groups.d
# shellcheck source=tests/e2e/hosts-lib.sh
. tests/e2e/hosts-lib.sh
WINDOW=${WINDOW:-10} ROUNDS=${ROUNDS:-12} HOLD=${HOLD:-50ms} DEPTH=${DEPTH:-16} DELAY=${DELAY:-8}
rows=$PWD/build/bench/groups.rows
mkdir -p "$VM_OUT"
: > "$rows"
echo "DEPTH=$DEPTH RING=64M LOWER='$([ "$DELAY" = 0 ] && echo linear /dev/d0 0 || echo "delay /dev/d0 0 0 /dev/d0 0 $DELAY")'" \
	> "$VM_OUT/load"
host_disk() { truncate -s 32M "$1"; }
HOST_RUNS=load HOST_MORE=(--add "$VM_OUT/load" --qemu -qmp --qemu "unix:qmp,server=on,wait=off")
hosts_up 2
c=$(coordinator)

marks_each() { # TIME SECONDS: it is the coordinator who makes them
	want vm_exec "$c" "asrctl group interval g $1 --hold $HOLD" > /dev/null
	agreed() { [ "$(count_of "$c" ".marks.interval_s == $2")" = true ]; }
	retry_until 120 agreed "$@" || fail "interval $1 does not reach $c: $(marks_of 0) $(marks_of 1)"
}
# Asked of QEMU, which takes nothing from the guest: the time, the bytes its disk took, and for how long its
# processor had to wait for one of this machine's
sample() { # HOST
	local ask='{"execute":"qmp_capabilities"}{"execute":"query-blockstats"}{"execute":"query-cpus-fast"}' said bytes thread delay
	said=$(cd "$VM_OUT/$1" && socat -t 30 - UNIX-CONNECT:qmp <<< "$ask") || return 1
	bytes=$(jq '.return | arrays | .[] | select(.device == "d0").stats.wr_bytes' <<< "$said")
	thread=$(jq '.return | arrays | .[]["thread-id"] // empty' <<< "$said")
	[ -n "$bytes" ] && read -r _ delay _ < "/proc/${VM_PID[$1]}/task/$thread/schedstat" || return 1
	echo "$EPOCHREALTIME $bytes $delay"
}
window() { # WITH|WITHOUT: writes a second, of both
	local f0 f1 t0 t1
	f0=$(sample h0) && f1=$(sample h1) && sleep "$WINDOW" && t0=$(sample h0) && t1=$(sample h1) || fail "QEMU does not answer"
	awk -v what="$1" -v f0="$f0" -v f1="$f1" -v t0="$t0" -v t1="$t1" '
		function rate(f, t, own, a, b) {
			split(f, a, " ")
			split(t, b, " ")
			return (b[2] - a[2]) / 4096 / (b[1] - a[1] - (own ? (b[3] - a[3]) / 1e9 : 0))
		}
		BEGIN {
			printf "{\"what\":\"%s\",\"per_s\":%.1f,\"per_own_s\":%.1f}\n", what,
				rate(f0, t0, 0) + rate(f1, t1, 0), rate(f0, t0, 1) + rate(f1, t1, 1)
		}'
}
states() { # of both: the load has to be captured, not only tracked
	local k
	for k in 0 1; do
		count_of "h$k" '{state: .status.state, overflows: .status.overflows, declared: .marks.declared, failed: .marks.failed}'
	done
}
echo "$ROUNDS rounds of four windows of $WINDOW s, $DEPTH writes of $DELAY ms in flight on each of two hosts"
for ((r = 0; r < ROUNDS; r++)); do
	marks_each 1s 1
	w=$(window with) || exit 1
	marks_each 0 0
	w+=$(window without) || exit 1
	w+=$(window without) || exit 1
	marks_each 1s 1
	w+=$(window with) || exit 1
	jq -sc --argjson hosts "$(states | jq -s .)" 'def of($w; $f): map(select(.what == $w)[$f]);
		def ratio($f): (of("with"; $f) | add) / (of("without"; $f) | add);
		{with: of("with"; "per_s"), without: of("without"; "per_s"), ratio: ratio("per_s"),
		with_own: of("with"; "per_own_s"), without_own: of("without"; "per_own_s"), ratio_own: ratio("per_own_s"),
		hosts: $hosts}' <<< "$w" | tee -a "$rows"
done
for k in 0 1; do
	marks_of "$k" | jq -c --arg h "h$k" '{host: $h, coordinator, declared, failed, cap_ms: (.hold_limit_s * 1000),
		holds: (.holds | del(.buckets)), delayed_at_most: (.delayed_at_most | del(.buckets))}'
done > "$VM_OUT/holds"
hosts_stop 300
vaultd_stop
jq -se 'all(.[].hosts[]; .state == "CAPTURE" and .overflows == 0)' "$rows" > /dev/null ||
	fail "this machine does not ship what the load writes, so that no marks were made: try a smaller DEPTH"
jq -s --slurpfile hosts "$VM_OUT/holds" --argjson depth "$DEPTH" --argjson delay "$DELAY" --argjson window "$WINDOW" '
	def median: sort | if length % 2 == 1 then .[length / 2 | floor] else (.[length / 2 - 1] + .[length / 2]) / 2 end;
	def mean: add / length;
	def error: mean as $m | if length < 2 then null else (map(. - $m | . * .) | add / (length - 1) / length | sqrt) end;
	def ratio: {median: median, mean: mean, standard_error: error, low: min, high: max};
	{depth: $depth, delay_ms: $delay, window_s: $window, rounds: ., ratio: (map(.ratio) | ratio), ratio_own: (map(.ratio_own) | ratio),
	hosts: $hosts}' "$rows" > build/bench/groups.json
jq -r 'def r: . * 1000 | round / 1000; def ms: . / 1000 | r;
	def line: "median \(.median | r), mean \(.mean | r) +- \((.standard_error // 0) | r), from \(.low | r) to \(.high | r)";
	"writes with marks each second beside those without, \(.rounds | length) rounds (at least 0.97):",
	"  each second:                    \(.ratio | line)",
	"  each second it had a processor: \(.ratio_own | line)",
	(.hosts[] | "\(.host): held p50 \(.holds.p50_us | ms) ms, p99 \(.holds.p99_us | ms) ms, max \(.holds.max_us | ms) ms "
	+ "(cap \(.cap_ms) ms); \(.delayed_at_most.count) writes delayed, for at most \(.delayed_at_most.max_us | ms) ms"),
	(.hosts[] | select(.host == .coordinator) | "\(.declared) marks declared, \(.failed) failed")' build/bench/groups.json
