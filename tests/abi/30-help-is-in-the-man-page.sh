#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Every command and option of `asrctl --help` is in the man page, and back; so is completion.
set -u
cd "$(dirname "$0")/../.." || exit 1
asrctl=build/asrctl
page=docs/asrctl.8.scd
[ -x $asrctl ] || { echo "SKIP: $asrctl is not built"; exit 77; }
bad=0
say() { echo "help: $*"; bad=1; }

# "vault key create" and so on: the words in small letters that begin each line
mapfile -t commands < <($asrctl --help | sed -n 's/^  \([a-z][a-z ]*[a-z]\).*/\1/p' |
	sed 's/  .*//; s/^completion bash$/completion/')
[ ${#commands[@]} -ge 15 ] || say "--help lists only ${#commands[@]} commands"
options=$(for c in "${commands[@]}"; do
	# shellcheck disable=SC2086
	$asrctl $c --help || say "asrctl $c --help fails"
done | grep -oE '^  --[a-z-]+' | tr -d ' ' | sort -u)

for c in "${commands[@]}"; do
	grep -q "^\*asrctl $c\*" $page || say "$page does not describe \"asrctl $c\""
done
for o in $options; do
	grep -q -- "\*$o\*" $page || say "$page does not describe $o"
done
while read -r o; do
	grep -qx -- "$o" <<< "$options" || [ "$o" = --version ] || say "$page has $o, --help has not"
done < <(grep -oE -- '\*--[a-z-]+\*' $page | tr -d '*' | sort -u)
while read -r c; do
	printf '%s\n' "${commands[@]}" | grep -qx -- "$c" || say "$page has \"$c\", --help has not"
done < <(sed -n 's/^\*asrctl \([a-z ]*\)\*.*/\1/p' $page)

script=$($asrctl completion bash) || say "completion fails"
bash -n <<< "$script" || say "the completion is no bash"
for o in $options; do
	grep -q -- "$o\b" <<< "$script" || say "completion does not know $o"
done
[ "$($asrctl nonsense 2> /dev/null; echo $?)" = 2 ] || say "an unknown command does not exit with 2"
[ "$($asrctl disk protect 2> /dev/null; echo $?)" = 2 ] || say "a missing word does not exit with 2"
exit $bad
