# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
#
# guest.sh - words for module tests, in the guest. Group `g`, disk `aN` on /dev/dN.

# shellcheck source=tests/lib.sh
. /asr/lib.sh
set -u

logs=/tmp/logs
mkdir -p $logs
want modprobe dm_mod
want modprobe brd rd_nr=1 rd_size=1024
want insmod /asr/dm-asr.ko

sectors() { blockdev --getsz "$1"; }
map() { echo "/dev/mapper/$1"; }
group() { want asr-consume create "${2:-g}" "$1"; }
info() { asr-consume info "${2:-g}" | sed -n "s/^$1=//p"; }

# asr_on N [OPTIONS...]: device aN, an asr target on /dev/dN.
asr_on() {
	local n=$1
	shift
	want dmsetup create "a$n" --table "0 $(sectors "/dev/d$n") asr /dev/d$n 0 g a$n $*"
}

# drain_on LOG [OPTION...]: a consumer in the background; $drain is its process.
drain_on() {
	local log=$1
	shift
	asr-consume drain g "$logs/$log" "$@" 2>"$logs/$log.err" &
	drain=$!
	retry_until 60 grep -q attached "$logs/$log.err" || fail "no consumer: $(cat "$logs/$log.err")"
}

drain_off() {
	kill -TERM "$drain"
	wait "$drain" || fail "consumer: $(cat $logs/*.err)"
}

# same LOG N: the log replayed is what is on aN.
same() {
	want asr-consume verify "$logs/$1" "a$2" "$(map "a$2")"
}

# lacks WHAT: is this the debug kernel, which has no WHAT?
lacks() {
	[[ $(uname -r) = *-asr-debug ]] && say "$1: not in the debug kernel"
}

asr_off() { want dmsetup remove --retry "a$1"; }

# load_on DEVICE [OPTION...]: writes of all kinds in the background, until load_off.
load_on() {
	local dev=$1
	shift
	rm -f /tmp/load.stamp
	asr-stamp --log /tmp/load.stamp --threads 3 --seconds 0 --rate 80 --max-bytes 32768 --fua 5 --flush 5 \
		--zero 2 "$@" "$dev" >/tmp/load.out 2>&1 &
	load=$!
	load_moves
}

# It goes on: a good many of its writes have completed since the call.
load_moves() {
	local before
	before=$(stat -c %s /tmp/load.stamp 2>/dev/null || echo 0)
	# shellcheck disable=SC2317
	moved() {
		[ "$(stat -c %s /tmp/load.stamp 2>/dev/null || echo 0)" -gt $((before + 800)) ] || ! kill -0 "$load" 2>/dev/null
	}
	retry_until 120 moved && kill -0 "$load" 2>/dev/null || fail "the load stands still: $(cat /tmp/load.out)"
}

load_off() {
	kill -TERM "$load"
	wait "$load" || fail "load: $(cat /tmp/load.out)"
}
