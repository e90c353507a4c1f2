# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
#
# hosts-guest.sh - one host of a group over several; to be sourced in the guest.
# /asr/in/role says who it is: HOST, NODE, OF, ADDRESS (where the others reach it), NEXT (its
# neighbour's chain), CHAINS, CLOCK (seconds that its clock is wrong). RING may be set: the ring's size; LOWER: the
# end of the table of the volume.
#
#   host_up             registered, asrd up; the first makes the group, others wait to be admitted
#   protected           disk /dev/d0 as HOST-d0 in group g, its first copy at the vault
#   chain_start         the writes that depend on each other (asr-chain)
#   until_told          until /run/stop is there; kills asrd and starts it again at /run/kill-asrd
#   chain_stop, host_down   all taken down again
#   host_life           these, one after the other
# shellcheck source=tests/e2e/guest-lib.sh
. /asr/in/guest-lib.sh
# shellcheck source=/dev/null
. /asr/in/role

host_up() {
	date -s "@$(($(date +%s) + CLOCK))" > /dev/null || fail "date"
	modprobe dm_mod; insmod /asr/dm-asr.ko
	mkdir -p /run/asr /var/lib/asr /etc/asr
	printf '[peers]\naddress = %s\n' "$ADDRESS" > /etc/asr/asrd.conf
	asrd_start
	asrctl register --key /asr/in/regkey --host "$HOST" || fail "register"
	if [ "$NODE" = 0 ]; then
		asrctl group create g --recipient /asr/in/recipient.crt --ring-size "${RING:-16M}" || fail "group create"
	else
		not asrctl group join g --recipient /asr/in/recipient.crt 2> /run/out || fail "joined, not admitted"
		grep -q 'admits this host' /run/out || fail "it said: $(cat /run/out)"
		joins() { asrctl group join g --recipient /asr/in/recipient.crt --ring-size "${RING:-64M}" 2> /run/out; }
		say registered
		retry_until 120 joins || fail "join: $(cat /run/out)"
	fi
}

protected() {
	dmsetup create v0 --table "0 $(blockdev --getsz /dev/d0) ${LOWER:-linear /dev/d0 0}" || fail "dmsetup create"
	asrctl disk protect /dev/mapper/v0 --group g --name "$HOST-d0" --no-wait || fail "disk protect"
	retry_until 180 drained || { asrctl status; tail -n 5 /run/asrd.log; fail "no initial copy"; }
	say protected
}

chain_start() {
	asr-chain --node "$NODE" --of "$OF" --disk /dev/mapper/v0 --listen 7000 --next "$NEXT" --chains "$CHAINS" \
		> /run/chain.log 2>&1 &
	CHAIN_PID=$!
	running() { grep -q running /run/chain.log; }
	retry_until 120 running || fail "the chain does not run: $(cat /run/chain.log)"
	say chain
}

until_told() {
	told() {
		[ ! -e /run/kill-asrd ] || { asrd_kill; asrd_start; rm /run/kill-asrd; }
		[ -e /run/stop ]
	}
	retry_until 3000 told || fail "never told to stop"
}

chain_stop() {
	kill "$CHAIN_PID" 2> /dev/null || :
	wait "$CHAIN_PID" || [ $? = 143 ] || fail "the chain: $(cat /run/chain.log)"
}

host_down() {
	say "down: $(group_json | tr -d '\n ')"
	asrctl disk unprotect /dev/mapper/v0 || fail "disk unprotect"
	dmsetup remove v0 || fail "remove"
	asrctl group delete g || fail "group delete"
	kill "$ASRD_PID"
	wait "$ASRD_PID" || fail "asrd ended with status $?"
}

host_life() {
	host_up
	protected
	chain_start
	until_told
	chain_stop
	host_down
}
