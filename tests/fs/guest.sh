#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# fs/guest.sh - each test on each file system, over asr with capture running and over dm-linear, in one VM.
#
# d0 is below asr, d1 below linear, of one size. A line `result FS TARGET TEST STATUS SECONDS` for each
# run; the host makes the table. A test that fails on both is a fact about the test and this
# kernel; one that fails on asr alone is a bug of ours.

# shellcheck disable=SC2034
DISKS='1 1'
# shellcheck source=tests/module/guest.sh
. /asr/in/guest.sh
set +e

seconds=$(cat /asr/in/seconds)
n=$(sectors /dev/d0)
ng() { # STRESSOR [OPTION...]
	local s=$1
	shift
	stress-ng --temp-path "$dir" --verify --oomable --timeout "$seconds" "--$s" 2 "$@"
}
job() { # NAME [OPTION...]
	fio "--name=$1" "--directory=$dir" --size=6m --bs=4k-64k --verify=crc32c --verify_fatal=1 --minimal "${@:2}"
}
stressors='access chattr chdir chmod chown copy-file dentry dir dirdeep dirmany dnotify dup fallocate fcntl fiemap
file-ioctl filename flock fpunch fsize fstat getdent handle hdd inode-flags inotify io iomix lease link locka lockf
lockofd mknod open rename symlink sync-file touch utime verity xattr aio io-uring msync mmap readahead revio seek
sendfile splice flushcache metamix'

run() { # TEST: by its name
	case $1 in
	fsx-*) asr-fsx --ops 1500 --jobs 3 --size 4194304 --seed "${1#fsx-}" "$dir/fsx" ;;
	dbench) dbench -t "$seconds" -D "$dir" -c /asr/in/client.txt 2 ;;
	fio-psync) job w --rw=randrw --ioengine=psync --fsync=32 ;;
	fio-direct) job w --rw=randwrite --ioengine=libaio --direct=1 --iodepth=32 --numjobs=2 ;;
	fio-uring) job w --rw=randrw --ioengine=io_uring --direct=1 --iodepth=32 --nowait=1 ;;
	fio-mmap) job w --rw=randwrite --ioengine=mmap ;;
	fio-trim) job w --rw=write --ioengine=psync --fallocate=keep --end_fsync=1 ;;
	hdd-sync) ng hdd --hdd-bytes 4m --hdd-opts sync,rd-rnd,wr-rnd ;;
	hdd-direct) ng hdd --hdd-bytes 4m --hdd-opts direct,wr-seq ;;
	hdd | iomix) ng "$1" "--$1-bytes" 16m ;;
	*) ng "$1" ;;
	esac
}

tests=(fsx-1 fsx-2 fsx-3 dbench fio-psync fio-direct fio-uring fio-mmap fio-trim hdd-sync hdd-direct)
for s in $stressors; do
	stress-ng --stressors | tr ' ' '\n' | grep -qx -- "$s" && tests+=("$s")
done

# one FS TARGET TEST
one() {
	local begin=$EPOCHREALTIME end status
	dir=/mnt/t/$3
	mkdir -p "$dir"
	run "$3" >/tmp/one.log 2>&1 </dev/null
	status=$?
	end=$EPOCHREALTIME
	# 3: stress-ng says that this system has not what the test is about; 4: of too few resources
	[ $status = 0 ] || [ $status = 3 ] || [ $status = 4 ] || { echo "--- $*"; tail -n 12 /tmp/one.log; }
	echo "result $1 $2 $3 $status $(((${end/./} - ${begin/./}) / 100000))"
	find "$dir" -mindepth 1 -delete 2>/dev/null
	rm -rf "$dir" 2>/dev/null
}

fsck_of() {
	case $1 in
	ext4) e2fsck -fn "$2" ;;
	xfs) xfs_repair -n "$2" ;;
	esac
}

all() { # FS TARGET DEVICE
	local t
	case $1 in	# over whatever was there before
	ext4) want mkfs.ext4 -qF "$3" ;;
	xfs) want mkfs.xfs -qf "$3" ;;
	esac
	mkdir -p /mnt/t
	want mount "$3" /mnt/t
	for t in "${tests[@]}"; do
		one "$1" "$2" "$t"
	done
	want umount /mnt/t
	fsck_of "$1" "$3" >/tmp/fsck.log 2>&1
	echo "result $1 $2 fsck $? 0"
}

modprobe xfs
for type in ext4 xfs; do
	want dmsetup create plain --table "0 $n linear /dev/d1 0"
	all $type linear "$(map plain)"
	want dmsetup remove --retry plain

	group $((32 << 20))
	asr_on 0
	asr-consume mirror g a0 /dev/d2 --sync a0=/dev/d0 2>$logs/mirror.err &
	drain=$!
	retry_until 30 grep -q attached $logs/mirror.err || fail "no consumer: $(cat $logs/mirror.err)"
	all $type asr "$(map a0)"
	kill -TERM $drain
	wait $drain
	echo "result $type asr replay-equals-disk $? 0"
	cat $logs/mirror.err
	asr-consume info g
	fsck_of $type /dev/d2 >/tmp/fsck.log 2>&1
	echo "result $type asr fsck-of-the-replay $? 0"
	[ "$(info state)" = 1 ] || echo "the ring was full in the end"
	asr_off 0
	want asr-consume delete g
done
