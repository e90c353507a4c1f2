#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# timeout: 3000
# A Debian whose root disk is protected: killed, booted, killed, rebooted; it is protected before its first writer each
# time, consistent again without a full copy, and its replica boots, too.
set -eu
if [ -n "${ASR_GUEST:-}" ]; then
	# The helper machine: a volume group on an empty disk. LVs are contiguous, from 1 MiB on.
	# shellcheck source=tests/lib.sh
	. /asr/lib.sh
	modprobe dm_mod
	export LVM_SUPPRESS_FD_WARNINGS=1
	want lvm pvcreate -ff -y "$(readlink -f /dev/d0)"
	want lvm vgcreate vg0 "$(readlink -f /dev/d0)"
	for lv in root:560 data:40 spare:8; do
		want lvm lvcreate -y -Wn -Zn -L "${lv#*:}M" -n "${lv%:*}" vg0
	done
	dmsetup table
	want lvm vgchange -an vg0
	exit 0
fi
# shellcheck source=tests/e2e/lib.sh
. "$(dirname "$0")/../e2e/lib.sh"
[ "$(id -u)" = 0 ] || skip "root is needed to make a Debian root"
ROOT_MIB=560
DISK=$VM_OUT/disk.img
KV=$(cat "$ASR_TOP/build/kernels/6.1/version")
K=$ASR_TOP/build/kernels/6.1/root
debroot() { "$ASR_TOP/tests/vm/debroot.sh" "$@"; }

say "a Debian, with what make install lays out, and the stock kernel $KV"
mkdir -p "$VM_OUT"
debroot build boot lvm2 libssl3 liburing2 libzstd1 libxxhash0 libjansson4 libsqlite3-0 libinih1 libdevmapper1.02.1
R=$VM_OUT/root
debroot unpack boot "$R"
rm -rf "$R"/usr/share/{doc,man,locale,info} "$R"/var/cache/* "$R"/var/lib/apt/lists/*
cp "$K/boot/vmlinuz-$KV" "$R/boot/"
cp "$K/boot/config-$KV" "$R/boot/"
mkdir -p "$R/lib/modules/$KV/updates"
for m in kernel/{arch,block,crypto,lib,mm,fs/{ext4,jbd2,nls,fat},drivers/{md,virtio,block,char,net/virtio_net.ko}} \
	kernel/virt kernel/fs/mbcache.ko \
	kernel/net/core kernel/drivers/net/net_failover.ko modules.{order,builtin,builtin.modinfo}; do
	[ -e "$K/lib/modules/$KV/$m" ] || continue
	mkdir -p "$R/lib/modules/$KV/$(dirname "$m")"
	cp -r "$K/lib/modules/$KV/$m" "$R/lib/modules/$KV/$m"
done
strip --strip-debug -o "$R/lib/modules/$KV/updates/dm-asr.ko" "$ASR_TOP/build/module/6.1/dm-asr.ko"
make -s -C "$ASR_TOP" install DESTDIR="$R" > "$VM_OUT/install.log" 2>&1 || fail "make install: $(tail -n 3 "$VM_OUT/install.log")"
strip --strip-debug "$R"/usr/sbin/asr*
# a busy host makes an emulated udev slow
printf 'LABEL=asr-root / ext4 defaults 0 1\nLABEL=asr-data /data ext4 x-systemd.device-timeout=15min 0 2\n' > "$R/etc/fstab"
mkdir -p "$R/data"
printf 'virtio_pci\nvirtio_blk\next4\n' > "$R/etc/initramfs-tools/modules"
sed -i 's/^MODULES=.*/MODULES=list/' "$R/etc/initramfs-tools/initramfs.conf"
debroot run "$R" bash -c "depmod $KV; systemctl enable -q asrd asr-boot; systemctl mask -q apt-daily.timer apt-daily-upgrade.timer \
	dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service; update-initramfs -c -k $KV" > "$VM_OUT/initramfs.log" 2>&1 ||
	fail "update-initramfs: $(tail -n 5 "$VM_OUT/initramfs.log")"
cp "$R/boot/vmlinuz-$KV" "$VM_OUT/vmlinuz"
cp "$R/boot/initrd.img-$KV" "$VM_OUT/initrd"
debroot pack "$R" "$VM_OUT/root.ext4" "${ROOT_MIB}M"
rm -rf "$R"

say "its disk: a volume group with root and data, and a log disk for each"
rm -f "$DISK"
truncate -s 640M "$DISK"
VM_TIMEOUT=400 vm_run lvm 6.1 --script "$0" --disk "$DISK" || fail "the helper machine"
dd if="$VM_OUT/root.ext4" of="$DISK" bs=1M seek=1 conv=notrunc,sparse status=none
truncate -s 40M "$VM_OUT/data.ext4"
mke2fs -q -t ext4 -L asr-data "$VM_OUT/data.ext4"
dd if="$VM_OUT/data.ext4" of="$DISK" bs=1M seek=$((1 + ROOT_MIB)) conv=notrunc,sparse status=none
rm -f "$VM_OUT/root.ext4" "$VM_OUT"/d?.img
truncate -s 2M "$VM_OUT/d0.img"
truncate -s 1M "$VM_OUT/d1.img"
truncate -s 64M "$VM_OUT/d2.img"

site_up
# Emulated, `rep stosb` to a page that held code is slow beyond all patience on a busy host.
cpu=(--qemu -cpu --qemu "max,-erms")
boot() { # NAME
	vm_start_root "$1" "$DISK" "${cpu[@]}" --kernel "$VM_OUT/vmlinuz" --initrd "$VM_OUT/initrd" --mem 1024 --net \
		--append "root=/dev/mapper/vg0-root ro" --disk "$VM_OUT/d0.img" --disk "$VM_OUT/d1.img" --disk "$VM_OUT/d2.img" \
		--add "$ASR_TOP/tests/boot/root-guest.sh" --add "$W/regkey" --add "$W/recipient.crt"
	vm_up "$1" 600
}
run_in() { # NAME SECONDS CMD
	vm_exec "$1" -t "$2" "set -u; . /asr/in/root-guest.sh; $3" || fail "$1: $3"
}
shipped() { du -sk "$W/vault/groups" | cut -f1; }
stamped() { [ "$(stat -c %s "$VM_OUT/$1/stamplog")" -gt "${2:-4000}" ]; }
logs=()
keep_log() { cp "$VM_OUT/$1/stamplog" "$VM_OUT/stamplog.$1"; logs+=("$VM_OUT/stamplog.$1"); }

say "protected live, root and all"
boot one
run_in one 900 protect_all
run_in one 900 'await_drained 800'
run_in one 120 initrd_out > "$VM_OUT/size"
cat "$VM_OUT/size"
full=$(shipped)
run_in one 60 stale_hold
run_in one 120 stamps_on
retry_until 300 stamped one || fail "the workload writes nothing"
vm_kill one
head -c "$(sed -n 's/^initrd //p' "$VM_OUT/size")" "$VM_OUT/d2.img" > "$VM_OUT/initrd"
keep_log one

for n in two three; do
	say "power cut; up again as $n"
	before=$(shipped)
	boot "$n"
	run_in "$n" 400 was_early
	[ "$n" != two ] || run_in "$n" 200 stale_is_shown
	run_in "$n" 900 'await_drained 800; asrctl disk show root'
	after=$(shipped)
	say "$((after - before)) KiB at the vault after this cut, $full KiB for the first copy"
	[ $(((after - before) * 4)) -lt "$full" ] || fail "as good as a full copy was shipped"
	run_in "$n" 120 stamps_on
	retry_until 300 stamped "$n" || fail "the workload writes nothing"
	[ "$n" = three ] || vm_kill "$n"
	[ "$n" = three ] || keep_log "$n"
done

say "an orderly reboot"
run_in three 200 'stamps_off; await_drained 180; asrctl group mark g --name end'
before=$(shipped)
vm_off three 600
keep_log three
boot four
run_in four 400 was_early
run_in four 600 'await_drained 500; asrctl status; asrctl disk list'
after=$(shipped)
say "$((after - before)) KiB at the vault after a reboot"
run_in four 300 held_again
vm_off four 600
vaultd_stop

say "its replica"
restore root name:end "$VM_OUT/replica.img"
restore data name:end "$VM_OUT/replica-data.img"
st=0
e2fsck -fp "$VM_OUT/replica.img" > "$W/e2fsck.log" 2>&1 || st=$?
[ $st -le 1 ] && e2fsck -fn "$VM_OUT/replica.img" > "$W/e2fsck.log" 2>&1 || fail "e2fsck: $(tail -n 3 "$W/e2fsck.log")"
e2fsck -fp "$VM_OUT/replica-data.img" > "$W/e2fsck.log" 2>&1 || [ $? = 1 ] || fail "e2fsck: $(tail -n 3 "$W/e2fsck.log")"
debugfs -R "dump /stamps $W/stamps" "$VM_OUT/replica-data.img" 2> /dev/null
"$B/tests/asr-oracle" --log "$VM_OUT/stamplog.three" --all "$W/stamps" || fail "the replica misses writes"
vm_start_root replica "$VM_OUT/replica.img" "${cpu[@]}" --kernel "$VM_OUT/vmlinuz" --initrd "$VM_OUT/initrd" --mem 1024 \
	--append "root=/dev/vda ro" --disk "$VM_OUT/replica-data.img"
vm_up replica 600
vm_exec replica -t 120 'systemctl is-active multi-user.target; findmnt -no SOURCE,FSTYPE /' || fail "the replica is not up"
vm_exec replica -t 60 'findmnt -n /data' || fail "the replica has no /data"
vm_off replica 300
rm -f "$VM_OUT"/*.img "$VM_OUT"/*.ext4
