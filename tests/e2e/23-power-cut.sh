#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# timeout: 900
# Power cut of the source host, 20 times, each at a random moment under load: what the
# vault has is a prefix, and no more than the last moments are missing.
set -eu
if [ -n "${ASR_GUEST:-}" ]; then
	# shellcheck source=tests/e2e/guest-lib.sh
	. /asr/in/guest-lib.sh
	source_up 2
	stamp_start --threads 4 --max-bytes 131072 --rate 400
	echo loaded
	retry_until 600 test -e /run/never
fi
# shellcheck source=tests/e2e/lib.sh
. "$(dirname "$0")/lib.sh"
CUTS=${CUTS:-20}
DISK_MIB=16
LAST=latest
for ((n = 1; n <= CUTS; n++)); do
	site_up
	rm -f "$VM_OUT/d0.img" "$VM_OUT/d1.img"
	source_start source "$0" "$VM_OUT/d0.img" "$VM_OUT/d1.img"
	await source loaded 300
	retry_until 60 test -s "$VM_OUT/source/stamplog" || fail "the workload writes nothing"
	sleep "$((RANDOM % 3)).$((RANDOM % 9))"	# the random moment
	vm_kill source
	vaultd_stop
	judge_all "$VM_OUT/source/stamplog" "d0 d1" 3
done
say "$CUTS power cuts, $JUDGED points, no violation"
