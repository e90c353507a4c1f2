#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# timeout: 9000
#
# The packages in a fresh Debian: apt installs them from a repository; dkms builds the module
# for the kernel that is there, and for each kernel that is installed later; booted, a disk is
# protected by the packaged units alone; an upgrade under load stops no write and leaves the
# module in use; removal is refused while a disk is protected; a purge leaves keys and copies.
set -u
[ "$(id -u)" = 0 ] || exec sudo -E "$0" "$@"
. "$(dirname "$0")/../vm/vm.sh"
cd "$ASR_TOP" || exit 1
W=$VM_OUT
R=$W/root
DEBROOT=tests/vm/debroot.sh
V1=$(sed -n 's/^PACKAGE_VERSION="\(.*\)"/\1/p' dkms.conf)
V2=$V1+1
end() {
	vm_cleanup
	rm -rf "$R"
}
trap end EXIT

logged() { # NAME CMD...: its words into a file, the end of it when it fails
	local log=$W/$1.log
	shift
	"$@" > "$log" 2>&1 || { tail -n 30 "$log"; fail "see $log"; }
}

# The NTH newest cloud kernel of a series that the archive has, with its headers
kernel() { # SERIES NTH
	apt-cache search --names-only "^linux-headers-${1//./\\.}\\.[0-9].*-cloud-amd64\$" |
		awk '{ sub("linux-headers-", "", $1); print $1 }' | sort -rV | sed -n "$2p"
}
older=$(kernel 6.1 2) newer=$(kernel 6.1 1) other=$(kernel 6.12 1)
[ -n "$older" ] && [ -n "$newer" ] && [ -n "$other" ] || fail "the archive has no three kernels: '$older' '$newer' '$other'"

# ---------------------------------------------------------------- the archive and the root
repo=$W/repo
mkdir -p "$repo"
[ -e "build/deb/asr-agent_${V1}_amd64.deb" ] || logged deb packaging/build-deb.sh
cp build/deb/*.deb "$repo/"
# the next version: the same files under a higher number
for p in build/deb/*.deb; do
	rm -rf "$W/next"
	want dpkg-deb -R "$p" "$W/next"
	sed -i -e "s/^Version: .*/Version: $V2/" -e "s/(= $V1)/(= $V2)/" "$W/next/DEBIAN/control"
	want dpkg-deb --root-owner-group -b "$W/next" "$repo" > "$W/next.log"
done
rm -rf "$W/next"
want $DEBROOT build packages "linux-image-$older" "linux-headers-$older" dkms
want $DEBROOT unpack packages "$R"
mkdir -p "$R/srv/asr"
cp "$repo"/*.deb "$R/srv/asr/"
(cd "$R/srv/asr" && dpkg-scanpackages --multiversion . > Packages 2> /dev/null) || fail "dpkg-scanpackages"
echo "deb [trusted=yes] file:/srv/asr ./" > "$R/etc/apt/sources.list.d/local.list"
C() { $DEBROOT run "$R" bash -c "$*"; }
apt="apt-get -q -y -o Acquire::Retries=3 --no-install-recommends"

say "fresh Debian with $older: install"
logged "install" C "$apt update && $apt install asr-agent=$V1 asr-vault=$V1 asr-common=$V1 dm-asr-dkms=$V1"
built_for() { C "dkms status dm-asr/$V1" | grep -q "$1, x86_64: installed" && C "modinfo -k $1 -F vermagic dm_asr" | grep -q "^$1 "; }
want built_for "$older"
say "systemd finds no fault with the units, and the programs they start are there"
out=$(C "systemd-analyze verify --man=no \$(dpkg -L asr-agent asr-vault | grep '/systemd/system/.*\\.')" 2>&1) || fail "$out"
[ -z "$out" ] || fail "$out"

for k in "$newer" "$other"; do
	say "upgrade of the kernel to $k"
	logged "kernel-$k" C "$apt install linux-image-$k linux-headers-$k"
	want built_for "$k"
done

# ---------------------------------------------------------------- booted
say "boot"
# An upgrade builds the module for each kernel that has headers; the emulated machine for the one that it runs,
# the newest, or it takes an hour. What is built for the others stays.
logged "headers" C "$apt remove linux-headers-$older linux-headers-$newer"
for k in "$older" "$newer" "$other"; do
	want built_for "$k"
done
want $DEBROOT pack "$R" "$W/root.img" 4G
rm -rf "$R"
truncate -s 64M "$W/d0.img"
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 30 -subj "/CN=test recovery" \
	-keyout "$W/recovery.key" -out "$W/recipient.crt" 2> /dev/null || fail "no certificate"
# one CPU: the emulator can let a second one run into code that the kernel patches just now ("Oops: int3")
vm_start_root m "$W/root.img" --mem 1024 --cpus 1 --disk "$W/d0.img" --add "$W/recipient.crt" --add "$W/recovery.key"
vm_up m 600
G() { vm_exec m -t 3300 "$*"; }
Q() { G "$*" > /dev/null 2>&1; }
# apt in the machine, which builds the module there, slowly; one that stands still tells what it was at
apt_in() {
	G "DEBIAN_FRONTEND=noninteractive timeout 3000 $apt $* < /dev/null 2>&1 ||
		{ [ \$? != 124 ] || head -c 200 /proc/[0-9]*/cmdline; false; }"
}
want G "systemctl is-system-running --wait || systemctl --failed"
G "systemctl --failed --no-legend" | grep . && fail "a unit has failed"
want G "systemctl is-active asrd; lsmod | grep dm_asr; uname -r"
say "a vault, a host, a group, a disk"
want G "asrctl vault init /var/lib/asr-vault --address 127.0.0.1 && systemctl start asr-vaultd"
want G "asrctl vault key create --out /root/regkey && asrctl register --key /root/regkey --host m"
want G "asrctl group create g --recipient /asr/in/recipient.crt --ring-size 16M"
want G "dmsetup create v0 --table \"0 \$(blockdev --getsz /dev/d0) linear /dev/d0 0\""
want G "asrctl disk protect /dev/mapper/v0 --group g --name d0 --no-wait"
consistent() { G "asrctl group show g -o json" | grep -q '"consistent": *true'; }
drained() {
	local j
	j=$(G "asrctl group show g -o json") || return 1
	grep -q '"consistent": *true' <<< "$j" && grep -q '"rpo_bytes": *0\b' <<< "$j" &&
		grep -Eq '"rpo_s": *0(\.0*)?\b' <<< "$j"
}
want retry_until 300 consistent

say "upgrade under load"
want G "LD_LIBRARY_PATH=/asr/lib systemd-run -q --unit=load --setenv=LD_LIBRARY_PATH=/asr/lib \
	/asr/bin/asr-stamp --log /dev/virtio-ports/stamplog --seconds 0 --threads 2 --rate 20 --max-bytes 16384 /dev/mapper/v0"
stamps() { stat -c %s "$W/m/stamplog"; }
grown() { [ "$(stamps)" -gt "$1" ]; }
want retry_until 120 grown 0
pid() { G "systemctl show -p MainPID --value $1"; }
before="$(pid asrd) $(pid asr-vaultd)" table=$(G "dmsetup table --target asr")
[ -n "$table" ] || fail "no asr table"
logged "upgrade" apt_in install asr-agent=$V2 asr-vault=$V2 asr-common=$V2
want G "systemctl is-active asrd asr-vaultd load"
read -r a b <<< "$before"
[ "$(pid asrd)" != "$a" ] && [ "$(pid asr-vaultd)" != "$b" ] || fail "an upgrade did not start the new daemons"
[ "$(G "dmsetup table --target asr")" = "$table" ] || fail "the upgrade changed the table"
want retry_until 120 grown "$(stamps)"
want retry_until 300 consistent

say "upgrade of the module while it is in use"
srcversion=$(G "cat /sys/module/dm_asr/srcversion")
logged "module" apt_in install dm-asr-dkms=$V2
want G "dkms status dm-asr/$V1 | grep \"\$(uname -r), x86_64: installed\""
[ "$(G "cat /sys/module/dm_asr/srcversion")" = "$srcversion" ] || fail "the module in use was touched"
want retry_until 120 grown "$(stamps)"

say "removal is refused while a disk is protected"
for p in asr-agent dm-asr-dkms; do
	Q "$apt remove $p" && fail "$p was removed under a protected disk"
done
G "dpkg --remove --force-depends dm-asr-dkms" > "$W/refused.log" 2>&1 && fail "the module's package was removed"
G "dpkg --remove asr-agent" >> "$W/refused.log" 2>&1 && fail "asr-agent was removed"
[ "$(grep -c '^  v0$' "$W/refused.log")" = 2 ] || fail "the refusal does not name the device: $(cat "$W/refused.log")"
want G "systemctl is-active asrd load && dpkg --audit"

say "the copy is the disk"
want G "systemctl stop load; systemctl show -p Result --value load | grep -x success"
want retry_until 300 drained
want G "asrctl group mark g --name end"
want retry_until 120 drained
want G "asrctl restore g --disk d0 --point name:end --key /asr/in/recovery.key --to /root/restored && cmp /root/restored /dev/mapper/v0"

say "purge"
want G "asrctl disk unprotect /dev/mapper/v0 && asrctl group delete g && dmsetup remove v0"
want G "dpkg -L asr-agent asr-vault asr-common dm-asr-dkms | sort -u > /root/files"
logged "purge" apt_in purge asr-agent asr-vault asr-common dm-asr-dkms
for d in asr asr-vault; do
	grep -q "/var/lib/$d is kept" "$W/purge.log" || fail "the purge does not say that /var/lib/$d is kept"
done
want G "test -s /var/lib/asr/host.key && test -s /var/lib/asr-vault/vault.db"
want G "! grep dm_asr /proc/modules"
left=$(G "while read -r f; do [ ! -e \$f ] || [ -d \$f ] || echo \$f; done < /root/files; \
	find / -xdev \\( -path /var/lib/asr -o -path /var/lib/asr-vault -o -path /srv/asr -o -path /usr/local -o -path /root \
	-o -path /var/lib/apt -o -path /var/log -o -path /var/cache \\) -prune -o -iname '*asr[dcv_-]*' -print |
	grep -v -e asr-test -e '^/boot/' -e '/var/lib/systemd/timers'")
[ -z "$left" ] || fail "left behind: $left"
G "systemctl daemon-reload; systemctl --failed --no-legend" | grep . && fail "a unit has failed"
vm_off m 120 || fail "the machine does not end well"
say "installed, built for $older, $newer, $other; upgraded, refused, purged"
