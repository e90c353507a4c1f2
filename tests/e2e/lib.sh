# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
#
# lib.sh - a vault on the host, a protected guest, and the judgement; to be sourced.
#
#   site_up                  a fresh vault in $W/vault and its daemon on $PORT
#   vaultd_start, vaultd_stop, vaultd_kill
#   points N                 N random points out of all windows, and the last ones
#   judge LOG DISKS POINT    restores each disk at that point and asks the oracle
#   judge_all LOG DISKS N    the last point and N random ones; prints what it saw
#   same_as_source DISKS     the last point equals the source's disks, byte for byte
#   LAST                     the last point: name:end, or latest after a power cut
#
# W is the test's folder; the guest finds e2e/guest-lib.sh as /asr/in/guest-lib.sh.

# shellcheck source=tests/vm/vm.sh
. "$(dirname "${BASH_SOURCE[0]}")/../vm/vm.sh"

B=$ASR_TOP/build
W=$VM_OUT/site
E2E=$ASR_TOP/tests/e2e
SERIES_E2E=${SERIES_E2E:-6.1}
VAULTD_PID=
LAST=name:end

e2e_end() {
	[ -z "$VAULTD_PID" ] || kill -9 "$VAULTD_PID" 2> /dev/null
	vm_cleanup
}
trap e2e_end EXIT

vaultd_start() {
	"$B/asr-vaultd" --vault-dir "$W/vault" --listen "127.0.0.1:$PORT" --control "$W/vaultd.sock" \
		>> "$W/vaultd.log" 2>&1 &
	VAULTD_PID=$!
	retry_until 20 test -S "$W/vaultd.sock" || fail "asr-vaultd does not start: $(tail -n 3 "$W/vaultd.log")"
}

vaultd_kill() {
	kill -9 "$VAULTD_PID"
	wait "$VAULTD_PID" 2> /dev/null || true
	VAULTD_PID=
	rm -f "$W/vaultd.sock"
}

vaultd_stop() {
	kill "$VAULTD_PID"
	wait "$VAULTD_PID" || fail "asr-vaultd ended with status $?"
	VAULTD_PID=
}

site_up() {
	rm -rf "$W"
	mkdir -p "$W"
	PORT=$((20100 + RANDOM % 9000))
	want "$B/asrctl" vault init "$W/vault" --address 10.0.2.2 --port "$PORT"
	want "$B/asrctl" vault key create --vault-dir "$W/vault" --out "$W/regkey"
	openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 30 -subj "/CN=test recovery" \
		-keyout "$W/recovery.key" -out "$W/recipient.crt" 2> /dev/null || fail "no certificate"
	vaultd_start
}

# The guest's usual arguments: its script, its disks (made anew unless there), the site's files
source_start() { # NAME SCRIPT DISK...
	local name=$1 script=$2 d args=()
	shift 2
	for d in "$@"; do
		[ -e "$d" ] || truncate -s "${DISK_MIB:-48}M" "$d"
		args+=(--disk "$d")
	done
	vm_start "$name" "$SERIES_E2E" --net --mem 768 --script "$script" "${args[@]}" \
		--add "$E2E/guest-lib.sh" --add "$W/regkey" --add "$W/recipient.crt"
}

said() { grep -q -- "^$2\$" "$VM_OUT/$1/out" || ! vm_alive "$1"; }
# until the guest says a line, and is alive
await() { # NAME LINE SECONDS
	retry_until "$3" said "$1" "$2" && vm_alive "$1" && return 0
	vm_show "$1"
	fail "$1 did not say '$2'"
}

points() { # N
	"$B/asrctl" point list g --vault-dir "$W/vault" -o json > "$W/points.json" || return 1
	# from mark "begin", when all disks were there, to mark "end" or the last point
	jq -r '([.marks[] | select(.name == "begin") | .seq][0] // 0) as $b
		| ([.marks[] | select(.name == "end") | .seq][0] // infinite) as $e
		| .intervals[] | [([.from_seq, $b] | max), ([.to_seq, $e] | min)]
		| select(.[0] <= .[1]) | "\(.[0]) \(.[1])"' "$W/points.json" > "$W/windows"
	awk -v n="$1" -v seed="$RANDOM" 'BEGIN { srand(seed) }
		{ from[NR] = $1; size[NR] = $2 - $1 + 1; total += size[NR] }
		END { for (i = 0; i < n && total; i++) {
			r = int(rand() * total)
			for (w = 1; r >= size[w]; w++) r -= size[w]
			printf "seq:%.0f\n", from[w] + r } }' "$W/windows" | sort -t: -k2n -u
	# the ends of the windows are where something happened
	awk 'NR <= 5 { print "seq:" $2 }' "$W/windows"
}

restore() { # DISK POINT FILE
	rm -f "$3"
	"$B/asrctl" restore g --disk "$1" --point "$2" --key "$W/recovery.key" --to "$3" \
		--vault-dir "$W/vault" > "$W/restore.log" 2>&1 ||
		fail "restore of $1 at $2: $(tail -n 2 "$W/restore.log")"
}

judge() { # LOG DISKS POINT [ORACLE-OPTION...]
	local log=$1 disks=$2 point=$3 d images=()
	shift 3
	for d in $disks; do
		restore "$d" "$point" "$W/$d.restored"
		images+=("$W/$d.restored")
	done
	"$B/tests/asr-oracle" --log "$log" "$@" "${images[@]}" > "$W/oracle.log" 2>&1 ||
		fail "point $point is no prefix: $(head -n 5 "$W/oracle.log")"
	JUDGED=$((JUDGED + 1))
}

JUDGED=0
judge_all() { # LOG DISKS N [ORACLE-OPTION...]
	local log=$1 disks=$2 n=$3 p
	shift 3
	points "$n" > "$W/judge.points" || fail "no list of points"
	[ -s "$W/judge.points" ] || fail "the vault offers no point"
	while read -r p; do
		judge "$log" "$disks" "$p" "$@"
	done < "$W/judge.points"
	judge "$log" "$disks" "$LAST" "$@"
	say "$JUDGED points restored, each a prefix of the common log; last: $(head -n 1 "$W/oracle.log")"
}

same_as_source() { # DISK=FILE...
	local p
	for p in "$@"; do
		restore "${p%%=*}" "$LAST" "$W/same.restored"
		cmp "${p#*=}" "$W/same.restored" || fail "the copy of ${p%%=*} is not what the source's disk is"
	done
}
