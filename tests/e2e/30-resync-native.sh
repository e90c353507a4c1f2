#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# timeout: 900
# asrd and asr-vaultd on this machine, a ring file and its disk: only blocks that differ
# travel, whoever is killed on the way; verify names what was changed behind their backs.
set -eu
# shellcheck source=tests/bench/lib.sh
. "$(dirname "$0")/../bench/lib.sh"
W=$TEST_OUT/site
trap 'kill -9 $ASRD_PID $VAULTD_PID 2> /dev/null || true' EXIT	# what they left is looked at
MIB=192
RING_DISK=$TEST_OUT/disk
gj() { ctl group show b -o json | jq -r "$1"; }
consistent() { [ "$(gj .status.consistent)" = true ] && [ "$(gj .status.rpo_bytes)" = 0 ]; }
await_consistent() { retry_until 180 consistent || fail "not consistent: $(tail -n 5 "$W/asrd.log")"; }
all_again() { want ctl group resync b --all > /dev/null; retry_until 60 began || fail "no resync"; }
began() { [ "$(gj .status.consistent)" = false ] || grep -c 'resync begins' "$W/asrd.log" | grep -qv "^$begun$"; }
begun=0
flip() { # BLOCK: some bytes of it, which random ones are not by chance
	printf 'behind its back' | dd of="$RING_DISK" bs=1 seek=$(($1 * 4096 + 77)) conv=notrunc status=none
}
restored() {
	rm -f "$W/image"
	"$B/asrctl" restore b --disk bench --point latest --key "$W/recovery.key" --to "$W/image" \
		--vault-dir "$W/vault" > "$W/restore.log" 2>&1 || fail "restore: $(tail -n 2 "$W/restore.log")"
	cmp "$RING_DISK" "$W/image" || fail "the copy is not what the disk is"
}

# random, with zeroes at the begin and in the middle
head -c ${MIB}M /dev/urandom > "$RING_DISK"
dd if=/dev/zero of="$RING_DISK" bs=1M count=8 conv=notrunc status=none
dd if=/dev/zero of="$RING_DISK" bs=1M seek=100 count=20 conv=notrunc status=none
rm -f "$RING_DISK.dirty"
site_make 4
vaultd_up
asrd_up
group_up 0
# the disk's record, and a write that makes no difference: the group is born
"$B/tests/asr-ringgen" --ring "$W/ring" --job rand4k --bytes 4096 --disk-size ${MIB}M --image "$RING_DISK" > /dev/null
await_consistent
restored
# what holds no zeroes, but for the block that the generator wrote
[ "$(gj .status.resync.shipped_bytes)" -ge $((((MIB - 28) << 20) - 8192)) ] ||
	fail "the vault knew something of a new disk: shipped $(gj .status.resync.shipped_bytes)"

say "nothing changed: nothing travels"
begun=$(grep -c 'resync begins' "$W/asrd.log")
all_again
await_consistent
[ "$(gj .status.resync.shipped_bytes)" = 0 ] || fail "shipped $(gj .status.resync.shipped_bytes) of an equal disk"
[ "$(gj .status.resync.compared_bytes)" = $((MIB << 20)) ] || fail "compared $(gj .status.resync.compared_bytes)"

say "verify finds what was written behind the group's back, and resync --all repairs it"
want ctl group verify b > "$W/verify.1"
grep -q '0 differences' "$W/verify.1" || fail "$(cat "$W/verify.1")"
for b in 5 2100 2101 40000; do flip $b; done
st=0
ctl group verify b --settle 1 -o json > "$W/verify.2" || st=$?
[ $st = 1 ] || fail "verify of a changed disk: status $st, $(cat "$W/verify.2")"
[ "$(jq -c '[.found[] | [.sector, .sectors]] | sort' "$W/verify.2")" = '[[40,8],[16800,16],[320000,8]]' ] ||
	fail "verify named $(jq -c .found "$W/verify.2")"
st=0
ctl group verify b --disk nosuch > "$W/verify.3" 2>&1 || st=$?
[ $st = 2 ] && grep -q 'no disk nosuch' "$W/verify.3" || fail "status $st: $(cat "$W/verify.3")"
begun=$(grep -c 'resync begins' "$W/asrd.log")
all_again
await_consistent
[ "$(gj .status.resync.shipped_bytes)" = $((4 * 4096)) ] || fail "shipped $(gj .status.resync.shipped_bytes) for 4 blocks"
[ "$(gj .status.resync.differing_bytes)" = $((4 * 4096)) ] || fail "differing $(gj .status.resync.differing_bytes)"
want ctl group verify b > /dev/null
restored

say "paused, refused, resumed"
want ctl group pause b > /dev/null
want ctl group resync b --all > /dev/null
retry_until 60 began || fail "no resync"
st=0
ctl group verify b > "$W/verify.4" 2>&1 || st=$?
[ $st = 2 ] && grep -q 'not consistent' "$W/verify.4" || fail "status $st: $(cat "$W/verify.4")"
# it stays paused over the death of asrd
kill -9 "$ASRD_PID"
wait "$ASRD_PID" 2> /dev/null || true
rm -f "$W/asrd.sock"
asrd_up
retry_until 60 connected
[ "$(gj .status.resync.paused)" = true ] || fail "not paused any more"
ctl status | grep -q paused || fail "status does not say that it is paused"
want ctl group resume b > /dev/null
await_consistent

say "killed on the way, either side, and the link with it: what was compared is not compared again"
for ((i = 0; i < 400; i++)); do flip $((RANDOM * 32768 % (MIB * 256) + i)); done
want ctl group resync b --all --rate 24M > /dev/null
dirty() { tr -d '\0' < "$RING_DISK.dirty" | wc -c; }
dirty_below() { [ "$(dirty)" -lt "$1" ]; }
total=0
for who in asrd vaultd asrd; do
	before=$(dirty)
	retry_until 120 dirty_below $((before - 400)) || fail "resync does not move on: $(dirty) of $before"
	total=$((total + $(gj .status.resync.done_bytes)))
	if [ $who = asrd ]; then
		kill -9 "$ASRD_PID"
		wait "$ASRD_PID" 2> /dev/null || true
		rm -f "$W/asrd.sock"
		asrd_up
	else
		kill -9 "$VAULTD_PID"
		wait "$VAULTD_PID" 2> /dev/null || true
		rm -f "$W/vaultd.sock"
		vaultd_up
	fi
	retry_until 120 connected
	left=$(dirty)
	[ "$left" -lt "$before" ] || fail "begins again with $left dirty chunks after $before"
done
want ctl group resync b --rate 0 > /dev/null
await_consistent
total=$((total + $(gj .status.resync.done_bytes)))
# what was under way at a kill: what could be read since the last look, and the queues
[ $total -le $(((MIB + 2 * 24 + 3 * 8) << 20)) ] || fail "read $total bytes of a disk of $((MIB << 20))"
restored
want ctl group verify b > /dev/null
say "read $((total >> 20)) MiB of $MIB over three deaths"

kill "$ASRD_PID" "$VAULTD_PID"
wait "$ASRD_PID" "$VAULTD_PID" || fail "a daemon ended badly"
ASRD_PID="" VAULTD_PID=""
