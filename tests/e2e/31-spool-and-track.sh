#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# make check-more
# timeout: 900
# The whole ladder in one outage: ring -> spool, the spool is full, the ring is full: TRACK; the vault is
# back: the spool goes first, then the resync. What was spooled is points, a mark among it, too.
set -eu
if [ -n "${ASR_GUEST:-}" ]; then
	# shellcheck source=tests/e2e/guest-lib.sh
	. /asr/in/guest-lib.sh
	expect_klog 'dm-asr.*(TRACK|ring)'
	mkdir -p /etc/asr
	printf '[spool]\nmax = 8M\n' > /etc/asr/asrd.conf
	source_up 2 1M
	stamp_start --threads 4 --rate 60 --max-bytes 32768
	echo loaded
	state() { group_json | grep -q "\"state\": *\"$1\""; }
	retry_until 120 state spooling || { asrctl status; fail "the spool is not used"; }
	asrctl group mark g --name away || fail "no mark while the vault is away"
	retry_until 200 state full || { asrctl status; fail "the spool never filled"; }
	retry_until 120 state TRACK || { asrctl status; fail "the ring never filled"; }
	kill -0 "$STAMP_PID" || fail "the workload has ended"
	echo tracking
	retry_until 300 consistent || { asrctl status; tail -n 5 /run/asrd.log; fail "not consistent again"; }
	retry_until 120 state empty || { asrctl status; fail "the spool is not empty in the end"; }
	stamp_stop
	source_down
	for said in 'ring -> spool' 'the spool is full' 'spool -> ring' 'resync begins'; do
		grep -q -- "$said" /run/asrd.log || { cat /run/asrd.log; fail "no line says: $said"; }
	done
	exit 0
fi
# shellcheck source=tests/e2e/lib.sh
. "$(dirname "$0")/lib.sh"
site_up
source_start source "$0" "$VM_OUT/d0.img" "$VM_OUT/d1.img"
await source loaded 300
vaultd_kill
await source tracking 500
vaultd_start
vm_wait source 600 || fail "the source host"
vaultd_stop
judge_all "$VM_OUT/source/stamplog" "d0 d1" 15
[ "$(wc -l < "$W/windows")" -ge 2 ] || fail "the outage left no gap between windows"
away=$(jq '.marks[] | select(.name == "away") | .seq' "$W/points.json")
awk -v s="${away:-0}" '$1 <= s && s < $2 { found = 1 } END { exit !found }' "$W/windows" ||
	fail "what was written while the vault was away is no point: mark ${away:-none}, windows: $(cat "$W/windows")"
judge "$VM_OUT/source/stamplog" "d0 d1" name:away
same_as_source "d0=$VM_OUT/d0.img" "d1=$VM_OUT/d1.img"
