#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# kernel-log-guest.sh - what a write-intent log costs, and 64 disks in one group beside one, over a working set of
# 10 GiB that holds nothing (null_blk). Lines "row TARGET {json}" are what kernel.sh gathers.
#
# Cold: from a log with no bit set, so that each region is met for the first time. Steady: once more.
# An emulated second has a milliard instructions, so no epoch ends while a job runs: what
# clearing costs is no more than each block of the bitmap, here one, twice in 5 s.
set -eu
# shellcheck source=tests/lib.sh
. /asr/lib.sh

modprobe brd rd_nr=1 rd_size=65536
modprobe null_blk nr_devices=1 gb=10 queue_mode=0 irqmode=0 completion_nsec=0
modprobe dm_mod; insmod /asr/dm-asr.ko ring_cap_mb=1024
sectors=$(blockdev --getsz /dev/nullb0)
log_writes() { dmsetup status bench | awk '{ print $17 }'; }

opened() { dmsetup status bench | grep -q ' ok '; }

# The same linear volume of 64 pieces, over one disk of a group and over 64
pieces=64 size=$((sectors / 64))
asr-consume create bench $((512 << 20))
dmsetup create one --table "0 $sectors asr /dev/nullb0 0 bench one"
for ((i = 0; i < pieces; i++)); do echo "$((i * size)) $size linear /dev/mapper/one $((i * size))"; done |
	dmsetup create bench
run() { # TARGET JOB
	echo "row $1 $(asr-kbench --dev /dev/mapper/bench --job "$2" --count 2048)"
}
run null_asr_1_disk w4q1 >/dev/null
run null_asr_1_disk w4q1
dmsetup remove --retry bench
dmsetup remove --retry one
for ((i = 0; i < pieces; i++)); do
	dmsetup create "p$i" --table "0 $size asr /dev/nullb0 $((i * size)) bench p$i"
done
for ((i = 0; i < pieces; i++)); do echo "$((i * size)) $size linear /dev/mapper/p$i 0"; done | dmsetup create bench
run null_asr_64_disks w4q1 >/dev/null
run null_asr_64_disks w4q1
[ "$(dmsetup status --target asr | grep -c ' capture ')" = 64 ] || fail "not all capture: $(dmsetup status)"
dmsetup remove --retry bench
for ((i = 0; i < pieces; i++)); do dmsetup remove --retry "p$i"; done
asr-consume delete bench

run() { # TARGET JOB
	local before=0 after=0 json
	before=$(log_writes)
	json=$(asr-kbench --dev /dev/mapper/bench --job "$2" --count 2048)
	after=$(log_writes)
	echo "row $1 ${json%\}},\"log_writes\":$((after - before))}"
}
for j in w4q1 s64 m4; do
	asr-consume create bench $((512 << 20))
	dmsetup create bench --table "0 $sectors asr /dev/nullb0 0 bench d"
	run null_asr "$j" >/dev/null
	run null_asr "$j"
	dmsetup remove --retry bench
	asr-consume delete bench	# with its ring, which is nearly full of the 64 KiB job
	asr-consume create bench $((512 << 20))
	asr-logdev format /dev/ram0 bench d "$sectors" 8192 clear
	dmsetup create bench --table "0 $sectors asr /dev/nullb0 0 bench d 2 log /dev/ram0"
	retry_until 20 opened
	run null_asr_log_cold "$j"
	run null_asr_log "$j"
	dmsetup status bench | grep -q ' capture ' || fail "$j: $(dmsetup status bench)"
	dmsetup remove --retry bench
	asr-consume delete bench
done
