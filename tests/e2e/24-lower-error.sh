#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# timeout: 900
# The lower device fails under load, and comes back: the writers see the errors, the copy
# is consistent again afterwards, and equals the disk.
set -eu
if [ -n "${ASR_GUEST:-}" ]; then
	# shellcheck source=tests/e2e/guest-lib.sh
	. /asr/in/guest-lib.sh
	expect_klog 'dm-asr.*(error|fail)'
	expect_klog 'I/O error|Buffer I/O error|lost async page write'
	source_up 1
	stamp_start --threads 4 --rate 200 --max-bytes 65536 --keep-going
	table=$(dmsetup table v0-asr-origin)
	for ((i = 0; i < 5; i++)); do
		sleep 1		# load between the faults
		dmsetup suspend --noflush v0-asr-origin
		dmsetup load v0-asr-origin --table "0 $(blockdev --getsz /dev/d0) error"
		dmsetup resume v0-asr-origin
		sleep 0.5	# load on the broken disk
		dmsetup suspend --noflush v0-asr-origin
		dmsetup load v0-asr-origin --table "$table"
		dmsetup resume v0-asr-origin
	done
	kill -0 "$STAMP_PID" || fail "the workload has ended"
	stamp_stop
	grep -Eq '[1-9][0-9]* failed' /run/stamp.log || fail "the disk never failed: $(cat /run/stamp.log)"
	source_down
	exit 0
fi
# shellcheck source=tests/e2e/lib.sh
. "$(dirname "$0")/lib.sh"
site_up
source_start source "$0" "$VM_OUT/d0.img"
vm_wait source 400 || fail "the source host"
vaultd_stop
judge_all "$VM_OUT/source/stamplog" d0 15
same_as_source "d0=$VM_OUT/d0.img"
