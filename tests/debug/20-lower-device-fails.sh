#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# timeout: 900
# The block layer fails requests to the lower device at random: what failed is dirty, the copy is right afterwards.
DISKS="24 24"
# shellcheck source=tests/module/host.sh
. "$(dirname "$0")/../module/host.sh" 2>/dev/null || . /asr/in/host.sh

expect_klog 'I/O error|lost async page write'
f=/sys/kernel/debug/fail_make_request
echo 0 >$f/verbose
echo -1 >$f/times
low=/sys/block/$(basename "$(readlink -f /dev/d0)")/make-it-fail
[ -e "$low" ] || fail "no $low"

round() { # PERCENT OPTIONS...
	local percent=$1
	shift
	group $((8 << 20))
	asr_on 0 "$@"
	drain_on err --sync "a0=$(map a0)"
	clean() { [ "$(info dirty_chunks)" = 0 ]; }
	retry_until 60 clean || fail "not in sync"
	drain_off
	drain_on err
	echo "$percent" >$f/probability
	echo 1 >"$low"
	want asr-stamp --log /tmp/stamp --threads 4 --seconds 6 --keep-going --rate 80 --fua 10 --flush 10 \
		--discard 3 --zero 3 --max-bytes 65536 "$(map a0)"
	echo 0 >"$low"
	drain_off
	asr-consume count $logs/err | grep 'discarded-write=[1-9]' || fail "no write failed"
	[ "$(info dirty_chunks)" -gt 0 ] || fail "what failed is not dirty"
	[ "$(info state)" = 1 ] || fail "a failed write ended CAPTURE"
	drain_on err --sync "a0=$(map a0)"
	retry_until 60 clean || fail "not in sync again"
	drain_off
	same err 0
	asr_off 0
	want asr-consume delete g
	rm -f "$logs"/err*
}

round 10
round 30 1 strict
