# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
#
# root-guest.sh - a whole Debian whose root disk is protected; sourced by what vm_exec runs there.
#
#   protect_all     registers, makes the group, protects the root and the data volume, live
#   stamps_on       asr-stamp over a file on the data volume, its log to the host
#   drained         all that was written is durable at the vault, and consistent
#   was_early       capture was on before the root and the data volume were mounted, in this boot
#   stale_hold      a device is held back that nobody knows any more; stale_is_shown: it is shown all the same
#   held_again      a volume that comes back in the same boot is held back again, and protected
# shellcheck source=tests/lib.sh
. /asr/lib.sh

group_json() { asrctl group show g -o json; }
drained() {
	local j
	j=$(group_json) || return 1
	grep -q '"consistent": *true' <<< "$j" && grep -q '"rpo_bytes": *0\b' <<< "$j" &&
		grep -q '"missing": *\[\]' <<< "$j"
}
await_drained() {
	retry_until "$1" drained && return 0
	asrctl status
	asrctl disk list
	journalctl -b -u asrd --no-pager | tail -n 20
	fail "does not drain"
}

protect_all() {
	systemctl start asrd || fail "asrd does not start"
	retry_until 60 asrctl status > /dev/null || fail "asrd does not answer"
	asrctl register --key /asr/in/regkey --host debian || fail "register"
	asrctl group create g --recipient /asr/in/recipient.crt --ring-size 16M || fail "group create"
	asrctl disk protect /dev/mapper/vg0-root --group g --name root --meta /dev/d0 --no-wait || fail "root"
	asrctl disk protect /dev/mapper/vg0-data --group g --name data --meta /dev/d1 --no-wait || fail "data"
	findmnt -no SOURCE,OPTIONS /
	refuse_more
	update-initramfs -u 2>&1 || fail "update-initramfs"
	lsinitramfs "/boot/initrd.img-$(uname -r)" | grep -E 'asrctl$|dm-asr|asr/boot/.*json' || fail "not in the initramfs"
}

refuse_more() {
	refused 'lies on /dev/mapper/vg0-root, which is protected' \
		asrctl disk protect /dev/mapper/vg0-spare --group g --name spare --meta /var/log/spare.log --no-wait
}

initrd_out() { # to the raw disk d2, for the host
	local f
	f=/boot/initrd.img-$(uname -r)
	dd if="$f" of=/dev/d2 bs=1M conv=fsync status=none && stat -c 'initrd %s' "$f"
}

stamps_on() {
	mountpoint -q /data || fail "/data is not mounted"
	# Nothing of an earlier boot's; and once written, O_DIRECT writes go to its blocks at once.
	dd if=/dev/zero of=/data/stamps bs=1M count=8 oflag=direct conv=fsync,notrunc status=none
	rm -f /run/stamp.log
	LD_LIBRARY_PATH=/asr/lib setsid /asr/bin/asr-stamp --log /dev/virtio-ports/stamplog --threads 2 --rate 40 \
		--max-bytes 16384 --seconds 0 /data/stamps > /run/stamp.log 2>&1 < /dev/null &
	echo $! > /run/stamp.pid
}
stamps_off() {
	local p
	p=$(cat /run/stamp.pid)
	kill "$p" || { cat /run/stamp.log; fail "the workload had ended"; }
	ended() { ! kill -0 "$p" 2> /dev/null; }
	retry_until 60 ended || fail "the workload does not end"
	cat /run/stamp.log
}

line_of() { dmesg | grep -nE -- "$1" | head -n 1 | cut -d: -f1; }
was_early() {
	local up_root up_data root data
	up_root=$(line_of 'asr-boot: group g, disk root: .* is protected again, log on')
	up_data=$(line_of 'group g disk data: write-intent log .* regions of .* set, generation')
	root=$(line_of 'EXT4-fs \(dm-[0-9]+\): mounted filesystem')
	data=$(dmesg | grep -nE 'EXT4-fs \(dm-[0-9]+\): mounted filesystem' | sed -n 2p | cut -d: -f1)
	dmesg | grep -E 'asr|EXT4-fs|device-mapper' | head -n 40
	[ -n "$up_root" ] && [ -n "$root" ] && [ "$up_root" -lt "$root" ] ||
		fail "the root was mounted (line $root) before it was protected (line $up_root)"
	[ -n "$up_data" ] && [ -n "$data" ] && [ "$up_data" -lt "$data" ] ||
		fail "the data volume was mounted (line $data) before it was protected (line $up_data)"
	dmsetup table vg0-root | grep -q ' asr .* g root 2 log ' || fail "root: $(dmsetup table vg0-root)"
	dmsetup table vg0-data | grep -q ' asr .* g data 2 log ' || fail "data: $(dmsetup table vg0-data)"
	asrctl boot || fail "asrctl boot"
	systemctl is-failed -q asr-boot && fail "asr-boot.service has failed"
	asrd_was_later
}
asrd_was_later() {
	local judged began
	retry_until 120 systemctl is-active -q asr-boot asrd || fail "not up: $(systemctl status asr-boot asrd)"
	judged=$(systemctl show -p ExecMainExitTimestampMonotonic --value asr-boot)
	began=$(systemctl show -p ExecMainStartTimestampMonotonic --value asrd)
	[ "$began" -ge "$judged" ] || fail "asrd began at $began us, before asr-boot was through at $judged us"
	! journalctl -b --no-pager | grep -i 'ordering cycle' || fail "units wait for each other"
}

stale_hold() {
	want touch /etc/asr/boot/hold/dm-vg0-spare
	sync
}
shown() { [ -e "/run/asr-boot/dm-$1" ] && ! udevadm info "/dev/mapper/$1" | grep -q 'SYSTEMD_READY=0'; }
stale_is_shown() {
	retry_until 100 shown vg0-spare || fail "it is hidden for ever: $(udevadm info /dev/mapper/vg0-spare)"
}

held_again() {
	back() { shown vg0-data && dmsetup table vg0-data | grep -q ' asr .* g data 2 log '; }
	want umount /data
	want lvchange -an vg0/data
	want lvchange -ay vg0/data
	retry_until 100 back || fail "unprotected: $(dmsetup table vg0-data; udevadm info /dev/mapper/vg0-data)"
	want mount /data
}
