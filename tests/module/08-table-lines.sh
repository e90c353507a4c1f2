#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# A wrong table line is refused with a text that says why; what dmsetup table says loads again; sizes change.
DISKS='24 24'
# shellcheck source=tests/module/host.sh
. "$(dirname "$0")/host.sh" 2>/dev/null || . /asr/in/host.sh

expect_klog 'device-mapper: (table|ioctl)|asr: unknown target|too small for target'
n=$(sectors /dev/d0)
group $((1 << 20))

wrong() { # TEXT TABLE
	dmesg -C
	not dmsetup create bad --table "$2" >/dev/null 2>&1 || fail "accepted: $2"
	dmesg | grep -qF -- "$1" || fail "'$2' said: $(dmesg) -- and not: $1"
}
wrong 'needs <device> <offset> <group> <disk>' "0 $n asr /dev/d0 0 g"
wrong 'cannot open <device>' "0 $n asr /dev/nothing 0 g a"
wrong '<offset> must be a number' "0 $n asr /dev/d0 x g a"
wrong '<offset> must be a number' "0 $n asr /dev/d0 18446744073709551615 g a"
wrong 'too small for target' "0 $n asr /dev/d0 8 g a"
wrong 'no such group' "0 $n asr /dev/d0 0 nobody a"
wrong 'names are 1 to 63' "0 $n asr /dev/d0 0 g/x a"
wrong 'names are 1 to 63' "0 $n asr /dev/d0 0 g .a"
wrong 'names are 1 to 63' "0 $n asr /dev/d0 0 g $(printf 'a%.0s' $(seq 64))"
wrong 'unknown option' "0 $n asr /dev/d0 0 g a 1 fast"
wrong 'number of options' "0 $n asr /dev/d0 0 g a 2 strict"
wrong 'number of options' "0 $n asr /dev/d0 0 g a x"
wrong 'more arguments' "0 $n asr /dev/d0 0 g a 0 strict"
wrong 'throttle_ms needs a number' "0 $n asr /dev/d0 0 g a 1 throttle_ms"
wrong 'throttle_ms must be 1 to 60000' "0 $n asr /dev/d0 0 g a 2 throttle_ms 0"
wrong 'log needs a device' "0 $n asr /dev/d0 0 g a 1 log"
wrong 'log stands twice' "0 $n asr /dev/d0 0 g a 4 log /dev/d1 log /dev/d1"
wrong 'exclude each other' "0 $n asr /dev/d0 0 g a 2 strict nocopy"
wrong 'must begin at sector 0' "0 8 linear /dev/d1 0
8 $((n - 8)) asr /dev/d0 0 g a"
asr_on 0
wrong 'in use by another device' "0 $n asr /dev/d1 0 g a0"
not dmsetup message a0 0 dirty 99999999 1 2>/dev/null || fail "dirty beyond the end"
not dmsetup message a0 0 mark 2>/dev/null || fail "a mark without a name"
not dmsetup message a0 0 mark a/b 2>/dev/null || fail "a mark with a bad name"
not dmsetup message a0 0 nonsense 2>/dev/null || fail "nonsense"
asr_off 0
# a table that was never resumed leaves nothing
want dmsetup create a0 --notable
want dmsetup load a0 --table "0 $n asr /dev/d0 0 g a0"
want dmsetup remove a0
for opts in '' '1 strict' '2 throttle_ms 50' '3 strict throttle_ms 9' '1 nocopy' '3 throttle_ms 9 nocopy'; do
	# shellcheck disable=SC2086
	asr_on 0 $opts
	dmsetup table a0 >/tmp/t
	want dmsetup load a0 /tmp/t
	want dmsetup resume a0
	dmsetup table a0 | cmp - /tmp/t || fail "$opts: $(dmsetup table a0)"
	asr_off 0
done
# size: the new part is dirty, the old one stays as it was
want dmsetup create a0 --table "0 16384 asr /dev/d0 0 g a0"
drain_on size --sync "a0=$(map a0)"
want dd if=/dev/urandom of="$(map a0)" bs=64k count=128 oflag=direct 2>/dev/null
drain_off
[ "$(info dirty_chunks)" = 0 ] || fail "dirty before"
want dmsetup load a0 --table "0 32768 asr /dev/d0 0 g a0"
want dmsetup resume a0
d=$(info dirty_chunks)
[ "$d" -ge 128 ] && [ "$d" -le 129 ] || fail "$d dirty chunks after growing by 128"
drain_on size --sync "a0=$(map a0)"
want dd if=/dev/urandom of="$(map a0)" bs=64k count=256 oflag=direct 2>/dev/null
drain_off
same size 0
want dmsetup load a0 --table "0 8192 asr /dev/d0 0 g a0"
want dmsetup resume a0
drain_on size --sync "a0=$(map a0)"
drain_off
asr-consume count $logs/size | grep '^disk'
[ "$(blockdev --getsz "$(map a0)")" = 8192 ] || fail "size"
asr_off 0
want asr-consume delete g
