#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# K8: the log names what may differ: set before the write, dirty after a return, cleared when durable; clean at a clean end.
# timeout: 1300
SERIES=6.12 DISKS='64 8' VM_TIMEOUT=600
# shellcheck source=tests/module/host.sh
. "$(dirname "$0")/host.sh" 2>/dev/null || . /asr/in/host.sh

n=$(sectors /dev/d0)
region=2048	# 1 MiB: 64 regions
dump() { asr-logdev dump /dev/d1 | sed -n "s/^$1=//p"; }
log_field() { dmsetup status a0 | awk -v f="$1" '{ print $(15 + f) }'; }	# 0 state, 1 set/total, 2 writes
set_now() { log_field 1 | cut -d/ -f1; }
on() { want dmsetup create a0 --table "0 $n asr /dev/d0 0 g a0 2 log /dev/d1"; }
opened() { [ "$(log_field 0)" = ok ]; }
clean() { [ "$(info dirty_chunks)" = 0 ]; }
no_bits() { [ "$(set_now)" = 0 ]; }
chunks_of() { echo $(($1 * region / 128)); }

group $((8 << 20))
want asr-logdev format /dev/d1 g a0 "$n" $region
on
retry_until 120 opened || fail "not opened: $(dmsetup status a0)"
[ "$(info dirty_chunks)" = "$(chunks_of 64)" ] || fail "a fresh log: $(info dirty_chunks) dirty chunks"
[ "$(dump flags)" = 1 ] && [ "$(dump generation)" = 1 ] || fail "superblock: $(asr-logdev dump /dev/d1)"

say "synced, drained and durable: cleared"
drain_on log --sync "a0=$(map a0)" --durable
retry_until 240 clean || fail "not in sync"
retry_until 240 no_bits || fail "bits stay: $(dmsetup status a0)"
[ "$(dump set)" = 0 ] || fail "on the device: $(dump set)"

say "a write sets the bit of its region, and those of a wide one all, before it is done"
want dd if=/dev/urandom of="$(map a0)" bs=4k seek=$((5 * 256)) count=1 oflag=direct 2>/dev/null
[ "$(asr-logdev bits /dev/d1 | paste -sd,)" = 5 ] || fail "set: $(asr-logdev bits /dev/d1 | paste -sd,)"
want blkdiscard -z -o $((20 << 20)) -l $((3 << 20)) "$(map a0)"
# the first is cleared when five seconds have passed
asr-logdev bits /dev/d1 | paste -sd, | grep -Eqx '(5,)?20,21,22' || fail "set: $(asr-logdev bits /dev/d1 | paste -sd,)"
retry_until 240 no_bits || fail "bits stay: $(dmsetup status a0)"

say "not durable: they stay, and are what is dirty when the disk comes back"
drain_off
drain_on log
for r in 7 31 63; do
	want dd if=/dev/urandom of="$(map a0)" bs=64k seek=$((r * 16 + 3)) count=1 oflag=direct 2>/dev/null
done
want dmsetup message a0 0 dirty $((40 * region)) 1
sleep 12	# two epochs, in which nothing may be cleared
[ "$(asr-logdev bits /dev/d1 | paste -sd,)" = 7,31,40,63 ] || fail "set: $(asr-logdev bits /dev/d1 | paste -sd,)"
drain_off
[ "$(info dirty_chunks)" = 1 ] || fail "the chunk made dirty by decree is not"
high=$(info next_seq)
asr_off 0
[ "$(dump flags)" = 1 ] && [ "$(dump seq_high)" -ge $((high - 1)) ] || fail "superblock: $(asr-logdev dump /dev/d1)"
on
[ "$(info dirty_chunks)" = "$(chunks_of 4)" ] || fail "$(info dirty_chunks) dirty chunks, not those of 4 regions"
[ "$(info next_seq)" -lt $((high + 1000)) ] || fail "numbers were raised within the life of a group"

say "made dirty by decree: not before the log has it"
retry_until 120 opened
want dmsetup remove --retry a0
want dmsetup create log --table "0 $(sectors /dev/d1) linear /dev/d1 0"
want dmsetup create a0 --table "0 $n asr /dev/d0 0 g a0 2 log $(map log)"
retry_until 120 opened || fail "not opened: $(dmsetup status a0)"
want dmsetup suspend --noflush log
dmsetup message a0 0 dirty $((50 * region)) 1 &
decree=$!
# not wchan: without frame pointers 5.10 does not know it
waits() { grep -q asr_intent_settle /proc/$decree/stack 2>/dev/null || ! kill -0 $decree 2>/dev/null; }
retry_until 60 waits && kill -0 $decree || fail "it did not wait"
[ "$(asr-logdev bits /dev/d1 | grep -cx 50)" = 0 ] || fail "on the log already"
want dmsetup resume log
wait $decree || fail "it failed"
[ "$(asr-logdev bits /dev/d1 | grep -cx 50)" = 1 ] || fail "not on the log: $(asr-logdev bits /dev/d1 | paste -sd,)"
asr_off 0
want dmsetup remove --retry log
on

say "a clean end"
drain_on log --sync "a0=$(map a0)" --durable
retry_until 240 clean || fail "not in sync"
want dd if=/dev/urandom of="$(map a0)" bs=64k seek=99 count=1 oflag=direct 2>/dev/null
drain_off
same log 0
asr_off 0
[ "$(dump flags)" = 0 ] && [ "$(dump set)" = 0 ] || fail "no clean end: $(asr-logdev dump /dev/d1)"

say "in another life of the group numbers go on above; a clean log: nothing is dirty"
high=$(dump seq_high)
want asr-consume delete g
group $((8 << 20))
on
[ "$(info dirty_chunks)" = 0 ] || fail "$(info dirty_chunks) dirty chunks after a clean end"
[ "$(info next_seq)" -ge $((high + (1 << 32))) ] || fail "next_seq $(info next_seq), the log knew $high"
retry_until 120 opened
asr_off 0

say "one copy torn, then the other; a torn block of the bitmap"
for copy in 0 1; do
	want dd if=/dev/urandom of=/dev/d1 bs=100 seek=$((copy * 4096 + 200)) oflag=seek_bytes count=1 \
		conv=notrunc,fsync 2>/dev/null
	on
	retry_until 120 opened || fail "not opened with copy $copy torn"
	drain_on "torn$copy" --sync "a0=$(map a0)" --durable
	retry_until 240 clean
	drain_off
	asr_off 0
done
want dd if=/dev/urandom of=/dev/d1 bs=20 seek=8300 oflag=seek_bytes count=1 conv=notrunc,fsync 2>/dev/null
on
[ "$(info dirty_chunks)" = "$(chunks_of 64)" ] || fail "a damaged bitmap: $(info dirty_chunks) dirty chunks"
retry_until 120 opened
[ "$(dump set)" = 64 ] || fail "not mended: $(dump set)"
asr_off 0
want asr-consume delete g
