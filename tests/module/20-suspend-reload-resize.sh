#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# timeout: 1200
# Under load, disk and copy stay equal over suspend, reload, move, grow, shrink, rename, other names, removal.
SERIES=6.12 VM_TIMEOUT=1100 DISKS='40 40'
# shellcheck source=tests/module/host.sh
. "$(dirname "$0")/host.sh" 2>/dev/null || . /asr/in/host.sh

n=49152		# 24 MiB; the lower devices have 40
table() { echo "0 $1 asr $2 0 g ${3:-a0}"; }
swap() { # TABLE SUSPEND-OPTION...
	local table=$1
	shift
	want dmsetup suspend "$@" a0
	want dmsetup load a0 --table "$table"
	want dmsetup resume a0
}
clean() { [ "$(info dirty_chunks)" = 0 ]; }
capture() { [ "$(info state)" = 1 ] || fail "not in CAPTURE: $(asr-consume info g)"; }
# what the log says of sizes, one per line
sizes() { asr-consume count $logs/life | sed -n 's/^disk .* name=a0 sectors=\([0-9]*\) .*/\1/p'; }

group $((8 << 20))
want dmsetup create a0 --table "$(table $n /dev/d0)"
drain_on life --sync a0=/dev/d0
retry_until 400 clean || fail "not in sync"
load_on "$(map a0)" --discard 2

say "suspend and resume, reloads of the same table"
before=$(dmsetup table a0)
for opts in '' --nolockfs --noflush '--noflush --nolockfs'; do
	# shellcheck disable=SC2086
	want dmsetup suspend $opts a0
	want dmsetup resume a0
	load_moves
	# shellcheck disable=SC2086
	swap "$before" $opts
	capture
	load_moves
done
[ "$(dmsetup table a0)" = "$before" ] || fail "the table changed: $(dmsetup table a0)"
clean || fail "dirty after reloads of the same table"

# before any `clear`: stock kernels up to 6.12 at least, with any target, free memory twice at load, clear, rename, load
say "rename"
want dmsetup rename a0 a9
load_moves
[ "$(dmsetup table a9)" = "$before" ] || fail "the table changed: $(dmsetup table a9)"
want dmsetup rename a9 a0
clean || fail "dirty after a rename"

say "a table that waits and is dropped changes nothing"
want dmsetup load a0 --table "$(table $((n + 8192)) /dev/d0)"
load_moves
want dmsetup clear a0
want dmsetup suspend a0
want dmsetup load a0 --table "$(table $((n - 8192)) /dev/d1 other)"
want dmsetup clear a0
want dmsetup resume a0
load_moves
clean || fail "dirty after a table that was dropped"

say "grow"
want dmsetup suspend a0
want dmsetup load a0 --table "$(table $((n + 16384)) /dev/d0)"
want dmsetup resume a0
[ "$(blockdev --getsz "$(map a0)")" = $((n + 16384)) ] || fail "the device did not grow"
load_moves
want dd if=/dev/urandom of="$(map a0)" bs=1M seek=23 count=9 oflag=direct status=none
capture
load_off
drain_off
same life 0
[ "$(sizes | tr '\n' ' ')" = "$n $((n + 16384)) " ] || fail "sizes: $(sizes)"

say "shrink"
drain_on life --sync a0=/dev/d0
load_on "$(map a0)" --span 20971520
swap "$(table $n /dev/d0)"
load_moves
not dd if=/dev/zero of="$(map a0)" bs=1M seek=25 count=1 oflag=direct status=none 2>/dev/null ||
	fail "a write beyond the end"
load_off
drain_off
same life 0
# what was cut off is unknown when it comes back
swap "$(table $((n + 16384)) /dev/d0)"
drain_on life --sync a0=/dev/d0
retry_until 400 clean || fail "not in sync"
drain_off
same life 0

say "to another lower device"
load_on "$(map a0)" --span 20971520
want dmsetup suspend a0
want dd if=/dev/d0 of=/dev/d1 bs=1M count=40 iflag=direct oflag=direct status=none
want dmsetup load a0 --table "$(table $((n + 16384)) /dev/d1)"
want dmsetup resume a0
# only resync may know what is there; it is the same, but nobody said so
[ "$(info dirty_chunks)" = $(((n + 16384) / 128)) ] || fail "not wholly dirty: $(info dirty_chunks)"
drain_on life --sync a0=/dev/d1
retry_until 400 clean || fail "not in sync"
load_moves

say "under another name: one disk leaves, another comes"
drain_off
load_off
swap "$(table $((n + 16384)) /dev/d1 b0)"
drain_on life --sync b0=/dev/d1
load_on "$(map a0)"
retry_until 400 clean || fail "not in sync"
load_off
drain_off
want asr-consume verify $logs/life b0 "$(map a0)"
asr-consume count $logs/life | grep '^disk'
[ "$(sizes | tail -n 1)" = 0 ] || fail "a0 has not left"
dmesg | grep -q 'disk a0 has left: the table of .* was replaced' || fail "nothing in the log"

say "a deferred removal, while somebody has it open"
drain_on life --sync b0=/dev/d1
exec 8<>"$(map a0)"
want dmsetup remove --deferred a0
dmsetup info a0 | grep -qi deferred || fail "not deferred: $(dmsetup info a0)"
dd if=/dev/urandom bs=64k count=64 status=none >&8
exec 8>&-
gone() { ! dmsetup info a0 >/dev/null 2>&1; }
retry_until 30 gone || fail "a0 is still there"
drain_off
want dmsetup create look --table "0 $((n + 16384)) linear /dev/d1 0"
want asr-consume verify $logs/life b0 "$(map look)"
! dmesg | grep -q 'disk b0 has left' || fail "a removed device counts as replaced"
want dmsetup remove look
want asr-consume delete g
