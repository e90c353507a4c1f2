#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# rpo.sh - from a write's completion to durable at the vault, at half of the
# throughput that this run reaches: build/bench/rpo.json. A record is committed at
# t; it is durable when the ring's tail has passed it.
set -eu
# shellcheck source=tests/bench/lib.sh
. "$(dirname "$0")/lib.sh"
SECONDS_EACH=${SECONDS_EACH:-8}
gen() { "$B/tests/asr-ringgen" --ring "$W/ring" --job rand4k "$@"; }

pipe_up 64 0
gen --bytes $((64 << 20)) > /dev/null
full=$(gen --seconds "$SECONDS_EACH" | jq .mb_per_s)
for part in 2 10; do
	rate=$(awk "BEGIN { printf \"%d\", $full / $part }")
	gen --seconds "$SECONDS_EACH" --rate "$rate" |
		jq -c --argjson full "$full" '{load_mb_per_s: .mb_per_s, p50_ms: .rpo.p50_ms, p99_ms: .rpo.p99_ms,
			full_mb_per_s: $full}'
done | jq -sc . > "$B/bench/rpo.json"
pipe_down
jq -r '.[] | "load \(.load_mb_per_s) MB/s (full speed \(.full_mb_per_s)): p50 \(.p50_ms) ms, p99 \(.p99_ms) ms"' "$B/bench/rpo.json"
