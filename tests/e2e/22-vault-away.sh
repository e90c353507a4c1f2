#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# timeout: 900
# The vault is away until the ring is full, without a spool: TRACK, then resync, consistent again; older
# points untouched; no write waits, none fails.
set -eu
if [ -n "${ASR_GUEST:-}" ]; then
	# shellcheck source=tests/e2e/guest-lib.sh
	. /asr/in/guest-lib.sh
	expect_klog 'dm-asr.*(TRACK|ring)'
	mkdir -p /etc/asr
	printf '[spool]\nmax = 0\n' > /etc/asr/asrd.conf
	source_up 2 1M
	stamp_start --threads 4 --rate 60 --max-bytes 32768
	sleep 3		# some history before the outage
	echo loaded
	tracking() { group_json | grep -q '"state": *"TRACK"'; }
	retry_until 120 tracking || { asrctl status; fail "the ring never filled"; }
	kill -0 "$STAMP_PID" || fail "the workload has ended"
	echo tracking
	retry_until 300 consistent || { asrctl status; tail -n 5 /run/asrd.log; fail "not consistent again"; }
	echo again
	stamp_stop
	source_down
	exit 0
fi
# shellcheck source=tests/e2e/lib.sh
. "$(dirname "$0")/lib.sh"
site_up
source_start source "$0" "$VM_OUT/d0.img" "$VM_OUT/d1.img"
await source loaded 300
vaultd_kill
# the newest point before the outage, as it is now
points 5 > "$W/before.points"
last=$(awk 'END { print $2 }' "$W/windows")
restore d0 "seq:$last" "$W/before.d0"
restore d1 "seq:$last" "$W/before.d1"
await source tracking 300
vaultd_start
await source again 300
vm_wait source 300 || fail "the source host"
vaultd_stop
for d in d0 d1; do
	restore $d "seq:$last" "$W/after.$d"
	cmp "$W/before.$d" "$W/after.$d" || fail "point seq:$last of $d has changed"
done
judge_all "$VM_OUT/source/stamplog" "d0 d1" 15
[ "$(wc -l < "$W/windows")" -ge 2 ] || fail "the outage left no gap between windows"
same_as_source "d0=$VM_OUT/d0.img" "d1=$VM_OUT/d1.img"
