#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# make check-more
# timeout: 1800
# LVM pushes asr out of a busy volume: asrd says so, status says why, `asrctl boot` restores protection under
# whatever name the volume has then, and the copy is what the volume is.
set -eu
if [ -n "${ASR_GUEST:-}" ]; then
	# shellcheck source=tests/e2e/guest-lib.sh
	. /asr/in/guest-lib.sh
	mkdir -p /tmp/lvm /run/asr /var/lib/asr
	export LVM_SYSTEM_DIR=/tmp/lvm LVM_SUPPRESS_FD_WARNINGS=1
	cat > /tmp/lvm/lvm.conf <<- E
	devices { obtain_device_list_from_udev=0 external_device_info_source="none" use_devicesfile=0 }
	activation { udev_sync=0 udev_rules=0 monitoring=0 }
	backup { backup=0 archive=0 }
	E
	lvm() { command lvm "$@" > /tmp/lvm.out 2>&1 || fail "lvm $*: $(cat /tmp/lvm.out)"; }
	missing() { asrctl status -o json | grep -q '"reason": *".*'"$1"; }
	nothing_missing() { ! asrctl status -o json | grep -q '"since_ns"'; }

	modprobe dm_mod; insmod /asr/dm-asr.ko
	lvm pvcreate -y /dev/d0
	lvm vgcreate vg /dev/d0
	lvm lvcreate -y -W n -Z n -L 16M -n lv vg
	asrd_start
	asrctl register --key /asr/in/regkey --host source || fail "register"
	asrctl group create g --recipient /asr/in/recipient.crt --ring-size 16M || fail "group create"
	asrctl disk protect /dev/mapper/vg-lv --group g --name d0 --no-wait || fail "disk protect"
	retry_until 300 drained || { asrctl status; tail -n 5 /run/asrd.log; fail "no initial copy"; }
	nothing_missing || fail "missing: $(asrctl status)"
	asr-stamp --log /run/load --seconds 0 --threads 2 --rate 40 --max-bytes 16384 /dev/mapper/vg-lv > /run/stamp.log 2>&1 &
	STAMP_PID=$!

	say "grown by LVM"
	lvm lvextend -L 24M vg/lv
	retry_until 60 missing 'vg-lv was replaced, by LVM or by hand' || { asrctl status; fail "nobody noticed"; }
	asrctl status
	asrctl status | grep -q 'g: disk d0 IS NOT PROTECTED since 2.*asrctl boot' || fail "status: $(asrctl status)"
	grep -q 'disk d0 IS NOT PROTECTED any more: the table of /dev/mapper/vg-lv was replaced' /run/asrd.log ||
		fail "log: $(tail -n 3 /run/asrd.log)"
	want asrctl boot
	retry_until 60 nothing_missing || fail "still missing: $(asrctl status)"
	grep -q 'disk d0 is protected again' /run/asrd.log || fail "log: $(tail -n 3 /run/asrd.log)"

	say "renamed by LVM, which also gives it its table back"
	lvm lvrename vg lv lv2
	retry_until 60 missing 'vg-lv2 was replaced' || { asrctl status; fail "nobody noticed"; }
	want asrctl boot
	retry_until 60 nothing_missing || fail "still missing: $(asrctl status)"
	dmsetup table vg-lv2 | grep -q ' asr ' || fail "vg-lv2: $(dmsetup table vg-lv2)"

	kill "$STAMP_PID"
	wait "$STAMP_PID" || { cat /run/stamp.log; fail "the workload failed"; }
	retry_until 300 drained || { asrctl status; tail -n 5 /run/asrd.log; fail "does not drain"; }
	asrctl group mark g --name end || fail "group mark"
	retry_until 100 drained || fail "the mark does not arrive"

	say "taken out by asrctl: nothing is missing"
	want asrctl disk unprotect /dev/mapper/vg-lv2
	sleep 7		# two looks and more
	nothing_missing || fail "missing: $(asrctl status)"
	[ "$(grep -c 'IS NOT PROTECTED any more' /run/asrd.log)" = 2 ] || fail "log: $(grep PROTECTED /run/asrd.log)"
	lvm vgchange -an vg
	for d in $(dmsetup ls | awk '/asr-origin/ { print $1 }'); do
		dmsetup remove --retry "$d"
	done
	asrctl group delete g || fail "group delete"
	kill "$ASRD_PID"
	wait "$ASRD_PID" || fail "asrd ended with status $?"
	exit 0
fi
# shellcheck source=tests/e2e/lib.sh
. "$(dirname "$0")/lib.sh"
site_up
source_start source "$0" "$VM_OUT/d0.img"
vm_wait source 1500 || fail "the source host"
vaultd_stop
restore d0 "$LAST" "$W/restored"
[ "$(stat -c %s "$W/restored")" = 25165824 ] || fail "the copy has $(stat -c %s "$W/restored") bytes"
cmp -i 1048576:0 -n 25165824 "$VM_OUT/d0.img" "$W/restored" || fail "the copy is not what the volume is"
