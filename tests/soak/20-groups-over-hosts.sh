#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# make soak-groups
# timeout: 14400
# A group over HOSTS hosts (3), a mark each 100 ms, writes that depend on each other across all of them; asrds, the
# coordinator's too, die, links stand still and break, networks delay, lose, double and reorder packets (netem), at
# random, until there are POINTS points (1000): each of them is restored, and is a prefix.
set -eu
if [ -n "${ASR_GUEST:-}" ]; then
	# shellcheck source=tests/e2e/hosts-guest.sh
	. /asr/in/hosts-guest.sh
	host_life
	exit 0
fi
# shellcheck source=tests/e2e/hosts-lib.sh
. "$(dirname "$0")/../e2e/hosts-lib.sh"
hosts=${HOSTS:-3} points=${POINTS:-1000}
hosts_up "$hosts"
want vm_exec h0 "asrctl group interval g 100ms --hold 1s" > /dev/null
c=$(coordinator)
retry_until 120 more_than "$c" 5 || { marks_of 0; fail "no marks of all"; }
named() { # NAME: the group may be in trouble just now
	marks() { vm_exec "$c" "asrctl group mark g --name $1" > "$W/named.log" 2>&1; }
	retry_until 300 marks "$1" || fail "mark $1: $(cat "$W/named.log")"
}
named first
killed() { ! vm_exec "h$1" "test -e /run/kill-asrd"; }
net=
have=$(points_now) goal=$((have + points)) kills=0 stops=0 cuts=0 bad=0
while [ "$have" -lt $goal ]; do
	k=$((RANDOM % hosts))
	case $((RANDOM % 5)) in
	0)
		want vm_exec "h$k" "touch /run/kill-asrd"
		retry_until 120 killed "$k" || fail "asrd of h$k was not killed"
		kills=$((kills + 1))
		;;
	1)
		link_stop "$k"
		sleep "$((RANDOM % 3)).$((RANDOM % 10))"
		link_cont "$k"
		stops=$((stops + 1))
		;;
	2)
		link_cut "$k"
		cuts=$((cuts + 1))
		;;
	3)
		net_bad "$k" delay $((1 + RANDOM % 80))ms 20ms loss $((RANDOM % 6))% duplicate $((RANDOM % 6))% reorder 10% 50%
		net=$k
		bad=$((bad + 1))
		;;
	4) ;;
	esac
	now=$(points_now)
	grew() { [ "$(points_now)" -gt $((now + 3)) ]; }
	retry_until 300 grew || { for ((k = 0; k < hosts; k++)); do marks_of "$k"; done; fail "no more points"; }
	[ -z "$net" ] || net_good "$net"
	net=
	have=$(points_now)
done
say "$kills asrds killed, $stops times a link stood still, $cuts broke, $bad bad networks: $have points"
named last
for ((k = 0; k < hosts; k++)); do
	say "h$k: $(marks_of "$k" | jq -c '{coordinator, declared, failed, holds: (.holds | del(.buckets)),
		delayed: (.delayed_at_most | del(.buckets))}')"
done
hosts_stop
vaultd_stop
points_of_all first last || fail "no points"
judged=0
while read -r m; do
	judge_mark "name:$m" || fail "point $m is no prefix: $(cat "$W/chain.log")"
	judged=$((judged + 1))
done < "$W/marks"
[ $judged -ge "$points" ] || fail "$judged points only"
say "$judged points of $hosts hosts restored, each a prefix; $(tail -n 1 "$W/chain.log") at the last"
