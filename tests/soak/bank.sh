#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# bank.sh - the bank of 21-bank-over-hosts.sh: two PostgreSQL servers, A and B, and money that moves between them; runs
# in a Debian root that has PostgreSQL, as root.
#
#   bank.sh make WORKERS MONEY         a server's data in /made/data: an account for each worker, with MONEY
#   bank.sh client WORKERS PORT PORT   moves money until /bank/stop is there; what was acknowledged: /bank/acked.*
#   bank.sh read                       starts servers on /a and /b as they are after a crash, and prints what is there:
#                                      SERVER money SUM, SERVER row TRANSFER out|in MONEY
#
# Transfer N is one transaction on each server: money of the worker's account and a row (N, out|in, money). Each is
# acknowledged before the next is sent. By turns they go from A to B and back; those to B are the bigger ones, so
# that money drifts there: an A older than its B has too much in all.
set -eu
pg=$(echo /usr/lib/postgresql/*/bin)
as() { setpriv --reuid postgres --regid postgres --clear-groups -- "$@"; }
fail() { echo "FAIL: $*" >&2; exit 1; }

make_data() { # WORKERS MONEY
	mkdir -p /made
	chown postgres /made
	as "$pg/initdb" -D /made/data -U postgres -A trust -E UTF8 --no-locale --wal-segsize=1 --data-checksums --no-sync \
		> /tmp/initdb.log 2>&1 || fail "initdb: $(cat /tmp/initdb.log)"
	cat >> /made/data/postgresql.conf <<- C
		listen_addresses = '*'
		port = 7000
		unix_socket_directories = '/tmp'
		dynamic_shared_memory_type = mmap
		shared_buffers = 16MB
		max_connections = 20
		min_wal_size = 2MB
		max_wal_size = 8MB
		checkpoint_timeout = 30s
	C
	echo "host all all all trust" >> /made/data/pg_hba.conf
	start /made/data 7000 /tmp/made.log
	psql -qX -v ON_ERROR_STOP=1 -h /tmp -p 7000 -U postgres <<- S
		CREATE TABLE account (id int PRIMARY KEY, money bigint NOT NULL CHECK (money >= 0));
		INSERT INTO account SELECT w, $2 FROM generate_series(1, $1) AS w;
		CREATE TABLE transfer (n bigint PRIMARY KEY, way text NOT NULL, money bigint NOT NULL);
	S
	as "$pg/pg_ctl" -D /made/data -w -m fast stop > /tmp/made.log 2>&1 || fail "stop: $(cat /tmp/made.log)"
}

start() { # DATA PORT LOG [OPTION...]
	as "$pg/pg_ctl" -D "$1" -w -t 300 -l "$3" -o "-p $2 -h '' -k /tmp ${*:4}" start > "$3.ctl" 2>&1 ||
		fail "no server on $1: $(cat "$3.ctl" "$3")"
}

# One connection to each server; what psql says comes line by line
connect() { # SERVER PORT
	mkfifo "/bank/to.$W.$1" "/bank/from.$W.$1"
	stdbuf -oL psql -qAtX -v ON_ERROR_STOP=1 -h 127.0.0.1 -p "$2" -U postgres < "/bank/to.$W.$1" > "/bank/from.$W.$1" \
		2> "/bank/psql.$W.$1.log" &
}
# One transaction. psql gets to the \echo only when the server has acknowledged the commit.
move() { # SERVER N WAY MONEY
	local line='' by=$4
	[ "$3" = in ] || by=-$4
	printf 'BEGIN\\; UPDATE account SET money = money + (%s) WHERE id = %s\\; ' "$by" "$W" >&"${TO[$1]}"
	printf "INSERT INTO transfer VALUES (%s, '%s', %s)\\\\; COMMIT;\n\\\\echo done %s\n" "$2" "$3" "$4" "$2" >&"${TO[$1]}"
	read -r -t 300 line <&"${FROM[$1]}" && [ "$line" = "done $2" ] ||
		fail "transfer $2, $3 on $1: '$line' $(cat "/bank/psql.$W.$1.log")"
	echo "$2 $3 $1" >> "/bank/acked.$W"
}
worker() { # WORKERS PORT PORT
	local n a b
	declare -A TO=() FROM=()
	connect A "$2"
	connect B "$3"
	exec {a}> "/bank/to.$W.A" {b}> "/bank/to.$W.B"
	TO[A]=$a TO[B]=$b
	exec {a}< "/bank/from.$W.A" {b}< "/bank/from.$W.B"
	FROM[A]=$a FROM[B]=$b
	for ((n = W; ; n += 2 * $1)); do
		[ ! -e /bank/stop ] || return 0
		move A "$n" out $((50 + n % 50))
		move B "$n" in $((50 + n % 50))
		move B $((n + $1)) out $((1 + n % 20))
		move A $((n + $1)) in $((1 + n % 20))
	done
}
client() { # WORKERS PORT PORT
	local pids=() p
	for ((W = 1; W <= $1; W++)); do
		worker "$@" &
		pids+=($!)
	done
	for p in "${pids[@]}"; do
		wait "$p" || { touch /bank/stop; fail "a worker has failed"; }
	done
}

# A server that is gone left its pid behind; here the number may be anybody's.
read_one() { # SERVER FOLDER PORT
	rm -f "$2/data/postmaster.pid"
	start "$2/data" "$3" "/tmp/$1.log" -F
	psql -qAtX -F ' ' -v ON_ERROR_STOP=1 -h /tmp -p "$3" -U postgres > "/tmp/$1.rows" <<- S
		SELECT '$1', 'money', sum(money) FROM account;
		SELECT '$1', 'row', n, way, money FROM transfer;
	S
	as "$pg/pg_ctl" -D "$2/data" -w -m immediate stop > "/tmp/$1.log.ctl" 2>&1 || fail "stop: $(cat "/tmp/$1.log.ctl")"
	! grep -E 'PANIC|FATAL|ERROR|WARNING' "/tmp/$1.log" >&2 || fail "the server on $2 complains"
	grep -q 'not properly shut down' "/tmp/$1.log" || fail "the server on $2 had not crashed: $(cat "/tmp/$1.log")"
}
read_both() {
	local a
	mount -t tmpfs tmpfs /tmp
	chmod 1777 /tmp
	read_one A /a 7001 &
	a=$!
	read_one B /b 7002
	wait $a || fail "A"
	cat /tmp/A.rows /tmp/B.rows
}

case $1 in
make) make_data "${@:2}" ;;
client) client "${@:2}" ;;
read) read_both ;;
*) fail "unknown: $1" ;;
esac
