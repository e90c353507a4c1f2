#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# timeout: 900
# A group over two hosts, with writes that depend on each other across them: every declared point is a prefix, also
# with asrds killed and links stopped and cut, and one host's clock three hours late; marks without holds are not, and
# the check sees it.
set -eu
if [ -n "${ASR_GUEST:-}" ]; then
	# shellcheck source=tests/e2e/hosts-guest.sh
	. /asr/in/hosts-guest.sh
	host_life
	exit 0
fi
# shellcheck source=tests/e2e/hosts-lib.sh
. "$(dirname "$0")/hosts-lib.sh"
HOST_CLOCK[1]=-10800
hosts_up 2
want vm_exec h0 "asrctl group interval g 100ms --hold 1s" > /dev/null
c=$(coordinator)
retry_until 120 more_than "$c" 20 || { marks_of 0; marks_of 1; fail "no marks of both"; }
say "$c makes the marks: $(count_of "$c" .marks.declared) declared"

skew=$(count_of h0 '.marks.hosts[] | select(.host == "h1").skew_s | round')
[ "$skew" -lt -10200 ] && [ "$skew" -gt -11400 ] || fail "a clock that is three hours late is said to be off by $skew s"

say "a mark by name, asked for on either host"
for k in 0 1; do
	vm_exec "h$k" "asrctl group mark g --name named-$k" > "$W/named.log" || fail "mark: $(cat "$W/named.log")"
	grep -q "on all of its hosts" "$W/named.log" || fail "it said: $(cat "$W/named.log")"
done

base=$(points_now)
say "asrds die, links stand still and break"
for ((round = 1; round <= ${ROUNDS:-1}; round++)); do
	for k in 0 1; do
		want vm_exec "h$k" "touch /run/kill-asrd"
		link_stop $((1 - k))
		sleep 0.$((RANDOM % 9))
		link_cont $((1 - k))
		link_cut "$k"
		killed() { ! vm_exec "h$k" "test -e /run/kill-asrd"; }
		retry_until 60 killed || fail "asrd of h$k was not killed"
		before=$(count_of "$c")
		retry_until 120 more_than "$c" $((before + 3)) || { marks_of 0; marks_of 1; fail "no marks any more"; }
	done
	say "round $round: $(count_of "$c" .marks.declared) declared since its asrd began"
done

say "a host that is away: no points, and group show says why"
link_stop 0
link_stop 1
waits() { count_of "$c" .marks.waits_for | grep -q h || count_of "$c" .marks.last_failure | grep -q "host h"; }
retry_until 60 waits || { marks_of 0; fail "nobody says why there are no points"; }
link_cont 0
link_cont 1

say "marks without holds, at about the same time"
for i in 1 2 3 4 5 6; do
	pids=()
	for k in 0 1; do
		vm_exec "h$k" "dmsetup message v0 0 mark loose$i" > /dev/null &
		pids+=($!)
	done
	wait "${pids[0]}" && wait "${pids[1]}" || fail "mark loose$i"
done
before=$(count_of "$c")
retry_until 120 more_than "$c" $((before + 3)) || fail "no marks at the end"
count_of "$c" .marks | jq -c '{declared, failed, holds: (.holds | del(.buckets)), delayed: (.delayed_at_most | del(.buckets))}'
enough() { [ "$(points_now)" -gt $((base + 40)) ]; }
retry_until 300 enough || fail "$(points_now) points, $base of them at the beginning"
# later ones lack disks: they are taken out of protection
vm_exec h0 "asrctl group mark g --name last" > "$W/named.log" || fail "mark: $(cat "$W/named.log")"
hosts_stop 300
vaultd_stop

points_of_all named-0 last || fail "no points"
n=$(wc -l < "$W/marks")
[ "$n" -gt 40 ] || fail "$n points only"
shuf -n "${JUDGE:-40}" "$W/marks" > "$W/some"
while read -r m; do
	judge_mark "name:$m" || fail "point $m is no prefix: $(cat "$W/chain.log")"
done < "$W/some"
say "$n points of both hosts, $(wc -l < "$W/some") restored, each a prefix; last: $(tail -n 1 "$W/chain.log")"
for p in name:last name:named-0 name:named-1; do
	judge_mark $p || fail "$p is no prefix: $(cat "$W/chain.log")"
done
say "both disks over NBD, of one moment: what a restore gives"
judge_mark name:last || fail "name:last is no prefix: $(cat "$W/chain.log")"
"$B/asrctl" point export g --point name:last --key "$W/recovery.key" --vault-dir "$W/vault" -o json > "$W/export.json" &
exporter=$!
exports() { grep -q '^}' "$W/export.json" || ! kill -0 $exporter 2> /dev/null; }
retry_until 60 exports || fail "no export"
[ "$(jq -r '[.disks[].disk] | sort | join(" ")' "$W/export.json")" = "h0/h0-d0 h1/h1-d0" ] || fail "$(cat "$W/export.json")"
for k in 0 1; do
	uri=$(jq -r --arg d "h$k/h$k-d0" '.disks[] | select(.disk == $d).uri' "$W/export.json")
	want nbdcopy "$uri" "$W/h$k.nbd"
	cmp "$W/h$k.nbd" "$W/h$k.restored" || fail "h$k: over NBD it is another disk"
done
kill -INT $exporter
wait $exporter || fail "the export ended with status $?"
refused 'for one disk at a time' "$B/asrctl" point export g --point name:last --key "$W/recovery.key" \
	--vault-dir "$W/vault" --writable
torn=0
for i in 1 2 3 4 5 6; do
	judge_mark "host:name:loose$i" || torn=$((torn + 1))
done
[ $torn -gt 0 ] || fail "marks without holds were no worse: the check sees nothing"
say "without holds: $torn of 6 are no prefix"
