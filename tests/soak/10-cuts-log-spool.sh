#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# timeout: 14400
# Power cuts of one host again and again, with write-intent log, spool and outages of the vault
# mixed at random: every point is a prefix, the copy equals the disks after each return, and a
# return compares and ships no more than what the log and the difference say. `make soak-cuts`.
set -eu
if [ -n "${ASR_GUEST:-}" ]; then
	# shellcheck source=tests/e2e/guest-lib.sh
	. /asr/in/guest-lib.sh
	# shellcheck source=/dev/null
	. /asr/in/plan
	expect_klog 'dm-asr.*(TRACK|ring)'
	modprobe dm_mod; insmod /asr/dm-asr.ko
	mkdir -p /run/asr /var/lib/asr
	mount /dev/d4 /var/lib/asr || fail "no state"
	for i in 0 1; do
		dmsetup create v$i --table "0 $(blockdev --getsz /dev/d$i) linear /dev/d$i 0"
		VOLUMES+=("/dev/mapper/v$i")
	done
	if [ "$BOOT" = 0 ]; then
		asrd_start
		asrctl register --key /asr/in/regkey --host source || fail "register"
		asrctl group create g --recipient /asr/in/recipient.crt --ring-size 1M || fail "group create"
		for i in 0 1; do
			asrctl disk protect /dev/mapper/v$i --group g --name d$i --meta /dev/d$((i + 2)) --no-wait ||
				fail "disk protect"
		done
	else
		asrctl boot || fail "boot"
	fi
	echo "first-seq $(asr-consume info g | sed -n 's/^next_seq=//p')"
	# whole blocks, as file systems write: what is less has no digest to be compared by
	load() { stamp_start --threads 4 --rate 100 --max-bytes 32768 --align 4096; }
	[ "$EARLY" = 0 ] || load
	[ "$BOOT" = 0 ] || asrd_start
	if [ "$EARLY" = 0 ]; then
		retry_until 300 drained || { asrctl status; tail -n 5 /run/asrd.log; fail "not consistent after boot $BOOT"; }
		echo "stats $(group_json | tr -d '\n')"
		echo consistent
		retry_until 300 test -e /run/go || fail "no go"
		load
	fi
	echo loaded
	retry_until 600 test -e /run/never
fi
# shellcheck source=tests/e2e/lib.sh
. "$(dirname "$0")/../e2e/lib.sh"
CUTS=${CUTS:-200}
BLOCK=4096
S=$VM_OUT/source
unjudged=()		# boots whose points were not judged yet
TOTAL=0 EQUAL=0 BOUNDED=0

random() { echo $((RANDOM % $1)); }

# log_regions FILE: bytes that the set regions of a log stand for
log_bytes() {
	"$B/asrctl" disk log show "$1" -o json | jq '.regions_set * .region_bytes'
}

# differing A B: 4 KiB blocks in which two images differ, in bytes
differing() {
	cmp -l "$1" "$2" | awk -v b=$BLOCK '{ n[int(($1 - 1) / b)] } END { print length(n) * b }'
}

# The points of a boot: from its first number to the next boot's first
judge_boot() { # BOOT NEXT-FIRST
	local b=$1 p n=0
	"$B/asrctl" point list g --vault-dir "$W/vault" -o json > "$W/points.json" || fail "no list of points"
	jq -r --argjson a "$(cat "$W/b$b.first")" --argjson z "$2" '.intervals[]
		| [([.from_seq, $a] | max), ([.to_seq, $z - 1] | min)] | select(.[0] <= .[1])
		| "\(.[0]) \(.[1])"' "$W/points.json" > "$W/windows"
	[ -s "$W/windows" ] || return 0		# it was cut before it was consistent
	{
		awk '{ print $2 }' "$W/windows" | tail -n 2
		awk -v seed="$RANDOM" 'BEGIN { srand(seed) } { from[NR] = $1; size[NR] = $2 - $1 + 1 }
			END { for (i = 0; i < 2; i++) { w = 1 + int(rand() * NR); printf "%.0f\n", from[w] + int(rand() * size[w]) } }' \
			"$W/windows"
	} > "$W/judge.points"
	while read -r p; do
		restore d0 "seq:$p" "$W/d0.restored"
		restore d1 "seq:$p" "$W/d1.restored"
		if [ -s "$W/b$b.stamplog" ]; then
			"$B/tests/asr-oracle" --log "$W/b$b.stamplog" --base "$W/b$b.d0" --base "$W/b$b.d1" \
				"$W/d0.restored" "$W/d1.restored" > "$W/oracle.log" 2>&1 ||
				fail "boot $b, point $p is no prefix: $(head -n 5 "$W/oracle.log")"
		else
			cmp "$W/b$b.d0" "$W/d0.restored" && cmp "$W/b$b.d1" "$W/d1.restored" ||
				fail "boot $b, point $p: nothing was written, and it is not what the disks were"
		fi
		n=$((n + 1))
	done < "$W/judge.points"
	TOTAL=$((TOTAL + n))
}

judge_until() { # BOOT that is consistent now: all before it is at the vault
	local b
	for b in "${unjudged[@]}"; do
		[ "$b" != "$1" ] || continue
		judge_boot "$b" "$(cat "$W/b$1.first")"
		rm -f "$W/b$b".*
	done
	unjudged=("$1")
}

boot() { # BOOT EARLY
	local first
	cp --sparse=always "$VM_OUT/d0.img" "$W/b$1.d0"
	cp --sparse=always "$VM_OUT/d1.img" "$W/b$1.d1"
	printf 'BOOT=%s\nEARLY=%s\n' "$1" "$2" > "$W/plan"
	vm_start source "$SERIES_E2E" --net --mem 768 --script "$0" --add "$E2E/guest-lib.sh" \
		--add "$W/regkey" --add "$W/recipient.crt" --add "$W/plan" \
		--disk "$VM_OUT/d0.img" --disk "$VM_OUT/d1.img" --disk "$VM_OUT/log0.img" --disk "$VM_OUT/log1.img" \
		--disk "$VM_OUT/state.img"
	unjudged+=("$1")
	has_first() { grep -q '^first-seq ' "$S/out" || ! vm_alive source; }
	retry_until 300 has_first && vm_alive source || { vm_show source; fail "boot $1 does not come up"; }
	# numbers go on 2^32 above those of the boot before; a few were used when the disks came back
	first=$(sed -n 's/^first-seq //p' "$S/out")
	[ "$1" = 0 ] || first=$((first - 1000))
	echo "$first" > "$W/b$1.first"
}

# After a return with nothing written: the copy is the disks, and the way there was no longer than it had to be
judge_return() { # BOOT BYTES-OF-THE-LOG
	local d compared shipped differ=0 tip
	judge_until "$1"
	for d in d0 d1; do
		restore $d latest "$W/$d.latest"
		cmp "$W/b$1.$d" "$W/$d.latest" || fail "boot $1: the copy of $d is not what the disk is"
	done
	EQUAL=$((EQUAL + 1))
	sed -n 's/^stats //p' "$S/out" > "$W/stats"
	compared=$(jq '.status.resync.compared_bytes' "$W/stats")
	shipped=$(jq '.status.resync.shipped_bytes' "$W/stats")
	[ "$compared" -le $(($2 * 12 / 10)) ] ||
		fail "boot $1: $compared bytes compared, the set regions of the logs have $2"
	# the copy before the return: its last point, when the vault has all up to the cut
	tip=$(jq -r '[.intervals[].to_seq] | map(select(. < '"$(cat "$W/b$1.first")"')) | max // 0' "$W/points.json")
	if [ "$tip" != 0 ] && [ "$tip" = "$(jq -r --argjson f "$(cat "$W/b$1.first")" \
		'[.intervals[], .gaps[]? | .to_seq | select(. < $f)] | max' "$W/points.json")" ]; then
		for d in d0 d1; do
			restore $d "seq:$tip" "$W/$d.before"
			differ=$((differ + $(differing "$W/$d.before" "$W/b$1.$d")))
		done
		[ "$shipped" -le $((differ * 12 / 10)) ] ||
			fail "boot $1: $shipped bytes shipped, $differ differ"
		BOUNDED=$((BOUNDED + 1))
	fi
	say "boot $1: log $2, compared $compared, differ $differ, shipped $shipped bytes; $TOTAL points judged so far"
}

site_up
for d in d0 d1; do truncate -s 16M "$VM_OUT/$d.img"; done
for d in log0 log1; do truncate -s 1M "$VM_OUT/$d.img"; done
truncate -s 64M "$VM_OUT/state.img"
want mke2fs -q -t ext4 "$VM_OUT/state.img"
bytes=$((32 << 20))
early=0
for ((n = 0; n <= CUTS; n++)); do
	kind=$(random 4)	# 0 no outage, 1 outage under load, 2 vault late, 3 cut soon after the start
	[ $n -gt 0 ] && [ $n -lt "$CUTS" ] || kind=0
	early=$((kind >= 2))
	[ $kind != 2 ] || [ -z "$VAULTD_PID" ] || vaultd_kill
	[ $kind = 2 ] || [ -n "$VAULTD_PID" ] || vaultd_start
	boot $n $early
	if [ $early = 0 ]; then
		await source consistent 600
		[ $n = 0 ] || judge_return $n "$bytes"
		vm_exec source touch /run/go
	fi
	await source loaded 300
	retry_until 60 test -s "$S/stamplog" || fail "the workload writes nothing"
	case $kind in
	0) sleep "$(random 3).$(random 9)" ;;
	1)
		sleep "0.$(random 9)"
		vaultd_kill
		sleep "$(random 4).$(random 9)"
		if [ "$(random 2)" = 0 ]; then
			vaultd_start
			sleep "$(random 2).$(random 9)"
		fi
		;;
	2)
		sleep "$(random 3).$(random 9)"
		if [ "$(random 2)" = 0 ]; then
			vaultd_start
			sleep "$(random 3).$(random 9)"
		fi
		;;
	3) sleep "0.$(random 9)" ;;
	esac
	vm_kill source
	cp "$S/stamplog" "$W/b$n.stamplog"
	bytes=$(($(log_bytes "$VM_OUT/log0.img") + $(log_bytes "$VM_OUT/log1.img")))
done
say "$CUTS power cuts: $TOTAL points judged, no violation"
say "$EQUAL times the copy was compared with the disks, $BOUNDED times the bytes shipped with what differs"
