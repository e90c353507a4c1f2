#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The rules of the house that a machine can check; CONTRIBUTING.md has them in words.
set -u
cd "$(dirname "$0")/.." || exit 1
bad=0
say() { echo "style: $*"; bad=1; }

files=$(git ls-files --cached --others --exclude-standard)

# Every source file says its licence in its first three lines.
for f in $files; do
	case $f in
	*.c|*.h|*.sh|Makefile|Kbuild|dkms.conf|.ci/run|tests/run|*.bats)
		head -n 3 "$f" | grep -q 'SPDX-License-Identifier: ' || say "$f: no SPDX line at its head" ;;
	esac
done
for f in $(echo "$files" | grep '^dm-asr/.*\.[ch]$' | grep -v /uapi/); do
	head -n 1 "$f" | grep -q 'GPL-2.0' || say "$f: the module is GPL-2.0"
done

# Kernel differences stay behind compat.h, and are probed, never guessed from a version.
for f in $(echo "$files" | grep '^dm-asr/.*\.[ch]$'); do
	case $f in dm-asr/compat.h|dm-asr/probes/*) ;; *)
		grep -nE '^#\s*(if|elif).*ASR_HAS_' "$f" && say "$f: ASR_HAS_* outside compat.h" ;;
	esac
	grep -n 'LINUX_VERSION_CODE' "$f" && say "$f: probe, do not ask for the version"
	grep -nE '\bBUG(_ON)?\(|kallsyms' "$f" && say "$f: no BUG, no kallsyms"
	if [ "$f" != dm-asr/dm-asr.h ]; then
		grep -n '#include "compat.h"' "$f" && say "$f: only dm-asr.h includes compat.h"
	fi
done

# Only seal.c, tls.c, ident.c, regkey.c and conn.c speak to the cryptographic library.
for f in $(echo "$files" | grep -E '^(userland|tools)/.*\.c$'); do
	case $f in userland/seal.c|userland/tls.c|userland/ident.c|userland/enrol.c|userland/regkey.c|userland/conn.c) ;; *)
		grep -n '#include <openssl/' "$f" && say "$f: OpenSSL belongs into seal.c, tls.c, ident.c, enrol.c, regkey.c, conn.c" ;;
	esac
done

# A file is one noun: 800 lines at the very most; lines fit a screen; no stray white space.
for f in $(echo "$files" | grep -E '\.(c|h|sh)$'); do
	[ "$(wc -l < "$f")" -le 800 ] || say "$f: more than 800 lines"
	grep -nE '[[:space:]]+$' "$f" | head -n 3 | grep . && say "$f: white space at the end of a line"
	case $f in *.sh) wide=140 ;; *) wide=120 ;; esac
	expand -t 8 "$f" | grep -nE "^.{$((wide + 1)),}" | head -n 3 | grep . && say "$f: a line of more than $wide columns"
done

# The uapi header stands alone, for a 32-bit and a 64-bit caller.
for m in -m32 -m64; do
	echo '#include "dm-asr/uapi/dm-asr.h"' | gcc $m -ffreestanding -Wall -Wextra -Werror -pedantic \
		-I. -I/usr/include/x86_64-linux-gnu -fsyntax-only -x c - || say "uapi/dm-asr.h does not compile alone with $m"
done

if command -v shellcheck > /dev/null; then
	# shellcheck disable=SC2046
	shellcheck -S warning $(echo "$files" | grep -E '\.sh$|^\.ci/run$|^tests/run$') || say "shellcheck"
else
	say "shellcheck is not installed: make deps"
fi
[ $bad = 0 ] && echo "style: ok"
exit $bad
