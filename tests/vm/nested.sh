# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
#
# nested.sh - a small machine to run within a test VM, and a Debian with libvirt to run it with; sourced after vm.sh.
#
#   nested_build DIR SERIES   DIR/kernel, DIR/initrd: that kernel, its modules for disk and console, busybox, qemu-ga;
#                             DIR/root.img: Debian with libvirtd and QEMU, to be mounted and entered by the test VM
#
# The test VM is emulated, and so is the machine in it: that takes minutes where hardware takes seconds. So there is
# nothing in it that need not be: no udev, no ACPI, and the kernel is unpacked beforehand.

nested_build() {
	local d=$1 series=$2 tree=$1/tree f
	rm -rf "$d"
	mkdir -p "$d/init"/{bin,dev,proc,sys,mod,lib64,tmp,var}
	vm_prepare "$series"
	vm_plain_kernel "$ASR_TOP/build/kernels/$series/vmlinuz" "$d/kernel" lz4 -dcq
	"$ASR_TOP/tests/vm/debroot.sh" build vm libvirt-daemon libvirt-daemon-driver-qemu libvirt-clients \
		qemu-system-x86 qemu-guest-agent jq || return 1
	"$ASR_TOP/tests/vm/debroot.sh" image vm "$d/root.img" 2G || return 1
	"$ASR_TOP/tests/vm/debroot.sh" unpack vm "$tree" || return 1
	cp /bin/busybox "$d/init/bin/busybox"
	cp "$tree/usr/sbin/qemu-ga" "$d/init/bin/"
	for f in $(vm_libs_of "$tree/usr/sbin/qemu-ga"); do
		mkdir -p "$d/init$(dirname "$f")"
		cp -L "$tree/$f" "$d/init$f"
	done
	cp "$ASR_TOP/tests/vm/nested-init" "$d/init/init"
	# shellcheck disable=SC2016
	printf '#!/bin/sh\nwhile [ "$1" = freeze ] && [ -e /run/hang ]; do usleep 50000; done\n' >"$d/init/hook"
	chmod +x "$d/init/init" "$d/init/hook"
	vm_deps "$series" virtio_pci virtio_blk ext4 virtio_console | vm_plain "$d/init/mod"
	(cd "$d/init" && find . -print0 | cpio --null -o -H newc --quiet -R 0:0) >"$d/initrd"
	rm -rf "$tree" "$d/init"
}
