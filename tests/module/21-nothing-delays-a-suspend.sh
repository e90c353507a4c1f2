#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# timeout: 1200
# No suspend waits for the ring nor for a hold; whole-disk zeroes, discards and NOWAIT meet a full ring and stay right.
SERIES=6.12 VM_TIMEOUT=1100 DISKS='24 24'
# shellcheck source=tests/module/host.sh
. "$(dirname "$0")/host.sh" 2>/dev/null || . /asr/in/host.sh

settle() { # LOG: resync until nothing is dirty, and compare
	drain_on "$1" --sync a0=/dev/d0
	drain_off
	[ "$(info dirty_chunks)" = 0 ] || fail "dirty: $(asr-consume info g)"
	[ "$(info state)" = 1 ] || fail "not in CAPTURE: $(asr-consume info g)"
	[ "$(info uncaptured)" = 0 ] || fail "uncaptured writes remain: $(asr-consume info g)"
	same "$1" 0
}

group $((1 << 20))
asr_on 0 2 throttle_ms 60000
settle log

say "a suspend ends the wait for room in the ring"
dd if=/dev/urandom of="$(map a0)" bs=128k count=64 oflag=direct status=none &
writer=$!
full() { [ "$(info head)" -gt $(($(info tail) + 900000)) ]; }
retry_until 30 full || fail "the ring is not full: $(asr-consume info g)"
kill -0 $writer || fail "the writer did not wait"
begin=$SECONDS
want dmsetup suspend a0
[ $((SECONDS - begin)) -lt 30 ] || fail "the suspend took $((SECONDS - begin)) s"
[ "$(info state)" = 2 ] || fail "not in TRACK: $(asr-consume info g)"
want dmsetup resume a0
wait $writer || fail "the writer"
settle log

say "what must not wait is told so"
dd if=/dev/urandom of="$(map a0)" bs=128k count=64 oflag=direct status=none &
writer=$!
retry_until 30 full || fail "the ring is not full: $(asr-consume info g)"
xfs_io -d -c 'pwrite -N -V 1 -b 131072 0 131072' "$(map a0)" >/tmp/nowait 2>&1
grep -q 'Resource temporarily unavailable' /tmp/nowait || fail "NOWAIT into a full ring: $(cat /tmp/nowait)"
[ "$(info state)" = 1 ] || fail "NOWAIT ended CAPTURE"
asr_table=$(dmsetup table a0)
want dmsetup suspend --noflush a0
want dmsetup resume a0
wait $writer || fail "the writer"
[ "$(dmsetup table a0)" = "$asr_table" ] || fail "the table changed"
settle log

say "a suspend ends a hold"
want asr-poke hold-suspend g a0
settle log
asr_off 0

say "the whole disk, zeroed and discarded, by a ring that is full and one that is not"
rm $logs/log
asr_on 0
want dd if=/dev/urandom of="$(map a0)" bs=1M count=24 oflag=direct status=none
[ "$(info state)" = 2 ] || fail "the ring is not full"
want blkdiscard -z "$(map a0)"
[ "$(info state)" = 2 ] || fail "not in TRACK"
settle log
asr-consume count $logs/log
want dd if=/dev/urandom of="$(map a0)" bs=1M count=24 oflag=direct status=none
want blkdiscard "$(map a0)"
want dd if=/dev/urandom of="$(map a0)" bs=1M count=4 seek=2 oflag=direct status=none
settle log
drain_on log
want dd if=/dev/urandom of="$(map a0)" bs=64k count=4 seek=8 oflag=direct status=none
want blkdiscard -z "$(map a0)"
want dd if=/dev/urandom of="$(map a0)" bs=64k count=4 seek=12 oflag=direct status=none
want blkdiscard -o 1048576 -l 8388608 "$(map a0)"
want blkdiscard -z -o 4096 -l 1052672 "$(map a0)"
drain_off
settle log
asr-consume count $logs/log | grep -E 'zeroes=[1-9]|discard=[1-9]'
asr_off 0
want asr-consume delete g
