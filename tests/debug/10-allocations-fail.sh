#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# timeout: 900
# Every allocation of every call fails once: a clean error or no difference, no leak, no report, and the copy is right.
DISKS="24 24 2"
# shellcheck source=tests/module/host.sh
. "$(dirname "$0")/../module/host.sh" 2>/dev/null || . /asr/in/host.sh

# vmalloc tells of its failures with a trace; the reports that count have words of their own
expect_klog 'vmalloc error|Call Trace|device-mapper: (table|ioctl)'
faults_on() {
	local f=/sys/kernel/debug/$1
	echo 0 >"$f/verbose"
	echo 0 >"$f/ignore-gfp-wait"
	echo 0 >"$f/probability"	# by fail-nth alone
	echo -1 >"$f/times"
}
faults_on failslab
faults_on fail_page_alloc
echo 0 >/sys/kernel/debug/fail_page_alloc/ignore-gfp-highmem
echo 0 >/sys/kernel/debug/fail_page_alloc/min-order

n=$(sectors /dev/d0)
say "options: a write-intent log"
want asr-logdev format /dev/d2 g a0 $((n / 2)) 1024	# it grows with the disk
want asr-faults g a0 /dev/d0 "$n" 2 log /dev/d2
for opts in '' '1 strict' '2 throttle_ms 50'; do
	say "options: ${opts:-none}"
	# shellcheck disable=SC2086
	want asr-faults g a0 /dev/d0 "$n" $opts
done

# a consumer beside it: what was captured while allocations failed is what is on the disk
group $((4 << 20))
asr_on 0
drain_on faults --sync "a0=$(map a0)"
want asr-faults other b0 /dev/d1 "$n"
want asr-stamp --log /tmp/stamp --threads 2 --seconds 3 --rate 40 --max-bytes 65536 "$(map a0)"
drain_off
same faults 0
asr_off 0
want asr-consume delete g
