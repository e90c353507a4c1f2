#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# pipeline.sh - the pipeline's throughput beside its parts alone, over the same
# bytes in the same run: build/bench/pipeline.json and a table.
#
# Rounds of (tls, pipeline) alternate, and the ratio is taken round by round: the
# machine's own ups and downs meet both. Medians are printed. mb is 10^6 bytes.
# asr-ringgen leaves the random payloads as they lie in the ring after the first
# lap, so filling the ring takes next to nothing from the two cores.
set -eu
# shellcheck source=tests/bench/lib.sh
. "$(dirname "$0")/lib.sh"
MB=${MB:-2000}
ROUNDS=${ROUNDS:-3}
RING_MIB=64
rows=$B/bench/pipeline.rows
: > "$rows"

# A real file system: this machine's programs and libraries, 256 MiB of them.
image=$B/bench/fs.img
if [ ! -s "$image" ]; then
	rm -rf "$B/bench/fs"
	mkdir -p "$B/bench/fs"
	n=0
	find /usr/bin /usr/lib /usr/share/doc -xdev -type f -size -2048k 2> /dev/null | sort |
		while read -r f; do
			cp "$f" "$B/bench/fs/$((n = n + 1))" 2> /dev/null || continue
			[ $((n % 200)) != 0 ] || [ "$(du -sm "$B/bench/fs" | cut -f1)" -lt 220 ] || break
		done
	mke2fs -q -t ext4 -d "$B/bench/fs" "$image.new" 256M
	mv "$image.new" "$image"
	rm -rf "$B/bench/fs"
fi

row() { # JOB COMPRESSION WHAT JSON
	jq -c --arg job "$1" --arg c "$2" --arg what "$3" \
		'{job: $job, compression: $c, what: $what, mb_per_s, cpu_s_per_gb_source, cpu_s_per_gb_vault}
		+ del(.what, .job, .mb_per_s, .cpu_s_per_gb_source, .cpu_s_per_gb_vault)' <<< "$4" >> "$rows"
}

pipeline() { # JOB COMPRESSION [FILE]
	local job=$1 c=$2 a0 v0 out a v peak bytes
	shift 2
	pipe_up $RING_MIB "$c"
	# one lap first: the ring's pages and both sides' buffers are there then
	"$B/tests/asr-ringgen" --ring "$W/ring" --job "$job" --bytes $((RING_MIB << 20)) "$@" > /dev/null
	a0=$(cpu_s "$ASRD_PID") v0=$(cpu_s "$VAULTD_PID")
	out=$("$B/tests/asr-ringgen" --ring "$W/ring" --job "$job" --bytes $((MB * 1000000)) "$@") || fail "generator: $out"
	a=$(cpu_s "$ASRD_PID") v=$(cpu_s "$VAULTD_PID")
	# the ring is mapped twice, and all of it counts in the peak
	peak=$(awk -v ring=$((2 * RING_MIB)) '/^VmHWM/ { printf "%.1f", $2 / 1024 - ring }' "/proc/$ASRD_PID/status")
	bytes=$(jq .bytes <<< "$out")
	row "$job" "$c" pipeline "$(jq -n --argjson o "$out" --argjson peak "$peak" \
		--argjson s "$(awk "BEGIN { print ($a - $a0) * 1e9 / $bytes }")" \
		--argjson v "$(awk "BEGIN { print ($v - $v0) * 1e9 / $bytes }")" \
		'{mb_per_s: $o.mb_per_s, cpu_s_per_gb_source: $s, cpu_s_per_gb_vault: $v, asrd_peak_mib_beyond_ring: $peak}')"
	pipe_down
}

for job in rand4k seq64k replay; do
	content=() files=()
	[ $job != replay ] || { content=(--content "$image"); files=("$image"); }
	for ((r = 0; r < ROUNDS; r++)); do
		row $job off tls "$("$B/tests/asr-baseline" tls --mb "$MB" "${content[@]}")"
		pipeline $job 0 "${files[@]}"
		mv "$rows" "$rows.0"
		sed 's/"compression":"0"/"compression":"off"/' "$rows.0" > "$rows"
	done
	row $job off seal "$("$B/tests/asr-baseline" seal --mb "$MB" "${content[@]}")"
	row $job zstd zstd "$("$B/tests/asr-baseline" zstd --mb "$((MB / 2))" "${content[@]}")"
	row $job off append "$("$B/tests/asr-baseline" append --mb "$MB" --dir "$B/bench" "${content[@]}")"
	pipeline $job 1 "${files[@]}"
	mv "$rows" "$rows.0"
	sed 's/"compression":"1"/"compression":"zstd"/' "$rows.0" > "$rows"
done
rm -f "$rows.0"

jq -sc 'def median: sort | .[length / 2 | floor];
	. as $all | group_by([.job, .compression, .what]) | map(
	  . as $g | .[0] as $r
	  | ($all | map(select(.job == $r.job and .what == "tls") | .mb_per_s)) as $tls
	  | $r + {mb_per_s: (map(.mb_per_s) | median), cpu_s_per_gb_source: (map(.cpu_s_per_gb_source) | median),
	     cpu_s_per_gb_vault: (map(.cpu_s_per_gb_vault) | median), rounds: length,
	     ratio_to_tls: ([range(length) as $i | $g[$i].mb_per_s / ($tls[$i] // ($tls | median))] | median)}
	  | del(.bytes))' "$rows" > "$B/bench/pipeline.json"
jq -r '.[] | [.job, .compression, .what, .mb_per_s, .cpu_s_per_gb_source, .cpu_s_per_gb_vault, .ratio_to_tls,
	(.asrd_peak_mib_beyond_ring // "")] | @tsv' "$B/bench/pipeline.json" |
	awk -F'\t' 'BEGIN { printf "%-8s%-7s%-10s%9s%12s%12s%8s%14s\n", "job", "compr.", "what", "MB/s",
		"source s/GB", "vault s/GB", "to tls", "asrd MiB+ring" }
	{ printf "%-8s%-7s%-10s%9.0f%12.3f%12.3f%8.2f%14s\n", $1, $2, $3, $4, $5, $6, $7, $8 }'
