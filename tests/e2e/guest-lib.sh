# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
#
# guest-lib.sh - the source host of the end-to-end tests; to be sourced in the guest.
#
#   source_up DISKS [RING]   group g over linear volumes d0 d1 ... protected live, consistent,
#                            and marked "begin"
#   asrd_start, asrd_kill
#   stamp_start OPTION...    asr-stamp over all volumes, its log to the host
#   stamp_stop               ends it; its log is whole then
#   pairs_start FILE FILE    an application that writes to both by turns, and is quiet between pairs when the script that
#                            it puts into group g says so: its calls are in /run/calls, and it fails with
#                            /run/quiet-fails; $PAIRS is its process, /run/stop its end
#   drained                  all that was written is durable at the vault, and consistent
#   source_down              waits for that, marks "end", and takes all down again
# shellcheck source=tests/lib.sh
. /asr/lib.sh

asrd_start() {
	asrd --state-dir /var/lib/asr 2>> /run/asrd.log &
	ASRD_PID=$!
	retry_until 60 asrctl status > /dev/null || { tail -n 5 /run/asrd.log; fail "asrd does not start"; }
}

asrd_kill() {
	kill -9 "$ASRD_PID"
	wait "$ASRD_PID" 2> /dev/null || true
}

pairs() { # FILE FILE
	local n=0
	while [ ! -e /run/stop ]; do
		if [ -e /run/quiet ]; then
			touch /run/is-quiet
			sleep 0.02
			continue
		fi
		rm -f /run/is-quiet
		n=$((n + 1))
		echo $n > "$1" && sleep 0.01 && echo $n > "$2" || return 1
	done
}
pairs_start() {
	mkdir -p /etc/asr/app/g
	cat > /etc/asr/app/g/10-app <<- 'S'
	#!/bin/sh
	echo "$@" >> /run/calls
	case $1 in
	freeze) [ ! -e /run/quiet-fails ] || exit 1; touch /run/quiet; until [ -e /run/is-quiet ]; do sleep 0.02; done ;;
	thaw) rm -f /run/quiet /run/is-quiet ;;
	esac
	S
	chmod +x /etc/asr/app/g/10-app
	pairs "$@" &
	# shellcheck disable=SC2034	# who sources this waits for it
	PAIRS=$!
}

group_json() { asrctl group show g -o json; }
consistent() { group_json | grep -q '"consistent": *true'; }
drained() {
	local j
	j=$(group_json) || return 1
	grep -q '"consistent": *true' <<< "$j" && grep -q '"rpo_bytes": *0\b' <<< "$j" &&
		grep -Eq '"rpo_s": *0(\.0*)?\b' <<< "$j"
}

source_up() { # DISKS [RING]
	local i
	modprobe dm_mod; insmod /asr/dm-asr.ko
	mkdir -p /run/asr /var/lib/asr
	asrd_start
	asrctl register --key /asr/in/regkey --host source || fail "register"
	asrctl group create g --recipient /asr/in/recipient.crt --ring-size "${2:-16M}" || fail "group create"
	VOLUMES=()
	for ((i = 0; i < $1; i++)); do
		dmsetup create "v$i" --table "0 $(blockdev --getsz "/dev/d$i") linear /dev/d$i 0"
		asrctl disk protect "/dev/mapper/v$i" --group g --name "d$i" --no-wait || fail "disk protect"
		VOLUMES+=("/dev/mapper/v$i")
	done
	retry_until 180 drained || { asrctl status; tail -n 5 /run/asrd.log; fail "no initial copy"; }
	asrctl group mark g --name begin || fail "group mark"
}

stamp_start() {
	asr-stamp --log /dev/virtio-ports/stamplog --seconds 0 "$@" "${VOLUMES[@]}" > /run/stamp.log 2>&1 &
	STAMP_PID=$!
}

stamp_stop() {
	kill "$STAMP_PID"
	wait "$STAMP_PID" || { cat /run/stamp.log; fail "the workload failed"; }
	cat /run/stamp.log
}

source_down() {
	local i
	retry_until 180 drained || { asrctl status; tail -n 5 /run/asrd.log; fail "does not drain"; }
	asrctl group mark g --name end || fail "group mark"
	retry_until 60 drained || fail "the mark does not arrive"
	for i in "${!VOLUMES[@]}"; do
		asrctl disk unprotect "/dev/mapper/v$i" || fail "disk unprotect"
		dmsetup remove "v$i" || fail "remove"
	done
	asrctl group delete g || fail "group delete"
	kill "$ASRD_PID"
	wait "$ASRD_PID" || fail "asrd ended with status $?"
}
