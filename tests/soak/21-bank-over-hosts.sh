#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# make soak-bank
# timeout: 14400
# Money moves between two PostgreSQL servers on two hosts, each commit acknowledged before the next: at each of POINTS
# points (100) the restored servers have no more in all than there was, no deposit without its withdrawal, and at a
# point by name all that was acknowledged before it was asked for.
set -eu
if [ -n "${ASR_GUEST:-}" ]; then
	# shellcheck source=tests/e2e/hosts-guest.sh
	. /asr/in/hosts-guest.sh
	in_root() { busybox chroot /pg /usr/bin/setpriv --reuid postgres --regid postgres --clear-groups -- "$@"; }
	host_up
	protected
	mkdir -p /pg
	want mount -o ro /dev/d1 /pg
	for d in tmp run dev/shm; do
		[ $d != dev/shm ] || { want mount --bind /dev /pg/dev; mkdir -p /dev/shm; }
		want mount -t tmpfs -o mode=1777 tmpfs "/pg/$d"
	done
	want mount -t proc proc /pg/proc
	want mount /dev/mapper/v0 /pg/bank
	in_root /bin/bash -c 'exec /usr/lib/postgresql/*/bin/postgres -D /bank/data' > /run/pg.log 2>&1 &
	server=$!
	answers() { in_root /usr/bin/psql -qAtX -h /tmp -p 7000 -c 'SELECT count(*) FROM account' postgres > /run/answer 2>&1; }
	retry_until 120 answers || fail "PostgreSQL: $(cat /run/answer /run/pg.log)"
	say bank
	until_told
	kill -INT "$(head -n 1 /pg/bank/data/postmaster.pid)"
	wait $server || fail "PostgreSQL: status $?, $(cat /run/pg.log)"
	! grep -E 'PANIC|FATAL|ERROR' /run/pg.log || fail "PostgreSQL complains"
	want umount /pg/bank
	host_down
	exit 0
fi
# shellcheck source=tests/e2e/hosts-lib.sh
. "$(dirname "$0")/../e2e/hosts-lib.sh"
[ "$(id -u)" = 0 ] || skip "root is needed to make a Debian root and to mount what is restored"
points=${POINTS:-100} workers=4 money=1000000
total=$((2 * workers * money))
R=$VM_OUT/root
debroot() { "$ASR_TOP/tests/vm/debroot.sh" "$@"; }
bank_end() {
	touch "$R/bank/stop" 2> /dev/null || :
	hosts_end
}
trap bank_end EXIT

say "a Debian with PostgreSQL, and a server's data"
mkdir -p "$VM_OUT"
debroot build pg postgresql || fail "no root with PostgreSQL"
debroot unpack pg "$R"
rm -rf "$R"/usr/share/{doc,man,locale,info} "$R"/var/cache/* "$R"/var/lib/apt/lists/*
mkdir -p "$R"/{bank,a,b}
vm_pack "$R" "$VM_OUT/pg.img" 8 || fail "no image of the root"
cp "$ASR_TOP/tests/soak/bank.sh" "$R/"
debroot run "$R" bash /bank.sh make "$workers" "$money" || fail "no data"
host_disk() {
	rm -f "$1"
	truncate -s 96M "$1"
	mke2fs -q -t ext4 -J size=4 -E lazy_itable_init=0,lazy_journal_init=0 -d "$R/made" "$1" || fail "no disk $1"
}
HOST_RUNS=bank HOST_MORE=(--disk "$VM_OUT/pg.img,read-only=on,cache=unsafe" --mem 768)
hosts_up 2
want vm_exec h0 "asrctl group interval g 1s --hold 1s" > /dev/null
c=$(coordinator)
retry_until 120 more_than "$c" 2 || { marks_of 0; marks_of 1; fail "no marks of both"; }

debroot run "$R" bash /bank.sh client "$workers" $((BASE + 2)) $((BASE + 12)) > "$W/client.log" 2>&1 &
client=$!
acked() { cat "$R"/bank/acked.* 2> /dev/null; }
moves() { kill -0 $client 2> /dev/null || fail "the client has ended: $(cat "$W/client.log")"; }
acked_more() { moves; [ "$(acked | wc -l)" -gt "$1" ]; }
# What is acknowledged before the mark is asked for
named() { # NAME
	acked > "$W/before.$1"
	marks() { vm_exec "$c" "asrctl group mark g --name $1" > "$W/named.log" 2>&1; }
	retry_until 300 marks "$1" || fail "mark $1: $(cat "$W/named.log")"
}
retry_until 120 acked_more 20 || fail "no money moves"
named p0
t0=$SECONDS have=$(points_now) i=0
goal=$((have + points))
grew() { moves; [ "$(points_now)" -gt "$((have + 2))" ]; }
while [ "$have" -lt $goal ]; do
	retry_until 300 grew || { marks_of 0; marks_of 1; fail "no more points"; }
	i=$((i + 1))
	named p$i
	have=$(points_now)
done
t1=$SECONDS
touch "$R/bank/stop"
wait $client || fail "the client: $(cat "$W/client.log")"
named last
n=$(acked | wc -l)
say "$((n / 2)) transfers in $((t1 - t0)) s, $((have - goal + points)) points, $i of them by name; $(marks_of 0 |
	jq -c '{declared, failed, holds: (.holds | del(.buckets)), delayed: (.delayed_at_most | del(.buckets))}')"
hosts_stop 300
vaultd_stop

# What is wrong with the two servers' rows, a line for each: the sum, orphans, a worker that went on before its time,
# what was acknowledged and is missing
wrongs() { # ACKED ROWS
	awk -v total="$total" -v workers="$workers" '
	FILENAME == ARGV[1] { acked[++acks] = $0; next }
	$2 == "money" { sum += $3; servers++ }
	$2 == "row" { money[$3, $4] = $5; at[$3, $4] = $1; if ($4 == "in") ins[$3]; else outs[$3] }
	END {
		for (n in ins)
			if (!(n in outs) || money[n, "in"] != money[n, "out"] || at[n, "in"] == at[n, "out"])
				print "orphan: transfer " n " came in at " at[n, "in"] " and did not go out"
		for (n in outs) {
			begun[n % workers]++
			if (n + 0 > last[n % workers])
				last[n % workers] = n + 0
			if (!(n in ins)) {
				open++
				flying += money[n, "out"]
			}
		}
		for (n in outs)
			if (!(n in ins) && n + 0 < last[n % workers])
				print "order: transfer " n " is on the way, and its worker at " last[n % workers]
		for (w in last)
			if (begun[w] != int((last[w] + workers - 1) / workers))
				print "order: " begun[w] " transfers of the worker that is at " last[w]
		if (servers != 2)
			print "servers: " servers + 0
		if (sum > total)
			print "sum: " sum ", more than the " total " there were"
		if (sum < total - flying)
			print "sum: " sum " and " flying " on the way, of " total
		if (open > workers)
			print "open: " open " transfers on the way, by " workers " workers"
		for (i = 1; i <= acks; i++) {
			split(acked[i], a, " ")
			if (at[a[1], a[2]] != a[3])
				print "missing: transfer " a[1] ", " a[2] " on " a[3] ", was acknowledged"
		}
		printf "seen: %d in, %d on the way, %d acknowledged before\n", length(ins), open, acks > "/dev/stderr"
	}' "$1" "$2" > "$W/wrongs" 2> "$W/seen"
	[ ! -s "$W/wrongs" ]
}

# The servers of both disks, each where it was then, started and read
judge_bank() { # POINT POINT [ACKED]
	restore h0-d0 "$1" "$W/h0.restored"
	restore h1-d0 "$2" "$W/h1.restored"
	unshare --mount --propagation private bash -euc '
		mount -o loop "$1" "$3/a"; mount -o loop "$2" "$3/b"; "$4" run "$3" bash /bank.sh read' judge \
		"$W/h0.restored" "$W/h1.restored" "$R" "$ASR_TOP/tests/vm/debroot.sh" > "$W/rows" 2> "$W/rows.log" ||
		fail "the servers at $1 and $2: $(cat "$W/rows.log")"
	wrongs "${3:-/dev/null}" "$W/rows"
}

points_of_all p0 last || fail "no points"
jq -r '.marks[] | "\(.mark) \(.name)"' "$W/points.json" > "$W/names"
judged=0 by_name=0
while read -r m; do
	name=$(awk -v m="$m" '$1 == m { print $2 }' "$W/names")
	before=$W/before.$name
	[ ! -e "$before" ] || by_name=$((by_name + 1))
	[ -e "$before" ] || before=
	judge_bank "name:$m" "name:$m" "$before" || fail "point $m, $name: $(head -n 5 "$W/wrongs")"
	echo "$name $(cat "$W/seen")"
	judged=$((judged + 1))
done < "$W/marks"
[ $judged -ge "$points" ] || fail "$judged points only"
[ $by_name = $((i + 2)) ] || fail "$by_name points by name, and $((i + 2)) were made"
acked > "$W/acked"
judge_bank name:last name:last "$W/acked" || fail "at the end: $(head -n 5 "$W/wrongs")"
grep -q ' 0 on the way' "$W/seen" || fail "at the end: $(cat "$W/seen")"
say "$judged points restored in $((SECONDS - t1)) s, $by_name of them by name; last: $(cat "$W/seen")"

say "and moments that are none of both are seen to be wrong"
caught() { # KIND POINT POINT [ACKED]
	! judge_bank "${@:2}" || fail "$2 and $3: nothing is seen to be wrong"
	grep -q "^$1: " "$W/wrongs" || fail "$2 and $3: not '$1', but $(head -n 5 "$W/wrongs")"
	say "$2 and $3: $(wc -l < "$W/wrongs") wrongs, one: $(grep -m 1 "^$1: " "$W/wrongs")"
}
old=host:name:$(awk '$2 == "p0" { print $1 }' "$W/names") new=host:name:$(awk -v n=p$i '$2 == n { print $1 }' "$W/names")
caught orphan "$old" "$new"
caught "sum" "$old" "$new"
caught open "$new" "$old"
caught order "$new" "$old"
caught missing name:p0 name:p0 "$W/before.p$i"
rm -rf "$R" "$VM_OUT"/*.img "$W"/*.restored
