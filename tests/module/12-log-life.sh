#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Under load: suspend, reload, grow, a log that fails, hangs, is taken away or comes: no write fails, nothing is lost.
# timeout: 1800
SERIES=6.1 DISKS='64 8 8' VM_TIMEOUT=850
# shellcheck source=tests/module/host.sh
. "$(dirname "$0")/host.sh" 2>/dev/null || . /asr/in/host.sh

expect_klog 'asr: group g disk a0: (write-intent log .* is broken|the table does without)|I/O error'
n=$(($(sectors /dev/d0) / 2))
region=1024	# 512 KiB: 64 regions at first
dump() { asr-logdev dump "${2:-/dev/d1}" | sed -n "s/^$1=//p"; }
log_field() { dmsetup status a0 | awk -v f="$1" '{ print $(15 + f) }'; }
state_is() { [ "$(log_field 0)" = "$1" ]; }
clean() { [ "$(info dirty_chunks)" = 0 ]; }
all() { echo $(($(sectors "$(map a0)") / 128)); }
table() { # DEVICE SECTORS TARGET...
	want dmsetup suspend --noflush "$1"
	want dmsetup load "$1" --table "0 $2 ${*:3}"
	want dmsetup resume "$1"
}
asr_table() { table a0 "$n" asr /dev/d0 0 g a0 "$@"; }
load_on() {
	asr-stamp --log /tmp/stamp --threads 3 --seconds 600 --rate 60 --max-bytes 16384 --discard 2 "$(map a0)" &
	load=$!
}
load_off() {
	kill -TERM $load
	wait $load || fail "the workload failed: a write did"
}
covered() {
	want asr-logdev covers /dev/d1 /tmp/base "$(map a0)"
}
base() { want dd if="$(map a0)" of=/tmp/base bs=1M iflag=direct 2>/dev/null; }

m=$(sectors /dev/d1)
want dmsetup create lg --table "0 $m linear /dev/d1 0"
group $((8 << 20))
want asr-logdev format "$(map lg)" g a0 "$n" $region
want dmsetup create a0 --table "0 $n asr /dev/d0 0 g a0 2 log $(map lg)"
drain_on life --sync "a0=$(map a0)" --durable
retry_until 240 clean || fail "not in sync"
no_bits() { log_field 1 | grep -q '^0/'; }
retry_until 240 no_bits || fail "bits stay: $(dmsetup status a0)"
drain_off
base

say "suspend and resume, both kinds; reload of the same line; the size grows"
drain_on life --sync "a0=$(map a0)"
load_on
for kind in '' --noflush --nolockfs; do
	# shellcheck disable=SC2086
	want dmsetup suspend $kind a0
	want dmsetup resume a0
	asr_table 2 log "$(map lg)"
done
retry_until 120 state_is ok || fail "$(dmsetup status a0)"
writes=$(log_field 2)
n=$((n * 2))
asr_table 2 log "$(map lg)"
retry_until 120 state_is ok || fail "$(dmsetup status a0)"
[ "$(dump sectors)" = $n ] && [ "$(dump regions)" = 128 ] || fail "not grown: $(asr-logdev dump /dev/d1)"
[ "$(log_field 1 | cut -d/ -f1)" -ge 64 ] || fail "the new part is clear: $(dmsetup status a0)"
load_off
truncate -s $((n * 512)) /tmp/base	# the new part holds zeroes
covered
[ "$(log_field 2)" -ge "$writes" ] || fail "the log was begun anew"
clean || retry_until 240 clean || fail "the new part does not sync"

say "the log device fails under load, and comes back: BROKEN, all dirty the next time"
events=$(dmsetup info -c --noheadings -o events a0)
load_on
dmesg -C
table lg "$m" error
# a region without its bit, to be sure
want dmsetup message a0 0 dirty 0 "$n"
retry_until 240 state_is broken || fail "not broken: $(dmsetup status a0)"
[ "$(dmsetup info -c --noheadings -o events a0)" -gt "$events" ] || fail "no event"
[ "$(dmesg | grep -c 'is broken')" = 1 ] || fail "not one line: $(dmesg)"
table lg "$m" linear /dev/d1 0
retry_until 240 eval '[ "$(dump flags)" = 3 ]' || fail "the device does not say so: $(asr-logdev dump /dev/d1)"
load_off
drain_off
same life 0
asr_off 0
want dmsetup create a0 --table "0 $n asr /dev/d0 0 g a0 2 log $(map lg)"
[ "$(info dirty_chunks)" = "$(all)" ] || fail "not all dirty: $(dmsetup status a0)"
drain_on life --sync "a0=$(map a0)" --durable
retry_until 240 clean || fail "not in sync"
retry_until 120 state_is ok || fail "does not begin anew"

say "a table without the log, and one with it again; one with another log"
load_on
asr_table
state_is - || fail "$(dmsetup status a0)"
[ "$(dump flags)" = 3 ] || fail "left behind, not marked: $(asr-logdev dump /dev/d1)"
asr_table 2 log "$(map lg)"
retry_until 120 state_is ok || fail "$(dmsetup status a0)"
want asr-logdev format /dev/d2 g a0 "$n" $region
asr_table 2 log /dev/d2
retry_until 120 state_is ok || fail "$(dmsetup status a0)"
[ "$(dump flags)" = 3 ] && [ "$(dump flags /dev/d2)" = 1 ] || fail "flags $(dump flags), $(dump flags /dev/d2)"
load_off
clean || retry_until 240 clean || fail "the dirty map was lost"
drain_off
same life 0

say "another target in its place: what it writes is not seen, so the log is not believed"
drain_on life --sync "a0=$(map a0)" --durable
retry_until 240 clean
drain_off
table a0 "$n" linear /dev/d0 0
[ "$(dump flags /dev/d2)" = 3 ] || fail "not marked: $(asr-logdev dump /dev/d2)"
want dmsetup remove a0

say "a log device that is suspended does not hang the disk"
want asr-logdev format "$(map lg)" g a0 "$n" $region
want dmsetup create a0 --table "0 $n asr /dev/d0 0 g a0 2 log $(map lg)"
retry_until 120 state_is ok
want dmsetup suspend lg
want dmsetup message a0 0 dirty 0 1
want timeout 60 dmsetup suspend a0
want timeout 60 dmsetup resume a0
want dmsetup resume lg
asr_off 0
want dmsetup remove --retry lg
want asr-consume delete g
