#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# K8, power cuts under load: every block that differs from before lies in a set region, and just those come back dirty.
# timeout: 1800
if [ -n "${ASR_GUEST:-}" ]; then
	# shellcheck source=tests/module/guest.sh
	. /asr/in/guest.sh
	n=$(sectors /dev/d0)
	group $((4 << 20))
	want dmsetup create a0 --table "0 $n asr /dev/d0 0 g a0 2 log /dev/d1"
	# what the cut left: chunks of the set regions are dirty, no others
	set_now=$(asr-logdev bits /dev/d1 | wc -l)
	[ "$(info dirty_chunks)" = "$set_now" ] || fail "$(info dirty_chunks) dirty chunks, $set_now regions set"
	drain_on cut
	asr-stamp --log /tmp/stamp --threads 4 --seconds 600 --rate 150 --max-bytes 16384 --discard 2 --zero 2 \
		"$(map a0)" &
	busy() { [ "$(info writes)" -ge 200 ]; }
	retry_until 200 busy
	echo loaded
	sleep 600
	fail "nobody cut the power"
fi

# shellcheck source=tests/vm/vm.sh
. "$(dirname "$0")/../vm/vm.sh"
mkdir -p "$VM_OUT"
for series in ${ASR_SERIES:-6.12}; do
	d=$VM_OUT/$series
	rm -f "$d".*.img
	truncate -s 256M "$d.data.img"
	truncate -s 1M "$d.log.img"
	want "$ASR_TOP/build/tests/asr-logdev" format "$d.log.img" g a0 $((256 << 11)) 128 clear
	for cut in 1 2; do
		cp "$d.data.img" "$d.before.img"
		vm_start "$series-$cut" "$series" --script "$0" --add "$ASR_TOP/tests/module/guest.sh" \
			--disk "$d.data.img" --disk "$d.log.img"
		retry_until 400 grep -q '^loaded\|^FAIL' "$VM_OUT/$series-$cut/out" || fail "no load: see $VM_OUT"
		sleep "0.$RANDOM"
		vm_kill "$series-$cut"
		! grep '^FAIL' "$VM_OUT/$series-$cut/out" || fail "cut $cut"
		set_now=$("$ASR_TOP/build/tests/asr-logdev" bits "$d.log.img" | wc -l)
		[ "$set_now" -gt 50 ] && [ "$set_now" -lt 3500 ] || fail "$set_now regions set: the test says nothing"
		want "$ASR_TOP/build/tests/asr-logdev" covers "$d.log.img" "$d.before.img" "$d.data.img"
		[ "$("$ASR_TOP/build/tests/asr-logdev" dump "$d.log.img" | sed -n 's/^flags=//p')" = 1 ] || fail "not OPEN"
	done
	rm -f "$d".*.img
done
exit 0
