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
settled() { [ "$(info dirty_chunks)" = 0 ] && [ "$(field /dev/d2 regions_set)" = 0 ]; }
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
	want asr-consume delete g
	rm -rf /run/asr-boot
	want dmsetup create lv0 --uuid "$uuid" --table "$linear"
	# another boot, as far as files say
	sed -i 's/"boot_id": "[^"]*"/"boot_id": "another"/' $state/disks/*.json
}

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

say "written without asr: all of it"
settle 2
reboot
dd if=/dev/urandom of="$(map lv0)" bs=4k count=1 status=none oflag=direct
refused_nothing=$(boot 2>&1) || fail "boot: $refused_nothing"
grep -q 'were written before asr was there: all of it is compared' <<<"$refused_nothing" || fail "boot said: $refused_nothing"
[ "$(dirty)" = 1024 ] || fail "$(dirty) chunks dirty"

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

say "a plain device"
want dmsetup create lv0 --uuid "$uuid" --table "$linear"
wipe() { dd if=/dev/zero of="$1" bs=1M count=16 status=none oflag=direct; }
wipe /dev/d1
wipe /dev/d2
want protect /dev/d1 --name p --meta /dev/d2
want dmsetup remove --retry asr-p
want asr-consume delete g
sed -i 's/"boot_id": "[^"]*"/"boot_id": "another"/' $state/disks/*.json
boot || fail "boot"
dmsetup table asr-p | grep -q ' asr .* g p 2 log ' || fail "not wrapped: $(dmsetup table)"
want asrctl disk unprotect p
want dmsetup remove --retry lv0
want asr-consume delete g
kill %1
