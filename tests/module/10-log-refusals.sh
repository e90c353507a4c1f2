#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# A log that is not the disk's own is refused with a text that says why, and is not written; the line loads again.
SERIES=6.1 DISKS='24 8'
# shellcheck source=tests/module/host.sh
. "$(dirname "$0")/host.sh" 2>/dev/null || . /asr/in/host.sh

expect_klog 'device-mapper: (table|ioctl)|asr: log of'
n=$(sectors /dev/d0)
group $((1 << 20))
line="0 $n asr /dev/d0 0 g a0 2 log"
want modprobe loop
sum() { dd if=/dev/d1 bs=1M iflag=direct 2>/dev/null | md5sum; }
format() { want asr-logdev format /dev/d1 g a0 "$n" 2048; }

wrong() { # TEXT [LOG]
	local before after
	before=$(sum)
	dmesg -C
	not dmsetup create a0 --table "$line ${2:-/dev/d1}" >/dev/null 2>&1 || fail "accepted, and not: $1"
	dmesg | grep -qF -- "$1" || fail "it said: $(dmesg) -- and not: $1"
	after=$(sum)
	[ "$before" = "$after" ] || fail "the log device was written: $1"
}
wrong 'cannot open the log device' /dev/nothing
wrong 'the disk itself or a part of it' /dev/d0
wrong 'there is no log on the device'
format
truncate -s 8192 /tmp/small
loop=$(losetup -f --show /tmp/small)
wrong 'too small for a superblock' "$loop"
losetup -d "$loop"
format
dd if=/dev/d1 of=/tmp/some bs=4096 count=3 iflag=direct 2>/dev/null
loop=$(losetup -r -f --show /tmp/some)
wrong 'is read-only' "$loop"
losetup -d "$loop"
want asr-logdev format /tmp/some g a0 "$((4032 * 8 * 2048 + 1))" 2048 2>/dev/null
truncate -s 12288 /tmp/some
loop=$(losetup -f --show /tmp/some)
wrong 'too small for the bitmap' "$loop"
losetup -d "$loop"
for f in 'group other' 'disk other' "sectors $((n + 2048))" 'version 2' 'region_sectors 100' 'flags 8'; do
	format
	# shellcheck disable=SC2086
	case $f in
	sectors*) want asr-logdev format /dev/d1 g a0 "${f#* }" 2048 ;;
	*) want asr-logdev set /dev/d1 $f ;;
	esac
	case $f in
	group*) wrong 'of another group' ;;
	disk*) wrong 'belongs to another disk' ;;
	sectors*) wrong 'made for a disk of another size' ;;
	version*) wrong 'newer version of dm-asr' ;;
	*) wrong 'superblock makes no sense' ;;
	esac
done
format
for copy in 0 1; do
	want dd if=/dev/urandom of=/dev/d1 bs=64 seek=$((copy * 4096 + 200)) oflag=seek_bytes count=1 conv=notrunc,fsync 2>/dev/null
done
wrong 'both copies of the superblock are damaged'

# a log that is another one by the time the disk would be resumed
format
want dmsetup create a0 --notable
want dmsetup load a0 --table "$line /dev/d1"
format
dmesg -C
not dmsetup resume a0 2>/dev/null || fail "resumed with another log than the one that was read"
dmesg | grep -q 'has changed since the table was loaded' || fail "said: $(dmesg)"
want dmsetup remove a0

# BROKEN is no refusal: all is dirty
opened() { dmsetup status a0 | grep -q ' ok '; }
format
want asr-logdev set /dev/d1 flags 3
for opts in '2 log /dev/d1' '5 strict throttle_ms 9 log /dev/d1'; do
	want dmsetup create a0 --table "0 $n asr /dev/d0 0 g a0 $opts"
	[ "$(info dirty_chunks)" = $((n / 128)) ] || fail "not all dirty: $(dmsetup status a0)"
	retry_until 120 opened || fail "not opened: $(dmsetup status a0)"
	dmsetup table a0 >/tmp/t
	want dmsetup load a0 /tmp/t
	want dmsetup resume a0
	dmsetup table a0 | cmp - /tmp/t || fail "$opts: $(dmsetup table a0)"
	dmsetup status a0 | grep -q " ok " || fail "a reload: $(dmsetup status a0)"
	[ "$(dmsetup deps -o devno a0 | grep -o '(' | wc -l)" = 2 ] || fail "deps: $(dmsetup deps a0)"
	asr_off 0
done
[ "$(asr-logdev dump /dev/d1 | grep flags=)" = flags=1 ] || fail "BROKEN stays: $(asr-logdev dump /dev/d1)"
want asr-consume delete g
