#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Writes that overlap in flight end in the ring as on the disk, captured or not, however hard they come.
SERIES=6.12
# shellcheck source=tests/module/host.sh
. "$(dirname "$0")/host.sh" 2>/dev/null || . /asr/in/host.sh

round() { # RING SPAN DRAIN-OPTIONS -- TABLE-OPTIONS
	local ring=$1 span=$2 o=()
	shift 2
	while [ "$1" != -- ]; do
		o+=("$1")
		shift
	done
	shift
	group "$ring"
	asr_on 0 "$@"
	drain_on "hammer" --sync "a0=$(map a0)" "${o[@]}"
	want asr-poke hammer "$(map a0)" 24 4 "$span"
	drain_off
	same hammer 0
	asr-consume info g | grep -E 'overlaps|overflows|writes|wakeups'
	[ "$(info overlaps)" -gt 0 ] || fail "nothing overlapped"
	[ "$(info uncaptured)" = 0 ] || fail "uncaptured writes remain"
	asr_off 0
	want asr-consume delete g
	rm -f "$logs/hammer"
}

round $((16 << 20)) 64 --
round $((16 << 20)) 600 --
round $((1 << 20)) 600 --nap 60 --		# in and out of TRACK all the time
round $((1 << 20)) 600 --nap 20 -- 2 throttle_ms 100
round $((1 << 20)) 600 --nap 60 -- 1 strict
