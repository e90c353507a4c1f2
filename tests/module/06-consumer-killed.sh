#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# kill -9 of the consumer at any moment, many times: the next one goes on, no record is lost, the copy is equal.
DISKS=24
# shellcheck source=tests/module/host.sh
. "$(dirname "$0")/host.sh" 2>/dev/null || . /asr/in/host.sh

group $((4 << 20))
asr_on 0
asr-stamp --log /tmp/stamp --threads 4 --seconds 12 --rate 400 --max-bytes 65536 "$(map a0)" &
load=$!
kills=0
while kill -0 $load 2>/dev/null; do
	asr-consume drain g $logs/kill --sync "a0=$(map a0)" 2>/dev/null &
	p=$!
	sleep 0.$((RANDOM % 4))$((RANDOM % 10))
	kill -9 $p
	wait $p 2>/dev/null
	kills=$((kills + 1))
done
wait $load || fail "the workload failed"
say "$kills kills"
drain_on kill --sync "a0=$(map a0)"
drain_off
same kill 0
[ "$(info dirty_chunks)" = 0 ] || fail "dirty chunks remain"
asr_off 0
want asr-consume delete g
