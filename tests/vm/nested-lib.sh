# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
#
# nested-lib.sh - libvirt and its machines, in the root that nested.sh made; sourced within the test VM.
#
#   libvirt_up, libvirt_down     libvirtd, without systemd: it ends with all its domains
#   libvirt_restart              libvirtd dies, and there is a new one; domains run on
#   block TARGET DEVICE, file TARGET FORMAT FILE, cdrom TARGET    a disk, as XML
#   domain NAME DISKS            a domain that boots the small machine; the file system is on its first disk
#   guest_up                     shop runs, its agent answers
#   guest COMMAND                one of nested-init's, on shop's console, and its answer is awaited
#   is_frozen, is_thawed         what shop's agent says
#   goes_on                      shop writes to its first disk

libvirt_up() {
	cat >/etc/libvirt/libvirtd.conf <<- 'C'
	auth_unix_rw = "none"
	C
	cat >/etc/libvirt/qemu.conf <<- 'C'
	security_driver = "none"
	user = "root"
	group = "root"
	cgroup_controllers = []
	namespaces = []
	dynamic_ownership = 0
	remember_owner = 0
	stdio_handler = "file"
	C
	# the package libvirt-daemon-system would make it
	echo 'libvirt-qemu:x:64055:64055::/:/bin/false' >>/etc/passwd
	echo 'libvirt-qemu:x:64055:' >>/etc/group
	ip link set lo up
	libvirtd_start
}

libvirtd_start() {	# 7: what a writer of the test's own reads, to its end
	libvirtd >>/run/libvirtd.log 2>&1 7>&- &
	LIBVIRTD_PID=$!
	libvirt_answers() { virsh list >/run/virsh.out 2>&1; }
	retry_until 240 libvirt_answers || fail "libvirtd: $(cat /run/virsh.out /run/libvirtd.log)"
}

libvirt_restart() {
	kill -9 "$LIBVIRTD_PID"
	wait "$LIBVIRTD_PID" || true
	libvirtd_start
}

libvirt_down() {
	local d
	for d in $(virsh list --name); do
		virsh destroy "$d"
	done
	kill "$LIBVIRTD_PID"
	wait "$LIBVIRTD_PID" || fail "libvirtd ended with status $?"
}

disk() { # TYPE DEVICE FORMAT ATTRIBUTE SOURCE TARGET BUS
	echo "<disk type='$1' device='$2'><driver name='qemu' type='$3' cache='none'/>"
	[ -z "$5" ] || echo "<source $4='$5'/>"
	echo "<target dev='$6' bus='$7'/></disk>"
}
block() { disk block disk raw dev "$2" "$1" virtio; }
file() { disk file disk "$2" file "$3" "$1" virtio; }
cdrom() { disk file cdrom raw file '' "$1" ide; }

domain() {
	local boot
	boot="console=ttyS0 panic=-1 random.trust_cpu=on mitigations=off tsc=reliable no_timer_check cryptomgr.notests"
	boot+=" rodata=off audit=0 rcupdate.rcu_expedited=1 $(grep -o 'tsc_early_khz=[0-9]*' /proc/cmdline || true)"
	cat >"/run/$1.xml" <<- X
	<domain type='qemu'><name>$1</name><memory unit='MiB'>128</memory><vcpu>1</vcpu>
	<os><type arch='x86_64' machine='pc'>hvm</type><kernel>/asr/in/kernel</kernel><initrd>/asr/in/initrd</initrd>
	<cmdline>$boot</cmdline></os>
	<devices><emulator>/usr/bin/qemu-system-x86_64</emulator>
	$2
	<controller type='usb' model='none'/><memballoon model='none'/>
	<serial type='pty'><log file='/run/$1.log'/></serial>
	<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>
	</devices></domain>
	X
	virsh define "/run/$1.xml" >/run/virsh.out 2>&1 || fail "domain $1: $(cat /run/virsh.out)"
}

agent() { virsh qemu-agent-command shop "{\"execute\":\"$1\"}" --timeout 30 >/run/agent.out 2>&1; }
is_frozen() { agent guest-fsfreeze-status && grep -q '"frozen"' /run/agent.out; }
is_thawed() { agent guest-fsfreeze-status && grep -q '"thawed"' /run/agent.out; }

guest_did() { [ "$(grep -c "^did $1" /run/shop.log)" -gt "$2" ]; }
guest_up() {
	retry_until 1800 guest_did boot 0 || { tail -n 20 /run/shop.log; fail "the machine in the machine does not boot"; }
	retry_until 900 is_thawed || { cat /run/agent.out; fail "its agent does not answer"; }
	trap '' HUP	# when the machine goes, so does its console
	exec 6<>"$(virsh ttyconsole shop)"	# QEMU reads only while somebody has it open
	say "up after $(cut -d. -f1 /proc/uptime) s: $(tail -n 1 /run/shop.log)"
}

guest() {
	local n
	n=$(grep -c "^did $1" /run/shop.log || true)
	echo "$1" >&6
	retry_until 300 guest_did "$1" "$n" || { tail -n 20 /run/shop.log; fail "the machine does not do '$1'"; }
}

written() { virsh domblkstat shop vda | awk '$2 == "wr_req" { print $3 }'; }
goes_on() {
	local n
	n=$(written)
	more() { [ "$(written)" -gt "$n" ]; }
	retry_until 300 more || fail "the machine stands still"
}
