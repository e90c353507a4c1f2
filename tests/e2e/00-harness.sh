#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# timeout: 600
# The harness is to be trusted: on each kernel the workload on a dm device survives
# a power cut and the oracle accepts the disk, and refuses it once altered; a
# script's status, a dirty log, a missing token each fail a run.
set -u
# shellcheck source=tests/vm/vm.sh
. "$(dirname "$0")/../vm/vm.sh"
oracle=$ASR_TOP/build/tests/asr-oracle

guest() { # NAME: the script on standard input
	cat >"$VM_OUT/$1.sh"
}
mkdir -p "$VM_OUT"

guest load <<'X'
. /asr/lib.sh
modprobe dm-mod
want dmsetup create lin --table "0 $(blockdev --getsz /dev/d0) linear /dev/d0 0"
asr-stamp --log /dev/virtio-ports/stamplog --seconds 0 --zero 2 --discard 2 /dev/mapper/lin
X
for series in ${SERIES:-6.1 6.12}; do
	disk=$VM_OUT/disk-$series
	rm -f "$disk" && truncate -s 64M "$disk"
	vm_start "cut-$series" "$series" --disk "$disk" --script "$VM_OUT/load.sh"
	vm_up "cut-$series"
	out=$(vm_exec "cut-$series" 'echo here; exit 5')
	[ "$?,$out" = "5,here" ] || fail "vm_exec said '$out'"
	grows() { [ "$(stat -c %s "$VM_OUT/cut-$series/stamplog")" -gt 40000 ]; }
	want retry_until 60 grows
	want vm_kill "cut-$series"
	log=$VM_OUT/cut-$series/stamplog
	want "$oracle" --log "$log" "$disk"
	want "$oracle" --log "$log" --all "$disk"

	# The first stamped sector of the first half changes places with the next one.
	at=$(grep -abo ASRSTMP1 "$disk" | head -n 1 | cut -d: -f1)
	cp --sparse=always "$disk" "$disk.bad"
	dd if="$disk" of="$disk.bad" bs=512 skip=$((at / 512)) seek=$((at / 512 + 1)) count=1 \
		conv=notrunc status=none
	refused 'another place' "$oracle" --log "$log" "$disk.bad"
	cp --sparse=always "$disk" "$disk.bad"
	printf '\252\252' | dd of="$disk.bad" bs=1 seek=$((at + 200)) conv=notrunc status=none
	refused 'checksum is wrong' "$oracle" --log "$log" "$disk.bad"
	rm -f "$disk.bad"
done

series=${SERIES:-6.1}
series=${series%% *}
guest bad-status <<<'exit 3'
(VM_TIMEOUT=60 vm_run bad-status "$series" --script "$VM_OUT/bad-status.sh") &&
	fail "a script that fails must fail the run"
guest bad-log <<<'echo "<4>WARNING: CPU: 0 at test" >/dev/kmsg'
(VM_TIMEOUT=60 vm_run bad-log "$series" --script "$VM_OUT/bad-log.sh") &&
	fail "a dirty kernel log must fail the run"
guest no-token <<<'busybox poweroff -f; sleep 9'
(VM_TIMEOUT=60 vm_run no-token "$series" --script "$VM_OUT/no-token.sh") &&
	fail "an early power-off must fail the run"
port=$((20100 + RANDOM % 9000))
(echo "from the host" | timeout 60 busybox nc -l -p $port >/dev/null) &
guest said-so <<X
. /asr/lib.sh
expect_klog 'at test\$'
echo "<4>WARNING: CPU: 0 at test" >/dev/kmsg
[ "\$(sleep 2 | timeout 20 busybox nc 10.0.2.2 $port)" = "from the host" ] || fail "no way to the host"
X
VM_TIMEOUT=60 want vm_run said-so "$series" --net --script "$VM_OUT/said-so.sh"
echo "the harness holds"
