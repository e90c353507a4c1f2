#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# A log that was broken and begins anew forgets nothing that only the ring has; one that cannot be read when its
# disk comes up hinders nobody; one that has become another's under us is not written to; a disk that cannot be
# flushed may have lost what its log names.
# timeout: 900
SERIES=6.12 DISKS='16 2 8 2'
# shellcheck source=tests/module/host.sh
. "$(dirname "$0")/host.sh" 2>/dev/null || . /asr/in/host.sh

expect_klog 'asr: group g disk a0: (write-intent log|the table does without)|I/O error'
region=128
dump() { asr-logdev dump "${2:-/dev/d1}" | sed -n "s/^$1=//p"; }
log_field() { dmsetup status "${2:-a0}" | awk -v f="$1" '{ print $(15 + f) }'; }
state_is() { [ "$(log_field 0)" = "$1" ]; }
no_bits() { log_field 1 | grep -q '^0/'; }
others_none() { log_field 1 a1 | grep -q '^0/'; }
clean() { [ "$(info dirty_chunks)" = 0 ]; }
table() { # DEVICE TABLE
	want dmsetup suspend --noflush "$1"
	want dmsetup load "$1" --table "$2"
	want dmsetup resume "$1"
}
write() { want dd if=/dev/urandom of="$(map a0)" bs=64k count=1 seek="$1" oflag=direct status=none; }

n=$(sectors /dev/d0) k=$(sectors /dev/d2)
well="0 $(sectors /dev/d1) linear /dev/d1 0" ill="0 $(sectors /dev/d1) error"
line="0 $n asr /dev/d0 0 g a0 2 log $(map lg)" other="0 $k asr /dev/d2 0 g a1"
want dmsetup create lg --table "$well"
group $((8 << 20))
want asr-logdev format "$(map lg)" g a0 "$n" $region
want asr-logdev format /dev/d3 g a1 "$k" $region
want dmsetup create a0 --table "$line"
want dmsetup create a1 --table "$other 2 log /dev/d3"
drain_on one --sync a0=/dev/d0 --sync a1=/dev/d2 --durable
retry_until 240 clean || fail "not in sync"
retry_until 240 no_bits || fail "bits stay: $(dmsetup status a0)"
drain_off
want dd if="$(map a0)" of=/tmp/base bs=1M iflag=direct status=none

say "broken, written, repaired, and begun anew, while nothing becomes durable"
drain_on two
table lg "$ill"
write 10
retry_until 60 state_is broken || fail "not broken: $(dmsetup status a0)"
write 100
table lg "$well"
told() { [ "$(dump flags)" = 3 ]; }
retry_until 60 told || fail "the device does not say that it is broken: $(asr-logdev dump /dev/d1)"
table a0 "$line"
retry_until 60 state_is ok || fail "does not begin anew: $(dmsetup status a0)"
# a disk that owes nothing has its epochs meanwhile
table a1 "$other"
table a1 "$other 2 log /dev/d3"
retry_until 60 others_none || fail "the other disk's bits stay: $(dmsetup status a1)"
no_bits && fail "cleared, though nobody else has what was written"
want asr-logdev covers /dev/d1 /tmp/base "$(map a0)"
drain_off
drain_on three --durable
write 50
retry_until 60 no_bits || fail "bits stay: $(dmsetup status a0)"
drain_off
[ "$(info state)" = 1 ] || fail "not in CAPTURE: $(asr-consume info g)"
asr_off 1

say "not readable when the disk comes up: all is dirty, writes go, and it is told when it can be"
asr_off 0
want dmsetup create a0 --notable
want dmsetup load a0 --table "$line"
table lg "$ill"
want dmsetup resume a0
state_is broken || fail "$(dmsetup status a0)"
[ "$(info dirty_chunks)" = $((n / 128)) ] || fail "not all dirty: $(asr-consume info g)"
write 3
table lg "$well"
retry_until 60 told || fail "the device does not say that it is broken: $(asr-logdev dump /dev/d1)"
asr_off 0

say "... and by then it is another disk's"
want asr-logdev format /dev/d1 g a0 "$n" $region
want dmsetup create a0 --notable
want dmsetup load a0 --table "$line"
table lg "$ill"
want dmsetup resume a0
want asr-logdev format /dev/d1 g b0 "$n" $region
asr-logdev dump /dev/d1 >/tmp/is
# of the device itself: as long as its table is ill nothing comes there
reads() { awk '{ print $1 }' /sys/block/"$(basename "$(readlink -f /dev/d1)")"/stat; }
before=$(reads)
table lg "$well"
looked() { [ "$(reads)" -ge $((before + 2)) ]; }
retry_until 60 looked || fail "nobody looks at it"
asr-logdev dump /dev/d1 | cmp - /tmp/is || fail "another's log was written to: $(asr-logdev dump /dev/d1)"
write 4
asr_off 0
asr-logdev dump /dev/d1 | cmp - /tmp/is || fail "another's log was written to at the end: $(asr-logdev dump /dev/d1)"

say "a live disk gets a log that has become another's since: it goes on, and leaves that alone"
want dmsetup create a0 --table "0 $n asr /dev/d0 0 g a0"
want asr-logdev format /dev/d1 g a0 "$n" $region
want dmsetup suspend a0
want dmsetup load a0 --table "$line"
want asr-logdev format /dev/d1 g b0 "$n" 256
asr-logdev dump /dev/d1 >/tmp/is
want dmsetup resume a0
state_is broken || fail "$(dmsetup status a0)"
write 5
table a0 "0 $n asr /dev/d0 0 g a0"
asr-logdev dump /dev/d1 | cmp - /tmp/is || fail "another's log was written to: $(asr-logdev dump /dev/d1)"
asr_off 0
want dmsetup remove --retry lg

say "the disk cannot be flushed at the end of an epoch: all that the log names is dirty"
want modprobe dm-flakey
want dmsetup create low --table "0 $n linear /dev/d0 0"
want asr-logdev format /dev/d1 g a0 "$n" $region
want dmsetup create a0 --table "0 $n asr $(map low) 0 g a0 2 log /dev/d1"
drain_on flush --sync "a0=$(map low)" --durable
retry_until 240 clean || fail "not in sync"
retry_until 240 no_bits || fail "bits stay: $(dmsetup status a0)"
drain_off
drain_on flush
write 10
drain_off
table low "0 $n flakey /dev/d0 0 0 3600 1 error_writes"
drain_on flush --durable
# a write that fails is dirty itself; with it the consumer says what is durable
dd if=/dev/zero of="$(map a0)" bs=64k count=1 seek=20 oflag=direct status=none && fail "a write did not fail"
all_dirty() { [ "$(info dirty_chunks)" = 2 ]; }	# a region is a chunk
retry_until 120 all_dirty || fail "not dirty: $(asr-consume info g; dmsetup status a0)"
drain_off
table low "0 $n linear /dev/d0 0"
log_field 1 | grep -q '^2/' || fail "not set: $(dmsetup status a0)"
drain_on flush --sync "a0=$(map low)" --durable
retry_until 240 clean || fail "not in sync"
retry_until 240 no_bits || fail "bits stay: $(dmsetup status a0)"
drain_off

say "a flush of whoever uses it fails: the same"
drain_on flush
write 30
drain_off
table low "0 $n flakey /dev/d0 0 0 3600 1 error_writes"
xfs_io -c fsync "$(map a0)" 2>/dev/null && fail "a flush did not fail"
is_dirty() { [ "$(info dirty_chunks)" = 1 ]; }
retry_until 60 is_dirty || fail "not dirty: $(asr-consume info g; dmsetup status a0)"
table low "0 $n linear /dev/d0 0"
drain_on flush --sync "a0=$(map low)" --durable
retry_until 240 clean || fail "not in sync"
drain_off
same flush 0
asr_off 0
want dmsetup remove --retry low
want asr-consume delete g
