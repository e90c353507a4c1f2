#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Sizes, offsets and numbers of door 1 are what they were, for a 64-bit and a 32-bit caller.
. "$(dirname "$0")/../lib.sh"
cd "$ASR_TOP" || exit 1
for m in -m64 -m32; do
	want gcc $m -ffreestanding -fsyntax-only -Wall -Wextra -Werror \
		-I/usr/include/x86_64-linux-gnu tests/abi/door-one.c
done
# the check itself can fail
sed 's/SIZE(asr_rec, 64)/SIZE(asr_rec, 72)/' tests/abi/door-one.c |
	not gcc -ffreestanding -fsyntax-only -Itests/abi -I/usr/include/x86_64-linux-gnu -x c - 2>/dev/null ||
	fail "a changed layout was not noticed"
# every struct of the header is in the list
for s in $(sed -n 's/^struct \(asr_[a-z_]*\) {.*/\1/p' dm-asr/uapi/dm-asr.h); do
	grep -q "^SIZE($s," tests/abi/door-one.c || fail "struct $s is not frozen; add it to tests/abi/door-one.c"
done
