# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
#
# host.sh - the host's half of a module test; the test's own file is its guest
# half, too: sourced on the host it boots each kernel with that file as script
# and ends; sourced in the guest it gives the words of guest.sh.
#
# DISKS (MiB, one word per disk) and MEM (MiB) may be set before it is sourced, and SERIES
# where one kernel has to do: a long test, run on all of them by `make check-kernels`.

if [ -n "${ASR_GUEST:-}" ]; then
	# shellcheck source=tests/module/guest.sh
	. /asr/in/guest.sh
	return
fi

# shellcheck source=tests/vm/vm.sh
. "$(dirname "$0")/../vm/vm.sh"

opts=()
mkdir -p "$VM_OUT"
for series in ${ASR_SERIES:-${SERIES:-6.1 6.12}}; do
	opts=(--script "$0" --add "$ASR_TOP/tests/module/guest.sh" --add "$ASR_TOP/tests/module/host.sh"
		--mem "${MEM:-768}")
	n=0
	for mib in ${DISKS:-32 32}; do
		rm -f "$VM_OUT/$series-$n.img"
		truncate -s "${mib}M" "$VM_OUT/$series-$n.img"
		opts+=(--disk "$VM_OUT/$series-$n.img")
		n=$((n + 1))
	done
	VM_TIMEOUT=${VM_TIMEOUT:-400} vm_run "$series" "$series" "${opts[@]}" || exit
	rm -f "$VM_OUT/$series"-*.img
done
exit 0
