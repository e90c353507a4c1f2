#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# demo-guest.sh - the source host of `make demo`: protects a mounted, busy volume
# and works on until its power is cut.
set -eu
# shellcheck source=tests/lib.sh
. /asr/lib.sh
step() { printf '\n== %s\n' "$*"; }

step "1. a busy volume: ext4 on device-mapper, fio with verification, SQLite in WAL mode"
dmsetup create vol --table "0 $(blockdev --getsz /dev/d0) linear /dev/d0 0"
mke2fs -q -t ext4 -E lazy_itable_init=0,lazy_journal_init=0 /dev/mapper/vol
modprobe ext4
mkdir -p /mnt
mount /dev/mapper/vol /mnt
# The stamped file: written once, so that every later O_DIRECT write to it goes to its blocks at once.
dd if=/dev/zero of=/mnt/stamps bs=1M count=32 oflag=direct conv=fsync status=none
sqlite3 /mnt/app.db 'PRAGMA journal_mode=WAL; CREATE TABLE t(n INTEGER PRIMARY KEY, at TEXT, v TEXT);' > /dev/null

(
	echo 'PRAGMA synchronous=FULL; PRAGMA wal_autocheckpoint=200;'
	while read -rt 0.05 _ <> /run/never || true; do
		echo "INSERT INTO t(at, v) VALUES(datetime('now'), hex(randomblob(300)));"
	done
) 2>&1 | sqlite3 /mnt/app.db > /run/sqlite.log 2>&1 &
sqlite_pid=$!
fio --name=work --directory=/mnt --rw=randwrite --bsrange=4k-64k --size=48m --rate=400k --direct=0 \
	--verify=crc32c --verify_backlog=64 --verify_fatal=1 --fsync=64 --time_based --runtime=1000 \
	> /run/fio.log 2>&1 &
fio_pid=$!
asr-stamp --log /dev/virtio-ports/stamplog --threads 3 --rate 60 --max-bytes 32768 --seconds 0 \
	/mnt/stamps > /run/stamp.log 2>&1 &
stamp_pid=$!
works() {
	kill -0 $fio_pid || { cat /run/fio.log; fail "fio has ended"; }
	kill -0 $sqlite_pid || { cat /run/sqlite.log; fail "SQLite has ended"; }
	kill -0 $stamp_pid || { cat /run/stamp.log; fail "the stamping workload has ended"; }
}
rows() { sqlite3 -cmd '.timeout 5000' /mnt/app.db 'SELECT count(*) FROM t'; }
some_rows() { [ "$(rows)" -ge 20 ]; }
retry_until 60 some_rows
works
echo "running: fio, asr-stamp, SQLite ($(rows) rows); $(findmnt -no SOURCE,FSTYPE,OPTIONS /mnt)"

step "2. protect it, live"
modprobe dm_mod; insmod /asr/dm-asr.ko
mkdir -p /run/asr
asrd --state-dir /var/lib/asr 2> /run/asrd.log &
retry_until 20 test -S /run/asr/asrd.sock
asrctl register --key /asr/in/demo.regkey --host demo-host
asrctl group create demo --recipient /asr/in/recipient.crt --ring-size 32M
dmsetup table vol | sed 's/^/before: /'
asrctl disk protect /dev/mapper/vol --group demo --name vol
dmsetup table vol | sed 's/^/after:  /'
works
echo "still mounted, never unmounted: $(findmnt -no SOURCE,FSTYPE,OPTIONS /mnt)"
if dmesg | grep -E 'I/O error|EXT4-fs error'; then fail "the volume has seen an error"; fi

step "3. steady state"
asrctl status --watch --interval 1 --count 5
asrctl group mark demo --name before-lunch
touch /run/steady
echo "steady"

works_on() { works; [ -e /run/never.ends ]; }
retry_until 1000 works_on
