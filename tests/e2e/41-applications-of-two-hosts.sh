#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# make check-more
# timeout: 1200
# Application-consistent marks of a group over two hosts: at each such mark the file systems of both are clean and their
# applications had ended what they were at. Nobody who makes one of them quiet, a script that fails, asrctl or asrd killed
# while it is: an error that says which host, no such mark, and both go on.
set -eu
if [ -n "${ASR_GUEST:-}" ]; then
	# shellcheck source=tests/e2e/hosts-guest.sh
	. /asr/in/hosts-guest.sh
	host_up
	protected
	want mkfs.ext4 -q /dev/mapper/v0
	mkdir -p /m
	want mount /dev/mapper/v0 /m
	pairs_start /m/a /m/b
	printf '#!/bin/sh\n[ $1 = thaw ] || until [ -e /run/go ]; do sleep 0.05; done\n' > /run/waits
	chmod +x /run/waits
	serve() { asrctl app serve 2>> /run/serve.log & SERVE=$!; echo $SERVE > /run/serve; }
	serve
	say chain
	told() {
		[ ! -e /run/kill-asrd ] || { asrd_kill; asrd_start; rm /run/kill-asrd; }
		[ ! -e /run/kill-serve ] || { kill -9 $SERVE; wait $SERVE || :; rm /run/kill-serve; }
		[ ! -e /run/serve-again ] || { serve; rm /run/serve-again; }
		[ -e /run/stop ]
	}
	retry_until 3000 told || fail "never told to stop"
	wait "$PAIRS" || fail "the application"
	kill $SERVE
	retry_until 30 sh -c "! kill -0 $SERVE 2> /dev/null" || fail "asrctl app serve does not end"
	wait $SERVE || fail "asrctl app serve ended with status $?: $(cat /run/serve.log)"
	want umount /m
	host_down
	exit 0
fi
# shellcheck source=tests/e2e/hosts-lib.sh
. "$(dirname "$0")/hosts-lib.sh"
hosts_up 2
want vm_exec h0 "asrctl group interval g 1s --hold 1s" > /dev/null	# a guest may stand still for long
c=$(coordinator)
retry_until 120 more_than "$c" 1 || { marks_of 0; fail "no marks of all"; }
mark() { vm_exec "h$1" "asrctl group mark g --consistency app --name $2 --timeout ${3:-60}" > "$W/mark.log" 2>&1; }
goes_on() {
	local k n
	for k in 0 1; do
		n=$(vm_exec "h$k" "cat /m/b 2> /dev/null || echo 0")
		moved() { [ "$(vm_exec "h$k" "cat /m/b 2> /dev/null || echo 0")" != "$n" ]; }
		retry_until 60 moved || fail "the application of h$k stands still: $(vm_exec "h$k" "cat /run/serve.log")"
	done
}
refused() { # HOST NAME TEXT [SECONDS]
	not mark "$1" "$2" "${4:-60}" || fail "it went well: $(cat "$W/mark.log")"
	grep -q "$3" "$W/mark.log" || fail "it said: $(cat "$W/mark.log"), and not: $3"
	goes_on
}
for k in 0 1 0 1; do
	n=$((${n:-0} + 1))
	goes_on
	mark $k "quiet-$n" || fail "mark: $(cat "$W/mark.log"); $(vm_exec h$((1 - k)) "cat /run/serve.log")"
done
not vm_exec h0 "asrctl group mark g --consistency app --no-freeze" > "$W/mark.log" 2>&1 || fail "options of one host"
grep -q 'are of one' "$W/mark.log" || fail "it said: $(cat "$W/mark.log")"
not vm_exec h1 "asrctl app serve" > "$W/mark.log" 2>&1 || fail "two of them serve"
grep -q 'runs already' "$W/mark.log" || fail "it said: $(cat "$W/mark.log")"
refused 1 too-long 'quiet for 61 s, and asrctl app serve --longest is 60' 61
for k in 0 1; do
	say "h$k: a script that fails; nobody there"
	want vm_exec "h$k" "touch /run/quiet-fails"
	refused 0 "fails-$k" "h$k: .*10-app freeze failed: status 1"
	want vm_exec "h$k" "rm /run/quiet-fails; touch /run/kill-serve"
	retry_until 30 vm_exec "h$k" "test ! -e /run/kill-serve" || fail "serve of h$k"
	refused 1 "nobody-$k" "host h$k: nobody makes its applications quiet"
	want vm_exec "h$k" "touch /run/serve-again"
	retry_until 30 vm_exec "h$k" "test ! -e /run/serve-again" || fail "serve of h$k"
	want mark 1 "again-$k"
done
# Who writes there waits for the thaw, and nothing ends that
cat > "$W/frozen" <<- 'S'
	[ -e /run/quiet ] || exit 1
	touch /m/try > /dev/null 2>&1 < /dev/null & p=$!
	for i in 1 2 3 4 5 6 7 8 9; do
		grep -q percpu_rwsem /proc/$p/wchan && exit 0
		kill -0 $p 2> /dev/null || exit 1
		sleep 0.1
	done
	exit 1
S
frozen=$(cat "$W/frozen")
# One host is quiet, the other's script waits: who makes quiet, or asrd, is killed then
for what in serve asrd; do
	for k in 0 1; do
		say "h$k: $what is killed while its applications are quiet"
		o=$((1 - k))
		want vm_exec "h$o" "cp /run/waits /etc/asr/app/g/00-waits; rm -f /run/go"
		mark $o "killed-$what-$k" & marker=$!	# an agent does one thing at a time
		is_frozen() { vm_exec "h$k" "$frozen" 2> /dev/null; }
		retry_until 60 is_frozen || fail "h$k is not frozen: $(cat "$W/mark.log")"
		want vm_exec "h$k" "touch /run/kill-$what"
		retry_until 60 vm_exec "h$k" "test ! -e /run/kill-$what" || fail "$what of h$k"
		wait $marker && fail "it went well: $(cat "$W/mark.log")"
		want vm_exec "h$o" "touch /run/go; rm /etc/asr/app/g/00-waits"
		want vm_exec "h$k" "rm -f /run/quiet; timeout 60 touch /m/try"
		[ $what != serve ] || want vm_exec "h$k" "touch /run/serve-again"
		goes_on
		again() { mark 0 "after-$what-$k"; }
		retry_until 120 again || fail "no mark any more: $(cat "$W/mark.log")"
	done
done
want vm_exec h0 "asrctl group mark g --name crash" > /dev/null

say "whoever has no certificate of this vault is let go, and nothing else happens"
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=h1 -keyout "$W/foreign.key" \
	-out "$W/foreign.crt" -addext "subjectAltName=URI:asr:host:$(marks_of 0 | jq -r '.hosts[] | select(.host == "h1") | .host_id')" \
	2> /dev/null || fail "no certificate"
stranger() { # ALERT OPTION...
	timeout 60 openssl s_client -connect "127.0.0.1:$BASE" -tls1_3 -ign_eof "${@:2}" < /dev/null > "$W/stranger.log" 2>&1 || :
	grep -qi "alert $1" "$W/stranger.log" || fail "a stranger was told: $(tail -n 5 "$W/stranger.log")"
}
declared=$(count_of "$c")
stranger 'unknown ca' -cert "$W/foreign.crt" -key "$W/foreign.key"
stranger 'certificate required'
retry_until 60 more_than "$c" "$((declared + 1))" || fail "no more marks: $(marks_of 0)"
say "a host whose certificate is revoked is let go; it comes back with a key that is made for it"
want "$B/asrctl" vault host revoke h1 --vault-dir "$W/vault" > /dev/null
revoked() { marks_of 0 | jq -r '.hosts[] | select(.host == "h1") | .trouble' | grep -q 'was revoked'; }
retry_until 60 revoked || fail "h0 does not let h1 go: $(marks_of 0)"
want "$B/asrctl" vault key create --host h1 --vault-dir "$W/vault" --out "$W/back"
vm_exec h1 "echo $(cat "$W/back") > /run/back && asrctl register --key /run/back --host h1" > "$W/back.log" 2>&1 ||
	fail "register again: $(cat "$W/back.log")"
declared=$(count_of "$c")
retry_until 120 more_than "$c" "$((declared + 1))" || fail "no more marks: $(marks_of 0) $(marks_of 1)"
hosts_stop
vaultd_stop
want "$B/asrctl" point list g --vault-dir "$W/vault" -o json > "$W/points.json"
apps=$(jq -r '.marks[] | select(.consistency == "app") | .name' "$W/points.json")
[ "$(sort <<< "$apps" | tr '\n' ' ')" = "after-asrd-0 after-asrd-1 after-serve-0 after-serve-1 again-0 again-1 quiet-1 quiet-2 \
quiet-3 quiet-4 " ] || fail "application-consistent: $apps"
jq -e '.marks[] | select(.name == "crash") | .consistency == "crash"' "$W/points.json" > /dev/null || fail "crash"
clean() { # MARK: no file system in use, no pair that is half
	local k a b
	for k in 0 1; do
		restore "h$k-d0" "name:$1" "$W/h$k.img"
		! want dumpe2fs -h "$W/h$k.img" 2> /dev/null | grep -q needs_recovery || return 1
		want e2fsck -fn "$W/h$k.img" > /dev/null 2>&1
		a=$(debugfs -R 'cat a' "$W/h$k.img" 2> /dev/null) b=$(debugfs -R 'cat b' "$W/h$k.img" 2> /dev/null)
		[ -n "$a" ] && [ "$a" = "$b" ] || fail "$1: h$k had written $a and $b"
	done
}
not clean crash || fail "a crash-consistent point is clean: the test shows nothing"
n=0
for m in $apps; do
	clean "$m" || fail "$m: a file system was in use"
	n=$((n + 1))
done
say "$n application-consistent points of two hosts, both clean at each"
