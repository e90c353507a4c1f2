#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# timeout: 900
# kill -9 of asrd at 50 random moments under load: nothing lost, nothing reordered.
set -eu
if [ -n "${ASR_GUEST:-}" ]; then
	# shellcheck source=tests/e2e/guest-lib.sh
	. /asr/in/guest-lib.sh
	source_up 2
	stamp_start --threads 4 --rate 150 --max-bytes 65536
	for ((i = 0; i < 50; i++)); do
		sleep "0.$((RANDOM % 9))"	# the random moment
		asrd_kill
		asrd_start
	done
	stamp_stop
	source_down
	exit 0
fi
# shellcheck source=tests/e2e/lib.sh
. "$(dirname "$0")/lib.sh"
site_up
source_start source "$0" "$VM_OUT/d0.img" "$VM_OUT/d1.img"
vm_wait source 600 || fail "the source host"
vaultd_stop
judge_all "$VM_OUT/source/stamplog" "d0 d1" 20
judge "$VM_OUT/source/stamplog" "d0 d1" "$LAST" --all
same_as_source "d0=$VM_OUT/d0.img" "d1=$VM_OUT/d1.img"
