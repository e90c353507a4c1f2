#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# timeout: 900
# Two disks of one group, a write to the second only after one to the first completed:
# every restored point of the pair is a prefix of the common log.
set -eu
if [ -n "${ASR_GUEST:-}" ]; then
	# shellcheck source=tests/e2e/guest-lib.sh
	. /asr/in/guest-lib.sh
	source_up 2
	stamp_start --threads 6 --dependent --rate 150 --max-bytes 16384 --zero 3
	for i in 1 2 3; do
		sleep 2		# load between the marks
		# refused while a machine that crawls is in TRACK
		retry_until 120 asrctl group mark g --name "mark$i" || fail "mark"
	done
	stamp_stop
	source_down
	exit 0
fi
# shellcheck source=tests/e2e/lib.sh
. "$(dirname "$0")/lib.sh"
site_up
source_start source "$0" "$VM_OUT/d0.img" "$VM_OUT/d1.img"
vm_wait source 400 || fail "the source host"
vaultd_stop
judge_all "$VM_OUT/source/stamplog" "d0 d1" 40
for i in 1 2 3; do
	judge "$VM_OUT/source/stamplog" "d0 d1" "name:mark$i"
done
# and the oracle does notice when the pair does not belong together
mapfile -t p < <(grep -o 'seq:.*' "$W/judge.points")
restore d0 "${p[0]}" "$W/d0.restored"
restore d1 "${p[-1]}" "$W/d1.restored"
want not "$B/tests/asr-oracle" --log "$VM_OUT/source/stamplog" "$W/d0.restored" "$W/d1.restored" > "$W/oracle.log"
same_as_source "d0=$VM_OUT/d0.img" "d1=$VM_OUT/d1.img"
