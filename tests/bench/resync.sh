#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# resync.sh - a resync of a disk of which little has changed, native: what it ships
# beside what changed, and how fast it reads beside a plain read past the page cache
# in the same run: build/bench/resync.json and a table.
#
# MIB (4096) of random bytes; 1 % of its 4 KiB blocks, scattered, are written behind
# asr's back; then all of it is compared again. What is shipped is what the vault's
# segments grow by: headers, digests, footers and all. Rounds alternate.
set -eu
# shellcheck source=tests/bench/lib.sh
. "$(dirname "$0")/lib.sh"
MIB=${MIB:-4096}
ROUNDS=${ROUNDS:-5}
RING_DISK=$B/bench/resync.disk
rows=$B/bench/resync.rows
: > "$rows"
gj() { ctl group show b -o json | jq -r "$1"; }
ended() { [ "$(grep -c 'consistent; ' "$W/asrd.log")" = "$1" ]; }
stored() {
	find "$W/vault/groups" \( -name '*.seg' -o -name '*.open' \) -exec stat -c %s {} + | awk '{ n += $1 } END { printf "%.0f\n", n }'
}
change() { # SEED: a hundredth of the blocks, each once
	perl -e 'my ($file, $blocks, $seed) = @ARGV; srand($seed); my %at;
		open(my $f, "+<", $file) or die "$file: $!"; open(my $r, "<", "/dev/urandom") or die;
		while (keys %at < int($blocks / 100)) {
			my $b = int(rand($blocks)); next if $at{$b}++;
			read($r, my $data, 4096); sysseek($f, $b * 4096, 0); syswrite($f, $data) == 4096 or die;
		} print scalar(keys %at), "\n"' "$RING_DISK" $((MIB * 256)) "$1"
	sync "$RING_DISK"
}
plain() { # seconds
	local t=$EPOCHREALTIME
	dd if="$RING_DISK" of=/dev/null bs=1M iflag=direct status=none
	awk -v a="$t" -v b="$EPOCHREALTIME" 'BEGIN { print b - a }'
}

head -c ${MIB}M /dev/urandom > "$RING_DISK"
rm -f "$RING_DISK.dirty"
trap 'pipe_kill; rm -f "$RING_DISK" "$RING_DISK.dirty"' EXIT
pipe_up 64 0
"$B/tests/asr-ringgen" --ring "$W/ring" --job rand4k --bytes 4096 --disk-size ${MIB}M --image "$RING_DISK" > /dev/null
retry_until 600 ended 1 || fail "no first copy: $(tail -n 2 "$W/asrd.log")"
for ((r = 1; r <= ROUNDS; r++)); do
	blocks=$(change "$r")
	s=$(plain)
	before=$(stored) a=$(cpu_s "$ASRD_PID") v=$(cpu_s "$VAULTD_PID")
	want ctl group resync b --all > /dev/null
	retry_until 600 ended $((r + 1)) || fail "no resync: $(tail -n 2 "$W/asrd.log")"
	t=$(grep 'consistent; ' "$W/asrd.log" | tail -n 1 | sed 's/.* read in \([0-9.]*\) s.*/\1/')
	jq -nc --argjson blocks "$blocks" --argjson bytes $(($(stored) - before)) --argjson plain "$s" --argjson t "$t" \
		--argjson mib "$MIB" --argjson data "$(gj .status.resync.shipped_bytes)" \
		--argjson a "$(awk "BEGIN { print $(cpu_s "$ASRD_PID") - $a }")" \
		--argjson v "$(awk "BEGIN { print $(cpu_s "$VAULTD_PID") - $v }")" \
		'{changed_blocks: $blocks, payload_bytes: $data, stored_bytes: $bytes, shipped_ratio: ($bytes / $blocks / 4096),
		plain_mb_per_s: ($mib * 1.048576 / $plain), resync_mb_per_s: ($mib * 1.048576 / $t), read_ratio: ($plain / $t),
		cpu_s_source: $a, cpu_s_vault: $v}' \
		>> "$rows"
	tail -n 1 "$rows"
done
pipe_down
jq -s --argjson mib "$MIB" 'def median: sort | .[(length - 1) / 2 | floor];
	{disk_mib: $mib, rounds: ., shipped_ratio: (map(.shipped_ratio) | median), read_ratio: (map(.read_ratio) | median)}' \
	"$rows" > "$B/bench/resync.json"
jq -r '"resync of \(.disk_mib) MiB, 1 % changed: ships \(.shipped_ratio * 1000 | round / 1000) of the changed blocks"
	+ " (at most 1.1), reads at \(.read_ratio * 100 | round / 100) of a plain read (at least 0.8)"' "$B/bench/resync.json"
