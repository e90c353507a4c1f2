#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# strict above a device with 4096-byte blocks; a disk moved by a reload is dirty, a reload of the same is not.
DISKS='24 24'
# shellcheck source=tests/module/host.sh
. "$(dirname "$0")/host.sh" 2>/dev/null || . /asr/in/host.sh

n=$(sectors /dev/d0)
group $((4 << 20))

# dm-crypt ends with EIO what does not come in whole blocks of memory
want modprobe dm_crypt
key=$(printf '5%.0s' $(seq 64))
want dmsetup create low --table "0 $n crypt aes-cbc-essiv:sha256 $key 0 /dev/d0 0 1 sector_size:4096"
[ "$(blockdev --getss "$(map low)")" = 4096 ] || fail "the lower device has no 4096-byte blocks"
want dmsetup create a0 --table "0 $n asr $(map low) 0 g a0 1 strict"
drain_on strict --sync "a0=$(map a0)"
for bs in 4k 12k 64k 128k 1M; do
	want dd if=/dev/urandom of="$(map a0)" bs=$bs count=4 seek=1 oflag=direct 2>/dev/null
done
drain_off
[ "$(info dirty_chunks)" = 0 ] || fail "dirty: $(dmsetup status a0)"
same strict 0
asr_off 0
want dmsetup remove --retry low

asr_on 0
drain_on move --sync "a0=$(map a0)"
clean() { [ "$(info dirty_chunks)" = 0 ]; }
retry_until 30 clean || fail "not in sync"
drain_off
dmsetup table a0 >/tmp/t
want dmsetup load a0 /tmp/t
want dmsetup resume a0
[ "$(info dirty_chunks)" = 0 ] || fail "a reload of the same table made it dirty"
want dd if=/dev/urandom of=/dev/d1 bs=1M count=24 oflag=direct 2>/dev/null
want dmsetup load a0 --table "0 $n asr /dev/d1 0 g a0"
want dmsetup resume a0
[ "$(info dirty_chunks)" = $((n / 128)) ] || fail "another lower device, $(info dirty_chunks) dirty chunks"
drain_on move --sync "a0=$(map a0)"
retry_until 30 clean || fail "not in sync after the move"
drain_off
same move 0
asr_off 0
want asr-consume delete g
