#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# kernel-guest.sh - counts instructions per write on brd, raw and through each target.
# Lines "row TARGET {json}" are what kernel.sh gathers.
set -eu
# shellcheck source=tests/lib.sh
. /asr/lib.sh
jobs="w4q1 w4q16 s64 fs4"
count() { case $1 in s64) echo 512 ;; *) echo 4096 ;; esac; }

modprobe brd rd_nr=3 rd_size=65536
modprobe dm_log_writes
modprobe dm_mod; insmod /asr/dm-asr.ko
sectors=$(blockdev --getsz /dev/ram0)
dd if=/dev/urandom of=/dev/ram0 bs=1M count=64 status=none	# brd allocates at the first write
dd if=/dev/urandom of=/dev/ram1 bs=1M count=64 status=none

run() { # TARGET DEVICE JOB [OPTION...]
	local target=$1 dev=$2 job=$3
	shift 3
	echo "row $target $(asr-kbench --dev "$dev" --job "$job" --count "$(count "$job")" "$@")"
}
table() { dmsetup create bench --table "0 $sectors $1"; }
gone() { dmsetup remove --retry bench; }

for j in $jobs; do
	run raw /dev/ram0 "$j"
	table "linear /dev/ram0 0"; run linear /dev/mapper/bench "$j"; gone
	table "log-writes /dev/ram0 /dev/ram1"; run logwrites /dev/mapper/bench "$j"; gone
done

# The whole source side needs a vault; it runs here, too, and its share is taken out.
mkdir -p /run/asr /run/vault
openssl req -x509 -newkey rsa:2048 -nodes -days 30 -subj "/CN=bench" \
	-keyout /run/recovery.key -out /run/recipient.crt 2> /dev/null
asrctl vault init /run/vault --address 127.0.0.1
asrctl vault key create --vault-dir /run/vault --out /run/regkey
asr-vaultd --vault-dir /run/vault --listen 127.0.0.1:20003 --control /run/asr/vaultd.sock 2> /run/vaultd.log &
vaultd=$!
retry_until 60 test -S /run/asr/vaultd.sock
asrd --state-dir /var/lib/asr 2> /run/asrd.log &
asrd=$!
retry_until 60 test -S /run/asr/asrd.sock
asrctl register --key /run/regkey --host bench

# Consumer idle: it is attached and stopped, the ring holds all that is written.
for t in asr_nocopy asr; do
	asrctl group create $t --recipient /run/recipient.crt --ring-size 128M --compression 0
done
kill -STOP $asrd
for t in asr_nocopy asr; do
	opts=; [ $t = asr ] || opts=" 1 nocopy"
	for j in $jobs; do
		table "asr /dev/ram0 0 $t d$opts"
		run $t /dev/mapper/bench "$j"
		dmsetup status bench | grep -q ' capture ' || fail "$t $j: $(dmsetup status bench)"
		gone
	done
done
kill -CONT $asrd

asrctl group create drain --recipient /run/recipient.crt --ring-size 64M --compression 0
table "asr /dev/ram2 0 drain d"
consistent() { asrctl group show drain -o json | grep -q '"consistent": *true'; }
retry_until 300 consistent
for j in $jobs; do
	for _ in 1 2 3; do
		run asr_drain /dev/mapper/bench "$j" --control /run/asr/asrd.sock --group drain --exclude $vaultd
	done
done
asrctl status
gone
for g in drain asr asr_nocopy; do asrctl group delete $g; done
kill $asrd; wait $asrd || true
kill $vaultd; wait $vaultd || true
