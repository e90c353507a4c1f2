#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# make check-more
# timeout: 1200
# asr above and below asr, crypt, raid1, multipath with paths that fail, and snapshots: disk and copy are equal.
SERIES=6.12 VM_TIMEOUT=1100 DISKS='24 24' MEM=1024
# shellcheck source=tests/module/host.sh
. "$(dirname "$0")/host.sh" 2>/dev/null || . /asr/in/host.sh

n=32768
raid() { echo "0 $n raid raid1 3 0 region_size 1024 2 - $1 - $2"; }
modules=dm_raid
if lacks dm_raid; then
	raid() { echo "0 $n mirror core 2 1024 nosync 2 $1 0 $2 0"; }
	modules=dm_mirror
fi
for m in $modules dm_crypt dm_multipath dm_round_robin dm_snapshot; do
	want modprobe $m
done
key=$(printf '5%.0s' $(seq 64))
crypt() { echo "0 $n crypt aes-cbc-essiv:sha256 $key 0 $1 0"; }
asr() { echo "0 $n asr $1 0 ${3:-g} $2"; }
make() { want dmsetup create "$1" --table "$2"; }
drop() {
	local d
	for d; do
		want dmsetup remove --retry "$d"
	done
}
writes() { # DEVICE [OPTION...]
	local dev=$1
	shift
	want asr-stamp --log /tmp/stamp --threads 4 --seconds 30 --count 150 --max-bytes 131072 --fua 5 --flush 5 "$@" \
		"$dev" >/tmp/stamp.out
	want fio --name=w --filename="$dev" --rw=randwrite --bs=4k-32k --iodepth=16 --ioengine=libaio --direct=1 \
		--io_size=1m --size=8m --verify=crc32c --verify_fatal=1 --minimal >/tmp/fio
}
begin() { # SYNC...
	local s o=()
	for s; do
		o+=(--sync "$s")
	done
	rm -f $logs/log
	drain_on log "${o[@]}"
}
equal() { # DISK...: all is consumed, and what is replayed is there
	local d
	drain_off
	[ "$(info state)" = 1 ] && [ "$(info dirty_chunks)" = 0 ] || fail "$(asr-consume info g)"
	for d; do
		want asr-consume verify $logs/log "$d" "$(map "$d")"
	done
}

group $((8 << 20))

say "asr above asr, of two groups"
group $((8 << 20)) h
make b0 "$(asr /dev/d0 b0 h)"
make a0 "$(asr "$(map b0)" a0)"
begin "a0=$(map b0)"
first=$drain
asr-consume drain h $logs/lower --sync b0=/dev/d0 2>$logs/lower.err &
second=$!
retry_until 60 grep -q attached $logs/lower.err || fail "no second consumer"
writes "$(map a0)" --discard 3 --zero 3
drain=$first
equal a0
kill -TERM $second
wait $second || fail "$(cat $logs/lower.err)"
want asr-consume verify $logs/lower b0 "$(map b0)"
drop a0 b0
want asr-consume delete h

say "crypt below and above"
make low "$(crypt /dev/d0)"
make a0 "$(asr "$(map low)" a0)"
make a1 "$(asr /dev/d1 a1)"
make top "$(crypt "$(map a1)")"
begin "a0=$(map low)" a1=/dev/d1
writes "$(map a0)"
writes "$(map top)"
equal a0 a1
drop top a1 a0 low

say "raid1 below"
make low "$(raid /dev/d0 /dev/d1)"
make a0 "$(asr "$(map low)" a0)"
begin "a0=$(map low)"
writes "$(map a0)" --zero 3
equal a0
drop a0 low

say "raid1 above: each leg is a disk of the group"
make a0 "$(asr /dev/d0 a0)"
make a1 "$(asr /dev/d1 a1)"
make top "$(raid "$(map a0)" "$(map a1)")"
begin a0=/dev/d0 a1=/dev/d1
writes "$(map top)"
drop top
equal a0 a1
drop a0 a1

# the origin learns at its resume in what pieces to copy: its snapshot has to be there before
say "snapshots below, and one of it above"
make snap "0 $n snapshot /dev/d0 /dev/d1 N 8"
make orig "0 $n snapshot-origin /dev/d0"
make a0 "$(asr "$(map snap)" a0)"
make a1 "$(asr "$(map orig)" a1)"
begin "a0=$(map snap)" a1=/dev/d0
writes "$(map a1)"
writes "$(map a0)"
equal a0 a1
drop a0 a1 snap orig
make a0 "$(asr /dev/d0 a0)"
make snap "0 $n snapshot $(map a0) /dev/d1 N 8"
make orig "0 $n snapshot-origin $(map a0)"
begin a0=/dev/d0
sum=$(md5sum <"$(map snap)")
writes "$(map orig)"
[ "$(md5sum <"$(map snap)")" = "$sum" ] || fail "the snapshot changed"
drop snap orig
equal a0
drop a0

if ! lacks scsi_debug; then
	say "multipath below, paths that fail and come back, and above"
	want modprobe sd_mod
	want modprobe scsi_debug dev_size_mb=24 delay=0 add_host=2 vpd_use_hostno=0
	paths() {
		set -- /sys/bus/pseudo/drivers/scsi_debug/adapter*/host*/target*/*/block/*/dev
		[ $# = 2 ] && [ -e "$1" ] && p0=$(cat "$1") && p1=$(cat "$2")
	}
	retry_until 30 paths || fail "scsi_debug has no two paths"
	make low "0 $n multipath 1 queue_if_no_path 0 1 1 round-robin 0 2 1 $p0 1000 $p1 1000"
	make a0 "$(asr "$(map low)" a0)"
	make top "0 $n multipath 2 queue_mode bio 0 1 1 round-robin 0 1 1 $(map a0) 1000"
	begin "a0=$(map low)"
	load_on "$(map top)"
	for _ in 1 2 3; do
		want dmsetup message low 0 fail_path "$p0"
		load_moves
		want dmsetup message low 0 fail_path "$p1"
		want dmsetup message low 0 reinstate_path "$p0"
		load_moves
		want dmsetup message low 0 reinstate_path "$p1"
	done
	load_off
	equal a0
	dmsetup status a0 | grep -q ' 0 detached ' || fail "errors: $(dmsetup status a0)"
	drop top a0 low
	want rmmod scsi_debug
fi
want asr-consume delete g
