#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Without any VM: what asr-vaultd does not take from the network, and says why it does not: old TLS, no TLS, wrong groups,
# no certificate, a foreign one, one that has expired; and peers that say nothing, hundreds of them, while a host ships.
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

PORT=$((20100 + RANDOM % 9000))
want asrctl vault init v --address 127.0.0.1 --port $PORT
want asrctl vault key create --vault-dir v --out key
asr-vaultd --config /dev/null --vault-dir v --listen 127.0.0.1:$PORT --control vaultd.sock 2>vaultd.log &
VAULTD=$!
pids+=("$VAULTD")
retry_until 20 test -S vaultd.sock || fail "no asr-vaultd: $(cat vaultd.log)"
asr-ringgen --ring ring --create --ring-size 16M >/dev/null || fail "no ring"
asrd --config /dev/null --state-dir s --control asrd.sock --ring-file ring 2>asrd.log &
pids+=($!)
retry_until 20 test -S asrd.sock || fail "no asrd: $(cat asrd.log)"
want asrctl register --key key --host web-1 --state-dir s --control asrd.sock

peer() { # OPTION...: what openssl says of a connection, and what the vault says in it
	timeout 20 openssl s_client -connect 127.0.0.1:$PORT -alpn dm-asr/1 -ign_eof "$@" </dev/null >peer.log 2>&1
	tr -d '\0' <peer.log
}
turned_away() { # TEXT OPTION...
	local said
	said=$(peer "${@:2}")
	grep -qi -- "$1" <<<"$said" || fail "with ${*:2} it said: $(tail -n 5 <<<"$said") -- and not: $1"
}
mine=(-cert s/host.crt -key s/host.key)

say "the host itself is let in with these words"
said=$(timeout 20 openssl s_client -connect 127.0.0.1:$PORT -alpn dm-asr/1 -tls1_3 "${mine[@]}" -brief </dev/null 2>&1)
grep -q 'TLSv1.3' <<<"$said" || fail "not even the host: $said"

say "older versions, and TLS of other applications"
turned_away 'alert protocol version' -tls1_2 "${mine[@]}"
turned_away 'alert protocol version' -tls1_1 -cipher 'DEFAULT:@SECLEVEL=0' "${mine[@]}"
turned_away 'alert handshake failure' -tls1_3 -ciphersuites TLS_AES_128_CCM_SHA256 "${mine[@]}"
turned_away 'alert handshake failure' -tls1_3 -groups ffdhe2048 "${mine[@]}"
timeout 20 openssl s_client -connect 127.0.0.1:$PORT -tls1_3 -alpn h2 </dev/null >peer.log 2>&1
grep -qi 'alert no application protocol' peer.log || fail "HTTP/2 was told: $(tail -n 3 peer.log)"

say "no TLS at all"
answer=$(printf 'GET / HTTP/1.0\r\n\r\n' | timeout 20 socat -t 15 - TCP:127.0.0.1:$PORT | tr -d '\0' | head -c 100)
! grep -q 'HTTP/' <<<"$answer" || fail "it answers in plain text: $answer"

say "certificates of others, and one whose time is over"
san=$(openssl x509 -in s/host.crt -noout -ext subjectAltName | tail -n 1 | tr -d ' ')
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=web-1 -addext "subjectAltName=$san" \
	-keyout foreign.key -out foreign.crt 2>/dev/null || fail "openssl"
turned_away 'alert unknown ca' -tls1_3 -cert foreign.crt -key foreign.key
touch index
cat >ca.cnf <<- C
	[ca]
	default_ca = d
	[d]
	database = index
	unique_subject = no
	new_certs_dir = .
	serial = serial
	default_md = sha256
	policy = p
	x509_extensions = e
	[p]
	commonName = supplied
	[e]
	subjectAltName = $san
	extendedKeyUsage = clientAuth
	keyUsage = critical, digitalSignature
C
openssl req -new -key s/host.key -subj /CN=web-1 -out host.csr 2>/dev/null || fail "openssl"
openssl ca -batch -config ca.cnf -rand_serial -cert v/ca/ca.crt -keyfile v/ca/ca.key -in host.csr -out old.crt \
	-startdate 20200101000000Z -enddate 20200601000000Z 2>ca.log || fail "openssl ca: $(cat ca.log)"
turned_away 'alert certificate expired' -tls1_3 -cert old.crt -key s/host.key
openssl ca -batch -config ca.cnf -rand_serial -cert v/ca/ca.crt -keyfile v/ca/ca.key -in host.csr -out unknown.crt \
	-days 3 2>ca.log || fail "openssl ca: $(cat ca.log)"
# the CA signed it, and the catalogue does not know it
turned_away 'not-allowed\|refused\|unknown\|does not know' -tls1_3 -cert unknown.crt -key s/host.key
turned_away 'enrol\|certificate' -tls1_3

say "peers that say nothing: hundreds, and the host goes on"
socat_pids=()
for ((i = 0; i < 200; i++)); do
	exec {fd}<>/dev/tcp/127.0.0.1/$PORT
	socat_pids+=("$fd")
done
connected() { asrctl status --control asrd.sock -o json | jq -e .vault.connected >/dev/null; }
connected || fail "the host is not connected any more"
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 30 -subj /CN=rec -keyout rec.key -out rec.crt \
	2>/dev/null || fail "openssl"
want asrctl group create g --recipient rec.crt --ring-size 16M --control asrd.sock
want asr-ringgen --ring ring --job rand4k --bytes 16M --disk-size 16M --image want.img
settled() { asrctl group show g --control asrd.sock -o json | jq -e '.status.rpo_bytes == 0' >/dev/null; }
retry_until 60 settled || fail "what the host writes does not arrive"
held() { find /proc/$VAULTD/fd -lname 'socket:*' | wc -l; }
few() { [ "$(held)" -lt 20 ]; }
retry_until 60 few || fail "$(held) sockets are still open"
for fd in "${socat_pids[@]}"; do
	exec {fd}>&-
done
connected || fail "the host is not connected any more"
kill -0 $VAULTD || fail "asr-vaultd has ended: $(tail -n 3 vaultd.log)"
want asrctl restore g --vault-dir v --disk bench --point latest --key rec.key --to got.img
cmp want.img got.img || fail "the disk is another"
echo ok
