#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Door 1 refuses what it must, by errno; a hostile consumer harms itself alone; holds hold and end.
DISKS=24
# shellcheck source=tests/module/host.sh
. "$(dirname "$0")/host.sh" 2>/dev/null || . /asr/in/host.sh

group $((1 << 20))
asr_on 0
not rmmod dm_asr 2>/dev/null || fail "unloaded while in use"
want asr-poke calls g
# some room consumed, something left
drain_on some
want dd if=/dev/zero of="$(map a0)" bs=4k count=20 oflag=direct 2>/dev/null
drain_off
want dd if=/dev/zero of="$(map a0)" bs=4k count=20 oflag=direct 2>/dev/null
want asr-poke hostile g
dmesg | grep -q 'group g: capture -> track (poisoned)' || fail "nothing in the log"
drain_on some --sync "a0=$(map a0)"
drain_off
want asr-poke hold g "$(map a0)"
drain_on some
drain_off
same some 0
dmsetup status a0
read -ra said < <(dmsetup message a0 0 mark before-upgrade)
[ ${#said[@]} = 3 ] && [ "${said[1]}" -gt 1 ] || fail "mark said: ${said[*]}"
want dmsetup message a0 0 declare "${said[0]}" before-upgrade app
not dmsetup message a0 0 declare "${said[0]}" before-upgrade 2>/dev/null || fail "declared nothing"
not dmsetup message a0 0 declare 0 before-upgrade app 2>/dev/null || fail "declared without a mark"
not dmsetup message a0 0 declare $((said[0] + 1)) before-upgrade app 2>/dev/null || fail "declared ahead"
want dmsetup message a0 0 dirty 128 1
[ "$(info dirty_chunks)" = 1 ] || fail "not one dirty chunk"
asr_off 0
not rmmod dm_asr 2>/dev/null || fail "unloaded while a group is there"
want asr-consume delete g
