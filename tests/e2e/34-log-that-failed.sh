#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# make check-more
# A log's device fails, takes not even the word that it has, and is back after a power cut as if nothing had been:
# asrd has noted it, the next boot believes none of its bits, and the copy is the disk. No point comes of a disk
# of which it is not known what was written while asr was put on it.
set -eu
if [ -n "${ASR_GUEST:-}" ]; then
	# shellcheck source=tests/e2e/guest-lib.sh
	. /asr/in/guest-lib.sh
	# shellcheck source=/dev/null
	. /asr/in/plan
	expect_klog 'dm-asr.*log'
	expect_klog 'Buffer I/O error on dev dm'
	expect_klog 'lost async page write'
	modprobe dm_mod; insmod /asr/dm-asr.ko
	mkdir -p /run/asr /var/lib/asr
	want mount /dev/d2 /var/lib/asr
	want dmsetup create v0 --table "0 $(blockdev --getsz /dev/d0) linear /dev/d0 0"
	want dmsetup create log0 --table "0 $(blockdev --getsz /dev/d1) linear /dev/d1 0"
	write() { want dd if=/dev/urandom of=/dev/mapper/v0 bs=64k count=1 seek="$1" oflag=direct status=none; }
	if [ "$BOOT" = 2 ]; then
		asrctl boot > /run/boot.log 2>&1 || fail "boot: $(cat /run/boot.log)"
		grep 'its log has failed: all of it is compared' /run/boot.log || fail "boot said: $(cat /run/boot.log)"
		asrd_start
		retry_until 180 drained || { asrctl status; tail -n 5 /run/asrd.log; fail "not consistent again"; }
		d0=/var/lib/asr/groups/g/disks/d0.json
		! grep -q 'distrust\|checking' $d0 || fail "the new log is not trusted: $(cat $d0)"
		say "as if asrctl boot had been stopped before it knew what was written meanwhile"
		flock /run/asr-boot/lock sh -c 'touch /run/locked; until [ -e /run/let ]; do sleep 0.1; done' &
		retry_until 60 test -e /run/locked || fail "no lock"
		sed -i 's/^{/{ "checking": 7,/' $d0
		want dmsetup message v0 0 dirty 0 1
		waits() { asrctl status | grep -q 'what was written while asr was put on it is not known yet'; }
		retry_until 60 waits || fail "does not wait: $(asrctl status)"
		touch /run/let
		settled() { ! grep -q checking $d0; }
		retry_until 60 settled || fail "still to be looked at: $(cat $d0)"
		grep 'asrctl was stopped while it put asr on it: all of it is compared' /run/asrd.log || fail "asrd said nothing"
		retry_until 180 drained || { asrctl status; tail -n 5 /run/asrd.log; fail "not consistent again"; }
		kill "$ASRD_PID"
		wait "$ASRD_PID" || fail "asrd ended with status $?"
		say "... and the host went down with that: the log is not believed at the next boot"
		want dmsetup remove --retry v0
		want dmsetup remove --retry v0-asr-origin
		want asr-consume delete g
		want dd if=/dev/urandom of=/dev/d0 bs=64k count=1 seek=99 oflag=direct status=none
		want dmsetup create v0 --table "0 $(blockdev --getsz /dev/d0) linear /dev/d0 0"
		sed -i 's/^{/{ "checking": 7,/' $d0
		asrctl boot > /run/boot.log 2>&1 || fail "boot: $(cat /run/boot.log)"
		grep 'was stopped before he knew what was written meanwhile: all of it is compared' /run/boot.log ||
			fail "boot said: $(cat /run/boot.log)"
		asrd_start
		retry_until 180 drained || { asrctl status; tail -n 5 /run/asrd.log; fail "not consistent again"; }
		kill "$ASRD_PID"
		wait "$ASRD_PID" || fail "asrd ended with status $?"
		want dmsetup remove --retry v0
		want dmsetup remove --retry v0-asr-origin
		want asr-consume delete g
		want dmsetup remove --retry log0
		want umount /var/lib/asr
		exit 0
	fi
	asrd_start
	want asrctl register --key /asr/in/regkey --host source
	want asrctl group create g --recipient /asr/in/recipient.crt --ring-size 1M
	want asrctl disk protect /dev/mapper/v0 --group g --name d0 --meta /dev/mapper/log0 --no-wait
	write 1
	retry_until 180 drained || { asrctl status; fail "no initial copy"; }
	settled() { asrctl disk log show /dev/mapper/log0 -o json | grep -q '"regions_set": 0'; }
	retry_until 120 settled || fail "the log is not cleared: $(asrctl disk log show /dev/mapper/log0)"
	# what was written by and by is on the disk of the log: from now on it takes nothing
	want dmsetup suspend --nolockfs log0
	want dmsetup load log0 --table "0 $(blockdev --getsz /dev/d1) error"
	want dmsetup resume log0
	write 20
	noted() { grep -q '"distrust": "its log has failed"' /var/lib/asr/groups/g/disks/d0.json; }
	retry_until 30 noted || fail "asrd notes nothing: $(cat /run/asrd.log)"
	asrd_kill
	write 150	# which only the ring knows
	sync /var/lib/asr
	echo written
	retry_until 600 test -e /run/never
fi
# shellcheck source=tests/e2e/lib.sh
. "$(dirname "$0")/lib.sh"
boot() {
	echo "BOOT=$1" > "$W/plan"
	vm_start source "$SERIES_E2E" --net --mem 768 --script "$0" --add "$E2E/guest-lib.sh" --add "$W/regkey" \
		--add "$W/recipient.crt" --add "$W/plan" --disk "$VM_OUT/d0.img" --disk "$VM_OUT/log.img" \
		--disk "$VM_OUT/state.img"
}
site_up
truncate -s 16M "$VM_OUT/d0.img" "$VM_OUT/state.img"
truncate -s 1M "$VM_OUT/log.img"
want mke2fs -q -t ext4 "$VM_OUT/state.img"
boot 1
await source written 300
vm_kill source
"$B/asrctl" disk log show "$VM_OUT/log.img" -o json | jq -e '.regions_set == 0 and .broken != true' > /dev/null ||
	fail "the log knows of its failure: $("$B/asrctl" disk log show "$VM_OUT/log.img")"
boot 2
vm_wait source 300 || fail "the source host"
vaultd_stop
LAST=latest
same_as_source "d0=$VM_OUT/d0.img"
say "after the cut the log named nothing, and the copy is the disk"
