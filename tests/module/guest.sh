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
	retry_until 10 grep -q attached "$logs/$log.err" || fail "no consumer: $(cat "$logs/$log.err")"
}

drain_off() {
	kill -TERM "$drain"
	wait "$drain" || fail "consumer: $(cat $logs/*.err)"
}

# same LOG N: the log replayed is what is on aN.
same() {
	want asr-consume verify "$logs/$1" "a$2" "$(map "a$2")"
}

asr_off() { want dmsetup remove --retry "a$1"; }
