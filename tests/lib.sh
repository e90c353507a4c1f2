# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
#
# lib.sh - small words for tests; sourced on the host and in the guest.

ASR_TOP=${ASR_TOP:-$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)}
ASR_SLOW=${ASR_SLOW:-1}		# how many times slower than usual things may be

say() { echo "[$(date +%T.%3N)] $*"; }
fail() { echo "FAIL: $*" >&2; exit 1; }
skip() { echo "SKIP: $*" >&2; exit 77; }

# want CMD...: it must succeed.
want() { "$@" || fail "status $?: $*"; }

# not CMD...: it must fail by its own decision, not by a signal or for want of it.
not() {
	local st=0
	"$@" || st=$?
	[ $st -ne 0 ] || { echo "succeeded, but must not: $*" >&2; return 1; }
	[ $st -lt 126 ] || { echo "crashed or missing ($st): $*" >&2; return 1; }
}

# refused TEXT CMD...: it fails and says TEXT (an extended regular expression).
refused() {
	local text=$1 out
	shift
	out=$(not "$@" 2>&1) || fail "$out"
	grep -Eq -- "$text" <<<"$out" || fail "'$*' said: $out -- and not: $text"
}

# retry_until SECONDS CMD...: until CMD succeeds.
retry_until() {
	local end=$((SECONDS + $1 * ASR_SLOW))
	shift
	until "$@"; do
		[ $SECONDS -lt $end ] || { echo "not within the time: $*" >&2; return 1; }
		sleep 0.1
	done
}

# In the guest: a kernel message that this test provokes on purpose.
expect_klog() {
	if [ -n "${ASR_RESULT_FD:-}" ]; then
		echo "expect $*" >&"$ASR_RESULT_FD"
	else
		VM_EXPECT+=("$*")
	fi
}
