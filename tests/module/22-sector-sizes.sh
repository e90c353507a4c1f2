#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# make check-more
# timeout: 1200
# 512-byte and 4096-byte sectors, with and without discard, zeroes and integrity below: captured as what they are.
# NOWAIT, 256 writes in flight, writes over 1 MiB, misaligned ones. All these devices exist in the stock cloud
# kernels: loop with 4096-byte sectors, scsi_debug (discard, WRITE SAME, DIF/DIX), null_blk (none of them).
SERIES=6.12 VM_TIMEOUT=1100 DISKS='24' MEM=1024
# shellcheck source=tests/module/host.sh
. "$(dirname "$0")/host.sh" 2>/dev/null || . /asr/in/host.sh

# in_scsi [OPTION...]: a scsi_debug disk of 24 MiB; its path in $disk
in_scsi() {
	want modprobe sd_mod
	want modprobe scsi_debug dev_size_mb=24 delay=0 "$@"
	new() { disk=$(echo /sys/bus/pseudo/drivers/scsi_debug/adapter*/host*/target*/*/block/*) && [ -b "/dev/${disk##*/}" ]; }
	retry_until 30 new || fail "no disk of scsi_debug"
	disk=/dev/${disk##*/}
}

# round NAME LOWER BLOCK [TABLE-OPTION...]
round() {
	local name=$1 lower=$2 bs=$3
	shift 3
	say "$name: $(blockdev --getss "$lower")-byte sectors, discard $(discard "$lower"), zeroes $(zeroes "$lower")"
	[ "$(blockdev --getss "$lower")" = "$bs" ] || fail "$name has $(blockdev --getss "$lower")-byte sectors"
	group $((8 << 20))
	want dmsetup create a0 --table "0 49152 asr $lower 0 g a0 $*"
	[ "$(blockdev --getss "$(map a0)")" = "$bs" ] || fail "asr has $(blockdev --getss "$(map a0)")-byte sectors"
	drain_on "$name" --sync "a0=$lower"
	want asr-stamp --log /tmp/stamp --threads 6 --seconds 20 --count 250 --max-bytes 2097152 --align "$bs" \
		--fua 5 --flush 5 --discard "$odd" --zero "$odd" "$(map a0)" >/dev/null
	want dd if=/dev/urandom of="$(map a0)" bs=4M count=2 seek=1 oflag=direct status=none
	want fio --name=w --filename="$(map a0)" --rw=randwrite --bs="$bs-64k" --iodepth=256 --ioengine=io_uring \
		--nowait=1 --direct=1 --io_size=3m --size=16m --verify=crc32c --verify_fatal=1 --minimal >/tmp/fio
	[ "$odd" = 0 ] || want blkdiscard -z -o 1048576 -l 4194304 "$(map a0)"
	if [ "$bs" = 4096 ]; then
		not dd if=/dev/zero of="$(map a0)" bs=512 count=1 oflag=direct status=none 2>/dev/null ||
			fail "512 bytes into a 4096-byte sector"
	else
		want dd if=/dev/urandom of="$(map a0)" bs=512 count=9 seek=12345 oflag=direct status=none
	fi
	drain_off
	asr-consume count "$logs/$name" | tr '\n' ' '
	same "$name" 0
	[ "$(info state)" = 1 ] || fail "not in CAPTURE: $(asr-consume info g)"
	[ "$(info uncaptured)" = 0 ] || fail "uncaptured writes remain"
	dmsetup status a0 | grep -Eq ' 0 (attached|detached) ' || fail "errors: $(dmsetup status a0)"
	asr_off 0
	want asr-consume delete g
	rm -f "$logs/$name"
}
discard() { cat "/sys/block/$(basename "$(readlink -f "$1")")/queue/discard_max_bytes"; }
zeroes() { cat "/sys/block/$(basename "$(readlink -f "$1")")/queue/write_zeroes_max_bytes"; }

odd=5	# per cent of writes that are zeroes, or discards
round virtio /dev/d0 512

want modprobe loop
loop=$(losetup --sector-size 4096 --find --show /dev/d0) || fail "no loop device"
round loop-4k "$loop" 4096
want losetup -d "$loop"

if ! lacks scsi_debug; then
	in_scsi sector_size=4096 lbpu=1 lbpws=1 lbprz=1
	[ "$(discard "$disk")" -gt 0 ] || fail "scsi_debug takes no discard"
	round scsi-4k "$disk" 4096 1 strict
	want rmmod scsi_debug

	in_scsi dif=1 dix=1
	[ "$(cat "/sys/block/${disk##*/}/integrity/format")" = T10-DIF-TYPE1-CRC ] || fail "no integrity profile"
	# its WRITE SAME leaves the tags as they were, and what it zeroes cannot be read any more, with or without asr
	odd=0
	round scsi-dif "$disk" 512
	odd=5
	want rmmod scsi_debug
fi

# by configfs: as options of the module 5.10 does not know them
want modprobe null_blk nr_devices=0
null=/sys/kernel/config/nullb/nullb0
grep -q configfs /proc/mounts || want mount -t configfs none /sys/kernel/config
want mkdir $null
for o in size=24 blocksize=512 memory_backed=1 discard=0 power=1; do
	echo "${o#*=}" >"$null/${o%=*}" || fail "null_blk: $o"
done
[ "$(discard /dev/nullb0)" = 0 ] || fail "null_blk takes discards"
round null /dev/nullb0 512
want rmdir $null
want rmmod null_blk
