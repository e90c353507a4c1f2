#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Live insertion under a mounted, busy ext4, and removal, again and again: no I/O error, a clean fsck, an equal copy.
DISKS=64
# all the load writes is kept in memory, with two copies of the disk: the load has a rate
MEM=1280
# shellcheck source=tests/module/host.sh
. "$(dirname "$0")/host.sh" 2>/dev/null || . /asr/in/host.sh

n=$(sectors /dev/d0)
# the volume as it was: a linear one, mounted
want dmsetup create vol --table "0 $n linear /dev/d0 0"
want mkfs.ext4 -q "$(map vol)"
mkdir -p /tmp/mnt
want mount "$(map vol)" /tmp/mnt
group $((8 << 20))
# a name of its own for the lower part
want dmsetup create vol-origin --table "0 $n linear /dev/d0 0"
swap() { # TABLE SUSPEND-OPTIONS...
	local table=$1
	shift
	want dmsetup suspend "$@" vol
	want dmsetup load vol --table "$table"
	want dmsetup resume vol
}
insert() { swap "0 $n asr $(map vol-origin) 0 g vol" "$@"; }
remove() { swap "0 $n linear /dev/d0 0" "$@"; }
fio --name=w --directory=/tmp/mnt --rw=randwrite --bs=4k-64k --size=12m --ioengine=libaio --iodepth=8 --direct=1 \
	--numjobs=2 --rate=6m --time_based --runtime=14 --verify=crc32c --verify_fatal=1 --minimal >/tmp/fio.out 2>&1 &
fio=$!
sleep 1
insert
sleep 1
remove --nolockfs
insert --noflush --nolockfs
asr-consume drain g $logs/live --sync "vol=$(map vol-origin)" 2>$logs/live.err &
drain=$!
while kill -0 $fio 2>/dev/null; do
	# a suspend, a resume, and a reload of its own table, under load
	want dmsetup suspend vol
	want dmsetup resume vol
	dmsetup table vol >/tmp/table
	want dmsetup load vol /tmp/table
	want dmsetup suspend --noflush vol
	want dmsetup resume vol
	[ "$(dmsetup table vol)" = "$(cat /tmp/table)" ] || fail "the table changed: $(dmsetup table vol)"
	sleep 0.5
done
wait $fio || fail "fio: $(cat /tmp/fio.out)"
want umount /tmp/mnt
drain_off
asr-consume count $logs/live
want asr-consume verify $logs/live vol "$(map vol)"
# the copy on its own is a clean file system
truncate -s $((n * 512)) /tmp/copy
want asr-consume replay $logs/live vol /tmp/copy
want e2fsck -fn /tmp/copy
want e2fsck -fn "$(map vol)"
remove
want asr-consume delete g
want dmsetup remove vol
want dmsetup remove vol-origin
