#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# make check-more
# A disk of 1 TiB with a write-intent log costs the kernel at most 16 MiB beyond the ring, asrctl says so, the
# kernel's own list of large allocations agrees, and writes all over the disk, in CAPTURE and in TRACK, change nothing.
set -eu
if [ -n "${ASR_GUEST:-}" ]; then
	# shellcheck source=tests/e2e/guest-lib.sh
	. /asr/in/guest-lib.sh
	expect_klog 'dm-asr.*(TRACK|ring)'
	ring=$((1 << 20)) disk=/dev/mapper/big
	memory() { asrctl disk show big -o json | sed -n 's/^ *"memory_bytes": \([0-9]*\).*/\1/p'; }
	# beyond the ring and its two pages of positions; each allocation counts its guard page
	listed() {
		awk -v ring=$((ring + 4096)) '/\[dm_asr\]/ && $2 != ring { n += $2 - 4096 } END { printf "%.0f\n", n - 8192 }' \
			/proc/vmallocinfo
	}
	tracking() { group_json | grep -q '"state": *"TRACK"'; }
	all_over() {
		local n
		for ((n = 0; n < 20; n++)); do
			dd if=/dev/urandom of=$disk bs=64k count=1 seek=$((n * 800000)) oflag=direct status=none || fail "write"
		done
	}
	modprobe dm_mod; insmod /asr/dm-asr.ko
	mkdir -p /run/asr /var/lib/asr /etc/asr
	printf '[spool]\nmax = 0\n' > /etc/asr/asrd.conf
	asrd_start
	want asrctl register --key /asr/in/regkey --host source
	want asrctl group create g --recipient /asr/in/recipient.crt --ring-size 1M
	want dmsetup create big --table "0 $((1 << 31)) linear /dev/d0 0"
	want asrctl disk protect $disk --group g --no-wait --name big --meta /dev/d1
	before=$(memory) list=$(listed)
	[ "${before:-0}" -gt 0 ] && [ "$before" -le $((16 << 20)) ] || fail "$before bytes for 1 TiB: $(asrctl disk show big)"
	# the rest is a page or two of tables
	[ "$list" -gt $((4 << 20)) ] && [ "$list" -le "$before" ] && [ "$list" -ge $((before - 65536)) ] ||
		fail "asrctl says $before, the kernel $list: $(grep dm_asr /proc/vmallocinfo)"
	asrctl disk show big | grep -i memory || fail "it is not shown"
	all_over
	echo captured
	retry_until 60 tracking || { all_over; retry_until 60 tracking; } || fail "the ring never filled: $(asrctl status)"
	all_over
	[ "$(memory)" = "$before" ] || fail "it has grown from $before to $(memory)"
	[ "$(listed)" = "$list" ] || fail "the kernel's list has grown from $list to $(listed): $(grep dm_asr /proc/vmallocinfo)"
	say "1 TiB: $before bytes by asrctl disk show, $list of them in large allocations, before and after"
	want asrctl disk unprotect $disk
	want dmsetup remove --retry big
	asrd_kill
	asr-consume delete g
	exit 0
fi
# shellcheck source=tests/e2e/lib.sh
. "$(dirname "$0")/lib.sh"
site_up
truncate -s 1T "$VM_OUT/big.img"
source_start source "$0" "$VM_OUT/big.img" "$VM_OUT/log.img"
await source captured 200
vaultd_kill
vm_wait source 300 || fail "the source host"
rm -f "$VM_OUT/big.img"
say "$(grep '1 TiB:' "$VM_OUT/source/out")"
