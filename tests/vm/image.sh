# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
#
# image.sh - what a test VM boots from; sourced by vm.sh.
#
# Design: four parts, each made only when what it is made of is newer:
#   root.img         the host's own tools with the libraries they need, read-only;
#                    made again when the host's packages change
#   SERIES/modules.img  the stock kernel's modules
#   SERIES/initrd    busybox and the modules it takes to mount the two
#   SERIES/kernel    the stock kernel, decompressed where that saves boot time
#   project.img      this build, the test's script and files: made at each start
# Images are written beside and renamed, so a running VM keeps the one it has.

VM_CACHE=${VM_CACHE:-$ASR_TOP/build/vm}

vm_tools=(
	bash sh ls cat cp mv rm mkdir rmdir ln chmod chown touch stat head tail sort uniq
	wc cut tr tee seq date sleep sync df du dd env expr id kill mktemp od paste printf
	pwd readlink realpath tac test timeout true false truncate uname yes cmp diff nproc
	base64 basename dirname sha256sum md5sum comm numfmt nice shuf stdbuf split fold
	grep sed awk find xargs gzip xz
	mount umount losetup lsblk blockdev blkid blkdiscard fallocate flock dmesg
	setsid logger hexdump findmnt swapon unshare nsenter prlimit ionice taskset
	mke2fs mkfs.ext4 e2fsck fsck.ext4 tune2fs resize2fs debugfs dumpe2fs e2image
	mkfs.xfs xfs_repair xfs_io dmsetup fio sqlite3 ip ss tc kmod modprobe insmod rmmod
	lsmod modinfo depmod strace ps pgrep pkill top free vmstat fuser openssl
	lvm pvcreate vgcreate lvcreate lvs vgs pvs lvchange vgchange pvmove lvremove
	cryptsetup perf busybox stress-ng dbench
)

# Libraries that the project's programs may want beyond those of the tools.
vm_libs=(
	libssl.so.3 libcrypto.so.3 libzstd.so.1 libxxhash.so.0 liburing.so.2 libjansson.so.4
	libsqlite3.so.0 libdevmapper.so.1.02.1 libinih.so.1 libinireader.so.0 libcmocka.so.0
	libgcc_s.so.1 libstdc++.so.6 libm.so.6 libpthread.so.0 libdl.so.2 libnss_files.so.2
	libasan.so.8 libubsan.so.1
)

# vm_libs_of FILE...: the shared libraries that these need, one path per line.
vm_libs_of() {
	ldd "$@" 2>/dev/null | awk '$2 == "=>" && $3 ~ /^\// { print $3 } $1 ~ /^\// && $1 !~ /:$/ { print $1 }' |
		sort -u
}

# vm_pack DIR IMAGE FREE_MIB: DIR as a file system without a journal.
vm_pack() {
	local dir=$1 img=$2 mib
	mib=$(($(du -sm --apparent-size "$dir" | cut -f1) * 5 / 4 + $3))
	rm -f "$img.new"
	truncate -s "${mib}M" "$img.new"
	mke2fs -q -t ext4 -O ^has_journal,^resize_inode -m 0 -N $(($(find "$dir" | wc -l) * 5 / 4 + 256)) \
		-E lazy_itable_init=1 -d "$dir" "$img.new" "${mib}M" >/dev/null || return 1
	mv "$img.new" "$img"
}

vm_build_root() {
	local img=$VM_CACHE/root.img d t p files=()
	if [ -e "$img" ] && [ "$img" -nt /var/lib/dpkg/status ] && [ "$img" -nt "$ASR_TOP/tests/vm/image.sh" ]; then
		return 0
	fi
	d=$(mktemp -d "$VM_CACHE/root.XXXXXX") || return 1
	mkdir -p "$d"/{usr/bin,usr/lib,usr/share,dev,proc,sys,run,tmp,var/tmp,etc,root,mnt,asr,usr/lib/modules}
	ln -s usr/bin "$d/bin"
	ln -s usr/bin "$d/sbin"
	ln -s bin "$d/usr/sbin"
	ln -s usr/lib "$d/lib"
	ln -s usr/lib "$d/lib64"
	ln -s lib "$d/usr/lib64"
	for t in "${vm_tools[@]}"; do
		p=$(PATH=/usr/sbin:/usr/bin:/sbin:/bin type -P "$t") || continue
		cp -L "$p" "$d/usr/bin/$t"
		files+=("$p")
	done
	for t in "${vm_libs[@]}"; do
		p=$(/sbin/ldconfig -p | awk -v l="$t" '$1 == l && /x86-64/ { print $NF; exit }')
		[ -z "$p" ] || files+=("$p")
	done
	for p in $(vm_libs_of "${files[@]}") "${files[@]}"; do
		case $p in
		*.so | *.so.*)
			mkdir -p "$d$(dirname "$p")"
			cp -nL "$p" "$d$p"
			;;
		esac
	done
	# ld.so knows the multiarch folder by itself; so do OpenSSL's and glibc's plug-ins.
	cp -rL /usr/lib/ssl "$d/usr/lib/" 2>/dev/null || true
	echo "root:x:0:0:root:/root:/bin/bash" >"$d/etc/passwd"
	echo "root:x:0:" >"$d/etc/group"
	echo "127.0.0.1 localhost" >"$d/etc/hosts"
	: >"$d/etc/fstab"
	ln -s /proc/self/mounts "$d/etc/mtab"
	cp /etc/mke2fs.conf "$d/etc/" 2>/dev/null || true
	vm_pack "$d" "$img" 32 || { rm -rf "$d"; return 1; }
	rm -rf "$d"
}

# vm_deps SERIES MODULE...: files to insert, in order, as paths below the kernel's root.
vm_deps() {
	local series=$1 root=$ASR_TOP/build/kernels/$1 m
	shift
	for m; do
		/sbin/modprobe -d "$root/root" -S "$(cat "$root/version")" --show-depends "$m" 2>/dev/null |
			awk '$1 == "insmod" { print $2 }'
	done | awk '!seen[$0]++'
}

# vm_plain DIR: modules named on standard input, decompressed, in order.
vm_plain() {
	local f n=10
	while read -r f; do
		n=$((n + 1))
		case $f in
		*.xz) xz -dc "$f" ;;
		*.zst) zstd -dcq "$f" ;;
		*) cat "$f" ;;
		esac >"$1/$n-$(basename "${f%.ko*}").ko"
	done
}

# vm_plain_kernel BZIMAGE OUT [UNPACK...]: the kernel as an ELF file, where that saves time:
# the guest unpacks zstd in 2 s under emulation; UNPACK is for other packings. A bzImage says where its payload
# is (Documentation/arch/x86/boot.rst); the last 4 bytes are its unpacked length. QEMU
# boots an ELF file that names its PVH entry (Xen note 18) only.
vm_plain_kernel() {
	local sects off len unpack=("${@:3}")
	[ $# -gt 2 ] || unpack=(zstd -dcq)
	sects=$(od -An -tu1 -j $((0x1f1)) -N1 "$1" | tr -d ' ')
	off=$(od -An -tu4 -j $((0x248)) -N4 "$1" | tr -d ' ')
	len=$(od -An -tu4 -j $((0x24c)) -N4 "$1" | tr -d ' ')
	tail -c +$(((sects + 1) * 512 + off + 1)) "$1" | head -c $((len - 4)) | "${unpack[@]}" >"$2.new" 2>/dev/null
	if [ "$(head -c 4 "$2.new")" = $'\x7fELF' ] && readelf -nW "$2.new" 2>/dev/null | grep -q '^ *Xen.*(0x00000012)'; then
		mv "$2.new" "$2"
	else
		rm -f "$2.new"
		ln -sfn "$(realpath "$1")" "$2"
	fi
}

vm_build_kernel() {
	local series=$1 root=$ASR_TOP/build/kernels/$1 out=$VM_CACHE/$1 d v
	if [ ! -e "$root/version" ]; then
		case $series in
		debug) "$ASR_TOP/tests/debug/kernel.sh" ;;
		*) "$ASR_TOP/tests/setup.sh" kernels "$series" ;;
		esac || return 1
	fi
	v=$(cat "$root/version")
	mkdir -p "$out"
	if [ ! "$out/modules.img" -nt "$root/version" ]; then
		d=$(mktemp -d "$out/modules.XXXXXX") || return 1
		cp -a "$root/root/lib/modules/$v" "$d/$v"
		rm -f "$d/$v/build" "$d/$v/source"
		vm_pack "$d" "$out/modules.img" 8 || { rm -rf "$d"; return 1; }
		rm -rf "$d"
	fi
	if [ ! "$out/initrd" -nt "$root/version" ] || [ ! "$out/initrd" -nt "$ASR_TOP/tests/vm/initrd-init" ] ||
		[ ! "$out/initrd" -nt "$ASR_TOP/tests/vm/image.sh" ]; then
		d=$(mktemp -d "$out/initrd.XXXXXX") || return 1
		mkdir -p "$d"/{bin,dev,proc,sys,ro,rw,root,mod,net}
		cp /bin/busybox "$d/bin/busybox"
		cp "$ASR_TOP/tests/vm/initrd-init" "$d/init"
		chmod +x "$d/init"
		vm_deps "$series" virtio_pci virtio_blk ext4 overlay virtio_console | vm_plain "$d/mod"
		vm_deps "$series" virtio_net | vm_plain "$d/net"
		vm_plain_kernel "$root/vmlinuz" "$out/kernel" || return 1
		(cd "$d" && find . -print0 | cpio --null -o -H newc --quiet -R 0:0) | gzip -1 >"$out/initrd.new" &&
			mv "$out/initrd.new" "$out/initrd"
		rm -rf "$d"
	fi
}

# vm_build_project DIR IMAGE SERIES SCRIPT FILE...: this build as the guest's /asr.
vm_build_project() {
	local d=$1 img=$2 series=$3 script=$4 f p b=$ASR_TOP/build progs=()
	shift 4
	rm -rf "$d"
	mkdir -p "$d/bin" "$d/lib" "$d/in"
	for f in "$b"/asrd "$b"/asr-vaultd "$b"/asrctl "$b"/tests/*; do
		if [ -f "$f" ] && [ -x "$f" ]; then
			cp "$f" "$d/bin/"
			progs+=("$f")
		fi
	done
	if [ ${#progs[@]} -gt 0 ]; then
		strip --strip-debug "$d"/bin/* 2>/dev/null || true
		for p in $(vm_libs_of "${progs[@]}"); do
			cp -L "$p" "$d/lib/"
		done
	fi
	for f in "$b/module/$series"/*.ko; do
		[ ! -e "$f" ] || cp "$f" "$d/"
	done
	cp "$ASR_TOP/tests/vm/guest-init" "$ASR_TOP/tests/vm/guest-agent" "$ASR_TOP/tests/vm/debug-agent" "$d/"
	cp "$ASR_TOP/tests/lib.sh" "$d/lib.sh"
	[ -z "$script" ] || cp "$script" "$d/test.sh"
	for f; do
		cp -rL "$f" "$d/in/"
	done
	vm_pack "$d" "$img" 8 && rm -rf "$d"
}
