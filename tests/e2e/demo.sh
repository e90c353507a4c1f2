#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# demo.sh - the main job: protect a mounted, busy volume in a virtual machine, cut
# its power, and bring back the last and 20 random earlier moments of it from the
# vault's folder and a private key alone. Exit status 0 only if every one is right.
set -eu
cd "$(dirname "$0")/../.."
D=build/demo
rm -rf $D
mkdir -p $D
VM_OUT=$PWD/$D/vm
export VM_OUT
# shellcheck source=tests/vm/vm.sh
. tests/vm/vm.sh
B=$PWD/build
MOMENTS=${MOMENTS:-20}
STEADY_S=${STEADY_S:-15}
step() { printf '\n== %s\n' "$*"; }

vaultd_pid='' tail_pid=''
end() {
	# shellcheck disable=SC2086
	kill $vaultd_pid $tail_pid 2> /dev/null || true
	vm_cleanup
}
trap end EXIT

step "0. the recovery site: a vault, a registration key, a customer's certificate"
port=$((20000 + $$ % 10000))
$B/asrctl vault init $D/vault --address 10.0.2.2 --port $port
$B/asr-vaultd --vault-dir $D/vault --listen 127.0.0.1:$port --control $PWD/$D/vaultd.sock 2> $D/vaultd.log &
vaultd_pid=$!
$B/asrctl vault key create --vault-dir $D/vault --out $D/demo.regkey
openssl req -x509 -newkey rsa:3072 -nodes -days 30 -subj "/CN=demo recovery" \
	-keyout $D/recovery.key -out $D/recipient.crt 2> /dev/null
retry_until 10 test -S $D/vaultd.sock
truncate -s 256M $D/source.img

step "the source host: a stock Debian kernel in QEMU ($(vm_prepare 6.1; vm_accel 6.1))"
vm_start source 6.1 --disk $D/source.img --net --mem 1024 --script tests/e2e/demo-guest.sh \
	--add $D/demo.regkey --add $D/recipient.crt
tail -n +1 -F $VM_OUT/source/out 2> /dev/null &
tail_pid=$!
steady() { grep -q '^steady$' $VM_OUT/source/out || ! vm_alive source; }
retry_until 300 steady || fail "the source host does not reach a steady state"
vm_alive source || { tail -n 30 $VM_OUT/source/console.log; fail "the source host has ended"; }
echo "working on for $STEADY_S s"
sleep "$STEADY_S"	# the workload's own time: this is what is recovered below

step "4. disaster: power cut"
vm_kill source
kill $tail_pid
wait $tail_pid 2> /dev/null || true
tail_pid=

step "5. recovery, from a copy of the vault's folder and the private key alone"
kill $vaultd_pid
wait $vaultd_pid || true
vaultd_pid=
mkdir -p $D/elsewhere/groups
cp -r $D/vault/groups/. $D/elsewhere/groups/
$B/asrctl point list demo --vault-dir $D/elsewhere
$B/asrctl point list demo --vault-dir $D/elsewhere -o json > $D/points.json

# Random moments of the newest window, oldest first; then the last one.
read -r from to < <(jq -r '.intervals[-1] | "\(.from_seq) \(.to_seq)"' $D/points.json)
[ "$to" -gt "$from" ] || fail "no window of points: $from to $to"
{ shuf -i "$from-$to" -n "$MOMENTS" | sort -n | sed 's/^/seq:/'; echo latest; } > $D/moments

check_image() { # IMAGE: sets rows, cut; 0 if all is well
	local img=$1 st=0 out
	e2fsck -fp "$img" > $D/e2fsck.log 2>&1 || st=$?	# what a mount does: replay the journal
	[ $st -le 1 ] && e2fsck -fn "$img" > $D/e2fsck.log 2>&1 || { why="e2fsck: $(tail -n 1 $D/e2fsck.log)"; return 1; }
	rm -f $D/app.db*
	for f in app.db app.db-wal; do
		debugfs -R "dump /$f $D/$f" "$img" 2> /dev/null
	done
	out=$(sqlite3 $D/app.db 'PRAGMA integrity_check; SELECT count(*) FROM t;' 2>&1 | tr '\n' ' ')
	case $out in "ok "[0-9]*) rows=${out#ok }; rows=${rows% } ;; *) why="SQLite: $out"; return 1 ;; esac
	debugfs -R "dump /stamps $D/stamps" "$img" 2> /dev/null
	out=$($B/tests/asr-oracle --log $VM_OUT/source/stamplog $D/stamps 2>&1) || { why="oracle: $out"; return 1; }
	cut=$(sed -n 's/.*between seq \([0-9]*\).*/\1/p' <<< "$out")
}

printf '\n%-14s %8s %8s %8s %8s %8s  %s\n' point restore e2fsck SQLite rows cut verdict
good=0 bad=0 last_rows=0
while read -r point; do
	why='' rows=- cut=-
	t=$(date +%s%N)
	rm -f $D/restored.img
	if ! $B/asrctl restore demo --disk vol --point "$point" --key $D/recovery.key \
		--to $D/restored.img --vault-dir $D/elsewhere > $D/restore.log 2>&1; then
		why="restore: $(tail -n 1 $D/restore.log)"
	fi
	t=$((($(date +%s%N) - t) / 1000000))
	if [ -z "$why" ] && check_image $D/restored.img; then
		[ "$rows" -ge "$last_rows" ] || why="rows went back from $last_rows"
		last_rows=$rows
	fi
	if [ -z "$why" ]; then
		good=$((good + 1))
		printf '%-14s %5d ms %8s %8s %8s %8s  %s\n' "$point" $t clean ok "$rows" "$cut" "a prefix"
	else
		bad=$((bad + 1))
		printf '%-14s %5d ms  %s\n' "$point" $t "WRONG: $why"
	fi
done < $D/moments

echo
if [ $bad = 0 ] && [ $good = $((MOMENTS + 1)) ]; then
	echo "PASS: $good of $good moments restored and proved right"
else
	echo "FAIL: $bad of $((good + bad)) moments are wrong"
	exit 1
fi
