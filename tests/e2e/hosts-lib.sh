# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
#
# hosts-lib.sh - a group over several guests, their links, and the judgement; to be sourced after lib.sh.
#
#   hosts_up N [CHAINS]        guests h0 to hN-1, protected, their chains running. Before it may be changed:
#                              host_disk FILE makes a host's disk, HOST_MORE: more words for vm_start,
#                              HOST_RUNS: what a guest says when its load runs,
#                              HOST_CLOCK[K]: by how many seconds host K's clock is wrong
#   declared, failed           marks so far, as the coordinator says
#   link_stop K, link_cont K, link_cut K   what the others send to host K stands still, goes on, breaks
#   net_bad K WORD..., net_good K          netem on all that host K sends, to the others and to the vault; no more
#   hosts_stop [SECONDS]       all are told to stop, and have ended well
#   points_now                 how many points of all hosts the vault has by now
#   points_of_all FROM TO      names of all points of all hosts, from one mark to another, into $W/marks
#   judge_mark NAME            restores all hosts' disks there; status 1: it is no prefix
# shellcheck source=tests/e2e/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

# What others send to host K, by a forwarder of its own process group
link_up() {
	setsid socat "TCP-LISTEN:$((BASE + 10 * $1 + 1)),fork,reuseaddr,bind=127.0.0.1" \
		"TCP:127.0.0.1:$((BASE + 10 * $1))" 2> /dev/null &
	LINK[$1]=$!
}
link_signal() { kill "-$1" -- "-${LINK[$2]}"; }
link_stop() { link_signal STOP "$1"; }
link_cont() { link_signal CONT "$1"; }
link_cut() {
	link_signal KILL "$1"
	wait "${LINK[$1]}" 2> /dev/null || :
	link_up "$1"
}

net_bad() {
	want vm_exec "h$1" "modprobe sch_netem && tc qdisc replace dev eth0 root netem ${*:2}"
}
net_good() { want vm_exec "h$1" "tc qdisc del dev eth0 root"; }

hosts_end() {
	local l
	for l in "${LINK[@]}"; do
		kill -KILL -- "-$l" 2> /dev/null
	done
	e2e_end
}
declare -a LINK=() HOST_MORE=() HOST_CLOCK=()
HOST_RUNS=chain
host_disk() { truncate -s 4M "$1"; }
trap hosts_end EXIT

hosts_up() {
	local k
	N=$1
	CHAINS=${2:-8}
	BASE=$((30000 + RANDOM % 2000 * 10))
	site_up
	for ((k = 0; k < N; k++)); do
		mkdir -p "$W/h$k"
		want "$B/asrctl" vault key create --vault-dir "$W/vault" --out "$W/h$k/regkey"
		cat > "$W/h$k/role" <<- R
			HOST=h$k NODE=$k OF=$N CHAINS=$CHAINS CLOCK=${HOST_CLOCK[$k]:-0}
			ADDRESS=10.0.2.2:$((BASE + 10 * k + 1))
			NEXT=10.0.2.2:$((BASE + 10 * ((k + 1) % N) + 2))
		R
		host_disk "$VM_OUT/h$k.img"
		vm_start "h$k" "$SERIES_E2E" --net --mem 512 --cpus 1 --script "$0" --disk "$VM_OUT/h$k.img" \
			--fwd "$((BASE + 10 * k)):20004" --fwd "$((BASE + 10 * k + 2)):7000" --add "$E2E/guest-lib.sh" \
			--add "$E2E/hosts-guest.sh" --add "$W/h$k/role" --add "$W/h$k/regkey" --add "$W/recipient.crt" \
			"${HOST_MORE[@]}"
		link_up "$k"
	done
	for ((k = 1; k < N; k++)); do
		await_said "h$k" registered 300
	done
	for ((k = 1; k < N; k++)); do
		admitted() { vm_exec h0 "asrctl group admit g --host h$k" > "$W/admit.log" 2>&1; }
		retry_until 60 admitted || fail "admit: $(cat "$W/admit.log")"
	done
	for ((k = 0; k < N; k++)); do
		await_said "h$k" protected 400
	done
	for ((k = 0; k < N; k++)); do
		await_said "h$k" "$HOST_RUNS" 300
	done
}

# say() puts the time in front
has_said() { grep -q -- "\] $2" "$VM_OUT/$1/out" || ! vm_alive "$1"; }
await_said() { # NAME LINE SECONDS
	retry_until "$3" has_said "$1" "$2" && vm_alive "$1" && return 0
	vm_show "$1"
	fail "$1 did not say '$2'"
}

marks_of() { vm_exec "h$1" "asrctl group show g -o json" 2> /dev/null | jq -c .marks; }
# By name: the host with the lowest id makes the marks
coordinator() { marks_of 0 | jq -r .coordinator; }
count_of() { vm_exec "$1" "asrctl group show g -o json" 2> /dev/null | jq "${2:-.marks.declared}"; }
more_than() { local n; n=$(count_of "$1") && [ "${n:-0}" -gt "$2" ]; }

hosts_stop() {
	local k
	for ((k = 0; k < N; k++)); do
		vm_exec "h$k" "touch /run/stop" || fail "stop h$k"
	done
	for ((k = 0; k < N; k++)); do
		vm_wait "h$k" "${1:-600}" || fail "h$k"
	done
}

points_now() { "$B/asrctl" point list g --vault-dir "$W/vault" -o json | jq .points.count; }

points_of_all() {
	"$B/asrctl" point list g --vault-dir "$W/vault" -o json > "$W/points.json" || return 1
	jq -r --arg from "$1" --arg to "$2" '.marks | map(.name) as $n | .[($n | index($from)):($n | index($to)) + 1][].mark' \
		"$W/points.json" > "$W/marks"
}

chain_check() {
	"$B/tests/asr-chain" --check --chains "$CHAINS" "$@" > "$W/chain.log" 2>&1
}

judge_mark() { # NAME
	local k images=()
	for ((k = 0; k < N; k++)); do
		restore "h$k-d0" "$1" "$W/h$k.restored"
		images+=("$W/h$k.restored")
	done
	chain_check "${images[@]}"
}
