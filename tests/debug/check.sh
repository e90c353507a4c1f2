#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# check.sh - all module tests, and those of tests/debug, on the debug kernel:
# `make check-debug`. TESTS="module/01 debug/" picks.
#
# Design: a test that passes here had no report of KASAN, UBSAN, lockdep, debug
# objects or kmemleak from its first to its last moment (tests/vm/vm.sh knows
# their words, tests/vm/debug-agent asks kmemleak). The emulated debug kernel is
# some five times slower than a stock one: ASR_SLOW makes all limits longer.

cd "$(dirname "$0")/../.." || exit 2
tests/debug/kernel.sh || exit 1
tests/setup.sh module debug || exit 1
read -ra tests <<<"${TESTS:-module/ debug/}"
ASR_SERIES=debug ASR_SLOW=${ASR_SLOW:-6} ASR_TEST_OUT=$PWD/build/check-debug exec tests/run "${tests[@]}"
