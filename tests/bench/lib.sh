# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
#
# lib.sh - the pipeline without a kernel: generator -> asrd -> TLS on loopback ->
# asr-vaultd -> durable; to be sourced by the native benches.
#
#   pipe_up RING_MIB COMPRESSION   a fresh vault, both daemons, group b on $W/ring
#   site_make RING_MIB, vaultd_up, asrd_up, group_up COMPRESSION   ... step by step
#   RING_DISK                      a file: the ring's disk, all of it dirty
#   SPOOL_MAX                      of the spool, 0 unless set
#   pipe_down
#   vaultd_kill, asrd_kill         to be followed by vaultd_up, asrd_up
#   cpu_s PID                      CPU seconds it has used

# shellcheck source=tests/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"
B=$ASR_TOP/build
W=${W:-$B/bench/work}
HZ=$(getconf CLK_TCK)
ASRD_PID='' VAULTD_PID=''
mkdir -p "$B/bench"

pipe_kill() {
	[ -z "$ASRD_PID$VAULTD_PID" ] || kill -9 $ASRD_PID $VAULTD_PID 2> /dev/null
	rm -rf "$W"
}
trap pipe_kill EXIT

ctl() { "$B/asrctl" "$@" --control "$W/asrd.sock"; }
connected() { ctl status -o json 2> /dev/null | jq -e '.vault.connected' > /dev/null; }

site_make() { # RING_MIB
	PORT=$((20100 + RANDOM % 9000))
	rm -rf "$W"
	mkdir -p "$W"
	want "$B/asrctl" vault init "$W/vault" --address 127.0.0.1 --port $PORT > /dev/null
	want "$B/asrctl" vault key create --vault-dir "$W/vault" --out "$W/regkey" > /dev/null
	openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 1 -subj /CN=bench \
		-keyout "$W/recovery.key" -out "$W/recipient.crt" 2> /dev/null || fail "no certificate"
	printf '[spool]\nmax = %s\n' "${SPOOL_MAX:-0}" > "$W/asrd.conf"
	"$B/tests/asr-ringgen" --ring "$W/ring" --create --ring-size "${1}M" || fail "no ring"
}

vaultd_up() {
	"$B/asr-vaultd" --vault-dir "$W/vault" --listen 127.0.0.1:$PORT --control "$W/vaultd.sock" 2>> "$W/vaultd.log" &
	VAULTD_PID=$!
	retry_until 60 test -S "$W/vaultd.sock" || fail "asr-vaultd: $(tail -n 2 "$W/vaultd.log")"
}

asrd_up() {
	"$B/asrd" --config "$W/asrd.conf" --state-dir "$W/state" --control "$W/asrd.sock" --ring-file "$W/ring" \
		${RING_DISK:+--ring-disk "$RING_DISK"} 2>> "$W/asrd.log" &
	ASRD_PID=$!
	retry_until 60 test -S "$W/asrd.sock" || fail "asrd: $(tail -n 2 "$W/asrd.log")"
}

vaultd_kill() {
	kill -9 "$VAULTD_PID"
	wait "$VAULTD_PID" 2> /dev/null || true
	VAULTD_PID=
	rm -f "$W/vaultd.sock"
}

asrd_kill() {
	kill -9 "$ASRD_PID"
	wait "$ASRD_PID" 2> /dev/null || true
	ASRD_PID=
	rm -f "$W/asrd.sock"
}

group_up() { # COMPRESSION
	want ctl register --key "$W/regkey" --host bench --state-dir "$W/state" > /dev/null
	retry_until 60 connected || fail "asrd: $(tail -n 2 "$W/asrd.log")"
	want ctl group create b --recipient "$W/recipient.crt" --compression "$1" > /dev/null
}

pipe_up() {
	site_make "$1"
	vaultd_up
	asrd_up
	group_up "$2"
}

pipe_down() {
	kill "$ASRD_PID" "$VAULTD_PID"
	wait "$ASRD_PID" "$VAULTD_PID" || fail "a daemon ended badly: $(tail -n 2 "$W/asrd.log" "$W/vaultd.log")"
	ASRD_PID='' VAULTD_PID=''
	rm -rf "$W"
}

cpu_s() { awk -v hz="$HZ" '{ sub(/.*\) /, ""); print ($12 + $13) / hz }' "/proc/$1/stat"; }
