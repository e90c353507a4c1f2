#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# timeout: 1200
# A mounted, busy volume goes under protection and out of it without an I/O error; each refusal changes nothing.
DISKS="64 32 32" MEM=1024
# shellcheck source=tests/module/host.sh
. "$(dirname "$0")/host.sh" 2>/dev/null || . /asr/in/host.sh

ctl=/run/stubd.sock
protect() { asrctl disk protect "$@" --no-wait --control $ctl; }
unprotect() { asrctl disk unprotect "$@"; }
table() { dmsetup table --showkeys "$1"; }
# nothing changed: the devices and their tables are what they were
snapshot() { for d in $(dmsetup ls | awk '/[(]/ { print $1 }' | sort); do echo "$d $(table "$d")"; done; }
same_after() { # TEXT CMD...
	local before
	before=$(snapshot)
	refused "$@"
	[ "$before" = "$(snapshot)" ] || fail "'${*:2}' was refused and changed: $before -- $(snapshot)"
	! dmsetup info -c --noheadings -o suspended | grep -q Suspended || fail "'${*:2}' left a device suspended"
}

group $((8 << 20))
asr-stubd $ctl g nokernel &
retry_until 10 test -S $ctl || fail "no stub"
drain_on log

want dmsetup create lv0 --table "0 $(sectors /dev/d0) linear /dev/d0 0"
want mkfs.ext4 -q -F "$(map lv0)"
mkdir -p /mnt/lv0
want mount "$(map lv0)" /mnt/lv0
# each round reads back and checks what it wrote
while [ ! -e /tmp/fio.stop ]; do
	fio --name=w --directory=/mnt/lv0 --rw=randwrite --bs=4k --size=4m --ioengine=psync --direct=1 \
		--verify=crc32c --fsync=64 --minimal >/tmp/fio.log 2>&1 || exit 1
	echo round >>/tmp/fio.rounds
done &
fio=$!
linear=$(table lv0)

say "in and out, under load"
want protect "$(map lv0)" --group g --name a0
table lv0 | grep -q ' asr .* g a0' || fail "lv0: $(table lv0)"
[ "$(table lv0-asr-origin)" = "$linear" ] || fail "origin: $(table lv0-asr-origin)"
[ "$(dmsetup info -c --noheadings -o uuid lv0-asr-origin)" = ASR-lv0 ] || fail "the origin's UUID"
same_after 'protected already' protect "$(map lv0)" --group g
want unprotect "$(map lv0)"
[ "$(table lv0)" = "$linear" ] || fail "lv0: $(table lv0)"
! dmsetup info lv0-asr-origin >/dev/null 2>&1 || fail "the origin stayed"
same_after 'is not protected' unprotect "$(map lv0)"
same_after 'is not protected' unprotect nothing

say "refusals"
same_after 'there is no group x; there are: g, nokernel' protect "$(map lv0)" --group x
same_after 'bad disk name' protect "$(map lv0)" --group g --name 'a b'
same_after 'cannot load a table into lv0' protect "$(map lv0)" --group nokernel
same_after 'not a block device' protect /etc/passwd --group g
same_after 'No such file' protect /dev/nothing --group g
same_after 'asrd does not answer' asrctl disk protect "$(map lv0)" --group g --control /run/none
want mkfs.ext4 -q -F /dev/d1
mkdir -p /mnt/d1
want mount /dev/d1 /mnt/d1
same_after 'in use \(mounted on /mnt/d1\)' protect /dev/d1 --group g
want umount /mnt/d1
same_after 'part of /dev/mapper/lv0; protect that one' protect /dev/d0 --group g
modprobe dm_snapshot 2>/dev/null
if dmsetup create so --table "0 $(sectors /dev/d2) snapshot-origin /dev/d2" 2>/dev/null; then
	same_after 'snapshot-origin target, which keeps state' protect "$(map so)" --group g
	want dmsetup remove --retry so
fi
dmsetup suspend lv0
same_after2() { refused 'is suspended' protect "$(map lv0)" --group g; }
same_after2
dmsetup resume lv0

say "a device that is not dm"
want protect /dev/d1 --group g --name a1
want mount "$(map asr-a1)" /mnt/d1
same_after 'disk a1 of group g is /dev/mapper/asr-a1 already' protect "$(map lv0)" --group g --name a1
same_after 'in use \(mounted on /mnt/d1\)' unprotect a1
want umount /mnt/d1
want unprotect a1

say "a table of several targets, and one with a key"
want dmsetup create mix --table "0 2048 linear /dev/d1 0
2048 2048 linear /dev/d1 8192
4096 1024 zero
5120 1024 error"
mix=$(table mix)
want protect "$(map mix)" --group g
want unprotect mix
[ "$(table mix)" = "$mix" ] || fail "mix: $(table mix)"
want dmsetup remove --retry mix
modprobe dm_crypt 2>/dev/null
if dmsetup create cr --table "0 4096 crypt aes-cbc-essiv:sha256 $(printf '0123456789abcdef%.0s' 1 2 3 4) 0 /dev/d2 0"; then
	crypt=$(table cr)
	echo a secret | dd of="$(map cr)" bs=512 conv=sync status=none oflag=direct
	want protect "$(map cr)" --group g
	[ "$(dd if="$(map cr)" bs=512 count=1 status=none | tr -d '\0')" = "a secret" ] || fail "crypt reads differently"
	want unprotect cr
	[ "$(table cr)" = "$crypt" ] || fail "cr: $(table cr)"
	want dmsetup remove --retry cr
fi

say "a killed asrctl leaves a working volume"
# killed CMD...: within 0.3 s; it has ended when this returns (timeout -s KILL would kill itself, and not wait)
killed() {
	"$@" >/dev/null 2>&1 &
	local p=$!
	sleep "$(printf 0.%02d $((RANDOM % 30)))"
	kill -KILL $p 2>/dev/null
	wait $p 2>/dev/null
}
for ((i = 0; i < 12; i++)); do
	killed asrctl disk protect "$(map lv0)" --group g --name a0 --no-wait --control $ctl
	[ "$(dmsetup info -c --noheadings -o suspended lv0)" = Active ] || fail "lv0 is suspended after kill $i"
	dmsetup clear lv0	# a table that was loaded and not yet swapped in
	table lv0 | grep -q ' asr ' || want protect "$(map lv0)" --group g --name a0
	killed asrctl disk unprotect "$(map lv0)"
	[ "$(dmsetup info -c --noheadings -o suspended lv0)" = Active ] || fail "lv0 is suspended after kill $i"
	dmsetup clear lv0
	if table lv0 | grep -q ' asr '; then want unprotect "$(map lv0)"; fi
	dmsetup remove --retry lv0-asr-origin 2>/dev/null
done
[ "$(table lv0)" = "$linear" ] || fail "lv0: $(table lv0)"

kill -0 $fio || fail "fio ended: $(cat /tmp/fio.log)"
touch /tmp/fio.stop
wait $fio || fail "fio: $(cat /tmp/fio.log)"
say "$(wc -l </tmp/fio.rounds) rounds of fio, each verified"
want umount /mnt/lv0
want e2fsck -fn "$(map lv0)"
drain_off
want dmsetup remove --retry lv0
want asr-consume delete g
kill %1
