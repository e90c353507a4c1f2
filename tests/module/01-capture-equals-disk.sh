#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# What is captured and resynced, replayed in order, is what is on both disks: all sizes, FUA, flush, zeroes, discard.
DISKS="24 24" MEM=1024
# shellcheck source=tests/module/host.sh
. "$(dirname "$0")/host.sh" 2>/dev/null || . /asr/in/host.sh

round() { # NAME OPTIONS...
	local name=$1
	shift
	group $((8 << 20))
	asr_on 0 "$@"
	asr_on 1 "$@"
	# fio's own log of what is there must hold, too
	drain_on "$name" --sync "a0=$(map a0)" --sync "a1=$(map a1)"
	want asr-stamp --log "/tmp/$name.stamp" --threads 6 --seconds 6 --count 4000 --max-bytes 300000 \
		--fua 5 --flush 5 --discard 3 --zero 3 "$(map a0)" "$(map a1)"
	want fio --name=w --filename="$(map a0)" --rw=randwrite --bs=4k --iodepth=16 --ioengine=io_uring \
		--nowait=1 --direct=1 --io_size=8m --size=16m --verify=crc32c --minimal >/dev/null
	drain_off
	asr-consume count "$logs/$name"
	same "$name" 0
	same "$name" 1
	asr-oracle --help >/dev/null 2>&1
	[ "$(info state)" = 1 ] || fail "not in CAPTURE: $(asr-consume info g)"
	[ "$(info uncaptured)" = 0 ] || fail "uncaptured writes remain"
	asr-consume info g
	asr_off 0
	asr_off 1
	want asr-consume delete g
}

round plain
round strict 1 strict
