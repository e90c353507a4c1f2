#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# check.sh - every kernel Debian serves: is it served, does the module build for
# it, does it boot, do the module tests pass on it? `make check-kernels`.
#
#   KERNELS="5.10 sid"    these and no others
#   TESTS="module/01"     patterns for tests/run; all module tests if not given
#   ALLOW_ABSENT=y        a kernel that no suite serves today is no failure
#
# Design: each step's words go to build/check-kernels/SERIES/, the table to the
# standard output, the same as JSON to build/check-kernels/table.json. One that
# fails does not end the others.

cd "$(dirname "$0")/../.." || exit 2
export ASR_TOP=$PWD
out=$PWD/build/check-kernels
read -ra kernels <<<"${KERNELS:-$(tests/setup.sh series)}"
read -ra tests <<<"${TESTS:-module/}"
rows=() json=() passed=0 failed=0 skipped=0

# One boot: the kernel is the one that was asked for, the module goes in and out.
boot() {
	VM_OUT=$out/$1/boot bash -c '
		. tests/vm/vm.sh
		VM_TIMEOUT=${VM_TIMEOUT:-300} vm_run boot "$1" --script tests/kernels/boot-guest.sh \
			--add "build/kernels/$1/version"' boot "$1"
}

step() { # SERIES STEP CMD...: its words to a file; a failure's last ones to the terminal, too
	local log=$out/$1/$2.log status=0
	echo "$1: $2" >&2
	"${@:3}" >"$log" 2>&1 || status=$?
	[ $status = 0 ] || { echo "--- the end of ${log#"$PWD/"}"; tail -n 20 "$log"; } >&2
	return $status
}

# check SERIES: sets served, version, build, boots, result.
check() {
	local s=$1 status=0
	version='-' build='-' boots='-' result='-'
	rm -rf "${out:?}/$s"
	mkdir -p "$out/$s"
	step "$s" fetch tests/setup.sh kernels --newest "$s" || status=$?
	version=$(cat "build/kernels/$s/version" 2>/dev/null || echo -)
	if [ $status = 3 ]; then
		build="NOT SERVED"
		return 3
	fi
	[ $status = 0 ] || { build="not fetched"; return 1; }
	build=FAIL
	step "$s" build tests/setup.sh module "$s" || return 1
	build=ok boots=FAIL
	step "$s" boot boot "$s" || return 1
	boots=ok
	ASR_SERIES=$s ASR_TEST_OUT=$out/$s/tests step "$s" tests tests/run "${tests[@]}" || status=1
	result=$(grep -E '^[0-9]+ passed' "$out/$s/tests.log" || echo "did not run")
	return $status
}

row() { printf '%-17s %-30s %-12s %-5s %s\n' "$@"; }

for s in "${kernels[@]}"; do
	status=0
	check "$s" || status=$?
	case $status in
	0) passed=$((passed + 1)) ;;
	3) if [ -n "${ALLOW_ABSENT:-}" ]; then skipped=$((skipped + 1)); else failed=$((failed + 1)); fi ;;
	*) failed=$((failed + 1)) ;;
	esac
	rows+=("$(row "$s" "$version" "$build" "$boots" "$result")")
	json+=("$(jq -n '$ARGS.named' --arg kernel "$s" --arg version "$version" --arg build "$build" \
		--arg boot "$boots" --arg tests "$result" --argjson ok "$([ $status = 0 ] && echo true || echo false)")")
done
mkdir -p "$out"
printf '%s\n' "${json[@]}" | jq -s . >"$out/table.json"
echo
row kernel version build boot tests
printf '%s\n' "${rows[@]}"
echo "$passed passed, $failed failed, $skipped skipped"
[ $failed = 0 ]
