#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The disks of a group at a point over NBD, while the vault goes on and from a bare copy: byte for byte what a restore
# gives, its holes too, read by several connections; a writable view forgets; a damaged frame is an error.
set -eu
W=$(dirname "$0")/../../build/test-out/export-work
# shellcheck source=tests/bench/lib.sh
. "$(dirname "$0")/../bench/lib.sh"
EXPORT_PID='' generator=''
ends() {
	[ -z "$EXPORT_PID$generator" ] || kill $EXPORT_PID $generator 2> /dev/null || :
	pipe_kill
}
trap ends EXIT
for p in nbdkit nbdcopy nbdinfo qemu-img qemu-io; do
	command -v $p > /dev/null || fail "$p is not installed: make deps"
done

export_start() { # WORD...
	rm -f "$W/export.json"
	"$B/asrctl" point export "$@" -o json > "$W/export.json" 2> "$W/export.log" &
	EXPORT_PID=$!
	ready() { grep -q "^}" "$W/export.json" 2> /dev/null || ! kill -0 "$EXPORT_PID" 2> /dev/null; }
	retry_until 60 ready || fail "nothing is said"
	kill -0 $EXPORT_PID 2> /dev/null || fail "no export: $(cat "$W/export.log")"
	URI=$(jq -r '.disks[0].uri' "$W/export.json")
}
export_stop() {
	kill -INT $EXPORT_PID
	wait $EXPORT_PID || fail "asrctl point export ended with status $?: $(cat "$W/export.log")"
	EXPORT_PID=
	[ ! -e "$(jq -r .socket "$W/export.json")" ] || fail "the socket is left behind"
}
restored() { # POINT FILE
	rm -f "$2"
	"$B/asrctl" restore b --disk bench --point "$1" --key "$W/recovery.key" --to "$2" --vault-dir "$W/vault" -o json \
		> "$W/restore.json" 2> "$W/restore.log" || fail "restore: $(tail -n 2 "$W/restore.log")"
}
V=(--vault-dir "$W/vault" --key "$W/recovery.key")

pipe_up 16 1
"$B/tests/asr-ringgen" --ring "$W/ring" --job rand4k --bytes 6M --disk-size 16M --image "$W/image" > "$W/gen.json"
first=$(jq .last_seq "$W/gen.json")
settled() { ctl group show b -o json | jq -e '.status.rpo_bytes == 0 and .status.consistent' > /dev/null; }
retry_until 60 settled || fail "it does not settle: $(ctl status)"
restored "seq:$first" "$W/want"
cmp "$W/want" "$W/image" || fail "the restored image is another"

say "a moment of the past, while the vault goes on"
"$B/tests/asr-ringgen" --ring "$W/ring" --job rand4k --seed 3 --seconds 600 --rate 2 --disk-size 16M \
	--image "$W/image" > /dev/null &
generator=$!
export_start b --point "seq:$first" "${V[@]}"
jq -e --argjson s "$first" '.group == "b" and (.disks | length) == 1 and .disks[0].disk == "bench" and .disks[0].seq == $s and
	.disks[0].bytes == 16777216 and (.writable | not)' "$W/export.json" > /dev/null || fail "it said: $(cat "$W/export.json")"
want nbdcopy --connections=4 "$URI" "$W/copy"
cmp "$W/want" "$W/copy" || fail "over NBD the disk is another"
want qemu-img compare -q -f raw -F raw "$W/want" "$URI"
data=$(qemu-img map --output=json -f raw "$URI" | jq '[.[] | select(.data) | .length] | add')
wrote=$(jq .written_bytes "$W/restore.json")
[ "$data" = "$wrote" ] || fail "$data bytes of data, a restore writes $wrote"
nbdinfo --json "$URI" | jq -e '.exports[0] | .is_read_only and .can_multi_conn' > /dev/null || fail "$(nbdinfo "$URI")"
not qemu-io -f raw -c 'write -P 1 0 4096' "$URI" > "$W/io.log" 2>&1 || fail "it takes writes"
export_stop

say "a writable view forgets what is written"
export_start b --point "seq:$first" "${V[@]}" --writable --socket "$W/nbd.sock"
[ "$URI" = "nbd+unix:///bench?socket=$(jq -r .socket "$W/export.json")" ] || fail "$URI"
want qemu-io -f raw -c 'write -P 0x5a 8192 65536' -c 'read -P 0x5a 8192 65536' "$URI" > "$W/io.log"
not grep -q 'Pattern verification failed' "$W/io.log" || fail "$(cat "$W/io.log")"
not qemu-img compare -q -f raw -F raw "$W/want" "$URI" || fail "nothing was written"
refused 'exists: give a name' "$B/asrctl" point export b --point latest "${V[@]}" --socket "$W/nbd.sock"
export_stop
export_start b --point "seq:$first" "${V[@]}" --disk bench
want qemu-img compare -q -f raw -F raw "$W/want" "$URI"
export_stop

say "the newest moment"
kill $generator
wait $generator || :
generator=
retry_until 60 settled || fail "it does not settle: $(ctl status)"
export_start b --point latest "${V[@]}"
want nbdcopy "$URI" "$W/copy"
cmp "$W/image" "$W/copy" || fail "the newest moment is another"
export_stop

say "refused"
refused 'had no disk "x"' "$B/asrctl" point export b --point latest "${V[@]}" --disk x
refused 'no group "x"' "$B/asrctl" point export x --point latest "${V[@]}"
refused 'in the future' "$B/asrctl" point export b --point seq:999999999 "${V[@]}"
refused 'bad point "foo"' "$B/asrctl" point export b --point foo "${V[@]}"
refused 'say which disk' "$B/asrctl" point export b --point host:latest "${V[@]}"
refused 'none of its recipients' "$B/asrctl" point export b --point latest --vault-dir "$W/vault" --key "$W/state/host.key"
refused 'No such file' "$B/asrctl" point export b --point latest --vault-dir "$W/vault" --key "$W/none"
refused 'no vault|No such' "$B/asrctl" point export b --point latest --vault-dir "$W/none" --key "$W/recovery.key"
refused 'install the package nbdkit' env PATH="$W" "$B/asrctl" point export b --point latest "${V[@]}"

say "from a bare copy, with no daemon; then damaged"
kill $ASRD_PID $VAULTD_PID
wait $ASRD_PID $VAULTD_PID || fail "a daemon ended badly"
ASRD_PID='' VAULTD_PID=''
cp -r "$W"/vault/groups/* "$W/bare"
V=(--vault-dir "$W/bare" --key "$W/recovery.key")
export_start b --point "seq:$first" "${V[@]}"
want nbdcopy "$URI" "$W/copy"
cmp "$W/want" "$W/copy" || fail "from a bare copy it is another"
export_stop
seg=$(find "$W/bare/segments" -type f | sort | head -n 1)
printf 'rot' | dd of="$seg" bs=1 seek=$(($(stat -c %s "$seg") / 3)) conv=notrunc status=none
damaged() {
	export_start b --point "seq:$first" "${V[@]}"
	not nbdcopy "$URI" "$W/copy" 2> "$W/copy.log" || fail "a damaged frame is taken for data"
	export_stop
	grep -q 'segment .*, offset ' "$W/export.log" || fail "it does not say where: $(cat "$W/export.log")"
}
# an unsealed segment is read at the beginning, then nothing is exported at all
if "$B/asrctl" point list b --vault-dir "$W/bare" > "$W/list.log" 2>&1; then
	damaged
else
	refused 'segment .*, offset ' "$B/asrctl" point export b --point "seq:$first" "${V[@]}"
fi
echo ok
