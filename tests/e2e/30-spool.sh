#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# timeout: 3600
# The vault is away for many rings' worth of writes, and asrd and the vault are killed on the
# way there and back: every write is a point afterwards, each what the generator's log says;
# no resync. Native, the ring in a file. OUTAGE seconds, RATE MB/s, KILLS of each kind.
set -eu
OUTAGE=${OUTAGE:-12} RATE=${RATE:-8} KILLS=${KILLS:-4} CHECKS=${CHECKS:-6}
W=$(dirname "$0")/../../build/test-out/spool-work
# shellcheck source=tests/bench/lib.sh
. "$(dirname "$0")/../bench/lib.sh"

spool_state() { ctl group show b -o json 2> /dev/null | jq -r '.status.spool.state'; }
spooling() { [ "$(spool_state)" = spooling ]; }
behind() { ctl group show b -o json 2> /dev/null | jq '.status.rpo_bytes'; }
consistent() { [ "$(ctl group show b -o json 2> /dev/null | jq .status.consistent)" = true ]; }
settled() { [ "$(behind)" = 0 ]; }
pause() { sleep "0.$((RANDOM % 9))$((RANDOM % 9))"; }	# a random moment

SPOOL_MAX=20G
pipe_up 2 "${COMPRESSION:-1}"
"$B/tests/asr-ringgen" --ring "$W/ring" --job rand4k --rate "$RATE" --seconds $((OUTAGE * 2 + 600)) --disk-size 16M \
	--log "$W/log" --image "$W/image" > "$W/generator" &
generator=$!
retry_until 60 consistent || fail "not consistent: $(tail -n 3 "$W/asrd.log")"
resyncs=$(grep -c 'resync begins' "$W/asrd.log")

vaultd_kill
retry_until 60 spooling || fail "no spooling: $(tail -n 3 "$W/asrd.log")"
until=$((SECONDS + OUTAGE))
for ((n = 0; n < KILLS; n++)); do
	pause
	asrd_kill
	asrd_up
done
while [ "$SECONDS" -lt "$until" ]; do sleep 1; done
bytes=$(ctl group show b -o json | jq '.status.spool.bytes')
[ "$bytes" -gt $((4 << 20)) ] || fail "only $bytes bytes are in the spool: more than the ring was expected"

vaultd_up
for ((n = 0; n < KILLS; n++)); do
	pause
	asrd_kill
	asrd_up
	pause
	vaultd_kill
	vaultd_up
done
kill "$generator"
wait "$generator" || true
last=$(jq .last_seq "$W/generator")
retry_until 600 settled || fail "does not drain: $(ctl status; tail -n 3 "$W/asrd.log")"
[ "$(spool_state)" = empty ] || fail "the spool is $(spool_state) in the end"
[ "$(grep -c 'resync begins' "$W/asrd.log")" = "$resyncs" ] || fail "there was a resync: $(cat "$W/asrd.log")"
grep -q 'spool -> ring' "$W/asrd.log" || fail "no line says that it is straight again"
kill "$VAULTD_PID"
wait "$VAULTD_PID" || fail "asr-vaultd ended badly"
VAULTD_PID=

"$B/asrctl" point list b --vault-dir "$W/vault" -o json > "$W/points"
jq -e --argjson last "$last" '.intervals | length == 1 and .[0].from_seq <= 2 and .[0].to_seq == $last' "$W/points" \
	> /dev/null || fail "not every write up to $last is a point: $(jq -c .intervals "$W/points")"
for ((n = 0; n < CHECKS; n++)); do
	seq=$((1 + (RANDOM << 15 | RANDOM) % last))
	[ $n -gt 0 ] || seq=$last
	rm -f "$W/restored"
	"$B/asrctl" restore b --disk bench --point "seq:$seq" --key "$W/recovery.key" --to "$W/restored" \
		--vault-dir "$W/vault" > /dev/null 2>&1 || fail "no restore of seq:$seq"
	"$B/tests/asr-ringgen" --check "$W/log" --seq "$seq" --image "$W/restored" > "$W/verdict" 2>&1 ||
		fail "point seq:$seq: $(cat "$W/verdict")"
done
say "$((bytes >> 20)) MiB spooled in $OUTAGE s, $((KILLS * 3)) kills, $last points in one interval, $CHECKS checked"
