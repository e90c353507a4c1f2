#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Without any VM: a host enrols, ships a ring's writes, and the disk is restored; every wrong key and word is refused.
set -u
# shellcheck source=tests/lib.sh
. "$(dirname "$0")/../lib.sh"
B=$ASR_TOP/build
W=$(mktemp -d)
pids=()
end() {
	[ ${#pids[@]} -eq 0 ] || kill "${pids[@]}" 2>/dev/null
	wait
	rm -rf "$W"
}
trap end EXIT
cd "$W" || exit 1
PATH=$B:$B/tests:$PATH
for p in asrctl asrd asr-vaultd asr-ringgen; do
	command -v $p >/dev/null || skip "$p is not built"
done

PORT=$((20100 + RANDOM % 9000))
want asrctl vault init v --address 127.0.0.1 --port $PORT
refused 'is a vault already' asrctl vault init v --address 127.0.0.1
refused 'bad address' asrctl vault init v2 --address 'a b'
[ ! -e v2 ] || fail "a refused vault init left a folder"
want asrctl vault key create --vault-dir v --out key
[ "$(stat -c %a key)" = 600 ] || fail "others may read the key"
refused 'key exists' asrctl vault key create --vault-dir v --out key
refused 'bad time "5y"' asrctl vault key create --vault-dir v --expires 5y

say "wrong keys"
register() { asrctl register --state-dir s --control asrd.sock "$@"; }
refused 'cannot be reached' register --key key
asr-vaultd --config /dev/null --vault-dir v --listen 127.0.0.1:$PORT --control vaultd.sock 2>vaultd.log &
pids+=($!)
retry_until 20 test -S vaultd.sock || fail "no asr-vaultd: $(cat vaultd.log)"
head -c 60 key >half
refused 'truncated or mistyped' register --key half
tr b c <key >mistyped
refused 'mistyped' register --key mistyped
echo hello >nokey
refused 'not a registration key' register --key nokey
refused 'No such file' register --key nothing
want asrctl vault key create --vault-dir v --expires 1s --out short
want asrctl vault key create --vault-dir v --out dead
want asrctl vault key revoke --vault-dir v "$(asrctl vault key list --vault-dir v -o json | jq -r '.keys[-1].id')"
dead=$(asrctl vault key list --vault-dir v -o json | jq '[.keys[] | select(.state == "revoked")] | length')
[ "$dead" = 1 ] || fail "$dead revoked keys"
sleep 1.1	# the life of the short key
refused 'was revoked at' register --key dead
refused 'expired at' register --key short
want asrctl vault init other --address 127.0.0.1 --port $PORT
want asrctl vault key create --vault-dir other --out foreign
refused 'is not the one that made this key' register --key foreign
[ ! -e s/host.crt ] || fail "a refused registration left a certificate"

say "a host enrols"
asr-ringgen --ring ring --create --ring-size 16M >/dev/null || fail "no ring"
asrd --config /dev/null --state-dir s --control asrd.sock --ring-file ring 2>asrd.log &
pids+=($!)
retry_until 20 test -S asrd.sock || fail "no asrd: $(cat asrd.log)"
want register --key key --host web-1
asrctl status --control asrd.sock -o json | jq -e .vault.connected >/dev/null || fail "asrd is not connected"
rm -rf s2
refused 'was used at' asrctl register --key key --state-dir s2 --control none
asrctl vault status --vault-dir v --vault-control vaultd.sock -o json |
	jq -e '.hosts[0].name == "web-1" and .daemon.hosts[0].host != null' >/dev/null || fail "the vault does not list the host"
refused 'has been used' asrctl vault key revoke --vault-dir v "$(asrctl vault key list --vault-dir v -o json |
	jq -r '.keys[] | select(.state == "used") | .id')"

say "a group"
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 30 -subj /CN=rec -keyout rec.key \
	-out rec.crt 2>/dev/null || fail "openssl"
openssl req -x509 -newkey rsa:1024 -nodes -days 30 -subj /CN=weak -keyout weak.key -out weak.crt 2>/dev/null
group() { asrctl group create "$@" --control asrd.sock; }
refused 'bad group name' group 'a b' --recipient rec.crt
refused 'rec.key: not a certificate' group g --recipient rec.key
refused 'weak.crt: ' group g --recipient weak.crt
refused 'bad ring size' group g --recipient rec.crt --ring-size 3M
refused 'bad compression' group g --recipient rec.crt --compression 99
want group g --recipient rec.crt --ring-size 16M
refused 'a group g already' group g --recipient rec.crt

say "its disk, restored"
# the ring is empty when all is in the vault, or in the spool
settled() { asrctl group show g --control asrd.sock -o json | jq -e '.status.rpo_bytes == 0' >/dev/null; }
want asr-ringgen --ring ring --job rand4k --bytes 32M --disk-size 16M --image want.img
retry_until 60 settled || fail "it does not settle"
restore() { asrctl restore g --vault-dir v --disk bench --key rec.key "$@"; }
want restore --point latest --to got.img
cmp want.img got.img || fail "the restored disk is another"
refused 'got.img exists' restore --point latest --to got.img
refused 'in the future' restore --point seq:99999999 --to no.img
refused 'before the window' restore --point time:2020-01-01T00:00:00Z --to no.img
refused 'bad point "foo"' restore --point foo --to no.img
refused 'no disk "x"' asrctl restore g --vault-dir v --disk x --point latest --key rec.key --to no.img
refused 'no group "x"' asrctl restore x --vault-dir v --disk x --point latest --key rec.key --to no.img
refused 'none of its recipients' asrctl restore g --vault-dir v --disk bench --point latest --key s/host.key --to no.img
refused 'nowhere' restore --point latest --to nowhere/no.img
[ ! -e no.img ] || fail "a refused restore left an image"
restore --point latest --to json.img -o json | jq -e '.disk_bytes == 16777216' >/dev/null || fail "no JSON"

say "its certificate is revoked: it is cut off, and comes back with a key that is made for it"
connected() { asrctl status --control asrd.sock -o json | jq -e ".vault.connected == $1" >/dev/null; }
stranger() { # what the vault says to who has the folder $1
	timeout 20 openssl s_client -connect 127.0.0.1:$PORT -tls1_3 -alpn dm-asr/1 -ign_eof -quiet -cert "$1/host.crt" \
		-key "$1/host.key" </dev/null 2>/dev/null | tr -d '\0'
}
cp -r s stolen
refused 'knows no host nobody' asrctl vault host revoke nobody --vault-dir v
refused 'knows no host nobody' asrctl vault key create --host nobody --vault-dir v
want asrctl vault host revoke web-1 --vault-dir v
retry_until 20 connected false || fail "a revoked host is still connected"
told() { asrctl status --control asrd.sock -o json | jq -r .vault.last_error | grep -q 'was revoked at'; }
retry_until 60 told || fail "a revoked host does not say why it is away: $(asrctl status --control asrd.sock)"
refused 'nothing left to revoke' asrctl vault host revoke web-1 --vault-dir v
asrctl vault host list --vault-dir v -o json | jq -e '.hosts[0] | .certificate == "revoked" and .revoked != null' \
	>/dev/null || fail "it is not listed as revoked"
want asrctl vault key create --vault-dir v --out any
refused 'was revoked at' register --key any
want asrctl vault key create --vault-dir v --host web-1 --out back
want register --key back --host web-1
retry_until 60 connected true || fail "the host does not come back: $(tail -n 3 asrd.log)"
said=$(stranger stolen)	# it ends when the vault closes
grep -q 'was revoked at' <<<"$said" || fail "a certificate that was revoked counts again: $said"
want asr-ringgen --ring ring --job rand4k --bytes 8M --disk-size 16M --seed 2 --image want.img
retry_until 60 settled || fail "it does not settle"
rm got.img
want restore --point latest --to got.img
cmp want.img got.img || fail "the disk after its host came back is another"

say "what the vault holds is whole, beside the daemon; and a byte that is not as it was is found"
check() { asrctl vault check --vault-dir v "$@" -o json >check.json; }
check --key rec.key || fail "not sound: $(cat check.json)"
jq -e '.sound and .groups == 1 and .frames > 0 and .blocks > 0 and .findings == []' check.json >/dev/null ||
	fail "$(cat check.json)"
refused 'no group "x"' asrctl vault check x --vault-dir v
refused 'is neither a vault nor' asrctl vault check --vault-dir .
refused 'no group of a vault' asrctl vault check --vault-dir s
refused 'bad rate "1"' asrctl vault check --vault-dir v --rate 1
refused 'none of its recipients' asrctl vault check --vault-dir v --key s/host.key

say "the same from the group's folder alone, with no daemon"
kill "${pids[@]}"
wait "${pids[@]}" || fail "a daemon ended with an error: $(tail -n 3 asrd.log vaultd.log)"
pids=()
cp -r v/groups/* bare
want asrctl restore g --vault-dir bare --disk bench --point latest --key rec.key --to bare.img
cmp want.img bare.img || fail "the disk from a bare folder is another"
want asrctl vault check --vault-dir bare --key rec.key --journal journal
seg=$(find bare -name '*.seg' -o -name '*.open' | sort | head -n 1)
printf x | dd of="$seg" bs=1 seek=5000 conv=notrunc status=none
asrctl vault check --vault-dir bare >out && fail "it is sound, with a byte that is not as it was"
grep -q "damage: group g.*$(basename "$seg")" out || fail "it said: $(cat out)"
echo ok
