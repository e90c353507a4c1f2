#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# A full ring never blocks a writer nor fails a write: TRACK, then resync, and the copy is right again.
SERIES=6.1
# shellcheck source=tests/module/host.sh
. "$(dirname "$0")/host.sh" 2>/dev/null || . /asr/in/host.sh

events() { dmsetup info -c --noheadings -o events a0; }

group $((1 << 20))
asr_on 0
drain_on full --stop
before=$(events)
# 24 MiB through a ring of 1 MiB that nobody empties
want timeout 60 dd if=/dev/urandom of="$(map a0)" bs=256k count=96 oflag=direct 2>/dev/null
[ "$(info state)" = 2 ] || fail "not in TRACK: $(asr-consume info g)"
[ "$(info reason)" = 2 ] || fail "not because the ring is full"
[ "$(info overflows)" = 1 ] || fail "not exactly one change of state"
[ "$(info dirty_chunks)" -gt 300 ] || fail "too few dirty chunks"
retry_until 5 test "$(events)" -gt "$before" || fail "no dm event"
dmsetup status a0 | grep -q ' track ring-full ' || fail "status: $(dmsetup status a0)"
dmesg | grep -c 'group g: capture -> track (ring-full)' | grep -qx 1 || fail "not one line in the log"
not dmsetup message a0 0 mark later 2>/dev/null || fail "a mark without a record"
# what a stopped consumer had: still there, and room for the STATE record
drain_off
drain_on full --sync "a0=$(map a0)"
back() { [ "$(info state)" = 1 ]; }
retry_until 30 back || fail "does not come back"
want asr-poke hammer "$(map a0)" 4 2 30000
drain_off
asr-consume count $logs/full
same full 0
asr-consume count $logs/full | grep -q 'from=1 to=2 reason=2' || fail "no STATE record"
[ "$(info state)" = 1 ] || fail "not back in CAPTURE"
[ "$(info dirty_chunks)" = 0 ] || fail "dirty chunks remain"
# disks that come and go while there is no room for their records
asr-consume drain g $logs/full --stop 2>/dev/null &
sleep 0.5
want timeout 60 dd if=/dev/zero of="$(map a0)" bs=256k count=8 oflag=direct 2>/dev/null
for _ in $(seq 100); do
	asr_on 1
	asr_off 1
done
asr_on 1
kill %%
wait
drain_on full --sync "a0=$(map a0)" --sync "a1=$(map a1)"
drain_off
same full 0
same full 1
[ "$(asr-consume count $logs/full | grep 'name=a1' | tail -n1 | sed 's/.*sectors=\([0-9]*\) .*/\1/')" -gt 0 ] ||
	fail "the last word on a1 is that it left"
asr_off 0
asr_off 1
want asr-consume delete g
