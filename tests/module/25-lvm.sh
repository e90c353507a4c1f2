#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# make check-more
# timeout: 1500
# LVM gives a volume its own table back: the disk leaves aloud each time, and comes back wholly dirty; the copy is right.
SERIES=6.12 VM_TIMEOUT=1100 DISKS='64 64' MEM=1024
# shellcheck source=tests/module/host.sh
. "$(dirname "$0")/host.sh" 2>/dev/null || . /asr/in/host.sh

mkdir -p /tmp/lvm
export LVM_SYSTEM_DIR=/tmp/lvm LVM_SUPPRESS_FD_WARNINGS=1
cat >/tmp/lvm/lvm.conf <<E
devices { obtain_device_list_from_udev=0 external_device_info_source="none" use_devicesfile=0 }
activation { udev_sync=0 udev_rules=0 monitoring=0 }
global { use_lvmpolld=0 }
backup { backup=0 archive=0 }
E
lvm() { command lvm "$@" >/tmp/lvm.out 2>&1 || fail "lvm $*: $(cat /tmp/lvm.out)"; }
dev=vg-lv
insert() { # as asrctl does: below asr, a copy of the table that LVM gave the volume
	dmsetup remove --retry vg-origin 2>/dev/null
	want dmsetup create vg-origin -u "ASR-$(dmsetup info -c --noheadings -o uuid $dev)" --table "$(dmsetup table $dev)"
	want dmsetup load $dev --table "0 $(sectors "$(map $dev)") asr $(map vg-origin) 0 g lv"
	want dmsetup resume $dev
}
in_place() { dmsetup table $dev | grep -q ' asr '; }
left() { dmesg | grep -c 'group g: disk lv has left: the table of .* was replaced, its writes are not captured'; }
# pushed ARG...: this command puts asr out, which is seen; then asr is put back in
pushed() {
	local before
	before=$(left)
	lvm "$@"
	! in_place || fail "'$1' left asr in its place: this test, and the docs, are to be mended"
	[ "$(left)" = $((before + 1)) ] || fail "not a word in the log about $1: $(dmesg | tail -n 5)"
	[ "$(info disks)" = 0 ] || fail "the disk is still in the group after $1"
	load_moves	# uncaptured
	insert
	load_moves
}

lvm pvcreate -y /dev/d0 /dev/d1
lvm vgcreate vg /dev/d0 /dev/d1
lvm lvcreate -y -W n -Z n -L 16M -n lv vg /dev/d0
group $((8 << 20))
insert
drain_on lvm --sync "lv=$(map $dev)"
load_on "$(map $dev)"
say refresh
pushed lvchange --refresh vg/lv
say extend
pushed lvextend -L 24M vg/lv
say pvmove
want modprobe dm_mirror
pushed pvmove -i1 /dev/d0 /dev/d1
say rename
dev=vg-lv2
pushed lvrename vg lv lv2
say snapshot
want modprobe dm_snapshot
lvm lvcreate -y -s -L 8M -n snap vg/lv2
! in_place || fail "a snapshot left asr in its place"
dmsetup table $dev | grep -q snapshot-origin || fail "not a snapshot's origin: $(dmsetup table $dev)"
lvm lvremove -y vg/snap
insert
load_moves
say "what leaves it in place"
lvm vgchange -ay vg
in_place || fail "vgchange -ay put asr out"
not command lvm lvchange -an vg/lv2 >/dev/null 2>&1 || fail "deactivated while open"
in_place || fail "a refused deactivation put asr out"
load_off
drain_off
[ "$(info state)" = 1 ] && [ "$(info dirty_chunks)" = 0 ] || fail "$(asr-consume info g)"
want asr-consume verify $logs/lvm lv "$(map $dev)"
asr-consume count $logs/lvm | grep -c '^disk .*sectors=0 ' | grep -qx 5 || fail "$(asr-consume count $logs/lvm)"
asr-consume count $logs/lvm | grep -c '^disk .*sectors=[1-9][0-9]* flags=1' | grep -qx 6 || fail "not wholly dirty each time"

say "deactivation removes the device: it has left, but nothing can be written"
before=$(left)
lvm lvchange -an vg/lv2
[ "$(left)" = "$before" ] || fail "a deactivated volume counts as replaced"
[ "$(info disks)" = 0 ] || fail "the disk is still in the group"
want dmsetup remove --retry vg-origin
want asr-consume delete g
