#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# The lower device fails and comes back under load: what failed is dirty, never in the copy; then all is equal.
# shellcheck source=tests/module/host.sh
. "$(dirname "$0")/host.sh" 2>/dev/null || . /asr/in/host.sh

expect_klog 'I/O error|Buffer I/O|lost async page write'
n=$(sectors /dev/d0)
want dmsetup create low --table "0 $n linear /dev/d0 0"
swap() {
	want dmsetup suspend --noflush low
	want dmsetup load low --table "0 $n $1"
	want dmsetup resume low
}
group $((16 << 20))
want dmsetup create a0 --table "0 $n asr $(map low) 0 g a0"
drain_on err --sync "a0=$(map a0)"
sleep 2		# the first resync, before reads can fail
clean() { [ "$(info dirty_chunks)" = 0 ]; }
retry_until 30 clean || fail "not in sync"
drain_off
drain_on err
asr-stamp --log /tmp/stamp --threads 4 --seconds 6 --keep-going --discard 2 --zero 2 --rate 500 \
	--max-bytes 16384 "$(map a0)" &
load=$!
for _ in 1 2 3; do
	sleep 0.7
	swap error
	sleep 0.4
	swap "linear /dev/d0 0"
done
wait $load
drain_off
asr-consume count $logs/err
asr-consume count $logs/err | grep -q 'discarded-write=[1-9]' || fail "no failed write was seen"
[ "$(info dirty_chunks)" -gt 0 ] || fail "what failed is not dirty"
[ "$(info state)" = 1 ] || fail "a failed write ended CAPTURE"
dmsetup status a0
drain_on err --sync "a0=$(map a0)"
drain_off
[ "$(info dirty_chunks)" = 0 ] || fail "dirty chunks remain"
same err 0
asr_off 0
want dmsetup remove low
want asr-consume delete g
