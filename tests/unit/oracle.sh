#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# The prefix oracle accepts what a workload left when it was killed, over several
# runs too, and refuses it when one byte, one sector or one write is not right.
set -eu
# shellcheck source=tests/lib.sh
. "$(dirname "$0")/../lib.sh"
b=$ASR_TOP/build/tests
d=$(mktemp -d "$ASR_TOP/build/oracle.XXXXXX")
trap 'rm -rf "$d"' EXIT
cd "$d"

want "$b/asr-oracle" --self-test

truncate -s 8M a b
for i in 1 2 3; do
	"$b/asr-stamp" --log "log$i" --threads 6 --seconds 0 --max-bytes 65536 --dependent \
		--zero 5 --discard 3 a b >/dev/null 2>&1 &
	sleep 0.3
	kill -9 $!
	wait $! 2>/dev/null || true
done
logs=(--log log1 --log log2 --log log3)
want "$b/asr-oracle" "${logs[@]}" a b
want "$b/asr-oracle" "${logs[@]}" --all a b
want "$b/asr-oracle" "${logs[@]}" -o json a b
refused 'NOT A PREFIX' "$b/asr-oracle" "${logs[@]}" b a
refused 'without a log' "$b/asr-oracle" --log log2 --log log3 a b
refused 'targets' "$b/asr-oracle" "${logs[@]}" a
refused 'not a log' "$b/asr-oracle" --log a a b

# A clean run, so that no byte is excused by a discard.
rm a && truncate -s 8M a
want "$b/asr-stamp" --log log --threads 4 --count 2000 --seconds 0 a
want "$b/asr-oracle" --log log --min-seq 2000 a
refused 'after 1000 nothing may be' "$b/asr-oracle" --log log --max-seq 1000 a
refused 'must be in the cut' "$b/asr-oracle" --log log --min-seq 2001 a
cp a c
printf '\252' | dd of=c bs=1 seek=$((4096 * 512 + 300)) conv=notrunc status=none
refused 'sector 4096: its checksum is wrong' "$b/asr-oracle" --log log c
cp a c
dd if=a of=c bs=512 skip=9000 seek=4096 count=1 conv=notrunc status=none
refused 'sector 4096: it was written for another place' "$b/asr-oracle" --log log c
cp a c
dd if=/dev/zero of=c bs=512 seek=4096 count=8 conv=notrunc status=none
refused 'sector 4096: shows zeroes, must show write' "$b/asr-oracle" --log log c
