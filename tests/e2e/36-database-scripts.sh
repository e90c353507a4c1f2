#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# make check-more
# timeout: 900
# The scripts of packaging/app with the real servers of Debian: what is written before freeze is on disk, what must be
# held back is, thaw lets it go, and so does time.
set -eu
if [ "${1:-}" != inside ]; then
	# shellcheck source=tests/lib.sh
	. "$(dirname "$0")/../lib.sh"
	cd "$ASR_TOP" || exit 1
	root=$TEST_OUT/db-root
	tests/vm/debroot.sh build db postgresql mariadb-server redis-server || fail "no root with databases"
	tests/vm/debroot.sh unpack db "$root"
	cp -r packaging/app "$root/app"
	cp "$0" tests/lib.sh "$root/"
	status=0
	tests/vm/debroot.sh run "$root" env ASR_TOP=/ TEST_OUT=/tmp bash "/$(basename "$0")" inside || status=$?
	rm -rf "$root"
	exit $status
fi
# shellcheck source=tests/lib.sh
. /lib.sh
mkdir -p /run/asr
ready() { "$@" > /dev/null 2>&1; }

say "PostgreSQL: a checkpoint, and an error that says why"
pg=$(echo /usr/lib/postgresql/*/bin)
as() { setpriv --reuid postgres --regid postgres --init-groups -- "$@"; }
mkdir -p /run/postgresql /pg
chown postgres /run/postgresql /pg
(cd / && as "$pg/initdb" -D /pg > /tmp/initdb.log) || fail "initdb: $(cat /tmp/initdb.log)"
not /app/postgresql freeze g m 2> /tmp/err || fail "froze a server that is not there"
grep -q 'connection' /tmp/err || fail "it said: $(cat /tmp/err)"
(cd / && as "$pg/postgres" -D /pg -c full_page_writes=on > /tmp/pg.log 2>&1) & server=$!
retry_until 60 ready as psql -d postgres -c 'SELECT 1' || fail "PostgreSQL: $(cat /tmp/pg.log)"
redo() { as psql -qAtd postgres -c 'SELECT redo_lsn FROM pg_control_checkpoint()'; }
as psql -qd postgres -c 'CREATE TABLE t AS SELECT generate_series(1, 10000) AS n'
before=$(redo)
want /app/postgresql freeze g m
after=$(redo)
[ "$before" != "$after" ] || fail "no checkpoint: $before"
want /app/postgresql thaw g m
(cd / && as "$pg/pg_ctl" -D /pg -m fast stop) > /tmp/stop.log || fail "stop: $(cat /tmp/stop.log)"
wait $server || fail "PostgreSQL ended with status $?"

say "MariaDB: writes wait from freeze to thaw"
mkdir -p /run/mysqld /my
chown mysql /run/mysqld /my
mariadb-install-db --user=mysql --datadir=/my > /tmp/install.log 2>&1 || fail "$(tail -n 5 /tmp/install.log)"
not /app/mariadb freeze g m 2> /tmp/err || fail "froze a server that is not there"
grep -qi 'connect' /tmp/err || fail "it said: $(cat /tmp/err)"
mariadbd --user=mysql --datadir=/my > /tmp/my.log 2>&1 & server=$!
retry_until 60 ready mariadb -e 'SELECT 1' || fail "MariaDB: $(cat /tmp/my.log)"
mariadb -e 'CREATE DATABASE d; CREATE TABLE d.a (n INT) ENGINE=Aria; CREATE TABLE d.i (n INT)'
rows() { mariadb -BNe 'SELECT (SELECT COUNT(*) FROM d.a) + (SELECT COUNT(*) FROM d.i)'; }
want /app/mariadb freeze g m
mariadb -e 'INSERT INTO d.a VALUES (1)' & a=$!
mariadb -e 'INSERT INTO d.i VALUES (1)' & i=$!
both() { [ "$(mariadb -e 'SHOW PROCESSLIST' | grep 'INSERT INTO d' | grep -c 'Waiting for')" = 2 ]; }
retry_until 30 both || fail "writes do not wait: $(mariadb -e 'SHOW PROCESSLIST')"
[ "$(rows)" = 0 ] || fail "written while frozen"
want /app/mariadb thaw g m
wait $a && wait $i || fail "a write failed"
[ "$(rows)" = 2 ] || fail "$(rows) rows"
say "... a second group's freeze, one after a run that was killed, and one that time ends"
want env HOLD_S=300 /app/mariadb freeze g m
want env HOLD_S=300 /app/mariadb freeze g m	# the first was never thawed: it lets go of that
want /app/mariadb thaw g m
want mariadb -e 'INSERT INTO d.a VALUES (2)'
want env HOLD_S=2 /app/mariadb freeze g m
want timeout 60 mariadb -e 'INSERT INTO d.a VALUES (3)'
not /app/mariadb thaw g m 2> /tmp/err || fail "thaw does not say that the lock had ended"
grep -q 'ended by itself' /tmp/err || fail "it said: $(cat /tmp/err)"
mariadb-admin shutdown
wait $server || fail "MariaDB ended with status $?"

say "Redis: a snapshot that has what was written before"
mkdir -p /redis
not /app/redis freeze g m 2> /tmp/err || fail "froze a server that is not there"
redis-server --dir /redis --save '' > /tmp/redis.log & server=$!
retry_until 30 ready redis-cli PING || fail "Redis: $(cat /tmp/redis.log)"
redis-cli SET key value-before > /dev/null
want /app/redis freeze g m
grep -q value-before /redis/dump.rdb || fail "not in the snapshot"
want /app/redis thaw g m
redis-cli SHUTDOWN NOSAVE || :
wait $server || fail "Redis ended with status $?"
not /app/redis unfreeze g m 2> /tmp/err || fail "a verb that there is not"
