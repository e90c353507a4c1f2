#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# timeout: 1200
# What was protected is protected again; a log that cannot be believed is refused with the command that resolves it.
SERIES=6.1 DISKS="64 16 16" MEM=1024
# shellcheck source=tests/module/host.sh
. "$(dirname "$0")/host.sh" 2>/dev/null || . /asr/in/host.sh

ctl=/run/stubd.sock
protect() { asrctl disk protect "$@" --group g --no-wait --control $ctl; }
boot() { asrctl boot; }
field() { asrctl disk log show "$1" -o json | sed -n "s/^ *\"$2\": \"\{0,1\}\([^\",]*\).*/\1/p"; }
dirty() { dmsetup status lv0 | awk '{ split($8, a, "/"); print a[1] }'; }
settled() {
	kill -0 "$drain" || fail "the consumer has ended: $(cat $logs/*.err)"
	[ "$(info dirty_chunks)" = 0 ] && [ "$(field /dev/d2 regions_set)" = 0 ]
}
# all of it is durable "at the vault", and its log has no region set
settle() {
	drain_on "log$1" --sync "a0=$(map lv0)" --durable
	retry_until 400 settled || fail "does not settle: $(dmsetup status lv0)"
	drain_off
}
state=/var/lib/asr/groups/g
# As after a reboot: the kernel knows nothing, the volume is there again with its own table
reboot() {
	want dmsetup remove --retry lv0
	dmsetup info lv0-asr-origin >/dev/null 2>&1 && want dmsetup remove --retry lv0-asr-origin
	! asr-consume info g >/dev/null 2>&1 || want asr-consume delete g
	rm -rf /run/asr-boot
	want dmsetup create lv0 --uuid "$uuid" --table "$linear"
	# another boot, as far as files say
	sed -i 's/"boot_id": "[^"]*"/"boot_id": "another"/' $state/disks/*.json
}
sysfs() { echo "/sys/block/$(dmsetup info -c --noheadings -o blkdevname lv0)"; }

mkdir -p $state
echo '{"name": "g", "ring_bytes": 8388608}' >$state/group.json
echo '{"first_seq": 1, "last_seq": 70, "was_consistent": false}' >$state/state.json
group $((8 << 20))
asr-stubd $ctl g &
retry_until 10 test -S $ctl || fail "no stub"
linear="0 $(sectors /dev/d0) linear /dev/d0 0"
uuid=LVM-aTestOfBoot
want dmsetup create lv0 --uuid $uuid --table "$linear"

say "a log: refusals"
echo precious | dd of=/dev/d2 bs=512 conv=sync status=none oflag=direct
refused 'holds data of some kind.*--yes d2' protect "$(map lv0)" --name a0 --meta /dev/d2
refused 'not the name of the device' protect "$(map lv0)" --name a0 --meta /dev/d2 --yes d1
want mkfs.ext4 -q -F /dev/d2
refused 'an ext file system' protect "$(map lv0)" --name a0 --meta /dev/d2
mkdir -p /mnt/d2
want mount /dev/d2 /mnt/d2
refused 'in use \(mounted on /mnt/d2\)' protect "$(map lv0)" --name a0 --meta /dev/d2 --yes d2
refused 'lies on the disk that is to be protected|is in use' protect "$(map lv0)" --name a0 --meta /dev/d0 --yes d0
refused 'does not lie on a block device' protect "$(map lv0)" --name a0 --meta /tmp/log
refused 'full path of a file' protect "$(map lv0)" --name a0 --meta log
refused 'bad log size' protect "$(map lv0)" --name a0 --meta /mnt/d2/log --meta-size 4K
refused 'name it with --meta' protect "$(map lv0)" --name a0 --meta-size 4M
[ ! -e /mnt/d2/log ] || fail "a refusal left a file"
[ -z "$(ls $state/disks 2>/dev/null)" ] || fail "a refusal is remembered"
[ "$(dmsetup table lv0 | awk '{ print $3 }')" = linear ] || fail "a refusal left a table: $(dmsetup table lv0)"

say "a log in a file, and one on a device"
want protect "$(map lv0)" --name a0 --meta /mnt/d2/log
[ "$(stat -c %s /mnt/d2/log)" = 1048576 ] || fail "the file has $(stat -c %s /mnt/d2/log) bytes"
dmsetup table lv0 | grep -q ' 2 log 7:' || fail "no log in the table: $(dmsetup table lv0)"
asrctl disk log show /mnt/d2/log
want asrctl disk unprotect a0
[ ! -e /mnt/d2/log ] || fail "the log's file stayed"
[ ! -e $state/disks/a0.json ] || fail "it is remembered"
want umount /mnt/d2
want protect "$(map lv0)" --name a0 --meta /dev/d2 --yes d2
grep -q '"dm_uuid": "LVM-aTestOfBoot"' $state/disks/a0.json || fail "remembered: $(cat $state/disks/a0.json)"
[ -e /etc/asr/boot/hold/dm-lv0 ] && [ -e /etc/asr/boot/groups/g/disks/a0.json ] || fail "no copy for the boot"
[ -e /run/asr-boot/dm-lv0 ] || fail "a device in use would be held back"
refused 'in use' asrctl disk log format /dev/d2
want asrctl disk log check /dev/d2

say "all durable: the log runs clean, and a boot compares nothing"
settle 1
generation=$(field /dev/d2 generation)
reboot
want boot
dmsetup table lv0 | grep -q ' asr .* g a0 2 log ' || fail "not protected: $(dmsetup table lv0)"
[ "$(dirty)" = 0 ] || fail "$(dirty) chunks dirty after a clean boot"
counted() { [ "$(field /dev/d2 generation)" = $((generation + 1)) ]; }
retry_until 10 counted || fail "generation $(field /dev/d2 generation), not $((generation + 1))"
want boot	# and once more, which does nothing
next=$(info next_seq)
[ "$next" -gt $((1 << 32)) ] || fail "numbers go on at $next"

say "after a power cut: what was being written, and no more"
dd if=/dev/urandom of="$(map lv0)" bs=4k count=1 seek=5000 status=none oflag=direct
want dmsetup suspend lv0	# as the log is at a power cut: nothing is closed
cp --sparse=never /dev/d2 /tmp/log.cut
want dmsetup resume lv0
reboot
cp /tmp/log.cut /dev/d2 && sync
want boot
n=$(dirty)
[ "$n" -ge 1 ] && [ "$n" -le 4 ] || fail "$n chunks dirty after one write"

say "discarded without asr: all of it"
settle 2
reboot
want blkdiscard -l 65536 "$(map lv0)"
refused_nothing=$(boot 2>&1) || fail "boot: $refused_nothing"
grep -q 'were written before asr was there: all of it is compared' <<<"$refused_nothing" || fail "boot said: $refused_nothing"
[ "$(dirty)" = 1024 ] || fail "$(dirty) chunks dirty"

say "written while asr is put on it: all of it"
settle 2d
want modprobe dm_delay
want dmsetup create slow --table "0 $(sectors /dev/d0) delay /dev/d0 0 0 /dev/d0 0 8000"
linear="0 $(sectors /dev/d0) linear $(map slow) 0" reboot
dd if=/dev/urandom of="$(map lv0)" bs=4k count=1 status=none oflag=direct &
in_flight() { [ "$(awk '{ print $2 }' "$(sysfs)/inflight")" = 1 ]; }
retry_until 10 in_flight || fail "nothing in flight"
out=$(boot 2>&1) || fail "boot: $out"
wait $! || fail "the write"
echo "$out"
[ "$(dirty)" = 1024 ] || fail "$(dirty) chunks dirty after a write in flight"

say "up without asr, and no file can be written: the log knows at once"
settle 2e
reboot
want dmsetup remove --retry slow
want dmsetup create lv0-asr-origin --table "0 8 zero"
refused 'lv0-asr-origin exists and is in use' asrctl boot --root --state-dir /etc/asr/boot
[ "$(field /dev/d2 broken)" = true ] || fail "the log does not know"
reboot
want boot
[ "$(dirty)" = 1024 ] || fail "$(dirty) chunks dirty after a boot without asr"

say "written, and its log is not there yet: noted before the log comes"
settle 2f
reboot
dd if=/dev/urandom of="$(map lv0)" bs=4k count=1 status=none oflag=direct
cp --sparse=never /dev/d2 /tmp/log.late
dd if=/dev/zero of=/dev/d2 bs=4k count=2 status=none oflag=direct
asrctl boot --wait 300 &
retry_until 30 grep -q '"distrust": ".* were written before' $state/disks/a0.json || fail "not noted: $(cat $state/disks/a0.json)"
kill $!
wait $!
cp /tmp/log.late /dev/d2 && sync
reboot
want boot
[ "$(dirty)" = 1024 ] || fail "$(dirty) chunks dirty after a boot whose log was late"

say "an initramfs knows an old copy: judged once more with the true files"
settle 2g
reboot
sed -i 's/^{/{ "distrust": "its log has failed",/' $state/disks/a0.json
mkdir -p /dev/block	# as udev would
ln -s "$(readlink -f /dev/d2)" "/dev/block/$(cat "/sys/class/block/$(basename "$(readlink -f /dev/d2)")/dev")"
want asrctl boot --root --state-dir /etc/asr/boot
[ "$(dirty)" = 0 ] || fail "$(dirty) chunks dirty with the old copy"
out=$(boot 2>&1) || fail "boot: $out"
grep -q 'its log has failed: all of it is compared' <<<"$out" || fail "boot said: $out"
[ "$(dirty)" = 1024 ] || fail "$(dirty) chunks dirty with the true files"
! grep -q distrust $state/disks/a0.json || fail "and once more at the next run"

say "a log that is older, or another one"
settle 3
reboot
cp --sparse=never /dev/d2 /tmp/log.now
cp /tmp/log.cut /dev/d2 && sync
refused 'older than the one seen last' boot
[ "$(dmsetup table lv0 | awk '{ print $3 }')" = linear ] || fail "protected with an old log"
[ -e /run/asr-boot/dm-lv0 ] || fail "a refused disk is held back"
rm -rf /run/asr-boot
cp /tmp/log.now /dev/d2 && sync
dd if=/dev/zero of=/dev/d2 bs=4k count=2 status=none oflag=direct
refused 'its log is not there|no write-intent log' boot
want asrctl disk log format /dev/d2 --group g --disk a0 --yes d2
want boot
[ "$(dirty)" = 1024 ] || fail "$(dirty) chunks dirty with a new log"
reboot
dd if=/dev/zero of=/dev/d2 bs=1M status=none oflag=direct 2>/dev/null
want dd if=/tmp/log.now of=/dev/d1 bs=1M status=none oflag=direct
sed -i "s/\"generation\": [0-9]*/\"generation\": 0/; s/\"uuid\": \"[^\"]*\"/\"uuid\": \"$(field /dev/d1 uuid)\"/" $state/disks/a0.json
out=$(boot 2>&1) || fail "boot: $out"
grep -q 'log on /dev/d1\|log on /dev/vd' <<<"$out" || fail "a log that moved is not found: $out"

say "a disk of another size"
reboot
want dmsetup remove --retry lv0
want dmsetup create lv0 --uuid "$uuid" --table "0 65536 linear /dev/d0 0"
refused 'changed while dm-asr was away.*asrctl disk log format .* makes it anew' boot
want dmsetup remove --retry lv0
want dmsetup create lv0 --uuid "$uuid" --table "$linear"

say "a disk that is gone"
want dmsetup remove --retry lv0
refused '1 of 1 remembered disks are not protected, 1 of them because they are missing' boot
refused 'nothing to forget' asrctl disk unprotect nothing --forget
want asrctl disk unprotect a0 --forget
[ ! -e $state/disks/a0.json ] && [ ! -e /etc/asr/boot/hold/dm-lv0 ] || fail "not forgotten"
want boot

say "no log, and no file can be written: numbers go on all the same"
want dmsetup create lv0 --uuid "$uuid" --table "$linear"
want protect "$(map lv0)" --name a0
echo "{\"first_seq\": $(($(date +%s) << 20)), \"last_seq\": 1, \"was_consistent\": false}" >$state/state.json
want mount --bind $state $state
last=0
for _ in 1 2; do
	reboot
	want mount -o remount,bind,ro $state
	want boot
	want mount -o remount,bind,rw $state
	[ "$(info next_seq)" -gt $((last + 1000)) ] || fail "numbers begin at $(info next_seq), and went to $last before"
	last=$(info next_seq) now=$(date +%s)
	later() { [ "$(date +%s)" -gt "$now" ]; }
	retry_until 10 later
done
want umount $state

say "one at a time"
exec 9>/run/asr-boot/lock
flock 9
asrctl disk unprotect a0 9>&- &
retry_until 30 grep -q -- '-> FLOCK' /proc/locks || fail "it does not wait: $(cat /proc/locks)"
dmsetup table lv0 | grep -q ' asr ' || fail "it did not wait: $(dmsetup table lv0)"
exec 9>&-
wait $! || fail "unprotect"
want dmsetup remove --retry lv0
dmsetup info lv0-asr-origin >/dev/null 2>&1 && want dmsetup remove --retry lv0-asr-origin

say "a group that is deleted holds nothing back"
touch /etc/asr/boot/hold/dm-gone
want asrctl group delete g --control $ctl
[ ! -e /etc/asr/boot/hold/dm-gone ] || fail "held back for ever"

say "a plain device"
want dmsetup create lv0 --uuid "$uuid" --table "$linear"
wipe() { dd if=/dev/zero of="$1" bs=1M count=16 status=none oflag=direct; }
wipe /dev/d1
wipe /dev/d2
want protect /dev/d1 --name p --meta /dev/d2
want dmsetup remove --retry asr-p
want asr-consume delete g
sed -i 's/"boot_id": "[^"]*"/"boot_id": "another"/' $state/disks/*.json
echo 0 >"/sys/block/$(basename "$(readlink -f /dev/d1)")/queue/iostats"
out=$(boot 2>&1) || fail "boot: $out"
grep -q 'nobody counts what is written to .*: all of it is compared' <<<"$out" || fail "boot said: $out"
dmsetup table asr-p | grep -q ' asr .* g p 2 log ' || fail "not wrapped: $(dmsetup table)"
want asrctl disk unprotect p
want dmsetup remove --retry lv0
want asr-consume delete g
kill %1
