#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# run.sh - every fuzz target for some seconds: run.sh [SECONDS]. What is found interesting
# is kept in build/fuzz/corpus/, so that the next run begins there; what crashes stays
# in build/fuzz/crashes/. Exit status 1 when anything did.
set -u
cd "$(dirname "$0")/../.." || exit 1
seconds=${1:-60} passed=0 failed=0
[[ $seconds =~ ^[1-9][0-9]*$ ]] || { echo "usage: run.sh [SECONDS], not '$seconds'" >&2; exit 2; }
mkdir -p build/fuzz/crashes
for source in tests/fuzz/*.c; do
	name=$(basename "$source" .c)
	mkdir -p "build/fuzz/corpus/$name"
	if "build/fuzz/$name" -max_total_time="$seconds" -rss_limit_mb=2048 -timeout=20 -print_final_stats=1 \
		-artifact_prefix="build/fuzz/crashes/$name-" "build/fuzz/corpus/$name" > "build/fuzz/$name.log" 2>&1; then
		passed=$((passed + 1))
		runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "build/fuzz/$name.log")
		echo "ok    $name: $runs runs in $seconds s"
	else
		failed=$((failed + 1))
		echo "FAIL  $name:"
		tail -n 20 "build/fuzz/$name.log"
	fi
done
echo "$passed passed, $failed failed"
[ $failed = 0 ]
