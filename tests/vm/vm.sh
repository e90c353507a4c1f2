# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
#
# vm.sh - boot stock Debian kernels in QEMU and judge what happened; to be sourced.
#
#   vm_start NAME SERIES --script FILE [OPTION...]
#       --disk FILE[,OPT...]  raw data disk; the guest sees /dev/d0, /dev/d1, ...
#       --add FILE            into the guest as /asr/in/FILE (a file or a folder)
#       --net                 the guest reaches the host's 127.0.0.1 as 10.0.2.2
#       --fwd HPORT:GPORT     with --net: host port to guest port
#       --append WORDS        more on the kernel's command line
#       --mem MIB             768 if not given
#       --cpus N              2 if not given
#       --icount              one virtual ns per instruction, one CPU (benches)
#       --qemu WORD           one more word for QEMU, may be repeated
#   vm_start_root NAME IMAGE [OPTION...]   a whole system made by debroot.sh, on /dev/vda;
#                             what its own initrd and systemd do is part of the test. Its
#                             newest kernel and initrd are read out of the image, unless
#       --kernel FILE --initrd FILE   are given; --script is not needed here.
#                             --append "root=/dev/..." moves the root elsewhere
#   vm_off NAME SECONDS       a whole system: power off in order, then judge the kernel's log
#   vm_up NAME [SECONDS]      wait until the script in the guest has begun
#   vm_exec NAME [-t SEC] CMD run a command in the guest: its output, its status
#   vm_wait NAME SECONDS      wait for the end, and judge it: 0, 77 or 1
#   vm_run NAME SERIES ...    start and wait (VM_TIMEOUT, default 120 s)
#   ASR_SLOW=N                all limits N-fold, here and in the guest
#   vm_kill NAME              power cut: SIGKILL; then judge the kernel's log
#   vm_log_clean NAME         judge the kernel's log now
#   expect_klog REGEX         (lib.sh) before vm_start: allowed in all VMs' logs
#
# A run passes only when the guest's last act was to send the token of this run,
# with status 0, nothing in the kernel's log is alarming, and dm-asr, when it was
# loaded, could be unloaded.
#
# All a VM leaves is in $VM_OUT/NAME: console.log (the kernel's log, whole),
# out.log (the script's words), result, stamplog (what the guest wrote to
# /dev/virtio-ports/stamplog: it survives the power cut).
#
# The guest's write to a port returns once it is queued. ioeventfd=off makes the
# queueing itself the write to the host's file, so a power cut loses no log.
#
# Data disks: cache=unsafe means that QEMU puts a completed write into the host's
# page cache and ignores flushes. A SIGKILL of QEMU loses none of it; only a crash
# of the host would. So a power cut loses what was not completed, and no more.

ASR_TOP=${ASR_TOP:-$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)}
# shellcheck source=tests/lib.sh
. "$ASR_TOP/tests/lib.sh"
# shellcheck source=tests/vm/image.sh
. "$ASR_TOP/tests/vm/image.sh"

VM_OUT=${VM_OUT:-$ASR_TOP/build/test-out/$(basename "$0" .sh).d}
declare -A VM_PID=()
VM_EXPECT=()

vm_ro=cache=unsafe,read-only=on,format=raw,if=none
vm_alarm='WARNING:|BUG:|kernel BUG|Oops|general protection|Call Trace|Kernel panic|KASAN|UBSAN'
vm_alarm+='|unreferenced object|ODEBUG:|DEBUG_LOCKS_WARN|non-static key'
vm_alarm+='|turning off the locking|possible .*(deadlock|recursive locking)|circular locking|suspicious RCU'
vm_alarm+='|inconsistent lock state|held lock|sleeping function|scheduling while atomic'
vm_alarm+='|soft lockup|hard LOCKUP|blocked for more than|self-detected stall|detected stalls'
vm_alarm+='|refcount_t:|list_(add|del) corruption|page allocation failure|Out of memory|oom-kill'
vm_alarm+='|segfault at|traps:|I/O error|lost async page write|EXT4-fs (error|warning)'
vm_alarm+='|XFS .*(Corruption|Internal error|shutdown|Shutting)|asr-vm:|buffer_size_mismatch'

vm_cleanup() {
	local n
	for n in "${!VM_PID[@]}"; do
		kill -9 "${VM_PID[$n]}" 2>/dev/null
	done
	wait 2>/dev/null
}
trap vm_cleanup EXIT

# KVM only where a stock kernel truly boots under it, which is tried once.
vm_accel() {
	local cache=$VM_CACHE/accel series=$1
	if [ -n "${ASR_VM_ACCEL:-}" ]; then
		echo "$ASR_VM_ACCEL"
		return
	fi
	if [ ! -s "$cache" ]; then
		if [ -w /dev/kvm ] && (timeout -s KILL 10 qemu-system-x86_64 -M q35 -accel kvm -cpu max \
			-smp 2 -m 256 -nodefaults -display none -no-reboot -serial "file:$cache.log" \
			-kernel "$VM_CACHE/$series/kernel" -initrd "$VM_CACHE/$series/initrd" \
			-append "console=ttyS0 panic=-1 asr.probe" </dev/null) >/dev/null 2>&1 &&
			grep -q 'asr-vm: probe ok' "$cache.log"; then
			echo kvm >"$cache.new"
		else
			echo tcg >"$cache.new"
		fi
		mv "$cache.new" "$cache"
	fi
	cat "$cache"
}

vm_prepare() { # SERIES: the images that do not change from run to run
	mkdir -p "$VM_CACHE"
	# What a killed run left half made.
	find "$VM_CACHE" -maxdepth 2 \( -name 'root.??????' -o -name 'modules.??????' -o -name 'initrd.??????' \) \
		-mmin +30 -exec rm -rf {} + 2>/dev/null
	(
		flock 9
		vm_build_root && vm_build_kernel "$1" && vm_accel "$1" >/dev/null
	) 9>"$VM_CACHE/.lock" || fail "cannot make the VM's images"
}

# The newest kernel and initrd of a root image, without mounting it.
vm_boot_files() { # IMAGE DIR
	local v
	v=$(debugfs -R "ls -p /boot" "$1" 2>/dev/null | sed -n 's#^.*/vmlinuz-\([^/]*\)/.*#\1#p' | sort -V | tail -n 1)
	[ -n "$v" ] || fail "no kernel in /boot of $1"
	debugfs -R "dump /boot/vmlinuz-$v $2/vmlinuz" "$1" 2>/dev/null
	debugfs -R "dump /boot/initrd.img-$v $2/initrd" "$1" 2>/dev/null
	[ -s "$2/vmlinuz" ] && [ -s "$2/initrd" ] || fail "no kernel and initrd $v in /boot of $1"
}

vm_start_root() { vm_start "$1" 6.1 --root "${@:2}"; }

vm_start() {
	local name=$1 series=$2 dir=$VM_OUT/$1 script='' append='' mem=768 cpus=2 icount='' net='' fwd=''
	local files=() args=() n=0 id root='' kernel='' initrd=''
	shift 2
	while [ $# -gt 0 ]; do
		case $1 in
		--disk)
			[ -e "${2%%,*}" ] || fail "vm_start: no disk ${2%%,*}"
			id=$(realpath "${2%%,*}")
			case $2 in *,*) id+=,${2#*,} ;; *) id+=,cache=unsafe ;; esac
			args+=(-drive "file=$id,format=raw,if=none,id=d$n,discard=unmap"
				-device "virtio-blk-pci,drive=d$n,serial=d$n")
			n=$((n + 1))
			shift
			;;
		--script) script=$2; shift ;;
		--add) files+=("$2"); shift ;;
		--root) root=$2; shift ;;
		--kernel) kernel=$(realpath "$2"); shift ;;
		--initrd) initrd=$(realpath "$2"); shift ;;
		--net) net=y ;;
		--fwd) fwd+=",hostfwd=tcp:127.0.0.1:${2%%:*}-:${2#*:}"; shift ;;
		--append) append+=" $2"; shift ;;
		--mem) mem=$2; shift ;;
		--cpus) cpus=$2; shift ;;
		--icount) icount=y ;;
		--qemu) args+=("$2"); shift ;;
		*) fail "vm_start: unknown option $1" ;;
		esac
		shift
	done
	[ -r "$script" ] || [ -n "$root" ] || fail "vm_start: no script '$script'"
	# the debug kernel keeps a byte about each eight, and freed memory for a while
	[ "$series" != debug ] || mem=$((mem * 2))
	[ "$ASR_SLOW" = 1 ] || append+=" asr.slow=$ASR_SLOW"
	[ -z "${VM_PID[$name]:-}" ] || fail "vm_start: $name is running"
	vm_prepare "$series"
	rm -rf "$dir"
	mkdir -p "$dir"
	vm_build_project "$dir/project" "$dir/project.img" "$series" "$script" "${files[@]}" ||
		fail "cannot make the project's image"
	if [ -n "$root" ]; then
		[ -n "$kernel" ] || vm_boot_files "$root" "$dir"
		args+=(-kernel "${kernel:-$dir/vmlinuz}" -initrd "${initrd:-$dir/initrd}")
		args=(-drive "file=$(realpath "$root"),format=raw,if=none,id=root,cache=unsafe,discard=unmap"
			-device "virtio-blk-pci,drive=root,serial=root" "${args[@]}")
		append="root=/dev/vda rw$append"
	else
		args=(-kernel "$VM_CACHE/$series/kernel" -initrd "$VM_CACHE/$series/initrd"
			-drive "file=$VM_CACHE/root.img,id=root,$vm_ro" -device "virtio-blk-pci,drive=root,serial=root"
			-drive "file=$VM_CACHE/$series/modules.img,id=mods,$vm_ro"
			-device "virtio-blk-pci,drive=mods,serial=modules" "${args[@]}")
	fi

	if [ -n "$icount" ]; then
		args+=(-accel tcg -icount "shift=0,sleep=off" -smp 1 -rtc clock=vm)
		append+=" nokaslr mitigations=off"
		# an idle guest's clock leaps ahead of the disks: minutes may pass in one read
		append+=" sysctl.kernel.hung_task_timeout_secs=0"
	elif [ "$(vm_accel "$series")" = kvm ]; then
		args+=(-accel kvm -smp "$cpus")
	else
		args+=(-accel "tcg,thread=multi" -smp "$cpus")
		# measured by the guest it is wrong by factors now and then, when the host is busy
		append+=" tsc_early_khz=$("$ASR_TOP/build/tests/asr-tsc")"
	fi
	if [ -n "$net" ]; then
		args+=(-netdev "user,id=n0,ipv6=off$fwd" -device "virtio-net-pci,netdev=n0,romfile=")
		append+=" asr.net=1"
	fi
	od -An -N8 -tx8 /dev/urandom | tr -d ' ' >"$dir/token"
	append+=" asr.token=$(cat "$dir/token")"
	# An emulated machine now and then ends or stands still in its firmware or early boot, long
	# before anything of this project runs: that is no result, so it is started again, aloud.
	for n in 1 2 3 4; do
		vm_qemu "$name" "$dir" "$mem" "$append" "${args[@]}"
		vm_begins "$name" "${root:+600}" && return 0
		wait "${VM_PID[$name]}" 2>/dev/null || :
		unset "VM_PID[$name]"
		echo "VM $name did not come to its script (attempt $n); its last words:"
		tail -n 3 "$dir/console.log" "$dir/qemu.log"
	done
	fail "VM $name does not boot"
}

# Its script has begun within SECONDS; 1: it has ended before, or stands still, as one boot in some dozens does
vm_begins() { # NAME [SECONDS]
	local end=$((SECONDS + ${2:-90} * ${ASR_SLOW:-1}))
	while ! grep -q '^start ' "$VM_OUT/$1/result"; do
		vm_alive "$1" || return 1
		if [ $SECONDS -ge $end ]; then
			kill -9 "${VM_PID[$1]}"
			return 1
		fi
		sleep 0.1
	done
	return 0
}

vm_qemu() {
	local name=$1 dir=$2 mem=$3 append=$4 ports=() p
	shift 4
	for p in out result stamplog; do
		: >"$dir/$p"
		ports+=(-chardev "file,id=$p,path=$p" -device "virtserialport,chardev=$p,name=$p")
	done
	(
		cd "$dir" || exit 1
		# no five-level paging: while a kernel identifies its processor it forgets that it has it, and KASAN
		# takes the addresses of an interrupt then for wild ones
		exec setpriv --pdeathsig KILL qemu-system-x86_64 -M q35 -cpu max,la57=off -m "$mem" \
			-nodefaults -no-user-config -display none -no-reboot \
			-append "console=ttyS0 panic=-1 oops=panic random.trust_cpu=on tsc=reliable $append" \
			-serial file:console.log \
			-device virtio-serial-pci,ioeventfd=off -object rng-random,id=rng,filename=/dev/urandom \
			-device virtio-rng-pci,rng=rng "${ports[@]}" \
			-chardev socket,id=agent,path=agent,server=on,wait=off \
			-device virtserialport,chardev=agent,name=agent \
			"$@" -drive "file=project.img,id=proj,$vm_ro" \
			-device virtio-blk-pci,drive=proj,serial=project </dev/null >qemu.log 2>&1
	) &
	VM_PID[$name]=$!
}

vm_alive() { [ -n "${VM_PID[$1]:-}" ] && kill -0 "${VM_PID[$1]}" 2>/dev/null; }

vm_started_or_dead() { grep -q '^start ' "$VM_OUT/$1/result" || ! vm_alive "$1"; }

vm_up() {
	retry_until "${2:-60}" vm_started_or_dead "$1" && vm_alive "$1" && return 0
	vm_alive "$1" || vm_reap "$1"
	vm_show "$1"
	fail "VM $1 does not come up"
}

vm_exec() {
	local name=$1 t=60
	shift
	if [ "$1" = -t ]; then
		t=$2
		shift 2
	fi
	(cd "$VM_OUT/$name" && "$ASR_TOP/build/tests/vmsh" agent "$t" "$@")
}

vm_show() {
	local f
	for f in qemu.log console.log out result; do
		echo "--- $1/$f (end)"
		tail -n 25 "$VM_OUT/$1/$f" 2>/dev/null
	done
}

vm_log_clean() {
	local dir=$VM_OUT/$1 expect
	expect=$( { printf '%s\n' "${VM_EXPECT[@]}"; sed -n 's/^expect //p' "$dir/result"; } | sed '/^$/d')
	# `$^` matches nothing: with no expectation every alarm stays.
	tr -d '\r' <"$dir/console.log" | grep -aE "$vm_alarm" | grep -avE "${expect:-\$^}" >"$dir/alarms" || :
	[ ! -s "$dir/alarms" ] && return 0
	echo "--- kernel log of $1: not clean"
	head -n 20 "$dir/alarms"
	return 1
}

# Reap the VM; its own exit status says nothing about the guest.
vm_reap() {
	local status=0
	wait "${VM_PID[$1]}" 2>/dev/null || status=$?
	echo "QEMU's exit status: $status" >>"$VM_OUT/$1/qemu.log"
	unset "VM_PID[$1]"
	rm -f "$VM_OUT/$1/project.img"
}

vm_wait() {
	local name=$1 end=$((SECONDS + $2)) dir=$VM_OUT/$1 status
	while vm_alive "$name" && [ $SECONDS -lt $end ]; do
		sleep 0.1
	done
	if vm_alive "$name"; then
		kill -9 "${VM_PID[$name]}"
		vm_reap "$name"
		vm_show "$name"
		echo "VM $name: no end after $2 s"
		return 1
	fi
	vm_reap "$name"
	status=$(awk -v t="$(cat "$dir/token")" '$1 == "done" && $3 == t { print $2 }' "$dir/result")
	if [ -z "$status" ]; then
		vm_show "$name"
		echo "VM $name: ended without its token"
		return 1
	fi
	if grep '^rmmod failed' "$dir/result"; then
		tail -n 25 "$dir/out"
		echo "VM $name: the module cannot be unloaded; the script's status is $status"
		return 1
	fi
	if ! vm_log_clean "$name"; then
		tail -n 25 "$dir/out"
		return 1
	fi
	if [ "$status" != 0 ]; then
		tail -n 40 "$dir/out"
		echo "VM $name: the script's status is $status"
		[ "$status" = 77 ] || return 1
	fi
	return "$status"
}

vm_off() {
	local name=$1 end=$((SECONDS + $2))
	vm_exec "$name" "systemctl poweroff --no-block" 2>/dev/null || :
	while vm_alive "$name" && [ $SECONDS -lt $end ]; do
		sleep 0.1
	done
	if vm_alive "$name"; then
		kill -9 "${VM_PID[$name]}"
		vm_reap "$name"
		vm_show "$name"
		echo "VM $name: not off after $2 s"
		return 1
	fi
	vm_reap "$name"
	vm_log_clean "$name"
}

vm_run() {
	vm_start "$@"
	vm_wait "$1" $((${VM_TIMEOUT:-120} * ASR_SLOW))
}

vm_kill() {
	kill -9 "${VM_PID[$1]}" || fail "VM $1 was not running"
	vm_reap "$1"
	vm_log_clean "$1"
}
