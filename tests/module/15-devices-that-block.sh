#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Devices that do not even take I/O, for all their tags are in use: a log on one holds up no write, no suspend and
# no removal; a disk on one holds up no other disk.
# timeout: 900
SERIES=6.12 DISKS='16 4 16 4'
# shellcheck source=tests/module/host.sh
. "$(dirname "$0")/host.sh" 2>/dev/null || . /asr/in/host.sh

expect_klog 'asr: group g disk a[01]: write-intent log|asr: I/O of a write-intent log has not ended'
log_field() { dmsetup status "${2:-a0}" | awk -v f="$1" '{ print $(15 + f) }'; }
state_is() { [ "$(log_field 0 "${2:-a0}")" = "$1" ]; }
dump() { asr-logdev dump "${2:-/dev/d1}" | sed -n "s/^$1=//p"; }
want modprobe loop
echo 0 >/proc/sys/kernel/hung_task_timeout_secs 2>/dev/null || true

# A device `low` on $1, and a loop device $loop on that, which takes four requests and then no more until unblock.
blocking() {
	want dmsetup create low --table "0 $(sectors "$1") linear $1 0"
	loop=$(losetup -f --show --direct-io=on "$(map low)") || fail "no loop device"
	want sh -c "echo 4 >/sys/block/${loop#/dev/}/queue/nr_requests"
}
in_flight() { awk '{ print $1 + $2 }' "/sys/block/${loop#/dev/}/inflight"; }
all_in_flight() { [ "$(in_flight)" -ge 4 ]; }
block() {
	local i
	readers=()
	want dmsetup suspend low
	for i in 1 2 3 4 5 6 7 8; do
		dd if="$loop" of=/dev/null bs=4k count=1 skip=$((i * 16)) iflag=direct status=none &
		readers+=($!)
	done
	retry_until 60 all_in_flight || fail "$(in_flight) requests in flight"
}
unblock() {
	want dmsetup resume low
	wait "${readers[@]}" || fail "a reader"
}
unblocked() { want losetup -d "$loop"; retry_until 60 dmsetup remove low || fail "low stays"; }
write() { want timeout 120 dd if=/dev/urandom of="$(map "$1")" bs=64k count=1 seek="$2" oflag=direct status=none; }

clean() { [ "$(info dirty_chunks)" = 0 ]; }
no_bits() { log_field 1 "${1:-a0}" | grep -q '^0/'; }
# synced NAME=DEVICE...: nothing is dirty, and no region of those is set.
synced() {
	local at sync=()
	for at; do sync+=(--sync "$at"); done
	drain_on "log$((++drains))" "${sync[@]}" --durable
	retry_until 240 clean || fail "not in sync: $(asr-consume info g)"
	for at; do retry_until 240 no_bits "${at%%=*}" || fail "bits stay: $(dmsetup status "${at%%=*}")"; done
	drain_off
}
drains=0

n=$(sectors /dev/d0)
group $((8 << 20))

say "a log that takes no I/O: writes go on, the disk is suspended and resumed, and it is told later"
blocking /dev/d1
want asr-logdev format "$loop" g a0 "$n" 128
want dmsetup create a0 --table "0 $n asr /dev/d0 0 g a0 2 log $loop"
synced a0=/dev/d0
block
write a0 7
state_is broken || fail "not broken: $(dmsetup status a0)"
want timeout 120 dmsetup suspend a0
want timeout 120 dmsetup resume a0
write a0 9
unblock
told() { [ "$(dump flags)" = 3 ]; }
retry_until 120 told || fail "the device does not say that it is broken: $(asr-logdev dump /dev/d1)"
asr_off 0

say "a disk that takes no I/O holds up no write of another that had to wait"
want asr-logdev format /dev/d3 g a1 "$n" 128
want asr-logdev format /dev/d0 g a0 "$(sectors /dev/d1)" 128
want dmsetup create a0 --table "0 $(sectors /dev/d1) asr $loop 0 g a0 2 log /dev/d0"
want dmsetup create a1 --table "0 $n asr /dev/d2 0 g a1 2 log /dev/d3"
synced "a0=$(map low)" a1=/dev/d2
block
dd if=/dev/urandom of="$(map a0)" bs=64k count=1 seek=3 oflag=direct status=none &
writer=$!
is_set() { log_field 1 | grep -q '^[1-9]'; }
retry_until 60 is_set || fail "the write's region is not set: $(dmsetup status a0)"
before=$(log_field 1 a1)
write a1 5
[ "$(log_field 1 a1)" != "$before" ] || fail "the write did not have to wait: $(dmsetup status a1)"
kill -0 $writer || fail "the other disk's write is over"
unblock
wait $writer || fail "the writer"
asr_off 0
asr_off 1

say "a log that takes no I/O is left behind: its device and the module stay until it has ended"
want asr-logdev format "$loop" g a0 "$n" 128
want dmsetup create a0 --table "0 $n asr /dev/d2 0 g a0 2 log $loop"
synced a0=/dev/d2
block
write a0 11
want timeout 120 dmsetup remove --retry a0
want asr-consume delete g
rmmod dm_asr && fail "the module has gone before its I/O"
unblock
free_again() { grep -q '^dm_asr .* 0 ' /proc/modules; }
retry_until 60 free_again || fail "the module stays: $(grep dm_asr /proc/modules)"
unblocked
