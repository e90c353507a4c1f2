#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# make check-more
# timeout: 1200
# ext4 and xfs under random file operations, each read checked: what is captured is what is on the disk, and is clean.
# A minute of `make check-fs`, which runs the many.
SERIES=6.12 VM_TIMEOUT=1100 DISKS='48 320' MEM=1024
# shellcheck source=tests/module/host.sh
. "$(dirname "$0")/host.sh" 2>/dev/null || . /asr/in/host.sh

fs() { # FS N FSCK...
	local type=$1 n=$2
	shift 2
	say "$type"
	group $((16 << 20))
	asr_on "$n"
	drain_on "$type" --sync "a$n=/dev/d$n"
	want "mkfs.$type" -q "$(map "a$n")"
	mkdir -p /mnt/t
	want mount "$(map "a$n")" /mnt/t
	want asr-fsx --ops 600 --jobs 3 --size 2097152 --seed "$((RANDOM + 1))" /mnt/t/fsx
	want stress-ng --temp-path /mnt/t --verify --timeout 60 --rename 1 --rename-ops 400 --link 1 --link-ops 20 \
		--dir 1 --dir-ops 60 --xattr 1 --xattr-ops 10 --copy-file 1 --copy-file-ops 40 >/tmp/stress 2>&1
	want umount /mnt/t
	drain_off
	same "$type" "$n"
	[ "$(info state)" = 1 ] || fail "not in CAPTURE: $(asr-consume info g)"
	want "$@" "$(map "a$n")" >/tmp/fsck 2>&1
	asr_off "$n"
	want asr-consume delete g
	rm "$logs/$type"
}

fs ext4 0 e2fsck -fn
if ! lacks xfs; then
	want modprobe xfs
	fs xfs 1 xfs_repair -n
fi
